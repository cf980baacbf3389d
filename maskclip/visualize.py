"""Pictures of segmentations: panoptic overlays with names, proposals, and the comparison of Fig. 4.

Everything is drawn on arrays with Pillow and needs no screen. Small pictures are enlarged first, their segments with
smooth outlines, so that names can be read.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

LONGEST = 1600  # pixels: pictures are not enlarged beyond
SHADES = (1.0, 0.8, 1.2, 0.9, 1.1)


def class_color(name: str, isthing: bool = True) -> np.ndarray:
    """A colour that belongs to this name in every picture, float [3] in 0 to 1: vivid for things, muted for stuff."""
    code = zlib.crc32(name.encode())
    hue = code % 29 / 29 * 360
    light = 0.62 + 0.14 * (code // 29 % 3) / 2
    return _oklch(light, 0.17 if isthing else 0.085, hue)


def draw_panoptic(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[dict],
    names: Sequence[str],
    *,
    alpha: float = 0.6,
    short_side: int = 480,
    labels: bool = True,
    text: float = 1.0,
) -> np.ndarray:
    """Segments over the picture, each in its class's colour with its name; what is void turns grey and dark.

    image: uint8 [H, W, 3]. ids: int [H, W], 0 void. segments: {"id", "category" (index into names)} and perhaps
    "isthing", as `merge.panoptic_map` and `metrics.true_panoptic` give them. short_side: much smaller pictures are
    enlarged to it. text: size of the names, about 1.8 where the picture will be shown small. Returns uint8 [H', W', 3].
    """
    masks = np.stack([ids == 0] + [ids == segment["id"] for segment in segments])
    owner = _enlarged_argmax(masks, _canvas_size(image, short_side))
    canvas = _resize(image, owner.shape).astype(np.float32) / 255
    grey = canvas.mean(-1, keepdims=True).repeat(3, -1)
    palette = [np.zeros(3, np.float32)]
    seen: dict[int, int] = {}
    for segment in segments:
        category, isthing = segment["category"], bool(segment.get("isthing", True))
        count = seen[category] = seen.get(category, -1) + 1
        shade = SHADES[count % len(SHADES)] if isthing else 1  # tells instances of a class apart
        palette.append(np.clip(class_color(names[category], isthing) * shade, 0, 1))
    fill = np.array(palette, np.float32)[owner]
    # the picture's light and shade show through the colour
    canvas = np.where((owner == 0)[..., None], 0.45 * grey, (1 - alpha) * canvas + alpha * fill * (0.8 + 0.4 * grey))
    line = max(1, round(min(owner.shape) / 400))
    edge = _borders(owner, line)[..., None]
    drawn = _picture((1 - 0.85 * edge) * canvas + 0.85 * edge)
    if labels:
        marks = [(owner == i, names[s["category"]], palette[i]) for i, s in enumerate(segments, 1)]
        _write_names(drawn, marks, text)
    return np.asarray(drawn)


def draw_semantic(
    image: np.ndarray, semantic: np.ndarray, names: Sequence[str], isthing: Sequence[bool] | None = None, **options: Any
) -> np.ndarray:
    """A semantic map int [H, W] (-1 void) over the picture; options as for `draw_panoptic`. isthing: per class, so that
    things have the colours they have in panoptic pictures."""
    present = [int(c) for c in np.unique(semantic) if c >= 0]
    segments = [{"id": c + 1, "category": c, "isthing": bool(isthing[c]) if isthing else False} for c in present]
    return draw_panoptic(image, semantic + 1, segments, names, **options)


def draw_masks(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str] | None = None,
    *,
    alpha: float = 0.45,
    short_side: int = 480,
    text: float = 1.0,
) -> np.ndarray:
    """Masks that may overlap, bool [M, H, W], large ones first, each in a colour of its own with an outline: proposals,
    or instances with `labels`. Returns uint8 [H', W', 3]."""
    size = _canvas_size(image, short_side)
    canvas = _resize(image, size).astype(np.float32) / 255
    line = max(1, round(min(size) / 300))
    marks = []
    for rank, m in enumerate(np.argsort(-masks.sum((1, 2)), kind="stable")):
        color = _oklch(0.72, 0.14, rank * 137.508)  # the golden angle: neighbours in rank differ most
        mask = _enlarged_argmax(np.stack([~masks[m], masks[m]]), size) == 1
        canvas[mask] = (1 - alpha) * canvas[mask] + alpha * color
        edge = _borders(mask.astype(int), line)[..., None]
        canvas = (1 - edge) * canvas + edge * color
        if labels is not None:
            marks.append((mask, labels[m], color))
    drawn = _picture(canvas)
    _write_names(drawn, marks, text)
    return np.asarray(drawn)


class Shown(Figure):
    """A Figure that notebooks show though pyplot, and with it a screen or a backend, never comes in."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def comparison(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], *, width: float = 15, row_labels: Sequence[str] = ()
) -> Figure:
    """Rows of pictures under column titles, as Fig. 4: image | CLIP Baseline | w/o RMA | MaskCLIP | ground truth.
    Pictures of a row share their height."""
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"every row needs {len(titles)} pictures, one for each title, and there must be a row.")
    gap, head = 0.06, 0.36  # inches
    share = [[picture.shape[1] / picture.shape[0] for picture in row] for row in rows]
    heights = [(width - gap * (len(row) - 1)) / sum(row) for row in share]
    total = head + sum(heights) + gap * (len(rows) - 1)
    figure = Shown(figsize=(width, total), facecolor="white")
    FigureCanvasAgg(figure)
    top = total - head
    for r, row in enumerate(rows):
        left = 0.0
        for c, picture in enumerate(row):
            wide = share[r][c] * heights[r]
            axes = figure.add_axes((left / width, (top - heights[r]) / total, wide / width, heights[r] / total))
            axes.imshow(picture)
            axes.set_axis_off()
            if r == 0:
                axes.set_title(titles[c], fontsize=13, pad=6)
            if c == 0 and row_labels:
                box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 3}
                axes.text(0.02, 0.97, row_labels[r], transform=axes.transAxes, va="top", fontsize=11, bbox=box)
            left += wide + gap
        top -= heights[r] + gap
    return figure


