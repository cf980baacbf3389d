"""One method over one collection of pictures: every metric of Tables 2 to 5 that the collection has annotations for.

Masks are embedded once per picture; each task, a vocabulary with its annotation, then only names and merges them.
A task has its `dataset`, judges a picture (`judge`, as plain values), adds what was judged up (`add`) and gives its
metrics in percent (`compute`). So pictures can be judged by several processes, and by a run that was killed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from maskclip.data import Category, Dataset, scored_on
from maskclip.evaluation.judgements import Judgements
from maskclip.evaluation.metrics import MeanIoU, PanopticQuality, average_precision, coco_results
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.proposals import Proposals
from maskclip.settings import Evaluation

Name = Callable[[Sequence[str]], NamedMasks]  # one picture's masks, classified among these words


class PanopticTask:
    """PQ, SQ, RQ on a panoptic set (Table 3)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.quality = dataset, PanopticQuality(dataset.categories)
        self.add, self.compute = self.quality.add, self.quality.compute

    def judge(self, name: Name, image_id: int | str, evaluation: Evaluation) -> Any:
        ids, segments = name(self.dataset.names).panoptic(
            self.dataset.isthing,
            score_threshold=evaluation.object_mask_threshold,
            overlap_threshold=evaluation.overlap_threshold,
        )
        return self.quality.judge(ids, segments, self.dataset.annotation(image_id))


class SemanticTask:
    """mIoU on a set with semantic annotation (Table 2).

    categories: another set's with the same ids, whose names masks choose from in place of the set's own: ADE20K's
    objectInfo150.txt spells its classes in full ("building, edifice"), the paper takes the short names.
    """

    def __init__(self, dataset: Dataset, categories: Sequence[Category] | None = None) -> None:
        self.dataset, self.names = dataset, [category.name for category in categories or dataset.categories]
        if categories is not None and [one.id for one in categories] != [one.id for one in dataset.categories]:
            raise ValueError(
                f"{dataset.name}: its categories' ids are not those of the panoptic annotation, in the same order; "
                "prepare both with the same scripts"
            )
        self.iou = MeanIoU(len(dataset.categories))
        self.add, self.compute = self.iou.add, self.iou.compute

    def judge(self, name: Name, image_id: int | str, evaluation: Evaluation) -> Any:
        annotated = self.dataset.annotation(image_id).semantic
        if annotated is None:
            raise ValueError(f"{self.dataset.name} has no semantic annotation; mIoU takes a semantic set")
        return self.iou.judge(name(self.names).semantic(evaluation.as_published), annotated)


class InstanceTask:
    """AP, AP50, AP75 on an instance set (Table 4); `results` are COCO result entries.

    categories: those whose names masks choose from: some of the set's own, as the COCO split is asked, or another
    set's, which know its own by their ids. ADE20K's instances are classified among all 150 classes, of which only the
    set's own, the things, are kept; its panoptic and its instance file spell a third differently.
    """

    def __init__(self, dataset: Dataset, categories: Sequence[Category] | None = None) -> None:
        words = dataset.categories if categories is None else categories
        own = {category.id: category.name for category in dataset.categories}
        lost = sorted(own.keys() - {word.id for word in words if word.isthing})
        if lost and not set(words) <= set(dataset.categories):
            raise ValueError(
                f"{dataset.name}: {own[lost[0]]!r} has the id {lost[0]}, which is no thing in the panoptic annotation; "
                "prepare both with the same scripts"
            )
        self.dataset, self.words, self.names = dataset, list(words), [word.name for word in words]
        self.kept = [word.id in own for word in words]
        images = (dataset.instances or {}).get("images", [])
        self.sizes = {image["id"]: (image["height"], image["width"]) for image in images}
        self.results: list[dict] = []
        self.add = self.results.extend

    def judge(self, name: Name, image_id: int | str, evaluation: Evaluation) -> Any:
        found, classes, scores = name(self.names).instances(self.kept, evaluation.top_k, evaluation.as_published)
        if found.shape[1:] != (size := self.sizes.get(image_id, found.shape[1:])):
            raise ValueError(
                f"image {image_id}: the picture is {found.shape[1:]} (height, width), by {self.dataset.source} it is "
                f"{size}; use the picture the annotation was made for"
            )
        return coco_results(image_id, found, classes.tolist(), scores.tolist(), self.words)

    def compute(self) -> dict[str, float]:
        return average_precision(self.dataset, self.results)


