"""From classified masks to semantic, panoptic and instance segmentation: Mask2Former's, as released.

`class_probs` [M, K] are each mask's probabilities, `mask_logits` [M, h, w] the masks at any
resolution, `size` (H, W) the picture's. Logits are upsampled bilinearly (align_corners=False) to the
picture; the released code goes by way of the test resolution (short side 640). Work is done in bands
of rows, so that neither M x H x W nor K x H x W is ever held.

With `no_object=True` the last column of `class_probs` stands for "no object" as in Mask2Former: it
takes its share of the probability and is never output. The released `semantic_inference` does this
even where there is no such class, so ADE20K's 150th category can never be predicted;
`semantic_map(..., no_object=True)` on the bare vocabulary repeats that.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

BAND = 1 << 20  # numbers held at once in a band of rows: 4 MB in fp32, about what a cache takes
Size = tuple[int, int]  # height, width


@torch.no_grad()
def semantic_map(class_probs: Tensor, mask_logits: Tensor, size: Size, *, no_object: bool = False) -> np.ndarray:
    """The class of every pixel, int32 [H, W]: argmax of sum_m class_probs[m] sigmoid(mask_logits[m]).

    All -1 (void) when there is no mask. Released: `semantic_inference`.
    """
    _check(class_probs, mask_logits)
    probs = class_probs[:, :-1] if no_object else class_probs
    semantic = np.full(size, -1, np.int32)
    if probs.numel() == 0:
        return semantic
    weights = probs.T.contiguous()  # [K, M]
    for rows, logits in row_bands(mask_logits, size, max(weights.shape)):
        scores = weights @ logits.sigmoid().flatten(1).to(weights.dtype)  # [K, rows * W]
        semantic[rows] = scores.argmax(0).view(-1, size[1]).cpu().numpy()
    return semantic


@torch.no_grad()
def panoptic_map(
    class_probs: Tensor,
    mask_logits: Tensor,
    size: Size,
    isthing: Sequence[bool],
    *,
    score_threshold: float = 0.3,
    overlap_threshold: float = 0.5,
    no_object: bool = False,
) -> tuple[np.ndarray, list[dict]]:
    """Segment ids int32 [H, W], 0 void, and {"id", "category" (class), "isthing", "score"} of each.

    A mask takes part when its best class has more than `score_threshold`. Each pixel goes to the mask
    with the largest score x sigmoid(logit). A mask that keeps less than `overlap_threshold` of its own
    area (sigmoid >= 0.5) is dropped; its pixels stay void. Masks of one stuff class become one segment.
    Released: `panoptic_inference`, 0.3 and 0.5 on ADE20K, 0.5 and 0.5 on COCO; Mask2Former: 0.8, 0.8.
    """
    _check(class_probs, mask_logits, len(isthing) + no_object)
    ids = np.zeros(size, np.int32)
    if class_probs.numel() == 0:
        return ids, []
    scores, classes = class_probs.max(-1)
    keep = (scores > score_threshold) & (classes < len(isthing))
    if not keep.any():
        return ids, []
    scores, classes = scores[keep], classes[keep]
    winner, inside, won, area = _competition(mask_logits[keep], scores, size)
    visible = np.bincount(winner[inside], minlength=len(scores))
    id_of_mask, segments = np.zeros(len(scores), np.int32), dict[tuple, dict]()
    for k, (category, score) in enumerate(zip(classes.tolist(), scores.tolist(), strict=True)):
        if visible[k] and won[k] / area[k] >= overlap_threshold:  # else dropped
            thing = bool(isthing[category])
            new = {"id": len(segments) + 1, "category": category, "isthing": thing, "score": score}
            segment = segments.setdefault((category, k if thing else None), new)
            segment["score"] = max(segment["score"], score)
            id_of_mask[k] = segment["id"]
    ids[inside] = id_of_mask[winner[inside]]
    return ids, list(segments.values())


def _competition(
    mask_logits: Tensor, scores: Tensor, size: Size
) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Which mask has each pixel, whether it is inside of it; pixels that each mask wins, and has."""
    count = len(scores)
    winner, inside = np.empty(size, np.int64), np.empty(size, bool)
    won, area = (torch.zeros(count, dtype=torch.long, device=scores.device) for _ in range(2))
    for rows, logits in row_bands(mask_logits, size, count):
        masks = logits.sigmoid()
        best = (scores[:, None, None] * masks).argmax(0)
        won += best.flatten().bincount(minlength=count)
        area += (masks >= 0.5).sum((1, 2))
        winner[rows] = best.cpu().numpy()
        inside[rows] = (masks.gather(0, best[None])[0] >= 0.5).cpu().numpy()
    return winner, inside, won.tolist(), area.tolist()


