"""The miniature's stand-in for ImageNet and for days on COCO: a backbone with classes, proposal networks' starts, and
the MaskCLIP that the `Segmenter` and the course begin with.

The backbone sees all artists and styles, as ImageNet has photographs of every kind; the proposal networks begin with
it and see pictures as the COCO mirror's only, with segments of COCO's base names and stuff (target things are there and
not annotated).  No picture of the study's data sets is among them.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import ResNetBackbone

from maskclip.data import Annotation, Category, Dataset, Segment
from maskclip.files import load_checkpoint, save_checkpoint, write_atomically
from maskclip.model.clip import load_clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals, ProposalSource, load_source
from maskclip.proposals.backbone import resnet_config, set_up_backbone
from maskclip.settings import (
    BackboneConfig,
    Mask2FormerConfig,
    MaskClipTraining,
    MaskRCNNConfig,
    from_mapping,
    scale_layers,
)
from maskclip.training.mask_tokens import train_maskclip
from maskclip.training.proposal_networks import train_proposals
from miniature.captions import training_scenes
from miniature.datasets import BANK_SIZE, annotated_scene, recipe
from miniature.painting import paint
from miniature.scenes import STYLES
from miniature.schedule import Stage
from miniature.textures import texture_bank
from miniature.words import ARTISTS, coco_split, things, vocabulary


def base_pictures(seed: int, count: int, variants: int = 6, whole: bool = False) -> Dataset:
    """`count` pictures as the COCO mirror's, drawn when first asked for, with segments of base names and stuff, or of
    the `whole` vocabulary.

    Picture i follows from (seed, i).
    """
    coco = vocabulary("coco")
    base = [n for n in coco.things if whole or n in coco_split()[0]]
    index = {coco.things[n]: i for i, n in enumerate(base)} | {
        w: len(base) + i for i, w in enumerate(coco.stuff.values())
    }
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

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Normalized pictures [B, 3, H, W] to logits [B, things]."""
        return self.head(self.backbone(pictures).feature_maps[-1].mean((2, 3)))


def backbone_stage(steps: int, batch: int, side: int) -> Stage:
    """What the backbone sees: single things by all artists in all styles."""
    return Stage(steps, batch, side, ARTISTS, STYLES, plain=0.25, single=0.75)


def train_backbone(
    out: Path, work: Path, config: BackboneConfig, seed: int, steps: int, batch: int, side: int, lr: float,
    progress: Callable[[dict], None] = lambda row: None, checkpoint_every: int = 100,
) -> list[dict]:  # fmt: skip
    """Train a backbone to name single things by all artists in all styles; resumable; `out` is a safetensors file.

    Returns:
        The log, which stands in the file too: step, loss, accuracy, seconds.
    """
    torch.manual_seed(seed)
    model = Classifier(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    bank, order = texture_bank(seed + 500, 6, BANK_SIZE), list(things())
    checkpoint, log, recent, first, spent = work / "backbone.pt", [], [], 0, 0.0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log, recent, first, spent = (state[key] for key in ("log", "recent", "step", "seconds"))
    began = time.process_time() - spent
    stage = backbone_stage(steps, batch, side)
    for step in range(first, steps):
        scenes = training_scenes(np.random.default_rng([seed, 3, step]), stage)
        wanted = torch.tensor([order.index(s.things[0].name) for s in scenes])
        logits = model((paint(scenes, bank, side, side)[0] - 0.45) / 0.23)
        loss = F.cross_entropy(logits, wanted)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append((loss.item(), (logits.argmax(1) == wanted).float().mean().item()))
        if (step + 1) % 25 == 0 or step + 1 == steps:
            mean = np.mean(recent, 0)
            log.append(
                {
                    "step": step + 1,
                    "loss": float(mean[0]),
                    "accuracy": float(mean[1]),
                    "seconds": time.process_time() - began,
                }
            )
            recent = []
            progress(log[-1])
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "step": step + 1}
            save_checkpoint(checkpoint, {**state, "recent": recent, "seconds": time.process_time() - began})
    weights = {k: v.half().contiguous() for k, v in model.backbone.state_dict().items()}
    write_atomically(out, lambda path: save_file(weights, path, {"log": json.dumps(log)}))
    return log


def save_network(trained: Path, out: Path) -> Path:
    """A network of `train_proposals` (`trained`, its folder) as one file in half precision, its record inside: to start
    from, or to be read by `load_source`."""
    half = {name: tensor.half().contiguous() for name, tensor in load_file(trained / "network.safetensors").items()}
    record = json.dumps(json.loads((trained / "record.json").read_text()))
    write_atomically(out, lambda path: save_file(half, path, {"record": record}))
    return out


class _Proposed(dict[int | str, Proposals]):
    """The proposals of a data set's pictures, made when first asked for."""

    def __init__(self, source: ProposalSource, dataset: Dataset) -> None:
        super().__init__()
        self.source, self.dataset = source, dataset

    def __missing__(self, number: int | str) -> Proposals:
        self[number] = self.source([self.dataset.picture(number)])[0]
        return self[number]


def train_rma(
    clip_folder: Path, proposals: Path, training: MaskClipTraining, seed: int, pictures: int, work: Path
) -> Path:
    """Stage two on pictures as the COCO mirror's, with all of COCO's names; resumable; `work` ends with encoder.pt."""
    clip = load_clip(clip_folder)
    layers = scale_layers(training.rma_layers, len(clip.model.visual.transformer.resblocks))
    encoder = MaskCLIPVisualEncoder.from_open_clip(
        clip.model, layers, zero_init_refinement=training.zero_init_refinement,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    dataset = base_pictures(seed, pictures, whole=True)
    train_maskclip(encoder, clip, dataset, _Proposed(load_source(proposals), dataset), training, work, seed)
    return work


def pretrain(
    name: str, plan_file: Path, out: Path, work: Path, progress: Callable[[dict], None] = lambda row: None
) -> tuple[Path, list[dict]]:
    """Carry out an entry of `pretraining.yaml`: "backbone", "mask2former", "mask_rcnn" or "maskclip".

    Returns:
        The weights' file and the curve.
    """
    plan = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    shape = from_mapping(BackboneConfig, plan["shape"], f"shape of {plan_file}")
    out.mkdir(parents=True, exist_ok=True)
    if name == "backbone":
        curve = train_backbone(out / "backbone.safetensors", work, shape, **plan["backbone"], progress=progress)
        return out / "backbone.safetensors", curve
    entry = plan[name]
    if name == "maskclip":
        training = from_mapping(MaskClipTraining, entry["training"], f"maskclip of {plan_file}")
        beside = out.parent / "mini_proposals" / "mask2former.safetensors"
        trained = train_rma(out.parent / "mini_clip", beside, training, entry["seed"], entry["pictures"], work / name)
        shutil.copyfile(trained / "encoder.pt", out / "encoder.pt")
        return out / "encoder.pt", pd.read_csv(trained / "curve.csv").to_dict("records")
    kind: Any = Mask2FormerConfig if name == "mask2former" else MaskRCNNConfig
    config = from_mapping(kind, entry["config"] | {"backbone": plan["shape"]}, f"{name} of {plan_file}")
    config = replace(config, backbone=replace(shape, weights=str(out / "backbone.safetensors")))
    trained = train_proposals(name, base_pictures(entry["seed"], entry["pictures"]), config, work / name, entry["seed"])
    curve = pd.read_csv(trained / "curves.csv").to_dict("records")
    return save_network(trained, out / f"{name}.safetensors"), curve
