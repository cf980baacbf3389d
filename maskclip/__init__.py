"""MaskCLIP (Ding, Wang, Tu, ICML 2023) to understand, rerun and build on."""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskclip.model.clip import load_clip
    from maskclip.model.clip_baseline import MaskedImages
    from maskclip.model.pipeline import MaskCLIP
    from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
    from maskclip.released.encoder import load_released_encoder
    from maskclip.segmenter import Segmenter

__all__ = ["MaskCLIP", "MaskCLIPVisualEncoder", "MaskedImages", "Segmenter", "load_clip", "load_released_encoder"]
_HOME = {  # imported when first asked for: `import maskclip` is light
    "MaskCLIP": "model.pipeline",
    "MaskCLIPVisualEncoder": "model.visual_encoder",
    "MaskedImages": "model.clip_baseline",
    "Segmenter": "segmenter",
    "load_clip": "model.clip",
    "load_released_encoder": "released.encoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    collecting = gc.isenabled()
    gc.disable()  # the collector would walk through all that PyTorch brings, again and again: a tenth of the time
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    finally:
        if collecting:
            gc.enable()
