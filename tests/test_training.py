"""What `train_maskclip` leaves behind is taken as finished, gone on with or loaded only as it was written."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from test_proposals import ToyScenes
from test_several_processes import TOP, encoder_of

import maskclip.training.mask_tokens as training
from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.model.clip import load_clip
from maskclip.proposals import ground_truth_proposals
from maskclip.training.fit import Training, _step
from maskclip.training.mask_tokens import CURVE, load_trained_weights, train_maskclip
from study.params import load_study

CLIP = load_clip(str(TOP / "models" / "mini_clip"))
SETTINGS = load_study("mini", configs=TOP / "configs").maskclip


def train(out: Path, steps: int = 2, retrain: bool = False, **changes) -> pd.DataFrame:
    dataset = ToyScenes(count=2)
    settings = dataclasses.replace(
        SETTINGS, **{"steps": steps, "batch": 1, "points": 16, "checkpoint_every": 1} | changes
    )
    proposals = {sample.image_id: ground_truth_proposals(sample) for sample in dataset}
    return train_maskclip(encoder_of(CLIP), CLIP, dataset, proposals, settings, out, 0, retrain=retrain)


def test_only_what_changes_the_weights_trains_anew(tmp_path):
    out = tmp_path / "maskclip"
    first = train(out)
    record = (out / "record.json").read_bytes()
    pd.testing.assert_frame_equal(train(out, checkpoint_every=7, workers=1, activation_checkpointing=True), first)
    assert (out / "record.json").read_bytes() == record and [place.name for place in tmp_path.iterdir()] == ["maskclip"]
    other = train(out, learning_rate=1e-2)
    aside = tmp_path / f"maskclip.{json.loads(record)['hash']}"
    assert not other.equals(first) and (aside / "record.json").read_bytes() == record
    pd.testing.assert_frame_equal(train(out), first)
    assert (out / "record.json").read_bytes() == record and not aside.exists()
    pd.testing.assert_frame_equal(train(out, retrain=True), first)
    assert (aside / "encoder.pt").read_bytes() == (out / "encoder.pt").read_bytes()


@pytest.mark.parametrize("factor", [0.0, 100.0])
def test_refinement_learns_at_its_own_rate(factor, tmp_path):
    """AdamW's first step is as long as the rate, whatever the gradient: here f_r's, which begins with zeros."""
    train(tmp_path, steps=1, warmup_steps=0, learning_rate=1e-4, refinement_factor=factor)
    for name, weight in load_checkpoint(tmp_path / "encoder.pt").items():
        if "residual" in name:
            assert weight.abs().max().item() == pytest.approx(1e-4 * factor, rel=1e-2)
        else:
            begun = dict(encoder_of(CLIP).named_parameters())[name]
            assert 0 < (weight - begun).abs().max() < 2e-4


def test_the_rate_is_constant_or_falls_to_zero():
    settings = dataclasses.replace(SETTINGS, steps=4, warmup_steps=2, learning_rate=8.0, schedule="constant")
    assert [training.learning_rate(step, settings) for step in range(4)] == [4, 8, 8, 8]
    settings = dataclasses.replace(settings, schedule="cosine")
    wanted = [4, 8 * (2 + 2**0.5) / 4, 4, 8 * (2 - 2**0.5) / 4]
    assert [training.learning_rate(step, settings) for step in range(4)] == pytest.approx(wanted)


def test_a_killed_training_is_gone_on_with(tmp_path, monkeypatch, capsys):
    def dies(path: Path, state: dict) -> None:
        save_checkpoint(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("maskclip.training.fit.save_checkpoint", dies)
        train(tmp_path / "cut")
    resumed, whole = train(tmp_path / "cut"), train(tmp_path / "whole")
    assert "resuming at step 1 of 2" in capsys.readouterr().out
    pd.testing.assert_frame_equal(resumed, whole)
    for name in ("encoder.pt", "curve.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_python_trains_in_one_precision_after_another(tmp_path):
    """accelerate would keep the first's."""
    for precision in ("no", "bf16", "no"):
        train(tmp_path / precision, 1, mixed_precision=precision)
    for precision in ("no", "bf16"):
        assert (
            json.loads((tmp_path / precision / "record.json").read_text())["settings"]["mixed_precision"] == precision
        )
    assert not (tmp_path / "no" / "encoder.pt").read_bytes() == (tmp_path / "bf16" / "encoder.pt").read_bytes()


def test_a_step_that_matches_nothing_is_survived_by_fp16s_scaler():
    model = torch.nn.Linear(2, 1)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")  # fp16 itself takes a GPU
    losses = iter([torch.zeros(()), model(torch.ones(2)).sum()])
    stage = Training(
        "toy", "hash", accelerator, dataclasses.replace(SETTINGS, gradient_norm=0.1), model,
        torch.optim.SGD(model.parameters(), 0.1), lambda step: 0.1, [], lambda batch: {"loss": next(losses)}, int,
    )  # fmt: skip
    before = model.weight.clone()
    assert _step(stage, [], 0) == {"loss": 0} and torch.equal(model.weight, before)
    _step(stage, [], 1)
    assert not torch.equal(model.weight, before)


def test_no_steps_leave_a_curve_without_rows(tmp_path):
    for curve in (train(tmp_path, 0), train(tmp_path, 0), pd.read_csv(tmp_path / "curve.csv")):
        assert tuple(curve.columns) == CURVE and len(curve) == 0


def test_a_changed_file_is_not_loaded_and_trained_again(tmp_path, capsys):
    train(tmp_path, 1)
    whole = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    flipped = bytearray(whole["encoder.pt"])
    flipped[len(flipped) // 2] ^= 1
    weights = load_checkpoint(tmp_path / "encoder.pt")
    save_checkpoint(tmp_path / "other.pt", {name: value + 1 for name, value in weights.items()})
    foreign = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "other.pt").unlink()
    for name, damaged in [("encoder.pt", bytes(flipped)), ("encoder.pt", foreign), ("record.json", b"null")]:
        (tmp_path / name).write_bytes(damaged)
        if name == "encoder.pt":
            with pytest.raises(ValueError, match=r"encoder\.pt is not what .*record\.json was written for"):
                load_trained_weights(encoder_of(CLIP), tmp_path / "encoder.pt")
        train(tmp_path, 1)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == whole
        assert "damaged or of another training; what was there is kept as" in capsys.readouterr().out


@pytest.mark.parametrize("value", [lambda v: v * torch.nan, lambda v: v.double(), lambda v: v + 0j, lambda v: 3])
def test_weights_are_finite_numbers_of_single_precision(value, tmp_path):
    weights = {name: value(tensor) for name, tensor in training.trained_weights(encoder_of(CLIP)).items()}
    save_checkpoint(tmp_path / "encoder.pt", weights)
    with pytest.raises(ValueError, match=r"encoder\.pt: .* is no tensor of finite float32 numbers"):
        load_trained_weights(encoder_of(CLIP), tmp_path / "encoder.pt")


def test_weights_of_other_layers_or_another_clip_are_refused(tmp_path):
    weights = training.trained_weights(encoder_of(CLIP))
    first = min(weights)
    for changed, said in ({**weights, first: torch.ones(2)}, "misshapen"), ({first: weights[first]}, "missing"):
        save_checkpoint(tmp_path / "encoder.pt", changed)
        with pytest.raises(ValueError, match=rf"encoder\.pt is of other RMA layers or of another CLIP: .*{said}: "):
            load_trained_weights(encoder_of(CLIP), tmp_path / "encoder.pt")
