"""Executed copies of the course's lessons, for those who look at the repository and run nothing.

python -m study.executed [LESSON.ipynb ...]

writes `reports/course/LESSON.ipynb`, pictures in it; without names, of all lessons.
"""

from __future__ import annotations

import argparse
import base64
import io
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbformat import NotebookNode
from PIL import Image

from maskclip.files import write_atomically
from study import errors_as_sentences
from study.notebook import run_notebook

LESSONS, COPIES = Path("notebooks/course"), Path("reports/course")
COLOURS = 128  # of a picture in a copy: a third of the size, and no difference to the eye


def sources(notebook: NotebookNode) -> list[str]:
    """What the cells say; a copy that says the same is not stale."""
    return [cell.source for cell in notebook.cells]


def stripped(executed: NotebookNode) -> NotebookNode:
    """An executed notebook without what is of one run: times, versions, warnings; its pictures made small."""
    language = {"name": executed.metadata.language_info.name}
    executed.metadata = NotebookNode(kernelspec=executed.metadata.kernelspec, language_info=NotebookNode(language))
    for cell in executed.cells:
        cell.metadata = NotebookNode({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _fewer_colours(output.data["image/png"])
    return executed


def _fewer_colours(png: str) -> str:
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", type=Path, metavar="LESSON.ipynb")
    lessons = parser.parse_args().lessons or sorted(LESSONS.glob("*.ipynb"))
    with errors_as_sentences(), TemporaryDirectory() as folder:
        for lesson in lessons:
            if not lesson.is_file():
                raise ValueError(f"there is no lesson {lesson}; they are in {LESSONS}")
            executed = Path(folder) / lesson.name
            run_notebook(lesson, executed, {})
            copy = stripped(nbformat.read(executed, as_version=4))
            text = nbformat.writes(copy) + "\n"
            write_atomically(COPIES / lesson.name, partial(Path.write_text, data=text, encoding="utf-8"))


if __name__ == "__main__":
    main()
