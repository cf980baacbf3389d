"""Writes the miniature's data sets in the very formats of COCO, ADE20K (A-150, A-847), PASCAL Context and LVIS.

A folder is written beside its place and moved there whole, with a `.done` manifest in it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import contourpy
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskclip.data.images import write_panoptic_ids
from maskclip.settings import from_mapping
from miniature.painting import paint_one
from miniature.scenes import Recipe, random_scene
from miniature.textures import texture_bank
from miniature.words import Vocabulary, coco_split, drawn_by, frequency, table, things, vocabulary

VERSION = 5  # of the data's look; a change makes older folders stale
BANK_SIZE = 192
LEAST_AREA = 12  # pixels: what shows less is not annotated


@dataclass
class Annotated:
    """A picture with every nameable segment, by the world's words: masks do not overlap; the rest is void."""

    image: np.ndarray
    names: list[str]
    masks: list[np.ndarray]
    crowd: list[bool]

    @property
    def segments(self) -> list[tuple[str, np.ndarray, bool]]:
        """Name, mask and whether it is a crowd, of each."""
        return list(zip(self.names, self.masks, self.crowd, strict=True))


def lvis_frequency() -> dict[str, str]:
    """LVIS's f, c, r for each of its names: a third each, the oftener spoken of the more frequent."""
    names = vocabulary("lvis").things
    order = sorted(names, key=lambda n: (-frequency()[names[n]], n))
    return {n: "fcr"[3 * i // len(order)] for i, n in enumerate(order)}


@cache
def recipe(dataset: str) -> Recipe:
    """What the pictures of "coco", "ade", "pascal" or "lvis" are made of."""
    made = dict(table("recipes.yaml")[dataset])
    artist, style, known = made.pop("artist"), made.pop("style"), vocabulary(made.pop("words"))
    likely = [word for word in known.words if word in things()]
    if dataset == "lvis":
        times = {"f": 6, "c": 3, "r": 1}
        likely = [known.things[name] for name, often in lvis_frequency().items() for _ in range(times[often])]
    made |= {"artists": [artist], "styles": [style], "likely": likely}
    return from_mapping(Recipe, made | {"rest": [n for n in drawn_by(artist) if n not in likely]}, "recipes.yaml")


def annotated_scene(rng: np.random.Generator, made_of: Recipe, bank: torch.Tensor) -> Annotated:
    """One picture of a recipe, its shorter side 128 pixels; now and then with a strip that shows nothing nameable."""
    long = int(rng.integers(128, 177))
    height, width = (128, long) if rng.random() < 0.6 else (long, 128)
    scene = random_scene(rng, made_of, width / 128, height / 128)
    image, owner, region = paint_one(scene, bank, height, width)
    alone = len(scene.things) - scene.crowd
    names = [t.name for t in scene.things[: alone + bool(scene.crowd)]]  # a crowd is one segment
    labels = np.where(owner >= 0, np.minimum(owner, len(names) - 1), len(names) + region)
    if rng.random() < 0.08:  # a strip as of a scanner or a letterbox
        strip = np.s_[:, : int(rng.integers(6, 14))] if rng.random() < 0.5 else np.s_[-int(rng.integers(6, 14)) :, :]
        labels[strip], image[strip] = -1, rng.integers(0, 256, 3)
    out = Annotated(image, [], [], [])
    for i, name in enumerate([*names, *scene.ground.stuff]):
        if (labels == i).sum() >= LEAST_AREA:
            out.names.append(name)
            out.masks.append(labels == i)
            out.crowd.append(bool(scene.crowd) and i == alone)
    return out


def polygons(mask: np.ndarray) -> list[list[float]] | dict:
    """A mask as COCO polygons or, where these do not cover it well (holes, specks), as uncompressed RLE."""
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    out = [(np.asarray(line)[:-1] - 0.5).round(1).ravel().tolist() for line in lines if len(line) > 4]
    if out:
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(out, *mask.shape))).astype(bool)
        if (drawn & mask).sum() > 0.9 * (drawn | mask).sum():
            return out
    return uncompressed_rle(mask)


