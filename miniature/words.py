"""Words of the miniature: what there is to draw, how people call it, and which data set knows it by which name.

`words/things.txt` holds the things, `words/stuff.txt` the stuff, `words/sets.txt` each data set's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

ARTISTS = ("nora", "max", "faye")  # of the COCO and LVIS mirrors, the ADE20K mirrors, the PASCAL Context mirrors
SETS = ("coco", "ade150", "ade847", "p59", "p459", "lvis")
PLACES = {"f": "field", "s": "street", "w": "water", "a": "air", "r": "room", "t": "table", "b": "beach", "n": "snow"}
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


def rows(file: str) -> list[list[str]]:
    """The table's rows, split at `|`; comments and empty lines left out."""
    lines = (_FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if line.strip() and line[0] != "#"]


def _comma(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(",") if part.strip())


@cache
def things() -> dict[str, Thing]:
    """Every thing by the world's own name, in the table's order.

    Raises:
        ValueError: a row of the table has not eight cells, names a place there is not, or a name stands twice.
    """
    home = {"nora": "noto", "max": "material", "faye": "awesome"}
    letters = {"n": "noto", "m": "material", "f": "awesome", "p": "phosphor"}
    out: dict[str, Thing] = {}
    taken: set[str] = set()
    for cells in rows("things.txt"):
        if len(cells) != 8 or not set(cells[3]) <= set(PLACES):
            raise ValueError(f"things.txt: {cells[0]!r} needs eight cells and places among {''.join(PLACES)}")
        drawings = {}
        for artist, cell in zip(ARTISTS, cells[5:], strict=True):
            pairs = [(letters[d[0]], d[2:]) if d[1:2] == ":" else (home[artist], d) for d in cell.split()]
            drawings[artist] = tuple(pairs)
        names = _comma(cells[0])
        if taken & set(names):
            raise ValueError(f"things.txt: {', '.join(sorted(taken & set(names)))} is named twice")
        taken.update(names)
        out[names[0]] = Thing(names, cells[1], int(cells[2]), frozenset(cells[3]), tuple(cells[4].split()), drawings)
    return out


@cache
def stuff() -> dict[str, tuple[str, ...]]:
    """Names of every stuff by the world's own; the texture is the function of that name in `textures`."""
    return {_comma(cells[0])[0]: _comma(cells[0]) for cells in rows("stuff.txt")}


@cache
def vocabulary(dataset: str) -> Vocabulary:
    """Names of one of `SETS` as far as they can be drawn by its artist; `name = word` where the world says otherwise.

    Raises:
        ValueError: a name's word is neither a thing nor a stuff of the world.
    """
    found: tuple[dict[str, str], dict[str, str]] = {}, {}
    for kind, name, *in_sets in rows("sets.txt"):
        if dataset in in_sets[0].split():
            own, _, word = (part.strip() for part in name.partition("="))
            word = word or own
            if word not in things() and word not in stuff():
                raise ValueError(f"sets.txt: the world has nothing called {word!r}")
            found[kind == "stuff"][own] = word
    return Vocabulary(*found)


@cache
def coco_split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """COCO's base and target names (48 and 17) as zero-shot detection split them (Bansal et al. 2018)."""
    base, target = (
        (_FOLDER / f"coco_{part}.txt").read_text(encoding="utf-8").split("\n") for part in ("base", "target")
    )
    return tuple(n for n in base if n), tuple(n for n in target if n)


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
        for word in {**vocabulary(dataset).things, **vocabulary(dataset).stuff}.values():
            weight[word] += more
    return {word: (w / max(weight.values())) ** 0.5 for word, w in weight.items()}
