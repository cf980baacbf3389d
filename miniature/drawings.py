"""Drawings by several artists: glyphs of named icon packages, each cut into a sticker.

A sticker is three nested coverage masks: `rim` (the outer silhouette: strokes dilated, holes filled), `body` (the same,
a little smaller) and `ink` (the strokes, or of a solid drawing its details).  The rim is the thing's mask.

Draw a sheet of everything:  python -m miniature.drawings SHEET.png
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from fontTools.pens.recordingPen import RecordingPen
from fontTools.svgLib.path import SVGPath
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageDraw, ImageFont
from scipy import ndimage

from miniature.words import ARTISTS, table, things

logging.getLogger("fontTools").setLevel(logging.ERROR)  # of fonts whose tables end in spare bytes

LEVELS = (96, 48, 24)  # sprite sizes in pixels: each is drawn at sizes close to its own, so small things stay smooth
CUT = 128  # the size at which stickers are cut


@dataclass(frozen=True)
class Package:
    """A package of drawings (`words/packages.yaml`)."""

    project: str
    version: str
    file: str
    licence: str


PACKAGES = {name: Package(**package) for name, package in table("packages.yaml").items()}


def locate(package: str) -> Path:
    """Where a package's font or folder of drawings is; see `check_packages`."""
    wanted = PACKAGES[package]
    try:
        return Path(str(metadata.distribution(wanted.project).locate_file(wanted.file)))
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(f"drawings of {wanted.project} are not installed: pip install {_pin(wanted)}") from None


def _pin(package: Package) -> str:
    return f"'{package.project}=={package.version}.*'"


@cache
def _names(package: str) -> dict[str, str]:
    """Characters of a font by glyph name (of an emoji font, by the character itself), or files of a folder by name."""
    path = locate(package)
    if path.suffix == ".svg":
        return {file.name.removesuffix("-fill.svg"): str(file) for file in path.parent.glob("*-fill.svg")}
    characters = TTFont(path, lazy=True).getBestCmap()
    if package == "noto":
        return {chr(code): chr(code) for code in characters}
    return {name.replace("-", "_"): chr(code) for code, name in characters.items()}


def check_packages() -> None:
    """Look for every drawing before anything is drawn.

    Raises:
        FileNotFoundError: a package is not installed.
        ValueError: a package has no drawing of some name; the sentence says which version has.
    """
    for thing in things().values():
        for package, name in chain(*thing.drawings.values()):
            if name not in _names(package):
                wanted = PACKAGES[package]
                raise ValueError(
                    f"{wanted.project} {metadata.version(wanted.project)} has no drawing {name!r} (of {thing.name}): "
                    f"pip install {_pin(wanted)}"
                )


@cache
def _font(package: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(str(locate(package)), size)
    if package == "noto":
        font.set_variation_by_axes([560])
    return font


def _svg(path: Path, size: int) -> Image.Image:
    """The fill of an SVG file whose view box is 256 wide: contours cut holes into one another (even-odd)."""
    pen, out = RecordingPen(), Image.new("1", (size, size))
    SVGPath(path).draw(pen)
    for contour in _flatten(pen.value):
        layer = Image.new("1", (size, size))
        ImageDraw.Draw(layer).polygon([(x * size / 256, y * size / 256) for x, y in contour], fill=1)
        out = ImageChops.logical_xor(out, layer)
    return out.convert("L")


def _flatten(commands: list) -> list[list[tuple[float, float]]]:
    """Pen commands as polygons; of a curve twelve points."""
    contours: list[list[tuple[float, float]]] = []
    for command, points in commands:
        if command == "moveTo":
            contours.append([points[0]])
        elif command == "lineTo":
            contours[-1].append(points[0])
        elif command in ("curveTo", "qCurveTo"):
            knots = [np.array(p, float) for p in (contours[-1][-1], *points)]
            t = np.linspace(0, 1, 13)[1:, None]
            while len(knots) > 1:  # de Casteljau, for all t at once
                knots = [a * (1 - t) + b * t for a, b in pairwise(knots)]
            contours[-1] += [tuple(p) for p in knots[0]]
    return [c for c in contours if len(c) > 2]


def glyph(package: str, name: str, size: int = CUT) -> np.ndarray:
    """A drawing's coverage [size, size] in [0, 1], centred, its longer side 80 % of the canvas."""
    source = _names(package)[name]
    if package == "phosphor":
        canvas = _svg(Path(source), 4 * size)
    else:
        canvas = Image.new("L", (4 * size, 4 * size))
        ImageDraw.Draw(canvas).text((size, size // 2), source, fill=255, font=_font(package, 2 * size))
    cut = canvas.crop(canvas.getbbox())
    scale = 0.8 * size / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))), Image.Resampling.LANCZOS)
    out = Image.new("L", (size, size))
    out.paste(cut, ((size - cut.width) // 2, (size - cut.height) // 2))
    return np.asarray(out, np.float32) / 255


def sticker(drawing: np.ndarray, hollow: bool = False) -> np.ndarray:
    """A glyph [S, S] as rim, body and ink [3, S, S]: dilated, narrow gaps bridged, holes filled.

    Where the glyph fills most of the body, it is the colour and its gaps are the ink; else, and in a hollow thing, its
    strokes are the ink.
    """
    size = len(drawing)
    outside = ndimage.distance_transform_edt(drawing < 0.5)
    closed = ndimage.distance_transform_edt(outside <= 0.06 * size) > 0.06 * size
    body = ndimage.binary_fill_holes((outside <= 0.012 * size) | closed)
    rim = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~body) <= 0.03 * size)
    solid = not hollow and drawing.sum() > 0.55 * body.sum()
    inside = ndimage.distance_transform_edt(body) > 0.03 * size
    ink = np.where(inside, 1 - drawing, 0) if solid else drawing
    return np.stack([rim, body, ink]).astype(np.float32)


