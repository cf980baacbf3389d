"""COCO panoptic format: one JSON, one PNG of segment ids per image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskclip.data.annotations import (
    IMAGE_ID,
    SEGMENT,
    SEGMENTS,
    TEXT,
    check,
    index_by,
    index_images,
    picture_name,
    read_categories,
    require,
    same_size,
)
from maskclip.data.images import read_image, read_json, read_panoptic_ids
from maskclip.data.types import Dataset, Sample, Segment


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
    input_images/. Real photographs, for trying the whole chain (`python -m study.sample FOLDER OUT`)."""
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
