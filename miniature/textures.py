"""Stuff of the miniature: procedural textures, each a function of a random generator, a size and a coarseness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from miniature.words import stuff

Colour = tuple[float, float, float]
Texture = Callable[[np.random.Generator, int, float], np.ndarray]


def _noise(rng: np.random.Generator, size: int, scale: float, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Smooth noise [size, size] of unit variance; `scale` is its blob size in pixels, stretched down and across."""
    field = rng.standard_normal((size, size))
    field = ndimage.gaussian_filter(field, (scale * stretch[0], scale * stretch[1]), mode="wrap")
    return (field - field.mean()) / (field.std() + 1e-9)


def _shade(colour: Colour, tone: np.ndarray) -> np.ndarray:
    """One colour, lighter or darker by `tone` [H, W] around 0: [H, W, 3]."""
    return np.asarray(colour) * (1 + tone[..., None])


def _mix(a: Colour, b: Colour, amount: np.ndarray) -> np.ndarray:
    return np.asarray(a) * (1 - amount[..., None]) + np.asarray(b) * amount[..., None]


def _grid(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns in pixels, from a random start."""
    y, x = np.mgrid[0:size, 0:size].astype(float)
    return y + rng.uniform(0, 99), x + rng.uniform(0, 99)


def _cells(rng: np.random.Generator, size: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """A jittered Voronoi tiling: a random tone for each pixel's cell, and its distance to the next cell in pixels."""
    y, x = np.mgrid[0:size, 0:size].astype(float)
    n = int(np.ceil(size / step)) + 2
    points = (np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1) - 0.5).reshape(-1, 2) * step
    points += rng.uniform(-0.35, 0.35, points.shape) * step
    rows, columns = (np.clip((v / step).astype(int) + 1, 1, n - 2) for v in (y, x))
    near = np.stack([(rows + i) * n + columns + j for i in (-1, 0, 1) for j in (-1, 0, 1)])
    far = np.hypot(points[near, 0] - y, points[near, 1] - x)
    two = np.sort(far, 0)[:2]
    owner = np.take_along_axis(near, far.argmin(0)[None], 0)[0]
    return rng.standard_normal(n * n)[owner], (two[1] - two[0]) / 2


def _bricks(
    rng: np.random.Generator, size: int, height: float, width: float, gap: float, shift: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """A random tone for each brick, and where the mortar is."""
    y, x = _grid(rng, size)
    row = np.floor(y / height).astype(int)
    across = x / width + shift * (row % 2)
    column = np.floor(across).astype(int)
    tone = rng.standard_normal((row.max() + 1, column.max() + 1))[row, column]
    return tone, (y % height < gap) | ((across % 1) * width < gap)


def _masonry(height: float, width: float, gap: float, brick: Colour, mortar: Colour, shift: float = 0.5) -> Texture:
    """Bricks, tiles, planks: rows of one colour in slightly different tones between lines of another."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        tone, line = _bricks(rng, size, height * s, width * s, max(1.0, gap * s), shift)
        grain = 0.03 * _noise(rng, size, 1.2 * s, (0.6, 4))
        return np.where(line[..., None], mortar, _shade(brick, 0.09 * tone + grain))

    return draw


def _stripes(step: float, a: Colour, b: Colour, along: str, wave: float = 0.0, power: float = 1.0) -> Texture:
    """Parallel stripes, across the picture (`along` "x") or down it ("y"), soft and a little wavy."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        y, x = _grid(rng, size)
        place, stretch = (y, (0.6, 3)) if along == "x" else (x, (3, 0.6))
        phase = place / (step * s) + (wave * _noise(rng, size, 8 * s, stretch) if wave else 0)
        return _mix(a, b, (0.5 + 0.5 * np.sin(2 * np.pi * phase)) ** power)

    return draw


def _speckle(
    colour: Colour, fine: float, coarse: float, blob: float = 7, stretch: tuple[float, float] = (1, 1)
) -> Texture:
    """One colour with fine grain and broad patches."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        return _shade(colour, fine * _noise(rng, size, 0.6) + coarse * _noise(rng, size, blob * s, stretch))

    return draw


def _stones(step: float, colour: Colour, contrast: float, gap: float) -> Texture:
    """Irregular stones or leaves, darker towards their borders."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        tone, edge = _cells(rng, size, step * s)
        return _shade(colour, contrast * tone + np.clip(edge / (gap * s), 0, 1) * 0.5 - 0.4)

    return draw


def _strands(a: Colour, b: Colour, down: tuple[float, float], crossed: bool = False) -> Texture:
    """Blades or straws: thin long blobs, of one direction or of two."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        field = _noise(rng, size, s, down)
        if crossed:
            field = field + _noise(rng, size, s, down[::-1])
        return _mix(a, b, np.clip(0.5 + 0.28 * field, 0, 1))

    return draw


def _sky(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y = np.linspace(0, 1, size)[:, None].repeat(size, 1)
    cloud = np.clip(0.7 * _noise(rng, size, 11 * s, (0.6, 1.6)) - 0.1, 0, 1)[..., None]
    return _mix((0.30, 0.58, 0.92), (0.66, 0.84, 0.98), y) * (1 - cloud) + cloud * np.array([0.98, 0.98, 1.0])


def _roof(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(rng, size)
    u, v = (x / (14 * s) + 0.5 * (np.floor(y / (12 * s)) % 2)) % 1, (y / (12 * s)) % 1
    arc = v - np.sqrt(np.clip(1 - (2 * u - 1) ** 2, 0, 1)) * 0.85
    return _shade((0.78, 0.40, 0.25), np.where(np.abs(arc) < 0.13, -0.55, np.where(arc > 0, -0.22, 0.12 - 0.2 * v)))


def _check(a: Colour, b: Colour, step: float) -> Texture:
    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        y, x = _grid(rng, size)
        dark = (np.floor(y / (step * s)) + np.floor(x / (step * s))) % 2
        return _mix(a, b, dark) * (1 + 0.02 * _noise(rng, size, 1)[..., None])

    return draw


def _plaid(base: Colour, line: Colour, step: float) -> Texture:
    """Broad and thin bands crossing, as in a woven blanket."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        bands = [
            ((v / (step * s)) % 1 < 0.38) * 0.4 + (np.abs((v / (step * s)) % 1 - 0.7) < 0.05) * 0.5
            for v in _grid(rng, size)
        ]
        return _mix(base, line, np.clip(bands[0] + bands[1], 0, 1))

    return draw


