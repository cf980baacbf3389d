"""The miniature world: named pictographs on named textures, in several drawing styles, with exact masks."""

from maskclip.world.pictographs import PAIRS, THINGS
from maskclip.world.scenes import COLOURS, DOMAINS, Scene, Sticker, paint, render_scene, render_sticker
from maskclip.world.textures import STUFF, texture_bank

__all__ = [
    "COLOURS",
    "DOMAINS",
    "PAIRS",
    "STUFF",
    "THINGS",
    "Scene",
    "Sticker",
    "paint",
    "render_scene",
    "render_sticker",
    "texture_bank",
]
