"""The paper's claims C1 to C18 beside what the study measured, with a verdict by one stated rule."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import yaml

from study.report.results import Results, interval
from study.report.tables import DASH, paper_numbers, study_values

RULE = (
    "A claim is one or more comparisons of two numbers: a difference that must be above 0, or a ratio that must lie "
    "in the range the claim's words stand for. Both numbers come from the same seed (same data, same proposals), so "
    "the comparison is paired: it is taken seed by seed, and the 95 % interval (t distribution) is that of its mean "
    "over seeds. A comparison holds if the whole interval lies on the claimed side, fails if the whole interval lies "
    "on the other side, and is open if the interval reaches across. A claim agrees if all its comparisons hold; does "
    "not agree if at least one fails; is undecided otherwise, and also where a result is missing. With one seed there "
    "is no interval: the side alone decides, and the verdict is marked “one seed”. Costs (C10, C11) are single "
    "measurements, judged by their value. The intervals speak of what a seed changes (training, sampled pictures), "
    "not of other worlds or other test sets; a comparison that comes out the same in every seed is marked so."
)
AGREES, DISAGREES, UNDECIDED = "agrees", "does not agree", "undecided"


@dataclass(frozen=True)
class Comparison:
    """Cell `a` against cell `b` of one table, as difference or ratio, claimed to lie between `low` and `high`."""

    label: str
    table: int
    a: tuple[str, str]
    b: tuple[str, str]
    kind: str = "difference"
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class Outcome:
    """What became of a comparison: the paper's numbers, the study's by seed, and whether it holds."""

    label: str
    kind: str
    paper: tuple[float, float] | None
    study: pd.DataFrame  # columns a, b, value; index seed
    mean: float
    half: float
    state: str  # holds | fails | open | missing

    @property
    def seeds(self) -> int:
        """How many seeds were compared."""
        return len(self.study)

    @property
    def paper_figures(self) -> str:
        """The paper's two numbers and their difference or ratio."""
        return _figures(*self.paper, self.kind) if self.paper else "pictures only"

    @property
    def study_figures(self) -> str:
        """The same of the study, means over seeds, with the 95 % interval."""
        if self.state == "missing":
            return DASH
        return _figures(self.study.a.mean(), self.study.b.mean(), self.kind, self.mean, self.half)


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, C1 to C18: what it says, and the comparisons that decide it."""

    name: str
    text: str
    comparisons: tuple[Comparison, ...]

    @property
    def table(self) -> int:
        """The paper's table it is about; 0 for pictures."""
        return self.comparisons[0].table if self.comparisons else 0


@dataclass(frozen=True)
class Judgement:
    """One row of the claims table."""

    claim: Claim
    outcomes: tuple[Outcome, ...]
    verdict: str
    remark: str
    reason: str = ""


def _figures(a: float, b: float, kind: str, value: float | None = None, half: float = float("nan")) -> str:
    """`15.1 vs 13.6 (+1.50 ± 0.21)`, `35.8 / 15.1 = 2.37 ± 0.1`: both sides, the comparison and its interval."""
    plus = f" ± {half:.2f}" if half == half else ""
    if kind == "ratio":
        return f"{a:.3g} / {b:.3g} = {a / b if value is None else value:.2f}{plus}"
    digits = 1 if max(abs(a), abs(b)) >= 10 else 2
    return f"{a:.{digits}f} vs {b:.{digits}f} ({a - b if value is None else value:+.2f}{plus})"


def _beats(table: int, a: str, b: str, *columns: str) -> tuple[Comparison, ...]:
    return tuple(Comparison(column, table, (a, column), (b, column)) for column in columns)


def _chain(table: int, column: str, *rows: str) -> tuple[Comparison, ...]:
    """Each row above the next one."""
    return tuple(
        Comparison(f"{_SHORT.get(a, a)} > {_SHORT.get(b, b)}", table, (a, column), (b, column))
        for a, b in pairwise(rows)
    )


