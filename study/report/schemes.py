"""The paper's Figs. 1, 2 and 6 with a model's own tensors in them: its picture, masks, attention and words.

Each function gives a matplotlib Figure, to be saved as PNG, SVG or PDF. Shapes as in `maskclip.model`: M masks, N image
patches, K words, C channels of CLIP's joint space, S pixels a side.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from maskclip.model.clip import preprocess
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.visualize import Shown, draw_masks, draw_panoptic

WIDTH, INK, MUTED = 11.5, "#1f2430", "#6b7280"  # inches
FROZEN, TRAINED = "#56b4e9", "#e69f00"  # Okabe and Ito's sky blue and orange
_ARROW = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13}


@dataclass(frozen=True)
class Example:
    """A picture, its words, and of each word the mask that is most surely it."""

    image: np.ndarray  # uint8 [H, W, 3]
    names: Sequence[str]
    model: MaskCLIP
    masks: Proposals  # of these words' masks, M = K
    proposals: Proposals  # all


def example(model: MaskCLIP, image: np.ndarray, names: Sequence[str], proposals: Proposals) -> Example:
    """Choose the masks to draw by the model's own probabilities times objectness."""
    sure = model.name(model.embed(image, proposals), names, objectness_power=1.0).class_probs.cpu()
    best = list(dict.fromkeys(sure.argmax(0).tolist()))
    return Example(image, names, model, Proposals(proposals.mask_logits[best], proposals.scores[best]), proposals)


def pipeline_scheme(shown: Example, isthing: Sequence[bool], **thresholds: Any) -> Shown:
    """Fig. 1: picture -> proposals -> visual encoder, words -> text encoder, and what comes of both."""
    encoded = shown.model.embed(shown.image, shown.masks)
    words, named = shown.model.words(shown.names), shown.model.name(encoded, shown.names)
    everything = shown.model(shown.image, shown.names, shown.proposals)
    answer = draw_panoptic(shown.image, *everything.panoptic(isthing, **thresholds), shown.names, text=1.8)
    figure, axes = _sheet(5.1)
    _picture(axes, shown.image, 0.15, 3.15, 1.5, "picture")
    _box(axes, 2.5, 3.4, 1.5, 1.0, "class-agnostic\nmask proposal\nnetwork", TRAINED)
    masks = draw_masks(shown.image, shown.masks.masks(shown.image.shape[:2]).numpy())
    _picture(axes, masks, 4.55, 3.15, 1.5, f"{len(shown.masks.scores)} of {len(shown.proposals.scores)} masks")
    layers, rma = len(shown.model.encoder.blocks), shown.model.encoder.rma_layers  # type: ignore[union-attr]
    _frame(axes, 0.15, 0.15, 6.3, 2.45, "MaskCLIP visual encoder: CLIP's image tower, frozen, with RMA (orange)")
    tokens = "image\ntokens", "class\ntoken", "mask\nclass\ntokens"
    for row, text in enumerate(tokens):
        axes.text(0.65, 1.85 - 0.62 * row, text, ha="center", va="center", fontsize=9)
    step = 4.9 / layers
    for layer in range(1, layers + 1):
        x = 1.2 + (layer - 1) * step
        colour, text = (TRAINED, f"{layer}\nRMA") if layer in rma else (FROZEN, str(layer))
        _box(axes, x, 0.35, step * 0.82, 1.8, text, colour, size=9 if layers < 13 else 6)
    embeddings = normalize(encoded.embeddings, dim=-1)
    some = f"mask embeddings\n(48 of {embeddings.shape[1]} channels)"
    _heat(axes, embeddings[:, :48], 7.15, 0.55, 1.5, 1.35, some)
    _box(axes, 7.15, 3.4, 1.5, 1.0, "CLIP text\nencoder, frozen", FROZEN)
    asked = textwrap.wrap(f"words: {', '.join(shown.names)}", 30, max_lines=2, placeholder=" …")
    axes.text(7.9, 4.47, "\n".join(asked), ha="center", fontsize=9)
    _heat(axes, words[:, :48], 7.15, 2.45, 1.5, 0.6, "")
    axes.text(7.05, 2.94, "word\nembeddings", ha="right", va="center", fontsize=9)
    _heat(axes, named.class_probs, 9.55, 0.55, 1.7, 1.35, "softmax of cosines:\nmasks (rows), words", shown.names)
    _picture(axes, answer, 9.15, 3.15, 1.5, "answer, with refined masks")
    for start, end in (
        ((2.1, 3.9), (2.45, 3.9)), ((4.05, 3.9), (4.5, 3.9)), ((5.5, 3.1), (5.5, 2.75)), ((1.1, 3.1), (1.1, 2.75)),
        ((6.5, 1.2), (7.1, 1.2)), ((7.9, 3.35), (7.9, 3.1)), ((8.7, 1.2), (9.2, 1.2)), ((8.7, 2.7), (9.4, 1.95)),
        ((10.4, 2.3), (10.4, 3.1)),
    ):  # fmt: skip
        _arrow(axes, start, end)
    return figure


