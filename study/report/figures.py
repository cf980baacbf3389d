"""The charts of the report: one style, one colour per method everywhere, titles that say what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

from maskclip.files import write_atomically
from study.report.claims import Judgement
from study.report.results import METHODS, Results, interval
from study.report.tables import TABLES, paper_numbers, study_values

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
# Okabe and Ito's palette, told apart by colour-blind eyes as well; grey for the baseline, blue for the paper's method.
PALETTE = {
    "CLIP Baseline": "#a3a8b0",
    "MaskCLIP w/o RMA": "#e69f00",
    "MaskCLIP (Mask R-CNN)": "#56b4e9",
    "MaskCLIP": "#0072b2",
    "MaskCLIP + GT masks": "#009e73",
    "MaskCLIP w/o MR": "#cc79a7",
    "MaskCLIP (COCO split)": "#009e73",
    "1, 7, 13, 19": "#f4c9a8",
    "3, 9, 15, 21": "#e89a5c",
    "21, 22, 23, 24": "#d55e00",
    "6, 12, 18, 24": "#0072b2",
    "RegionCLIP": "#d7dade",
    "ZegFormer": "#d7dade",
    "SimSeg": "#d7dade",
    "mask2former": "#0072b2",
    "mask_rcnn": "#56b4e9",
    "mask2former_base": "#009e73",
    "class_agnostic": "#e69f00",
    "class_aware": "#cc79a7",
}
_SPARE = ("#cc79a7", "#e69f00", "#d55e00", "#a3a8b0", "#f0e442")  # for what has no colour of its own yet
_PALE = "#80b8d8"  # MaskCLIP's blue, for classes never trained on
_STATES = {"holds": "#009e73", "fails": "#d55e00", "open": "#a3a8b0"}
_FOUR = ["CLIP Baseline", "MaskCLIP w/o RMA", "MaskCLIP (Mask R-CNN)", "MaskCLIP"]
_GROUPS = ["all", "things", "stuff"]
_TWINS = ("class_agnostic", "class_aware")  # networks of the study that differ in class supervision alone
WIDTH = 11.5  # inches, of every chart, so that type has one size throughout the report


def set_style() -> None:
    """The report's look: white ground, light horizontal grid, type large enough for a slide."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        rc={
            "figure.facecolor": "white",
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.titlelocation": "left",
            "axes.titlecolor": MUTED,
            "axes.labelsize": 12,
            "xtick.labelsize": 11.5,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": MUTED,
            "axes.edgecolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid.axis": "y",
            "grid.color": GRID,
            "axes.axisbelow": True,
        },
    )


def _title(figure: Figure, message: str, detail: str) -> None:
    """The message above, in words one can quote; what is drawn below it, small and grey. Both in fixed inches."""
    height = figure.get_size_inches()[1]
    figure.text(0.01, 1 + 0.42 / height, message, ha="left", va="bottom", fontsize=16, fontweight="bold")
    figure.text(0.01, 1 + 0.12 / height, detail, ha="left", va="bottom", fontsize=11.5, color=MUTED)


def _mean(results: Results, table: int, row: str, column: str) -> float:
    return interval(study_values(results, table, row, column))[0]


def _measured(results: Results, need: int | str) -> bool:
    """Whether there is anything of a table (its number) or of one of Results' frames (its name)."""
    if isinstance(need, str):
        return not getattr(results, need).empty
    cells = ((row, column) for row in TABLES[need].rows for column in TABLES[need].columns)
    return any(len(study_values(results, need, *cell)) for cell in cells)


def _versus(results: Results, table: int, column: str) -> str:
    """`MaskCLIP 15.1, CLIP Baseline 8.2`: a message that is true however it comes out."""
    rows = [row for row in ("MaskCLIP", "CLIP Baseline") if len(study_values(results, table, row, column))]
    return ", ".join(f"{row} {_mean(results, table, row, column):.1f}" for row in rows) or "not measured"


