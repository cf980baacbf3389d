"""Paints scenes: a batch of descriptions becomes pictures, and for each pixel the sticker and the stuff that it shows.

The same painter serves CLIP's training pictures (small, hundreds at once) and the data sets (larger, one at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from miniature.drawings import LEVELS, sprites
from miniature.scenes import COLOURS, STYLES, Ground, Scene, Sticker, arrange, sticker_of
from miniature.textures import texture_bank
from miniature.words import GROUNDS, drawn_by, stuff


def _inks(things: Sequence[Sticker], styles: Sequence[str]) -> Tensor:
    """Colours of rim, body and ink for each sticker: [n, 3, 3].

    *Sticker* has a white rim, bright colours and dark ink; *print* a dark rim and muted colours; *chalk* bright lines
    around and in dark colours.  A flat one has its colour and its ink's, whatever the style.
    """
    base = np.array([COLOURS[t.colour] for t in things], np.float32)
    shade = np.array([t.shade for t in things], np.float32)[:, None]
    base = np.clip(base * (0.85 + 0.3 * shade), 0, 1)
    light = base @ np.array([0.3, 0.6, 0.1], np.float32)[:, None]
    white, dark_ink = np.where(light < 0.88, 1.0, 0.35), np.where(light > 0.3, 0.22 * base, 0.85 + 0.15 * base)
    muted = 0.6 * base + 0.4 * (0.5 * base.mean(1, keepdims=True) + 0.38)
    grey_ink = np.where(light < 0.25, 0.85, 0.15 + 0.1 * (1 - shade))
    bright, dark = np.clip(0.30 + 0.8 * base, 0, 1), 0.10 + 0.32 * base
    of_styles = ((white, base, dark_ink), (0.20, muted, grey_ink), (bright, dark, bright))
    colours = np.stack([[np.broadcast_to(part, base.shape) for part in parts] for parts in of_styles])
    chosen = colours[[STYLES.index(style) for style in styles], :, np.arange(len(things))]
    for i, (t, style) in enumerate(zip(things, styles)):
        if t.ink:
            chosen[i, 1:] = COLOURS[t.colour], COLOURS[t.ink]
        if t.bare:  # in its own colour, in chalk the lines'
            chosen[i, 2] = chosen[i, 2 if style == "chalk" and not t.ink else 1]
    return torch.from_numpy(chosen.astype(np.float32))


def _coverage(things: Sequence[Sticker], height: int, width: int) -> Tensor:
    """Rim, body and ink coverage of each sticker on the canvas: [n, 3, H, W] in [0, 1]."""
    unit = min(height, width)
    theta, level = np.empty((len(things), 2, 3), np.float32), np.empty(len(things), int)
    for i, t in enumerate(things):
        c, s, size = np.cos(np.radians(t.angle)), np.sin(np.radians(t.angle)), t.size * unit * 1.15
        sx, sy = size * t.aspect * (-1 if t.mirrored else 1), size / t.aspect
        # from the canvas's [-1, 1] coordinates to the sprite's: undo the shift, the rotation, the scale
        to_pixels = np.array([[width / 2, 0, width / 2 - t.x * unit], [0, height / 2, height / 2 - t.y * unit]])
        theta[i] = np.array([[2 * c / sx, 2 * s / sx], [-2 * s / sy, 2 * c / sy]]) @ to_pixels
        level[i] = min(LEVELS, key=lambda edge: abs(np.log(edge / size)))
    out = torch.empty(len(things), 3, height, width)
    rows = torch.tensor([t.row for t in things])
    for edge in LEVELS:
        chosen = torch.from_numpy(np.flatnonzero(level == edge))
        if len(chosen):
            grid = F.affine_grid(torch.from_numpy(theta)[chosen], [len(chosen), 3, height, width], align_corners=False)
            out[chosen] = F.grid_sample(sprites().levels[edge][rows[chosen]], grid, align_corners=False)
    return out


def _pale(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """A ground without stuff [3, H, W]: one pale colour, or one into another."""
    above, below = (rng.uniform(0.7, 1.0) + rng.uniform(-0.15, 0.1, (3, 1, 1)) for _ in range(2))
    down = np.linspace(0, float(rng.random() < 0.5), height)[:, None]
    return torch.from_numpy(np.clip(above + down * (below - above), 0, 1)).float().expand(3, height, width)


def _regions(ground: Ground, rng: np.random.Generator, height: int, width: int) -> Tensor:
    """Which of its stuff each pixel shows, long [H, W]: what is nearest, give or take a smooth wobble."""
    wobble = torch.from_numpy(rng.standard_normal((1, len(ground.stuff), 5, 5), dtype=np.float32))
    wobble = F.interpolate(wobble, size=(height, width), mode="bicubic", align_corners=True)[0]
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    across = 0.25 if ground.beside else 0.02 if ground.banded else 0.6
    loose = 0.07 if not ground.banded else 0.0 if ground.straight else 0.025
    centre = torch.tensor(ground.centres, dtype=torch.float32)[:, :, None, None]
    nearness = loose * wobble - across * (x - centre[:, 0]) ** 2 - (y - centre[:, 1]) ** 2
    region = torch.zeros(height, width, dtype=torch.long)
    for i in range(1, len(ground.stuff)):  # an argmax, which over few rows is slow
        region[nearness[i] > nearness[:i].amax(0)] = i
    return region


def _ground(scene: Scene, bank: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """One scene's textures [3, H, W] in [0, 1] and each pixel's region [H, W] (index into its stuff)."""
    rng, names = np.random.default_rng(scene.seed), list(stuff())
    region = torch.zeros(height, width, dtype=torch.long)
    if not scene.ground.stuff:
        return _pale(rng, height, width), region
    patches = []
    for name in scene.ground.stuff:
        variant, top, left = rng.integers((bank.shape[1], bank.shape[3] - height + 1, bank.shape[4] - width + 1))
        patches.append(bank[names.index(name), variant, :, top : top + height, left : left + width])
    if len(patches) > 1:
        region = _regions(scene.ground, rng, height, width)
    return torch.stack(patches).gather(0, region[None, None].expand(1, 3, -1, -1))[0] / 255.0, region


def paint(scenes: Sequence[Scene], bank: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scenes: pictures float [B, 3, H, W] in [0, 1]; the front sticker of each pixel, long [B, H, W] (index into
    scene.things, -1 none); and its stuff, long [B, H, W] (index into scene.ground.stuff), hidden or not.

    `bank` is a `texture_bank` whose patches are at least H x W.  Deterministic given the scenes and the bank.
    """
    grounds, regions = (torch.stack(part) for part in zip(*(_ground(s, bank, height, width) for s in scenes)))
    style = torch.tensor([STYLES.index(s.style) for s in scenes])
    picture, owner = _in_style(grounds, regions, style), torch.full_like(regions, -1)
    if any(scene.things for scene in scenes):
        _lay(scenes, picture, owner)
    return _finish(picture, style, sum(s.seed for s in scenes)), owner, regions


