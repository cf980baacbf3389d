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
    """The class-agnostic masks of one image.

    Attributes:
        mask_logits: `[M, h, w]`, positive inside a mask; they cover exactly the whole image, at the source's own
            resolution. M may be 0.
        scores: `[M]` in [0, 1], the objectness. Nothing here says what the object is.
    """

    mask_logits: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        if self.mask_logits.ndim != 3 or self.scores.shape != self.mask_logits.shape[:1]:
            raise ValueError(
                f"proposals need mask logits [M, h, w] and scores [M], not {list(self.mask_logits.shape)} "
                f"and {list(self.scores.shape)}"
            )
        if not self.mask_logits.is_floating_point():  # of a binary mask's 0 and 1 the sigmoid calls both inside
            raise ValueError(f"mask logits are {self.mask_logits.dtype}; give numbers negative outside of a mask")

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


def network_size(image: np.ndarray, short_side: int, long_side: int, multiple: int = 4) -> tuple[int, int]:
    """The size (h, w) at which a network sees an image: short side as given, the long one bounded, aspect ratio kept.

    Both are rounded to `multiple`, so that mask logits at that stride cover the image exactly.

    Raises:
        ValueError: no uint8 RGB image `[H, W, 3]`; grey, CMYK, 16-bit and rotated files are for `maskclip.data`.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"a proposal source takes uint8 RGB images [H, W, 3], not {what}; read files with maskclip.data"
        )
    if 0 in image.shape:
        raise ValueError(f"an image of size {image.shape[0]} x {image.shape[1]} has no pixels")
    height, width = image.shape[:2]
    scale = min(short_side / min(height, width), long_side / max(height, width))
    resized = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    return resized[0], resized[1]


def resize_image(image: np.ndarray, size: tuple[int, int], device: str | torch.device = "cpu") -> Tensor:
    """uint8 `[H, W, 3]` to float `[3, h, w]` in 0 to 255, bilinear with antialiasing, as PIL resizes."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    if tuple(pixels.shape[-2:]) != tuple(size):
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return pixels[0]


def in_groups_of_size(
    images: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    propose: Callable[[list[np.ndarray], list[tuple[int, int]]], list[Proposals]],
) -> list[Proposals]:
    """Let a network propose for images together whose sizes (h, w) are one once padded to multiples of `MULTIPLE`.

    An image alone is padded just so, and no image's result depends on its neighbours. `propose` takes the images and
    sizes of one group.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        groups.setdefault((-(-height // MULTIPLE), -(-width // MULTIPLE)), []).append(index)
    found: dict[int, Proposals] = {}
    for group in groups.values():
        found |= zip(group, propose([images[index] for index in group], [sizes[index] for index in group]))
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
    height, width = sample.size
    stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
    return Proposals(torch.where(stacked, CERTAIN, -CERTAIN), torch.ones(len(stacked)))
