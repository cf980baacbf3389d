"""COCO's formats: panoptic (a JSON, and a PNG of segment ids per image) and instances (one JSON), which is LVIS's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from maskclip.data.annotations import (
    IMAGE,
    INSTANCE,
    NAMES,
    PANOPTIC,
    SEGMENT,
    TEXT,
    Rule,
    check,
    check_listed,
    index_by,
    read_categories,
)
from maskclip.data.images import read_image, read_json, read_panoptic_ids
from maskclip.data.masks import decode
from maskclip.data.types import Annotation, Category, Dataset, Segment


def open_coco_panoptic(
    json_path: str | Path, masks: str | Path, images: str | Path, *, name: str | None = None
) -> Dataset:
    """A data set in COCO panoptic format: COCO 2017, ADE20K as `prepare_ade20k_pan_seg.py` writes it, the miniature.

    json_path: the JSON with "images", "annotations" (segments_info) and "categories" (isthing); masks: folder of the
    PNGs; images: folder of the pictures. Classes are counted in the order of the JSON's categories. A segment of the
    JSON may be wholly hidden in the PNG, as ADE20K's stuff is under things.
    """
    json_path, masks, images = Path(json_path), Path(masks), Path(images)
    content, categories, infos = _open(json_path, PANOPTIC, "the annotation of image", "image_id")
    entries = index_by(content["annotations"], "image_id", json_path)
    known = {category.id for category in categories}
    for image_id, entry in entries.items():
        where = f"{json_path}, image {image_id}"
        check(entry["segments_info"], SEGMENT, where, "segment")
        check_listed(entry["segments_info"], "category_id", known, where)
        index_by(entry["segments_info"], "id", where)

    def files(image_id: int | str) -> list[Path]:
        return [images / _picture_names(infos[image_id])[0], masks / entries[image_id]["file_name"]]

    @lru_cache(maxsize=1)  # true masks as proposals and PQ ask for the same one
    def annotation(image_id: int | str) -> Annotation:
        mask_path, info = files(image_id)[1], infos[image_id]
        ids, where = read_panoptic_ids(mask_path), f"{json_path}, image {image_id}"
        if ids.shape != (size := (info["height"], info["width"])):
            raise ValueError(f"{where} is {size}, {mask_path} {ids.shape} (height, width); make both alike.")
        try:
            return _segments(image_id, ids, entries[image_id]["segments_info"], categories)
        except ValueError as error:
            raise ValueError(f"{where}: {error} in {mask_path}; take both files from the same release.") from None

    return Dataset(
        name or json_path.stem, categories, list(entries), lambda i: read_image(files(i)[0]), annotation, files,
        json_path, images,
    )  # fmt: skip


def _segments(
    image_id: int | str,
    ids: np.ndarray,
    infos: list[dict],
    categories: list[Category],
) -> Annotation:
    """The segments that a map of ids [H, W] shows, and the classes of those that it hides."""
    index = {category.id: i for i, category in enumerate(categories)}
    shown = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
    if unlisted := sorted(shown.keys() - {0} - {info["id"] for info in infos}):
        raise ValueError(f"it does not list the segments {unlisted[:5]}")
    annotation = Annotation(image_id, ids.shape, semantic=np.full(ids.shape, -1, np.int32))
    for info in infos:
        category, crowd, pixels = index[info["category_id"]], bool(info.get("iscrowd", 0)), shown.get(info["id"], 0)
        if not pixels:
            annotation.hidden += [] if crowd else [category]
            continue
        area = info.get("area")  # PQ's union is counted from it; ADE20K's counts what is hidden, too
        if area is not None and not pixels <= area <= ids.size:
            raise ValueError(f"segment {info['id']} has the area {area:g}, but {pixels} pixels of {ids.size}")
        segment = Segment(category, ids == info["id"], crowd, categories[category].isthing, area)
        annotation.semantic[segment.mask] = category  # type: ignore[index]
        annotation.segments.append(segment)
    if _areas_of_boxes(annotation.segments):
        raise ValueError("the areas are those of the segments' boxes, not of the segments")
    return annotation


def _areas_of_boxes(segments: list[Segment]) -> bool:
    """Whether all areas are those of boxes around what is shown, of which some show less; ADE20K's never all are."""
    if len(segments) < 3 or all(s.area is None or s.area == s.mask.sum() for s in segments):
        return False
    code = coco_mask.encode(np.asfortranarray(np.stack([s.mask for s in segments], -1), np.uint8))
    return [s.area for s in segments] == coco_mask.toBbox(code)[:, 2:].prod(1).tolist()


