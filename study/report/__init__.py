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
    markdown_row,
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
    """Write everything there is to say about `results_dir` into `reports_dir`; return the HTML page's path.

    Written: index.html; tables/table<2..9>.{csv,md,tex}; claims.{csv,md,tex} and comparisons.csv; figures/*.png;
    metrics.json and plots/*.csv for `dvc metrics show` and `dvc plots show`. `seeds` (default: all) leaves other seeds'
    results out. `reasons` is the YAML file of what people found out about claims and tables (default
    `reports_dir/reasons.yaml`).

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
    for number, table in tables.items():
        for suffix, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
            _write(out / "tables" / f"table{number}.{suffix}", text)
    _write_claims(judgements, out)
    _write_for_dvc(tables, judgements, out)
    figures = draw_figures(results, judgements, out / "figures")
    page = out / "index.html"
    _write(page, render_page(results, tables, judgements, figures))
    return page


def _write(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False, float_format="%.6g"))


def _write_claims(judgements: list[Judgement], out: Path) -> None:
    table = claims_table(judgements)
    _write_csv(out / "claims.csv", table)
    _write_csv(out / "comparisons.csv", comparisons_table(judgements))
    agree = sum(j.verdict == AGREES for j in judgements)
    rows = [[str(value) for value in row] for row in table.itertuples(index=False)]
    lines = [markdown_row(list(table.columns)), markdown_row(["---"] * len(table.columns)), *map(markdown_row, rows)]
    _write(out / "claims.md", "\n".join([f"**{agree} of {len(judgements)} claims agree.**", "", *lines, "", RULE, ""]))
    body = "\n".join(" & ".join(map(latex_escape, (r[0], r[1], r[2], r[3], r[5]))) + r" \\" for r in rows)
    _write(
        out / "claims.tex",
        "\n".join(
            [
                r"% needs \usepackage{booktabs,longtable}",
                r"\small",
                r"\begin{longtable}{lp{.25\linewidth}p{.26\linewidth}p{.26\linewidth}l}",
                r"\toprule",
                r"& Claim & Paper & Study & Verdict \\",
                r"\midrule",
                r"\endhead",
                body,
                r"\bottomrule",
                rf"\caption{{{latex_escape(RULE)}}}",
                r"\label{tab:claims} \\",
                r"\end{longtable}",
                "",
            ]
        ),
    )


def _write_for_dvc(tables: dict[int, Table], judgements: list[Judgement], out: Path) -> None:
    """metrics.json (how many claims agree) and plots/table<2..9>.csv: the study's rows, means over seeds."""
    verdicts = [j.verdict for j in judgements]
    counts = {verdict: verdicts.count(verdict) for verdict in (AGREES, UNDECIDED, DISAGREES)}
    _write(out / "metrics.json", json.dumps({"claims": counts}, indent=2) + "\n")
    for number, table in tables.items():
        study = {
            line.label: {
                column: round(cell.mean, 4) for column, cell in zip(table.spec.columns, line.cells) if cell.seeds
            }
            for line in table.lines
            if line.source == "study"
        }
        plain = pd.DataFrame([{"method": label, **cells} for label, cells in study.items()])
        _write_csv(out / "plots" / f"table{number}.csv", plain)
