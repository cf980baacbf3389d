"""A finished training is kept by its settings, nothing is overwritten, and a kill at any moment loses nothing."""

import json
import os
from pathlib import Path

import pytest

from maskclip.files import save_checkpoint
from maskclip.training.finished import finish, holds_finished, tell

FILES = ("curve.csv", "weights.bin")


def train(folder: Path, settings: str, retrain: bool = False) -> bool:
    """Whether it trained; the files hold the settings."""
    if holds_finished(folder, settings, FILES, retrain):
        return False
    finish(folder, {"hash": settings}, dict.fromkeys(FILES, settings.encode()))
    return True


def contents(folder: Path) -> dict[str, set[str]]:
    """What stands in the files of each training below a folder."""
    return {place.name: {(place / name).read_text() for name in FILES} for place in sorted(folder.iterdir())}


def test_a_finished_training_is_kept_and_says_so(tmp_path, capsys):
    assert train(tmp_path / "net", "a") and not train(tmp_path / "net", "a")
    assert "net holds this training, finished; it is kept, whatever the code is now" in capsys.readouterr().out


def test_other_settings_put_it_beside_and_take_it_back(tmp_path, capsys):
    net = tmp_path / "net"
    assert train(net, "a") and train(net, "b") and train(net, "c")
    assert contents(tmp_path) == {"net": {"c"}, "net.a": {"a"}, "net.b": {"b"}}
    assert "what was there is kept as net.a" in capsys.readouterr().out
    assert not train(net, "a")
    assert contents(tmp_path) == {"net": {"a"}, "net.b": {"b"}, "net.c": {"c"}}
    assert "net.a is of these settings and taken back" in capsys.readouterr().out


def test_to_train_again_on_purpose_keeps_the_former_and_the_newest_comes_back(tmp_path):
    net = tmp_path / "net"
    train(net, "a")
    (net / "note").write_text("first")
    assert train(net, "a", retrain=True)
    assert contents(tmp_path) == {"net": {"a"}, "net.a": {"a"}} and (tmp_path / "net.a" / "note").exists()
    (net / "note").write_text("second")
    assert train(net, "b") and not train(net, "a") and (net / "note").read_text() == "second"


def test_what_is_unfinished_is_gone_on_with_or_put_beside(tmp_path):
    net = tmp_path / "net"
    save_checkpoint(net / "checkpoint.pt", {"hash": "a"})
    for retrain in (False, True):
        assert not holds_finished(net, "a", FILES, retrain) and (net / "checkpoint.pt").exists()
    assert train(net, "b")
    assert (tmp_path / "net.a" / "checkpoint.pt").exists() and not (net / "checkpoint.pt").exists()
    assert not holds_finished(net, "a", FILES, False) and (net / "checkpoint.pt").exists()


@pytest.mark.parametrize("damage", ["weights.bin", "curve.csv", "record.json", "record", "none"])
def test_damaged_and_foreign_files_are_found_and_kept(damage, tmp_path, capsys):
    net = tmp_path / "net"
    train(net, "a")
    if damage in ("record", "none"):
        (net / "record.json").unlink() if damage == "record" else (net / "weights.bin").unlink()
    else:
        (net / damage).write_text("foreign")
    left = {file.name: file.read_bytes() for file in net.iterdir()}
    assert train(net, "a")
    said = capsys.readouterr().out
    assert "is missing, damaged or of another training; what was there is kept as net.damaged" in said
    assert {file.name: file.read_bytes() for file in (tmp_path / "net.damaged").iterdir()} == left
    assert not train(net, "a")


def test_a_record_hears_what_does_not_change_the_training(tmp_path):
    train(tmp_path, "a")
    record = json.loads((tmp_path / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**record, "config": {"short_side": 800}}))
    tell(tmp_path, config={"short_side": 640})
    told = json.loads((tmp_path / "record.json").read_text())
    assert told == {**record, "config": {"short_side": 640}} and not train(tmp_path, "a")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_before_or_after_any_move_or_write_loses_nothing(after, tmp_path, monkeypatch):
    """Settings a, b, c, a again, and a on purpose: killed at each step and repeated, all is as undisturbed."""
    plan = [("a", False), ("b", False), ("c", False), ("a", False), ("a", True)]

    def killed_at(moment: int, folder: Path) -> bool:
        """Go through the plan, killed once at this moment; whether there was such a moment."""
        steps = 0

        def counted(function):
            def step(*arguments, **options):
                nonlocal steps
                steps += 1
                if steps == moment and not after:
                    raise Killed
                result = function(*arguments, **options)
                if steps == moment and after:
                    raise Killed
                return result

            return step

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(os, "replace", counted(os.replace))
            for settings, retrain in plan:
                try:
                    train(folder / "net", settings, retrain)
                except Killed:
                    train(folder / "net", settings, retrain)
        return steps >= moment

    killed_at(0, tmp_path / "whole")
    whole, moment = contents(tmp_path / "whole"), 1
    while killed_at(moment, tmp_path / str(moment)):
        found = contents(tmp_path / str(moment))
        assert found == whole or found == {**whole, "net.a.2": {"a"}}, moment  # killed when done, and done again
        moment += 1
    assert moment > 15 and set(whole) == {"net", "net.a", "net.b", "net.c"}
