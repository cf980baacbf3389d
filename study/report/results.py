"""What a run of the study left behind: tidy CSV files in, one `Results` out, checked on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from maskclip.data.datasets import DATASETS
from maskclip.evaluation.proposal_quality import GROUPS
from study.methods import METHODS, NETWORKS, SCORE_COLUMNS

# Other results, by the beginning of their files' names, which is also their field in Results.
_COLUMNS = {
    "scores": SCORE_COLUMNS,
    "efficiency": ["method", "metric", "masks", "model", "resolution", "value"],
    "curves": ["step", "loss"],
    "proposal_quality": ["source", "dataset", "group", "metric", "value"],
    "attributes": ["pair", "word", "accuracy", "chance", "trained"],
    "times": ["seconds", "peak_gb"],
}
_NAMES = {"scores": "method", "curves": "method", "proposal_quality": "source"}  # of methods, networks
_MAY_BE_EMPTY = {"value", "accuracy", "loss", "resolution"}  # what could not be computed is missing
_ANY, _COUNT, _PERCENT, _SHARE = (-np.inf, np.inf), (0, np.inf), (0, 100), (0, 1)
# Columns of numbers, and between what they lie.
_NUMBERS: dict[str, dict[str, tuple[float, float]]] = {
    "scores": {"value": _PERCENT},
    "efficiency": {"masks": _COUNT, "value": _COUNT},
    "curves": {"step": _COUNT, "loss": _ANY},
    "proposal_quality": {"value": _SHARE},
    "attributes": {"chance": _PERCENT, "accuracy": _PERCENT},
    "times": {"seconds": _COUNT, "peak_gb": _COUNT},
}
# What has one value: the report would show the mean of two.
_CELLS = {
    "scores": ["method", "proposals", "dataset", "metric", "seed"],
    "efficiency": ["method", "metric", "masks", "model"],
    "proposal_quality": ["source", "dataset", "group", "metric", "seed"],
    "attributes": ["pair", "word", "seed"],
}
# One data set read in several ways is one data set in the paper's tables.
_SAME_DATASET = {entry.results or name: entry.in_tables for name, entry in DATASETS.items()}


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its file, what it is, and what one would see (for those who do not)."""

    path: Path
    caption: str
    alt: str


@dataclass
class Results:
    """One profile's results, all seeds together; `scores` in percent."""

    scores: pd.DataFrame
    efficiency: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS["efficiency"]))
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS["curves"]))
    proposal_quality: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS["proposal_quality"]))
    attributes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS["attributes"]))
    times: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS["times"]))
    pictures: list[Picture] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)  # of others, evaluated as they are: setting -> file

    @property
    def seeds(self) -> list[int]:
        """The seeds there are scores of, rising."""
        return sorted(int(seed) for seed in self.scores.seed.unique())

    @property
    def profile(self) -> str:
        """Of which profile of configs/ the scores are."""
        return str(self.scores.profile.iloc[0]) if len(self.scores) else "unknown"

    def score(self, method: str, dataset: str, metric: str) -> pd.Series:
        """A method's values in percent, on its own proposals, by seed; empty if never measured."""
        table, entry = self.scores, METHODS[method]
        of_method = (table.method == entry.scored_as) & (table.proposals == entry.network)
        chosen = table[of_method & (table.dataset == dataset) & (table.metric == metric)]
        return chosen.set_index("seed")["value"].sort_index()

    def cost(self, method: str, metric: str) -> pd.Series:
        """`time_s`, `tflops` or `peak_gb` for 100 masks of one image, on `cost_model(metric)`."""
        table = self.efficiency
        measured = (table.model == self.cost_model(metric)) & (table.masks == 100)
        return table[measured & (table.method == method) & (table.metric == metric)].reset_index(drop=True)["value"]

    def cost_model(self, metric: str) -> str | None:
        """The model a cost was measured on: the paper's ViT-L/14, else the first one."""
        models = [str(model) for model in self.efficiency.query("metric == @metric").model.unique()]
        return next((m for m in models if "L-14" in m or "L/14" in m), models[0] if models else None)

    def cost_machine(self, metric: str) -> str:
        """Where a cost was measured; empty: not recorded."""
        if "machine" not in self.efficiency:
            return ""
        measured = (self.efficiency.model == self.cost_model(metric)) & (self.efficiency.metric == metric)
        return ", ".join(self.efficiency[measured].machine.dropna().unique())


