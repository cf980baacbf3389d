"""Made-up downloads of the true layout, a few tiny pictures each: what the owners' archives would hold.

`ade20k(folder)`, `ade20k_full(folder)`, `coco(folder)`, `pascal_context(folder)` and `lvis(folder)` write the archives
of a set into `folder`; `all_sets(folder)` writes all of them. Pictures are drawn at random from a seed.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

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
