"""The one table of methods: an entry is a row everywhere, and a bad one fails at once, with its name."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from report_fixture import write_made_up_results

from maskclip.data import DATASETS
from maskclip.roofline import GPUS
from study import methods
from study.cost import predict
from study.methods import METHODS, NETWORKS, Method, ProposalNetwork, check_stages, rows_of
from study.params import load_study
from study.report import build_report, figures

ROOT = Path(__file__).parent.parent
OTHER = {"label": "MaskCLIP + ours", "colour": "#123456", "network": "mask2former", "training_set": "coco_train"}


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Method:
    """An imaginary row of Tables 2 and 3, that nothing but METHODS knows."""
    method = Method("other", tables=(2, 3), tests=("a150", "a847", "p59", "lvis"), **OTHER)
    monkeypatch.setitem(METHODS, "other", method)
    return method


def test_a_method_is_a_row_of_tables_and_a_bar_of_charts(
    other: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = write_made_up_results(tmp_path)
    for seed in (0, 1, 2):
        cells = [("p59", "mIoU", 61.5 + seed), ("a150", "PQ", 31.5 + seed)]
        rows = [("other", "mask2former", *cell, seed, "mini") for cell in cells]
        frame = pd.DataFrame(rows, columns=["method", "proposals", "dataset", "metric", "value", "seed", "profile"])
        frame.to_csv(results / str(seed) / "other.csv", index=False)
    charts = {}
    monkeypatch.setattr(figures, "write_atomically", lambda path, save: charts.update({path.stem: save.__self__}))
    monkeypatch.setattr("study.report.page.embed_picture", lambda path: "data:image/png;base64,")
    page = build_report(results, tmp_path / "reports").read_text(encoding="utf-8")
    assert "MaskCLIP + ours" in page
    for number, column, mean in ((2, "P-59", 62.5), (3, "PQ", 32.5)):
        table = pd.read_csv(tmp_path / "reports" / "tables" / f"table{number}.csv").set_index("method")
        assert table.loc["MaskCLIP + ours", "numbers"] == "study" and table.loc["MaskCLIP + ours", column] == mean
        for suffix in ("md", "tex"):
            assert f"{mean} " in (tmp_path / "reports" / "tables" / f"table{number}.{suffix}").read_text()
        plotted = pd.read_csv(tmp_path / "reports" / "plots" / f"table{number}.csv").set_index("method")
        assert plotted.loc["MaskCLIP + ours", column] == mean
    for name in ("table2_semantic", "table3_panoptic"):
        assert "MaskCLIP + ours" in [text.get_text() for text in charts[name].legends[0].get_texts()]
        bars = [bar for axes in charts[name].axes for bar in axes.patches]
        assert {bar.get_height() for bar in bars if bar.get_facecolor() == (18 / 255, 52 / 255, 86 / 255, 1)} & {
            62.5,
            32.5,
        }


def test_the_pipeline_runs_every_method() -> None:
    check_stages(ROOT / "dvc.yaml")


def test_a_forgotten_or_unknown_stage_is_named(other: Method, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 'other', which .*dvc.yaml has not"):
        check_stages(ROOT / "dvc.yaml")
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    matrices = [
        stage["matrix"]["method"] for stage in pipeline["stages"].values() if "method" in stage.get("matrix", {})
    ]

    def check() -> None:
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(pipeline), encoding="utf-8")
        check_stages(tmp_path / "dvc.yaml")

    of_mask_rcnn = next(matrix for matrix in matrices if "maskclip_maskrcnn" in matrix)
    of_mask_rcnn.append("other")
    with pytest.raises(ValueError, match="'other' lacks the folder of mask2former"):
        check()
    of_mask_rcnn.remove("other")
    next(matrix for matrix in matrices if "maskclip" in matrix).append("other")
    check()
    matrices[0].append("nobody")
    with pytest.raises(ValueError, match=r"dvc.yaml has 'nobody', which study/methods.py has not"):
        check()


def test_a_row_without_training_needs_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Method("cropped", "Cropped", "#123456", (2,), "mask2former", tests=("a150",), mask_tokens=False)
    monkeypatch.setitem(METHODS, "cropped", entry)
    with pytest.raises(ValueError, match=r"no stage has the metrics baselines_cropped.json"):
        check_stages(ROOT / "dvc.yaml")
    metrics = "- results/${profile}/${item.seed}/baselines_clip_baseline.json"
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    path = tmp_path / "dvc.yaml"
    path.write_text(text.replace(metrics, f"{metrics}\n      {metrics.replace('clip_baseline', 'cropped')}"))
    check_stages(path)
    monkeypatch.setitem(METHODS, "cropped", replace(entry, network="mask_rcnn"))
    with pytest.raises(ValueError, match="the stage of 'cropped' lacks the folder of mask_rcnn"):
        check_stages(path)


@pytest.mark.parametrize(("parts", "sentence"), [
    ({"label": ""}, "method 'new' of study/methods.py lacks its label"),
    ({"network": "", "tests": ()}, "lacks its network, tests"),
    ({"tables": ()}, "lacks its tables"),
    ({"colour": "blue"}, "a colour #rrggbb"),
    ({"network": "mask2fomer"}, "'mask2fomer' is none of the network"),
    ({"network": "class_aware"}, "'coco_train' is none of the pictures with class_aware's proposals"),
    ({"tests": ("a15",)}, "'a15' is none of the pictures"),
    ({"tables": (12,)}, "12 is none of the tables"),
    ({"tables": 2}, r"tables must be a tuple such as \(2, 3\), not 2"),
    ({"labels": {7: "x"}}, r"7 is none of the tables it is a row of \(2\)"),
    ({"training_set": None}, "give it a training_set"),
    ({"training_set": "a150"}, "'a150' is none of the training sets"),
    ({"tests": "a150"}, "tests must be a tuple"),
    ({"rma_layers": (0, 6)}, "must rise within 1 to 24"),
    *(
        ({"rma_layers": layers}, "rma_layers must be a tuple such as .6, 12, 18, 24., not")
        for layers in (("6",), [6, 12], "2,8", 2)
    ),
    ({"training_set": None, "weights": "maskclip"}, "has another's weights, so its network must be ground_truth"),
])  # fmt: skip
def test_a_half_filled_method_is_named(parts: dict, sentence: str) -> None:
    whole = {**OTHER, "tables": (2,), "tests": ("a150",)}
    Method("new", **whole)
    with pytest.raises(ValueError, match=sentence) as raised:
        Method("new", **{**whole, **parts})
    assert "'new'" in str(raised.value) and "\n" not in str(raised.value)


def test_a_half_filled_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"network 'new' of study/methods.py lacks its label, colour"):
        ProposalNetwork("new")
    with pytest.raises(ValueError, match=r"network 'new' of study/methods.py: 'coco' is none of the pictures"):
        ProposalNetwork("new", "New", "#123456", pictures=("coco",))
    with pytest.raises(ValueError, match=r"'mask2fromer' is none of the settings .*mask2former, mask_rcnn, twins"):
        ProposalNetwork("new", "New", "#123456", settings="mask2fromer")


@pytest.mark.parametrize("table", [METHODS, NETWORKS])
def test_an_unknown_name_says_what_there_is(table: dict) -> None:
    with pytest.raises(ValueError, match=f"the study has no 'maskclp'; it has {next(iter(table))}"):
        table["maskclp"]


def test_nothing_hides_behind_anothers_name(other: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="two entries 'maskclip'; rename one"):
        methods._Named(METHODS["maskclip"], METHODS["maskclip"])
    monkeypatch.setitem(METHODS, "twin", Method("twin", tables=(3,), tests=("a150",), **OTHER))
    check = partial(check_stages, ROOT / "dvc.yaml")
    for way in (partial(rows_of, 3), check):
        with pytest.raises(ValueError, match=r"method 'twin' .* has the label of method 'other' in Table 3"):
            way()
    monkeypatch.setitem(METHODS, "twin", Method("twin", tables=(3,), tests=("a150",), **{**OTHER, "label": "Twin"}))
    with pytest.raises(ValueError, match=r"method 'twin' .* has the colour of method 'other' in Table 3"):
        check()
    monkeypatch.setitem(METHODS, "twin", replace(METHODS["twin"], colour="#654321"))
    assert list(rows_of(3))[-2:] == ["MaskCLIP + ours", "Twin"]
    layers = Method(
        "layers", "2, 8", "#123456", (9,), "mask2former", "coco_train", ("a150",), rma_layers=(2, 8),
        labels={9: "1, 7, 13, 19"},
    )  # fmt: skip
    monkeypatch.setitem(METHODS, "layers", layers)
    with pytest.raises(ValueError, match=r"method 'layers' .* the label of method 'layers_1_7_13_19' in Table 9"):
        check()


def test_ground_truth_masks_are_a_row_of_the_trained_method() -> None:
    entry = METHODS["maskclip_gt"]
    assert entry.trained_as == "maskclip" and entry.network == "ground_truth" and entry.training_set is None
    assert list(rows_of(7).values())[:2] == [METHODS["maskclip"], entry]


@pytest.mark.parametrize("what", ["TEST_PICTURES", "TRAINING_PICTURES"])
def test_pictures_that_no_data_set_has_are_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo here, in a network's `pictures` and in a method's `tests` agrees with itself."""
    monkeypatch.setattr(methods, what, (*getattr(methods, what), "mini_street"))
    with pytest.raises(ValueError, match=rf"{what} of study/methods.py has 'mini_street'; .*datasets.py has .*coco_"):
        check_stages(ROOT / "dvc.yaml")


