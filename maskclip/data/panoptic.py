"""COCO panoptic format: one JSON, one PNG of segment ids per image."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .images import read_image, read_json, read_panoptic_ids
from .sample import Category, Dataset, Sample, Segment


class Rule(NamedTuple):
    """What a field of the JSON must be: a test, its words for the error, and whether the field may be missing."""

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


def open_coco_panoptic(
    json_path: str | Path, masks: str | Path, images: str | Path, *, name: str | None = None
) -> Dataset:
    """A data set in COCO panoptic format: COCO 2017, ADE20K as `prepare_ade20k_pan_seg.py` writes it, the miniature.

    json_path: the JSON with "images", "annotations" (segments_info) and "categories" (isthing); masks: folder of the
    PNGs; images: folder of the pictures. Classes are counted in the order of the JSON's categories. A segment of the
    JSON may be wholly hidden in the PNG, as ADE20K's stuff is under things.
    """
    json_path, masks, images = Path(json_path), Path(masks), Path(images)
    content = read_json(json_path)
    categories = read_categories(require(content, "categories", json_path), json_path)
    index = {category.id: i for i, category in enumerate(categories)}
    infos = index_images(content, json_path, {})
    rules = {"image_id": IMAGE_ID, "file_name": TEXT, "segments_info": SEGMENTS}
    check(require(content, "annotations", json_path), rules, json_path, "the annotation of image", key="image_id")
    annotations = index_by(content["annotations"], "image_id", json_path)
    for image_id, annotation in annotations.items():
        if image_id not in infos:
            raise ValueError(f"{json_path}: image_id {image_id} has an annotation but is not among its images; add it.")
        check(annotation["segments_info"], SEGMENT, json_path, f"image {image_id}, segment")
        for segment in index_by(annotation["segments_info"], "id", f"{json_path}, image {image_id}").values():
            if segment["category_id"] not in index:
                raise ValueError(
                    f"{json_path}: image {image_id} has a segment of category_id {segment['category_id']}, "
                    "which is not among its categories; add the category or correct the id."
                )

    def paths(image_id: int | str) -> list[Path]:
        return [images / picture_name(infos[image_id]), masks / annotations[image_id]["file_name"]]

    def read(image_id: int | str) -> Sample:
        image_path, mask_path = paths(image_id)
        image = read_image(image_path)
        ids = read_panoptic_ids(mask_path)
        same_size(image, ids.shape, image_path, mask_path)
        segments_info = annotations[image_id]["segments_info"]
        present = set(np.unique(ids).tolist()) - {0}
        listed = {segment["id"] for segment in segments_info}
        if present - listed:
            raise ValueError(
                f"{mask_path} has segments {sorted(present - listed)[:5]} that {json_path} does not list for image "
                f"{image_id}; take both files from the same release."
            )
        semantic = np.full(ids.shape, -1, np.int32)
        segments, hidden = [], []
        for info in segments_info:
            category = index[info["category_id"]]
            crowd, isthing = bool(info.get("iscrowd", 0)), categories[category].isthing
            if info["id"] not in present:
                hidden += [] if crowd else [category]
                continue
            if info.get("area", 1) < 1:  # PQ's union is counted from it
                raise ValueError(
                    f"{json_path}: image {image_id}, segment {info['id']} has the area {info['area']}, but {mask_path} "
                    "shows it; write its number of pixels."
                )
            segment = Segment(category, ids == info["id"], crowd, isthing, info.get("area"))
            semantic[segment.mask] = segment.category
            segments.append(segment)
        return Sample(image_id, image_path.name, image, segments, semantic, hidden)

    return Dataset(name or json_path.stem, categories, list(annotations), read, paths, json_path)


def open_coco_sample(folder: str | Path, *, limit: int | None = None) -> Dataset:
    """A folder laid out as panopticapi's sample data: panoptic_examples.json, panoptic_examples/ (PNGs),
    input_images/. Real photographs, for trying the whole chain (`python -m maskclip.sample FOLDER OUT`)."""
    folder = Path(folder)
    missing = [p for p in ("panoptic_examples.json", "panoptic_examples", "input_images") if not (folder / p).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} {'lacks ' + missing[0] if folder.is_dir() else 'is no folder'}; give a folder that holds "
            "panoptic_examples.json, panoptic_examples/ (the PNGs it names) and input_images/ (the photographs)."
        )
    return open_coco_panoptic(
        folder / "panoptic_examples.json", folder / "panoptic_examples", folder / "input_images"
    ).first(limit)


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
