"""Tables 2 to 9 of the paper, the study's numbers beside its own: CSV, Markdown, LaTeX, cells."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import pandas as pd
from ruamel.yaml import YAML

from study.methods import METHODS, Method, rows_of
from study.report.results import Results, interval

DASH = "–"  # a result that is not there


@dataclass(frozen=True)
class TableSpec:
    """What one of the paper's tables holds; tables.yaml says what its parts mean."""

    title: str
    columns: dict[str, tuple[str, str]]
    digits: int = 1
    contest: bool = True
    remark: str = ""
    panels: dict[str, dict[str, str]] = field(default_factory=dict)
    supervision: dict[str, str] = field(default_factory=dict)


def read_data(name: str) -> str:
    """The text of a file that comes with the report."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


TABLES = {number: TableSpec(**parts) for number, parts in YAML(typ="safe").load(read_data("tables.yaml")).items()}


@dataclass(frozen=True)
class Cell:
    """One number of a table; of the study with its mean, 95 % half-width and number of seeds."""

    text: str = DASH
    mean: float = float("nan")
    half: float = float("nan")
    seeds: int = 0
    best: bool = False

    @property
    def full(self) -> tuple[str, str, str]:
        """Number, half-width and seeds as a CSV file has them."""
        if not self.seeds:
            return "" if self.text == DASH else self.text, "", ""
        return f"{self.mean:.4f}", f"{self.half:.4f}" if self.half == self.half else "", str(self.seeds)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, filled: for each method the paper's numbers and the study's.

    frame: `Method`, in Table 2 `COCO training data`, and `Numbers` (whose: `paper`, `paper (cited)` or `study`) as
        texts, then a Cell a column.
    """

    number: int
    frame: pd.DataFrame
    remark: str = ""

    @property
    def spec(self) -> TableSpec:
        """Its title and columns."""
        return TABLES[self.number]

    @property
    def caption(self) -> str:
        """Its number in the paper and its title."""
        return f"Table {self.number}. {self.spec.title}"

    @property
    def footnote(self) -> str:
        """What the numbers are, and how many seeds stand behind the study's."""
        counts = sorted({cell.seeds for cell in self.frame[list(self.spec.columns)].to_numpy().flat if cell.seeds})
        if not counts:
            return f"{self.remark} No result of the study yet ({DASH}).".strip()
        seeds = f"mean over {' or '.join(map(str, counts))} seeds ± half-width of the 95 % interval (t distribution)"
        if self.number == 6:
            seeds = "one measurement each"
        elif counts == [1]:
            seeds = "one seed, so no interval"
        bold = "bold: the study's best; " if self.spec.contest else ""
        cited = "paper (cited)" in set(self.frame.Numbers) and self.number != 6
        source = " Cited: the paper's numbers, not run here." if cited else ""
        return f"{self.remark} Study: {seeds}; {bold}{DASH}: not measured.{source}".strip()


@cache
def paper_numbers() -> dict[tuple[int, str, str], str]:
    """(table, row, column) -> the number as the paper prints it."""
    lines = csv.DictReader(read_data("paper_numbers.csv").splitlines())
    return {(int(line["table"]), line["row"], line["column"]): line["value"] for line in lines}


def paper_number(number: int, method: str, column: str) -> float | None:
    """A number of the paper, of a method of METHODS; None where it prints none."""
    printed = paper_numbers().get((number, METHODS[method].label_in(number), column))
    return float(printed) if printed else None


def study_values(results: Results, number: int, method: str, column: str) -> pd.Series:
    """The study's values of one cell of a table, by seed; empty if not measured."""
    dataset, metric = TABLES[number].columns[column]
    return results.cost(method, metric) if dataset == "efficiency" else results.score(method, dataset, metric)


def study_mean(results: Results, number: int, method: str, column: str) -> float:
    """The mean of `study_values`; NaN if not measured."""
    return interval(study_values(results, number, method, column))[0]


def table_rows(number: int) -> dict[str, Method | None]:
    """Label -> method (None: a system the paper cites), in the paper's order, new rows last."""
    printed, own = (row for table, row, _ in paper_numbers() if table == number), rows_of(number)
    return {row: own.get(row) for row in (*printed, *own)}