_CB, _WO, _MR, _MC = "CLIP Baseline", "MaskCLIP w/o RMA", "MaskCLIP (Mask R-CNN)", "MaskCLIP"
_SHORT = {_WO: "w/o RMA", _MR: "Mask R-CNN", "MaskCLIP w/o MR": "w/o MR"}
_SETS = ("A-150", "A-847", "P-459", "P-59")
_ORDER = (_MC, _MR, _WO, _CB)
_GT, _LAST, _SPREAD = "MaskCLIP + GT masks", "21, 22, 23, 24", "6, 12, 18, 24"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "Without training, mask class tokens (w/o RMA) beat the CLIP Baseline on all four mIoU sets.",
        _beats(2, _WO, _CB, *_SETS),
    ),
    Claim("C2", "MaskCLIP beats MaskCLIP w/o RMA on all four mIoU sets.", _beats(2, _MC, _WO, *_SETS)),
    Claim("C3", "Mask2Former proposals beat Mask R-CNN proposals on all four mIoU sets.", _beats(2, _MC, _MR, *_SETS)),
    Claim("C4", "PQ: MaskCLIP > MaskCLIP (Mask R-CNN) > w/o RMA > CLIP Baseline.", _chain(3, "PQ", *_ORDER)),
    Claim("C5", "SQ: the same order.", _chain(3, "SQ", *_ORDER)),
    Claim("C6", "RQ: the same order.", _chain(3, "RQ", *_ORDER)),
    Claim(
        "C7",
        "Instance AP on ADE20K: both trained models beat both untrained ones.",
        tuple(c for a in (_MC, _MR) for b in (_WO, _CB) for c in _chain(4, "ADE20K AP", a, b)),
    ),
    Claim("C8", "LVIS AP: MaskCLIP > MaskCLIP (Mask R-CNN) > w/o RMA > CLIP Baseline.", _chain(4, "LVIS AP", *_ORDER)),
    Claim(
        "C9",
        "COCO split, generalized: target classes, never trained on, reach about half of the base AP50 "
        "(read as 0.35 to 0.65).",
        (Comparison("target / base", 5, (_MC, "generalized target"), (_MC, "generalized base"), "ratio", 0.35, 0.65),),
    ),
    Claim(
        "C10",
        "Mask tokens need over 30 times fewer FLOPs than one CLIP pass per mask.",
        (Comparison("CLIP Baseline / MaskCLIP", 6, (_CB, "TFLOPs"), (_MC, "TFLOPs"), "ratio", 30),),
    ),
    Claim(
        "C11",
        "They are at least 4 times faster for 100 masks.",
        (Comparison("CLIP Baseline / w/o RMA, seconds", 6, (_CB, "seconds"), (_WO, "seconds"), "ratio", 4),),
    ),
    Claim(
        "C12",
        "Ground-truth masks more than double PQ.",
        (Comparison("PQ, ground truth / own masks", 7, (_GT, "PQ"), (_MC, "PQ"), "ratio", 2),),
    ),
    Claim(
        "C13",
        "Ground-truth masks raise mIoU by about a third (read as 1.2 to 1.5 times).",
        (Comparison("mIoU, ground truth / own masks", 7, (_GT, "mIoU"), (_MC, "mIoU"), "ratio", 1.2, 1.5),),
    ),
    Claim("C14", "Mask refinement raises PQ.", _chain(8, "PQ", _MC, "MaskCLIP w/o MR")),
    Claim("C15", "Mask refinement raises SQ.", _chain(8, "SQ", _MC, "MaskCLIP w/o MR")),
    Claim("C16", "RMA in layers 6, 12, 18, 24 beats 21 to 24 (PQ).", _chain(9, "PQ", _SPREAD, _LAST)),
    Claim(
        "C17",
        "Those beat 3, 9, 15, 21 and 1, 7, 13, 19: the last layer matters (PQ).",
        (*_chain(9, "PQ", _LAST, "3, 9, 15, 21"), *_chain(9, "PQ", _LAST, "1, 7, 13, 19")),
    ),
    Claim(
        "C18",
        "Fine distinctions the user names (filled / empty) are told apart though never trained on "
        "(read as: accuracy, averaged over the words, above chance).",
        (),
    ),
)


def judge_claims(results: Results, reasons: dict[str, str] | None = None) -> list[Judgement]:
    """All 18 claims, judged by RULE; `reasons` (claim name -> text, see read_reasons) go into the last column of those
    that do not agree: a reason why not, beside a claim that does, would only puzzle."""
    judged = []
    for claim in CLAIMS:
        outcomes = _attributes(results) if claim.name == "C18" else [_compare(c, results) for c in claim.comparisons]
        verdict, remark = _verdict(outcomes, costs=claim.table == 6)
        if claim.name == "C18":
            remark = "; ".join(filter(None, (remark, "on the miniature world's drawings")))
        if claim.table == 6 and outcomes[0].seeds:
            remark += f"; {results.cost_model('tflops' if claim.name == 'C10' else 'time_s')}"
        reason = "" if verdict == AGREES else (reasons or {}).get(claim.name, "")
        judged.append(Judgement(claim, tuple(outcomes), verdict, remark, reason))
    return judged


