"""The miniature's stand-in for ImageNet weights: a ResNet trained on labelled pictures of every drawing style.

The paper's proposal networks begin with a backbone that ImageNet's labelled photographs have taught. The miniature's
Mask R-CNN begins with one that learned, inside a Mask2Former *with* class labels, from pictures drawn for this alone:
no picture of the study's data sets is among them, and no thing or stuff that the study's training set does not name.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from maskclip.checkpoint import write_atomically
from maskclip.data import Category, Dataset, Sample, Segment
from maskclip.world.datasets import BANK_SIZE, annotated_scene, vocabularies
from maskclip.world.scenes import DOMAINS
from maskclip.world.textures import texture_bank

ENCODER = "model.pixel_level_module.encoder."  # the backbone's place in transformers' Mask2Former


def labelled_pictures(seed: int, count: int, variants: int = 12) -> Dataset:
    """`count` pictures, drawn when first asked for, with segments of the COCO mirror's categories.

    Picture i follows from (seed, i). Of each style there is a third; each stuff has `variants` textures a style.
    """
    words = vocabularies()
    names = [*words.coco, *words.coco_stuff]
    bank = texture_bank(seed=2 * seed + 1, variants=variants, size=BANK_SIZE)

    @functools.cache  # training asks for each several times
    def draw(index: int | str) -> Sample:
        rng, domain = np.random.default_rng([seed, 9, int(index)]), DOMAINS[int(index) % len(DOMAINS)]
        scene = annotated_scene(rng, domain, words.coco, (), words.coco_stuff, bank)
        segments = [
            Segment(names.index(name), mask, crowd, name in words.coco)
            for name, mask, crowd in zip(scene.names, scene.masks, scene.crowd, strict=True)
        ]
        return Sample(index, "", scene.image, segments)

    categories = [Category(i, name, name in words.coco) for i, name in enumerate(names)]
    return Dataset(f"labelled_pictures_{seed}", categories, range(count), draw, lambda index: [], Path("nowhere"))


def save_backbone(network: Path, out: Path) -> Path:
    """The backbone of a trained Mask2Former (`network`: its safetensors file), in half precision, for
    `BackboneConfig.weights`."""
    weights = load_file(network)
    half = {k.removeprefix(ENCODER): v.half().contiguous() for k, v in weights.items() if k.startswith(ENCODER)}
    if not half:
        raise ValueError(f"{network} holds no Mask2Former of transformers: no tensor is called {ENCODER}...")
    write_atomically(out, lambda path: save_file(half, path))
    return out