def _in_style(picture: Tensor, regions: Tensor, style: Tensor) -> Tensor:
    """The grounds, greyer in print and dark in chalk; regions end in a darker line, in chalk in a lighter one."""
    prints, chalks = (style == 1).nonzero()[:, 0], (style == 2).nonzero()[:, 0]
    picture[prints] = 0.5 * picture[prints] + 0.5 * (0.42 + 0.52 * picture[prints].mean(1, keepdim=True))
    picture[chalks] = picture[chalks] * torch.tensor([0.28, 0.31, 0.44])[:, None, None] + 0.02
    edge = torch.zeros_like(regions, dtype=torch.bool)
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edge[:, :, 1:] |= regions[:, :, 1:] != regions[:, :, :-1]
    style = style[:, None, None, None]
    line = torch.where(style == 2, picture + 0.25, picture * torch.tensor([0.55, 0.35, 1.0])[style])
    return torch.where(edge[:, None], line, picture)


def _lay(scenes: Sequence[Scene], picture: Tensor, owner: Tensor) -> None:
    """Lay the stickers onto the pictures, each with its shadow, from back to front; `owner` becomes the front one."""
    height, width = picture.shape[2:]
    scene_of = torch.tensor([b for b, scene in enumerate(scenes) for _ in scene.things])
    layer_of = torch.tensor([layer for scene in scenes for layer in range(len(scene.things))])
    things = [t for scene in scenes for t in scene.things]
    colours = _inks(things, [scenes[int(b)].style for b in scene_of])[..., None, None]
    cover = _coverage(things, height, width)
    cover[torch.tensor([t.ink is not None for t in things]), 0] = 0.0
    bare = torch.tensor([t.bare for t in things])
    if bare.any():
        solid = sprites().solid[[t.row for t in things]][bare, None, None]
        _, body, ink = cover[bare].unbind(1)
        cover[bare, :2], cover[bare, 2] = 0.0, torch.where(solid, body * (1 - ink), ink)
    near = max(1, round(min(height, width) / 50))
    for layer in range(int(layer_of.max()) + 1):
        index = (layer_of == layer).nonzero()[:, 0]
        b, alpha, colour = scene_of[index], cover[index], colours[index]
        canvas = picture[b]
        canvas *= 1 - 0.35 * _blur(alpha[:, :1].roll((near, near), (2, 3)), near)
        for part in range(3):
            canvas += alpha[:, part : part + 1] * (colour[:, part] - canvas)
        picture[b] = canvas
        owner[b] = torch.where(alpha.amax(1) > 0.5, layer, owner[b])


