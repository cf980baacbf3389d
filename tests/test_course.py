"""The course runs as a teacher would run it, from the committed weights alone; its own assertions hold."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest

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


def test_every_lesson_is_listed() -> None:
    listed = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert COURSE and [path.name for path in COURSE if f"({path.relative_to(ROOT / 'notebooks')})" not in listed] == []
