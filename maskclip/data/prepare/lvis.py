"""LVIS v1: the validation annotations, and the pictures of both of COCO's splits they are on."""

from pathlib import Path

from maskclip.data.coco import open_coco_instances
from maskclip.data.prepare.archives import Archive, File, Source, need_all
from maskclip.data.prepare.coco import PICTURES
from maskclip.data.prepare.filling import Placing, filling, place, put, run

CATEGORIES = 1203
OLD = {"lvis_v0.5*": "LVIS v0.5, of 1,230 other categories"}
ANNOTATIONS = Archive("lvis_v1_val*.zip", "https://dl.fbaipublicfiles.com/LVIS/lvis_v1_val.json.zip", OLD)


def prepare_lvis(source: Path, target: Path, *, workers: int) -> dict[str, int]:
    """Write lvis/lvis_v1_val.json under `target`, and the pictures that coco/ there lacks.

    Returns the number of validation pictures of each of COCO's splits.

    Raises:
        FileNotFoundError: the annotations or a picture are missing.
        ValueError: a file is damaged, or of LVIS v0.5; a picture has not the annotations' size.
    """
    with filling(source, target, "lvis") as (found, out):
        original, annotations = found.file("lvis_v1_val.json", ANNOTATIONS), out / "lvis_v1_val.json"
        put(annotations, original.read())
        content = open_coco_instances(annotations, out).instances or {}
        if len(content["categories"]) != CATEGORIES:
            raise ValueError(
                f"{original} has {len(content['categories'])} categories, LVIS v1 has {CATEGORIES} and v0.5 1230; "
                f"fetch {ANNOTATIONS.address}."
            )
        wanted: dict[str, dict[str, tuple[int, int]]] = {year: {} for year in PICTURES}
        for image in content["images"]:
            *_, year, name = image.get("coco_url", "").split("/")
            if year not in wanted:
                raise ValueError(
                    f"{original}: image {image['id']} has no coco_url in {' or '.join(wanted)}; correct it."
                )
            wanted[year][name] = (image["width"], image["height"])
        jobs = [
            job for year, sizes in wanted.items() for job in _missing(found, target / "coco" / year, sizes, original)
        ]
        run(place, jobs, "LVIS v1", workers=workers)
    return {year: len(names) for year, names in wanted.items()}


def _missing(found: Source, folder: Path, sizes: dict[str, tuple[int, int]], said_by: File) -> list[Placing]:
    """The pictures that are not in the data folder yet; only for those the archive is needed."""
    missing = [name for name in sizes if not (folder / name).is_file()]
    if not missing:
        return []
    pictures = found.files(folder.name, ".jpg", PICTURES[folder.name])
    need_all((Path(name).stem for name in missing), pictures, said_by)
    return [Placing(pictures[Path(name).stem], folder / name, sizes[name], str(said_by)) for name in missing]
