"""Mask R-CNN on torchvision as a class-agnostic proposal network (Sec. 3.1): things and stuff alike are one class."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import ops
from torchvision.models.detection import MaskRCNN, faster_rcnn, image_list, mask_rcnn, rpn
from transformers import ResNetBackbone

from maskclip.proposals import detectron2
from maskclip.proposals.backbone import resnet_config, set_up_backbone
from maskclip.proposals.base import PIXEL_MEAN, PIXEL_STD, Proposals, as_seen, in_groups_of_size
from maskclip.settings import MaskRCNNConfig


class ResNetPyramid(nn.Module):
    """`[B, 3, H, W]` -> a map of `fpn_dim` channels per stage, strides 4, 8, ..., and one of half the last's size."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.body = ResNetBackbone(resnet_config(config.backbone))
        set_up_backbone(self.body, config.backbone)
        if config.backbone.weights:  # R50-FPN-1x keeps the stem and the first stage as ImageNet left them
            self.body.embedder.requires_grad_(False)
            self.body.encoder.stages[0].requires_grad_(False)
        coarsest = ops.feature_pyramid_network.LastLevelMaxPool()
        self.pyramid = ops.FeaturePyramidNetwork(list(config.backbone.widths), config.fpn_dim, coarsest)
        self.out_channels = config.fpn_dim

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        features = self.body(images).feature_maps
        return self.pyramid(OrderedDict((str(level), feature) for level, feature in enumerate(features)))


def build_mask_rcnn(config: MaskRCNNConfig, classes: int = 1) -> nn.Module:
    """Mask R-CNN with fresh weights; `classes=1` is object / background, as in the paper."""
    if config.implementation == "detectron2":
        return detectron2.build_detectron2(config, classes)
    levels = [str(stage) for stage in range(len(config.backbone.widths))]
    width, anchors = config.fpn_dim, config.anchor_sizes
    return MaskRCNN(
        ResNetPyramid(config),
        num_classes=None,
        min_size=config.train_short_sides,
        max_size=config.long_side,
        image_mean=[value / 255 for value in PIXEL_MEAN],
        image_std=[value / 255 for value in PIXEL_STD],
        rpn_anchor_generator=rpn.AnchorGenerator([(size,) for size in anchors], [(0.5, 1.0, 2.0)] * len(anchors)),
        rpn_pre_nms_top_n_train=config.rpn_proposals_train,
        rpn_post_nms_top_n_train=min(1000, config.rpn_proposals_train),  # detectron2's
        rpn_pre_nms_top_n_test=config.rpn_proposals,
        rpn_post_nms_top_n_test=config.rpn_proposals,
        rpn_batch_size_per_image=config.rpn_samples,
        box_batch_size_per_image=config.box_samples,
        box_roi_pool=ops.MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        box_head=faster_rcnn.TwoMLPHead(width * 49, config.head_dim),
        box_predictor=faster_rcnn.FastRCNNPredictor(config.head_dim, classes + 1),
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.detections,
        mask_roi_pool=ops.MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        mask_head=mask_rcnn.MaskRCNNHeads(width, (width,) * config.mask_head_layers, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(width, width, classes + 1),
    )


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The tight boxes (x0, y0, x1, y1), upper ends exclusive, of non-empty masks `[n, H, W]` -> float `[n, 4]`."""
    return ops.masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1], device=masks.device)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities `[n, 28, 28]` inside boxes `[n, 4]` -> `[n, H, W]`, bilinear at sub-pixel positions, 0 outside."""
    if len(masks) == 0:
        return masks.new_zeros(0, *size)
    rows, columns = (torch.arange(side, device=masks.device, dtype=masks.dtype) + 0.5 for side in size)
    x = (columns[None] - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]).clamp(min=1e-3) * 2 - 1
    y = (rows[None] - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]).clamp(min=1e-3) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    return functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


class MaskRCNNSource:
    """A Mask R-CNN as a proposal source; objectness is the box score, the class is dropped.

    Mask logits are the pasted 28 x 28 masks, at 1 / `mask_stride` of the size at which the network sees the image.
    """

    def __init__(self, model: nn.Module, config: MaskRCNNConfig, classes: int = 1) -> None:
        self.model, self.config = model.eval(), config

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Proposals]:
        """uint8 RGB images of any sizes -> their proposals, possibly none."""
        stride, device = self.config.mask_stride, next(self.model.parameters()).device
        return in_groups_of_size([as_seen(image, self.config, stride, device) for image in images], self._propose)

    def _propose(self, images: list[Tensor]) -> list[Proposals]:
        found = (detectron2.detect if self.config.implementation == "detectron2" else detect)(self.model, images)
        proposals, stride = [], self.config.mask_stride
        for (boxes, scores, masks), image in zip(found, images):
            size = image.shape[1] // stride, image.shape[2] // stride
            pasted = paste_masks(masks.float(), boxes.float() / stride, size)
            proposals.append(Proposals(torch.logit(pasted, eps=1e-3), scores.float()))
        return proposals


def detect(model: Any, images: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images `[3, H, W]`, RGB of 0 to 255 -> boxes `[n, 4]` in their pixels, scores `[n]`, masks `[n, 28, 28]`."""
    normalized = [model.transform.normalize(image / 255) for image in images]
    batch = model.transform.batch_images(normalized, model.transform.size_divisible)
    shapes = [tuple(image.shape[-2:]) for image in images]
    features = model.backbone(batch)
    boxes, _ = model.rpn(image_list.ImageList(batch, shapes), features)
    detections, _ = model.roi_heads(features, boxes, shapes)
    return [(found["boxes"], found["scores"], found["masks"][:, 0]) for found in detections]
