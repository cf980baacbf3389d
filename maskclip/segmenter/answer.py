"""What a `Segmenter` answers: one picture's segments, with names, as arrays, pictures, tables and COCO's JSON."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskclip.data.coco import encode
from maskclip.data.images import write_panoptic_ids
from maskclip.files import write_atomically
from maskclip.model import merge

if TYPE_CHECKING:  # slow to import, and not wanted by each answer
    import pandas as pd
    from matplotlib.figure import Figure

LEAST_SCORE = 0.1  # of an instance
DRAWN = 2048  # pixels of a picture's longer side
NO_MASK = 0.3  # of a pixel without any named mask: how much speaks for none of the words


@dataclass(frozen=True)
class Segment:
    """One region with a name."""

    id: int  # in `Segmentation.panoptic`; instances count from 1
    name: str
    isthing: bool
    score: float  # 0 to 1, among all words
    others: list[tuple[str, float]]  # the next words and their scores, best first
    mask: np.ndarray = field(repr=False)  # bool [H, W]

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width, height in pixels, as COCO's."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


@dataclass(frozen=True)
class Segmentation:
    """A picture's masks among a user's words; nothing is merged before it is asked for."""

    image: np.ndarray = field(repr=False)  # uint8 [H, W, 3]
    labels: list[str]
    isthing: list[bool]
    probs: Tensor = field(repr=False)  # [M, K], 0 for masks that fit no word
    mask_logits: Tensor = field(repr=False)  # [M, h, w]
    ranking: list[list[tuple[str, float]]] = field(
        repr=False
    )  # per mask: these and other words with scores, best first
    thresholds: dict[str, Any] = field(default_factory=dict)  # what `merge.panoptic_map` takes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def _panoptic(self) -> tuple[np.ndarray, list[dict]]:
        return merge.panoptic_map(self.probs, self.mask_logits, self.size, self.isthing, **self.thresholds)

    @property
    def panoptic(self) -> np.ndarray:
        """Segment ids, int32 [H, W]; 0 where nothing has a name."""
        return self._panoptic[0]

    @cached_property
    def segments(self) -> list[Segment]:
        """The panoptic segments, largest first: things one by one, stuff by name."""
        ids, found = self._panoptic
        best, classes = (x.tolist() for x in self.probs.max(-1)) if self.probs.numel() else ([], [])
        masks = {(category, score): k for k, (category, score) in reversed(list(enumerate(zip(classes, best))))}
        made = []
        for one in found:
            category, score = one["category"], one["score"]
            made.append(self._segment(one["id"], category, score, masks[category, score], ids == one["id"]))
        return sorted((one for one in made if one.mask.any()), key=lambda one: -one.area)

    @cached_property
    def instances(self) -> list[Segment]:
        """Things one by one, best first; they may overlap. A mask is what it most probably is."""
        likely = torch.tensor(self.isthing)[self.probs.argmax(-1)] & (self.probs.amax(-1) >= LEAST_SCORE)
        probs, logits = self.probs[likely], self.mask_logits[likely]
        best = probs * (probs == probs.amax(-1, keepdim=True))
        masks, classes, scores = merge.instances(best, logits, self.size, self.isthing, top_k=len(best))
        kept = scores >= LEAST_SCORE
        found = zip(masks[kept], classes[kept].tolist(), scores[kept].tolist())
        return [self._segment(n, category, score, None, mask) for n, (mask, category, score) in enumerate(found, 1)]

    def _segment(self, number: int, category: int, score: float, which: int | None, mask: np.ndarray) -> Segment:
        label = self.labels[category]
        others = [] if which is None else [word for word in self.ranking[which] if word[0] != label]
        return Segment(number, label, self.isthing[category], score, others[:4], mask)

    @cached_property
    def semantic(self) -> np.ndarray:
        """Class of each pixel, int32 [H, W]: place in `labels`, -1 where no word fits."""
        if not self.probs.numel():
            return np.full(self.size, -1, np.int32)
        named = self.probs.sum(-1, keepdim=True)
        none = torch.where(named > 0, 1 - named, 0)  # a mask without a name does not vote
        everywhere = torch.zeros_like(self.probs[:1]), torch.full_like(none[:1], 2 * NO_MASK)
        probs = torch.cat([torch.cat([self.probs, none], 1), torch.cat(everywhere, 1)])
        flat = torch.cat([self.mask_logits, torch.zeros_like(self.mask_logits[:1])])
        classes = merge.semantic_map(probs, flat, self.size)
        return np.where(classes == len(self.labels), -1, classes).astype(np.int32)

    def draw(self, task: str = "panoptic", text: float = 1.0) -> np.ndarray:
        """The picture with the answer over it, uint8 [H', W', 3], at most `DRAWN` pixels a side.

        task: panoptic, semantic or instances. text: size of the names.
        """
        from maskclip.visualize import draw_masks, draw_panoptic, draw_semantic

        check_task(task)
        image = Image.fromarray(self.image)
        image.thumbnail((DRAWN, DRAWN))
        canvas = np.asarray(image)
        shown = np.ix_(
            *(np.arange(n) * full // n for n, full in zip(canvas.shape, self.size))
        )  # of the answer's pixels
        if task == "instances":
            masks = np.array([one.mask[shown] for one in self.instances]).reshape(-1, *canvas.shape[:2])
            return draw_masks(canvas, masks, [f"{one.name} {one.score:.0%}" for one in self.instances], text=text)
        if task == "semantic":
            return draw_semantic(canvas, self.semantic[shown], self.labels, self.isthing, text=text)
        ids, marks = self._panoptic
        return draw_panoptic(canvas, ids[shown], marks, self.labels, text=text)

    def show(self, task: str = "panoptic") -> Figure:
        """The picture beside the answer, for notebooks."""
        from maskclip.visualize import comparison

        return comparison([[self.image, self.draw(task)]], ["picture", ", ".join(self.labels)[:80]], width=12)

    def save(self, path: str | Path, task: str = "panoptic") -> Path:
        """Write `draw(task)` as a picture, whole or not at all; the file is returned.

        Raises:
            ValueError: Pillow writes no such kind of picture, or there is no such task.
            OSError: the file cannot be written.
        """
        kinds = Image.registered_extensions()
        if not Path(path).is_dir() and kinds.get(Path(path).suffix.lower()) not in Image.SAVE:
            raise ValueError(f"{path} must end in a kind of picture, such as .png, .jpg, .webp or .tif")
        write_atomically(path, lambda partial: Image.fromarray(self.draw(task)).save(partial))
        return Path(path)

    def table(self, task: str = "panoptic") -> pd.DataFrame:
        """One row a segment: id, name, thing, score, next word, its score, area in percent of the picture, box."""
        import pandas as pd

        check_task(task)
        rows = []
        for one in self.instances if task == "instances" else self.segments:
            word, score = (one.others or [("", float("nan"))])[0]
            share = 100 * one.area / self.panoptic.size
            rows.append((one.id, one.name, one.isthing, one.score, word, score, share, one.box))
        return pd.DataFrame(rows, columns=["id", "name", "thing", "score", "next", "next_score", "area_percent", "box"])

    def coco_panoptic(self, image_id: int | str = 1, file_name: str = "segments.png") -> dict[str, Any]:
        """An annotation as in COCO's panoptic JSON; `file_name` is where `save_coco` puts the ids."""
        info = [
            {"id": one.id, "category_id": self.labels.index(one.name) + 1, "area": one.area, "bbox": list(one.box),
             "iscrowd": 0, "score": round(one.score, 4)} for one in self.segments
        ]  # fmt: skip
        return {"image_id": image_id, "file_name": file_name, "segments_info": info}

    def coco_instances(self, image_id: int | str = 1) -> list[dict[str, Any]]:
        """Results as in COCO's instance JSON, masks as compressed RLE."""
        return [
            {"image_id": image_id, "category_id": self.labels.index(one.name) + 1, "segmentation": encode(one.mask),
             "score": one.score} for one in self.instances
        ]  # fmt: skip

    def save_coco(self, folder: str | Path, stem: str) -> Path:
        """Write <stem>.json (categories, panoptic annotation, instances) and <stem>_ids.png; the JSON is returned."""
        ids, path = Path(folder) / f"{stem}_ids.png", Path(folder) / f"{stem}.json"
        write_panoptic_ids(ids, self.panoptic)
        names = zip(self.labels, self.isthing)
        categories = [{"id": n, "name": name, "isthing": int(thing)} for n, (name, thing) in enumerate(names, 1)]
        height, width = self.size
        content = {
            "images": [{"id": stem, "height": height, "width": width}],
            "categories": categories,
            "annotations": [self.coco_panoptic(stem, ids.name)],
            "instances": self.coco_instances(stem),
        }
        write_atomically(path, json.dumps(content))
        return path

    def _repr_html_(self) -> str:
        """Picture, answer and legend, for notebooks."""
        pictures = "".join(
            f'<img style="max-width:48%;margin-right:1%" alt="{alt}" '
            f'src="data:image/png;base64,{embedded(picture, 900, "PNG")}">'
            for picture, alt in ((self.image, "the picture"), (self.draw(), "its segments with their names"))
        )
        none = f"<p>None of these: {html.escape(', '.join(self.labels))}.</p>"
        return f"<div>{pictures}</div>{self._legend() if self.segments else none}"

    def _legend(self) -> str:
        """A row a segment: colour, name, score, the next words, and how much of the picture it has."""
        from maskclip.visualize import class_color

        rows = [("th", ("", "name", "score", "or", "area"))]
        for one in self.segments:
            color = "#" + "".join(f"{round(255 * x):02x}" for x in class_color(one.name, one.isthing))
            swatch = f'<span style="display:inline-block;width:1em;height:1em;background:{color}"></span>'
            rest = ", ".join(f"{word} {score:.0%}" for word, score in one.others[:2] if score >= 0.005)
            share = f"{one.area / self.panoptic.size:.0%}"
            rows.append(("td", (swatch, html.escape(one.name), f"{one.score:.0%}", html.escape(rest), share)))
        cells = ("".join(f'<{tag} style="text-align:left">{cell}</{tag}>' for cell in row) for tag, row in rows)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def check_task(task: str) -> None:
    """ValueError where there is no such way to answer."""
    if task not in ("panoptic", "semantic", "instances"):
        raise ValueError(f"task is {task!r}; it must be panoptic, semantic or instances")


def embedded(picture: np.ndarray, side: int, kind: str, **options: Any) -> str:
    """A picture of at most `side` pixels a side, as base64 of a file of this kind."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((side, side))
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def rank(probs: Tensor, words: Sequence[str], count: int = 6) -> list[list[tuple[str, float]]]:
    """For each mask the `count` words of the highest probability [M, words], best first."""
    values, places = probs.topk(min(count, probs.shape[1]), dim=-1)
    pairs = zip(values.tolist(), places.tolist())
    return [[(words[place], value) for value, place in zip(*row)] for row in pairs]
