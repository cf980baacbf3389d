"""Metrics against the references: panopticapi's and lvis's recorded numbers, pycocotools itself, sums by hand."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskclip.data import Annotation, Category, Segment, open_coco_instances, open_coco_panoptic
from maskclip.evaluation.metrics import (
    MeanIoU,
    PanopticQuality,
    average_precision,
    coco_results,
    true_panoptic,
    write_panoptic,
)
from maskclip.evaluation.panoptic_files import score_panoptic_files
from maskclip.evaluation.tasks import SplitTask

GOLDEN = Path(__file__).parent / "golden"
H, W = 20, 24


def open_panoptic_pair(folder, truth_json, pred_json):
    """Ground truth and predictions in panopticapi's files, through our reader; pictures do not matter."""
    for entry in json.loads(truth_json.read_text())["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(folder / entry["file_name"])
    return (open_coco_panoptic(path, path.with_suffix(""), folder) for path in (truth_json, pred_json))


def quality(truth, pred):
    metric = PanopticQuality(truth.categories)
    for a, b in zip(truth, pred, strict=True):
        ids, segments = true_panoptic(b)
        metric.update(ids, segments, a)
    return metric


def test_pq_equals_panopticapi(tmp_path):
    folder = GOLDEN / "panoptic"
    expected = json.loads((folder / "expected.json").read_text())
    metric = quality(*open_panoptic_pair(tmp_path, folder / "gt.json", folder / "pred.json"))
    for i, category in enumerate(metric.categories):
        counts = {k: getattr(metric, k)[i] for k in ("iou", "tp", "fp", "fn")}
        assert counts == pytest.approx(expected["counts"][category.name], abs=1e-12)
    assert metric.compute() == pytest.approx(expected["average"], abs=1e-10)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_of_predictions_are_scored_as_panopticapi_does(workers):
    folder = GOLDEN / "panoptic"
    expected = json.loads((folder / "expected.json").read_text())
    scores = score_panoptic_files(folder / "gt.json", folder / "pred.json", workers)
    assert scores == pytest.approx(expected["average"], abs=1e-10)


def test_predictions_of_other_pictures_or_categories_are_not_scored(tmp_path):
    folder, content = GOLDEN / "panoptic", json.loads((GOLDEN / "panoptic" / "pred.json").read_text())
    for changed, why in (
        ({"annotations": content["annotations"][1:]}, "has no prediction of 1 images"),
        ({"categories": content["categories"][::-1]}, "does not list the categories"),
        ({"categories": [one | {"name": f"a {one['name']}"} for one in content["categories"]]}, "not list the categor"),
    ):
        (tmp_path / f"{len(why)}.json").write_text(json.dumps(content | changed))
        with pytest.raises(ValueError, match=why):
            score_panoptic_files(folder / "gt.json", tmp_path / f"{len(why)}.json")


def test_files_that_have_changed_are_scored_anew(tmp_path):
    folder = GOLDEN / "panoptic"
    shutil.copytree(folder / "pred", tmp_path / "pred")
    shutil.copyfile(folder / "pred.json", tmp_path / "pred.json")
    before = score_panoptic_files(folder / "gt.json", tmp_path / "pred.json")
    content = json.loads((folder / "pred.json").read_text())
    ids = [one["id"] for one in content["categories"]]
    for entry in content["annotations"]:
        for segment in entry["segments_info"]:
            segment["category_id"] = ids[(ids.index(segment["category_id"]) + 1) % len(ids)]
    (tmp_path / "pred.json").write_text(json.dumps(content))
    assert score_panoptic_files(folder / "gt.json", tmp_path / "pred.json")["PQ"] < before["PQ"]


def test_a_prediction_lists_what_its_png_shows(tmp_path):
    content = json.loads((GOLDEN / "panoptic" / "pred.json").read_text())
    segments = content["annotations"][0]["segments_info"]
    segments.append(segments[0] | {"id": 1 + max(one["id"] for one in segments)})
    shutil.copytree(GOLDEN / "panoptic" / "pred", tmp_path / "pred")
    (tmp_path / "pred.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"pred.json, image .*: its PNG shows no pixel of 1 segments"):
        score_panoptic_files(GOLDEN / "panoptic" / "gt.json", tmp_path / "pred.json")


def test_written_panoptic_files_come_back(tmp_path):
    folder = GOLDEN / "panoptic"
    truth, pred = open_panoptic_pair(tmp_path, folder / "gt.json", folder / "pred.json")
    for name, dataset in (("gt", truth), ("pred", pred)):
        entries = [(sample.image_id, *true_panoptic(sample)) for sample in dataset]
        write_panoptic(tmp_path / "out" / f"{name}.json", dataset.categories, entries)
    again = quality(*open_panoptic_pair(tmp_path, tmp_path / "out" / "gt.json", tmp_path / "out" / "pred.json"))
    assert again.compute() == quality(truth, pred).compute()
    assert not list((tmp_path / "out").rglob("*.partial"))
    written = json.loads((tmp_path / "out" / "gt.json").read_text())
    original = json.loads((folder / "gt.json").read_text())

    def facts(content):
        return sorted(
            (a["image_id"], s["category_id"], s["iscrowd"], s["area"], s["bbox"])
            for a in content["annotations"]
            for s in a["segments_info"]
        )

    assert facts(written) == facts(original)
    kinds = [{c["id"]: c["isthing"] for c in content["categories"]} for content in (written, original)]
    assert kinds[0] == kinds[1]


def half(columns):
    mask = np.zeros((4, 8), bool)
    mask[:, columns] = True
    return mask


def test_crowd_and_void_by_hand():
    categories = [Category(1, "cat", True), Category(2, "sky", False)]
    truth = Annotation(1, (4, 8), [Segment(0, half(slice(0, 4)), iscrowd=True), Segment(1, half(slice(4, 6)))])
    pred = np.zeros((4, 8), np.int32)
    pred[:, 0:3], pred[:, 3], pred[:, 4:8] = 9, 4, 7  # a cat on the crowd, sky on the crowd, sky + void
    metric = PanopticQuality(categories)
    segments = [{"id": 9, "category": 0}, {"id": 4, "category": 1}, {"id": 7, "category": 1}]
    metric.update(pred, segments, truth)
    assert metric.compute()["PQ"] == pytest.approx(100 * 1 / 1.5)  # IoU 1 without void; sky on a cat crowd is wrong
    assert np.isnan(metric.compute()["PQth"])  # the crowd alone: no cat was asked for, none falsely given
    with pytest.raises(ValueError, match="image 1: the map and the segment list"):
        metric.update(pred, segments[:2], truth)
    with pytest.raises(ValueError, match="no index below 2"):
        metric.update(pred, [s | {"category": 2} for s in segments], truth)
    with pytest.raises(ValueError, match=r"the prediction is \(4, 4\)"):
        metric.update(pred[:, :4], segments, truth)


def test_nothing_found_is_missed_and_nothing_annotated_is_false():
    metric = PanopticQuality([Category(1, "cat", True), Category(2, "sky", False)])
    nothing, cat = np.zeros((4, 8), np.int32), half(slice(0, 4))
    metric.update(nothing, [], Annotation(1, (4, 8), [Segment(0, cat)]))
    metric.update(nothing, [], Annotation(2, (4, 8)))
    metric.update(np.where(cat, 3, 0), [{"id": 3, "category": 1}], Annotation(3, (4, 8), [Segment(0, cat)]))
    assert (metric.tp.tolist(), metric.fp.tolist(), metric.fn.tolist()) == ([0, 0], [0, 1], [2, 0])
    void = Annotation(4, (4, 8))  # all of it void: what is said there does not count
    metric.update(np.where(cat, 3, 0), [{"id": 3, "category": 1}], void)
    assert metric.fp.tolist() == [0, 1] and metric.compute()["PQ"] == 0


def test_what_ade20k_lists_but_hides_counts_as_panopticapi_counts_it():
    """Stuff whose area was taken before things covered it, and stuff that they cover altogether."""
    categories = [Category(1, "cat", True), Category(2, "wall", False), Category(3, "floor", False)]
    truth = Annotation(1, (4, 8), [Segment(1, half(slice(0, 4)), area=30)], hidden=[2])
    metric = PanopticQuality(categories)
    metric.update(np.where(half(slice(0, 4)), 5, 0), [{"id": 5, "category": 1}], truth)
    assert metric.iou[1] == pytest.approx(16 / 30) and metric.fn.tolist() == [0, 0, 1]
    truth.segments[0].area = 33  # less than half of it is to be seen
    metric.update(np.where(half(slice(0, 4)), 5, 0), [{"id": 5, "category": 1}], truth)
    assert (metric.tp[1], metric.fp[1], metric.fn[1]) == (1, 1, 1)


def test_mean_iou_by_hand():
    metric = MeanIoU(4)
    metric.update(np.array([[0, 0, 1, 3]]), np.array([[0, 1, 1, -1]]))
    metric.update(np.array([[0, -1, 3, 1]]), np.array([[0, 0, 0, 1]]))
    # class 0: found 2, true 4, predicted 3 on labelled pixels; class 1: 2, 3, 2; class 2 never; class 3 only predicted
    total = 100 * (2 / 5 + 2 / 3)
    assert metric.compute() == {"mIoU": pytest.approx(total / 2), "mIoU_old": pytest.approx(total / 3)}
    with pytest.raises(ValueError, match="holds class 4"):
        metric.update(np.array([[4]]), np.array([[0]]))
    with pytest.raises(ValueError, match="must be alike"):
        metric.update(np.zeros((1, 2), int), np.zeros((2, 1), int))
    assert np.isnan(list(MeanIoU(3).compute().values())).all()
    scores = metric.compute()
    metric.update(np.zeros((4, 4), int), np.full((4, 4), -1))  # all of it void
    assert metric.compute() == scores


def test_both_means_as_detectron2_wrote_them():
    """Its lines before and since commit f3c1bc19, on random maps of which some classes are predicted alone."""
    rng = np.random.default_rng(0)
    metric = MeanIoU(40)
    truth, pred = rng.integers(-1, 25, (50, 60)), rng.integers(0, 40, (50, 60))
    metric.update(pred, truth)
    counted = truth >= 0
    confusion = np.zeros((40, 40))
    np.add.at(confusion, (pred[counted], truth[counted]), 1)
    tp, pos_gt, pos_pred = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    valid, either = pos_gt > 0, pos_gt + pos_pred > 0
    iou = tp[valid] / (pos_gt + pos_pred - tp)[valid]
    since, before = 100 * iou.sum() / valid.sum(), 100 * iou.sum() / either.sum()
    assert before < 0.7 * since
    assert metric.compute() == {"mIoU": pytest.approx(since), "mIoU_old": pytest.approx(before)}


def rectangle(rng):
    mask = np.zeros((H, W), bool)
    y, x = rng.integers(0, H - 3), rng.integers(0, W - 3)
    mask[y : y + rng.integers(2, H), x : x + rng.integers(2, W)] = True
    return mask


def random_instances(folder, seed, first_id=0):
    """Instance ground truth with crowds, and results around it, some classes wrong."""
    rng = np.random.default_rng(seed)
    kinds = [Category(3 * k + 2, f"c{k}", True) for k in range(5)]
    images, annotations, results = [], [], []
    for i in range(5):
        images.append({"id": i, "file_name": f"{i}.png", "height": H, "width": W})
        for _ in range(4):
            mask, k = rectangle(rng), int(rng.integers(3 if i else 5))
            (entry,) = coco_results(i, mask[None], [k], [0.5], kinds)
            number = {"id": first_id + len(annotations), "area": int(mask.sum()), "iscrowd": int(rng.random() < 0.2)}
            annotations.append({k: v for k, v in entry.items() if k != "score"} | number)
            for _ in range(3):
                shifted = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
                guess = k if rng.random() < 0.7 else int(rng.integers(5))
                results += coco_results(i, shifted[None], [guess], [round(float(rng.random()), 2)], kinds)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name} for c in kinds],
    }
    path = folder / f"instances_{seed}.json"
    path.write_text(json.dumps(content))
    return open_coco_instances(path, folder), results


