"""Scenes of the miniature world: stuff regions with stickers on them, painted in one of several drawing styles.

A `Scene` is a description; `paint` draws a batch of descriptions and tells which sticker and which stuff a
pixel shows.  The same painter serves CLIP's training pictures (64 px, hundreds at once) and the data sets (larger,
one at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from miniature.pictographs import GLYPHS, LEVELS, sprites
from miniature.textures import STUFF, texture_bank

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.89, 0.18, 0.18), "orange": (0.97, 0.55, 0.12), "yellow": (0.98, 0.84, 0.18), "green": (0.22, 0.66, 0.28),
    "teal": (0.10, 0.65, 0.65), "blue": (0.18, 0.40, 0.86), "purple": (0.52, 0.26, 0.74), "pink": (0.97, 0.52, 0.72),
    "brown": (0.53, 0.33, 0.18), "black": (0.13, 0.13, 0.15), "gray": (0.55, 0.56, 0.58), "white": (0.96, 0.96, 0.95),
}  # fmt: skip
DOMAINS: tuple[str, ...] = ("sticker", "pencil", "night")  # bright and die-cut; muted on paper; neon


@dataclass(frozen=True)
class Sticker:
    """One thing: centre (x, y) and size in units of the picture's shorter side, angle in degrees, colour by name;
    `shade` (light or dark) and `variant` (font) in [0, 1) pick one of its looks."""

    name: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    aspect: float = 1.0
    shade: float = 0.5
    variant: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Stuff regions (one Voronoi-like cell each, centres (x, y) in [0, 1]^2), then stickers from back to front."""

    domain: str
    stuff: tuple[str, ...]
    centres: tuple[tuple[float, float], ...]
    things: tuple[Sticker, ...] = ()
    seed: int = 0

    def caption(self) -> str:
        """'a red umbrella and a blue cat face on grass'"""
        things = " and ".join(f"a {t.colour} {t.name}" for t in self.things)
        stuff = " and ".join(dict.fromkeys(self.stuff))
        return f"{things} on {stuff}" if things and stuff else things or stuff


def random_regions(
    rng: np.random.Generator, names: Sequence[str], count: int
) -> tuple[tuple[str, ...], tuple[tuple[float, float], ...]]:
    """`count` different stuff names with region centres; what belongs above (sky, walls) lies above."""
    drawn = rng.choice(len(names), size=min(count, len(names)), replace=False)
    chosen = sorted(drawn, key=lambda i: STUFF.index(names[i]))
    y = np.sort(rng.uniform(0.05, 0.95, len(chosen)))
    return tuple(names[i] for i in chosen), tuple((float(rng.uniform(0, 1)), float(v)) for v in y)


def random_stickers(
    rng: np.random.Generator,
    names: Sequence[str],
    sizes: tuple[float, float],
    width: float = 1.0,
    height: float = 1.0,
    overlap: float = 0.35,
    stretch: float = 0.12,
) -> tuple[Sticker, ...]:
    """Stickers with these names at random places of a width x height picture, overlapping little, small in front;
    `stretch` is the most that the logarithm of their aspect may differ from 0."""
    placed: list[Sticker] = []
    edges = np.sort(np.exp(rng.uniform(np.log(sizes[0]), np.log(sizes[1]), len(names))))[::-1]
    for name, size in zip(names, edges, strict=True):
        margin = 0.38 * size
        best, least = (0.0, 0.0), np.inf
        for _ in range(12):
            x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
            worst = max((0.8 * min(o.size, size) - max(abs(o.x - x), abs(o.y - y), 0.8 * np.hypot(o.x - x, o.y - y))
                         + 0.4 * abs(o.size - size)) / size for o in placed) if placed else -1.0  # fmt: skip
            if worst < least:
                best, least = (x, y), worst
            if worst < overlap * rng.random():
                break
        placed.append(
            Sticker(name, str(rng.choice(list(COLOURS))), *best, float(size), float(rng.uniform(-20, 20)),
                    float(np.exp(rng.uniform(-stretch, stretch))), float(rng.random()), float(rng.random()))
        )  # fmt: skip
    return tuple(placed)


