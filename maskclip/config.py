"""The study's parameters: `params.yaml` names a profile, `configs/<profile>.yaml` holds its numbers.

Every section of a profile is a plain dataclass; reading checks names, types and ranges, so that a typing error is one
sentence before the first minute of work and not a strange number after the last hour. `python -m maskclip.config` only
reads params.yaml and its profile; `make study` begins with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from maskclip.proposals.config import Mask2FormerConfig, MaskRCNNConfig, at_least

Section = TypeVar("Section")


@dataclass(frozen=True)
class World:
    """Sizes of the miniature world's data sets, in images."""

    seed: int = at_least(0)
    coco_train: int = at_least(1)
    coco_val: int = at_least(1)
    ade: int = at_least(1)
    pascal: int = at_least(1)
    lvis: int = at_least(1)


@dataclass(frozen=True)
class Data:
    """Where the data sets lie; `world` is null where they are the real ones."""

    root: str
    world: World | None


@dataclass(frozen=True)
class ClipModel:
    """Which CLIP: a folder (open_clip JSON + weights), or an open_clip name with its pretrained tag or local file."""

    model: str
    pretrained: str | None
    templates: list[str]


@dataclass(frozen=True)
class Proposals:
    """Stage one: both class-agnostic proposal networks, and the Mask2Former that is trained with and without class
    supervision, to compare."""

    mask2former: Mask2FormerConfig
    mask_rcnn: MaskRCNNConfig
    twins: Mask2FormerConfig


@dataclass(frozen=True)
class MaskClipTraining:
    """Stage two, Sec. 4.2. RMA layers are the paper's, of 24; `scale_layers` maps them to the ViT at hand."""

    rma_layers: list[int]
    steps: int = at_least(0)
    batch: int = at_least(1)
    learning_rate: float = at_least(0)
    weight_decay: float = at_least(0)
    gradient_norm: float = at_least(0)
    warmup_steps: int = at_least(0)
    temperature: float = at_least(1e-6)
    class_weight: float = at_least(0)
    dice_weight: float = at_least(0)
    mask_weight: float = at_least(0)
    no_object_weight: float = at_least(0)
    points: int = at_least(1)
    checkpoint_every: int = at_least(1)
    linear_query: bool = False  # phi_Qm as the paper writes it (Eq. 3), not the released LayerNorm
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    workers: int = at_least(0, default=0)  # processes that read pictures ahead
    zero_init_refinement: bool = False  # begin with residuals of zero, not the released random ones
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not self.rma_layers:
            raise ValueError("rma_layers is empty; name at least one layer, such as [6, 12, 18, 24]")
        scale_layers(self.rma_layers, 24)


@dataclass(frozen=True)
class Evaluation:
    """How masks and their class probabilities become segmentations, and on how many images (null: all)."""

    limit: int | None = at_least(1)
    object_mask_threshold: float = at_least(0, maximum=1)
    overlap_threshold: float = at_least(0, maximum=1)
    top_k: int = at_least(1)
    objectness_power: float = at_least(0)


@dataclass(frozen=True)
class Efficiency:
    """What Table 6 and Sec. 4.3 measure: an open_clip name (its weights do not matter for cost), and how many masks."""

    model: str
    masks: int = at_least(1)


@dataclass(frozen=True)
class Study:
    """One profile, whole."""

    data: Data
    clip: ClipModel
    proposals: Proposals
    maskclip: MaskClipTraining
    evaluation: Evaluation
    efficiency: Efficiency


@dataclass(frozen=True)
class Params:
    """What params.yaml holds: the knob above the profiles."""

    profile: str
    seeds: list[int]
    device: Literal["auto", "cpu", "cuda"]
    processes: int = at_least(1)
    overrides: dict | None = None


