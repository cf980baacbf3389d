"""PQ, mIoU and AP, each as its reference implementation counts it; all values in percent, NaN where undefined."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskclip.data import Annotation, Category, Dataset, write_panoptic_ids
from maskclip.data.masks import run_length_code
from maskclip.files import write_atomically

MAX_DETECTIONS = {"coco": 100, "lvis": 300}  # COCO's limit is per image and category, LVIS's per image


class PanopticQuality:
    """PQ = SQ x RQ as cocodataset/panopticapi counts it, crowd and void rules included, over images one at a time."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self.categories = list(categories)
        self.iou, self.tp, self.fp, self.fn = (np.zeros(len(self.categories)) for _ in range(4))

    def update(self, pred_ids: np.ndarray, pred_segments: list[dict], truth: Annotation) -> None:
        """pred_ids: int [H, W] of segment ids, 0 void; pred_segments: {"id", "category" (class index)} for each id.

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
        found = np.flatnonzero(match.any(1))
        np.add.at(self.tp, true_class[found], 1)
        np.add.at(self.iou, true_class[found], iou[found, match[found].argmax(1)])
        np.add.at(self.fn, true_class[~crowd & ~match.any(1)], 1)
        np.add.at(self.fn, np.array(truth.hidden, int), 1)
        ignored = in_void.copy()
        for category, t in {true_class[t]: t for t in np.flatnonzero(crowd)}.items():  # a class's last, as panopticapi
            ignored[pred_class == category] += inside[t, pred_class == category]
        unmatched = np.ones(len(pred_class), bool)
        unmatched[match[found].argmax(1)] = False
        np.add.at(self.fp, pred_class[unmatched & (ignored / pred_area <= 0.5)], 1)

    def _overlaps(self, pred_ids: np.ndarray, pred_segments: list[dict], truth: Annotation) -> np.ndarray:
        """Pixels that each true and each predicted segment share, [1 + true, 1 + predicted]; row and column 0: void."""
        image = f"image {truth.image_id}"
        if pred_ids.shape != truth.size:
            raise ValueError(f"{image}: the prediction is {pred_ids.shape}, the image {truth.size}.")
        values, pred = np.unique(pred_ids, return_inverse=True)
        place = {0: 0} | {segment["id"]: i for i, segment in enumerate(pred_segments, 1)}
        if set(values.tolist()) | {0} != place.keys() or len(place) != len(pred_segments) + 1:
            raise ValueError(f"{image}: the map and the segment list must have the same ids.")
        if any(not 0 <= segment["category"] < len(self.categories) for segment in pred_segments):
            raise ValueError(f"{image}: a segment's category is no index below {len(self.categories)}.")
        pred = np.array([place[v] for v in values.tolist()])[pred.reshape(-1)]
        pairs = true_panoptic(truth)[0].astype(np.int64).reshape(-1) * len(place) + pred
        return np.bincount(pairs, minlength=(len(truth.segments) + 1) * len(place)).reshape(-1, len(place))

    def per_class(self) -> dict[str, dict[str, float]]:
        """{name: {"PQ", "SQ", "RQ"}} of the categories that occurred, in truth or prediction."""
        weight = self.tp + (self.fp + self.fn) / 2
        return {
            category.name: {
                "PQ": 100 * self.iou[i] / weight[i],
                "SQ": 100 * self.iou[i] / self.tp[i] if self.tp[i] else 0.0,
                "RQ": 100 * self.tp[i] / weight[i],
            }
            for i, category in enumerate(self.categories)
            if weight[i] > 0
        }

    def compute(self) -> dict[str, float]:
        """PQ, SQ, RQ and the same over things (PQth) and stuff (PQst): means over the categories that occurred."""
        rows = self.per_class()
        groups = {
            "": set(rows),
            "th": {c.name for c in self.categories if c.isthing},
            "st": {c.name for c in self.categories if not c.isthing},
        }
        return {
            metric + suffix: _mean([row[metric] for name, row in rows.items() if name in group])
            for metric in ("PQ", "SQ", "RQ")
            for suffix, group in groups.items()
        }


class MeanIoU:
    """mIoU over all pixels of a data set, as detectron2's SemSegEvaluator: the mean over the classes that occur in the
    ground truth; void (-1) there does not count, void in a prediction is an error."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)  # truth x prediction, last column: void

    def update(self, pred: np.ndarray, truth: np.ndarray) -> None:
        """pred, truth: int [H, W] of class indices, -1 void."""
        classes = len(self.confusion)
        if pred.shape != truth.shape:
            raise ValueError(f"the prediction is {pred.shape} but the ground truth {truth.shape}; they must be alike.")
        for what, values in (("prediction", pred), ("ground truth", truth)):
            if values.size and not -1 <= values.min() <= values.max() < classes:
                raise ValueError(f"the {what} holds class {values.max()} (or below -1); there are {classes} classes.")
        counted = truth >= 0
        pairs = truth[counted].astype(np.int64) * (classes + 1) + pred[counted] % (classes + 1)
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def per_class(self) -> np.ndarray:
        """IoU of each class [K], NaN for classes that never occur in the ground truth."""
        truth, right = self.confusion.sum(1), np.diag(self.confusion)
        union = truth + self.confusion[:, :-1].sum(0) - right
        return 100 * np.where(truth > 0, right / np.maximum(union, 1), np.nan)

    def compute(self) -> dict[str, float]:
        """{"mIoU", "mACC" (mean over classes of the share of pixels found), "pACC" (share of all pixels)}."""
        truth, right = self.confusion.sum(1), np.diag(self.confusion)
        return {
            "mIoU": _mean(self.per_class()),
            "mACC": _mean(100 * right[truth > 0] / truth[truth > 0]),
            "pACC": 100 * right.sum() / truth.sum() if truth.sum() else float("nan"),
        }


