"""The settings of the library's models and trainings, checked when they are read; the defaults are the paper's."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Fraction = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=4)]
TestSizes = dict[str, tuple[Pixels, Pixels]]  # of a data set's pictures, in place of (short_side, long_side)
Section = TypeVar("Section")
PAPER_DEPTH = 24  # layers of the paper's ViT-L


@dataclass(frozen=True, config=STRICT)
class BackboneConfig:
    """A ResNet; ResNet-50 as both papers use it has ImageNet weights and frozen batch statistics."""

    stem_width: PositiveInt = 64
    # channels and blocks per stage: four, at strides 4 to 32, or three, for small pictures
    widths: tuple[PositiveInt, ...] = (256, 512, 1024, 2048)
    depths: tuple[PositiveInt, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"  # basic: ResNet-18 and -34
    normalization: Literal["frozen", "batch", "group"] = "frozen"  # group: for training from nothing
    weights: str | None = None  # None (fresh), a safetensors file, or a hub name: "timm/resnet50.tv_in1k"

    def __post_init__(self) -> None:
        if len(self.widths) not in (3, 4) or len(self.depths) != len(self.widths):
            raise ValueError(f"widths {self.widths} and depths {self.depths} must be of four stages, or both of three")


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """How a proposal network is trained; the defaults are Mask2Former's on COCO: 50 epochs."""

    steps: NonNegativeInt = 368750
    batch: PositiveInt = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd has momentum 0.9
    learning_rate: NonNegativeFloat = 1e-4
    backbone_factor: NonNegativeFloat = 0.1  # the backbone's learning rate over the rest's
    weight_decay: NonNegativeFloat = 0.05
    gradient_norm: NonNegativeFloat = 0.01  # full-model clipping; 0 does not clip
    warmup_steps: NonNegativeInt = 10
    schedule: Literal["steps", "cosine"] = "steps"  # a tenth at each milestone, or a cosine to zero
    milestones: tuple[Fraction, ...] = (0.8889, 0.9629)  # of all steps
    crop: NonNegativeInt = 1024  # side of the square crop of large scale jittering; 0: whole images
    scale: tuple[Annotated[float, Field(ge=0.01)], ...] = (0.1, 2.0)  # of large scale jittering
    color_jitter: NonNegativeFloat = 0.0  # strength of random brightness, contrast and hue
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    workers: NonNegativeInt = 0  # processes that read and augment images
    checkpoint_every: PositiveInt = 1000

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is {self.scale}; it must be two numbers, the smaller first")


@dataclass(frozen=True, config=STRICT)
class Mask2FormerConfig:
    """Mask2Former; the defaults are its ResNet-50 model's own, which the paper uses."""

    backbone: BackboneConfig = BackboneConfig()
    training: TrainingConfig = TrainingConfig()
    queries: PositiveInt = 100
    decoder_layers: PositiveInt = 9
    encoder_layers: NonNegativeInt = 6
    hidden_dim: Annotated[int, Field(ge=32)] = 256
    feedforward_dim: PositiveInt = 2048
    encoder_feedforward_dim: PositiveInt = 1024
    heads: PositiveInt = 8
    points: PositiveInt = 12544
    start: str | None = None  # a trained network to begin with: a safetensors file, or transformers' folder or hub name
    no_object_weight: NonNegativeFloat = 0.1
    class_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0
    dice_weight: NonNegativeFloat = 5.0
    short_side: Pixels = 800
    long_side: Pixels = 1333
    test_sizes: TestSizes = field(default_factory=dict, hash=False)


MASK_RCNN_TRAINING = TrainingConfig(
    steps=90000, optimizer="sgd", learning_rate=0.02, backbone_factor=1.0, weight_decay=1e-4, gradient_norm=0.0,
    warmup_steps=1000, milestones=(0.6667, 0.8889), crop=0,
)  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class MaskRCNNConfig:
    """Mask R-CNN; the defaults are R50-FPN-1x, which the paper uses."""

    backbone: BackboneConfig = BackboneConfig()
    training: TrainingConfig = MASK_RCNN_TRAINING
    implementation: Literal["torchvision", "detectron2"] = "torchvision"
    fpn_dim: PositiveInt = 256
    head_dim: PositiveInt = 1024
    mask_head_layers: PositiveInt = 4
    anchor_sizes: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)  # the stages' and one more
    rpn_proposals_train: PositiveInt = 2000
    rpn_proposals: PositiveInt = 1000
    rpn_samples: PositiveInt = 256
    box_samples: PositiveInt = 512
    score_threshold: Fraction = 0.05  # this and the next two: which boxes become proposals
    nms_threshold: Fraction = 0.5
    detections: PositiveInt = 100
    # for training, one per image
    train_short_sides: Annotated[tuple[Pixels, ...], Field(min_length=1)] = (640, 672, 704, 736, 768, 800)
    short_side: Pixels = 800
    long_side: Pixels = 1333
    test_sizes: TestSizes = field(default_factory=dict, hash=False)
    mask_stride: PositiveInt = 4  # mask logits come at this fraction of the size that the network sees
    start: str | None = None  # a safetensors file of a trained network (torchvision's) to begin with


