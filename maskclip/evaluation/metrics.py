"""PQ, mIoU and AP, each as its reference implementation counts it; all values in percent, NaN where undefined."""

import contextlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskclip.data import Annotation, Category, Dataset
from maskclip.data.annotations import check_alike
from maskclip.data.coco import FEDERATED, encode, runs
from maskclip.data.images import write_panoptic_ids
from maskclip.files import write_atomically

COCO_LIMIT, LVIS_LIMIT = 100, 300  # results per image and category, results per image


class PanopticQuality:
    """PQ = SQ x RQ as cocodataset/panopticapi counts it, crowd and void rules included, over images one at a time."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self.categories = list(categories)
        self.iou, self.tp, self.fp, self.fn = (np.zeros(len(self.categories)) for _ in range(4))

    def update(self, pred_ids: np.ndarray, pred_segments: list[dict], truth: Annotation) -> None:
        """Judge a picture, and add what was found."""
        self.add(self.judge(pred_ids, pred_segments, truth))

    def add(self, judged: dict[str, list]) -> None:
        """Count what `judge` found of a picture; pictures in the same order give the same sums to the bit."""
        for name in ("tp", "fp", "fn"):
            np.add.at(getattr(self, name), np.array(judged[name], int), 1)
        np.add.at(self.iou, np.array(judged["tp"], int), judged["iou"])

    def judge(self, pred_ids: np.ndarray, pred_segments: list[dict], truth: Annotation) -> dict[str, list]:
        """A picture's classes of matches ("tp", with their "iou"), of false and of missed segments, as plain lists.

        pred_ids: int [H, W] of segment ids, 0 void; pred_segments: {"id", "category" (class index)} for each id.

        A prediction matches a segment of its class when their IoU, void left out, is above 0.5. Crowd segments are
        matched by nothing and missed by nobody; an unmatched prediction that lies more than half in void and in its
        class's crowd region does not count. A true segment's area is the annotation's own, where it gives one.
        """
        shared = self._overlaps(pred_ids, pred_segments, truth)
        inside, in_void, segments = shared[1:, 1:], shared[0, 1:], truth.segments
        pred_area, pred_class = shared[:, 1:].sum(0), np.array([s["category"] for s in pred_segments], int)
        drawn_area, true_class = shared[1:].sum(1), np.array([s.category for s in segments], int)
        true_area = np.array([a if s.area is None else s.area for a, s in zip(drawn_area, segments)], float)
        crowd = np.array([s.iscrowd for s in segments], bool)

        iou = inside / np.maximum(pred_area + true_area[:, None] - inside - in_void, 1)
        match = (iou > 0.5) & (true_class[:, None] == pred_class) & ~crowd[:, None]
        rows, columns = np.nonzero(match)
        found, first = np.unique(rows, return_index=True)  # of several, the first, as in panopticapi
        matched = columns[first]
        ignored = in_void.copy()
        for category, t in {true_class[t]: t for t in np.flatnonzero(crowd)}.items():  # a class's last, as panopticapi
            ignored[pred_class == category] += inside[t, pred_class == category]
        unmatched = np.ones(len(pred_class), bool)
        unmatched[matched] = False
        false = pred_class[unmatched & (ignored / pred_area <= 0.5)]
        missed = [*true_class[~crowd & ~match.any(1)].tolist(), *truth.hidden]
        hits = {"tp": true_class[found].tolist(), "iou": iou[found, matched].tolist()}
        return hits | {"fp": false.tolist(), "fn": missed}

    def _overlaps(self, pred_ids: np.ndarray, pred_segments: list[dict], truth: Annotation) -> np.ndarray:
        """Pixels that each true and each predicted segment share, [1 + true, 1 + predicted]; row and column 0: void."""
        image = f"image {truth.image_id}"
        if pred_ids.shape != truth.size:
            raise ValueError(f"{image}: the prediction is {pred_ids.shape}, the image {truth.size}.")
        true_ids = _true_ids(truth)
        starts, lengths = runs(true_ids, pred_ids)
        values, places = np.unique(pred_ids.reshape(-1)[starts], return_inverse=True)
        place = {0: 0} | {segment["id"]: i for i, segment in enumerate(pred_segments, 1)}
        if set(values.tolist()) | {0} != place.keys() or len(place) != len(pred_segments) + 1:
            raise ValueError(f"{image}: the map and the segment list must have the same ids.")
        if any(not 0 <= segment["category"] < len(self.categories) for segment in pred_segments):
            raise ValueError(f"{image}: a segment's category is no index below {len(self.categories)}.")
        pred = np.array([place[v] for v in values.tolist()])[places]
        pairs, size = true_ids.reshape(-1)[starts].astype(np.int64) * len(place) + pred, len(truth.segments) + 1
        return np.bincount(pairs, lengths, size * len(place)).astype(np.int64).reshape(size, len(place))

    def compute(self) -> dict[str, float]:
        """PQ, SQ, RQ and the same over things (PQth) and stuff (PQst): means over the categories that occurred."""
        weight = self.tp + (self.fp + self.fn) / 2
        per_class = {
            "PQ": 100 * self.iou / np.maximum(weight, 0.5),
            "SQ": 100 * self.iou / np.maximum(self.tp, 1),
            "RQ": 100 * self.tp / np.maximum(weight, 0.5),
        }
        things = np.array([category.isthing for category in self.categories], bool)
        groups = {"": things | True, "th": things, "st": ~things}
        return {
            metric + suffix: _mean(values[inside & (weight > 0)])
            for metric, values in per_class.items()
            for suffix, inside in groups.items()
        }


class MeanIoU:
    """mIoU over all pixels of a data set, as detectron2's SemSegEvaluator; void (-1) in the ground truth does not
    count, void in a prediction is an error.

    "mIoU" is the mean over the classes that occur in the ground truth. "mIoU_old" is what detectron2 gave before its
    commit f3c1bc19 (July 2022): the same sum, over the number of classes in the ground truth or in the prediction, so
    that a long vocabulary, of which much is predicted and not there, scores less.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)  # truth x prediction, last column: void

    def update(self, pred: np.ndarray, truth: np.ndarray) -> None:
        """Judge a picture, and add what was found."""
        self.add(self.judge(pred, truth))

    def add(self, judged: tuple[list[int], list[int]]) -> None:
        """Count what `judge` found of a picture."""
        places, pixels = (np.array(part, np.int64) for part in judged)  # of a picture that is all void, empty
        self.confusion.ravel()[places] += pixels

    def judge(self, pred: np.ndarray, truth: np.ndarray) -> tuple[list[int], list[int]]:
        """Places in the confusion matrix, and their pixels, of a picture: int [H, W] of class indices, -1 void."""
        classes = len(self.confusion)
        if pred.shape != truth.shape:
            raise ValueError(f"the prediction is {pred.shape} but the ground truth {truth.shape}; they must be alike.")
        starts, lengths = runs(truth, pred)
        said, true = pred.reshape(-1)[starts], truth.reshape(-1)[starts]
        for what, values in (("prediction", said), ("ground truth", true)):
            if values.size and not -1 <= values.min() <= values.max() < classes:
                raise ValueError(f"the {what} holds class {values.max()} (or below -1); there are {classes} classes.")
        counted = true >= 0
        pairs = true[counted].astype(np.int64) * (classes + 1) + said[counted] % (classes + 1)
        places, pair = np.unique(pairs, return_inverse=True)
        return places.tolist(), np.bincount(pair, lengths[counted], len(places)).astype(int).tolist()

    def compute(self) -> dict[str, float]:
        truth, right = self.confusion.sum(1), np.diag(self.confusion)
        union = truth + self.confusion[:, :-1].sum(0) - right
        iou = (100 * (right / np.maximum(union, 1)))[truth > 0]
        return {"mIoU": _mean(iou), "mIoU_old": _mean(iou) * len(iou) / max(1, int((union > 0).sum()))}


