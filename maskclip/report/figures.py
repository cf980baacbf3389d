"""The charts of the report: one function each, one style, one colour per method everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a report is written to files, also where there is no screen

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from ..checkpoint import write_atomically
from .claims import Judgement
from .results import METHODS, Results, interval
from .tables import TABLES, paper_numbers, study_values

# Okabe and Ito's palette, told apart by colour-blind eyes as well; grey for the baseline, blue for the paper's method.
INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
PALETTE = {
    "CLIP Baseline": "#a3a8b0", "MaskCLIP w/o RMA": "#e69f00", "MaskCLIP (Mask R-CNN)": "#56b4e9",
    "MaskCLIP": "#0072b2", "MaskCLIP + GT masks": "#009e73", "MaskCLIP w/o MR": "#cc79a7",
    "MaskCLIP (COCO split)": "#009e73",
    "1, 7, 13, 19": "#f4c9a8", "3, 9, 15, 21": "#e89a5c", "21, 22, 23, 24": "#d55e00", "6, 12, 18, 24": "#0072b2",
    "RegionCLIP": "#d7dade", "ZegFormer": "#d7dade", "SimSeg": "#d7dade",
}
_PALE = "#80b8d8"  # MaskCLIP's blue, for classes never trained on
_STATES = {"holds": "#009e73", "fails": "#d55e00", "open": "#a3a8b0"}
WIDTH = 11.5  # inches, of every chart, so that type has one size throughout the report
_FOUR = ["CLIP Baseline", "MaskCLIP w/o RMA", "MaskCLIP (Mask R-CNN)", "MaskCLIP"]


def set_style() -> None:
    """The report's look: white ground, light horizontal grid, type large enough for a slide."""
    sns.set_theme(context="notebook", style="whitegrid", rc={
        "figure.facecolor": "white", "figure.dpi": 100, "savefig.dpi": 170, "savefig.bbox": "tight",
        "font.size": 12, "axes.titlesize": 13, "axes.titleweight": "normal", "axes.labelsize": 12,
        "xtick.labelsize": 11.5, "ytick.labelsize": 11, "legend.fontsize": 11, "legend.frameon": False,
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": MUTED, "axes.edgecolor": MUTED,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 1.0, "axes.axisbelow": True})


def _title(figure: Figure, message: str, detail: str) -> None:
    """The message above, in words one can quote; what is drawn below it, small and grey. Both in fixed inches."""
    height = figure.get_size_inches()[1]
    figure.text(0.01, 1 + 0.42 / height, message, ha="left", va="bottom", fontsize=16, fontweight="bold", color=INK)
    figure.text(0.01, 1 + 0.12 / height, detail, ha="left", va="bottom", fontsize=11.5, color=MUTED)


def _bars(axes: Axes, results: Results, table: int, rows: list[str], columns: list[str],
          labels: list[str] | None = None) -> None:
    """Grouped bars of the study with 95 % intervals and every seed as a dot; the paper's numbers as diamonds."""
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            x = j + (i - (len(rows) - 1) / 2) * width
            values = study_values(results, table, row, column)
            if len(values):
                mean, half = interval(values)
                axes.bar(x, mean, width * 0.9, color=PALETTE[row], label=row if j == 0 else None, zorder=2)
                if half == half:
                    axes.errorbar(x, mean, half, color=INK, elinewidth=1.3, capsize=3, zorder=4)
                    axes.scatter([x] * len(values), values, s=9, color=INK, alpha=0.45, linewidths=0, zorder=3)
            printed = paper_numbers().get((table, row, column))
            if printed:
                axes.scatter([x], [float(printed)], s=46, marker="D", facecolor="white", edgecolor=INK, linewidths=1.3,
                             zorder=5)
    axes.set_xticks(range(len(columns)), labels or columns)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", length=0)


def _legend(figure: Figure, rows: list[str]) -> None:
    handles: list[Artist] = [Patch(color=PALETTE[row], label=row) for row in rows]
    figure.legend(handles=[*handles, _paper_marker()], loc="upper center", bbox_to_anchor=(0.5, 0.0),
                  ncols=len(rows) + 1, columnspacing=1.5, handlelength=1.2)


def _paper_marker() -> Line2D:
    return Line2D([], [], marker="D", linestyle="", markersize=7, markerfacecolor="white", markeredgecolor=INK,
                  label="the paper (real data)")


def _mean(results: Results, table: int, row: str, column: str) -> float:
    return interval(study_values(results, table, row, column))[0]


def _any(results: Results, table: int) -> bool:
    spec = TABLES[table]
    return any(len(study_values(results, table, row, c)) for row in spec.rows for c in spec.columns)


def semantic(results: Results) -> Figure | None:
    """Table 2: mIoU on the four semantic sets."""
    columns = list(TABLES[2].columns)
    if not _any(results, 2):
        return None
    means = pd.DataFrame({c: {row: _mean(results, 2, row, c) for row in _FOUR} for c in columns})
    means = means.dropna(axis=1, how="all")
    first = int((means.idxmax() == "MaskCLIP").sum())
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    _bars(axes, results, 2, _FOUR, columns)
    axes.set_ylabel("mIoU (%)")
    message = f"MaskCLIP comes first on {first} of {len(means.columns)} semantic sets"
    _title(figure, message, _detail(results, "Table 2"))
    _legend(figure, _FOUR)
    return figure


def _detail(results: Results, source: str) -> str:
    n = len(results.seeds)
    seeds = f"mean of {n} seeds, 95 % intervals, dots: single seeds" if n > 1 else "one seed"
    return f"{source}; study ({results.profile} profile): {seeds}"


def _versus(results: Results, table: int, a: str, b: str, column: str) -> str:
    """`A 15.1, B 8.2`: true however it comes out."""
    digits = TABLES[table].digits
    return ", ".join(f"{row} {_mean(results, table, row, column):.{digits}f}" for row in (a, b))


def panoptic(results: Results) -> Figure | None:
    """Table 3: PQ, SQ and RQ, all classes, things, stuff."""
    if not _any(results, 3):
        return None
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 4.4), layout="constrained")
    for axes, quality, name in zip(panels, ("PQ", "SQ", "RQ"), ("panoptic", "segmentation", "recognition")):
        _bars(axes, results, 3, _FOUR, [quality, f"{quality}th", f"{quality}st"], ["all", "things", "stuff"])
        axes.set_title(f"{quality}: {name} quality (%)", loc="left", color=MUTED)
    message = "Panoptic quality: " + _versus(results, 3, "MaskCLIP", "CLIP Baseline", "PQ")
    _title(figure, message, _detail(results, "Table 3, A-150"))
    _legend(figure, _FOUR)
    return figure


