"""COCO panoptic format: one JSON, one PNG of segment ids per image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .images import read_image, read_json, read_panoptic_ids
from .sample import Category, Dataset, Sample, Segment


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
    infos = index_by(require(content, "images", json_path), "id", json_path)
    annotations = index_by(require(content, "annotations", json_path), "image_id", json_path)
    for image_id, annotation in annotations.items():
        if image_id not in infos:
            raise ValueError(f"{json_path}: image_id {image_id} has an annotation but is not among its images; add it.")
        for segment in annotation["segments_info"]:
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
            segment = Segment(category, ids == info["id"], crowd, isthing, info.get("area"))
            semantic[segment.mask] = segment.category
            segments.append(segment)
        return Sample(image_id, image_path.name, image, segments, semantic, hidden)

    return Dataset(name or json_path.stem, categories, list(annotations), read, paths, json_path)


def open_coco_sample(folder: str | Path, *, limit: int | None = None) -> Dataset:
    """A folder laid out as panopticapi's sample data: panoptic_examples.json, panoptic_examples/ (PNGs),
    input_images/. Real photographs, for trying the whole chain (`python -m maskclip.sample FOLDER OUT`)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with panoptic_examples.json and input_images/ in it.")
    return open_coco_panoptic(
        folder / "panoptic_examples.json", folder / "panoptic_examples", folder / "input_images"
    ).first(limit)


def read_categories(entries: list[dict], path: Path) -> list[Category]:
    """Categories from JSON entries {"id", "name", "isthing" (default 1)}; ids must differ, and so must names."""
    try:
        categories = [Category(int(e["id"]), str(e["name"]), bool(e.get("isthing", 1))) for e in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: every category needs an id and a name; one lacks {error}.") from error
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


def index_by(entries: list[dict], key: str, path: Path) -> dict:
    """Entries by their `key`, each of which must exist and occur once."""
    try:
        indexed = {entry[key]: entry for entry in entries}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: an entry lacks {key!r}; it is not a COCO-style annotation file.") from error
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
