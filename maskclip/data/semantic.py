"""Semantic sets as detectron2's users keep them: a folder of pictures, a folder of label maps, a list of names."""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from maskclip.data.annotations import LARGEST, read_categories
from maskclip.data.images import read_image, read_json, read_labels
from maskclip.data.types import Annotation, Category, Dataset

UNKNOWN = -2  # in place of a class
HEADER = re.compile(r"((id|idx|index|names?|class(es)?|categor(y|ies)|labels?)(\W+|$))+")
NO_CLASS = {"background", "__background__", "void", "unlabeled", "unlabelled", "ignore", "invalid_class_id"}
NUMBERED = re.compile(r"[\[(#]?\s*\d+\s*([:;,\t\])=]|\.\s)|.*[,:;=]\s*\d+$")  # at the front, or at the end
OTHER_FORM = re.compile(r"[#\"'\[{(<*-]|.*[\t;|]|.*,$")  # a comment, JSON, quotes, bullets, columns


def open_semantic_folder(
    images: str | Path, annotations: str | Path, categories: str | Path | Iterable[str], *, name: str | None = None
) -> Dataset:
    """A semantic data set: each label map in `annotations` (PNG or TIFF; a pixel's value is its category's id; void is
    255 in 8-bit files, 65535 in 16-bit ones) belongs to the picture of the same stem in `images`.

    categories: as for `open_categories`. The image ids are the stems, in alphabetical order.
    """
    images, annotations = Path(images), Path(annotations)
    kinds = open_categories(categories)
    lookup = np.full(LARGEST + 2, UNKNOWN, np.int32)
    lookup[[category.id for category in kinds]] = np.arange(len(kinds))
    pictures, labels = _by_stem(images, (".jpg", ".jpeg", ".png")), _by_stem(annotations, (".png", ".tif", ".tiff"))
    if single := sorted(pictures.keys() ^ labels.keys()):
        here, there = (images, annotations) if single[0] in pictures else (annotations, images)
        raise FileNotFoundError(f"{single[0]} is in {here} but not in {there}; each picture needs its label map.")

    @lru_cache(maxsize=1)  # true masks as proposals and mIoU ask for the same one
    def annotation(image_id: int | str) -> Annotation:
        semantic = _classes(labels[str(image_id)], lookup)
        return Annotation(image_id, semantic.shape, semantic=semantic)

    return Dataset(
        name or annotations.name, kinds, sorted(pictures), lambda i: read_image(pictures[str(i)]), annotation,
        lambda i: [pictures[str(i)], labels[str(i)]], annotations, images,
    )  # fmt: skip


def _classes(path: Path, lookup: np.ndarray) -> np.ndarray:
    """A label map as class indices int32 [H, W], -1 where void. lookup: the class of each id."""
    values, void = read_labels(path)
    semantic = lookup[np.minimum(values.view(np.uint32), LARGEST + 1)]  # negative values are large ones here: unknown
    unlabelled = values == void
    if lookup[void] >= 0 and unlabelled.any():
        raise ValueError(
            f"{path} holds the value {void}, which in an 8-bit file means void but is also a category's id; save the "
            "label maps with 16 bits, void as 65535."
        )
    semantic[unlabelled] = -1
    if (semantic == UNKNOWN).any():
        raise ValueError(
            f"{path} holds the value {values[semantic == UNKNOWN][0]}, which is neither a category's id nor void "
            f"({void}); use the label maps counted from 0 (annotations_detectron2) made for these categories."
        )
    return semantic


def open_categories(source: str | Path | Iterable[str]) -> list[Category]:
    """Categories from names, a JSON list of {"id", "name", "isthing"}, a text file (one name a line), or ADE's
    objectInfo150.txt."""
    if not isinstance(source, str | Path):
        names = [str(name) if isinstance(name, str) else name for name in source]  # NumPy's are texts of their own
        return read_categories([{"id": i, "name": name} for i, name in enumerate(names)], Path("the given names"))
    path = Path(source)
    return read_categories(read_json(path) if path.suffix == ".json" else _listed(path), path)


def _listed(path: Path) -> list[dict]:
    """The entries of a text file: names, or Idx (from 1), Ratio, Train, Val, Stuff (0 or 1), Name in columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a JSON or text file with the category names.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
        if lines and re.match(r"Idx\s*\t", lines[0]):
            rows = [re.split(r"\s*\t\s*", line) for line in lines[1:] if line]
            return [{"id": int(r[0]) - 1, "name": r[5], "isthing": 1 - int(r[4])} for r in rows]
    except (IndexError, ValueError) as error:
        raise ValueError(
            f"{path} is neither a UTF-8 list of names nor a table of Idx, Ratio, Train, Val, Stuff, Name ({error})."
        ) from error
    starts = [re.match(r"\D?(\d+)", line) for line in lines]
    counted = [int(start[1]) - place for place, start in enumerate(starts) if start]
    all_counted = len(lines) > 1 and len(counted) == len(lines) and len(set(counted)) == 1
    all_numbered = all(re.match(r"\d+\s", line) for line in lines)
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}: {line!r:.60}"
        if all_counted or all_numbered or NUMBERED.match(line):
            raise ValueError(f"{where} has a number; list names alone, in the order of their ids.")
        if not line or OTHER_FORM.match(line) or (number == 1 and HEADER.fullmatch(line.lower())):
            raise ValueError(f"{where} is no name; list names alone, one a line, in the order of their ids.")
        if line.lower() in NO_CLASS:
            raise ValueError(
                f"{where} is no class, and would shift the others' ids; leave it out (its pixels are void), or list "
                'all classes in a JSON of {"id", "name"}.'
            )
    return [{"id": i, "name": name} for i, name in enumerate(lines)]


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; check the data folder against docs/data.md.")
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.suffix.lower() not in suffixes or path.name.startswith("."):  # as macOS and killed programs leave them
            continue
        if found.setdefault(path.stem, path) != path:
            raise ValueError(f"{path} and {found[path.stem].name} are two files of one stem; keep the right one.")
    if not found:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(suffixes)} file; they must lie in it, not in folders below."
        )
    return found
