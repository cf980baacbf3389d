"""Stuff of the miniature world: procedural textures with a name, each a function of a random generator and a size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

Texture = Callable[[np.random.Generator, int, float], np.ndarray]


def _noise(rng: np.random.Generator, size: int, scale: float, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Smooth noise [size, size] of unit variance; `scale` is its blob size in pixels, stretched down and across."""
    field = rng.standard_normal((size, size))
    field = ndimage.gaussian_filter(field, (scale * stretch[0], scale * stretch[1]), mode="wrap")
    return (field - field.mean()) / (field.std() + 1e-9)


def _shade(colour: tuple[float, float, float], tone: np.ndarray) -> np.ndarray:
    """One colour, lighter or darker by `tone` [H, W] around 0 -> [H, W, 3]."""
    return np.asarray(colour)[None, None] * (1 + tone[..., None])


def _mix(a: tuple[float, ...], b: tuple[float, ...], amount: np.ndarray) -> np.ndarray:
    return np.asarray(a) * (1 - amount[..., None]) + np.asarray(b) * amount[..., None]


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    return y, x


def _cells(rng: np.random.Generator, size: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """A jittered Voronoi tiling: index of each pixel's cell, and distance to the border between cells in pixels."""
    y, x = _grid(size)
    n = int(np.ceil(size / step)) + 2
    points = (np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1) - 0.5).reshape(-1, 2) * step
    points += rng.uniform(-0.35, 0.35, points.shape) * step
    rows = np.clip((y / step).astype(int) + 1, 1, n - 2)
    cols = np.clip((x / step).astype(int) + 1, 1, n - 2)
    near = np.stack([(rows + i) * n + cols + j for i in (-1, 0, 1) for j in (-1, 0, 1)])
    far = np.hypot(points[near, 0] - y, points[near, 1] - x)
    order = np.sort(far, 0)
    return np.take_along_axis(near, far.argmin(0)[None], 0)[0], (order[1] - order[0]) / 2