def coco_results(
    image_id: int | str, masks: np.ndarray, classes: Sequence[int], scores: Sequence[float], categories: list[Category]
) -> list[dict]:
    """Instances of one image (`merge.instances`) as COCO result entries: category ids of the data set, masks as
    run-length code. masks: bool [n, H, W]."""
    codes: dict[bytes, dict] = {}
    results = []
    for mask, category, score in zip(masks, classes, scores, strict=True):
        key = np.packbits(mask).tobytes()  # one mask often carries several classes
        if key not in codes:
            codes[key] = encode(mask)
        entry = {"image_id": image_id, "category_id": categories[int(category)].id, "score": float(score)}
        results.append(entry | {"segmentation": codes[key]})
    return results


def average_precision(dataset: Dataset, results: list[dict]) -> dict[str, float]:
    """{"AP" (IoU 0.50:0.95), "AP50", "AP75"} of mask results (`coco_results`) by pycocotools.

    dataset: an instance set; of its annotation file only its own images and categories count. LVIS, known by its
    neg_category_ids, is evaluated by its federated rules: 300 results an image; results of a category that the image
    was not checked for are left out; unmatched ones of a category not exhaustively annotated there are ignored.
    """
    if dataset.instances is None:
        raise ValueError(f"{dataset.name} has no instance annotations; AP needs a COCO or LVIS instance set.")
    images = {image["id"]: image for image in dataset.instances["images"]}
    if unknown := sorted({r["image_id"] for r in results} - images.keys(), key=str):
        raise ValueError(f"results name image {unknown[0]!r}, which {dataset.source} does not have.")
    _check_results(results, images, dataset.source)
    images = {i: images[i] for i in dataset.image_ids}
    federated = _federated(list(images.values()), dataset.source)
    ids = {category.id for category in dataset.categories}
    truth = [a for a in dataset.instances["annotations"] if a["image_id"] in images and a["category_id"] in ids]
    results = [r for r in results if r["image_id"] in images]
    found = _grouped(_of_lvis(results, truth, images) if federated else results, "category_id")
    rows = [
        _precision(category, entries, found[category], images, federated)
        for category, entries in _grouped(truth, "category_id").items()
    ]
    precision = np.array([row for row in rows if (row > -1).all()]).reshape(-1, 10, 101)
    values = {"AP": precision, "AP50": precision[:, 0], "AP75": precision[:, 5]}
    return {name: _mean(100 * value.ravel()) for name, value in values.items()}