def _inks(things: Sequence[Sticker], domains: Sequence[str], solid: np.ndarray) -> np.ndarray:
    """Colours of rim, body and strokes for each sticker: [n, 3, 3].

    A thing that is mostly stroke, or is called *filled*, has its strokes in its colour on a pale body; one that is
    called *outlined* has a pale body inside coloured strokes; all others a body in their colour under dark or light
    strokes.
    """
    out = np.empty((len(things), 3, 3), np.float32)
    for i, (t, domain) in enumerate(zip(things, domains, strict=True)):
        base = np.clip(np.array(COLOURS[t.colour]) * (0.85 + 0.3 * t.shade), 0, 1)
        luminance = base @ np.array([0.3, 0.6, 0.1])
        pale, dark = 0.8 + 0.2 * base, 0.22 * base
        if luminance > 0.9:
            pale, dark = np.full(3, 0.62), np.full(3, 0.18)
        contrast = dark if luminance > 0.32 else 0.85 + 0.15 * base
        if domain == "sticker":
            rim = np.ones(3) if luminance < 0.9 else np.full(3, 0.35)
        elif domain == "pencil":
            base = 0.55 * base + 0.45 * (0.5 * base.mean() + 0.40)
            rim, pale, contrast = np.full(3, 0.30), 0.6 * pale + 0.35, np.full(3, 0.16 if luminance > 0.3 else 0.95)
        else:
            bright = np.clip(0.25 + 0.85 * base, 0, 1)
            rim, pale, contrast, base = bright, 0.16 * base + 0.02, bright, 0.38 * base + 0.04
            if solid[i]:
                base = bright
        filled, outlined = t.name.startswith("filled ") or solid[i], t.name.startswith("outlined ")
        body, strokes = base, contrast
        if filled or outlined:
            body, strokes = pale, contrast if domain == "night" and not filled else base
        out[i] = rim, body, strokes
    return np.clip(out, 0, 1)


