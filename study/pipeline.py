"""Run the study's stages side by side: `python -m study.pipeline --lanes 2`.

DVC knows what a stage waits for, and runs it; here is only which comes next. Small networks gain more from a lane of
their own than from threads. Where one stage fills the machine (the paper profile), one lane is best.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path

import pandas as pd
import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo
from ruamel.yaml import YAML

from maskclip.files import write_atomically
from study import end_with_parent, errors_as_sentences
from study.methods import check_stages
from study.params import RELEASED, load_params


def let_former_run_end(rwlock: Path = Path(".dvc/tmp/rwlock"), seconds: float = 30) -> None:
    """Wait for the stages of a run that was just killed, and forget those that are dead.

    DVC takes a dead process for a running one until its new parent has asked after it, which in a container may be
    never, and calls the stage's files busy.
    """
    deadline = time.monotonic() + seconds
    while rwlock.is_file():
        try:
            held = json.loads(rwlock.read_text())
        except ValueError:  # being written
            held = {"write": {"": {"pid": os.getpid()}}}
        holders = [*held.get("write", {}).values(), *(one for many in held.get("read", {}).values() for one in many)]
        if not any(_is_running(holder["pid"]) for holder in holders):
            rwlock.unlink(missing_ok=True)
        elif time.monotonic() > deadline:
            return  # DVC says who it is
        else:
            time.sleep(0.1)


def _is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def read_stages() -> tuple[dict[str, set[str]], dict[str, float], set[str]]:
    """From DVC: what each stage waits for, its seconds in a former run, and which stages are not up to date."""
    with Repo(_wait_for_lock=True) as repo:
        stages = [stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"]  # the miniature has its own
        graph, changed = repo.index.graph, set(repo.status("dvc.yaml"))
        waits = {stage.addressing: {before.addressing for before in graph[stage]} for stage in stages}
        files = {Path(out.fs_path): stage.addressing for stage in stages for out in stage.outs}
    times = [(files[file], file) for file in files if file.parent.name == "times" and file.is_file()]
    return waits, dict.fromkeys(waits, 0.0) | {stage: pd.read_csv(file).seconds.sum() for stage, file in times}, changed


def longest_first(waits: dict[str, set[str]], seconds: dict[str, float]) -> list[str]:
    """The stages by the time until the last one that waits for them has ended; in dvc.yaml's order without times."""
    until_end = dict(seconds)
    for stage in reversed(list(TopologicalSorter(waits).static_order())):
        for before in waits[stage]:
            until_end[before] = max(until_end[before], seconds[before] + until_end[stage])
    return sorted(waits, key=lambda stage: -until_end[stage])


def run(lanes: int, retrain: str | None = None) -> None:
    """Bring the study up to date, `lanes` stages at a time; the stage `retrain` is run even if it is, its training too.

    Raises:
        RuntimeError: a stage failed; all others are stopped.
        ValueError: `retrain` is no stage.
    """
    let_former_run_end()
    waits, seconds, changed = read_stages()
    if retrain and retrain not in waits:
        raise ValueError(f"dvc.yaml has no stage {retrain!r}; it has {', '.join(waits)}")
    if retrain:
        changed.add(retrain)
    order, sorter = longest_first(waits, seconds), TopologicalSorter(waits)
    sorter.prepare()
    ready: set[str] = set()
    running: dict[str, subprocess.Popen] = {}
    try:
        while sorter.is_active():
            ready |= set(sorter.get_ready())
            for stage in sorted(ready, key=order.index):
                if not changed & {stage, *waits[stage]}:
                    sorter.done(stage)
                elif len(running) < lanes:
                    running[stage] = _start(stage, stage == retrain)
                    changed.add(stage)
                else:
                    continue
                ready.remove(stage)
            for stage in [stage for stage, process in running.items() if process.poll() is not None]:
                if running.pop(stage).returncode:
                    raise RuntimeError(f"the stage {stage} failed (see above); run again, it goes on")
                sorter.done(stage)
            time.sleep(0.05 if running else 0)
    finally:
        _stop(list(running.values()))


def run_released(seed: int) -> None:
    """The released weights' row and its report, which are no part of dvc.yaml: what is done already is kept.

    Raises:
        RuntimeError: a notebook failed.
    """
    report, folder = "08_report.ipynb", RELEASED.stem
    arguments = (
        [str(RELEASED), f"runs/{folder}/{seed}/notebooks/{RELEASED.name}", "-p", "seed", str(seed)],
        ["--untimed", f"notebooks/{report}", f"runs/{folder}/notebooks/{report}", "-p", "out", f"runs/{folder}/report"],
    )
    for given in arguments:
        process = _begin("study.notebook", *given)
        try:
            if process.wait():
                raise RuntimeError("a notebook failed (see above); run again, it goes on")
        finally:
            _stop([process] if process.poll() is None else [])


def _start(stage: str, retrain: bool) -> subprocess.Popen:
    environment = os.environ | {"STUDY_RETRAIN": "1"} if retrain else None
    options = ["--single-item", *["--force"] * retrain]
    return _begin("dvc", "--wait-for-lock", "repro", *options, stage, environment=environment)


def _begin(module: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=environment, start_new_session=True,
        preexec_fn=lambda: end_with_parent(signal.SIGTERM),
    )  # fmt: skip


def _stop(processes: list[subprocess.Popen]) -> None:
    """End stages as Ctrl-C does; what has not ended within half a minute is killed."""
    for process in processes:
        os.killpg(process.pid, signal.SIGINT)
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def set_params(path: Path = Path("params.yaml"), **values: object) -> None:
    """Turn the study's knob: write what is not None into params.yaml, comments kept, and say so."""
    yaml = YAML()
    yaml.width = 200
    content = yaml.load(path)
    changed = {key: value for key, value in values.items() if value is not None and value != content[key]}
    for key, value in changed.items():
        print(f"{path}: {key} is {value} now, and was {content[key]}")
        if isinstance(value, list):
            content[key][:] = value  # in the same style
        else:
            content[key] = value
    if changed:
        write_atomically(path, lambda temporary: yaml.dump(content, temporary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=2, choices=range(1, 65), metavar="N", help="stages at a time (2)")
    parser.add_argument("--profile", help="one of configs/, written to params.yaml (as it stands there)")
    parser.add_argument("--seeds", type=int, nargs="+", help="written to params.yaml, too (as they stand there)")
    parser.add_argument("--retrain", metavar="STAGE", help="run this stage anew, its training too")
    arguments = parser.parse_args()
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.default_int_handler)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the stages' `python`
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.lanes)))
    with errors_as_sentences(DvcException):
        given = {key: getattr(arguments, key) for key in ("profile", "seeds") if getattr(arguments, key) is not None}
        params, _ = load_params(**given)
        check_stages()
        set_params(**given)  # once it is known to be right
        if params["profile"] == RELEASED.stem and not arguments.retrain:
            run_released(params["seeds"][0])
        else:
            run(arguments.lanes, arguments.retrain)


if __name__ == "__main__":
    main()
