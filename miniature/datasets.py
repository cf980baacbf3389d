"""Writes the miniature's data sets in the very formats of COCO, ADE20K, PASCAL Context and LVIS.

| folder               | mirrors                | artist, style  | scenes                          |
|----------------------|------------------------|----------------|---------------------------------|
| coco                 | COCO panoptic          | nora, sticker  | of every kind                   |
| ADEChallengeData2016 | A-150                  | max, print     | rooms and streets               |
| ADE20K_2021_17_01    | A-847, same pictures   | max, print     | rooms and streets               |
| pascal_ctx_d2        | P-59 and P-459         | faye, chalk    | fields, streets, water, air     |
| lvis                 | LVIS v1                | nora, sticker  | as COCO's, many small rare things |

A folder is written beside its place and moved there whole, with a `.done` manifest in it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from miniature.painting import paint, to_uint8
from miniature.scenes import GROUNDS, Recipe, random_scene
from miniature.textures import texture_bank
from miniature.words import Vocabulary, coco_split, drawn_by, frequency, vocabulary

VERSION = 4  # of the data's look; a change makes older folders stale
BANK_SIZE = 192
LEAST_AREA = 12  # pixels: what shows less is not annotated


@dataclass
class Annotated:
    """A picture with every nameable segment, by the world's words: masks do not overlap; the rest is void."""

    image: np.ndarray
    names: list[str]
    masks: list[np.ndarray]
    crowd: list[bool]


def _words(known: Vocabulary) -> tuple[str, ...]:
    """The drawings, not textures, that a vocabulary names."""
    return tuple(
        w
        for w in [*known.things.values(), *known.stuff.values()]
        if w in set(drawn_by("nora") + drawn_by("max") + drawn_by("faye"))
    )


def lvis_frequency() -> dict[str, str]:
    """LVIS's f, c, r for each of its names: a third each, the oftener spoken of the more frequent."""
    names = vocabulary("lvis").things
    order = sorted(names, key=lambda n: (-frequency()[names[n]], n))
    return {n: "fcr"[3 * i // len(order)] for i, n in enumerate(order)}


def recipe(dataset: str) -> Recipe:
    """What the pictures of "coco", "ade", "pascal" or "lvis" are made of."""
    everywhere = dict.fromkeys(GROUNDS, 1.0)
    if dataset == "coco":
        likely = _words(vocabulary("coco"))
        return Recipe(("nora",), ("sticker",), everywhere, likely, _other("nora", likely), 0.05)
    if dataset == "ade":
        places = {"room": 0.5, "street": 0.35, "field": 0.1, "water": 0.05}
        likely = _words(vocabulary("ade150"))
        return Recipe(("max",), ("print",), places, likely, _other("max", likely), 0.25)
    if dataset == "pascal":
        places = {"field": 0.3, "street": 0.25, "water": 0.15, "air": 0.1, "room": 0.2}
        likely = _words(vocabulary("p59"))
        return Recipe(("faye",), ("chalk",), places, likely, _other("faye", likely), 0.25)
    often = {"f": 6, "c": 3, "r": 1}
    names = vocabulary("lvis").things
    likely = tuple(names[n] for n, f in lvis_frequency().items() for _ in range(often[f]))
    places = everywhere | {"table": 3.0, "room": 3.0}
    return Recipe(("nora",), ("sticker",), places, likely, _other("nora", likely), 0.03, count=(4, 11), scale=0.85)


def _other(artist: str, likely: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in drawn_by(artist) if n not in set(likely))


def annotated_scene(rng: np.random.Generator, made_of: Recipe, bank: torch.Tensor) -> Annotated:
    """One picture of a recipe, its shorter side 128 pixels; now and then with a strip that shows nothing nameable."""
    long = int(rng.integers(128, 177))
    height, width = (128, long) if rng.random() < 0.6 else (long, 128)
    scene, crowd = random_scene(rng, made_of, width / 128, height / 128)
    picture, owner, region = (out[0] for out in paint([scene], bank, height, width))
    alone = len(scene.things) - crowd
    names = [t.name for t in scene.things[: alone + bool(crowd)]]
    labels = torch.where(owner >= 0, owner.clamp(max=max(0, len(names) - 1)), len(names) + region).numpy()
    image = to_uint8(picture)
    if rng.random() < 0.08:  # a strip as of a scanner or a letterbox
        strip = np.s_[:, : int(rng.integers(6, 14))] if rng.random() < 0.5 else np.s_[-int(rng.integers(6, 14)) :, :]
        labels[strip], image[strip] = -1, rng.integers(0, 256, 3)
    out = Annotated(image, [], [], [])
    for i, name in enumerate([*names, *scene.stuff]):
        mask = labels == i
        if mask.sum() >= LEAST_AREA:
            out.names.append(name)
            out.masks.append(mask)
            out.crowd.append(bool(crowd) and i == alone)
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
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [0]])
    change = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], change, [mask.size]]))
    return {"counts": counts.tolist()[: len(counts) - (counts[-1] == 0)], "size": list(mask.shape)}


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def _image_entry(image_id: int, file_name: str, picture: np.ndarray) -> dict:
    return {"id": image_id, "file_name": file_name, "height": picture.shape[0], "width": picture.shape[1]}


