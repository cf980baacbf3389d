"""The data sets of the study in the folder layout they are expected in (the one detectron2's users know)."""

from __future__ import annotations

from pathlib import Path

from maskclip.data.images import read_json
from maskclip.data.instances import open_coco_instances
from maskclip.data.panoptic import open_coco_panoptic
from maskclip.data.semantic import open_semantic_folder
from maskclip.data.types import Dataset

DATASETS = (
    "coco_train", "coco_val", "coco_split_train", "coco_split_val", "a150", "a150_semantic", "a150_instances", "a847",
    "p59", "p459", "lvis",
)  # fmt: skip


def open_dataset(name: str, root: str | Path, *, limit: int | None = None) -> Dataset:
    """One of the study's data sets under `root`, in the layout written down in docs/data.md; `limit` keeps the first
    images only (`Dataset.first`).

    coco_train, coco_val: COCO panoptic. coco_split_train: COCO instances, base categories, images that have any;
    coco_split_val: base and target categories. a150: ADE20K panoptic; a150_semantic, a150_instances the same images
    for mIoU and AP. a847, p59, p459: semantic. lvis: LVIS v1.
    """
    return _open(name, Path(root)).first(limit)


def _open(name: str, root: Path) -> Dataset:
    coco, ade, ade_full, pascal = (
        root / part for part in ("coco", "ADEChallengeData2016", "ADE20K_2021_17_01", "pascal_ctx_d2")
    )
    match name:
        case "coco_train" | "coco_val":
            year = name.removeprefix("coco_") + "2017"
            json_path = coco / "annotations" / f"panoptic_{year}.json"
            masks = json_path.with_suffix("")  # beside the JSON as downloaded, or one up, as detectron2 wants it
            masks = masks if masks.is_dir() else coco / masks.name
            return open_coco_panoptic(json_path, masks, coco / year, name=name)
        case "coco_split_train" | "coco_split_val":
            year = name.removeprefix("coco_split_") + "2017"
            split = read_split(root)
            only = split["base"] + (split["target"] if year == "val2017" else [])
            json_path = coco / "annotations" / f"instances_{year}.json"
            return open_coco_instances(json_path, coco / year, only=only, annotated=True, name=name)
        case "a150":
            json_path, masks = ade / "ade20k_panoptic_val.json", ade / "ade20k_panoptic_val"
            return open_coco_panoptic(json_path, masks, ade / "images" / "validation", name=name)
        case "a150_instances":
            return open_coco_instances(ade / "ade20k_instance_val.json", ade / "images" / "validation", name=name)
        case "a150_semantic":
            folders = ade / "images" / "validation", ade / "annotations_detectron2" / "validation"
            return open_semantic_folder(*folders, _names(ade, "categories.json", "objectInfo150.txt"), name=name)
        case "a847":
            folders = ade_full / "images_detectron2" / "validation", ade_full / "annotations_detectron2" / "validation"
            return open_semantic_folder(*folders, _names(ade_full, "categories.json", "categories.txt"), name=name)
        case "p59" | "p459":
            folders = pascal / "images" / "validation", pascal / f"annotations_ctx{name[1:]}" / "validation"
            names = _names(pascal, f"categories_{name[1:]}.json", f"categories_{name[1:]}.txt")
            return open_semantic_folder(*folders, names, name=name)
        case "lvis":
            images = root / "lvis" / "val2017" if (root / "lvis" / "val2017").is_dir() else coco / "val2017"
            return open_coco_instances(root / "lvis" / "lvis_v1_val.json", images, name=name)
    raise ValueError(f"there is no data set {name!r}; it must be one of {', '.join(DATASETS)}.")


def read_split(root: str | Path) -> dict[str, list[str]]:
    """The COCO base/target split, {"base": names, "target": names}, from coco/annotations/split.json under `root`."""
    path = Path(root) / "coco" / "annotations" / "split.json"
    split = read_json(path)
    lists = [split.get("base"), split.get("target")] if isinstance(split, dict) else []
    whole = lists and all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists)
    if not whole or set(split["base"]) & set(split["target"]):
        raise ValueError(f'{path} must be {{"base": [names], "target": [names]}} with no name in both.')
    return split


def _names(folder: Path, *candidates: str) -> Path:
    return next((folder / name for name in candidates if (folder / name).is_file()), folder / candidates[0])
