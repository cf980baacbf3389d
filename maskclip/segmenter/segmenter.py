"""A picture and words in, segments out: `Segmenter.load()(picture, ["cow", "grass"])`.

It keeps CLIP's pass and the proposals of the last picture, and the embeddings of all words, so that the
next question costs little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from maskclip.data.coco import decode
from maskclip.data.images import read_image
from maskclip.device import find_device
from maskclip.model.clip import Clip, load_clip, quickgelu_tags, text_embeddings, trained_with_quickgelu
from maskclip.model.pipeline import MaskCLIP, ProposalSource, SeenImage, SegmentedImage
from maskclip.proposals import Proposals, load_source
from maskclip.proposals.mask_generator import mask_proposals
from maskclip.segmenter.answer import Segmentation, rank
from maskclip.segmenter.encoder import load_encoder
from maskclip.segmenter.words import OTHERS, STUFF, Vocabulary, check_known, read_words, templates_of

MODELS = Path(__file__).parent.parent / "models"  # the miniature's, which travel with the package
MINIATURE = MODELS / "mini_clip"
PROPOSALS = "facebook/mask2former-swin-small-coco-panoptic"  # of photographs
TOO_NEAR = 0.9  # cosine to a user's word beyond which another word is none of the others

Picture = str | Path | IO[bytes] | Image.Image | np.ndarray


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture whose masks have their place in CLIP's space; words may come and go."""

    image: np.ndarray  # uint8 [H, W, 3]
    masks: SegmentedImage


