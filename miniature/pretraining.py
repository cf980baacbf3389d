"""The miniature's stand-in for days of training: pictures drawn for proposal networks to learn from before the study.

The paper's networks begin with ImageNet's weights and train for days.  The miniature's begin with networks that have
trained for the better part of an hour, in every drawing style, and go on for minutes.  No picture of the study's data
sets is among its pictures, and no name but the base categories of the COCO split, so what the study calls *never
trained on* is new to it too.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from maskclip.data import Annotation, Category, Dataset, Segment
from maskclip.files import write_atomically
from miniature.datasets import BANK_SIZE, annotated_scene, vocabularies
from miniature.scenes import DOMAINS
from miniature.textures import texture_bank


def base_pictures(seed: int, count: int, variants: int = 12) -> Dataset:
    """`count` pictures, drawn when first asked for, with segments of the base categories and the COCO mirror's stuff.

    Picture i follows from (seed, i). Of each style there is a third; each stuff has `variants` textures a style.
    """
    words = vocabularies()
    names = [*words.base, *words.coco_stuff]
    bank = texture_bank(seed=2 * seed + 1, variants=variants, size=BANK_SIZE)

    @functools.cache  # training asks for each several times
    def draw(index: int | str) -> tuple[np.ndarray, Annotation]:
        rng, domain = np.random.default_rng([seed, 9, int(index)]), DOMAINS[int(index) % len(DOMAINS)]
        scene = annotated_scene(rng, domain, words.base, (), words.coco_stuff, bank)
        segments = [
            Segment(names.index(name), mask, crowd, name in words.base)
            for name, mask, crowd in zip(scene.names, scene.masks, scene.crowd, strict=True)
        ]
        return scene.image, Annotation(index, scene.image.shape[:2], segments)

    categories = [Category(i, name, name in words.base) for i, name in enumerate(names)]
    return Dataset(
        f"base_pictures_{seed}", categories, range(count), lambda i: draw(i)[0], lambda i: draw(i)[1], lambda i: [],
        Path("nowhere"),
    )  # fmt: skip


def save_network(trained: Path, out: Path) -> Path:
    """A network of `train_proposals` (`trained`, its folder) as one file in half precision, its record inside: to start
    from, or to be read by `load_source`."""
    half = {name: tensor.half().contiguous() for name, tensor in load_file(trained / "network.safetensors").items()}
    record = json.dumps(json.loads((trained / "record.json").read_text()))
    write_atomically(out, lambda path: save_file(half, path, {"record": record}))
    return out
