"""COCO's formats: panoptic (a JSON, and a PNG of segment ids per image) and instances (one JSON), which is LVIS's."""

import math
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskclip.data.annotations import FLAG, TEXT, Rule, check, check_alike, index_by, listed, read_categories
from maskclip.data.images import read_image, read_json, read_panoptic_ids
from maskclip.data.types import Annotation, Category, Dataset, Segment

SIDE = Rule(lambda v: type(v) is int and v > 0, "a whole number of pixels")
IMAGE_ID = Rule(  # a text becomes a file's name in predictions, and must not lead out of their folder
    lambda v: type(v) is int or (TEXT.fits(v) and not set(v) & set("/\\")), "a whole number or a text without slashes"
)
IMAGE = {"id": IMAGE_ID, "file_name": TEXT._replace(optional=True), "height": SIDE, "width": SIDE}
SEGMENT = ("id", "category_id", "iscrowd", "area")  # what is read of it
PACKED = Rule(lambda v: isinstance(v, bytes), "a list")
SEGMENT_ID = Rule(lambda v: type(v) is int and 0 < v < 1 << 24, "a whole number from 1 (0 is void) to 16777215")
AREA = Rule(lambda v: type(v) in (int, float) and 0 <= v < math.inf, "a number of pixels", optional=True)
ANY_ID = Rule(lambda v: type(v) in (int, str), "a whole number or a text", optional=True)
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")  # of LVIS's images
NAMES = Rule(lambda v: isinstance(v, list) and all(map(TEXT.fits, v)), "a list of names")
FARTHEST = 1e5  # coordinate of a polygon; pycocotools' memory grows with the length of the sides


def open_coco_panoptic(
    json_path: str | Path, masks: str | Path, images: str | Path, *, name: str | None = None
) -> Dataset:
    """A data set in COCO panoptic format: COCO 2017, ADE20K as `prepare_ade20k_pan_seg.py` writes it, the miniature.

    masks: folder of the PNGs that the JSON names; images: folder of the pictures. Classes are counted in the order of
    the JSON's categories. A segment of the JSON may be wholly hidden in the PNG, as ADE20K's stuff is under things.
    """
    json_path, masks, images = Path(json_path), Path(masks), Path(images)
    content, categories, infos = _open(json_path, _packed)
    check(content["categories"], {"isthing": FLAG._replace(optional=False)}, json_path, "category")
    rules = {"image_id": listed(infos), "file_name": TEXT, "segments_info": PACKED}
    check(content["annotations"], rules, json_path, "the annotation of image", "image_id")
    entries = index_by(content["annotations"], "image_id", json_path)
    index = {category.id: i for i, category in enumerate(categories)}
    rules = {"id": SEGMENT_ID, "category_id": listed(index), "iscrowd": FLAG, "area": AREA}

    def segments(image_id: int | str) -> list[dict]:
        return pickle.loads(entries[image_id]["segments_info"])

    def checked() -> Iterator[dict]:
        for image_id in entries:
            check(segments(image_id), rules, f"{json_path}, image {image_id}", "segment")
            index_by(segments(image_id), "id", f"{json_path}, image {image_id}")
            yield from segments(image_id)

    check_alike(checked(), ("iscrowd", "area"), json_path, "segment")

    def files(image_id: int | str) -> list[Path]:
        info = infos[image_id]
        return [images / (info.get("file_name") or _picture_names(info)[-1]), masks / entries[image_id]["file_name"]]

    @lru_cache(maxsize=1)  # true masks as proposals and PQ ask for the same one
    def annotation(image_id: int | str) -> Annotation:
        mask_path, info = files(image_id)[1], infos[image_id]
        ids = read_panoptic_ids(mask_path)
        try:
            if ids.shape != (info["height"], info["width"]):
                raise ValueError(f"height and width are {info['height'], info['width']}, but {ids.shape}")
            return _segments(image_id, ids, segments(image_id), categories, index)
        except ValueError as error:
            raise ValueError(
                f"{json_path}, image {image_id}: {error} in {mask_path}; take both files from the same release."
            ) from None

    return Dataset(
        name or json_path.stem, categories, list(entries), lambda i: read_image(files(i)[0]), annotation, files,
        json_path, images,
    )  # fmt: skip


