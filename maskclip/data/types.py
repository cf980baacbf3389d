"""What every data set of the study looks like from inside: categories, segments, samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FINGERPRINT_TAIL = 1 << 14  # bytes read from the end of every picture and mask for the fingerprint


@dataclass(frozen=True)
class Category:
    """One name of a vocabulary. Its place in `Dataset.categories` is the class index used everywhere else;
    `id` is the number the data set's own files use."""

    id: int
    name: str
    isthing: bool


@dataclass
class Segment:
    """One annotated region: `category` is a class index, `mask` a bool array [H, W]. A crowd region covers several
    objects at once; metrics neither reward nor punish what falls on it. `isthing` repeats its category's. `area` is
    what the annotation file says, in pixels, where it says it: ADE20K's counts what things hide of stuff, too."""

    category: int
    mask: np.ndarray
    iscrowd: bool = False
    isthing: bool = True
    area: int | None = None


@dataclass
class Sample:
    """One picture with its annotation.

    image: uint8 [H, W, 3], RGB. segments: things and stuff (panoptic sets) or things that may overlap (instance sets);
    empty for semantic sets. semantic: int32 [H, W] of class indices, -1 where void; None for instance sets. hidden: the
    classes of segments that the annotation lists but no pixel shows; they count for PQ alone, as missed.
    """

    image_id: int | str
    file_name: str
    image: np.ndarray
    segments: list[Segment] = field(default_factory=list)
    semantic: np.ndarray | None = None
    hidden: list[int] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[:2]


@dataclass
class Dataset:
    """A sequence of `Sample`s read from disk one at a time.

    `annotations` is the loaded COCO / LVIS JSON of instance sets (what AP is computed against), else None.
    `files` lists what is read for one image: picture, and mask where there is one.
    """

    name: str
    categories: list[Category]
    image_ids: Sequence[int | str]
    read: Callable[[int | str], Sample]
    files: Callable[[int | str], list[Path]]
    source: Path
    annotations: dict | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Sample:
        return self.read(self.image_ids[i])

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(image_id) for image_id in self.image_ids)

    @property
    def names(self) -> list[str]:
        """The categories' names, in their order."""
        return [category.name for category in self.categories]

    @property
    def isthing(self) -> list[bool]:
        """Per category: thing (True) or stuff."""
        return [category.isthing for category in self.categories]

    def subset(self, image_ids: Sequence[int | str]) -> Dataset:
        """The same data set with these images only."""
        return Dataset(self.name, self.categories, image_ids, self.read, self.files, self.source, self.annotations)

    def first(self, limit: int | None) -> Dataset:
        """The first `limit` images by their pictures' file names, the same ones whichever file annotates them; None:
        all, in the file's order.

        Raises:
            ValueError: the limit is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise ValueError(f"limit is {limit} but must be at least 1, or None for all images.")
        return self.subset(sorted(self.image_ids, key=lambda image_id: self.files(image_id)[0].name)[:limit])

    def fingerprint(self) -> str:
        """A short text that changes when the annotation file, the categories, the choice of images, or a picture or
        mask changes. Of each picture and mask the size and the last 16 KiB count, so that 118,000 of them take
        seconds; PNG and JPEG streams do not change elsewhere alone without changing there too."""
        digest = hashlib.sha256(repr((self.categories, list(self.image_ids))).encode())
        if self.source.is_file():
            digest.update(self.source.read_bytes())
        for image_id in self.image_ids:
            for path in self.files(image_id):
                if not path.is_file():
                    raise FileNotFoundError(f"{path} of data set {self.name} is missing; put it back.")
                size = path.stat().st_size
                digest.update(f"{path.name}:{size}:".encode())
                with path.open("rb") as file:
                    file.seek(max(0, size - FINGERPRINT_TAIL))
                    digest.update(file.read())
        return digest.hexdigest()[:16]
