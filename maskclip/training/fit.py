"""One training loop for both stages, on accelerate: several processes, mixed precision, resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.settings import MaskClipTraining, TrainingConfig


@dataclass
class Training:
    """What is trained, and how.

    Attributes:
        model: of which all that requires a gradient is trained; on its device already.
        learning_rate: of a step; a parameter group's own `factor` multiplies it.
        batches: from a step on, this process's share of each batch; a pure function of the step.
        losses: scalars of a batch by name; "loss" is minimized, all are drawn.
        random_seed: of all that is drawn in a step, so that nothing depends on the steps before.
    """

    name: str
    hash: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    batches: Callable[[int], Iterable[Any]]
    losses: Callable[[Any], dict[str, Tensor]]
    random_seed: Callable[[int], int]
    settings: MaskClipTraining | TrainingConfig

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [value for value in self.model.parameters() if value.requires_grad]


def join_processes(on_cpu: bool, name: str, batch: int) -> PartialState:
    """Find the other processes of this training; accelerate must hear first of all that they are on the CPU, or each
    would take itself for the only one.

    Raises:
        ValueError: the batch does not divide among them.
    """
    state = PartialState(cpu=on_cpu or not torch.accelerator.is_available())
    if batch % state.num_processes:
        raise ValueError(
            f"a batch of {batch} does not divide among {state.num_processes} processes; set {name}.batch to a multiple"
        )
    return state


def fit(
    training: Training, checkpoint: Path, accelerator: Accelerator, progress: bool = True
) -> list[dict[str, float]]:
    """Train the model in place; a checkpoint of the same hash is gone on with, and left there at the end.

    Returns:
        The curve: a row for each step, with `step` and the losses' means over the processes.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    settings, optimizer = training.settings, accelerator.prepare(training.optimizer)
    training.optimizer = optimizer
    if accelerator.num_processes > 1:
        with torch.no_grad():
            for value in training.parameters:  # every process begins where the first one does
                value.copy_(broadcast(value))
    curve = _resume(training, checkpoint, accelerator)
    training.model.train()
    steps, silent = range(len(curve), settings.steps), not (progress and accelerator.is_main_process)
    bar = tqdm(steps, training.name, settings.steps, initial=len(curve), mininterval=5, unit="step", disable=silent)
    for step, batch in zip(bar, training.batches(len(curve))):
        torch.manual_seed(training.random_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step) * group.get("factor", 1.0)
        curve.append({"step": step, **_step(training, batch, step, accelerator)})
        bar.set_postfix(loss=f"{curve[-1]['loss']:.3f}", refresh=False)
        whole = (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps
        if whole and accelerator.is_main_process:
            _save(training, curve, checkpoint, accelerator)
    return curve


def _step(training: Training, batch: Any, step: int, accelerator: Accelerator) -> dict[str, float]:
    """One step on every process's share of a batch, with the mean of their gradients; its losses."""
    with accelerator.autocast():
        losses = {name: value.float() for name, value in training.losses(batch).items()}
    loss = losses["loss"]
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"{training.name}: the loss is {loss.item()} at step {step}; lower the learning rate or use float32"
        )
    parameters = training.parameters
    training.optimizer.zero_grad()
    if loss.requires_grad:  # not where no picture of the batch has a segment
        accelerator.backward(loss)
    if accelerator.num_processes > 1:
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
        vector_to_parameters(accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
        for value, gradient in zip(parameters, gradients):
            value.grad = gradient
    if training.settings.gradient_norm:
        accelerator.clip_grad_norm_(parameters, training.settings.gradient_norm)
    training.optimizer.step()
    shown = accelerator.reduce({name: value.detach() for name, value in losses.items()}, "mean")
    return {name: value.item() for name, value in shown.items()}


def _save(training: Training, curve: list[dict[str, float]], checkpoint: Path, accelerator: Accelerator) -> None:
    """All that the next steps depend on; weights that are frozen do not change."""
    frozen = {name for name, value in training.model.named_parameters() if not value.requires_grad}
    weights = {name: value for name, value in training.model.state_dict().items() if name not in frozen}
    state = {"hash": training.hash, "curve": curve, "model": weights, "optimizer": training.optimizer.state_dict()}
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    save_checkpoint(checkpoint, state)


def _resume(training: Training, checkpoint: Path, accelerator: Accelerator) -> list[dict[str, float]]:
    """Load the state of a run that was killed; its curve, which is empty where there was none."""
    if not checkpoint.is_file():
        return []
    state = load_checkpoint(checkpoint, accelerator.device)
    training.model.load_state_dict(state["model"], strict=False)
    training.optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    accelerator.print(f"{training.name}: resuming at step {len(state['curve'])} of {training.settings.steps}")
    return state["curve"]
