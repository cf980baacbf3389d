"""Stage one: class-agnostic mask proposals (Sec. 3.1), from Mask2Former, Mask R-CNN, ground truth or a store.

A proposal source is any callable `source(images) -> list[Proposals]` on uint8 RGB images of any sizes.
"""

from importlib import import_module
from typing import Any

_HOME = {  # imported when first asked for
    "Proposals": "base",
    "ProposalSource": "base",
    "Mask2FormerSource": "mask2former",
    "MaskRCNNSource": "mask_rcnn",
    "StoredProposals": "store",
    "ground_truth_proposals": "base",
    "load_source": "load",
    "proposal_key": "store",
    "store_proposals": "store",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