def uncompressed_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths, down the columns, zeros first."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F").astype(np.int8), prepend=0))
    return {"counts": np.diff(changes, prepend=0, append=mask.size).tolist(), "size": list(mask.shape)}


def _extent(mask: np.ndarray) -> dict:
    """Box (x, y, width, height) and area in pixels."""
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"bbox": coco_mask.toBbox(code).astype(int).tolist(), "area": int(coco_mask.area(code))}


def _dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=92)  # of a JPEG


class CocoFiles:
    """The pictures and the instance and panoptic annotations of one split; `ids` gives a category's id by its place."""

    def __init__(self, pictures: Path, known: Vocabulary, ids: Callable[[int], int]) -> None:
        self.pictures, self.things = pictures, set(known.things.values())
        self.ids = {word: ids(i) for i, word in enumerate(known.words)}
        self.images: list[dict] = []
        self.panoptic: list[dict] = []
        self.instances: list[dict] = []
        self.categories: list[dict] = []
        for name, word in (known.things | known.stuff).items():
            thing = word in self.things
            kind = {"isthing": int(thing), "supercategory": "thing" if thing else "stuff"}
            self.categories.append({"id": self.ids[word], "name": name} | kind)

    def add(self, number: int, stem: str, scene: Annotated, skip: frozenset[int] = frozenset(), **more: object) -> None:
        """A picture and its things, each by its shape, but for those to `skip`."""
        _save(self.pictures / f"{stem}.jpg", scene.image)
        height, width, _ = scene.image.shape
        self.images.append({"id": number, "file_name": f"{stem}.jpg", "height": height, "width": width} | more)
        for i, (name, mask, crowd) in enumerate(scene.segments):
            if name in self.things and i not in skip:
                head = {"id": len(self.instances) + 1, "image_id": number, "category_id": self.ids[name]}
                shape = uncompressed_rle(mask) if crowd else polygons(mask)
                self.instances.append(head | _extent(mask) | {"segmentation": shape, "iscrowd": int(crowd)})

    def add_panoptic(self, scene: Annotated, folder: Path, rng: np.random.Generator) -> None:
        """The last picture's segments and their PNG; all stuff of one name is one segment."""
        merged: dict[object, tuple[str, np.ndarray, bool]] = {}
        for i, (name, mask, crowd) in enumerate(scene.segments):
            if name in self.things:
                merged[i] = name, mask, crowd
            elif name in self.ids:
                merged[name] = name, mask | merged[name][1] if name in merged else mask, False
        canvas, segments = np.zeros(scene.image.shape[:2], np.int64), []
        numbers = rng.choice(2**24 - 1, len(merged), replace=False) + 1
        for (name, mask, crowd), number in zip(merged.values(), numbers.tolist(), strict=True):
            canvas[mask] = number
            what = {"id": number, "category_id": self.ids[name], "iscrowd": int(crowd)}
            segments.append(what | _extent(mask))
        image = self.images[-1]
        file_name = Path(image["file_name"]).with_suffix(".png").name
        write_panoptic_ids(folder / file_name, canvas)
        self.panoptic.append({"image_id": image["id"], "file_name": file_name, "segments_info": segments})

    def write(self, instances: Path, panoptic: Path | None = None) -> None:
        """The JSON files."""
        head = {"info": {"description": "miniature"}, "licenses": [], "images": self.images}
        only_things = [category for category in self.categories if category["isthing"]]
        _dump(instances, head | {"annotations": self.instances, "categories": only_things})
        if panoptic:
            _dump(panoptic, head | {"annotations": self.panoptic, "categories": self.categories})


