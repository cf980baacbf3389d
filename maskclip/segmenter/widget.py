"""A widget for notebooks: a picture, a line of words answered as one types, and a segment's scores at a click."""

import html
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from maskclip.segmenter.answer import Segmentation, embedded


class SegmenterWidget(anywidget.AnyWidget):
    """Shows a picture and what a `Segmenter` makes of it for the words, separated by commas.

    Attributes:
        answer: the `Segmentation` that is shown, None before there are words.
    """

    _esm = Path(__file__).with_suffix(".js")
    words = traitlets.Unicode().tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)  # JPEG, base64
    says = traitlets.Unicode().tag(sync=True)  # a sentence, where there is no answer
    scores = traitlets.Unicode().tag(sync=True)  # HTML
    click = traitlets.List(traitlets.Float()).tag(sync=True)  # across and down, 0 to 1

    def __init__(self, segmenter: Any, picture: Any, words: str = "") -> None:
        super().__init__()
        self.segmenter, self.embedded, self.answer = segmenter, segmenter.embed(picture), None
        self.observe(lambda change: self._ask(), "words")
        self.observe(lambda change: self._tell(*change.new), "click")
        self.picture = _jpeg(self.embedded.image)
        self.words = words

    answer: Segmentation | None

    def _ask(self) -> None:
        """Answer the words as they stand; half a word is a sentence, and the picture stays."""
        asked = [word.strip() for word in self.words.split(",") if word.strip()]
        try:
            self.answer = self.segmenter(self.embedded, asked) if asked else None
        except ValueError as error:
            self.says = str(error)
            return
        drawn = self.embedded.image if self.answer is None else self.answer.draw()
        none = self.answer is not None and not self.answer.segments
        with self.hold_sync():
            self.picture, self.scores = _jpeg(drawn), ""
            self.says = "None of these is in the picture." if none else ""

    def _tell(self, across: float, down: float) -> None:
        """The scores of the segment at a place of the picture."""
        if self.answer is None:
            return
        height, width = self.answer.size
        number = self.answer.panoptic[min(int(down * height), height - 1), min(int(across * width), width - 1)]
        found = [one for one in self.answer.segments if one.id == number]
        self.scores = _bars([(found[0].name, found[0].score), *found[0].others]) if found else "<p>None of these.</p>"


def _bars(scores: list[tuple[str, float]]) -> str:
    row = (
        '<tr><td style="padding-right: 1em">{0}</td><td style="text-align: right">{1:.0%}</td>'
        '<td style="width: 20em"><div style="width: {1:.0%}; height: 0.8em; background: #0072b2"></div></td></tr>'
    )
    return f"<table>{''.join(row.format(html.escape(name), score) for name, score in scores)}</table>"


def _jpeg(picture: np.ndarray) -> str:
    return embedded(picture, 1200, "JPEG", quality=90)
