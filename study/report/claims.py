"""The paper's claims C1 to C18 beside what the study measured, judged by one stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML, YAMLError

from study.methods import METHODS
from study.report.results import Results, interval
from study.report.tables import DASH, TABLES, paper_number, read_data, study_values

_Pair = tuple[float | None, float | None]
AGREES, DISAGREES, UNDECIDED = "agrees", "does not agree", "undecided"


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims (claims.yaml says what its parts mean); table 0: pictures."""

    name: str
    text: str
    table: int = 0
    columns: Sequence[str] = ()
    orders: Sequence[str] = ()
    low: float = 0.0
    high: float = float("inf")
    label: str = ""


_FILE = YAML(typ="safe").load(read_data("claims.yaml"))
RULE = _FILE.pop("rule")
CLAIMS = tuple(Claim(name, **parts) for name, parts in _FILE.items())


@dataclass(frozen=True)
class Outcome:
    """What became of a comparison: the numbers of paper and study (means over seeds), its state."""

    label: str
    kind: str  # difference | ratio | chance
    paper_a: float | None
    paper_b: float | None
    a: float | None
    b: float | None
    value: float  # the difference or ratio, mean over seeds
    low: float  # of its 95 % interval, as `high`; NaN with one seed
    high: float
    seeds: int
    state: str  # holds | fails | open | missing

    @property
    def paper_figures(self) -> str:
        """The paper's two numbers and their difference or ratio."""
        if self.paper_a is None or self.paper_b is None:
            return "pictures only"
        a, b = self.paper_a, self.paper_b
        return self._figures(a, b, a / b if self.kind == "ratio" else a - b)

    @property
    def study_figures(self) -> str:
        """The same of the study, with the 95 % interval."""
        if self.a is None or self.b is None:
            return DASH
        half = self.high - self.value
        return self._figures(self.a, self.b, self.value, f" ± {half:.2f}" if half == half else "")

    def _figures(self, a: float, b: float, value: float, plus: str = "") -> str:
        """`15.1 vs 13.6 (+1.50 ± 0.21)`, `35.8 / 15.1 = 2.37 ± 0.10`: both sides, what they give."""
        if self.kind == "ratio":
            return f"{a:.3g} / {b:.3g} = {value:.2f}{plus}"
        digits = 1 if max(abs(a), abs(b)) >= 10 else 2
        return f"{a:.{digits}f} vs {b:.{digits}f} ({value:+.2f}{plus})"


@dataclass(frozen=True)
class Judgement:
    """One row of the claims table."""

    claim: Claim
    outcomes: tuple[Outcome, ...]
    verdict: str
    remark: str
    reason: str = ""


def judge_claims(results: Results, reasons: dict[str, str] | None = None) -> list[Judgement]:
    """All 18 claims, judged by RULE.

    `reasons` (claim -> text, see read_reasons) stand beside the claims that do not agree; beside
    one that does, a reason why not would only puzzle.
    """
    judged = []
    for claim in CLAIMS:
        outcomes = _compare(claim, results) if claim.table else _attributes(results)
        verdict, remarks = _verdict(outcomes, costs=claim.table == 6)
        if claim.table == 0:
            remarks.append("on the miniature world's drawings")
        if claim.table == 6 and outcomes[0].seeds:
            remarks.append(str(results.cost_model(TABLES[6].columns[claim.columns[0]][1])))
        reason = "" if verdict == AGREES else (reasons or {}).get(claim.name, "")
        judged.append(Judgement(claim, tuple(outcomes), verdict, "; ".join(remarks), reason))
    return judged


def _compare(claim: Claim, results: Results) -> list[Outcome]:
    """Every comparison of a claim: in each column, each method of an order against the next one."""
    outcomes, ratio = [], " / " in claim.orders[0]
    pairs = [pair for order in claim.orders for pair in pairwise(order.split(" / " if ratio else " > "))]
    for column in claim.columns:
        columns = column.split(" / ") * 2 if ratio else [column] * 2
        for methods in pairs:
            names = [METHODS[method].labels.get(claim.table, METHODS[method].short) for method in methods]
            label = claim.label or (column if len(claim.columns) > 1 else " > ".join(names))
            cells = [(claim.table, method, c) for method, c in zip(methods, columns)]
            paper = paper_number(*cells[0]), paper_number(*cells[1])
            pair = pd.DataFrame({name: study_values(results, *cell) for name, cell in zip("ab", cells)}).dropna()
            if ratio:
                pair = pair[pair.b != 0]  # a ratio to nothing says nothing
            pair["value"] = pair.a / pair.b if ratio else pair.a - pair.b
            outcomes.append(_outcome(label, "ratio" if ratio else "difference", paper, pair, claim.low, claim.high))
    return outcomes


