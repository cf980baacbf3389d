"""Released weights into ours: `python -m maskclip.released.convert RELEASED.pth OUT.safetensors`.

Reads detectron2 checkpoints (`.pth`, or the model zoo's `.pkl`) without running any code in them:

- the authors' class-agnostic proposal network (Mask2Former, R50),
- their whole MaskCLIP model: the proposal network in it, and the encoder under its released names (`maskclip.visual.`),
- Mask2Former's own R50 checkpoints, class head dropped.

OUT holds the record that `maskclip.proposals.load_source(OUT)` needs; the encoder in it is for
`maskclip.load_released_encoder(safetensors.torch.load_file(OUT), clip_model)`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import re
import sys
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
from maskclip.proposals.mask2former import build_mask2former
from maskclip.settings import BackboneConfig, Mask2FormerConfig

BACKBONE, PIXELS, QUERIES = (
    "model.pixel_level_module.encoder.",
    "model.pixel_level_module.decoder.",
    "model.transformer_module.",
)
# (released, ours), tried in order; `#` stands for a number kept, `*` for the rest of the key
RENAMED = [
    ("backbone.stem.conv1.weight", BACKBONE + "embedder.embedder.convolution.weight"),
    ("backbone.stem.conv1.norm.*", BACKBONE + "embedder.embedder.normalization.*"),
    ("backbone.res#.#.shortcut.weight", BACKBONE + "encoder.stages.#-2.layers.#.shortcut.convolution.weight"),
    ("backbone.res#.#.shortcut.norm.*", BACKBONE + "encoder.stages.#-2.layers.#.shortcut.normalization.*"),
    ("backbone.res#.#.conv#.weight", BACKBONE + "encoder.stages.#-2.layers.#.layer.#-1.convolution.weight"),
    ("backbone.res#.#.conv#.norm.*", BACKBONE + "encoder.stages.#-2.layers.#.layer.#-1.normalization.*"),
    ("sem_seg_head.pixel_decoder.input_proj.#.*", PIXELS + "input_projections.#.*"),
    ("sem_seg_head.pixel_decoder.transformer.level_embed", PIXELS + "level_embed"),
    ("sem_seg_head.pixel_decoder.transformer.encoder.layers.#.self_attn.*", PIXELS + "encoder.layers.#.self_attn.*"),
    ("sem_seg_head.pixel_decoder.transformer.encoder.layers.#.linear#.*", PIXELS + "encoder.layers.#.fc#.*"),
    (
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.#.norm1.*",
        PIXELS + "encoder.layers.#.self_attn_layer_norm.*",
    ),
    ("sem_seg_head.pixel_decoder.transformer.encoder.layers.#.norm2.*", PIXELS + "encoder.layers.#.final_layer_norm.*"),
    ("sem_seg_head.pixel_decoder.adapter_#.weight", PIXELS + "adapter_#.0.weight"),
    ("sem_seg_head.pixel_decoder.adapter_#.norm.*", PIXELS + "adapter_#.1.*"),
    ("sem_seg_head.pixel_decoder.layer_#.weight", PIXELS + "layer_#.0.weight"),
    ("sem_seg_head.pixel_decoder.layer_#.norm.*", PIXELS + "layer_#.1.*"),
    ("sem_seg_head.pixel_decoder.mask_features.*", PIXELS + "mask_projection.*"),
    ("sem_seg_head.predictor.query_feat.weight", QUERIES + "queries_features.weight"),
    ("sem_seg_head.predictor.static_query.weight", QUERIES + "queries_features.weight"),  # checkpoints of version 1
    ("sem_seg_head.predictor.query_embed.weight", QUERIES + "queries_embedder.weight"),
    ("sem_seg_head.predictor.level_embed.weight", QUERIES + "level_embed.weight"),
    ("sem_seg_head.predictor.decoder_norm.*", QUERIES + "decoder.layernorm.*"),
    (
        "sem_seg_head.predictor.transformer_self_attention_layers.#.norm.*",
        QUERIES + "decoder.layers.#.self_attn_layer_norm.*",
    ),
    (
        "sem_seg_head.predictor.transformer_self_attention_layers.#.self_attn.*",
        QUERIES + "decoder.layers.#.self_attn.*",
    ),
    (
        "sem_seg_head.predictor.transformer_cross_attention_layers.#.norm.*",
        QUERIES + "decoder.layers.#.cross_attn_layer_norm.*",
    ),
    (
        "sem_seg_head.predictor.transformer_cross_attention_layers.#.multihead_attn.*",
        QUERIES + "decoder.layers.#.cross_attn.*",
    ),
    ("sem_seg_head.predictor.transformer_ffn_layers.#.norm.*", QUERIES + "decoder.layers.#.final_layer_norm.*"),
    ("sem_seg_head.predictor.transformer_ffn_layers.#.linear#.*", QUERIES + "decoder.layers.#.fc#.*"),
    ("sem_seg_head.predictor.mask_embed.layers.#.*", QUERIES + "decoder.mask_predictor.mask_embedder.#.0.*"),
    ("sem_seg_head.predictor.class_embed.*", "class_predictor.*"),
]
ENCODER = "maskclip.visual."
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
    for released, ours in RENAMED:
        pattern = "".join(
            {"#": r"(\d+)", "*": "(?P<rest>.+)"}.get(part, re.escape(part)) for part in re.split("([#*])", released)
        )
        found = re.fullmatch(pattern, key)
        if found:
            rest = found.groupdict().get("rest", "")
            numbers = iter([int(number) for number in found.groups() if number.isdigit() and number != rest])
            renamed = re.sub(r"#(-\d)?", lambda place: str(next(numbers) + int(place.group(1) or 0)), ours)  # noqa: B023
            return renamed.replace("*", rest)
    return None


def convert_state(released: dict[str, Tensor], keep_class_head: bool = False) -> Converted:
    """A released state dict as ours; the network's size is read off the tensors.

    Args:
        keep_class_head: keep the class head, for objectness only (1 - p(no object)); without it, as in the authors'
            network, which has none, objectness is the mean probability inside the mask.

    Raises:
        ValueError: another architecture (no Mask2Former with a ResNet), or tensors missing or misshapen, named.
    """
    proposal_keys = [key for key in released if not key.startswith(ENCODER) and not key.startswith(NO_WEIGHTS)]
    config = read_config(released)
    state: dict[str, Tensor] = {}
    dropped, unmapped = [key for key in released if key.startswith(NO_WEIGHTS)], []
    for key in proposal_keys:
        name = our_name(key)
        if name is None:
            unmapped.append(key)
        elif key.endswith("num_batches_tracked") or (name.startswith("class_predictor") and not keep_class_head):
            dropped.append(key)
        elif ".self_attn.in_proj_" in name:
            for part, value in zip("qkv", released[key].chunk(3)):
                state[name.replace("in_proj_", f"{part}_proj.")] = value
        else:
            state[name] = released[key]
    classes = len(state["class_predictor.bias"]) - 1 if "class_predictor.bias" in state else 0
    wanted = build_mask2former(config, max(classes, 1)).state_dict()
    problems = [
        f"missing: {key}" for key in wanted if key not in state and not key.startswith(("criterion", "class_pr"))
    ]
    problems += [
        f"misshapen: {key} is {tuple(value.shape)}, not {tuple(wanted[key].shape)}"
        for key, value in state.items()
        if key in wanted and wanted[key].shape != value.shape
    ]
    problems += [f"surplus: {key}" for key in state if key not in wanted]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("released", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep-class-head", action="store_true", help="keep the class head, for objectness only")
    arguments = parser.parse_args()
    try:
        converted = convert(arguments.released, arguments.out, arguments.keep_class_head)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for title, keys in (("dropped", converted.dropped), ("unmapped", converted.unmapped)):
        if keys:
            print(f"{title}: {', '.join(keys)}")
    encoder = any(key.startswith(ENCODER) for key in converted.state)
    print(f"{arguments.out}: {len(converted.state)} tensors, proposal network{' and encoder' if encoder else ''}")


if __name__ == "__main__":
    main()
