"""MaskCLIP (Ding, Wang, Tu, ICML 2023) to understand, rerun and build on: the thin library under the notebooks."""

from importlib import import_module
from typing import Any

_HOME = {  # imported when first asked for: `import maskclip` is light
    "MaskCLIP": "model",
    "MaskCLIPVisualEncoder": "visual_encoder",
    "load_clip": "clip",
    "load_released_encoder": "released",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