def _federated(images: list[dict], source: Path) -> bool:
    """Whether LVIS's rules hold: its images say which categories they were searched for in vain."""
    check_alike(images, FEDERATED, source, "image")
    lacking = [field for field in FEDERATED if any(field not in image for image in images)]
    if len(lacking) == 1:
        raise ValueError(f"{source}: its images lack {lacking[0]}; take LVIS's own file.")
    return not lacking


def _check_results(results: list[dict], images: dict, source: Path) -> None:
    """Scores are numbers, and masks of their images' sizes; pycocotools would take others for worthless."""
    for result in results:
        image = images[result["image_id"]]
        if lacking := sorted({"score", "category_id", "segmentation"} - result.keys()):
            raise ValueError(f"a result of image {image['id']} has no {lacking[0]}; give COCO's result entries.")
        if not math.isfinite(result["score"]):
            raise ValueError(
                f"a result of image {image['id']} has the score {result['score']}; the model has diverged."
            )
        code = result["segmentation"]
        if isinstance(code, dict) and list(code["size"]) != [image["height"], image["width"]]:
            raise ValueError(
                f"a result of image {image['id']} is {list(code['size'])} (height, width), the image "
                f"{[image['height'], image['width']]} in {source}; use the picture the annotation was made for."
            )


def _of_lvis(results: list[dict], truth: list[dict], images: dict) -> list[dict]:
    """What counts by LVIS's rules: an image's best results, of categories that it was checked for."""
    best = [sorted(group, key=lambda r: -r["score"])[:LVIS_LIMIT] for group in _grouped(results, "image_id").values()]
    checked = {(a["image_id"], a["category_id"]) for a in truth}
    checked |= {(i, category) for i, image in images.items() for category in image["neg_category_ids"]}
    return [r for group in best for r in group if (r["image_id"], r["category_id"]) in checked]


