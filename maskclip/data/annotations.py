"""What annotation files must hold, checked field by field before anything is read by them."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskclip.data.types import Category


class Rule(NamedTuple):
    """What a field of the JSON must be: a test, its words for the error, and whether the field may be missing.

    A JSON schema could say the same, but checking COCO's 860,000 annotations by one takes 17 s, so half a second.
    """

    fits: Callable[[Any], bool]
    wanted: str
    optional: bool = False


WHOLE = Rule(lambda v: type(v) is int, "a whole number")
SIDE = Rule(lambda v: type(v) is int and v > 0, "a whole number of pixels")
TEXT = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a text that is not blank")
FLAG = Rule(lambda v: v in (0, 1), "0 or 1", optional=True)  # not "0", which would count as true
AREA = Rule(lambda v: type(v) in (int, float) and 0 <= v < math.inf, "a number of pixels", optional=True)
IMAGE_ID = Rule(  # a text becomes a file's name in predictions, and must not lead out of their folder
    lambda v: type(v) is int or (TEXT.fits(v) and not set(v) & set("/\\")), "a whole number or a text without slashes"
)
SEGMENT_ID = Rule(lambda v: type(v) is int and 0 < v < 1 << 24, "a whole number from 1 (0 is void) to 16777215")
SEGMENTS = Rule(lambda v: isinstance(v, list), "a list of segments")
SEGMENT = {"id": SEGMENT_ID, "category_id": WHOLE, "iscrowd": FLAG, "area": AREA}
ANNOTATION = {"image_id": IMAGE_ID, "category_id": WHOLE, "iscrowd": FLAG, "area": AREA}  # of instances
SIZE = {"height": SIDE, "width": SIDE}


def read_categories(entries: list[dict], path: Path) -> list[Category]:
    """Categories from JSON entries {"id", "name", "isthing" (default 1)}; ids must differ, and so must names."""
    check(entries, {"id": WHOLE, "name": TEXT, "isthing": FLAG}, path, "category")
    categories = [Category(e["id"], e["name"], bool(e.get("isthing", 1))) for e in entries]
    for what in ("id", "name"):
        value, count = Counter(getattr(c, what) for c in categories).most_common(1)[0] if categories else (None, 0)
        if count > 1:
            raise ValueError(f"{path}: {count} categories share the {what} {value!r}; give each its own.")
    if not categories:
        raise ValueError(f"{path} lists no category; a data set needs at least one.")
    return categories


def require(content: Any, key: str, path: Path) -> list:
    """`content[key]`, or a ValueError that names the file and the missing part."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f"{path} has no list {key!r}; it is not a COCO-style annotation file of this kind.")
    return content[key]


def check(entries: list, rules: dict[str, Rule], path: Path, what: str, key: str = "id") -> None:
    """ValueError, naming the file and the entry by its `key`, unless all entries' fields follow the rules."""
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {what} number {i} is {reprlib.repr(entry)}, but must have {', '.join(rules)}.")
        for field, rule in rules.items():
            if not (rule.fits(entry[field]) if field in entry else rule.optional):
                label = reprlib.repr(entry[key]) if key in entry else f"number {i}"
                got = f"the {field} {reprlib.repr(entry[field])}" if field in entry else f"no {field}"
                raise ValueError(f"{path}: {what} {label} has {got}, which must be {rule.wanted}; correct it.")


def index_images(content: Any, path: Path, rules: dict[str, Rule]) -> dict:
    """The images of the JSON by id; each must have a file_name or, as in LVIS, a coco_url, and follow the rules."""
    images = require(content, "images", path)
    check(images, {"id": IMAGE_ID, "file_name": TEXT._replace(optional=True), **rules}, path, "image")
    check([i for i in images if "file_name" not in i], {"coco_url": TEXT}, path, "without a file_name, image")
    return index_by(images, "id", path)


def index_by(entries: list[dict], key: str, path: Path | str) -> dict:
    """Entries by their `key`, each of which must occur once."""
    indexed = {entry[key]: entry for entry in entries}
    if len(indexed) < len(entries):
        value = Counter(entry[key] for entry in entries).most_common(1)[0][0]
        raise ValueError(f"{path}: {key} {value!r} occurs more than once; keep one entry of each.")
    return indexed


def picture_name(info: dict) -> str:
    """The picture's file name; LVIS has only COCO's address, whose last part it is."""
    return info["file_name"] if "file_name" in info else info["coco_url"].rsplit("/", 1)[-1]


def same_size(image: np.ndarray, size: tuple[int, int], image_path: Path, where: Path | str) -> None:
    """ValueError when the picture [H, W, 3] has not the annotation's `size` (H, W)."""
    if image.shape[:2] != tuple(size):
        raise ValueError(
            f"{image_path} has {image.shape[0]} x {image.shape[1]} pixels (height x width), its annotation in {where} "
            f"{size[0]} x {size[1]}; use the picture the annotation was made for."
        )