def _lines(ground: Texture, colour: Colour, step: float, width: float, axes: str, dash: float = 1.0) -> Texture:
    """Thin lines over another texture: across ("x"), down ("y"), slanting ("d"); `dash` of each is drawn."""

    def draw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
        y, x = _grid(rng, size)
        places = {"x": (y, x), "y": (x, y), "d": (x + y, x - y), "e": (x - y, x + y)}
        on = np.zeros((size, size), bool)
        for axis in axes:
            across, along = places[axis]
            on |= (across % (step * s) < width * s) & (along % (step * s * 0.6) <= dash * step * s * 0.6)
        return np.where(on[..., None], colour, ground(rng, size, s))

    return draw


def _ornament(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(rng, size)
    v, u = np.abs(y % (20 * s) / (10 * s) - 1), np.abs(x % (20 * s) / (10 * s) - 1)
    ring = (u + v) % 0.5
    out = _mix((0.62, 0.13, 0.17), (0.93, 0.74, 0.42), (ring < 0.13).astype(float))
    return np.where((u + v < 0.3)[..., None], (0.13, 0.22, 0.45), out) * (1 + 0.04 * _noise(rng, size, 0.8)[..., None])


def _railroad(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(rng, size)
    out = _stones(5, (0.55, 0.50, 0.46), 0.2, 1.5)(rng, size, s)
    out = np.where((x % (10 * s) < 4 * s)[..., None], (0.36, 0.23, 0.14), out)
    rail = y % (26 * s)
    return np.where(((rail < 2.2 * s) | (np.abs(rail - 12 * s) < 1.1 * s))[..., None], (0.80, 0.82, 0.86), out)


def _quilt(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(rng, size)
    v, u = np.abs(np.sin(np.pi * (x + y) / (22 * s))), np.abs(np.sin(np.pi * (x - y) / (22 * s)))
    return _shade((0.80, 0.70, 0.92), 0.30 * (np.minimum(u, v) ** 0.5) - 0.25)


_ASPHALT = _speckle((0.30, 0.31, 0.33), 0.10, 0.05)
_LAWN = _strands((0.16, 0.42, 0.12), (0.45, 0.72, 0.22), (2.2, 0.5))
_TEXTURES: dict[str, Texture] = {
    "sky": _sky,
    "ceiling": _masonry(26, 26, 1.2, (0.95, 0.95, 0.93), (0.70, 0.71, 0.72), 0),
    "wall": _stripes(15, (0.93, 0.88, 0.74), (0.85, 0.77, 0.60), "y", 0, 3),
    "brick wall": _masonry(10, 22, 1.8, (0.68, 0.27, 0.20), (0.82, 0.78, 0.72)),
    "stone wall": _stones(17, (0.62, 0.58, 0.52), 0.14, 3),
    "tile wall": _masonry(9, 9, 1.2, (0.55, 0.80, 0.86), (0.96, 0.98, 0.98), 0),
    "wood": _lines(_strands((0.62, 0.40, 0.20), (0.80, 0.58, 0.34), (9, 0.7)), (0.35, 0.20, 0.10), 15, 1.2, "y"),
    "curtain": _stripes(12, (0.45, 0.10, 0.32), (0.90, 0.55, 0.68), "y", 0.15),
    "window blind": _stripes(7, (0.97, 0.97, 0.95), (0.55, 0.58, 0.62), "x", 0, 4),
    "roof": _roof,
    "bush": _stones(8, (0.13, 0.38, 0.17), 0.38, 2.5),
    "net": _lines(_speckle((0.36, 0.42, 0.38), 0.03, 0.08), (0.90, 0.92, 0.92), 11, 1.3, "de"),
    "sea": _stripes(13, (0.03, 0.16, 0.42), (0.30, 0.55, 0.80), "x", 0.55, 4),
    "river": _stripes(9, (0.20, 0.42, 0.38), (0.45, 0.66, 0.55), "y", 0.5),
    "water": _stripes(9, (0.25, 0.65, 0.80), (0.62, 0.90, 0.94), "x", 0.35),
    "snow": _speckle((0.92, 0.95, 0.99), 0.015, 0.03, 10),
    "ice": _lines(_speckle((0.70, 0.87, 0.95), 0.01, 0.06, 12), (0.95, 0.99, 1.0), 27, 1.2, "de", 0.7),
    "field": _stripes(8, (0.55, 0.42, 0.16), (0.72, 0.75, 0.28), "x", 0.08, 1.5),
    "grass": _LAWN,
    "playing field": _lines(
        _stripes(36, (0.18, 0.55, 0.24), (0.27, 0.66, 0.32), "y", 0, 0.3), (0.96, 0.98, 0.96), 48, 2, "xy"
    ),
    "hay": _strands((0.62, 0.46, 0.14), (0.97, 0.86, 0.45), (5, 0.6), crossed=True),
    "sand": _speckle((0.90, 0.79, 0.55), 0.04, 0.06, 7, (0.5, 2.5)),
    "earth": _speckle((0.45, 0.30, 0.19), 0.10, 0.16, 2.5),
    "gravel": _stones(6, (0.86, 0.83, 0.78), 0.16, 1.2),
    "path": _stones(13, (0.64, 0.60, 0.66), 0.10, 4),
    "road": _lines(_ASPHALT, (0.96, 0.82, 0.25), 44, 2.6, "x", 0.55),
    "runway": _lines(_speckle((0.20, 0.21, 0.24), 0.05, 0.04), (0.95, 0.95, 0.95), 34, 5, "y", 0.6),
    "railroad": _railroad,
    "platform": _lines(_masonry(18, 18, 1, (0.70, 0.70, 0.72), (0.58, 0.58, 0.60), 0), (0.98, 0.83, 0.15), 50, 6, "x"),
    "sidewalk": _masonry(15, 15, 1.4, (0.74, 0.73, 0.70), (0.52, 0.51, 0.49)),
    "floor": _check((0.93, 0.92, 0.88), (0.36, 0.45, 0.52), 13),
    "wooden floor": _masonry(14, 60, 1.2, (0.72, 0.49, 0.28), (0.40, 0.25, 0.13), 0.37),
    "carpet": _ornament,
    "bedclothes": _quilt,
    "blanket": _plaid((0.75, 0.16, 0.16), (0.13, 0.20, 0.32), 24),
    "towel": _stripes(17, (0.98, 0.98, 0.96), (0.16, 0.62, 0.68), "x", 0, 2.5),
    "cloth": _check((0.96, 0.95, 0.92), (0.88, 0.36, 0.36), 7),
    "cardboard": _stripes(5, (0.72, 0.53, 0.32), (0.80, 0.63, 0.42), "y"),
    "paper": _lines(_speckle((0.98, 0.98, 0.95), 0.006, 0.0), (0.45, 0.60, 0.86), 11, 1, "x"),
}


def texture(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One patch of stuff, uint8 [size, size, 3]; coarseness, hue and brightness vary with the generator."""
    picture = _TEXTURES[name](rng, size, float(rng.uniform(0.8, 1.5)))
    picture = picture * rng.uniform(0.88, 1.1) * rng.uniform(0.94, 1.06, 3)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def texture_bank(seed: int, variants: int, size: int) -> torch.Tensor:
    """`variants` patches of every stuff: uint8 [stuff, variants, 3, size, size]."""
    patches = [
        texture(name, np.random.default_rng([seed, i, j]), size)
        for i, name in enumerate(stuff())
        for j in range(variants)
    ]
    stacked = np.stack(patches).transpose(0, 3, 1, 2).reshape(len(stuff()), variants, 3, size, size)
    return torch.from_numpy(np.ascontiguousarray(stacked))
