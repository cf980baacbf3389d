"""Weights of the Hugging Face hub: are they here, can they be had, and one sentence if neither."""

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread

PATIENCE = 4.0  # seconds
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def check_reachable(
    repo: str, what: str, argument: str, files: tuple[str, ...] = ("config.json", *WEIGHTS[:1])
) -> None:
    """Make sure, before anything hangs, that a repository's weights are cached or that the hub answers.

    Raises:
        FileNotFoundError: neither; the sentence names files, where they are published, and where to put them.
    """
    if is_cached(repo) or answers():
        return
    from huggingface_hub import constants

    raise FileNotFoundError(
        f"{what} {repo} is not on this machine, and {constants.ENDPOINT} does not answer (offline?). Fetch "
        f"{', '.join(files)} from https://huggingface.co/{repo} where there is network, and give {argument}; or copy "
        f"that machine's cache, models--{repo.replace('/', '--')}, into {constants.HF_HUB_CACHE} (HF_HOME moves it)"
    )


def is_cached(repo: str) -> bool:
    """Weights of a repository are in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in WEIGHTS)


@cache
def answers() -> bool:
    """The hub answers within `PATIENCE` seconds; asked once."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    import httpx
    from huggingface_hub import constants

    found: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # whatever keeps it from answering
            httpx.head(constants.ENDPOINT, timeout=PATIENCE)
            found.append(True)

    asking = Thread(target=ask, daemon=True)  # looking a name up has no time limit of its own
    asking.start()
    asking.join(PATIENCE)
    return bool(found)


FETCHED = {  # what the paper profile and pictures of one's own want: repository, files, about how large
    "CLIP ViT-L/14@336, OpenAI's": (
        "timm/vit_large_patch14_clip_336.openai", ["open_clip_model.safetensors"], "1.7 GB",
    ),
    "ResNet-50, ImageNet's": ("timm/resnet50.tv_in1k", ["config.json", "model.safetensors"], "102 MB"),
    "Mask2Former for own photographs": (
        "facebook/mask2former-swin-small-coco-panoptic", ["config.json", "model.safetensors"], "280 MB",
    ),
}  # fmt: skip


def fetch(to: Path | None = None) -> Iterator[str]:
    """Bring all of `FETCHED` into the hub's cache, or into another cache folder; yields a line for each.

    Raises:
        FileNotFoundError: the hub does not answer; the sentence says which files to put where.
    """
    from huggingface_hub import constants, snapshot_download

    for what, (repo, files, _) in FETCHED.items():
        check_reachable(repo, what, "their folder in place of the name", tuple(files))
        place = snapshot_download(repo, allow_patterns=files, cache_dir=to or constants.HF_HUB_CACHE)
        yield f"{what}: {place}"


def check_clip_weights(name: str, pretrained: str) -> None:
    """`check_reachable` for one of open_clip's tags; a tag with an address of its own is open_clip's to fetch."""
    repo, here = clip_repository(name, pretrained)
    if repo and not here:
        what, files = f"CLIP {name} with weights {pretrained!r},", ("open_clip_model.safetensors",)
        check_reachable(repo, what, "the file as pretrained", files)


def clip_repository(name: str, pretrained: str) -> tuple[str, bool]:
    """The repository of one of open_clip's tags, "" for one with an address of its own; and whether it is here."""
    from open_clip.pretrained import get_pretrained_cfg

    published = get_pretrained_cfg(name, pretrained) or {}
    repo = "/".join(str(published.get("hf_hub", "")).strip("/").split("/")[:2])
    file = Path(str(published.get("url", ""))).name
    own = bool(file) and (Path.home() / ".cache" / "clip" / file).is_file()  # where OpenAI's own package puts it
    return repo, own or (bool(repo) and is_cached(repo))