def _save_labels(folder: Path, stem: str, scene: Annotated, known: Vocabulary, kind: type[np.integer]) -> None:
    """Semantic map of class indices, things first, void all ones: a PNG of 8 bits or a TIFF of 16."""
    index = {word: i for i, word in enumerate(known.words)}
    labels: np.ndarray = np.full(scene.image.shape[:2], np.iinfo(kind).max, kind)
    for name, mask, _ in scene.segments:
        if name in index:
            labels[mask] = index[name]
    _save(folder / "validation" / f"{stem}{'.png' if kind is np.uint8 else '.tif'}", labels)


def _dump_names(path: Path, known: Vocabulary) -> None:
    _dump(path, [{"id": i, "name": n, "isthing": int(n in known.things)} for i, n in enumerate(known.names)])


@dataclass(frozen=True)
class Pictures:
    """Where pictures come from: picture i of a stream follows from (seed, stream, i)."""

    seed: int

    @cached_property
    def bank(self) -> torch.Tensor:
        """Textures, made when first asked for."""
        return texture_bank(2 * self.seed + 1, 6, BANK_SIZE)

    def __call__(self, dataset: str, stream: int, count: int) -> Iterator[tuple[int, Annotated, np.random.Generator]]:
        """The first pictures of a recipe, each with its number and the generator that drew it."""
        for i in range(count):
            rng = np.random.default_rng([self.seed, stream, i])
            yield i, annotated_scene(rng, recipe(dataset), self.bank), rng


