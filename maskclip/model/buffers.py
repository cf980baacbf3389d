"""Large buffers on a CPU without a page fault for every 4 KB of them.

glibc hands large freed buffers back to the kernel and faults them in when next asked for. That costs
MaskCLIP's forward a fifth of CLIP's own time, and the training of small models more than it computes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

_ALWAYS_MAPPED = 2**25  # bytes; buffers from this size on come from the kernel each time
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
# Whatever mallopt sets ends glibc's own adjusting: these are the values at which that would end.
_USUAL = {_MMAP_MAX: 2**16, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}


def large_empty_like(tensor: Tensor) -> Tensor:
    """A contiguous tensor like this one, not filled; a large one on a CPU in huge pages, if there
    are any. Its memory goes back to the system when it does."""
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size < _ALWAYS_MAPPED or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


@contextmanager
def kept_buffers() -> Iterator[None]:
    """Let the process keep its freed memory for the next step of a training; afterwards it goes back.

    Nothing happens where C's library is not glibc, or where MALLOC_ or GLIBC_TUNABLES variables say
    how memory shall be handled; `MALLOC_ARENA_TEST=8`, glibc's own value, is enough for that.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if own or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    for option, value in _KEEP.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
