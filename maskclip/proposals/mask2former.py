"""Mask2Former on Hugging Face transformers as a class-agnostic proposal network (Sec. 3.1; Cheng et al., CVPR 2022)."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerConfig as NetworkConfig
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from maskclip.proposals.backbone import resnet_config, set_up_backbone
from maskclip.proposals.base import MULTIPLE, PIXEL_MEAN, PIXEL_STD, Proposals, as_seen, in_groups_of_size
from maskclip.settings import Mask2FormerConfig

# transformers doubts every backbone but Swin; the paper's is a ResNet, and the released weights give equal masks
logging.getLogger("transformers.models.mask2former.configuration_mask2former").setLevel(logging.ERROR)
SIZES = ("hidden_dim", "encoder_layers", "encoder_feedforward_dim")  # transformers and our settings call them alike
WEIGHTS = ("no_object_weight", "class_weight", "mask_weight", "dice_weight")


class PixelDecoder(Mask2FormerPixelDecoder):
    """transformers' pixel decoder, which computes in float32 in mixed precision, too, as the original's does."""

    def forward(self, features: Sequence[Tensor], *others: Any, **options: Any) -> Any:
        with torch.autocast(features[0].device.type, enabled=False):
            return super().forward([feature.float() for feature in features], *others, **options)


def build_mask2former(config: Mask2FormerConfig, classes: int = 1) -> Mask2FormerForUniversalSegmentation:
    """A network with fresh weights, its backbone pretrained where the config says so.

    `classes=1` is object / no object, the paper's class-agnostic head. Its forward takes `pixel_values [B, 3, H, W]`
    (ImageNet-normalized, H and W multiples of 32), and gives `masks_queries_logits [B, M, H/4, W/4]` and
    `class_queries_logits [B, M, classes + 1]`, the last "no object".
    """
    network = NetworkConfig(
        backbone_config=resnet_config(config.backbone),
        feature_size=config.hidden_dim,
        mask_feature_size=config.hidden_dim,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction before the first layer too
        dim_feedforward=config.feedforward_dim,
        num_attention_heads=config.heads,
        num_queries=config.queries,
        train_num_points=config.points,
        feature_strides=tuple(4 * 2**stage for stage in range(len(config.backbone.widths))),
        num_labels=classes,  # type: ignore[call-arg]  # every transformers config takes it
        **{name: getattr(config, name) for name in SIZES + WEIGHTS},
    )
    model = Mask2FormerForUniversalSegmentation(network)
    set_up_backbone(model.model.pixel_level_module.encoder, config.backbone)
    model.model.pixel_level_module.decoder.__class__ = PixelDecoder
    return model


def normalize(images: Tensor) -> Tensor:
    """Images of 0 to 255 `[..., 3, H, W]` to zero mean and unit deviation by ImageNet's statistics."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std


class Mask2FormerSource:
    """A Mask2Former of transformers as a proposal source; it puts the model into evaluation mode.

    Mask logits come at a fourth of the size at which the network sees the image. Objectness, a class head's
    only use, is 1 - p(no object); without one (`classes=0`), the mean probability inside the mask, or 0.
    """

    def __init__(self, model: Any, config: Mask2FormerConfig, classes: int = 1) -> None:
        self.model, self.config, self.class_head = model.eval(), config, classes > 0
        # all channels of a pixel side by side: on a CPU the backbone takes a tenth less time
        model.model.pixel_level_module.encoder.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Proposals]:
        """uint8 RGB images of any sizes -> their proposals, one per query."""
        return in_groups_of_size([as_seen(image, self.config, 4, self.model.device) for image in images], self._propose)

    @torch.no_grad()
    def queries(self, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """What the network says of a uint8 RGB image, query by query, before any of it becomes a proposal.

        Returns:
            Mask logits [M, h, w], features [M, D] and class logits [M, classes + 1], the last of them "no object".
        """
        seen = as_seen(image, self.config, 4, self.model.device)
        output, height, width = self._run([seen]), seen.shape[1] // 4, seen.shape[2] // 4
        masks = output.masks_queries_logits[0, :, :height, :width]
        return masks, output.transformer_decoder_last_hidden_state[0], output.class_queries_logits[0]

    def _run(self, images: list[Tensor]) -> Any:
        padding = [(0, -image.shape[2] % MULTIPLE, 0, -image.shape[1] % MULTIPLE) for image in images]
        padded = [functional.pad(normalize(image), sides) for image, sides in zip(images, padding)]
        return self.model(pixel_values=torch.stack(padded))

    def _propose(self, images: list[Tensor]) -> list[Proposals]:
        output, sizes = self._run(images), [image.shape[1:] for image in images]
        proposals = []
        for masks, classes, (height, width) in zip(output.masks_queries_logits, output.class_queries_logits, sizes):
            logits = masks[:, : height // 4, : width // 4].float()
            if self.class_head:
                objectness = 1 - classes.float().softmax(-1)[:, -1]
            else:
                inside = (logits > 0).float()
                objectness = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
            proposals.append(Proposals(logits, objectness))
        return proposals
