"""The course runs as a teacher would run it, from the committed weights alone; its own assertions hold."""

from __future__ import annotations

import base64
import io
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbconvert import SlidesExporter
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from study.executed import LINK, copy_of, executed_stage, linked, sources, stripped
from study.notebook import ThisPython

ROOT = Path(__file__).parent.parent
COURSE = sorted((ROOT / "notebooks" / "course").rglob("*.ipynb"))
LESSONS = [path for path in COURSE if path.parent.name == "course"]
SHOWN = sorted((ROOT / "notebooks").glob("*.ipynb")) + COURSE
MINI_CLIP = ROOT / "models" / "mini_clip"


@pytest.fixture(scope="module")
def kernel() -> Iterator[ThisPython]:
    """One process for all, for what a notebook imports takes long."""
    manager = ThisPython()
    yield manager
    if manager.has_kernel:
        run_sync(manager.shutdown_kernel)(now=True)


def execute(kernel: ThisPython, path: Path, *more: nbformat.NotebookNode, **given: int) -> nbformat.NotebookNode:
    """A notebook that ran where it lies, with parameters given, more cells at its end, and no name of others."""
    book = parameterize_notebook(load_notebook_node(str(path)), given)
    book.cells = [nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {path.parent}"), *book.cells, *more]
    return NotebookClient(book, km=kernel).execute()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_and_its_solutions_run_quickly(path: Path, kernel: ThisPython) -> None:
    for part in (path, path.parent / "solutions" / path.name):
        cells = execute(kernel, part, quick=True).cells
        assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def run_and_keep(kernel: ThisPython, name: str, table: str, folder: Path, **parameters: int) -> pd.DataFrame:
    """Run a notebook that is no stage, and take one of its tables out of it."""
    kept = folder / "kept.csv"
    last = nbformat.v4.new_code_cell(f"{table}.to_csv({str(kept)!r}, index=False)")
    execute(kernel, ROOT / "notebooks" / f"00_{name}.ipynb", last, **parameters)
    return pd.read_csv(kept)


def test_the_notebook_of_costs_runs_and_what_was_measured_is_predicted(tmp_path: Path, kernel: ThisPython) -> None:
    """An H100's seconds and GB to a sixth; the paper's own stage two is missed, and the notebook says by how much."""
    checks = run_and_keep(kernel, "costs", "checks", tmp_path).set_index("what")
    assert (checks.deviation[checks.gpu == "H100"].abs() < 1 / 6).all() and (checks.gpu == "H100").sum() == 4
    assert checks.deviation["stage two, hours (paper)"] == pytest.approx(-0.85, abs=0.03)
    assert abs(checks.deviation["100 masks, CLIP Baseline, s (paper)"]) < 0.25
    assert checks.measured["stage two, hours (paper)"] == 3


def test_the_notebook_of_the_mini_clip_runs_and_it_is_as_good_as_its_card_says(
    tmp_path: Path, kernel: ThisPython
) -> None:
    """Three standard errors at 95 % are 2.2 points, of 874 pictures."""
    assert (MINI_CLIP / "open_clip_model.safetensors").stat().st_size < 10e6
    measured = json.loads((MINI_CLIP / "measured.json").read_text())
    single = run_and_keep(kernel, "mini_clip", "single", tmp_path, scenes=4)
    (claimed,) = (row for row in measured["single things"] if row["attribute"] == "all")
    (found,) = single[single.attribute == "all"].to_dict("records")
    assert found["pictures"] > 800 and found["accuracy"] > claimed["accuracy"] - 2.2


def test_the_notebook_of_the_mini_proposals_runs(tmp_path: Path, kernel: ThisPython) -> None:
    found = run_and_keep(kernel, "mini_proposals", "pd.DataFrame(quality.compute())", tmp_path, pictures=6)
    assert found.value[found.metric.str.startswith("AR")].between(0.3, 1).all()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_three_exercises_and_their_solutions(path: Path) -> None:
    last = nbformat.read(path, as_version=4).cells[-1].source
    assert "## Exercises" in last and "\n3. " in last and f"(solutions/{path.name})" in last
    assert (path.parent / "solutions" / path.name).is_file()


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.stem)
def test_the_committed_copy_of_a_notebook_is_not_stale(path: Path) -> None:
    """Else: python -m study.executed NOTEBOOK."""
    file = ROOT / copy_of(path)
    copy = nbformat.read(file, as_version=4)
    wanted = sources(nbformat.read(path, as_version=4))
    assert sources(copy) == [linked(source, path.relative_to(ROOT)) for source in wanted]
    links = [link for cell in copy.cells for link in LINK.findall(cell.source)]
    assert all((file.parent / link).is_file() for link in links), links
    outputs = [output for cell in copy.cells for output in cell.get("outputs", [])]
    assert any({"image/png", "image/jpeg"} & set(output.get("data", {})) for output in outputs)
    assert file.stat().st_size < 1_000_000 and "PosixPath" not in file.read_text(encoding="utf-8")
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not any(re.search(r"(/home/|/tmp/|/root/|/Users/|\d+%\|)", output.get("text", "")) for output in outputs)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_cut_into_slides(path: Path) -> None:
    """A heading opens a slide; imports stay backstage, pictures do not."""
    for cell in nbformat.read(path, as_version=4).cells:
        kind, last = cell.metadata.slideshow.slide_type, (cell.source.strip().splitlines() or [""])[-1]
        assert kind == "slide" or not cell.source.startswith("#") or cell.cell_type == "code"
        if kind == "skip":
            assert cell.cell_type == "code" and not last.startswith(("pictures(", "figure"))


