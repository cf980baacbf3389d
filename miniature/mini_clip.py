"""The mini CLIP itself: its tokenizer and configuration, its start, its two towers (open_clip's)."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maskclip.files import write_atomically
from miniature.captions import columns, spoken_words
from miniature.scenes import COLOURS
from miniature.schedule import PATCH, Schedule
from miniature.words import all_names, hypernyms, stuff, things


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


def write_model_folder(folder: Path, schedule: Schedule) -> None:
    """The mini CLIP's open_clip configuration, its tokenizer's merges, the words it knows; the weights come later."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "#version: miniature\n" + "\n".join(" ".join(pair) for pair in merges_for(spoken_words())) + "\n"
    with open(folder / "merges.txt.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(text.encode())
    vision = {"image_size": schedule.last_size, "patch_size": PATCH, "width": schedule.width}
    vision |= {"layers": schedule.layers, "head_width": 32}
    tower = {"context_length": 32, "vocab_size": open_clip.SimpleTokenizer(str(folder / "merges.txt.gz")).vocab_size}
    tower |= {"width": 64, "heads": 4, "layers": 3, "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}}
    config = {
        "model_cfg": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": tower},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    also = [*sorted({*all_names()} - {*things(), *stuff()}), *hypernyms(), *COLOURS, "empty", "full"]
    known = {"things": list(things()), "stuff": list(stuff()), "also": also}
    (folder / "words.json").write_text(json.dumps(known, indent=1) + "\n")


def build(folder: Path, image_size: int) -> tuple[Any, Any]:
    """The model that a folder describes, with random weights and an input of `image_size` pixels, and its tokenizer."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["vision_cfg"]["image_size"] = image_size
    model: Any = open_clip.model.CLIP(**config)
    length = config["text_cfg"]["context_length"]
    return model, open_clip.SimpleTokenizer(str(folder / "merges.txt.gz"), context_length=length)


def begin(model: Any) -> nn.Parameter:
    """Positions start as smooth waves, so that neighbours are alike; returns the free words' vectors [columns, C]."""
    grid, width = model.visual.grid_size, model.visual.positional_embedding.shape[1]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    rates = 1 / 30 ** (torch.arange(width // 4) / (width // 4))
    waves = [wave(place.flatten()[:, None] * rates) for place in (y, x) for wave in (torch.sin, torch.cos)]
    model.visual.positional_embedding.data[1:] = 0.2 * torch.cat(waves, 1)
    return nn.Parameter(0.5 * torch.randn(len(columns()), model.visual.output_dim) / model.visual.output_dim**0.5)


def grow(visual: Any, image_size: int) -> None:
    """Give a ViT an input of `image_size` pixels; positions are interpolated, as CLIP's were from 224 to 336."""
    grid, old = image_size // PATCH, visual.positional_embedding
    picture = old.data[1:].T.view(1, -1, *visual.grid_size)
    picture = F.interpolate(picture, (grid, grid), mode="bicubic", antialias=True)
    old.data = torch.cat([old.data[:1], picture[0].flatten(1).T])
    visual.image_size, visual.grid_size = (image_size,) * 2, (grid,) * 2


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text`, normalized, without computing the padding to the right of the longest text."""
    last = tokens.argmax(1)
    length = int(last.max()) + 1
    tokens, last = (t.to(model.text_projection.device) for t in (tokens[:, :length], last))
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x), device=x.device), last] @ model.text_projection, dim=-1)


def encode_crop(visual: Any, pictures: Tensor, top: int, left: int) -> Tensor:
    """open_clip's ViT on a small picture that lies at patch row `top` and column `left` of a whole one: [B, C]."""
    x = visual.conv1((pictures - 0.5) / 0.25)
    rows, across = x.shape[2:]
    position = visual.positional_embedding[1:].view(*visual.grid_size, -1)[top : top + rows, left : left + across]
    x = x.flatten(2).mT + position.flatten(0, 1)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first, x], 1)))
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """The weights under the name open_clip's `local-dir:` looks for."""
    save_half(folder / "open_clip_model.safetensors", weights)


def save_half(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Weights in half precision."""
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    write_atomically(path, lambda partial: save_file(half, partial, metadata))