def instance(results: Results) -> Figure | None:
    """Table 4: AP, AP50, AP75 on ADE20K and LVIS."""
    if not _any(results, 4):
        return None
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.4), layout="constrained", sharey=True)
    for axes, name in zip(panels, ("ADE20K", "LVIS")):
        _bars(axes, results, 4, _FOUR, [f"{name} {m}" for m in ("AP", "AP50", "AP75")], ["AP", "AP50", "AP75"])
        axes.set_title(f"{name} (%)", loc="left", color=MUTED)
    message = "Instances, LVIS AP: " + _versus(results, 4, "MaskCLIP", "CLIP Baseline", "LVIS AP")
    _title(figure, message, _detail(results, "Table 4"))
    _legend(figure, _FOUR)
    return figure


def split(results: Results) -> Figure | None:
    """Table 5: AP50 of trained-on (base) and never trained-on (target) classes."""
    if not _any(results, 5):
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")
    columns = list(TABLES[5].columns)
    _bars(axes, results, 5, ["MaskCLIP"], columns, [c.replace(" ", "\n") for c in columns])
    for bar, column in zip(axes.patches, columns):
        bar.set_facecolor(_PALE if "target" in column else PALETTE["MaskCLIP"])
    axes.set_ylabel("AP50 (%)")
    target, base = (_mean(results, 5, "MaskCLIP", f"generalized {group}") for group in ("target", "base"))
    _title(figure, f"Classes never trained on reach {target / base:.0%} of the trained ones' AP50" if base > 0 else
           "COCO split", _detail(results, "Table 5; generalized; pale: never trained on"))
    _legend(figure, ["MaskCLIP"])
    return figure


