"""Made-up downloads of the true layout, a few tiny pictures in each archive.

`ade20k(folder)`, `ade20k_full(folder)`, `coco(folder)`, `pascal_context(folder)` and `lvis(folder)`
write the archives of a set into `folder`; `all_sets(folder)` writes all of them. Pictures are drawn
at random from a seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from maskclip.data.prepare.filling import NAMES
from maskclip.data.prepare.pascal_context import CLASSES_59

SPLITS = {"training": "train", "validation": "val"}


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def photograph(random: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of `size` (height, width): smooth colours, as photographs have them."""
    small = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return png(np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)), "JPEG")


def regions(random: np.random.Generator, size: tuple[int, int], values: np.ndarray, count: int) -> np.ndarray:
    """[H, W] of `values`, the nearest of `count` random points' each."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    centres = random.random((count, 2)) * size
    distance = (rows[..., None] - centres[:, 0]) ** 2 + (columns[..., None] - centres[:, 1]) ** 2
    return random.choice(values, count)[distance.argmin(-1)]


def ade20k(
    folder: Path, counts: Mapping[str, int] = {"training": 2, "validation": 3}, size=(24, 32), things=9, seed=0
) -> None:
    """ADEChallengeData2016.zip and annotations_instance.tar."""
    random, files, instances = np.random.default_rng(seed), {}, {}
    info = [f"{i}\t0.1\t1\t1\t{i % 2}\tname {i}" for i in range(1, 151)]
    files["ADEChallengeData2016/objectInfo150.txt"] = "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *info]).encode()
    for split, short in SPLITS.items():
        for number in range(1, counts[split] + 1):
            name = f"ADE_{short}_{number:08d}"
            semantic = regions(random, size, np.arange(151), 12).astype(np.uint8)
            instance = np.zeros((*size, 3), np.uint8)
            for thing in range(1, things + 1):
                top, left = random.integers(0, size[0] - 4), random.integers(0, size[1] - 4)
                height, width = random.integers(1, size[0] // 3), random.integers(1, size[1] // 3)
                instance[top : top + height, left : left + width] = random.integers(1, 101), thing, 0
            files[f"ADEChallengeData2016/images/{split}/{name}.jpg"] = photograph(random, size)
            files[f"ADEChallengeData2016/annotations/{split}/{name}.png"] = png(semantic)
            instances[f"annotations_instance/{split}/{name}.png"] = png(instance)
    write_zip(folder / "ADEChallengeData2016.zip", files)
    write_tar(folder / "annotations_instance.tar", instances)


def ade20k_full(folder: Path, counts: Mapping[str, int] = {"training": 1, "validation": 3}, size=(30, 40), seed=0):
    """A registered user's zip of ADE20K_2021_17_01."""
    random, files = np.random.default_rng(seed), {}
    index: dict[str, list] = {"filename": [], "folder": [], "scene": []}
    ids = np.array([int(line) for line in (NAMES / "ade20k_847_ids.txt").read_text().split()])
    for split, short in SPLITS.items():
        for number in range(1, counts[split] + 1):
            name, place = f"ADE_{short}_{number:08d}", f"ADE20K_2021_17_01/images/ADE/{split}/urban/street"
            classes = regions(random, size, np.concatenate([ids, [0, 1, 3687]]), 12)
            red = classes // 256 * 10 + random.integers(0, 10, size)  # the last digit is of parts
            files[f"{place}/{name}.jpg"] = photograph(random, size)
            files[f"{place}/{name}_seg.png"] = png(np.stack([red, classes % 256, red * 0 + 7], -1).astype(np.uint8))
            index["filename"].append(f"{name}.jpg")
            index["folder"].append(place)
            index["scene"].append("/street")
    index["objectPresence"] = np.zeros((3688, len(index["filename"])), np.uint8)  # type: ignore[assignment]
    files["ADE20K_2021_17_01/index_ade20k.pkl"] = pickle.dumps(index, protocol=2)
    files["ADE20K_2021_17_01/objects.txt"] = b"index\tname\n"
    write_zip(folder / "somebody_0123abcd.zip", files)


