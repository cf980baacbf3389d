"""The authors' released checkpoints (github.com/mlpc-ucsd/MaskCLIP): their encoder's weights into ours, and back.

There, the encoder's trained weights end in `added_params` and lie among CLIP's own, under `visual.` (`maskclip.visual.`
in a whole model). Convolutions are numbered 0, 1, 2, ... in the order of the RMA layers; the rest carries its layer's
number, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskclip.files import load_checkpoint
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals.weights import differences

RMA_LAYERS = (6, 12, 18, 24)  # hard-coded there


def _released_names(rma_layers: tuple[int, ...]) -> dict[str, str]:
    """Our names of the trained weights -> the released ones (both without prefix)."""
    names = {}
    for index, number in enumerate(rma_layers):
        attention = f"transformer.resblocks.{number - 1}.attn"
        for ours, released in {
            "mask_embedding": f"transformer.conv1_added_params.{index}",
            "mask_query": f"{attention}.q_prime_norm_added_params",
            "image_key": f"{attention}.k_prime_proj_weight_added_params",
            "residual": f"transformer.conv3_added_params.{index}",
        }.items():
            for kind in ("weight", "bias"):
                names[f"{number}.{ours}.{kind}"] = f"{released}.{kind}"
    return names


def load_released_encoder(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    clip_model: nn.Module,
    rma_layers: tuple[int, ...] = RMA_LAYERS,
) -> MaskCLIPVisualEncoder:
    """Our encoder with the weights of a released checkpoint.

    Args:
        path_or_state_dict: a detectron2 checkpoint (`{"model": state_dict, ...}`), read without running code in it, or
            a state dict. Keys outside `...visual.` (the proposal network's) are ignored.
        clip_model: an open_clip model of the same architecture (`ViT-L-14-336-quickgelu` for the released weights).
            CLIP's own weights are taken from the checkpoint where it holds them, and written into this model.
        rma_layers: the RMA layers the checkpoint was trained with.
    Returns:
        the encoder, on the device of `clip_model`.
    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable checkpoint; or missing, surplus or misshapen keys, each named.
    """
    given_as = path_or_state_dict
    state: Mapping[str, Any] = given_as if isinstance(given_as, Mapping) else load_checkpoint(given_as)
    state = state.get("model", state)
    given = {key.split("visual.", 1)[1]: value for key, value in state.items() if ("." + key).find(".visual.") >= 0}
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip_model, rma_layers)
    ours = dict(encoder.rma.state_dict()), dict(encoder.visual.state_dict())
    names = _released_names(encoder.rma_layers)

    trained = {name: given.get(released) for name, released in names.items()}
    frozen = {key: value for key, value in given.items() if "added_params" not in key}
    wanted = {released: ours[0][name] for name, released in names.items()}
    wanted |= ours[1] if frozen else {}  # a checkpoint of the trained weights alone is fine, half of a CLIP is not
    problems = differences(given, wanted)
    if problems:
        raise ValueError(
            f"the checkpoint does not fit {type(clip_model).__name__} with RMA layers {encoder.rma_layers}; "
            f"{len(problems)} keys under visual.: " + "; ".join(problems)
        )
    encoder.rma.load_state_dict(trained)
    if frozen:
        encoder.visual.load_state_dict(frozen)
    return encoder


def released_state_dict(encoder: MaskCLIPVisualEncoder, prefix: str = "maskclip.visual.") -> dict[str, Tensor]:
    """The encoder's weights, CLIP's own included, under their released names; `{"model": ...}` of it is a checkpoint.

    Raises:
        ValueError: the released code has no place for the weights (linear phi_Qm), or needs more (refinement).
    """
    names = _released_names(encoder.rma_layers)
    trained = encoder.rma.state_dict()
    form = {type(rma.mask_query).__name__ for rma in encoder.rma.values()}
    if set(trained) != set(names) or form - {"LayerNorm"}:
        raise ValueError(
            "the encoder was built with refine_masks=False or query_form='linear'; the released code knows only masks "
            "refined and query_form='layernorm'"
        )
    state = {prefix + key: value for key, value in encoder.visual.state_dict().items()}
    return state | {prefix + names[name]: value for name, value in trained.items()}
