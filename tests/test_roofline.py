"""Work is counted as by hand, and a GPU takes the time that its datasheet allows."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from maskclip.roofline import GPUS, Gpu, Work, count, find_gpu, measure


def test_products_bytes_kernels_and_what_is_kept() -> None:
    x, weight = torch.randn(5, 7), torch.randn(3, 7, requires_grad=True)
    forward = count(lambda: F.linear(x, weight).detach())
    assert (forward.flops, forward.convolution_flops) == (2 * 5 * 7 * 3, 0)
    assert (forward.kernels, forward.bytes, forward.memory) == (1, 4 * (5 * 7 + 3 * 7 + 5 * 3), 4 * 5 * 3)
    training = count(lambda: F.linear(x, weight).exp().sum())
    assert training.flops == 2 * forward.flops  # the weight's gradient; x has none
    assert training.memory == pytest.approx(4 * (5 * 3 + 1), abs=4 * 5 * 3)  # exp's answer is kept for its gradient
    assert training.kernels > 4 and training.bytes > 2 * forward.bytes


def test_convolutions_are_counted_apart() -> None:
    picture, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    work = count(lambda: F.conv2d(picture, kernel, padding=1))
    assert work.flops == 0 and work.convolution_flops == 2 * (2 * 8 * 8) * 4 * 3 * 9
    assert work.tflops == work.convolution_flops / 1e12


def test_inference_mode_and_fused_attention_count_alike() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    tokens, counted = torch.randn(1, 5, 16), {}
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            counted[mode] = count(lambda: layer(tokens).detach()).flops
    assert set(counted.values()) == {2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 5 * 5 * 16}


def test_memory_is_what_is_alive_at_once() -> None:
    def step() -> None:
        for _ in range(10):
            torch.ones(1000).exp_()

    assert 4000 <= count(step).memory <= 8000 < 10 * 4000


def test_what_mixed_precision_leaves_in_float32_is_counted_apart() -> None:
    layer, x = torch.nn.Linear(7, 3), torch.randn(5, 7)

    def step() -> None:
        layer(x)
        with torch.autocast("cpu", enabled=False):
            layer(x)

    alone, one = count(step), 2 * 5 * 7 * 3
    with torch.autocast("cpu", torch.bfloat16):
        mixed = count(step)
    assert (alone.flops, alone.kept_flops) == (2 * one, 0) and (mixed.flops, mixed.kept_flops) == (one, one)
    assert alone.tflops == mixed.tflops
    gpu = Gpu(memory=80, float32=10, tf32=20, fp16=40, bandwidth=math.inf, utilisation=1, launch=0)
    assert gpu.seconds(Work(flops=40e12, kept_flops=10e12, kept_convolution_flops=20e12), "fp16") == 1 + 1 + 1


def test_what_is_computed_in_float32_counts_as_bfloat16_and_is_rounded_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    convolution, picture, seen = torch.nn.Conv2d(3, 16, 4, 4), torch.randn(2, 3, 32, 32), []

    def step() -> torch.Tensor:
        layer.zero_grad()
        convolution.zero_grad()
        tokens = layer(convolution(picture).flatten(2).mT)
        seen.append(tokens.detach())
        return tokens.square().mean()

    def counted() -> Work:
        with torch.autocast("cpu", torch.bfloat16):
            return count(step)

    ours, gradient = counted(), layer.linear1.weight.grad
    monkeypatch.setattr("maskclip.roofline._compute", lambda function, args, kwargs: function(*args, **kwargs))
    plain = counted()
    assert ours == plain and ours.flops > 0 and ours.convolution_flops > 0
    assert seen[0].dtype == seen[1].dtype
    torch.testing.assert_close(seen[0], seen[1], rtol=0.02, atol=0.05)
    torch.testing.assert_close(gradient, layer.linear1.weight.grad, rtol=0.05, atol=0.01)


def test_work_adds_up_and_repeats() -> None:
    one, two = Work(1, 2, 3, 4, 5, 6, 7), Work(10, 20, 30, 40, 50, 60, 70)
    assert one + two == Work(11, 22, 33, 44, 55, 66, 77) and two - one - one == 8 * one
    assert 2 * one == Work(2, 4, 6, 8, 10, 12, 14)


def test_seconds_by_hand() -> None:
    gpu = Gpu(memory=80, float32=10, tf32=20, fp16=40, bandwidth=1000, utilisation=0.5, launch=1e-3)
    work = Work(flops=10e12, convolution_flops=20e12, bytes=500e9, kernels=1000)
    assert gpu.seconds(work) == pytest.approx((1 + 2 + 0.5) / 0.5 + 1)
    assert gpu.seconds(work, "float32", "tf32") == pytest.approx((1 + 1 + 0.5) / 0.5 + 1)
    assert gpu.seconds(work, "fp16") == pytest.approx((0.25 + 0.5 + 0.5) / 0.5 + 1)


def test_datasheets_are_of_dense_products() -> None:
    for name, gpu in GPUS.items():
        assert gpu.float32 <= gpu.tf32 <= gpu.fp16 and gpu.bandwidth > 100, name
    assert GPUS["A100"].fp16 == 312 and GPUS["A5000"].memory == 24


def test_this_machine_is_measured() -> None:
    here = measure(torch.device("cpu"), seconds=0.02)
    assert 1e-4 < here.float32 < 100 and 0.1 < here.bandwidth < 1e4 and 1e-7 < here.launch < 1e-2
    assert here.utilisation == 1 and here.memory > 0.1
    with pytest.raises(ValueError, match=r"no datasheet of the GPU 'H1000'; there are T4, .*, and here"):
        find_gpu("H1000")
