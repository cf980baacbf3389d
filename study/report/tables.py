"""Tables 2 to 9 of the paper: its numbers, the study's beside them, as CSV, Markdown, LaTeX and HTML cells."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from study.report.results import METHODS, Results, interval

DASH = "–"  # a result that is not there


@dataclass(frozen=True)
class TableSpec:
    """What one of the paper's tables holds.

    rows: label -> (method, proposals or None for the default); None marks a cited system.
    columns: label -> (data set, metric); the data set `efficiency` means Results.cost.
    notes: label -> text of one extra column headed `notes_head`.
    """

    number: int
    title: str
    rows: dict[str, tuple[str, str | None] | None]
    columns: dict[str, tuple[str, str]]
    digits: int = 1
    notes_head: str = ""
    notes: dict[str, str] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Cell:
    """One number of a rendered table: its text, and for the study its mean, 95 % half-width and number of seeds."""

    text: str = DASH
    mean: float = float("nan")
    half: float = float("nan")
    seeds: int = 0
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a rendered table; `source` is `paper`, `paper (cited)` or `study`."""

    label: str
    note: str
    source: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, filled: the paper's rows, and the study's beside them."""

    spec: TableSpec
    lines: tuple[Line, ...]
    remark: str = ""

    @property
    def head(self) -> list[str]:
        """The columns' titles."""
        notes = [self.spec.notes_head] if self.spec.notes_head else []
        return ["Method", *notes, "Numbers", *self.spec.columns]

    @property
    def caption(self) -> str:
        """Its number in the paper and its title."""
        return f"Table {self.spec.number}. {self.spec.title}"


def _own(*methods: str) -> dict[str, tuple[str, str | None] | None]:
    return {METHODS[method]: (method, None) for method in methods}


_FOUR = ("clip_baseline", "wo_rma", "maskclip_maskrcnn", "maskclip")
_PQ = {m: ("a150", m) for m in ("PQ", "PQth", "PQst", "SQ", "SQth", "SQst", "RQ", "RQth", "RQst")}
_MASKS, _LABELS = "masks", "masks + labels"

TABLES: dict[int, TableSpec] = {
    spec.number: spec
    for spec in (
        TableSpec(
            2,
            "Open-vocabulary semantic segmentation, mIoU (%)",
            {**dict.fromkeys(("ALIGN", "ALIGN w/ proposals", "LSeg+", "OpenSeg", "SimSeg")), **_own(*_FOUR)},
            {name: (name.replace("-", "").lower(), "mIoU") for name in ("A-150", "A-847", "P-459", "P-59")},
            notes_head="COCO training data",
            notes={
                "ALIGN": "none",
                "ALIGN w/ proposals": _MASKS,
                "LSeg+": _LABELS,
                "OpenSeg": "masks + captions",
                "SimSeg": _LABELS,
                "CLIP Baseline": _MASKS,
                "MaskCLIP w/o RMA": _MASKS,
                "MaskCLIP (Mask R-CNN)": _LABELS,
                "MaskCLIP": _LABELS,
            },
        ),
        TableSpec(3, "Open-vocabulary panoptic segmentation, ADE20K (A-150), in %", _own(*_FOUR), _PQ),
        TableSpec(
            4,
            "Instance segmentation across data sets, AP (%)",
            _own(*_FOUR),
            {
                f"{name} {metric}": (dataset, metric)
                for name, dataset in (("ADE20K", "a150"), ("LVIS", "lvis"))
                for metric in ("AP", "AP50", "AP75")
            },
        ),
        TableSpec(
            5,
            "Instance segmentation, COCO split (48 base, 17 target classes in the paper), AP50 (%)",
            {**dict.fromkeys(("Soft-Teacher", "Unbiased-Teacher", "XPM")), "MaskCLIP": ("maskclip_split", None)},
            {
                f"{setting} {group}": ("coco_split", f"AP50_{setting}_{group}")
                for setting, group in (
                    ("constrained", "base"),
                    ("constrained", "target"),
                    ("generalized", "base"),
                    ("generalized", "target"),
                    ("generalized", "all"),
                )
            },
            remark="Target classes are never trained on.",
        ),
        TableSpec(
            6,
            "Cost of the features of 100 masks of one image",
            {
                "RegionCLIP": ("regionclip", None),
                "ZegFormer": ("zegformer", None),
                "SimSeg": ("simseg", None),
                "CLIP Baseline": ("clip_baseline", None),
                "MaskCLIP w/o RMA": ("wo_rma", None),
                "MaskCLIP": ("maskclip", None),
            },
            {
                "TFLOPs": ("efficiency", "tflops"),
                "seconds": ("efficiency", "time_s"),
                "peak GB": ("efficiency", "peak_gb"),
            },
            digits=2,
            remark="Paper: TFLOPs of ViT-L/14 at 640x640, seconds on an RTX 3090 (Sec. 4.3). CLIP Baseline: one "
            "or two masks timed, scaled to 100 where that is long. RegionCLIP, ZegFormer, SimSeg: a CLIP pass a crop.",
        ),
        TableSpec(
            7,
            "Ground-truth masks as proposals, ADE20K (A-150), in %",
            {
                "OpenSeg": None,
                "MaskCLIP": ("maskclip", None),
                "OpenSeg + GT masks": None,
                "MaskCLIP + GT masks": ("maskclip", "ground_truth"),
            },
            {"PQ": ("a150", "PQ"), "mIoU": ("a150", "mIoU")},
        ),
        TableSpec(
            8,
            "Mask refinement (MR), ADE20K (A-150), in %",
            _own("wo_refinement", "maskclip"),
            {metric: _PQ[metric] for metric in ("PQ", "PQth", "PQst", "SQ", "SQth", "SQst")},
        ),
        TableSpec(
            9,
            "Which layers carry Relative Mask Attention, ADE20K (A-150), in %",
            {**_own("layers_1_7_13_19", "layers_3_9_15_21", "layers_21_22_23_24"), "6, 12, 18, 24": ("maskclip", None)},
            {metric: _PQ[metric] for metric in ("PQ", "PQth", "PQst")},
            remark="Layers as the paper counts them, of 24; a ViT of another depth has RMA at the same fractions.",
        ),
    )
}


