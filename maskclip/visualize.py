"""Pictures of segmentations: panoptic overlays with names, proposals, and the comparison of Fig. 4.

Everything is drawn on arrays with Pillow and needs no screen. Pictures are uint8 [H, W, 3]. Small ones
are enlarged first, their segments with smooth outlines, so that names can be read.
"""

import io
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SHORT_SIDE, LONGEST = 480, 1600  # pixels: much smaller pictures are enlarged to the one, none beyond the other
SHADES = (1.0, 0.8, 1.2, 0.9, 1.1)  # tell instances of a class apart
PANOPTIC, MASKS = 0.6, 0.45  # how much of a segment's colour covers the picture
Mark = tuple[np.ndarray, str, np.ndarray]  # a mask, its name, its colour


def class_color(name: str, isthing: bool = True) -> np.ndarray:
    """This name's colour in every picture, float [3] in 0 to 1: vivid for things, muted for stuff."""
    code = zlib.crc32(name.encode())
    light = 0.62 + 0.14 * (code // 29 % 3) / 2
    return _oklch(light, 0.17 if isthing else 0.085, code % 29 / 29 * 360)


def draw_panoptic(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[dict], names: Sequence[str], *, text: float = 1.0,
    fill: float = PANOPTIC,
) -> np.ndarray:  # fmt: skip
    """Segments over the picture in their class's colour with its name; what is void is grey and dark.

    ids: int [H, W], 0 void. segments: {"id", "category" (index into names)} and perhaps "isthing", as
    `merge.panoptic_map` and `metrics.true_panoptic` give them. text: size of the names, about 1.8 where
    the picture will be shown small, 0 for none. fill: how much of a segment is its colour, 0 to 1.
    """
    masks = np.stack([ids == 0] + [ids == segment["id"] for segment in segments])
    canvas = _canvas(image)
    owner = _enlarged_argmax(masks, canvas.shape[:2])
    grey = canvas.mean(-1, keepdims=True).repeat(3, -1)
    palette, seen = [np.zeros(3, np.float32)], Counter[int]()
    for segment in segments:
        category, isthing = segment["category"], bool(segment.get("isthing", True))
        shade = SHADES[seen[category] % len(SHADES)] if isthing else 1
        palette.append(np.clip(class_color(names[category], isthing) * shade, 0, 1))
        seen[category] += 1
    # the picture's light and shade show through the colour
    paint = np.array(palette, np.float32)[owner] * (0.8 + 0.4 * grey)
    canvas = np.where((owner == 0)[..., None], 0.45 * grey, (1 - fill) * canvas + fill * paint)
    edge = 0.85 * _borders(owner, 400)
    marks = [(owner == i, names[s["category"]], palette[i]) for i, s in enumerate(segments, 1)]
    return _named((1 - edge) * canvas + edge, marks, text)


def draw_semantic(
    image: np.ndarray, semantic: np.ndarray, names: Sequence[str], isthing: Sequence[bool] | None = None, **options: Any
) -> np.ndarray:
    """A semantic map int [H, W] (-1 void) over the picture; options as for `draw_panoptic`.

    isthing: per class, so that things have the colours they have in panoptic pictures.
    """
    present = [int(c) for c in np.unique(semantic) if c >= 0]
    segments = [{"id": c + 1, "category": c, "isthing": isthing is not None and isthing[c]} for c in present]
    return draw_panoptic(image, semantic + 1, segments, names, **options)


def draw_masks(
    image: np.ndarray, masks: np.ndarray, labels: Sequence[str] | None = None, *, text: float = 1.0
) -> np.ndarray:
    """Masks that may overlap, bool [M, H, W], large ones first, each in a colour and outline of its own.

    They are proposals, or instances with `labels`.
    """
    canvas, marks = _canvas(image), []
    for rank, m in enumerate(np.argsort(-masks.sum((1, 2)), kind="stable")):
        color = _oklch(0.72, 0.14, rank * 137.508)  # the golden angle: neighbours in rank differ most
        mask = _enlarged_argmax(np.stack([~masks[m], masks[m]]), canvas.shape[:2]) == 1
        canvas[mask] = (1 - MASKS) * canvas[mask] + MASKS * color
        edge = _borders(mask.astype(int), 300)
        canvas = (1 - edge) * canvas + edge * color
        marks.append((mask, labels[m] if labels else "", color))
    return _named(canvas, marks, text if labels else 0)


class Shown(Figure):
    """A Figure that notebooks show though pyplot, and with it a screen or a backend, never comes in."""

    _drawn = b""

    def _repr_png_(self) -> bytes:
        """As a PNG; drawn once, and again after a change."""
        if self.stale or not self._drawn:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            self._drawn, self.stale = buffer.getvalue(), False
        return self._drawn


def comparison(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], *, width: float = 15, row_labels: Sequence[str] = ()
) -> Shown:
    """Rows of pictures under column titles, as Fig. 4: image | CLIP Baseline | w/o RMA | MaskCLIP | ground truth.
    Pictures of a row share their height."""
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"every row needs {len(titles)} pictures, one for each title, and there must be a row.")
    gap, head = 0.06, 0.36  # inches
    share = [[picture.shape[1] / picture.shape[0] for picture in row] for row in rows]
    heights = [(width - gap * (len(row) - 1)) / sum(row) for row in share]
    total = head + sum(heights) + gap * (len(rows) - 1)
    figure = Shown(figsize=(width, total), facecolor="white")
    top = total - head
    for r, (row, height) in enumerate(zip(rows, heights, strict=True)):
        left = 0.0
        for c, picture in enumerate(row):
            wide = share[r][c] * height
            axes = figure.add_axes((left / width, (top - height) / total, wide / width, height / total))
            axes.imshow(picture)
            axes.set_axis_off()
            if r == 0:
                axes.set_title(titles[c], fontsize=13, pad=6)
            if c == 0 and row_labels:
                box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 3}
                axes.text(0.02, 0.97, row_labels[r], transform=axes.transAxes, va="top", fontsize=11, bbox=box)
            left += wide + gap
        top -= height + gap
    return figure