Network = TypeVar("Network", Mask2FormerConfig, MaskRCNNConfig)


def proposing_for(config: Network, pictures: str) -> Network:
    """A proposal network's settings with the short and long side at which it sees the pictures of this data set."""
    short_side, long_side = config.test_sizes.get(pictures, (config.short_side, config.long_side))
    return dataclasses.replace(config, short_side=short_side, long_side=long_side)


@dataclass(frozen=True, config=STRICT)
class MaskClipTraining:
    """Stage two, Sec. 4.2."""

    rma_layers: Annotated[list[int], Field(min_length=1)]  # the paper's, of 24, scaled to the ViT at hand
    steps: NonNegativeInt
    batch: PositiveInt
    learning_rate: NonNegativeFloat
    weight_decay: NonNegativeFloat
    gradient_norm: NonNegativeFloat
    warmup_steps: NonNegativeInt
    temperature: Annotated[float, Field(ge=1e-6)]
    class_weight: NonNegativeFloat
    dice_weight: NonNegativeFloat
    mask_weight: NonNegativeFloat
    no_object_weight: NonNegativeFloat
    points: PositiveInt
    checkpoint_every: PositiveInt
    linear_query: bool = False  # phi_Qm as the paper writes it (Eq. 3), not the released LayerNorm
    two_layer_refinement: bool = False  # f_r as the paper words it (Eq. 5), not the released 1 x 1 convolution
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    workers: NonNegativeInt = 0  # processes that read pictures ahead
    zero_init_refinement: bool = False  # begin with residuals of zero, not the released random ones
    refinement_factor: NonNegativeFloat = 1.0  # f_r's learning rate over the rest's
    schedule: Literal["constant", "cosine"] = "constant"  # of the rate; a cosine falls to zero
    activation_checkpointing: bool = False
    start: str | None = None  # weights to begin with: encoder.pt or its folder, or a file of `maskclip convert`

    def __post_init__(self) -> None:
        scale_layers(self.rma_layers, PAPER_DEPTH)


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """How masks and their class probabilities become segmentations, and on how many images (null: all)."""

    limit: PositiveInt | None
    object_mask_threshold: Fraction
    overlap_threshold: Fraction
    top_k: PositiveInt
    objectness_power: NonNegativeFloat
    precision: Literal["float32", "tf32", "bf16", "fp16"] = "float32"  # in which MaskCLIP computes
    as_published: bool = False  # as the released code does it, with its errors, which the published numbers have


def read_yaml(path: Path) -> Any:
    """A file's content; ValueError unless it is YAML 1.2, to which a key given twice is an error."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        json.dumps(content, default=str, skipkeys=True)  # refuses an anchor that holds itself
        return content
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def from_mapping(section: type[Section], mapping: Any, where: str) -> Section:
    """Build a section from a YAML or JSON mapping, checking names, types and ranges.

    Raises:
        ValueError: keys are unknown, missing, mistyped or out of range; the sentence names them, and `where`.
    """
    try:  # as JSON, of which even strictness takes a list for a tuple
        return TypeAdapter(section).validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        faults = [_sentence(section, fault, where) for fault in error.errors(include_url=False)]
        raise ValueError("; ".join(faults)) from None


def _sentence(section: type, fault: ErrorDetails, place: str) -> str:
    """What pydantic finds wrong, in the words of someone who writes YAML."""
    sections: list[Any] = [section]
    for name in fault["loc"]:
        hint = typing.get_type_hints(sections[-1]).get(str(name))
        sections += [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        place += f"[{name}]" if isinstance(name, int) else f".{name}"
    if fault["type"] == "unexpected_keyword_argument":
        known = ", ".join(field.name for field in dataclasses.fields(sections[-1]))
        return f"{place} is an unknown key; known are {known}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "value_error":  # what a section's values have to do with one another, it checks itself
        return f"{place}: {fault['ctx']['error']}"
    wanted = fault["msg"].replace("Input should", "it must").replace("an object", "a mapping")
    return f"{place} is {fault['input']!r}; {wanted.replace('valid array', 'list')}"


def scale_layers(paper_layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """The paper's RMA layers (counted from 1, of 24) at the same fractions of a ViT of `depth` layers (Table 9),
    moved down where there is no room.

    Rounded half up; where a shallow ViT would count a layer twice, the earlier one moves down, so that as many
    distinct layers remain and the last of them keeps its place: 21 to 24 of 24 become 3 to 6 of 6.

    Raises:
        ValueError: layers out of 1..24, not rising, or more of them than the ViT has.
    """
    rising = all(low < high for low, high in pairwise([0, *paper_layers, PAPER_DEPTH + 1]))
    if not rising:
        raise ValueError(f"rma_layers are {paper_layers}; they must rise within 1 to {PAPER_DEPTH}")
    if len(paper_layers) > depth:
        raise ValueError(f"rma_layers are {paper_layers}, {len(paper_layers)} of them, but the ViT has {depth} layers")
    room = [int(layer * depth / PAPER_DEPTH + 0.5) - index for index, layer in enumerate(paper_layers)]
    return tuple(index + max(1, min(room[index:])) for index in range(len(room)))
