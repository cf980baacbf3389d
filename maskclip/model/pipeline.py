"""MaskCLIP as in Fig. 1: proposals -> visual encoder -> classification by text -> segmentations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from maskclip.model import merge
from maskclip.model.clip import Clip, classify, preprocess, text_embeddings
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.visual_encoder import ImageFeatures, MaskCLIPVisualEncoder, MaskEncoding
from maskclip.proposals import Proposals, ProposalSource
from maskclip.proposals.base import MULTIPLE, PIXEL_MEAN, resize_image

OUTSIDE = -8.0  # a mask's logit where there is no picture


@dataclass(frozen=True)
class SeenImage:
    """One image as its encoder sees it, for any number of mask sets."""

    features: ImageFeatures | Tensor
    size: tuple[int, int]  # the image's own height and width


@dataclass(frozen=True)
class SegmentedImage:
    """One image's masks in CLIP's space; words come later, and may change at no cost."""

    embeddings: Tensor  # [M, C], not normalized
    mask_logits: Tensor  # [M, S, S], refined; as published of another size
    objectness: Tensor  # [M], 0 to 1
    size: tuple[int, int]


@dataclass(frozen=True)
class NamedMasks:
    """Masks and what they are."""

    class_probs: Tensor  # [M, K] over the names
    mask_logits: Tensor  # [M, S, S]
    size: tuple[int, int]

    def semantic(self, as_published: bool = False) -> np.ndarray:
        """Class index of every pixel, [H, W]; as published: the last class is never one of them."""
        return merge.semantic_map(self.class_probs, self.mask_logits, self.size, no_object=as_published)

    def panoptic(self, isthing: Sequence[bool], **thresholds: Any) -> tuple[np.ndarray, list[dict]]:
        """Segment ids [H, W], 0 void, and one record per segment; see `merge.panoptic_map`."""
        return merge.panoptic_map(self.class_probs, self.mask_logits, self.size, isthing, **thresholds)

    def instances(
        self, isthing: Sequence[bool], top_k: int = 100, as_published: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Things one by one: masks [n, H, W], class indices [n], scores [n]; as published: with both of the released
        code's errors, see `merge.instances`."""
        errors = {"things_first": not as_published, "released_labels": as_published}
        return merge.instances(self.class_probs, self.mask_logits, self.size, isthing, top_k, **errors)