def test_a_copy_keeps_what_a_reader_wants_and_nothing_of_the_machine() -> None:
    cell = nbformat.v4.new_code_cell("draw()", metadata={"execution": {"iopub.status.busy": "2026"}})
    noisy = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noisy).save(buffer := io.BytesIO(), "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("stream", name="stdout", text="a number"),
        nbformat.v4.new_output("display_data", data={"image/png": png}),
    ]
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"duration": 3}})
    book.metadata |= {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python", "version": "3.99"},
    }
    copy = stripped(nbformat.from_dict(book))
    nbformat.validate(copy)
    assert "papermill" not in copy.metadata and dict(copy.metadata.language_info) == {"name": "python"}
    said, drawn = copy.cells[0].outputs
    assert said.text == "a number" and not copy.cells[0].metadata
    picture = Image.open(io.BytesIO(base64.b64decode(drawn.data["image/png"])))
    assert picture.size == (40, 40) and len(drawn.data["image/png"]) < 0.6 * len(png)


def test_a_large_picture_of_a_copy_becomes_a_jpeg() -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (500, 2200, 3), dtype=np.uint8)
    Image.fromarray(noisy).save(buffer := io.BytesIO(), "PNG")
    drawn = nbformat.v4.new_output("display_data", data={"image/png": base64.b64encode(buffer.getvalue()).decode()})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("draw()", outputs=[drawn])])
    book.metadata |= {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    (output,) = stripped(nbformat.from_dict(book)).cells[0].outputs
    assert list(output.data) == ["image/jpeg"]
    assert Image.open(io.BytesIO(base64.b64decode(output.data["image/jpeg"]))).size == (1000, 227)


def test_a_stages_copy_is_that_of_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = nbformat.v4.new_notebook
    code, said = (
        nbformat.v4.new_code_cell,
        {"language_info": {"name": "python"}, "kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    given = code("seed = 3", metadata={"tags": ["injected-parameters"]})
    ran = tmp_path / "runs" / "mini" / "0" / "notebooks"
    ran.mkdir(parents=True)
    notebook = tmp_path / "02_x.ipynb"
    nbformat.write(new(cells=[code("seed = 0"), code("draw()")], metadata=said), notebook)
    with pytest.raises(ValueError, match=r"no finished run of .*02_x.ipynb is in runs/mini: run the study"):
        executed_stage(notebook, "mini")
    nbformat.write(new(cells=[code("seed = 0"), given, code("old()")], metadata=said), ran / "02_x_mask2former.ipynb")
    with pytest.raises(ValueError, match=r"02_x_mask2former.ipynb ran another text"):
        executed_stage(notebook, "mini")
    nbformat.write(new(cells=[code("seed = 0"), given, code("draw()")], metadata=said), ran / "02_x.ipynb")
    assert executed_stage(notebook, "mini") == Path("runs/mini/0/notebooks/02_x.ipynb")


def test_slides_fit_a_projector() -> None:
    """As `make slides` makes them, in the course's own template."""
    export = SlidesExporter(template_name="slides", extra_template_basedirs=[str(ROOT / "study")])
    page, _ = export.from_filename(str(ROOT / "reports" / "course" / "6_metrics.ipynb"))
    assert "max-height: 310px" in page and page.count("<section") > 15 and "import numpy" not in page
    assert "--template slides --TemplateExporter.extra_template_basedirs=study" in (ROOT / "Makefile").read_text()


def test_every_lesson_is_listed() -> None:
    listed = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    slug = repository.removeprefix("https://github.com/")
    lessons = [f"{slug}/blob/main/{path.relative_to(ROOT)}" for path in LESSONS]
    assert all(f"(https://colab.research.google.com/github/{lesson})" in listed for lesson in lessons)
    assert (
        f"(https://mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/" in listed and f"--depth 1 {repository}\n" in listed
    )
    assert all(f"(../{copy_of(path.relative_to(ROOT))})" in listed for path in SHOWN)
    assert COURSE and [path.name for path in COURSE if f"({path.relative_to(ROOT / 'notebooks')})" not in listed] == []
