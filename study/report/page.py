"""The report as a page, one file that needs nothing else, and as README.md, which a repository's web view renders."""

from __future__ import annotations

import base64
import io
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from maskclip.files import check_folder, write_atomically
from study.methods import NETWORKS
from study.params import PAPER
from study.report import claims, tables
from study.report.figures import draw_figures
from study.report.results import Picture, Results, read_results
from study.run import machine

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "accelerate", "pycocotools", "numpy", "pandas")
_CHIPS = {claims.AGREES: "yes", claims.UNDECIDED: "open", claims.DISAGREES: "no", claims.NOT_JUDGED: "open"}
_LARGE = 150_000  # bytes; larger pictures are re-encoded: the report must be small enough to mail
# The few numbers to remember: table, column, two methods, what it is and, of a ratio of the two, over what.
_HEADLINES = (
    (3, "PQ", "maskclip", "clip_baseline", "panoptic quality (PQ, %), ADE20K's 150 classes (A-150)", ""),
    (2, "A-150", "maskclip", "clip_baseline", "mean intersection over union (mIoU, %), A-150", ""),
    (6, "TFLOPs", "clip_baseline", "maskclip", "fewer operations (FLOPs), 100 masks", "than one CLIP pass per mask"),
    (7, "PQ", "maskclip_gt", "maskclip", "PQ with annotated (ground-truth) masks", "over MaskCLIP's own proposals"),
)