_NO_BEST = (5, 6, 7)  # nothing to win there: one row of ours, a cost, or masks given away


@cache
def paper_numbers() -> dict[tuple[int, str, str], str]:
    """(table, row, column) -> the number as the paper prints it."""
    text = resources.files(__package__).joinpath("paper_numbers.csv").read_text(encoding="utf-8")
    return {(int(r["table"]), r["row"], r["column"]): r["value"] for r in csv.DictReader(io.StringIO(text))}


def study_values(results: Results, number: int, row: str, column: str) -> pd.Series:
    """The study's values of one cell of one of the paper's tables, by seed; empty if cited or not measured."""
    spec = TABLES[number]
    if (own := spec.rows[row]) is None:
        return pd.Series(dtype=float)
    dataset, metric = spec.columns[column]
    if dataset == "efficiency":
        return results.cost(own[0], metric)
    return results.score(own[0], dataset, metric, own[1])


def build_table(results: Results, number: int, found: str = "") -> Table:
    """Table `number` (2 to 9): for each row a line of the paper's numbers and, unless cited, one of the study's. What
    people `found` out about it (see claims.read_reasons) follows in its footnote."""
    spec, paper = TABLES[number], paper_numbers()
    study = {(row, column): study_values(results, number, row, column) for row in spec.rows for column in spec.columns}
    best = (
        {}
        if number in _NO_BEST
        else {
            column: max((interval(study[row, column])[0] for row in spec.rows if len(study[row, column])), default=None)
            for column in spec.columns
        }
    )
    lines = []
    for row, own in spec.rows.items():
        note = (spec.notes or {}).get(row, "")
        printed = tuple(Cell(paper.get((number, row, column), DASH)) for column in spec.columns)
        cited = own is None or own[0] in ("regionclip", "zegformer", "simseg")
        lines.append(Line(row, note, "paper (cited)" if cited else "paper", printed))
        if own is not None:
            cells = (_study_cell(study[row, c], spec.digits, best.get(c)) for c in spec.columns)
            lines.append(Line(row, note, "study", tuple(cells)))
    measured = {
        label: results.cost_model(metric) for label, (data, metric) in spec.columns.items() if data == "efficiency"
    }
    models = ", ".join(f"{label} with {model}" for label, model in measured.items() if model)
    return Table(spec, tuple(lines), " ".join(filter(None, [spec.remark, models and f"Study: {models}.", found])))


