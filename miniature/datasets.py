"""Writes the miniature world's data sets in the very formats of COCO, ADE20K, PASCAL Context and LVIS.

| folder               | mirrors          | style   | things seen in training |
|----------------------|------------------|---------|-------------------------|
| coco                 | COCO panoptic    | sticker | all 65 (and 8 stuff)    |
| ADEChallengeData2016 | A-150            | pencil  | 30 of 100               |
| ADE20K_2021_17_01    | A-847, same pictures | pencil | 65 of 207            |
| pascal_ctx_d2        | P-59 and P-459   | night   | 18 of 45, 51 of 160     |
| lvis                 | LVIS v1          | sticker | 65 of 207               |

No name with *filled* or *outlined* in it is trained on (claim C18).  A folder is written beside its place and moved
there whole, with a `.done` manifest in it.
"""

from __future__ import annotations

import functools
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

from miniature.pictographs import PAIRS, THINGS
from miniature.scenes import DOMAINS, Scene, Sticker, paint, random_regions, random_stickers, to_uint8
from miniature.textures import STUFF, texture_bank

VERSION = 3  # of the data's look; a change makes older folders stale
BANK_SIZE = 192
LEAST_AREA = 12  # pixels: what shows less is not annotated


@dataclass(frozen=True)
class Vocabularies:
    """Names of every set, the same for every seed of the pictures."""

    base: tuple[str, ...]
    target: tuple[str, ...]
    coco_stuff: tuple[str, ...]
    a150: tuple[str, ...]
    a150_stuff: tuple[str, ...]
    p59: tuple[str, ...]
    p59_stuff: tuple[str, ...]
    p459: tuple[str, ...]

    @property
    def coco(self) -> tuple[str, ...]:
        """The COCO mirror's things, those of its split together."""
        return tuple(sorted(self.base + self.target))


def vocabularies() -> Vocabularies:
    """The names each mirror annotates, drawn once and for all: the same whatever the world's seed."""
    rng = np.random.default_rng(2023)
    paired = {f"{kind} {name}" for name in PAIRS for kind in ("filled", "outlined")}
    single = [str(n) for n in rng.permutation([n for n in THINGS if n not in paired])]
    seen, novel = single[:65], single[65:]
    stuff = [str(n) for n in rng.permutation(STUFF)]

    def draw(known: int, unknown: int, pairs: int) -> tuple[str, ...]:
        """Some trained names, some novel single ones, some novel pairs."""
        picked = [*rng.permutation(seen)[:known], *rng.permutation(novel)[:unknown]]
        picked += [f"{kind} {name}" for name in rng.permutation(PAIRS)[:pairs] for kind in ("filled", "outlined")]
        return tuple(sorted(str(n) for n in picked))

    return Vocabularies(
        base=tuple(sorted(seen[:48])), target=tuple(sorted(seen[48:])), coco_stuff=tuple(sorted(stuff[:8])),
        a150=draw(30, 46, 12), a150_stuff=tuple(sorted(stuff[:5] + stuff[8:17])),
        p59=draw(18, 15, 6), p59_stuff=tuple(sorted(stuff[:4] + stuff[8:18])), p459=draw(51, 63, 23),
    )  # fmt: skip


@dataclass
class Annotated:
    """A picture with every nameable segment: masks do not overlap; what no mask covers is void."""

    image: np.ndarray
    names: list[str]
    masks: list[np.ndarray]
    crowd: list[bool]


def annotated_scene(
    rng: np.random.Generator,
    domain: str,
    likely: Sequence[str],
    rest: Sequence[str],
    stuff: Sequence[str],
    bank: torch.Tensor,
    things: tuple[int, int] = (2, 8),
    sizes: tuple[float, float] = (0.24, 0.62),
    rare: float = 0.1,
) -> Annotated:
    """One picture: 1 to 3 stuff regions, stickers named from `likely` (with probability `rare`, from `rest`), at times
    a crowd of tiny things of one name, and at times a strip that shows nothing nameable."""
    long = int(rng.integers(128, 177))
    height, width = (128, long) if rng.random() < 0.6 else (long, 128)
    low, high = things
    count = low + min(int(rng.poisson((high - low) / 3)), high - low)
    names: list[str] = []
    for _ in range(count):
        pool = rest if rest and rng.random() < rare else likely
        names.append(str(rng.choice(names)) if names and rng.random() < 0.15 else str(rng.choice(pool)))
    most = min(sizes[1], 1.4 / max(1, count) ** 0.5)
    least = sizes[0] * (0.55 if rng.random() < 0.25 else 1)  # small things in a quarter of the pictures
    stickers = list(random_stickers(rng, names, (least, most), width / 128, height / 128))
    group = list(range(len(stickers)))
    crowded = rng.random() < 0.06
    if crowded:
        crowd = _crowd(rng, str(rng.choice(likely)), stickers[0].colour, width / 128, height / 128)
        stickers += crowd
        group += [count] * len(crowd)
        names.append(crowd[0].name)
    regions, centres = random_regions(rng, stuff, int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25])))
    scene = Scene(domain, regions, centres, tuple(stickers), int(rng.integers(2**31)))
    picture, owner, region = (out[0] for out in paint([scene], bank, height, width))
    labels = torch.where(owner >= 0, torch.tensor(group)[owner], len(names) + region).numpy()
    image = to_uint8(picture)
    if rng.random() < 0.08:  # a strip as of a scanner or a letterbox
        strip = np.s_[:, : int(rng.integers(6, 14))] if rng.random() < 0.5 else np.s_[-int(rng.integers(6, 14)) :, :]
        labels[strip], image[strip] = -1, rng.integers(0, 256, 3)
    out = Annotated(image, [], [], [])
    for i, name in enumerate([*names, *regions]):
        mask = labels == i
        if mask.sum() >= LEAST_AREA:
            out.names.append(name)
            out.masks.append(mask)
            out.crowd.append(crowded and i == len(names) - 1)
    return out


