"""The paper's claims C1 to C18 beside what the study measured, judged by one stated rule."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from maskclip.settings import read_yaml
from study.methods import METHODS
from study.report.results import Results, interval
from study.report.tables import DASH, TABLES, latex_escape, markdown, paper_number, plain_csv, read_data, study_values

_Pair = tuple[float, float]
AGREES, DISAGREES, UNDECIDED = "agrees", "does not agree", "undecided"
NOT_JUDGED = "one seed: not judged"
_STATES = {  # of a comparison, the one that decides first
    "fails": "fails",
    "missing": "not measured",
    "single": "one seed decides nothing",
    "open": "open: the interval reaches across",
    "holds": "holds",
}
_SENTENCE = re.compile(r"(?<=[.:]) (?=[A-Z+−-])")


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, see claims.yaml; table 0: pictures."""

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
    """What became of a comparison: the numbers of paper and study (means over seeds; NaN: none), its state."""

    label: str
    kind: str  # difference | ratio | chance
    paper_a: float
    paper_b: float
    a: float
    b: float
    value: float  # the difference or ratio, mean over seeds
    low: float  # of its 95 % interval, as `high`; NaN with one seed
    high: float
    seeds: int
    state: str  # holds | fails | open | single (one seed decides nothing) | missing

    @property
    def paper_figures(self) -> str:
        """The paper's two numbers and their difference or ratio."""
        a, b = self.paper_a, self.paper_b
        return "pictures only" if np.isnan(a + b) else self._figures(a, b, a / b if self.kind == "ratio" else a - b)

    @property
    def study_figures(self) -> str:
        """`15.1 vs 13.6 (+1.50 ± 0.21)`, `35.8 / 15.1 = 2.37 ± 0.10`: the same of the study."""
        half = self.high - self.value
        plus = "" if np.isnan(half) else f" ± {half:.2f}"
        return self._figures(self.a, self.b, self.value, plus) if self.seeds else DASH

    def _figures(self, a: float, b: float, value: float, plus: str = "") -> str:
        if self.kind == "ratio":
            return f"{a:.3g} / {b:.3g} = {value:.2f}{plus}"
        digits = 1 if max(abs(a), abs(b)) >= 10 else 2
        return f"{a:.{digits}f} vs {b:.{digits}f} ({value:+.2f}{plus})"


@dataclass(frozen=True)
class Judgement:
    """One row of the claims table."""

    claim: Claim
    outcomes: list[Outcome]
    verdict: str
    remark: str
    reason: str

    @property
    def evidence(self) -> str:
        """The comparison that decides, in one sentence: the first of the worst state."""
        worst = min(self.outcomes, key=lambda outcome: list(_STATES).index(outcome.state))
        papers = f"; the paper has {worst.paper_figures}" if self.claim.table else ""
        return f"{worst.label}: {worst.study_figures if worst.seeds else 'not measured'}{papers}."

    @property
    def reason_first(self) -> str:
        """The first sentence of the reason; `reason_rest` is what follows."""
        return _SENTENCE.split(self.reason, maxsplit=1)[0]

    @property
    def reason_rest(self) -> str:
        return self.reason.removeprefix(self.reason_first).strip()


def judge_claims(results: Results, reasons: dict[str, str], others: dict[str, str] | None = None) -> list[Judgement]:
    """All 18 claims, judged by RULE.

    `reasons` (see read_reasons) stand beside those that do not agree, `others` (see read_verdicts) beside those that
    one seed cannot judge.
    """
    judged = []
    for claim in CLAIMS:
        outcomes = _compare(claim, results) if claim.table else _attributes(claim, results)
        states = {outcome.state for outcome in outcomes}
        verdict = DISAGREES if "fails" in states else AGREES if states == {"holds"} else UNDECIDED
        verdict = NOT_JUDGED if "single" in states else verdict
        beside = [others[claim.name]] if others and verdict == NOT_JUDGED and claim.name in others else []
        remark = "; ".join(_remarks(claim, outcomes, verdict, results) + beside)
        reason = "" if verdict == AGREES else reasons.get(claim.name, "")
        judged.append(Judgement(claim, outcomes, verdict, remark, reason))
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
            pair = pd.DataFrame({name: study_values(results, *cell) for name, cell in zip("ab", cells)}).dropna()
            if ratio:
                pair = pair[pair.b != 0]  # a ratio to nothing says nothing
            pair["value"] = pair.a / pair.b if ratio else pair.a - pair.b
            paper = paper_number(*cells[0]), paper_number(*cells[1])
            outcomes.append(_outcome(claim, label, "ratio" if ratio else "difference", pair, paper))
    return outcomes


