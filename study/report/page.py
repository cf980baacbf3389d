"""The HTML report: one file that needs nothing else, pictures included."""

from __future__ import annotations

import base64
import io
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jinja2
import torch
from PIL import Image

from study.report import claims
from study.report.results import Results
from study.report.tables import Table, paper_number, read_data, study_mean

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "accelerate", "pycocotools", "numpy", "pandas")
_LARGE = 700_000  # bytes; larger pictures are re-encoded: the report must be small enough to mail
# The few numbers to remember: scores, and ratios of two methods' scores, with their names.
_SCORES = ((3, "PQ", "PQ, A-150"), (2, "A-150", "mIoU, A-150"))
_RATIOS = (
    (6, "TFLOPs", "clip_baseline", "maskclip", "fewer FLOPs for 100 masks", "than one CLIP pass per mask"),
    (7, "PQ", "maskclip_gt", "maskclip", "PQ with ground-truth masks", "over MaskCLIP on its own proposals"),
)


def render_page(
    results: Results, tables: dict[int, Table], judgements: list[claims.Judgement], figures: dict[str, tuple[Path, str]]
) -> str:
    """The whole report as one HTML text without a single outside address to load from."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(read_data("report.html")).render(
        results=results,
        tables=tables,
        judgements=judgements,
        figures=figures,
        embed=embed_picture,
        rule=claims.RULE,
        counts=claims.count_verdicts(judgements),
        headlines=headlines(results),
        facts=run_facts(results),
        times=results.times.to_dict("records"),
    )


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
    found = []
    for table, column, name in _SCORES:
        best, base = (study_mean(results, table, method, column) for method in ("maskclip", "clip_baseline"))
        paper = ", ".join(f"{paper_number(table, method, column):.1f}" for method in ("maskclip", "clip_baseline"))
        if best == best and base == base:
            detail = f"MaskCLIP; CLIP Baseline {base:.1f} (paper: {paper})"
            found.append({"value": f"{best:.1f}", "name": name, "detail": detail})
    for table, column, a, b, name, detail in _RATIOS:
        above, below = (study_mean(results, table, method, column) for method in (a, b))
        printed = [paper_number(table, method, column) or float("nan") for method in (a, b)]
        if above == above and below > 0:
            detail = f"{detail} (paper: {printed[0] / printed[1]:.3g}×)"
            found.append({"value": f"{above / below:.3g}×", "name": name, "detail": detail})
    return found


def run_facts(results: Results) -> dict[str, str]:
    """What ran: profile, seeds, versions, machine, commit."""
    versions = {"python": platform.python_version()} | {package: metadata.version(package) for package in _PACKAGES}
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    facts = {
        "profile": results.profile,
        "seeds": ", ".join(map(str, results.seeds)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{gpu}",
    }
    return facts | ({"commit": commit} if (commit := _commit()) else {})


def _commit() -> str | None:
    """The commit of the checkout the study runs in, if it is one."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
