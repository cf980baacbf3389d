"""One training loop for both stages, on accelerate: several processes, mixed precision, resumable to the bit."""

import ctypes
import gc
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.settings import MaskClipTraining, TrainingConfig

UNDECAYED = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)


@dataclass
class Training:
    """What is trained, and how.

    Attributes:
        model: of which all that requires a gradient is trained; on its device already.
        learning_rate: of a step; a parameter group's own `factor` multiplies it.
        examples: item `n` is example `n % batch` of step `n // batch`, and depends on nothing else.
        losses: scalars of a list of examples by name; "loss" is minimized, all are drawn.
        random_seed: of all that is drawn in a step, so that nothing depends on the steps before.
        collate: what a reading process makes of the examples of a step.
    """

    name: str
    hash: str
    accelerator: Accelerator
    settings: MaskClipTraining | TrainingConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    examples: Dataset
    losses: Callable[[list[Any]], dict[str, Tensor]]
    random_seed: Callable[[int], int]
    collate: Callable[[list[Any]], list[Any]] = list

    def __post_init__(self) -> None:
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]


def join_processes(name: str, batch: int, on_cpu: bool) -> None:
    """Find the other processes of this training: accelerate must hear first of all that they are on the CPU. One
    process may train again, on another device or in another precision, of which accelerate would keep the former.

    Raises:
        ValueError: the batch does not divide among them.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        AcceleratorState._reset_state(reset_partial_state=True)
    processes = PartialState(cpu=on_cpu or not torch.accelerator.is_available()).num_processes
    if batch % processes:
        raise ValueError(
            f"a batch of {batch} does not divide among {processes} processes; set {name}.batch to a multiple"
        )


def parameter_groups(
    model: nn.Module, weight_decay: float, factors: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """What an optimizer trains: norms and embeddings without weight decay, and modules whose path has a part of
    `factors` in it at so many times the learning rate of the rest."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        factor = next((factor for part, factor in factors.items() if part in path), 1.0)
        for name, parameter in module.named_parameters(recurse=False):
            decay = 0.0 if isinstance(module, UNDECAYED) or name == "level_embed" else weight_decay
            if parameter.requires_grad:
                groups.setdefault((factor, decay), []).append(parameter)
    return [{"params": group, "factor": factor, "weight_decay": decay} for (factor, decay), group in groups.items()]


def fit(training: Training, checkpoint: Path, progress: bool = True) -> list[dict[str, float]]:
    """Train the model in place; a checkpoint of the same hash is gone on with, and left there at the end.

    Returns:
        The curve: a row for each step, with `step` and the losses' means over the processes.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    settings, accelerator = training.settings, training.accelerator
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    with torch.no_grad():
        for value in training.parameters:  # every process begins where the first one does
            value.copy_(broadcast(value))
    curve = _resume(training, checkpoint) if checkpoint.is_file() else []
    training.model.train()
    steps, silent = range(len(curve), settings.steps), not (progress and accelerator.is_main_process)
    bar = tqdm(steps, training.name, settings.steps, initial=len(curve), mininterval=5, unit="step", disable=silent)
    rank, processes = accelerator.process_index, accelerator.num_processes
    shares = (list(range(step * settings.batch + rank, (step + 1) * settings.batch, processes)) for step in steps)
    loader = DataLoader(
        training.examples, batch_sampler=shares, num_workers=settings.workers, collate_fn=training.collate,
        multiprocessing_context="fork" if settings.workers else None,  # elsewhere, data sets' readers do not pickle
    )  # fmt: skip
    gc.freeze()  # workers share what a data set holds in memory, unless their garbage collection marks it
    for step, batch in zip(bar, loader):
        torch.manual_seed(training.random_seed(step))
        for group in training.optimizer.param_groups:
            group["lr"] = training.learning_rate(step) * group.get("factor", 1.0)
        curve.append({"step": step, **_step(training, batch, step)})
        bar.set_postfix(loss=f"{curve[-1]['loss']:.3f}", refresh=False)
        whole = (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps
        if whole and accelerator.is_main_process:
            _save(training, curve, checkpoint)
    gc.unfreeze()
    return curve


def cosine(step: int, steps: int) -> float:
    """What is left of a learning rate that falls from 1 at the first step to 0 after the last."""
    return 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def keep_freed_memory() -> None:
    """Let this process's glibc keep large freed buffers, not hand them to the kernel and fault them in again at every
    step: small networks train up to a tenth faster on a CPU. Other C libraries stay as they are."""
    with suppress(OSError, AttributeError, TypeError):
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):  # mmap threshold, trim threshold, top pad
            ctypes.CDLL(None).mallopt(option, value)


def _step(training: Training, batch: list[Any], step: int) -> dict[str, float]:
    """One step on every process's share of a batch, with the mean of their gradients; its losses."""
    accelerator, parameters = training.accelerator, training.parameters
    with accelerator.autocast():
        losses = {name: value.float() for name, value in training.losses(batch).items()}
    loss = losses["loss"]
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"{training.name}: the loss is {loss.item()} at step {step}; lower the learning rate, or take bf16 or "
            "float32 (other settings are another training, which begins anew)"
        )
    training.optimizer.zero_grad()
    if loss.requires_grad:  # not where no picture of the batch has a segment
        accelerator.backward(loss)
    if accelerator.num_processes > 1:
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
        vector_to_parameters(accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
        for value, gradient in zip(parameters, gradients):
            value.grad = gradient
    if loss.requires_grad or accelerator.num_processes > 1:  # fp16's scaler takes no step without a gradient
        if training.settings.gradient_norm:
            accelerator.clip_grad_norm_(parameters, training.settings.gradient_norm)
        training.optimizer.step()
    shown = accelerator.reduce({name: value.detach() for name, value in losses.items()}, "mean")
    return {name: value.item() for name, value in shown.items()}


def _save(training: Training, curve: list[dict[str, float]], checkpoint: Path) -> None:
    """All that the next steps depend on; weights that are frozen do not change."""
    frozen = {name for name, value in training.model.named_parameters() if not value.requires_grad}
    weights = {name: value for name, value in training.model.state_dict().items() if name not in frozen}
    state = {"hash": training.hash, "curve": curve, "model": weights, "optimizer": training.optimizer.state_dict()}
    if (scaler := training.accelerator.scaler) is not None:
        state["scaler"] = scaler.state_dict()
    save_checkpoint(checkpoint, state)


def _resume(training: Training, checkpoint: Path) -> list[dict[str, float]]:
    """Load the state of a run that was killed; its curve."""
    state = load_checkpoint(checkpoint, training.accelerator.device)
    training.model.load_state_dict(state["model"], strict=False)
    training.optimizer.load_state_dict(state["optimizer"])
    if training.accelerator.scaler is not None and "scaler" in state:
        training.accelerator.scaler.load_state_dict(state["scaler"])
    training.accelerator.print(f"{training.name}: resuming at step {len(state['curve'])} of {training.settings.steps}")
    return state["curve"]
