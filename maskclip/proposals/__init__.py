"""Stage one: class-agnostic mask proposals (Sec. 3.1), from Mask2Former, Mask R-CNN, ground truth or a store.

A proposal source is any callable `source(images) -> list[Proposals]` on uint8 RGB images of any sizes.
"""

from typing import Any

from maskclip.proposals.base import Proposals, ProposalSource, ground_truth_proposals
from maskclip.proposals.store import StoredProposals, proposal_key, store_proposals

__all__ = ["ProposalSource", "Proposals", "StoredProposals"]
__all__ += ["ground_truth_proposals", "proposal_key", "store_proposals"]


def __getattr__(name: str) -> Any:
    if name != "load_source":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from maskclip.proposals.load import load_source  # transformers takes seconds to import

    return load_source