def _attributes(claim: Claim, results: Results) -> list[Outcome]:
    """C18: accuracy averaged over a pair's words, so that always saying one word is chance."""
    outcomes = []
    untrained = results.attributes.groupby("pair").filter(lambda of_pair: not of_pair.trained.all())
    for pair, of_pair in untrained.groupby("pair", sort=False):
        accuracy, chance = of_pair.groupby("seed").accuracy.mean(), 100 / of_pair.word.nunique()
        frame = pd.DataFrame({"a": accuracy, "b": chance, "value": accuracy - chance})
        outcomes.append(_outcome(claim, f"{pair}, over chance", "chance", frame))
    return outcomes or [_outcome(claim, "filled / empty", "chance", pd.DataFrame(columns=["a", "b", "value"]))]


def _outcome(claim: Claim, label: str, kind: str, pair: pd.DataFrame, paper: _Pair = (np.nan, np.nan)) -> Outcome:
    """Judge a comparison by its values of each seed: columns a, b and value."""
    mean, half = interval(pair["value"])
    left, right = mean - np.nan_to_num(half), mean + np.nan_to_num(half)
    state = "fails" if right < claim.low or left > claim.high else "open"
    if left > claim.low and right < claim.high:
        state = "holds"
    if len(pair) < 2 and claim.table != 6:  # costs are measured once
        state = "single" if len(pair) else "missing"
    sides = pair.a.mean(), pair.b.mean()
    return Outcome(label, kind, *paper, *sides, mean, mean - half, mean + half, len(pair), state)


def _remarks(claim: Claim, outcomes: list[Outcome], verdict: str, results: Results) -> list[str]:
    """What must be said beside a verdict."""
    measured = [outcome for outcome in outcomes if outcome.seeds]
    missing = [outcome.label for outcome in outcomes if not outcome.seeds]
    constant = [outcome.label for outcome in measured if outcome.high - outcome.low < 1e-9]
    remarks = [] if measured else ["not measured"]
    if measured and verdict in (DISAGREES, UNDECIDED) and len(outcomes) > 1:
        remarks.append(f"{sum(outcome.state == 'holds' for outcome in outcomes)} of {len(outcomes)} hold")
    if measured and missing:
        remarks.append(f"not measured: {', '.join(missing)}")
    if measured and claim.table == 6:
        remarks += ["one measurement", str(results.cost_model(TABLES[6].columns[claim.columns[0]][1]))]
    elif constant and verdict != NOT_JUDGED:
        remarks.append("same in every seed" + ("" if len(constant) == len(outcomes) else f": {', '.join(constant)}"))
    if not claim.table:
        remarks += [f"not above chance by itself: {word}" for word in _at_chance(results)]
        remarks.append("on the miniature world's drawings")
    return remarks


def _at_chance(results: Results) -> list[str]:
    """C18's words that are not named more often than chance would."""
    found = []
    for (_, word), of_word in results.attributes.groupby(["pair", "word"], sort=False):
        mean, half = interval(of_word.accuracy)
        if mean - np.nan_to_num(half) <= of_word.chance.iloc[0]:
            found.append(str(word))
    return found


