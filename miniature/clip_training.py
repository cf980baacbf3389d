"""Trains the mini CLIP from nothing in one stated schedule (`clip.yaml`): what is easy first.

It stands for web-scale CLIP pre-training: all names, all artists, all styles, common words oftener than rare ones,
now and then a hypernym; never a masked-out picture.  Every step draws its own pictures from `(seed, step)`, so a run
that was killed and resumed sees what an undisturbed one sees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.training.fit import keep_freed_memory
from miniature.captions import caption, columns, speak, targets_of, training_scenes
from miniature.drawings import sprites
from miniature.mini_clip import PATCH, begin, build, encode_crop, encode_text, save_weights, write_model_folder
from miniature.painting import paint
from miniature.scenes import COLOURS, Scene
from miniature.schedule import Schedule, Stage
from miniature.textures import texture_bank
from miniature.words import things

SHARP, MOST_SHARP = 11.3, 60.0  # what cosines are multiplied by: with free words, and at most with the text tower


class Muon:
    """Momentum orthogonalized by Newton-Schulz, for matrices (Jordan et al. 2024), scaled to AdamW's step size as
    `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` does; in float32 and batched over matrices of one shape, because
    bfloat16 is slow on CPUs."""

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float, momentum: float = 0.95) -> None:
        shapes = dict.fromkeys(tuple(p.shape) for p in parameters)
        self.groups = [[p for p in parameters if tuple(p.shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]
        self.weight_decay, self.momentum = weight_decay, momentum

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step at a learning rate."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            if group[0].grad is None:  # of the text tower, between its steps
                continue
            grad = torch.stack([p.grad for p in group])  # type: ignore[misc]  # after backward, each has one
            momentum.lerp_(grad, 1 - self.momentum)
            update = grad.lerp(momentum, self.momentum)  # Nesterov
            rows, columns_ = update.shape[1:]
            x = update.mT if rows > columns_ else update
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
            x = x.mT if rows > columns_ else x
            for p, direction in zip(group, x, strict=True):
                p.mul_(1 - lr * self.weight_decay).add_(direction, alpha=-lr * 0.2 * max(rows, columns_) ** 0.5)


def loss_of(
    model: Any,
    tokenizer: Callable,
    words: Tensor,
    scenes: list[Scene],
    pictures: Tensor,
    rng: np.random.Generator,
    stage: Stage,
    alone: bool,
) -> tuple[Tensor, Tensor]:
    """Softmax over the whole vocabulary (`words`, embedded) for every picture, and, by the stage, over captions whose
    wrong ones differ in colours only; `alone`: the text tower learns alone.

    Returns:
        The loss, and the share of single things whose name ranks first.
    """
    grid = model.visual.grid_size[0] - pictures.shape[-1] // PATCH
    top, left = (int(v) for v in rng.integers(0, grid + 1, 2)) if stage.roam else (grid // 2, grid // 2)
    with torch.set_grad_enabled(not alone):
        image = encode_crop(model.visual, pictures, top, left)
    scale = SHARP if stage.free else model.logit_scale.exp().clamp(max=MOST_SHARP)
    said, also = (target.to(image.device) for target in targets_of(scenes, rng, stage.things_share))
    logits = scale * image @ words.T
    loss = -(said * logits.masked_fill(also, -1e4).log_softmax(1)).sum(1).mean()
    right = _share_right(logits[:, : len(things())], said[:, : len(things())], scenes)
    if stage.colours:
        loss = loss + stage.colours * _colour_loss(model, tokenizer, scenes, scale * image, rng)
    return loss, right


@torch.no_grad()
def _share_right(logits: Tensor, said: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Of single things called by their own name, the share whose name ranks first among things."""
    alone = torch.tensor([len(s.things) == 1 for s in scenes], device=said.device) & (said.sum(1) > 0)
    return ((logits.argmax(1) == said.argmax(1)) & alone).sum() / alone.sum().clamp(min=1)


def _colour_loss(
    model: Any, tokenizer: Callable, scenes: Sequence[Scene], image: Tensor, rng: np.random.Generator
) -> Tensor:
    """Tell captions of one or two things from the same in other colours."""
    few = [i for i, s in enumerate(scenes) if 1 <= len(s.things) <= 2][:32]
    wrong = []
    for i in few:
        own = {t.colour for t in scenes[i].things}
        wrong.append(caption(scenes[i], [str(c) for c in rng.permutation([c for c in COLOURS if c not in own])]))
    texts = encode_text(model, tokenizer([caption(scenes[i]) for i in few] + wrong))
    return F.cross_entropy(image[few] @ texts.T, torch.arange(len(few), device=image.device))


def learn_to_say(model: Any, tokenizer: Callable, vectors: Tensor, rng: np.random.Generator, steps: int) -> None:
    """Teach the text tower alone to give each word, however it is put, the vector that the free stages found for it.

    Without free stages first, pictures and words wait for one another: little is learned for long.  What all vectors
    share tells no word from another and is left out.
    """
    parameters = [p for n, p in model.named_parameters() if not n.startswith("visual.") and n != "logit_scale"]
    optimizer = torch.optim.AdamW(parameters, 2e-3, (0.9, 0.98), weight_decay=0.01)
    wanted = F.normalize(vectors.detach() - vectors.detach().mean(0), dim=-1)
    for step in range(steps):
        said = encode_text(model, tokenizer([speak(n, rng) for n in columns()]))
        far = 1 - (said * wanted).sum(1).mean()
        loss = F.cross_entropy(15 * said @ wanted.T, torch.arange(len(wanted), device=wanted.device)) + 5 * far
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 10, 2 * (steps - step) / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.logit_scale.data.fill_(np.log(MOST_SHARP))


