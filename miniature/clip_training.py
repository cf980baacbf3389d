"""Contrastive training of the mini CLIP on captioned pictures of the miniature world.

Stands in for web-scale CLIP pre-training: all names, all drawing styles, single things and whole scenes, never a
masked-out picture.  Every step draws its own pictures from `(seed, step)`, so a run that was killed and resumed sees
what an undisturbed one sees.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maskclip.files import load_checkpoint, save_checkpoint, write_atomically
from miniature import COLOURS, DOMAINS, STUFF, THINGS, Scene, paint, texture_bank
from miniature.scenes import random_regions, random_stickers

STRETCH = 0.25  # more than in the data sets, whose pictures are squashed into a square
WORLD_SIDE = 128  # the shorter side of the world's pictures; a CLIP that reads larger ones is shown them enlarged
TEMPLATES = ("{}", "{}", "{}", "a {}", "a picture of a {}", "a drawing of a {}")


@dataclass(frozen=True)
class ClipTraining:
    """Settings of one run; `lr` warms up, stays, and falls linearly to zero over the last `decay` steps.

    Like the real one at 336 pixels, the CLIP of the miniature was trained on small pictures first and on large ones
    in the end: the defaults are of the last run (models/mini_clip/README.md has the others).
    """

    seed: int = 8
    steps: int = 320
    batch: int = 18  # whole pictures a step: single stickers, scenes, stuff alone
    crops: int = 4  # smaller pictures a step, one sticker each
    lr: float = 6e-4  # of Muon (block matrices); AdamW (all else) takes a quarter of it
    warmup: int = 20
    decay: int = 300
    weight_decay: float = 0.02
    image_size: int = 160
    textures: int = 48  # of each stuff
    crop_size: int = 64
    most_things: int = 9  # in a scene
    # of a caption's weight, where there are things; the rest is the stuff's. With less, small things in full scenes
    # go by their background's name; with more, stuff is forgotten
    things_share: float = 0.74
    checkpoint_every: int = 50


def merges_for(names: Sequence[str], most: int = 2000) -> list[tuple[str, str]]:
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


def write_model_folder(folder: Path, image_size: int = 160) -> None:
    """The mini CLIP's open_clip configuration and its tokenizer's merges; the weights come later."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*THINGS, *STUFF, *COLOURS, "a picture drawing of an and on the empty solid full other"]
    merges = merges_for(names)
    text = "#version: miniature world\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    with open(folder / "merges.txt.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(text.encode())
    tokenizer = open_clip.SimpleTokenizer(str(folder / "merges.txt.gz"))
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": image_size, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32},
            "text_cfg": {"context_length": 32, "vocab_size": tokenizer.vocab_size, "width": 64, "heads": 4, "layers": 3,
                         "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    words = {"things": [*THINGS], "stuff": [*STUFF], "also": names[len(THINGS) + len(STUFF) :]}
    (folder / "words.json").write_text(json.dumps(words, indent=1) + "\n")


def spoken(name: str, rng: np.random.Generator) -> str:
    """A name as people may write it: 'outlined heart' is now and then an 'empty heart', 'filled' 'solid' or 'full'."""
    if rng.random() < 0.25:
        name = name.replace("outlined ", "empty ")
        if not name.startswith("half"):
            name = name.replace("filled ", "solid " if rng.random() < 0.5 else "full ")
    return str(rng.choice(TEMPLATES)).format(name)


def training_scenes(rng: np.random.Generator, count: int, most: int = 9) -> list[Scene]:
    """A third single stickers, the rest scenes of 2 to `most`, a few of stuff alone, in all styles."""
    scenes = []
    for i in range(count):
        part = i / count
        stuff, centres = random_regions(rng, STUFF, 1 if part < 0.2 else int(rng.integers(1, 4)))
        if part < 0.33:
            things = random_stickers(rng, [str(rng.choice(THINGS))], (0.35, 1.0), stretch=STRETCH)
        elif part < 0.95:
            names = [str(n) for n in rng.choice(THINGS, int(rng.integers(2, most + 1)), replace=False)]
            things = random_stickers(rng, names, (0.22, min(0.7, 1.3 / len(names) ** 0.5)), stretch=STRETCH)
        else:
            things = ()
        scenes.append(Scene(str(rng.choice(DOMAINS)), stuff, centres, things, int(rng.integers(2**31))))
    return scenes


def crop_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """One sticker each, filling half of a small picture or all of it."""
    scenes = []
    for _ in range(count):
        stuff, centres = random_regions(rng, STUFF, 1 if rng.random() < 0.7 else 2)
        things = random_stickers(rng, [str(rng.choice(THINGS))], (0.5, 1.05), stretch=STRETCH)
        scenes.append(Scene(str(rng.choice(DOMAINS)), stuff, centres, things, int(rng.integers(2**31))))
    return scenes


def targets_of(scenes: Sequence[Scene], things_share: float = 0.8) -> Tensor:
    """[B, things + stuff]: equal weight on the things present, `things_share` in all, and on the stuff the rest."""
    out = torch.zeros(len(scenes), len(THINGS) + len(STUFF))
    for row, scene in zip(out, scenes, strict=True):
        for t in scene.things:
            row[_INDEX[t.name]] += things_share / len(scene.things)
        for name in scene.stuff:
            row[_INDEX[name]] += (1 - things_share if scene.things else 1.0) / len(scene.stuff)
    return out


_INDEX = {name: i for i, name in enumerate([*THINGS, *STUFF])}


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
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            grad = torch.stack([p.grad for p in group])  # type: ignore[misc]  # after backward, each has one
            momentum.lerp_(grad, 1 - self.momentum)
            update = grad.lerp(momentum, self.momentum)  # Nesterov
            rows, columns = update.shape[1:]
            x = update.mT if rows > columns else update
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
            x = x.mT if rows > columns else x
            for p, direction in zip(group, x, strict=True):
                p.mul_(1 - lr * self.weight_decay).add_(direction, alpha=-lr * 0.2 * max(rows, columns) ** 0.5)


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text`, normalized, without computing the padding to the right of the longest text."""
    length = int(tokens.argmax(1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(tokens)), tokens.argmax(1)] @ model.text_projection, dim=-1)


def encode_crop(visual: Any, pictures: Tensor, top: int, left: int) -> Tensor:
    """open_clip's ViT on a small picture, placed at patch row `top` and column `left` of a whole one: [B, C].

    Crops cost less than whole pictures and teach the same names (as local crops do elsewhere).
    """
    x = visual.conv1(pictures)
    rows, columns = x.shape[2:]
    position = visual.positional_embedding[1:].view(*visual.grid_size, -1)[top : top + rows, left : left + columns]
    x = x.flatten(2).mT + position.flatten(0, 1)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first, x], 1)))
    return visual.ln_post(x[:, 0]) @ visual.proj


def loss_of(
    model: Any,
    tokenizer: Callable,
    batches: Sequence[tuple[list[Scene], Tensor]],
    rng: np.random.Generator,
    things_share: float = 0.8,
) -> tuple[Tensor, Tensor]:
    """Softmax over the whole vocabulary for every picture, and for some over captions whose wrong ones differ in a
    colour only.  `batches`: whole pictures, then crops.  Returns the loss and the share of single things whose name
    ranks first."""
    (scenes, pictures), (crops, small) = batches
    whole = model.encode_image((pictures - 0.5) / 0.25)
    top, left = (int(v) for v in rng.integers(0, [g - small.shape[2] // 8 + 1 for g in model.visual.grid_size]))
    image = F.normalize(torch.cat([whole, encode_crop(model.visual, (small - 0.5) / 0.25, top, left)]), dim=-1)
    scale = model.logit_scale.exp().clamp(max=60)
    everything = [*scenes, *crops]
    targets = targets_of(everything, things_share)
    logits = scale * image @ encode_text(model, tokenizer([spoken(n, rng) for n in (*THINGS, *STUFF)])).T
    names_loss = -(targets * logits.log_softmax(1)).sum(1).mean()
    with torch.no_grad():
        single = torch.tensor([i for i, s in enumerate(everything) if len(s.things) == 1])
        right = (logits[single, : len(THINGS)].argmax(1) == targets[single, : len(THINGS)].argmax(1)).float().mean()

    few = [i for i, s in enumerate(everything) if 1 <= len(s.things) <= 2][:36]
    captions, wrong = [everything[i].caption() for i in few], []
    for i in few:
        things = everything[i].things
        others = [str(c) for c in rng.permutation([c for c in COLOURS if c not in {t.colour for t in things}])]
        recoloured = tuple(replace(t, colour=c) for t, c in zip(things, others, strict=False))
        wrong.append(replace(everything[i], things=recoloured).caption())
    both = scale * image[few] @ encode_text(model, tokenizer(captions + wrong)).T
    return names_loss + 0.25 * F.cross_entropy(both, torch.arange(len(few))), right


def spread_texts(model: nn.Module, tokenizer: Callable, rng: np.random.Generator, steps: int = 300) -> None:
    """Teach the text tower alone to tell the names apart, however they are put (contrastive, text against text).

    At the start all texts point almost the same way: pictures and words then wait for one another, and little is
    learned.
    """
    parameters = [p for n, p in model.named_parameters() if not n.startswith("visual.") and n != "logit_scale"]
    optimizer = torch.optim.AdamW(parameters, 2e-3, (0.9, 0.98), weight_decay=0.01)
    names = [*THINGS, *STUFF]
    for _ in range(steps):
        one, other = (encode_text(model, tokenizer([spoken(n, rng) for n in names])) for _ in range(2))
        loss = F.cross_entropy(15 * one @ other.T, torch.arange(len(names)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def learning_rate(step: int, settings: ClipTraining) -> float:
    """Warm-up, constant, linear decay to zero."""
    return settings.lr * min(1.0, (step + 1) / settings.warmup, (settings.steps - step) / settings.decay)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large buffers (giving them back each step halves the speed).  Does nothing elsewhere."""
    with suppress(OSError, AttributeError, TypeError):
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):  # mmap threshold, trim threshold, top pad
            ctypes.CDLL(None).mallopt(option, value)


def train_clip(
    folder: Path,
    work: Path,
    settings: ClipTraining,
    progress: Callable[[dict], None] | None = None,
    start: Path | None = None,
) -> list[dict]:
    """Train the model described by `folder` and leave its weights there; checkpoints and the log go to `work`.

    `start` is a safetensors file of weights to begin with; None begins with random ones.  A second call after a kill
    resumes from the last checkpoint.  Returns the log: step, loss, accuracy, lr, seconds.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.manual_seed(settings.seed)
    if not (folder / "open_clip_config.json").exists():
        write_model_folder(folder, settings.image_size)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model: Any = open_clip.model.CLIP(**config)
    length = config["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(str(folder / "merges.txt.gz"), context_length=length)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "resblocks" in n)]
    muon = Muon(matrices, settings.weight_decay)
    adamw = torch.optim.AdamW(others, settings.lr / 4, (0.9, 0.98), weight_decay=0.01)

    bank = texture_bank(seed=settings.seed + 1000, variants=settings.textures, size=192)
    if settings.image_size < WORLD_SIDE:  # small pictures show the world, whose shorter side is 128, smaller
        small_bank = F.interpolate(bank.flatten(0, 1).float(), scale_factor=0.5, mode="area")
        bank = small_bank.to(torch.uint8).view(*bank.shape[:3], 96, 96)
    checkpoint, log, first, spent = work / "clip_training.pt", [], 0, 0.0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        adamw.load_state_dict(state["adamw"])
        for momentum, saved in zip(muon.momenta, state["muon"], strict=True):
            momentum.copy_(saved)
        log, first, spent = state["log"], state["step"], state["seconds"]
    elif start is not None:
        weights = {name: tensor.float() for name, tensor in load_file(start).items()}
        open_clip.model.resize_pos_embed(weights, model)  # where it was trained on smaller pictures
        model.load_state_dict(weights)
    else:
        spread_texts(model, tokenizer, np.random.default_rng([settings.seed, 1300]))
        model.logit_scale.data.fill_(np.log(20))  # by itself it climbs too slowly
    began, side, small = time.monotonic() - spent, settings.image_size, settings.crop_size
    recent: list[tuple[float, float]] = []
    for step in range(first, settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        scenes, crops = training_scenes(rng, settings.batch, settings.most_things), crop_scenes(rng, settings.crops)
        pictures = paint(scenes, bank, min(side, WORLD_SIDE), min(side, WORLD_SIDE))[0]
        pictures = F.interpolate(pictures, (side, side), mode="bilinear", align_corners=False)
        batches = [(scenes, pictures), (crops, paint(crops, bank, small, small)[0])]
        loss, right = loss_of(model, tokenizer, batches, rng, settings.things_share)
        model.zero_grad()
        loss.backward()
        lr = learning_rate(step, settings)
        for group in adamw.param_groups:
            group["lr"] = lr / 4
        adamw.step()
        muon.step(lr)
        recent.append((loss.item(), right.item()))
        if (step + 1) % 20 == 0 or step + 1 == settings.steps:
            mean_loss, mean_right = np.nanmean(recent, 0)
            row = {"step": step + 1, "loss": float(mean_loss), "accuracy": float(mean_right), "lr": lr}
            log.append(row | {"seconds": time.monotonic() - began})
            recent = []
            if progress:
                progress(log[-1])
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            state = {"model": model.state_dict(), "adamw": adamw.state_dict(), "muon": muon.momenta, "log": log}
            save_checkpoint(checkpoint, {**state, "step": step + 1, "seconds": time.monotonic() - began})
    save_weights(model, folder)
    return log


def save_weights(model: nn.Module, folder: Path) -> None:
    """The weights in half precision, under the name open_clip's `local-dir:` looks for."""
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "open_clip_model.safetensors", lambda path: save_file(half, path))
