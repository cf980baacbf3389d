"""The mini CLIP's schedule: stages from what is easy to what is hard, in one file (`clip.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from maskclip.settings import from_mapping


@dataclass(frozen=True)
class Stage:
    """One part of the schedule: `steps` steps of `batch` pictures of `side` pixels, of which a share `plain` shows one
    thing on one colour, a share `single` one thing on stuff, and the rest scenes of up to `most` things."""

    steps: int
    batch: int
    side: int
    artists: tuple[str, ...]
    styles: tuple[str, ...]
    plain: float = 0.0
    single: float = 0.0
    most: int = 1
    bare: float = 0.0  # of the pictures, whose things are glyphs without rim and body
    flat: float = 0.0  # of the pictures, whose things have no rim and any ink, as other people draw
    spread: float = 1.0  # of poses
    roam: bool = True  # small pictures lie anywhere in the large one, or at its middle
    colours: float = 0.0  # weight of telling captions apart that differ in a colour
    free: bool = False  # words are free vectors still, which the text tower learns to say when the free stages end
    seen: int | None = None  # pixels to which a picture is brought; more than before, and CLIP's input grows
    lr: float | None = None  # a fine-tuning's own rate, which falls to zero at its end


@dataclass(frozen=True)
class Schedule:
    """A run: warm-up, constant rate, linear decay over the last `decay` steps before fine-tuning, which comes last;
    Muon takes `lr`, AdamW `lr * adamw`."""

    seed: int
    lr: float
    warmup: int
    decay: int
    weight_decay: float
    adamw: float
    textures: int
    image_size: int  # to begin with
    width: int
    layers: int
    text_steps: int  # after the free stages, in which the text tower learns alone what they found
    checkpoint_every: int
    stages: tuple[Stage, ...]
    keep: float = 0.0  # what comes out is the last stage's weights, but so much of those before it (WiSE-FT)

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(step)

    @property
    def free_steps(self) -> int:
        """Steps of the free stages, which come first."""
        return sum(stage.steps for stage in self.stages if stage.free)

    @property
    def last_size(self) -> int:
        """Pixels a side of the input of the CLIP that comes out."""
        return max([self.image_size, *(stage.seen or 0 for stage in self.stages)])

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        stage = self.stage(step)
        if stage.lr:
            first = sum(one.steps for one in self.stages[: self.stages.index(stage)])
            return stage.lr * min(1.0, (step - first + 1) / self.warmup, (first + stage.steps - step) / stage.steps)
        steps = sum(one.steps for one in self.stages if not one.lr)
        return self.lr * min(1.0, (step + 1) / self.warmup, (steps - step) / self.decay)


def read_schedule(path: Path) -> Schedule:
    """The schedule of a YAML file."""
    return from_mapping(Schedule, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
