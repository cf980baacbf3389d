"""What every set's preparation shares: finding the owners' files, packed or not, and filling a data folder."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from ...checkpoint import write_atomically

DEPTH = 5  # folders below --from that are searched
PACKED = (".zip", ".tar", ".tar.gz", ".tgz")
DAMAGE = (OSError, EOFError, ValueError, SyntaxError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")  # what a killed write_atomically leaves
NAMES = Path(__file__).parent / "names"

Job = TypeVar("Job")
Result = TypeVar("Result")


class Archive(NamedTuple):
    """An archive as published: its name (a glob, as browsers append " (1)"), its address, and what is often taken for
    it, as {glob of a file's or folder's name: what that is}."""

    name: str
    address: str
    not_these: dict[str, str] = {}  # noqa: RUF012


@dataclass(frozen=True)
class File:
    """One published file, on disk or in an archive; it can be read in any process."""

    container: Path
    name: str = ""  # inside the archive; "" for a file on disk
    size: int = 0
    offset: int | None = None  # inside a tar

    def read(self) -> bytes:
        """The file's bytes; ValueError where they are cut off or damaged."""
        try:
            with self.open() as file:
                content = file.read(self.size) if self.offset is not None else file.read()
        except DAMAGE as error:
            raise self.damaged(error) from error
        if len(content) < self.size:
            raise self.damaged("it ends too early")
        return content

    def open(self) -> IO[bytes]:
        """A stream that begins where the file does."""
        if self.name and self.offset is None:
            return _zip(self.container, self.container.stat().st_mtime_ns).open(self.name)
        file = self.container.open("rb")
        file.seek(self.offset or 0)
        return file

    def image(self) -> Image.Image:
        """The picture, decoded; ValueError where it cannot be."""
        try:
            image = Image.open(io.BytesIO(self.read()))
            image.load()
        except DAMAGE as error:
            raise self.damaged(error) from error
        return image

    def pixels(self) -> np.ndarray:
        """The picture's pixels, uint8 as published: [H, W] or [H, W, C]."""
        return np.asarray(self.image())

    def json(self) -> Any:
        """Parsed JSON; ValueError where it is none, or cut off."""
        try:
            return json.loads(self.read())
        except ValueError as error:
            raise self.damaged(error) from error

    def damaged(self, why: object) -> ValueError:
        return ValueError(f"{self} is cut off or damaged ({why}); fetch {self.container.name} again.")

    @property
    def path(self) -> Path:
        """Its path on disk or, without meaning there, in the archive."""
        return Path(self.name) if self.name else self.container

    @property
    def stem(self) -> str:
        return self.path.stem

    def __str__(self) -> str:
        return f"{self.container}, {self.name}" if self.name else str(self.container)


