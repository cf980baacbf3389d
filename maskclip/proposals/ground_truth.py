"""Ground-truth masks as proposals (Table 7)."""

from __future__ import annotations

from typing import Any

import torch

from maskclip.proposals.base import Proposals

CERTAIN = 10.0  # the logit of a ground-truth pixel: sigmoid and tanh are both saturated


def ground_truth_proposals(sample: Any) -> Proposals:
    """The segments of a `maskclip.data.Sample` as proposals at the image's own size, every score 1.

    Crowd regions are no objects and are left out. A sample of a semantic set, which has a map in place of segments,
    gives one proposal per class present, void left out.
    """
    masks = [torch.from_numpy(segment.mask) for segment in sample.segments if not segment.iscrowd]
    if not sample.segments and sample.semantic is not None:
        semantic = torch.from_numpy(sample.semantic)
        masks = [semantic == index for index in torch.unique(semantic).tolist() if index >= 0]
    height, width = sample.image.shape[:2]
    stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
    return Proposals(torch.where(stacked, CERTAIN, -CERTAIN), torch.ones(len(stacked)))
