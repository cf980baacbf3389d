"""Run one notebook of the study with papermill, as the stages of dvc.yaml do.

    python -m study.notebook notebooks/04_maskclip.ipynb runs/0/notebooks/maskclip.ipynb -p seed 0

The executed copy appears under its name only when every cell has run; a failed one is kept beside it as
`<name>.failed.ipynb`, and the cell's error is printed without foreign frames.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import resource
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from maskclip.files import write_atomically

# glibc hands large freed buffers back to the kernel and faults them in again at every step; keeping them makes
# training on a CPU up to three times as fast. Other C libraries ignore these names.
KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values in the notebook's cell tagged `parameters`."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            assignments = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
            return {item.targets[0].id: ast.literal_eval(item.value) for item in assignments}  # type: ignore[attr-defined]
    return {}


def parse_parameters(notebook: Path, given: list[tuple[str, str]]) -> dict[str, Any]:
    """Texts from the command line as the types the notebook declares.

    Raises:
        ValueError: a name the notebook does not declare, or a value of another type.
    """
    declared = declared_parameters(notebook)
    parameters = {}
    for name, text in given:
        if name not in declared:
            raise ValueError(f"{notebook} has no parameter {name!r}; it has: {', '.join(declared) or 'none'}")
        kind = type(declared[name])
        try:
            value = text if kind is str else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{notebook}: parameter {name} is {text!r}; it must be a {kind.__name__}")
        parameters[name] = value
    return parameters


def seconds_before(running: Path) -> float:
    """How long a killed attempt had run, by the copy it left behind: a resumed stage costs the sum of its attempts."""
    if not running.is_file():
        return 0.0
    try:
        began = datetime.fromisoformat(nbformat.read(running, as_version=4).metadata["papermill"]["start_time"])
    except (KeyError, ValueError, TypeError, OSError):  # cut off while it was written, or before its clock was set
        return 0.0
    return max(0.0, running.stat().st_mtime - began.timestamp())


def run_notebook(notebook: str | Path, executed: str | Path, parameters: dict[str, Any]) -> None:
    """Execute `notebook` into `executed`; note time and peak memory in runs/times/.

    Raises:
        RuntimeError: a cell failed, or its process was killed; the message names the cell, its error and the kept copy.
        ValueError: the executed copy would take the notebook's own place.
    """
    notebook, executed = Path(notebook), Path(executed)
    if executed.resolve() == notebook.resolve():
        raise ValueError(f"{executed} is the notebook itself; give its executed copy another place")
    executed.parent.mkdir(parents=True, exist_ok=True)
    running, failed = executed.with_suffix(".running.ipynb"), executed.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    start = time.monotonic() - seconds_before(running)
    # the notebooks import the library from where they are run, installed or not
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    for name, value in KEEP_BUFFERS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress")  # tqdm's, of widgets that no file can show
    quiet = {"log_output": True, "progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
    quiet["coalesce_streams"] = True  # of a progress bar the executed copy keeps its last state
    try:
        papermill.execute_notebook(str(notebook), str(running), parameters, kernel_name="python3", **quiet)
    except PapermillExecutionError as error:
        os.replace(running, failed)
        where = f"{notebook} failed in cell {error.exec_count} (see {failed})"
        raise RuntimeError(f"{where}: {error.ename}: {error.evalue}") from None
    except DeadKernelError:
        os.replace(running, failed)
        raise RuntimeError(
            f"the process of {notebook} was killed, most often for lack of memory (see {failed}); run again, it goes on"
        ) from None
    os.replace(running, executed)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    name = "-".join([part for part in executed.parts[:-1] if part.isdigit()] + [executed.stem])
    row = f"stage,seconds,peak_gb\n{name},{seconds:.1f},{peak:.2f}\n"
    write_atomically(Path("runs/times") / f"{name}.csv", lambda path: path.write_text(row))
    print(f"{executed}: {seconds:.0f} s, peak memory {peak:.1f} GB")


def _is_output(record: logging.LogRecord) -> bool:
    """What cells print, without papermill's own frame around it and the names of figures."""
    said = record.getMessage().strip()
    return bool(said) and not said.startswith(("Executing ", "Ending ", "<Figure", "<Shown", "Input ", "Output "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("executed", type=Path)
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.addFilter(_is_output)
    warnings.filterwarnings("ignore", module="papermill|nbclient|zmq|jupyter_client")
    try:
        if not arguments.notebook.is_file():
            raise ValueError(f"there is no notebook {arguments.notebook}")
        parameters = parse_parameters(arguments.notebook, arguments.parameter)
        run_notebook(arguments.notebook, arguments.executed, parameters)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run again, it goes on")
    except OSError as error:  # a full disk, a folder that may not be written
        place = error.filename or arguments.executed.parent
        sys.exit(
            f"error: {place}: {error.strerror or error}; make room there, or allow writing, and run again: it goes on"
        )


if __name__ == "__main__":
    main()
