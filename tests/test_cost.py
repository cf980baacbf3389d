"""The benchmark counts what can be counted by hand, and says what it was asked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from open_clip.model import CLIP
from torch.utils.flop_counter import FlopCounterMode

from maskclip.cost import COLUMNS, ROWS, _peak_gib, _peaks_of_a_process, as_table, benchmark
from maskclip.model.clip import load_clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder

MINI_CLIP = Path(__file__).parents[1] / "models" / "mini_clip"
WIDTH, LAYERS, PATCH, GRID, HEADS, MASKS = 32, 4, 4, 4, 4, 12
TOKENS = GRID * GRID + 1


@pytest.fixture
def clip():
    torch.manual_seed(0)
    vision = dict(image_size=GRID * PATCH, patch_size=PATCH, width=WIDTH, head_width=WIDTH // HEADS, layers=LAYERS)
    return CLIP(12, vision, dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)).eval()


def value(frame, method, metric, masks=MASKS):
    chosen = frame[(frame.method == method) & (frame.metric == metric) & (frame.masks == masks)]
    assert len(chosen) == 1
    return chosen.value.item()


def test_every_row_and_metric(clip):
    frame = benchmark(clip, MASKS, repeats=1, matched=3)
    assert list(frame.columns) == COLUMNS and set(frame.method) == set(ROWS)
    assert set(frame.model) == {"CLIP"} and set(frame.resolution) == {GRID * PATCH}
    assert (frame.value > 0).all() and not frame.duplicated(["method", "metric", "masks"]).any()
    for method in ROWS:
        own = frame[frame.method == method]
        expected = {"tflops"} if method in ("regionclip", "zegformer", "simseg") else {"time_s", "tflops", "peak_gb"}
        assert set(own.metric) == expected
    per_mask = value(frame, "clip_baseline", "time_s", 1)
    assert value(frame, "clip_baseline", "time_s") == pytest.approx(MASKS * per_mask)
    text = as_table(frame)
    assert "CLIP at 16 pixels" in text and "x CLIP" in text and all(label in text for label in ROWS.values())


@pytest.mark.parametrize(("warm", "rounds"), [(float("inf"), 3), (0.0, 2)])
def test_a_first_round_counts_where_it_is_long(clip, monkeypatch, warm, rounds):
    """Every row is timed twice, after a round that does not count unless it took long; the first row runs once more
    before all, so that it is as warm as the others."""
    import maskclip.cost as module

    took = iter(range(1, 100))
    monkeypatch.setattr(module, "_WARM", warm)
    monkeypatch.setattr(module, "_time", lambda step, device: float(next(took)))
    frame = benchmark(clip, MASKS, rows=["clip", "wo_rma"], metrics=["time_s"], repeats=2)
    assert next(took) == 1 + 2 * rounds + 1
    clip_times, wo_rma_times = range(2, 2 * rounds + 1, 2)[-2:], range(3, 2 * rounds + 2, 2)[-2:]
    assert value(frame, "clip", "time_s", 0) == sum(clip_times) / 2
    assert value(frame, "wo_rma", "time_s") == sum(wo_rma_times) / 2


def test_flops_by_hand(clip):
    frame = benchmark(clip, MASKS, metrics=["tflops"])
    d, n, m = WIDTH, TOKENS, MASKS
    one_layer = 2 * n * 12 * d * d + 4 * n * n * d
    ends = 2 * (n - 1) * 3 * PATCH**2 * d + 2 * 12 * d
    assert value(frame, "clip", "tflops", 0) * 1e12 == pytest.approx(LAYERS * one_layer + ends, rel=1e-6)
    for method in ("clip_baseline", "regionclip", "zegformer", "simseg"):
        assert value(frame, method, "tflops") == pytest.approx(m * value(frame, "clip", "tflops", 0))
    # Mask tokens: queries, output projection, MLP, attention on n keys; CLIP's last layer gives keys and values only.
    mask_tokens = LAYERS * (2 * m * 10 * d * d + 4 * m * n * d) + 2 * m * 12 * d
    assert value(frame, "wo_rma_again", "tflops") * 1e12 == pytest.approx(mask_tokens, rel=1e-6)
    image = LAYERS * one_layer + ends - 2 * 12 * d - (2 * n * 10 * d * d + 4 * n * n * d)
    assert value(frame, "wo_rma", "tflops") * 1e12 == pytest.approx(image + mask_tokens, rel=1e-6)
    # f_r is by far the most of RMA: one D x p * p product for each mask and patch.
    extra = (value(frame, "maskclip_again", "tflops") - value(frame, "wo_rma_again", "tflops")) * 1e12
    residual = LAYERS * 2 * m * (n - 1) * d * PATCH**2
    assert residual < extra < 3 * residual


def test_backward_of_the_streamed_refinement_is_counted(clip):
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip, (LAYERS,))
    features = encoder.see(torch.randn(1, 3, 16, 16))
    result = encoder.encode(features, torch.randn(1, MASKS, 16, 16))
    with FlopCounterMode(display=False) as counter:
        result.masks.sum().backward()
    one_product = 2 * MASKS * (TOKENS - 1) * WIDTH * PATCH**2
    assert counter.get_total_flops() == 2 * one_product  # for the queries and for the weights


def test_other_resolutions(clip):
    frame = benchmark(clip, 3, resolution=24, rows=["clip", "maskclip"], metrics=["tflops"])
    assert set(frame.resolution) == {24}


def test_a_hollow_model_counts_as_the_whole(monkeypatch):
    """FLOPs alone are counted on a model whose layers share their weights: they must be the true model's."""
    import open_clip

    vision = dict(image_size=16, patch_size=4, width=32, head_width=8, layers=3)
    text = dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)
    config = dict(embed_dim=12, vision_cfg=vision, text_cfg=text)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    rows = ["clip", "wo_rma", "wo_rma_again"]
    hollow = benchmark("tiny", 5, rows=rows, metrics=["tflops"])
    whole = benchmark(CLIP(12, vision, text), 5, rows=rows, metrics=["tflops"])
    pd.testing.assert_frame_equal(hollow, whole.assign(model="tiny"))