class Segmenter:
    """Open-vocabulary segmentation of your own pictures. Build with `load`.

    Args:
        model: Fig. 1 with a proposal source.
        others: words that stand for whatever a user does not ask for.
        least_similarity: cosine below which a mask fits no word; None: not asked.
        known: the names a small CLIP has learned; None: all words are open.
        stuff: words that are not counted one by one.
    """

    def __init__(
        self, model: MaskCLIP, others: Sequence[str] = OTHERS, least_similarity: float | None = None,
        known: Sequence[str] | None = None, stuff: Iterable[str] = STUFF, templates: str | Sequence[str] = "none",
    ) -> None:  # fmt: skip
        self.model, self.others, self.least_similarity = model, tuple(others), least_similarity
        self.known_words = None if known is None else tuple(known)
        self.stuff, self.templates = frozenset(stuff), templates_of(templates)
        self._words: dict[str, Tensor] = {}  # of each name, its text embedding
        self._seen: tuple[bytes, SeenImage] | None = None  # CLIP's pass over the last picture, for other masks
        self._embedded: dict[bytes, EmbeddedPicture] = {}  # of its masks

    @classmethod
    def load(
        cls,
        clip: str | Path | Clip = MINIATURE,
        pretrained: str | None = None,
        *,
        proposals: str | Path | ProposalSource | None = None,
        encoder: str | Path | None = None,
        templates: str | Sequence[str] = "none",
        device: str | None = None,
    ) -> Segmenter:
        """A segmenter; without arguments the miniature's, which needs no network and knows a drawn world.

        Args:
            clip: an open_clip name such as "ViT-L-14-336", or a folder as `load_clip` takes it.
            pretrained: one of open_clip's tags, or a weights file; None: the first tag there is.
            proposals: as `load_source` takes it; None: the miniature's own, or a Mask2Former of the hub.
            encoder: trained weights: encoder.pt of a training, or a file of `maskclip convert`; None:
                mask class tokens without training (w/o RMA).
            templates: "none", "14", "80", or texts with {}.
            device: None: cuda where there is a GPU.

        Raises:
            FileNotFoundError: weights are neither here nor to be had; the sentence says what to put where.
            ValueError: they do not fit one another, or there is no such device.
        """
        device = find_device(device)
        known: dict[str, Any] = {}
        if not isinstance(clip, Clip):
            if (listed := Path(clip) / "words.json").is_file():  # a CLIP that has learned a few words only
                known = json.loads(listed.read_text())
            clip = _load_clip(str(clip), pretrained, device)
        if proposals is None:
            proposals = MODELS / "mini_proposals" / "mask2former.safetensors" if known else PROPOSALS
        source = proposals if callable(proposals) else load_source(proposals, device)
        model = MaskCLIP(clip, load_encoder(encoder, clip).to(device).eval(), source)
        if not known:
            return cls(model, templates=templates)
        words = [*known["things"], *known["stuff"]]
        return cls(model, words, known.get("least_similarity"), [*words, *known["also"]], known["stuff"], templates)

    def embed(self, picture: Picture, masks: Any = None) -> EmbeddedPicture:
        """All of the work that does not depend on words; give the answer in place of the picture.

        masks: in place of proposals: bool [M, H, W], a label map of whole numbers [H, W] (0 is none), COCO's RLEs, or
            SAM's and COCO's dictionaries with a "segmentation" (RLE, polygons or an array).
        """
        image = as_picture(picture)
        own = None if masks is None else own_masks(masks, image.shape[:2])
        picture_key, key = _digest(image), b"" if own is None else _digest(own.mask_logits.numpy())
        if self._seen is None or self._seen[0] != picture_key:
            self._seen, self._embedded = (picture_key, self.model.see(image)), {}
        if key not in self._embedded:
            embedded = self.model.encode(self._seen[1], self.model.propose(image) if own is None else own)
            if own is not None:
                embedded = replace(embedded, mask_logits=own.mask_logits.to(embedded.mask_logits))
            kept = {b"": self._embedded[b""]} if b"" in self._embedded else {}  # the proposals', and the last own ones
            self._embedded = kept | {key: EmbeddedPicture(image, embedded)}
        return self._embedded[key]

    def __call__(
        self,
        picture: Picture | EmbeddedPicture | list[Picture],
        words: Sequence[str],
        *,
        things: Sequence[str] | None = None,
        masks: Any = None,
        none_of_these: bool = True,
    ) -> Any:
        """Segment a picture, or each of a list, with words of your own.

        Args:
            picture: a file's path, an open file, a PIL image, an array, or what `embed` gave.
            words: "lawn | grass" is one class with two names.
            things: the words to count one by one; None: all but those known as stuff.
            masks: your own, in place of proposals, see `embed`; of a list of pictures, a list of each one's.
            none_of_these: leave masks without a name that fit none of the words; False: every mask gets one.

        Returns:
            A `Segmentation`, or a list of them.

        Raises:
            ValueError: words or masks that cannot be, a file that is no picture.
        """
        words = list(words) if isinstance(words, Iterator) else words
        things = list(things) if isinstance(things, Iterator) else things
        vocabulary = read_words(words, things, self.stuff)
        if self.known_words is not None:
            check_known(vocabulary, self.known_words)
        if isinstance(picture, list | tuple):
            if not isinstance(masks, Iterable | None):
                raise ValueError(f"masks of a list of pictures are a list of each one's, not {masks!r:.100}")
            each = [None] * len(picture) if masks is None else list(masks)
            if len(each) != len(picture):
                raise ValueError(f"{len(picture)} pictures, but masks for {len(each)}; give each picture its own")
            options: dict[str, Any] = dict(things=things, none_of_these=none_of_these)
            return [self(one, words, masks=its, **options) for one, its in zip(picture, each, strict=True)]
        if isinstance(picture, EmbeddedPicture) and masks is not None:
            raise ValueError("an embedded picture has its masks already; give them to embed, or the picture itself")
        seen = picture if isinstance(picture, EmbeddedPicture) else self.embed(picture, masks)
        return self._name(seen, vocabulary, none_of_these)

    def widget(self, picture: Picture, words: str = "") -> Any:
        """A widget for notebooks, which answers as one types; ImportError: anywidget is not installed."""
        try:
            from maskclip.segmenter.widget import SegmenterWidget
        except ModuleNotFoundError as error:
            raise ImportError(f"the widget needs {error.name}; pip install anywidget") from None
        return SegmenterWidget(self, picture, words)

    @torch.inference_mode()
    def _name(self, seen: EmbeddedPicture, vocabulary: Vocabulary, none_of_these: bool) -> Segmentation:
        """Classify: a class is as near as the nearest of its names."""
        wanted = self._embeddings(vocabulary.names)
        masks = normalize(seen.masks.embeddings.float(), dim=-1)
        near = (masks @ wanted.T).split([len(names) for names in vocabulary.synonyms], dim=1)
        similarity = torch.stack([one.amax(1) for one in near], dim=1)  # [M, K]
        others = self._others_beside(vocabulary, wanted) if none_of_these else []
        beside = masks @ self._embeddings(others).T if others else masks.new_zeros(len(masks), 0)
        probs = (torch.cat([similarity, beside], 1) / self.model.temperature).softmax(-1)
        ranking = rank(probs, [*vocabulary.labels, *others])
        own = probs[:, : len(vocabulary.labels)]
        if none_of_these:
            fits = probs.argmax(-1) < own.shape[1] if len(probs) else probs.new_zeros(0, dtype=torch.bool)
            if self.least_similarity is not None and len(probs):
                fits &= similarity.amax(1) >= self.least_similarity
            own = own * fits[:, None]
        labels, isthing = vocabulary.labels, list(vocabulary.isthing)
        return Segmentation(seen.image, labels, isthing, own.cpu(), seen.masks.mask_logits.cpu(), ranking)

    def _others_beside(self, vocabulary: Vocabulary, wanted: Tensor) -> list[str]:
        """The words for all else: those that are not, and do not mean, what the user asks for."""
        lower = {name.lower() for name in vocabulary.names}
        others = [word for word in self.others if word.lower() not in lower]
        if not others:
            return []
        apart = (self._embeddings(others) @ wanted.T).amax(1) < TOO_NEAR
        return [word for word, kept in zip(others, apart.tolist()) if kept]

    def _embeddings(self, names: Sequence[str]) -> Tensor:
        """Normalized text embeddings [n, C]; each name is encoded once."""
        if new := [name for name in dict.fromkeys(names) if name not in self._words]:
            self._words |= zip(new, text_embeddings(self.model.clip, new, self.templates))
        return torch.stack([self._words[name] for name in names])


