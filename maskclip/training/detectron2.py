"""Training examples and losses of Mask R-CNN on detectron2 (`maskclip.proposals.detectron2`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskclip.proposals.mask_rcnn import boxes_of_masks
from maskclip.settings import MaskRCNNConfig
from maskclip.training.augmentation import Example


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


def detectron2_batch(examples: list[Example], config: MaskRCNNConfig) -> list[dict[str, Any]]:
    """A batch of them."""
    return [to_detectron2(example, config) for example in examples]


def detectron2_loss(model: nn.Module, batch: list[dict[str, Any]], class_aware: bool) -> dict[str, Tensor]:
    """detectron2's five losses by name."""
    from detectron2.utils.events import EventStorage

    if not class_aware:
        for item in batch:
            item["instances"].gt_classes.zero_()
    with EventStorage():  # its heads report counts into one
        return model(batch)