def open_coco_sample(folder: str | Path, *, limit: int | None = None) -> Dataset:
    """A folder laid out as panopticapi's sample data: panoptic_examples.json, panoptic_examples/ (PNGs),
    input_images/. Real photographs, for trying the whole chain (`python -m study.sample FOLDER OUT`)."""
    folder = Path(folder)
    parts = [folder / part for part in ("panoptic_examples.json", "panoptic_examples", "input_images")]
    for part in parts:
        if not part.exists():
            raise FileNotFoundError(
                f"{folder} {'lacks ' + part.name if folder.is_dir() else 'is no folder'}; give a folder that holds "
                "panoptic_examples.json, panoptic_examples/ (the PNGs it names) and input_images/ (the photographs)."
            )
    return open_coco_panoptic(*parts).first(limit)


def open_coco_instances(
    json_path: str | Path,
    images: str | Path,
    split: str | Path | None = None,
    *,
    name: str | None = None,
    only: Sequence[str] | None = None,
    annotated: bool = False,
) -> Dataset:
    """A data set in COCO or LVIS instance format; masks may overlap, all categories are things.

    images: folder of the pictures; for LVIS, whose images are named by COCO's address, the folder that holds
    train2017/ and val2017/, or one of them. split: the file of a base/target split (`read_split_file`). only: keep
    these category names, in the JSON's order, or of a split its "base" or "target" names. annotated: keep only the
    images with at least one annotation of the categories kept, as the COCO base/target split is trained on.
    """
    json_path, images = Path(json_path), Path(images)
    content, categories, infos = _open(json_path, INSTANCE, "annotation")
    check_listed(content["annotations"], "category_id", {category.id for category in categories}, json_path)
    names = None if split is None else read_split_file(split)
    if names is not None:
        only = [category for group in only or names for category in names[group]]
    if only is not None:
        if missing := sorted(set(only) - {category.name for category in categories}):
            raise ValueError(f"{json_path} has no category named {missing[0]!r}; names must be among its categories.")
        categories = [category for category in categories if category.name in set(only)]
    index = {category.id: i for i, category in enumerate(categories)}
    by_image: dict[int | str, list] = defaultdict(list)
    for entry in content["annotations"]:
        if entry["category_id"] in index:
            by_image[entry["image_id"]].append(entry)

    def files(image_id: int | str) -> list[Path]:
        found = [folder / name for folder in (images, images.parent) for name in _picture_names(infos[image_id])]
        return [next((path for path in found if path.is_file()), found[0])]

    def annotation(image_id: int | str) -> Annotation:
        size = infos[image_id]["height"], infos[image_id]["width"]
        segments = [
            Segment(index[entry["category_id"]], decode(entry, size, json_path), bool(entry.get("iscrowd", 0)))
            for entry in by_image[image_id]
        ]
        return Annotation(image_id, size, segments)

    image_ids = [image_id for image_id in infos if not annotated or by_image[image_id]]
    return Dataset(
        name or json_path.stem, categories, image_ids, lambda i: read_image(files(i)[0]), annotation, files, json_path,
        images, content, names,
    )  # fmt: skip


def read_split_file(path: str | Path) -> dict[str, list[str]]:
    """The names of a base/target split from its JSON, {"base": [names], "target": [names]}."""
    split = read_json(path)
    check([split], {"base": NAMES, "target": NAMES}, path, "split")
    if both := sorted(set(split["base"]) & set(split["target"])):
        raise ValueError(f"{path}: {both[0]!r} is a base and a target name; no name may be in both.")
    return split


def _open(path: Path, rules: dict[str, Rule], what: str, key: str = "id") -> tuple[dict, list[Category], dict]:
    """A file's content, its categories, and its images by their ids; its annotations follow the rules."""
    content = read_json(path)
    for part in ("categories", "images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{path} has no list {part!r}; it is not a COCO-style annotation file of this kind.")
    categories = read_categories(content["categories"], path)
    check(content["images"], IMAGE, path, "image")
    check(
        [i for i in content["images"] if "file_name" not in i], {"coco_url": TEXT}, path, "without a file_name, image"
    )
    infos = index_by(content["images"], "id", path)
    check(content["annotations"], rules, path, what, key)
    check_listed(content["annotations"], "image_id", infos, path)
    return content, categories, infos


def _picture_names(info: dict) -> list[str]:
    """Where a picture may lie in its folder; LVIS has only COCO's address, .../val2017/000000000139.jpg."""
    parts = str(info.get("coco_url") or "").split("/")
    names = [info.get("file_name", ""), parts[-1], "/".join(parts[-2:])]
    return [name for name in names if name]
