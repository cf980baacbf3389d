"""From results (tidy CSV files) to reports: tables, claims, charts, one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from maskclip.files import write_atomically
from study.report import claims, tables
from study.report.figures import draw_figures
from study.report.page import render_page
from study.report.results import read_results

__all__ = ["build_report"]


def build_report(
    results_dir: str | Path,
    reports_dir: str | Path,
    seeds: Sequence[int] | None = None,
    reasons: str | Path | None = None,
) -> Path:
    """Write a profile's whole report into `reports_dir`; return the HTML page's path.

    Written: index.html; tables/table<2..9>.{csv,md,tex}; claims.{csv,md,tex} and comparisons.csv; figures/*.png;
    metrics.json and plots/*.csv for `dvc metrics show` and `dvc plots show`.

    Args:
        results_dir: results/<profile>.
        reports_dir: the folder to write to.
        seeds: leave other seeds' results out; None: all there are.
        reasons: YAML file of what people found out; None: `reports_dir/reasons.yaml`.

    Raises:
        FileNotFoundError, ValueError: as read_results and read_reasons; no file `reasons`.
    """
    if reasons is not None and not Path(reasons).is_file():
        raise FileNotFoundError(f"there is no file of reasons {reasons}")
    out = Path(reports_dir)
    results = read_results(results_dir, seeds)
    found = claims.read_reasons(reasons or out / "reasons.yaml", results.profile, len(results.seeds))
    judged = claims.judge_claims(results, found)
    built = {number: tables.build_table(results, number, found.get(f"Table {number}", "")) for number in tables.TABLES}
    figures = draw_figures(results, judged, out / "figures")
    texts = _claims(judged) | {"index.html": render_page(results, built, judged, figures)}
    for number, table in built.items():
        texts[f"plots/table{number}.csv"] = _csv(_for_plots(table))
        for suffix, text in (("csv", tables.to_csv), ("md", tables.to_markdown), ("tex", tables.to_latex)):
            texts[f"tables/table{number}.{suffix}"] = text(table)
    for name, content in texts.items():
        write_atomically(out / name, partial(Path.write_text, data=content, encoding="utf-8"))
    return out / "index.html"


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _claims(judged: list[claims.Judgement]) -> dict[str, str]:
    """The claims' files: name -> text; metrics.json counts the verdicts."""
    table, counts, rule = claims.claims_table(judged), claims.count_verdicts(judged), claims.RULE
    agree = f"**{counts[claims.AGREES]} of {len(table)} claims agree.**"
    shown = table[["claim", "text", "paper", "study", "verdict"]].map(tables.latex_escape)
    shown.columns = ["", "Claim", "Paper", "Study", "Verdict"]
    latex = shown.style.hide(axis="index").to_latex(
        environment="longtable",
        hrules=True,
        column_format=r"lp{.25\linewidth}p{.26\linewidth}p{.26\linewidth}l",
        caption="The claims of the paper, judged by the rule below.",
        label="tab:claims",
    )
    return {
        "claims.csv": _csv(table),
        "comparisons.csv": _csv(claims.comparisons_table(judged)),
        "claims.md": f"{agree}\n\n{tables.markdown(table.astype(str))}\n\n{rule}\n",
        "claims.tex": f"% needs \\usepackage{{booktabs,longtable}}\n\\small\n{latex}\n{tables.latex_escape(rule)}\n",
        "metrics.json": json.dumps({"claims": counts}, indent=2) + "\n",
    }


def _for_plots(table: tables.Table) -> pd.DataFrame:
    """The study's rows, means over seeds, as `dvc plots show` draws them."""
    study = table.frame[table.frame.Numbers == "study"]
    means = study[list(table.spec.columns)].map(lambda cell: round(cell.mean, 4)).dropna(axis=1, how="all")
    means.insert(0, "method", study.Method)
    return means