def _study_cell(values: pd.Series, digits: int, best: float | None) -> Cell:
    if len(values) == 0:
        return Cell()
    mean, half = interval(values)
    text = f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else "")
    return Cell(text, mean, half, len(values), best is not None and mean == best)


def to_csv(table: Table) -> str:
    """Tidy: one line per method and source; study columns in full precision with `±` and `seeds` beside them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = list(table.spec.columns)
    writer.writerow(["method", "numbers", *(f"{c}{end}" for c in columns for end in ("", " ±", " seeds"))])
    for line in table.lines:
        values: list[object] = []
        for cell in line.cells:
            study = line.source == "study" and cell.seeds
            values += (
                [f"{cell.mean:.4f}", f"{cell.half:.4f}" if cell.half == cell.half else "", cell.seeds]
                if study
                else ["" if cell.text == DASH else cell.text, "", ""]
            )
        writer.writerow([line.label, line.source, *values])
    return out.getvalue()


def _row(table: Table, line: Line) -> list[str]:
    return [line.label, *([line.note] if table.spec.notes_head else []), line.source]


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown: caption, cells, footnote; the study's best numbers bold."""

    def text(cell: Cell) -> str:
        return f"**{cell.text}**" if cell.best else cell.text

    lines = [
        f"**{table.caption}**",
        "",
        markdown_row(table.head),
        markdown_row(["---"] * len(_row(table, table.lines[0])) + ["---:"] * len(table.spec.columns)),
    ]
    lines += [markdown_row([*_row(table, line), *map(text, line.cells)]) for line in table.lines]
    return "\n".join([*lines, "", footnote(table), ""])


def markdown_row(cells: list[str]) -> str:
    """One row of a Markdown table, with bars in the cells escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def footnote(table: Table) -> str:
    """What the numbers are, and how many seeds stand behind the study's."""
    counts = sorted({cell.seeds for line in table.lines for cell in line.cells if cell.seeds})
    if not counts:
        return " ".join(filter(None, [table.remark, f"No result of the study yet ({DASH})."]))
    if table.spec.number == 6:
        seeds = "one measurement each"
    elif counts == [1]:
        seeds = "one seed, so no interval"
    else:
        seeds = f"mean over {' or '.join(map(str, counts))} seeds ± half-width of the 95 % interval (t distribution)"
    bold = "" if table.spec.number in _NO_BEST else "bold: the study's best; "
    cited = any(line.source == "paper (cited)" for line in table.lines) and table.spec.number != 6
    source = "Cited: the paper's numbers, not run here." if cited else ""
    return " ".join(filter(None, [table.remark, f"Study: {seeds}; {bold}{DASH}: not measured.", source]))


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "≥": r"$\geq$",
    ">": r"$>$",
    "<": r"$<$",
    "≈": r"$\approx$",
    "−": r"$-$",
    "→": r"$\to$",
}


def latex_escape(text: str) -> str:
    """Plain text as LaTeX shows it."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    r"""A `table` environment with booktabs rules; needs `\usepackage{booktabs}` and, for wide ones, `graphicx`."""
    wide = len(table.spec.columns) > 4
    align = "l" * len(_row(table, table.lines[0])) + "r" * len(table.spec.columns)
    body = []
    for i, line in enumerate(table.lines):
        if i and line.label != table.lines[i - 1].label and line.source == "paper":
            body.append(r"\addlinespace[2pt]")
        cells = [rf"\textbf{{{latex_escape(c.text)}}}" if c.best else latex_escape(c.text) for c in line.cells]
        body.append(" & ".join([*map(latex_escape, _row(table, line)), *cells]) + r" \\")
    caption = f"{table.spec.title}. {footnote(table)}"
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_escape(caption)}}}",
            rf"\label{{tab:{table.spec.number}}}",
            *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(map(latex_escape, table.head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            r"\end{table}",
            "",
        ]
    )
