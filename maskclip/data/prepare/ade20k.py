"""ADE20K-150 from the challenge archives: label maps, panoptic segments, instances."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects

from maskclip.data.coco import encode, runs
from maskclip.data.prepare.archives import Archive, File, Source, need_all, need_size, size_of
from maskclip.data.prepare.filling import Placing, filling, names_of, place, put, put_image, put_json, run

FOLDER = "ADEChallengeData2016"
FULL = {"ADE20K_20*": "the full set, for `maskclip prepare ade20k-full`"}
SCENES = Archive(f"{FOLDER}*.zip", f"http://data.csail.mit.edu/places/ADEchallenge/{FOLDER}.zip", FULL)
THINGS = Archive(
    "annotations_instance*.tar*", "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar"
)
# The semantic indices that are stuff, as Mask2Former has them; objectInfo150.txt counts 35 only.
STUFF = (
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
)  # fmt: skip
# The instance archive counts the 100 things from 1, in the order of their semantic indices.
THING_INDEX = [index for index in range(150) if index not in STUFF]
STUFF_VALUES = np.zeros(256, np.uint8)
STUFF_VALUES[np.array(STUFF) + 1] = np.array(STUFF) + 1


class Scene(NamedTuple):
    """One picture, its two annotations, and where picture, label map and panoptic PNG go."""

    picture: File
    semantic: File
    instance: File
    targets: tuple[Path, Path, Path]


def prepare_ade20k(source: Path, target: Path, *, workers: int, training: bool = False) -> dict[str, int]:
    """Write ADEChallengeData2016/ under `target` from the archives, or their unpacked folders,
    under `source`.

    training: also the 20,210 training pictures, which the paper does not use. Returns the pictures
    of each split.

    Raises:
        FileNotFoundError: an archive, picture or annotation is missing.
        ValueError: a file is damaged, of another release, or does not fit its picture.
    """
    splits = {"validation": "val", **({"training": "train"} if training else {})}
    with filling(source, target, FOLDER) as (found, out):
        names = found.file("objectInfo150.txt", SCENES)
        scenes = {folder: _scenes(found, out, folder, short) for folder, short in splits.items()}
        put(out / names.path.name, names.read())
        for folder, short in splits.items():
            results = {kind: out / f"ade20k_{kind}_{short}.json" for kind in ("panoptic", "instance")}
            _prepare_split(scenes[folder], results, f"ADE20K {folder}", workers)
    return {folder: len(scenes[folder]) for folder in splits}


def _scenes(found: Source, out: Path, folder: str, short: str) -> list[Scene]:
    """The split's scenes by name; every picture must have both annotations, they a picture."""
    pictures = found.files(f"{FOLDER}/images/{folder}", ".jpg", SCENES)
    semantic = found.files(f"{FOLDER}/annotations/{folder}", ".png", SCENES)
    instance = found.files(f"annotations_instance/{folder}", ".png", THINGS)
    for maps in (semantic, instance):
        need_all(pictures, maps, f"{FOLDER}/images/{folder}")
        need_all(maps, pictures, next(iter(maps.values())).path.parent)
    scenes = []
    for stem, picture in sorted(pictures.items()):
        images, labels = out / "images" / folder, out / "annotations_detectron2" / folder / f"{stem}.png"
        targets = images / picture.path.name, labels, out / f"ade20k_panoptic_{short}" / labels.name
        scenes.append(Scene(picture, semantic[stem], instance[stem], targets))
    return scenes


def _prepare_split(scenes: list[Scene], results: dict[str, Path], what: str, workers: int) -> None:
    """The split's pictures and maps, then its two JSON files, whose presence says: done."""
    files = [path for scene in scenes for path in scene.targets]
    if all(path.is_file() for path in (*files, *results.values())):
        return
    made = run(prepare_scene, scenes, what, workers=workers)
    names, images = names_of("ade20k_150"), [image for image, _, _ in made]
    categories = [{"id": i, "name": name, "isthing": int(i not in STUFF)} for i, name in enumerate(names)]
    panoptic = [
        {"image_id": image["id"], "file_name": f"{image['id']}.png", "segments_info": segments}
        for image, segments, _ in made
    ]
    instances = [instance for _, _, of_scene in made for instance in of_scene]
    numbered = [{"id": i, **instance} for i, instance in enumerate(instances, 1)]
    put_json(results["panoptic"], {"images": images, "annotations": panoptic, "categories": categories})
    things = [category for category in categories if category["isthing"]]
    put_json(results["instance"], {"images": images, "annotations": numbered, "categories": things})


