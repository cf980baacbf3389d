"""ADE20K-847 from the full ADE20K of 2021: pictures of short side 512, 16-bit label maps."""

import io
import pickle
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskclip.data.prepare.archives import Archive, File, Source, need_size, size_of
from maskclip.data.prepare.filling import filling, names_of, put_image, put_names, run
from maskclip.files import PlainUnpickler

FOLDER = "ADE20K_2021_17_01"
CHALLENGE = {"ADEChallengeData2016*": "the challenge's set of 150 classes, for `maskclip prepare ade20k`"}
OTHER = {**CHALLENGE, "ADE20K_2016*": "the release of 2016, whose classes are numbered otherwise"}
FULL = Archive("*.zip", "https://groups.csail.mit.edu/vision/datasets/ADE20K/ (by registration)", OTHER)
SHORT_SIDE, VOID = 512, 65535


class Scene(NamedTuple):
    """A picture, its `_seg.png`, and where the two go."""

    picture: File
    segments: File
    image: Path
    labels: Path


def prepare_ade20k_full(source: Path, target: Path, *, workers: int, training: bool = False) -> dict[str, int]:
    """Write ADE20K_2021_17_01/ under `target` from the registered users' zip, or its unpacked
    folder, under `source`.

    training: also the training pictures, which the paper does not use. Returns the pictures of each
    split.

    Raises:
        FileNotFoundError: the set, a picture or a label picture is missing.
        ValueError: a file is damaged or of another release.
    """
    splits = ("validation", "training") if training else ("validation",)
    with filling(source, target, FOLDER) as (found, out):
        index_file = found.file("index_ade20k.pkl", FULL)
        scenes: dict[str, list[Scene]] = {split: [] for split in splits}
        for folder, name in _index(index_file):
            split = "validation" if name.split("_")[1:2] == ["val"] else "training"
            if split in scenes:
                stem = Path(name).stem
                picture, segments = (_beside(found, index_file, folder, n) for n in (name, f"{stem}_seg.png"))
                image = out / "images_detectron2" / split / name
                scenes[split].append(
                    Scene(picture, segments, image, out / "annotations_detectron2" / split / f"{stem}.tif")
                )
        put_names(out / "categories.txt", "ade20k_847")
        for split, of_split in scenes.items():
            run(prepare_scene, of_split, f"ADE20K-847 {split}", workers=workers)
    return {split: len(of_split) for split, of_split in scenes.items()}


def _index(file: File) -> list[tuple[str, str]]:
    """(folder, file name) of every picture, from index_ade20k.pkl, running no code it may hold."""
    try:
        content = PlainUnpickler(io.BytesIO(file.read())).load()
        names = list(map(str, content["filename"]))
        if len(set(names)) < len(names):
            raise ValueError("it lists a picture twice")
        return list(zip(map(str, content["folder"]), names, strict=True))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not the index of ADE20K of 2021 ({error}); fetch the set again.") from error


def _beside(found: Source, index: File, folder: str, name: str) -> File:
    """A file of the set by the folder that the index gives, which begins with the set's own."""
    top = index.path.parent.parent
    path = top / folder / name
    if index.name:
        file = found.content(index.container).get(path.parent.as_posix(), {}).get(name)
    else:
        file = File(path, size=path.stat().st_size) if path.is_file() else None
    if file is None:
        raise FileNotFoundError(
            f"{index} names {folder}/{name}, but there is no {path}; unpack or fetch the set whole."
        )
    return file


def prepare_scene(scene: Scene) -> None:
    """Write a picture and its label map, resized as OpenCV does it, unless both are there."""
    if scene.image.is_file() and scene.labels.is_file():
        return
    pixels, segments = scene.picture.pixels(), scene.segments.pixels()
    if segments.ndim != 3 or segments.dtype != np.uint8:
        raise ValueError(f"{scene.segments} is no colour PNG (class in R and G); fetch the full set of 2021 again.")
    need_size(scene.segments, size_of(segments), size_of(pixels), scene.picture)
    size = _reduced(*pixels.shape[:2])
    if size != pixels.shape[:2]:
        pixels, segments = resize_linear(pixels, size), resize_nearest(segments, size)
    classes = segments[..., 0] // 10 * np.int32(256) + segments[..., 1]
    put_image(scene.labels, _class_index()[classes], compression="tiff_deflate")
    put_image(scene.image, pixels)


@cache
def _class_index() -> np.ndarray:
    """uint16 [6656]: the index among the 847 of each class of the full set; void for the others."""
    index = np.full(26 * 256, VOID, np.uint16)
    index[[int(number) for number in names_of("ade20k_847_ids")]] = np.arange(847)
    return index


def _reduced(height: int, width: int) -> tuple[int, int]:
    """(height, width) with a short side of at most 512."""
    if min(height, width) <= SHORT_SIDE:
        return height, width
    if height <= width:
        return SHORT_SIDE, round(width / height * SHORT_SIDE)
    return round(height / width * SHORT_SIDE), SHORT_SIDE


def resize_nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, ...] at `size` (height, width) as OpenCV's INTER_NEAREST does it, by corners."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(int), old - 1)
        for new, old in zip(size, pixels.shape)
    )
    return pixels[rows[:, None], columns]


def resize_linear(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, ...] at `size` (height, width) as OpenCV's INTER_LINEAR has it: between the two
    nearest pixels, in its fixed-point numbers, however much smaller the result is."""
    planes = pixels.reshape(*pixels.shape[:2], -1)
    (top, above), (bottom, below) = _weights(size[0], pixels.shape[0])
    (left, before), (right, after) = (
        (column, weight[:, None]) for column, weight in _weights(size[1], pixels.shape[1])
    )
    upper, lower = (
        (planes[row][:, left] * before + planes[row][:, right] * after) >> 4 for row in (top, bottom)
    )  # int32: 8 bits of the pixel, 11 of the weight
    mixed = (upper * above[:, None, None] >> 16) + (lower * below[:, None, None] >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8).reshape(*size, *pixels.shape[2:])


def _weights(new: int, old: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The two pixels that each new one lies between, with their weights in 2048ths."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(place).astype(int)
    part = place - first
    part = np.where((first < 0) | (first >= old - 1), 0, part).astype(np.float32)
    first = np.clip(first, 0, old - 1)
    low, high = (np.rint(weight * np.float32(2048)).astype(np.int32) for weight in (1 - part, part))
    return (first, low), (np.minimum(first + 1, old - 1), high)
