"""Semantic sets as detectron2's users keep them: a folder of pictures, a folder of label maps, a list of names."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from maskclip.data.annotations import LARGEST, read_categories
from maskclip.data.images import read_image, read_json, read_labels
from maskclip.data.types import Annotation, Category, Dataset

UNKNOWN = -2  # in place of a class


def open_semantic_folder(
    images: str | Path, annotations: str | Path, categories: str | Path | list[str], *, name: str | None = None
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


def open_categories(source: str | Path | list[str]) -> list[Category]:
    """Categories from names, a JSON list of {"id", "name", "isthing"}, a text file (one name a line), or ADE's
    objectInfo150.txt."""
    if isinstance(source, list):
        return [Category(i, name, True) for i, name in enumerate(source)]
    path = Path(source)
    return read_categories(read_json(path) if path.suffix == ".json" else _listed(path), path)


def _listed(path: Path) -> list[dict]:
    """The entries of a text file: names, or Idx (from 1), Ratio, Train, Val, Stuff (0 or 1), Name in columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a JSON or text file with the category names.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if lines and re.match(r"Idx\s*\t", lines[0]):
            rows = [re.split(r"\s*\t\s*", line) for line in lines[1:]]
            return [{"id": int(r[0]) - 1, "name": r[5], "isthing": 1 - int(r[4])} for r in rows]
    except (IndexError, ValueError) as error:
        raise ValueError(
            f"{path} is neither a UTF-8 list of names nor a table of Idx, Ratio, Train, Val, Stuff, Name ({error})."
        ) from error
    for line in lines:
        if re.match(r"\d+\s*[:;,\t]", line):
            raise ValueError(f"{path}: the line {line!r} has a number; list names alone, in the order of their ids.")
    return [{"id": i, "name": name} for i, name in enumerate(lines)]


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; check the data folder against docs/data.md.")
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.suffix.lower() in suffixes and found.setdefault(path.stem, path) != path:
            raise ValueError(f"{path} and {found[path.stem].name} are two files of one stem; keep the right one.")
    return found
