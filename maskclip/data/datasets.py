"""The one table of data sets. To add one, add an entry; a new format also needs a reader, a function that opens it."""

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskclip.data.coco import open_coco_instances, open_coco_panoptic
from maskclip.data.images import read_json
from maskclip.data.semantic import open_semantic_folder
from maskclip.data.types import Dataset, content_mark

METRICS = {  # of each task
    "panoptic": [f"{metric}{of}" for metric in ("PQ", "SQ", "RQ") for of in ("", "th", "st")],
    "semantic": ["mIoU", "mIoU_old"],
    "instances": ["AP", "AP50", "AP75"],
    "split": [
        *("AP50_constrained_base", "AP50_constrained_target"),
        *("AP50_generalized_base", "AP50_generalized_target", "AP50_generalized_all"),
    ],
}


@dataclass(frozen=True)
class DatasetEntry:
    """All that is said of a data set; an entry that lacks something is a ValueError with its name."""

    name: str  # for `open_dataset`, settings and results
    reader: Callable[..., Dataset] = None  # type: ignore[assignment]  # which is refused
    folder: str = ""  # under the root of all data; docs/data.md shows the tree
    files: tuple[str, ...] = ()  # in the order of the reader's parameters; of several places, "a | b", the first there
    task: str = ""  # of METRICS: what tests score; empty: nothing
    pictures: str = ""  # the data set whose pictures it annotates; empty: its own
    words: str = ""  # the data set whose categories, of the same ids, name its own; empty: they keep their names
    results: str = ""  # its name in results; empty: the same
    training: bool = False  # whether it is learned from, so that limits of tests leave it whole
    options: dict[str, Any] = field(default_factory=dict)  # the reader's other parameters

    def __post_init__(self) -> None:
        if not self.name or not callable(self.reader) or self.task not in ("", *METRICS):
            raise ValueError(f"data set {self.name!r} needs a name, a reader, a task of {', '.join(METRICS)} or none")
        if not isinstance(self.files, tuple) or not all(isinstance(one, str) and one for one in self.files):
            raise ValueError(f"data set {self.name!r}: files must be a tuple of places, not {self.files!r}")
        try:
            inspect.signature(self.reader).bind(*self.files, **self.options, name=self.name)
        except TypeError as error:
            raise ValueError(
                f"data set {self.name!r}: {error} for {self.reader.__name__}; its files are the reader's in their order"
            ) from None

    @property
    def in_tables(self) -> str:
        """Its name in tables: a set that annotates another's pictures, with its words, is that set."""
        return self.words if self.words and self.words == self.pictures else self.results or self.name

    def places(self, root: str | Path) -> list[list[Path]]:
        """Where each of its files may lie under the root of all data."""
        return [[Path(root) / self.folder / place for place in places.split(" | ")] for places in self.files]


COCO, ADE, ADE_FULL, PASCAL = "coco", "ADEChallengeData2016", "ADE20K_2021_17_01", "pascal_ctx_d2"
SPLIT = "annotations/split.json"
LEFT_OUT = "left_out.json"  # under the root: pictures that `maskclip check --skip-damaged` takes out of all sets