def rma_scheme(shown: Example, mask: int = 0) -> Shown:
    """Fig. 2: one mask in the last RMA layer, Eq. 3 to 5, each term where the mask may look."""
    encoder = shown.model.encoder
    if not isinstance(encoder, MaskCLIPVisualEncoder) or not encoder.rma_layers:
        raise ValueError("Fig. 2 needs an encoder with RMA; give the model a trained one.")
    number, side = encoder.rma_layers[-1], (shown.model.clip.image_size,) * 2
    rma: Any = encoder.rma[str(number)]
    logits = interpolate(shown.masks.mask_logits[None].to(shown.model.clip.mean), side, mode="bilinear")
    # what the layer makes is heard where it is used
    with torch.no_grad(), patch.object(rma, "refine_masks", wraps=rma.refine_masks) as refine:
        encoder(preprocess(shown.model.clip, shown.image)[None], logits)
        coarse, queries, keys, mask_attention, visible = refine.call_args.args
        relative = mask_attention[0, :, mask].mean(0) * rma.scale
        own = (queries @ keys[:, :, 1:].transpose(2, 3))[0, :, mask].mean(0) * rma.scale
        refined = rma.refine_masks(*refine.call_args.args)
    grid = side[0] // encoder.patch

    def seen(attention: Tensor) -> np.ndarray:
        return attention.masked_fill(~visible[0, mask, 1:], torch.nan).view(grid, grid).cpu().numpy()

    figure, axes = _sheet(5.0)
    picture = preprocess(shown.model.clip, shown.image) * shown.model.clip.std + shown.model.clip.mean
    square = picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    before, after = (one[0, mask].cpu().numpy() for one in (coarse, refined))
    _picture(axes, square, 0.15, 2.95, 1.45, "image tokens $T_{IM}$")
    _picture(axes, before, 0.15, 0.5, 1.45, "coarse mask $M_c$", "PuOr", centred=True)
    _heat(axes, queries[0, :, mask].reshape(1, -1)[:, :48], 2.15, 4.42, 1.35, 0.14, "mask class token $T_{MC}$")
    _box(axes, 2.15, 3.25, 1.35, 0.85, "$\\phi_Q(T_{MC})\\,\\phi_K(T_{IM})^T$\nfrozen", FROZEN)
    _box(axes, 2.15, 1.55, 1.35, 0.85, "$\\phi_{Qm}(T_{MP})$, $\\phi_{Km}(T_{IM})$\n(Eq. 3) trained", TRAINED, size=9)
    _picture(axes, seen(own), 4.05, 2.95, 1.45, "CLIP's attention", "viridis")
    _picture(axes, seen(relative), 4.05, 0.5, 1.45, "relative attention $A'$", "viridis")
    _picture(axes, seen((own + relative) / 2), 6.15, 2.95, 1.45, "$A$, half of the sum (Eq. 4)", "viridis")
    _box(axes, 8.25, 3.25, 1.35, 0.85, "softmax, values:\nnext mask token", FROZEN)
    _box(axes, 6.2, 0.8, 1.35, 0.85, "$f_r$ (Eq. 5)\ntrained", TRAINED)
    _picture(axes, after - before, 8.0, 0.5, 1.45, "change of the mask", "PuOr", centred=True)
    _picture(axes, after, 9.9, 0.5, 1.45, "refined mask $M_r$", "PuOr", centred=True)
    for start, end in (
        ((1.65, 3.67), (2.1, 3.67)), ((1.65, 1.2), (2.15, 1.5)), ((1.2, 2.9), (2.1, 2.3)), ((3.55, 3.67), (4.0, 3.67)),
        ((3.55, 1.7), (4.0, 1.4)), ((5.55, 3.67), (6.1, 3.67)), ((5.55, 1.4), (6.3, 2.9)), ((7.65, 3.67), (8.2, 3.67)),
        ((5.3, 2.9), (6.15, 1.55)), ((7.6, 1.22), (7.95, 1.22)), ((9.5, 1.22), (9.85, 1.22)),
        ((2.825, 4.4), (2.825, 4.15)), ((10.6, 0.3), (10.6, 0.46)),
    ):  # fmt: skip
        _arrow(axes, start, end)
    if not isinstance(rma.residual, nn.Conv2d):  # the paper's f_r sees both attentions, the released one CLIP's alone
        _arrow(axes, (5.55, 1.22), (6.15, 1.22))
    axes.plot((0.87, 0.87, 10.6), (0.48, 0.31, 0.31), color=INK, linewidth=1.3)
    axes.text(6.9, 0.35, "$M_c$ itself is added", ha="center", va="bottom", fontsize=9)
    axes.text(0.15, 0.08, f"layer {number}, mean over heads; white: the mask may not look there (Eq. 2); "
              "mask logits: purple inside, brown outside", fontsize=9.5, color=MUTED)  # fmt: skip
    return figure


