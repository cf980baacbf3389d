"""Mask R-CNN R50-FPN on detectron2, as the paper trained it, through detectron2's documented API.

detectron2 is no dependency: `environment.yml` installs it, and machines with pip alone use the same network on
torchvision (`maskclip.proposals.mask_rcnn`). Objects are one class, masks class-agnostic, things and stuff alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from maskclip.proposals.base import (
    Proposals,
    check_image,
    in_groups_of_size,
    network_size,
    resize_image,
)
from maskclip.proposals.mask_rcnn import paste_masks
from maskclip.settings import MaskRCNNConfig

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
