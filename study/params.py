"""The study's parameters: `params.yaml` names a profile, `configs/<profile>.yaml` holds its numbers.

`python -m study.params` only reads both; `make study` begins with it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from maskclip.settings import (
    STRICT,
    BackboneConfig,
    Evaluation,
    Mask2FormerConfig,
    MaskClipTraining,
    MaskRCNNConfig,
    from_mapping,
    read_yaml,
)
from study import errors_as_sentences


@dataclass(frozen=True, config=STRICT)
class World:
    """Sizes of the miniature world's data sets, in images."""

    seed: NonNegativeInt
    coco_train: PositiveInt
    coco_val: PositiveInt
    ade: PositiveInt
    pascal: PositiveInt
    lvis: PositiveInt


@dataclass(frozen=True, config=STRICT)
class Data:
    """Where the data sets lie; `world` is null where they are the real ones.

    `training_limit` takes the first pictures of training sets only: for a try, since all proposals are stored first.
    `without` names test sets that are not there (`study.methods.data_sets`): their columns stay empty.
    """

    root: str
    world: World | None
    training_limit: PositiveInt | None = None
    without: list[str] = Field(default_factory=list)


@dataclass(frozen=True, config=STRICT)
class ClipModel:
    """A folder (open_clip JSON + weights), or an open_clip name with its pretrained tag or local file."""

    model: str
    pretrained: str | None
    templates: list[str]


@dataclass(frozen=True, config=STRICT)
class Proposals:
    """Stage one; `twins` is the Mask2Former that is trained with and without class supervision, to compare."""

    mask2former: Mask2FormerConfig
    mask_rcnn: MaskRCNNConfig
    twins: Mask2FormerConfig


@dataclass(frozen=True, config=STRICT)
class Efficiency:
    """What Table 6 and Sec. 4.3 measure: an open_clip name (its weights do not matter for cost), and how many masks."""

    model: str
    masks: PositiveInt


@dataclass(frozen=True, config=STRICT)
class Study:
    """One profile, whole."""

    data: Data
    clip: ClipModel
    proposals: Proposals
    maskclip: MaskClipTraining
    evaluation: Evaluation
    efficiency: Efficiency


_RESNET50 = BackboneConfig(weights="timm/resnet50.tv_in1k")
PAPER = {  # Sec. 4.2 and, where the text is silent, the released code
    "clip": ClipModel("ViT-L-14-336-quickgelu", "openai", ["{}"]),
    "proposals.mask2former": Mask2FormerConfig(
        backbone=_RESNET50, test_sizes={"a150": (640, 2560), "a847": (640, 2560)}
    ),
    "proposals.mask_rcnn": MaskRCNNConfig(backbone=_RESNET50, implementation="detectron2"),
    "proposals.twins.training": dataclasses.replace(Mask2FormerConfig().training, steps=92_188),
    "maskclip": MaskClipTraining(
        rma_layers=[6, 12, 18, 24], steps=10_000, batch=8, learning_rate=1e-4, weight_decay=0.05, gradient_norm=0.01,
        warmup_steps=0, temperature=0.01, class_weight=2.0, dice_weight=5.0, mask_weight=5.0, no_object_weight=0.0,
        points=12_544, checkpoint_every=500,
    ),
    "evaluation": Evaluation(
        limit=None, object_mask_threshold=0.3, overlap_threshold=0.5, top_k=100, objectness_power=0.0
    ),
    "efficiency": Efficiency("ViT-L-14-336", 100),
}  # fmt: skip
RELEASED = Path("notebooks/weights/released.ipynb")  # runs the profile of its name, which is no part of dvc.yaml
HARMLESS = {"checkpoint_every", "workers", "mixed_precision", "activation_checkpointing"}


def deviations(study: Study) -> list[str]:
    """What a profile sets otherwise than the paper, each as "maskclip.steps is 4, the paper's 10000"."""
    found = []
    for where, papers in PAPER.items():
        own: Any = functools.reduce(getattr, where.split("."), study)
        both: tuple[Any, Any] = (own, papers)
        ours, theirs = (_flat(dataclasses.asdict(section), where) for section in both)
        for name in ours | theirs:
            value, papers = ours.get(name), theirs.get(name)
            unstarted = name.endswith("backbone.weights") and not (value or own.start)
            unstarted |= name == "clip.pretrained" and _has_random_weights(own)
            random = " (random weights)" if unstarted else ""
            if value != papers:
                found.append(f"{name} is {value}, the paper's {papers}{random}")
    if study.data.world:
        found.append("data.world is drawn, the paper's data sets are photographs")
    if study.data.training_limit:
        found.append(f"data.training_limit is {study.data.training_limit}, the paper's None")
    found += [f"data.without has {name}, which the paper tests" for name in study.data.without]
    from maskclip.data.datasets import read_left_out  # settings need not wait for readers

    if left_out := read_left_out(study.data.root):
        found.append(f"{len(left_out)} damaged pictures are left out of the data")
    return found


def _has_random_weights(clip: ClipModel) -> bool:
    """Whether nobody trained this CLIP: it names no weights, or its folder says that they are random."""
    folder = Path(clip.model)
    if not folder.is_dir():
        return not clip.pretrained
    config = folder / "open_clip_config.json"
    return config.is_file() and json.loads(config.read_text()).get("weights") == "random"


def _flat(section: dict[str, Any], where: str) -> dict[str, Any]:
    """Nested settings by their dotted names, those left out that change no result."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{where}.{name}")
        elif name not in HARMLESS:
            found[f"{where}.{name}"] = list(value) if isinstance(value, tuple) else value
    return found


@dataclass(frozen=True, config=STRICT)
class Params:
    """What params.yaml holds: the knob above the profiles."""

    profile: str
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    device: Literal["auto", "cpu", "cuda"]
    processes: PositiveInt

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; each seed may stand there once")


def load_study(profile: str, configs: str | Path = "configs") -> Study:
    """Read `configs/<profile>.yaml`; ValueError if there is none, or a key of it is wrong."""
    path = Path(configs) / f"{profile}.yaml"
    if not path.is_file() or path.name != f"{profile}.yaml":
        known = ", ".join(sorted(item.stem for item in Path(configs).glob("*.yaml"))) or "none"
        raise ValueError(f"unknown profile {profile!r}; {Path(configs)}/ has: {known}")
    return from_mapping(Study, read_yaml(path), str(path))


def load_params(path: str | Path = "params.yaml", **instead: Any) -> tuple[dict[str, Any], Study]:
    """Read `params.yaml` and the profile it names: (its own keys, the study's sections); `instead` of some of its
    values others.

    Raises:
        FileNotFoundError, ValueError: it is not there; a key is unknown, missing, mistyped or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run from the top folder of the repository")
    params = from_mapping(Params, (read_yaml(path) or {}) | instead, str(path))
    study = load_study(params.profile, path.parent / "configs")
    batches = {name: network["training"]["batch"] for name, network in dataclasses.asdict(study.proposals).items()}
    for name, batch in {**batches, "maskclip": study.maskclip.batch}.items():
        if batch % params.processes:
            shared = f"{path}.processes is {params.processes}, among which {name}'s batch of {batch}"
            raise ValueError(f"{shared} does not divide; set one of them to fit the other")
    return dataclasses.asdict(params), study


if __name__ == "__main__":
    with errors_as_sentences():
        load_params()
