"""Patterns that textures are made of, each [size, size, 3]: lengths in pixels, times coarseness; colours in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

Colour = Sequence[float]


@dataclass(frozen=True)
class Canvas:
    """What a pattern is drawn on: `size` pixels a side, in coarseness `s`, by the draws of `rng`."""

    rng: np.random.Generator
    size: int
    s: float

    def noise(self, scale: float, stretch: Sequence[float] = (1, 1)) -> np.ndarray:
        """Smooth noise [size, size] of unit variance; `scale` is its blob size in pixels, stretched down and across."""
        field = self.rng.standard_normal((self.size, self.size))
        field = ndimage.gaussian_filter(field, (scale * stretch[0], scale * stretch[1]), mode="wrap")
        return (field - field.mean()) / (field.std() + 1e-9)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns in pixels, from a random start."""
        y, x = np.mgrid[0 : self.size, 0 : self.size].astype(float)
        return y + self.rng.uniform(0, 99), x + self.rng.uniform(0, 99)

    def cells(self, step: float) -> tuple[np.ndarray, np.ndarray]:
        """A jittered Voronoi tiling: a random tone for each pixel's cell; its distance to the next cell in pixels."""
        y, x = np.mgrid[0 : self.size, 0 : self.size].astype(float)
        n = int(np.ceil(self.size / step)) + 2
        points = (np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1) - 0.5).reshape(-1, 2) * step
        points += self.rng.uniform(-0.35, 0.35, points.shape) * step
        rows, columns = (np.clip((v / step).astype(int) + 1, 1, n - 2) for v in (y, x))
        near = np.stack([(rows + i) * n + columns + j for i in (-1, 0, 1) for j in (-1, 0, 1)])
        far = np.hypot(points[near, 0] - y, points[near, 1] - x)
        two = np.sort(far, 0)[:2]
        owner = np.take_along_axis(near, far.argmin(0)[None], 0)[0]
        return self.rng.standard_normal(n * n)[owner], (two[1] - two[0]) / 2


def _shade(colour: Colour, tone: np.ndarray) -> np.ndarray:
    """One colour, lighter or darker by `tone` [H, W] around 0: [H, W, 3]."""
    return np.asarray(colour) * (1 + tone[..., None])


def _mix(a: Colour, b: Colour, amount: np.ndarray) -> np.ndarray:
    return np.asarray(a) * (1 - amount[..., None]) + np.asarray(b) * amount[..., None]


def draw(c: Canvas, texture: dict[str, dict]) -> np.ndarray:
    """An entry of `words/textures.yaml`: the name of a function below, and its numbers."""
    ((pattern, numbers),) = texture.items()
    return globals()[pattern](c, **numbers)


def masonry(
    c: Canvas, height: float, width: float, gap: float, brick: Colour, mortar: Colour, shift: float = 0.5
) -> np.ndarray:
    """Bricks, tiles, planks: rows of one colour in slightly different tones between lines of another."""
    y, x = c.grid()
    height, width, gap = height * c.s, width * c.s, max(1.0, gap * c.s)
    row = np.floor(y / height).astype(int)
    across = x / width + shift * (row % 2)
    column = np.floor(across).astype(int)
    tone = c.rng.standard_normal((row.max() + 1, column.max() + 1))[row, column]
    line = (y % height < gap) | ((across % 1) * width < gap)
    grain = 0.03 * c.noise(1.2 * c.s, (0.6, 4))
    return np.where(line[..., None], mortar, _shade(brick, 0.09 * tone + grain))


def stripes(
    c: Canvas, step: float, a: Colour, b: Colour, along: str, wave: float = 0.0, power: float = 1.0
) -> np.ndarray:
    """Parallel stripes, across the picture (`along` "x") or down it ("y"), soft and a little wavy."""
    y, x = c.grid()
    place, stretch = (y, (0.6, 3)) if along == "x" else (x, (3, 0.6))
    phase = place / (step * c.s) + (wave * c.noise(8 * c.s, stretch) if wave else 0)
    return _mix(a, b, (0.5 + 0.5 * np.sin(2 * np.pi * phase)) ** power)


def speckle(
    c: Canvas, colour: Colour, fine: float, coarse: float, blob: float = 7, stretch: Sequence[float] = (1, 1)
) -> np.ndarray:
    """One colour with fine grain and broad patches."""
    return _shade(colour, fine * c.noise(0.6) + coarse * c.noise(blob * c.s, stretch))


def stones(c: Canvas, step: float, colour: Colour, contrast: float, gap: float) -> np.ndarray:
    """Irregular stones or leaves, darker towards their borders."""
    tone, edge = c.cells(step * c.s)
    return _shade(colour, contrast * tone + np.clip(edge / (gap * c.s), 0, 1) * 0.5 - 0.4)


