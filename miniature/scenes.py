"""Scenes of the miniature: places with stuff above and below, things that are at home there (and odd ones), in depth.

A `Scene` is a description; `painting.paint` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from miniature.drawings import sprites
from miniature.words import GROUNDS, frequency, stuff, things

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.89, 0.18, 0.18), "orange": (0.97, 0.55, 0.12), "yellow": (0.98, 0.84, 0.18), "green": (0.22, 0.66, 0.28),
    "teal": (0.10, 0.65, 0.65), "blue": (0.18, 0.40, 0.86), "purple": (0.52, 0.26, 0.74), "pink": (0.97, 0.52, 0.72),
    "brown": (0.53, 0.33, 0.18), "black": (0.13, 0.13, 0.15), "gray": (0.55, 0.56, 0.58), "white": (0.96, 0.96, 0.95),
}  # fmt: skip
STYLES = ("sticker", "print", "chalk")  # of the COCO and LVIS mirrors, the ADE20K mirrors, the PASCAL Context mirrors
SIZES = (0.0, 0.17, 0.23, 0.31, 0.40, 0.50)  # of kinds 1 to 5, in units of the picture's shorter side


@dataclass(frozen=True)
class Sticker:
    """One thing by one artist: centre (x, y) and size in units of the picture's shorter side, angle in degrees, colour
    by name; `row` is its drawing's in `Sprites`, `shade` in [0, 1) makes its colour lighter or darker; a `bare` one is
    the glyph alone in one colour, as anyone would type it; one with an `ink` of its own is flat, without rim and
    shadow, in whatever style."""

    name: str
    row: int
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    aspect: float = 1.0
    shade: float = 0.5
    mirrored: bool = False
    bare: bool = False
    ink: str | None = None


@dataclass(frozen=True)
class Ground:
    """Stuff, each with its centre (x, y) in [0, 1]^2: one above the other (`banded`), there also several `beside` one
    another, or in patches; without any, one pale colour. `straight` borders are walls', others roll."""

    stuff: tuple[str, ...] = ()
    centres: tuple[tuple[float, float], ...] = ()
    banded: bool = True
    beside: bool = False
    straight: bool = False


@dataclass(frozen=True)
class Scene:
    """A ground, then stickers from back to front, of which the last are a `crowd` of tiny things of one name (often of
    none)."""

    style: str
    ground: Ground
    things: tuple[Sticker, ...]
    seed: int
    crowd: int = 0


@dataclass(frozen=True)
class Recipe:
    """What the scenes of one data set are made of: artist and style, what is likely, how likely each place is, what
    else there is (`rest`, with probability `rare`), how many things, how large (a factor), and how much stuff (None:
    one kind above the other)."""

    artists: tuple[str, ...]
    styles: tuple[str, ...]
    likely: tuple[str, ...]
    places: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GROUNDS, 1.0))
    rest: tuple[str, ...] = ()
    rare: float = 0.06
    count: tuple[int, int] = (2, 8)
    scale: float = 1.0
    fitting: float = 0.75  # of the things are at home in their scene's place
    stuff: tuple[int, int] | None = None


@cache
def _drawn(names: tuple[str, ...], artist: str, place: str | None = None) -> tuple[str, ...]:
    """Those that an artist has drawn and, if a place is given, that are at home there."""
    known = [things()[name] for name in names]
    return tuple(t.name for t in known if t.drawings[artist] and (place is None or place in t.places))


@cache
def _chances(names: tuple[str, ...]) -> np.ndarray:
    return np.cumsum([frequency()[n] for n in names])


def pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """One of the names, the common ones more often."""
    chances = _chances(names)
    return names[int(np.searchsorted(chances, rng.random() * chances[-1]))]


def sticker_of(
    rng: np.random.Generator, name: str, artist: str, colour: str | None = None, spread: float = 1.0
) -> Sticker:
    """A thing in one of an artist's drawings, at the middle; mostly in a usual colour, `spread` scales its poses."""
    thing, rows = things()[name], sprites().variants[artist][name]
    if colour is None:
        colour = str(rng.choice(thing.colours if rng.random() < 0.7 else list(COLOURS)))
    size = SIZES[thing.size] * np.exp(0.15 * rng.standard_normal())
    return Sticker(
        name, int(rng.choice(rows)), colour, 0.5, 0.5, float(size), float(spread * rng.normal(0, 7)),
        float(np.exp(spread * rng.uniform(-0.12, 0.12))), float(rng.random()), bool(rng.random() < 0.4),
    )  # fmt: skip


def arrange(
    rng: np.random.Generator, stickers: Sequence[Sticker], place: str, width: float, height: float
) -> list[Sticker]:
    """Find each a spot of a width x height picture: what flies above, what stands below the horizon and larger the
    nearer, overlapping little; sorted from back to front."""
    placed: list[Sticker] = []
    for s in sorted(stickers, key=lambda s: -s.size):
        flies = "air" in things()[s.name].places and place not in ("table", "room")
        low, high = (0.12, 0.42) if flies else (0.1, 0.9) if place in ("table", "air") else (0.42, 0.88)
        best, least = s, np.inf
        for _ in range(10):
            y = rng.uniform(low, high)
            size = s.size if place in ("table", "air") or flies else s.size * (0.72 + 0.5 * (y - low) / (high - low))
            margin = 0.4 * size
            spot = rng.uniform(margin, max(margin + 1e-3, width - margin)), np.clip(y * height, margin, height - margin)
            trial = replace(s, x=float(spot[0]), y=float(spot[1]), size=float(size))
            near = [0.42 * (o.size + size) - np.hypot(o.x - trial.x, o.y - trial.y) for o in placed]
            worst = max(near, default=-1.0) / size
            if worst < least:
                best, least = trial, worst
            if worst < 0.25 * rng.random():
                break
        placed.append(best)
    return sorted(placed, key=lambda s: s.y + 0.4 * s.size)