def _bars(
    axes: Axes,
    results: Results,
    table: int,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[str] | None = None,
) -> None:
    """Grouped bars of the study with 95 % intervals and every seed as a dot; the paper's numbers as diamonds."""
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            x = j + (i - (len(rows) - 1) / 2) * width
            values = study_values(results, table, row, column)
            if len(values):
                mean, half = interval(values)
                pale = table == 5 and "target" in column
                axes.bar(x, mean, width * 0.9, color=_PALE if pale else PALETTE[row], zorder=2)
                if half == half:
                    axes.errorbar(x, mean, half, color=INK, elinewidth=1.3, capsize=3, zorder=4)
                    axes.scatter([x] * len(values), values, s=9, color=INK, alpha=0.45, linewidths=0, zorder=3)
            if printed := paper_numbers().get((table, row, column)):
                axes.scatter([x], [float(printed)], s=46, marker="D", facecolor="white", edgecolor=INK, zorder=5)
    axes.set_xticks(range(len(columns)), labels or columns)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", length=0)


def _legend(figure: Figure, rows: Sequence[str], *more: Artist) -> None:
    """Below the chart: a patch per row, and the paper's diamond."""
    paper = Line2D(
        [],
        [],
        marker="D",
        linestyle="",
        markersize=7,
        markerfacecolor="white",
        markeredgecolor=INK,
        label="the paper (real data)",
    )
    handles = [*more, *(Patch(color=PALETTE[row], label=row) for row in rows), paper]
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=len(handles),
        columnspacing=1.5,
        handlelength=1.2,
    )


def _horizontal(axes: Axes, names: Sequence[str]) -> None:
    """Horizontal bars: names in ink, the first on top, the grid upright."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=GRID)


def _table_chart(
    results: Results,
    panels: Sequence[tuple[str, int, Sequence[str], Sequence[str], Sequence[str]]],
    message: str,
    source: str,
    legend: Sequence[str],
) -> Figure:
    """Panels of grouped bars, each (title, table, rows, columns, labels), side by side."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.3), squeeze=False)
    for axes, (title, table, rows, columns, labels) in zip(all_axes[0], panels):
        _bars(axes, results, table, rows, columns, labels)
        axes.set_title(title)
    n = len(results.seeds)
    seeds = f"mean of {n} seeds, 95 % intervals, dots: single seeds" if n > 1 else "one seed"
    _title(figure, message, f"{source}; study ({results.profile} profile): {seeds}")
    _legend(figure, legend)
    return figure


def semantic(results: Results) -> Figure:
    """Table 2: mIoU on the four semantic sets."""
    columns = list(TABLES[2].columns)
    means = pd.DataFrame({c: {row: _mean(results, 2, row, c) for row in _FOUR} for c in columns})
    means = means.dropna(axis=1, how="all")
    first = int((means.idxmax() == "MaskCLIP").sum())
    return _table_chart(
        results,
        [("mIoU (%)", 2, _FOUR, columns, columns)],
        f"MaskCLIP comes first on {first} of {len(means.columns)} semantic sets",
        "Table 2",
        _FOUR,
    )


def panoptic(results: Results) -> Figure:
    """Table 3: PQ, SQ and RQ, all classes, things, stuff."""
    panels = [
        (f"{q}: {name} quality (%)", 3, _FOUR, [q, f"{q}th", f"{q}st"], _GROUPS)
        for q, name in (("PQ", "panoptic"), ("SQ", "segmentation"), ("RQ", "recognition"))
    ]
    return _table_chart(results, panels, f"Panoptic quality: {_versus(results, 3, 'PQ')}", "Table 3, A-150", _FOUR)


def instance(results: Results) -> Figure:
    """Table 4: AP, AP50, AP75 on ADE20K and LVIS."""
    metrics = ["AP", "AP50", "AP75"]
    panels = [(f"{name} (%)", 4, _FOUR, [f"{name} {m}" for m in metrics], metrics) for name in ("ADE20K", "LVIS")]
    return _table_chart(results, panels, f"Instances, LVIS AP: {_versus(results, 4, 'LVIS AP')}", "Table 4", _FOUR)


def split(results: Results) -> Figure:
    """Table 5: AP50 of trained-on (base) and never trained-on (target) classes."""
    columns = list(TABLES[5].columns)
    target, base = (_mean(results, 5, "MaskCLIP", f"generalized {group}") for group in ("target", "base"))
    reached = f"{target / base:.0%} of the trained ones' AP50" if base > 0 else "no measured share of the others' AP50"
    panel = ("AP50 (%)", 5, ["MaskCLIP"], columns, [column.replace(" ", "\n") for column in columns])
    return _table_chart(
        results,
        [panel],
        f"Classes never trained on reach {reached}",
        "Table 5, message: generalized; pale: target classes",
        ["MaskCLIP"],
    )