# Stuff by name, grass to wire_fence: a picture [size, size, 3] in 0..1, its pattern `s` times as coarse.
def grass(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    return _mix((0.16, 0.42, 0.12), (0.45, 0.72, 0.22), 0.5 + 0.28 * _noise(rng, size, s, (2.2, 0.5)))


def water(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, _ = _grid(size)
    wave = np.sin(2 * np.pi * (y / (9 * s) + 0.35 * _noise(rng, size, 6 * s, (0.6, 2.0))))
    return _mix((0.08, 0.35, 0.62), (0.45, 0.75, 0.88), np.clip(0.35 + 0.4 * wave, 0, 1) ** 1.5)


def _masonry(
    rng: np.random.Generator, size: int, height: float, width: float, gap: float, offset: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Brick layout: per-pixel random tone of its brick, and whether it is mortar."""
    y, x = _grid(size)
    y, x = y + rng.uniform(0, height), x + rng.uniform(0, width)
    row = np.floor(y / height).astype(int)
    across = x / width + offset * (row % 2)
    column = np.floor(across).astype(int)
    tone = rng.standard_normal((row.max() + 1, column.max() + 1))[row, column]
    return tone, (y % height < gap) | ((across % 1) * width < gap)


def brick_wall(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    tone, mortar = _masonry(rng, size, 10 * s, 22 * s, max(1.5, 1.8 * s))
    return np.where(
        mortar[..., None], (0.82, 0.78, 0.72), _shade((0.68, 0.27, 0.20), 0.12 * tone + 0.05 * _noise(rng, size, 0.7))
    )


def sand(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    return _shade((0.88, 0.76, 0.52), 0.05 * _noise(rng, size, 0.6) + 0.06 * _noise(rng, size, 7 * s, (0.5, 2.5)))


def sky(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, _ = _grid(size)
    cloud = np.clip(0.7 * _noise(rng, size, 11 * s, (0.6, 1.6)) - 0.1, 0, 1)
    base = _mix((0.30, 0.58, 0.92), (0.66, 0.84, 0.98), np.clip(y / size, 0, 1))
    return base * (1 - cloud[..., None]) + cloud[..., None] * np.array([0.98, 0.98, 1.0])


def wooden_floor(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    tone, gap = _masonry(rng, size, 14 * s, 60 * s, max(1.0, 1.2 * s), 0.37)
    grain = _noise(rng, size, 1.2 * s, (0.6, 8))
    return _shade((0.70, 0.47, 0.27), 0.10 * tone + 0.07 * grain - 0.45 * gap)


def cobblestones(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    cell, edge = _cells(rng, size, 14 * s)
    tone = rng.standard_normal(cell.max() + 1)[cell]
    return _shade((0.56, 0.55, 0.55), 0.12 * tone + np.clip(edge / (4 * s), 0, 1) * 0.45 - 0.40)


def snow(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    glitter = rng.random((size, size)) > 0.985
    return _shade((0.90, 0.93, 0.97), 0.03 * _noise(rng, size, 9 * s) - 0.18 * glitter)


def roof_tiles(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(size)
    height, width = 12 * s, 14 * s
    y, x = y + rng.uniform(0, height), x + rng.uniform(0, width)
    row = np.floor(y / height)
    u, v = (x / width + 0.5 * (row % 2)) % 1, (y / height) % 1
    arc = v - np.sqrt(np.clip(1 - (2 * u - 1) ** 2, 0, 1)) * 0.85
    return _shade((0.78, 0.40, 0.25), np.where(np.abs(arc) < 0.13, -0.55, np.where(arc > 0, -0.22, 0.12 - 0.2 * v)))


def tiled_floor(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(size)
    step = 13 * s
    dark = (np.floor((y + rng.uniform(0, step)) / step) + np.floor((x + rng.uniform(0, step)) / step)) % 2
    return _mix((0.93, 0.92, 0.88), (0.36, 0.45, 0.52), dark) * (1 + 0.02 * _noise(rng, size, 1)[..., None])


def foliage(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    cell, edge = _cells(rng, size, 8 * s)
    tone = rng.standard_normal(cell.max() + 1)[cell]
    return _shade((0.13, 0.38, 0.17), 0.38 * tone + np.clip(edge / (2.5 * s), 0, 1) * 0.6 - 0.2)


def lava(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    _, edge = _cells(rng, size, 18 * s)
    glow = np.exp(-np.clip(edge + 1.2 * _noise(rng, size, 2 * s), 0, None) / (2.2 * s))
    return _mix((0.20, 0.07, 0.06), (1.0, 0.62, 0.10), glow)


def straw(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    strands = _noise(rng, size, 0.8 * s, (5, 0.6)) + _noise(rng, size, 0.8 * s, (0.6, 5))
    return _mix((0.62, 0.46, 0.14), (0.97, 0.86, 0.45), np.clip(0.5 + 0.28 * strands, 0, 1))


def gravel(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    cell, edge = _cells(rng, size, 6 * s)
    palette = rng.uniform(0.45, 0.95, cell.max() + 1)[cell]
    return _shade((0.72, 0.69, 0.64), palette - 0.75 - 0.35 * (edge < 0.9))


def striped_curtain(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    _, x = _grid(size)
    phase = 2 * np.pi * (x / (12 * s) + 0.15 * _noise(rng, size, 12 * s, (3, 0.6)))
    return _mix((0.50, 0.12, 0.35), (0.93, 0.62, 0.72), 0.5 + 0.5 * np.sin(phase))


def dotted_wallpaper(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(size)
    step = 12 * s
    y, x = y + rng.uniform(0, step), x + rng.uniform(0, step)
    v, u = y % step - step / 2, (x + step / 2 * (np.floor(y / step) % 2)) % step - step / 2
    return _mix((0.95, 0.90, 0.78), (0.20, 0.55, 0.55), np.clip(0.30 * step - np.hypot(u, v) + 0.5, 0, 1))


def marble(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    vein = np.abs(_noise(rng, size, 9 * s) + 0.35 * _noise(rng, size, 3 * s))
    return _mix((0.62, 0.64, 0.70), (0.95, 0.94, 0.93), np.clip(vein * 2.2, 0, 1))


def wire_fence(rng: np.random.Generator, size: int, s: float) -> np.ndarray:
    y, x = _grid(size)
    step = 12 * s
    a, b = (x + y + rng.uniform(0, step)) % step, (x - y + rng.uniform(0, step)) % step
    wire = (np.minimum(a, step - a) < 1.0 * s) | (np.minimum(b, step - b) < 1.0 * s)
    return np.where(wire[..., None], (0.80, 0.82, 0.85), _shade((0.40, 0.48, 0.40), 0.08 * _noise(rng, size, 6 * s)))


# from what is seen high up in a picture to what lies below
_TEXTURES: dict[str, Texture] = {
    f.__name__.replace("_", " "): f
    for f in (
        sky, brick_wall, striped_curtain, dotted_wallpaper, foliage, roof_tiles, wire_fence, water, grass, sand, snow,
        wooden_floor, tiled_floor, cobblestones, marble, straw, gravel, lava,
    )
}  # fmt: skip
STUFF: tuple[str, ...] = tuple(_TEXTURES)


def texture(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One patch of stuff, uint8 [size, size, 3]: the grain's scale, hue and brightness vary with the generator."""
    if name not in _TEXTURES:
        raise ValueError(f"unknown stuff {name!r}; the world has {', '.join(STUFF)}")
    picture = _TEXTURES[name](rng, size, float(rng.uniform(0.8, 1.5)))
    picture = picture * rng.uniform(0.88, 1.1) * rng.uniform(0.94, 1.06, 3)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def texture_bank(seed: int, variants: int, size: int) -> torch.Tensor:
    """`variants` patches of every stuff: uint8 [len(STUFF), variants, 3, size, size]."""
    seeds = np.random.SeedSequence(seed).spawn(len(STUFF) * variants)
    patches = [
        texture(name, np.random.default_rng(seeds[i * variants + j]), size)
        for i, name in enumerate(STUFF)
        for j in range(variants)
    ]
    stacked = np.stack(patches).transpose(0, 3, 1, 2).reshape(len(STUFF), variants, 3, size, size)
    return torch.from_numpy(np.ascontiguousarray(stacked))
