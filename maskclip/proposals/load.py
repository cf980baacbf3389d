"""The kinds of proposal sources, and the way from a name, a folder or a file to one of them."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, Mask2FormerForUniversalSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES as MASK_GENERATORS

from maskclip.device import find_device
from maskclip.files import check_as_written, written_record
from maskclip.proposals.backbone import fill, pretrained, read_weights
from maskclip.proposals.base import ProposalSource
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.proposals.mask_generator import MaskGeneratorSource
from maskclip.proposals.mask_rcnn import MaskRCNNSource, build_mask_rcnn
from maskclip.settings import Mask2FormerConfig, MaskRCNNConfig, from_mapping, proposing_for

NetworkConfig = Mask2FormerConfig | MaskRCNNConfig
ENCODER = "maskclip.visual."  # a released file may hold MaskCLIP's encoder too, which is no part of a network


@dataclass(frozen=True)
class SourceKind:
    """All that the library has to know of a kind of proposal source; only a trained network has more than `source`.
    An entry that lacks something is a ValueError with its name."""

    name: str  # for `load_source` and records
    source: Callable[..., ProposalSource] | None = None  # of (device), or (network, settings, classes: 0 without head)
    settings: type | None = None  # the class of them
    build: Callable[[Any, int], nn.Module] | None = None  # of (settings, classes): with fresh weights
    class_heads: tuple[str, ...] = ()  # how the names of weights that know classes begin

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str) or not callable(self.source):
            raise ValueError(f"proposal source {self.name!r} needs a name and a function: SourceKind(NAME, FUNCTION)")
        if (self.settings is None) != (self.build is None):
            lacking = "build" if self.build is None else "settings"
            raise ValueError(f"proposal source {self.name!r} lacks {lacking}, which a trained network has")


def by_name(*kinds: SourceKind) -> dict[str, SourceKind]:
    """Kinds by their names; ValueError: one is no `SourceKind`, or two have one name or one class of settings."""
    found: dict[str, SourceKind] = {}
    for kind in kinds:
        if not isinstance(kind, SourceKind):
            raise ValueError(f"{kind!r} of {__file__} is no entry; write SourceKind(NAME, FUNCTION)")
        for other in found.values():
            if kind.name == other.name or (kind.settings and kind.settings is other.settings):
                raise ValueError(f"{__file__} has {other.name!r} and {kind.name!r}; each needs its own name, settings")
        found[kind.name] = kind
    return found


SOURCES = by_name(  # a new source is one entry here
    SourceKind(
        "mask2former", Mask2FormerSource, Mask2FormerConfig, build_mask2former, ("class_predictor.", "criterion.")
    ),
    SourceKind(
        "mask_rcnn", MaskRCNNSource, MaskRCNNConfig, build_mask_rcnn,
        ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
    ),
)  # fmt: skip


def source_kind(name: str, of: str | Path = "") -> Any:
    """The entry `name` of `SOURCES`, which `of` needs; ValueError where there is none."""
    if (kind := SOURCES.get(name)) is None:
        whose = f"{of} is of the" if of else "there is no"
        raise ValueError(f"{whose} proposal network {name!r}; known are {', '.join(SOURCES)}")
    return kind


def network_of(config: Any) -> str:
    """The name among `SOURCES` of the network with these settings; of their class alone, where there is none."""
    return next((name for name, kind in SOURCES.items() if kind.settings is type(config)), type(config).__name__)


def load_source(name_or_path: str | Path, device: str | torch.device = "cpu", *, pictures: str = "") -> ProposalSource:
    """A proposal source: of a folder of `train_proposals` or a file of `maskclip convert`; it sees `pictures`, those of
    a data set by its name, at the size that its settings have for them (`test_sizes`).

    Or of a name among `SOURCES` that needs no training, or of Hugging Face transformers by local folder or
    hub name: any Mask2Former, class-aware ones included, and any mask generator, such as SAM. FileNotFoundError
    if there is none; ValueError if record or weights are cut off, or of another architecture or training, or there is
    no such device.
    """
    name, path, device = str(name_or_path), Path(name_or_path), find_device(device)
    if path.is_file() or (path / "record.json").is_file():
        return _trained(path, device, pictures)
    if name in SOURCES:
        if (kind := source_kind(name)).build:
            raise FileNotFoundError(f"{name} has to be trained; give the folder or file of a trained one")
        return _untrained(kind, device)
    if "/" not in name and not path.exists():  # the hub's names are OWNER/NAME
        raise FileNotFoundError(
            f"there is no source {name!r}: no folder or file, none of {', '.join(SOURCES)}, no hub name OWNER/NAME"
        )
    return _of_transformers(name, device)


def _untrained(kind: Any, device: str | torch.device) -> ProposalSource:
    """What the function of an entry makes; one that takes pictures at once, not a device first, is told what to be."""
    cure = f"it takes a device and returns the source: SourceKind({kind.name!r}, lambda device: propose)"
    try:
        source = kind.source(device)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"the function of proposal source {kind.name!r} fails ({error}); {cure}") from error
    if not callable(source):
        raise ValueError(f"the function of proposal source {kind.name!r} gives a {type(source).__name__}; {cure}")
    return source


def _trained(path: Path, device: str | torch.device, pictures: str) -> ProposalSource:
    """The network of a folder or file by its own record, with its own weights."""
    record = _read_record(path)
    kind = source_kind(str(record.get("network")), of=path)
    try:
        given, classes = record["config"], int(record["classes"])
        if "backbone" in given:
            given["backbone"]["weights"] = None  # all weights are in the file
    except (KeyError, TypeError) as error:
        raise ValueError(f"the record of {path} is damaged ({error!r}); train or convert it again") from None
    config = from_mapping(kind.settings, given, f"the record of {path}")
    network = kind.build(config, max(1, classes))
    weights = path if path.is_file() else path / "network.safetensors"
    fill(network, read_weights(weights), weights, ignored=(ENCODER,))
    if path.is_dir():
        check_as_written(weights)
    if hasattr(config, "test_sizes"):
        config = proposing_for(config, pictures)
    return kind.source(network.to(device), config, classes)


def build_network(config: Any, classes: int) -> nn.Module:
    """The network of a config of `SOURCES`, with fresh weights, its backbone's pretrained ones, or its `start`'s.

    Of a `start`, heads that know classes are taken over only from object / no object to the same.
    FileNotFoundError or ValueError where the weights to begin with are missing or do not fit.
    """
    kind = source_kind(network_of(config))
    network = kind.build(config, classes)
    if start := getattr(config, "start", None):
        if Path(start).suffix == ".safetensors" and not Path(start).is_file():
            raise FileNotFoundError(
                f"start is {start}, which is not there; train it, or maskclip convert RELEASED.pth {start}"
            )
        state = read_weights(start) if Path(start).is_file() else _any_mask2former(start).state_dict()
        heads = {key: value for key, value in network.state_dict().items() if key.startswith(kind.class_heads)}
        alike = classes == 1 and all(key in state and state[key].shape == value.shape for key, value in heads.items())
        fill(network, state, start, ignored=(ENCODER,) if alike else (ENCODER, *kind.class_heads))
    return network


def start_classes(config: Any) -> int:
    """How many classes the head knows that `build_network` takes over from a config's `start`: 1, object or not; 0
    where it takes no head: from the authors' network, which has none, or from one that knows classes."""
    if not (start := getattr(config, "start", None)):
        return 1
    return int(Path(start).is_file() and _record_of(Path(start)).get("classes", 1) == 1)


