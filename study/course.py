"""The course in `notebooks/course`: its pictures, all in one style, and examples for heads on a proposal network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from maskclip.proposals.mask2former import Mask2FormerSource
from maskclip.visualize import Shown

INK, RIGHT, WRONG, BEST, PALE = "#1f2430", "#009e73", "#d55e00", "#0072b2", "#a3a8b0"  # colour-blind safe (Okabe, Ito)


def panels(count: int, height: float = 3.2, widths: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure that shows itself in a notebook, with `count` axes side by side."""
    figure = Shown(figsize=(12, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, width_ratios=widths)[0])


def pictures(*shown: tuple[np.ndarray, str], height: float = 3.2) -> Figure:
    """Pictures, uint8 [H, W, 3] or masks [H, W], side by side under their titles."""
    figure, axes = panels(len(shown), height)
    for axis, (picture, title) in zip(axes, shown, strict=True):
        axis.imshow(picture, cmap="gray", interpolation="nearest")
        axis.set_title(title, color=INK)
        axis.set_axis_off()
    return figure


def on_patches(axis: Axes, picture: np.ndarray, grid: int, values: Any = None, lines: bool = True) -> None:
    """A picture cut into grid x grid patches, with a value in 0 to 1 of each over it, [grid, grid]: 0 is dark."""
    height, width = picture.shape[:2]
    where = (0, width, height, 0)
    axis.imshow(picture, extent=where)
    if values is not None:
        veil = np.zeros((grid, grid, 4))
        veil[..., 3] = 0.85 * (1 - np.asarray(values, float))
        axis.imshow(veil, extent=where, interpolation="nearest")
    if lines:
        axis.set_xticks(np.linspace(0, width, grid + 1), [])
        axis.set_yticks(np.linspace(0, height, grid + 1), [])
        axis.grid(color="white", linewidth=0.5, alpha=0.7)
        axis.tick_params(length=0)
    else:
        axis.set_axis_off()


def heat(axis: Axes, values: Any, title: str, form: str = "") -> None:
    """A matrix as squares, pale to blue, its numbers in them where `form` says how."""
    values = np.asarray(values, float)
    axis.imshow(values, cmap="Blues", interpolation="nearest")
    axis.set_title(title, color=INK)
    axis.set_xticks([])
    axis.set_yticks([])
    if form:
        middle = (values.min() + values.max()) / 2
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value > middle else INK
            axis.text(column, row, format(value, form), ha="center", va="center", color=colour)


def scores(axis: Axes, words: Sequence[str], values: Any, title: str, truth: str | None = None) -> None:
    """A bar for each word's score; the best is green where it is the `truth`, else orange; blue if none is given."""
    values = np.asarray(values, float)
    colours = [PALE] * len(words)
    best = int(values.argmax())
    colours[best] = BEST if truth is None else RIGHT if truth == words[best] else WRONG
    axis.barh(range(len(words)), values, color=colours)
    axis.set_yticks(range(len(words)), words, color=INK)
    axis.invert_yaxis()
    axis.set_title(title, color=INK)
    axis.spines[["top", "right"]].set_visible(False)


def overlaps(mask_logits: Tensor, truths: Sequence[np.ndarray]) -> np.ndarray:
    """IoU of each mask [M, h, w] with each true mask [H, W], of which there are G: [M, G]."""
    logits = interpolate(mask_logits[:, None], truths[0].shape, mode="bilinear")
    masks, true = (logits > 0).flatten(1).float(), torch.from_numpy(np.stack(truths)).flatten(1).float()
    both = masks @ true.T
    return (both / (masks.sum(1)[:, None] + true.sum(1) - both).clamp(min=1)).numpy()


def examples(source: Mask2FormerSource, scenes: Sequence[Any]) -> tuple[Tensor, list[str | None]]:
    """Features [n, D] of all queries of annotated scenes, and the name of what each covers; None where it fits nothing.

    A query covers what its mask overlaps by half or more.
    """
    inputs, covered = [], list[str | None]()
    for scene in scenes:
        logits, features, _ = source.queries(scene.image)
        iou = overlaps(logits, scene.masks)
        inputs.append(features)
        covered += [scene.names[row.argmax()] if row.max() >= 0.5 else None for row in iou]
    return torch.cat(inputs), covered