def _coverage(things: Sequence[Sticker], rows: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Rim, body and stroke coverage of each sticker on the canvas: [n, 3, H, W] in [0, 1]."""
    unit = min(height, width)
    theta = np.empty((len(things), 2, 3), np.float32)
    level = np.empty(len(things), int)
    for i, t in enumerate(things):
        c, s, size = np.cos(np.radians(t.angle)), np.sin(np.radians(t.angle)), t.size * unit * 1.15
        sx, sy = size * t.aspect, size / t.aspect
        # from the canvas's [-1, 1] coordinates to the sprite's: undo the shift, the rotation, the scale
        to_pixels = np.array([[width / 2, 0, width / 2 - t.x * unit], [0, height / 2, height / 2 - t.y * unit]])
        theta[i] = np.array([[2 * c / sx, 2 * s / sx], [-2 * s / sy, 2 * c / sy]]) @ to_pixels
        level[i] = min(LEVELS, key=lambda edge: abs(np.log(edge / size)))
    out = torch.empty(len(things), 3, height, width)
    for edge in LEVELS:
        chosen = np.flatnonzero(level == edge)
        if len(chosen):
            grid = F.affine_grid(torch.from_numpy(theta[chosen]), [len(chosen), 3, height, width], align_corners=False)
            out[torch.from_numpy(chosen)] = F.grid_sample(
                sprites().levels[edge][rows[chosen]], grid, align_corners=False
            )
    return out


def _backgrounds(
    scenes: Sequence[Scene], bank: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Textures of every scene's regions [B, 3, H, W] in [0, 1], and each pixel's region [B, H, W] (in scene.stuff)."""
    regions = torch.zeros(len(scenes), height, width, dtype=torch.long)
    out = torch.empty(len(scenes), 3, height, width)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    for b, scene in enumerate(scenes):
        rng = np.random.default_rng(scene.seed)
        patches = []
        for name in scene.stuff:
            variant, top, left = (
                rng.integers(bank.shape[1]),
                rng.integers(bank.shape[3] - height + 1),
                rng.integers(bank.shape[4] - width + 1),
            )
            patches.append(bank[STUFF.index(name), variant, :, top : top + height, left : left + width])
        if len(patches) > 1:
            wobble = torch.from_numpy(rng.standard_normal((1, len(patches), 5, 5), dtype=np.float32))
            wobble = F.interpolate(wobble, size=(height, width), mode="bicubic", align_corners=True)[0]
            centre = torch.tensor(scene.centres, dtype=torch.float32)[:, :, None, None]
            field = 0.07 * wobble - ((x - centre[:, 0]) * 0.6) ** 2 - (y - centre[:, 1]) ** 2
            regions[b] = field.argmax(0)
            out[b] = torch.stack(patches).gather(0, regions[b][None, None].expand(1, 3, -1, -1))[0].float() / 255
        else:
            out[b] = patches[0].float() / 255
    return out, regions


def paint(
    scenes: Sequence[Scene], bank: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw scenes: pictures float [B, 3, H, W] in [0, 1]; the front sticker of each pixel, long [B, H, W] (index into
    scene.things, -1 none); and its stuff region, long [B, H, W] (index into scene.stuff), visible or not.

    `bank` is a `texture_bank` whose patches are at least H x W.  Deterministic given the scenes and the bank.
    """
    picture, regions = _backgrounds(scenes, bank, height, width)
    domain = torch.tensor([DOMAINS.index(s.domain) for s in scenes])
    pencil, night = (domain == 1).nonzero()[:, 0], (domain == 2).nonzero()[:, 0]
    picture[pencil] = 0.45 * picture[pencil] + 0.55 * (0.45 + 0.55 * picture[pencil].mean(1, keepdim=True))
    dark, blue = torch.tensor([[0.26, 0.30, 0.46], [0.0, 0.01, 0.05]])[..., None, None]
    picture[night] = picture[night] * dark + blue

    owner = torch.full_like(regions, -1)
    things = [t for s in scenes for t in s.things]
    if things:
        scene_of = np.repeat(np.arange(len(scenes)), [len(s.things) for s in scenes])
        layer_of = np.concatenate([np.arange(len(s.things)) for s in scenes]).astype(int)
        options = [sprites().variants[t.name] for t in things]
        rows = np.array([o[int(t.variant * len(o))] for t, o in zip(things, options, strict=True)])
        inks = _inks(things, [scenes[int(b)].domain for b in scene_of], sprites().solid[rows])
        colours = torch.from_numpy(inks)[..., None, None]
        cover = _coverage(things, rows, height, width)
        near = max(1, round(min(height, width) / 50))
        for layer in range(layer_of.max() + 1):  # back to front
            index = np.flatnonzero(layer_of == layer)
            b, alpha, colour = torch.from_numpy(scene_of[index]), cover[index], colours[index]
            canvas = picture[b]
            shadow = F.avg_pool2d(alpha[:, :1].roll((near, near), (2, 3)), 2 * near + 1, 1, near)
            canvas *= 1 - 0.35 * shadow
            for part in range(3):
                canvas += alpha[:, part : part + 1] * (colour[:, part] - canvas)
            picture[b] = canvas
            owner[b] = torch.where(alpha[:, 0] > 0.5, layer, owner[b])

    generator = torch.Generator().manual_seed(sum(s.seed for s in scenes) % 2**31)
    grain = torch.randn(len(scenes), 1, height, width, generator=generator)
    if len(pencil):  # diagonal hatching and the grain of the paper
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        hatch = torch.sin((x + y) * (2 * np.pi / (3.5 * max(1.0, min(height, width) / 128))))
        picture[pencil] = picture[pencil] * (1 + 0.05 * hatch) + 0.035 * grain[pencil]
    if len(night):  # neon light spreads
        radius = max(1, round(min(height, width) / 24))
        glow = F.avg_pool2d((picture[night] - 0.45).clamp(min=0), 2 * radius + 1, 1, radius)
        picture[night] = picture[night] + 0.9 * glow + 0.012 * grain[night]
    return picture.clamp_(0, 1), owner, regions


def check_names(names: Sequence[str]) -> None:
    """ValueError for a name that is neither a thing nor a stuff of the world."""
    if unknown := [name for name in names if name not in GLYPHS and name not in STUFF]:
        raise ValueError(f"the miniature world has nothing called {unknown[0]!r}; see miniature.THINGS and STUFF")


def render_scene(
    names: Sequence[str],
    domain: str = "sticker",
    seed: int = 0,
    size: tuple[int, int] = (128, 160),
    colours: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One picture with the named things and stuff (or grass): uint8 [H, W, 3], segments int [H, W], their names."""
    check_names(names)
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    rng = np.random.default_rng(seed)
    stuff, centres = random_regions(rng, [n for n in names if n in STUFF] or ["grass"], 99)
    things = [n for n in names if n in GLYPHS]
    unit = min(size)
    most = min(0.62, 0.95 / max(1, len(things)) ** 0.5)
    stickers = list(random_stickers(rng, things, (0.75 * most, most), size[1] / unit, size[0] / unit, overlap=0.0))
    if colours is not None:
        stickers = [Sticker(**{**vars(s), "colour": c}) for s, c in zip(stickers, colours, strict=True)]
    scene = Scene(domain, stuff, centres, tuple(stickers), int(rng.integers(2**31)))
    picture, owner, regions = paint([scene], _default_bank(64 * -(-max(size) // 64)), *size)
    segments = torch.where(owner[0] >= 0, owner[0], regions[0] + len(stickers)).numpy()
    return to_uint8(picture[0]), segments, [s.name for s in stickers] + list(stuff)


def render_sticker(
    name: str, colour: str = "red", domain: str = "sticker", stuff: str = "grass", size: int = 96, seed: int = 0
) -> np.ndarray:
    """One thing alone on stuff: uint8 [size, size, 3]."""
    check_names([name, stuff])
    rng = np.random.default_rng(seed)
    angle, shade, variant = float(rng.uniform(-12, 12)), float(rng.random()), float(rng.random())
    sticker = Sticker(name, colour, 0.5, 0.5, 0.8, angle, 1.0, shade, variant)
    scene = Scene(domain, (stuff,), ((0.5, 0.5),), (sticker,), int(rng.integers(2**31)))
    return to_uint8(paint([scene], _default_bank(64 * -(-size // 64)), size, size)[0][0])


def to_uint8(picture: torch.Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3]."""
    return (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


@cache
def _default_bank(edge: int) -> torch.Tensor:
    return texture_bank(seed=9, variants=2, size=edge)
