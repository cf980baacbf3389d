"""Files that are either whole or absent: atomic writing, and safe reading of checkpoints."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:  # writing a table need not wait for torch
    import torch


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary_path)` fill a file next to `path`, then move it there in one step.

    A kill, a full disk or an exception leaves either the former file or none, never half of one.

    Raises:
        OSError: the folder cannot be written or the disk is full; the sentence names the file.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # the bytes before the name: a power cut must not leave an empty file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; results are meant to be shared
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        disk = _disk_error(error)
        if disk is None:
            raise
        raise OSError(
            disk.errno, f"cannot write {path}: {disk.strerror or disk}; make room there or allow writing"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _disk_error(error: Exception) -> OSError | None:
    """The disk's own error, which torch's and safetensors' writers hide in errors of theirs; None if it is none."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, SafetensorError) and (number := re.search(r"\(os error (\d+)\)", str(error))):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if "inline_container" in str(error):  # torch's writer, at closing a file that it could not write to
        hidden = error.__context__
        return hidden if isinstance(hidden, OSError) else OSError(errno.EIO, os.strerror(errno.EIO))
    return None


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values to `path` atomically."""
    import torch

    def write(temporary: Path) -> None:
        with temporary.open(
            "wb"
        ) as file:  # given a name, torch would write that into the file: same state, other bytes
            torch.save(state, file)

    write_atomically(path, write)


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); delete it or fetch it again") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of weights")
    return state


def file_digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of those of these files that a folder has, for its record.json."""
    digests = {}
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def written_record(folder: Path) -> dict[str, Any]:
    """What a folder's record.json says: nothing where there is none, or a damaged one."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def finished(folder: Path, record: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether a folder holds the training that `record` describes, by today's code, its files as they were written."""
    found = written_record(folder)
    if any(found.get(key) != record[key] for key in ("fingerprint", "code")):
        return False
    whole = found.get("files") == file_digests(folder, names)
    if not whole and os.environ.get("RANK", "0") == "0":  # the first of several processes says it
        print(f"{folder}: {' or '.join(names)} is missing, damaged or of another training; training again")
    return whole


def check_as_written(path: Path) -> None:
    """Compare a file with its digest in the record.json beside it, if there is one.

    Raises:
        ValueError: the file is another one.
    """
    wanted, found = written_record(path.parent).get("files"), file_digests(path.parent, [path.name])
    if isinstance(wanted, dict) and wanted.get(path.name, found[path.name]) != found[path.name]:
        raise ValueError(f"{path} is not what {path.parent / 'record.json'} was written for; train or fetch it again")


def code_digest(*names: str) -> str:
    """A hash of these files and folders of the package, comments and docstrings aside.

    A finished training is taken as it is, instead of done again, only where the code that would do it is the same.

    Args:
        names: relative to the package, such as "criterion.py" or "data".
    """
    package, digest = Path(__file__).parent, hashlib.sha256()
    for name in names:
        place = package / name
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    node.body = node.body[ast.get_docstring(node) is not None :]
            digest.update(f"{file.name}\n{ast.dump(tree)}".encode())
    return digest.hexdigest()[:16]