def read_reasons(path: str | Path, profile: str, seeds: int | None = None) -> dict[str, str]:
    """What people found out about claims and tables, `C5: text` or `Table 5: text` a line in YAML; no file, no reasons.
    Lines `profile: mini` and `seeds: 7` say whose results it was found out about: another profile's report goes
    without, one of another number of `seeds` says so before each text.

    Raises:
        ValueError: the file is no YAML mapping, or names a claim there is not.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"{path} is not valid YAML ({problem}); write one `C5: text` a line") from None
    of, over = (content.pop(key, None) if isinstance(content, dict) else None for key in ("profile", "seeds"))
    names = [claim.name for claim in CLAIMS] + [f"Table {number}" for number in range(2, 10)]
    if not isinstance(content, dict) or (unknown := [key for key in content if key not in names]):
        wrong = repr(unknown[0]) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {wrong} where a claim C1 to C18, or Table 2 to 9, with its text must be")
    if of not in (None, profile):
        return {}
    found = "" if over in (None, seeds) else f"Found with {over} seeds: "
    return {str(key): found + " ".join(str(text).split()) for key, text in content.items()}


def _compare(comparison: Comparison, results: Results) -> Outcome:
    table, a, b = comparison.table, comparison.a, comparison.b
    printed = [paper_numbers().get((table, *cell)) for cell in (a, b)]
    paper = (float(printed[0]), float(printed[1])) if printed[0] and printed[1] else None
    pair = pd.DataFrame({"a": study_values(results, table, *a), "b": study_values(results, table, *b)}).dropna()
    if comparison.kind == "ratio":
        pair = pair[pair.b != 0]  # a ratio to nothing says nothing
    pair["value"] = pair.a / pair.b if comparison.kind == "ratio" else pair.a - pair.b
    return _outcome(comparison.label, comparison.kind, paper, pair, comparison.low, comparison.high)


def _outcome(
    label: str,
    kind: str,
    paper: tuple[float, float] | None,
    pair: pd.DataFrame,
    low: float = 0.0,
    high: float = float("inf"),
) -> Outcome:
    mean, half = interval(pair["value"])
    left, right = (mean - half, mean + half) if half == half else (mean, mean)
    if len(pair) == 0:
        state = "missing"
    elif left > low and right < high:
        state = "holds"
    elif right < low or left > high:
        state = "fails"
    else:
        state = "open"
    return Outcome(label, kind, paper, pair, mean, half, state)


def _attributes(results: Results) -> list[Outcome]:
    """C18: per pair of words the accuracy averaged over its words (so that always saying one word is chance)."""
    if results.attributes.empty:
        return [_outcome("filled / empty", "chance", None, pd.DataFrame({"a": [], "b": [], "value": []}))]
    table = results.attributes.assign(seed=results.attributes.get("seed", 0))
    outcomes = []
    for pair, of_pair in table.groupby("pair", sort=False):
        accuracy = of_pair.groupby("seed").accuracy.mean()
        chance = 100 / of_pair.word.nunique()
        frame = pd.DataFrame({"a": accuracy, "b": chance, "value": accuracy - chance})
        outcomes.append(_outcome(f"{pair}, over chance", "chance", None, frame))
    return outcomes


def _verdict(outcomes: list[Outcome], costs: bool = False) -> tuple[str, str]:
    states = [outcome.state for outcome in outcomes]
    measured = [o for o in outcomes if o.state != "missing"]
    remarks = []
    verdict = DISAGREES if "fails" in states else AGREES if set(states) == {"holds"} else UNDECIDED
    if measured and verdict != AGREES and len(states) > 1:
        remarks.append(f"{states.count('holds')} of {len(states)} hold")
    if "missing" in states:
        remarks.append(
            "not measured"
            if not measured
            else "not measured: " + ", ".join(o.label for o in outcomes if o.state == "missing")
        )
    if costs and measured:
        remarks.append("one measurement")
    elif measured and max(o.seeds for o in measured) == 1:
        remarks.append("one seed")
    elif constant := [o.label for o in measured if o.half < 1e-9]:
        remarks.append("same in every seed" + ("" if len(constant) == len(outcomes) else f": {', '.join(constant)}"))
    return verdict, "; ".join(remarks)


def claims_table(judgements: list[Judgement]) -> pd.DataFrame:
    """The claims table as text: one row per claim."""
    return pd.DataFrame(
        [
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
        ]
    )


def comparisons_table(judgements: list[Judgement]) -> pd.DataFrame:
    """Every comparison in numbers: means of both sides, the comparison's mean, its 95 % interval, its state."""
    return pd.DataFrame(
        [
            {
                "claim": j.claim.name,
                "comparison": o.label,
                "kind": o.kind,
                "paper_a": o.paper[0] if o.paper else None,
                "paper_b": o.paper[1] if o.paper else None,
                "a": o.study.a.mean() if o.seeds else None,
                "b": o.study.b.mean() if o.seeds else None,
                "value": o.mean,
                "low": o.mean - o.half,
                "high": o.mean + o.half,
                "seeds": o.seeds,
                "state": o.state,
            }
            for j in judgements
            for o in j.outcomes
        ]
    )
