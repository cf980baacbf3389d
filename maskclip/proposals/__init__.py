"""Stage one: class-agnostic mask proposals (Sec. 3.1), from Mask2Former, Mask R-CNN, ground truth or a store.

A proposal source is any callable `source(images) -> list[Proposals]` on uint8 RGB images of any sizes.
"""

from maskclip.proposals.base import Proposals, ProposalSource, ground_truth_proposals
from maskclip.proposals.load import load_source
from maskclip.proposals.store import StoredProposals, proposal_key, store_proposals

__all__ = ["ProposalSource", "Proposals", "StoredProposals"]
__all__ += ["ground_truth_proposals", "load_source", "proposal_key", "store_proposals"]
