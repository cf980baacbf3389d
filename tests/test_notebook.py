"""A stage is one notebook: its parameters are checked, its failure is readable, its success is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nbformat
import papermill
import pytest

from study import go_to_top
from study.notebook import parse_parameters, seconds_before, time_file

ROOT = Path(__file__).parent.parent


def notebook(path: Path, *cells: str) -> Path:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "study.notebook", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_notebook_runs_with_its_parameters(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", "seed = 0\nname = 'x'", "open('out.txt', 'w').write(f'{seed} {name}')")
    done = run(tmp_path, "a.ipynb", "runs/mini/3/notebooks/b.ipynb", "-p", "seed", "3", "-p", "name", "7")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "3 7"
    executed = tmp_path / "runs/mini/3/notebooks/b.ipynb"
    assert executed.is_file() and not list(executed.parent.glob("*running*"))
    assert (tmp_path / "runs/mini/times/3-b.csv").read_text().startswith("stage,seconds,peak_gb\n3-b,")


def test_time_is_noted_of_stages_alone(tmp_path: Path) -> None:
    assert time_file(Path("runs/mini/report/b.ipynb")) is time_file(Path("b.ipynb")) is None
    assert time_file(Path("runs/mini/notebooks/b.ipynb")) == Path("runs/mini/times/b.csv")
    notebook(tmp_path / "a.ipynb", "seed = 0")
    assert run(tmp_path, "--untimed", "a.ipynb", "notebooks/b.ipynb").returncode == 0
    assert not list(tmp_path.rglob("*.csv"))


def test_a_notebook_runs_on_the_python_of_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the user has a kernel `python3` of another Python, which Jupyter would take."""
    for folder in ("kernels", "path/kernels"):
        (tmp_path / folder / "python3").mkdir(parents=True)
        spec = {"argv": ["/no/such/python", "{connection_file}"], "display_name": "other", "language": "python"}
        (tmp_path / folder / "python3/kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "path"))
    notebook(tmp_path / "a.ipynb", "seed = 0", "import sys; open('python', 'w').write(sys.executable)")
    done = run(tmp_path, "a.ipynb", "b.ipynb")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "python").read_text() == sys.executable


def test_a_resumed_stage_costs_what_the_killed_attempt_cost_too(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", "seed = 0")
    left_behind = nbformat.read(path, as_version=4)
    left_behind.metadata["papermill"] = {"start_time": "2026-01-01T10:00:00+00:00"}
    running = tmp_path / "notebooks/b.running.ipynb"
    running.parent.mkdir()
    nbformat.write(left_behind, running)
    killed = datetime.fromisoformat("2026-01-01T10:05:00+00:00").timestamp()
    os.utime(running, (killed, killed))
    assert run(tmp_path, "a.ipynb", "notebooks/b.ipynb").returncode == 0
    seconds = float((tmp_path / "times/b.csv").read_text().split(",")[-2])
    assert 300 < seconds < 420


@pytest.mark.parametrize("content", ["", '{"cells": [', None])
def test_an_attempt_killed_before_its_clock_was_set_costs_nothing(tmp_path: Path, content: str | None) -> None:
    running = notebook(tmp_path / "b.running.ipynb", "seed = 0")
    if content is None:
        left_behind = nbformat.read(running, as_version=4)
        left_behind.metadata["papermill"] = {"start_time": None}
        nbformat.write(left_behind, running)
    else:
        running.write_text(content)
    assert seconds_before(running) == 0


def test_a_failing_cell_is_readable_and_its_copy_kept(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", "seed = 0", "raise ValueError('the word is missing; add it')")
    done = run(tmp_path, "a.ipynb", "b.ipynb")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("ValueError: the word is missing; add it")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b.ipynb").exists()
    kept = nbformat.read(tmp_path / "b.failed.ipynb", as_version=4)
    assert any(output.get("ename") == "ValueError" for cell in kept.cells for output in cell.get("outputs", []))


def test_a_killed_process_is_one_sentence_and_its_copy_kept(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", "seed = 0", "import os; os.kill(os.getpid(), 9)")
    done = run(tmp_path, "a.ipynb", "b.ipynb")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the process of a.ipynb was killed, most often for lack of memory" in done.stderr.splitlines()[-1]
    assert (tmp_path / "b.failed.ipynb").is_file() and not (tmp_path / "b.ipynb").exists()


def test_an_interrupt_is_one_sentence(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", "seed = 0", "import time; open('begun', 'w'); time.sleep(60)")
    command = [sys.executable, "-m", "study.notebook", "a.ipynb", "b.ipynb"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background job ignores it
    stage = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **heard)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    stage.send_signal(signal.SIGINT)
    said = stage.communicate(timeout=60)[1]
    assert stage.returncode == 1 and said.splitlines()[-1] == "stopped; run again, it goes on"
    assert "Traceback" not in said and not (tmp_path / "b.ipynb").exists()


def test_a_notebook_is_not_overwritten_by_its_executed_copy(tmp_path: Path) -> None:
    before = notebook(tmp_path / "a.ipynb", "seed = 0").read_bytes()
    assert "is the notebook itself" in run(tmp_path, "a.ipynb", "./a.ipynb").stderr
    assert (tmp_path / "a.ipynb").read_bytes() == before


def test_of_a_progress_bar_the_copy_keeps_the_last_state(tmp_path: Path) -> None:
    bar = "import time, tqdm\nfor _ in tqdm.tqdm(range(5), mininterval=0): time.sleep(0.05)"
    notebook(tmp_path / "a.ipynb", "seed = 0", bar)
    assert run(tmp_path, "a.ipynb", "b.ipynb").returncode == 0
    (output,) = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[-1].outputs
    assert output.text.count("%|") == 1 and "100%" in output.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("seed", "many"), "parameter seed is 'many'; it must be a int"),
        (("seed", "1.5"), "parameter seed is '1.5'; it must be a int"),
        (("sede", "1"), "no parameter 'sede'; it has: seed, rate, names"),
        (("names", "3"), "parameter names is '3'; it must be a list"),
    ],
)
def test_wrong_parameters_are_named(tmp_path: Path, given: tuple[str, str], words: str) -> None:
    path = notebook(tmp_path / "a.ipynb", "seed = 0\nrate = 0.5\nnames = ['a']")
    with pytest.raises(ValueError, match=words):
        parse_parameters(path, [given])
    assert parse_parameters(path, [("rate", "1"), ("names", "['b']")]) == {"rate": 1.0, "names": ["b"]}


def test_a_missing_notebook_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "no.ipynb", "b.ipynb")
    assert (done.returncode, done.stderr) == (1, "error: there is no notebook no.ipynb\n")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", "seed = 0")
    (tmp_path / "file").touch()
    done = run(tmp_path, "a.ipynb", "file/b.ipynb")
    assert done.returncode == 1 and done.stderr.startswith("error: file: ") and "run again" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_the_studys_notebooks_are_clean_and_parameterized(path: Path) -> None:
    assert papermill.inspect_notebook(str(path))
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count"), "strip outputs before committing"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("0[1-7]*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_opened_in_its_own_folder_finds_the_study(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter opens it: the first two code cells run, the parameters and the setting up."""
    monkeypatch.chdir(path.parent)
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][:2]
    names: dict = {}
    for source in cells:
        exec(source.replace("%matplotlib inline\n", ""), names)
    assert Path.cwd() == ROOT and names["run"].study.data.root == "data/mini"


def test_outside_the_study_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"not inside the study: no params\.yaml here or above"):
        go_to_top()
