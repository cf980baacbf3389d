"""Files that are either whole or absent: atomic writing, and safe reading of checkpoints and pickles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy._core import multiarray, numeric  # where pickles of arrays point

if TYPE_CHECKING:  # writing a table need not wait for torch
    import torch


LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}(\.\w+)?")  # the name of what a killed `write_atomically` leaves

PLAIN: dict[str, Any] = {  # all that pickles of arrays need
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": multiarray._reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": multiarray.scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": numeric._frombuffer for core in ("core", "_core")},  # type: ignore[attr-defined]
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # how Python 2's bytes were written
}


def check_folder(path: Path) -> Path:
    """The path of a folder to write to, there or not; ValueError: it, or what should hold it, is a file."""
    if files := [place for place in (path, *path.parents) if place.is_file()]:
        raise ValueError(f"{files[0]} is a file; name a folder to write to")
    return path


def write_atomically(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write text (UTF-8), bytes or what `content(temporary_path)` writes beside `path`, then move it there in one step.

    A kill, a full disk or an exception leaves either the former file or none, never half of one.

    Raises:
        OSError: the folder cannot be written, the disk is full or the file is a folder; the sentence names it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}, which is a folder; give a file in it")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # the bytes before the name: a power cut must not leave an empty file
        os.replace(temporary, path)
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}; make room there or allow writing"
        raise OSError(error.errno, reason) from None
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def checkpoint_bytes(state: Mapping[str, Any]) -> bytes:
    """A checkpoint file of tensors and plain values; the same state gives the same bytes."""
    import torch

    torch.save(state, buffer := io.BytesIO())
    return buffer.getvalue()


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors and plain values atomically."""
    write_atomically(path, checkpoint_bytes(state))  # a disk's error is its own; torch would hide it in another


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running any code it may contain (`weights_only`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, or holds more than tensors and plain values.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train first or correct the path")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({unreadable(error)}); give or fetch another") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of weights")
    return state


def unreadable(error: Exception) -> str:
    """Why a checkpoint could not be read: torch's own reasons speak of pickles, and recommend to run their code."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it holds code" if "GLOBAL" in str(error).upper() else "damaged, or of another kind"


class PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numpy arrays, of Python 2 as well; UnpicklingError at any code."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in PLAIN:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which is code and not data")
        return PLAIN[f"{module}.{name}"]


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of those of these files that a folder has, for its record.json."""
    there = [folder / name for name in names if (folder / name).is_file()]
    digests = {}
    for path in there:
        with path.open("rb") as file:  # a large CLIP's weights need not be in memory for it
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def written_record(folder: Path) -> dict[str, Any]:
    """What a folder's record.json says: nothing where there is none, or a damaged one."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def check_as_written(path: Path) -> None:
    """Compare a file with its digest in the record.json beside it, if there is one.

    Raises:
        ValueError: the file is another one.
    """
    wanted, found = written_record(path.parent).get("files"), file_digests(path.parent, [path.name])
    if isinstance(wanted, dict) and found != {path.name: wanted.get(path.name, found[path.name])}:
        raise ValueError(f"{path} is not what {path.parent / 'record.json'} was written for; train or fetch it again")


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Sixteen letters that tell settings apart: of plain values, in whatever order they stand."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
