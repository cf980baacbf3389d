"""Loading a CLIP (the mini one or any of open_clip's ViTs), and its text and image ends."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import HFTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from maskclip.device import find_device
from maskclip.files import unreadable, write_atomically
from maskclip.hub import check_clip_weights

UNREADABLE = (pickle.UnpicklingError, LookupError, EOFError, struct.error)  # what torch raises of foreign files


@dataclass
class Clip:
    """A frozen CLIP in eval mode with what is needed to feed it.  `mean` and `std` are [3, 1, 1].

    In `words_folder`, if there is one, text embeddings are kept, for all who ask for the same words.
    """

    model: Any  # an open_clip CLIP; the parts of an nn.Module have no static types
    tokenizer: Callable[[list[str]], Tensor]
    image_size: int
    mean: Tensor
    std: Tensor
    name: str
    interpolation: str = "bicubic"
    words_folder: Path | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Callable[[list[str]], Tensor] = open_clip.tokenize, name: str = "") -> Clip:
        """An open_clip CLIP as it is, with the preprocessing noted in it, or else OpenAI's."""
        size, device = model.visual.image_size, next(model.parameters()).device
        noted = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD} | open_clip.get_model_preprocess_cfg(model)
        mean, std = (torch.tensor(noted[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
        side = size[0] if isinstance(size, tuple | list) else size
        return cls(model, tokenizer, int(side), mean, std, name, noted.get("interpolation", "bicubic"))

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @cached_property
    def text_identity(self) -> str:
        """A digest of what a text's embedding depends on: the text tower's weights and activation, the tokenizer, where
        and how it computes."""
        digest = hashlib.blake2b(f"{self.device.type} {self.mean.dtype} {open_clip.__version__}".encode())
        towers = [part for name, part in self.model.named_children() if name != "visual"]
        digest.update(repr((towers, sorted(getattr(self.tokenizer, "encoder", {}).items()))).encode())
        for name, value in self.model.state_dict().items():
            if not name.startswith("visual."):
                digest.update(name.encode() + value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_clip(
    name_or_path: str | Path,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """A CLIP by folder or by open_clip's name.

    Args:
        name_or_path: a folder such as `models/mini_clip`, with `open_clip_config.json`,
            `open_clip_model.safetensors` and the tokenizer's merges, named in the first; or a name
            of open_clip's, such as `ViT-L-14-336`.
        pretrained: for a name, one of open_clip's tags (`openai`, downloaded) or a local weights
            file. None: random weights.
    Raises:
        FileNotFoundError: a file of the folder, or the weights file, is missing.
        ValueError: an unknown name, tag or device, weights that do not fit or were trained with the other GELU.
    """
    folder, source, words, device = Path(name_or_path), str(name_or_path), {}, find_device(device)
    if folder.is_dir():
        if pretrained is not None:
            raise ValueError(f"{folder} brings its own weights; leave out pretrained={pretrained!r}")
        source, words = f"local-dir:{folder}", _check_folder(folder)
    else:
        _check_name(source, pretrained)
    was = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip reports every step of the look-up
    try:
        archive = pretrained is not None and Path(pretrained).is_file() and is_torchscript(pretrained)
        model = open_clip.create_model(source, pretrained=pretrained, weights_only=not archive)
        tokenizer = open_clip.get_tokenizer(source, **words)
    except Exception as error:  # whatever open_clip or torch could not read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if pretrained is not None and (isinstance(error, UNREADABLE) or "PytorchStreamReader" in reason):
            reason = f"the weights are not readable ({unreadable(error)})"
        raise ValueError(f"cannot load CLIP {name_or_path} (pretrained={pretrained!r}): {reason}") from error
    finally:
        logging.disable(was)
    return Clip.of(model.to(device=device, dtype=dtype).eval().requires_grad_(False), tokenizer, folder.name)


def is_torchscript(path: str | Path) -> bool:
    """A file is a TorchScript archive, as OpenAI publishes its CLIPs; torch reads no code from it but TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_folder(folder: Path) -> dict[str, str]:
    """All files are there; what the tokenizer needs to know."""
    config, merges = folder / "open_clip_config.json", None
    files = [config, folder / "open_clip_model.safetensors"]
    if config.is_file():
        try:
            merges = json.loads(config.read_text())["model_cfg"]["text_cfg"].get("tokenizer_kwargs", {}).get("bpe_path")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{config} is not an open_clip configuration: {error!r}") from None
    files += [folder / merges] if merges else []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is no whole CLIP folder: {file} is missing")
    # open_clip resolves it against the working directory; we, against the folder
    return {"bpe_path": str(files[-1])} if merges else {}


def _check_name(name: str, pretrained: str | None) -> None:
    """open_clip knows the name and has the weights, and both compute the same GELU."""
    hub = name.startswith("hf-hub:")
    if not hub and ("/" in name or name.endswith("mini_clip")):
        raise FileNotFoundError(f"no such CLIP folder: {name}")
    if not hub and name not in open_clip.list_models():
        raise ValueError(f"{name!r} is neither a folder nor one of open_clip's models, such as 'ViT-L-14-336'")
    if pretrained is None:
        return
    if Path(pretrained).is_file():
        quick = trained_with_quickgelu(name, pretrained, quickgelu_tags(name.removesuffix("-quickgelu")))
        if quick is not None and not hub:
            _check_activation(name, pretrained, quick)
        return
    if any(mark in pretrained for mark in "/."):
        raise FileNotFoundError(f"no such CLIP weights file: {pretrained}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise ValueError(f"open_clip has no weights {pretrained!r} for {name}; it has {', '.join(tags) or 'none'}")
    _check_activation(name, pretrained, quickgelu_tags(name)[pretrained])
    check_clip_weights(name, pretrained)


def _check_activation(name: str, pretrained: str, quick: bool) -> None:
    if quick != bool((open_clip.get_model_config(name) or {}).get("quick_gelu")):
        gelu, right = ("QuickGELU", f"{name}-quickgelu") if quick else ("GELU", name.removesuffix("-quickgelu"))
        raise ValueError(
            f"the weights {pretrained!r} were trained with {gelu}, which {name} does not compute; take {right!r} (for "
            "weights of your own, a folder with open_clip_config.json)"
        )


def quickgelu_tags(name: str) -> dict[str, bool]:
    """The tags of open_clip's weights for a name, and whether these were trained with QuickGELU."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    return {tag: bool((get_pretrained_cfg(name, tag) or {}).get("quick_gelu")) for tag in tags}


def trained_with_quickgelu(name: str, weights: str, quick: dict[str, bool]) -> bool | None:
    """Whether weights were, by the tag that they are, or that their path has; a file also says it as a TorchScript
    archive, or by all tags being alike. None, with a warning where it matters: nothing tells."""
    if weights in quick:
        return quick[weights]
    if Path(weights).is_file() and is_torchscript(weights):  # as OpenAI alone publishes
        return True
    if named := [tag for tag in quick if tag in weights]:
        return quick[max(named, key=len)]
    if len(set(quick.values())) > 1 and not name.endswith("-quickgelu"):
        warnings.warn(
            f"{weights} does not say how it was trained; it is taken for weights with GELU. For OpenAI's or "
            f"MetaCLIP's, which have QuickGELU, take the name {name}-quickgelu.",
            stacklevel=4,
        )
    return next(iter(quick.values())) if len(set(quick.values())) == 1 else None


@torch.no_grad()
def text_embeddings(clip: Clip, names: Iterable[str], templates: Sequence[str] = ("{}",)) -> Tensor:
    """CLIP's text embeddings f_t(T) (Alg. 1) of category names: [K, C] in float32, L2-normalized.

    With several templates (`"a photo of a {}"`) the normalized embeddings are averaged and normalized
    again. The paper (Sec. 4.2) takes the plain names.

    Raises:
        ValueError: no list of names, a name that is empty or longer than CLIP reads, or a template
            without `{}`.
    """
    if isinstance(names, Iterable) and not isinstance(names, str):  # NumPy's, pandas' and generators' as well
        names = [str(name) if isinstance(name, str) else name for name in names]
    if not isinstance(names, list) or not names or any(not isinstance(name, str) or not name.strip() for name in names):
        raise ValueError(f"names must be a list of texts, none empty, such as ['cat', 'dog'], not {names!r:.100}")
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"each template needs a '{{}}' for the name, but templates are {list(templates)}")
    if clip.words_folder is None:
        return _encode_texts(clip, names, templates)
    key = hashlib.sha256(json.dumps([clip.text_identity, list(names), list(templates)]).encode()).hexdigest()
    path = clip.words_folder / f"{key[:32]}.safetensors"
    with suppress(SafetensorError, OSError, KeyError):  # none yet, or damaged: encoded again
        return load_file(path)["embeddings"].to(clip.device)
    found = _encode_texts(clip, names, templates)
    write_atomically(path, save({"embeddings": found.cpu().contiguous()}))
    return found


def check_texts(clip: Clip, names: Sequence[str], templates: Sequence[str] = ("{}",)) -> None:
    """ValueError where CLIP cannot read all of a name. Nothing is encoded: ask before hours are spent."""
    for template in templates:
        _tokens(clip, [template.replace("{}", name) for name in names])


def _encode_texts(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    total = torch.zeros((), device=clip.device)
    for template in templates:
        texts = [template.replace("{}", name) for name in names]
        batches = (texts[start : start + 256] for start in range(0, len(texts), 256))
        parts = [clip.model.encode_text(_tokens(clip, batch).to(clip.device)).float() for batch in batches]
        total = total + F.normalize(torch.cat(parts), dim=-1)
    return F.normalize(total, dim=-1)


def _tokens(clip: Clip, texts: list[str]) -> Tensor:
    """The texts' tokens [n, L]; CLIP's tokenizer cuts off what is too long, we say so."""
    tokens, tokenizer = clip.tokenizer(texts), clip.tokenizer
    for text, row in zip(texts, tokens, strict=True):
        length = 0
        if isinstance(tokenizer, open_clip.SimpleTokenizer) and row[-1]:
            length = len(tokenizer.encode(text)) + 2  # with beginning and end
        elif isinstance(tokenizer, HFTokenizer) and row[-1] != tokenizer.tokenizer.pad_token_id:
            length = len(tokenizer.tokenizer(tokenizer.clean_fn(text)).input_ids)
        if length > len(row):
            raise ValueError(f"{text!r:.100} is longer than the {len(row)} tokens that CLIP {clip.name} reads")
    return tokens


def preprocess(clip: Clip, image: np.ndarray) -> Tensor:
    """A picture, uint8 [H, W, 3] RGB, squashed to CLIP's square and normalized: [3, S, S], CLIP's device.

    Squashed, not cropped, as in the released code: masks of the picture then fall where they belong.
    A ValueError says what is not such a picture.
    """
    array = isinstance(image, np.ndarray)
    if not array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}" if array else type(image).__name__
        raise ValueError(f"an image must be an array, uint8 [H, W, 3] with a pixel, not {found}; see read_image")
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(clip.device)  # a copy only where it must
    pixels = pixels.permute(2, 0, 1)[None].float() / 255
    size = (clip.image_size, clip.image_size)
    pixels = F.interpolate(pixels, size=size, mode=clip.interpolation, align_corners=False, antialias=True)[0]
    return (pixels.clamp(0, 1) - clip.mean) / clip.std


def classify(embeddings: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Cosine of mask embeddings [..., C] and normalized text [K, C], over the temperature: logits [..., K].

    Float32 outside of autocast: bf16 would round a cosine by up to 0.001, its logit by 0.1, and near words would tie.
    """
    return F.normalize(embeddings.float(), dim=-1) @ text.to(embeddings.device).float().T / temperature