def _check(value: Any, kind: Any, where: str, limits: Mapping[str, float]) -> Any:
    """`value` as `kind` and within its field's minimum and maximum, or one sentence saying why not."""
    if dataclasses.is_dataclass(kind):
        return from_mapping(typing.cast(type, kind), value, where)
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in kind.__args__:
            return None
        kind = next(option for option in kind.__args__ if option is not type(None))
        return _check(value, kind, where, limits)
    if typing.get_origin(kind) in (list, tuple):
        (inner, *_) = typing.get_args(kind)
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; it must be a list")
        items = [_check(item, inner, f"{where}[{index}]", limits) for index, item in enumerate(value)]
        return items if typing.get_origin(kind) is list else tuple(items)
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices or isinstance(value, bool):
            hint = ' (YAML reads no and yes as bools: write "no")' if isinstance(value, bool) else ""
            raise ValueError(f"{where} is {value!r}; it must be one of {', '.join(choices)}{hint}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (kind is not bool and isinstance(value, bool)) or not isinstance(value, kind):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if kind is float and isinstance(value, str) else ""
        hint = ' (YAML reads no and yes as bools: write "no")' if kind is str and isinstance(value, bool) else hint
        raise ValueError(f"{where} is {value!r}, a {type(value).__name__}; it must be a {kind.__name__}{hint}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is {value!r}; it must be a finite number")
    if "minimum" in limits and value < limits["minimum"]:
        raise ValueError(f"{where} is {value!r}; it must be at least {limits['minimum']}")
    if "maximum" in limits and value > limits["maximum"]:
        raise ValueError(f"{where} is {value!r}; it must be at most {limits['maximum']}")
    return value


def from_mapping(section: type[Section], mapping: Any, where: str) -> Section:
    """Build a dataclass from a YAML mapping, checking names, types and ranges.

    Raises:
        ValueError: an unknown, missing, mistyped or out-of-range key; the sentence names it and the file.
    """
    if not isinstance(mapping, dict):
        raise ValueError(f"{where} is {mapping!r}; it must be a mapping of names to values")
    fields = {item.name: item for item in dataclasses.fields(typing.cast(Any, section))}
    for name in mapping:
        if name not in fields:
            raise ValueError(f"{where} has an unknown key {name!r}; known are {', '.join(fields)}")
    annotations = typing.get_type_hints(section)
    values = {}
    for name, item in fields.items():
        if name in mapping:
            values[name] = _check(mapping[name], annotations[name], f"{where}.{name}", item.metadata)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the key {name!r}")
    try:
        return section(**values)
    except ValueError as error:  # what a section's values have to do with one another, it checks itself
        raise ValueError(f"{where}: {error}") from None


def _refuse_twins(node: yaml.Node | None) -> None:
    """A key given twice, of which YAML would silently take the last, is an error."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key, value in node.value:
            if keys.count(key.value) > 1:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice in one mapping {key.start_mark}")
            _refuse_twins(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_twins(yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of names to values")
    return content


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def load_study(profile: str, overrides: dict[str, Any] | None = None, configs: str | Path = "configs") -> Study:
    """Read `configs/<profile>.yaml`, with `overrides` (same nesting) laid over it.

    Raises:
        ValueError: unknown profile, or a key that is unknown, missing, mistyped or out of range.
    """
    path = Path(configs) / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in Path(configs).glob("*.yaml"))) or "none"
        raise ValueError(f"unknown profile {profile!r}; {Path(configs)}/ has: {known}")
    profile_itself = _read_yaml(path)
    study = from_mapping(Study, profile_itself, str(path))
    return from_mapping(Study, _merge(profile_itself, overrides), f"overrides of {path}") if overrides else study


def load_params(path: str | Path = "params.yaml") -> tuple[dict[str, Any], Study]:
    """Read `params.yaml` and the profile it names: (its own keys, the study's sections).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key of it, or of the profile with its overrides, is unknown, missing, mistyped or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run from the top folder of the repository")
    params = _read_yaml(path)
    checked = from_mapping(Params, params, str(path))
    if not checked.seeds or min(checked.seeds) < 0 or max(checked.seeds) >= 2**32:
        raise ValueError(
            f"{path}.seeds is {checked.seeds}; it must hold at least one seed from 0 to 2^32-1, such as [0]"
        )
    if len(set(checked.seeds)) < len(checked.seeds):
        raise ValueError(f"{path}.seeds is {checked.seeds}; each seed may stand there once")
    overrides = {name: value for name, value in (checked.overrides or {}).items() if value}
    study = load_study(checked.profile, overrides, path.parent / "configs")
    networks = {name: getattr(study.proposals, name).training for name in ("mask2former", "mask_rcnn", "twins")}
    for name, training in {**networks, "maskclip": study.maskclip}.items():
        if training.batch % checked.processes:
            raise ValueError(
                f"{path}.processes is {checked.processes}, among which {name}'s batch of {training.batch} does not "
                "divide; set one of them to fit the other"
            )
    return params, study


def scale_layers(paper_layers: list[int], depth: int, paper_depth: int = 24) -> tuple[int, ...]:
    """The paper's RMA layers (counted from 1, of 24) at the same fractions of a ViT of `depth` layers (Table 9).

    Rounded half up; where a shallow ViT would count a layer twice, the earlier one moves down, so that as many
    distinct layers remain and the last of them keeps its place: 21 to 24 of 24 become 3 to 6 of 6.

    Raises:
        ValueError: layers out of 1..24, not rising, or more of them than the ViT has.
    """
    rising = all(low < high for low, high in itertools.pairwise(paper_layers))
    if not rising or not all(1 <= layer <= paper_depth for layer in paper_layers):
        raise ValueError(f"rma_layers are {paper_layers}; they must rise within 1 to {paper_depth}")
    if len(paper_layers) > depth:
        raise ValueError(f"rma_layers are {paper_layers}, {len(paper_layers)} of them, but the ViT has {depth} layers")
    scaled = [max(1, int(layer * depth / paper_depth + 0.5)) for layer in paper_layers]
    for index in range(len(scaled) - 2, -1, -1):
        scaled[index] = min(scaled[index], scaled[index + 1] - 1)
    for index in range(len(scaled)):  # the shift may have run below the first layer
        scaled[index] = max(scaled[index], index + 1)
    return tuple(scaled)


if __name__ == "__main__":
    try:
        load_params()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
