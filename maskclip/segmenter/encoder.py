"""The visual encoder that trained weights are for: which layers, which form of Eq. 3, is read off them."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskclip.files import load_checkpoint
from maskclip.model.clip import Clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.released.encoder import load_released_encoder

_TRAINED = re.compile(r"(?:^|\.)(\d+)\.")  # rma.6.residual.weight
_LAYER = re.compile(r"resblocks\.(\d+)\.attn\.q_prime_norm_added_params\.")


def load_encoder(weights: str | Path | None, clip: Clip) -> MaskCLIPVisualEncoder:
    """The encoder of a training (its folder or encoder.pt) or of a file of `maskclip convert`; None: w/o RMA.

    A converted file's CLIP, where it holds one, is written into `clip`, whose image tower the encoder shares.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds no encoder, or is of another CLIP.
    """
    if weights is None:
        return MaskCLIPVisualEncoder.from_open_clip(clip.model, rma_layers=())
    path = Path(weights)
    if path.is_dir():
        path /= "encoder.pt"
    if path.suffix == ".safetensors":
        return _load_converted(path, clip)
    from maskclip.training.mask_tokens import load_trained_weights  # brings pandas and accelerate along

    keys = {name: value.ndim for name, value in load_checkpoint(path).items() if isinstance(value, Tensor)}
    layers = sorted({int(found[1]) for name in keys if (found := _TRAINED.search(name))})
    linear = any(name.endswith("mask_query.weight") and ndim == 2 for name, ndim in keys.items())
    refine, two_layers = any("residual" in name for name in keys), any("residual.0" in name for name in keys)
    forms = "linear" if linear else "layernorm", "attention" if two_layers else "product"
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, layers, refine, *forms)
    return load_trained_weights(encoder, path)


def _load_converted(path: Path, clip: Clip) -> MaskCLIPVisualEncoder:
    """Of a released whole model the encoder alone is read; the proposal network stays on the disk."""
    if not path.is_file():
        raise FileNotFoundError(f"no MaskCLIP weights at {path}; maskclip convert RELEASED.pth {path} writes them")
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys() if "visual." in key}
    except (SafetensorError, ValueError):
        raise ValueError(f"{path} is not a whole safetensors file; maskclip convert it again") from None
    layers = sorted({int(found[1]) + 1 for key in state if (found := _LAYER.search(key))})
    if not layers:
        raise ValueError(f"{path} holds no MaskCLIP encoder; convert the authors' whole model, not the proposals alone")
    try:
        return load_released_encoder(state, clip.model, tuple(layers))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