def _packed(entry: dict) -> dict:
    """What is needed of an object in a panoptic JSON. Segments are packed: COCO's are more than a million, and as
    dictionaries take a gigabyte in each process that reads them."""
    segments = entry.get("segments_info")
    if isinstance(segments, list):
        lean = [{key: one[key] for key in SEGMENT if key in one} if isinstance(one, dict) else one for one in segments]
        return entry | {"segments_info": pickle.dumps(lean)}
    return {key: entry[key] for key in IMAGE if key in entry} if "height" in entry else entry


def _segments(
    image_id: int | str, ids: np.ndarray, infos: list[dict], categories: list[Category], index: dict
) -> Annotation:
    """The segments that a map of ids [H, W] shows, and the classes of those that it hides."""
    starts, lengths = runs(ids)
    values, places = np.unique(ids.reshape(-1)[starts], return_inverse=True)
    shown = dict(zip(values.tolist(), np.bincount(places, lengths).astype(int).tolist(), strict=True))
    if unlisted := sorted(shown.keys() - {0} - {info["id"] for info in infos}):
        raise ValueError(f"it does not list the segments {unlisted[:5]}")
    if infos and not shown.keys() - {0}:
        raise ValueError(f"none of its {len(infos)} segments has a pixel")
    seen, hidden, place_of = [], [], {0: 0}
    for info in infos:
        category, crowd, pixels = index[info["category_id"]], bool(info.get("iscrowd", 0)), shown.get(info["id"], 0)
        area = info.get("area")  # PQ's union is counted from it; ADE20K's counts what is hidden, too
        if pixels and area is not None and not pixels <= area <= ids.size:
            raise ValueError(f"segment {info['id']} has the area {area:g}, but {pixels} pixels of {ids.size}")
        if pixels:
            seen.append((category, crowd, area))
            place_of[info["id"]] = len(seen)
        elif not crowd:
            hidden.append(category)
    places = np.array([place_of[value] for value in values.tolist()], np.min_scalar_type(len(seen)))[places]
    own = np.repeat(places, lengths).reshape(ids.shape)
    segments = [
        Segment(category, own == place, crowd, categories[category].isthing, area)
        for place, (category, crowd, area) in enumerate(seen, 1)
    ]
    if _areas_of_boxes(segments, [shown[value] for value in place_of if value]):
        raise ValueError("the areas are those of the segments' boxes, not of the segments")
    classes = np.array([-1, *(segment.category for segment in segments)], np.int32)
    semantic = np.repeat(classes[places], lengths).reshape(ids.shape)
    return Annotation(image_id, ids.shape, segments, semantic, own, hidden)


