"""The paper's experiments on top of `maskclip`: methods, runs, notebooks, report."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def go_to_top() -> Path:
    """Change to the study's top folder, where params.yaml lies, from a folder inside it; it is returned.

    Jupyter runs a notebook in the notebook's own folder, the pipeline in the top one.

    Raises:
        FileNotFoundError: neither here nor above is a params.yaml.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(
        f"{here} is not inside the study: no params.yaml here or above; open it from its repository"
    )


def end_with_parent(sign: int) -> None:
    """On Linux, let this process get the signal `sign` when the one that started it ends, however it ends."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, sign)
