"""Mask R-CNN on torchvision as a class-agnostic proposal network (Sec. 3.1): things and stuff alike are one class."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers import ResNetBackbone

from maskclip.proposals.backbone import resnet_config, set_normalization
from maskclip.proposals.base import (
    PIXEL_MEAN,
    PIXEL_STD,
    Proposals,
    check_image,
    in_groups_of_size,
    network_size,
    resize_image,
)
from maskclip.proposals.weights import load_backbone_weights, load_start
from maskclip.settings import MaskRCNNConfig


class ResNetPyramid(nn.Module):
    """ResNet and feature pyramid: `[B, 3, H, W]` -> a map of `fpn_dim` channels per stage, strides 4, 8, ..., and one
    of half the last's size."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        backbone = config.backbone
        self.body = ResNetBackbone(resnet_config(backbone))
        set_normalization(self.body, backbone.normalization)
        load_backbone_weights(self.body, backbone.weights)
        if backbone.weights is not None:  # R50-FPN-1x keeps the stem and the first stage as ImageNet left them
            for parameter in [*self.body.embedder.parameters(), *self.body.encoder.stages[0].parameters()]:
                parameter.requires_grad_(False)
        self.pyramid = FeaturePyramidNetwork(list(backbone.widths), config.fpn_dim, LastLevelMaxPool())
        self.out_channels = config.fpn_dim

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        features = self.body(images).feature_maps
        return self.pyramid(OrderedDict((str(level), feature) for level, feature in enumerate(features)))


def build_mask_rcnn(config: MaskRCNNConfig, classes: int = 1) -> MaskRCNN:
    """torchvision's Mask R-CNN with fresh weights; `classes=1` is object / background, as in the paper."""
    backbone = ResNetPyramid(config)
    levels = [str(stage) for stage in range(len(config.backbone.widths))]
    box_pool = MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2)
    mask_pool = MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2)
    width = config.fpn_dim
    model = MaskRCNN(
        backbone,
        num_classes=None,
        min_size=config.train_short_sides,
        max_size=config.long_side,
        image_mean=[value / 255 for value in PIXEL_MEAN],
        image_std=[value / 255 for value in PIXEL_STD],
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * len(config.anchor_sizes)
        ),
        rpn_pre_nms_top_n_train=config.rpn_proposals_train,
        rpn_post_nms_top_n_train=config.rpn_proposals_train,
        rpn_pre_nms_top_n_test=config.rpn_proposals,
        rpn_post_nms_top_n_test=config.rpn_proposals,
        rpn_batch_size_per_image=config.rpn_samples,
        box_batch_size_per_image=config.box_samples,
        box_roi_pool=box_pool,
        box_head=TwoMLPHead(width * 49, config.head_dim),
        box_predictor=_BoxPredictor(config.head_dim, classes),
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.detections,
        mask_roi_pool=mask_pool,
        mask_head=MaskRCNNHeads(width, (width,) * config.mask_head_layers, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
    )
    if config.start is not None:
        load_start(model, config.start, classes)
    return model


class _BoxPredictor(nn.Module):
    """The box head's two outputs: class logits (background first) and box deltas per class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, (classes + 1) * 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The tight boxes (x0, y0, x1, y1), upper ends exclusive, of non-empty masks `[n, H, W]` -> float `[n, 4]`."""
    rows, columns = masks.any(2), masks.any(1)
    height, width = masks.shape[1:]
    top, left = rows.float().argmax(1), columns.float().argmax(1)
    bottom, right = height - rows.flip(1).float().argmax(1), width - columns.flip(1).float().argmax(1)
    return torch.stack([left, top, right, bottom], dim=1).float()


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities `[n, 28, 28]` inside boxes `[n, 4]` -> `[n, H, W]`, bilinear at sub-pixel positions, 0 outside."""
    if len(masks) == 0:
        return masks.new_zeros(0, *size)
    rows, columns = (torch.arange(side, device=masks.device, dtype=masks.dtype) + 0.5 for side in size)
    x = (columns[None] - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]).clamp(min=1e-3) * 2 - 1
    y = (rows[None] - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]).clamp(min=1e-3) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    return functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def mask_rcnn_loss(
    model: nn.Module, images: list[Tensor], masks: list[Tensor], classes: list[Tensor]
) -> dict[str, Tensor]:
    """Mask R-CNN's losses by name: objectness and boxes of the RPN, class, box and mask of the heads.

    Args:
        images: per image `[3, H, W]`, 0 to 255, any sizes.
        masks: per image `[n, H, W]` of 0 and 1, each non-empty; n may be 0.
        classes: per image int64 `[n]`, counted from 0 (background is torchvision's own 0 and is added here).
    """
    targets = [
        {"boxes": boxes_of_masks(mask > 0), "labels": label + 1, "masks": mask.to(torch.uint8)}
        for mask, label in zip(masks, classes)
    ]
    return model([image / 255 for image in images], targets)


class MaskRCNNSource:
    """A torchvision Mask R-CNN as a proposal source; objectness is the box score, the class is dropped.

    Mask logits are the pasted 28 x 28 masks, at 1 / `mask_stride` of the size at which the network sees the image.
    """

    def __init__(self, model: MaskRCNN, short_side: int = 800, long_side: int = 1333, mask_stride: int = 4) -> None:
        self.model = model.eval()
        self.short_side, self.long_side, self.mask_stride = short_side, long_side, mask_stride

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Proposals]:
        """uint8 RGB images of any sizes -> their proposals, possibly none; an image's result is its own alone."""
        device = next(self.model.parameters()).device
        sizes = [
            network_size(check_image(image), self.short_side, self.long_side, self.mask_stride) for image in images
        ]
        proposals: dict[int, Proposals] = {}
        for group in in_groups_of_size(sizes):
            pixels = [resize_image(images[index], sizes[index], device) / 255 for index in group]
            for index, (boxes, scores, masks) in zip(group, self._detect(pixels)):
                grid = (sizes[index][0] // self.mask_stride, sizes[index][1] // self.mask_stride)
                pasted = paste_masks(masks[:, 0].float(), boxes.float() / self.mask_stride, grid)
                proposals[index] = Proposals(torch.logit(pasted, eps=1e-3).cpu(), scores.float().cpu())
        return [proposals[index] for index in range(len(images))]

    def _detect(self, pixels: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes `[n, 4]` in pixels of the images given, scores `[n]`, masks `[n, 1, 28, 28]` before pasting."""
        model = self.model
        normalized = [model.transform.normalize(image) for image in pixels]
        batch = model.transform.batch_images(normalized, model.transform.size_divisible)
        shapes = [tuple(image.shape[-2:]) for image in pixels]
        features = model.backbone(batch)
        boxes, _ = model.rpn(ImageList(batch, shapes), features)
        detections, _ = model.roi_heads(features, boxes, shapes)
        return [(found["boxes"], found["scores"], found["masks"]) for found in detections]