def runs(*maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in maps of one size runs of pixels begin that are equal in each of them, and how long they are.

    There are a hundred times fewer runs than pixels, so what is sorted or looked up by runs costs next to nothing.
    """
    begins = np.zeros(maps[0].size, bool)
    begins[:1] = True
    for flat in (one.reshape(-1) for one in maps):
        begins[1:] |= flat[1:] != flat[:-1]
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=len(begins))


def _areas_of_boxes(segments: list[Segment], pixels: list[int]) -> bool:
    """Whether all areas are those of boxes around what is shown, of which some show less; ADE20K's never all are."""
    areas = [segment.area for segment in segments]
    if len(segments) < 3 or areas == pixels:
        return False
    return areas == [math.prod(np.ptp(axis) + 1 for axis in segment.mask.nonzero()) for segment in segments]


def open_coco_sample(folder: str | Path) -> Dataset:
    """A folder laid out as panopticapi's sample data: panoptic_examples.json, panoptic_examples/ (PNGs),
    input_images/. Real photographs, for trying the whole chain (`python -m study.sample FOLDER OUT`)."""
    parts = [Path(folder) / part for part in ("panoptic_examples.json", "panoptic_examples", "input_images")]
    if missing := [part.name for part in parts if not part.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {missing[0]}; give a folder that holds panoptic_examples.json, panoptic_examples/ (the "
            "PNGs it names) and input_images/ (the photographs)."
        )
    return open_coco_panoptic(*parts)


def open_coco_instances(
    json_path: str | Path,
    images: str | Path,
    split: str | Path | None = None,
    *,
    name: str | None = None,
    only: Iterable[str] | None = None,
    annotated: bool = False,
    federated: bool = False,
) -> Dataset:
    """A data set in COCO or LVIS instance format; masks may overlap, all categories are things.

    images: folder of the pictures; for LVIS, whose images are named by COCO's address, the folder that holds
    train2017/ and val2017/, or one of them. split: the file of a base/target split (`read_split`). only: keep these
    category names, in the JSON's order, or of a split its "base" or "target" names. annotated: keep only the images
    with at least one annotation of the categories kept, as the COCO base/target split is trained on. federated: its
    images must say what they were searched for (`FEDERATED`); without that LVIS would be scored by COCO's rules.
    """
    json_path, images = Path(json_path), Path(images)
    content, categories, infos = _open(json_path)
    known = {category.id for category in categories}
    rules = {"id": ANY_ID, "image_id": listed(infos), "category_id": listed(known), "iscrowd": FLAG, "area": AREA}
    check(content["annotations"], rules, json_path, "annotation")
    check_alike(content["annotations"], ("id", "iscrowd"), json_path, "annotation")
    numbered = [entry for entry in content["annotations"] if "id" in entry]
    if len({entry["id"] for entry in numbered}) < len(numbered):
        index_by(numbered, "id", f"{json_path}, annotations")
    check(content["images"], dict.fromkeys(FEDERATED, category_ids(known, optional=not federated)), json_path, "image")
    check_alike(content["images"], FEDERATED, json_path, "image")
    names = None if split is None else read_split(split)
    if names is not None:
        only = [category for group in only or names for category in names[group]]
    if only is not None:
        categories = _named(set(only), categories, json_path)
    index = {category.id: i for i, category in enumerate(categories)}
    by_image: dict[int | str, list] = defaultdict(list)
    for entry in content["annotations"]:
        if isinstance(code := entry.get("segmentation"), list):
            entry["segmentation"] = _without_lines(code)
        if entry["category_id"] in index:
            by_image[entry["image_id"]].append(entry)

    def files(image_id: int | str) -> list[Path]:
        found = [folder / name for name in _picture_names(infos[image_id]) for folder in (images, images.parent)]
        return [next((path for path in found if path.is_file()), found[0 if "file_name" in infos[image_id] else 1])]

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


def _named(names: set[str], categories: list[Category], path: Path) -> list[Category]:
    """The categories of these names, each of which must be there."""
    if missing := sorted(names - {category.name for category in categories}):
        raise ValueError(f"{path} has no category named {missing[0]!r}; names must be among its categories.")
    return [category for category in categories if category.name in names]


def category_ids(known: Container, optional: bool) -> Rule:
    """The rule of what an LVIS image was searched for."""
    fits = listed(known).fits
    return Rule(lambda v: isinstance(v, list) and all(map(fits, v)), "a list of the file's category ids", optional)


def read_split(path: str | Path) -> dict[str, list[str]]:
    """The names of a base/target split from its JSON, {"base": [names], "target": [names]}."""
    split = read_json(path)
    check([split], {"base": NAMES, "target": NAMES}, path, "split")
    if both := sorted(set(split["base"]) & set(split["target"])):
        raise ValueError(f"{path}: {both[0]!r} is a base and a target name; no name may be in both.")
    names = split["base"] + split["target"]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: {twice[0]!r} stands twice; list each name once.")
    return split


def _open(path: Path, keep: Callable[[dict], dict] | None = None) -> tuple[dict, list[Category], dict]:
    """A file's content, its categories, and its images by their ids; of each object what `keep` keeps."""
    content = read_json(path, keep)
    for part in ("categories", "images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{path} has no list {part!r}; it is not a COCO-style annotation file of this kind.")
    check(content["images"], IMAGE, path, "image")
    unnamed = [image for image in content["images"] if "file_name" not in image]
    check(unnamed, {"coco_url": TEXT}, path, "without a file_name, image")
    return content, read_categories(content["categories"], path), index_by(content["images"], "id", path)


def _picture_names(info: dict) -> list[str]:
    """Where a picture may lie in its folder; LVIS has only COCO's address, .../val2017/000000000139.jpg."""
    parts = str(info.get("coco_url") or "").split("/")
    names = [info.get("file_name", ""), "/".join(parts[-2:]), parts[-1]]  # the name alone may be another folder's
    return [name for name in names if name]


def encode(mask: np.ndarray) -> dict[str, Any]:
    """The compressed run-length code of a mask, bool [H, W], as JSON holds it."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def decode(annotation: dict, size: tuple[int, int], where: Path | str) -> np.ndarray:
    """The mask of one annotation, bool [H, W], from polygons, plain or compressed run-length code.

    Raises ValueError naming `where` and the annotation; pycocotools would leave what a code does not reach to chance.
    """
    code: Any = annotation.get("segmentation")
    try:
        if isinstance(code, list):
            _check_polygons(code)
            code = coco_mask.merge(coco_mask.frPyObjects(_without_lines(code), *size))
        else:
            _check_runs(code, size)
            code = coco_mask.frPyObjects(code, *size) if isinstance(code["counts"], list) else code
        return coco_mask.decode(code).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise ValueError(
            f"{where}: the segmentation of annotation {annotation.get('id')} is neither polygons nor a run-length "
            f"code of its image ({error}); correct it."
        ) from error


def _without_lines(polygons: list) -> list:
    """Polygons less those of two points, which cover nothing: pycocotools takes all for boxes if the first is one."""
    whole = [one for one in polygons if not (isinstance(one, list) and len(one) == 4)]
    return whole or polygons


def _check_polygons(polygons: list) -> None:
    """Two points are let pass beside a whole polygon: they cover nothing."""
    for polygon in polygons:
        values = np.asarray(polygon)
        if values.ndim != 1 or values.dtype.kind not in "iuf" or values.size % 2 or not (abs(values) < FARTHEST).all():
            raise ValueError("a polygon must be a list of numbers x, y, x, y, ... near the picture")
    if not any(len(polygon) >= 6 for polygon in polygons):
        raise ValueError("a polygon needs three points")


def _check_runs(code: Any, size: tuple[int, int]) -> None:
    runs = code["counts"] if isinstance(code["counts"], list) else _run_lengths(code["counts"]).tolist()
    if not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its runs must be whole numbers from 0")
    if tuple(code["size"]) != size or sum(runs) != size[0] * size[1]:
        coded = " x ".join(map(str, code["size"]))
        raise ValueError(f"coded for {coded} pixels in runs of {sum(runs)} in all, its image has {size[0]} x {size[1]}")


def _run_lengths(code: str) -> np.ndarray:
    """The runs of COCO's compressed code: six bits a character from "0" on, of which 32 says that the number goes on,
    16 of its last character that it is negative; from the fourth, a run is given less the one two before."""
    if not re.fullmatch("[0-o]*[0-O]", code):
        raise ValueError("it is cut off, or has a character that is none of the code")
    digits = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    last = digits < 32
    first = np.flatnonzero(np.r_[True, last[:-1]])
    shift = 5 * (np.arange(len(digits)) - first[np.cumsum(last) - last])
    runs = np.add.reduceat((digits & 31) << shift, first) - ((digits & 16) << (shift + 1))[last]
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs
