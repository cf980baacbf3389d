"""Trains the mini CLIP from nothing in one stated schedule (`clip.yaml`): what is easy first.

It stands for web-scale CLIP pre-training: all names, all artists, all styles, common words oftener than rare ones,
now and then a hypernym; never a masked-out picture.  Every step draws its own pictures from `(seed, step)`, so a run
that was killed and resumed sees what an undisturbed one sees.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maskclip.files import load_checkpoint, save_checkpoint, write_atomically
from miniature.anew.painting import paint
from miniature.anew.scenes import COLOURS, GROUNDS, Recipe, Scene, pick, random_ground, random_scene, sticker_of
from miniature.anew.textures import texture_bank
from miniature.anew.words import drawn_by, hypernyms, stuff, things

PATCH = 8
SHARP = 11.3  # times a normalized picture, on free words
TEMPLATES = ("{}", "{}", "{}", "a {}", "a picture of a {}", "a drawing of a {}")


@dataclass(frozen=True)
class Stage:
    """One part of the schedule: `steps` steps of `batch` pictures of `side` pixels, of which a share `plain` shows one
    thing on one colour, a share `single` one thing on stuff, and the rest scenes of up to `most` things."""

    steps: int
    batch: int
    side: int
    artists: tuple[str, ...]
    styles: tuple[str, ...]
    plain: float = 0.0
    single: float = 0.0
    most: int = 1
    spread: float = 1.0  # of poses
    roam: bool = True  # small pictures lie anywhere in the large one, or at its middle
    colours: float = 0.0  # weight of telling captions apart that differ in a colour
    things_share: float = 0.75  # of a caption's weight; the rest is the stuff's
    free: bool = False  # words are free vectors still, which the text tower learns to say when the free stages end


@dataclass(frozen=True)
class Schedule:
    """A run: warm-up, constant rate, linear decay over the last `decay` steps; Muon takes `lr`, AdamW `lr * adamw`."""

    seed: int
    lr: float
    warmup: int
    decay: int
    weight_decay: float
    adamw: float
    textures: int
    image_size: int
    width: int
    layers: int
    text_steps: int  # in which the text tower learns what the free stages found
    checkpoint_every: int
    stages: tuple[Stage, ...]

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

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.lr * min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.decay)


def read_schedule(path: Path) -> Schedule:
    """The schedule of a YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    stages = []
    for part in content.pop("stages"):
        stages.append(Stage(**{k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}))
    return Schedule(**content, stages=tuple(stages))


# ---------------------------------------------------------------------------------------------------------------- words


def merges_for(names: Sequence[str], most: int = 4000) -> list[tuple[str, str]]:
    """Byte-pair merges (as open_clip's SimpleTokenizer reads them) until each word of `names` is one token."""
    words = {(*word[:-1], word[-1] + "</w>") for name in names for word in name.lower().split()}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {_merge(word, best) for word in words}
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def spoken_words() -> list[str]:
    """Every text that captions are made of."""
    names = [n for t in things().values() for n in t.names] + [n for s in stuff().values() for n in s]
    return [*names, *hypernyms(), *COLOURS, "a picture drawing of an and on the empty full other"]