def _outcome(
    label: str, kind: str, paper: _Pair, pair: pd.DataFrame, low: float = 0.0, high: float = np.inf
) -> Outcome:
    """Judge a comparison by its values of each seed: columns a, b and value."""
    if pair.empty:
        return Outcome(label, kind, *paper, None, None, np.nan, np.nan, np.nan, 0, "missing")
    mean, half = interval(pair["value"])
    left, right = (mean - half, mean + half) if half == half else (mean, mean)
    state = "holds" if left > low and right < high else "fails" if right < low or left > high else "open"
    return Outcome(label, kind, *paper, pair.a.mean(), pair.b.mean(), mean, mean - half, mean + half, len(pair), state)


def _attributes(results: Results) -> list[Outcome]:
    """C18: accuracy averaged over a pair's words, so that always saying one word is chance."""
    if results.attributes.empty:
        return [_outcome("filled / empty", "chance", (None, None), pd.DataFrame())]
    outcomes = []
    for pair, of_pair in results.attributes.groupby("pair", sort=False):
        accuracy, chance = of_pair.groupby("seed").accuracy.mean(), 100 / of_pair.word.nunique()
        frame = pd.DataFrame({"a": accuracy, "b": chance, "value": accuracy - chance})
        outcomes.append(_outcome(f"{pair}, over chance", "chance", (None, None), frame))
    return outcomes


def _verdict(outcomes: list[Outcome], costs: bool) -> tuple[str, list[str]]:
    """The verdict by RULE, and what must be said beside it."""
    states = [outcome.state for outcome in outcomes]
    measured = [outcome for outcome in outcomes if outcome.state != "missing"]
    verdict = DISAGREES if "fails" in states else AGREES if set(states) == {"holds"} else UNDECIDED
    if not measured:
        return verdict, ["not measured"]
    remarks = []
    if verdict != AGREES and len(states) > 1:
        remarks.append(f"{states.count('holds')} of {len(states)} hold")
    if missing := [outcome.label for outcome in outcomes if outcome.state == "missing"]:
        remarks.append(f"not measured: {', '.join(missing)}")
    if costs:
        remarks.append("one measurement")
    elif max(outcome.seeds for outcome in measured) == 1:
        remarks.append("one seed")
    elif constant := [outcome.label for outcome in measured if outcome.high - outcome.low < 1e-9]:
        remarks.append("same in every seed" + ("" if len(constant) == len(outcomes) else f": {', '.join(constant)}"))
    return verdict, remarks


def read_reasons(path: str | Path, profile: str, seeds: int | None = None) -> dict[str, str]:
    """What people found out, `C5: text` or `Table 5: text` in YAML; no file, no reasons.

    `profile: mini` and `seeds: 7` in it say whose results they looked at. Another profile's report
    goes without; one of another number of seeds says so before each text.

    Raises:
        ValueError: the file is no YAML mapping, or names a claim there is not.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
    except YAMLError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"{path} is not valid YAML ({problem}); write one `C5: text` a line") from None
    names = {"profile", "seeds", *(claim.name for claim in CLAIMS), *(f"Table {number}" for number in TABLES)}
    if not isinstance(content, dict) or (unknown := [key for key in content if key not in names]):
        wrong = repr(unknown[0]) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {wrong} where a claim C1 to C18, or Table 2 to 9, with its text must be")
    of, over = content.pop("profile", profile), content.pop("seeds", seeds)
    found = "" if over == seeds else f"Found with {over} seeds: "
    return {key: found + " ".join(str(text).split()) for key, text in content.items()} if of == profile else {}


def count_verdicts(judgements: list[Judgement]) -> dict[str, int]:
    """How many claims agree, are undecided, do not agree."""
    verdicts = [judged.verdict for judged in judgements]
    return {verdict: verdicts.count(verdict) for verdict in (AGREES, UNDECIDED, DISAGREES)}


def claims_table(judgements: list[Judgement]) -> pd.DataFrame:
    """The claims table as text: one row per claim."""
    return pd.DataFrame(
        {
            "claim": j.claim.name,
            "text": j.claim.text,
            "paper": "; ".join(f"{o.label}: {o.paper_figures}" for o in j.outcomes),
            "study": "; ".join(f"{o.label}: {o.study_figures}" for o in j.outcomes),
            "seeds": max((o.seeds for o in j.outcomes), default=0),
            "verdict": j.verdict,
            "remark": j.remark,
            "reason": j.reason,
        }
        for j in judgements
    )


def comparisons_table(judgements: list[Judgement]) -> pd.DataFrame:
    """Every comparison in numbers, see Outcome."""
    lines = [{"claim": judged.claim.name, **asdict(outcome)} for judged in judgements for outcome in judged.outcomes]
    return pd.DataFrame(lines).rename(columns={"label": "comparison"})
