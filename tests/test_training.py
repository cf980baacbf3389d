"""What `train_maskclip` leaves behind is taken as finished, gone on with or loaded only as it was written."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_proposals import ToyScenes
from test_several_processes import TOP, encoder_of

import maskclip.training.mask_tokens as training
from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.model.clip import load_clip
from maskclip.proposals import ground_truth_proposals
from maskclip.training.mask_tokens import CURVE, load_trained_weights, train_maskclip
from study.params import load_study

CLIP = load_clip(str(TOP / "models" / "mini_clip"))
SETTINGS = load_study("mini", configs=TOP / "configs").maskclip


def train(out: Path, steps: int = 2) -> pd.DataFrame:
    dataset, settings = ToyScenes(count=2), dataclasses.replace(SETTINGS, steps=steps, batch=2, checkpoint_every=1)
    proposals = {sample.image_id: ground_truth_proposals(sample) for sample in dataset}
    return train_maskclip(encoder_of(CLIP), CLIP, dataset, proposals, settings, out, 0)


def test_no_steps_leave_a_curve_without_rows(tmp_path):
    for curve in (train(tmp_path, 0), train(tmp_path, 0), pd.read_csv(tmp_path / "curve.csv")):
        assert tuple(curve.columns) == CURVE and len(curve) == 0


def test_a_changed_file_is_not_loaded_and_trained_again(tmp_path, capsys):
    train(tmp_path)
    whole = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    flipped = bytearray(whole["encoder.pt"])
    flipped[len(flipped) // 2] ^= 1
    weights = load_checkpoint(tmp_path / "encoder.pt")
    save_checkpoint(tmp_path / "other.pt", {name: value + 1 for name, value in weights.items()})
    foreign = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "other.pt").unlink()
    texts = (b"", b"[]", b"null", b"\xff", whole["record.json"][:60])
    for name, damaged in [
        ("encoder.pt", bytes(flipped)),
        ("encoder.pt", foreign),
        ("curve.csv", whole["curve.csv"][:50]),
        *(("record.json", text) for text in texts),
    ]:
        (tmp_path / name).write_bytes(damaged)
        if name == "encoder.pt":
            with pytest.raises(ValueError, match=r"encoder\.pt is not what .*record\.json was written for"):
                load_trained_weights(encoder_of(CLIP), tmp_path / "encoder.pt")
        train(tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == whole
        assert ("training again" in capsys.readouterr().out) == (name != "record.json")


@pytest.mark.parametrize("value", [lambda v: v * torch.nan, lambda v: v.double(), lambda v: v + 0j, lambda v: 3])
def test_weights_are_finite_numbers_of_single_precision(value, tmp_path):
    weights = {name: value(tensor) for name, tensor in training.trained_weights(encoder_of(CLIP)).items()}
    save_checkpoint(tmp_path / "encoder.pt", weights)
    with pytest.raises(ValueError, match=r"encoder\.pt: .* is no tensor of finite float32 numbers"):
        load_trained_weights(encoder_of(CLIP), tmp_path / "encoder.pt")


@pytest.mark.parametrize(("code", "said"), [(None, "resuming at step 1"), ("other", "or code; starting anew")])
def test_a_checkpoint_is_gone_on_with_by_the_same_code_only(code, said, tmp_path, monkeypatch, capsys):
    def dies(path: Path, state: dict) -> None:
        save_checkpoint(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_checkpoint", dies)
        train(tmp_path)
    if code:
        monkeypatch.setattr(training, "code_digest", lambda *names: code)
    assert len(train(tmp_path)) == 2 and said in capsys.readouterr().out
