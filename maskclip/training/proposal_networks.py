"""Training of a proposal network without class supervision (Sec. 3.1, 4.2), resumable to the bit."""

import hashlib
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from safetensors.torch import save
from torch import Tensor, nn

from maskclip.files import settings_hash
from maskclip.proposals.load import NetworkConfig, build_network, source_kind, start_classes
from maskclip.proposals.mask2former import normalize
from maskclip.proposals.mask_rcnn import boxes_of_masks
from maskclip.settings import Mask2FormerConfig, MaskRCNNConfig, TrainingConfig
from maskclip.training.augmentation import StepExamples, detectron2_batch
from maskclip.training.finished import CHECKPOINT, finish, holds_finished, tell
from maskclip.training.fit import Training, cosine, fit, join_processes, parameter_groups
from maskclip.training.losses import masks_per_process

BACKBONES = ("pixel_level_module.encoder", "backbone.body", "backbone.bottom_up")  # where networks have them
FILES = ("network.safetensors", "curves.csv")  # of a finished training, beside its record
PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "detectron2")
# What does not change the trained weights: how they are trained, and how the network proposes afterwards; Mask R-CNN
# is trained on pictures with a bound on the long side, too.
HOW = {"training": {"workers", "checkpoint_every"}}
SIZES = ("short_side", "test_sizes")
PROPOSING = ("rpn_proposals", "score_threshold", "nms_threshold", "detections", "mask_stride")
UNRELATED: dict[type, dict[str, Any]] = {
    Mask2FormerConfig: HOW | dict.fromkeys((*SIZES, "long_side"), True),
    MaskRCNNConfig: HOW | dict.fromkeys((*SIZES, *PROPOSING), True),
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

    `out_dir` ends with `network.safetensors`, `curves.csv` (step, losses, learning rate) and `record.json` (what was
    trained, on what, with which versions). A killed training is gone on with to the same weights, bit for bit on one
    CPU setting; a finished one is kept, another one put beside (`maskclip.training.finished`).

    Args:
        network: "mask2former" or "mask_rcnn".
        dataset: a `maskclip.data` data set with segments; None, with 0 steps alone: the network stays as it begins.
        class_aware: supervise the class head by the data set's categories too (the paper does not).
        device: "cpu" forces the CPU; None takes what accelerate finds.
        retrain: put a finished training beside, too, and train again.

    Raises:
        ValueError: an unknown network or another's config, nothing to train on, a batch that does not divide among
            processes.
        FloatingPointError: the loss is no longer finite.
    """
    if not isinstance(config, source_kind(network).settings or ()):
        raise ValueError(f"{network} cannot be trained with a {type(config).__name__}; give it its own config")
    if dataset is None and config.training.steps:
        raise ValueError(f"{network}.training.steps is {config.training.steps}, but there is no data set to train on")
    if dataset is not None and len(dataset) == 0:
        raise ValueError(f"the data set {dataset.name} has no images to train on")
    out, on_cpu = Path(out_dir), device == "cpu"
    join_processes(f"{network}.training", config.training.batch, on_cpu)
    classes = len(dataset.categories) if class_aware else 1
    record = training_record(network, dataset, config, seed, start_classes(config) if dataset is None else classes)
    if holds_finished(out, record["hash"], FILES, retrain):
        tell(out, config=record["config"])
        return out

    if dataset is None:
        torch.manual_seed(seed)
        state = build_network(config, max(1, record["classes"])).state_dict()
        whole = save({name: value.contiguous() for name, value in state.items()})
        finish(out, record, {"network.safetensors": whole, "curves.csv": b"step,loss\n"})
        return out

    accelerator = Accelerator(mixed_precision=config.training.mixed_precision, cpu=on_cpu)
    training = _training(network, dataset, config, seed, record, accelerator)
    curve = fit(training, out / CHECKPOINT, progress)
    table = pd.DataFrame(curve, columns=None if curve else ["step", "loss"]).round(6)
    table["lr"] = [training.learning_rate(step) for step in table["step"]]
    weights = {name: value.detach().cpu().contiguous() for name, value in training.model.state_dict().items()}
    text = table.to_csv(index=False, float_format="%g")
    finish(out, record, {"network.safetensors": save(weights), "curves.csv": text.encode()})
    return out


def _training(
    network: str, dataset: Any, config: NetworkConfig, seed: int, record: dict[str, Any], accelerator: Accelerator
) -> Training:
    """The network, its optimizer, examples and losses."""
    torch.manual_seed(seed)
    model = build_network(config, record["classes"]).to(accelerator.device)
    if isinstance(config, Mask2FormerConfig):
        model.criterion.get_num_masks = masks_per_process  # type: ignore[union-attr, assignment]
    settings = config.training
    groups = parameter_groups(model, settings.weight_decay, dict.fromkeys(BACKBONES, settings.backbone_factor))
    optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else partial(torch.optim.SGD, momentum=0.9)

    def random_seed(step: int) -> int:  # each process samples other points and boxes
        return int(np.random.SeedSequence([seed, 2, step, accelerator.process_index]).generate_state(1)[0])

    return Training(
        name=network,
        hash=record["hash"],
        accelerator=accelerator,
        settings=settings,
        model=model,
        optimizer=optimizer(groups, lr=settings.learning_rate),
        learning_rate=lambda step: learning_rate(step, settings),
        examples=StepExamples(dataset, settings, seed, class_aware=record["classes"] > 1),
        losses=partial(network_losses, model, config=config),
        random_seed=random_seed,
        collate=partial(detectron2_batch, config=config) if _on_detectron2(config) else list,
    )


def _on_detectron2(config: NetworkConfig) -> TypeGuard[MaskRCNNConfig]:
    return isinstance(config, MaskRCNNConfig) and config.implementation == "detectron2"


def network_losses(model: nn.Module, examples: list[Any], config: NetworkConfig) -> dict[str, Tensor]:
    """The losses of one batch by name; "loss" is their sum, which is minimized."""
    if _on_detectron2(config):
        from detectron2.utils.events import EventStorage

        with EventStorage():  # its heads report counts into one
            losses = model(examples)
    else:
        device = next(model.parameters()).device
        images, masks, classes = (
            [getattr(example, part).to(device) for example in examples] for part in ("image", "masks", "classes")
        )
        masks = [mask.float() for mask in masks]  # bool on their way here, which takes a fourth of the room
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
    """Mask R-CNN's losses by name, of RPN and heads; as `mask2former_loss`, but of any sizes and no mask empty."""
    targets = [
        {"boxes": boxes_of_masks(mask > 0), "labels": label + 1, "masks": mask.to(torch.uint8)}  # 0 is background
        for mask, label in zip(masks, classes)
    ]
    return model([image / 255 for image in images], targets)


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a tenth at each milestone, or a cosine to zero."""
    warmup = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.schedule == "cosine":
        decay = cosine(step, training.steps)
    else:
        decay = 0.1 ** sum(step >= milestone * training.steps for milestone in training.milestones)
    return training.learning_rate * warmup * decay


def training_record(network: str, dataset: Any, config: NetworkConfig, seed: int, classes: int) -> dict[str, Any]:
    """What `record.json` says; its hash changes with all that changes the trained weights, code and versions aside."""
    dump = partial(TypeAdapter(type(config)).dump_python, config, mode="json")
    begun_with = {
        path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        for path in (config.backbone.weights, config.start)
        if path is not None and Path(path).is_file()
    }
    identity = {
        "network": network,
        "config": dump(exclude=UNRELATED[type(config)]),
        "classes": classes,
        "seed": seed,
        "dataset": None if dataset is None else dataset.name,
        "dataset_fingerprint": None if dataset is None else dataset.fingerprint(),
        "begun_with": begun_with,
    }
    return {
        **identity,
        "hash": settings_hash(identity),
        "config": dump(),
        "implementation": getattr(config, "implementation", "transformers"),
        "trained_categories": [] if dataset is None else [category.name for category in dataset.categories],
        "versions": {package.name: package.version for package in distributions() if package.name in PACKAGES},
    }