def ground_truth(results: Results) -> Figure | None:
    """Table 7: what perfect masks would give."""
    rows = ["MaskCLIP", "MaskCLIP + GT masks"]
    own, given = (_mean(results, 7, row, "PQ") for row in rows)
    if not given > 0:
        return None
    message = f"Ground-truth masks give {given / own:.1f} times the PQ" if own > 0 else "Ground-truth masks"
    return _table_chart(results, [("%", 7, rows, ["PQ", "mIoU"], ["PQ", "mIoU"])], message, "Table 7, A-150", rows)


def ablations(results: Results) -> Figure | None:
    """Tables 8 and 9: mask refinement, and the layers that carry RMA."""
    refinement, layers = list(TABLES[8].rows), list(TABLES[9].rows)
    gain = _mean(results, 8, "MaskCLIP", "PQ") - _mean(results, 8, "MaskCLIP w/o MR", "PQ")
    measured = {row: mean for row in layers if (mean := _mean(results, 9, row, "PQ")) > 0}
    if gain != gain and len(measured) < 2:
        return None
    panels = [(f"Mask refinement, {q} (%)", 8, refinement, [q, f"{q}th", f"{q}st"], _GROUPS) for q in ("PQ", "SQ")]
    panels.append(("Layers that carry RMA, PQ (%)", 9, layers, ["PQ", "PQth", "PQst"], _GROUPS))
    best = max(measured, key=lambda row: measured[row]) if measured else "none"
    change = f"changes PQ by {gain:+.1f}" if abs(gain) >= 0.05 else "leaves PQ as it is"
    message = f"Refinement {change}; of the layer sets, {best} comes first"
    return _table_chart(results, panels, message, "Tables 8 and 9, A-150", [refinement[0], *layers[:-1], "MaskCLIP"])


def efficiency(results: Results) -> Figure:
    """Table 6: FLOPs and time on a logarithmic scale."""
    rows = list(TABLES[6].rows)
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.8), sharey=True)
    for axes, (column, metric) in zip(panels, (("TFLOPs", "tflops"), ("seconds", "time_s"))):
        for y, row in enumerate(rows):
            value, printed = _mean(results, 6, row, column), paper_numbers().get((6, row, column))
            if value == value:
                axes.barh(y, value, 0.62, color=PALETTE[row], zorder=2)
                axes.annotate(f"{value:.3g}", (value, y), (6, 0), textcoords="offset points", va="center", fontsize=11)
            if printed:
                axes.scatter([float(printed)], [y], s=46, marker="D", facecolor="white", edgecolor=INK, zorder=5)
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        axes.set_xlim(left / 2, right * 2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"{column}, {results.cost_model(metric)} (logarithmic)")
        _horizontal(axes, rows)
    ratio = _mean(results, 6, "CLIP Baseline", "seconds") / _mean(results, 6, "MaskCLIP w/o RMA", "seconds")
    message = f"Mask tokens: {ratio:.3g} times the speed of one CLIP pass per mask"
    _title(figure, message if ratio > 0 else "What 100 masks cost", "Table 6; the features of 100 masks of one image")
    _legend(figure, [])
    return figure


def seed_spread(results: Results) -> Figure | None:
    """Every seed's PQ and mIoU, one line a seed: is the order of the methods the same each time?"""
    if len(results.seeds) < 2:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.2))
    same = 0
    for axes, (table, column, name) in zip(panels, ((3, "PQ", "PQ, A-150 (%)"), (2, "A-150", "mIoU, A-150 (%)"))):
        frame = pd.DataFrame({row: study_values(results, table, row, column) for row in _FOUR})
        frame = frame.dropna(axis=1, how="all")
        axes.plot(range(frame.shape[1]), frame.to_numpy().T, color=MUTED, linewidth=1.2, alpha=0.7, zorder=2)
        for x, row in enumerate(map(str, frame)):
            axes.scatter([x] * len(frame), frame[row], s=70, color=PALETTE[row], edgecolor="white", zorder=3)
        axes.set_xticks(range(frame.shape[1]), [row.replace("MaskCLIP ", "MaskCLIP\n") for row in map(str, frame)])
        axes.set_title(name)
        axes.margins(x=0.08, y=0.12)
        same += len(frame.rank(axis=1).drop_duplicates()) == 1
    _title(
        figure,
        f"The order of the methods is the same in every seed on {same} of 2 measures",
        f"one line a seed, {len(results.seeds)} seeds; PQ as in Table 3, mIoU as in Table 2",
    )
    return figure


