"""From classified masks to semantic, panoptic and instance segmentation: Mask2Former's inference, as released.

`class_probs` [M, K] are each mask's probabilities over the vocabulary, `mask_logits` [M, h, w] the masks at any
resolution, `size` (H, W) the picture's. Logits are upsampled bilinearly (align_corners=False) to the picture. The
released code goes by way of the test resolution (short side 640), we go there directly. Work is done in bands of rows,
so that neither M x H x W nor K x H x W is ever held.

The vocabulary of the released code has no "other" at evaluation, so every mask gets a class, and objectness plays no
part; `objectness` [M] in [0, 1] multiplies the class probabilities when given. With `no_object=True` the last column of
`class_probs` stands for "no object" as in Mask2Former: it takes its share of the probability and is never output.
The released `semantic_inference` does this even where there is no such class, which makes ADE20K's 150th category
impossible; `semantic_map(..., no_object=True)` on the bare vocabulary repeats that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

BAND = 1 << 20  # numbers held at once in a band of rows: 4 MB in fp32, about what a cache takes


@torch.no_grad()
def semantic_map(
    class_probs: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    objectness: Tensor | None = None,
    no_object: bool = False,
    band: int = BAND,
) -> np.ndarray:
    """The class of every pixel, int32 [H, W]: the argmax over classes of sum_m class_probs[m] sigmoid(mask_logits[m]).
    All -1 (void) when there is no mask. Released: `semantic_inference`, except for its dropped last class (see above).
    """
    probs = _checked(class_probs, mask_logits, objectness)
    probs = probs[:, :-1] if no_object else probs
    semantic = np.full(size, -1, np.int32)
    if probs.numel() == 0:
        return semantic
    weights = probs.T.contiguous()  # [K, M]
    for rows, logits in row_bands(mask_logits, size, max(weights.shape), band):
        scores = weights @ logits.sigmoid().flatten(1).to(weights.dtype)  # [K, rows * W]
        semantic[rows] = scores.argmax(0).view(-1, size[1]).cpu().numpy()
    return semantic


@torch.no_grad()
def panoptic_map(
    class_probs: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    isthing: Sequence[bool],
    *,
    score_threshold: float = 0.3,
    overlap_threshold: float = 0.5,
    objectness: Tensor | None = None,
    no_object: bool = False,
    band: int = BAND,
) -> tuple[np.ndarray, list[dict]]:
    """Segment ids int32 [H, W], 0 where void, and per segment {"id", "category" (class index), "isthing", "score"}.

    A mask takes part when its best class has more than `score_threshold`; each pixel goes to the mask with the largest
    score x sigmoid(logit); a mask that keeps less than `overlap_threshold` of its own area (sigmoid >= 0.5) is dropped,
    its pixels stay void; masks of one stuff class become one segment. isthing: per class.
    Released: `panoptic_inference` with 0.3 and 0.5 on ADE20K, 0.5 and 0.5 on COCO; Mask2Former's own are 0.8 and 0.8.
    """
    probs = _checked(class_probs, mask_logits, objectness, len(isthing) + no_object)
    ids = np.zeros(size, np.int32)
    segments: list[dict] = []
    if probs.shape[0] == 0:
        return ids, segments
    scores, best_class = probs.max(-1)
    keep = (scores > score_threshold) & (best_class < len(isthing))
    scores, mask_logits = scores[keep], mask_logits[keep]
    classes: list[int] = best_class[keep].tolist()
    count = len(classes)
    if count == 0:
        return ids, segments
    winner, inside = np.empty(size, np.int64), np.empty(size, bool)
    won, area = (torch.zeros(count, dtype=torch.long, device=probs.device) for _ in range(2))
    for rows, logits in row_bands(mask_logits, size, count, band):
        masks = logits.sigmoid()
        best = (scores[:, None, None] * masks).argmax(0)
        won += best.flatten().bincount(minlength=count)
        area += (masks >= 0.5).sum((1, 2))
        winner[rows] = best.cpu().numpy()
        inside[rows] = (masks.gather(0, best[None])[0] >= 0.5).cpu().numpy()
    visible = np.bincount(winner[inside], minlength=count)
    merged = np.zeros(count, np.int32)  # mask -> segment id, 0 = dropped
    stuff: dict[int, dict] = {}
    for k, (category, score) in enumerate(zip(classes, scores.tolist(), strict=True)):
        if visible[k] == 0 or won[k].item() / area[k].item() < overlap_threshold:
            continue
        if category in stuff:
            stuff[category]["score"] = max(stuff[category]["score"], score)
            merged[k] = stuff[category]["id"]
            continue
        segment = {
            "id": len(segments) + 1, "category": category, "isthing": bool(isthing[category]), "score": score
        }  # fmt: skip
        segments.append(segment)
        merged[k] = segment["id"]
        if not segment["isthing"]:
            stuff[category] = segment
    ids[inside] = merged[winner[inside]]
    return ids, segments


@torch.no_grad()
def instances(
    class_probs: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    isthing: Sequence[bool],
    top_k: int = 100,
    *,
    things_first: bool = True,
    objectness: Tensor | None = None,
    no_object: bool = False,
    released_labels: bool = False,
    band: int = BAND,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks bool [n, H, W] (logit > 0), classes int64 [n], scores float32 [n], best first; n <= top_k.

    The `top_k` pairs of mask and thing class with the largest probability, so a mask may come with several classes;
    the score is that probability times the mean sigmoid inside the mask; pairs without a pixel are left out.

    Where the released `instance_inference` differs (its issue 7: AP on ADE20K far under the paper's):
    it picks the top k among things *and stuff* and then drops the stuff (things_first=False); and, having dropped the
    last class from the scores but not from the labels, it pairs flat index i of M x (K - 1) scores with class i mod K
    of mask i div K, so that nearly every label is wrong (released_labels=True repeats this).
    """
    probs = _checked(class_probs, mask_logits, objectness, len(isthing) + no_object)
    things = torch.tensor([bool(t) for t in isthing], device=probs.device)
    K = len(isthing)
    probs = probs[:, : K - 1] if released_labels else probs[:, :K]
    if things_first and not released_labels:
        probs = probs.masked_fill(~things, -1)
    top, index = probs.flatten().topk(min(top_k, probs.numel()))
    masks, classes = index // max(K, 1), index % max(K, 1)
    keep = things[classes] & (top >= 0)
    top, masks, classes = top[keep], masks[keep], classes[keep]
    used, which = masks.unique(return_inverse=True)
    binary = np.zeros((len(used), *size), bool)
    total, area = (torch.zeros(len(used), dtype=torch.float64, device=probs.device) for _ in range(2))
    if len(used):
        for rows, logits in row_bands(mask_logits[used], size, len(used), band):
            inside = logits > 0
            total += (logits.sigmoid() * inside).sum((1, 2))
            area += inside.sum((1, 2))
            binary[:, rows] = inside.cpu().numpy()
    scores = top * (total / (area + 1e-6)).to(top.dtype)[which]
    order = scores.argsort(descending=True, stable=True)
    order = order[(area[which] > 0)[order]]
    return binary[which[order].cpu().numpy()], classes[order].cpu().numpy(), scores[order].float().cpu().numpy()


