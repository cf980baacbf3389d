"""Training of a proposal network without class supervision (Sec. 3.1, 4.2), resumable to the bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from maskclip.files import settings_hash
from maskclip.proposals.load import NetworkConfig, build_network
from maskclip.proposals.mask2former import normalize
from maskclip.proposals.mask_rcnn import boxes_of_masks
from maskclip.settings import Mask2FormerConfig, MaskRCNNConfig, TrainingConfig
from maskclip.training.augmentation import Example, StepExamples
from maskclip.training.detectron2 import detectron2_batch, detectron2_loss
from maskclip.training.finished import CHECKPOINT, finish, holds_finished, tell
from maskclip.training.fit import Training, fit, join_processes
from maskclip.training.losses import masks_per_process

FILES = ("network.safetensors", "curves.csv")  # of a finished training, beside its record
# What does not change the trained weights: how they are trained, and how the network proposes afterwards.
UNRELATED = {
    Mask2FormerConfig: ("short_side", "long_side"),
    MaskRCNNConfig: ("short_side", "rpn_proposals", "score_threshold", "nms_threshold", "detections", "mask_stride"),
    TrainingConfig: ("workers", "checkpoint_every"),
}


def train_proposals(
    network: str,
    dataset: Any,
    config: NetworkConfig,
    out_dir: str | Path,
    seed: int = 0,
    *,
    class_aware: bool = False,
    device: str | None = None,
    progress: bool = True,
    retrain: bool = False,
) -> Path:
    """Train a proposal network on a panoptic data set, things and stuff alike, as "object" or by class.

    A killed run, started again, goes on from its last checkpoint and ends with the same weights, bit for bit on one
    CPU setting. `out_dir` ends with `network.safetensors`, `curves.csv` (step, losses, learning rate) and
    `record.json` (what was trained, on what, with which versions). Another training that was there is put beside
    (`maskclip.training.finished`).

    Args:
        network: "mask2former" or "mask_rcnn".
        dataset: a `maskclip.data` data set with segments.
        config: `Mask2FormerConfig` or `MaskRCNNConfig`.
        class_aware: supervise the class head by the data set's categories too (the paper does not).
        device: "cpu" forces the CPU; None takes what accelerate finds.
        retrain: put a finished training beside, too, and train again.

    Returns:
        `out_dir`; at once if it already holds the finished training of the very same thing.

    Raises:
        ValueError: an unknown network, a config of the other network, an empty data set, a batch that does not
            divide among the processes.
        FloatingPointError: the loss is no longer finite.
    """
    if network not in ("mask2former", "mask_rcnn"):
        raise ValueError(f"network is {network!r}; it must be 'mask2former' or 'mask_rcnn'")
    if isinstance(config, Mask2FormerConfig) != (network == "mask2former"):
        raise ValueError(f"{network} cannot be trained with a {type(config).__name__}; give it its own config")
    if len(dataset) == 0:
        raise ValueError(f"the data set {dataset.name} has no images to train on")
    out, on_cpu = Path(out_dir), device == "cpu"
    join_processes(on_cpu, f"{network}.training", config.training.batch)
    record = training_record(network, dataset, config, seed, len(dataset.categories) if class_aware else 1)
    if holds_finished(out, record["hash"], FILES, retrain):
        tell(out, config=record["config"])
        return out

    accelerator = Accelerator(mixed_precision=config.training.mixed_precision, cpu=on_cpu)
    training = _training(network, dataset, config, seed, record, class_aware, accelerator)
    curve = [_shown(row, config.training) for row in fit(training, out / CHECKPOINT, accelerator, progress)]
    if accelerator.is_main_process:
        weights = {name: value.detach().cpu().contiguous() for name, value in training.model.state_dict().items()}
        frame = pd.DataFrame(curve, columns=None if curve else ["step", "loss", "lr"])
        finish(
            out,
            record,
            {
                "network.safetensors": lambda path: save_file(weights, path),
                "curves.csv": lambda path: frame.to_csv(path, index=False, float_format="%g"),
            },
        )
    accelerator.wait_for_everyone()
    return out


def _training(
    network: str,
    dataset: Any,
    config: NetworkConfig,
    seed: int,
    record: dict[str, Any],
    class_aware: bool,
    accelerator: Accelerator,
) -> Training:
    """The network, its optimizer, examples and losses."""
    torch.manual_seed(seed)
    model = build_network(config, record["classes"]).to(accelerator.device)
    if isinstance(config, Mask2FormerConfig):
        model.criterion.get_num_masks = masks_per_process  # type: ignore[union-attr, assignment]
    rank, settings = accelerator.process_index, config.training

    def random_seed(step: int) -> int:  # each process samples other points and boxes
        return int(np.random.SeedSequence([seed, 2, step, rank]).generate_state(1)[0])

    return Training(
        name=network,
        hash=record["hash"],
        model=model,
        optimizer=build_optimizer(model, settings),
        learning_rate=lambda step: learning_rate(step, settings),
        batches=lambda first: _batches(dataset, config, seed, range(first, settings.steps), accelerator),
        losses=lambda examples: network_losses(model, examples, config, class_aware),
        random_seed=random_seed,
        settings=settings,
    )


def _batches(
    dataset: Any, config: NetworkConfig, seed: int, steps: range, accelerator: Accelerator
) -> Iterable[list[Any]]:
    """This process's share of the batch of each of these steps."""
    batch, share = config.training.batch, config.training.batch // accelerator.num_processes
    starts = [step * batch + accelerator.process_index * share for step in steps]
    collate: Callable[[list[Example]], list[Any]] = list
    if isinstance(config, MaskRCNNConfig) and config.implementation == "detectron2":
        collate = partial(detectron2_batch, config=config)
    return DataLoader(
        StepExamples(dataset, config.training, seed),
        batch_sampler=[list(range(start, start + share)) for start in starts],
        num_workers=config.training.workers,
        collate_fn=collate,
    )


