"""The miniature: a drawn world of everyday words by three artists, its data sets, and the trainings of its models."""

from miniature.painting import render_scene
from miniature.scenes import COLOURS, STYLES
from miniature.words import ARTISTS, stuff, things

__all__ = ["ARTISTS", "COLOURS", "STYLES", "render_scene", "stuff", "things"]