def _finish(picture: Tensor, style: Tensor, seed: int) -> Tensor:
    """What the paper does to a print (dots, grain) and the dark to chalk (a glow)."""
    prints, chalks = (style == 1).nonzero()[:, 0], (style == 2).nonzero()[:, 0]
    height, width = picture.shape[2:]
    generator = torch.Generator().manual_seed(seed % 2**31)
    if len(prints):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pitch = 2 * np.pi / (3.5 * max(1.0, min(height, width) / 128))
        grain = torch.randn(len(prints), 1, height, width, generator=generator)
        picture[prints] = picture[prints] * (1 + 0.06 * torch.sin(x * pitch) * torch.sin(y * pitch)) + 0.03 * grain
    if len(chalks):
        radius = max(1, round(min(height, width) / 24))
        picture[chalks] += 0.8 * _blur((picture[chalks] - 0.45).clamp(min=0), radius)
    return picture.clamp_(0, 1)


def _blur(picture: Tensor, radius: int) -> Tensor:
    """The mean of a square around each pixel, rows first."""
    rows = F.avg_pool2d(picture, (1, 2 * radius + 1), 1, (0, radius))
    return F.avg_pool2d(rows, (2 * radius + 1, 1), 1, (radius, 0))


def render_scene(
    words: Sequence[str],
    artist: str = "nora",
    style: str = "sticker",
    colours: Sequence[str] | None = None,
    seed: int = 0,
    size: tuple[int, int] = (128, 160),
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A picture of things and stuff by name: things spread out, stuff one above the other (grass, if none is named).

    Args:
        colours: of the things, in their order; None: usual ones.
        size: height and width in pixels.
    Returns:
        The picture, uint8 [H, W, 3], and each word's pixels, bool [H, W].
    Raises:
        ValueError: the artist has drawn no such thing, or there is no such stuff, style or colour.
    """
    grounds = [w for w in words if w in stuff()] or ["grass"]
    names = [w for w in words if w not in grounds]
    for what, given, known in (
        ("thing by this artist, nor stuff", names, drawn_by(artist)),
        ("style", [style], STYLES),
        ("colour", colours or [], tuple(COLOURS)),
    ):
        if unknown := [x for x in given if x not in known]:
            raise ValueError(f"{unknown[0]!r} is no {what} of the miniature's; known are {', '.join(known)}")
    rng = np.random.default_rng([seed, 23])
    chosen: Sequence[str | None] = colours or [None] * len(names)
    most = min(0.6, 0.95 / max(1, len(names)) ** 0.5)
    things = [
        replace(sticker_of(rng, name, artist, colour), size=float(rng.uniform(0.75, 1) * most))
        for name, colour in zip(names, chosen, strict=True)
    ]
    height, width = (side / min(size) for side in size)
    things = arrange(rng, things, "table", width, height)
    level = {name: i for parts in reversed(GROUNDS.values()) for i, part in enumerate(parts) for name in part}
    grounds.sort(key=lambda name: level.get(name, 1))  # the sky above
    centres = tuple((float(rng.random()), (i + 0.5) / len(grounds)) for i in range(len(grounds)))
    scene = Scene(style, Ground(tuple(grounds), centres), tuple(things), int(rng.integers(2**31)))
    picture, owner, regions = paint_one(scene, bank_of(max(size)), *size)
    masks = {name: np.zeros(size, bool) for name in words}
    for i, thing in enumerate(things):
        masks[thing.name] |= owner == i
    return picture, masks | {name: (owner < 0) & (regions == i) for i, name in enumerate(grounds)}


def paint_one(scene: Scene, bank: Tensor, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `paint`, of one scene: uint8 [H, W, 3], int [H, W] and int [H, W]."""
    picture, owner, regions = (out[0] for out in paint([scene], bank, height, width))
    return to_uint8(picture), owner.numpy(), regions.numpy()


@cache
def bank_of(edge: int) -> Tensor:
    """Textures for pictures that nobody trains on, of that many pixels a side at most."""
    return texture_bank(9, 2, edge)


def to_uint8(picture: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] as uint8 [H, W, 3]."""
    return (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
