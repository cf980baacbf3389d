"""How well a CLIP names the miniature world: single things by the whole picture, segments of scenes by true masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskclip.model.clip import Clip, preprocess, text_embeddings
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from miniature.datasets import Annotated, annotated_scene
from miniature.pictographs import THINGS
from miniature.scenes import COLOURS, DOMAINS, Scene, paint, random_regions, random_stickers, to_uint8
from miniature.textures import STUFF, texture_bank


@torch.inference_mode()
def _embed(clip: Clip, pictures: Sequence[np.ndarray], batch: int = 64) -> torch.Tensor:
    pixels = torch.stack([preprocess(clip, picture) for picture in pictures]).to(clip.model.logit_scale.dtype)
    return torch.cat([clip.model.encode_image(part, normalize=True) for part in pixels.split(batch)]).float()


def zero_shot(clip: Clip, seed: int = 1, per_name: int = 3) -> list[dict]:
    """Zero-shot top-1 over *all* thing names on single stickers never rendered before (`per_name` of each).

    Returns:
        Rows of attribute, value, accuracy (percent) and pictures: over everything, by style, colour and kind (filled,
        outlined, other); and, as attribute `naming the colour`, whether 'a red umbrella' beats eleven other colours.
    """
    rng = np.random.default_rng([seed, 101])
    bank = texture_bank(seed=10_000 + seed, variants=3, size=128)
    scenes = []
    for name in THINGS:
        for i in range(per_name):
            stuff, centres = random_regions(rng, STUFF, int(rng.integers(1, 3)))
            sticker = random_stickers(rng, [name], (0.45, 1.0))
            scenes.append(Scene(DOMAINS[i % len(DOMAINS)], stuff, centres, sticker, int(rng.integers(2**31))))
    parts = [scenes[i : i + 64] for i in range(0, len(scenes), 64)]
    side = min(clip.image_size, 128)
    pictures = [to_uint8(picture) for part in parts for picture in paint(part, bank, side, side)[0]]
    images, things = _embed(clip, pictures), [s.things[0] for s in scenes]
    best = (images @ text_embeddings(clip, THINGS).T).argmax(1).tolist()
    right = np.array([THINGS[b] == t.name for b, t in zip(best, things, strict=True)])
    kinds = [t.name.split()[0] if t.name.startswith(("filled ", "outlined ")) else "other" for t in things]
    rows, everything = [], ["all"] * len(things)
    groups = [("all", everything), ("style", [s.domain for s in scenes]), ("kind", kinds)]
    for attribute, values in [*groups, ("colour", [t.colour for t in things])]:
        for value in dict.fromkeys(values):
            hits = right[np.array(values) == value]
            accuracy = 100 * float(hits.mean())
            rows.append({"attribute": attribute, "value": value, "accuracy": accuracy, "pictures": len(hits)})
    phrases = [f"a {colour} {name}" for name in THINGS for colour in COLOURS]
    words = text_embeddings(clip, phrases).unflatten(0, (len(THINGS), len(COLOURS)))
    chosen = [int((words[THINGS.index(t.name)] @ image).argmax()) for image, t in zip(images, things, strict=True)]
    told = [list(COLOURS)[choice] == t.colour for choice, t in zip(chosen, things, strict=True)]
    same = {"value": "all", "accuracy": 100 * float(np.mean(told)), "pictures": len(told)}
    return [*rows, {"attribute": "naming the colour"} | same]


def unseen_scenes(seed: int = 1, count: int = 90, domains: Sequence[str] = DOMAINS) -> list[Annotated]:
    """Annotated scenes as the data sets have them, of all names, in all styles, with stuff seen in no other picture."""
    bank = texture_bank(seed=20_000 + seed, variants=3, size=192)
    return [
        annotated_scene(np.random.default_rng([seed, 102, i]), domains[i % len(domains)], THINGS, (), STUFF, bank)
        for i in range(count)
    ]


def name_true_masks(clip: Clip, scenes: Sequence[Annotated]) -> list[dict]:
    """Top-1 over all names given true masks, without any training: mask class tokens against masked images and crops.

    Returns:
        Rows of method, group (all, things, stuff), accuracy (percent) and segments.  Crowds are left out.
    """
    names = [*THINGS, *STUFF]
    methods: dict[str, MaskCLIPVisualEncoder | MaskedImages] = {
        "mask class tokens": MaskCLIPVisualEncoder.from_open_clip(clip.model, rma_layers=()),
        "masked image": MaskedImages(clip),
        "masked crop": MaskedImages(clip, crop=True),
    }
    rows = []
    for method, encoder in methods.items():
        model = MaskCLIP(clip, encoder)
        right: dict[str, list[bool]] = {"all": [], "things": [], "stuff": []}
        for scene in scenes:
            kept = [i for i, crowd in enumerate(scene.crowd) if not crowd]
            masks = torch.from_numpy(np.stack([scene.masks[i] for i in kept]))
            proposals = Proposals(torch.where(masks, 10.0, -10.0), torch.ones(len(kept)))
            best = model(scene.image, names, proposals).class_probs.argmax(1).tolist()
            for i, answer in zip(kept, best, strict=True):
                hit = names[answer] == scene.names[i]
                right["all"].append(hit)
                right["stuff" if scene.names[i] in STUFF else "things"].append(hit)
        for group, hits in right.items():
            accuracy = 100 * float(np.mean(hits))
            rows.append({"method": method, "group": group, "accuracy": accuracy, "segments": len(hits)})
    return rows