def write_model_folder(folder: Path, schedule: Schedule) -> None:
    """The mini CLIP's open_clip configuration and its tokenizer's merges; the weights come later."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "#version: miniature\n" + "\n".join(" ".join(pair) for pair in merges_for(spoken_words())) + "\n"
    with open(folder / "merges.txt.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(text.encode())
    vision = {
        "image_size": schedule.image_size,
        "patch_size": PATCH,
        "width": schedule.width,
        "layers": schedule.layers,
    }
    tower = {"context_length": 32, "vocab_size": open_clip.SimpleTokenizer(str(folder / "merges.txt.gz")).vocab_size}
    tower |= {"width": 64, "heads": 4, "layers": 3, "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}}
    config = {
        "model_cfg": {"embed_dim": 128, "vision_cfg": vision | {"head_width": 32}, "text_cfg": tower},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


@cache
def columns() -> list[str]:
    """What the softmax chooses from: things, stuff, hypernyms."""
    return [*things(), *stuff(), *hypernyms()]


def speak(word: str, rng: np.random.Generator) -> str:
    """A word by one of its names, as people may write it."""
    names = things()[word].names if word in things() else stuff().get(word, (word,))
    return str(rng.choice(TEMPLATES)).format(rng.choice(names))


# ------------------------------------------------------------------------------------------------------------- pictures


@cache
def _drawn(artist: str) -> tuple[str, ...]:
    return drawn_by(artist)


def single(rng: np.random.Generator, stage: Stage, ground: bool) -> Scene:
    """One thing that fills half of the picture or all of it."""
    artist = str(rng.choice(stage.artists))
    s = sticker_of(rng, pick(rng, _drawn(artist)), artist, spread=stage.spread)
    size = float(rng.uniform(0.62, 1.0))
    room = max(0.0, 0.5 - 0.45 * size)
    s = replace(s, size=size, x=0.5 + float(rng.uniform(-room, room)), y=0.5 + float(rng.uniform(-room, room)))
    names, centres, banded = (
        random_ground(rng, None if rng.random() < 0.5 else str(rng.choice(list(GROUNDS)))) if ground else ((), (), True)
    )
    return Scene(str(rng.choice(stage.styles)), names, centres, (s,), int(rng.integers(2**31)), banded)


def training_scenes(rng: np.random.Generator, stage: Stage) -> list[Scene]:
    """A batch of a stage: first plain, then single, then full scenes."""
    recipe = Recipe(
        stage.artists,
        stage.styles,
        dict.fromkeys(GROUNDS, 1.0),
        tuple(things()),
        count=(1, stage.most),
        scale=1.15,
        fitting=0.6,
    )
    out = []
    for i in range(stage.batch):
        part = (i + 0.5) / stage.batch
        if part < stage.plain + stage.single:
            out.append(single(rng, stage, part > stage.plain))
        else:
            scene, crowd = random_scene(rng, recipe)
            out.append(replace(scene, things=scene.things[: len(scene.things) - crowd]))
    return out


def targets_of(scenes: Sequence[Scene], rng: np.random.Generator, share: float) -> tuple[Tensor, Tensor]:
    """What each caption says [B, columns], and which columns would be true too and must not count as wrong.

    One in ten single things is called by a hypernym.
    """
    index = {name: i for i, name in enumerate(columns())}
    said, also = torch.zeros(len(scenes), len(index)), torch.zeros(len(scenes), len(index), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        names = list(dict.fromkeys(t.name for t in scene.things))
        above = [h for h, held in hypernyms().items() if any(n in held for n in names)]
        also[row, [index[h] for h in above]] = True
        stuff_share = 0.0 if not scene.stuff else 1 - share if names else 1.0
        if len(names) == 1 and above and rng.random() < 0.1:
            word = str(rng.choice(above))
            also[row, [index[n] for n in hypernyms()[word]]] = True
            names = [word]
        for group, weight in ((names, 1 - stuff_share), (scene.stuff, stuff_share)):
            for name in group:
                said[row, index[name]] += weight / len(group)
    return said, also & (said == 0)


def caption(scene: Scene, colours: Sequence[str] | None = None) -> str:
    """'a red umbrella and a blue cat on grass', or the same in other colours."""
    chosen = colours or [t.colour for t in scene.things]
    said = " and ".join(f"a {colour} {t.name}" for colour, t in zip(chosen, scene.things, strict=False))
    return f"{said} on {' and '.join(scene.stuff)}" if scene.stuff else said


# ------------------------------------------------------------------------------------------------------------- training


class Muon:
    """Momentum orthogonalized by Newton-Schulz, for matrices (Jordan et al. 2024), scaled to AdamW's step size as
    `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` does; in float32 and batched over matrices of one shape, because
    bfloat16 is slow on CPUs."""

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float, momentum: float = 0.95) -> None:
        shapes = dict.fromkeys(tuple(p.shape) for p in parameters)
        self.groups = [[p for p in parameters if tuple(p.shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
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


def build(folder: Path) -> tuple[Any, Any]:
    """The model that a folder describes, with random weights, and its tokenizer."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model: Any = open_clip.model.CLIP(**config)
    length = config["text_cfg"]["context_length"]
    return model, open_clip.SimpleTokenizer(str(folder / "merges.txt.gz"), context_length=length)


