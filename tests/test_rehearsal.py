"""The paper profile's whole path on made-up archives of every set: prepared, checked, run, reported, in minutes."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import made_up_archives as made_up
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from study_copy import ROOT, copy_study, run

from maskclip.data import DATASETS
from maskclip.data.prepare import PREPARATIONS
from study.methods import METHODS, NETWORKS
from study.params import deviations, load_study, read_yaml


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


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study on made-up archives, by the commands that a researcher gives on the real ones."""
    folder = copy_study(tmp_path_factory.mktemp("rehearsal") / "study", params={"profile": "rehearsal", "seeds": [0]})
    write_random_clip(folder / "models/random_clip")
    made_up.all_sets(folder / "archives")
    for name in PREPARATIONS:
        run(folder, "maskclip.cli", "prepare", name, "--from", "archives", "--to", "data/rehearsal", "--workers", "1")
    said = run(folder, "maskclip.cli", "check", "data/rehearsal", "--own", "--thorough")
    assert said.count(" right") == len(DATASETS)
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
    assert json.loads((rehearsed / "results/rehearsal/data.json").read_text())["data sets"] > 5
    for number in (2, 3, 4, 5, 6, 7, 8, 9):
        table = pd.read_csv(rehearsed / f"runs/rehearsal/report/tables/table{number}.csv")
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
    assert "backbone.weights is None, the paper's microsoft/resnet-50 (random weights)" in first_screen
    assert "clip.pretrained is None, the paper's openai (random weights)" in first_screen
    assert not re.search(r"profile\W+(<[^>]*>)*\s*paper\b", page)