def interval(values: pd.Series | np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (t distribution), NaN below two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return (float(values[0]) if len(values) else float("nan")), float("nan")
    spread = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def read_results(folder: str | Path, seeds: Sequence[int] | None = None) -> Results:
    """Read a profile's results from `folder`, results/<profile>, and its times from runs/<profile>/times.

    `seeds`: leave out what other seeds have left there.

    Raises:
        FileNotFoundError: the folder, or any score in it, is missing.
        ValueError: a file is empty or cut off, lacks a column, has an unknown method, an impossible number or another
            seed than its folder; profiles are mixed; a value is twice; a picture or a JSON file is damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no results folder at {root}; run the study first (make study) or correct the path")
    numbered = sorted(_seed_folders(root).items())
    folders = {root: None} | {path: seed for seed, path in numbered if seeds is None or seed in seeds}
    found: dict[str, list[pd.DataFrame]] = {kind: [] for kind in _COLUMNS}
    written = "[!.]*.csv"  # hidden ones are what a killed process had begun to write
    for path in (path for folder in folders for path in sorted(folder.glob(written))):
        kind = next((k for k in _COLUMNS if path.stem == k or path.stem.startswith(f"{k}_")), "scores")
        found[kind].append(_read_csv(path, kind, folders[path.parent]))
    for path in sorted((root.parent.parent / "runs" / root.name / "times").glob(written)):
        seed, _, stage = path.stem.partition("-")  # <seed>-<stage>, or <stage> where no seed matters
        if seeds is None or not seed.isdecimal() or int(seed) in seeds:
            found["times"].append(_read_csv(path, "times").assign(stage=stage if seed.isdecimal() else path.stem))
    if not found["scores"]:
        raise FileNotFoundError(f"no scores in {root}/<seed>/*.csv; name a profile's folder and run the study first")
    tables = {kind: pd.concat(parts, ignore_index=True) for kind, parts in found.items() if parts}
    tables["scores"] = _clean_scores(tables["scores"])
    tables |= {kind: _one_value(table, kind) for kind, table in tables.items() if kind in _CELLS}
    if "times" in tables:
        stages = tables["times"].groupby("stage", as_index=False)
        # the median, for a stage that was run again has been short, one beside other work long
        tables["times"] = stages.agg(seconds=("seconds", "median"), peak_gb=("peak_gb", "max"))
    pictures = [picture for folder in list(folders)[:2] for picture in _pictures(folder / "figures")]
    weights = [_read_weights(path) for folder in folders if (path := folder / "weights.json").is_file()]
    return Results(**tables, pictures=pictures, weights=weights[0] if weights else {})


def _seed_folders(root: Path) -> dict[int, Path]:
    """Seed -> its folder; ValueError: a number that `str(seed)` does not write, such as 01."""
    numbered = [path for path in root.iterdir() if path.name.isdigit()]
    if odd := [path for path in numbered if not re.fullmatch("0|[1-9][0-9]*", path.name)]:
        raise ValueError(f"{odd[0]} is no seed's folder, which is named 0, 1 or such; rename or delete it")
    return {int(path.name): path for path in numbered}


def _read_csv(path: Path, kind: str, seed: int | None = None) -> pd.DataFrame:
    """A file of results; `seed`: its folder's, None: it lies in none. `place` says where each value stands."""
    columns, numbers = _COLUMNS[kind], _NUMBERS[kind]
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys([*numbers, "seed"], "str"))  # pandas guesses: True is 1
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError):
        raise ValueError(f"{path} is empty or cut off; delete it and run its stage again") from None
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path} lacks the column {missing[0]!r} (it needs {', '.join(columns)}); run its stage again")
    if table.empty and kind != "curves":  # a training of no steps has an empty one
        raise ValueError(f"{path} has a header alone; delete it and run its stage again")
    for column in columns:
        if column not in _MAY_BE_EMPTY:
            _refuse(path, table, column, table[column].isna(), "is cut off")
    if kind == "curves":
        table["method"] = path.stem.removeprefix("curves_")
    names = set(table[_NAMES[kind]]) if kind in _NAMES else set()
    if unknown := names - {*METHODS, *NETWORKS}:
        raise ValueError(f"{path}: study/methods.py has no {min(unknown)!r}; add it there, or delete the file")
    for column, limits in numbers.items():
        table[column] = _read_numbers(path, table, column, *limits)
    if kind not in ("efficiency", "times"):  # these are measured once
        table["seed"] = _read_seeds(path, table, seed)
    if kind == "proposal_quality":
        _refuse(path, table, "group", ~table.group.isin(GROUPS), f"knows no groups but {', '.join(GROUPS)}")
    if kind in _CELLS:
        table["place"] = [f"{path}, line {row + 2}" for row in range(len(table))]
    return table


