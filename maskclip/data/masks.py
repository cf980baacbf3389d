"""Masks of COCO's instance annotations by pycocotools, which would take any input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

FARTHEST = 1e5  # pycocotools' memory grows with the length of a polygon's sides


def decode(annotation: dict, size: tuple[int, int], json_path: Path) -> np.ndarray:
    """The mask of one annotation, bool [H, W], from polygons, plain or compressed run-length code.

    Raises ValueError naming file and annotation; pycocotools would leave what a code does not reach to chance.
    """
    code = annotation.get("segmentation")
    try:
        if isinstance(code, list):
            _check_polygons(code)
        else:
            _check_runs(code, size)
        return coco_mask.decode(run_length_code(code, size)).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise ValueError(
            f"{json_path}: the segmentation of annotation {annotation.get('id')} is neither polygons nor a run-length "
            f"code of its image ({error}); correct it."
        ) from error


def _check_polygons(polygons: list) -> None:
    """Two points are let pass beside a whole polygon: they cover nothing."""
    for polygon in polygons:
        values = np.asarray(polygon)
        if values.ndim != 1 or values.dtype.kind not in "iuf" or values.size % 2 or not (abs(values) < FARTHEST).all():
            raise ValueError("a polygon must be a list of numbers x, y, x, y, ... near the picture")
    if not any(len(polygon) >= 6 for polygon in polygons):
        raise ValueError("a polygon needs three points")


def _check_runs(code: Any, size: tuple[int, int]) -> None:
    runs = code["counts"] if isinstance(code["counts"], list) else run_lengths(code["counts"]).tolist()
    if not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its runs must be whole numbers from 0")
    if tuple(code["size"]) != size or sum(runs) != size[0] * size[1]:
        coded = " x ".join(map(str, code["size"]))
        raise ValueError(f"coded for {coded} pixels in runs of {sum(runs)} in all, its image has {size[0]} x {size[1]}")


def run_length_code(code: Any, size: tuple[int, int]) -> dict:
    """pycocotools' code {"size", "counts"} of polygons, plain or compressed run-length code, for an image (H, W)."""
    if isinstance(code, list):
        return coco_mask.merge(coco_mask.frPyObjects(code, *size))
    return coco_mask.frPyObjects(code, *size) if isinstance(code["counts"], list) else code


def run_lengths(code: str | bytes) -> np.ndarray:
    """The runs of COCO's compressed code: six bits a character from "0" on, of which 32 says that the number goes on,
    16 of its last character that it is negative; from the fourth, a run is given less the one two before."""
    digits = np.frombuffer(code.encode() if isinstance(code, str) else code, np.uint8).astype(np.int64) - 48
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