def _crowd(rng: np.random.Generator, name: str, colour: str, width: float, height: float) -> list[Sticker]:
    """Twelve to twenty tiny stickers of one name, close together."""
    x, y = rng.uniform(0.3, 0.7, 2) * (width, height)
    stickers = []
    for _ in range(int(rng.integers(12, 21))):
        dx, dy = rng.normal(0, 0.11, 2)
        size, angle, shade = float(rng.uniform(0.09, 0.13)), float(rng.uniform(-20, 20)), float(rng.random())
        stickers.append(Sticker(name, colour, x + dx, y + dy, size, angle, 1.0, shade))
    return stickers


def polygons(mask: np.ndarray) -> list[list[float]] | dict:
    """A mask as COCO polygons or, where these do not cover it well (holes, specks), as uncompressed RLE."""
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    out = [(np.asarray(line)[:-1] - 0.5).round(1).ravel().tolist() for line in lines if len(line) > 4]
    if out:
        packed = coco_mask.merge(coco_mask.frPyObjects(out, *mask.shape))
        drawn = coco_mask.decode(packed).astype(bool)
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


class _Coco:
    """Collects annotations in COCO's form."""

    def __init__(self, ids: dict[str, int], categories: list[dict]) -> None:
        self.ids, self.categories = ids, categories
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def write(self, path: Path) -> None:
        content = {"info": {"description": "miniature world"}, "licenses": [], "images": self.images}
        _dump(path, content | {"annotations": self.annotations, "categories": self.categories})