def test_peak_memory_is_that_of_a_process_of_its_own(monkeypatch):
    import maskclip.cost as module

    seen = []
    run = module.subprocess.run
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: seen.append((a[0], k["env"])) or run(*a, **k))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "8000000000")
    ballast = torch.ones(2**28)  # 1 GiB here must not count there
    frame = benchmark(MINI_CLIP, 3, rows=["clip", "simseg"], metrics=["tflops", "peak_gb"])
    ((command, environment),) = seen
    assert command[1] == "-c" and not any(key.startswith("MALLOC_") for key in environment)
    assert set(frame.metric) == {"tflops", "peak_gb"} and set(frame.model) == {"mini_clip"}
    assert set(frame.resolution) == {load_clip(MINI_CLIP).image_size}
    assert 0.1 < value(frame, "clip", "peak_gb", 0) < 1.5 < _peak_gib("cpu") and ballast.any()
    with pytest.raises(RuntimeError, match=r"peak memory failed.*no-such"):
        _peaks_of_a_process("no-such", dict(dtype="float32", rows=["clip"]))


def test_no_gpu_is_one_sentence(clip, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch finds no GPU"):
        benchmark(clip, device="cuda")


@pytest.mark.parametrize(
    "change, names",
    [
        (dict(rows=["fast"]), "rows has.*fast"),
        (dict(metrics=["joules"]), "metrics has.*joules"),
        (dict(masks=0), "masks is 0"),
        (dict(repeats=0), "repeats is 0"),
        (dict(matched=-1), "matched is -1"),
        (dict(dtype="int8"), "dtype has.*int8"),
        (dict(resolution=0), "resolution is 0"),
        (dict(model="ViT-none"), "ViT-none"),
    ],
)
def test_bad_input_is_named(clip, change, names):
    with pytest.raises(ValueError, match=names):
        benchmark(**(dict(model=clip) | change))
