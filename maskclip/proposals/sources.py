"""From a trained network on disk, or a name on the hub, to a proposal source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from maskclip.config import from_mapping
from maskclip.proposals.config import Mask2FormerConfig, MaskRCNNConfig
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.proposals.mask_rcnn import MaskRCNNSource, build_mask_rcnn
from maskclip.proposals.proposals import ProposalSource


def load_source(path: str | Path, device: str | torch.device = "cpu") -> ProposalSource:
    """A proposal source from a folder with `record.json` (what `train_proposals` and `maskclip.convert` write), or any
    Mask2Former of Hugging Face transformers, class-aware ones included, by local folder or hub name.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: the record or the weights are cut off, or the weights are of another architecture.
    """
    folder = Path(path)
    if not (folder / "record.json").is_file():
        return _pretrained(str(path), device)
    record = read_record(folder)
    config_type = {"mask2former": Mask2FormerConfig, "mask_rcnn": MaskRCNNConfig}.get(record.get("network", ""))
    if config_type is None:
        raise ValueError(
            f"{folder / 'record.json'} names the network {record.get('network')!r}, which is not known here"
        )
    given = record.get("config", {})
    given["backbone"] = {**given.get("backbone", {}), "weights": None}  # all weights are in the file
    config: Any = from_mapping(config_type, given, f"{folder / 'record.json'}: config")
    if record.get("implementation") == "detectron2":
        from maskclip.proposals.detectron2 import load_detectron2_source

        return load_detectron2_source(folder, config, device)
    model: Any = (build_mask2former if config_type is Mask2FormerConfig else build_mask_rcnn)(config, record["classes"])
    load_weights(model, folder / "network.safetensors")
    model = model.to(device)
    if config_type is Mask2FormerConfig:
        return Mask2FormerSource(model, config.short_side, config.long_side)
    return MaskRCNNSource(model, config.short_side, config.long_side, config.mask_stride)


def read_record(folder: str | Path) -> dict[str, Any]:
    """The `record.json` of a trained network."""
    path = Path(folder) / "record.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); train the network again") from None


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` from a safetensors file, every key in its place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, or is of another architecture; the sentence names some keys.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; train the network or correct the path")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); train or fetch it again") from None
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        raise ValueError(f"{path} is of another architecture: {len(wrong)} keys differ, such as {', '.join(wrong[:3])}")
    model.load_state_dict(state)


def _pretrained(name: str, device: str | torch.device) -> Mask2FormerSource:
    from transformers import Mask2FormerForUniversalSegmentation

    try:
        model: Any = Mask2FormerForUniversalSegmentation.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"no proposal network at {name}, neither a folder nor on the hub ({reason})") from None
    return Mask2FormerSource(model.to(device))
