"""Filling a data folder: whole files or none, by several processes, only what is missing."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from maskclip.data.images import upright_size
from maskclip.data.prepare.archives import DAMAGE, File, Source, need_size
from maskclip.files import LEFTOVER, write_atomically

NAMES = Path(__file__).parent / "names"
JOBS_A_PROCESS = 16  # fewer are not worth starting one
Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def filling(source: Path, target: Path, name: str) -> Iterator[tuple[Source, Path]]:
    """Open the downloads and the set's folder `name` in `target`, for one process at a time.

    What a killed run left half written is removed first, archives taken out of archives at the end.
    """
    if target.name == name:
        raise ValueError(f"--to is {target}, but the folder {name} is made inside it; give {target.parent}.")
    if target.is_file():
        raise ValueError(f"--to is {target}, which is a file; give the data folder.")
    scratch, out = target / ".unpacking", target / name
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target / ".prepare.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"another preparation fills {target}; waiting for it", flush=True)
        held = lock.acquire()
    with held:
        for leftover in out.rglob(".*"):
            if LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        try:
            yield Source(source, scratch), out
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def run(function: Callable[[Job], Result], jobs: Sequence[Job], what: str, *, workers: int) -> list[Result]:
    """`function` of every job, in their order, by up to `workers` processes, with a bar."""
    workers = min(workers, len(jobs) // JOBS_A_PROCESS)
    if workers <= 1:
        return [function(job) for job in tqdm(jobs, desc=what)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            return list(tqdm(pool.map(function, jobs, chunksize=JOBS_A_PROCESS // 2), total=len(jobs), desc=what))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Placing(NamedTuple):
    """A published picture to put at `path`, with the (width, height) by its annotation."""

    file: File
    path: Path
    size: tuple[int, int] | None = None
    said_by: str = ""


def place(job: Placing) -> None:
    """Put a published picture into the data folder: a hard link where possible, else a copy.

    Nothing is done where a file of its length is there. Raises ValueError when it has not the
    annotation's size.
    """
    file, path = job.file, job.path
    if path.is_file() and path.stat().st_size == file.size:
        return
    with io.BytesIO(file.read()) if file.name else file.open() as stream:
        if job.size:
            try:
                found = upright_size(Image.open(stream))[::-1]  # as it will be read
            except DAMAGE as error:
                raise file.damaged(error) from error
            need_size(file, found, job.size, job.said_by)
            stream.seek(0)
        if file.name or not _linked(file.container, path):
            write_atomically(path, stream.read() if file.name else file.read())


def _linked(original: Path, path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.unlink(missing_ok=True)
        os.link(original, path)
    except OSError:  # another disk, or one without links
        return False
    return True


def put(path: Path, content: bytes) -> None:
    """Write a file, unless this very content is there: another script may have left another."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def put_image(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write pixels in the format of the path's suffix."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=Image.registered_extensions()[path.suffix], **options)
    put(path, stream.getvalue())


def put_json(path: Path, content: Any) -> None:
    """Write JSON."""
    put(path, json.dumps(content).encode())


def put_names(path: Path, name: str) -> None:
    """Write a shipped list of category names beside the label maps it is for."""
    put(path, (NAMES / f"{name}.txt").read_bytes())


def names_of(name: str) -> list[str]:
    """A shipped list of category names, in class order; names/SOURCES.md tells whence."""
    return (NAMES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
