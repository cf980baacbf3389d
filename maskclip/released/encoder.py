"""The authors' released checkpoints (github.com/mlpc-ucsd/MaskCLIP): their encoder's weights into ours, and back.

There, the encoder's trained weights end in `added_params` and lie among CLIP's own, under `visual.`
(`maskclip.visual.` in a whole model). Convolutions are numbered 0, 1, 2, ... in the order of the RMA
layers; the rest carries its layer's number, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals.backbone import check_fit
from maskclip.released.mask2former import read_detectron2

RMA_LAYERS = (6, 12, 18, 24)  # hard-coded there


def _released_names(rma_layers: tuple[int, ...]) -> dict[str, str]:
    """Our names of the trained weights -> the released ones (both without prefix)."""
    names: dict[str, str] = {}
    for index, number in enumerate(rma_layers):
        attention = f"transformer.resblocks.{number - 1}.attn"
        modules = {
            "mask_embedding": f"transformer.conv1_added_params.{index}",
            "mask_query": f"{attention}.q_prime_norm_added_params",
            "image_key": f"{attention}.k_prime_proj_weight_added_params",
            "residual": f"transformer.conv3_added_params.{index}",
        }
        for kind in ("weight", "bias"):
            names |= {f"{number}.{ours}.{kind}": f"{released}.{kind}" for ours, released in modules.items()}
    return names


def load_released_encoder(
    checkpoint: str | Path | Mapping[str, Tensor], clip_model: nn.Module, rma_layers: tuple[int, ...] = RMA_LAYERS
) -> MaskCLIPVisualEncoder:
    """Our encoder with the weights of a released checkpoint, on the device of `clip_model`.

    The checkpoint is a state dict or a file of detectron2's, read without running code in it; keys
    outside `...visual.` are ignored. `clip_model` is an open_clip model of the same architecture
    (`ViT-L-14-336-quickgelu` for the released weights); CLIP's own weights, where the checkpoint holds
    them, are written into it. FileNotFoundError without a file, ValueError where it is not readable or
    keys are missing, surplus or misshapen.
    """
    state: Mapping[str, Any] = checkpoint if isinstance(checkpoint, Mapping) else read_detectron2(checkpoint)
    state = state.get("model", state)
    given = {key.split("visual.", 1)[1]: value for key, value in state.items() if ".visual." in f".{key}"}
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip_model, rma_layers)
    names, ours = _released_names(encoder.rma_layers), encoder.rma.state_dict()
    frozen = {key: value for key, value in given.items() if "added_params" not in key}
    # a checkpoint of the trained weights alone is fine, half of a CLIP is not
    wanted = dict(encoder.visual.state_dict()) if frozen else {}
    wanted |= {released: ours[name] for name, released in names.items()}
    check_fit(given, wanted, f"the checkpoint, read for RMA layers {encoder.rma_layers},")
    encoder.rma.load_state_dict({name: given[released] for name, released in names.items()})
    if frozen:
        encoder.visual.load_state_dict(frozen)
    return encoder


def released_state_dict(encoder: MaskCLIPVisualEncoder, prefix: str = "maskclip.visual.") -> dict[str, Tensor]:
    """The encoder's weights, CLIP's own included, under their released names; `{"model": ...}` of it is a checkpoint.

    ValueError where the released code has no place for weights (linear phi_Qm, an f_r of two layers), or
    needs refinement.
    """
    names, trained = _released_names(encoder.rma_layers), encoder.rma.state_dict()
    layer_norms = all(isinstance(rma.mask_query, nn.LayerNorm) for rma in encoder.rma.values())
    if set(trained) != set(names) or not layer_norms:
        raise ValueError(
            "the encoder was built with refine_masks=False, query_form='linear' or refinement_form='attention'; the "
            "released code knows only masks refined, query_form='layernorm' and refinement_form='product'"
        )
    state = {prefix + key: value for key, value in encoder.visual.state_dict().items()}
    return state | {prefix + names[name]: value for name, value in trained.items()}
