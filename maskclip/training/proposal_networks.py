"""Training of a proposal network without class supervision (Sec. 3.1, 4.2), resumable to the bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from maskclip.files import code_digest, file_digests, finished, load_checkpoint, save_checkpoint, write_atomically
from maskclip.proposals.detectron2 import detectron2_batches, detectron2_loss
from maskclip.proposals.load import NetworkConfig, build_network
from maskclip.proposals.mask2former import mask2former_loss
from maskclip.proposals.mask_rcnn import mask_rcnn_loss
from maskclip.settings import Mask2FormerConfig, MaskRCNNConfig, TrainingConfig
from maskclip.training.augmentation import StepExamples

FILES = ("network.safetensors", "curves.csv")  # of a finished training, beside its record


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
) -> Path:
    """Train a proposal network on a panoptic data set, things and stuff alike, as "object" or by class.

    Every `checkpoint_every` steps the whole state is written atomically; a killed run, started again, goes on from
    there and ends with the same weights, bit for bit on one CPU setting; by other code it begins anew. `out_dir` ends
    with `network.safetensors`, `curves.csv` (step, losses, learning rate) and `record.json` (what was trained, on what,
    with which versions, and digests of both).

    Args:
        network: "mask2former" or "mask_rcnn".
        dataset: a `maskclip.data` data set with segments.
        config: `Mask2FormerConfig` or `MaskRCNNConfig`.
        class_aware: supervise the class head by the data set's categories too (the paper does not).
        device: "cpu" forces the CPU; None takes what accelerate finds.

    Returns:
        `out_dir`; at once if it already holds the finished training of the very same thing.

    Raises:
        ValueError: an unknown network, a config of the other network, an empty data set.
        FloatingPointError: the loss is no longer finite.
    """
    if network not in ("mask2former", "mask_rcnn"):
        raise ValueError(f"network is {network!r}; it must be 'mask2former' or 'mask_rcnn'")
    if isinstance(config, Mask2FormerConfig) != (network == "mask2former"):
        raise ValueError(f"{network} cannot be trained with a {type(config).__name__}; give it its own config")
    if len(dataset) == 0:
        raise ValueError(f"the data set {dataset.name} has no images to train on")
    out_dir, training = Path(out_dir), config.training
    classes = len(dataset.categories) if class_aware else 1
    record = training_record(network, dataset, config, seed, classes)
    if finished(out_dir, record, FILES):
        return out_dir

    accelerator = Accelerator(mixed_precision=training.mixed_precision, cpu=device == "cpu")
    torch.manual_seed(seed)
    model = build_network(config, classes)
    optimizer = build_optimizer(model, training)
    model, optimizer = accelerator.prepare(model, optimizer)
    checkpoint = out_dir / "checkpoint.pt"
    first, curves = _resume(checkpoint, record, model, optimizer, accelerator)
    model.train()

    steps = range(first, training.steps)
    silent = not (progress and accelerator.is_main_process)
    bar = tqdm(steps, desc=network, initial=first, total=training.steps, mininterval=5, disable=silent)
    for step, examples in zip(bar, _batches(dataset, config, seed, first, accelerator)):
        # drawn anew for each step and process, so that the points and boxes sampled do not depend on the past
        torch.manual_seed(int(np.random.SeedSequence([seed, 2, step, accelerator.process_index]).generate_state(1)[0]))
        rate = learning_rate(step, training)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with accelerator.autocast():
            losses = compute_losses(model, examples, config, class_aware)
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{network}: the loss is {loss.item()} at step {step}; lower the learning rate")
        optimizer.zero_grad()
        accelerator.backward(loss)
        if training.gradient_norm:
            accelerator.clip_grad_norm_(model.parameters(), training.gradient_norm)
        optimizer.step()
        shown = accelerator.reduce({name: value.detach().float() for name, value in losses.items()}, "mean")
        curves.append({"step": step, **{name: round(value.item(), 6) for name, value in shown.items()}, "lr": rate})
        bar.set_postfix(loss=f"{np.mean([row['loss'] for row in curves[-20:]]):.3f}", refresh=False)
        if (step + 1) % training.checkpoint_every == 0 and step + 1 < training.steps and accelerator.is_main_process:
            state = {"fingerprint": record["fingerprint"], "code": record["code"]}
            state |= {"step": step + 1, "curves": curves}
            state |= {"model": accelerator.unwrap_model(model).state_dict(), "optimizer": optimizer.state_dict()}
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            save_checkpoint(checkpoint, state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_network(out_dir, accelerator.unwrap_model(model).state_dict(), record, curves)
        checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return out_dir


def compute_losses(
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
    return {"loss": torch.stack(list(losses.values())).sum(), **{name: loss.detach() for name, loss in losses.items()}}


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a tenth at each milestone, or a cosine to zero."""
    warmup = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * step / max(1, training.steps)))
    elif training.schedule == "steps":
        decay = 0.1 ** sum(step >= milestone * training.steps for milestone in training.milestones)
    else:
        raise ValueError(f"schedule is {training.schedule!r}; it must be 'steps' or 'cosine'")
    return training.learning_rate * warmup * decay


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; the backbone at its own rate, no weight decay on norms, biases of norms and embeddings."""
    if training.optimizer not in ("adamw", "sgd"):
        raise ValueError(f"optimizer is {training.optimizer!r}; it must be 'adamw' or 'sgd'")
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
    """What `record.json` says; its fingerprint changes with all but the code that changes the trained weights."""
    identity = {
        "network": network,
        "config": dataclasses.asdict(config),
        "classes": classes,
        "seed": seed,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint(),
        "begun_with": {
            path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
            for path in (config.backbone.weights, config.start)
            if path is not None and Path(path).is_file()
        },
    }
    relevant = dataclasses.asdict(config.training)
    for name in ("workers", "checkpoint_every"):
        del relevant[name]
    hashed = json.dumps({**identity, "config": {**dataclasses.asdict(config), "training": relevant}}, sort_keys=True)
    versions = {}
    for package in ("torch", "torchvision", "transformers", "accelerate", "detectron2"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    implementation = config.implementation if isinstance(config, MaskRCNNConfig) else "transformers"
    return {
        **identity,
        "implementation": implementation,
        "fingerprint": hashlib.sha256(hashed.encode()).hexdigest()[:16],
        "code": code_digest("training", "settings.py", "data", "proposals"),
        "trained_categories": [category.name for category in dataset.categories],
        "versions": versions,
    }


def write_network(
    out_dir: Path, state: dict[str, Tensor], record: dict[str, Any], curves: list[dict[str, float]]
) -> None:
    """Weights and curves first, the record last: whoever finds the record finds everything."""
    weights = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(out_dir / "network.safetensors", lambda path: save_file(weights, path))
    names = list(curves[0]) if curves else ["step", "loss", "lr"]
    rows = [",".join(names)] + [",".join(f"{row[name]:g}" for name in names) for row in curves]
    write_text(out_dir / "curves.csv", "\n".join(rows) + "\n")
    write_text(out_dir / "record.json", json.dumps({**record, "files": file_digests(out_dir, FILES)}, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def _resume(
    checkpoint: Path,
    record: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[int, list[dict[str, float]]]:
    """Load the state of a run of the very same training by the same code: (its next step, its curves), or (0, [])."""
    if not checkpoint.is_file():
        return 0, []
    state = load_checkpoint(checkpoint, accelerator.device)
    if any(state.get(key) != record[key] for key in ("fingerprint", "code")):
        accelerator.print(f"{checkpoint} belongs to another training or other code; starting afresh")
        return 0, []
    accelerator.unwrap_model(model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["step"], state["curves"]


def _batches(
    dataset: Any, config: NetworkConfig, seed: int, first: int, accelerator: Accelerator
) -> Iterator[list[Any]]:
    """This process's share of each step's batch, from step `first` on."""
    training = config.training
    if training.batch % accelerator.num_processes:
        raise ValueError(
            f"a batch of {training.batch} does not divide among {accelerator.num_processes} processes; "
            "set the network's training.batch to a multiple"
        )
    share = training.batch // accelerator.num_processes
    start = accelerator.process_index * share
    numbers = [
        list(range(step * training.batch + start, step * training.batch + start + share))
        for step in range(first, training.steps)
    ]
    examples = StepExamples(dataset, training, seed)
    if isinstance(config, MaskRCNNConfig) and config.implementation == "detectron2":
        yield from detectron2_batches(examples, config, numbers)
    else:
        yield from DataLoader(examples, batch_sampler=numbers, num_workers=training.workers, collate_fn=list)