def efficiency(results: Results) -> Figure | None:
    """Table 6: FLOPs and time on a logarithmic scale."""
    if not _any(results, 6):
        return None
    rows = list(TABLES[6].rows)
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.8), layout="constrained", sharey=True)
    for axes, column in zip(panels, ("TFLOPs", "seconds")):
        for y, row in enumerate(rows):
            value, printed = _mean(results, 6, row, column), paper_numbers().get((6, row, column))
            if value == value:
                axes.barh(y, value, 0.62, color=PALETTE[row], zorder=2)
                axes.annotate(f"{value:.3g}", (value, y), (6, 0), textcoords="offset points", va="center", fontsize=11)
            if printed:
                axes.scatter([float(printed)], [y], s=46, marker="D", facecolor="white", edgecolor=INK, zorder=5)
        axes.set(xscale="log", yticks=range(len(rows)))
        axes.set_yticklabels(rows, color=INK)
        axes.set_title(f"{column}, logarithmic", loc="left", color=MUTED)
        axes.grid(axis="x", color=GRID)
        axes.grid(visible=False, axis="y")
        left, right = axes.get_xlim()
        axes.set_xlim(left / 2, right * 2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].invert_yaxis()
    ratio = _mean(results, 6, "CLIP Baseline", "seconds") / _mean(results, 6, "MaskCLIP w/o RMA", "seconds")
    message = f"Mask tokens: {ratio:.3g} times the speed of one CLIP pass per mask"
    _title(figure, message if ratio > 0 else "What 100 masks cost", f"Table 6; 100 masks of one image, study: {results.reference_model}")
    _legend(figure, [])
    return figure


def ground_truth(results: Results) -> Figure | None:
    """Table 7: what perfect masks would give."""
    rows = ["MaskCLIP", "MaskCLIP + GT masks"]
    if not len(study_values(results, 7, rows[1], "PQ")):
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")
    _bars(axes, results, 7, rows, ["PQ", "mIoU"])
    axes.set_ylabel("%")
    ratio = _mean(results, 7, rows[1], "PQ") / _mean(results, 7, rows[0], "PQ")
    _title(figure, f"Ground-truth masks give {ratio:.1f} times the PQ", _detail(results, "Table 7, A-150"))
    _legend(figure, rows)
    return figure


def ablations(results: Results) -> Figure | None:
    """Tables 8 and 9: mask refinement, and the layers that carry RMA."""
    if not any(len(results.score(m, "a150", "PQ")) for m in METHODS if m.startswith(("wo_ref", "layers"))):
        return None
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 4.2), layout="constrained", width_ratios=(1, 1, 1.5))
    refinement, layers = list(TABLES[8].rows), list(TABLES[9].rows)
    for axes, quality in zip(panels, ("PQ", "SQ")):
        _bars(axes, results, 8, refinement, [quality, f"{quality}th", f"{quality}st"], ["all", "things", "stuff"])
        axes.set_title(f"Mask refinement, {quality} (%)", loc="left", color=MUTED)
    _bars(panels[2], results, 9, layers, ["PQ", "PQth", "PQst"], ["all", "things", "stuff"])
    panels[2].set_title("Layers that carry RMA, PQ (%)", loc="left", color=MUTED)
    gain = _mean(results, 8, "MaskCLIP", "PQ") - _mean(results, 8, "MaskCLIP w/o MR", "PQ")
    best = max(layers, key=lambda row: np.nan_to_num(_mean(results, 9, row, "PQ"), nan=-1))
    _title(figure, f"Refinement changes PQ by {gain:+.1f}; of the layer sets, {best} comes first",
           _detail(results, "Tables 8 and 9, A-150"))
    _legend(figure, [refinement[0], *layers[:-1], "MaskCLIP"])
    return figure


