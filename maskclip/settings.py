"""The settings of the library's models and trainings: plain dataclasses, checked when read.

Reading checks names, types and ranges, so that a typing error is one sentence before the first minute of work and not
a strange number after the last hour. The defaults are the paper's (Sec. 4.2).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar

Section = TypeVar("Section")


def at_least(minimum: float, default: Any = MISSING, maximum: float = math.inf) -> Any:
    """A dataclass field of which no value may be smaller than `minimum`, or larger than `maximum`."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet; ResNet-50 as both papers use it has ImageNet weights and frozen batch statistics.

    Attributes:
        widths, depths: channels and blocks per stage: four, at strides 4 to 32, or three, at strides 4 to 16, for
            pictures so small that stride 32 would see objects as single cells.
        block: "basic" (ResNet-18, -34) or "bottleneck" (ResNet-50 and larger).
        normalization: "frozen" (batch norm as a fixed affine map), "batch", or "group" (for training from nothing).
        weights: None (fresh), a local safetensors file, or a hub name such as "microsoft/resnet-50".
    """

    stem_width: int = at_least(1, 64)
    widths: tuple[int, ...] = at_least(1, (256, 512, 1024, 2048))
    depths: tuple[int, ...] = at_least(1, (3, 4, 6, 3))
    block: Literal["basic", "bottleneck"] = "bottleneck"
    normalization: Literal["frozen", "batch", "group"] = "frozen"
    weights: str | None = None

    def __post_init__(self) -> None:
        if len(self.widths) not in (3, 4) or len(self.depths) != len(self.widths):
            raise ValueError(f"widths {self.widths} and depths {self.depths} must be of four stages, or both of three")


@dataclass(frozen=True)
class TrainingConfig:
    """How a proposal network is trained; the defaults are Mask2Former's on COCO: 50 epochs of 16 images a step.

    Attributes:
        optimizer: "adamw", or "sgd" with momentum 0.9.
        backbone_factor: the backbone's learning rate over the rest's.
        gradient_norm: full-model clipping; 0 does not clip.
        schedule: "steps" (a tenth at each of `milestones`, fractions of all steps) or "cosine".
        crop: the side of the square training crop of large scale jittering; 0 trains on whole images.
        scale: the range of large scale jittering.
        color_jitter: the strength of random brightness, contrast and hue; 0 leaves colours as they are.
        mixed_precision: "no", "bf16" or "fp16".
        workers: processes that read and augment images.
    """

    steps: int = at_least(0, 368750)
    batch: int = at_least(1, 16)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = at_least(0, 1e-4)
    backbone_factor: float = at_least(0, 0.1)
    weight_decay: float = at_least(0, 0.05)
    gradient_norm: float = at_least(0, 0.01)
    warmup_steps: int = at_least(0, 10)
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = at_least(0, (0.8889, 0.9629), maximum=1)
    crop: int = at_least(0, 1024)
    scale: tuple[float, ...] = at_least(0.01, (0.1, 2.0))
    color_jitter: float = at_least(0, 0.0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = at_least(0, 0)
    checkpoint_every: int = at_least(1, 1000)

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is {self.scale}; it must be two numbers, the smaller first")
        if any(first >= second for first, second in pairwise(self.milestones)):
            raise ValueError(f"milestones are {self.milestones}; they must rise")


@dataclass(frozen=True)
class Mask2FormerConfig:
    """Mask2Former; the defaults are its ResNet-50 model's own, which the paper uses.

    Attributes:
        start: a trained network to begin with, class-aware or not: a safetensors file, or a model of Hugging Face
            transformers by local folder or hub name. Only a head for object / no object is taken over; one for
            classes is ignored. None begins with fresh weights.
    """

    backbone: BackboneConfig = BackboneConfig()
    training: TrainingConfig = TrainingConfig()
    queries: int = at_least(1, 100)
    decoder_layers: int = at_least(1, 9)
    encoder_layers: int = at_least(0, 6)
    hidden_dim: int = at_least(32, 256)
    feedforward_dim: int = at_least(1, 2048)
    encoder_feedforward_dim: int = at_least(1, 1024)
    heads: int = at_least(1, 8)
    points: int = at_least(1, 12544)
    start: str | None = None
    no_object_weight: float = at_least(0, 0.1)
    class_weight: float = at_least(0, 2.0)
    mask_weight: float = at_least(0, 5.0)
    dice_weight: float = at_least(0, 5.0)
    short_side: int = at_least(4, 800)
    long_side: int = at_least(4, 1333)


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Mask R-CNN; the defaults are R50-FPN-1x, which the paper uses.

    Attributes:
        implementation: "torchvision" or "detectron2".
        train_short_sides: one is drawn for each training image; `short_side` is for inference.
        anchor_sizes: one per pyramid level: the stages of the backbone and one more.
        score_threshold, nms_threshold, detections: which boxes become proposals.
        start: a safetensors file of a trained network (of torchvision's implementation) to begin with; None begins with
            fresh weights.
        mask_stride: mask logits come at this fraction of the size at which the network sees the image.
    """

    backbone: BackboneConfig = BackboneConfig()
    training: TrainingConfig = TrainingConfig(
        steps=90000,
        optimizer="sgd",
        learning_rate=0.02,
        backbone_factor=1.0,
        weight_decay=1e-4,
        gradient_norm=0.0,
        warmup_steps=1000,
        milestones=(0.6667, 0.8889),
        crop=0,
    )
    implementation: Literal["torchvision", "detectron2"] = "torchvision"
    fpn_dim: int = at_least(1, 256)
    head_dim: int = at_least(1, 1024)
    mask_head_layers: int = at_least(1, 4)
    anchor_sizes: tuple[int, ...] = at_least(1, (32, 64, 128, 256, 512))
    rpn_proposals_train: int = at_least(1, 2000)
    rpn_proposals: int = at_least(1, 1000)
    rpn_samples: int = at_least(1, 256)
    box_samples: int = at_least(1, 512)
    score_threshold: float = at_least(0, 0.05, maximum=1)
    nms_threshold: float = at_least(0, 0.5, maximum=1)
    detections: int = at_least(1, 100)
    train_short_sides: tuple[int, ...] = at_least(4, (640, 672, 704, 736, 768, 800))
    short_side: int = at_least(4, 800)
    long_side: int = at_least(4, 1333)
    mask_stride: int = at_least(1, 4)
    start: str | None = None

    def __post_init__(self) -> None:
        if not self.train_short_sides:
            raise ValueError("train_short_sides is empty; name at least one side in pixels")


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
