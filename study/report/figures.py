"""The charts of the report: one style, a colour a method, titles that say what is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from maskclip.evaluation.proposal_quality import GROUPS
from maskclip.files import write_atomically
from study.methods import METHODS, NETWORKS, Method, ProposalNetwork
from study.report.claims import Judgement
from study.report.results import Picture, Results, interval
from study.report.tables import TABLES, is_shown, paper_number, study_mean, study_values, table_rows

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
_CHANCE = "#d55e00"
_PALE = "\ntarget"  # ending of the groups of classes never trained on, which are drawn lighter
_STATES = {"holds": "#009e73", "fails": "#d55e00", "open": "#a3a8b0", "single": "#a3a8b0"}
_TWINS = ("class_agnostic", "class_aware")  # they differ in class supervision alone
WIDTH = 11.5  # inches, of every chart, so that type has one size throughout the report


def _panels(count: int, height: float, layout: Any = None) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _title(
    figure: Figure, shown: str, detail: str, handles: Sequence[Artist] | None = None, paper: str = "real data"
) -> Figure:
    """What is shown; below it, small, how and the main numbers; a legend with the paper's diamond, if `handles`."""
    height = figure.get_size_inches()[1]
    figure.text(0.01, 1 + 0.42 / height, shown, ha="left", va="bottom", fontsize=16, fontweight="bold")
    figure.text(0.01, 1 + 0.12 / height, detail, ha="left", va="bottom", fontsize=11.5, color=MUTED)
    if handles is not None:
        diamond = Line2D([], [], ls="", marker="D", markersize=7, mfc="white", mec=INK, label=f"the paper ({paper})")
        legend = partial(figure.legend, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(len(handles) + 1, 6))
        legend(handles=[*handles, diamond], columnspacing=1.5, handlelength=1.2)
    return figure


def _diamond(axes: Axes, x: float, y: float, zorder: int = 5) -> None:
    """A number of the paper."""
    axes.scatter([x], [y], s=46, marker="D", facecolor="white", edgecolor=INK, zorder=zorder)