def _shown(row: dict[str, float], training: TrainingConfig) -> dict[str, float]:
    """A row of curves.csv."""
    step = int(row["step"])
    return {name: round(value, 6) for name, value in row.items()} | {"lr": learning_rate(step, training)}


def network_losses(
    model: nn.Module, examples: list[Any], config: NetworkConfig, class_aware: bool
) -> dict[str, Tensor]:
    """The losses of one batch by name; "loss" is their sum, which is minimized."""
    if isinstance(config, MaskRCNNConfig) and config.implementation == "detectron2":
        losses = detectron2_loss(model, examples, class_aware)
    else:
        device = next(model.parameters()).device
        images = [example.image.to(device) for example in examples]
        masks = [example.masks.to(device) for example in examples]
        classes = [example.classes.to(device) * int(class_aware) for example in examples]
        if isinstance(config, Mask2FormerConfig):
            return {"loss": mask2former_loss(model, images, masks, classes)}
        losses = mask_rcnn_loss(model, images, masks, classes)
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def mask2former_loss(model: nn.Module, images: list[Tensor], masks: list[Tensor], classes: list[Tensor]) -> Tensor:
    """Mask2Former's loss: 2 CE + 5 dice + 5 BCE at sampled points, Hungarian matching, every decoder layer supervised.

    Args:
        images: per image `[3, H, W]`, 0 to 255, all of one size.
        masks: per image float `[n, H, W]` of 0 and 1; n may be 0, or exceed the queries (the surplus stays unmatched).
        classes: per image int64 `[n]`, all 0 without class supervision.
    """
    output = model(pixel_values=normalize(torch.stack(images)), mask_labels=masks, class_labels=classes)
    return output.loss.squeeze()


def mask_rcnn_loss(
    model: nn.Module, images: list[Tensor], masks: list[Tensor], classes: list[Tensor]
) -> dict[str, Tensor]:
    """Mask R-CNN's losses by name: objectness and boxes of the RPN, class, box and mask of the heads.

    Args:
        images: per image `[3, H, W]`, 0 to 255, any sizes.
        masks: per image `[n, H, W]` of 0 and 1, each non-empty; n may be 0.
        classes: per image int64 `[n]`, counted from 0 (background is torchvision's own 0 and is added here).
    """
    targets = [
        {"boxes": boxes_of_masks(mask > 0), "labels": label + 1, "masks": mask.to(torch.uint8)}
        for mask, label in zip(masks, classes)
    ]
    return model([image / 255 for image in images], targets)


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a tenth at each milestone, or a cosine to zero."""
    warmup = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * step / max(1, training.steps)))
    else:
        decay = 0.1 ** sum(step >= milestone * training.steps for milestone in training.milestones)
    return training.learning_rate * warmup * decay


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; the backbone at its own rate, no weight decay on norms, biases of norms and embeddings."""
    undecayed = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            in_backbone = "pixel_level_module.encoder" in path or path.startswith(
                ("backbone.body", "backbone.bottom_up")
            )
            factor = training.backbone_factor if in_backbone else 1.0
            decay = 0.0 if isinstance(module, undecayed) or name == "level_embed" else training.weight_decay
            groups.setdefault((factor, decay), []).append(parameter)
    options = [
        {"params": parameters, "lr": training.learning_rate * factor, "weight_decay": decay, "factor": factor}
        for (factor, decay), parameters in groups.items()
    ]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=training.learning_rate)
    return torch.optim.SGD(options, lr=training.learning_rate, momentum=0.9)


def training_record(network: str, dataset: Any, config: NetworkConfig, seed: int, classes: int) -> dict[str, Any]:
    """What `record.json` says; its hash changes with all that changes the trained weights, code and versions aside."""
    settings = json.loads(json.dumps(dataclasses.asdict(config)))  # lists for tuples, as it will be read
    related = {name: value for name, value in settings.items() if name not in UNRELATED[type(config)]}
    related["training"] = {
        name: value for name, value in settings["training"].items() if name not in UNRELATED[TrainingConfig]
    }
    begun_with = {
        path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        for path in (config.backbone.weights, config.start)
        if path is not None and Path(path).is_file()
    }
    identity = {
        "network": network,
        "config": related,
        "classes": classes,
        "seed": seed,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint(),
        "begun_with": begun_with,
    }
    versions = {}
    for package in ("torch", "torchvision", "transformers", "accelerate", "detectron2"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        **identity,
        "hash": settings_hash(identity),
        "config": settings,
        "implementation": getattr(config, "implementation", "transformers"),
        "trained_categories": [category.name for category in dataset.categories],
        "versions": versions,
    }
