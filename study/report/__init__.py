"""From results (tidy CSV files) to reports: tables, claims, charts, one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from maskclip.files import write_atomically
from study.report.claims import (
    AGREES,
    DISAGREES,
    RULE,
    UNDECIDED,
    Judgement,
    claims_table,
    comparisons_table,
    judge_claims,
    read_reasons,
)
from study.report.figures import draw_figures, set_style
from study.report.page import render_page
from study.report.results import Results, interval, read_results
from study.report.tables import (
    TABLES,
    Table,
    build_table,
    latex_escape,
    markdown,
    paper_numbers,
    to_csv,
    to_latex,
    to_markdown,
)

__all__ = [
    "Results",
    "build_report",
    "build_table",
    "interval",
    "judge_claims",
    "paper_numbers",
    "read_results",
    "set_style",
]


def build_report(
    results_dir: str | Path,
    reports_dir: str | Path,
    seeds: Sequence[int] | None = None,
    reasons: str | Path | None = None,
) -> Path:
    """Write everything there is to say about a profile's results into `reports_dir`; return the HTML page's path.

    Written: index.html; tables/table<2..9>.{csv,md,tex}; claims.{csv,md,tex} and comparisons.csv; figures/*.png;
    metrics.json and plots/*.csv for `dvc metrics show` and `dvc plots show`.

    Args:
        results_dir: results/<profile>.
        reports_dir: the folder to write to.
        seeds: leave other seeds' results out; None: all there are.
        reasons: the YAML file of what people found out about claims and tables; None: `reports_dir/reasons.yaml`.

    Raises:
        FileNotFoundError, ValueError: as read_results and read_reasons; there is no such file of `reasons`.
    """
    if reasons is not None and not Path(reasons).is_file():
        raise FileNotFoundError(f"there is no file of reasons {reasons}")
    out = Path(reports_dir)
    results = read_results(results_dir, seeds)
    found = read_reasons(reasons or out / "reasons.yaml", results.profile, len(results.seeds))
    judgements = judge_claims(results, found)
    tables = {number: build_table(results, number, found.get(f"Table {number}", "")) for number in TABLES}
    figures = draw_figures(results, judgements, out / "figures")
    texts = _claims(judgements) | {"index.html": render_page(results, tables, judgements, figures)}
    for number, table in tables.items():
        texts |= {f"plots/table{number}.csv": _csv(_for_plots(table)), f"tables/table{number}.csv": to_csv(table)}
        texts |= {f"tables/table{number}.md": to_markdown(table), f"tables/table{number}.tex": to_latex(table)}
    for name, text in texts.items():
        write_atomically(out / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return out / "index.html"


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _claims(judgements: list[Judgement]) -> dict[str, str]:
    """The claims' files: name -> text; metrics.json counts the verdicts."""
    table, verdicts = claims_table(judgements), [j.verdict for j in judgements]
    counts = {verdict: verdicts.count(verdict) for verdict in (AGREES, UNDECIDED, DISAGREES)}
    shown = table[["claim", "text", "paper", "study", "verdict"]].map(latex_escape)
    latex = shown.set_axis(["", "Claim", "Paper", "Study", "Verdict"], axis=1).style.hide(axis="index")
    return {
        "claims.csv": _csv(table),
        "comparisons.csv": _csv(comparisons_table(judgements)),
        "claims.md": f"**{counts[AGREES]} of {len(table)} claims agree.**\n\n{markdown(table.astype(str))}\n\n{RULE}\n",
        "claims.tex": "% needs \\usepackage{booktabs,longtable}\n\\small\n"
        + latex.to_latex(
            environment="longtable",
            column_format=r"lp{.25\linewidth}p{.26\linewidth}p{.26\linewidth}l",
            hrules=True,
            caption=latex_escape(RULE),
            label="tab:claims",
        ),
        "metrics.json": json.dumps({"claims": counts}, indent=2) + "\n",
    }


def _for_plots(table: Table) -> pd.DataFrame:
    """The study's rows, means over seeds, as `dvc plots show` draws them."""
    study, columns = table.frame[table.frame.Numbers == "study"], list(table.spec.columns)
    means = study[columns].map(lambda cell: round(cell.mean, 4))
    means.insert(0, "method", study.Method)
    return means.dropna(axis=1, how="all")
