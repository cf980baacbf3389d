"""Released weights of Mask2Former into ours: `maskclip convert RELEASED.pth OUT.safetensors`.

Reads detectron2 checkpoints (`.pth`, or the model zoo's `.pkl`) without running any code in them:

- the authors' class-agnostic proposal network (Mask2Former, R50),
- their whole MaskCLIP model: the proposal network in it, and the encoder under its released names (`maskclip.visual.`),
- Mask2Former's own R50 checkpoints, class head dropped.

OUT holds the record that `maskclip.proposals.load_source(OUT)` needs; the encoder in it is for
`maskclip.load_released_encoder(safetensors.torch.load_file(OUT), clip_model)`.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray  # where pickles of arrays point
from safetensors.torch import save_file
from torch import Tensor

from maskclip.files import load_checkpoint, write_atomically
from maskclip.proposals.load import ENCODER
from maskclip.proposals.mask2former import build_mask2former
from maskclip.proposals.weights import differences
from maskclip.settings import BackboneConfig, Mask2FormerConfig

# (released beginning, ours): {released rest: ours}; `#` stands for a number, kept or lowered, `*` for all that is left
RENAMED = {
    ("backbone.", "model.pixel_level_module.encoder."): {
        "stem.conv1.weight": "embedder.embedder.convolution.weight",
        "stem.conv1.norm.*": "embedder.embedder.normalization.*",
        "res#.#.shortcut.weight": "encoder.stages.#-2.layers.#.shortcut.convolution.weight",
        "res#.#.shortcut.norm.*": "encoder.stages.#-2.layers.#.shortcut.normalization.*",
        "res#.#.conv#.weight": "encoder.stages.#-2.layers.#.layer.#-1.convolution.weight",
        "res#.#.conv#.norm.*": "encoder.stages.#-2.layers.#.layer.#-1.normalization.*",
    },
    ("sem_seg_head.pixel_decoder.", "model.pixel_level_module.decoder."): {
        "input_proj.#.*": "input_projections.#.*",
        "transformer.level_embed": "level_embed",
        "transformer.encoder.layers.#.self_attn.*": "encoder.layers.#.self_attn.*",
        "transformer.encoder.layers.#.linear#.*": "encoder.layers.#.fc#.*",
        "transformer.encoder.layers.#.norm1.*": "encoder.layers.#.self_attn_layer_norm.*",
        "transformer.encoder.layers.#.norm2.*": "encoder.layers.#.final_layer_norm.*",
        "adapter_#.weight": "adapter_#.0.weight",
        "adapter_#.norm.*": "adapter_#.1.*",
        "layer_#.weight": "layer_#.0.weight",
        "layer_#.norm.*": "layer_#.1.*",
        "mask_features.*": "mask_projection.*",
    },
    ("sem_seg_head.predictor.", "model.transformer_module."): {
        "query_feat.weight": "queries_features.weight",
        "static_query.weight": "queries_features.weight",  # checkpoints of version 1
        "query_embed.weight": "queries_embedder.weight",
        "level_embed.weight": "level_embed.weight",
        "decoder_norm.*": "decoder.layernorm.*",
        "transformer_self_attention_layers.#.norm.*": "decoder.layers.#.self_attn_layer_norm.*",
        "transformer_self_attention_layers.#.self_attn.*": "decoder.layers.#.self_attn.*",
        "transformer_cross_attention_layers.#.norm.*": "decoder.layers.#.cross_attn_layer_norm.*",
        "transformer_cross_attention_layers.#.multihead_attn.*": "decoder.layers.#.cross_attn.*",
        "transformer_ffn_layers.#.norm.*": "decoder.layers.#.final_layer_norm.*",
        "transformer_ffn_layers.#.linear#.*": "decoder.layers.#.fc#.*",
        "mask_embed.layers.#.*": "decoder.mask_predictor.mask_embedder.#.0.*",
    },
    ("sem_seg_head.predictor.class_embed.", "class_predictor."): {"*": "*"},
}
NO_WEIGHTS = ("criterion.empty_weight", "pixel_mean", "pixel_std")  # constants of the loss and of normalization


@dataclass
class Converted:
    """What came of a checkpoint: our tensors, the record for `load_source`, and the keys that found no place."""

    state: dict[str, Tensor]
    record: dict[str, Any]
    dropped: list[str]
    unmapped: list[str]


class _PlainUnpickler(pickle.Unpickler):
    """Reads the model zoo's pickles: dictionaries of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(multiarray, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, *_: text.encode("latin1")  # how Python 2's bytes were written
        plain = {"collections.OrderedDict": OrderedDict, "numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
        if f"{module}.{name}" in plain:
            return plain[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is code and not data")


def read_detectron2(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a detectron2 checkpoint, `.pth` or `.pkl`, read without running code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: cut off, with code in it, or without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; correct the path")
    if path.suffix == ".pkl":
        try:
            with path.open("rb") as file:
                content = _PlainUnpickler(file, encoding="latin1").load()
        except Exception as error:
            raise ValueError(f"{path} is not a readable checkpoint ({error}); delete it or fetch it again") from None
    else:
        with torch.serialization.safe_globals([np.dtype, multiarray.scalar, np.dtypes.Float64DType]):
            content = load_checkpoint(path)  # old training states carry numpy numbers beside the weights
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no dictionary of weights")
    tensors = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    wrong = [key for key, value in tensors.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong or not tensors:
        raise ValueError(f"{path} holds no weights under {wrong[:3] or 'model'}; it must be a detectron2 checkpoint")
    return tensors


def our_name(key: str) -> str | None:
    """Our name of a released Mask2Former key, or None where there is none."""
    for (released, ours), names in RENAMED.items():
        for theirs, new in names.items():
            pattern = re.escape(released + theirs).replace(r"\#", r"(\d+)").replace(r"\*", "(?P<rest>.+)")
            if found := re.fullmatch(pattern, key):
                *numbers, rest = (*found.groups(), "") if "*" not in theirs else found.groups()
                digits = map(int, numbers)
                new = re.sub(r"#(-\d)?", lambda place: str(next(digits) + int(place[1] or 0)), new)  # noqa: B023
                return ours + new.replace("*", rest)
    return None


def convert_state(released: dict[str, Tensor], keep_class_head: bool = False) -> Converted:
    """A released state dict as ours; the network's size is read off the tensors.

    Args:
        keep_class_head: keep the class head, for objectness only (1 - p(no object)); without it, as in the authors'
            network, which has none, objectness is the mean probability inside the mask.

    Raises:
        ValueError: another architecture (no Mask2Former with a ResNet), or tensors missing or misshapen, named.
    """
    config = read_config(released)
    state: dict[str, Tensor] = {}
    dropped, unmapped = [], []
    for key, value in released.items():
        name = our_name(key)
        if key.startswith(NO_WEIGHTS) or key.endswith("num_batches_tracked"):
            dropped.append(key)
        elif key.startswith(ENCODER):
            continue
        elif name is None:
            unmapped.append(key)
        elif name.startswith("class_predictor") and not keep_class_head:
            dropped.append(key)
        elif ".self_attn.in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3)):
                state[name.replace("in_proj_", f"{part}_proj.")] = third
        else:
            state[name] = value
    classes = len(state["class_predictor.bias"]) - 1 if "class_predictor.bias" in state else 0
    wanted = build_mask2former(config, max(classes, 1)).state_dict()
    optional = ("criterion", "class_predictor")
    needed = {key: value for key, value in wanted.items() if key in state or not key.startswith(optional)}
    problems = differences(state, needed)
    if problems:
        raise ValueError(
            f"the checkpoint is no Mask2Former as known here; {len(problems)} keys: {'; '.join(problems[:8])}"
        )
    state = {key: state.get(key, value) for key, value in wanted.items()}
    state |= {key: value for key, value in released.items() if key.startswith(ENCODER)}
    record = {"network": "mask2former", "classes": classes, "implementation": "transformers", "seed": None}
    return Converted(state, {**record, "config": dataclasses.asdict(config)}, dropped, unmapped)


def read_config(released: dict[str, Tensor]) -> Mask2FormerConfig:
    """The size of a released Mask2Former, off its tensors; the rest is its R50 COCO configuration."""

    def count(pattern: str) -> int:
        return 1 + max((int(found.group(1)) for key in released if (found := re.match(pattern, key))), default=-1)

    try:
        pixels, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
        last = "conv3" if "backbone.res2.0.conv3.weight" in released else "conv2"
        backbone = BackboneConfig(
            stem_width=len(released["backbone.stem.conv1.weight"]),
            widths=tuple(len(released[f"backbone.res{stage}.0.{last}.weight"]) for stage in (2, 3, 4, 5)),
            depths=tuple(count(rf"backbone\.res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5)),
            block="bottleneck" if last == "conv3" else "basic",
        )
        queries, hidden = released[predictor + "query_embed.weight"].shape
        offsets = released[pixels + "transformer.encoder.layers.0.self_attn.sampling_offsets.bias"]
        return Mask2FormerConfig(
            backbone=backbone,
            queries=queries,
            hidden_dim=hidden,
            decoder_layers=count(r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\."),
            encoder_layers=count(r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\."),
            feedforward_dim=len(released[predictor + "transformer_ffn_layers.0.linear1.weight"]),
            encoder_feedforward_dim=len(released[pixels + "transformer.encoder.layers.0.linear1.weight"]),
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
    write_atomically(out, lambda path: save_file(tensors, path, metadata={"record": json.dumps(converted.record)}))
    return converted
