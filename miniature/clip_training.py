"""Trains the mini CLIP from nothing in one stated schedule (`clip.yaml`): what is easy first, and never a masked-out
picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from maskclip.files import load_checkpoint, save_checkpoint, settings_hash
from maskclip.training.fit import keep_freed_memory
from miniature.captions import caption, columns, speak, targets_of, training_scenes
from miniature.drawings import sprites
from miniature.mini_clip import (
    PATCH,
    begin,
    build,
    encode_crop,
    encode_text,
    grow,
    save_weights,
    write_model_folder,
)
from miniature.painting import paint
from miniature.scenes import COLOURS, Scene
from miniature.schedule import Schedule
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
    and the generator that drew them all from `(seed, step)`, so that a resumed training sees the same."""

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


class Learner:
    """The model and its optimizers, and what they have done so far: all that a checkpoint holds."""

    def __init__(self, folder: Path, schedule: Schedule, device: str) -> None:
        torch.manual_seed(schedule.seed)
        write_model_folder(folder, schedule)
        self.model, self.tokenizer = build(folder, schedule.image_size)
        self.schedule, self.device = schedule, device
        self.vectors = nn.Parameter(begin(self.model).to(device))
        self.model.to(device)
        blocks = {p for n, p in self.model.named_parameters() if p.ndim == 2 and "resblocks" in n}
        self.muon = Muon([p for p in self.model.parameters() if p in blocks], schedule.weight_decay)
        others = [p for p in self.model.parameters() if p not in blocks]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [self.vectors], "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, schedule.lr, (0.9, 0.98), weight_decay=0.01)
        self.log: list[dict] = []
        self.recent: list[Tensor] = []  # losses and shares right that are not in the log yet
        self.before: dict[str, Tensor] = {}  # the weights before the last stage, of which `keep` is kept
        self.step, self.seconds = 0, 0.0

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        state = {"model": self.model.state_dict(), "vectors": self.vectors.data, "adamw": self.adamw.state_dict()}
        state |= {"muon": self.muon.momenta, "log": self.log, "recent": self.recent, "before": self.before}
        save_checkpoint(file, state | {"step": self.step, "seconds": self.seconds})

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint."""
        state = load_checkpoint(file)
        self._fit(int((len(state["model"]["visual.positional_embedding"]) - 1) ** 0.5) * PATCH)
        self.model.load_state_dict(state["model"])
        self.vectors.data.copy_(state["vectors"])
        self.adamw.load_state_dict(state["adamw"])
        for momentum, saved in zip(self.muon.momenta, state["muon"], strict=True):
            momentum.copy_(saved)
        self.recent = [row.to(self.device) for row in state["recent"]]
        self.before = {name: weight.to(self.device) for name, weight in state["before"].items()}
        self.log, self.step, self.seconds = state["log"], state["step"], state["seconds"]

    def learn(self, scenes: list[Scene], pictures: Tensor, tokens: Tensor | None, rng: np.random.Generator) -> None:
        """One step on a batch of `Batches`."""
        stage, since_free = self.schedule.stage(self.step), self.step - self.schedule.free_steps
        if since_free == 0:
            rng_of_words = np.random.default_rng([self.schedule.seed, 1300])
            learn_to_say(self.model, self.tokenizer, self.vectors, rng_of_words, self.schedule.text_steps // 2)
        if stage.seen:
            self._fit(stage.seen)
            pictures = F.interpolate(pictures, (stage.seen, stage.seen), mode="bilinear", antialias=True)
        if self.schedule.keep and stage is self.schedule.stages[-1] and not self.before:
            self.before = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        words = self.vectors if tokens is None else encode_text(self.model, tokens)
        with torch.set_grad_enabled(not 0 <= since_free < self.schedule.text_steps):  # the text tower learns alone
            image = _embed_somewhere(self.model.visual, pictures.to(self.device), stage.roam, rng)
        scale = SHARP if stage.free else self.model.logit_scale.exp().clamp(max=MOST_SHARP)
        said, also = (target.to(self.device) for target in targets_of(scenes, rng))
        logits = scale * image @ words.T
        loss = -(said * logits.masked_fill(also, -1e4).log_softmax(1)).sum(1).mean()
        right = _share_right(logits[:, : len(things())], said[:, : len(things())], scenes)
        if stage.colours:
            loss = loss + stage.colours * _colour_loss(self.model, self.tokenizer, scenes, scale * image, rng)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        rate = self.schedule.rate(self.step)
        for group in self.adamw.param_groups:
            group["lr"] = rate * self.schedule.adamw
        self.adamw.step()
        self.muon.step(rate)
        self.recent.append(torch.stack([loss.detach(), right]))
        self.step += 1

    def _fit(self, size: int) -> None:
        """Make the model's input as large, if it is smaller; positions begin with no momentum then."""
        if size > self.model.visual.image_size[0]:
            grow(self.model.visual, size)
            self.adamw.state.pop(self.model.visual.positional_embedding, None)

    def weights(self) -> dict[str, Tensor]:
        """What comes out: the weights, in part those before the last stage."""
        keep = self.schedule.keep
        return {n: w.lerp(self.before[n], keep) if keep else w for n, w in self.model.state_dict().items()}

    def note(self) -> dict:
        """A line of the log: means since the last one."""
        loss, right = torch.stack(self.recent).mean(0).tolist()
        row = {"step": self.step, "loss": round(loss, 4), "accuracy": round(right, 4)}
        self.log.append(row | {"lr": self.schedule.rate(self.step - 1), "seconds": round(self.seconds, 1)})
        self.recent = []
        return self.log[-1]


