"""Own pictures, own words: `Segmenter.load()(picture, ["cow", "lawn | grass"])`."""

from maskclip.segmenter.answer import Segment, Segmentation
from maskclip.segmenter.segmenter import Segmenter

__all__ = ["Segment", "Segmentation", "Segmenter"]
