"""Which training a folder holds: kept if it is the wanted one, else put beside, never overwritten.

A training is known by the hash of its settings, data and seed; code and versions have no part in it.
A finished one has a `record.json` that names its files' digests; an unfinished one has a `checkpoint.pt`.
Each move is one step: killed between two of them, the next call goes on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from maskclip.files import file_digests, load_checkpoint, write_atomically, written_record

CHECKPOINT = "checkpoint.pt"


def holds_finished(folder: Path, wanted: str, files: Sequence[str], retrain: bool) -> bool:
    """Whether `folder` holds the training of the hash `wanted`, finished; if not, it is made ready for it.

    Of several processes the first one looks and moves; the others hear its answer.

    Args:
        files: what a finished training left, beside its record.
        retrain: put the finished training beside, to do it again.

    Raises:
        ValueError: the folder has a damaged checkpoint.
    """
    answer = [PartialState().is_main_process and _make_ready(folder, wanted, files, retrain)]
    return bool(broadcast_object_list(answer)[0])


def _make_ready(folder: Path, wanted: str, files: Sequence[str], retrain: bool) -> bool:
    found, finished = _held(folder, files)
    if found == wanted and not (finished and retrain):
        if finished:
            print(f"{folder} holds this training, finished; it is kept, whatever the code is now (or retrain)")
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return finished  # what is unfinished is gone on with
    former = [] if retrain else list(takewhile(Path.exists, _beside(folder, wanted)))
    if found is None and former and any(folder.glob("*")):
        found = "unknown"
    if found is not None:
        aside = next(place for place in _beside(folder, found) if not place.exists())
        folder.rename(aside)
        damaged = f"{' or '.join(files)} is missing, damaged or of another training"
        why = {wanted: "to be trained again", "damaged": damaged}.get(found, "other settings, data or seed")
        print(f"{folder}: {why}; what was there is kept as {aside.name}")
    if former:
        former[-1].rename(folder)
        print(f"{folder}: {former[-1].name} is of these settings and taken back")
    return bool(former) and _make_ready(folder, wanted, files, retrain)


def _held(folder: Path, files: Sequence[str]) -> tuple[str | None, bool]:
    """The hash of the training in a folder, "damaged" if it cannot be known, None where there is none; is it whole?"""
    record = written_record(folder)
    if "hash" in record:
        finished = "files" in record
        whole = not finished or record["files"] == file_digests(folder, files)
        return (str(record["hash"]), finished) if whole else ("damaged", False)
    if (folder / CHECKPOINT).is_file():
        return str(load_checkpoint(folder / CHECKPOINT).get("hash", "unknown")), False
    return ("damaged" if any((folder / name).exists() for name in (*files, "record.json")) else None), False


def _beside(folder: Path, name: str) -> Iterator[Path]:
    """The places of a former training: <folder>.<name>, then <folder>.<name>.2 and so on."""
    return (folder.with_name(f"{folder.name}.{name}" + (f".{number}" if number > 1 else "")) for number in count(1))


def finish(folder: Path, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a training's files, and to its record, first whose they are, and last that they are all there.

    Of several processes the first one writes; the others wait.
    """
    if PartialState().is_main_process:
        _write_record(folder, record)
        for name, content in files.items():
            write_atomically(folder / name, content)
        _write_record(folder, {**record, "files": file_digests(folder, files)})
        (folder / CHECKPOINT).unlink(missing_ok=True)
    PartialState().wait_for_everyone()


def tell(folder: Path, **said: Any) -> None:
    """Let a finished training's record say what has changed without changing the training."""
    record = written_record(folder)
    if PartialState().is_main_process and record != {**record, **said}:
        _write_record(folder, {**record, **said})


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_atomically(folder / "record.json", json.dumps(record, indent=2) + "\n")