def _write_names(drawn: Image.Image, marks: Sequence[tuple[np.ndarray, str, np.ndarray]], scale: float) -> None:
    """Each name once, where its mask (bool, the picture's size) is widest, largest masks first; a name that finds no
    free place, or whose mask is a speck, is left out. Nothing runs over the edge of the picture."""
    width, height = drawn.size
    pen = ImageDraw.Draw(drawn, "RGBA")
    free = np.ones((height, width), bool)
    for mask, name, color in sorted(marks, key=lambda mark: -int(mark[0].sum())):
        if mask.sum() < 0.0012 * scale**2 * width * height:
            continue
        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        inner = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
        room = inner.max()
        size = round(scale * np.clip(0.4 * room / scale, min(width, height) / 42, min(width, height) / 26))
        font, text = _font(max(size, 8)), name
        while pen.textlength(text, font) > width - 3 * size and len(text) > 2:
            text = text[:-2].rstrip() + "…"
        w, h = round(pen.textlength(text, font) + 0.9 * size), round(1.45 * size)
        for _ in range(6):  # the widest places one after the other
            y, x = np.unravel_index(inner.argmax(), inner.shape)
            if inner[y, x] < 0.3 * room:
                break
            left = int(np.clip(x + box[1].start - w // 2, 1, max(1, width - w - 2)))
            top = int(np.clip(y + box[0].start - h // 2, 1, max(1, height - h - 2)))
            if free[top : top + h + 1, left : left + w + 1].all():
                free[top : top + h + 1, left : left + w + 1] = False
                shade = tuple(int(v) for v in 255 * 0.36 * np.asarray(color))
                corner = (left + w, top + h)
                pen.rounded_rectangle((left, top, *corner), radius=0.35 * h, fill=(*shade, 205))
                pen.text((left + w / 2, top + h / 2), text, font=font, fill=(255, 255, 255, 255), anchor="mm")
                break
            inner[max(0, y - h) : y + h, max(0, x - w // 2) : x + w // 2] = 0


def _picture(canvas: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * canvas.clip(0, 1)).round().astype(np.uint8))


def _borders(owner: np.ndarray, line: int) -> np.ndarray:
    """How much a border of about `line` pixels covers each pixel of an int map, float [H, W], softened at its sides."""
    edge = np.zeros(owner.shape, bool)
    edge[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    edge[1:] |= owner[1:] != owner[:-1]
    return np.minimum(1, 1.5 * ndimage.gaussian_filter(edge.astype(np.float32), 0.55 * line, truncate=2.5))


def _canvas_size(image: np.ndarray, short_side: int) -> tuple[int, int]:
    scale = min(short_side / min(image.shape[:2]), LONGEST / max(image.shape[:2]))
    scale = scale if scale >= 1.5 else 1  # nearly large enough is large enough
    return round(image.shape[0] * scale), round(image.shape[1] * scale)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def _enlarged_argmax(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which of the masks, bool [n, H, W], has each pixel of a larger picture, with smooth outlines: int [H', W']."""
    if masks.shape[1:] == size:
        return masks.argmax(0)
    best, owner = np.full(size, -1.0, np.float32), np.zeros(size, int)
    for i, mask in enumerate(masks):
        soft = Image.fromarray(mask.astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC)
        value = np.asarray(soft)
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