def row_bands(
    mask_logits: Tensor, size: tuple[int, int], depth: int, band: int = BAND
) -> Iterator[tuple[slice, Tensor]]:
    """Bilinear upsampling (align_corners=False) of [M, h, w] to [M, H, W], one band of rows at a time:
    yields (rows, logits [M, len(rows), W]). Bands are as tall as `depth` numbers a pixel fit into `band`."""
    (H, W), (h, w) = size, mask_logits.shape[-2:]
    if min(H, W) < 1:
        raise ValueError(f"size is {size} but must be (height, width) in pixels, at least 1 each.")
    step = max(1, band // (max(depth, 1) * W))
    logits = mask_logits if mask_logits.dtype == torch.float64 else mask_logits.float()
    at = ((torch.arange(H, device=logits.device, dtype=torch.float64) + 0.5) * (h / H) - 0.5).clamp(min=0)
    above = at.long().clamp(max=h - 1)
    below = (above + 1).clamp(max=h - 1)
    weight = (at - above).to(logits.dtype)[:, None]
    for start in range(0, H, step):
        rows = slice(start, min(start + step, H))
        lines = logits[:, above[rows]] * (1 - weight[rows]) + logits[:, below[rows]] * weight[rows]  # [M, rows, w]
        if w != W:
            lines = interpolate(lines, size=W, mode="linear", align_corners=False)
        yield rows, lines


def _checked(class_probs: Tensor, mask_logits: Tensor, objectness: Tensor | None, columns: int | None = None) -> Tensor:
    """Class probabilities times objectness, after checking that everything belongs together."""
    if class_probs.ndim != 2 or mask_logits.ndim != 3 or len(class_probs) != len(mask_logits):
        raise ValueError(
            f"class_probs has shape {tuple(class_probs.shape)} and mask_logits {tuple(mask_logits.shape)}; "
            "they must be [M, K] and [M, h, w] for the same M masks."
        )
    if not mask_logits.is_floating_point():
        raise ValueError(f"mask_logits are {mask_logits.dtype}; they must be logits, negative outside of a mask.")
    if columns is not None and class_probs.shape[1] != columns:
        raise ValueError(
            f"class_probs has {class_probs.shape[1]} columns but must have {columns}, one for each class in isthing."
        )
    if not (torch.isfinite(class_probs).all() and torch.isfinite(mask_logits).all()):
        raise ValueError("class_probs or mask_logits are not finite; the model that made them has diverged.")
    if objectness is None:
        return class_probs
    if objectness.shape != class_probs.shape[:1]:
        raise ValueError(f"objectness has shape {tuple(objectness.shape)} but must have one value for each mask.")
    return class_probs * objectness[:, None].to(class_probs)