def _dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


class _Collected:
    """Images and annotations of one COCO file; `ids` are of the world's words, `names` what the data set calls them."""

    def __init__(self, known: Vocabulary, ids: Callable[[int], int], things_only: bool) -> None:
        words = known.things if things_only else known.things | known.stuff
        self.things = frozenset(known.things.values())
        self.ids = {word: ids(i) for i, word in enumerate(words.values())}
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.categories: list[dict] = [
            {
                "id": self.ids[w],
                "name": n,
                "isthing": int(w in self.things),
                "supercategory": "thing" if w in self.things else "stuff",
            }
            for n, w in words.items()
        ]

    def add_instances(self, entry: dict, scene: Annotated, skip: frozenset[int] = frozenset()) -> None:
        """The picture's things, each by its shape."""
        self.images.append(entry)
        for i, (name, mask, crowd) in enumerate(zip(scene.names, scene.masks, scene.crowd, strict=True)):
            if name in self.ids and i not in skip:
                shape = uncompressed_rle(mask) if crowd else polygons(mask)
                where = {"bbox": _box(mask), "area": int(mask.sum()), "segmentation": shape, "iscrowd": int(crowd)}
                head = {"id": len(self.annotations) + 1, "image_id": entry["id"], "category_id": self.ids[name]}
                self.annotations.append(head | where)

    def add_panoptic(self, entry: dict, scene: Annotated, folder: Path, rng: np.random.Generator) -> None:
        """The picture's segments and their PNG; all stuff of one name is one segment."""
        merged: dict[object, tuple[str, np.ndarray, bool]] = {}
        for i, (name, mask, crowd) in enumerate(zip(scene.names, scene.masks, scene.crowd, strict=True)):
            if name in self.ids:
                key = i if name in self.things else name
                whole = mask | merged[key][1] if key in merged else mask
                merged[key] = (name, whole, crowd and name in self.things)
        canvas = np.zeros(scene.image.shape[:2], np.int64)
        segments = []
        numbers = rng.choice(2**24 - 1, len(merged), replace=False) + 1
        for (name, mask, crowd), number in zip(merged.values(), numbers, strict=True):
            canvas[mask] = number
            what = {"id": int(number), "category_id": self.ids[name], "iscrowd": int(crowd)}
            segments.append(what | {"bbox": _box(mask), "area": int(mask.sum())})
        file_name = Path(entry["file_name"]).with_suffix(".png").name
        colours = np.stack([canvas % 256, canvas // 256 % 256, canvas // 65536], -1)
        _save(folder / file_name, colours.astype(np.uint8))
        self.images.append(entry)
        self.annotations.append({"image_id": entry["id"], "file_name": file_name, "segments_info": segments})

    def write(self, path: Path) -> None:
        """The JSON file."""
        head = {"info": {"description": "miniature"}, "licenses": [], "images": self.images}
        _dump(path, head | {"annotations": self.annotations, "categories": self.categories})


def _indices(scene: Annotated, known: Vocabulary, kind: type, void: int) -> np.ndarray:
    """Semantic map of class indices, things first."""
    index = {word: i for i, word in enumerate([*known.things.values(), *known.stuff.values()])}
    out: np.ndarray = np.full(scene.image.shape[:2], void, kind)
    for name, mask in zip(scene.names, scene.masks, strict=True):
        if name in index:
            out[mask] = index[name]
    return out


def _listed(known: Vocabulary) -> list[dict]:
    return [{"id": i, "name": n, "isthing": int(n in known.things)} for i, n in enumerate(known.names)]


def _write_coco(out: Path, seed: int, bank: torch.Tensor, train: int, val: int) -> None:
    known = vocabulary("coco")
    for split, count, stream in (("train2017", train, 0), ("val2017", val, 1)):
        ids = lambda i: 1 + i + i // 9  # noqa: E731  # with gaps, as COCO's
        panoptic, instances = _Collected(known, ids, False), _Collected(known, ids, True)
        for i in range(count):
            rng = np.random.default_rng([seed, stream, i])
            scene = annotated_scene(rng, recipe("coco"), bank)
            number = 1000 * stream + 3 * i + 9
            entry = _image_entry(number, f"{number:012d}.jpg", scene.image)
            _save(out / split / entry["file_name"], scene.image, quality=92)
            panoptic.add_panoptic(entry, scene, out / "annotations" / f"panoptic_{split}", rng)
            instances.add_instances(entry, scene)
        panoptic.write(out / "annotations" / f"panoptic_{split}.json")
        instances.write(out / "annotations" / f"instances_{split}.json")
    base, target = coco_split()
    _dump(out / "annotations" / "split.json", {"base": base, "target": target})


def _ade_scenes(seed: int, bank: torch.Tensor, count: int) -> Iterator[tuple[str, Annotated, np.random.Generator]]:
    """The same pictures for the short and the long vocabulary."""
    for i in range(count):
        rng = np.random.default_rng([seed, 2, i])
        yield f"ADE_val_{i + 1:08d}", annotated_scene(rng, recipe("ade"), bank), rng


def _write_ade_short(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    known = vocabulary("ade150")
    panoptic, instances = _Collected(known, int, False), _Collected(known, int, True)
    for i, (stem, scene, rng) in enumerate(_ade_scenes(seed, bank, count)):
        entry = _image_entry(i + 1, f"{stem}.jpg", scene.image)
        _save(out / "images" / "validation" / f"{stem}.jpg", scene.image, quality=92)
        _save(out / "annotations_detectron2" / "validation" / f"{stem}.png", _indices(scene, known, np.uint8, 255))
        panoptic.add_panoptic(entry, scene, out / "ade20k_panoptic_val", rng)
        instances.add_instances(entry, scene)
    panoptic.write(out / "ade20k_panoptic_val.json")
    instances.write(out / "ade20k_instance_val.json")
    _dump(out / "categories.json", _listed(known))


def _write_ade_full(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    known = vocabulary("ade847")
    for stem, scene, _ in _ade_scenes(seed, bank, count):
        _save(out / "images_detectron2" / "validation" / f"{stem}.jpg", scene.image, quality=92)
        _save(out / "annotations_detectron2" / "validation" / f"{stem}.tif", _indices(scene, known, np.uint16, 65535))
    _dump(out / "categories.json", _listed(known))


def _write_pascal(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    short, long = vocabulary("p59"), vocabulary("p459")
    for i in range(count):
        scene = annotated_scene(np.random.default_rng([seed, 3, i]), recipe("pascal"), bank)
        stem = f"2008_{i + 1:06d}"
        _save(out / "images" / "validation" / f"{stem}.jpg", scene.image, quality=92)
        _save(out / "annotations_ctx59" / "validation" / f"{stem}.png", _indices(scene, short, np.uint8, 255))
        _save(out / "annotations_ctx459" / "validation" / f"{stem}.tif", _indices(scene, long, np.uint16, 65535))
    _dump(out / "categories_59.json", _listed(short))
    _dump(out / "categories_459.json", _listed(long))


def _write_lvis(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    """LVIS is federated: an image lists names sought in vain (negative) and those of which not all were marked."""
    instances = _Collected(vocabulary("lvis"), lambda i: i + 1, True)
    ids = instances.ids
    for i in range(count):
        rng = np.random.default_rng([seed, 4, i])
        scene = annotated_scene(rng, recipe("lvis"), bank)
        number = 5000 + 7 * i
        present = [n for n in scene.names if n in ids]
        repeated = sorted({n for n in present if present.count(n) > 1})
        partly = [n for n in repeated if rng.random() < 0.3]
        crowds = {k for k, crowd in enumerate(scene.crowd) if crowd}  # LVIS has no crowds
        skip = {scene.names.index(n) for n in partly} | crowds
        unsure = {*partly, *(scene.names[k] for k in crowds if scene.names[k] in ids)}
        absent = [n for n in ids if n not in present]
        entry = _image_entry(number, f"{number:012d}.jpg", scene.image) | {
            "coco_url": f"val2017/{number:012d}.jpg",
            "neg_category_ids": sorted(ids[str(n)] for n in rng.choice(absent, 6, replace=False)),
            "not_exhaustive_category_ids": sorted(ids[n] for n in unsure),
        }
        _save(out / "val2017" / entry["file_name"], scene.image, quality=92)
        instances.add_instances(entry, scene, frozenset(skip))
    for category in instances.categories:
        marked = [a for a in instances.annotations if a["category_id"] == category["id"]]
        name = str(category["name"])
        category |= {
            "frequency": lvis_frequency()[name],
            "synonyms": [name],
            "synset": f"{name.replace(' ', '_')}.n.01",
        }
        category |= {"def": "a drawing", "instance_count": len(marked)}
        category |= {"image_count": len({a["image_id"] for a in marked})}
    for annotation in instances.annotations:
        del annotation["iscrowd"]
    instances.write(out / "lvis_v1_val.json")


def write_world(
    root: str | Path, seed: int = 0, coco_train: int = 800, coco_val: int = 80, ade: int = 80, pascal: int = 80,
    lvis: int = 100, progress: Callable[[str], None] | None = None,
) -> list[Path]:  # fmt: skip
    """Write all data sets of the miniature below `root`; returns their folders.  Same arguments, same bytes.

    A folder whose `.done` manifest agrees with the arguments is left alone; one with another manifest is replaced.

    Raises:
        ValueError: a count below 1, a negative seed, or a folder in the way that this function did not write.
        OSError: the disk is full or `root` not writable; nothing half-written is left under a data set's name.
    """
    counts = {"coco_train": coco_train, "coco_val": coco_val, "ade": ade, "pascal": pascal, "lvis": lvis}
    for name, value, least in [("seed", seed, 0), *((n, v, 1) for n, v in counts.items())]:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} of the miniature must be a whole number, {least} or more, not {value!r}")
    root = Path(root)
    writers: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
        "coco": (_write_coco, (coco_train, coco_val)), "ADEChallengeData2016": (_write_ade_short, (ade,)),
        "ADE20K_2021_17_01": (_write_ade_full, (ade,)), "pascal_ctx_d2": (_write_pascal, (pascal,)),
        "lvis": (_write_lvis, (lvis,)),
    }  # fmt: skip
    bank: torch.Tensor | None = None
    for folder, (write, sizes) in writers.items():
        final, manifest = root / folder, {"world": VERSION, "seed": seed, "counts": list(sizes)}
        if _up_to_date(final, manifest):
            continue
        if bank is None:
            bank = texture_bank(2 * seed + 1, 6, BANK_SIZE)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder}-", dir=root) as temporary:
            out = Path(temporary) / folder
            out.mkdir()
            write(out, seed, bank, *sizes)
            _dump(out / ".done", manifest)
            if final.exists():
                shutil.rmtree(final)
            os.replace(out, final)
        if progress:
            progress(f"{folder}: written")
    return [root / folder for folder in writers]


def _up_to_date(folder: Path, manifest: dict) -> bool:
    if not folder.exists():
        return False
    if not (folder / ".done").is_file():
        raise ValueError(f"{folder} exists but was not written by the miniature; move it away or choose another folder")
    return json.loads((folder / ".done").read_text()) == manifest
