"""What a run of the study left behind: tidy CSV files in, one `Results` out, checked on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

#: Method ids of the results files and their names in the paper, in the order of its tables.
METHODS = {
    "clip_baseline": "CLIP Baseline",
    "wo_rma": "MaskCLIP w/o RMA",
    "maskclip_maskrcnn": "MaskCLIP (Mask R-CNN)",
    "maskclip": "MaskCLIP",
    "wo_refinement": "MaskCLIP w/o MR",
    "layers_1_7_13_19": "1, 7, 13, 19",
    "layers_3_9_15_21": "3, 9, 15, 21",
    "layers_21_22_23_24": "21, 22, 23, 24",
    "maskclip_split": "MaskCLIP (COCO split)",
}
SCORE_COLUMNS = ["method", "proposals", "dataset", "metric", "value", "seed", "profile"]
# The readers' names of one data set read in several ways are one data set in the paper's tables.
_SAME_DATASET = {"a150_semantic": "a150", "a150_instances": "a150", "coco_split_val": "coco_split"}
# Results that are not scores: file name (or its beginning) -> the field of Results and the columns it must have.
_OTHER_FILES = {
    "efficiency": ["method", "metric", "masks", "model", "resolution", "value"],
    "curves": ["step", "loss"],
    "proposal_quality": ["source", "dataset", "group", "metric", "value"],
    "attributes": ["pair", "word", "accuracy"],
}


@dataclass
class Results:
    """One profile's results, all seeds together; a kind of result that is not there is an empty table.

    `scores` has SCORE_COLUMNS, values in percent; `times` has stage, seconds and peak_gb; `pictures` are the
    notebooks' pictures with their captions.
    """

    scores: pd.DataFrame
    efficiency: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    proposal_quality: pd.DataFrame = field(default_factory=pd.DataFrame)
    attributes: pd.DataFrame = field(default_factory=pd.DataFrame)
    times: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """The seeds there are scores of, rising."""
        return sorted(int(seed) for seed in self.scores.seed.unique())

    @property
    def profile(self) -> str:
        """Of which profile of configs/ the scores are."""
        return str(self.scores.profile.iloc[0]) if len(self.scores) else "unknown"

    def score(self, method: str, dataset: str, metric: str, proposals: str | None = None) -> pd.Series:
        """Values in percent, indexed by seed; empty if never measured.

        `proposals` defaults to what the paper's row of that name uses: Mask R-CNN's for `maskclip_maskrcnn`,
        Mask2Former's for all others.
        """
        proposals = proposals or ("maskrcnn" if method == "maskclip_maskrcnn" else "mask2former")
        table = self.scores
        chosen = table[(table.method == method) & (table.dataset == dataset) & (table.metric == metric)]
        exact = chosen[chosen.proposals == proposals]  # else a variant, such as mask2former_base for the COCO split
        chosen = exact if len(exact) else chosen[chosen.proposals.str.startswith(f"{proposals}_")]
        return chosen.set_index("seed")["value"].sort_index()

    def cost(self, method: str, metric: str) -> pd.Series:
        """`time_s`, `tflops` or `peak_gb` of one method for the 100 masks of one image, on `cost_model(metric)`."""
        if self.efficiency.empty:
            return pd.Series(dtype=float)
        table = self.efficiency
        chosen = table[
            (table.method == method)
            & (table.metric == metric)
            & (table.masks == 100)
            & (table.model == self.cost_model(metric))
        ]
        return chosen.reset_index(drop=True)["value"]

    def cost_model(self, metric: str) -> str | None:
        """The model a cost was measured on: the paper's ViT-L/14 where it was, else the first one measured."""
        table = self.efficiency
        models = [str(m) for m in table[table.metric == metric].model.unique()] if len(table) else []
        return next((m for m in models if "L-14" in m or "L/14" in m), models[0] if models else None)