def attributes(results: Results) -> Figure:
    """C18: words that differ in one attribute, told apart without having been trained on."""
    table = results.attributes.assign(seed=results.attributes.get("seed", 0))
    accuracy = table.groupby(["pair", "word", "seed"], sort=False, as_index=False).accuracy.mean()
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0))
    sns.barplot(
        accuracy,
        x="word",
        y="accuracy",
        color=PALETTE["MaskCLIP"],
        saturation=1,
        errorbar=_limits,
        capsize=0.15,
        err_kws={"color": INK, "linewidth": 1.3},
        ax=axes,
    )
    start = 0
    for words in accuracy.groupby("pair", sort=False).word.nunique():
        axes.hlines(100 / words, start - 0.5, start + words - 0.5, color="#d55e00", linestyle="--", zorder=4)
        start += words
    axes.set(ylim=(0, 100), xlabel="", ylabel="accuracy (%)")
    _title(
        figure,
        f"{', '.join(accuracy.pair.unique())}, never taught to MaskCLIP: "
        f"{accuracy.groupby('pair').accuracy.mean().mean():.0f} % right",
        "C18; regions of each word, with only the words of its pair to choose from (dashed: chance)",
    )
    return figure


def _limits(values: pd.Series) -> tuple[float, float]:
    """Where seaborn's error bars end."""
    mean, half = interval(values)
    return mean - np.nan_to_num(half), mean + np.nan_to_num(half)


def training_curves(results: Results) -> Figure:
    """The training loss of every trained network, smoothed: the visual encoders left, the proposal networks right."""
    curves = results.curves.assign(seed=results.curves.get("seed", 0))
    encoders = [m for m in METHODS if m in set(curves.method)]
    groups = {"visual encoder": encoders, "proposal network": sorted(set(curves.method) - set(encoders))}
    groups = {name: methods for name, methods in groups.items() if methods}
    figure, panels = plt.subplots(1, len(groups), figsize=(WIDTH, 4.3), squeeze=False)
    spare, parts = iter(_SPARE * 9), {}
    for axes, (group, methods) in zip(panels[0], groups.items()):
        for method in methods:
            runs = curves[curves.method == method].pivot_table(index="step", columns="seed", values="loss").dropna()
            smooth = runs.ewm(halflife=max(1, len(runs) / 40)).mean()
            color = PALETTE.get(METHODS.get(method, method)) or next(spare)
            axes.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, lw=0)
            axes.plot(smooth.index, smooth.mean(axis=1), color=color, linewidth=2, label=METHODS.get(method, method))
            quarter = math.ceil(len(runs) / 4)  # single steps are too noisy to compare
            parts[method] = runs.iloc[:quarter].mean(axis=None), runs.iloc[-quarter:].mean(axis=None)
        axes.set(xlabel="step", ylabel="loss", title=group, ylim=(0, None))
        axes.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    shown = "maskclip" if "maskclip" in parts else next(iter(parts))
    seeds = len(curves.seed.unique())
    _title(
        figure,
        "Training {}: mean loss {:.1f} in the first quarter, {:.1f} in the last".format(
            METHODS.get(shown, shown), *parts[shown]
        ),
        "encoder: 2 cross entropy + 5 dice + 5 BCE (Sec. 4.2); smoothed"
        + (f"; mean of {seeds} seeds, band: their range" if seeds > 1 else ""),
    )
    return figure


