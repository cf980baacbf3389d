"""The study's parameters: `params.yaml` names a profile, `configs/<profile>.yaml` holds its numbers.

`python -m study.params` only reads both; `make study` begins with it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from maskclip.settings import Evaluation, Mask2FormerConfig, MaskClipTraining, MaskRCNNConfig, at_least, from_mapping


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


if __name__ == "__main__":
    try:
        load_params()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
