"""Run one notebook of the study with papermill, as the stages of dvc.yaml do.

    python -m study.notebook notebooks/04_maskclip.ipynb runs/mini/0/notebooks/maskclip.ipynb -p seed 0

The executed copy appears under its name only when every cell has run. A failed one is kept beside it as
`<name>.failed.ipynb`, and the cell's error is printed without foreign frames.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import re
import resource
import signal
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from pydantic import TypeAdapter

from maskclip.files import write_atomically
from study import end_with_parent, errors_as_sentences
from study.methods import check_stages
from study.params import RELEASED, load_params


class ThisPython(AsyncKernelManager):
    """Starts kernels of the very Python that runs the stage, whatever `python3` means among a user's kernels."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def parse_parameters(notebook: Path, given: list[tuple[str, str]]) -> dict[str, Any]:
    """Texts from the command line as the types that the notebook declares in its cell tagged `parameters`.

    Raises:
        ValueError: a name the notebook does not declare, or a value of another type.
    """
    declared = papermill.inspect_notebook(str(notebook))
    parameters = {}
    for name, text in given:
        if name not in declared:
            raise ValueError(f"{notebook} has no parameter {name!r}; it has: {', '.join(declared) or 'none'}")
        kind = type(ast.literal_eval(declared[name]["default"]))
        try:
            value = text if kind is str else ast.literal_eval(text)
            parameters[name] = TypeAdapter(kind).validate_python(value, strict=True)
        except (ValueError, SyntaxError):
            raise ValueError(f"{notebook}: parameter {name} is {text!r}; it must be a {kind.__name__}") from None
    return parameters


def seconds_before(running: Path) -> float:
    """How long a killed attempt had run, by the copy it left: a resumed stage costs the sum of its attempts."""
    try:
        began = datetime.fromisoformat(nbformat.read(running, as_version=4).metadata["papermill"]["start_time"])
    except (KeyError, ValueError, TypeError, OSError):  # none, or cut off, or killed before its clock was set
        return 0.0
    return max(0.0, running.stat().st_mtime - began.timestamp())


def time_file(executed: Path) -> Path | None:
    """Where the time of a stage is noted: of runs/mini/0/notebooks/x.ipynb in runs/mini/times/0-x.csv."""
    top, name = executed.parent.parent, f"{executed.stem}.csv"
    if top.name.isdigit():
        top, name = top.parent, f"{top.name}-{name}"
    return top / "times" / name if executed.parent.name == "notebooks" else None


def check_profile(notebook: Path) -> None:
    """ValueError for a stage of dvc.yaml under the profile `released`, or for its notebook under another profile."""
    profile, of_released = load_params()[0]["profile"], RELEASED.stem
    if notebook.name == RELEASED.name and profile != of_released:
        raise ValueError(
            f"params.yaml says profile: {profile}; {notebook} is of profile: {of_released}, which "
            f"python -m study.pipeline --profile {of_released} runs"
        )
    if profile == of_released and notebook.name not in (RELEASED.name, "08_report.ipynb"):
        raise ValueError(
            f"params.yaml says profile: {of_released}, which trains nothing and is no part of dvc.yaml; "
            "python -m study.pipeline runs it, or write another profile"
        )


def run_notebook(notebook: Path, executed: Path, parameters: dict[str, Any], times: Path | None = None) -> None:
    """Execute `notebook` into `executed`; note seconds and peak memory in the file `times`.

    Raises:
        RuntimeError: a cell failed, or its process was killed; `executed` would be the notebook itself.
    """
    if executed.resolve() == notebook.resolve():
        raise RuntimeError(f"{executed} is the notebook itself; give its executed copy another place")
    executed.parent.mkdir(parents=True, exist_ok=True)
    running, failed = executed.with_suffix(".running.ipynb"), executed.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    start = time.monotonic() - seconds_before(running)
    try:
        _execute(notebook, running, parameters)
    except (PapermillExecutionError, DeadKernelError) as error:
        os.replace(running, failed)
        said = f"the process of {notebook} was killed, most often for lack of memory; run again, it goes on"
        if isinstance(error, PapermillExecutionError):
            said = f"{notebook} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        raise RuntimeError(f"see {failed}: {said}") from None
    os.replace(running, executed)
    seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    if times is not None:
        row = f"stage,seconds,peak_gb\n{times.stem},{seconds:.1f},{peak:.2f}\n"
        write_atomically(times, row)
    print(f"{executed}: {seconds:.0f} s, peak memory {peak:.1f} GB")


def _execute(notebook: Path, running: Path, parameters: dict[str, Any]) -> None:
    # the notebooks import the packages from where they are run, installed or not
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress")  # tqdm's, of widgets that no file can show
    papermill.execute_notebook(
        str(notebook), str(running), parameters, "nbclient", kernel_name="python3", kernel_manager_class=ThisPython,
        log_output=True, progress_bar=False, extra_arguments=["--log-level=CRITICAL"],
        coalesce_streams=True,  # of a progress bar the executed copy keeps its last state
    )  # fmt: skip


def _is_output(record: logging.LogRecord) -> bool:
    """What cells print, without papermill's own frame around it and the names of figures."""
    return not re.match(r"\s*($|Executing |Ending |<Figure|<IPython|<Shown|Input |Output )", record.getMessage())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("executed", type=Path)
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--untimed", action="store_true", help="note no time (of the stage that reads the others')")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.addFilter(_is_output)
    warnings.filterwarnings("ignore", module="papermill|nbclient|zmq|jupyter_client")
    if "DVC_STAGE" in os.environ:
        end_with_parent(signal.SIGINT)  # a kill of DVC, or of the pipeline, leaves nothing running
    times = None if arguments.untimed else time_file(arguments.executed)
    with errors_as_sentences():
        if not arguments.notebook.is_file():
            raise ValueError(f"there is no notebook {arguments.notebook}")
        if Path("dvc.yaml").is_file():
            check_stages()  # a method that the pipeline forgets must not show after days
            check_profile(arguments.notebook)
        parameters = parse_parameters(arguments.notebook, arguments.parameter)
        try:
            run_notebook(arguments.notebook, arguments.executed, parameters, times)
        except OSError as error:  # a full disk, a folder that may not be written
            place, why = error.filename or arguments.executed.parent, error.strerror or error
            raise OSError(f"{place}: {why}; make room there, or allow writing, and run again: it goes on") from None


if __name__ == "__main__":
    main()