def _group_bars(axes: Axes, table: pd.DataFrame, groups: Sequence[str], legend: bool) -> None:
    """One bar a source and group of segments, with the 95 % interval over seeds where there are several."""
    sources, spare = list(table.source.unique()), iter(_SPARE * 9)
    sns.barplot(
        table,
        x="group",
        y="value",
        hue="source",
        order=groups,
        hue_order=sources,
        palette={s: PALETTE.get(s) or next(spare) for s in sources},
        saturation=1,
        errorbar=_limits,
        err_kws={"linewidth": 1.3, "color": INK},
        gap=0.08,
        ax=axes,
        legend=legend,
    )
    axes.set(xlabel="", ylabel="", ylim=(0, 1))
    if legend:
        sns.move_legend(axes, "upper left", bbox_to_anchor=(1.01, 1), title="proposals", alignment="left")


def proposal_quality(results: Results) -> Figure:
    """AR@100 and mean best IoU of the proposals for every group of ground-truth segments."""
    table = results.proposal_quality[~results.proposal_quality.source.isin(_TWINS)]
    dataset = "a150" if "a150" in set(table.dataset) else table.dataset.iloc[0]
    table, names = table[table.dataset == dataset], {"AR100": "AR@100", "mean_best_iou": "mean best IoU"}
    metrics, source = list(table.metric.unique()), table.source.iloc[0]
    groups = [g for g in (*_GROUPS, "trained", "novel") if g in set(table.group)]
    figure, panels = plt.subplots(1, len(metrics), figsize=(WIDTH, 4.0), squeeze=False)
    for axes, metric in zip(panels[0], metrics):
        _group_bars(axes, table[table.metric == metric], groups, legend=axes is panels[0][-1])
        axes.set(title=names.get(metric, metric))
    of_first = table[(table.metric == metrics[0]) & (table.source == source)].groupby("group").value.mean()
    message = (
        "How good the proposals are"
        if not {"novel", "trained"} <= set(of_first.index)
        else (
            f"Proposals, {names.get(metrics[0], metrics[0])}: {of_first.novel:.2f} on categories never trained on, "
            f"{of_first.trained:.2f} on trained ones"
        )
    )
    _title(figure, message, f"{source}; data set {dataset}; by group of annotated segments")
    return figure


def class_supervision(results: Results) -> Figure | None:
    """AR@100 of one network trained with class supervision and without, from the same random weights."""
    table = results.proposal_quality[results.proposal_quality.metric == "AR100"]
    table = table[table.source.isin(_TWINS)].assign(seed=lambda t: t.get("seed", 0))
    if set(table.source) != set(_TWINS):
        return None
    datasets = list(table.dataset.unique())
    figure, panels = plt.subplots(1, len(datasets), figsize=(WIDTH, 4.0), squeeze=False)
    differences = []
    for axes, dataset in zip(panels[0], datasets):
        shown = table[table.dataset == dataset]
        groups = [g for g in (*_GROUPS, "trained", "novel") if g in set(shown.group)]
        _group_bars(axes, shown, groups, legend=axes is panels[0][-1])
        axes.set(title=f"AR@100, {dataset}")
        for group in ("all", "novel"):
            values = shown[shown.group == group].pivot_table(index="seed", columns="source", values="value")
            if len(values):
                mean, half = interval(values.class_agnostic - values.class_aware)
                spread = f" ± {half:.3f}" if half == half else ""
                differences.append(f"{dataset} {group} {mean:+.3f}{spread}")
    _title(
        figure,
        "Masks learned without classes and with them",
        f"class-agnostic minus class-aware, seed by seed: {', '.join(differences)}",
    )
    return figure