def _refuse(path: Path, table: pd.DataFrame, column: str, wrong: pd.Series, why: str) -> None:
    """ValueError: a cell of a column is wrong; it names the first one."""
    if wrong.any():
        row = int(np.argmax(wrong))
        cell = table[column].iloc[row]
        said = "an empty cell" if pd.isna(cell) else repr(cell)
        raise ValueError(f"{path} {why}: line {row + 2} has {said} as its {column}; delete it and run its stage again")


def _read_numbers(path: Path, table: pd.DataFrame, column: str, low: float, high: float) -> pd.Series:
    """A column's numbers, NaN for empty cells; ValueError: a cell is no number, or not from `low` to `high`."""
    values = pd.to_numeric(table[column], errors="coerce").astype(float).replace([-np.inf, np.inf], np.nan)
    _refuse(path, table, column, values.isna() & table[column].notna(), "has no number where one must be")
    rounding = 1e-6
    outside = (values < low - rounding) | (values > high + rounding)
    what = f"outside {low:g} to {high:g}" if np.isfinite(high) else f"below {low:g}"
    _refuse(path, table, column, outside, f"has a number {what}")
    return values


def _read_seeds(path: Path, table: pd.DataFrame, seed: int | None) -> pd.Series:
    """Each row's seed; ValueError: it is no whole number from 0 on, or not the folder's `seed`."""
    if "seed" not in table:
        if seed is None:
            raise ValueError(f"{path} is of no seed; move it into the folder of its seed")
        return pd.Series(seed, table.index)
    seeds = pd.to_numeric(table.seed, errors="coerce")
    _refuse(path, table, "seed", ~((seeds >= 0) & (seeds % 1 == 0)), "has a seed that is no whole number from 0 on")
    if seed is not None:
        _refuse(path, table, "seed", seeds != seed, f"lies in the folder of seed {seed} and is of another")
    return seeds.astype(int)


def _clean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One name per data set, one profile."""
    scores = scores[[*SCORE_COLUMNS, "place"]].assign(dataset=scores.dataset.replace(_SAME_DATASET))
    scores = scores.dropna(subset="value")
    if len(profiles := sorted(map(str, scores.profile.unique()))) > 1:
        raise ValueError(f"the results mix the profiles {' and '.join(profiles)}; report one at a time")
    return scores


def _one_value(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """One value per cell of _CELLS; ValueError: two differ."""
    cell, value = _CELLS[kind], [*_NUMBERS[kind]][-1]
    table = table.drop_duplicates([*cell, value])
    if (twice := table.duplicated(cell, keep=False)).any():
        first, second, *_ = table[table[cell].eq(table.loc[twice, cell].iloc[0]).all(axis=1)].place
        names = table.loc[twice, cell].iloc[0].items()
        named = ", ".join(
            f"{column} {name:g}" if isinstance(name, float) else f"{column} {name}" for column, name in names
        )
        raise ValueError(f"two different values for {named}, in {first} and in {second}; delete the stale one")
    return table.drop(columns="place").reset_index(drop=True)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; ValueError: it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; delete it and run its notebook again")
    return content


def _read_weights(path: Path) -> dict[str, str]:
    """Setting -> file of weights.json; ValueError: it is damaged."""
    weights = _read_object(path)
    if wrong := [setting for setting, file in weights.items() if not isinstance(file, str)]:
        raise ValueError(f"{path} names no file for {wrong[0]!r}; delete it and run its notebook again")
    return weights


def _pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder in the order of its captions.json (name -> caption, or [caption, alt]); others last.

    Raises:
        ValueError: captions.json is damaged or names what is not beside it; a picture is damaged.
    """
    path = folder / "captions.json"
    captions = _read_object(path) if path.is_file() else {}
    captions |= {p.name: "" for p in sorted(folder.glob("*.png")) if p.name not in captions}
    return [_picture(path, name, said) for name, said in captions.items()]


def _picture(path: Path, name: str, said: object) -> Picture:
    """A picture beside the captions.json at `path`, which says its caption, or [caption, alt]."""
    file = path.parent / name
    if Path(name).name != name or not file.is_file():
        raise ValueError(f"{path} names {name!r}, which is not beside it; run its notebook again")
    texts: list[Any] = said if isinstance(said, list) else [said, said]
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} has neither a caption nor [caption, alt] for {name!r}; run its notebook again")
    caption, alt = texts
    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"{file} cannot be read as a picture; delete it and run its notebook again") from None
    return Picture(file, caption, alt or file.stem)
