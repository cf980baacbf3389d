"""Masks of COCO's instance annotations by pycocotools, which would take any input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskclip.data.schema import InstanceEntry


def decode(entry: InstanceEntry, size: tuple[int, int], json_path: Path) -> np.ndarray:
    """The mask of one annotation, bool [H, W], from polygons, plain or compressed run-length code.

    Raises:
        ValueError: a polygon has no three points or an odd number of values, or a code does not fill the image (H, W),
            whose rest pycocotools would leave to chance; the sentence names file and annotation.
    """
    code: Any = entry["segmentation"]
    try:
        if isinstance(code, list):  # two points are let pass beside a whole polygon: they cover nothing
            if any(len(polygon) % 2 for polygon in code) or max(map(len, code), default=0) < 6:
                raise ValueError("a polygon needs three points, x, y, x, y, x, y")
        else:
            runs = code["counts"] if isinstance(code["counts"], list) else run_lengths(code["counts"]).tolist()
            if tuple(code["size"]) != size or sum(runs) != size[0] * size[1] or min(runs) < 0:
                coded = " x ".join(map(str, code["size"]))
                raise ValueError(f"it is coded for {coded} pixels in runs of {sum(runs)}, the image has {size}")
        return coco_mask.decode(run_length_code(code, size)).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise ValueError(
            f"{json_path}: the segmentation of annotation {entry.get('id')} cannot be a mask ({error}); correct it."
        ) from error


def run_length_code(code: Any, size: tuple[int, int]) -> dict:
    """pycocotools' code {"size", "counts"} of polygons, plain or compressed run-length code, for an image (H, W)."""
    if isinstance(code, list):
        return coco_mask.merge(coco_mask.frPyObjects(code, *size))
    return coco_mask.frPyObjects(code, *size) if isinstance(code["counts"], list) else code


def run_lengths(code: str) -> np.ndarray:
    """The runs of COCO's compressed code: six bits a character from "0" on, of which 32 says that the number goes on,
    16 of its last character that it is negative; from the fourth, a run is given less the one two before."""
    digits = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63:
        raise ValueError("it has a character that is none of the code")
    last = digits & 32 == 0
    if not last[-1]:
        raise ValueError("it is cut off")
    first = np.flatnonzero(np.r_[True, last[:-1]])
    shift = 5 * (np.arange(len(digits)) - first[np.cumsum(last) - last])
    runs = np.add.reduceat((digits & 31) << shift, first) - ((digits & 16) << (shift + 1))[last]
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs
