"""How good proposals are, whatever their names: AR@100 and mean best IoU, per group of categories."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from maskclip.proposals.base import Proposals

GROUPS = ("all", "things", "stuff", "trained", "novel")  # of annotated segments
THRESHOLDS = np.arange(0.5, 1.0, 0.05).round(2)  # COCO's ten


def match_greedily(iou: np.ndarray, threshold: float) -> np.ndarray:
    """COCO's matching: proposals in order of score, each takes its best free segment of IoU >= threshold.
    IoU `[M, G]`, rows by falling score -> which segments were found, bool `[G]`."""
    found = np.zeros(iou.shape[1], dtype=bool)
    candidates = np.where(iou >= threshold, iou, -1.0)
    for row in np.flatnonzero(candidates.max(1, initial=-1) >= 0):
        free = np.where(found, -1.0, candidates[row])
        best = len(free) - 1 - int(np.argmax(free[::-1]))  # the last of equals, as pycocotools does
        if free[best] >= 0:
            found[best] = True
    return found


class ProposalQuality:
    """AR@100 over COCO's IoU thresholds and mean best IoU; class-agnostic, crowd regions left out.

    Groups: all, things, stuff, and by `trained`, the names the network was trained on: trained and novel. Segments of
    every group are matched together, so that a proposal counts for one segment only.
    """

    def __init__(self, categories: list[Any], trained: Iterable[str]) -> None:
        self.categories, self.trained = categories, set(trained)
        self.found: list[np.ndarray] = []  # [thresholds] bool per segment
        self.best: list[float] = []
        self.classes: list[int] = []

    def update(self, proposals: Proposals, sample: Any) -> None:
        """Add one image: its proposals and its `Annotation`, of segments."""
        segments = [segment for segment in sample.segments if not segment.iscrowd]
        if not segments:
            return
        truth = torch.from_numpy(np.stack([segment.mask for segment in segments])).flatten(1).float()
        predicted = proposals.top(100).masks(segments[0].mask.shape).flatten(1).float()
        overlap = predicted @ truth.T
        union = predicted.sum(1)[:, None] + truth.sum(1) - overlap
        iou = (overlap / union.clamp(min=1)).double().numpy()  # [proposals, segments]
        self.found.extend(np.stack([match_greedily(iou, threshold) for threshold in THRESHOLDS], axis=1))
        self.best.extend(iou.max(0, initial=0.0))
        self.classes.extend(segment.category for segment in segments)

    def compute(self) -> list[dict[str, Any]]:
        """Rows of group, metric ("AR100", "mean_best_iou"), value in [0, 1], segments; empty groups are left out."""
        kinds = [self.categories[index] for index in self.classes]
        things = np.array([kind.isthing for kind in kinds], bool)
        trained = np.array([kind.name in self.trained for kind in kinds], bool)
        groups = dict(zip(GROUPS, (things | True, things, ~things, trained, ~trained), strict=True))
        metrics = {"AR100": np.array(self.found), "mean_best_iou": np.array(self.best)}
        return [
            {"group": group, "metric": metric, "value": float(values[inside].mean()), "segments": int(inside.sum())}
            for group, inside in groups.items()
            if inside.any()
            for metric, values in metrics.items()
        ]