def random_ground(rng: np.random.Generator, place: str | None) -> Ground:
    """Stuff of a place; None gives patches of any stuff."""
    if place is None:
        names = [str(n) for n in rng.choice(list(stuff()), int(rng.integers(1, 4)), replace=False)]
    else:
        names = list(dict.fromkeys(str(rng.choice(part)) for part in GROUNDS[place]))
    two = place == "table" and rng.random() < 0.4
    if two:
        names.append(str(rng.choice([n for n in GROUNDS["table"][0] if n not in names])))
    if place is None or two:
        return _patches(rng, names)
    levels = _levels(rng.uniform(0.3, 0.55), len(names))
    return Ground(tuple(names), tuple((float(rng.random()), level) for level in levels))


def crowded_ground(rng: np.random.Generator, place: str, least: int, most: int) -> Ground:
    """Much stuff of a place, from `least` to `most` kinds where it has so many: in each band several beside one
    another, on a table in patches."""
    bands = list[list[str]]()
    for part in GROUNDS[place]:
        bands.append([name for name in dict.fromkeys(part) if not any(name in above for above in bands)])
    count, shown = int(rng.integers(least, most + 1)), [1] * len(bands)
    while sum(shown) < min(count, sum(map(len, bands))):  # one more where most are left
        left = [len(band) - n for band, n in zip(bands, shown)]
        shown[int(rng.choice(np.flatnonzero(np.equal(left, max(left)))))] += 1
    names = [[str(name) for name in rng.choice(band, n, replace=False)] for band, n in zip(bands, shown)]
    if len(bands) == 1:
        return _patches(rng, names[0])
    levels = _levels(rng.uniform(0.3, 0.55), len(bands))
    centres = [((k + float(rng.uniform(0.2, 0.8))) / n, y) for y, n in zip(levels, shown) for k in range(n)]
    return Ground(tuple(name for band in names for name in band), tuple(centres), beside=True)


def _patches(rng: np.random.Generator, names: Sequence[str]) -> Ground:
    return Ground(tuple(names), tuple((float(rng.random()), float(rng.random())) for _ in names), banded=False)


def _levels(horizon: float, bands: int) -> list[float]:
    """How far down the middles of bands are."""
    levels = {1: [0.5], 2: [horizon - 0.3, horizon + 0.3], 3: [horizon - 0.25, horizon + 0.1, horizon + 0.5]}
    return [float(level) for level in levels[bands]]


def any_ground(rng: np.random.Generator) -> Ground:
    """Half of them of some place, half of them patches."""
    return random_ground(rng, None if rng.random() < 0.5 else str(rng.choice(list(GROUNDS))))


def random_scene(rng: np.random.Generator, recipe: Recipe, width: float = 1.0, height: float = 1.0) -> Scene:
    """One scene; now and then with a crowd."""
    artist, style = str(rng.choice(recipe.artists)), str(rng.choice(recipe.styles))
    share = np.array(list(recipe.places.values()))
    place = str(rng.choice(list(recipe.places), p=share / share.sum()))
    likely, at_home = _drawn(recipe.likely, artist), _drawn(recipe.likely, artist, place)
    names = _names(rng, recipe, likely, at_home, _drawn(recipe.rest, artist))
    scale = recipe.scale * rng.uniform(0.8, 1.25) * min(1.5, (3.2 / len(names)) ** 0.5)
    stickers = [replace(s, size=min(s.size * scale, 0.8)) for s in (sticker_of(rng, n, artist) for n in names)]
    stickers, crowd = arrange(rng, stickers, place, width, height), []
    if rng.random() < 0.06:
        crowd = _crowd(rng, at_home or likely, artist, width, height)
    if recipe.stuff:
        ground = crowded_ground(rng, place, *recipe.stuff)
    else:
        ground = random_ground(rng, None if rng.random() < 0.08 else place)
    ground = replace(ground, straight=place in ("room", "street"))
    return Scene(style, ground, (*stickers, *crowd), int(rng.integers(2**31)), len(crowd))


def _names(
    rng: np.random.Generator, recipe: Recipe, likely: tuple[str, ...], at_home: tuple[str, ...], rest: tuple[str, ...]
) -> list[str]:
    """Of a scene's things: now and then one again, or one of the rest."""
    low, high = recipe.count
    names: list[str] = []
    for _ in range(low + min(int(rng.poisson((high - low) / 3)), high - low)):
        if names and rng.random() < 0.12:
            names.append(str(rng.choice(names)))
        elif rest and rng.random() < recipe.rare:
            names.append(pick(rng, rest))
        else:
            names.append(pick(rng, at_home if at_home and rng.random() < recipe.fitting else likely))
    return names


def _crowd(rng: np.random.Generator, names: tuple[str, ...], artist: str, width: float, height: float) -> list[Sticker]:
    """Tiny things of one name, close to one another."""
    count = int(rng.integers(12, 21))
    first = sticker_of(rng, pick(rng, names), artist)
    x, y = rng.uniform(0.3, 0.7) * width, rng.uniform(0.4, 0.75) * height
    crowd = []
    for dx, dy in sorted(rng.normal(0, 0.11, (count, 2)).tolist(), key=lambda d: d[1]):
        tiny, tilt = float(rng.uniform(0.10, 0.14)), float(rng.normal(0, 8))
        crowd.append(replace(first, x=x + dx, y=y + dy, size=tiny, angle=tilt, shade=float(rng.random())))
    return crowd