def prepare_scene(scene: Scene) -> tuple[dict, list[dict], list[dict]]:
    """Write a scene's files, as far as not there -> (image, segments, instances) for the JSON."""
    picture, labels, ids = scene.targets
    semantic, instance = scene.semantic.pixels(), scene.instance.pixels()
    if semantic.ndim != 2 or semantic.dtype != np.uint8 or semantic.max() > 150:
        raise ValueError(
            f"{scene.semantic} is not of the challenge, whose maps have one channel of values 0 to 150; "
            f"fetch {SCENES.address}."
        )
    if instance.ndim != 3 or instance.dtype != np.uint8:
        raise ValueError(f"{scene.instance} is no colour PNG (R category, G instance); fetch {THINGS.address}.")
    size = size_of(semantic)
    need_size(scene.instance, size_of(instance), size, scene.semantic)
    place(Placing(scene.picture, picture, size, str(scene.semantic)))
    put_image(labels, semantic - np.uint8(1))  # 0, void, becomes 255
    categories, things = _thing_categories(instance, scene.instance), np.ascontiguousarray(instance[..., 1])
    id_map, segments = panoptic_segments(semantic, things, categories)
    put_image(ids, id_map.astype("<u4").view(np.uint8).reshape(*id_map.shape, 4)[..., :3])  # R + 256 G + 65536 B
    image = {"id": picture.stem, "file_name": picture.name, "width": size[0], "height": size[1]}
    of_things = dict(zip(categories, segments[len(segments) - len(categories) :]))
    return image, segments, instances_of(things, of_things, picture.stem)


def _thing_categories(instance: np.ndarray, file: File) -> dict[int, int]:
    """{instance: semantic index} of a PNG [H, W, 3]: R category from 1, G instance, 0 none."""
    flat = np.ascontiguousarray(instance[..., :2]).view("<u2").ravel()  # R + 256 G
    pairs = np.unique(flat[runs(flat)[0]])
    categories: dict[int, int] = {}
    for pair in pairs[pairs >= 256].tolist():
        number, category = divmod(pair, 256)
        if not 1 <= category <= 100:
            raise ValueError(f"{file}: instance {number} has category {category}; the challenge has 1 to 100.")
        if number in categories:
            raise ValueError(f"{file}: two categories share the instance {number}; fetch {file.container.name} again.")
        categories[number] = THING_INDEX[category - 1]
    return categories


def panoptic_segments(
    semantic: np.ndarray, things: np.ndarray, categories: dict[int, int]
) -> tuple[np.ndarray, list[dict]]:
    """Stuff pasted, things over it -> (ids int32 [H, W], segments_info), numbered from 1.

    A stuff segment's area and box are those before things cover it, as Mask2Former writes them; one
    that is covered altogether stays listed.

    Args:
        semantic: uint8 [H, W], semantic index + 1, 0 is void.
        things: uint8 [H, W], number of the instance, 0 is none.
        categories: semantic index of each instance.
    """
    stuff = STUFF_VALUES[semantic]
    segments: list[dict] = []
    ids = np.zeros((2, 256), np.int32)
    for pixels, numbers in ((stuff, ids[0]), (things, ids[1])):
        starts, lengths = runs(pixels)
        areas = np.bincount(pixels.reshape(-1)[starts], lengths, 256)
        for value, box in enumerate(find_objects(pixels), 1):
            if box is not None:
                category = value - 1 if pixels is stuff else categories[value]
                numbers[value] = len(segments) + 1
                segment = {"id": len(segments) + 1, "category_id": category, "area": int(areas[value])}
                segments.append({**segment, "bbox": _xywh(box), "iscrowd": 0})
    starts, lengths = runs(stuff, things)
    over, under = things.reshape(-1)[starts], stuff.reshape(-1)[starts]
    ids_of_runs = np.where(over > 0, ids[1][over], ids[0][under])
    return np.repeat(ids_of_runs, lengths).reshape(things.shape), segments


def instances_of(things: np.ndarray, segments: dict[int, dict], image_id: str) -> list[dict]:
    """The instances of a picture as COCO annotations with run-length codes, without their ids.

    Args:
        things: uint8 [H, W], number of the instance, 0 is none.
        segments: the panoptic segment of each instance.
    """
    upright, found = np.ascontiguousarray(things.T), []
    for number, segment in segments.items():
        about = {key: segment[key] for key in ("iscrowd", "category_id", "bbox", "area")}
        code = encode((upright == number).T)  # which runs down the columns
        found.append({"image_id": image_id, **about, "segmentation": code})
    return found


def _xywh(box: tuple[slice, slice]) -> list[int]:
    rows, columns = box
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
