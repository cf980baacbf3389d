"""What the encoder costs, beside CLIP itself and one CLIP pass per mask (Table 6, Sec. 4.3, claims C10 and C11).

    python -m maskclip.cost --model ViT-L-14-336 --masks 100

FLOPs are torch's count: matrix products, convolutions and attention, two per multiply-add (the paper's Table 6 fits one
per multiply-add, so its figures are about half of these). Proposal networks are never included: all methods share them.

Table 6's other rows do what those methods do to their regions, with the CLIP at hand in place of their own, so that
only the method differs. Assumed, after their papers and code:
    RegionCLIP  every proposal's box is cut out of the image and squashed to CLIP's input; one CLIP pass a box, empty
                ones left out. (Its ResNets pool boxes from one feature map, which a ViT with a class token has not.)
    ZegFormer   the same boxes, with everything outside the mask blacked out; one pass a mask that has a pixel.
    SimSeg      as ZegFormer, with CLIP's mean colour instead of black; one pass a mask that has a pixel.
Cutting and squashing cost no FLOPs by this count, so the three differ from the CLIP Baseline only by the empty masks.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskclip.files import write_atomically
from maskclip.model.clip import load_clip
from maskclip.model.clip_baseline import clip_baseline
from maskclip.model.visual_encoder import ImageFeatures, MaskCLIPVisualEncoder

COLUMNS = ["method", "metric", "masks", "model", "resolution", "value"]
METRICS = ("time_s", "tflops", "peak_gb")
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
_CROPS = ("regionclip", "zegformer", "simseg")
_WARM = 2.0  # seconds on a CPU; of a first round that takes longer, what a first time costs is nothing
_PATIENCE = 20.0  # seconds; a CLIP Baseline that would take longer is measured on 1 or 2 masks and scaled up


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
    name: str | None = None,
    own_process: bool = True,
) -> pd.DataFrame:
    """Measure `rows` on one image with `masks` random masks, each of which touches about half of the patches.

    Times are medians over `repeats` interleaved rounds, so that a busy machine slows every row alike, after one that
    does not count where it takes less than 2 s. Peak memory is that of a whole process while the row runs (CUDA:
    torch's), model and Python included, text tower not (a model given by name is built without); the CLIP Baseline's is
    at one picture per pass.

    Args:
        model: an open_clip name (random weights), a folder such as `models/mini_clip`, or an open_clip model.
        masks: M.
        resolution: S in pixels; None: the model's own.
        device, dtype: "cpu" or "cuda"; "float32", "bfloat16" or "float16".
        rows: of `ROWS`.
        metrics: of `METRICS`. If "tflops" alone is asked for a name, all layers share one layer's weights: counting
            needs no others, and a large model is there at once.
        matched: masks that take part in the training step's loss. The step is: encode the image, encode all masks
            without a graph (to match them), encode the matched ones with, and go backward. Matcher and loss are not
            included.
        seed: of weights, image and masks.
        name: how the model is called in the result; None: by its own name.
        own_process: measure the peak memory of a model given by name in a process of its own, so that neither what this
            one holds nor how its allocator is set plays a part. It loads the model once more.
    Returns:
        tidy table with `COLUMNS`: method, metric (time_s | tflops | peak_gb), masks, model, resolution, value (seconds,
        1e12 FLOPs, GiB). The CLIP Baseline comes per mask (masks = 1) and for all, its time scaled up from 1 or
        2 where all masks would take longer than 20 s. RegionCLIP, ZegFormer, SimSeg: tflops only.
    Raises:
        ValueError: an unknown row, metric, dtype or model, or a number that is too small.
    """
    for given, known, what in ((rows, ROWS, "rows"), (metrics, METRICS, "metrics")):
        if unknown := [x for x in given if x not in known]:
            raise ValueError(f"{what} has {unknown}; it must be among {list(known)}")
    for value, what in ((masks, "masks"), (repeats, "repeats"), (matched, "matched"), (resolution, "resolution")):
        if value is not None and value < 1:
            raise ValueError(f"{what} is {value}; it must be at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch finds no GPU; take cpu")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; it must be float32, bfloat16 or float16")
    own_process = own_process and "peak_gb" in metrics and device == "cpu" and not isinstance(model, nn.Module)
    measured = [metric for metric in metrics if not (own_process and metric == "peak_gb")]
    name = name or (type(model).__name__ if isinstance(model, nn.Module) else Path(model).name)
    bench = _Bench(_load(model, device, dtype, hollow=measured == ["tflops"]), masks, resolution, matched, seed)
    if any(row.endswith("_again") for row in rows):
        bench.features = bench.maskclip.see(bench.image)  # paid for by the first set of masks
    values: list[tuple[str, str, int, float]] = []

    if "tflops" in measured:
        clip_flops = _count(bench.steps["clip"])
        for row in rows:
            if row in (*_CROPS, "clip_baseline"):  # so many passes of the same cost, which need not all be counted
                passes = len(bench.crops(row)) if row in _CROPS else masks
                values.append((row, "tflops", masks, clip_flops * passes))
                if row == "clip_baseline":
                    values.append((row, "tflops", 1, clip_flops))
            else:
                flops = clip_flops if row == "clip" else _count(bench.steps[row])
                values.append((row, "tflops", bench.masks_of(row), flops))

    timed = [row for row in rows if row not in _CROPS]
    if timed and set(measured) & {"time_s", "peak_gb"}:
        times: dict[str, list[float]] = {row: [] for row in timed}
        peaks = dict.fromkeys(timed, 0.0)
        for round_ in range(repeats + 1 if "time_s" in measured else 1):
            for row in timed:
                if round_ > 0 and len(times[row]) == repeats:
                    continue
                _reset_peak(device)
                seconds = _time(bench.steps[row], device)
                if round_ == 0:
                    peaks[row] = _peak_gib(device)
                if round_ > 0 or (device == "cpu" and seconds > _WARM):
                    times[row].append(seconds / (bench.baseline_masks if row == "clip_baseline" else 1))
                if round_ == 0 and row == "clip_baseline":
                    bench.baseline_masks = masks if seconds * masks < _PATIENCE else min(masks, 2)
        for row in timed:
            if "time_s" in measured:
                median = statistics.median(times[row])
                if row == "clip_baseline":
                    values.append((row, "time_s", 1, median))
                values.append((row, "time_s", bench.masks_of(row), median * (masks if row == "clip_baseline" else 1)))
            if "peak_gb" in measured:
                values.append((row, "peak_gb", bench.masks_of(row), peaks[row]))
    frame = pd.DataFrame([(r, metric, m, name, bench.size, v) for r, metric, m, v in values], columns=COLUMNS)
    if timed and own_process:
        options = dict(model=model, masks=masks, resolution=bench.size, dtype=dtype, matched=matched, seed=seed)
        frame = pd.concat([frame, _peaks_of_a_process(options, timed).assign(model=name)], ignore_index=True)
    return frame


def _peaks_of_a_process(options: dict[str, Any], rows: list[str]) -> pd.DataFrame:
    """This module's command line for peak memory alone, with the system's own way of handing memory back."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "peaks.csv"
        command = [sys.executable, "-m", "maskclip.cost", "--device", "cpu", "--metrics", "peak_gb", "--csv", csv]
        command += [text for key, value in options.items() for text in (f"--{key}", value)]
        command += ["--rows", *rows, "--threads", torch.get_num_threads()]
        done = subprocess.run([str(x) for x in command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"measuring peak memory failed: {done.stderr.strip() or done.returncode}")
        return pd.read_csv(csv)


class _Bench:
    """One image, its masks, the encoders, and what each row does with them."""

    def __init__(self, clip: Any, masks: int, resolution: int | None, matched: int, seed: int) -> None:
        weight = clip.visual.conv1.weight
        generator = torch.Generator().manual_seed(seed)
        layers = len(clip.visual.transformer.resblocks)
        quarters = sorted({max(1, round(layers * part / 4)) for part in (1, 2, 3, 4)})  # 6, 12, 18, 24 of 24
        self.size = resolution or clip.visual.image_size[0]
        self.clip, self.masks = clip, masks
        self.baseline_masks = 1  # how many of them the CLIP Baseline's step takes: see _PATIENCE
        self.plain = MaskCLIPVisualEncoder.from_open_clip(clip, ())
        self.maskclip = MaskCLIPVisualEncoder.from_open_clip(clip, quarters, generator=generator)
        self.image = torch.randn(1, 3, self.size, self.size, generator=generator).to(weight)
        self.logits = random_masks(masks, self.size, generator).to(weight.device)
        self.matched = self.logits[:, :matched]
        own = self.size == clip.visual.image_size[0]  # open_clip itself does not interpolate positions
        self.steps: dict[str, Callable[[], object]] = {
            "clip": lambda: clip.encode_image(self.image) if own else self.plain.see(self.image),
            "wo_rma": lambda: self.plain(self.image, self.logits),
            "maskclip": lambda: self.maskclip(self.image, self.logits),
            "wo_rma_again": lambda: self.plain.encode(self.features, self.logits),
            "maskclip_again": lambda: self.maskclip.encode(self.features, self.logits),
            "training_step": self.training_step,
            "clip_baseline": lambda: clip_baseline(clip, self.image, self.logits[:, : self.baseline_masks]),
        }
        self.features: ImageFeatures  # for the steps that reuse it

    def masks_of(self, row: str) -> int:
        return 0 if row == "clip" else self.masks

    def training_step(self) -> None:
        features = self.maskclip.see(self.image)
        with torch.no_grad():
            self.maskclip.encode(features, self.logits)
        with torch.enable_grad():
            result = self.maskclip.encode(features, self.matched)
            outputs = [result.embeddings.float(), *result.mask_logits]
            torch.stack([x.square().mean() for x in outputs]).sum().backward()
        self.maskclip.zero_grad()

    def crops(self, row: str) -> list[Tensor]:
        """The pictures [3, S, S] that RegionCLIP, ZegFormer or SimSeg would send through CLIP."""
        pictures = []
        for mask in self.logits[0] >= 0:
            rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
            if rows:
                outside = {"zegformer": -2.0, "simseg": 0.0}.get(row)  # roughly black; the mean colour
                seen = self.image if outside is None else self.image.masked_fill(~mask, outside)
                box = seen[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
                pictures.append(F.interpolate(box, (self.size, self.size), mode="bicubic", antialias=True)[0])
        return pictures


def random_masks(masks: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Logits [1, M, S, S] of smooth random blobs, each touching about half of the patches: dense for proposals."""
    coarse = torch.randn(1, masks, 6, 6, generator=generator)
    return 5 * F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)


def _load(model: str | Path | nn.Module, device: str, dtype: str, hollow: bool) -> nn.Module:
    """The CLIP to measure.  One given by name comes without its text tower, which no row needs, and with random
    weights; a hollow one has the same weights in all layers."""
    if isinstance(model, nn.Module):
        return model.to(device, getattr(torch, dtype)).eval()
    config = None if Path(model).is_dir() else open_clip.get_model_config(str(model))
    if config is None or not isinstance(config["vision_cfg"].get("layers"), int):  # a folder, or no ViT: told there
        return load_clip(model, device=device, dtype=getattr(torch, dtype)).model
    layers = config["vision_cfg"]["layers"]
    vision = config["vision_cfg"] | ({"layers": 1} if hollow else {})
    text = dict(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
    clip = open_clip.model.CLIP(config["embed_dim"], vision, text, config.get("quick_gelu", False))
    if hollow:
        clip.visual.transformer.resblocks = nn.ModuleList([clip.visual.transformer.resblocks[0]] * layers)
    return clip.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


@torch.no_grad()
def _count(step: Callable[[], object]) -> float:
    """TFLOPs of one step. Without torch's fused multi-head attention for inference, which its counter does not see."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            step()
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def _time(step: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is in use now
    except OSError:
        pass  # elsewhere the peak is the process's since its start: measure one row a process to compare


def _peak_gib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    try:  # a child's ru_maxrss begins with its parent's, and is not reset
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)


def as_table(frame: pd.DataFrame) -> str:
    """The result as text: one line a row, time also as a multiple of plain CLIP's."""
    frame = frame.assign(method=pd.Categorical(frame.method, list(ROWS)))
    wide = frame.pivot_table(index=["method", "masks"], columns="metric", values="value", observed=True)
    wide = wide.reindex(columns=[m for m in METRICS if m in wide])
    if "time_s" in wide and ("clip", 0) in wide.index:
        wide.insert(1, "x CLIP", wide["time_s"] / float(wide["time_s"][("clip", 0)]))
    wide.index = [f"{ROWS[method]}{f', {masks} masks' if masks else ''}" for method, masks in wide.index]
    header = f"{frame.model.iloc[0]} at {frame.resolution.iloc[0]} pixels"
    return header + "\n" + wide.to_string(float_format=lambda x: f"{x:.3f}", na_rep="-")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskclip.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-L-14-336", help="open_clip name (random weights) or folder")
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the model's own)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), metavar="METRIC", help=f"{', '.join(METRICS)}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--matched", type=int, default=15, help="masks in the training step's loss")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, metavar="OUT", help="also write the rows as CSV")
    options = vars(parser.parse_args(arguments))
    threads, csv = options.pop("threads"), options.pop("csv")
    if threads is not None and threads < 1:
        sys.exit(f"error: threads is {threads}; it must be at least 1")
    if threads:
        torch.set_num_threads(threads)
    try:
        frame = benchmark(**options, own_process=False)  # it is one
        print(as_table(frame))
        if csv:
            write_atomically(csv, lambda temporary: frame.to_csv(temporary, index=False))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