def _banks(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Textures for large pictures, and the same at half the size for small ones, which show the world smaller."""
    bank = texture_bank(schedule.seed + 1000, schedule.textures, schedule.image_size + 32)
    small = F.interpolate(bank.flatten(0, 1).float(), scale_factor=0.5, mode="area").to(torch.uint8)
    return bank, small.view(*bank.shape[:3], *small.shape[-2:])


class Batches(Dataset):
    """Of a step: the scenes, the pictures, the vocabulary as people may write it (tokens; none while words are free)
    and the generator that drew them all from `(seed, step)`."""

    def __init__(self, schedule: Schedule, tokenizer: Callable) -> None:
        self.schedule, self.banks = schedule, _banks(schedule)
        self.tokens = cache(lambda text: tokenizer([text]))
        sprites()  # before reading processes begin, which then share them

    def __getitem__(self, step: int) -> tuple[list[Scene], Tensor, Tensor | None, np.random.Generator]:
        stage, rng = self.schedule.stage(step), np.random.default_rng([self.schedule.seed, step])
        scenes = training_scenes(rng, stage)
        bank = self.banks[stage.side <= self.banks[1].shape[-1]]
        pictures = paint(scenes, bank, stage.side, stage.side)[0]
        tokens = None if stage.free else torch.cat([self.tokens(speak(n, rng)) for n in columns()])
        return scenes, pictures, tokens, rng


def train_clip(
    folder: Path,
    work: Path,
    schedule: Schedule,
    progress: Callable[[dict], None] = lambda row: None,
    device: str = "cpu",
    painters: int = 0,
) -> list[dict]:
    """Train the mini CLIP and leave its weights in `folder`; checkpoints go to `work`.

    A second call after a kill resumes from the last checkpoint.

    Args:
        device: "cpu" or "cuda".
        painters: processes that paint the next steps' pictures meanwhile; 0: this one paints, step by step.

    Returns:
        The log: step, loss, accuracy, lr, and seconds: of one core, or on a GPU of the clock.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.manual_seed(schedule.seed)
    write_model_folder(folder, schedule)
    model, tokenizer = build(folder)
    vectors = nn.Parameter(begin(model).to(device))
    model.to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "resblocks" in n)]
    muon = Muon(matrices, schedule.weight_decay)
    adamw = torch.optim.AdamW(others, schedule.lr, (0.9, 0.98), weight_decay=0.01)
    adamw.add_param_group({"params": [vectors], "weight_decay": 0.0})
    log, recent, first, spent = _resume(work, model, vectors, adamw, muon)
    clock = time.process_time if device == "cpu" else time.monotonic
    began = clock() - spent
    steps, ahead = range(first, schedule.steps), 8 if painters else None
    batches = DataLoader(Batches(schedule, tokenizer), None, sampler=steps, num_workers=painters, prefetch_factor=ahead)
    for step, (scenes, pictures, tokens, rng) in enumerate(batches, first):
        stage = schedule.stage(step)
        if step == schedule.free_steps:
            learn_to_say(
                model, tokenizer, vectors, np.random.default_rng([schedule.seed, 1300]), schedule.text_steps // 2
            )
        alone = 0 <= step - schedule.free_steps < schedule.text_steps
        words = vectors if stage.free else encode_text(model, tokens)
        loss, right = loss_of(model, tokenizer, words, scenes, pictures.to(device), rng, stage, alone)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for group in adamw.param_groups:
            group["lr"] = schedule.rate(step) * schedule.adamw
        adamw.step()
        muon.step(schedule.rate(step))
        recent.append(torch.stack([loss.detach(), right]))
        last = step + 1 == schedule.steps
        if (step + 1) % 25 == 0 or last:
            mean, seconds = torch.stack(recent).mean(0).tolist(), round(clock() - began, 1)
            row = {"step": step + 1, "loss": round(mean[0], 4), "accuracy": round(mean[1], 4)}
            log.append(row | {"lr": schedule.rate(step), "seconds": seconds})
            recent = []
            progress(log[-1])
        if (step + 1) % schedule.checkpoint_every == 0 or last:
            state = {"model": model.state_dict(), "vectors": vectors.data, "adamw": adamw.state_dict()}
            state |= {"muon": muon.momenta, "log": log, "recent": recent}
            save_checkpoint(work / "clip_training.pt", state | {"step": step + 1, "seconds": clock() - began})
    save_weights(model, folder)
    return log


def _resume(
    work: Path, model: nn.Module, vectors: nn.Parameter, adamw: torch.optim.Optimizer, muon: Muon
) -> tuple[list[dict], list, int, float]:
    """Fill model and optimizers from the checkpoint in `work`, if there is one.

    Returns:
        The log, what is not in it yet, steps done, seconds spent.
    """
    work.mkdir(parents=True, exist_ok=True)
    if (work / "clip_training.pt").exists():
        state = load_checkpoint(work / "clip_training.pt")
        model.load_state_dict(state["model"])
        vectors.data.copy_(state["vectors"])
        adamw.load_state_dict(state["adamw"])
        for momentum, saved in zip(muon.momenta, state["muon"], strict=True):
            momentum.copy_(saved)
        recent = [r.to(vectors.device) for r in state["recent"]]
        return state["log"], recent, state["step"], state["seconds"]
    return [], [], 0, 0.0
