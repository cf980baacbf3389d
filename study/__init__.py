"""The paper's experiments on top of `maskclip`: methods, runs, notebooks, report."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def go_to_top() -> Path:
    """Change to the study's top folder, where params.yaml lies: Jupyter runs notebooks in their own.

    Raises:
        FileNotFoundError: neither here nor above is a params.yaml.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"{here} is not inside the study: no params.yaml here or above; open its repository")


@contextmanager
def errors_as_sentences(*others: type[Exception]) -> Iterator[None]:
    """End a program with the sentence of an expected error, and without a traceback if it is interrupted."""
    expected: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError, *others)
    try:
        yield
    except expected as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run again, it goes on")


def end_with_parent(sign: int) -> None:
    """On Linux, let this process get the signal `sign` when the one that started it ends, however it ends."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, sign)