def test_the_study_reads_what_annotates_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that is only opened, or scored by hand, need lie nowhere."""
    before = methods.data_sets()
    entry = replace(DATASETS["a150"], name="streets")
    monkeypatch.setitem(DATASETS, "streets", entry)
    monkeypatch.setitem(DATASETS, "streets_semantic", replace(DATASETS["a150_semantic"], pictures="streets"))
    assert methods.data_sets() == before and {"a150", "p459", "coco_split_val", "coco_train"} <= set(before)
    monkeypatch.setattr(methods, "TEST_PICTURES", (*methods.TEST_PICTURES, "streets"))
    assert methods.data_sets() == [*before, "streets", "streets_semantic"]


def test_what_a_profile_can_be_without() -> None:
    every, left = methods.data_sets(), methods.data_sets(["p59", "lvis"])
    assert set(every) - set(left) == {"p59", "p459", "lvis"}
    for needed in ("a150", "a150_semantic", "coco_train", "coco_split_val", "a487"):
        with pytest.raises(ValueError, match=f"without has '{needed}'; the study can do without a847, p59, p459, lvis"):
            methods.data_sets([needed])


@pytest.mark.parametrize(("columns", "sentence"), [
    ("[mini_street, PQ]", r"column 'x' of Table 3 is \['mini_street', 'PQ'\]; .* a data set .*one of .*a150, .*lvis"),
    ("[a150, PQQ]", "one of PQ, PQth, .*mIoU_old, AP, AP50, AP75$"),
    ("[lvis, PQ]", "one of AP, AP50, AP75$"),
    ("[efficiency, time]", "one of tflops, time_s, peak_gb$"),
    ("[a150]", "must be a data set and a metric"),
    ("a150", "must be a data set and a metric"),
])  # fmt: skip
def test_a_column_that_nothing_fills_is_named(
    columns: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report").mkdir()
    text = f"3:\n  columns:\n    RQ: [a150, RQ]\n    x: {columns}\n"
    (tmp_path / "report/tables.yaml").write_text(text)
    monkeypatch.setattr(methods, "__file__", str(tmp_path / "methods.py"))
    with pytest.raises(ValueError, match=sentence):
        check_stages(ROOT / "dvc.yaml")


def test_a_baseline_is_scored_wherever_baselines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [method.id for method in methods.on_ground_truth()]
    assert names[:2] == ["clip_baseline", "wo_rma"] and "maskclip" in names[2:]
    entry = Method("cropped", "Cropped", "#123456", (2,), "mask_rcnn", tests=("a150",), mask_tokens=False)
    monkeypatch.setitem(METHODS, "cropped", entry)
    assert methods.baselines()[-1] == entry and entry in methods.on_ground_truth()
    frame = predict(load_study("mini", ROOT / "configs"), GPUS["A100"], stages=ROOT / "dvc.yaml")
    parts = frame[frame.part == "cropped on a150"]
    assert parts.stage.tolist() == ["baselines@0", "ground_truth_masks@0"]