def _embed_somewhere(visual: Any, pictures: Tensor, roam: bool, rng: np.random.Generator) -> Tensor:
    """Image embeddings of small pictures that lie anywhere in the large one, or at its middle."""
    room = visual.grid_size[0] - pictures.shape[-1] // PATCH
    top, left = (int(v) for v in rng.integers(0, room + 1, 2)) if roam else (room // 2, room // 2)
    return encode_crop(visual, pictures, top, left)


def train_clip(
    folder: Path, work: Path, schedule: Schedule, progress: Callable[[dict], None] = lambda row: None,
    device: str = "cpu", painters: int = 0,
) -> list[dict]:  # fmt: skip
    """Train the mini CLIP and leave its weights in `folder`; checkpoints go to `work`.

    Softmax over the whole vocabulary for every picture, and, by the stage, over captions whose wrong ones differ in
    colours only.  A second call after a kill resumes from the last checkpoint of the same schedule; another schedule's
    stays beside it.

    Args:
        device: "cpu" or "cuda".
        painters: processes that paint the next steps' pictures meanwhile; 0: this one paints, step by step.

    Returns:
        The log: step, loss, accuracy (the share of single things whose name ranks first), lr, and seconds: of one core,
        or on a GPU of the clock.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)
    learner, checkpoint = Learner(folder, schedule, device), work / f"clip.{settings_hash(asdict(schedule))}.pt"
    if checkpoint.exists():
        learner.resume(checkpoint)
    clock = time.process_time if device == "cpu" else time.monotonic
    began = clock() - learner.seconds
    steps, ahead = range(learner.step, schedule.steps), 8 if painters else None
    batches = Batches(schedule, learner.tokenizer)
    for batch in DataLoader(batches, None, sampler=steps, num_workers=painters, prefetch_factor=ahead):
        learner.learn(*batch)
        learner.seconds, last = clock() - began, learner.step == schedule.steps
        if learner.step % 25 == 0 or last:
            progress(learner.note())
        if learner.step % schedule.checkpoint_every == 0 or last:
            learner.save(checkpoint)
    save_weights(learner.weights(), folder)
    return learner.log