def comparisons(judgements: list[Judgement]) -> Figure | None:
    """Every difference the claims speak of, relative to its second side: the study's interval, the paper's diamond."""
    shown = [
        (j.claim, o)
        for j in judgements
        for o in j.outcomes
        if o.kind == "difference" and o.state != "missing" and o.study.b.mean() > 0
    ]
    if not shown:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.3 * len(shown)), layout="none")
    figure.subplots_adjust(left=0.3, right=0.99, top=0.995, bottom=0.8 / figure.get_size_inches()[1])
    beside, before = axes.get_yaxis_transform(), None
    for y, (claim, outcome) in enumerate(shown):
        if claim is not before:
            measures = sorted({comparison.a[1] for comparison in claim.comparisons})
            axes.text(
                -0.42,
                y,
                f"{claim.name}  {measures[0] if len(measures) == 1 else 'mIoU'}",
                transform=beside,
                va="center",
                fontsize=11.5,
                fontweight="bold",
            )
            axes.plot([-0.42, 1], [y - 0.5] * 2, transform=beside, color=GRID, clip_on=False)
            before = claim
        scale = 100 / outcome.study.b.mean()
        axes.errorbar(
            outcome.mean * scale,
            y,
            xerr=np.nan_to_num(outcome.half) * scale,
            fmt="o",
            markersize=7,
            color=_STATES[outcome.state],
            elinewidth=2.4,
            zorder=4,
        )
        if outcome.paper:
            axes.scatter(
                (outcome.paper[0] / outcome.paper[1] - 1) * 100,
                y,
                s=40,
                marker="D",
                facecolor="white",
                edgecolor=INK,
                zorder=3,
            )
    _horizontal(axes, [outcome.label for _, outcome in shown])
    axes.axvline(0, color=INK, linewidth=1.2, zorder=2)
    axes.set_xscale("symlog", linthresh=20)
    left, right = axes.get_xlim()
    ticks = [t for t in (-100, -50, -20, -10, 0, 10, 20, 50, 200, 1000) if left <= t <= right]
    axes.set_xticks(ticks, [f"{tick:+d} %" if tick else "0" for tick in ticks])
    axes.set_xlabel("first over second, relative (linear within ±20 %, logarithmic beyond)")
    holds = sum(outcome.state == "holds" for _, outcome in shown)
    _legend(figure, [], *(Line2D([], [], marker="o", linestyle="", color=c, label=s) for s, c in _STATES.items()))
    several = ", with its 95 % interval over seeds" if max(outcome.seeds for _, outcome in shown) > 1 else "; one seed"
    _title(
        figure,
        f"{holds} of {len(shown)} comparisons come out as the paper says",
        f"every difference behind C1 to C8 and C14 to C17{several}",
    )
    return figure


# name -> how to draw it, what it needs (a table's number or a frame of Results), its caption
FIGURES: dict[str, tuple[Callable[[Results], Figure | None], int | str, str]] = {
    "table2_semantic": (semantic, 2, "Semantic segmentation (Table 2)."),
    "table3_panoptic": (panoptic, 3, "Panoptic, segmentation and recognition quality (Table 3)."),
    "table4_instance": (instance, 4, "Instance segmentation across data sets (Table 4)."),
    "table5_split": (split, 5, "Instance segmentation on the COCO split (Table 5)."),
    "table6_efficiency": (efficiency, 6, "What the features of 100 masks cost (Table 6)."),
    "table7_ground_truth": (ground_truth, 7, "Ground-truth masks as proposals (Table 7)."),
    "tables8_9_ablations": (ablations, 8, "Mask refinement (Table 8) and RMA layers (Table 9)."),
    "seeds": (seed_spread, 3, "The spread over seeds."),
    "attributes": (attributes, "attributes", "Fine distinctions in the user's words (C18; Figs. 5 and 7)."),
    "training_curves": (training_curves, "curves", "Training of both stages."),
    "proposal_quality": (proposal_quality, "proposal_quality", "Quality of the class-agnostic proposals."),
    "class_supervision": (
        class_supervision,
        "proposal_quality",
        "What class supervision does to the masks (Sec. 3.1).",
    ),
}


def draw_figures(results: Results, judgements: list[Judgement], folder: Path) -> dict[str, tuple[Path, str]]:
    """Draw every chart there are results for into `folder`; name -> (file, caption)."""
    with plt.rc_context():  # the report's look is the report's alone
        set_style()
        return _draw(results, judgements, folder)


def _draw(results: Results, judgements: list[Judgement], folder: Path) -> dict[str, tuple[Path, str]]:
    drawn = {"claims": (comparisons(judgements), "The comparisons behind the claims.")}
    drawn |= {
        name: (draw(results) if _measured(results, need) else None, caption)
        for name, (draw, need, caption) in FIGURES.items()
    }
    for name, (figure, _) in drawn.items():
        if figure is None:  # a chart of former results would be shown as if it were of these
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        write_atomically(folder / f"{name}.png", figure.savefig)
        plt.close(figure)
    return {name: (folder / f"{name}.png", caption) for name, (figure, caption) in drawn.items() if figure is not None}
