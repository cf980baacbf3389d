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
from miniature.scenes import COLOURS, GROUNDS, STYLES, Scene, Sticker, arrange, sticker_of
from miniature.textures import texture_bank
from miniature.words import drawn_by, stuff


def _inks(things: Sequence[Sticker], styles: Sequence[str]) -> Tensor:
    """Colours of rim, body and ink for each sticker: [n, 3, 3].

    *Sticker* has a white rim, bright colours and dark ink; *print* a dark rim and muted colours; *chalk* bright lines
    around and in dark colours.
    """
    base = np.array([COLOURS[t.colour] for t in things], np.float32)
    shade = np.array([t.shade for t in things], np.float32)[:, None]
    style = np.array([STYLES.index(s) for s in styles])[:, None]
    base = np.clip(base * (0.85 + 0.3 * shade), 0, 1)
    light = base @ np.array([0.3, 0.6, 0.1], np.float32)[:, None]
    ink = np.where(light > 0.3, 0.22 * base, 0.85 + 0.15 * base)
    rim = np.where(light < 0.88, 1.0, 0.35) * np.ones_like(base)
    muted = 0.6 * base + 0.4 * (0.5 * base.mean(1, keepdims=True) + 0.38)
    dark = 0.10 + 0.32 * base
    bright = np.clip(0.30 + 0.8 * base, 0, 1)
    rims, bodies, inks = (
        np.where(style == 0, a, np.where(style == 1, b, c))
        for a, b, c in (
            (rim, np.full_like(base, 0.20), bright),
            (base, muted, dark),
            (ink, 0.15 + 0.1 * (1 - shade) + 0 * base, bright),
        )
    )
    pale = (style == 1) & (light < 0.25)
    inks = np.where(pale, 0.85, inks)
    return torch.from_numpy(np.stack([rims, bodies, inks], 1).astype(np.float32))


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


