"""Things of the miniature world: named pictographs, taken from the fonts that ship with matplotlib.

Every thing is a *sticker*, three nested coverage masks cut from one glyph: `rim` (the outer silhouette: strokes
dilated, holes filled), `body` (the same, a little smaller) and `ink` (the strokes).  The rim is the thing's mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
LEVELS = (96, 48, 24)  # sprite sizes in pixels: each is drawn at sizes close to its own, so small things stay smooth

# Names are Unicode's, put into plain English.  Pairs that differ only in being filled share a name but for that word.
_PAIRS = """
heart ♥♡, spade ♠♤, club ♣♧, star ★☆, four pointed star ✦✧, sun ☀☼, telephone ☎☏, scissors ✂✄, flag ⚑⚐,
blossom ✿❀, nib ✒✑, recycling symbol ♻♲, shogi piece ☗☖, pointing hand ☛☞, smiling face ☻☺, draughts piece ⛂⛀,
chess king ♚♔, chess queen ♛♕, chess rook ♜♖, chess bishop ♝♗, chess knight ♞♘, chess pawn ♟♙, square ■□,
rectangle ▬▭, triangle ▲△, down triangle ▼▽, diamond ◆◇, circle ●○, parallelogram ▰▱, pentagon ⬟⬠, hexagon ⬢⬡,
right arrow ➡⇨, up arrow ⬆⇧
"""
_SINGLES = """
house ⌂, keyboard ⌨, looped square ⌘, benzene ring ⏣, eject button ⏏, electric arrow ⌁, return key ⏎,
striped square ▤, gridded square ▦, nested square ▣, nested diamond ◈, fisheye ◉, dotted circle ◌, bullseye ◎,
half filled circle ◐, quarter filled circle ◔, half filled square ◧,
circle with quadrant ◴, dotted square ⬚, corner triangle ◢, half disc ◗, striped circle ◍, cloud ☁, umbrella ☂,
umbrella in rain ☔, snowman ☃, comet ☄, lightning ☇, checked box ☑, crossed box ☒, hot drink ☕, shamrock ☘,
hand pointing up ☝, hand pointing down ☟, skull and crossbones ☠, radioactive sign ☢, biohazard sign ☣,
caduceus ☤, frowning face ☹, moon ☾, jupiter sign ♃, saturn sign ♄, uranus sign ♅, neptune sign ♆,
hot spring ♨, quarter note ♩, eighth note ♪, beamed notes ♫, flat sign ♭, natural sign ♮, sharp sign ♯,
wheelchair ♿, die showing one ⚀, die showing two ⚁, die showing six ⚅, hammer and pick ⚒, anchor ⚓,
crossed swords ⚔, snake staff ⚕, scales ⚖, alembic ⚗, flower ⚘, gear ⚙, atom ⚛, fleur de lis ⚜, warning sign ⚠,
high voltage sign ⚡, coffin ⚰, urn ⚱, tape reel ✇, airplane ✈, envelope ✉, victory hand ✌, writing hand ✍,
pencil ✏, check mark ✔, cross mark ✘, multiplication sign ✖, plus sign ✚, asterisk ✱, circled star ✪,
pinwheel star ✯, eight pointed star ✴, twelve pointed star ✹, snowflake ❄, four diamonds ❖, quotation mark ❝,
exclamation mark ❢, floral heart ❦, propeller ❊, curved arrow ➥, feathered arrow ➵, hooked arrow ↪,
looped arrow ↬, zigzag arrow ↯, circular arrow ↻, wavy arrow ↝, arrow pair ⇄, three arrows ⇶,
left right arrow ⬌, north east arrow ⬈, arrowhead ➤, mouse face 🐭, cow face 🐮, cat face 🐱, monkey face 🐵,
face with sunglasses 😎, crying face 😭, sleeping face 😴, face with mask 😷,
face with horns 😈, face with halo 😇, face with tongue 😛, screaming face 😱, dizzy face 😵, double six domino 🂓,
playing card 🂠, joker 🃏, question mark ?, ampersand &, at sign @, percent sign %, dollar sign $, euro sign €,
pound sign £, yen sign ¥, section sign §, pilcrow ¶, hash sign #, copyright sign ©, infinity ∞,
integral sign ∫, square root √, summation sign ∑, pi π, omega Ω, interrobang ‽, reference mark ※,
circled plus ⊕, circled times ⊗, empty set ∅
"""


def _parse(table: str) -> list[tuple[str, str]]:
    entries = [entry.strip().rpartition(" ") for entry in table.replace("\n", " ").split(",")]
    return [(name, glyphs) for name, _, glyphs in entries]


PAIRS: tuple[str, ...] = tuple(name for name, _ in _parse(_PAIRS))
GLYPHS: dict[str, str] = dict(_parse(_SINGLES))
for _name, _both in _parse(_PAIRS):
    GLYPHS[f"filled {_name}"], GLYPHS[f"outlined {_name}"] = tuple(_both)
THINGS: tuple[str, ...] = tuple(sorted(GLYPHS))


@dataclass(frozen=True)
class Sprites:
    """Coverage masks of every (thing, font) variant: `levels[size]` is float [V, 3, size, size] (rim, body, ink) in
    [0, 1]; `variants[name]` lists the rows of one thing; `solid[v]` tells that the strokes fill most of the body."""

    levels: dict[int, torch.Tensor]
    variants: dict[str, list[int]]
    solid: np.ndarray


def _ink(glyph: str, font: Path, size: int) -> np.ndarray | None:
    """The strokes' coverage [size, size], centred, longest side 80 % of the canvas; None if the font lacks it."""
    if ord(glyph) not in FT2Font(str(font)).get_charmap():
        return None
    canvas = Image.new("L", (4 * size, 4 * size))
    ImageDraw.Draw(canvas).text((size, size // 2), glyph, fill=255, font=ImageFont.truetype(str(font), 2 * size))
    cut = canvas.crop(canvas.getbbox())
    scale = 0.8 * size / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))), Image.Resampling.LANCZOS)
    out = Image.new("L", (size, size))
    out.paste(cut, ((size - cut.width) // 2, (size - cut.height) // 2))
    return np.asarray(out, np.float32) / 255


def _sticker(ink: np.ndarray) -> np.ndarray:
    """Strokes -> rim, body, ink [3, size, size]: dilated, narrow gaps bridged, holes filled."""
    size = len(ink)
    outside = ndimage.distance_transform_edt(ink < 0.5)
    closed = ndimage.distance_transform_edt(outside <= 0.07 * size) > 0.07 * size
    body = ndimage.binary_fill_holes((outside <= 0.025 * size) | closed)
    rim = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~body) <= 0.05 * size)
    return np.stack([rim, body, ink]).astype(np.float32)


@lru_cache(maxsize=1)
def sprites() -> Sprites:
    """All pictographs in all fonts, cut once per process (about two seconds)."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    cut: list[np.ndarray] = []
    variants: dict[str, list[int]] = {}
    for name in THINGS:
        inks: list[np.ndarray] = []
        for font in FONTS:
            ink = _ink(GLYPHS[name], folder / font, size=144)
            if ink is not None and all(np.abs(ink - other).mean() > 0.01 for other in inks):
                inks.append(ink)
        variants[name] = list(range(len(cut), len(cut) + len(inks)))
        cut += [_sticker(ink) for ink in inks]
    full = torch.from_numpy(np.stack(cut))
    solid = (full[:, 2].sum((1, 2)) > 0.6 * full[:, 1].sum((1, 2))).numpy()
    levels = {size: torch.nn.functional.interpolate(full, size=(size, size), mode="area") for size in LEVELS}
    return Sprites(levels, variants, solid)
