"""How long a GPU takes for a piece of work, before it is paid for: counted work over the GPU's datasheet.

    seconds = (FLOPs / peak + bytes / bandwidth) / UTILISATION + kernels * LAUNCH

The three terms are added, not their largest taken: eager PyTorch runs one kernel after another, and training waits for
the CPU wherever masks are matched. What the CPU does besides (reading pictures, scoring, compressing) is not in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

UTILISATION = 0.4  # of a datasheet's peak and bandwidth: what the trainings of both proposal networks reach on an H100
LAUNCH = 10e-6  # seconds from one kernel of eager PyTorch to the next: Python, autograd, CUDA's own 3 to 5 microseconds


@dataclass(frozen=True)
class Work:
    """Counted work; works add up, and repeat: 3 * work. Memory, too, adds up, as that of pictures in a batch does."""

    flops: float = 0.0  # of matrix products and attention, two per multiply-add
    convolution_flops: float = 0.0  # apart, since PyTorch computes them in TF32 unasked
    bytes: float = 0.0  # that kernels read and write
    kernels: float = 0.0
    memory: float = 0.0  # bytes of all that it makes: kept for its backward pass; without one, alive at once
    kept_flops: float = 0.0  # of products that mixed precision leaves in float32
    kept_convolution_flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(one + two for one, two in zip(astuple(self), astuple(other))))

    def __rmul__(self, times: float) -> Work:
        return Work(*(times * one for one in astuple(self)))

    def __sub__(self, other: Work) -> Work:
        return self + -1 * other

    @property
    def tflops(self) -> float:
        """All 1e12 FLOPs."""
        return (self.flops + self.convolution_flops + self.kept_flops + self.kept_convolution_flops) / 1e12


@dataclass(frozen=True)
class Gpu:
    """A GPU by its datasheet (dense figures, without sparsity), or a machine as measured.

    `memory` in GB, `float32`, `tf32` and `fp16` (accumulated in float32) in 1e12 FLOPs a second, `bandwidth` in GB a
    second. `utilisation` is what work gets of them, `launch` seconds a kernel.
    """

    memory: float
    float32: float
    tf32: float
    fp16: float
    bandwidth: float
    utilisation: float = UTILISATION
    launch: float = LAUNCH

    def seconds(self, work: Work, products: str = "float32", convolutions: str = "") -> float:
        """How long it takes for `work`, computed in float32, tf32 or fp16 (as fast as bf16); convolutions as products,
        unless said otherwise."""
        rate, other = getattr(self, products), getattr(self, convolutions or products)
        kept = work.kept_flops / self.float32 + work.kept_convolution_flops / self.tf32
        computing = (work.flops / rate + work.convolution_flops / other + kept) / 1e12
        return (computing + work.bytes / self.bandwidth / 1e9) / self.utilisation + work.kernels * self.launch


GPUS = {  # NVIDIA's datasheets; one without TF32 computes it as float32
    "T4": Gpu(16, 8.1, 8.1, 65, 320),
    "V100": Gpu(32, 15.7, 15.7, 125, 900),
    "RTX3090": Gpu(24, 35.6, 35.6, 71, 936),
    "RTX4090": Gpu(24, 82.6, 82.6, 165.2, 1008),
    "A5000": Gpu(24, 27.8, 55.6, 111.1, 768),
    "A6000": Gpu(48, 38.7, 77.4, 154.8, 768),
    "L40S": Gpu(48, 91.6, 183, 362, 864),
    "A100": Gpu(80, 19.5, 156, 312, 2039),
    "H100": Gpu(80, 66.9, 494.7, 989.4, 3350),
    "H200": Gpu(141, 66.9, 494.7, 989.4, 4800),
}


def find_gpu(name: str) -> Gpu:
    """A GPU of `GPUS`, or "here": this machine, measured. ValueError where there is none."""
    if name == "here":
        return measure(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if (gpu := GPUS.get(name)) is None:
        raise ValueError(f"no datasheet of the GPU {name!r}; there are {', '.join(GPUS)}, and here, which is measured")
    return gpu


def measure(device: torch.device, seconds: float = 0.2) -> Gpu:
    """This machine: what a large product, a large convolution and a large sum reach, and how fast small ones follow."""
    on_gpu, half = device.type == "cuda", torch.float16 if device.type == "cuda" else torch.bfloat16
    side = 4096 if on_gpu else 512
    matrix, picture = torch.randn(side, side, device=device), torch.randn(1, 256, side // 4, side // 4, device=device)
    kernel, long, short = picture[:, :, :3, :3].repeat(256, 1, 1, 1), matrix.repeat(8, 1), torch.zeros(1, device=device)
    halved = matrix.to(half)
    product, convolution = 2 * side**3 / 1e12, 2 * 9 * 256 * 256 * picture[0, 0].numel() / 1e12
    return Gpu(
        memory=torch.cuda.get_device_properties(device).total_memory / 1e9
        if on_gpu
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        float32=product / _time(lambda: matrix @ matrix, device, seconds),
        tf32=convolution / _time(lambda: torch.conv2d(picture, kernel, padding=1), device, seconds),
        fp16=product / _time(lambda: halved @ halved, device, seconds),
        bandwidth=2 * long.nbytes / 1e9 / _time(lambda: long + 1, device, seconds),
        utilisation=1.0,
        launch=_time(lambda: short + 1, device, seconds),
    )


def _time(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Mean seconds of a step, repeated for so long; the first one does not count."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    step()
    wait()
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        step()
        rounds += 1
        if rounds % 100 == 0:
            wait()  # else a GPU's queue grows
    wait()
    return (time.perf_counter() - start) / rounds


def count(step: Callable[[], object]) -> Work:
    """Run a step and count what it takes; of one that returns a loss, the backward pass, too.

    A CPU and small pictures will do: what these networks take is a constant and a multiple of the pixels. Under
    `torch.autocast("cpu", torch.bfloat16)` a step counts as on a GPU under fp16. FLOPs are torch's count: of matrix
    products, convolutions and attention.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention for inference counts as nothing
    try:
        with _Counter(mixed=torch.is_autocast_enabled("cpu")) as counter:
            loss = step()
            kept = counter.look()
            if trains := isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    memory = kept if trains else counter.peak
    return replace(counter.work, memory=memory)