def coco_results(
    image_id: int | str,
    masks: np.ndarray,
    classes: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    categories: list[Category],
) -> list[dict]:
    """Instances of one image (`merge.instances`) as COCO result entries: category ids of the data set, masks as
    run-length code. masks: bool [n, H, W]."""
    codes: dict[bytes, dict] = {}
    results = []
    for mask, category, score in zip(masks, classes, scores, strict=True):
        key = np.packbits(mask).tobytes()  # one mask often carries several classes
        if key not in codes:
            code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            codes[key] = {"size": list(code["size"]), "counts": code["counts"].decode()}
        entry = {"image_id": image_id, "category_id": categories[int(category)].id, "score": float(score)}
        results.append(entry | {"segmentation": codes[key]})
    return results


def average_precision(
    dataset: Dataset,
    results: list[dict],
    *,
    categories: Sequence[str] | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> dict[str, float]:
    """{"AP" (IoU 0.50:0.95), "AP50", "AP75"} of mask results (`coco_results`) by pycocotools.

    dataset: an instance set; only its images (or those of `image_ids`) and categories (or those named) count.
    LVIS, known by its neg_category_ids, is evaluated by its federated rules: 300 results an image; results of a
    category that the image was not checked for are left out; unmatched ones of a category not exhaustively annotated
    there are ignored.
    """
    if dataset.instances is None:
        raise ValueError(f"{dataset.name} has no instance annotations; AP needs a COCO or LVIS instance set.")
    images = {image["id"]: image for image in dataset.instances["images"]}
    if unknown := sorted({r["image_id"] for r in results} - images.keys(), key=str):
        raise ValueError(f"results name image {unknown[0]!r}, which {dataset.source} does not have.")
    wanted = set(dataset.image_ids if image_ids is None else image_ids)
    ids = {c.id for c in dataset.categories if categories is None or c.name in set(categories)}
    federated = _federated([images[i] for i in wanted], dataset.source)
    limit = MAX_DETECTIONS["lvis" if federated else "coco"]
    results = [r for r in results if r["image_id"] in wanted]
    if federated:
        results = _best_per_image(results, limit)
    truth = [
        # ids from 1: pycocotools takes a match with annotation 0 for no match
        {"iscrowd": 0, **a, "id": n, "area": a["area"] if "area" in a else _area(a, images[a["image_id"]])}
        for n, a in enumerate(dataset.instances["annotations"], 1)
        if a["image_id"] in wanted and a["category_id"] in ids
    ]
    found = [
        r | {"id": n, "area": float(coco_mask.area(r["segmentation"])), "iscrowd": 0}
        for n, r in enumerate((r for r in results if r["category_id"] in ids), 1)
    ]
    annotated = _images_by_category(truth)
    if federated:
        found = [
            r for r in found
            if r["image_id"] in annotated.get(r["category_id"], ())
            or r["category_id"] in images[r["image_id"]]["neg_category_ids"]
        ]  # fmt: skip
    claimed = _images_by_category(found)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        api = [_coco(dataset.instances, entries) for entries in (truth, found)]
        rows = [  # one at a time: only images that have it, or results for it
            _precision(
                api[0], api[1], category, where | claimed.get(category, set()), images if federated else {}, limit
            )
            for category, where in annotated.items()
        ]
    precision = np.array([row for row in rows if (row > -1).all()])  # [categories, 10 IoU thresholds, 101 recalls]
    pick: dict[str, Any] = {"AP": slice(None), "AP50": 0, "AP75": 5}
    return {k: _mean(100 * precision[:, at].ravel()) if len(precision) else float("nan") for k, at in pick.items()}


def split_average_precision(
    dataset: Dataset,
    split: dict[str, list[str]],
    *,
    base_only: list[dict],
    target_only: list[dict],
    generalized: list[dict],
) -> dict[str, float]:
    """AP50 on the COCO base/target split (Table 5). Three sets of results, by the vocabulary the masks were classified
    with: the base names, the target names (constrained), or both (generalized). Constrained AP counts the images with
    an object of the group, generalized those with one of either, as the split's own annotation files do."""
    groups = {"base": split["base"], "target": split["target"], "all": split["base"] + split["target"]}
    name_of = {c.id: c.name for c in dataset.categories}
    truth = (dataset.instances or {}).get("annotations", [])
    have = {
        group: {a["image_id"] for a in truth if name_of.get(a["category_id"]) in set(names)}
        for group, names in groups.items()
    }
    runs = [("constrained", "base", base_only), ("constrained", "target", target_only)]
    runs += [("generalized", group, generalized) for group in groups]
    values = {}
    for setting, group, results in runs:
        inside = have[group if setting == "constrained" else "all"]
        image_ids = [i for i in dataset.image_ids if i in inside]
        ap = average_precision(dataset, results, categories=groups[group], image_ids=image_ids)
        values[f"AP50_{setting}_{group}"] = ap["AP50"]
    return values


def write_panoptic(
    json_path: str | Path, categories: Sequence[Category], entries: Iterable[tuple[int | str, np.ndarray, list[dict]]]
) -> None:
    """Panoptic predictions as COCO's JSON and, in a folder of the same name, PNGs, so that anyone can run
    panopticapi on them. entries: (image_id, ids [H, W], segments with "id", "category" and maybe "iscrowd")."""
    json_path = Path(json_path)
    folder = json_path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, ids, segments in entries:
        file_name = f"{image_id:012d}.png" if isinstance(image_id, int) else f"{image_id}.png"
        write_panoptic_ids(folder / file_name, ids)
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
    text = json.dumps({"images": images, "annotations": annotations, "categories": kinds})
    write_atomically(json_path, lambda path: path.write_text(text))


def true_panoptic(truth: Annotation) -> tuple[np.ndarray, list[dict]]:
    """A panoptic annotation in the form of a prediction: ids int32 [H, W], from 1 on, and segments."""
    ids, segments = np.zeros(truth.size, np.int32), []
    for i, segment in enumerate(truth.segments, 1):
        ids[segment.mask] = i
        kind = {"category": segment.category, "isthing": segment.isthing, "iscrowd": segment.iscrowd}
        segments.append({"id": i, **kind})
    return ids, segments


def _precision(truth: COCO, found: COCO, category: int, image_ids: set, federated: dict, limit: int) -> np.ndarray:
    """Precision [10 IoU thresholds, 101 recalls] of one category by pycocotools, -1 where it has nothing to find."""
    evaluation = COCOeval(truth, found, "segm")
    p = evaluation.params
    p.imgIds, p.catIds, p.maxDets = sorted(image_ids), [category], [limit]
    p.areaRng, p.areaRngLbl = p.areaRng[:1], p.areaRngLbl[:1]
    evaluation.evaluate()
    for entry in evaluation.evalImgs if federated else []:
        if entry and category in federated[entry["image_id"]].get("not_exhaustive_category_ids", []):
            entry["dtIgnore"] = np.logical_or(entry["dtIgnore"], entry["dtMatches"] == 0)
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0]


def _federated(images: list[dict], source: Path) -> bool:
    """Whether LVIS's rules hold: its images say which categories they were searched for in vain."""
    said = ["neg_category_ids" in image for image in images]
    if any(said) and not all(said):
        lacking = images[said.index(False)]["id"]
        raise ValueError(
            f"{source}: image {lacking} lacks the neg_category_ids that others have; take LVIS's own file."
        )
    return any(said)


def _images_by_category(entries: list[dict]) -> dict[int, set]:
    images: dict[int, set] = {}
    for entry in entries:
        images.setdefault(entry["category_id"], set()).add(entry["image_id"])
    return images


def _coco(content: dict, entries: list[dict]) -> COCO:
    api = COCO()
    api.dataset = {"images": content["images"], "categories": content["categories"], "annotations": entries}
    api.createIndex()
    return api


def _best_per_image(results: list[dict], limit: int) -> list[dict]:
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return [r for group in by_image.values() for r in sorted(group, key=lambda r: -r["score"])[:limit]]


def _area(annotation: dict, image: dict) -> float:
    return float(coco_mask.area(run_length_code(annotation["segmentation"], (image["height"], image["width"]))))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")