def _named(canvas: np.ndarray, marks: Sequence[Mark], scale: float) -> np.ndarray:
    """The picture [H, W, 3], with each name once, the largest masks' first."""
    drawn = Image.fromarray((255 * canvas.clip(0, 1)).round().astype(np.uint8))
    pen, free = ImageDraw.Draw(drawn, "RGBA"), np.ones(canvas.shape[:2], bool)
    for mark in sorted(marks, key=lambda mark: -int(mark[0].sum())) if scale else ():
        _write_name(pen, free, mark, scale)
    return np.asarray(drawn)


def _write_name(pen: ImageDraw.ImageDraw, free: np.ndarray, mark: Mark, scale: float) -> None:
    """The name where its mask is widest, inside the picture, if a place is `free` (which it then is not).

    The name of a speck is left out.
    """
    (height, width), (mask, text, color) = free.shape, mark
    if mask.sum() < 0.0012 * scale**2 * width * height:
        return
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    inner = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
    room = inner.max()
    size = round(scale * np.clip(0.4 * room / scale, min(width, height) / 42, min(width, height) / 26))
    font = _font(max(size, 8))
    while pen.textlength(text, font) > width - 3 * size and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    w, h = round(pen.textlength(text, font) + 0.9 * size), round(1.45 * size)
    for _ in range(6):  # the widest places one after the other
        y, x = np.unravel_index(inner.argmax(), inner.shape)
        if inner[y, x] < 0.3 * room:
            return
        left = int(np.clip(x + box[1].start - w // 2, 1, max(1, width - w - 2)))
        top = int(np.clip(y + box[0].start - h // 2, 1, max(1, height - h - 2)))
        place = free[top : top + h + 1, left : left + w + 1]
        if place.all():
            place[:] = False
            shade = tuple(int(v) for v in 255 * 0.36 * np.asarray(color))
            pen.rounded_rectangle((left, top, left + w, top + h), radius=0.35 * h, fill=(*shade, 205))
            pen.text((left + w / 2, top + h / 2), text, font=font, fill=(255, 255, 255, 255), anchor="mm")
            return
        inner[max(0, y - h) : y + h, max(0, x - w // 2) : x + w // 2] = 0


def _borders(owner: np.ndarray, lines: int) -> np.ndarray:
    """How much a border covers each pixel of an int map, float [H, W, 1]; `lines` of it fit the short side."""
    edge = np.zeros(owner.shape, np.float32)
    edge[:, 1:] = owner[:, 1:] != owner[:, :-1]
    edge[1:] = np.maximum(edge[1:], owner[1:] != owner[:-1])
    line = max(1, round(min(owner.shape) / lines))
    return np.minimum(1, 1.5 * ndimage.gaussian_filter(edge, 0.55 * line, truncate=2.5))[..., None]


def _canvas(image: np.ndarray) -> np.ndarray:
    """The picture, enlarged where it is small, float32 [H', W', 3] in 0 to 1."""
    height, width, _ = image.shape
    scale = min(SHORT_SIDE / min(height, width), LONGEST / max(height, width))
    if scale >= 1.5:  # nearly large enough is large enough
        size = round(width * scale), round(height * scale)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return image.astype(np.float32) / 255


def _enlarged_argmax(masks: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Which of the masks, bool [n, H, W], has each pixel of a larger picture, with smooth outlines."""
    if masks.shape[1:] == size:
        return masks.argmax(0)
    best, owner = np.full(size, -1.0, np.float32), np.zeros(size, int)
    for i, mask in enumerate(masks):
        value = np.asarray(
            Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        )
        owner[value > best] = i
        best = np.maximum(best, value)
    return owner


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _oklch(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """An OKLCH colour (hue in degrees), whose equal steps look equal to the eye, as sRGB float [3] in 0 to 1."""
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    lms = lightness + np.array(
        [[0.3963377774, 0.2158037573], [-0.1055613458, -0.0638541728], [-0.0894841775, -1.291485548]]
    ) @ (a, b)
    linear = np.array([
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.707614701],
    ]) @ lms**3  # fmt: skip
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)