def training_curves(results: Results) -> Figure | None:
    """The training loss of every trained model, smoothed, one thin line a seed."""
    if results.curves.empty:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    curves = results.curves.assign(seed=results.curves.get("seed", 0))
    names = [m for m in METHODS if m in set(curves.method)] + sorted(set(curves.method) - set(METHODS))
    spare = iter(sns.color_palette("colorblind", len(names)))
    ends = []
    for method in names:
        runs = curves[curves.method == method].pivot_table(index="step", columns="seed", values="loss").dropna()
        smooth = runs.ewm(halflife=max(1, len(runs) / 40)).mean()
        color = PALETTE.get(METHODS.get(method, "")) or next(spare)
        axes.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, linewidth=0)
        axes.plot(smooth.index, smooth.mean(axis=1), color=color, linewidth=2, label=METHODS.get(method, method))
        ends.append((smooth.iloc[0].mean(), smooth.iloc[-1].mean()))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), title="trained model", alignment="left")
    first, last = np.mean(ends, axis=0)
    seeds = len(curves.seed.unique())
    band = f"; mean of {seeds} seeds, band: their range" if seeds > 1 else ""
    _title(figure, f"Training: the loss goes from {first:.1f} to {last:.1f} on average",
           f"2 cross entropy + 5 dice + 5 BCE (Sec. 4.2), smoothed{band}")
    return figure


def proposal_quality(results: Results) -> Figure | None:
    """AR@100 and mean best IoU of the proposals for every group of ground-truth segments."""
    table = results.proposal_quality
    if table.empty:
        return None
    metrics = [m for m in ("AR100", "mean_best_iou") if m in set(table.metric)] or sorted(set(table.metric))
    dataset = "a150" if "a150" in set(table.dataset) else table.dataset.iloc[0]
    table = table[table.dataset == dataset].copy()
    known = ["all", "things", "stuff", "trained", "novel"]
    groups = [g for g in known if g in set(table.group)] + sorted(set(table.group) - set(known))
    fixed = {"mask2former": "#0072b2", "maskrcnn": "#56b4e9", "mask2former_class_aware": "#cc79a7"}
    sources = [s for s in fixed if s in set(table.source)] + sorted(set(table.source) - set(fixed))
    spare = iter(["#e69f00", "#009e73", "#d55e00", "#a3a8b0", "#f0e442"] * 3)
    palette = {s: fixed.get(s) or next(spare) for s in sources}
    names = {"AR100": "AR@100", "mean_best_iou": "mean best IoU"}
    figure, panels = plt.subplots(1, len(metrics), figsize=(WIDTH, 4.0), layout="constrained", squeeze=False)
    for axes, metric in zip(panels[0], metrics):
        sns.barplot(table[table.metric == metric], x="group", y="value", hue="source", order=groups, hue_order=sources,
                    palette=palette, saturation=1, errorbar=None, ax=axes, legend=axes is panels[0][-1], gap=0.08)
        axes.set(xlabel="", ylabel="")
        axes.set_title(names.get(metric, metric), loc="left", color=MUTED)
    sns.move_legend(panels[0][-1], "upper left", bbox_to_anchor=(1.01, 1), title="proposals", alignment="left")
    of_first = table[(table.metric == metrics[0]) & (table.source == sources[0])].groupby("group").value.mean()
    novel, trained = of_first.get("novel"), of_first.get("trained")
    message = "How good the proposals are" if novel is None or trained is None else (
        f"Proposals, {names.get(metrics[0], metrics[0])}: {novel:.2f} never trained, {trained:.2f} trained categories")
    _title(figure, message, f"{sources[0]}; data set {dataset}; groups of ground-truth segments")
    return figure


