"""Tables 2 to 9 of the paper, the study's numbers beside its own: CSV, Markdown, LaTeX, cells."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from importlib import resources

import pandas as pd
from ruamel.yaml import YAML

from study.methods import METHODS, Method, rows_of
from study.report.results import Results, interval

DASH = "–"  # a result that is not there


@dataclass(frozen=True)
class TableSpec:
    """What one of the paper's tables holds, see tables.yaml."""

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


TABLE_1 = (
    "As the paper's Table 1, without its three columns of ticks (arbitrary inference, semantic or instance "
    "segmentation, dense CLIP features): the text of the paper that the study worked from does not hold them. In its "
    "prose: XPM and LSeg are open to new words in a limited way; OpenSeg could do instances and panoptics but "
    "reports none, and builds on ALIGN in place of CLIP. None of these was run here."
)
TABLES = {number: TableSpec(**parts) for number, parts in YAML(typ="safe").load(read_data("tables.yaml")).items()}
# (table, row, column) -> the number as the paper prints it
PAPER_NUMBERS = {
    (int(line["table"]), line["row"], line["column"]): line["value"]
    for line in csv.DictReader(read_data("paper_numbers.csv").splitlines())
}


@dataclass(frozen=True)
class Cell:
    """One number of a table, with its 95 % half-width."""

    text: str = DASH
    mean: float = float("nan")
    half: float = float("nan")
    seeds: int = 0
    best: bool = False


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, filled. `frame` has `Method`, in Table 2 `COCO training data`, and `Numbers`
    (`paper`, `paper (cited)` or `study`) as texts, then a Cell a column."""

    number: int
    spec: TableSpec
    frame: pd.DataFrame
    footnote: str


def paper_number(number: int, method: str, column: str) -> float:
    """A number of the paper, of a method of METHODS; NaN where it prints none."""
    return float(PAPER_NUMBERS.get((number, METHODS[method].label_in(number), column), "nan"))


def study_values(results: Results, number: int, method: str, column: str) -> pd.Series:
    """The study's values of one cell of a table, by seed; empty if not measured."""
    dataset, metric = TABLES[number].columns[column]
    return results.cost(method, metric) if dataset == "efficiency" else results.score(method, dataset, metric)


def study_mean(results: Results, number: int, method: str, column: str) -> float:
    """The mean of `study_values`; NaN if not measured."""
    return interval(study_values(results, number, method, column))[0]


def table_rows(number: int) -> dict[str, Method | None]:
    """Label -> method (None: a system the paper cites), in the paper's order, new rows last."""
    printed, own = (row for table, row, _ in PAPER_NUMBERS if table == number), rows_of(number)
    return {row: own.get(row) for row in (*printed, *own)}


def is_shown(results: Results, number: int, method: Method) -> bool:
    """Whether a method has a row for the study's numbers: one evaluated as published is of the released profile."""
    columns = TABLES[number].columns
    return not method.as_published or any(len(study_values(results, number, method.id, one)) for one in columns)


def build_table(results: Results, number: int, found: str = "") -> Table:
    """Table `number` (2 to 9) with the paper's numbers and the study's; `found`: what people found out, for below."""
    spec, lines = TABLES[number], []
    rows, columns = table_rows(number), list(spec.columns)
    own = {m.id: [study_values(results, number, m.id, column) for column in columns] for m in rows.values() if m}
    best = pd.DataFrame(own).map(lambda values: interval(values)[0]).max(axis=1)
    for row, method in rows.items():
        note = method.supervision if method else spec.supervision.get(row, "")
        printed = [Cell(PAPER_NUMBERS.get((number, row, column), DASH)) for column in columns]
        if any(cell.text != DASH for cell in printed):
            lines.append([row, note, "paper" if method and method.network else "paper (cited)", *printed])
        if method and is_shown(results, number, method):
            cells = [_study_cell(values, spec, top) for values, top in zip(own[method.id], best)]
            lines.append([row, note, "study", *cells])
    frame = pd.DataFrame(lines, columns=["Method", "COCO training data", "Numbers", *columns])
    frame = frame if number == 2 else frame.drop(columns="COCO training data")
    costs = {c: results.cost_model(metric) for c, (dataset, metric) in spec.columns.items() if dataset == "efficiency"}
    models = "; ".join(
        f"{column} with {model}, on {results.cost_machine(spec.columns[column][1]) or 'a machine that was not noted'}"
        for column, model in costs.items()
        if model
    )
    notes = (spec.remark, models and f"Study: {models}.", found, _what_numbers_are(number, frame))
    return Table(number, spec, frame, " ".join(filter(None, notes)))


def _what_numbers_are(number: int, frame: pd.DataFrame) -> str:
    """What stands in a table, and how many seeds stand behind the study's numbers."""
    counts = sorted({cell.seeds for cell in frame[list(TABLES[number].columns)].to_numpy().flat if cell.seeds})
    if not counts:
        return f"No result of the study yet ({DASH})."
    seeds = f"mean over {' or '.join(map(str, counts))} seeds ± half-width of the 95 % interval (t distribution)"
    if number == 6:
        seeds = "one measurement each"
    elif counts == [1]:
        seeds = "one seed, so no interval"
    bold = "bold: the study's best; " if TABLES[number].contest else ""
    cited = "paper (cited)" in set(frame.Numbers) and number != 6
    source = " Cited: the paper's numbers, not run here." if cited else ""
    return f"Study: {seeds}; {bold}{DASH}: not measured.{source}"


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
        cells = table.frame[column]
        parts[column] = cells.map(lambda cell: f"{cell.mean:.4f}" if cell.seeds else cell.text.replace(DASH, ""))
        parts[f"{column} ±"] = cells.map(lambda cell: f"{cell.half:.4f}" if cell.half == cell.half else "")
        parts[f"{column} seeds"] = cells.map(lambda cell: cell.seeds or "")
    return plain_csv(pd.DataFrame(parts))


def to_plots(table: Table) -> str:
    """The study's rows, means over seeds, as `dvc plots show` draws them."""
    study = table.frame[table.frame.Numbers == "study"]
    means = study[list(table.spec.columns)].map(lambda cell: round(cell.mean, 4)).dropna(axis=1, how="all")
    means.insert(0, "method", study.Method)
    return plain_csv(means)


def plain_csv(frame: pd.DataFrame) -> str:
    """The same text on every system."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown: caption, cells, footnote; the study's best numbers bold."""
    return f"**Table {table.number}. {table.spec.title}**\n\n{cells_markdown(table)}\n\n{table.footnote}\n"


def cells_markdown(table: Table) -> str:
    """The table's cells alone."""
    frame = table.frame.map(lambda v: v if isinstance(v, str) else f"**{v.text}**" if v.best else v.text)
    return markdown(frame, len(table.spec.columns))


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