def strands(c: Canvas, a: Colour, b: Colour, down: Sequence[float], crossed: bool = False) -> np.ndarray:
    """Blades or straws: thin long blobs, of one direction or of two."""
    field = c.noise(c.s, down)
    if crossed:
        field = field + c.noise(c.s, down[::-1])
    return _mix(a, b, np.clip(0.5 + 0.28 * field, 0, 1))


def check(c: Canvas, a: Colour, b: Colour, step: float) -> np.ndarray:
    """A chessboard."""
    y, x = c.grid()
    dark = (np.floor(y / (step * c.s)) + np.floor(x / (step * c.s))) % 2
    return _mix(a, b, dark) * (1 + 0.02 * c.noise(1)[..., None])


def plaid(c: Canvas, base: Colour, line: Colour, step: float) -> np.ndarray:
    """Broad and thin bands crossing, as in a woven blanket."""
    down, across = (v / (step * c.s) % 1 for v in c.grid())
    bands = [(v < 0.38) * 0.4 + (np.abs(v - 0.7) < 0.05) * 0.5 for v in (down, across)]
    return _mix(base, line, np.clip(bands[0] + bands[1], 0, 1))


def lines(
    c: Canvas, over: dict[str, Any], colour: Colour, step: float, width: float, axes: str, dash: float = 1.0
) -> np.ndarray:
    """Thin lines over another pattern: across ("x"), down ("y"), slanting ("d", "e"); `dash` of each is drawn."""
    y, x = c.grid()
    places = {"x": (y, x), "y": (x, y), "d": (x + y, x - y), "e": (x - y, x + y)}
    on = np.zeros((c.size, c.size), bool)
    for axis in axes:
        across, along = places[axis]
        on |= (across % (step * c.s) < width * c.s) & (along % (step * c.s * 0.6) <= dash * step * c.s * 0.6)
    return np.where(on[..., None], colour, draw(c, over))


def sky(c: Canvas) -> np.ndarray:
    """Clouds on a blue that pales downwards."""
    y = np.linspace(0, 1, c.size)[:, None].repeat(c.size, 1)
    cloud = np.clip(0.7 * c.noise(11 * c.s, (0.6, 1.6)) - 0.1, 0, 1)[..., None]
    return _mix((0.30, 0.58, 0.92), (0.66, 0.84, 0.98), y) * (1 - cloud) + cloud * np.array([0.98, 0.98, 1.0])


def roof(c: Canvas) -> np.ndarray:
    """Round tiles."""
    y, x = c.grid()
    u, v = (x / (14 * c.s) + 0.5 * (np.floor(y / (12 * c.s)) % 2)) % 1, (y / (12 * c.s)) % 1
    arc = v - np.sqrt(np.clip(1 - (2 * u - 1) ** 2, 0, 1)) * 0.85
    return _shade((0.78, 0.40, 0.25), np.where(np.abs(arc) < 0.13, -0.55, np.where(arc > 0, -0.22, 0.12 - 0.2 * v)))


def ornament(c: Canvas) -> np.ndarray:
    """A carpet's diamonds."""
    y, x = c.grid()
    v, u = np.abs(y % (20 * c.s) / (10 * c.s) - 1), np.abs(x % (20 * c.s) / (10 * c.s) - 1)
    ring = (u + v) % 0.5
    out = _mix((0.62, 0.13, 0.17), (0.93, 0.74, 0.42), (ring < 0.13).astype(float))
    return np.where((u + v < 0.3)[..., None], (0.13, 0.22, 0.45), out) * (1 + 0.04 * c.noise(0.8)[..., None])


def railroad(c: Canvas) -> np.ndarray:
    """Two rails on sleepers, on gravel."""
    y, x = c.grid()
    out = stones(c, 5, (0.55, 0.50, 0.46), 0.2, 1.5)
    out = np.where((x % (10 * c.s) < 4 * c.s)[..., None], (0.36, 0.23, 0.14), out)
    rail = y % (26 * c.s)
    return np.where(((rail < 2.2 * c.s) | (np.abs(rail - 12 * c.s) < 1.1 * c.s))[..., None], (0.80, 0.82, 0.86), out)


def quilt(c: Canvas) -> np.ndarray:
    """Stitched diamonds."""
    y, x = c.grid()
    v, u = np.abs(np.sin(np.pi * (x + y) / (22 * c.s))), np.abs(np.sin(np.pi * (x - y) / (22 * c.s)))
    return _shade((0.80, 0.70, 0.92), 0.30 * (np.minimum(u, v) ** 0.5) - 0.25)
