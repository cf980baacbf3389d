"""The course runs as a teacher would run it, from the committed weights alone; its own assertions hold."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

from study.executed import sources, stripped

ROOT = Path(__file__).parent.parent
COURSE = sorted((ROOT / "notebooks" / "course").rglob("*.ipynb"))


@pytest.mark.parametrize("path", COURSE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_lesson_runs_quickly(path: Path, tmp_path: Path) -> None:
    papermill.execute_notebook(path, tmp_path / path.name, {"quick": True}, cwd=path.parent, progress_bar=False)
    cells = nbformat.read(tmp_path / path.name, as_version=4).cells
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", [p for p in COURSE if p.parent.name == "course"], ids=lambda path: path.stem)
def test_a_lesson_has_three_exercises_and_their_solutions(path: Path) -> None:
    last = nbformat.read(path, as_version=4).cells[-1].source
    assert "## Exercises" in last and "\n3. " in last and f"(solutions/{path.name})" in last
    assert (path.parent / "solutions" / path.name).is_file()


@pytest.mark.parametrize("path", [p for p in COURSE if p.parent.name == "course"], ids=lambda path: path.stem)
def test_the_committed_copy_of_a_lesson_is_not_stale(path: Path) -> None:
    """Else: python -m study.executed LESSON."""
    file = ROOT / "reports" / "course" / path.name
    copy = nbformat.read(file, as_version=4)
    assert sources(copy) == sources(nbformat.read(path, as_version=4))
    outputs = [output for cell in copy.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs) and file.stat().st_size < 1_000_000
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not any(re.search(r"(/home/|/tmp/|/root/|/Users/|\d+%\|)", output.get("text", "")) for output in outputs)


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


def test_every_lesson_is_listed() -> None:
    listed = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert COURSE and [path.name for path in COURSE if f"({path.relative_to(ROOT / 'notebooks')})" not in listed] == []
