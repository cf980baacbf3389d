"""PQ of panoptic predictions that lie on the disk in COCO's form, whoever made them, by several processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

from maskclip.data import Dataset, open_coco_panoptic
from maskclip.evaluation.metrics import PanopticQuality, true_panoptic


def score_panoptic_files(truth: str | Path, predictions: str | Path, workers: int = 1) -> dict[str, float]:
    """PQ, SQ, RQ in percent, over all, things and stuff, as panopticapi counts them (Table 3).

    truth, predictions: COCO's panoptic JSONs, each beside a folder of its name with the PNGs. Raises ValueError where
    the two do not speak of the same pictures and categories, or a file does not hold what it should.
    """
    truth, predictions = Path(truth), Path(predictions)
    _open.cache_clear()  # the files may be others than at an earlier call
    true, predicted = _open(truth), _open(predictions)
    if lacking := set(true.image_ids) - set(predicted.image_ids):
        raise ValueError(f"{predictions} has no prediction of {len(lacking)} images of {truth}, as {min(lacking)}")
    if [(one.id, one.name) for one in true.categories] != [(one.id, one.name) for one in predicted.categories]:
        raise ValueError(f"{predictions} does not list the categories of {truth}, in the same order; copy them")
    quality, judge = PanopticQuality(true.categories), partial(_judge, truth, predictions)
    with ProcessPoolExecutor(workers) as pool:
        for judged in pool.map(judge, true.image_ids, chunksize=8) if workers > 1 else map(judge, true.image_ids):
            quality.add(judged)
    return quality.compute()


def _judge(truth: Path, predictions: Path, image_id: int | str) -> dict[str, list]:
    true, predicted = _open(truth), _open(predictions).annotation(image_id)
    if predicted.hidden:
        raise ValueError(f"{predictions}, image {image_id}: its PNG shows no pixel of {len(predicted.hidden)} segments")
    return PanopticQuality(true.categories).judge(*true_panoptic(predicted), true.annotation(image_id))


@cache
def _open(path: Path) -> Dataset:
    """A data set, once a process. Its pictures are not looked at."""
    return open_coco_panoptic(path, path.with_suffix(""), path.parent)