def _ground(scene: Scene, bank: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """One scene's textures [3, H, W] in [0, 1] and each pixel's region [H, W] (index into scene.stuff)."""
    rng = np.random.default_rng(scene.seed)
    if not scene.stuff:
        above, below = (rng.uniform(0.7, 1.0) + rng.uniform(-0.15, 0.1, (3, 1, 1)) for _ in range(2))
        down = np.linspace(0, float(rng.random() < 0.5), height)[:, None]  # one pale colour, or one into another
        pale = torch.from_numpy(np.clip(above + down * (below - above), 0, 1)).float()
        return pale.expand(3, height, width), torch.zeros(height, width, dtype=torch.long)
    order = list(stuff())
    patches = []
    for name in scene.stuff:
        variant, top, left = rng.integers((bank.shape[1], bank.shape[3] - height + 1, bank.shape[4] - width + 1))
        patches.append(bank[order.index(name), variant, :, top : top + height, left : left + width])
    if len(patches) == 1:
        return patches[0] / 255.0, torch.zeros(height, width, dtype=torch.long)
    wobble = torch.from_numpy(rng.standard_normal((1, len(patches), 5, 5), dtype=np.float32))
    wobble = F.interpolate(wobble, size=(height, width), mode="bicubic", align_corners=True)[0]
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    across, loose = (0.02, 0.0 if scene.straight else 0.025) if scene.banded else (0.6, 0.07)
    centre = torch.tensor(scene.centres, dtype=torch.float32)[:, :, None, None]
    nearness = loose * wobble - across * (x - centre[:, 0]) ** 2 - (y - centre[:, 1]) ** 2
    region = torch.zeros(height, width, dtype=torch.long)
    for i in range(1, len(patches)):  # an argmax, which over few rows is slow
        region[nearness[i] > nearness[:i].amax(0)] = i
    return torch.stack(patches).gather(0, region[None, None].expand(1, 3, -1, -1))[0] / 255.0, region


def paint(scenes: Sequence[Scene], bank: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scenes: pictures float [B, 3, H, W] in [0, 1]; the front sticker of each pixel, long [B, H, W] (index into
    scene.things, -1 none); and its stuff, long [B, H, W] (index into scene.stuff), hidden or not.

    `bank` is a `texture_bank` whose patches are at least H x W.  Deterministic given the scenes and the bank.
    """
    grounds = [_ground(scene, bank, height, width) for scene in scenes]
    picture, regions = torch.stack([g[0] for g in grounds]), torch.stack([g[1] for g in grounds])
    edge = torch.zeros_like(regions, dtype=torch.bool)
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edge[:, :, 1:] |= regions[:, :, 1:] != regions[:, :, :-1]
    style = torch.tensor([STYLES.index(s.style) for s in scenes])
    prints, chalks = (style == 1).nonzero()[:, 0], (style == 2).nonzero()[:, 0]
    picture[prints] = 0.5 * picture[prints] + 0.5 * (0.42 + 0.52 * picture[prints].mean(1, keepdim=True))
    picture[chalks] = picture[chalks] * torch.tensor([0.28, 0.31, 0.44])[:, None, None] + 0.02
    line = torch.tensor([0.55, 0.35, 1.0])[style][
        :, None, None, None
    ]  # regions end in a darker line, in chalk a lighter
    picture = torch.where(
        edge[:, None], torch.where(style[:, None, None, None] == 2, picture + 0.25, picture * line), picture
    )

    owner = torch.full_like(regions, -1)
    things = [t for s in scenes for t in s.things]
    if things:
        scene_of = torch.from_numpy(np.repeat(np.arange(len(scenes)), [len(s.things) for s in scenes]))
        layer_of = torch.from_numpy(np.concatenate([np.arange(len(s.things)) for s in scenes]).astype(int))
        colours = _inks(things, [scenes[int(b)].style for b in scene_of])[..., None, None]
        cover = _coverage(things, height, width)
        bare = torch.tensor([t.bare for t in things])
        if bare.any():
            solid = sprites().solid[[t.row for t in things]][bare, None, None]
            _, body, ink = cover[bare].unbind(1)
            cover[bare, :2], cover[bare, 2] = 0.0, torch.where(solid, body * (1 - ink), ink)
            colours[bare, 2] = colours[bare].amax(1)  # of body and ink the brighter, which chalk's lines are
        near = max(1, round(min(height, width) / 50))
        for layer in range(int(layer_of.max()) + 1):  # back to front
            index = (layer_of == layer).nonzero()[:, 0]
            b, alpha, colour = scene_of[index], cover[index], colours[index]
            canvas = picture[b]
            canvas *= 1 - 0.35 * _blur(alpha[:, :1].roll((near, near), (2, 3)), near)
            for part in range(3):
                canvas += alpha[:, part : part + 1] * (colour[:, part] - canvas)
            picture[b] = canvas
            owner[b] = torch.where(alpha.amax(1) > 0.5, layer, owner[b])
    return _finish(picture, prints, chalks, sum(s.seed for s in scenes)), owner, regions


def _finish(picture: Tensor, prints: Tensor, chalks: Tensor, seed: int) -> Tensor:
    """What the paper does to a print (dots, grain) and the dark to chalk (a glow)."""
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
    rng, unit = np.random.default_rng([seed, 23]), min(size)
    most = min(0.6, 0.95 / max(1, len(names)) ** 0.5)
    chosen: list[str | None] = [*colours] if colours else [None] * len(names)
    things = [
        replace(sticker_of(rng, name, artist, colour), size=float(rng.uniform(0.75, 1) * most))
        for name, colour in zip(names, chosen, strict=True)
    ]
    order = tuple(arrange(rng, things, "table", size[1] / unit, size[0] / unit))
    parts = [(i, name) for ground in GROUNDS.values() for i, part in enumerate(ground) for name in part]
    level = dict(reversed([(name, i) for i, name in parts]))
    grounds.sort(key=lambda name: level.get(name, 1))  # the sky above
    centres = tuple((float(rng.random()), (i + 0.5) / len(grounds)) for i in range(len(grounds)))
    scene = Scene(style, tuple(grounds), centres, order, int(rng.integers(2**31)))
    picture, owner, regions = (out[0] for out in paint([scene], bank_of(max(size)), *size))
    masks = {name: np.zeros(size, bool) for name in words}
    for i, thing in enumerate(order):
        masks[thing.name] |= (owner == i).numpy()
    masks |= {name: ((owner < 0) & (regions == i)).numpy() for i, name in enumerate(grounds)}
    return to_uint8(picture), masks


@cache
def bank_of(edge: int) -> Tensor:
    """Textures for pictures that nobody trains on, of that many pixels a side at most."""
    return texture_bank(9, 2, edge)


def to_uint8(picture: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] as uint8 [H, W, 3]."""
    return (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