_ENTRIES = (
    DatasetEntry(
        "coco_train", open_coco_panoptic, COCO,  # masks as downloaded, or as detectron2 has them
        ("annotations/panoptic_train2017.json", "annotations/panoptic_train2017 | panoptic_train2017", "train2017"),
        training=True,
    ),
    DatasetEntry(
        "coco_val", open_coco_panoptic, COCO,
        ("annotations/panoptic_val2017.json", "annotations/panoptic_val2017 | panoptic_val2017", "val2017"),
    ),
    DatasetEntry(
        "coco_split_train", open_coco_instances, COCO,
        ("annotations/instances_train2017.json", "train2017", SPLIT),
        training=True, options={"only": ["base"], "annotated": True},
    ),
    DatasetEntry(
        "coco_split_val", open_coco_instances, COCO, ("annotations/instances_val2017.json", "val2017", SPLIT),
        task="split", pictures="coco_val", results="coco_split",
    ),
    DatasetEntry(
        "a150", open_coco_panoptic, ADE, ("ade20k_panoptic_val.json", "ade20k_panoptic_val", "images/validation"),
        task="panoptic",
    ),
    DatasetEntry(
        "a150_semantic", open_semantic_folder, ADE,
        ("images/validation", "annotations_detectron2/validation", "categories.json | objectInfo150.txt"),
        task="semantic", pictures="a150", words="a150",
    ),
    DatasetEntry(
        "a150_instances", open_coco_instances, ADE, ("ade20k_instance_val.json", "images/validation"),
        task="instances", pictures="a150", words="a150",
    ),
    DatasetEntry(
        "a847", open_semantic_folder, ADE_FULL,
        ("images_detectron2/validation", "annotations_detectron2/validation", "categories.json | categories.txt"),
        task="semantic",
    ),
    DatasetEntry(
        "p59", open_semantic_folder, PASCAL,
        ("images/validation", "annotations_ctx59/validation", "categories_59.json | categories_59.txt"),
        task="semantic",
    ),
    DatasetEntry(
        "p459", open_semantic_folder, PASCAL,
        ("images/validation", "annotations_ctx459/validation", "categories_459.json | categories_459.txt"),
        task="semantic", pictures="p59",
    ),
    DatasetEntry(
        "lvis", open_coco_instances, "", ("lvis/lvis_v1_val.json", "lvis/val2017 | coco/val2017"), task="instances",
        options={"federated": True},
    ),
)  # fmt: skip
DATASETS = {entry.name: entry for entry in _ENTRIES}
if len(DATASETS) < len(_ENTRIES):
    raise ValueError(f"two entries of {__file__} have one name, among {[entry.name for entry in _ENTRIES]}")


def find_entry(name: str) -> DatasetEntry:
    """The table's entry of this name; ValueError: there is none, or it speaks of a data set that there is not."""
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; it must be one of {', '.join(DATASETS)}.")
    for other in (DATASETS[name].pictures, DATASETS[name].words):
        if other and other not in DATASETS:
            raise ValueError(f"the entry of data set {name!r} speaks of {other!r}, which is not in the table.")
    return DATASETS[name]


def scored_on(pictures: str) -> list[DatasetEntry]:
    """The entries that score what is done with the pictures of this data set; ValueError: there is none."""
    scored: dict[str, list[DatasetEntry]] = {}
    for entry in map(find_entry, DATASETS):
        if entry.task:
            scored.setdefault(entry.pictures or entry.name, []).append(entry)
    if pictures not in scored:
        raise ValueError(f"there are no test pictures {pictures!r}; there are {', '.join(sorted(scored))}.")
    return scored[pictures]


def open_dataset(name: str, root: str | Path, *, limit: int | None = None, whole: bool = False) -> Dataset:
    """One of `DATASETS` under `root`, laid out as docs/data.md says; `limit` as in `Dataset.first`. Pictures that
    `maskclip check --skip-damaged` left out are no part of it, unless `whole`."""
    entry = find_entry(name)
    found = [next((path for path in paths if path.exists()), paths[0]) for paths in entry.places(root)]
    dataset = entry.reader(*found, **entry.options, name=name)
    if not whole and (left_out := read_left_out(root)):
        dataset = dataset.subset(i for i in dataset.image_ids if place_of(dataset, i, root) not in left_out)
    return dataset.first(limit)


def read_left_out(root: str | Path) -> dict[str, str]:
    """What is wrong with each picture that is left out of all data sets, by its path under the root of all data."""
    path = Path(root) / LEFT_OUT
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no table of pictures left out; delete it and run maskclip check again.")
    return found


def place_of(dataset: Dataset, image_id: int | str, root: str | Path) -> str:
    """A picture's path under the root of all data."""
    return os.path.relpath(dataset.files(image_id)[0], root).replace(os.sep, "/")


def same_pictures(datasets: Iterable[Dataset]) -> list[list[Dataset]]:
    """Data sets, those together whose pictures are the same files, by name and content: the A-847 mirror annotates the
    A-150 mirror's. What is made of pictures is made of each group's first."""
    groups: list[list[Dataset]] = []
    for dataset in datasets:
        group = next((group for group in groups if _pictures_alike(group[0], dataset)), None)
        if group:
            group.append(dataset)
        else:
            groups.append([dataset])
    return groups


def _pictures_alike(one: Dataset, other: Dataset) -> bool:
    first, second = (
        [(dataset.picture_name(i), dataset.files(i)[0]) for i in dataset.image_ids] for dataset in (one, other)
    )
    return [name for name, _ in first] == [name for name, _ in second] and all(
        a == b or (a.is_file() and b.is_file() and content_mark(a) == content_mark(b))
        for (_, a), (_, b) in zip(first, second, strict=True)
    )
