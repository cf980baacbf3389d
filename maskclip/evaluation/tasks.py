"""One method over one collection of pictures: every metric of Tables 2 to 5 that the collection has annotations for.

Masks are embedded once per picture; each task, a vocabulary with its annotation, then only names and merges them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tqdm import tqdm

from maskclip.data import Category, Dataset, scored_on
from maskclip.evaluation.metrics import (
    MeanIoU,
    PanopticQuality,
    average_precision,
    coco_results,
    split_average_precision,
)
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.proposals import Proposals
from maskclip.settings import Evaluation

Name = Callable[[Sequence[str]], NamedMasks]  # one picture's masks, classified among these words


class Task(Protocol):
    """What `evaluate` asks of a task: its data set, a hand for every picture, and the metrics."""

    dataset: Dataset

    def update(self, name: Name, image_id: int | str, evaluation: Evaluation) -> None:
        """Name one picture's masks and count them against the annotation of that id."""

    def compute(self) -> dict[str, float]:
        """The metrics of all pictures so far, by name, in percent."""
        ...


class PanopticTask:
    """PQ, SQ, RQ on a panoptic set, in percent (Table 3)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.quality = dataset, PanopticQuality(dataset.categories)

    def update(self, name: Name, image_id: int | str, evaluation: Evaluation) -> None:
        ids, segments = name(self.dataset.names).panoptic(
            self.dataset.isthing,
            score_threshold=evaluation.object_mask_threshold,
            overlap_threshold=evaluation.overlap_threshold,
        )
        self.quality.update(ids, segments, self.dataset.annotation(image_id))

    def compute(self) -> dict[str, float]:
        return self.quality.compute()


class SemanticTask:
    """mIoU on a semantic set, in percent (Table 2).

    Args:
        categories: another set's with the same ids, whose names masks choose from in place of the set's own: ADE20K's
            objectInfo150.txt spells its classes in full ("building, edifice"), the paper takes the short names.

    Raises:
        ValueError: `categories` have other ids; the set has no semantic annotation (at `update`).
    """

    def __init__(self, dataset: Dataset, categories: Sequence[Category] | None = None) -> None:
        self.dataset, self.names = dataset, [category.name for category in categories or dataset.categories]
        if categories is not None and [one.id for one in categories] != [one.id for one in dataset.categories]:
            raise ValueError(
                f"{dataset.name}: its categories' ids are not those of the panoptic annotation, in the same order; "
                "prepare both with the same scripts"
            )
        self.iou = MeanIoU(len(dataset.categories))

    def update(self, name: Name, image_id: int | str, evaluation: Evaluation) -> None:
        annotated = self.dataset.annotation(image_id).semantic
        if annotated is None:
            raise ValueError(f"{self.dataset.name} has no semantic annotation; mIoU takes a semantic set")
        self.iou.update(name(self.names).semantic(), annotated)

    def compute(self) -> dict[str, float]:
        return {"mIoU": self.iou.compute()["mIoU"]}


class InstanceTask:
    """AP, AP50, AP75 on an instance set, in percent (Tables 4 and 5); `results` are COCO result entries.

    Args:
        categories: those whose names masks choose from: some of the set's own, as the COCO split is asked, or another
            set's, which know its own by their ids. ADE20K's instances are classified among all 150 classes, of which
            only the set's own, the things, are kept; its panoptic and its instance file spell a third differently.

    Raises:
        ValueError: a category of the set is none of another set's, or stuff there.
    """

    def __init__(self, dataset: Dataset, categories: Sequence[Category] | None = None) -> None:
        words = dataset.categories if categories is None else categories
        own = {category.id: place for place, category in enumerate(dataset.categories)}
        lost = sorted(own.keys() - {word.id for word in words if word.isthing})
        if lost and not set(words) <= set(dataset.categories):
            raise ValueError(
                f"{dataset.name}: {dataset.names[own[lost[0]]]!r} has the id {lost[0]}, which is no thing in the "
                "panoptic annotation; prepare both with the same scripts"
            )
        self.dataset, self.names = dataset, [word.name for word in words]
        self.own_class = [own.get(word.id) for word in words]
        self.results: list[dict] = []

    def update(self, name: Name, image_id: int | str, evaluation: Evaluation) -> None:
        kept = [own is not None for own in self.own_class]
        found, classes, scores = name(self.names).instances(kept, evaluation.top_k)
        own = [place for place in (self.own_class[index] for index in classes) if place is not None]
        self.results += coco_results(image_id, found, own, scores.tolist(), self.dataset.categories)

    def compute(self) -> dict[str, float]:
        return average_precision(self.dataset, self.results)


class SplitTask:
    """AP50 of a split's base and target categories, in percent (Table 5), asked for apart and together.

    Raises:
        ValueError: the set has no split.
    """

    def __init__(self, dataset: Dataset) -> None:
        if dataset.split is None:
            raise ValueError(f"{dataset.name} has no base and target categories; give its reader the file of a split")
        self.dataset, self.split = dataset, dataset.split
        of_name = dict(zip(dataset.names, dataset.categories))
        base, target = ([of_name[name] for name in self.split[group]] for group in ("base", "target"))
        words = {"base_only": base, "target_only": target, "generalized": [*base, *target]}
        self.asked = {way: InstanceTask(dataset, categories) for way, categories in words.items()}

    def update(self, name: Name, image_id: int | str, evaluation: Evaluation) -> None:
        for task in self.asked.values():
            task.update(name, image_id, evaluation)

    def compute(self) -> dict[str, float]:
        results = {way: task.results for way, task in self.asked.items()}
        return split_average_precision(self.dataset, self.split, **results)


TASKS: dict[str, Callable[..., Task]] = {
    "panoptic": PanopticTask,
    "semantic": SemanticTask,
    "instances": InstanceTask,
    "split": SplitTask,
}


def tasks_of(pictures: str, open_set: Callable[[str], Dataset]) -> dict[str, Task]:
    """The tasks, by their names in results, that the table of data sets knows for a collection of test pictures.

    Args:
        open_set: a data set by its name; what remembers them opens each of their files once.

    Raises:
        ValueError: the table has none.
    """
    tasks = {}
    for entry in scored_on(pictures):
        words = [open_set(entry.words).categories] if entry.words else []
        tasks[entry.results or entry.name] = TASKS[entry.task](open_set(entry.name), *words)
    return tasks


def own_ids(dataset: Dataset, pictures: Dataset) -> dict[int | str, int | str]:
    """Under which id a data set annotates each picture of another, by the id there. Of one and the same set ids are
    alike; different annotations of the same pictures know them by their paths below the folders of pictures.

    Raises:
        ValueError: two images of one set have one picture; none is annotated.
    """
    if dataset.source == pictures.source:
        ids = {image_id: image_id for image_id in dataset.image_ids}
    else:
        named = [_by_picture(one) for one in (pictures, dataset)]
        ids = {image_id: named[1][path] for path, image_id in named[0].items() if path in named[1]}
    if not ids.keys() & set(pictures.image_ids):
        raise ValueError(f"{dataset.name} annotates none of the pictures of {pictures.name}; check the folders")
    return ids


def _by_picture(dataset: Dataset) -> dict[str, int | str]:
    ids: dict[str, int | str] = {}
    for image_id in dataset.image_ids:
        path = dataset.picture_name(image_id)
        if ids.setdefault(path, image_id) != image_id:
            raise ValueError(f"{dataset.source}: images {ids[path]} and {image_id} are both of {path}; keep one")
    return ids


def evaluate(
    model: MaskCLIP,
    pictures: Dataset,
    proposals: Mapping[int | str, Proposals] | None,
    tasks: Sequence[Task],
    evaluation: Evaluation,
    templates: Sequence[str] = ("{}",),
) -> None:
    """Segment every picture once and hand it to all `tasks`; each then answers `compute()`.

    Args:
        pictures: the data set whose pictures are run; tasks may annotate the same files under ids of their own.
        proposals: by image id of `pictures`; None lets the model's own proposal source work.

    Raises:
        ValueError: a task shares no picture with `pictures`.
    """
    ids_of_tasks = [own_ids(task.dataset, pictures) for task in tasks]
    for image_id in tqdm(pictures.image_ids, desc=pictures.name, unit="image", mininterval=5):
        masks = model.embed(pictures.picture(image_id), None if proposals is None else proposals[image_id])
        for task, ids in zip(tasks, ids_of_tasks):
            if image_id in ids:
                task.update(
                    lambda names: model.name(masks, names, templates, evaluation.objectness_power),  # noqa: B023
                    ids[image_id],
                    evaluation,
                )
