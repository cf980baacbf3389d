"""Stuff of the miniature: `words/textures.yaml` says which pattern each is, and its numbers."""

from __future__ import annotations

import numpy as np
import torch

from miniature.patterns import Canvas, draw
from miniature.words import stuff, table


def texture(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One patch of stuff, uint8 [size, size, 3]; coarseness, hue and brightness vary with the generator."""
    picture = draw(Canvas(rng, size, rng.uniform(0.8, 1.5)), table("textures.yaml")[name])
    picture = picture * rng.uniform(0.88, 1.1) * rng.uniform(0.94, 1.06, 3)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def texture_bank(seed: int, variants: int, size: int) -> torch.Tensor:
    """`variants` patches of every stuff: uint8 [stuff, variants, 3, size, size]."""
    patches = [
        [texture(name, np.random.default_rng([seed, i, j]), size) for j in range(variants)]
        for i, name in enumerate(stuff())
    ]
    return torch.tensor(np.array(patches)).movedim(-1, 2).contiguous()