class SplitTask:
    """AP50 of a split's base and target categories (Table 5), asked for apart (constrained) and together (generalized),
    on the pictures with an object of the words asked for, as the split's own annotation files have them."""

    def __init__(self, dataset: Dataset) -> None:
        if dataset.split is None or dataset.instances is None:
            raise ValueError(f"{dataset.name} has no base and target categories; give its reader the file of a split")
        self.dataset, self.truth = dataset, dataset.instances["annotations"]
        of_name = dict(zip(dataset.names, dataset.categories))
        base, target = ([of_name[name] for name in dataset.split[group]] for group in ("base", "target"))
        self.groups = {"base": base, "target": target, "all": base + target}
        self.asked = {group: InstanceTask(dataset, words) for group, words in self.groups.items()}

    def judge(self, name: Name, image_id: int | str, evaluation: Evaluation) -> Any:
        return [task.judge(name, image_id, evaluation) for task in self.asked.values()]

    def add(self, judged: Any) -> None:
        for task, one in zip(self.asked.values(), judged, strict=True):
            task.add(one)

    def compute(self) -> dict[str, float]:
        values = {}
        for group, task in self.asked.items():
            ids = {category.id for category in self.groups[group]}
            have = {a["image_id"] for a in self.truth if a["category_id"] in ids}
            pictures = [image_id for image_id in self.dataset.image_ids if image_id in have]
            way, scored = ("generalized", [*self.groups]) if group == "all" else ("constrained", [group])
            for name in scored:
                part = replace(self.dataset, categories=self.groups[name], image_ids=pictures)
                values[f"AP50_{way}_{name}"] = average_precision(part, task.results)["AP50"]
        return values


Task = PanopticTask | SemanticTask | InstanceTask | SplitTask
TASKS: dict[str, Callable[..., Task]] = {
    "panoptic": PanopticTask, "semantic": SemanticTask, "instances": InstanceTask, "split": SplitTask
}  # fmt: skip


def tasks_of(pictures: str, open_set: Callable[[str], Dataset], without: Collection[str] = ()) -> dict[str, Task]:
    """The tasks, by their names in results, that the table of data sets knows for a collection of test pictures.
    open_set: a data set by its name; what remembers them opens each of their files once. without: sets left out."""
    tasks = {}
    for entry in (entry for entry in scored_on(pictures) if entry.name not in without):
        words = [open_set(entry.words).categories] if entry.words else []
        tasks[entry.results or entry.name] = TASKS[entry.task](open_set(entry.name), *words)
    return tasks


def own_ids(dataset: Dataset, pictures: Dataset) -> dict[int | str, int | str]:
    """Under which id a data set annotates each picture of another, by the id there. Of one and the same set ids are
    alike; different annotations of the same pictures know them by their paths below the folders of pictures."""
    if dataset.source == pictures.source:
        ids = {image_id: image_id for image_id in dataset.image_ids}
    else:
        there, here = _by_picture(pictures), _by_picture(dataset)
        ids = {image_id: here[path] for path, image_id in there.items() if path in here}
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
    proposals: Mapping[int | str, Proposals],
    tasks: Sequence[Task],
    evaluation: Evaluation,
    templates: Sequence[str] = ("{}",),
) -> None:
    """Segment every picture once and hand it to all `tasks`, which may annotate it under ids of their own; each then
    answers `compute()`. proposals: by image id of `pictures`."""
    judgements = Judgements()
    judge(model, pictures, proposals, tasks, evaluation, templates, judgements)
    add_up(tasks, judgements, len(pictures))


def judge(
    model: MaskCLIP,
    pictures: Dataset,
    proposals: Mapping[int | str, Proposals],
    tasks: Sequence[Task],
    evaluation: Evaluation,
    templates: Sequence[str],
    judgements: Judgements,
    share: tuple[int, int] = (0, 1),
) -> None:
    """The part of `evaluate` that several processes can share: each judges its share of what is not judged yet.

    share: this process's number, and how many there are. Once all are done, `add_up` counts.
    """
    ids_of_tasks, done = [own_ids(task.dataset, pictures) for task in tasks], judgements.read()
    left = [place for place in range(share[0], len(pictures), share[1]) if place not in done]  # others may be at work
    for place in tqdm(left, desc=pictures.name, unit="image", mininterval=5, disable=share[0] > 0):
        image_id = pictures.image_ids[place]
        with pictures.numbered(place):
            picture = pictures.picture(image_id)
        with computing_in(evaluation.precision, model.clip.device.type):
            options = {"as_published": True} if evaluation.as_published else {}
            masks = model.embed(picture, proposals[image_id], **options)
        name = partial(model.name, masks, templates=templates, objectness_power=evaluation.objectness_power)
        own = [ids.get(image_id) for ids in ids_of_tasks]
        judged = [None if i is None else task.judge(name, i, evaluation) for task, i in zip(tasks, own)]
        judgements.keep(place, judged)


@contextmanager
def computing_in(precision: str, device: str) -> Iterator[None]:
    """Everything inside in float32 exactly, in float32 with TF32's shorter products (NVIDIA's), or in mixed precision
    (bf16, fp16); what was set before is set again."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # which torch allows unasked
    try:
        with torch.autocast(device, half, enabled=half is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def add_up(tasks: Sequence[Task], judgements: Judgements, pictures: int) -> None:
    """Let tasks count what was judged, in the pictures' order, whoever judged them; ValueError: some are lacking."""
    judged = judgements.read()
    if lacking := [place for place in range(pictures) if place not in judged]:
        raise ValueError(f"{len(lacking)} of {pictures} pictures were not judged; run again, it goes on")
    for place in range(pictures):
        for task, one in zip(tasks, judged[place], strict=True):
            if one is not None:
                task.add(one)