class MaskCLIP:
    """Open-vocabulary segmentation in two stages (Fig. 1).

    `model(image, words)` does all of it. Step by step, each step's answer serves again: `see` an
    image once, `encode` as many sets of masks as you like, `name` them with any words.

    Args:
        clip: the frozen CLIP, for words and for the image's normalization.
        encoder: what turns masks into embeddings: a visual encoder, or the CLIP Baseline.
        proposals: stage one, from uint8 RGB images to class-agnostic `Proposals`; None where every
            call brings its own (stored or ground-truth) ones.
        temperature: of the softmax over categories, 0.01 as released.
    """

    def __init__(
        self,
        clip: Clip,
        encoder: MaskCLIPVisualEncoder | MaskedImages,
        proposals: ProposalSource | None = None,
        temperature: float = 0.01,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.clip, self.encoder, self.proposals, self.temperature = clip, encoder, proposals, temperature
        self._words: dict[tuple, Tensor] = {}

    @torch.inference_mode()
    def see(self, image: np.ndarray) -> SeenImage:
        """CLIP's pass over a uint8 RGB image [H, W, 3], kept for all masks to come."""
        return SeenImage(self.encoder.see(preprocess(self.clip, image)[None]), (image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def encode(self, seen: SeenImage, proposals: Proposals) -> SegmentedImage:
        """Embeddings and refined masks of `proposals` on an image already seen."""
        return self._segmented(self.encoder.encode, seen.features, proposals, seen.size)

    @torch.inference_mode()
    def embed(
        self, image: np.ndarray, proposals: Proposals | None = None, as_published: bool = False
    ) -> SegmentedImage:
        """`encode(see(image), proposals)`, without keeping CLIP's pass longer than a layer.

        Without `proposals` the model's own source proposes; a ValueError says if there is none. As published, CLIP sees
        the picture as Mask2Former does, which the `proposals` are then of.
        """
        masks = self.propose(image) if proposals is None else proposals
        if as_published:
            return self._embed_as_published(image, masks)
        pixels = preprocess(self.clip, image)[None]
        return self._segmented(self.encoder, pixels, masks, (image.shape[0], image.shape[1]))

    def propose(self, image: np.ndarray) -> Proposals:
        """Masks without names, by the model's own source; a ValueError says if there is none, or it gives none."""
        if self.proposals is None:
            raise ValueError("no masks to name: give MaskCLIP a proposal source, or embed(...) proposals")
        found: Any = self.proposals([image])
        if not isinstance(found, list | tuple) or len(found) != 1 or not isinstance(found[0], Proposals):
            raise ValueError(f"the proposal source gives {found!r:.100}; it must give a list of one Proposals an image")
        return found[0]

    def _embed_as_published(self, image: np.ndarray, proposals: Proposals) -> SegmentedImage:
        """The released code's way: the picture at the proposal network's size, padded, then to S without antialiasing.

        Mask logits come back at the proposal network's size. Its logits on the padding are not stored; having learned
        on padded crops, it should find nothing there.
        """
        mean, side = torch.tensor(PIXEL_MEAN, device=self.clip.device)[:, None, None], self.clip.image_size
        logits = proposals.mask_logits.to(self.clip.mean)[:, None]
        height, width = (4 * length for length in logits.shape[-2:])  # Mask2Former's stride
        below, right = -height % MULTIPLE, -width % MULTIPLE
        padded = pad(resize_image(image, (height, width), self.clip.device) - mean, (0, right, 0, below)) + mean
        pixels = interpolate(padded[None] / 255, (side, side), mode="bicubic", align_corners=False)
        logits = pad(logits, (0, right // 4, 0, below // 4), value=OUTSIDE)
        logits = interpolate(logits, (side, side), mode="bilinear", align_corners=False).transpose(0, 1)
        encoding = self.encoder((pixels - self.clip.mean) / self.clip.std, logits)
        whole = interpolate(encoding.masks[0][:, None], padded.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        size = image.shape[0], image.shape[1]
        return SegmentedImage(encoding.embeddings[0], whole[:, :height, :width], proposals.scores, size)

    def _segmented(
        self, encode: Callable[..., MaskEncoding], image: Any, proposals: Proposals, size: tuple[int, int]
    ) -> SegmentedImage:
        """`encode` the image with the masks [M, h, w] as CLIP sees them: [1, M, S, S]."""
        logits, side = proposals.mask_logits.to(self.clip.mean)[:, None], self.clip.image_size
        logits = interpolate(logits, (side, side), mode="bilinear", align_corners=False).transpose(0, 1)
        encoding = encode(image, logits)
        return SegmentedImage(encoding.embeddings[0], encoding.masks[0], proposals.scores, size)

    def words(self, names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Normalized text embeddings [K, C] of the names; each vocabulary is encoded once."""
        key = (names if isinstance(names, str) else tuple(names), tuple(templates))
        if key not in self._words:
            self._words[key] = text_embeddings(self.clip, key[0], tuple(templates))
        return self._words[key]

    def name(
        self,
        masks: SegmentedImage,
        names: Sequence[str],
        templates: Sequence[str] = ("{}",),
        objectness_power: float = 0.0,
    ) -> NamedMasks:
        """Classify every mask against any names: softmax of cosine similarity over the temperature.

        Probabilities are weighed by objectness to the power given; 0, as released, ignores it.
        """
        logits = classify(masks.embeddings, self.words(names, templates), self.temperature)
        probs = logits.float().softmax(-1) * masks.objectness.to(logits.device)[:, None] ** objectness_power
        return NamedMasks(probs, masks.mask_logits, masks.size)

    def __call__(self, image: np.ndarray, names: Sequence[str], proposals: Proposals | None = None) -> NamedMasks:
        """From a picture and words to named masks, in one go."""
        return self.name(self.embed(image, proposals), names)