def _compute(function: Any, args: Any, kwargs: Any) -> Any:
    """What PyTorch computes. A product or convolution of half precision is computed in float32 and rounded, for many a
    CPU has no bfloat16, and emulates it some hundred times as slowly."""
    kinds = {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    if kinds not in ({torch.bfloat16}, {torch.float16}) or "attention" in str(function):
        return function(*args, **kwargs)
    args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
    return tree_map_only(Tensor, lambda tensor: tensor.to(*kinds), function(*args, **kwargs))


class _Counter(TorchDispatchMode):
    """Sees every operation below autograd."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed, self.work, self.alive, self.peak = mixed, Work(), 0, 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}  # of what was made

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, known = kwargs or {}, function._overloadpacket in flop_registry
        if not known:
            with self:  # in inference mode come compositions, such as a linear layer
                if (out := function.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        out = _compute(function, args, kwargs) if known else function(*args, **kwargs)
        if function.is_view or function._overloadpacket in (torch.ops.aten.detach, torch.ops.aten.empty):
            return out
        given, made = ([x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in ((args, kwargs), out))
        counted = {"bytes": sum(tensor.nbytes for tensor in (*given, *made)), "kernels": 1}
        if known:
            kept = "kept_" if self.mixed and given[0].dtype == torch.float32 else ""
            of = "convolution_flops" if "convolution" in str(function) else "flops"
            counted[kept + of] = flop_registry[function._overloadpacket](*args, **kwargs, out_val=out)
        self.work += Work(**counted)
        old = {tensor.untyped_storage()._cdata for tensor in given}
        for storage in (tensor.untyped_storage() for tensor in made):
            if storage._cdata not in old:  # made, not written into
                old.add(storage._cdata)
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.alive += storage.nbytes()
        if self.alive > 1.05 * self.peak:  # not every time: looking takes time
            self.look()
        return out

    def look(self) -> int:
        """Bytes that are alive of what was made; the most that ever were is `peak`, to within 5 %."""
        self.storages = {key: kept for key, kept in self.storages.items() if not kept[0].expired()}
        self.alive = sum(size for _, size in self.storages.values())
        self.peak = max(self.peak, self.alive)
        return self.alive
