"""Pictures, masks and JSON from disk, or one clear sentence about what is wrong with the file."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from maskclip.files import write_atomically

Read = TypeVar("Read")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
WHITE = (255, 4095, 65535)  # of 8, 12 and 16 bits, whatever they are kept in
ORIENTATION = 0x0112  # EXIF's tag
PANOPTIC = np.array([1, 256, 65536])  # a segment's id is R + 256 G + 65536 B


def read_image(path: str | Path | IO[bytes] | Image.Image) -> np.ndarray:
    """A picture, of a path, an open file or Pillow, as uint8 [H, W, 3], RGB, turned as its EXIF orientation says.

    Palette and CMYK pictures are converted, and grey ones of 8, 12 or 16 bits, whichever their brightest pixel needs:
    scaled, not clipped. Transparency is laid on white. Raises FileNotFoundError or ValueError, naming the file.
    """
    return _read(path, "picture", _rgb)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture, turned as its EXIF orientation says, off its head alone where it is a JPEG."""
    return _read(path, "picture", upright_size)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width once turned as EXIF says; its orientations 5 to 8 lie on the side."""
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (height, width)


def read_labels(path: str | Path) -> tuple[np.ndarray, int]:
    """A one-channel picture of whole numbers (semantic PNG, 8-bit or palette; TIFF, 16-bit) as int32 [H, W], and
    the value that means void: 255 for 8-bit files, 65535 for 16-bit ones."""

    def one_channel(image: Image.Image) -> np.ndarray:
        return np.asarray(_checked(image, "L P 1 I", "one channel of whole numbers"))

    labels = _read(path, "semantic map", one_channel)
    return labels.astype(np.int32), 255 if labels.dtype.itemsize == 1 else 65535


def read_panoptic_ids(path: str | Path) -> np.ndarray:
    """A COCO panoptic PNG as int32 [H, W] of segment ids, R + 256 G + 65536 B; 0 is void."""

    def ids(image: Image.Image) -> np.ndarray:
        _checked(image, "RGB RGBA", "R + 256 G + 65536 B for ids")
        four = image.tobytes("raw", "RGBA" if image.mode == "RGBA" else "RGBX")  # as Pillow keeps pixels: no copy more
        return np.frombuffer(four, "<i4").reshape(image.size[::-1]) & 0xFFFFFF

    return _read(path, "panoptic mask", ids)


def write_panoptic_ids(path: str | Path, ids: np.ndarray) -> None:
    """The opposite of `read_panoptic_ids`, whole or absent."""
    rgb = np.empty((*ids.shape, 3), np.uint8)
    for channel, worth in enumerate(PANOPTIC):  # one by one: a large picture's three at once take gigabytes
        rgb[..., channel] = ids // worth % 256
    write_atomically(path, lambda partial: Image.fromarray(rgb).save(partial, format="PNG"))


def read_json(path: str | Path, keep: Callable[[dict], object] | None = None) -> Any:
    """Parsed JSON; FileNotFoundError or ValueError, naming the file. keep: what to keep of an object, once it is read,
    so that a file of a million need not be held whole."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the data folder against docs/data.md.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=keep)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); fetch or write it again.") from error


def _read(path: str | Path | IO[bytes] | Image.Image, what: str, convert: Callable[[Image.Image], Read]) -> Read:
    if isinstance(path, str | Path) and Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give a {what}'s own file.")
    if isinstance(path, str | Path) and not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; check the path, or of a data set its folder and annotations.")
    name = path if isinstance(path, str | Path) else getattr(path, "name", None) or f"the given {what}"
    try:
        if isinstance(path, Image.Image):
            return convert(path)
        with Image.open(path) as image:
            return convert(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large ({error}); save it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except UNREADABLE as error:
        raise ValueError(
            f"{name} cannot be read as a {what} ({error}); it is damaged or of another kind, fetch or write it again."
        ) from error


def _stored_as(image: Image.Image) -> str:
    """How the file keeps its values ("RGB;16B", "L;4"), which Pillow's mode does not tell."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][-1]) if tiles else ""


def _rgb(image: Image.Image) -> np.ndarray:
    halved = ";16" in _stored_as(image) and len(image.getbands()) > 1  # of colours Pillow keeps the higher 8 bits
    image = ImageOps.exif_transpose(image)
    if halved and max(high for _, high in image.convert("RGB").getextrema()) <= WHITE[1] >> 8:  # type: ignore[misc]
        raise ValueError("its colours have 16 bits, of which only the lower 12 are used; save it with 8")
    if image.mode.startswith(("I", "F")):  # PIL's own conversion would clip everything above 255 to white
        values = np.asarray(image)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > WHITE[-1]:
            raise ValueError("its values are not 0 to 255 or 0 to 65535, save it with 8 or 16 bits")
        white = next(white for white in WHITE if values.max() <= white)
        return np.repeat(np.rint(values * (255 / white)).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _checked(image: Image.Image, modes: str, wanted: str) -> Image.Image:
    """The image, if it keeps what is `wanted`."""
    if image.mode.split(";")[0] not in modes.split():
        raise ValueError(f"its mode is {image.mode}, but it must have {wanted}")
    if re.search(r";(2|4|16.?)\b", stored := _stored_as(image)) and not image.mode.startswith(("I", "P")):
        raise ValueError(f"its values are kept as {stored}, but must have 8 bits a channel")  # Pillow scales them
    return image