def build_table(results: Results, number: int, found: str = "") -> Table:
    """Table `number` (2 to 9): of each row the paper's numbers and, unless cited, the study's.

    What people `found` out about it (see claims.read_reasons) follows in its footnote.
    """
    spec, lines = TABLES[number], []
    rows, columns = table_rows(number), list(spec.columns)
    own = {m.id: [study_values(results, number, m.id, column) for column in columns] for m in rows.values() if m}
    best = pd.DataFrame(own).map(lambda values: interval(values)[0]).max(axis=1)
    for row, method in rows.items():
        note = method.supervision if method else spec.supervision.get(row, "")
        printed = [Cell(paper_numbers().get((number, row, column), DASH)) for column in columns]
        if any(cell.text != DASH for cell in printed):
            lines.append([row, note, "paper" if method and method.network else "paper (cited)", *printed])
        if method:
            cells = [_study_cell(values, spec, top) for values, top in zip(own[method.id], best)]
            lines.append([row, note, "study", *cells])
    frame = pd.DataFrame(lines, columns=["Method", "COCO training data", "Numbers", *columns])
    costs = {c: results.cost_model(metric) for c, (dataset, metric) in spec.columns.items() if dataset == "efficiency"}
    models = ", ".join(f"{column} with {model}" for column, model in costs.items() if model)
    remark = " ".join(filter(None, [spec.remark, models and f"Study: {models}.", found]))
    return Table(number, frame if number == 2 else frame.drop(columns="COCO training data"), remark)


def _study_cell(values: pd.Series, spec: TableSpec, best: float) -> Cell:
    if len(values) == 0:
        return Cell()
    mean, half = interval(values)
    text = f"{mean:.{spec.digits}f}" + (f" ± {half:.{spec.digits}f}" if half == half else "")
    return Cell(text, mean, half, len(values), spec.contest and mean == best)


def to_csv(table: Table) -> str:
    """Tidy: one line per method and source; the study's with full precision, `±` and `seeds`."""
    parts = {"method": table.frame.Method, "numbers": table.frame.Numbers}
    for column in table.spec.columns:
        for i, end in enumerate(("", " ±", " seeds")):
            parts[column + end] = table.frame[column].map(lambda cell, i=i: cell.full[i])
    return pd.DataFrame(parts).to_csv(index=False, lineterminator="\n")


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown: caption, cells, footnote; the study's best numbers bold."""
    frame = table.frame.map(lambda v: v if isinstance(v, str) else f"**{v.text}**" if v.best else v.text)
    return f"**{table.caption}**\n\n{markdown(frame, len(table.spec.columns))}\n\n{table.footnote}\n"


def markdown(frame: pd.DataFrame, numbers: int = 0) -> str:
    """A table of texts in GitHub's Markdown, its last columns, so many `numbers`, aligned right."""
    rule = ["---"] * (frame.shape[1] - numbers) + ["---:"] * numbers
    rows = [list(frame.columns), rule, *frame.map(lambda text: text.replace("|", "\\|")).to_numpy()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "×": r"$\times$",
    "≥": r"$\geq$", ">": r"$>$", "<": r"$<$", "≈": r"$\approx$", "−": r"$-$", "→": r"$\to$",
})  # fmt: skip


def latex_escape(text: str) -> str:
    """Plain text as LaTeX shows it."""
    return text.translate(_LATEX)


def to_latex(table: Table) -> str:
    """A `table` environment; needs the packages booktabs and, for wide ones, graphicx."""

    def cell(value: str | Cell) -> str:
        text = latex_escape(value if isinstance(value, str) else value.text)
        return rf"\textbf{{{text}}}" if isinstance(value, Cell) and value.best else text

    frame, numbers = table.frame, len(table.spec.columns)
    texts = frame.map(cell).rename(columns=latex_escape)
    spaced = (frame.Numbers == "paper") & (frame.index > 0)  # a little space before each method
    texts["Method"] = texts.Method.mask(spaced, r"\addlinespace[2pt] " + texts.Method)
    latex = texts.style.hide(axis="index").to_latex(
        position="t",
        position_float="centering",
        hrules=True,
        column_format="l" * (frame.shape[1] - numbers) + "r" * numbers,
        caption=latex_escape(f"{table.spec.title}. {table.footnote}"),
        label=f"tab:{table.number}",
    )
    if frame.shape[1] > 6:
        latex = latex.replace(r"\begin{tabular}", "\\resizebox{\\linewidth}{!}{%\n\\begin{tabular}")
        latex = latex.replace(r"\end{tabular}", r"\end{tabular}}")
    return latex