def read_reasons(path: str | Path, profile: str, seeds: int | None = None) -> dict[str, str]:
    """What people found out, `C5: text` or `Table 5: text` in YAML; no file, no reasons.

    `profile: mini` and `seeds: 7` in it say whose results they looked at. Another profile's report goes without; one
    of other seeds says so before each text. ValueError: it is no YAML mapping, or names a claim there is not.
    """
    path = Path(path)
    content = (read_yaml(path) if path.is_file() else None) or {}
    names = {"profile", "seeds", *(claim.name for claim in CLAIMS), *(f"Table {number}" for number in TABLES)}
    wrong = sorted({*map(str, content)} - names) if isinstance(content, dict) else [f"a {type(content).__name__}"]
    if wrong:
        raise ValueError(f"{path} holds {wrong[0]!r} where a claim C1 to C18, or Table 2 to 9, with its text must be")
    of, over = content.pop("profile", profile), content.pop("seeds", seeds)
    found = "" if over == seeds else f"Found with {over} seeds: "
    return {key: found + " ".join(str(text).split()) for key, text in content.items()} if of == profile else {}


def read_verdicts(path: str | Path | None) -> dict[str, str]:
    """Claim -> "with 5 seeds: agrees", from a published report's claims.csv; none of one seed, nor without a file."""
    if path is None or not Path(path).is_file():
        return {}
    rows = pd.read_csv(path).query("seeds > 1").itertuples()
    return {str(row.claim): f"with {row.seeds} seeds: {row.verdict}" for row in rows}


def count_verdicts(judgements: list[Judgement]) -> dict[str, int]:
    """How many claims agree, are undecided, do not agree, are not judged."""
    verdicts = [judged.verdict for judged in judgements]
    return {verdict: verdicts.count(verdict) for verdict in (AGREES, UNDECIDED, DISAGREES, NOT_JUDGED)}


def claims_files(judgements: list[Judgement]) -> dict[str, str]:
    """Name -> text: the claims in three forms, every comparison in numbers (see Outcome), the verdicts counted."""
    table, counts = _claims_table(judgements), count_verdicts(judgements)
    pairs = [{"claim": judged.claim.name, **asdict(outcome)} for judged in judgements for outcome in judged.outcomes]
    shown = table[["claim", "text", "paper", "study", "verdict"]].map(latex_escape)
    shown.columns = ["", "Claim", "Paper", "Study", "Verdict"]
    latex = shown.style.hide(axis="index").to_latex(
        environment="longtable",
        hrules=True,
        column_format=r"lp{.25\linewidth}p{.26\linewidth}p{.26\linewidth}l",
        caption="The claims of the paper, judged by the rule below.",
        label="tab:claims",
    )
    agree = f"**{counts[AGREES]} of {len(table)} claims agree, {counts[NOT_JUDGED]} are not judged.**"
    return {
        "claims.csv": plain_csv(table),
        "comparisons.csv": plain_csv(pd.DataFrame(pairs).rename(columns={"label": "comparison"})),
        "claims.md": f"{agree}\n\n{markdown(table.astype(str))}\n\n{RULE}\n",
        "claims.tex": f"% needs \\usepackage{{booktabs,longtable}}\n\\small\n{latex}\n{latex_escape(RULE)}\n",
        "metrics.json": json.dumps({"claims": counts}, indent=2) + "\n",
    }


def comparison_table(judged: Judgement) -> str:
    """A claim's comparisons as a Markdown table."""
    rows = [(o.label, o.paper_figures, o.study_figures, _STATES[o.state]) for o in judged.outcomes]
    return markdown(pd.DataFrame(rows, columns=["comparison", "paper", "study", "result"]))


def _claims_table(judgements: list[Judgement]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "claim": j.claim.name,
            "text": j.claim.text,
            "paper": "; ".join(f"{o.label}: {o.paper_figures}" for o in j.outcomes),
            "study": "; ".join(f"{o.label}: {o.study_figures}" for o in j.outcomes),
            "seeds": max(o.seeds for o in j.outcomes),
            "verdict": j.verdict,
            "remark": j.remark,
            "reason": j.reason,
        }
        for j in judgements
    )