def begin(model: Any) -> nn.Parameter:
    """Positions start as smooth waves, so that neighbours are alike from the first step; returns the free words' vectors
    [columns, C]."""
    grid, width = model.visual.grid_size, model.visual.positional_embedding.shape[1]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    rates = 1 / 30 ** (torch.arange(width // 4) / (width // 4))
    waves = [wave(place.flatten()[:, None] * rates) for place in (y, x) for wave in (torch.sin, torch.cos)]
    model.visual.positional_embedding.data[1:] = 0.2 * torch.cat(waves, 1)
    return nn.Parameter(0.5 * torch.randn(len(columns()), model.visual.output_dim) / model.visual.output_dim**0.5)


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text`, normalized, without computing the padding to the right of the longest text."""
    length = int(tokens.argmax(1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(tokens)), tokens.argmax(1)] @ model.text_projection, dim=-1)


def encode_crop(visual: Any, pictures: Tensor, top: int, left: int) -> Tensor:
    """open_clip's ViT on a small picture that lies at patch row `top` and column `left` of a whole one: [B, C]."""
    x = visual.conv1((pictures - 0.5) / 0.25)
    rows, across = x.shape[2:]
    position = visual.positional_embedding[1:].view(*visual.grid_size, -1)[top : top + rows, left : left + across]
    x = x.flatten(2).mT + position.flatten(0, 1)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first, x], 1)))
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def loss_of(
    model: Any,
    tokenizer: Callable,
    words: Tensor,
    scenes: list[Scene],
    pictures: Tensor,
    rng: np.random.Generator,
    stage: Stage,
) -> tuple[Tensor, float]:
    """Softmax over the whole vocabulary (`words`, embedded) for every picture, and for some over captions whose wrong
    ones differ in a colour only.  Returns the loss and the share of single things whose name ranks first."""
    grid = model.visual.grid_size[0] - pictures.shape[-1] // PATCH
    top, left = (int(v) for v in rng.integers(0, grid + 1, 2)) if stage.roam else (grid // 2, grid // 2)
    image = encode_crop(model.visual, pictures, top, left)
    scale = SHARP if stage.free else model.logit_scale.exp().clamp(max=60)
    said, also = targets_of(scenes, rng, stage.things_share)
    logits = scale * image @ words.T
    loss = -(said * logits.masked_fill(also, -1e4).log_softmax(1)).sum(1).mean()
    number = len(things())
    with torch.no_grad():
        alone = torch.tensor([i for i, s in enumerate(scenes) if len(s.things) == 1 and said[i, :number].sum() > 0])
        right = (
            (logits[alone, :number].argmax(1) == said[alone, :number].argmax(1)).float().mean()
            if len(alone)
            else torch.tensor(0.0)
        )
    few = [i for i, s in enumerate(scenes) if 1 <= len(s.things) <= 2][:32]
    if stage.colours and few:
        others = [
            [str(c) for c in rng.permutation([c for c in COLOURS if c not in {t.colour for t in scenes[i].things}])]
            for i in few
        ]
        texts = [caption(scenes[i]) for i in few] + [caption(scenes[i], o) for i, o in zip(few, others, strict=True)]
        both = scale * image[few] @ encode_text(model, tokenizer(texts)).T
        loss = loss + stage.colours * F.cross_entropy(both, torch.arange(len(few)))
    return loss, float(right)


def learn_to_say(model: Any, tokenizer: Callable, vectors: Tensor, rng: np.random.Generator, steps: int) -> None:
    """Teach the text tower alone to give each word, however it is put, the vector that the free stages found for it.

    Without free stages first, pictures and words wait for one another: little is learned for long.
    """
    parameters = [p for n, p in model.named_parameters() if not n.startswith("visual.") and n != "logit_scale"]
    optimizer = torch.optim.AdamW(parameters, 2e-3, (0.9, 0.98), weight_decay=0.01)
    wanted = F.normalize(vectors.detach(), dim=-1)
    for step in range(steps):
        said = encode_text(model, tokenizer([speak(n, rng) for n in columns()]))
        loss = F.cross_entropy(15 * said @ wanted.T, torch.arange(len(wanted))) + 5 * (1 - (said * wanted).sum(1).mean())
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 10, 2 * (steps - step) / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.logit_scale.data.fill_(float((SHARP * vectors.detach().norm(dim=1)).mean().clamp(max=60).log()))


def keep_freed_memory() -> None:
    """Tell glibc to reuse large buffers (giving them back each step halves the speed).  Does nothing elsewhere."""
    try:
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):  # mmap threshold, trim threshold, top pad
            libc.mallopt(option, value)
    except (OSError, AttributeError, TypeError):
        pass


def _banks(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Textures for large pictures, and the same at half the size for small ones, which show the world smaller."""
    bank = texture_bank(schedule.seed + 1000, schedule.textures, schedule.image_size + 32)
    small = F.interpolate(bank.flatten(0, 1).float(), scale_factor=0.5, mode="area").to(torch.uint8)
    return bank, small.view(*bank.shape[:3], *small.shape[-2:])


def _batch(schedule: Schedule, step: int, banks: tuple[Tensor, Tensor]) -> tuple[list[Scene], Tensor, np.random.Generator]:
    """The scenes and pictures of a step, and the generator that drew them."""
    stage, rng = schedule.stage(step), np.random.default_rng([schedule.seed, step])
    scenes = training_scenes(rng, stage)
    bank = banks[stage.side <= banks[1].shape[-1]]
    return scenes, paint(scenes, bank, stage.side, stage.side)[0], rng


def train_clip(folder: Path, work: Path, schedule: Schedule, progress: Callable[[dict], None] = lambda row: None) -> list[dict]:
    """Train the mini CLIP and leave its weights in `folder`; checkpoints go to `work`.

    A second call after a kill resumes from the last checkpoint.  Returns the log: step, loss, accuracy, lr, seconds.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.manual_seed(schedule.seed)
    write_model_folder(folder, schedule)
    model, tokenizer = build(folder)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "resblocks" in n)]
    muon = Muon(matrices, schedule.weight_decay)
    adamw = torch.optim.AdamW(others, schedule.lr, (0.9, 0.98), weight_decay=0.01)
    vectors = begin(model)
    adamw.add_param_group({"params": [vectors], "weight_decay": 0.0})
    banks = _banks(schedule)
    log, recent, first, spent = _resume(work, model, vectors, adamw, muon)
    began = time.process_time() - spent
    for step in range(first, schedule.steps):
        stage = schedule.stage(step)
        scenes, pictures, rng = _batch(schedule, step, banks)
        if step == schedule.free_steps:
            learn_to_say(model, tokenizer, vectors, np.random.default_rng([schedule.seed, 1300]), schedule.text_steps)
        words = vectors if stage.free else encode_text(model, tokenizer([speak(n, rng) for n in columns()]))
        loss, right = loss_of(model, tokenizer, words, scenes, pictures, rng, stage)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for group in adamw.param_groups:
            group["lr"] = schedule.rate(step) * schedule.adamw
        adamw.step()
        muon.step(schedule.rate(step))
        recent.append((loss.item(), right))
        last = step + 1 == schedule.steps
        if (step + 1) % 25 == 0 or last:
            mean, seconds = np.mean(recent, 0).round(4).tolist(), round(time.process_time() - began, 1)
            log.append({"step": step + 1, "loss": mean[0], "accuracy": mean[1], "lr": schedule.rate(step), "seconds": seconds})
            recent = []
            progress(log[-1])
        if (step + 1) % schedule.checkpoint_every == 0 or last:
            state = {"model": model.state_dict(), "vectors": vectors.data, "adamw": adamw.state_dict(), "muon": muon.momenta}
            state |= {"log": log, "recent": recent, "step": step + 1, "seconds": time.process_time() - began}
            save_checkpoint(work / "clip_training.pt", state)
    save_weights(model, folder)
    return log


def _resume(work: Path, model: nn.Module, vectors: nn.Parameter, adamw: torch.optim.Optimizer, muon: Muon) -> tuple[list[dict], list, int, float]:
    """Fill model and optimizers from the checkpoint in `work`, if there is one: the log, what is not in it yet,
    steps done, seconds spent."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "clip_training.pt").exists():
        return [], [], 0, 0.0
    state = load_checkpoint(work / "clip_training.pt")
    model.load_state_dict(state["model"])
    vectors.data.copy_(state["vectors"])
    adamw.load_state_dict(state["adamw"])
    for momentum, saved in zip(muon.momenta, state["muon"], strict=True):
        momentum.copy_(saved)
    return state["log"], state["recent"], state["step"], state["seconds"]


def save_weights(model: nn.Module, folder: Path) -> None:
    """The weights in half precision, under the name open_clip's `local-dir:` looks for."""
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "open_clip_model.safetensors", lambda path: save_file(half, path))
