"""What every proposal source gives: class-agnostic masks and how much each looks like an object (stage 1 of Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MULTIPLE = 32  # networks take images whose sides are multiples of this
PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, in RGB of 0 to 255, as in Mask2Former's and torchvision's settings
PIXEL_STD = (58.395, 57.12, 57.375)


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
        return resize_logits(self.mask_logits, size) > 0


ProposalSource = Callable[[Sequence[np.ndarray]], list[Proposals]]


def resize_logits(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits `[M, h, w]` bilinearly at another size, `[M, H, W]`; M may be 0."""
    if len(mask_logits) == 0 or tuple(mask_logits.shape[-2:]) == tuple(size):
        return mask_logits.new_zeros(0, *size) if len(mask_logits) == 0 else mask_logits
    return functional.interpolate(mask_logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def network_size(image: np.ndarray, short_side: int, long_side: int, multiple: int = 4) -> tuple[int, int]:
    """The size (h, w) at which a network sees an image: short side as given, the long one bounded, aspect ratio kept.

    Both are rounded to `multiple`, so that mask logits at that stride cover the image exactly.
    """
    height, width = image.shape[:2]
    scale = min(short_side / min(height, width), long_side / max(height, width))
    resized = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    return resized[0], resized[1]


def check_image(image: np.ndarray) -> np.ndarray:
    """An image as sources take it: uint8 `[H, W, 3]`, RGB.

    Raises:
        ValueError: anything else; grey, CMYK, 16-bit and rotated files are for the readers of `maskclip.data`.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"a proposal source takes uint8 RGB images [H, W, 3], not {what}; read files with maskclip.data"
        )
    if 0 in image.shape:
        raise ValueError(f"an image of size {image.shape[0]} x {image.shape[1]} has no pixels")
    return image


def resize_image(image: np.ndarray, size: tuple[int, int], device: str | torch.device = "cpu") -> Tensor:
    """uint8 `[H, W, 3]` to float `[3, h, w]` in 0 to 255, bilinear with antialiasing, as PIL resizes."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    if tuple(pixels.shape[-2:]) != tuple(size):
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return pixels[0]


def in_groups_of_size(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of images whose network sizes (h, w) are one once padded to multiples of `MULTIPLE`.

    An image alone is padded just so, and no image's result depends on its neighbours.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        groups.setdefault((-(-height // MULTIPLE), -(-width // MULTIPLE)), []).append(index)
    return list(groups.values())