@torch.no_grad()
def instances(
    class_probs: Tensor,
    mask_logits: Tensor,
    size: Size,
    isthing: Sequence[bool],
    top_k: int = 100,
    *,
    things_first: bool = True,
    no_object: bool = False,
    released_labels: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks bool [n, H, W] (logit > 0), classes int64 [n], scores float32 [n], best first; n <= top_k.

    The `top_k` pairs of mask and thing class with the largest probability, so a mask may come with
    several classes; the score is that probability times the mean sigmoid inside the mask. Pairs
    without a pixel are left out.

    The released `instance_inference` (its issue 7: AP on ADE20K far under the paper's) picks the top k
    among things *and stuff*, then drops the stuff (things_first=False); and it drops the last class
    from the scores, not from the labels: flat index i of M x (K - 1) scores gets class i mod K of mask
    i div K, so that nearly every label is wrong (released_labels=True).
    """
    K = len(isthing)
    _check(class_probs, mask_logits, K + no_object)
    things = torch.tensor([bool(t) for t in isthing], device=class_probs.device)
    probs = class_probs[:, : K - 1 if released_labels else K]
    if things_first and not released_labels:
        probs = probs.masked_fill(~things, -1)
    top, index = probs.flatten().topk(min(top_k, probs.numel()))
    masks, classes = index // max(K, 1), index % max(K, 1)
    keep = things[classes] & (top >= 0)
    top, masks, classes = top[keep], masks[keep], classes[keep]
    used, which = masks.unique(return_inverse=True)
    binary = np.zeros((len(used), *size), bool)
    total, area = (torch.zeros(len(used), dtype=torch.float64, device=probs.device) for _ in range(2))
    for rows, logits in row_bands(mask_logits[used], size, len(used)) if len(used) else ():
        inside = logits > 0
        total += (logits.sigmoid() * inside).sum((1, 2))
        area += inside.sum((1, 2))
        binary[:, rows] = inside.cpu().numpy()
    scores = top * (total / (area + 1e-6)).to(top.dtype)[which]
    order = scores.argsort(descending=True, stable=True)
    order = order[(area[which] > 0)[order]]
    return binary[which[order].cpu().numpy()], classes[order].cpu().numpy(), scores[order].float().cpu().numpy()


def row_bands(mask_logits: Tensor, size: Size, depth: int) -> Iterator[tuple[slice, Tensor]]:
    """Bilinear upsampling (align_corners=False) of [M, h, w] to [M, H, W], a band of rows at a time.

    Yields (rows, logits [M, len(rows), W]); `depth` numbers for each of their pixels fit into `BAND`.
    """
    (H, W), (h, w) = size, mask_logits.shape[-2:]
    if min(H, W) < 1:
        raise ValueError(f"size is {size} but must be (height, width) in pixels, at least 1 each.")
    step = max(1, BAND // (max(depth, 1) * W))
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


def _check(class_probs: Tensor, mask_logits: Tensor, columns: int | None = None) -> None:
    """Everything belongs together, and is finite."""
    given, logits = tuple(class_probs.shape), tuple(mask_logits.shape)
    if len(given) != 2 or len(logits) != 3 or given[0] != logits[0] or not mask_logits.is_floating_point():
        raise ValueError(
            f"class_probs is {given} and mask_logits {mask_logits.dtype} {logits}; they must be [M, K] and logits in "
            "floating point, negative outside of a mask, [M, h, w], for the same M masks."
        )
    if columns not in (None, given[1]):
        raise ValueError(f"class_probs has {given[1]} columns but must have {columns}, one for each class in isthing.")
    if not (torch.isfinite(class_probs).all() and torch.isfinite(mask_logits).all()):
        raise ValueError("class_probs or mask_logits are not finite; the model that made them has diverged.")
