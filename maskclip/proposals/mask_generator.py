"""SAM, SAM 2 and other mask generators of transformers as proposal sources."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskclip.proposals.base import CERTAIN, Proposals

LONGEST = 1024  # pixels of a mask: finer outlines are lost, memory is not


class MaskGeneratorSource:
    """A mask generator of transformers by local folder or hub name; objectness is its own predicted IoU.

    Args:
        options: what the pipeline "mask-generation" takes: points_per_batch, pred_iou_thresh, ...
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", **options: Any) -> None:
        from transformers import pipeline  # slow to import

        self.generate, self.options = pipeline("mask-generation", model=name, device=device), options

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Proposals]:
        """uint8 RGB images of any sizes -> their proposals, possibly none."""
        return [self._propose(image) for image in images]

    def _propose(self, image: np.ndarray) -> Proposals:
        found = self.generate(Image.fromarray(image), **self.options)
        masks = [np.asarray(mask, bool) for mask in found["masks"]]
        scores = torch.as_tensor(found["scores"]).float().flatten().clamp(0, 1).cpu()
        return mask_proposals(masks, image.shape[:2], scores)


def mask_proposals(masks: Sequence[np.ndarray], size: tuple[int, ...], scores: torch.Tensor | None = None) -> Proposals:
    """Binary masks [H, W] as proposals of at most `LONGEST` pixels a side; every score 1 if none is given."""
    scale = min(1.0, LONGEST / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    logits = torch.empty(len(masks), height, width)
    for place, mask in enumerate(masks):
        small = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        logits[place] = torch.from_numpy(np.asarray(small, np.float32) / 255 - 0.5) * (2 * CERTAIN)
    return Proposals(logits, torch.ones(len(masks)) if scores is None else scores)
