"""From a trained network on disk, or a name on the hub, to a proposal source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from maskclip.files import check_as_written
from maskclip.proposals.base import ProposalSource
from maskclip.proposals.detectron2 import Detectron2Source, build_detectron2
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.proposals.mask_rcnn import MaskRCNNSource, build_mask_rcnn
from maskclip.proposals.weights import ENCODER, fill, pretrained_mask2former, read_weights
from maskclip.settings import Mask2FormerConfig, MaskRCNNConfig, from_mapping

NetworkConfig = Mask2FormerConfig | MaskRCNNConfig


def load_source(path: str | Path, device: str | torch.device = "cpu") -> ProposalSource:
    """A proposal source: a folder with `record.json` (of `train_proposals`), a safetensors file (of
    `maskclip.released.convert`), or any Mask2Former of Hugging Face transformers, class-aware ones included,
    by local folder or hub name.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: the record or the weights are cut off, or the weights are of another architecture or training.
    """
    path = Path(path)
    if not path.is_file() and not (path / "record.json").is_file():
        pretrained: Any = pretrained_mask2former(str(path))
        return Mask2FormerSource(pretrained.to(device))
    weights = path if path.is_file() else path / "network.safetensors"
    record = read_record(path)
    config_type = {"mask2former": Mask2FormerConfig, "mask_rcnn": MaskRCNNConfig}.get(str(record.get("network")))
    if config_type is None:
        raise ValueError(f"{path} is of the network {record.get('network')!r}, which is not known here")
    try:
        given, classes = record["config"], int(record["classes"])
        given["backbone"]["weights"] = given["start"] = None  # all weights are in the file
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the record of {path} is damaged ({error!r}); train or convert it again") from None
    config: Any = from_mapping(config_type, given, f"the record of {path}")
    model: Any = build_network(config, max(1, classes))
    state = {key: value for key, value in read_weights(weights).items() if not key.startswith(ENCODER)}
    fill(model, state, weights)
    if path.is_dir():
        check_as_written(weights)
    model = model.to(device)
    if config_type is Mask2FormerConfig:
        return Mask2FormerSource(model, config.short_side, config.long_side, class_head=classes > 0)
    source = Detectron2Source if record.get("implementation") == "detectron2" else MaskRCNNSource
    return source(model, config.short_side, config.long_side, config.mask_stride)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a trained or converted network: `record.json` in its folder, or inside its safetensors file."""
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
            f"{path} has no record of what it is; convert released weights with maskclip.released.convert"
        ) from None


def build_network(config: NetworkConfig, classes: int) -> nn.Module:
    """The network of a config, with fresh weights (or its backbone's pretrained ones)."""
    if isinstance(config, Mask2FormerConfig):
        return build_mask2former(config, classes)
    if config.implementation == "detectron2":
        if config.start is not None:
            raise ValueError(f"start is {config.start}, but detectron2 begins with backbone.weights; make start null")
        return build_detectron2(config, classes)
    if config.implementation != "torchvision":
        raise ValueError(f"implementation is {config.implementation!r}; it must be 'torchvision' or 'detectron2'")
    return build_mask_rcnn(config, classes)
