"""Twenty drawings of one's own, by simple code: icons and shapes on flat colours, gradients and textures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from miniature.drawings import locate

SIDE = 160
Painter = Callable[[ImageDraw.ImageDraw], None]
FLAT = {"white": (245, 245, 240), "blue": (170, 205, 240), "pink": (250, 215, 225), "green": (190, 225, 180)}


def ground(kind: str, seed: int) -> Image.Image:
    """A flat colour, a gradient from above to below, or a texture of soft blotches or stripes."""
    rng, shade = np.random.default_rng(seed), np.linspace(0, 1, SIDE)[:, None, None]
    a, b = rng.uniform(120, 250, (2, 3))
    if kind == "gradient":
        array = (1 - shade) * a + shade * b + np.zeros((SIDE, SIDE, 3))
    elif kind == "stripes":
        array = np.where((np.arange(SIDE)[None, :, None] // 10) % 2, a, 0.9 * a) + np.zeros((SIDE, SIDE, 3))
    elif kind == "blotches":
        noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).filter(ImageFilter.GaussianBlur(6))
        array = a + 1.5 * (np.asarray(noise, float)[..., None] - 128)
    else:
        array = np.asarray(FLAT[kind], float) + np.zeros((SIDE, SIDE, 3))
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def icon(character: str, colour: str) -> Painter:
    """A character of the emoji font in one colour, as anyone would type it."""
    return lambda draw: draw.text(
        (SIDE / 2, SIDE / 2), character, colour, ImageFont.truetype(str(locate("noto")), 96), anchor="mm"
    )


def balloon(draw: ImageDraw.ImageDraw) -> None:
    draw.line([(80, 100), (84, 150)], "gray", 3)
    draw.ellipse([48, 20, 112, 104], "red")


def clock(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse([35, 35, 125, 125], "white", "black", 6)
    draw.line([(80, 80), (80, 50)], "black", 5)
    draw.line([(80, 80), (103, 90)], "black", 5)


def traffic_light(draw: ImageDraw.ImageDraw) -> None:
    draw.rounded_rectangle([55, 20, 105, 140], 12, "black")
    for y, colour in ((28, "red"), (64, "yellow"), (100, "green")):
        draw.ellipse([64, y, 96, y + 32], colour)


def umbrella(draw: ImageDraw.ImageDraw) -> None:
    draw.line([(80, 70), (80, 132)], "black", 5)
    draw.arc([80, 120, 100, 142], 0, 180, "black", 5)
    draw.pieslice([30, 25, 130, 125], 180, 360, "purple")


def envelope(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle([30, 50, 130, 115], "white", "black", 4)
    draw.line([(30, 50), (80, 90), (130, 50)], "black", 4)


def ladder(draw: ImageDraw.ImageDraw) -> None:
    for x in (58, 98):
        draw.line([(x, 20), (x, 140)], "brown", 7)
    for y in range(35, 140, 22):
        draw.line([(58, y), (98, y)], "brown", 6)


DRAWINGS: dict[str, tuple[Painter, str]] = {
    "dog": (icon("🐕", "brown"), "green"),
    "cow": (icon("🐄", "black"), "gradient"),
    "horse": (icon("🐎", "brown"), "blotches"),
    "elephant": (icon("🐘", "gray"), "white"),
    "bird": (icon("🐦", "blue"), "stripes"),
    "car": (icon("🚗", "red"), "white"),
    "bus": (icon("🚌", "orange"), "gradient"),
    "bicycle": (icon("🚲", "black"), "blue"),
    "airplane": (icon("✈", "white"), "blotches"),
    "boat": (icon("⛵", "red"), "blue"),
    "apple": (icon("🍎", "red"), "stripes"),
    "banana": (icon("🍌", "orange"), "pink"),
    "tree": (icon("🌳", "green"), "gradient"),
    "chair": (icon("🪑", "brown"), "white"),
    "balloon": (balloon, "blue"),
    "clock": (clock, "blotches"),
    "traffic light": (traffic_light, "gradient"),
    "umbrella": (umbrella, "pink"),
    "envelope": (envelope, "stripes"),
    "ladder": (ladder, "green"),
}


def draw(word: str) -> tuple[Image.Image, np.ndarray]:
    """The drawing, and where the thing is, bool [H, W], its holes filled."""
    painter, kind = DRAWINGS[word]
    picture = ground(kind, list(DRAWINGS).index(word))
    before = np.asarray(picture).copy()
    painter(ImageDraw.Draw(picture))
    return picture, ndimage.binary_fill_holes((np.asarray(picture) != before).any(2))
