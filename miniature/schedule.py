"""The mini CLIP's schedule: stages from what is easy to what is hard, in one file (`clip.yaml`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from maskclip.settings import STRICT, Fraction, from_mapping, read_yaml

PATCH = 8
Side = Annotated[int, Field(ge=PATCH, multiple_of=PATCH)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Stage:
    """One part of the schedule: `steps` steps of `batch` pictures of `side` pixels, of which a share `plain` shows one
    thing on one colour, a share `single` one thing on stuff, and the rest scenes of up to `most` things."""

    steps: PositiveInt
    batch: PositiveInt
    side: Side
    artists: Names
    styles: Names
    plain: Fraction = 0.0
    single: Fraction = 0.0
    most: PositiveInt = 1
    bare: Fraction = 0.0  # of the pictures, whose things are glyphs without rim and body
    flat: Fraction = 0.0  # of the pictures, whose things have no rim and any ink, as other people draw
    spread: NonNegativeFloat = 1.0  # of poses
    roam: bool = True  # small pictures lie anywhere in the large one, or at its middle
    colours: NonNegativeFloat = 0.0  # weight of telling captions apart that differ in a colour
    free: bool = False  # words are free vectors still, which the text tower learns to say when the free stages end
    seen: Side | None = None  # pixels to which a picture is brought; more than before, and CLIP's input grows
    lr: PositiveFloat | None = None  # a fine-tuning's own rate, which falls to zero at its end


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """A run: warm-up, constant rate, linear decay over the last `decay` steps before fine-tuning, which comes last;
    Muon takes `lr`, AdamW `lr * adamw`."""

    seed: NonNegativeInt
    lr: PositiveFloat
    warmup: PositiveInt
    decay: PositiveInt
    weight_decay: NonNegativeFloat
    adamw: PositiveFloat
    textures: PositiveInt
    image_size: Side  # to begin with
    width: PositiveInt
    layers: PositiveInt
    text_steps: NonNegativeInt  # after the free stages, in which the text tower learns alone what they found
    checkpoint_every: PositiveInt
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    keep: Fraction = 0.0  # what comes out is the last stage's weights, but so much of those before it (WiSE-FT)

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
    """The schedule of a YAML file; ValueError names what is wrong in it."""
    return from_mapping(Schedule, read_yaml(path), str(path))
