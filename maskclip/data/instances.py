"""COCO and LVIS instance format: one JSON with polygons or run-length codes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskclip.data.annotations import (
    ANNOTATION,
    SIZE,
    check,
    index_images,
    picture_name,
    read_categories,
    require,
    same_size,
)
from maskclip.data.images import read_image, read_json
from maskclip.data.types import Dataset, Sample, Segment

FARTHEST = 1e5  # pycocotools' memory grows with the length of a polygon's sides


def open_coco_instances(
    json_path: str | Path,
    images: str | Path,
    *,
    name: str | None = None,
    only: list[str] | None = None,
    annotated: bool = False,
) -> Dataset:
    """A data set in COCO or LVIS instance format; masks may overlap, all categories are things.

    images: folder of the pictures; for LVIS, whose images are named by COCO's address, the folder that holds
    train2017/ and val2017/, or one of them. only: keep these category names, in the JSON's order. annotated: keep only
    the images with at least one annotation of the categories kept, as the COCO base/target split is evaluated.
    """
    json_path, images = Path(json_path), Path(images)
    content = read_json(json_path)
    categories = read_categories(require(content, "categories", json_path), json_path)
    known = {category.id for category in categories}
    if only is not None:
        missing = sorted(set(only) - {category.name for category in categories})
        if missing:
            raise ValueError(f"{json_path} has no category named {missing[0]!r}; names must be among its categories.")
        categories = [category for category in categories if category.name in set(only)]
    index = {category.id: i for i, category in enumerate(categories)}
    infos = index_images(content, json_path, SIZE)
    by_image: dict[int | str, list[dict]] = defaultdict(list)
    check(require(content, "annotations", json_path), ANNOTATION, json_path, "annotation")
    for annotation in content["annotations"]:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in infos or category_id not in known:
            raise ValueError(
                f"{json_path}: annotation {annotation.get('id')} is for image {image_id} and category {category_id}, "
                "not both of which the file lists; add the missing one or correct the id."
            )
        if category_id in index:
            by_image[image_id].append(annotation)
    image_ids = [image_id for image_id in infos if not annotated or by_image[image_id]]

    def paths(image_id: int | str) -> list[Path]:
        info = infos[image_id]
        parts = [picture_name(info)]
        if isinstance(info.get("coco_url"), str):  # .../val2017/000000000139.jpg
            parts.append("/".join(info["coco_url"].rsplit("/", 2)[-2:]))
        found = [folder / part for folder in (images, images.parent) for part in parts]
        return [next((path for path in found if path.is_file()), found[0])]

    def read(image_id: int | str) -> Sample:
        info = infos[image_id]
        (path,) = paths(image_id)
        image = read_image(path)
        same_size(image, (info["height"], info["width"]), path, json_path)
        segments = [
            Segment(index[a["category_id"]], decode(a, info, json_path), bool(a.get("iscrowd", 0)))
            for a in by_image[image_id]
        ]
        return Sample(image_id, path.name, image, segments)

    return Dataset(name or json_path.stem, categories, image_ids, read, paths, json_path, content)


def decode(annotation: dict, info: dict, json_path: Path) -> np.ndarray:
    """The mask of one annotation, bool [H, W], from polygons, plain or compressed run-length code.

    Raises ValueError naming file and annotation; pycocotools would leave what a code does not reach to chance.
    """
    height, width = info["height"], info["width"]
    code: Any = annotation.get("segmentation")
    try:
        if isinstance(code, list):
            _check_polygons(code)
            return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(code, height, width))).astype(bool)
        size, counts = tuple(code["size"]), code["counts"]
        runs = counts if isinstance(counts, list) else run_lengths(counts)
        if not all(type(run) is int and run >= 0 for run in runs):
            raise ValueError("its runs must be whole numbers from 0")
    except Exception as error:  # pycocotools raises bare Exceptions
        raise ValueError(
            f"{json_path}: the segmentation of annotation {annotation.get('id')} is neither polygons nor a run-length "
            f"code ({error}); correct it."
        ) from error
    if size != (height, width) or sum(runs) != height * width:
        raise ValueError(
            f"{json_path}: annotation {annotation.get('id')} is coded for {' x '.join(map(str, size))} pixels in runs "
            f"of {sum(runs)} in all, its image has {height} x {width}; correct it."
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def run_lengths(code: str | bytes) -> list[int]:
    """The runs of COCO's compressed code: six bits a character from "0" on, of which 32 says that the number goes on,
    16 of its last character that it is negative; from the fourth, a run is given less the one two before."""
    runs: list[int] = []
    value = bits = 0
    for character in code.encode() if isinstance(code, str) else code:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError(f"{chr(character)!r} is no character of it")
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (digit & 16) << (bits - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError("it is cut off")
    return runs


def _check_polygons(polygons: list) -> None:
    """Two points are let pass beside a whole polygon: they cover nothing."""
    for polygon in polygons:
        values = np.asarray(polygon)
        if values.ndim != 1 or values.dtype.kind not in "iuf" or values.size % 2 or not (abs(values) < FARTHEST).all():
            raise ValueError("a polygon must be a list of numbers x, y, x, y, ... near the picture")
    if not any(len(polygon) >= 6 for polygon in polygons):
        raise ValueError("a polygon needs three points")