def _write_coco(out: Path, pictures: Pictures, train: int, val: int) -> None:
    annotations = out / "annotations"
    for split, count, stream in (("train2017", train, 0), ("val2017", val, 1)):
        files = CocoFiles(out / split, vocabulary("coco"), lambda i: 1 + i + i // 9)  # with gaps, as COCO's
        for i, scene, rng in pictures("coco", stream, count):
            number = 1000 * stream + 3 * i + 9
            files.add(number, f"{number:012d}", scene)
            files.add_panoptic(scene, annotations / f"panoptic_{split}", rng)
        files.write(annotations / f"instances_{split}.json", annotations / f"panoptic_{split}.json")
    _dump(annotations / "split.json", dict(zip(("base", "target"), coco_split())))


def _write_ade_short(out: Path, pictures: Pictures, count: int) -> None:
    known = vocabulary("ade150")
    files = CocoFiles(out / "images" / "validation", known, int)
    for i, scene, rng in pictures("ade", 2, count):
        stem = f"ADE_val_{i + 1:08d}"
        files.add(i + 1, stem, scene)
        files.add_panoptic(scene, out / "ade20k_panoptic_val", rng)
        _save_labels(out / "annotations_detectron2", stem, scene, known, np.uint8)
    files.write(out / "ade20k_instance_val.json", out / "ade20k_panoptic_val.json")
    _dump_names(out / "categories.json", known)


def _write_ade_full(out: Path, pictures: Pictures, count: int) -> None:
    """The same pictures as the short vocabulary's."""
    known = vocabulary("ade847")
    for i, scene, _ in pictures("ade", 2, count):
        stem = f"ADE_val_{i + 1:08d}"
        _save(out / "images_detectron2" / "validation" / f"{stem}.jpg", scene.image)
        _save_labels(out / "annotations_detectron2", stem, scene, known, np.uint16)
    _dump_names(out / "categories.json", known)


def _write_pascal(out: Path, pictures: Pictures, count: int) -> None:
    short, long = vocabulary("p59"), vocabulary("p459")
    for i, scene, _ in pictures("pascal", 3, count):
        stem = f"2008_{i + 1:06d}"
        _save(out / "images" / "validation" / f"{stem}.jpg", scene.image)
        _save_labels(out / "annotations_ctx59", stem, scene, short, np.uint8)
        _save_labels(out / "annotations_ctx459", stem, scene, long, np.uint16)
    _dump_names(out / "categories_59.json", short)
    _dump_names(out / "categories_459.json", long)


def _write_lvis(out: Path, pictures: Pictures, count: int) -> None:
    """LVIS is federated: an image lists names sought in vain (negative) and those of which not all were marked."""
    files = CocoFiles(out / "val2017", vocabulary("lvis"), lambda i: i + 1)
    for i, scene, rng in pictures("lvis", 4, count):
        present = [n for n in scene.names if n in files.ids]
        repeated = sorted({n for n in present if present.count(n) > 1})
        partly = [n for n in repeated if rng.random() < 0.3]
        crowds = {k for k, crowd in enumerate(scene.crowd) if crowd}  # LVIS has no crowds
        unsure = {*partly, *(scene.names[k] for k in crowds)} & files.ids.keys()
        absent = rng.choice([n for n in files.ids if n not in present], 6, replace=False)
        number, stem = 5000 + 7 * i, f"{5000 + 7 * i:012d}"
        about: dict[str, object] = {"coco_url": f"val2017/{stem}.jpg"}
        about["neg_category_ids"] = sorted(files.ids[str(n)] for n in absent)
        about["not_exhaustive_category_ids"] = sorted(files.ids[n] for n in unsure)
        files.add(number, stem, scene, frozenset({scene.names.index(n) for n in partly} | crowds), **about)
    for category in files.categories:
        name, shown = category["name"], [a["image_id"] for a in files.instances if a["category_id"] == category["id"]]
        category |= {"frequency": lvis_frequency()[name], "synonyms": [name]}
        category |= {"synset": f"{name.replace(' ', '_')}.n.01", "def": "a drawing"}
        category |= {"instance_count": len(shown), "image_count": len(set(shown))}
    for annotation in files.instances:
        del annotation["iscrowd"]
    files.write(out / "lvis_v1_val.json")


def write_world(
    root: str | Path, seed: int = 0, coco_train: int = 800, coco_val: int = 80, ade: int = 80, pascal: int = 80,
    lvis: int = 100,
) -> list[Path]:  # fmt: skip
    """Write all data sets of the miniature below `root`; returns their folders.  Same arguments, same bytes.

    A folder whose `.done` manifest agrees with the arguments is left alone; one with another manifest is replaced.

    Raises:
        ValueError: a count below 1, a negative seed, or a folder in the way that this function did not write.
        OSError: the disk is full or `root` not writable; nothing half-written is left under a data set's name.
    """
    counts = {"coco_train": coco_train, "coco_val": coco_val, "ade": ade, "pascal": pascal, "lvis": lvis}
    for name, value in {"seed": seed, **counts}.items():
        least = 0 if name == "seed" else 1
        if type(value) is not int or value < least:
            raise ValueError(f"{name} of the miniature must be a whole number, {least} or more, not {value!r}")
    writers: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
        "coco": (_write_coco, (coco_train, coco_val)), "ADEChallengeData2016": (_write_ade_short, (ade,)),
        "ADE20K_2021_17_01": (_write_ade_full, (ade,)), "pascal_ctx_d2": (_write_pascal, (pascal,)),
        "lvis": (_write_lvis, (lvis,)),
    }  # fmt: skip
    pictures = Pictures(seed)
    for folder, (write, sizes) in writers.items():
        manifest = {"world": VERSION, "seed": seed, "counts": list(sizes)}
        if not _up_to_date(Path(root) / folder, manifest):
            with _replacing(Path(root) / folder, manifest) as out:
                write(out, pictures, *sizes)
    return [Path(root) / folder for folder in writers]


def _up_to_date(folder: Path, manifest: dict) -> bool:
    if not folder.exists():
        return False
    if not (folder / ".done").is_file():
        raise ValueError(f"{folder} exists but was not written by the miniature; move it away or choose another folder")
    return json.loads((folder / ".done").read_text()) == manifest


@contextmanager
def _replacing(folder: Path, manifest: dict) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `folder`, whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        out = Path(temporary) / folder.name
        yield out
        _dump(out / ".done", manifest)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(out, folder)
