"""Words of the miniature: what there is to draw, how people call it, and which data set knows it by which name.

`words/` holds it all as text: things, stuff and its textures, places, each data set's names and recipe, questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ARTISTS = ("nora", "max", "faye")  # of the COCO and LVIS mirrors, the ADE20K mirrors, the PASCAL Context mirrors
SETS = ("coco", "ade150", "ade847", "p59", "p459", "lvis")
_FOLDER = Path(__file__).parent / "words"


@dataclass(frozen=True)
class Thing:
    """One word: its names (the first is the world's own), kind (a hypernym), size 1 to 5, the places where it is at
    home, its usual colours, and its drawings by artist, each `(package, name)`."""

    names: tuple[str, ...]
    kind: str
    size: int
    places: frozenset[str]
    colours: tuple[str, ...]
    drawings: dict[str, tuple[tuple[str, str], ...]]

    @property
    def name(self) -> str:
        """The world's own name."""
        return self.names[0]


@dataclass(frozen=True)
class Vocabulary:
    """A data set's names, things and stuff apart, each with the world's word for it."""

    things: dict[str, str]
    stuff: dict[str, str]

    @property
    def names(self) -> list[str]:
        """All names, things first."""
        return [*self.things, *self.stuff]

    @property
    def words(self) -> list[str]:
        """The world's words, things first."""
        return [*self.things.values(), *self.stuff.values()]


def rows(file: str) -> list[list[str]]:
    """The table's rows, split at `|`; comments and empty lines left out."""
    lines = (_FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if line.strip() and line[0] != "#"]


@cache
def table(file: str) -> Any:
    """A YAML file of `words/`."""
    return yaml.safe_load((_FOLDER / file).read_text(encoding="utf-8"))


def _comma(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(",") if part.strip())


LETTERS = {letter: place for place, letter, _ in rows("places.txt")}  # of places, in things.txt
# What a place is made of, from above to below: one of each part; a picture of `table` shows one thing only.
GROUNDS = {place: tuple(_comma(part) for part in parts.split("/")) for place, _, parts in rows("places.txt")}


def _drawings(artist: str, cell: str) -> tuple[tuple[str, str], ...]:
    """A cell of `things.txt` as (package, name) pairs: `x:name`, or the name alone in the artist's own package."""
    home = {"nora": "noto", "max": "material", "faye": "awesome"}
    packages = {"n": "noto", "m": "material", "f": "awesome", "p": "phosphor"}
    return tuple((packages[d[0]], d[2:]) if d[1:2] == ":" else (home[artist], d) for d in cell.split())


@cache
def things() -> dict[str, Thing]:
    """Every thing by the world's own name, in the table's order.

    Raises:
        ValueError: a row of the table has not eight cells, names a place there is not, or a name stands twice.
    """
    out: dict[str, Thing] = {}
    taken: set[str] = set()
    for cells in rows("things.txt"):
        if len(cells) != 8 or not set(cells[3]) <= set(LETTERS):
            raise ValueError(f"things.txt: {cells[0]!r} needs eight cells and places among {''.join(LETTERS)}")
        names, places = _comma(cells[0]), frozenset(LETTERS[letter] for letter in cells[3])
        if taken & set(names):
            raise ValueError(f"things.txt: {', '.join(sorted(taken & set(names)))} is named twice")
        taken.update(names)
        drawings = {artist: _drawings(artist, cell) for artist, cell in zip(ARTISTS, cells[5:], strict=True)}
        out[names[0]] = Thing(names, cells[1], int(cells[2]), places, tuple(cells[4].split()), drawings)
    return out


@cache
def stuff() -> dict[str, tuple[str, ...]]:
    """Names of every stuff by the world's own; the texture is the function of that name in `textures`."""
    return {_comma(cells[0])[0]: _comma(cells[0]) for cells in rows("stuff.txt")}


def all_names() -> list[str]:
    """Every name of everything, things first."""
    return [name for names in (*(thing.names for thing in things().values()), *stuff().values()) for name in names]


@cache
def vocabulary(dataset: str) -> Vocabulary:
    """Names of one of `SETS` as far as they can be drawn by its artist; `name = word` where the world says otherwise.

    Raises:
        ValueError: a name's word is neither a thing nor a stuff of the world.
    """
    found: dict[str, dict[str, str]] = {"thing": {}, "stuff": {}}
    for kind, name, sets in rows("sets.txt"):
        own, _, word = (part.strip() for part in name.partition("="))
        if dataset in sets.split():
            found[kind][own] = word or own
    if unknown := {word for words in found.values() for word in words.values()} - {*things(), *stuff()}:
        raise ValueError(f"sets.txt: the world has nothing called {', '.join(sorted(unknown))}")
    return Vocabulary(found["thing"], found["stuff"])


@cache
def coco_split() -> tuple[tuple[str, ...], ...]:
    """COCO's base and target names (48 and 17) as zero-shot detection split them (Bansal et al. 2018)."""
    files = (_FOLDER / f"coco_{part}.txt" for part in ("base", "target"))
    return tuple(tuple(file.read_text(encoding="utf-8").splitlines()) for file in files)


@cache
def drawn_by(artist: str) -> tuple[str, ...]:
    """Things that an artist has drawn."""
    return tuple(name for name, thing in things().items() if thing.drawings[artist])


@cache
def hypernyms() -> dict[str, tuple[str, ...]]:
    """Words such as *animal* or *vehicle*, each with the things it holds."""
    kinds = sorted({thing.kind for thing in things().values()})
    clear = [k for k in kinds if k not in ("building", "object", "person", "plant", "sky thing", "street thing", "toy")]
    groups: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in clear if kind not in ("food", "small animal")}
    groups["animal"] = tuple(k for k in kinds if k.endswith("animal"))
    groups["food"] = ("food", "fruit", "vegetable")
    return {word: tuple(n for n, t in things().items() if t.kind in held) for word, held in groups.items()}


@cache
def frequency() -> dict[str, float]:
    """How often the web speaks of each word, largest 1: the more data sets name it the oftener, with a long tail."""
    common = {"coco": 4.0, "ade150": 2.0, "p59": 2.0, "p459": 1.0, "ade847": 0.5, "lvis": 0.5}
    weight = dict.fromkeys([*things(), *stuff()], 1.0)
    for dataset, more in common.items():
        for word in vocabulary(dataset).words:
            weight[word] += more
    return {word: (w / max(weight.values())) ** 0.5 for word, w in weight.items()}
