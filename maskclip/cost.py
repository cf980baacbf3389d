"""What the encoder costs, beside CLIP itself and one CLIP pass per mask (Table 6, Sec. 4.3, C10, C11).

FLOPs are torch's count: matrix products, convolutions and attention, two per multiply-add. (Table 6
fits one per multiply-add, so its figures are about half of these.) Proposal networks are never
included: all methods share them.

Table 6's other rows do what those methods do to their regions, with the CLIP at hand in place of
their own: RegionCLIP cuts each proposal's box out (its ResNets pool boxes from one feature map, which
a ViT has not); ZegFormer also blacks out what is outside of the mask; SimSeg takes CLIP's mean colour
for that. Cutting costs no FLOPs by this count, so each is one CLIP pass per mask.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.device import find_device
from maskclip.model.clip import Clip, load_clip
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.visual_encoder import ImageFeatures, MaskCLIPVisualEncoder
from maskclip.roofline import Gpu, count

COLUMNS = ["method", "metric", "masks", "model", "resolution", "value"]
METRICS = ("time_s", "tflops", "peak_gb")
DTYPES = ("float32", "bfloat16", "float16")
ROWS = {
    "clip": "plain CLIP, one image",
    "wo_rma": "MaskCLIP w/o RMA",
    "maskclip": "MaskCLIP",
    "wo_rma_again": "w/o RMA, more masks on the same image",
    "maskclip_again": "MaskCLIP, more masks on the same image",
    "training_step": "MaskCLIP, training step",
    "clip_baseline": "CLIP Baseline",
    "regionclip": "RegionCLIP (its crops)",
    "zegformer": "ZegFormer (its crops)",
    "simseg": "SimSeg (its crops)",
}
_COUNTED = ("regionclip", "zegformer", "simseg")  # never run
_WARM = 2.0  # seconds on a CPU; of a first round that takes longer, what a first time costs is nothing
_PATIENCE = 20.0  # seconds; a CLIP Baseline that takes longer is measured on 1 or 2 masks, scaled up
_CHILD = """
import json, sys, torch
from maskclip.cost import _load, benchmark
name, threads, options = json.loads(sys.argv[1])
torch.set_num_threads(threads)
model = _load(name, "cpu", options["dtype"]).model
benchmark(model, **options, metrics=["peak_gb"]).to_csv(sys.stdout, index=False)
"""
Values = list[tuple[str, str, int, float]]  # method, metric, masks, value


def benchmark(
    model: str | Path | nn.Module = "ViT-L-14-336",
    masks: int = 100,
    resolution: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    rows: Sequence[str] = tuple(ROWS),
    metrics: Sequence[str] = METRICS,
    repeats: int = 3,
    matched: int = 15,
    seed: int = 0,
    gpu: Gpu | None = None,
) -> pd.DataFrame:
    """Measure `rows` on one image with `masks` random masks, each over about half of the patches.

    Times are medians over `repeats` interleaved rounds, so that a busy machine slows every row alike,
    after one that does not count where it takes less than 2 s; before all, the first row runs once,
    so that it is as warm as the others. Peak memory is a whole process's (CUDA:
    torch's) while the row runs, model and Python included; the CLIP Baseline's is at one picture per
    pass. A model given by name has no text tower then, and a process of its own, where neither what
    this one holds nor how its allocator is set plays a part.

    Args:
        model: an open_clip name (random weights), a folder, or an open_clip model.
        resolution: S in pixels; None: the model's own.
        metrics: of `METRICS`. "tflops" alone needs no large model: all layers share one's weights.
        gpu: predict its "time_s" from what is counted for "tflops", in float32.
        matched: masks in the training step's loss. The step is: see the image, encode all masks
            without a graph (to match them), the matched ones with, go backward; no matcher, no loss.
    Returns:
        tidy table with `COLUMNS`: value in seconds, 1e12 FLOPs or GiB. The CLIP Baseline comes per
        mask (masks = 1) and for all. RegionCLIP, ZegFormer, SimSeg: tflops only.
    Raises:
        ValueError: none or an unknown row, metric, device, dtype or model, no ViT, or a number that is too small.
    """
    _check(rows=(rows, list(ROWS)), metrics=(metrics, METRICS), dtype=([dtype], DTYPES))
    if (device := find_device(device)).split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}; costs are measured on cpu or cuda")
    for what, number in dict(masks=masks, repeats=repeats, matched=matched, resolution=resolution).items():
        if number is not None and number < 1:
            raise ValueError(f"{what} is {number}; it must be at least 1")
    named = None if isinstance(model, nn.Module) else Path(model).name
    clip = _load(model, device, dtype, hollow=list(metrics) == ["tflops"])
    bench = _Bench(clip, masks, resolution or clip.image_size, matched, seed)
    if any(row.endswith("_again") for row in rows):
        bench.features = bench.maskclip.see(bench.image)  # paid for by the first set of masks
    run = [row for row in rows if row not in _COUNTED]
    apart = ["peak_gb"] if named and device == "cpu" else []
    here = [metric for metric in metrics if metric not in apart]
    values = _counts(bench, rows, gpu) if "tflops" in here else []
    if run and set(here) & {"time_s", "peak_gb"}:
        found = _times_and_peaks(bench, run, device, repeats if "time_s" in here else 0)
        values += [value for value in found if value[1] in here]
    name = named or type(model).__name__
    frame = pd.DataFrame([(*value[:3], name, bench.size, value[3]) for value in values], columns=COLUMNS)
    if run and set(apart) & set(metrics):
        options = dict(masks=masks, resolution=bench.size, dtype=dtype, matched=matched, seed=seed, rows=run)
        frame = pd.concat([frame, _peaks_of_a_process(str(model), options).assign(model=name)], ignore_index=True)
    return frame


def _check(**choices: tuple[Sequence[str], Sequence[str]]) -> None:
    for what, (given, known) in choices.items():
        if not given:
            raise ValueError(f"{what} is empty; give some of {', '.join(known)}")
        if unknown := [x for x in given if x not in known]:
            raise ValueError(f"{what} has {unknown}; it must be among {list(known)}")


class _Bench:
    """One image, its masks, the encoders, and what each row does with them."""

    features: ImageFeatures  # of the steps that reuse CLIP's pass

    def __init__(self, clip: Clip, masks: int, size: int, matched: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.plain = MaskCLIPVisualEncoder.from_open_clip(clip.model, ())  # says what is no ViT
        depth = len(self.plain.blocks)
        quarters = sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)})  # 6, 12, 18, 24 of 24
        self.size, self.masks = size, masks
        self.baseline_masks = 1  # how many of them the CLIP Baseline's step takes: see _PATIENCE
        self.maskclip = MaskCLIPVisualEncoder.from_open_clip(clip.model, quarters, generator=generator)
        self.image = torch.randn(1, 3, size, size, generator=generator).to(clip.model.visual.conv1.weight)
        self.logits = random_masks(masks, size, generator).to(clip.device)
        self.matched = self.logits[:, :matched]
        own, masked = size == clip.image_size, MaskedImages(clip)  # open_clip does not interpolate positions
        self.steps: dict[str, Callable[[], object]] = {
            "clip": lambda: clip.model.encode_image(self.image) if own else self.plain.see(self.image),
            "wo_rma": lambda: self.plain(self.image, self.logits),
            "maskclip": lambda: self.maskclip(self.image, self.logits),
            "wo_rma_again": lambda: self.plain.encode(self.features, self.logits),
            "maskclip_again": lambda: self.maskclip.encode(self.features, self.logits),
            "training_step": self.training_step,
            "clip_baseline": lambda: masked(self.image, self.logits[:, : self.baseline_masks]),
        }

    def training_step(self) -> None:
        features = self.maskclip.see(self.image)
        self.maskclip.encode(features, self.logits)
        with torch.enable_grad():
            result = self.maskclip.encode(features, self.matched)
            outputs = [result.embeddings.float(), *result.mask_logits]
            torch.stack([x.square().mean() for x in outputs]).sum().backward()
        self.maskclip.zero_grad()


def random_masks(masks: int, size: int, generator: torch.Generator) -> Tensor:
    """Logits [1, M, S, S] of smooth blobs, each over about half of the patches: dense for proposals."""
    coarse = torch.randn(1, masks, 6, 6, generator=generator)
    return 5 * F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)


def _load(model: str | Path | nn.Module, device: str, dtype: str, hollow: bool = False) -> Clip:
    """The CLIP to measure. One given by name comes without its text tower, which no row needs, and
    with random weights; a hollow one has the same weights in all layers."""
    place = dict(device=device, dtype=getattr(torch, dtype))
    if isinstance(model, nn.Module):
        return Clip.of(model.to(**place).eval())
    config = None if Path(model).is_dir() else open_clip.get_model_config(str(model))
    if config is None or not isinstance(config["vision_cfg"].get("layers"), int):  # a folder, or no ViT: told there
        return load_clip(model, **place)
    layers = config["vision_cfg"]["layers"]
    vision = config["vision_cfg"] | ({"layers": 1} if hollow else {})
    text = dict(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
    clip = open_clip.model.CLIP(config["embed_dim"], vision, text, config.get("quick_gelu", False))
    if hollow:
        clip.visual.transformer.resblocks = nn.ModuleList([clip.visual.transformer.resblocks[0]] * layers)
    return Clip.of(clip.to(**place).eval().requires_grad_(False))


@torch.no_grad()
def _counts(bench: _Bench, rows: Sequence[str], gpu: Gpu | None) -> Values:
    """TFLOPs of each row, and with a GPU the seconds that it would take. Passes of CLIP all cost the same, so one is
    counted, once."""
    one_pass, values = count(bench.steps["clip"]), []
    for row in rows:
        masks, passes = (0, 1) if row == "clip" else (bench.masks, bench.masks)
        several = row in (*_COUNTED, "clip", "clip_baseline")
        works = {masks: passes * one_pass if several else count(bench.steps[row])}
        if row == "clip_baseline":
            works[1] = one_pass
        values += [(row, "tflops", number, work.tflops) for number, work in works.items()]
        values += [(row, "time_s", number, gpu.seconds(work)) for number, work in works.items() if gpu]
    return values


def _times_and_peaks(bench: _Bench, rows: list[str], device: str, repeats: int) -> Values:
    """Median seconds of `repeats` rounds, and the peak GiB of the round before them."""
    times: dict[str, list[float]] = {row: [] for row in rows}
    values: Values = []
    for row in rows[:1] if repeats else ():
        _time(bench.steps[row], device)  # whichever comes first pays for memory and threads that all others find
    for row in rows:
        _reset_peak(device)
        seconds = _time(bench.steps[row], device)
        values.append((row, "peak_gb", 0 if row == "clip" else bench.masks, _peak_gib(device)))
        if device == "cpu" and seconds > _WARM:
            times[row].append(seconds)
        if row == "clip_baseline":
            bench.baseline_masks = bench.masks if seconds * bench.masks < _PATIENCE else min(bench.masks, 2)
    for row in rows * repeats:  # round after round
        if len(times[row]) < repeats:
            masks = bench.baseline_masks if row == "clip_baseline" else 1
            times[row].append(_time(bench.steps[row], device) / masks)
    for row in rows if repeats else ():
        median = statistics.median(times[row])
        if row == "clip_baseline":
            values += [(row, "time_s", masks, median * masks) for masks in (1, bench.masks)]
        else:
            values.append((row, "time_s", 0 if row == "clip" else bench.masks, median))
    return values


@torch.no_grad()
def _time(step: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # where Linux lets us, the peak starts again from what is in use now
        Path("/proc/self/clear_refs").write_text("5")


def _peak_gib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")  # a child's ru_maxrss begins with its parent's, and is not reset
    if status.exists() and "VmHWM:" in (text := status.read_text()):
        return int(text.split("VmHWM:")[1].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _peaks_of_a_process(name: str, options: dict[str, Any]) -> pd.DataFrame:
    """Peak memory in a new process, with the system's own way of handing memory back."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-c", _CHILD, json.dumps([name, torch.get_num_threads(), options])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise RuntimeError(f"measuring peak memory failed: {reason[0]}")
    return pd.read_csv(io.StringIO(done.stdout))


def as_table(frame: pd.DataFrame) -> str:
    """The result as text: one line a row, time also as a multiple of plain CLIP's."""
    frame = frame.assign(method=pd.Categorical(frame.method, list(ROWS)))
    wide = frame.pivot_table(index=["method", "masks"], columns="metric", values="value", observed=True)
    wide = wide.reindex(columns=[m for m in METRICS if m in wide])
    if "time_s" in wide and ("clip", 0) in wide.index:
        wide.insert(1, "x CLIP", wide["time_s"] / float(wide["time_s"][("clip", 0)]))
    wide.index = [f"{ROWS[method]}{f', {masks} masks' if masks else ''}" for method, masks in wide.index]
    table = wide.to_string(float_format=lambda x: f"{x:.3f}", na_rep="-")
    return f"{frame.model.iloc[0]} at {frame.resolution.iloc[0]} pixels\n{table}"
