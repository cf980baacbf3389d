"""COCO 2017: pictures, panoptic segments, instances, and the split into 48 and 17."""

from pathlib import Path
from typing import NamedTuple

from maskclip.data.coco import open_coco_instances, open_coco_panoptic
from maskclip.data.images import read_json
from maskclip.data.prepare.archives import Archive, File, Source, need_all
from maskclip.data.prepare.filling import Placing, filling, names_of, place, put, put_json, run

SPLITS = ("val2017", "train2017")
ADDRESS = "http://images.cocodataset.org"
OF_2014 = {"*train2014*": "COCO of 2014", "*val2014*": "COCO of 2014"}
STUFF = {**OF_2014, "stuff*": "COCO-Stuff, whose PNGs hold other labels"}
PICTURES = {year: Archive(f"{year}*.zip", f"{ADDRESS}/zips/{year}.zip", OF_2014) for year in SPLITS}
INSTANCES = Archive("annotations_trainval2017*.zip", f"{ADDRESS}/annotations/annotations_trainval2017.zip", OF_2014)
PANOPTIC = Archive(
    "panoptic_annotations_trainval2017*.zip", f"{ADDRESS}/annotations/panoptic_annotations_trainval2017.zip", STUFF
)
KINDS = (80, 53)  # things and stuff


class Split(NamedTuple):
    """What the owners publish of train2017 or val2017."""

    year: str
    panoptic: File
    instances: File
    pictures: dict[str, File]
    masks: dict[str, File]


def prepare_coco(source: Path, target: Path, *, workers: int) -> dict[str, int]:
    """Write coco/ under `target` from the archives, or their unpacked folders, under `source`.

    The annotations are read and checked before the first picture is written. Returns the pictures
    of each split.

    Raises:
        FileNotFoundError: an archive is missing, or a picture or mask that the annotations name.
        ValueError: a file is damaged, or of another release; annotations contradict themselves or
            the pictures.
    """
    with filling(source, target, "coco") as (found, out):
        splits = [_split(found, year) for year in SPLITS]
        names = {part: names_of(f"coco_{part}") for part in ("base", "target")}
        jobs = [job for split in splits for job in _checked(split, out, names)]
        put_json(out / "annotations" / "split.json", names)
        run(place, jobs, "COCO 2017", workers=workers)
    return {split.year: len(split.pictures) for split in splits}


def _split(found: Source, year: str) -> Split:
    masks = Archive(f"panoptic_{year}*.zip", PANOPTIC.address, PANOPTIC.not_these)  # a zip inside PANOPTIC
    return Split(
        year,
        found.file(f"panoptic_{year}.json", PANOPTIC),
        found.file(f"instances_{year}.json", INSTANCES),
        found.files(year, ".jpg", PICTURES[year]),
        found.files(f"panoptic_{year}", ".png", masks),
    )


def _checked(split: Split, out: Path, names: dict[str, list[str]]) -> list[Placing]:
    """Put the split's JSON files into place and read them -> pictures and masks to place."""
    annotations, pictures = out / "annotations", out / split.year
    panoptic, instances = annotations / f"panoptic_{split.year}.json", annotations / f"instances_{split.year}.json"
    put(panoptic, split.panoptic.read())
    put(instances, split.instances.read())
    sizes, masks = _read_panoptic(split, panoptic, pictures)
    need_all(sizes, split.pictures, split.panoptic)
    need_all(masks, split.masks, split.panoptic)
    need_all(_read_instances(instances, pictures, names), split.pictures, split.instances)
    return [
        Placing(file, folder / file.path.name, sizes.get(stem), str(panoptic))
        for folder, files in ((pictures, split.pictures), (panoptic.with_suffix(""), split.masks))
        for stem, file in files.items()
    ]


def _read_panoptic(split: Split, path: Path, pictures: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Check the panoptic JSON -> its pictures' (width, height) by stem, the stems of its PNGs."""
    categories = open_coco_panoptic(path, path.with_suffix(""), pictures).categories
    things = sum(category.isthing for category in categories)
    if (things, len(categories) - things) != KINDS:
        raise ValueError(
            f"{split.panoptic} has {things} things and {len(categories) - things} stuff categories, COCO 2017 "
            f"has {KINDS[0]} and {KINDS[1]}; fetch {PANOPTIC.address}."
        )
    content = read_json(path)
    sizes = {Path(i["file_name"]).stem: (i.get("width", 0), i.get("height", 0)) for i in content["images"]}
    return sizes, [Path(annotation["file_name"]).stem for annotation in content["annotations"]]


def _read_instances(path: Path, pictures: Path, names: dict[str, list[str]]) -> list[str]:
    """Check the instance JSON -> its pictures' stems. What it read, gigabytes, ends here."""
    content = open_coco_instances(path, pictures, only=names["base"] + names["target"]).instances or {}
    return [Path(image["file_name"]).stem for image in content["images"]]
