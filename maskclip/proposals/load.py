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
from maskclip.proposals import detectron2
from maskclip.proposals.base import ProposalSource
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.proposals.mask_rcnn import MaskRCNNSource, build_mask_rcnn, detect
from maskclip.proposals.weights import fill, read_weights
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


def _mask2former(network: Any, config: Mask2FormerConfig, classes: int) -> ProposalSource:
    return Mask2FormerSource(network, config.short_side, config.long_side, class_head=classes > 0)


def _mask_rcnn(network: Any, config: MaskRCNNConfig, classes: int) -> ProposalSource:
    how = detectron2.detect if config.implementation == "detectron2" else detect
    return MaskRCNNSource(network, config.short_side, config.long_side, config.mask_stride, how)


def _build_mask_rcnn(config: MaskRCNNConfig, classes: int) -> nn.Module:
    if config.implementation == "torchvision":
        return build_mask_rcnn(config, classes)
    if config.start is not None:
        raise ValueError(f"start is {config.start}, but detectron2 begins with backbone.weights; make start null")
    return detectron2.build_detectron2(config, classes)


SOURCES = {  # a new source is one entry here
    "mask2former": SourceKind(
        _mask2former, Mask2FormerConfig, build_mask2former, class_heads=("class_predictor.", "criterion.")
    ),
    "mask_rcnn": SourceKind(
        _mask_rcnn,
        MaskRCNNConfig,
        _build_mask_rcnn,
        class_heads=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
    ),
}


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
    path = Path(name_or_path)
    if path.is_file() or (path / "record.json").is_file():
        return _trained_source(path, device)
    if str(name_or_path) in SOURCES:
        kind = source_kind(str(name_or_path))
        if kind.build is not None:
            raise FileNotFoundError(f"{name_or_path} has to be trained; give the folder or file of a trained one")
        return kind.source(device)
    pretrained: Any = pretrained_mask2former(str(name_or_path))
    return Mask2FormerSource(pretrained.to(device))


def _trained_source(path: Path, device: str | torch.device) -> ProposalSource:
    record = read_record(path)
    kind = source_kind(str(record.get("network")), of=path)
    if kind.settings is None:
        raise ValueError(f"the record of {path} is damaged: {record['network']} is not trained; load it by its name")
    try:
        given, classes = record["config"], int(record["classes"])
        for section, name in ((given, "start"), (given.get("backbone", {}), "weights")):
            section.update({name: None} if name in section else {})  # all weights are in the file
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the record of {path} is damaged ({error!r}); train or convert it again") from None
    config: Any = from_mapping(kind.settings, given, f"the record of {path}")
    network = build_network(config, max(1, classes))
    weights = path if path.is_file() else path / "network.safetensors"
    fill(network, _without_encoder(read_weights(weights)), weights)
    if path.is_dir():
        check_as_written(weights)
    return kind.source(network.to(device), config, classes)


def source_kind(name: str, of: Path | None = None) -> SourceKind:
    """The entry of that name in `SOURCES`.

    Raises:
        ValueError: there is none, or it is half filled; `of` is named as what needs it.
    """
    kind = SOURCES.get(name)
    if kind is None:
        whose = f"{of} is of" if of else "there is no proposal"
        raise ValueError(f"{whose} network {name!r}; known are {', '.join(SOURCES)}")
    lacking = [part for part in ("source", "settings", "build") if getattr(kind, part) is None]
    if lacking and lacking != ["settings", "build"]:
        raise ValueError(f"the entry {name!r} of maskclip.proposals.load.SOURCES lacks {' and '.join(lacking)}")
    return kind


def build_network(config: Any, classes: int) -> nn.Module:
    """The network of a config of `SOURCES`, with fresh weights, its backbone's pretrained ones, or its `start`'s.

    Raises:
        FileNotFoundError, ValueError: the weights to begin with are missing or do not fit; the sentence names them.
    """
    names = [name for name, kind in SOURCES.items() if kind.settings is type(config)]
    kind: Any = source_kind(names[0] if names else type(config).__name__)
    network = kind.build(config, classes)
    if (start := getattr(config, "start", None)) is not None:
        _begin_with(network, start, classes, kind.class_heads)
    return network


def _begin_with(network: nn.Module, start: str, classes: int, class_heads: tuple[str, ...]) -> None:
    """Fill a network from another, class-aware or not (`start` of its config).

    The heads that know classes are taken over only from object / no object to object / no object.
    """
    state = read_weights(start) if Path(start).is_file() else pretrained_mask2former(start).state_dict()
    state = _without_encoder(state)
    heads = {key: value for key, value in network.state_dict().items() if key.startswith(class_heads)}
    alike = classes == 1 and all(key in state and state[key].shape == value.shape for key, value in heads.items())
    fill(network, state, start, ignored=() if alike else class_heads)


def _without_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(ENCODER)}


def pretrained_mask2former(name: str) -> Mask2FormerForUniversalSegmentation:
    """Any Mask2Former of Hugging Face transformers, by local folder or hub name.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        return Mask2FormerForUniversalSegmentation.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"no proposal network at {name}, neither a folder nor on the hub ({reason})") from None


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
