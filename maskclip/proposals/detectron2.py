"""Mask R-CNN R50-FPN on detectron2, as the paper trained it, through detectron2's documented API.

detectron2 is no dependency: `environment.yml` installs it, and machines with pip alone use the same
network on torchvision (`maskclip.proposals.mask_rcnn`).
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskclip.settings import BackboneConfig, MaskRCNNConfig

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
NORMS = {"frozen": "FrozenBN", "batch": "BN", "group": "GN"}


def detectron2_config(config: MaskRCNNConfig, classes: int = 1) -> Any:
    """detectron2's R50-FPN-1x with our sizes laid over it; ValueError for a ResNet that it does not have."""
    try:
        from detectron2 import model_zoo
    except ModuleNotFoundError as error:
        # detectron2 imports pkg_resources, which setuptools dropped with version 82.
        lacks = "is not installed" if error.name == "detectron2" else f"cannot be imported without {error.name}"
        raise ModuleNotFoundError(
            f"detectron2 {lacks}; use environment.yml, or set implementation: torchvision"
        ) from None
    backbone, depth = config.backbone, _depth(config.backbone)
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    model = cfg.MODEL
    model.DEVICE = "cpu"  # accelerate moves it
    if backbone.weights is None:
        model.WEIGHTS, model.BACKBONE.FREEZE_AT = "", 0
    elif Path(backbone.weights).is_file():
        model.WEIGHTS = backbone.weights  # else the configuration's own ImageNet weights
    model.RESNETS.DEPTH, model.RESNETS.NORM = depth, NORMS[backbone.normalization]
    model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = backbone.stem_width, backbone.widths[0]
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


def _depth(backbone: BackboneConfig) -> int:
    """Layers of the ResNet, by which detectron2 knows it."""
    depth = 2 + {"basic": 2, "bottleneck": 3}[backbone.block] * sum(backbone.depths)  # with the stem and a classifier
    doubling = tuple(backbone.widths[0] * 2**stage for stage in range(4))
    if DEPTHS.get(depth) != tuple(backbone.depths) or tuple(backbone.widths) != doubling:
        raise ValueError(
            f"detectron2 has no ResNet of {backbone.block} blocks {tuple(backbone.depths)} and widths "
            f"{tuple(backbone.widths)}; its depths are {', '.join(map(str, DEPTHS))}, its widths double"
        )
    return depth


def build_detectron2(config: MaskRCNNConfig, classes: int = 1) -> nn.Module:
    """detectron2's Mask R-CNN, its backbone pretrained where the config says so."""
    if config.start is not None:
        raise ValueError(f"start is {config.start}, but detectron2 begins with backbone.weights; make start null")
    cfg = detectron2_config(config, classes)
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def detect(model: nn.Module, images: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """As `maskclip.proposals.mask_rcnn.detect`, which says what goes in and out."""
    found = model.inference([{"image": image.flip(0)} for image in images], do_postprocess=False)  # type: ignore[operator]  # BGR
    return [(one.pred_boxes.tensor, one.scores, one.pred_masks[:, 0]) for one in found]