@pytest.mark.parametrize("seed", range(6))
def test_ap_equals_pycocotools_at_once(tmp_path, seed):
    dataset, results = random_instances(tmp_path, seed, first_id=1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.source))
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    got = average_precision(dataset, results)
    assert list(got.values()) == pytest.approx((100 * evaluation.stats[:3]).tolist(), abs=1e-10)
    assert 0 < got["AP"] < got["AP50"] < 100
    assert got == average_precision(dataset, results)  # nothing was changed underneath


def test_ap_edges(tmp_path, capsys):
    dataset, results = random_instances(tmp_path, 1, first_id=0)  # an id 0, which pycocotools would take for no match
    renumbered, _ = random_instances(tmp_path, 1, first_id=1)
    assert average_precision(dataset, results) == average_precision(renumbered, results)
    perfect = [a | {"score": 1.0} for a in dataset.instances["annotations"] if not a["iscrowd"]]
    assert average_precision(dataset, perfect) == {"AP": 100.0, "AP50": 100.0, "AP75": 100.0}
    assert average_precision(dataset, []) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert np.isnan(average_precision(dataset.subset([]), perfect)["AP"])
    with pytest.raises(ValueError, match="results name image 77"):
        average_precision(dataset, [results[0] | {"image_id": 77}])
    assert capsys.readouterr().out == ""