def mini_clip(results: Results) -> Figure | None:
    """Zero-shot top-1 accuracy of CLIP on single things, by attribute."""
    table = results.mini_clip
    if table.empty:
        return None
    order = table.groupby("attribute", sort=False).accuracy.mean()
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.36 * len(order)), layout="constrained")
    axes.barh(range(len(order)), order, 0.66, color=PALETTE["MaskCLIP"], zorder=2)
    for y, value in enumerate(order):
        axes.annotate(f"{value:.1f}", (value, y), (-6, 0), textcoords="offset points", va="center", ha="right",
                      color="white", fontsize=10.5)
    axes.set(xlim=(0, 100), xlabel="zero-shot top-1 (%)", yticks=range(len(order)))
    axes.set_yticklabels(order.index, color=INK)
    axes.invert_yaxis()
    axes.grid(axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    _title(figure, f"mini CLIP names {order.iloc[0]:.1f} % right ({order.index[0]})",
           "renderings never trained on, all thing names as candidates")
    return figure


def attributes(results: Results) -> Figure | None:
    """C18: words that differ in one attribute, told apart without having been trained on."""
    if results.attributes.empty:
        return None
    table = results.attributes.assign(seed=results.attributes.get("seed", 0))
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")
    position, ticks, names = 0.0, [], []
    for _, of_pair in table.groupby("pair", sort=False):
        start, chance = position, 100 / of_pair.word.nunique()
        for word, of_word in of_pair.groupby("word", sort=False):
            mean, half = interval(of_word.groupby("seed").accuracy.mean())
            axes.bar(position, mean, 0.84, color=PALETTE["MaskCLIP"], zorder=2)
            if half == half:
                axes.errorbar(position, mean, half, color=INK, elinewidth=1.3, capsize=3, zorder=3)
            ticks.append(position)
            names.append(str(word).replace(" ", "\n"))
            position += 1
        axes.plot([start - 0.5, position - 0.5], [chance] * 2, color="#d55e00", linewidth=1.8, linestyle="--", zorder=4)
        position += 0.7
    axes.set_xticks(ticks, names)
    axes.set(ylim=(0, 100), ylabel="accuracy (%)")
    axes.tick_params(axis="x", length=0)
    accuracy = table.groupby("pair").accuracy.mean()
    _title(figure, f"Told apart without training on it: {accuracy.mean():.0f} % right on average",
           "C18; per pair of words (dashed: chance), accuracy on regions of each")
    return figure


def seed_spread(results: Results) -> Figure | None:
    """Every seed's PQ and A-150 mIoU, one line a seed: is the order of the methods the same each time?"""
    if len(results.seeds) < 2 or not _any(results, 3):
        return None
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    same = []
    for axes, (table, column, name) in zip(panels, ((3, "PQ", "PQ, A-150 (%)"), (2, "A-150", "mIoU, A-150 (%)"))):
        frame = pd.DataFrame({row: study_values(results, table, row, column) for row in _FOUR})
        frame = frame.dropna(axis=1, how="all")
        axes.plot(range(frame.shape[1]), frame.to_numpy().T, color=MUTED, linewidth=1.2, alpha=0.7, zorder=2)
        for x, row in enumerate(frame):
            axes.scatter([x] * len(frame), frame[row], s=70, color=PALETTE[row], edgecolor="white", zorder=3)
        axes.set_xticks(range(frame.shape[1]), [row.replace("MaskCLIP ", "MaskCLIP\n") for row in frame])
        axes.set_title(name, loc="left", color=MUTED)
        axes.margins(x=0.08, y=0.12)
        same.append(frame.rank(axis=1).drop_duplicates().shape[0] == 1)
    message = {2: "The order of the methods is the same in every seed", 1: "The order is the same in every seed on one "
               "of two measures", 0: "The order of the methods changes from seed to seed"}[sum(same)]
    _title(figure, message, "one line a seed; PQ as in Table 3, mIoU as in Table 2")
    return figure


def comparisons(judgements: list[Judgement]) -> Figure | None:
    """Every difference the claims speak of, relative to the weaker side: the study's interval, the paper's diamond."""
    shown = [(j.claim, o) for j in judgements for o in j.outcomes
             if o.kind == "difference" and o.state != "missing" and o.study.b.mean() > 0]
    if not shown:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.3 * len(shown)), layout="constrained")
    before = None
    for y, (claim, outcome) in enumerate(shown):
        if claim is not before:
            measures = {comparison.a[1] for comparison in claim.comparisons}
            measure = measures.pop() if len(measures) == 1 else "mIoU"
            axes.text(-0.62, y, f"{claim.name}  {measure}", transform=axes.get_yaxis_transform(), va="center",
                      fontsize=11.5, fontweight="bold")
            axes.plot([-0.62, 1], [y - 0.5] * 2, transform=axes.get_yaxis_transform(), color=GRID, clip_on=False)
            before = claim
        scale = 100 / outcome.study.b.mean()
        half = outcome.half * scale if outcome.half == outcome.half else 0
        axes.errorbar(outcome.mean * scale, y, xerr=half, fmt="o", color=_STATES[outcome.state], markersize=7,
                      elinewidth=2.4, zorder=4)
        if outcome.paper:
            axes.scatter((outcome.paper[0] / outcome.paper[1] - 1) * 100, y, s=40, marker="D", facecolor="white",
                         edgecolor=INK, linewidths=1.2, zorder=3)
    axes.axvline(0, color=INK, linewidth=1.2, zorder=2)
    axes.set_xscale("symlog", linthresh=20)
    left, right = axes.get_xlim()
    ticks = [t for t in (-100, -50, -20, -10, 0, 10, 20, 50, 100, 200, 500, 1000) if left <= t <= right]
    axes.set_xticks(ticks, [f"{tick:+d} %" if tick else "0" for tick in ticks])
    axes.set_yticks(range(len(shown)), [outcome.label for _, outcome in shown], color=INK)
    axes.set_xlabel("first over second, relative (linear within ±20 %, logarithmic beyond)")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID)
    holds = sum(outcome.state == "holds" for _, outcome in shown)
    handles = [Line2D([], [], marker="o", linestyle="", color=color, label=state) for state, color in _STATES.items()]
    figure.legend(handles=[*handles, _paper_marker()], loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
    several = ", with its 95 % interval over seeds" if max(outcome.seeds for _, outcome in shown) > 1 else "; one seed"
    _title(figure, f"{holds} of {len(shown)} comparisons come out as the paper says",
           f"every difference behind C1 to C8 and C14 to C17{several}")
    return figure


FIGURES: dict[str, tuple[Callable[[Results], Figure | None], str]] = {
    "table2_semantic": (semantic, "Semantic segmentation, mIoU (Table 2)."),
    "table3_panoptic": (panoptic, "Panoptic, segmentation and recognition quality (Table 3)."),
    "table4_instance": (instance, "Instance segmentation across data sets (Table 4)."),
    "table5_split": (split, "Instance segmentation on the COCO split (Table 5)."),
    "table6_efficiency": (efficiency, "What the features of 100 masks cost (Table 6)."),
    "table7_ground_truth": (ground_truth, "Ground-truth masks as proposals (Table 7)."),
    "tables8_9_ablations": (ablations, "Mask refinement (Table 8) and RMA layers (Table 9)."),
    "seeds": (seed_spread, "The spread over seeds."),
    "attributes": (attributes, "Fine distinctions in the user's words (C18, in the spirit of Figs. 5 and 7)."),
    "training_curves": (training_curves, "Training of the visual encoder."),
    "proposal_quality": (proposal_quality, "Quality of the class-agnostic proposals."),
    "mini_clip": (mini_clip, "What the mini CLIP can name."),
}


def draw_figures(results: Results, judgements: list[Judgement], folder: Path) -> dict[str, tuple[Path, str]]:
    """Draw every chart there are results for into `folder`; name -> (file, caption)."""
    set_style()
    drawn = {}
    captions = {"claims": "The paper's comparisons in the study."} | {name: text for name, (_, text) in FIGURES.items()}
    for name, caption in captions.items():
        path = folder / f"{name}.png"
        figure = comparisons(judgements) if name == "claims" else FIGURES[name][0](results)
        if figure is None:
            path.unlink(missing_ok=True)  # a chart of former results would be shown as if it were of these
            continue
        write_atomically(path, lambda temporary, figure=figure: figure.savefig(temporary))
        plt.close(figure)
        drawn[name] = (path, caption)
    return drawn
