"""The paper profile's whole path on made-up archives: prepared, checked, run, killed, resumed, reported."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

import made_up_archives as made_up
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from study_copy import ROOT, copy_study, run, start

from maskclip.data.check import PUBLISHED
from maskclip.data.prepare import PREPARATIONS
from maskclip.settings import read_yaml
from study.methods import METHODS, NETWORKS
from study.params import deviations, load_study


def shape(settings: object) -> object:
    """Names and nesting, without values."""
    return {name: shape(value) for name, value in settings.items()} if isinstance(settings, dict) else None


def test_the_rehearsal_has_the_papers_structure() -> None:
    paper, rehearsal = (read_yaml(ROOT / f"configs/{name}.yaml") for name in ("paper", "rehearsal"))
    assert shape(rehearsal) == shape(paper)
    assert rehearsal["data"]["world"] is None and rehearsal["maskclip"]["rma_layers"] == paper["maskclip"]["rma_layers"]
    for name, network in rehearsal["proposals"].items():
        ours, papers = network["backbone"], paper["proposals"][name]["backbone"]
        assert len(ours["widths"]) == len(papers["widths"])
        assert (ours["block"], ours["normalization"]) == (papers["block"], papers["normalization"])
        assert network.get("start") is None and network["training"]["steps"] <= 10


def write_random_clip(folder: Path) -> None:
    """A whole CLIP folder for `load_clip`: six layers, width 32, the 77 tokens and words of CLIP, seeded weights."""
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 6, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    shape = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**shape).state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": shape, "preprocess_cfg": preprocess, "weights": "random"}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def working_in(folder: Path) -> list[Path]:
    """The processes whose working folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is another user's
            if process.joinpath("cwd").resolve() == folder and process.joinpath("cmdline").read_bytes():
                found.append(process)
    return found


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study on made-up archives, by the commands that a researcher gives on the real ones.

    The pipeline is killed once (kill -9), in the midst of MaskCLIP's training. The folder's name is no easy one.
    """
    folder = tmp_path_factory.mktemp("a rehearsal") / "é x"
    copy_study(folder, params={"profile": "rehearsal", "seeds": [0]})
    write_random_clip(folder / "models/random_clip")
    made_up.all_sets(folder / "archives")
    for name in PREPARATIONS:
        run(folder, "maskclip.cli", "prepare", name, "--from", "archives", "--to", "data/rehearsal", "--workers", "1")
    made = [name for name, published in PUBLISHED.items() if published.prepare in PREPARATIONS]
    said = run(folder, "maskclip.cli", "check", "data/rehearsal", "--own", "--thorough", "--sets", ",".join(made))
    assert said.count(" right") == len(made)

    pipeline = start(folder, "study.pipeline", "--lanes", "2")
    checkpoint, deadline = folder / "runs/rehearsal/0/maskclip/checkpoint.pt", time.monotonic() + 900
    while not checkpoint.is_file() and pipeline.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    pipeline.kill()
    output = pipeline.communicate()[0]
    assert checkpoint.is_file() and not (folder / "results/rehearsal/0/maskclip.csv").exists(), output
    deadline = time.monotonic() + 30
    while working_in(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not working_in(folder), "a killed pipeline leaves nothing running"
    run(folder, "study.pipeline", "--lanes", "2")
    return folder


def test_every_network_is_trained_and_every_method_scored(rehearsed: Path) -> None:
    runs, results = rehearsed / "runs/rehearsal/0", rehearsed / "results/rehearsal/0"
    trained = [*NETWORKS, *(method.id for method in METHODS.values() if method.training_set)]
    for name in trained:
        assert (runs / name / "record.json").is_file() and len(pd.read_csv(results / f"curves_{name}.csv")) == 4
    parts = [pd.read_csv(path) for path in results.glob("*.csv")]
    scores = pd.concat(part for part in parts if "proposals" in part)
    assert set(scores.method) == {method.trained_as for method in METHODS.values() if method.network}
    assert set(scores.profile) == {"rehearsal"} and scores.value.dropna().between(0, 100).all()
    assert set(scores.dataset) >= {"a150", "a847", "p59", "p459", "lvis", "coco_split"}
    assert set(scores[scores.dataset == "coco_split"].metric) == {
        "AP50_constrained_base", "AP50_constrained_target",
        "AP50_generalized_base", "AP50_generalized_target", "AP50_generalized_all",
    }  # fmt: skip
    assert json.loads((rehearsed / "results/rehearsal/data.json").read_text())["data sets"] > 5
    for number in (2, 3, 4, 5, 6, 7, 8, 9):
        table = pd.read_csv(rehearsed / f"runs/rehearsal/report/tables/table{number}.csv")
        for suffix in ("md", "tex"):
            assert (rehearsed / f"runs/rehearsal/report/tables/table{number}.{suffix}").is_file()
        measured = table[table.numbers == "study"].select_dtypes("number")
        assert measured.notna().to_numpy().any(), f"Table {number} has no row of this study"


def test_the_report_says_first_that_it_is_not_the_papers(rehearsed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rehearsed)
    departures = deviations(load_study("rehearsal"))
    page = (rehearsed / "runs/rehearsal/report/index.html").read_text()
    first_screen = html.unescape(page[: page.index('id="results"')])
    assert f"sets {len(departures)} values otherwise than the paper" in first_screen
    assert all(one in first_screen for one in departures)
    for of in ("maskclip.steps is 4", "proposals.mask2former.training.steps is 4", "clip.model is models/random_clip"):
        assert any(one.startswith(of) for one in departures)
    assert "backbone.weights is None, the paper's timm/resnet50.tv_in1k (random weights)" in first_screen
    assert "clip.pretrained is None, the paper's openai (random weights)" in first_screen
    assert not re.search(r"profile\W+(<[^>]*>)*\s*paper\b", page)


def test_a_second_run_runs_nothing(rehearsed: Path) -> None:
    assert "Running stage" not in run(rehearsed, "study.pipeline")
    output = run(rehearsed, "dvc", "repro")
    assert "Running stage" not in output
    assert "Data and pipelines are up to date." in output


def test_a_killed_training_resumes_to_the_undisturbed_runs_numbers(rehearsed: Path) -> None:
    killed = pd.read_csv(rehearsed / "results/rehearsal/0/maskclip.csv")
    shutil.rmtree(rehearsed / "runs/rehearsal/0/maskclip")
    (rehearsed / "results/rehearsal/0/maskclip.csv").rename(rehearsed / "killed.csv")
    run(rehearsed, "dvc", "repro", "--force", "--single-item", "maskclip@0-maskclip")
    pd.testing.assert_frame_equal(pd.read_csv(rehearsed / "results/rehearsal/0/maskclip.csv"), killed, check_exact=True)


def test_dvc_shows_dag_metrics_and_plots(rehearsed: Path) -> None:
    dag = run(rehearsed, "dvc", "dag")
    assert "proposals@0-mask2former" in dag and "report" in dag
    waits_for = run(rehearsed, "dvc", "dag", "report")
    assert "data" in waits_for and "miniature" not in waits_for, "nothing waits for the miniature's hours of training"
    assert "networks@mask2former" in run(rehearsed, "dvc", "dag", "miniature/dvc.yaml")
    metrics = run(rehearsed, "dvc", "metrics", "show")
    assert "results/rehearsal/0/maskclip.json" in metrics.replace("\\", "/") and "a150.PQ" in metrics
    assert max(map(len, metrics.splitlines())) < 600, "one screen or two, not a screen a metric"
    for name in ("maskclip", "baselines_clip_baseline", "ground_truth_masks_wo_rma"):
        main = json.loads((rehearsed / f"results/rehearsal/0/{name}.json").read_text())
        assert set(main["a150"]) == {"PQ"} and set(main["a150_semantic"]) == {"mIoU"}
    shown = run(rehearsed, "dvc", "plots", "show", "--json")
    plots = json.loads(shown[shown.index("{") :])["data"]
    assert "results/rehearsal/0/maskclip.csv" in plots and any(name.startswith("Table 3") for name in plots)
    assert all(plots.values()), f"nothing to draw: {[name for name, drawn in plots.items() if not drawn]}"
    for name, (plot, *_) in plots.items():
        chart = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
        x = "step" if "curves_" in name else chart["encoding"]["x"]["field"].replace("\\", "")
        assert all(float(point[x]) >= 0 for point in chart["data"]["values"]), f"{name} is drawn over {x}, no number"