def test_lvis_ap_equals_the_lvis_package():
    folder = GOLDEN / "lvis"
    dataset = open_coco_instances(folder / "lvis_gt.json", folder)
    results = json.loads((folder / "results.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    assert average_precision(dataset, results) == pytest.approx(expected, abs=1e-10)
    fields = {"neg_category_ids", "not_exhaustive_category_ids"}
    for field in sorted(fields):
        kept = [{key: value for key, value in i.items() if key != field} for i in dataset.instances["images"]]
        with pytest.raises(ValueError, match=rf"its images lack {field}; take LVIS's own file"):
            average_precision(replace(dataset, instances=dataset.instances | {"images": kept}), results)
    plain = [{key: value for key, value in i.items() if key not in fields} for i in dataset.instances["images"]]
    dataset.instances["images"] = plain
    assert average_precision(dataset, results)["AP"] < expected["AP"]  # COCO's rules punish what nobody checked


def test_lvis_rules_hold_for_all_images_or_none():
    """One image without neg_category_ids would have all others scored by COCO's rules."""
    dataset = open_coco_instances(GOLDEN / "lvis" / "lvis_gt.json", GOLDEN / "lvis")
    image = dataset.instances["images"][1]
    del image["neg_category_ids"]
    with pytest.raises(ValueError, match=rf"lvis_gt.json: image {image['id']} lacks the neg_category_ids"):
        average_precision(dataset, [])


def test_lvis_keeps_300_results_an_image():
    folder = GOLDEN / "lvis"
    dataset = open_coco_instances(folder / "lvis_gt.json", folder)
    results = json.loads((folder / "results.json").read_text())
    before = average_precision(dataset, results)
    crowding_out = [r | {"score": 2.0, "category_id": 10**6} for r in results for _ in range(300)]
    assert average_precision(dataset, results + crowding_out)["AP"] == 0 < before["AP"]


def split_scores(dataset, base, target, both):
    """Scores of results by the words that were asked for."""
    task = SplitTask(dataset)
    for words, found in (("base", base), ("target", target), ("all", both)):
        task.asked[words].results = found
    return task.compute()


def test_coco_split(tmp_path):
    dataset, results = random_instances(tmp_path, 2, first_id=1)
    base, target = ["c0", "c1", "c2"], ["c3", "c4"]
    ids = {c.name: c.id for c in dataset.categories}
    only = {group: [r for r in results if r["category_id"] in {ids[n] for n in names}] for group, names in
            (("base", base), ("target", target))}  # fmt: skip
    split = replace(dataset, split={"base": base, "target": target})
    values = split_scores(split, only["base"], only["target"], results)
    assert set(values) == {
        "AP50_constrained_base", "AP50_constrained_target",
        "AP50_generalized_base", "AP50_generalized_target", "AP50_generalized_all",
    }  # fmt: skip
    assert values["AP50_generalized_all"] == pytest.approx(average_precision(dataset, results)["AP50"])
    counted = [len({a["category_id"] for a in dataset.instances["annotations"] if not a["iscrowd"]} &
                   {ids[n] for n in names}) for names in (base, target)]  # fmt: skip
    mean = np.average([values["AP50_generalized_base"], values["AP50_generalized_target"]], weights=counted)
    assert values["AP50_generalized_all"] == pytest.approx(mean)
    # constrained: images without a target object do not count, so results there cost nothing
    have = {a["image_id"] for a in dataset.instances["annotations"] if a["category_id"] in {ids[n] for n in target}}
    assert 0 < len(have) < len(dataset)
    lean = [r for r in only["target"] if r["image_id"] in have]
    again = split_scores(split, [], lean, lean)
    assert again["AP50_constrained_target"] == values["AP50_constrained_target"] and again["AP50_constrained_base"] == 0
