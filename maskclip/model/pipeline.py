"""MaskCLIP as in Fig. 1: proposals -> visual encoder -> classification by text -> semantic, instance, panoptic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskclip.model import merge
from maskclip.model.clip import Clip, classify, preprocess, text_embeddings
from maskclip.model.clip_baseline import clip_baseline
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals

# (CLIP-normalized images [B, 3, S, S], mask logits [B, M, S, S]) -> (embeddings [B, M, C], refined masks [B, M, S, S])
MaskEncoder = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ProposalSource = Callable[[list[np.ndarray]], list[Proposals]]


def encode_with_mask_tokens(encoder: MaskCLIPVisualEncoder) -> MaskEncoder:
    """MaskCLIP, or without RMA layers the w/o-RMA baseline, which returns the masks as they came."""

    def encode(images: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        output = encoder(images, mask_logits)
        return output.embeddings, output.mask_logits[-1] if output.mask_logits else mask_logits

    return encode


def encode_masked_images(clip: Clip, crop: bool = False) -> MaskEncoder:
    """The CLIP Baseline (App. A, Alg. 1): one pass of CLIP per mask over the masked image."""
    embed_image = MaskCLIPVisualEncoder.from_open_clip(clip.model, ()).embed_image  # the same in two thirds of the time

    def encode(images: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        return clip_baseline(clip.model, images, mask_logits, crop=crop, encode_image=embed_image), mask_logits

    return encode


@dataclass
class SegmentedImage:
    """One image's masks in CLIP's space; words come later, and may change at no cost.

    `embeddings` [M, C] (not normalized), `mask_logits` [M, S, S] (refined), `objectness` [M] in 0 to 1, `size` (H, W).
    """

    embeddings: Tensor
    mask_logits: Tensor
    objectness: Tensor
    size: tuple[int, int]


@dataclass
class NamedMasks:
    """Masks and what they are: `class_probs` [M, K] over the category names, and `mask_logits` [M, S, S]."""

    class_probs: Tensor
    mask_logits: Tensor
    size: tuple[int, int]

    def semantic(self) -> np.ndarray:
        """Class index of every pixel, [H, W]."""
        return merge.semantic_map(self.class_probs, self.mask_logits, self.size)

    def panoptic(self, isthing: Sequence[bool], **thresholds: Any) -> tuple[np.ndarray, list[dict]]:
        """Segment ids [H, W], 0 void, and one record per segment; see `merge.panoptic_map`."""
        return merge.panoptic_map(self.class_probs, self.mask_logits, self.size, isthing, **thresholds)

    def instances(self, isthing: Sequence[bool], top_k: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Things one by one: masks [n, H, W], class indices [n], scores [n]; see `merge.instances`."""
        return merge.instances(self.class_probs, self.mask_logits, self.size, isthing, top_k)


class MaskCLIP:
    """Open-vocabulary segmentation in two stages (Fig. 1).

    Args:
        clip: the frozen CLIP, for words and for the picture's normalization.
        encode: what turns masks into CLIP-space embeddings: `encode_with_mask_tokens(encoder)` or a baseline.
        proposals: stage one, a callable from uint8 RGB images to class-agnostic `Proposals`; None where every call
            brings its own (stored or ground-truth) ones.
        temperature: of the softmax over categories, 0.01 as released.
    """

    def __init__(
        self, clip: Clip, encode: MaskEncoder, proposals: ProposalSource | None = None, temperature: float = 0.01
    ):
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.clip, self.encode, self.proposals, self.temperature = clip, encode, proposals, temperature
        self._words: tuple[tuple, Tensor] | None = None

    @torch.inference_mode()
    def embed(self, image: np.ndarray, proposals: Proposals | None = None) -> SegmentedImage:
        """Stage one and the visual encoder: a uint8 RGB image [H, W, 3] to masks with CLIP-space embeddings.

        Raises:
            ValueError: there is neither a proposal source nor proposals, or the image is none.
        """
        pixels = preprocess(self.clip, image)[None].to(self.clip.device)
        if proposals is None:
            if self.proposals is None:
                raise ValueError("no masks to name: give MaskCLIP a proposal source, or embed(...) proposals")
            (proposals,) = self.proposals([image])
        size = (image.shape[0], image.shape[1])
        side = (self.clip.image_size,) * 2
        logits = proposals.mask_logits.to(pixels)[None]
        if logits.shape[1] == 0:
            width = self.words(["object"]).shape[1]
            return SegmentedImage(pixels.new_zeros(0, width), pixels.new_zeros(0, *side), proposals.scores, size)
        logits = interpolate(logits, side, mode="bilinear", align_corners=False)
        embeddings, refined = self.encode(pixels, logits)
        return SegmentedImage(embeddings[0], refined[0], proposals.scores, size)

    def words(self, names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Normalized text embeddings [K, C] of the names; the last vocabulary asked for is kept."""
        key = (names if isinstance(names, str) else tuple(names), tuple(templates))
        if self._words is None or self._words[0] != key:
            self._words = (key, text_embeddings(self.clip, names, tuple(templates)))
        return self._words[1]

    def name(
        self,
        masks: SegmentedImage,
        names: Sequence[str],
        templates: Sequence[str] = ("{}",),
        objectness_power: float = 0.0,
    ) -> NamedMasks:
        """Classify every mask against any category names: softmax of cosine similarity over the temperature.

        Args:
            objectness_power: class probabilities times objectness to this power; 0, as released, ignores it.

        Raises:
            ValueError: no names.
        """
        if not names:
            raise ValueError("no category names; give at least one word to look for")
        logits = classify(masks.embeddings, self.words(names, templates), self.temperature)
        probs = logits.float().softmax(-1) * masks.objectness.to(logits.device)[:, None] ** objectness_power
        return NamedMasks(probs, masks.mask_logits, masks.size)

    def __call__(self, image: np.ndarray, names: Sequence[str], proposals: Proposals | None = None) -> NamedMasks:
        """From a picture and words to named masks, in one go."""
        return self.name(self.embed(image, proposals), names)