def refinement_scheme(
    rows: Sequence[tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]], layers: Sequence[int]
) -> Shown:
    """Fig. 2 on pictures: masks on their way through the RMA `layers`, each with its IoU, and what they gain and lose.

    rows: a picture uint8 [H, W, 3], the true mask [H, W], and the mask as proposed and after each of the layers.
    """
    titles = ["proposal", *(f"after layer {layer}" for layer in layers)]
    figure = Shown(figsize=(WIDTH, 1.9 * len(rows) + 0.2), layout="constrained", facecolor="white")
    for line, (picture, truth, masks) in zip(figure.subplots(len(rows), len(titles) + 3, squeeze=False), rows):
        rows_of, columns_of = (np.flatnonzero(np.any([truth, *masks], axis=(0, axis))) for axis in (2, 1))
        height, width = picture.shape[:2]
        half = 0.6 * max(np.ptp(rows_of), np.ptp(columns_of)) + 3
        middle = (rows_of[0] + rows_of[-1]) / 2, (columns_of[0] + columns_of[-1]) / 2
        top, bottom = (int(np.clip(middle[0] + side * half, 0, height)) for side in (-1, 1))
        left, right = (int(np.clip(middle[1] + side * half, 0, width)) for side in (-1, 1))
        dark = picture // 4
        change = np.where(masks[0][..., None], (picture // 2), dark)
        change[masks[-1] & ~masks[0]], change[masks[0] & ~masks[-1]] = (0, 158, 115), (230, 159, 0)
        seen = [picture, *(np.where(mask[..., None], picture, dark) for mask in (*masks, truth)), change]
        said = [f"{title}\nIoU {100 * iou(mask, truth):.1f} %" for title, mask in zip(titles, masks)]
        said = ["picture", *said, "annotation", "gained (green),\nlost (orange)"]
        for axes, pixels, title in zip(line, seen, said, strict=True):
            axes.imshow(pixels if pixels is picture else pixels[top:bottom, left:right], interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
        line[0].add_patch(Rectangle((left, top), right - left - 1, bottom - top - 1, fc="none", ec="white", lw=1))
    return figure


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks [H, W], 0 to 1."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def baseline_scheme(shown: Example, baseline: MaskCLIP) -> Shown:
    """Fig. 6: the CLIP Baseline sees one masked picture after the other (Alg. 1)."""
    masks = shown.masks.masks(shown.image.shape[:2]).numpy()[:4]
    probs = baseline(shown.image, shown.names, shown.masks).class_probs[:4].cpu().numpy()
    figure, axes = _sheet(1.75 * len(masks) + 0.3)
    for row, (mask, prob) in enumerate(zip(masks, probs)):
        y = 1.75 * (len(masks) - 1 - row) + 0.15
        first = row == 0
        outline = draw_masks(shown.image, mask[None])
        _picture(axes, outline, 0.15, y, 1.3, "picture and mask" if first else "")
        _picture(axes, shown.image * mask[..., None], 2.6, y, 1.3, f"their product $R_{row + 1}$" if first else "")
        _box(axes, 5.0, y + 0.25, 1.6, 0.8, f"CLIP image encoder,\npass {row + 1}", FROZEN)
        top = np.argsort(-prob)[:4]
        for place, word in enumerate(top):
            level = y + 1.1 - 0.32 * place
            axes.text(8.3, level, shown.names[word], ha="right", va="center", fontsize=10)
            axes.barh(level, 1.9 * prob[word], 0.22, left=8.4, color=FROZEN)
            axes.text(8.45 + 1.9 * prob[word], level, f"{100 * prob[word]:.0f} %", va="center", fontsize=9)
        for x in (2.0, 4.5, 6.7):
            _arrow(axes, (x, y + 0.65), (x + 0.4, y + 0.65))
    axes.text(8.9, 1.75 * len(masks) - 0.23, "softmax over the words", ha="center", fontsize=11)
    return figure


def _sheet(height: float) -> tuple[Shown, Axes]:
    """A white sheet whose coordinates are inches."""
    figure = Shown(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    return figure, axes


def _picture(
    axes: Axes, pixels: np.ndarray, x: float, y: float, height: float, label: str, colours: str | None = None,
    centred: bool = False,
) -> None:  # fmt: skip
    """A picture, or a map in `colours`, in a thin frame, its label above; of a `centred` one, how far it goes."""
    width, most = height * pixels.shape[1] / pixels.shape[0], float(np.nanpercentile(np.abs(pixels), 98))
    low, high = (-most, most) if centred else (None, None)
    box = (x, x + width, y, y + height)
    drawn = "nearest" if colours else "antialiased"
    axes.imshow(pixels, extent=box, aspect="auto", cmap=colours, interpolation=drawn, vmin=low, vmax=high)
    label += f" (±{most:.2g})" if centred else ""
    axes.add_patch(Rectangle((x, y), width, height, fc="none", ec=MUTED, lw=0.6))
    axes.text(x + width / 2, y + height + 0.07, label, ha="center", va="bottom", fontsize=10)


def _heat(
    axes: Axes, values: Tensor, x: float, y: float, width: float, height: float, label: str, columns: Sequence[str] = ()
) -> None:
    """A matrix of numbers, in colours."""
    box = (x, x + width, y, y + height)
    axes.imshow(values.cpu().float().numpy(), extent=box, aspect="auto", cmap="cividis", interpolation="nearest")
    axes.text(x + width / 2, y + height + 0.05, label, ha="center", va="bottom", fontsize=10)
    for number, name in enumerate(columns):
        middle = x + (number + 0.5) * width / len(columns)
        axes.text(middle, y - 0.04, name, ha="right", va="top", rotation=30, fontsize=8, rotation_mode="anchor")


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 10) -> None:
    style = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=.08", fc=colour, ec="none", alpha=0.45)
    axes.add_patch(style)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def _frame(axes: Axes, x: float, y: float, width: float, height: float, text: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=.1", fc="none", ec=MUTED))
    axes.text(x + width / 2, y + height - 0.1, text, ha="center", va="top", fontsize=10)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops=_ARROW)
