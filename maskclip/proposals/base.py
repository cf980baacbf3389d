"""What every proposal source gives: class-agnostic masks and how much each looks like an object (stage 1 of Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MULTIPLE = 32  # networks take images whose sides are multiples of this
PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, in RGB of 0 to 255, as in Mask2Former's and torchvision's settings
PIXEL_STD = (58.395, 57.12, 57.375)
CERTAIN = 10.0  # the logit of a ground-truth pixel: sigmoid and tanh are both saturated


@dataclass
class Proposals:
    """The class-agnostic masks of one image, on the CPU and without gradients, wherever they were computed.

    `mask_logits [M, h, w]` (M may be 0), positive inside a mask, cover exactly the whole image, at
    the source's own resolution. `scores [M]` in [0, 1] are the objectness, not what an object is.
    """

    mask_logits: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        masks, scores = self.mask_logits, self.scores
        # of a binary mask's 0 and 1 the sigmoid would call both inside
        if masks.ndim != 3 or scores.shape != masks.shape[:1] or not masks.is_floating_point():
            raise ValueError(
                f"mask logits are {masks.dtype} {list(masks.shape)}, scores {list(scores.shape)}; "
                "give numbers [M, h, w], negative outside of a mask, and [M]"
            )
        self.mask_logits, self.scores = masks.detach().cpu(), scores.detach().cpu()

    def __len__(self) -> int:
        return len(self.scores)

    def top(self, count: int) -> Proposals:
        """The `count` proposals of highest objectness, best first (fewer if there are fewer)."""
        order = torch.argsort(self.scores, descending=True, stable=True)[:count]
        return Proposals(self.mask_logits[order], self.scores[order])

    def masks(self, size: tuple[int, int]) -> Tensor:
        """Binary masks `[M, H, W]` at an image size (H, W): logits resized bilinearly, then thresholded at 0."""
        logits = self.mask_logits
        if tuple(logits.shape[1:]) != tuple(size):
            logits = functional.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return logits > 0


ProposalSource = Callable[[Sequence[np.ndarray]], list[Proposals]]


def as_seen(image: np.ndarray, config: Any, stride: int, device: torch.device) -> Tensor:
    """An image as a network sees it, `[3, h, w]` in 0 to 255: its short side as in `config`, its long side bounded.

    Both are rounded to multiples of `stride`, so that mask logits at that stride cover the image exactly. ValueError
    where it is no uint8 RGB image `[H, W, 3]`; grey, CMYK, 16-bit and rotated files are for `maskclip.data`.
    """
    if np.shape(image)[2:] != (3,) or getattr(image, "dtype", None) != np.uint8 or 0 in image.shape:
        what = f"{getattr(image, 'dtype', type(image).__name__)} {list(np.shape(image))}"
        raise ValueError(
            f"a proposal source takes uint8 RGB images [H, W, 3], not {what}; read files with maskclip.data"
        )
    sides = image.shape[:2]
    scale = min(config.short_side / min(sides), config.long_side / max(sides))
    height, width = (max(stride, round(side * scale / stride) * stride) for side in sides)
    return resize_image(image, (height, width), device)


def resize_image(image: np.ndarray, size: tuple[int, int], device: str | torch.device = "cpu") -> Tensor:
    """uint8 `[H, W, 3]` to float `[3, h, w]` in 0 to 255, bilinear with antialiasing, as PIL resizes."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    if tuple(pixels.shape[-2:]) != tuple(size):
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return pixels[0]


def in_groups_of_size(images: list[Tensor], propose: Callable[[list[Tensor]], list[Proposals]]) -> list[Proposals]:
    """Let a network propose for images `[3, h, w]` together that are of one size once padded to `MULTIPLE`.

    An image alone is padded just so: no image's result depends on its neighbours.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(-(-side // MULTIPLE) for side in image.shape[1:]), []).append(index)
    found: dict[int, Proposals] = {}
    for group in groups.values():
        found |= zip(group, propose([images[index] for index in group]))
    return [found[index] for index in range(len(images))]


def ground_truth_proposals(sample: Any) -> Proposals:
    """The segments of a `maskclip.data.Annotation` as proposals (Table 7) at the image's own size, every score 1.

    Crowd regions are no objects and are left out. A sample of a semantic set, which has a map in place of segments,
    gives one proposal per class present, void left out.
    """
    masks = [torch.from_numpy(segment.mask) for segment in sample.segments if not segment.iscrowd]
    if not sample.segments and sample.semantic is not None:
        semantic = torch.from_numpy(sample.semantic)
        masks = [semantic == index for index in torch.unique(semantic).tolist() if index >= 0]
    stacked = torch.stack(masks) if masks else torch.zeros(0, *sample.size, dtype=torch.bool)
    return Proposals(torch.where(stacked, CERTAIN, -CERTAIN), torch.ones(len(stacked)))