@lru_cache(maxsize=8)
def _zip(path: Path, _changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class Source:
    """The folder of downloads: archives, archives in them, and folders already unpacked, five levels down.

    An archive is preferred to a folder, which a killed unpacking may have left half full.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root.resolve(), scratch
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; --from names the folder that holds the downloads.")
        self.folders: list[Path] = []
        self.archives: list[Path] = []
        self.damaged: dict[str, ValueError] = {}
        self._members: dict[Path, dict[str, dict[str, File]]] = {}
        for folder, below, names in os.walk(self.root, followlinks=True):
            path = Path(folder)
            deep = len(path.relative_to(self.root).parts) >= DEPTH
            below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
            self.folders.append(path)
            self.archives += [path / name for name in sorted(names) if name.lower().endswith(PACKED)]

    def files(self, folder: str, suffix: str, archive: Archive) -> dict[str, File]:
        """The files of `folder` with this suffix, by stem. Raises FileNotFoundError where there are none."""
        for content in self._places(folder, archive):
            found = {PurePosixPath(n).stem: file for n, file in sorted(content.items()) if n.lower().endswith(suffix)}
            if found:
                return found
        raise self._missing(f"a folder {folder} of {suffix} files", archive)

    def file(self, name: str, archive: Archive) -> File:
        """The file of this name, in whatever folder."""
        for content in self._places("", archive):
            if name in content:
                return content[name]
        raise self._missing(f"a file {name}", archive)

    def _places(self, folder: str, archive: Archive) -> Iterator[dict[str, File]]:
        """The contents of the folders that end like `folder`, archives first, then those on disk."""
        for path in self._packed(archive):
            yield from (content for name, content in self._sound(path).items() if _ends(name, folder))
        for place in self.folders:
            if _ends(place.as_posix(), folder):
                entries = [entry for entry in os.scandir(place) if entry.is_file() and not entry.name.startswith(".")]
                yield {e.name: File(Path(e.path).resolve(), size=e.stat().st_size) for e in entries}

    def _packed(self, archive: Archive) -> Iterator[Path]:
        on_disk = [path for path in self.archives if fnmatch(path.name, archive.name)]
        yield from on_disk
        for outer in () if on_disk else [path for path in self.archives if path.suffix.lower() == ".zip"]:
            for content in self._sound(outer).values():
                for name, file in content.items():
                    if fnmatch(name, archive.name) and name.lower().endswith(PACKED):
                        yield self._unpacked(file, name)

    def _sound(self, path: Path) -> dict[str, dict[str, File]]:
        """`members`, or none where the archive is damaged: what is wanted may lie elsewhere, else `_missing` tells."""
        try:
            return self.members(path)
        except ValueError as error:
            self.damaged[path.name] = error
            return {}

    def members(self, path: Path) -> dict[str, dict[str, File]]:
        """An archive's files, {folder: {name: file}}."""
        if path not in self._members:
            contents: dict[str, dict[str, File]] = defaultdict(dict)
            try:
                files = list(_in_zip(path) if path.suffix.lower() == ".zip" else _in_tar(self._plain_tar(path)))
            except DAMAGE as error:
                raise File(path).damaged(error) from error
            for file in files:
                place = PurePosixPath(file.name)
                if "__MACOSX" not in place.parts and not place.name.startswith("."):
                    contents[place.parent.as_posix()][place.name] = file
            self._members[path] = contents
        return self._members[path]

    def _plain_tar(self, path: Path) -> Path:
        """A tar that can be read anywhere: unzipped once, if it is a .tar.gz."""
        if path.suffix == ".tar":
            return path
        import gzip

        plain = self.scratch / f"{path.name}.tar"
        with gzip.open(path) as packed:
            write_atomically(plain, lambda partial: _pour(packed, partial))
        return plain

    def _unpacked(self, file: File, name: str) -> Path:
        """An archive inside an archive, taken out; it is removed at the end."""
        inner = self.scratch / name
        if not inner.is_file() or inner.stat().st_size != file.size:
            with file.open() as packed:
                write_atomically(inner, lambda partial: _pour(packed, partial))
        return inner

    def _missing(self, what: str, archive: Archive) -> Exception:
        for name, error in self.damaged.items():
            if fnmatch(name, archive.name):
                return error
        there = {path.name for path in (*self.archives, *self.folders)}
        for path in self.archives:
            if path.suffix.lower() == ".zip" and not fnmatch(path.name, archive.name):
                there |= {part for folder in self._sound(path) for part in folder.split("/")}
        mistaken = (f" {n} there is {w}." for g, w in archive.not_these.items() for n in sorted(there) if fnmatch(n, g))
        return FileNotFoundError(
            f"{self.root} has no archive {archive.name} and no {what}; fetch it from {archive.address} and give "
            f"--from the folder that holds it.{next(mistaken, '')}"
        )


def _in_zip(path: Path) -> Iterator[File]:
    for info in _zip(path, path.stat().st_mtime_ns).infolist():
        if not info.is_dir():
            yield File(path, info.filename, info.file_size)


def _in_tar(path: Path) -> Iterator[File]:
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            if info.isreg():
                yield File(path, info.name, info.size, info.offset_data)


def _pour(stream: Any, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def _ends(path: str, folder: str) -> bool:
    return not folder or f"/{path}".endswith(f"/{folder}")


@contextmanager
def filling(source: Path, target: Path, name: str) -> Iterator[tuple[Source, Path]]:
    """Open the downloads and the set's folder `name` in `target`, for one process at a time.

    What a killed run left half written is removed first, inner archives taken out are removed at the end.
    """
    if target.name == name:
        raise ValueError(f"--to is {target}, but the folder {name} is made inside it; give {target.parent}.")
    scratch, out = target / ".unpacking", target / name
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(target / ".prepare.lock"):
        for leftover in out.rglob(".*"):
            if LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        try:
            yield Source(source, scratch), out
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def run(function: Callable[[Job], Result], jobs: Sequence[Job], what: str, *, workers: int) -> list[Result]:
    """`function` of every job, in their order, by `workers` processes, with a bar; the first error ends it."""
    if workers <= 1:
        return [function(job) for job in tqdm(jobs, desc=what)]
    chunk = max(1, min(32, len(jobs) // (4 * workers)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            return list(tqdm(pool.map(function, jobs, chunksize=chunk), total=len(jobs), desc=what))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Placing(NamedTuple):
    """An original to be put at `path`, with the size (width, height) its annotation gives, if it is a picture."""

    file: File
    path: Path
    size: tuple[int, int] | None = None
    said_by: str = ""


def place(job: Placing) -> None:
    """Put an original into the data folder: as a hard link where the disk allows it, else as a copy.

    Nothing is done where a file of the same length is there already. Raises ValueError when the picture's size is not
    the annotation's.
    """
    file, path = job.file, job.path
    if path.is_file() and path.stat().st_size == file.size:
        return
    content = file.read() if file.name or job.size else b""
    if job.size:
        try:
            with Image.open(io.BytesIO(content)) as image:
                found = image.size
        except DAMAGE as error:
            raise file.damaged(error) from error
        need_size(file, found, job.size, job.said_by)
    if not file.name and _linked(file.container, path):
        return
    write_atomically(path, lambda partial: partial.write_bytes(content or file.read()))


def place_json(file: File, path: Path) -> None:
    """`place`, also where a file of the same length but other content is there."""
    if path.is_file() and path.stat().st_size == file.size and path.read_bytes() != file.read():
        path.unlink()
    place(Placing(file, path))


def _linked(original: Path, path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.unlink(missing_ok=True)
        os.link(original, path)
    except OSError:  # another disk, or one without links
        return False
    return True


def need_size(file: File, found: tuple[int, int], wanted: tuple[int, int], said_by: object) -> None:
    """ValueError unless the picture has the (width, height) that `said_by` gives it."""
    if found != wanted:
        raise ValueError(
            f"{file} has {found[0]} x {found[1]} pixels (width x height), by {said_by} it has {wanted[0]} x "
            f"{wanted[1]}; take both from the same release."
        )


def need_all(wanted: Iterable[str], found: dict[str, File], said_by: object) -> None:
    """FileNotFoundError when one of the stems that `said_by` names is not among the files."""
    missing = sorted(set(wanted) - set(found))
    if missing:
        one = next(iter(found.values()))
        where = one.container if one.name else one.container.parent
        raise FileNotFoundError(
            f"{said_by} names {missing[0]} ({len(missing)} such), not among the {len(found)} files in {where}; "
            f"fetch {where.name} again, whole, and of the same release."
        )


def save_image(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write pixels in the format of the path's suffix, whole or not at all."""
    write_atomically(path, lambda partial: Image.fromarray(pixels).save(partial, **options))


def save_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(json.dumps(content), encoding="utf-8"))


def names_of(name: str) -> list[str]:
    """A shipped list of category names, in the order of the class indices; names/SOURCES.md says whence."""
    return (NAMES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