def _bars(axes: Axes, values: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """Grouped bars with 95 % intervals, seeds as dots; of `values` (`group`, `row`, `value`, perhaps `paper`)."""
    groups, rows, width = list(values.group.unique()), list(colours), 0.8 / len(colours)
    for bar, of_bar in values.groupby(["group", "row"], sort=False):
        group, row = map(str, bar)
        x = groups.index(group) + (rows.index(row) - (len(rows) - 1) / 2) * width
        mean, half = interval(seeds := of_bar.value.dropna())
        axes.bar(x, mean, width * 0.9, color=colours[row], alpha=0.45 if group.endswith(_PALE) else 1, zorder=2)
        if half == half:
            axes.errorbar(x, mean, half, color=INK, elinewidth=1.3, capsize=3, zorder=4)
            axes.scatter([x] * len(seeds), seeds, s=9, color=INK, alpha=0.45, linewidths=0, zorder=3)
        if "paper" in of_bar:
            _diamond(axes, x, of_bar.paper.iloc[0])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(bottom=0)


def _horizontal(axes: Axes, names: Sequence[str]) -> None:
    """Names beside horizontal bars, the first on top; the grid upright."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


def _methods(results: Results, number: int) -> list[Method]:
    """The study's own rows of a table."""
    return [method for method in table_rows(number).values() if method and is_shown(results, number, method)]


def _table_chart(
    numbers: Sequence[int], shown: str, column: str, compared: Sequence[str], results: Results
) -> Figure | None:
    """The panels of some tables side by side; below the title one column's numbers of the `compared` methods."""
    panels = [(number, *panel) for number in numbers for panel in TABLES[number].panels.items()]
    cells = pd.DataFrame(
        [
            (title, name, method.id, paper_number(number, method.id, column), value)
            for number, title, columns in panels
            for column, name in columns.items()
            for method in _methods(results, number)
            for value in [*study_values(results, number, method.id, column)] or [np.nan]
        ],
        columns=["panel", "group", "row", "paper", "value"],
    )
    if cells.value.isna().all():
        return None
    figure, all_axes = _panels(len(panels), 4.3)
    for axes, (number, title, _) in zip(all_axes, panels):
        _bars(axes, cells[cells.panel == title], {method.id: method.colour for method in _methods(results, number)})
        axes.set_title(title)
    means = {METHODS[m].label_in(numbers[0]): study_mean(results, numbers[0], m, column) for m in compared}
    said = ", ".join(f"{label} {mean:.1f}" for label, mean in means.items() if mean == mean) or "not measured"
    n, methods = len(results.seeds), {method.id: method for number in numbers for method in _methods(results, number)}
    seeds = f"mean of {n} seeds, 95 % intervals, dots: single seeds" if n > 1 else "one seed"
    handles = [Patch(color=method.colour, label=method.label) for method in methods.values()]
    return _title(figure, shown, f"{column}: {said}; study ({results.profile} profile): {seeds}", handles)


def _efficiency(results: Results) -> Figure | None:
    """Table 6: FLOPs and time on a logarithmic scale."""
    if results.efficiency.empty:
        return None
    methods, (figure, panels) = _methods(results, 6), _panels(2, 3.8)
    for axes, column in zip(panels, ("TFLOPs", "seconds")):
        for y, method in enumerate(methods):
            value, printed = study_mean(results, 6, method.id, column), paper_number(6, method.id, column)
            if value == value:
                axes.barh(y, value, 0.62, color=method.colour, zorder=2)
                axes.annotate(f"{value:.3g}", (value, y), (6, 0), textcoords="offset points", va="center", fontsize=11)
            _diamond(axes, printed, y)
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        axes.set_xlim(left / 2, right * 2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"{column}, {results.cost_model(TABLES[6].columns[column][1])} (logarithmic)")
        _horizontal(axes, [method.label if axes is panels[0] else "" for method in methods])
    ratio = study_mean(results, 6, "clip_baseline", "seconds") / study_mean(results, 6, "wo_rma", "seconds")
    detail = f"{ratio:.3g} times as many seconds as MaskCLIP w/o RMA" if ratio > 0 else "seconds not measured"
    return _title(figure, "Cost of the features of 100 masks of one image", f"CLIP Baseline: {detail}", [], "RTX 3090")


def _seed_spread(results: Results) -> Figure | None:
    """Every seed's PQ and mIoU, one line a seed: is the order of the methods the same each time?"""
    frames = []
    for number, column in ((3, "PQ"), (2, "A-150")):
        values = {m.id: study_values(results, number, m.id, column) for m in _methods(results, number)}
        frames.append(pd.DataFrame(values).dropna(axis=1, how="all"))
    if len(results.seeds) < 2 or frames[0].empty:
        return None
    figure, panels = _panels(2, 4.2)
    for axes, frame, title in zip(panels, frames, ("PQ, A-150 (%)", "mIoU, A-150 (%)")):
        axes.plot(range(frame.shape[1]), frame.to_numpy().T, color=MUTED, linewidth=1.2, alpha=0.7, zorder=2)
        methods = [METHODS[str(name)] for name in frame]
        for x, method in enumerate(methods):
            axes.scatter([x] * len(frame), frame[method.id], s=70, color=method.colour, edgecolor="white", zorder=3)
        axes.set_xticks(range(len(methods)), [m.label.replace("MaskCLIP ", "MaskCLIP\n") for m in methods])
        axes.set_title(title)
        axes.margins(x=0.08, y=0.12)
    same = sum(len(frame.rank(axis=1).drop_duplicates()) == 1 for frame in frames)
    detail = f"one line a seed, {len(results.seeds)} seeds; every seed orders the methods alike on {same} of 2 measures"
    return _title(figure, "PQ and mIoU on A-150, seed by seed", detail)


def _attributes(results: Results) -> Figure | None:
    """C18: words that differ in one attribute, told apart without having been trained on."""
    if results.attributes.empty:
        return None
    table = results.attributes.groupby(["pair", "word", "seed"], sort=False, as_index=False).mean(numeric_only=True)
    pairs, words = table.groupby("pair", sort=False), table.groupby(["pair", "word"], sort=False).accuracy
    figure, (axes,) = _panels(1, 0.8 + 0.28 * len(words))
    for y, (_, of_word) in enumerate(words):
        mean, half = interval(of_word)
        axes.barh(y, mean, 0.72, color=METHODS["maskclip"].colour, zorder=2)
        if half == half:
            axes.errorbar(mean, y, xerr=half, color=INK, elinewidth=1.3, capsize=3, zorder=4)
            axes.scatter(of_word, [y] * len(of_word), s=9, color=INK, alpha=0.45, linewidths=0, zorder=3)
    start = 0
    for count in pairs.word.nunique():
        axes.vlines(100 / count, start - 0.5, start + count - 0.5, color=_CHANCE, linestyle="--", zorder=4)
        start += count
    _horizontal(axes, [str(word) for (_, word), _ in words])
    axes.set(xlim=(0, 100), xlabel="accuracy (%)")
    chance = (100 / pairs.word.nunique()).mean()
    right = f"{pairs.accuracy.mean().mean():.0f} % right, chance (dashed) {chance:.0f} %"
    detail = f"accuracy for each word, with only its question's words to choose from; on average {right}"
    return _title(figure, f"{len(pairs)} questions to pictures", detail)


def training_curves(results: Results) -> Figure | None:
    """The smoothed training losses: visual encoders left, proposal networks right; None where there are none."""
    if results.curves.empty:
        return None
    curves, quarters = results.curves, {}
    tables: dict[str, Mapping[str, Method | ProposalNetwork]] = {
        "visual encoder": METHODS,
        "proposal network": NETWORKS,
    }
    trained = {title: [table[name] for name in table if name in set(curves.method)] for title, table in tables.items()}
    shown = {title: entries for title, entries in trained.items() if entries}
    figure, panels = _panels(len(shown), 4.3)
    for axes, (title, entries) in zip(panels, shown.items()):
        for place, entry in enumerate(entries):
            runs = curves[curves.method == entry.id].pivot_table(index="step", columns="seed", values="loss").dropna()
            smooth, label = runs.ewm(halflife=max(1, len(runs) / 40)).mean(), entry.label
            lowest, highest = smooth.min(axis=1), smooth.max(axis=1)
            axes.fill_between(smooth.index, lowest, highest, color=entry.colour, alpha=0.15, lw=0)
            on_top = 4 - place / 100  # the first one
            axes.plot(smooth.index, smooth.mean(axis=1), color=entry.colour, linewidth=2, label=label, zorder=on_top)
            quarter = math.ceil(len(runs) / 4)  # single steps are too noisy to compare
            quarters[label] = runs.iloc[:quarter].mean(axis=None), runs.iloc[-quarter:].mean(axis=None)
        axes.set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
        axes.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    of = "MaskCLIP" if "MaskCLIP" in quarters else next(iter(quarters))
    detail = "{}: mean loss {:.1f} in the first quarter, {:.1f} in the last".format(of, *quarters[of])
    seeds = "mean of seeds, band: their range" if curves.seed.nunique() > 1 else "one seed"
    return _title(figure, "Training losses of both stages", f"{detail}; smoothed; {seeds}")


def _quality_chart(table: pd.DataFrame, panel: str, shown: str, detail: str) -> Figure:
    """The proposals' quality (0 to 1) by group of segments; a panel a value of one column."""
    panels = table[panel].unique()
    figure, all_axes = _panels(len(panels), 4.0)
    colours = {name: network.colour for name, network in NETWORKS.items() if name in set(table.source)}
    ordered = table.rename(columns={"source": "row"}).sort_values("group", key=lambda group: group.map(GROUPS.index))
    for axes, title in zip(all_axes, panels):
        _bars(axes, ordered[ordered[panel] == title], colours)
        axes.set(title=title, ylim=(0, 1))
    handles = [Patch(color=colour, label=NETWORKS[name].label) for name, colour in colours.items()]
    all_axes[-1].legend(handles=handles, title="proposals", loc="upper left", bbox_to_anchor=(1.01, 1))
    return _title(figure, shown, detail)


def _proposal_quality(results: Results) -> Figure | None:
    """AR@100 and mean best IoU of the proposals for every group of ground-truth segments."""
    table = results.proposal_quality
    if table.empty or (table := table[~table.source.isin(_TWINS)]).empty:
        return None
    dataset = "a150" if "a150" in set(table.dataset) else table.dataset.iloc[0]
    table = table[table.dataset == dataset].replace({"metric": {"AR100": "AR@100", "mean_best_iou": "mean best IoU"}})
    source, metric = table.source.iloc[0], table.metric.iloc[0]
    means = table[(table.metric == metric) & (table.source == source)].groupby("group").value.mean()
    said = [f"{means[group]:.2f} on {group} categories" for group in ("novel", "trained") if group in means]
    detail = f"{NETWORKS[source].label}, {metric}: {', '.join(said) or f'{means.iloc[0]:.2f}'}; data set {dataset}"
    return _quality_chart(table, "metric", "Quality of the proposals, by group of annotated segments", detail)


def _class_supervision(results: Results) -> Figure | None:
    """AR@100 of one network, trained with class supervision and without, from the same start."""
    table = results.proposal_quality
    if table.empty or not {*_TWINS} <= {*table.source}:
        return None
    table = table[(table.metric == "AR100") & table.source.isin(_TWINS)].assign(panel="AR@100, " + table.dataset)
    differences = []
    for (dataset, group), values in table[table.group.isin(("all", "novel"))].groupby(["dataset", "group"], sort=False):
        seeds = values.pivot_table(index="seed", columns="source", values="value")
        mean, half = interval(seeds.class_agnostic - seeds.class_aware)
        differences.append(f"{dataset} {group} {mean:+.3f}" + (f" ± {half:.3f}" if half == half else ""))
    each = "seed by seed" if table.seed.nunique() > 1 else "one seed"
    detail = f"class-agnostic minus class-aware, {each}: {', '.join(differences)}"
    return _quality_chart(table, "panel", "Masks learned without classes and with them", detail)


def _comparisons(judgements: list[Judgement]) -> Figure | None:
    """Every difference the claims speak of, relative to its second side."""
    pairs = [(judged.claim, outcome) for judged in judgements for outcome in judged.outcomes]
    shown = [(claim, outcome, outcome.b) for claim, outcome in pairs if outcome.kind == "difference" and outcome.b > 0]
    if not shown:
        return None
    height = 1.2 + 0.3 * len(shown)
    figure, (axes,) = _panels(1, height, layout="none")
    figure.subplots_adjust(left=0.3, right=0.99, top=0.995, bottom=0.8 / height)
    beside, before = axes.get_yaxis_transform(), None
    for y, (claim, outcome, base) in enumerate(shown):
        if claim is not before:
            name = f"{claim.name}  {claim.columns[0] if len(claim.columns) == 1 else 'mIoU'}"
            axes.text(-0.42, y, name, transform=beside, va="center", fontsize=11.5, fontweight="bold")
            axes.plot([-0.42, 1], [y - 0.5] * 2, transform=beside, color=GRID, clip_on=False)
            before = claim
        mean, half = 100 * outcome.value / base, np.nan_to_num(100 * (outcome.high - outcome.value) / base)
        axes.errorbar(mean, y, xerr=half, fmt="o", markersize=7, elinewidth=2.4, color=_STATES[outcome.state], zorder=4)
        _diamond(axes, (outcome.paper_a / outcome.paper_b - 1) * 100, y, zorder=3)
    _horizontal(axes, [outcome.label for _, outcome, _ in shown])
    axes.axvline(0, color=INK, linewidth=1.2, zorder=2)
    axes.set_xscale("symlog", linthresh=20)
    axes.margins(x=0.04)
    left, right = axes.get_xlim()
    ticks = [t for t in (-100, -50, -20, -10, 0, 10, 20, 50, 200, 1000) if left <= t <= right]
    axes.set_xticks(ticks, [f"{tick:+d} %" if tick else "0" for tick in ticks])
    axes.set_xlabel("first over second, relative (linear within ±20 %, logarithmic beyond)")
    held, single = (sum(o.state == state for _, o, _ in shown) for state in ("holds", "single"))
    detail = f"with 95 % intervals over seeds; {held} of {len(shown) - single} hold"
    detail = "one seed judges none" if single == len(shown) else detail
    legend = {"one seed: not judged": "single"} if single else {state: state for state in ("holds", "fails", "open")}
    handles = [Line2D([], [], marker="o", linestyle="", color=_STATES[s], label=text) for text, s in legend.items()]
    return _title(figure, "Every difference behind claims C1 to C8 and C14 to C17", detail, handles)


_BOTH = ("maskclip", "clip_baseline")
_BARS = "Grouped bars, a colour a method, white diamonds for the paper."
# name -> the tables it draws; its title; the column and methods whose numbers stand below it
_TABLE_CHARTS: dict[str, tuple[tuple[int, ...], str, str, tuple[str, ...]]] = {
    "table2_semantic": ((2,), "Semantic segmentation: mIoU on four data sets", "A-150", _BOTH),
    "table3_panoptic": ((3,), "Panoptic segmentation: PQ, SQ and RQ of all, things, stuff", "PQ", _BOTH),
    "table4_instance": ((4,), "Instance segmentation: AP on ADE20K and LVIS", "LVIS AP", _BOTH),
    "table5_split": (
        (5,),
        "AP50 of base classes and of target classes",
        "generalized target",
        ("maskclip_split",),
    ),
    "table7_ground_truth": ((7,), "With proposed and with ground-truth masks", "PQ", ("maskclip", "maskclip_gt")),
    "tables8_9_ablations": ((8, 9), "Without refinement, and RMA in other layers", "PQ", ("maskclip", "wo_refinement")),
}
# name -> how to draw it (None: its results are missing), its caption, what kind of picture it is
CHARTS: dict[str, tuple[Callable[[Results], Figure | None], str, str]] = {
    name: (partial(_table_chart, *chart), " ".join(f"Table {n}. {TABLES[n].title}." for n in chart[0]), _BARS)
    for name, chart in _TABLE_CHARTS.items()
} | {
    "table6_efficiency": (_efficiency, f"Table 6. {TABLES[6].title}.", "A horizontal bar a method, logarithmic."),
    "seeds": (_seed_spread, "The spread over seeds.", "A line a seed, from method to method."),
    "attributes": (_attributes, "Fine distinctions in the user's words (C18; Figs. 5 and 7).", "A bar a word."),
    "training_curves": (
        training_curves, "Training of both stages; the encoder's loss is 2 cross entropy + 5 dice + 5 BCE "
        "(Sec. 4.2), masks once for each RMA layer; without refinement once, so that its curve is lower. A network "
        "that begins trained hardly improves.",
        "A line a training, loss over steps.",
    ),
    "proposal_quality": (_proposal_quality, "Quality of the proposals.", "Grouped bars, a colour a network."),
    "class_supervision": (
        _class_supervision, "What class labels do to the masks (Sec. 3.1).", "Grouped bars, a colour a training."
    ),
}  # fmt: skip


def draw_figures(
    results: Results, judgements: list[Judgement], folder: Path, also: Sequence[str] = ()
) -> dict[str, Picture]:
    """Draw every chart there are results for into `folder`, as PNG and `also` as "svg" or "pdf"."""
    drawn, seen = {}, "A dot, and over several seeds its interval for each comparison, a line at 0."
    claims = (lambda _: _comparisons(judgements)), "The comparisons behind the claims.", seen
    with as_file(files(__package__) / "report.mplstyle") as look, matplotlib.style.context(["default", look]):
        for name, (draw, caption, kind) in {"claims": claims, **CHARTS}.items():
            for former in folder.glob(f"{name}.*"):  # it would be shown as if it were of these results
                former.unlink()
            if (figure := draw(results)) is None:
                continue
            for suffix in ("png", *also):
                write_atomically(folder / f"{name}.{suffix}", figure.savefig)
            alt = f"{kind} {figure.texts[0].get_text()}; {figure.texts[1].get_text()}."
            drawn[name] = Picture(folder / f"{name}.png", caption, alt)
    return drawn
