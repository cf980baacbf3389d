"""The HTML report: one file that needs nothing else, pictures included."""

from __future__ import annotations

import base64
import io
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from maskclip.files import write_atomically
from study.methods import NETWORKS
from study.params import PAPER
from study.report import claims, tables
from study.report.figures import draw_figures
from study.report.results import Results, read_results

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "accelerate", "pycocotools", "numpy", "pandas")
_LARGE = 700_000  # bytes; larger pictures are re-encoded: the report must be small enough to mail
# The few numbers to remember: table, column, two methods, what it is and, of a ratio of the two, over what.
_HEADLINES = (
    (3, "PQ", "maskclip", "clip_baseline", "PQ, A-150", ""),
    (2, "A-150", "maskclip", "clip_baseline", "mIoU, A-150", ""),
    (6, "TFLOPs", "clip_baseline", "maskclip", "fewer FLOPs for 100 masks", "than one CLIP pass per mask"),
    (7, "PQ", "maskclip_gt", "maskclip", "PQ with ground-truth masks", "over MaskCLIP on its own proposals"),
)


def build_report(
    results_dir: str | Path,
    reports_dir: str | Path,
    seeds: Sequence[int] | None = None,
    reasons: str | Path | None = None,
    published: str | Path | None = None,
    departures: Sequence[str] = (),
) -> Path:
    """Write the report on results/<profile> into a folder; return the HTML page's path.

    Written: index.html; tables/table<2..9>.{csv,md,tex}; claims.{csv,md,tex} and comparisons.csv; figures/*.png and
    pictures/*.png; metrics.json and plots/*.csv for `dvc metrics show` and `dvc plots show`.

    Args:
        seeds: leaves other seeds' results out.
        reasons: a YAML file of what people found out; None: `reports_dir/reasons.yaml`.
        published: claims.csv of a report over many seeds, whose verdicts stand beside what one seed cannot judge.
        departures: settings other than the paper's (`study.params.deviations`), which the page's first screen names.

    Raises:
        FileNotFoundError, ValueError: as read_results and read_reasons; no file `reasons`.
    """
    if reasons is not None and not Path(reasons).is_file():
        raise FileNotFoundError(f"there is no file of reasons {reasons}")
    out, results = Path(reports_dir), read_results(results_dir, seeds)
    departures = [*departures, *_other_trainings(results, departures)]
    found = claims.read_reasons(reasons or out / "reasons.yaml", results.profile, len(results.seeds))
    judged = claims.judge_claims(results, found, claims.read_verdicts(published))
    built = {number: tables.build_table(results, number, found.get(f"Table {number}", "")) for number in tables.TABLES}
    figures = draw_figures(results, judged, out / "figures")
    texts = claims.claims_files(judged) | {"index.html": _page(results, built, judged, figures, departures)}
    for number, table in built.items():
        texts[f"plots/table{number}.csv"] = tables.to_plots(table)
        texts[f"tables/table{number}.csv"] = tables.to_csv(table)
        texts[f"tables/table{number}.md"] = tables.to_markdown(table)
        texts[f"tables/table{number}.tex"] = tables.to_latex(table)
    for name, content in texts.items():
        write_atomically(out / name, partial(Path.write_text, data=content, encoding="utf-8"))
    for picture, _ in results.pictures:
        write_atomically(out / "pictures" / picture.name, partial(shutil.copyfile, picture))
    return out / "index.html"


def _page(
    results: Results, built: dict[int, tables.Table], judgements: list[claims.Judgement], figures: dict,
    departures: Sequence[str],
) -> str:  # fmt: skip
    """The whole report as one HTML text without a single outside address to load from."""
    text, undefined = tables.read_data("report.html"), jinja2.StrictUndefined
    page = jinja2.Template(text, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=undefined)
    counts, times = claims.count_verdicts(judgements), results.times.to_dict("records")
    said = {"rule": claims.RULE, "counts": counts, "headlines": _headlines(results), "facts": _run_facts(results)}
    shown = {"judgements": judgements, "tables": built, "figures": figures, "times": times}
    return page.render(results=results, embed=embed_picture, departures=departures, **said, **shown)


def _other_trainings(results: Results, departures: Sequence[str]) -> list[str]:
    """Trainings whose curves are not of the paper's length and that no departure names: the profile has changed since,
    or the results come from elsewhere."""
    found = []
    for name, curve in results.curves.groupby("method"):
        where = f"proposals.{NETWORKS[name].settings}" if name in NETWORKS else "maskclip"
        setting, section = (f"{where}.training", "training") if name in NETWORKS else (where, "")
        if where not in PAPER or any(one.startswith(f"{setting}.steps ") for one in departures):
            continue
        papers: Any = getattr(PAPER[where], section) if section else PAPER[where]
        if (steps := int(curve.step.max()) + 1) != papers.steps:
            found.append(f"{name} was trained for {steps} steps, the paper's {papers.steps}")
    return found


def embed_picture(path: Path) -> str:
    """A picture as a `data:` address; a large one is scaled to 1800 pixels and stored as JPEG."""
    data, kind = path.read_bytes(), "png" if path.suffix.lower() == ".png" else "jpeg"
    if len(data) > _LARGE:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((1800, 1800 * small.height))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        data, kind = buffer.getvalue(), "jpeg"
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


def _run_facts(results: Results) -> dict[str, str]:
    """What ran: profile, seeds, versions, machine and, in a checkout, the commit."""
    versions = {"python": platform.python_version()} | {package: metadata.version(package) for package in _PACKAGES}
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    facts = {
        "profile": results.profile,
        "seeds": ", ".join(map(str, results.seeds)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{gpu}",
    }
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, check=True, timeout=10)
        facts["commit"] = said.stdout.decode().strip()
    return facts
