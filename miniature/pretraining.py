"""The miniature's stand-in for ImageNet and for days on COCO: a backbone with classes, proposal networks' starts, and
the MaskCLIP that the `Segmenter` and the course begin with. No picture of the study's data sets is among theirs."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetBackbone

from maskclip.data import Annotation, Category, Dataset, Segment
from maskclip.files import settings_hash, write_atomically
from maskclip.model.clip import load_clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import load_source
from maskclip.proposals.backbone import resnet_config, set_up_backbone
from maskclip.settings import (
    STRICT,
    BackboneConfig,
    Mask2FormerConfig,
    MaskClipTraining,
    MaskRCNNConfig,
    TrainingConfig,
    from_mapping,
    read_yaml,
    scale_layers,
)
from maskclip.training.fit import Training, fit, join_processes
from maskclip.training.mask_tokens import train_maskclip
from maskclip.training.proposal_networks import train_proposals
from miniature.captions import training_scenes
from miniature.datasets import BANK_SIZE, annotated_scene, recipe
from miniature.mini_clip import save_half
from miniature.painting import paint
from miniature.scenes import STYLES
from miniature.schedule import Side, Stage
from miniature.textures import texture_bank
from miniature.words import ARTISTS, coco_split, things, vocabulary


@dataclass(frozen=True, config=STRICT)
class BackbonePlan:
    """How the backbone is trained."""

    seed: NonNegativeInt
    steps: PositiveInt
    batch: PositiveInt
    side: Side
    lr: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class Pictures:
    """How many pictures as the COCO mirror's each of the others sees."""

    mask2former: PositiveInt
    mask_rcnn: PositiveInt
    maskclip: PositiveInt


@dataclass(frozen=True, config=STRICT)
class Plan:
    """`pretraining.yaml`; the networks' backbone is the one that is trained first, of this `shape`."""

    seed: NonNegativeInt
    pictures: Pictures
    shape: BackboneConfig
    backbone: BackbonePlan
    mask2former: Mask2FormerConfig
    mask_rcnn: MaskRCNNConfig
    maskclip: MaskClipTraining

    def seed_of(self, name: str) -> int:
        """The seed of a training."""
        return self.backbone.seed if name == "backbone" else self.seed


def read_plan(path: Path) -> Plan:
    """The plan of a YAML file; ValueError names what is wrong in it."""
    return from_mapping(Plan, read_yaml(path), str(path))


def base_pictures(seed: int, count: int, variants: int = 6, whole: bool = False) -> Dataset:
    """`count` pictures as the COCO mirror's, drawn when first asked for, with segments of base names and stuff, or of
    the `whole` vocabulary.

    Picture i follows from (seed, i).
    """
    coco = vocabulary("coco")
    base = [n for n in coco.things if whole or n in coco_split()[0]]
    index = {word: i for i, word in enumerate([*(coco.things[n] for n in base), *coco.stuff.values()])}
    bank = texture_bank(2 * seed + 1, variants, BANK_SIZE)

    @functools.cache  # training asks for each several times
    def draw(number: int | str) -> tuple[np.ndarray, Annotation]:
        scene = annotated_scene(np.random.default_rng([seed, 9, int(number)]), recipe("coco"), bank)
        segments = [
            Segment(index[name], mask, crowd, index[name] < len(base))
            for name, mask, crowd in scene.segments
            if name in index
        ]
        return scene.image, Annotation(number, scene.image.shape[:2], segments)

    categories = [Category(i, name, i < len(base)) for i, name in enumerate([*base, *coco.stuff])]
    return Dataset(
        f"base_pictures_{seed}", categories, range(count), lambda i: draw(i)[0], lambda i: draw(i)[1], lambda i: [],
        Path("nowhere"),
    )  # fmt: skip


class Classifier(nn.Module):
    """A ResNet backbone, its last stage averaged, and one linear layer over the world's things."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.backbone: Any = ResNetBackbone(resnet_config(config))
        set_up_backbone(self.backbone, config)
        self.head = nn.Linear(config.widths[-1], len(things()))

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalized pictures [B, 3, H, W] to logits [B, things]."""
        return self.head(self.backbone(pictures).feature_maps[-1].mean((2, 3)))


def backbone_stage(steps: int, batch: int, side: int) -> Stage:
    """What the backbone sees: single things by all artists in all styles."""
    return Stage(steps, batch, side, ARTISTS, STYLES, plain=0.25, single=0.75)


