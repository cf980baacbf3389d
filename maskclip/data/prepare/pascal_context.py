"""PASCAL Context of 59 and of 459 classes, on pictures of VOC 2010."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io

from maskclip.data.coco import decode
from maskclip.data.prepare.archives import Archive, File, Source, need_all, need_size, size_of
from maskclip.data.prepare.filling import Placing, filling, place, put_image, put_names, run

FOLDER = "pascal_ctx_d2"
LATER = {"VOCtrainval*2012*": "VOC 2012", "VOCtrainval*2007*": "VOC 2007", "VOC2012": "VOC 2012", "VOC2007": "VOC 2007"}
VOC = Archive(
    "VOCtrainval_03-May-2010*.tar*",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    LATER,
)
MERGED = Archive("trainval_merged*.zip", "https://codalabuser.blob.core.windows.net/public/trainval_merged.json")
MATS = Archive("trainval.tar*", "https://www.cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz")
# The 59 classes by their number, from 1, among the 459.
CLASSES_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
INDEX_59 = np.full(460, 255, np.uint8)  # void, for the other 400 and for none
INDEX_59[list(CLASSES_59)] = np.arange(59)
PHASES = {"validation": "val", "training": "train"}


class _Merged(NamedTuple):
    """trainval_merged.json: each picture's entry and regions, by its stem."""

    file: File
    pictures: dict[str, tuple[dict, list[dict], Path]]


class Picture(NamedTuple):
    """A picture, what is known of its labels, and where all goes."""

    picture: File
    known: tuple[dict, list[dict], Path] | None  # its entry and regions in trainval_merged.json
    mat: File | None
    out: Path
    split: str


def prepare_pascal_context(source: Path, target: Path, *, workers: int, training: bool = False) -> dict[str, int]:
    """Write pascal_ctx_d2/ under `target` from VOC 2010, trainval_merged.json and trainval.tar.gz
    under `source`.

    trainval_merged.json gives the 59 classes and the split (5,104 validation pictures). Without it
    the 59 come from the .mat files of the 459 and the split from VOC 2010 (5,105, as the paper
    counts). Without the .mat files the 459 are left out. training: also the training pictures,
    which the paper does not use.

    Returns the pictures of each split and the label maps of each set.

    Raises:
        FileNotFoundError: an archive, a picture or a label map is missing.
        ValueError: a file is damaged, or does not fit its picture.
    """
    splits = ("validation", "training") if training else ("validation",)
    with filling(source, target, FOLDER) as (found, out):
        pictures = found.files("VOC2010/JPEGImages", ".jpg", VOC)
        merged, mats = _labels(found)
        jobs = [job for split in splits for job in _jobs(found, pictures, merged, mats, out, split)]
        for classes in ("59", "459"):
            put_names(out / f"categories_{classes}.txt", f"pascal_context_{classes}")
        run(prepare_picture, jobs, "PASCAL Context", workers=workers)
    counts = {split: sum(job.split == split for job in jobs) for split in splits}
    return {**counts, "59": len(jobs), "459": len(jobs) if mats else 0}


def _labels(found: Source) -> tuple[_Merged | None, dict[str, File]]:
    """trainval_merged.json and the .mat files, as far as they are there; one must be."""
    try:
        merged = _read_merged(found.file("trainval_merged.json", MERGED))
    except FileNotFoundError:
        merged = None
    try:
        return merged, found.files("trainval", ".mat", MATS)
    except FileNotFoundError:
        if merged is None:
            raise
        return merged, {}


def _read_merged(file: File) -> _Merged:
    """The pictures and their regions; ValueError where the file contradicts itself."""
    content = file.json()
    try:
        images = {image["image_id"]: image for image in content["images"]}
        regions: dict[int, list[dict]] = {image_id: [] for image_id in images}
        categories = {c["category_id"] for c in content["categories"]} & set(range(460)) | {0}
        if len(images) < len(content["images"]):
            raise ValueError("two images share an image_id")
        for region in content["annos_segmentation"]:
            image_id, category = region["image_id"], region["category_id"]
            if image_id not in images or category not in categories:
                raise ValueError(
                    f"a region is of image {image_id} and category {category}, not both of which there are"
                )
            regions[image_id].append(region)
        return _Merged(
            file, {Path(i["file_name"]).stem: (i, regions[image_id], file.container) for image_id, i in images.items()}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no trainval_merged.json as published ({error!r}); fetch {MERGED.address}."
        ) from error


def _jobs(
    found: Source,
    pictures: dict[str, File],
    merged: _Merged | None,
    mats: dict[str, File],
    out: Path,
    split: str,
) -> list[Picture]:
    """The split's pictures, each of which must be there with all its labels."""
    if merged:
        of_split: dict[str, tuple[dict, list[dict], Path] | None] = {
            stem: known for stem, known in merged.pictures.items() if known[0]["phase"] == PHASES[split]
        }
        said_by: object = merged.file
    else:
        lists = found.files("VOC2010/ImageSets/Main", ".txt", VOC)
        need_all([PHASES[split]], lists, VOC.name)
        said_by = lists[PHASES[split]]
        of_split = dict.fromkeys(lists[PHASES[split]].read().decode().split(), None)
    need_all(of_split, pictures, said_by)
    if mats:
        need_all(of_split, mats, said_by)
    return [Picture(pictures[stem], known, mats.get(stem), out, split) for stem, known in sorted(of_split.items())]


def prepare_picture(job: Picture) -> None:
    """Put a picture and its label maps, those that are not there yet, into place."""
    out, stem = job.out, job.picture.stem
    maps = {59: out / "annotations_ctx59" / job.split / f"{stem}.png"}
    if job.mat:
        maps[459] = out / "annotations_ctx459" / job.split / f"{stem}.tif"
    target = out / "images" / job.split / job.picture.path.name
    if all(path.is_file() for path in maps.values()) and target.is_file():
        return
    classes = {459: read_mat(job.mat)} if job.mat else {}
    classes[59] = paint(*job.known) if job.known else classes[459]
    size = size_of(classes[59])
    if job.mat:
        need_size(job.mat, size_of(classes[459]), size, "trainval_merged.json")
        put_image(maps[459], classes[459] - np.uint16(1), compression="tiff_deflate")  # 0, void, becomes 65535
    put_image(maps[59], INDEX_59[classes[59]])
    place(Placing(job.picture, target, size, "its labels"))


def read_mat(file: File) -> np.ndarray:
    """The numbers of a .mat file's LabelMap, uint16 [H, W]: class 1 to 459, 0 is none."""
    try:
        labels = np.asarray(scipy.io.loadmat(io.BytesIO(file.read()))["LabelMap"])
    except Exception as error:  # scipy raises many kinds
        raise file.damaged(error) from error
    if labels.ndim != 2 or labels.dtype != np.uint16 or labels.max() > 459:
        raise ValueError(f"{file} holds no map of the numbers 0 to 459; fetch {MATS.address}.")
    return labels


def paint(image: dict, regions: list[dict], said_by: Path) -> np.ndarray:
    """The regions' numbers among the 459, later over earlier ones, int32 [H, W]; 0 is none."""
    numbers = np.zeros((image["height"], image["width"]), np.int32)
    for region in regions:
        numbers[decode(region, (image["height"], image["width"]), said_by)] = region["category_id"]
    return numbers
