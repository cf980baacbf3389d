"""Mask R-CNN R50-FPN on detectron2, as the paper trained it, through detectron2's documented API.

detectron2 is no dependency: `environment.yml` installs it, and machines with pip alone use the same network on
torchvision (`maskclip.proposals.mask_rcnn`). Objects are one class, masks class-agnostic, things and stuff alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from maskclip.proposals.base import (
    Proposals,
    check_image,
    in_groups_of_size,
    network_size,
    resize_image,
)
from maskclip.proposals.mask_rcnn import boxes_of_masks, paste_masks
from maskclip.settings import MaskRCNNConfig
from maskclip.training.augmentation import Example, StepExamples

DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
NORMS = {"frozen": "FrozenBN", "batch": "BN", "group": "GN"}


def detectron2_config(config: MaskRCNNConfig, classes: int = 1) -> Any:
    """detectron2's R50-FPN-1x with our sizes laid over it.

    Raises:
        ModuleNotFoundError: detectron2, or a package it needs, is not installed.
        ValueError: a ResNet that detectron2 does not have.
    """
    try:
        from detectron2 import model_zoo
    except ModuleNotFoundError as error:
        # detectron2 imports pkg_resources, which setuptools dropped with version 82.
        lacks = "is not installed" if error.name == "detectron2" else f"cannot be imported without {error.name}"
        raise ModuleNotFoundError(
            f"detectron2 {lacks}; use environment.yml, or set implementation: torchvision"
        ) from None
    backbone = config.backbone
    depth = DEPTHS.get((backbone.block, tuple(backbone.depths)))
    first = backbone.widths[0]
    if depth is None or tuple(backbone.widths) != tuple(first * 2**stage for stage in range(4)):
        raise ValueError(
            f"detectron2 has no ResNet of {backbone.block} blocks {tuple(backbone.depths)} and widths "
            f"{tuple(backbone.widths)}; its depths are 18, 34, 50, 101 and 152, its widths double"
        )
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    model = cfg.MODEL
    model.DEVICE = "cpu"  # accelerate moves it
    if backbone.weights is None:
        model.WEIGHTS, model.BACKBONE.FREEZE_AT = "", 0
    elif Path(backbone.weights).is_file():
        model.WEIGHTS = backbone.weights  # else the configuration's own ImageNet weights
    model.RESNETS.DEPTH, model.RESNETS.NORM = depth, NORMS[backbone.normalization]
    model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = backbone.stem_width, first
    model.FPN.OUT_CHANNELS = config.fpn_dim
    model.ANCHOR_GENERATOR.SIZES = [[size] for size in config.anchor_sizes]
    model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.PRE_NMS_TOPK_TEST = config.rpn_proposals_train, config.rpn_proposals
    model.RPN.POST_NMS_TOPK_TRAIN = min(1000, config.rpn_proposals_train)
    model.RPN.POST_NMS_TOPK_TEST = config.rpn_proposals
    model.RPN.BATCH_SIZE_PER_IMAGE = config.rpn_samples
    model.ROI_HEADS.NUM_CLASSES = classes
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = config.box_samples
    model.ROI_HEADS.SCORE_THRESH_TEST, model.ROI_HEADS.NMS_THRESH_TEST = config.score_threshold, config.nms_threshold
    model.ROI_BOX_HEAD.FC_DIM = config.head_dim
    model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = config.mask_head_layers, config.fpn_dim
    model.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections
    return cfg


def build_detectron2(config: MaskRCNNConfig, classes: int = 1) -> nn.Module:
    """detectron2's Mask R-CNN, its backbone pretrained where the config says so."""
    cfg = detectron2_config(config, classes)
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


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


class Detectron2Source:
    """detectron2's Mask R-CNN as a proposal source; as `MaskRCNNSource`."""

    def __init__(self, model: nn.Module, short_side: int = 800, long_side: int = 1333, mask_stride: int = 4) -> None:
        self.model = model.eval()
        self.short_side, self.long_side, self.mask_stride = short_side, long_side, mask_stride

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Proposals]:
        """uint8 RGB images of any sizes -> their proposals, possibly none; an image's result is its own alone."""
        sizes = [
            network_size(check_image(image), self.short_side, self.long_side, self.mask_stride) for image in images
        ]
        proposals: dict[int, Proposals] = {}
        for group in in_groups_of_size(sizes):
            batch = [{"image": resize_image(images[index], sizes[index]).flip(0)} for index in group]  # BGR
            for index, found in zip(group, self.model.inference(batch, do_postprocess=False)):  # type: ignore[operator]
                grid = (sizes[index][0] // self.mask_stride, sizes[index][1] // self.mask_stride)
                boxes = found.pred_boxes.tensor / self.mask_stride
                pasted = paste_masks(found.pred_masks[:, 0].float(), boxes, grid)
                proposals[index] = Proposals(torch.logit(pasted, eps=1e-3).cpu(), found.scores.cpu())
        return [proposals[index] for index in range(len(images))]
