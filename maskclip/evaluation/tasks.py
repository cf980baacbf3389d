"""One method over one collection of pictures: every metric of Tables 2 to 5 that the collection has annotations for.

Masks are embedded once per picture; each task, a vocabulary with its annotation, then only names and merges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from maskclip.data import Category, Dataset
from maskclip.evaluation.metrics import MeanIoU, PanopticQuality, average_precision, coco_results
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.proposals import Proposals
from maskclip.settings import Evaluation


class Task(Protocol):
    """What `evaluate` asks of a task: its pictures and words, a hand for every named picture, and the metrics."""

    dataset: Dataset
    names: list[str]

    def update(self, masks: NamedMasks, image_id: int | str, evaluation: Evaluation) -> None:
        """Count one picture's named masks against the annotation of that id."""

    def compute(self) -> dict[str, float]:
        """The metrics of all pictures so far, by name, in percent."""
        ...


class PanopticTask:
    """PQ, SQ, RQ on a panoptic set, in percent (Table 3)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.names = dataset, dataset.names
        self.quality = PanopticQuality(dataset.categories)

    def update(self, masks: NamedMasks, image_id: int | str, evaluation: Evaluation) -> None:
        ids, segments = masks.panoptic(
            self.dataset.isthing,
            score_threshold=evaluation.object_mask_threshold,
            overlap_threshold=evaluation.overlap_threshold,
        )
        self.quality.update(ids, segments, self.dataset.read(image_id))

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

    def update(self, masks: NamedMasks, image_id: int | str, evaluation: Evaluation) -> None:
        annotated = self.dataset.read(image_id).semantic
        if annotated is None:
            raise ValueError(f"{self.dataset.name} has no semantic annotation; mIoU takes a semantic set")
        self.iou.update(masks.semantic(), annotated)

    def compute(self) -> dict[str, float]:
        return {"mIoU": self.iou.compute()["mIoU"]}


class InstanceTask:
    """AP, AP50, AP75 on an instance set, in percent (Tables 4 and 5); `results` are COCO result entries.

    Args:
        names: the words masks choose from, where those are not the set's own; the COCO split is asked in three ways.
        categories: in place of `names`, another set's, which know the set's own by their ids. ADE20K's instances are
            classified among all 150 classes, of which only the set's own, the things, are kept; its panoptic and its
            instance file spell a third of those differently.

    Raises:
        ValueError: a category of the set is none of `categories`, or stuff there.
    """

    def __init__(
        self, dataset: Dataset, names: Sequence[str] | None = None, categories: Sequence[Category] | None = None
    ) -> None:
        self.dataset, self.names = dataset, list(names or dataset.names)
        own: dict[Any, int] = {name: place for place, name in enumerate(dataset.names)}
        words: list[Any] = self.names
        if categories is not None:
            self.names, words = [category.name for category in categories], [category.id for category in categories]
            own = {category.id: place for place, category in enumerate(dataset.categories)}
            for lost in own.keys() - {category.id for category in categories if category.isthing}:
                raise ValueError(
                    f"{dataset.name}: {dataset.names[own[lost]]!r} has the id {lost}, which is no thing in the "
                    "panoptic annotation; prepare both with the same scripts"
                )
        self.own_class = [own.get(word) for word in words]
        self.results: list[dict] = []

    def update(self, masks: NamedMasks, image_id: int | str, evaluation: Evaluation) -> None:
        found, classes, scores = masks.instances([own is not None for own in self.own_class], evaluation.top_k)
        own = [place for place in (self.own_class[index] for index in classes) if place is not None]
        self.results += coco_results(image_id, found, own, scores.tolist(), self.dataset.categories)

    def compute(self) -> dict[str, float]:
        return average_precision(self.dataset, self.results)


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
    by_file = []
    for task in tasks:
        ids = {Path(task.dataset.files(image_id)[0]).stem: image_id for image_id in task.dataset.image_ids}
        if not ids.keys() & {pictures.files(image_id)[0].stem for image_id in pictures.image_ids}:
            raise ValueError(
                f"{task.dataset.name} annotates none of the pictures of {pictures.name}; check the folders"
            )
        by_file.append(ids)
    for image_id in tqdm(pictures.image_ids, desc=pictures.name, unit="image", mininterval=5):
        sample = pictures.read(image_id)
        masks = model.embed(sample.image, None if proposals is None else proposals[image_id])
        for task, ids in zip(tasks, by_file):
            own_id = ids.get(pictures.files(image_id)[0].stem)
            if own_id is not None:
                task.update(model.name(masks, task.names, templates, evaluation.objectness_power), own_id, evaluation)
