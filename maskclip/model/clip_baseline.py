"""The CLIP Baseline (App. A, Alg. 1): one CLIP pass per mask, on the image with everything else blacked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn


@torch.no_grad()
def clip_baseline(
    clip_model: nn.Module,
    images: Tensor,
    mask_logits: Tensor,
    crop: bool = False,
    batch: int = 16,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    encode_image: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """V_t = f_v(M_t * I) for every mask t, without gradients.

    Args:
        clip_model: an open_clip model; its `encode_image` is f_v.
        images: [B, 3, S, S], CLIP-normalized.
        mask_logits: [B, M, S, S]; M_t is binary, 1 where the logit is at least 0 (probability one half).
        crop: also cut out the mask's bounding box and squash it to S x S. The paper only masks. A mask without a pixel
            has no box and stays an all-black picture.
        batch: masked pictures per CLIP pass. Masks without a pixel share one: all leave the same black picture.
        mean, std: normalization of `images` [3]; M_t * I is black outside the mask, -mean / std after it. None: the
            model's own as open_clip's factory noted it, else OpenAI's.
        encode_image: f_v, [B, 3, S, S] -> [B, C]; None: open_clip's own.
    Returns:
        [B, M, C] in CLIP's joint space, not normalized.
    Raises:
        ValueError: images or masks of a wrong shape, or masks that are not finite, or batch < 1.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images is {tuple(images.shape)}; it must be [B, 3, S, S]")
    if mask_logits.ndim != 4 or mask_logits.shape[0] != len(images) or mask_logits.shape[2:] != images.shape[2:]:
        expected = f"[{len(images)}, M, {images.shape[2]}, {images.shape[3]}]"
        raise ValueError(f"mask_logits is {tuple(mask_logits.shape)}; it must be {expected}, as the images")
    if not mask_logits.isfinite().all():
        raise ValueError("mask_logits holds values that are not finite")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1 picture per pass")
    visual: Any = clip_model.visual
    f_v: Any = encode_image or clip_model.encode_image
    mean = mean if mean is not None else getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN
    std = std if std is not None else getattr(visual, "image_std", None) or OPENAI_DATASET_STD
    black = -torch.as_tensor(mean).to(images) / torch.as_tensor(std).to(images)

    masks = (mask_logits.sigmoid() >= 0.5).flatten(0, 1)
    image_of_mask = torch.arange(len(images), device=images.device).repeat_interleave(mask_logits.shape[1])
    if not len(masks):
        return images.new_zeros(*mask_logits.shape[:2], visual.output_dim)
    # masks without a pixel all leave the same black picture: CLIP sees it once, first
    empty = ~masks.flatten(1).any(1)
    passes = torch.cat([empty.nonzero()[:1, 0], (~empty).nonzero()[:, 0]])
    embeddings = []
    for chosen in passes.split(batch):
        mask, owner = masks[chosen], image_of_mask[chosen]
        pictures = torch.where(mask[:, None], images[owner], black.view(3, 1, 1))
        if crop:
            cut = [picture[(..., *_box(m))] for picture, m in zip(pictures, mask, strict=True)]
            pictures = torch.stack([_squash(picture, images.shape[-2:]) for picture in cut])
        embeddings.append(f_v(pictures))
    pass_of_mask = (~empty).cumsum(0) - 1 + empty.any()
    return torch.cat(embeddings)[pass_of_mask.masked_fill(empty, 0)].unflatten(0, mask_logits.shape[:2])


def _box(mask: Tensor) -> tuple[slice, slice]:
    """The bounding box of a bool mask [S, S] as row and column slices; everything if it has no pixel."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return slice(None), slice(None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _squash(picture: Tensor, size: Sequence[int]) -> Tensor:
    """[3, h, w] -> [3, *size], bicubic with antialiasing, as CLIP's pictures are made."""
    return F.interpolate(picture[None], tuple(size), mode="bicubic", antialias=True)[0]
