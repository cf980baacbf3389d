"""The device to compute on, or one sentence where it is none."""

from __future__ import annotations

import torch


def find_device(device: str | torch.device | None) -> str:
    """A device's name, once a tensor has been there and back; None: cuda where there is a GPU.

    Raises:
        ValueError: PyTorch knows no such device, or this machine has none.
    """
    if not device:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {device}, but PyTorch finds no GPU; take cpu")
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):  # each device has its own
        raise ValueError(f"device is {device!r}, which PyTorch does not find here; take cpu or cuda") from None
    return "cpu" if place.type == "cpu" else str(place)