def _of_transformers(name: str, device: str | torch.device) -> ProposalSource:
    kind = pretrained(AutoConfig, name, "proposal network").model_type
    if kind in MASK_GENERATORS:
        return MaskGeneratorSource(name, device)
    if kind != "mask2former":
        raise ValueError(
            f"{name} is a {kind}; a proposal source is a mask2former or one of {', '.join(MASK_GENERATORS)}"
        )
    return Mask2FormerSource(_any_mask2former(name).to(device), Mask2FormerConfig())


def _any_mask2former(name: str) -> Any:
    return pretrained(Mask2FormerForUniversalSegmentation, name, "proposal network")


def _record_of(path: Path) -> dict[str, Any]:
    """What `record.json` in a network's folder says, or its safetensors file; nothing where there is none."""
    record = written_record(path)
    if path.is_file():
        with contextlib.suppress(SafetensorError, ValueError), safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
    return record


def converted_from(path: str | Path) -> str:
    """The name of the checkpoint that a file of `maskclip convert` was made of; empty: it says nothing of it."""
    return str(_record_of(Path(path)).get("converted_from", ""))


def _read_record(path: Path) -> dict[str, Any]:
    """The record of a trained or converted network: `record.json` in its folder, or inside its safetensors file."""
    record = _record_of(path)
    if not record:
        raise ValueError(
            f"{path} has no record of what network it is, or is cut off or damaged; train or maskclip convert it again"
        )
    return record
