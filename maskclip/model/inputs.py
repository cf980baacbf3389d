"""What the encoders can work with: a plain ViT, images, mask logits; each mistake is named once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def plain_vit(clip_model: nn.Module) -> Any:
    """The image tower of `clip_model`, if it is a plain ViT that answers with its class token."""
    visual: Any = getattr(clip_model, "visual", None)
    parts = ("conv1", "class_embedding", "positional_embedding", "ln_post")
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not all(hasattr(visual, part) for part in parts):
        raise ValueError(
            f"clip_model is a {type(clip_model).__name__} with image tower {type(visual).__name__}; it must be an "
            "open_clip CLIP whose image tower is open_clip's ViT with a class token (no ResNet, no timm tower)"
        )
    if getattr(visual, "pool_type", "tok") != "tok" or getattr(visual, "attn_pool", None) is not None:
        raise ValueError(
            f"clip_model pools its image tokens (pool_type {visual.pool_type!r}, attention pool "
            f"{visual.attn_pool is not None}); it must answer with its class token for mask class tokens to make sense"
        )
    if not all(isinstance(block.attn, nn.MultiheadAttention) and block.attn.batch_first for block in blocks):
        raise ValueError("clip_model has attention other than plain batch-first multi-head attention; use a plain ViT")
    if visual.patch_size[0] != visual.patch_size[1]:
        raise ValueError(f"clip_model has patches of {visual.patch_size}; they must be square")
    return visual


def check_rma(rma_layers: Sequence[int], depth: int, query_form: str) -> None:
    """Layers that a ViT of `depth` layers has, each once, and a known form of phi_Qm."""
    layers = tuple(rma_layers)
    if any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= depth for n in layers):
        raise ValueError(f"rma_layers is {layers}; it must hold the ViT's layers, 1 to {depth}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"rma_layers is {layers}; it must not name a layer twice")
    if query_form not in ("layernorm", "linear"):
        raise ValueError(f"query_form is {query_form!r}; it must be 'layernorm' (released) or 'linear' (paper)")


def check_images(images: Tensor, patch: int) -> None:
    """CLIP-normalized images [B, 3, S, S], S a multiple of the patch."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] % patch or not shape[2]:
        raise ValueError(f"images is {shape}; it must be [B, 3, S, S] with S a multiple of the patch, {patch}")
    if not images.is_floating_point():
        raise ValueError(f"images is {images.dtype}; it must be floating point, normalized as CLIP's images are")


def check_masks(mask_logits: Tensor, valid: Tensor | None, batch: int, size: int) -> Tensor:
    """Mask logits [B, M, S, S], with zeros for padding, so that nothing in it can matter."""
    shape = tuple(mask_logits.shape)
    if len(shape) != 4 or shape[0] != batch or shape[2:] != (size, size):
        raise ValueError(f"mask_logits is {shape}; it must be [B, M, S, S], here ({batch}, M, {size}, {size})")
    if not mask_logits.is_floating_point():
        raise ValueError(f"mask_logits is {mask_logits.dtype}; it must be logits in floating point")
    if valid is not None:
        if valid.dtype != torch.bool or tuple(valid.shape) != shape[:2]:
            raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}; it must be bool [B, M], {shape[:2]}")
        if not valid.all():
            mask_logits = mask_logits.masked_fill(~valid[..., None, None], 0)
    if mask_logits.numel() and not torch.stack(torch.aminmax(mask_logits.detach())).isfinite().all():
        raise ValueError("mask_logits holds values that are not finite; every valid mask must be finite logits")
    return mask_logits
