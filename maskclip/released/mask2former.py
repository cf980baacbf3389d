"""Released weights of Mask2Former into ours: `maskclip convert RELEASED.pth OUT.safetensors`.

Takes Mask2Former's own R50 checkpoints, the authors' class-agnostic one, and their whole MaskCLIP model.
OUT holds the record that `maskclip.proposals.load_source(OUT)` needs, and the encoder, where there is
one, for `maskclip.load_released_encoder(safetensors.torch.load_file(OUT), clip_model)`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray  # where pickles of arrays point
from safetensors.torch import save
from torch import Tensor

from maskclip.files import PlainUnpickler, load_checkpoint, write_atomically
from maskclip.proposals.backbone import check_fit
from maskclip.proposals.load import ENCODER
from maskclip.proposals.mask2former import build_mask2former
from maskclip.settings import BackboneConfig, Mask2FormerConfig

RENAMED = {  # parts of released names -> ours, one after the other; `#` stands for a number
    "backbone.": "model.pixel_level_module.encoder.",
    "stem.conv1.": "embedder.embedder.convolution.",
    **{f"res{stage}.": f"encoder.stages.{stage - 2}.layers." for stage in (2, 3, 4, 5)},
    **{f".conv{number}.": f".layer.{number - 1}.convolution." for number in (1, 2, 3)},
    ".shortcut.": ".shortcut.convolution.",
    ".convolution.norm.": ".normalization.",
    "sem_seg_head.pixel_decoder.": "model.pixel_level_module.decoder.",
    "decoder.transformer.": "decoder.",
    "input_proj.": "input_projections.",
    ".norm1.": ".self_attn_layer_norm.",
    ".norm2.": ".final_layer_norm.",
    "r_#.weight": "r_#.0.weight",  # adapter_1 and layer_1
    "r_#.norm.": "r_#.1.",
    "mask_features.": "mask_projection.",
    "sem_seg_head.predictor.class_embed.": "class_predictor.",
    "sem_seg_head.predictor.": "model.transformer_module.",
    "query_feat.": "queries_features.",
    "static_query.": "queries_features.",  # checkpoints of version 1
    "query_embed.": "queries_embedder.",
    "decoder_norm.": "decoder.layernorm.",
    "mask_embed.layers.#.": "decoder.mask_predictor.mask_embedder.#.0.",
    "transformer_self_attention_layers.#.norm.": "decoder.layers.#.self_attn_layer_norm.",
    "transformer_self_attention_layers.": "decoder.layers.",
    "transformer_cross_attention_layers.#.norm.": "decoder.layers.#.cross_attn_layer_norm.",
    "transformer_cross_attention_layers.#.multihead_attn.": "decoder.layers.#.cross_attn.",
    "transformer_ffn_layers.#.norm.": "decoder.layers.#.final_layer_norm.",
    "transformer_ffn_layers.": "decoder.layers.",
    ".linear#.": ".fc#.",
}
NO_WEIGHTS = ("criterion.empty_weight", "pixel_mean", "pixel_std")  # constants of the loss and of normalization
NUMBERS = [  # numpy's numbers, which training states carry beside the weights, as NumPy 1 and 2 name them
    np.dtype,
    *(getattr(np.dtypes, f"{kind}DType") for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    *((multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


@dataclass
class Converted:
    """What came of a checkpoint: our tensors, the record for `load_source`, and the keys that found no place."""

    state: dict[str, Tensor]
    record: dict[str, Any]
    dropped: list[str]
    unmapped: list[str]


def read_detectron2(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a detectron2 checkpoint, `.pth` or the model zoo's `.pkl`, read without running code in it.

    ValueError where it is cut off, with code in it, or without weights.
    """
    if Path(path).suffix == ".pkl":
        try:
            with open(path, "rb") as file:
                content = PlainUnpickler(file).load()
        except Exception as error:
            raise ValueError(f"{path} is not a readable checkpoint ({error}); delete it or fetch it again") from None
    else:
        with torch.serialization.safe_globals(NUMBERS):
            content = load_checkpoint(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    state = state if isinstance(state, dict) else {}
    tensors = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    wrong = [key for key, value in tensors.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong or not tensors:
        raise ValueError(f"{path} holds no weights under {wrong[:3] or 'model'}; it must be a detectron2 checkpoint")
    return tensors


def our_name(key: str) -> str:
    """Our name of a released Mask2Former key; of another, no name that a Mask2Former has."""
    for theirs, ours in RENAMED.items():
        pattern = re.escape(theirs).replace(r"\#", r"(\d+)")
        key = re.sub(pattern, ours.replace("#", r"\1"), key)
    return key


def convert_state(released: dict[str, Tensor], keep_class_head: bool = False) -> Converted:
    """A released state dict as ours; the network's size is read off the tensors.

    A class head is kept for objectness only (1 - p(no object)); without it, as in the authors' network,
    which has none, objectness is the mean probability inside the mask. ValueError for another
    architecture (no Mask2Former with a ResNet), and where tensors are missing or misshapen.
    """
    config = read_config(released)
    head = "sem_seg_head.predictor.class_embed.bias"
    classes = len(released[head]) - 1 if keep_class_head and head in released else 0
    wanted = build_mask2former(config, max(classes, 1)).state_dict()
    state = {key: value for key, value in wanted.items() if key.startswith(("criterion.", "class_predictor."))}
    dropped, unmapped = [], []
    for key, value in released.items():
        name = our_name(key)
        headless = name.startswith("class_predictor.") and not classes
        if headless or key.startswith(NO_WEIGHTS) or key.endswith("num_batches_tracked"):
            dropped.append(key)
        elif ".self_attn.in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3)):
                state[name.replace("in_proj_", f"{part}_proj.")] = third
        elif name in wanted:
            state[name] = value
        elif not key.startswith(ENCODER):
            unmapped.append(key)
    check_fit(state, wanted, "the checkpoint")
    state = {key: state[key] for key in wanted}
    state |= {key: value for key, value in released.items() if key.startswith(ENCODER)}
    record = {"network": "mask2former", "classes": classes, "implementation": "transformers", "seed": None}
    return Converted(state, {**record, "config": dataclasses.asdict(config)}, dropped, unmapped)


def read_config(released: dict[str, Tensor]) -> Mask2FormerConfig:
    """The size of a released Mask2Former, off its tensors; the rest is its R50 COCO configuration."""

    def count(prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in released if key.startswith(prefix)})

    stages = [f"backbone.res{stage}." for stage in (2, 3, 4, 5)]
    encoder = "sem_seg_head.pixel_decoder.transformer.encoder.layers."
    decoder = "sem_seg_head.predictor.transformer_ffn_layers."
    try:
        queries, hidden = released["sem_seg_head.predictor.query_embed.weight"].shape
        offsets = released[f"{encoder}0.self_attn.sampling_offsets.bias"]
        backbone = BackboneConfig(
            stem_width=len(released["backbone.stem.conv1.weight"]),
            widths=tuple(len(released[f"{stage}0.conv3.weight"]) for stage in stages),
            depths=tuple(count(stage) for stage in stages),
        )
        return Mask2FormerConfig(
            backbone=backbone,
            queries=queries,
            hidden_dim=hidden,
            decoder_layers=count(decoder),
            encoder_layers=count(encoder),
            feedforward_dim=len(released[f"{decoder}0.linear1.weight"]),
            encoder_feedforward_dim=len(released[f"{encoder}0.linear1.weight"]),
            heads=len(offsets) // (3 * 4 * 2),  # 3 levels, 4 points, 2 coordinates
        )
    except KeyError as error:
        known = sorted({key.split(".")[0] for key in released})[:5]
        raise ValueError(
            f"the checkpoint is of another architecture: a Mask2Former with a ResNet has the key {error}, "
            f"this one has keys under {', '.join(known)}"
        ) from None


def convert(released: str | Path, out: str | Path, keep_class_head: bool = False) -> Converted:
    """Convert a checkpoint file; `out` is written whole or not at all."""
    converted = convert_state(read_detectron2(released), keep_class_head)
    converted.record["converted_from"] = Path(released).name
    tensors = {key: value.contiguous().clone() for key, value in converted.state.items()}
    write_atomically(out, save(tensors, {"record": json.dumps(converted.record)}))
    return converted
