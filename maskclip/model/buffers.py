"""Large results on a CPU lie where earlier ones lay, once those are gone.

C's allocator hands large freed buffers back to the kernel, which fills them with zeros, page by page,
when they are next asked for.
"""

import weakref

import numpy as np
import torch
from torch import Tensor

LARGE = 2**20  # bytes


class Buffers:
    """Memory of large tensors, kept for the next ones: as much as were alive at a time."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def empty_like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of the same shape, type and device, not filled. It is the caller's:
        its memory is used again when nothing refers to it any more."""
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or size < LARGE:
            return torch.empty_like(tensor, memory_format=torch.contiguous_format)
        fitting = [i for i, memory in enumerate(self.free) if len(memory) >= size]
        if fitting:
            memory = self.free.pop(min(fitting, key=lambda i: len(self.free[i])))
        else:
            self.free.clear()  # too small, and not to be kept beside what comes now
            memory = np.empty(size, np.uint8)
        lease = memory[:size]
        weakref.finalize(lease, self.free.append, memory).atexit = False
        return torch.from_numpy(lease).view(tensor.dtype).view(tensor.shape)
