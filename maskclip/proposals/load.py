"""The kinds of proposal sources, and the way from a name, a folder or a file to one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from maskclip.files import check_as_written
from maskclip.proposals.base import ProposalSource
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.proposals.mask_rcnn import MaskRCNNSource, build_mask_rcnn
from maskclip.proposals.weights import fill, pretrained, read_weights
from maskclip.settings import Mask2FormerConfig, MaskRCNNConfig, from_mapping

NetworkConfig = Mask2FormerConfig | MaskRCNNConfig
ENCODER = "maskclip.visual."  # a released file may hold MaskCLIP's encoder too, which is no part of a network


@dataclass(frozen=True)
class SourceKind:
    """All that the library has to know of a kind of proposal source.

    Attributes:
        source: (device) -> the source; of a network that is trained: (network, settings, classes) -> the source, where
            0 classes mean that the network has no class head.
        settings: the class of a trained network's settings.
        build: (settings, classes) -> the network with fresh weights.
        class_heads: how the names of the weights begin that know classes.
    """

    source: Callable[..., ProposalSource]
    settings: type | None = None
    build: Callable[[Any, int], nn.Module] | None = None
    class_heads: tuple[str, ...] = ()


SOURCES = {  # a new source is one entry here
    "mask2former": SourceKind(
        Mask2FormerSource, Mask2FormerConfig, build_mask2former, class_heads=("class_predictor.", "criterion.")
    ),
    "mask_rcnn": SourceKind(
        MaskRCNNSource,
        MaskRCNNConfig,
        build_mask_rcnn,
        class_heads=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
    ),
}


def source_kind(name: str, of: str | Path = "") -> SourceKind:
    """The entry of that name in `SOURCES`.

    Raises:
        ValueError: there is none, or it is half filled; `of` is named as what needs it.
    """
    kind = SOURCES.get(name)
    if kind is None:
        whose = f"{of} is of the" if of else "there is no"
        raise ValueError(f"{whose} proposal network {name!r}; known are {', '.join(SOURCES)}")
    lacking = [part for part in ("source", "settings", "build") if getattr(kind, part) is None]
    if lacking and lacking != ["settings", "build"]:
        raise ValueError(f"the entry {name!r} of maskclip.proposals.load.SOURCES lacks {' and '.join(lacking)}")
    return kind


def load_source(name_or_path: str | Path, device: str | torch.device = "cpu") -> ProposalSource:
    """A proposal source.

    Args:
        name_or_path: a folder with `record.json` (of `train_proposals`), a safetensors file (of `maskclip convert`), a
            name among `SOURCES` that needs no training, or any Mask2Former of Hugging Face transformers, class-aware
            ones included, by local folder or hub name.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: the record or the weights are cut off, or the weights are of another architecture or training.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if not path.is_file() and not (path / "record.json").is_file():
        if name not in SOURCES:
            return Mask2FormerSource(_any_mask2former(name).to(device), Mask2FormerConfig())
        if source_kind(name).build is not None:
            raise FileNotFoundError(f"{name} has to be trained; give the folder or file of a trained one")
        return SOURCES[name].source(device)
    record = read_record(path)
    kind: Any = source_kind(str(record.get("network")), of=path)
    try:
        given, classes = record["config"], int(record["classes"])
        for section, begun_with in ((given, "start"), (given.get("backbone", {}), "weights")):
            section.update({begun_with: None} if begun_with in section else {})  # all weights are in the file
        config = from_mapping(kind.settings, given, f"the record of {path}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record of {path} is damaged ({error!r}); train or convert it again") from None
    network = build_network(config, max(1, classes))
    weights = path if path.is_file() else path / "network.safetensors"
    fill(network, _without_encoder(read_weights(weights)), weights)
    if path.is_dir():
        check_as_written(weights)
    return kind.source(network.to(device), config, classes)


def build_network(config: Any, classes: int) -> nn.Module:
    """The network of a config of `SOURCES`, with fresh weights, its backbone's pretrained ones, or its `start`'s.

    A `start` may be class-aware or not: its heads that know classes are taken over only from object / no object to
    object / no object.

    Raises:
        FileNotFoundError, ValueError: the weights to begin with are missing or do not fit; the sentence names them.
    """
    names = [name for name, kind in SOURCES.items() if kind.settings is type(config)]
    kind: Any = source_kind(names[0] if names else type(config).__name__)
    network = kind.build(config, classes)
    if (start := getattr(config, "start", None)) is not None:
        state = _without_encoder(read_weights(start) if Path(start).is_file() else _any_mask2former(start).state_dict())
        heads = {key: value for key, value in network.state_dict().items() if key.startswith(kind.class_heads)}
        alike = classes == 1 and all(key in state and state[key].shape == value.shape for key, value in heads.items())
        fill(network, state, start, ignored=() if alike else kind.class_heads)
    return network


def _any_mask2former(name: str) -> Any:
    return pretrained(Mask2FormerForUniversalSegmentation, name, "proposal network")


def _without_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(ENCODER)}


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a trained or converted network: `record.json` in its folder, or inside its safetensors file.

    Raises:
        ValueError: it is cut off or damaged, or the file has none.
    """
    path = Path(path)
    try:
        if path.is_dir():
            text = (path / "record.json").read_text(encoding="utf-8")
        else:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {})["record"]
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError(f"its record is a {type(record).__name__}")
        return record
    except (ValueError, SafetensorError) as error:  # no JSON, no UTF-8
        raise ValueError(f"{path} is cut off or damaged ({error}); train or convert it again") from None
    except KeyError:
        raise ValueError(
            f"{path} has no record of what it is; convert released weights with maskclip convert"
        ) from None
