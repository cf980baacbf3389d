"""The miniature world: named pictographs on named textures, in several drawing styles, with exact masks."""

from miniature.pictographs import PAIRS, THINGS
from miniature.scenes import COLOURS, DOMAINS, Scene, Sticker, paint, render_scene, render_sticker
from miniature.textures import STUFF, texture_bank

__all__ = [
    "COLOURS", "DOMAINS", "PAIRS", "STUFF", "THINGS", "Scene", "Sticker", "paint", "render_scene", "render_sticker",
    "texture_bank",
]  # fmt: skip