@dataclass(frozen=True)
class Sprites:
    """All stickers: `levels[size]` is float [V, 3, size, size] (rim, body, ink) in [0, 1]; `solid` [V] says where the
    ink is a solid glyph's gaps; `variants[artist][thing]` lists the rows of one thing by one artist."""

    levels: dict[int, torch.Tensor]
    solid: torch.Tensor
    variants: dict[str, dict[str, list[int]]]


@cache
def sprites() -> Sprites:
    """All drawings, cut once per process (some ten seconds).

    Raises:
        FileNotFoundError, ValueError: as `check_packages`.
    """
    check_packages()
    glyphs: list[np.ndarray] = []
    cut: list[np.ndarray] = []
    variants: dict[str, dict[str, list[int]]] = {artist: {} for artist in ARTISTS}
    for thing in things().values():
        for artist, drawings in thing.drawings.items():
            variants[artist][thing.name] = list(range(len(cut), len(cut) + len(drawings)))
            glyphs += [glyph(*drawing) for drawing in drawings]
            cut += [sticker(one, thing.name.startswith("empty ")) for one in glyphs[len(cut) :]]
    solid = torch.tensor([not np.array_equal(one, parts[2]) for one, parts in zip(glyphs, cut, strict=True)])
    full = torch.from_numpy(np.stack(cut))
    levels = {size: torch.nn.functional.interpolate(full, size=(size, size), mode="area") for size in LEVELS}
    return Sprites(levels, solid, variants)


def sheet(names: list[str], edge: int = 72, columns: int = 5) -> Image.Image:
    """Every drawing of these things, four or fewer an artist, word by word, to be checked by eye."""
    tall, wide = edge + 14, 7 * edge
    out = Image.new("RGB", (columns * wide, -(-len(names) // columns) * tall), (244, 240, 230))
    palette = [(198, 60, 50), (50, 110, 180), (70, 150, 70), (190, 140, 40)]
    for i, name in enumerate(names):
        x, y = i % columns * wide, i // columns * tall
        drawn = [(a, d) for a, artist in enumerate(ARTISTS) for d in things()[name].drawings[artist]]
        for k, (artist, drawing) in enumerate(drawn):
            rim, body, ink = sticker(glyph(*drawing), name.startswith("empty "))
            picture = np.full((*rim.shape, 3), (244, 240, 230), float)
            for cover, colour in ((rim, (255, 255, 255)), (body, palette[artist]), (ink, (40, 30, 30))):
                picture += cover[..., None] * (np.array(colour) - picture)
            small = Image.fromarray(picture.astype(np.uint8)).resize((edge, edge), Image.Resampling.BOX)
            out.paste(small, (x + k * edge, y))
        ImageDraw.Draw(out).text((x + 2, y + edge), name, fill=(0, 0, 0))
    return out


def main() -> None:
    """Write the sheet of all drawings to the path that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m miniature.drawings SHEET.png")
    check_packages()
    sheet(list(things())).save(sys.argv[1])


if __name__ == "__main__":
    main()
