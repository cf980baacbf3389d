"""The whole study at smoke size, as its users run it: stages side by side, in a fresh copy of the repository."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from study_copy import copy_study, run, start

SMALL = {
    "data": {"world": {"coco_train": 24, "coco_val": 6, "ade": 6, "pascal": 6, "lvis": 6}},
    "proposals": {
        "mask2former": {"training": {"steps": 6, "checkpoint_every": 2}},
        "mask_rcnn": {"training": {"steps": 6, "checkpoint_every": 2}},
        "twins": {"training": {"steps": 6, "checkpoint_every": 2}},
    },
    "maskclip": {"steps": 5, "checkpoint_every": 1, "points": 128},
    "efficiency": {"model": "ViT-B-32", "masks": 100},
    "evaluation": {"limit": 2},  # fewer than the notebooks show, were there more
}
METHODS = {
    "maskclip", "maskclip_maskrcnn", "wo_refinement", "layers_1_7_13_19", "layers_3_9_15_21", "layers_21_22_23_24",
    "maskclip_split", "clip_baseline", "wo_rma",
}  # fmt: skip


def working_in(folder: Path) -> list[Path]:
    """The processes whose working folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is another user's
            if process.joinpath("cwd").resolve() == folder and process.joinpath("cmdline").read_bytes():
                found.append(process)
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks here, its profile at smoke size, in a folder whose name is no easy one."""
    return copy_study(tmp_path_factory.mktemp("a study") / "é x", params={"seeds": [3]}, mini=SMALL)


@pytest.fixture(scope="module")
def study(repository: Path) -> Path:
    """The study, run to its end, after the pipeline was killed once (kill -9) in the midst of MaskCLIP's training."""
    pipeline = start(repository, "study.pipeline")
    checkpoint = repository / "runs/mini/3/maskclip/checkpoint.pt"
    deadline = time.monotonic() + 900
    while not checkpoint.is_file() and pipeline.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    pipeline.kill()
    output = pipeline.communicate()[0]
    assert checkpoint.is_file() and not (repository / "results/mini/3/maskclip.csv").exists(), output
    deadline = time.monotonic() + 30
    while working_in(repository) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not working_in(repository), "a killed pipeline leaves nothing running"
    run(repository, "study.pipeline")
    return repository


def test_every_method_has_results(study: Path) -> None:
    rows = pd.concat(pd.read_csv(path) for path in (study / "results/mini/3").glob("*.csv") if _holds_scores(path))
    assert set(rows.method) == METHODS
    assert rows.seed.eq(3).all() and rows.profile.eq("mini").all()
    assert rows.value.dropna().between(0, 100).all()
    full = rows[rows.method == "maskclip"]
    assert set(full.dataset) >= {"a150", "a847", "p59", "p459", "lvis"}
    assert set(rows[rows.dataset == "coco_split"].metric) == {
        "AP50_constrained_base", "AP50_constrained_target",
        "AP50_generalized_base", "AP50_generalized_target", "AP50_generalized_all",
    }  # fmt: skip


def _holds_scores(path: Path) -> bool:
    return "proposals" in path.open().readline()


def test_every_table_is_written_three_ways(study: Path) -> None:
    for number in range(2, 10):
        for suffix in ("csv", "md", "tex"):
            assert list((study / "runs/mini/report").rglob(f"*table*{number}*.{suffix}")), f"table {number} as {suffix}"
    page = (study / "runs/mini/report/index.html").read_text()
    assert "C18" in page and "http-equiv" not in page


def test_a_second_run_runs_nothing(study: Path) -> None:
    assert "Running stage" not in run(study, "study.pipeline")
    output = run(study, "dvc", "repro")
    assert "Running stage" not in output
    assert "Data and pipelines are up to date." in output


def test_a_killed_training_resumes_to_the_undisturbed_runs_numbers(study: Path) -> None:
    killed = pd.read_csv(study / "results/mini/3/maskclip.csv")
    shutil.rmtree(study / "runs/mini/3/maskclip")
    (study / "results/mini/3/maskclip.csv").rename(study / "killed.csv")
    run(study, "dvc", "repro", "--force", "--single-item", "maskclip@3-maskclip")
    pd.testing.assert_frame_equal(pd.read_csv(study / "results/mini/3/maskclip.csv"), killed, check_exact=True)


def test_dvc_shows_dag_metrics_and_plots(study: Path) -> None:
    dag = run(study, "dvc", "dag")
    assert "proposals@3-mask2former" in dag and "report" in dag
    metrics = run(study, "dvc", "metrics", "show")
    assert "results/mini/3/maskclip.json" in metrics.replace("\\", "/") and "a150.PQ" in metrics
    assert max(map(len, metrics.splitlines())) < 600, "one screen or two, not a screen a metric"
    for name in ("maskclip", "baselines_clip_baseline", "ground_truth_masks_wo_rma"):
        main = json.loads((study / f"results/mini/3/{name}.json").read_text())
        assert set(main["a150"]) == {"PQ"} and set(main["a150_semantic"]) == {"mIoU"}
    shown = run(study, "dvc", "plots", "show", "--json")
    plots = json.loads(shown[shown.index("{") :])["data"]
    assert "results/mini/3/maskclip.csv" in plots and any(name.startswith("Table 3") for name in plots)
    assert all(plots.values()), f"nothing to draw: {[name for name, drawn in plots.items() if not drawn]}"
    for name, (plot, *_) in plots.items():
        chart = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
        x = "step" if "curves_" in name else chart["encoding"]["x"]["field"].replace("\\", "")
        assert all(float(point[x]) >= 0 for point in chart["data"]["values"]), f"{name} is drawn over {x}, no number"
