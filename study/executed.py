"""Executed copies of the notebooks, for those who look at the repository and run nothing.

python -m study.executed [NOTEBOOK.ipynb ...]

writes `reports/course/LESSON.ipynb`, `reports/course/solutions/LESSON.ipynb` and `reports/notebooks/STAGE.ipynb`,
pictures in them; without names, of all. A lesson or its solutions are run for it. A stage's copy is that of the
finished study, of its first seed.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbformat import NotebookNode
from PIL import Image

from maskclip.files import write_atomically
from study import errors_as_sentences
from study.notebook import run_notebook
from study.params import load_params

NOTEBOOKS, COPIES = Path("notebooks"), Path("reports")
WIDTH = 1000  # pixels of a picture in a copy, at most
COLOURS = 128  # a third of the size, and no difference to the eye
LARGE = 100_000  # bytes; a picture that stays larger is kept as JPEG
LINK = re.compile(r"(?<=\]\()[^():\s]+\.(?:ipynb|md)(?=\))")  # to a file of the repository


def copy_of(notebook: Path) -> Path:
    """Where the executed copy of a lesson, its solutions or a stage lies."""
    rooms = {"course": "course", "solutions": "course/solutions"}
    return COPIES / rooms.get(notebook.parent.name, "notebooks") / notebook.name


def sources(notebook: NotebookNode) -> list[str]:
    """What the cells say; a copy that says the same is not stale."""
    return [cell.source for cell in notebook.cells]


def linked(source: str, notebook: Path) -> str:
    """What a cell says, its links as they lead from the copy."""
    there = copy_of(notebook).parent
    return LINK.sub(lambda link: Path(os.path.relpath(notebook.parent / link[0], there)).as_posix(), source)


def stripped(executed: NotebookNode) -> NotebookNode:
    """An executed notebook without what is of one run: times, versions, warnings, parameters; its pictures small."""
    language = {"name": executed.metadata.language_info.name}
    executed.metadata = NotebookNode(kernelspec=executed.metadata.kernelspec, language_info=NotebookNode(language))
    executed.cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in executed.cells:
        kept = ("tags", "slideshow")
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in kept if cell.metadata.get(key)})
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data |= _small(output.data.pop("image/png"))
    return executed


def _small(png: str) -> dict[str, str]:
    """A picture as the data of an output: its kind, and itself in base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
    few = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(small := io.BytesIO(), "PNG", optimize=True)
    if small.tell() > LARGE:
        picture.save(small := io.BytesIO(), "JPEG", quality=70, optimize=True)
        return {"image/jpeg": base64.b64encode(small.getvalue()).decode()}
    return {"image/png": base64.b64encode(small.getvalue()).decode()}


def executed_stage(notebook: Path, profile: str) -> Path:
    """The copy that the study left of a stage.

    Raises:
        ValueError: there is none, or it ran another text than the notebook now has.
    """
    names = notebook.name, f"{notebook.stem}_mask2former.ipynb"
    places = [place for name in names for place in sorted(Path("runs", profile).glob(f"**/notebooks/{name}"))]
    wanted = sources(nbformat.read(notebook, as_version=4))
    for place in places:
        if sources(stripped(nbformat.read(place, as_version=4))) == wanted:
            return place
    told = f"; {places[0]} ran another text" if places else ""
    raise ValueError(f"no finished run of {notebook} is in runs/{profile}{told}: run the study, then this again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK.ipynb")
    everything = sorted(NOTEBOOKS.glob("course/**/*.ipynb")) + sorted(NOTEBOOKS.glob("*.ipynb"))
    with errors_as_sentences(), TemporaryDirectory() as folder:
        for notebook in parser.parse_args().notebooks or everything:
            if notebook not in everything:
                raise ValueError(f"there is no notebook {notebook}; they are in {NOTEBOOKS} and {NOTEBOOKS}/course")
            if notebook.parent == NOTEBOOKS and not notebook.name.startswith("00_"):
                executed = executed_stage(notebook, load_params()[0]["profile"])
            else:  # needs nothing but the committed weights
                run_notebook(notebook, executed := Path(folder) / notebook.name, {})
            copy = stripped(nbformat.read(executed, as_version=4))
            for cell in copy.cells:
                cell.source = linked(cell.source, notebook)
            text = nbformat.writes(copy) + "\n"
            write_atomically(copy_of(notebook), partial(Path.write_text, data=text, encoding="utf-8"))


if __name__ == "__main__":
    main()
