"""The HTML report: one file that needs nothing else, pictures included."""

from __future__ import annotations

import base64
import io
import os
import platform
import subprocess
from collections.abc import Hashable
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from study.report import claims
from study.report.results import Results, interval
from study.report.tables import Table, footnote, paper_numbers, study_values

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "accelerate", "pycocotools", "numpy", "pandas")
_LARGE = 700_000  # bytes; larger pictures are re-encoded, so that the report stays small enough to be mailed


def render_page(
    results: Results, tables: dict[int, Table], judgements: list[claims.Judgement], figures: dict[str, tuple[Path, str]]
) -> str:
    """The whole report as one HTML text without a single outside address to load from."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"footnote": footnote, "embed": embed_picture}
    verdicts = [j.verdict for j in judgements]
    return environment.get_template("report.html").render(
        results=results,
        tables=tables,
        judgements=judgements,
        figures=figures,
        rule=claims.RULE,
        counts={v: verdicts.count(v) for v in (claims.AGREES, claims.UNDECIDED, claims.DISAGREES)},
        headlines=headlines(results),
        facts=run_facts(results),
        times=stage_times(results),
    )


def _template(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


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


def headlines(results: Results) -> list[dict[str, str]]:
    """The few numbers to remember; those that were not measured are left out."""

    def mean(table: int, row: str, column: str) -> float:
        return interval(study_values(results, table, row, column))[0]

    def paper(table: int, row: str, column: str) -> float:
        return float(paper_numbers()[table, row, column])

    found = []
    for table, column, name in ((3, "PQ", "PQ, A-150"), (2, "A-150", "mIoU, A-150")):
        best, base = mean(table, "MaskCLIP", column), mean(table, "CLIP Baseline", column)
        if best == best and base == base:
            found.append(
                {
                    "value": f"{best:.1f}",
                    "name": name,
                    "detail": f"MaskCLIP; CLIP Baseline {base:.1f} (paper: {paper(table, 'MaskCLIP', column):.1f}, "
                    f"{paper(table, 'CLIP Baseline', column):.1f})",
                }
            )
    ratios = (
        (
            6,
            ("CLIP Baseline", "TFLOPs"),
            ("MaskCLIP", "TFLOPs"),
            "fewer FLOPs for 100 masks",
            "than one CLIP pass per mask",
        ),
        (
            7,
            ("MaskCLIP + GT masks", "PQ"),
            ("MaskCLIP", "PQ"),
            "PQ with ground-truth masks",
            "over MaskCLIP on its own proposals",
        ),
    )
    for table, a, b, name, detail in ratios:
        value = mean(table, *a) / mean(table, *b) if mean(table, *b) else float("nan")
        if value == value:
            printed = paper(table, *a) / paper(table, *b)
            found.append({"value": f"{value:.3g}×", "name": name, "detail": f"{detail} (paper: {printed:.3g}×)"})
    return found


def run_facts(results: Results) -> dict[str, str]:
    """What ran: profile, seeds, versions, machine, commit."""
    versions = {"python": platform.python_version()} | {p: v for p in _PACKAGES if (v := _version(p))}
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    facts = {
        "profile": results.profile,
        "seeds": ", ".join(map(str, results.seeds)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{gpu}",
    }
    if commit := _commit():
        facts["commit"] = commit
    return facts


def stage_times(results: Results) -> list[dict[Hashable, Any]]:
    """Stage, seconds (mean over seeds) and peak memory in GB."""
    return results.times.to_dict("records")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout the study runs in, if it is one."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
