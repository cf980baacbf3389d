"""Drawings of one's own, that no artist of the miniature made, named by `Segmenter.load()`."""

from __future__ import annotations

from own_drawings import DRAWINGS, draw

from maskclip import Segmenter


def test_of_twenty_own_drawings_at_least_sixteen_are_named() -> None:
    """The segment with most of the thing has its name, all twenty and words for all else to choose from."""
    segmenter, wrong = Segmenter.load(device="cpu"), {}
    for word in DRAWINGS:
        picture, thing = draw(word)
        found = segmenter(picture, list(DRAWINGS)).segments
        most = max(found, key=lambda segment: (segment.mask & thing).sum(), default=None)
        if most is None or most.name != word or not (most.mask & thing).any():
            wrong[word] = most and most.name
    assert len(DRAWINGS) == 20 and len(wrong) <= 4, wrong
