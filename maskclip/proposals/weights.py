"""Weights into modules, every key in its place or one sentence that says why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; train the network or correct the path")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); train or fetch it again") from None


def pretrained(architecture: Any, name: str, what: str, **options: Any) -> Any:
    """A model of Hugging Face transformers by local folder or hub name; `what` says in errors what it is.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        return architecture.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"no {what} at {name}, neither on this machine nor on the hub ({reason})") from None


def fill(model: nn.Module, state: dict[str, Tensor], origin: str | Path, ignored: tuple[str, ...] = ()) -> None:
    """Load `state` into `model`; keys that begin with one of `ignored`, and counters of batches, are left as they are.

    Raises:
        ValueError: `state`, which came from `origin`, is of another architecture; the sentence names some keys.
    """

    def taken(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        left = [key for key in weights if key.startswith(ignored) or key.endswith("num_batches_tracked")]
        return {key: value for key, value in weights.items() if key not in left}

    state = taken(state)
    if wrong := differences(state, taken(model.state_dict())):
        named = "; ".join(wrong[:3])
        raise ValueError(f"{origin} is of another architecture: {len(wrong)} keys differ, such as {named}")
    model.load_state_dict(state, strict=False)


def differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps weights from their places, one phrase a key: missing, surplus or misshapen."""
    return [
        *(f"missing: {key}" for key in wanted if key not in given),
        *(f"surplus: {key}" for key in given if key not in wanted),
        *(
            f"misshapen: {key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in given and given[key].shape != value.shape
        ),
    ]