def as_picture(picture: Picture) -> np.ndarray:
    """A file's path, an open file, a PIL image or an array [H, W], [H, W, 3 or 4], uint8 or 0 to 1, as uint8 [H, W, 3].

    Raises:
        FileNotFoundError, ValueError: no file, or no picture.
    """
    if isinstance(picture, str | Path | Image.Image) or hasattr(picture, "read"):
        return read_image(picture)  # type: ignore[arg-type]
    array = _as_array(picture)
    if array.ndim == 3 and array.shape[0] in (3, 4) and array.shape[2] not in (3, 4):
        array = array.transpose(1, 2, 0)  # torch's order
    if array.dtype.kind == "f" and array.size and 0 <= array.min() and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)} is no picture; give uint8 (or floats of 0 to 1), [H, W] or "
            "[H, W, 3], or a file"
        )
    return read_image(Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array))


def own_masks(masks: Any, size: tuple[int, ...]) -> Proposals:
    """A user's masks of a picture of `size` as proposals; empty ones are left out.

    Raises:
        ValueError: of another size, or of no kind that is known.
    """
    if isinstance(masks, Proposals):
        return masks
    masks = list(masks) if isinstance(masks, Iterator) else masks
    if isinstance(masks, list | tuple) and any(isinstance(one, dict) for one in masks):
        found = [_mask_of(one, size, number) for number, one in enumerate(masks)]
    else:
        array = _stacked(masks, size)
        labels = array.ndim == 2 and array.dtype.kind in "iu"
        found = [array == label for label in np.unique(array) if label] if labels else list(np.atleast_1d(array))
        if array.ndim == 2 and array.dtype == bool:
            found = [array]
    for mask in found:
        mask = np.asarray(mask)
        if mask.shape != tuple(size) or (mask.dtype != bool and not np.isin(mask, (0, 1, 255)).all()):
            values = "" if mask.shape != tuple(size) else f" of values {mask.min():.3g} to {mask.max():.3g}"
            raise ValueError(
                f"a mask is {list(mask.shape)}{values}, the picture {list(size)} (height, width); give bool [M, H, W], "
                "a label map [H, W], COCO's RLEs, or dictionaries with a \"segmentation\", of the picture's size"
            )
    return mask_proposals([mask.astype(bool) for mask in found if mask.any()], size)


def _as_array(given: Any) -> np.ndarray:
    """A tensor as NumPy has it, wherever it lies and whatever computes it; all else as NumPy takes it."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given  # NumPy has no bfloat16
    try:
        return np.asarray(given)
    except ValueError:
        raise ValueError("a list whose rows are not equally long is neither a picture nor a mask; mend it") from None


def _stacked(masks: Any, size: tuple[int, ...]) -> np.ndarray:
    """One array of all masks."""
    if not isinstance(masks, list | tuple):
        return _as_array(masks)
    arrays = [_as_array(one) for one in masks]
    if len(sizes := sorted({str(list(one.shape)) for one in arrays})) > 1:
        raise ValueError(
            f"masks are of several sizes, {' and '.join(sizes)}; the picture is {list(size)} (height, width)"
        )
    return np.asarray(arrays)


def _mask_of(one: Any, size: tuple[int, ...], number: int) -> np.ndarray:
    """The mask [H, W] of an RLE, or of what a dictionary has as "segmentation": RLE, polygons or an array."""
    shape = one.get("segmentation", one) if isinstance(one, dict) else one
    if isinstance(shape, dict) and isinstance(counts := shape.get("counts"), bytes):
        shape = shape | {"counts": counts.decode()}
    if isinstance(shape, dict) or (isinstance(one, dict) and isinstance(shape, list)):
        return decode({"id": number, "segmentation": shape}, (size[0], size[1]), "masks")
    return _as_array(shape)


def _digest(array: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(array).data)
    digest.update(repr(array.shape).encode())
    return digest.digest()


def _load_clip(name: str, pretrained: str | None, device: str) -> Clip:
    """A folder, or an open_clip name with the activation its weights were trained with."""
    if Path(name).is_dir():
        return load_clip(name, pretrained, device)
    quick = quickgelu_tags(name)
    pretrained = pretrained or next(iter(quick), None)
    if pretrained is None and not name.startswith("hf-hub:"):
        raise ValueError(
            f"{name!r} is neither a folder nor a CLIP that open_clip has weights for, such as 'ViT-L-14-336'"
        )
    if pretrained is not None and not name.endswith("-quickgelu") and trained_with_quickgelu(name, pretrained, quick):
        name += "-quickgelu"
    return load_clip(name, pretrained, device)
