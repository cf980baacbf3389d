"""What every data set of the study looks like from inside: categories, segments, annotations, samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Category:
    """One name of a vocabulary. Its place in `Dataset.categories` is the class index used everywhere else;
    `id` is the number the data set's own files use."""

    id: int
    name: str
    isthing: bool


@dataclass
class Segment:
    """One annotated region."""

    category: int  # class index
    mask: np.ndarray  # bool [H, W]
    iscrowd: bool = False  # covers several objects; metrics neither reward nor punish what falls on it
    isthing: bool = True  # its category's
    area: float | None = None  # pixels, where the file says it; ADE20K's counts what things hide of stuff, too


@dataclass
class Annotation:
    """What is known of one picture, which need not be decoded for it."""

    image_id: int | str
    size: tuple[int, int]  # height and width in pixels
    segments: list[Segment] = field(default_factory=list)  # they may overlap in instance sets; none in semantic sets
    semantic: np.ndarray | None = None  # int32 [H, W] of class indices, -1 where void; None for instance sets
    ids: np.ndarray | None = None  # unsigned [H, W], of segments' places, counted from 1, 0 void; panoptic sets only
    hidden: list[int] = field(default_factory=list)  # classes that the file lists, but no pixel shows: missed in PQ


@dataclass
class Sample(Annotation):
    """One picture with its annotation. image: uint8 [H, W, 3], RGB."""

    image: np.ndarray = field(kw_only=True)


@dataclass
class Dataset:
    """A sequence of `Sample`s read from disk one at a time; picture and annotation can be had apart."""

    name: str
    categories: list[Category]
    image_ids: Sequence[int | str]
    picture: Callable[[int | str], np.ndarray]
    annotation: Callable[[int | str], Annotation]
    files: Callable[[int | str], list[Path]]  # what is read for one image: picture, and mask where there is one
    source: Path  # the annotation file, or the folder of label maps
    folder: Path = Path()  # where the pictures lie
    instances: dict | None = None  # the COCO or LVIS JSON of instance sets, which AP is computed against
    split: dict[str, list[str]] | None = None  # the names of base and target categories

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Sample:
        """One image with its annotation; ValueError: the picture has another size than its annotation."""
        with self.numbered(i):
            annotation, image = self.annotation(self.image_ids[i]), self.picture(self.image_ids[i])
            self.check_size(annotation, image.shape[:2])
        return Sample(**vars(annotation), image=image)

    def check_size(self, annotation: Annotation, size: tuple[int, ...]) -> None:
        """ValueError unless the picture's height and width are its annotation's."""
        if size != annotation.size:
            path, *masks = self.files(annotation.image_id)
            raise ValueError(
                f"{path} is {size} (height, width), its annotation in {masks[0] if masks else self.source} "
                f"{annotation.size}; use the picture the annotation was made for."
            )

    @contextmanager
    def numbered(self, i: int) -> Iterator[None]:
        """Let what is wrong with an image say which of how many it is, and how to go on without."""
        try:
            yield
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            which = f"image {i + 1:,} of {len(self):,} of {self.name}"
            raise kind(f"{error} ({which}; to go on without such: maskclip check --skip-damaged)") from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The categories' names, in their order."""
        return [category.name for category in self.categories]

    @property
    def isthing(self) -> list[bool]:
        """Per category: thing (True) or stuff."""
        return [category.isthing for category in self.categories]

    def picture_name(self, image_id: int | str) -> str:
        """The picture's path below the folder of pictures, by which other annotations of it know it."""
        path = self.files(image_id)[0]
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else path.name

    def subset(self, image_ids: Iterable[int | str]) -> Dataset:
        """The same data set with these images only; ValueError where it lacks one. NumPy's ids will do."""
        ids: list[int | str] = [one.item() if isinstance(one, np.generic) else one for one in image_ids]
        if unknown := set(ids) - set(self.image_ids):
            raise ValueError(f"{self.source} has no image {next(iter(unknown))!r}; image_ids lists what there is.")
        return replace(self, image_ids=ids)

    def first(self, limit: int | None) -> Dataset:
        """The first images by their pictures' names, the same ones whichever file annotates them; None: all, in the
        file's order."""
        return self if limit is None else self.subset(sorted(self.image_ids, key=self.picture_name)[:limit])

    def fingerprint(self) -> str:
        """A short text that changes when the annotation file, the categories, the choice of images, or a picture or
        mask changes (`content_mark`)."""
        digest = hashlib.sha256(repr((self.categories, list(self.image_ids))).encode())
        if self.source.is_file():
            digest.update(self.source.read_bytes())
        for path in (path for image_id in self.image_ids for path in self.files(image_id)):
            if not path.is_file():
                raise FileNotFoundError(f"{path} of data set {self.name} is missing; put it back.")
            digest.update(f"{path.name}:".encode() + content_mark(path))
        return digest.hexdigest()[:16]


def content_mark(path: Path) -> bytes:
    """What tells a picture or mask from another: its size, the first 4 KiB (where orientation stands) and the last 16,
    so that 118,000 take seconds; PNG and JPEG streams do not change between them alone. Of other kinds all counts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            return f"{size}:".encode() + file.read()
        head = file.read(4096)
        file.seek(max(0, size - 16384))
        return f"{size}:".encode() + head + file.read()
