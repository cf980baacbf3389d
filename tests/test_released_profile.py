"""The authors' row, by the command a researcher gives: random weights of the released layout through `released`."""

from __future__ import annotations

import html
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import made_up_archives as made_up
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from study_copy import copy_study, run
from test_rehearsal import write_random_clip

from maskclip.data.prepare import PREPARATIONS
from maskclip.files import load_checkpoint
from maskclip.model.clip import load_clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.released.encoder import released_state_dict
from maskclip.released.mask2former import convert, read_config
from maskclip.settings import proposing_for
from study.params import RELEASED, load_study

GOLDEN = Path(__file__).parent / "golden" / "authors_proposal_network.safetensors"
LAYERS = (2, 3, 5, 6)  # the paper's, in a CLIP of six layers


def save_as_detectron2(state: dict[str, torch.Tensor], path: Path) -> None:
    """A checkpoint at a training's end, as the authors' install wrote it: NumPy 1 had other names for its numbers."""
    rates = {"lr": np.float64(1e-4), "weight_decay": np.float32(0.05), "params": [0]}
    content = {
        "model": OrderedDict(state),
        "optimizer": {"state": {0: {"step": np.int64(9), "exp_avg": torch.zeros(2)}}, "param_groups": [rates]},
        "scheduler": {"base_lrs": [np.float64(1e-4)], "last_epoch": 9},
        "iteration": 9,
    }
    torch.save(content, new := path.with_suffix(".new"))
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert any(b"numpy.core.multiarray" in zipfile.ZipFile(path).read(n) for n in zipfile.ZipFile(path).namelist())
    new.unlink()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {key[6:]: value for key, value in load_file(GOLDEN).items() if key.startswith("model.")}
    size = read_config(state)
    network = {
        name: getattr(size, name)
        for name in ("queries", "hidden_dim", "decoder_layers", "encoder_layers", "feedforward_dim",
                     "encoder_feedforward_dim", "heads")
    }  # fmt: skip
    backbone = {"widths": list(size.backbone.widths), "depths": list(size.backbone.depths)}
    network |= {"backbone": {"weights": None, "stem_width": size.backbone.stem_width, **backbone}}
    small = {
        "clip": {"model": "models/random_clip", "pretrained": None},
        "proposals": {"mask2former": {**network, "short_side": 48, "long_side": 80}},
        "evaluation": {"limit": 3, "object_mask_threshold": 0.0},
    }
    folder = copy_study(tmp_path_factory.mktemp("released") / "study", params={"profile": "mini"}, released=small)
    write_random_clip(folder / "models/random_clip")
    clip = load_clip(folder / "models/random_clip")
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, LAYERS, generator=torch.Generator().manual_seed(5))
    save_as_detectron2(state, folder / "proposals.pth")
    save_as_detectron2(state | released_state_dict(encoder), folder / "model_final.pth")
    made_up.ade20k(folder / "archives")
    PREPARATIONS["ade20k"](folder / "archives", folder / "data/paper", workers=1)
    for name, part in (("proposals.pth", "proposals"), ("model_final.pth", "maskclip")):
        assert convert(folder / name, folder / f"data/released/{part}.safetensors").unmapped == []
    run(folder, "study.pipeline", "--profile", "released")
    return folder


def test_both_stages_are_the_released_ones_untrained(released: Path) -> None:
    assert not (released / "data/paper/coco").exists(), "A-150 is all that it reads"
    runs = released / "runs/released/0"
    whole = load_file(released / "data/released/maskclip.safetensors")
    trained = load_checkpoint(runs / "maskclip/encoder.pt")
    for index, layer in enumerate(LAYERS):
        given = whole[f"maskclip.visual.transformer.conv1_added_params.{index}.weight"]
        assert torch.equal(trained[f"rma.{layer}.mask_embedding.weight"], given)
    network = load_file(runs / "mask2former/network.safetensors")
    given = load_file(released / "data/released/proposals.safetensors")
    assert network.keys() == given.keys() and all(torch.equal(network[key], value) for key, value in given.items())
    record = json.loads((runs / "mask2former/record.json").read_text())
    assert record["classes"] == 0 and record["config"]["short_side"] == 48, "no head of random weights scores objects"


def test_both_rows_stand_in_tables_2_to_4(released: Path) -> None:
    scores = pd.read_csv(released / "results/released/0/released.csv")
    assert set(scores.method) == {"maskclip", "maskclip_published"}
    assert set(scores.dataset) == {"a150", "a150_semantic", "a150_instances"}
    for number, column in ((2, "A-150"), (3, "PQ"), (4, "ADE20K AP")):
        table = pd.read_csv(released / f"runs/released/report/tables/table{number}.csv").set_index("method")
        study = table[table.numbers == "study"]
        assert study.loc[["MaskCLIP", "MaskCLIP, evaluated as published"], column].notna().all()


def test_the_report_says_first_which_weights(released: Path) -> None:
    page = (released / "runs/released/report/index.html").read_text()
    first_screen = html.unescape(page[: page.index('id="results"')])
    assert "The authors' released weights, nothing trained here" in first_screen
    for origin, part in (("proposals.pth", "proposals"), ("model_final.pth", "maskclip")):
        assert f"data/released/{part}.safetensors, converted from {origin}, sha256 " in first_screen
    assert "evaluation.limit is 3, the paper's None" in first_screen


def test_a_second_run_keeps_all_that_takes_long(released: Path) -> None:
    kept = [*(released / "runs/released/0").glob("*/encoder.pt"), *(released / "runs/released").rglob("*.proposals")]
    times = {path: path.stat().st_mtime_ns for path in kept}
    scores = (released / "results/released/0/released.csv").read_text()
    said = run(released, "study.notebook", str(RELEASED), f"runs/released/0/notebooks/{RELEASED.name}")
    assert said.count("holds this training, finished") == 2 and len(kept) == 2
    assert times == {path: path.stat().st_mtime_ns for path in kept}
    assert scores == (released / "results/released/0/released.csv").read_text()


def test_stages_of_other_profiles_refuse(released: Path) -> None:
    with pytest.raises(AssertionError, match=r"which trains nothing and is no part of dvc\.yaml; python -m study"):
        run(released, "study.notebook", "notebooks/01_data.ipynb", "runs/x.ipynb")


def test_the_profile_is_the_papers_but_for_weights() -> None:
    paper, own = load_study("paper"), load_study("released")
    for study in (paper, own):
        config = proposing_for(study.proposals.mask2former, "a150")
        assert (config.short_side, config.long_side) == (640, 2560)
    assert own.evaluation == paper.evaluation and own.clip == paper.clip and own.data.root == paper.data.root
    assert own.maskclip.steps == own.proposals.mask2former.training.steps == 0