def train_backbone(
    out: Path, work: Path, config: BackboneConfig, seed: int, steps: int, batch: int, side: int, lr: float,
    checkpoint_every: int = 100,
) -> list[dict]:  # fmt: skip
    """Train a backbone to name single things by all artists in all styles; resumable with the same settings; `out` is a
    safetensors file.

    Returns:
        The curve, a row for 25 steps: step, loss, accuracy.
    """
    torch.manual_seed(seed)
    given = {"seed": seed, "steps": steps, "batch": batch, "side": side, "lr": lr}
    known_as = settings_hash(given | {"shape": dataclasses.asdict(config)})
    model, order = Classifier(config), list(things())
    bank, stage = texture_bank(seed + 500, 6, BANK_SIZE), backbone_stage(steps, batch, side)

    def losses(numbers: list[int]) -> dict[str, Tensor]:
        scenes = training_scenes(np.random.default_rng([seed, 3, numbers[0] // batch]), stage)
        wanted = torch.tensor([order.index(s.things[0].name) for s in scenes])
        logits = model((paint(scenes, bank, side, side)[0] - 0.45) / 0.23)
        return {"loss": F.cross_entropy(logits, wanted), "accuracy": (logits.argmax(1) == wanted).float().mean()}

    join_processes("backbone", batch, on_cpu=True)
    training = Training(
        name="backbone",
        hash=known_as,
        accelerator=Accelerator(cpu=True),
        settings=TrainingConfig(steps, batch, gradient_norm=0.0, checkpoint_every=checkpoint_every),
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05),
        learning_rate=lambda step: lr * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps),
        examples=range(steps * batch),  # type: ignore[arg-type]  # each step draws its own pictures
        losses=losses,
        random_seed=lambda step: seed,
    )
    curve = fit(training, work / f"backbone.{known_as}.pt")
    save_half(out, model.backbone.state_dict())
    return [_mean(curve[first : first + 25]) for first in range(0, steps, 25)]


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    loss, accuracy = np.mean([(row["loss"], row["accuracy"]) for row in rows], 0).tolist()
    return {"step": rows[-1]["step"] + 1, "loss": loss, "accuracy": accuracy}


def save_network(trained: Path, out: Path) -> Path:
    """A network of `train_proposals` (`trained`, its folder) as one file in half precision, its record inside: to start
    from, or to be read by `load_source`."""
    record = json.dumps(json.loads((trained / "record.json").read_text()))
    save_half(out, load_file(trained / "network.safetensors"), {"record": record})
    return out


def train_rma(
    clip_folder: Path, proposals: Path, training: MaskClipTraining, seed: int, pictures: int, work: Path
) -> Path:
    """Stage two on pictures as the COCO mirror's, with all of COCO's names; resumable; `work` ends with encoder.pt."""
    clip, source, dataset = load_clip(clip_folder), load_source(proposals), base_pictures(seed, pictures, whole=True)
    layers = scale_layers(training.rma_layers, len(clip.model.visual.transformer.resblocks))
    encoder = MaskCLIPVisualEncoder.from_open_clip(
        clip.model, layers, refinement_form="attention" if training.two_layer_refinement else "product",
        zero_init_refinement=training.zero_init_refinement, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    proposed = {number: source([dataset.picture(number)])[0] for number in dataset.image_ids}
    train_maskclip(encoder, clip, dataset, proposed, training, work, seed)
    return work


def pretrain(name: str, plan_file: Path, out: Path, work: Path) -> tuple[Path, list[dict]]:
    """Carry out an entry of `pretraining.yaml`: "backbone", "mask2former", "mask_rcnn" or "maskclip".

    Returns:
        The weights' file and the curve.
    """
    plan, backbone, work = read_plan(plan_file), out / "backbone.safetensors", work / name
    if name == "backbone":
        return backbone, train_backbone(backbone, work, plan.shape, **dataclasses.asdict(plan.backbone))
    pictures = getattr(plan.pictures, name)
    if name == "maskclip":
        clip, network = out.parent / "mini_clip", out.parent / "mini_proposals" / "mask2former.safetensors"
        train_rma(clip, network, plan.maskclip, plan.seed, pictures, work)
        weights, curve = out / "encoder.pt", "curve.csv"
        write_atomically(weights, lambda path: shutil.copyfile(work / "encoder.pt", path))
    else:
        shape = dataclasses.replace(plan.shape, weights=str(backbone))
        config = dataclasses.replace(getattr(plan, name), backbone=shape)
        train_proposals(name, base_pictures(plan.seed, pictures), config, work, plan.seed)
        weights, curve = save_network(work, out / f"{name}.safetensors"), "curves.csv"
    return weights, pd.read_csv(work / curve).to_dict("records")
