"""Mask R-CNN's training on detectron2: its own transforms, loader and losses, fed from our readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from maskclip.proposals.mask_rcnn import boxes_of_masks
from maskclip.settings import MaskRCNNConfig
from maskclip.training.augmentation import Example, StepExamples


def to_detectron2(example: Example, config: MaskRCNNConfig) -> dict[str, Any]:
    """One training example as detectron2's models take it: BGR, resized by its own transform, `Instances`."""
    from detectron2.data import transforms
    from detectron2.structures import BitMasks, Boxes, Instances

    short_side = config.train_short_sides[example.number % len(config.train_short_sides)]
    image = transforms.AugInput(example.image.permute(1, 2, 0).numpy()[:, :, ::-1].copy())
    resize = transforms.ResizeShortestEdge(short_side, config.long_side)(image)
    size = image.image.shape[:2]
    masks = [resize.apply_segmentation(mask) for mask in example.masks.numpy().astype(np.uint8)]
    stacked = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8)).bool()
    present = stacked.flatten(1).any(1)
    stacked = stacked[present]
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes_of_masks(stacked))
    instances.gt_classes = example.classes[present]
    instances.gt_masks = BitMasks(stacked)
    return {"image": torch.from_numpy(image.image.transpose(2, 0, 1).copy()), "instances": instances}


class _Numbers(Sampler[int]):
    """The example numbers of one process, step after step."""

    def __init__(self, numbers: list[list[int]]) -> None:
        self.numbers = [number for batch in numbers for number in batch]

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def detectron2_batches(
    examples: StepExamples, config: MaskRCNNConfig, numbers: list[list[int]]
) -> Iterator[list[dict[str, Any]]]:
    """detectron2's own training loader, fed from our readers: the numbered examples, batch by batch."""
    from detectron2.data import build_detection_train_loader

    loader = build_detection_train_loader(
        dataset=examples,
        mapper=lambda example: to_detectron2(example, config),
        sampler=_Numbers(numbers),
        total_batch_size=config.training.batch,
        aspect_ratio_grouping=False,
        num_workers=config.training.workers,
    )
    yield from loader


def detectron2_loss(model: nn.Module, batch: list[dict[str, Any]], class_aware: bool) -> dict[str, Tensor]:
    """detectron2's five losses by name."""
    from detectron2.utils.events import EventStorage

    if not class_aware:
        for item in batch:
            item["instances"].gt_classes.zero_()
    with EventStorage():  # its heads report counts into one
        return model(batch)