def build_report(
    results_dir: str | Path,
    reports_dir: str | Path,
    seeds: Sequence[int] | None = None,
    reasons: str | Path | None = None,
    published: str | Path | None = None,
    departures: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Path:
    """Write the report on results/<profile> into a folder; return the HTML page's path.

    Written: index.html, and the same as README.md; tables/table<2..9>.{csv,md,tex}; claims.{csv,md,tex} and
    comparisons.csv; figures/*.png and pictures/*.png; metrics.json and plots/*.csv for `dvc metrics show`
    and `dvc plots show`.

    Args:
        seeds: leaves other seeds' results out.
        reasons: a YAML file of what people found out; None: `reports_dir/reasons.yaml`.
        published: claims.csv of a report over many seeds, whose verdicts stand beside what one seed cannot judge.
        departures: settings other than the paper's (`study.params.deviations`), which the page's first screen names.
        also: more formats of the charts, "svg" or "pdf".

    Raises:
        FileNotFoundError, ValueError: as read_results and read_reasons; no file `reasons`; `reports_dir` is a file.
    """
    out = check_folder(Path(reports_dir))
    if reasons is not None and not Path(reasons).is_file():
        raise FileNotFoundError(f"there is no file of reasons {reasons}")
    results = read_results(results_dir, seeds)
    departures = [*departures, *_other_trainings(results, departures)]
    found = claims.read_reasons(reasons or out / "reasons.yaml", results.profile, len(results.seeds))
    judged = claims.judge_claims(results, found, claims.read_verdicts(published))
    built = {number: tables.build_table(results, number, found.get(f"Table {number}", "")) for number in tables.TABLES}
    for picture in results.pictures:
        write_atomically(out / "pictures" / picture.path.name, partial(shutil.copyfile, picture.path))
    charts = draw_figures(results, judged, out / "figures", also)
    texts = claims.claims_files(judged) | _pages(results, built, judged, charts, departures, out)
    for number, table in built.items():
        texts[f"plots/table{number}.csv"] = tables.to_plots(table)
        texts[f"tables/table{number}.csv"] = tables.to_csv(table)
        texts[f"tables/table{number}.md"] = tables.to_markdown(table)
        texts[f"tables/table{number}.tex"] = tables.to_latex(table)
    for name, content in texts.items():
        write_atomically(out / name, partial(Path.write_text, data=content, encoding="utf-8"))
    return out / "index.html"


def _pages(
    results: Results, built: dict[int, tables.Table], judgements: list[claims.Judgement], charts: dict[str, Picture],
    departures: Sequence[str], out: Path,
) -> dict[str, str]:  # fmt: skip
    """One text (report.md) twice: README.md as a repository's web view renders it, and index.html, whole in itself."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    number_table: Any = environment.get_template("table.html").module
    pictures = [replace(p, path=out / "pictures" / p.path.name) for p in results.pictures]
    kinds = {kind: [p for p in pictures if p.path.name.startswith(kind)] for kind in ("scene", "fig")}
    others = [p for p in pictures if p not in kinds["scene"] + kinds["fig"]]
    listed = pd.read_csv(folder / "table1.csv")
    root = os.path.relpath(".", out) if out.resolve().is_relative_to(Path.cwd()) else ""

    def link(path: Path) -> str:
        return path.relative_to(out).as_posix()

    def marked(text: str) -> Markup:
        return Markup(text)

    def written(web: bool) -> str:
        def picture(p: Picture) -> Markup:
            if web:
                shown = '<figure><div class="scroll"><img src="{}" alt="{}"></div><figcaption>{}</figcaption></figure>'
                return Markup(shown).format(embed_picture(p.path), p.alt, p.caption) + "\n\n"
            return Markup("![{}]({})\n\n{}\n\n").format(p.alt, link(p.path), p.caption)

        return environment.get_template("report.md").render(
            web=web, results=results, judgements=judgements, tables=built, departures=departures, root=root,
            chips=_CHIPS, counts=claims.count_verdicts(judgements), rule=claims.RULE, headlines=_headlines(results),
            facts=_run_facts(results, departures), times=results.times.to_dict("records"), scene=kinds["scene"],
            schemes=kinds["fig"], pictures=others, link=link, embed=embed_picture, picture=picture,
            chart=lambda name: picture(charts[name]) if name in charts else "",
            claim_table=lambda judged: marked(claims.comparison_table(judged)),
            number_table=number_table.number_table if web else lambda table: marked(tables.cells_markdown(table)),
            table1=marked(tables.markdown(listed)), table1_note=tables.TABLE_1,
        )  # fmt: skip

    body = MarkdownIt("commonmark").enable("table").render(written(web=True))
    page = environment.get_template("report.html").render(body=marked(body), tables=built, pictures=others)
    return {"README.md": written(web=False), "index.html": page}


def _other_trainings(results: Results, departures: Sequence[str]) -> list[str]:
    """Trainings whose curves are not of the paper's length and that no departure names.

    The profile has changed since, or the results come from elsewhere.
    """
    found = []
    for name, curve in results.curves.groupby("method") if len(results.curves) else ():
        network = NETWORKS.get(str(name))
        where = f"proposals.{network.settings}" if network else "maskclip"
        setting = f"{where}.training" if network else where
        if any(one.startswith(f"{setting}.steps ") for one in departures):
            continue
        section: Any = PAPER.get(where)
        papers: Any = PAPER[setting] if setting in PAPER else section.training
        if (steps := int(curve.step.max()) + 1) != papers.steps:
            found.append(f"{name} was trained for {steps} steps, the paper's {papers.steps}")
    return found


def embed_picture(path: Path) -> str:
    """A picture as a `data:` address; a large one is scaled to 1600 pixels and stored as WebP."""
    data, kind = path.read_bytes(), "png" if path.suffix.lower() == ".png" else "jpeg"
    if len(data) > _LARGE:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((1600, 1600 * small.height))
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=88, method=6)
        data, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _headlines(results: Results) -> list[dict[str, str]]:
    """The few numbers to remember; those that were not measured are left out."""
    found = []
    for table, column, a, b, name, ratio in _HEADLINES:
        ours, other = (tables.study_mean(results, table, method, column) for method in (a, b))
        paper, papers_other = (tables.paper_number(table, method, column) for method in (a, b))
        if ratio and other > 0 and ours == ours:
            detail = f"{ratio} (paper: {paper / papers_other:.3g}×)"
            found.append({"value": f"{ours / other:.3g}×", "name": name, "detail": detail})
        elif not ratio and ours == ours and other == other:
            detail = f"MaskCLIP; CLIP Baseline {other:.1f} (paper: {paper:.1f}, {papers_other:.1f})"
            found.append({"value": f"{ours:.1f}", "name": name, "detail": detail})
    return found


def _run_facts(results: Results, departures: Sequence[str]) -> dict[str, str]:
    """What ran: profile, seeds, versions, machine and, in a checkout, the commit."""
    versions = {"python": platform.python_version()} | {package: metadata.version(package) for package in _PACKAGES}
    facts = {
        "profile": results.profile + (f", {len(departures)} values not the paper's" if departures else ""),
        "seeds": ", ".join(map(str, results.seeds)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "this page was made on": machine(),
    }
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, check=True, timeout=10)
        facts["commit"] = said.stdout.decode().strip()
    return facts