def coco(folder: Path, counts: Mapping[str, int] = {"train2017": 4, "val2017": 3}, size=(24, 32), seed=0) -> None:
    """The four archives of COCO 2017, the PNGs in zips inside one of them."""
    random, instances, panoptic = np.random.default_rng(seed), {}, {}
    things, stuff = coco_categories()
    for year, count in counts.items():
        pictures, masks, images, segments, objects = {}, {}, [], [], []
        for image_id in range(1 + 1000 * (year == "val2017"), count + 1 + 1000 * (year == "val2017")):
            name = f"{image_id:012d}"
            url = f"http://images.cocodataset.org/{year}/{name}.jpg"
            images.append({"id": image_id, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
            images[-1] |= {"coco_url": url, "license": 1}
            pictures[f"{year}/{name}.jpg"] = photograph(random, size)
            ids = regions(random, size, np.arange(8), 9)  # 0 is void
            kinds = random.choice(things[:65], 5).tolist() + random.choice(stuff, 2).tolist()
            of_image = []
            for i in np.unique(ids[ids > 0]).tolist():
                rows, columns = np.nonzero(ids == i)
                box = [int(v) for v in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)]
                segment = {"id": i, "category_id": kinds[i - 1]["id"], "iscrowd": 0, "bbox": box}
                of_image.append(segment | {"area": len(rows)})
                if kinds[i - 1]["isthing"]:
                    objects.append(of_image[-1] | {"id": len(objects) + 1, "image_id": image_id})
                    objects[-1]["segmentation"] = code_of(ids == i)
            segments.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": of_image})
            rgb = np.stack([ids, ids * 0, ids * 0], -1).astype(np.uint8)
            masks[f"panoptic_{year}/{name}.png"] = png(rgb)
        write_zip(folder / f"{year}.zip", pictures)
        inner = write_zip(folder / "inner.zip", masks)
        panoptic[f"annotations/panoptic_{year}.zip"] = inner.read_bytes()
        inner.unlink()
        content = {"info": {"year": 2017}, "images": images, "annotations": segments, "categories": things + stuff}
        panoptic[f"annotations/panoptic_{year}.json"] = json.dumps(content).encode()
        content |= {"annotations": objects, "categories": things}
        instances[f"annotations/instances_{year}.json"] = json.dumps(content).encode()
    write_zip(folder / "annotations_trainval2017.zip", instances)
    write_zip(folder / "panoptic_annotations_trainval2017.zip", panoptic)


def coco_categories() -> tuple[list[dict], list[dict]]:
    """80 things, first the 65 of the split by name, and 53 stuff categories."""
    names = [name for part in ("base", "target") for name in (NAMES / f"coco_{part}.txt").read_text().splitlines()]
    names += [f"other thing {i}" for i in range(80 - len(names))]
    things = [{"id": i, "name": name, "isthing": 1, "supercategory": "thing"} for i, name in enumerate(names, 1)]
    stuff = [{"id": i, "name": f"stuff {i}", "isthing": 0, "supercategory": "stuff"} for i in range(92, 92 + 53)]
    return things, stuff


def code_of(mask: np.ndarray) -> dict:
    """COCO's compressed run-length code of a mask [H, W]."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def lvis(folder: Path, val: int = 2, train: int = 2, size=(24, 32), seed=0, categories: int = 1203) -> None:
    """lvis_v1_val.json.zip, on the pictures that `coco` makes; some are train2017's."""
    random, images, annotations = np.random.default_rng(seed), [], []
    for year, number in [("val2017", 1000 + i) for i in range(1, val + 1)] + [
        ("train2017", i) for i in range(1, train + 1)
    ]:
        about = {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
        url = f"http://images.cocodataset.org/{year}/{number:012d}.jpg"
        images.append({"id": number, "coco_url": url, "height": size[0], "width": size[1], **about})
        mask = np.zeros(size, bool)
        mask[3:9, 4:14] = True
        polygon = [[4, 3, 14, 3, 14, 9, 4, 9]]
        category = int(random.integers(1, categories + 1))
        annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, "area": 60})
        annotations[-1] |= {"segmentation": polygon, "bbox": [4, 3, 10, 6]}
    kinds = [
        {"id": i, "name": f"thing_{i}", "frequency": "rcf"[i % 3], "synonyms": [f"thing_{i}"], "synset": f"t.n.{i}"}
        for i in range(1, categories + 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": kinds, "info": {}, "licenses": []}
    write_zip(folder / "lvis_v1_val.json.zip", {"lvis_v1_val.json": json.dumps(content).encode()})


def pascal_context(folder: Path, counts: Mapping[str, int] = {"train": 2, "val": 3}, size=(24, 32), seed=0) -> None:
    """VOC 2010's tar, trainval_merged.json and trainval.tar.gz.

    The two annotations agree on the 59 classes. VOC's list has one validation picture more.
    """
    random, voc, mats = np.random.default_rng(seed), {}, {}
    images, regions_of = [], []
    for phase, count in counts.items():
        stems = [
            f"2008_{number:06d}" for number in range(1 + 500 * (phase == "val"), count + 2 + 500 * (phase == "val"))
        ]
        stems = stems if phase == "val" else stems[:-1]
        for number, stem in enumerate(stems):
            labels = regions(random, size, np.concatenate([np.repeat(CLASSES_59, 3), np.arange(460)]), 12)
            voc[f"VOCdevkit/VOC2010/JPEGImages/{stem}.jpg"] = photograph(random, size)
            stream = io.BytesIO()
            scipy.io.savemat(stream, {"LabelMap": labels.astype(np.uint16)}, do_compression=True)
            mats[f"trainval/{stem}.mat"] = stream.getvalue()
            if number == count:
                continue
            image_id = int(stem.replace("_", ""))
            images.append({"image_id": image_id, "file_name": f"{stem}.jpg", "phase": phase})
            images[-1] |= {"height": size[0], "width": size[1]}
            of_59 = np.isin(labels, CLASSES_59)
            for value in np.unique(labels[of_59]).tolist():  # the first covers all, the others lie over it
                mask = of_59 if not regions_of or regions_of[-1]["image_id"] != image_id else labels == value
                region = {"id": len(regions_of) + 1, "image_id": image_id, "category_id": value, "iscrowd": 0}
                regions_of.append(region | {"segmentation": code_of(mask)})
        voc[f"VOCdevkit/VOC2010/ImageSets/Main/{phase}.txt"] = "\n".join([*stems, ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [{"category_id": i, "name": f"class {i}", "onlysemantic": 0} for i in CLASSES_59]
    merged = {"images": images, "annos_segmentation": regions_of, "annos_boundary": [], "annos_occlusion": []}
    (folder / "trainval_merged.json").write_text(json.dumps(merged | {"categories": kinds, "parts": []}))
    write_tar(folder / "VOCtrainval_03-May-2010.tar", voc)
    write_tar(folder / "trainval.tar.gz", mats)


def all_sets(folder: Path) -> None:
    """The archives of every set."""
    for write in (coco, ade20k, ade20k_full, pascal_context, lvis):
        write(folder)


def content_digest(path: Path) -> str:
    """Of what an archive holds but for JPEGs, whose bytes differ among libjpegs."""
    digest = hashlib.sha256()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    elif ".tar" in path.name:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    else:
        files = {path.name: path.read_bytes()}
    for name, content in files.items():
        if name.endswith(".png"):
            digest.update(name.encode() + np.asarray(Image.open(io.BytesIO(content))).tobytes())
        elif name.endswith(".mat"):
            digest.update(name.encode() + scipy.io.loadmat(io.BytesIO(content))["LabelMap"].tobytes())
    return digest.hexdigest()[:16]
