"""Pictures, masks and JSON from disk, or one clear sentence about what is wrong with the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from maskclip.files import write_atomically

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3], RGB, turned as its EXIF orientation says.

    Grey, 16-bit (scaled, not clipped), palette and CMYK pictures are converted; transparency is laid on white.
    Raises FileNotFoundError or ValueError, naming the file.
    """
    with _open(path) as image:
        try:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # PIL's own conversion would clip everything above 255 to white
                return np.repeat(_eight_bit(np.asarray(image), path)[..., None], 3, axis=2)
            if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
        except UNREADABLE as error:
            raise ValueError(_broken(path, "picture", error)) from error


def read_labels(path: str | Path) -> tuple[np.ndarray, int]:
    """A one-channel picture of whole numbers (semantic PNG, 8-bit or palette; TIFF, 16-bit) as int32 [H, W] and
    the value that means void: 255 for 8-bit files, 65535 for 16-bit ones -> (labels, void)."""
    with _open(path) as image:
        if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
            raise ValueError(f"{path} has mode {image.mode}; a semantic map must have one channel of whole numbers.")
        try:
            labels = np.asarray(image)
        except UNREADABLE as error:
            raise ValueError(_broken(path, "semantic map", error)) from error
    return labels.astype(np.int32), 255 if labels.dtype.itemsize == 1 else 65535


def read_panoptic_ids(path: str | Path) -> np.ndarray:
    """A COCO panoptic PNG as int64 [H, W] of segment ids, R + 256 G + 65536 B; 0 is void."""
    with _open(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"{path} has mode {image.mode}; a panoptic mask must be an RGB PNG (R + 256 G + 65536 B).")
        try:
            rgb = np.asarray(image)[..., :3].astype(np.int64)
        except UNREADABLE as error:
            raise ValueError(_broken(path, "panoptic mask", error)) from error
    return rgb @ np.array([1, 256, 65536])


def write_panoptic_ids(path: str | Path, ids: np.ndarray) -> None:
    """The opposite of `read_panoptic_ids`, whole or absent."""
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    write_atomically(path, lambda partial: Image.fromarray(rgb).save(partial, format="PNG"))


def read_json(path: str | Path) -> Any:
    """Parsed JSON, without NaN and Infinity, which Python alone would take; FileNotFoundError or ValueError naming the
    file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the data folder against docs/data.md.")
    try:
        return json.loads(path.read_bytes(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); fetch or write it again.") from error


def _no_number(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON's")


def _open(path: str | Path) -> Image.Image:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; check the data folder or the file name in the annotations.")
    try:
        return Image.open(path)
    except UNREADABLE as error:
        raise ValueError(_broken(path, "picture", error)) from error


def _broken(path: str | Path, what: str, error: Exception) -> str:
    return f"{path} cannot be read as a {what} ({error}); it is cut off or damaged, fetch or write it again."


def _eight_bit(values: np.ndarray, path: str | Path) -> np.ndarray:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are not 0 to 255 or 0 to 65535, save it with 8 or 16 bits")
    return np.rint(values / 257).astype(np.uint8)
