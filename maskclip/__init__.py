"""MaskCLIP (Ding, Wang, Tu, ICML 2023) to understand, rerun and build on: the thin library under the notebooks."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = {  # imported when first asked for: `import maskclip` is light
    "MaskCLIP": "model.pipeline",
    "MaskCLIPVisualEncoder": "model.visual_encoder",
    "load_clip": "model.clip",
    "load_released_encoder": "released.encoder",
}
__all__ = sorted([*_HOME, "go_to_top"])


def go_to_top() -> Path:
    """Change to the study's top folder, where params.yaml lies, from a folder inside it; it is returned. Jupyter runs a
    notebook in the notebook's own folder, the pipeline in the top one.

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
