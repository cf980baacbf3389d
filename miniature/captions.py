"""What the mini CLIP is shown and told: the scenes of a stage, and the captions that the web would give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from miniature.scenes import COLOURS, Ground, Recipe, Scene, any_ground, pick, random_scene, sticker_of
from miniature.schedule import Stage
from miniature.words import all_names, drawn_by, hypernyms, stuff, things

TEMPLATES = ("{}", "{}", "{}", "a {}", "a picture of a {}", "a drawing of a {}")
STUFF_SHARE = 0.25  # of the weight of a caption that speaks of things too


def spoken_words() -> list[str]:
    """Every text that captions are made of."""
    return [*all_names(), *hypernyms(), *COLOURS, "a picture drawing of an and on the empty full other"]


@cache
def columns() -> list[str]:
    """What the softmax chooses from: things, stuff, hypernyms."""
    return [*things(), *stuff(), *hypernyms()]


def speak(word: str, rng: np.random.Generator) -> str:
    """A word by one of its names, as people may write it."""
    names = things()[word].names if word in things() else stuff().get(word, (word,))
    return str(rng.choice(TEMPLATES)).format(rng.choice(names))


def single(rng: np.random.Generator, stage: Stage, ground: bool) -> Scene:
    """One thing that fills half of the picture or all of it."""
    artist = str(rng.choice(stage.artists))
    s = sticker_of(rng, pick(rng, drawn_by(artist)), artist, spread=stage.spread)
    size = float(rng.uniform(0.62, 1.0))
    room = max(0.0, 0.5 - 0.45 * size)
    s = replace(s, size=size, x=0.5 + float(rng.uniform(-room, room)), y=0.5 + float(rng.uniform(-room, room)))
    there = any_ground(rng) if ground else Ground()
    return Scene(str(rng.choice(stage.styles)), there, (s,), int(rng.integers(2**31)))


def _other(colour: str, rng: np.random.Generator) -> str:
    """A colour to draw with on this one."""
    return str(rng.choice([c for c in COLOURS if c != colour]))


def training_scenes(rng: np.random.Generator, stage: Stage) -> list[Scene]:
    """A batch of a stage: first plain, then single, then full scenes."""
    recipe = Recipe(stage.artists, stage.styles, tuple(things()), count=(1, stage.most), scale=1.15, fitting=0.6)
    out: list[Scene] = []
    for i in range(stage.batch):
        part = (i + 0.5) / stage.batch
        if part < stage.plain + stage.single:
            scene = single(rng, stage, part > stage.plain)
        else:
            scene = random_scene(rng, recipe)
            scene = replace(scene, things=scene.things[: len(scene.things) - scene.crowd], crowd=0)
        if stage.bare and rng.random() < stage.bare:
            scene = replace(scene, things=tuple(replace(thing, bare=True) for thing in scene.things))
        if stage.flat and rng.random() < stage.flat:
            scene = replace(scene, things=tuple(replace(t, ink=_other(t.colour, rng)) for t in scene.things))
        out.append(scene)
    return out


def targets_of(scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What each caption says [B, columns], and which columns would be true too and must not count as wrong.

    One in ten single things is called by a hypernym.
    """
    index = {name: i for i, name in enumerate(columns())}
    said, also = torch.zeros(len(scenes), len(index)), torch.zeros(len(scenes), len(index), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        names = list(dict.fromkeys(t.name for t in scene.things))
        above = [h for h, held in hypernyms().items() if any(n in held for n in names)]
        also[row, [index[h] for h in above]] = True
        stuff_share = 0.0 if not scene.ground.stuff else STUFF_SHARE if names else 1.0
        if len(names) == 1 and above and rng.random() < 0.1:
            word = str(rng.choice(above))
            also[row, [index[n] for n in hypernyms()[word]]] = True
            names = [word]
        for group, weight in ((names, 1 - stuff_share), (scene.ground.stuff, stuff_share)):
            for name in group:
                said[row, index[name]] += weight / len(group)
    return said, also & (said == 0)


def caption(scene: Scene, colours: Sequence[str] | None = None) -> str:
    """'a red umbrella and a blue cat on grass', or the same in other colours."""
    chosen = colours or [t.colour for t in scene.things]
    said = " and ".join(f"a {colour} {t.name}" for colour, t in zip(chosen, scene.things, strict=False))
    return f"{said} on {' and '.join(scene.ground.stuff)}" if scene.ground.stuff else said
