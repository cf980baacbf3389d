"""Stages side by side: in DVC's order, stopped together, and nothing twice; with stages of a second each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study.params import load_params
from study.pipeline import longest_first, set_params

ROOT = Path(__file__).parent.parent
NOTE = "echo $DVC_STAGE began $(date +%s.%N) >> log && {} && echo $DVC_STAGE ended $(date +%s.%N) >> log"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a study's parameters and a repository of DVC."""
    folder = tmp_path / "é x"
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / "params.yaml", folder)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)
    return folder


def write_stages(folder: Path, **stages: tuple[str, list[str]]) -> None:
    """A dvc.yaml of stages: each runs a command, needs others' files, and writes one of its own name."""
    lines = ["stages:"]
    for name, (command, needs) in stages.items():
        note = NOTE.format(f"{command} && touch {name}")
        lines += [f"  {name}:", f"    cmd: {note}", f"    deps: [{', '.join(needs)}]", f"    outs: [{name}]"]
    (folder / "dvc.yaml").write_text("\n".join(lines))


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    # these stages are not the study's
    code = "from study import pipeline; pipeline.check_stages = lambda: None; pipeline.main()"
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def times(folder: Path) -> dict[tuple[str, str], float]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    assert len({(stage, what) for stage, what, _ in lines}) == len(lines), "no stage runs twice"
    return {(stage, what): float(when) for stage, what, when in lines}


def test_stages_run_side_by_side_once_and_after_what_they_need(place: Path) -> None:
    write_stages(place, a=("true", []), b=("sleep 4", ["a"]), c=("sleep 4", ["a"]), d=("true", ["b", "c"]))
    assert start(place).wait(120) == 0
    when = times(place)
    assert when["a", "ended"] < min(when["b", "began"], when["c", "began"])
    assert max(when["b", "began"], when["c", "began"]) < min(when["b", "ended"], when["c", "ended"]), "side by side"
    assert when["d", "began"] > max(when["b", "ended"], when["c", "ended"])
    assert start(place).wait(120) == 0
    assert times(place) == when, "a second run runs nothing"


def test_a_failing_stage_stops_the_others_and_is_named(place: Path) -> None:
    write_stages(place, a=("sleep 3 && false", []), b=("sleep 600", []), c=("true", ["a"]))
    pipeline, began = start(place), time.monotonic()
    said = pipeline.communicate(timeout=120)[1]
    assert pipeline.returncode == 1 and time.monotonic() - began < 60
    assert said.splitlines()[-1] == "error: the stage a failed (see above); run again, it goes on"
    assert set(times(place)) == {("a", "began"), ("b", "began")}
    assert not sleeping(place)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_nothing_running(place: Path, sign: signal.Signals) -> None:
    write_stages(place, a=("sleep 600", []), b=("sleep 600", []))
    pipeline, deadline = start(place), time.monotonic() + 60
    while len(sleeping(place)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(sleeping(place)) == 2
    pipeline.send_signal(sign)
    assert pipeline.communicate(timeout=60)[1].splitlines()[-1] == "stopped; run again, it goes on"
    assert pipeline.returncode == 1 and not sleeping(place)


@pytest.mark.parametrize("command", [["true"], ["sleep", "4"]], ids=["dead", "ending"])
def test_a_killed_runs_stages_are_not_taken_for_running_ones(place: Path, command: list[str]) -> None:
    """Nobody has asked after the dead one: it keeps its number, as an orphan may in a container."""
    write_stages(place, a=("true", []))
    former = subprocess.Popen(command)
    if command == ["true"]:
        os.waitid(os.P_PID, former.pid, os.WEXITED | os.WNOWAIT)
    held = {"write": {str(place / "a"): {"pid": former.pid, "cmd": "dvc repro a"}}, "read": {}}
    (place / ".dvc" / "tmp").mkdir(exist_ok=True)
    (place / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(held))
    pipeline = start(place)
    said = pipeline.communicate(timeout=60)[1]
    former.wait(60)
    assert pipeline.returncode == 0, said
    assert set(times(place)) == {("a", "began"), ("a", "ended")}


def sleeping(folder: Path) -> list[str]:
    """The processes of the stages that are running in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cwd").resolve() == folder and b"sleep" in process.joinpath("cmdline").read_bytes()[:5]:
                found.append(process.name)
        except OSError:
            continue  # it has just ended
    return found


def test_an_unknown_stage_is_one_sentence(place: Path) -> None:
    write_stages(place, a=("true", []), b=("true", ["a"]))
    pipeline = start(place, "--retrain", "c")
    assert pipeline.communicate(timeout=60)[1] == "error: dvc.yaml has no stage 'c'; it has a, b\n"
    assert pipeline.returncode == 1 and not (place / "log").exists()


def test_the_long_way_to_the_end_comes_first() -> None:
    waits: dict[str, set[str]] = {"a": set(), "b": set(), "c": {"a"}, "d": {"c"}, "e": set()}
    seconds = {"a": 1.0, "b": 30.0, "c": 20.0, "d": 20.0, "e": 0.0}
    assert longest_first(waits, seconds) == ["a", "c", "b", "d", "e"]
    assert longest_first(waits, dict.fromkeys(waits, 0.0)) == list(waits), "no times: dvc.yaml's order"


def test_a_stage_is_trained_again_on_purpose(place: Path) -> None:
    write_stages(place, a=("echo again=$STUDY_RETRAIN >> trained", []))
    for arguments in ([], [], ["--retrain", "a"]):
        assert start(place, *arguments).wait(60) == 0
    assert (place / "trained").read_text() == "again=\nagain=1\n"


def test_profile_and_seeds_can_be_given_and_stay(place: Path, capsys: pytest.CaptureFixture) -> None:
    before, path = (place / "params.yaml").read_text(), place / "params.yaml"
    set_params(path, profile="mini", seeds=None)
    assert path.read_text() == before and not capsys.readouterr().out, "as it stands there"
    set_params(path, profile="overnight", seeds=[0, 1, 2])
    assert load_params(path)[0] | {"profile": "overnight", "seeds": [0, 1, 2]} == load_params(path)[0]
    assert "seeds is [0, 1, 2] now, and was [0]" in capsys.readouterr().out
    assert path.read_text().count("#") == before.count("#"), "comments stay"
    write_stages(place, a=("true", []))
    kept = path.read_text()
    for wrong, said in ((["--profile", "nonsense"], "unknown profile 'nonsense'"), (["--seeds", "1", "1"], "once")):
        process = start(place, *wrong)
        assert said in process.communicate()[1] and process.returncode == 1 and path.read_text() == kept