def interval(values: pd.Series | np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (t distribution); NaN half-width for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return float("nan"), float("nan")
    if len(values) == 1:
        return float(values[0]), float("nan")
    spread = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def read_results(results_dir: str | Path, seeds: Sequence[int] | None = None) -> Results:
    """Read `results_dir`: score files `<seed>/<stage>.csv` and the other results beside them.

    `seeds` leaves out what other seeds have left there. Times are read from `runs/times` beside `results_dir`.

    Raises:
        FileNotFoundError: the folder, or any score in it, is missing.
        ValueError: a file is cut off or lacks a column, two profiles are mixed, or one value is given twice.
    """
    # no hidden files anywhere below: those are what a killed process had begun to write
    root = Path(results_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"no results folder at {root}; run the study first (make study) or correct the path")
    scores: list[pd.DataFrame] = []
    others: dict[str, list[pd.DataFrame]] = {kind: [] for kind in _OTHER_FILES}
    folders = [
        path
        for path in sorted(root.iterdir())
        if path.name.isdigit() and path.is_dir() and (seeds is None or int(path.name) in seeds)
    ]
    for path in [path for folder in (root, *folders) for path in sorted(folder.glob("[!.]*.csv"))]:
        kind = next((k for k in _OTHER_FILES if path.stem == k or path.stem.startswith(f"{k}_")), None)
        table = _read_csv(path, _OTHER_FILES[kind] if kind else SCORE_COLUMNS)
        if kind is None:
            scores.append(table)
            continue
        if "seed" not in table and path.parent.name.isdigit():
            table["seed"] = int(path.parent.name)
        if kind == "curves":
            table["method"] = path.stem.removeprefix("curves_")
        others[kind].append(table)
    if not scores:
        raise FileNotFoundError(f"no scores in {root} (expected <seed>/<stage>.csv files); run the study first")
    pictures = [picture for folder in (root, *folders[:1]) for picture in _pictures(folder / "figures")]
    times = _times(root.parent / "runs" / "times", seeds)
    return Results(
        _clean_scores(pd.concat(scores, ignore_index=True)),
        times=times,
        pictures=pictures,
        **{kind: pd.concat(tables, ignore_index=True) for kind, tables in others.items() if tables},
    )


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError):
        raise ValueError(f"{path} is empty or cut off; delete it and run its stage again") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]!r} (it needs {', '.join(columns)}); run its stage again")
    named = [column for column in ("method", "dataset", "metric", "profile") if column in columns]
    if table[named].isna().any(axis=None):
        raise ValueError(f"{path} is cut off: a row lacks its {' or '.join(named)}; delete it and run its stage again")
    return table


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{path} is not a JSON object; delete it and run its stage again") from None


def _clean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One name per method and data set, one value per cell and seed, one profile."""
    scores = scores[SCORE_COLUMNS].copy()
    values = pd.to_numeric(scores.value, errors="coerce")
    unreadable = scores[values.isna() & scores.value.notna()]
    if len(unreadable):
        raise ValueError(f"a score is no number: {unreadable.iloc[0].to_dict()}; run its stage again")
    scores["value"] = values
    scores["proposals"] = scores.proposals.fillna("mask2former").str.replace("mask_rcnn", "maskrcnn")
    scores["dataset"] = scores.dataset.replace(_SAME_DATASET)
    scores = scores[np.isfinite(scores.value)]  # a value that could not be computed is a missing one
    of_maskrcnn = (scores.method == "maskclip") & (scores.proposals == "maskrcnn")
    scores.loc[of_maskrcnn, "method"] = "maskclip_maskrcnn"
    profiles = sorted(str(p) for p in scores.profile.unique())
    if len(profiles) > 1:
        raise ValueError(f"the results mix the profiles {' and '.join(profiles)}; report one at a time")
    scores = scores.drop_duplicates()
    cell = ["method", "proposals", "dataset", "metric", "seed"]
    twice = scores[scores.duplicated(cell)]
    if len(twice):
        named = ", ".join(f"{column} {twice.iloc[0][column]}" for column in cell)
        raise ValueError(f"two different values for {named}; delete the stale results file")
    return scores.reset_index(drop=True)


def _times(folder: Path, seeds: Sequence[int] | None) -> pd.DataFrame:
    """`<seed>-<stage>.csv` or `<stage>.csv`: mean seconds over seeds and largest memory of each stage."""
    rows = []
    for path in sorted(folder.glob("[!.]*.csv")):
        seed, _, stage = path.stem.partition("-")
        if not seed.isdigit():
            stage = path.stem
        elif seeds is not None and int(seed) not in seeds:
            continue
        rows.append(_read_csv(path, ["seconds", "peak_gb"]).assign(stage=stage))
    if not rows:
        return pd.DataFrame()
    grouped = pd.concat(rows).groupby("stage", as_index=False)
    return grouped.agg(seconds=("seconds", "mean"), peak_gb=("peak_gb", "max"))


def _pictures(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder in the order of its captions.json; those without a caption come last, by name."""
    captions = _read_json(folder / "captions.json") if (folder / "captions.json").is_file() else {}
    absent = [name for name in captions if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder / 'captions.json'} names {absent[0]!r}, which is not there; run its notebook again")
    uncaptioned = sorted(p.name for p in folder.glob("*.png") if p.name not in captions)
    return [(folder / name, str(captions.get(name, ""))) for name in [*captions, *uncaptioned]]
