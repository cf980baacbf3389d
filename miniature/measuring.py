"""How well a CLIP names the miniature: single things by the whole picture, segments of scenes by true masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from maskclip.model.clip import Clip, preprocess, text_embeddings
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.proposals.base import CERTAIN
from maskclip.segmenter import Segmenter
from miniature.datasets import BANK_SIZE, Annotated, annotated_scene
from miniature.painting import paint, to_uint8
from miniature.scenes import STYLES, Recipe, Scene, any_ground, sticker_of
from miniature.textures import texture_bank
from miniature.words import ARTISTS, drawn_by, stuff, things

SIDE = 128  # of the pictures that are measured
THING_SIZES = {
    "things under 16 pixels": (0, 16), "things of 16 to 32": (16, 32), "things from 32 on": (32, np.inf),
}  # fmt: skip
ALL_ELSE = "words for all else"
ALONE = "only the surest names, as many right as with words for all else"


def _percent(hits: Sequence[bool] | np.ndarray, what: str) -> dict[str, float]:
    """The share of what is right, and of how many."""
    return {"accuracy": 100 * float(np.mean(hits)), what: len(hits)}


def single_scenes(seed: int, per_drawing: int) -> list[tuple[str, Scene]]:
    """Artists and scenes: each thing by each of its artists alone on stuff, `per_drawing` times, styles in turn."""
    rng = np.random.default_rng([seed, 101])
    out: list[tuple[str, Scene]] = []
    for artist in ARTISTS:
        for name in drawn_by(artist):
            for i in range(per_drawing):
                ground = any_ground(rng)
                s = replace(sticker_of(rng, name, artist), size=float(rng.uniform(0.5, 0.95)))
                style = STYLES[(i + len(out)) % len(STYLES)]
                out.append((artist, Scene(style, ground, (s,), int(rng.integers(2**31)))))
    return out


@torch.inference_mode()
def embed(clip: Clip, scenes: Sequence[Scene], seed: int) -> torch.Tensor:
    """Normalized image embeddings of scenes with textures never trained on."""
    bank = texture_bank(10_000 + seed, 2, SIDE + 32)
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, rma_layers=())
    out = []
    for first in range(0, len(scenes), 64):
        pictures = paint(scenes[first : first + 64], bank, SIDE, SIDE)[0]
        pixels = torch.stack([preprocess(clip, to_uint8(p)) for p in pictures])
        out += [encoder.embed_image(part).float() for part in pixels.split(16)]
    return F.normalize(torch.cat(out), dim=-1)


def zero_shot(clip: Clip, seed: int = 1, per_drawing: int = 1) -> list[dict]:
    """Zero-shot top-1 over all things' names on single things never rendered before.

    Returns:
        Rows of attribute (all, artist, style), value, accuracy in percent and pictures.
    """
    drawn = single_scenes(seed, per_drawing)
    images = embed(clip, [scene for _, scene in drawn], seed)
    names = list(things())
    best = (images @ text_embeddings(clip, names).T).argmax(1).tolist()
    right = np.array([names[b] == scene.things[0].name for b, (_, scene) in zip(best, drawn, strict=True)])
    groups = {"all": ["all"] * len(drawn), "artist": [a for a, _ in drawn], "style": [s.style for _, s in drawn]}
    return [
        {"attribute": attribute, "value": value} | _percent(right[np.array(values) == value], "pictures")
        for attribute, values in groups.items()
        for value in dict.fromkeys(values)
    ]


def unseen_scenes(
    seed: int, count: int, artists: Sequence[str] = ARTISTS, styles: Sequence[str] = STYLES
) -> list[Annotated]:
    """Annotated scenes of all names, by these artists and in these styles, on stuff seen in no other picture."""
    bank = texture_bank(20_000 + seed, 2, BANK_SIZE)
    made_of = Recipe(tuple(artists), tuple(styles), tuple(things()))
    return [annotated_scene(np.random.default_rng([seed, 102, i]), made_of, bank) for i in range(count)]


def name_true_masks(clip: Clip, scenes: Sequence[Annotated]) -> list[dict]:
    """Top-1 over all names given true masks, without any training: mask class tokens against masked images.

    Returns:
        Rows of method, group (all, stuff, things, and things by the root of their area in a picture of 128 pixels
        squared), accuracy in percent and segments.  Crowds are left out.
    """
    names = [*things(), *stuff()]
    methods: dict[str, MaskCLIPVisualEncoder | MaskedImages] = {
        "mask class tokens": MaskCLIPVisualEncoder.from_open_clip(clip.model, rma_layers=()),
        "masked image": MaskedImages(clip),
    }
    rows = []
    for method, encoder in methods.items():
        model = MaskCLIP(clip, encoder)
        right: dict[str, list[bool]] = {"all": [], "things": [], "stuff": [], **{group: [] for group in THING_SIZES}}
        for scene in scenes:
            named = [(name, mask) for name, mask, crowd in scene.segments if not crowd]
            proposals = true_masks([mask for _, mask in named])
            best = model(scene.image, names, proposals).class_probs.argmax(1).tolist()
            for (name, mask), answer in zip(named, best, strict=True):
                across = SIDE * mask.mean() ** 0.5
                groups = [group for group, (low, high) in THING_SIZES.items() if low <= across < high]
                for group in ("all", "stuff") if name in stuff() else ("all", "things", *groups):
                    right[group].append(names[answer] == name)
        rows += [{"method": method, "group": group} | _percent(hits, "segments") for group, hits in right.items()]
    return rows


def true_masks(masks: Sequence[np.ndarray]) -> Proposals:
    """Masks as certain proposals."""
    stacked = torch.from_numpy(np.stack(masks))
    return Proposals(torch.where(stacked, CERTAIN, -CERTAIN), torch.ones(len(stacked)))


def none_of_these(segmenter: Segmenter, scenes: Sequence[Annotated], seed: int = 0) -> list[dict]:
    """How often a mask gets its own word of a user's words, and how often one that fits none of them gets one.

    Of each scene, every other name is asked for, and three that are not there; masks are the scene's own.  Of each way
    to say "none of these", and of each threshold on similarity; last, for comparison, of a threshold on probability
    alone that leaves as much right as the words for all else do.

    Returns:
        Rows of way, threshold (NaN: none), and in percent: right, of the masks whose name is asked for; wrong, of the
        others.
    """
    rng, asked = np.random.default_rng([seed, 103]), []
    for scene in scenes:
        present = list(dict.fromkeys(scene.names))
        absent = rng.choice([n for n in things() if n not in present], 3, replace=False).tolist()
        asked.append((segmenter.embed(scene.image, np.stack(scene.masks)), [*present[::2], *absent], scene.names))
    ways: list[tuple[str, bool, float | None]] = [("every mask is named", False, None), (ALL_ELSE, True, None)]
    ways += [("and a threshold", True, float(t)) for t in np.arange(0.02, 0.9, 0.02).round(2)]
    rows, sure = list[dict](), list[tuple[float, bool, bool]]()
    for way, none, threshold in ways:
        segmenter.least_similarity = threshold
        said = []  # of each mask: how sure, whether its name is among the words, whether it is the name given
        for seen, words, names in asked:
            probs = segmenter(seen, words, none_of_these=none).probs
            for name, row in zip(names, probs, strict=True):
                said.append((float(row.max()), name in words, words[int(row.argmax())] == name))
        sure = sure or said
        rows.append({"way": way, "threshold": np.nan if threshold is None else threshold} | _shares(said, 0.0))
    recall = next(row["right"] for row in rows if row["way"] == ALL_ELSE)
    alone = [_shares(sure, least) for least in np.arange(0, 1, 0.001)]  # the plain way: drop what CLIP is unsure of
    rows.append({"way": ALONE, "threshold": np.nan} | next(one for one in reversed(alone) if one["right"] >= recall))
    return rows


def _shares(said: Sequence[tuple[float, bool, bool]], least: float) -> dict[str, float]:
    """Of the masks whose name is asked for, those named right, and of the others, those named, in percent; a name less
    sure than `least` is not given."""
    named = {True: list[bool](), False: list[bool]()}
    for probability, asked, right in said:
        named[asked].append(probability > 0 and probability >= least and (right or not asked))
    return {"right": 100 * float(np.mean(named[True])), "wrong": 100 * float(np.mean(named[False]))}


def least_similarity(rows: Sequence[dict]) -> float:
    """The highest threshold of `none_of_these` that costs at most a point of what is right without it."""
    least = next(row["right"] for row in rows if row["way"] == ALL_ELSE) - 1.0
    return max((row["threshold"] for row in rows if row["threshold"] > 0 and row["right"] >= least), default=0.0)