def _grouped(entries: list[dict], key: str) -> dict[Any, list[dict]]:
    groups = defaultdict(list)
    for entry in entries:
        groups[entry[key]].append(entry)
    return groups


def _precision(category: int, truth: list[dict], found: list[dict], images: dict, federated: bool) -> np.ndarray:
    """Precision [10 IoU thresholds, 101 recalls] of one category by pycocotools, -1 where it has nothing to find."""
    asked = [images[i] for i in {entry["image_id"] for entry in truth + found}]  # the others change nothing
    apis = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        for entries in (truth, found):
            # ids from 1: pycocotools takes a match with annotation 0 for no match
            numbered = [{"iscrowd": 0} | entry | {"id": n, "area": 0} for n, entry in enumerate(entries, 1)]
            apis.append(COCO())
            apis[-1].dataset = {"images": asked, "categories": [{"id": category}], "annotations": numbered}
            apis[-1].createIndex()
        evaluation = COCOeval(*apis, "segm")
        p = evaluation.params
        p.maxDets, p.areaRng, p.areaRngLbl = [LVIS_LIMIT if federated else COCO_LIMIT], p.areaRng[:1], ["all"]
        evaluation.evaluate()
        for entry in evaluation.evalImgs if federated else []:
            if category in images[entry["image_id"]]["not_exhaustive_category_ids"]:
                entry["dtIgnore"] = np.logical_or(entry["dtIgnore"], entry["dtMatches"] == 0)
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0]


def write_panoptic(
    json_path: str | Path, categories: Sequence[Category], entries: Iterable[tuple[int | str, np.ndarray, list[dict]]]
) -> None:
    """Panoptic predictions as COCO's JSON and, in a folder of the same name, PNGs, so that anyone can run
    panopticapi on them. entries: (image_id, ids [H, W], segments with "id", "category" and maybe "iscrowd")."""
    json_path = Path(json_path)
    images, annotations, written = [], [], set[str]()
    for image_id, ids, segments in entries:
        image_id = image_id.item() if isinstance(image_id, np.generic) else image_id  # which JSON does not know
        file_name = f"{image_id:012d}.png" if isinstance(image_id, int) else f"{image_id}.png"
        if file_name in written:
            raise ValueError(f"{json_path}: two images would be written to {file_name}; give each an id of its own.")
        written.add(file_name)
        write_panoptic_ids(json_path.with_suffix("") / file_name, ids)
        infos = []
        for segment in segments:
            code = coco_mask.encode(np.asfortranarray(ids == segment["id"], np.uint8))
            infos.append({
                "id": int(segment["id"]),
                "category_id": categories[segment["category"]].id,
                "iscrowd": int(segment.get("iscrowd", False)),
                "area": int(coco_mask.area(code)),
                "bbox": coco_mask.toBbox(code).astype(int).tolist(),
            })  # fmt: skip
        images.append({"id": image_id, "file_name": file_name, "height": ids.shape[0], "width": ids.shape[1]})
        annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": infos})
    kinds = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in categories]
    content = {"images": images, "annotations": annotations, "categories": kinds}
    write_atomically(json_path, json.dumps(content))


def true_panoptic(truth: Annotation) -> tuple[np.ndarray, list[dict]]:
    """A panoptic annotation in the form of a prediction: ids int32 [H, W], from 1 on, and segments."""
    kinds = [{"category": s.category, "isthing": s.isthing, "iscrowd": s.iscrowd} for s in truth.segments]
    return _true_ids(truth).astype(np.int32), [{"id": i} | kind for i, kind in enumerate(kinds, 1)]


def _true_ids(truth: Annotation) -> np.ndarray:
    if truth.ids is not None:
        return truth.ids
    ids = np.zeros(truth.size, np.int32)
    for i, segment in enumerate(truth.segments, 1):
        ids[segment.mask] = i
    return ids


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