class _Panoptic(_Coco):
    """Panoptic annotations and their PNGs."""

    def __init__(self, folder: Path, ids: dict[str, int], things: Sequence[str]) -> None:
        kinds = {name: "thing" if name in things else "stuff" for name in ids}
        super().__init__(ids, [
            {"id": i, "name": n, "isthing": int(n in things), "supercategory": kinds[n]} for n, i in ids.items()
        ])  # fmt: skip
        self.folder = folder

    def add(self, entry: dict, scene: Annotated, rng: np.random.Generator) -> None:
        numbers = rng.choice(2**24 - 1, len(scene.names), replace=False) + 1
        canvas = np.zeros(scene.image.shape[:2], np.int64)
        segments = []
        for name, mask, crowd, number in zip(scene.names, scene.masks, scene.crowd, numbers, strict=True):
            if name in self.ids:
                canvas[mask] = number
                segment = {"id": int(number), "category_id": self.ids[name], "iscrowd": int(crowd)}
                segments.append(segment | {"bbox": _box(mask), "area": int(mask.sum())})
        file_name = Path(entry["file_name"]).with_suffix(".png").name
        colours = np.stack([canvas % 256, canvas // 256 % 256, canvas // 65536], -1)
        _save(self.folder / file_name, colours.astype(np.uint8))
        self.images.append(entry)
        self.annotations.append({"image_id": entry["id"], "file_name": file_name, "segments_info": segments})


class _Instances(_Coco):
    """Instance annotations, of things alone."""

    def __init__(self, ids: dict[str, int]) -> None:
        super().__init__(ids, [{"id": i, "name": n, "supercategory": "thing"} for n, i in ids.items()])

    def add(self, entry: dict, scene: Annotated, skip: frozenset[int] = frozenset()) -> None:
        self.images.append(entry)
        for i, (name, mask, crowd) in enumerate(zip(scene.names, scene.masks, scene.crowd, strict=True)):
            if name in self.ids and i not in skip:
                shape = uncompressed_rle(mask) if crowd else polygons(mask)
                number, category = len(self.annotations) + 1, self.ids[name]
                where = {"bbox": _box(mask), "area": int(mask.sum()), "segmentation": shape, "iscrowd": int(crowd)}
                self.annotations.append({"id": number, "image_id": entry["id"], "category_id": category, **where})


def _indices(scene: Annotated, names: Sequence[str], kind: type, void: int) -> np.ndarray:
    """Semantic map of class indices."""
    out: np.ndarray = np.full(scene.image.shape[:2], void, kind)
    for name, mask in zip(scene.names, scene.masks, strict=True):
        if name in names:
            out[mask] = names.index(name)
    return out


def _listed(things: Sequence[str], stuff: Sequence[str]) -> list[dict]:
    return [{"id": i, "name": n, "isthing": int(i < len(things))} for i, n in enumerate([*things, *stuff])]


def _write_coco(out: Path, seed: int, bank: torch.Tensor, train: int, val: int) -> None:
    v = vocabularies()
    ids = {n: 1 + i + i // 9 for i, n in enumerate(v.coco)}  # with gaps, as COCO's
    ids |= {n: 92 + 3 * i for i, n in enumerate(v.coco_stuff)}
    others = [n for n in THINGS if n not in v.coco]
    for split, count, stream in (("train2017", train, 0), ("val2017", val, 1)):
        panoptic = _Panoptic(out / "annotations" / f"panoptic_{split}", ids, v.coco)
        instances = _Instances({n: ids[n] for n in v.coco})
        for i in range(count):
            rng = np.random.default_rng([seed, stream, i])
            scene = annotated_scene(rng, DOMAINS[0], v.coco, others, v.coco_stuff, bank, rare=0.04)
            entry = _image_entry(1000 * stream + 3 * i + 9, f"{1000 * stream + 3 * i + 9:012d}.jpg", scene.image)
            _save(out / split / entry["file_name"], scene.image, quality=92)
            panoptic.add(entry, scene, rng)
            instances.add(entry, scene)
        panoptic.write(out / "annotations" / f"panoptic_{split}.json")
        instances.write(out / "annotations" / f"instances_{split}.json")
    _dump(out / "annotations" / "split.json", {"base": v.base, "target": v.target})


def _ade_scenes(seed: int, bank: torch.Tensor, count: int) -> Iterator[tuple[str, Annotated, np.random.Generator]]:
    """The same pictures for the short and the long vocabulary."""
    v = vocabularies()
    rest = [n for n in THINGS if n not in v.a150]
    for i in range(count):
        rng = np.random.default_rng([seed, 2, i])
        yield f"ADE_val_{i + 1:08d}", annotated_scene(rng, DOMAINS[1], v.a150, rest, STUFF, bank, rare=0.15), rng


def _write_ade_short(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    v = vocabularies()
    names = [*v.a150, *v.a150_stuff]
    ids = {n: i for i, n in enumerate(names)}
    panoptic = _Panoptic(out / "ade20k_panoptic_val", ids, v.a150)
    instances = _Instances({n: ids[n] for n in v.a150})
    for i, (stem, scene, rng) in enumerate(_ade_scenes(seed, bank, count)):
        entry = _image_entry(i + 1, f"{stem}.jpg", scene.image)
        _save(out / "images" / "validation" / f"{stem}.jpg", scene.image, quality=92)
        _save(out / "annotations_detectron2" / "validation" / f"{stem}.png", _indices(scene, names, np.uint8, 255))
        panoptic.add(entry, scene, rng)
        instances.add(entry, scene)
    panoptic.write(out / "ade20k_panoptic_val.json")
    instances.write(out / "ade20k_instance_val.json")
    _dump(out / "categories.json", _listed(v.a150, v.a150_stuff))


def _write_ade_full(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    names = [*THINGS, *STUFF]
    for stem, scene, _ in _ade_scenes(seed, bank, count):
        _save(out / "images_detectron2" / "validation" / f"{stem}.jpg", scene.image, quality=92)
        _save(out / "annotations_detectron2" / "validation" / f"{stem}.tif", _indices(scene, names, np.uint16, 65535))
    _dump(out / "categories.json", _listed(THINGS, STUFF))


def _write_pascal(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    v = vocabularies()
    short, long = [*v.p59, *v.p59_stuff], [*v.p459, *STUFF]
    rest = [n for n in v.p459 if n not in v.p59]
    for i in range(count):
        scene = annotated_scene(np.random.default_rng([seed, 3, i]), DOMAINS[2], v.p59, rest, STUFF, bank, rare=0.25)
        stem = f"2008_{i + 1:06d}"
        _save(out / "images" / "validation" / f"{stem}.jpg", scene.image, quality=92)
        _save(out / "annotations_ctx59" / "validation" / f"{stem}.png", _indices(scene, short, np.uint8, 255))
        _save(out / "annotations_ctx459" / "validation" / f"{stem}.tif", _indices(scene, long, np.uint16, 65535))
    _dump(out / "categories_59.json", _listed(v.p59, v.p59_stuff))
    _dump(out / "categories_459.json", _listed(v.p459, STUFF))


def _write_lvis(out: Path, seed: int, bank: torch.Tensor, count: int) -> None:
    """LVIS is federated: an image lists names sought in vain (negative) and those of which not all were marked."""
    ids = {n: i + 1 for i, n in enumerate(THINGS)}
    order = [str(n) for n in np.random.default_rng(2024).permutation(THINGS)]
    # each a third; the frequent are drawn oftenest
    frequency = {n: "fcr"[(3 * k // len(order))] for k, n in enumerate(order)}
    weighted = [n for n in THINGS for _ in range({"f": 6, "c": 3, "r": 1}[frequency[n]])]
    instances = _Instances(ids)
    for i in range(count):
        rng = np.random.default_rng([seed, 4, i])
        scene = annotated_scene(rng, DOMAINS[0], weighted, (), STUFF, bank, things=(4, 11), sizes=(0.1, 0.4))
        image_id = 5000 + 7 * i
        present = [n for n in scene.names if n in ids]
        repeated = sorted({n for n in present if present.count(n) > 1})
        partly = [n for n in repeated if rng.random() < 0.3]
        skip = {scene.names.index(n) for n in partly} | {k for k, c in enumerate(scene.crowd) if c}  # it has no crowds
        partly = sorted({*partly, *(n for n, c in zip(scene.names, scene.crowd, strict=True) if c)})
        absent = [n for n in THINGS if n not in present]
        entry = _image_entry(image_id, f"{image_id:012d}.jpg", scene.image) | {
            "coco_url": f"val2017/{image_id:012d}.jpg",
            "neg_category_ids": sorted(ids[str(n)] for n in rng.choice(absent, 6, replace=False)),
            "not_exhaustive_category_ids": sorted(ids[n] for n in partly),
        }
        _save(out / "val2017" / entry["file_name"], scene.image, quality=92)
        instances.add(entry, scene, frozenset(skip))
    for category in instances.categories:
        marked = [a for a in instances.annotations if a["category_id"] == category["id"]]
        name = str(category["name"])
        category |= {"frequency": frequency[name], "synonyms": [name], "synset": f"{name.replace(' ', '_')}.n.01"}
        category |= {"def": "a pictograph", "instance_count": len(marked)}
        category |= {"image_count": len({a["image_id"] for a in marked})}
    for annotation in instances.annotations:
        del annotation["iscrowd"]
    instances.write(out / "lvis_v1_val.json")


def write_world(
    root: str | Path,
    seed: int = 0,
    coco_train: int = 800,
    coco_val: int = 80,
    ade: int = 80,
    pascal: int = 80,
    lvis: int = 100,
) -> list[Path]:
    """Write all data sets of the miniature world below `root`; returns their folders.  Same arguments, same bytes.

    A folder whose `.done` manifest agrees with the arguments is left alone; one with another manifest is replaced.

    Raises:
        ValueError: a count below 1, a negative seed, or a folder in the way that this function did not write.
        OSError: the disk is full or `root` not writable; nothing half-written is left under a data set's name.
    """
    counts = {"coco_train": coco_train, "coco_val": coco_val, "ade": ade, "pascal": pascal, "lvis": lvis}
    for name, value in {"seed": seed, **counts}.items():
        least = 0 if name == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} of the miniature world must be a whole number, at least {least}, not {value!r}")
    root = Path(root)
    writers: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
        "coco": (_write_coco, (coco_train, coco_val)), "ADEChallengeData2016": (_write_ade_short, (ade,)),
        "ADE20K_2021_17_01": (_write_ade_full, (ade,)), "pascal_ctx_d2": (_write_pascal, (pascal,)),
        "lvis": (_write_lvis, (lvis,)),
    }  # fmt: skip
    bank = functools.cache(lambda: texture_bank(seed=2 * seed + 1, variants=6, size=BANK_SIZE))
    for folder, (write, sizes) in writers.items():
        manifest = {"world": VERSION, "seed": seed, "counts": list(sizes)}
        final = root / folder
        if final.exists() and not (final / ".done").is_file():
            raise ValueError(f"{final} exists, but not from the miniature world; move it away or choose another folder")
        if final.exists() and json.loads((final / ".done").read_text()) == manifest:
            continue
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder}-", dir=root) as temporary:
            out = Path(temporary) / folder
            out.mkdir()
            write(out, seed, bank(), *sizes)
            _dump(out / ".done", manifest)
            if final.exists():
                shutil.rmtree(final)
            os.replace(out, final)
    return [root / folder for folder in writers]
