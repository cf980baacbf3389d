"""The owners' files where they lie: in a zip, in a zip inside a zip, in a tar, or unpacked."""

import gzip
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from maskclip.files import write_atomically

DEPTH = 5  # levels of folders that are searched
PACKED = (".zip", ".tar", ".tar.gz", ".tgz")
DAMAGE = (OSError, EOFError, ValueError, SyntaxError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


class Archive(NamedTuple):
    """An archive as published: a glob of its name (browsers append " (1)"), its address, and what
    is often taken for it, as {glob of a file's or folder's name: what that is}."""

    name: str
    address: str
    not_these: dict[str, str] = {}  # noqa: RUF012


@dataclass(frozen=True)
class File:
    """One published file, on disk or in an archive, that any process can read."""

    container: Path
    name: str = ""  # inside the archive; "" for a file on disk
    size: int = 0
    offset: int | None = None  # inside a tar

    @property
    def path(self) -> Path:
        """Its path on disk, or in the archive."""
        return Path(self.name) if self.name else self.container

    @property
    def stem(self) -> str:
        return self.path.stem

    def open(self) -> IO[bytes]:
        """A stream that begins where the file does."""
        if self.name and self.offset is None:
            return _zip(self.container, self.container.stat().st_mtime_ns).open(self.name)
        file = self.container.open("rb")
        file.seek(self.offset or 0)
        return file

    def read(self) -> bytes:
        """The file's bytes; ValueError where they are cut off or damaged."""
        try:
            with self.open() as file:
                content = file.read(self.size)
        except DAMAGE as error:
            raise self.damaged(error) from error
        if len(content) < self.size:
            raise self.damaged("it ends too early")
        return content

    def pixels(self) -> np.ndarray:
        """The picture's pixels as published, [H, W] or [H, W, C]; ValueError if damaged."""
        try:
            return np.asarray(Image.open(io.BytesIO(self.read())))
        except DAMAGE as error:
            raise self.damaged(error) from error

    def json(self) -> Any:
        """Parsed JSON; ValueError where it is none, or cut off."""
        try:
            return json.loads(self.read())
        except ValueError as error:
            raise self.damaged(error) from error

    def damaged(self, why: object) -> ValueError:
        return ValueError(f"{self} is cut off or damaged ({why}); fetch {self.container.name} again.")

    def __str__(self) -> str:
        return f"{self.container}, {self.name}" if self.name else str(self.container)


@lru_cache(maxsize=8)
def _zip(path: Path, _changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class Source:
    """A folder of downloads.

    An archive is preferred to a folder of its content, which a kill may have left half full.

    Args:
        root: the folder, searched five levels down.
        scratch: where archives that lie in archives are taken out to.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root.resolve(), scratch
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; --from names the folder that holds the downloads.")
        self.folders: list[Path] = []
        self.archives: list[Path] = []
        self._contents: dict[Path, dict[str, dict[str, File]]] = {}
        self._damaged: dict[str, ValueError] = {}
        for folder, below, names in os.walk(self.root, followlinks=True):
            path = Path(folder)
            deep = len(path.relative_to(self.root).parts) >= DEPTH
            below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
            self.folders.append(path)
            self.archives += [path / name for name in sorted(names) if name.lower().endswith(PACKED)]

    def files(self, folder: str, suffix: str, archive: Archive) -> dict[str, File]:
        """The files with this suffix in a folder whose path ends with `folder`, by stem, in order.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the archive is damaged.
        """
        for content in self._places(folder, archive):
            found = {PurePosixPath(n).stem: file for n, file in sorted(content.items()) if n.lower().endswith(suffix)}
            if found:
                return found
        raise self._missing(f"a folder {folder} of {suffix} files", archive)

    def file(self, name: str, archive: Archive) -> File:
        """The file of this name, in whatever folder; it raises as `files` does."""
        for content in self._places("", archive):
            if name in content:
                return content[name]
        raise self._missing(f"a file {name}", archive)

    def content(self, path: Path) -> dict[str, dict[str, File]]:
        """What an archive holds, {folder: {name: file}}; none if damaged, as `_missing` tells."""
        if path not in self._contents:
            files: dict[str, dict[str, File]] = defaultdict(dict)
            try:
                for file in _in_zip(path) if path.suffix.lower() == ".zip" else _in_tar(self._plain(path)):
                    place = PurePosixPath(file.name)
                    if "__MACOSX" not in place.parts and not place.name.startswith("."):
                        files[place.parent.as_posix()][place.name] = file
            except DAMAGE as error:
                files.clear()
                self._damaged[path.name] = File(path).damaged(error)
            self._contents[path] = files
        return self._contents[path]

    def _places(self, folder: str, archive: Archive) -> Iterator[dict[str, File]]:
        """The content of every folder that ends so: in the archive first, then on disk."""

        def fits(path: str) -> bool:
            return not folder or f"/{path}".endswith(f"/{folder}")

        for path in self._packed(archive):
            yield from (files for name, files in self.content(path).items() if fits(name))
        for place in self.folders:
            if fits(place.as_posix()):
                entries = [entry for entry in os.scandir(place) if entry.is_file() and not entry.name.startswith(".")]
                yield {e.name: File(Path(e.path).resolve(), size=e.stat().st_size) for e in entries}

    def _packed(self, archive: Archive) -> Iterator[Path]:
        """The archives of this name: those on disk or, where there are none, those inside zips."""
        on_disk = [path for path in self.archives if fnmatch(path.name, archive.name)]
        yield from on_disk
        for outer in [] if on_disk else self.archives:
            for files in self.content(outer).values() if outer.suffix.lower() == ".zip" else ():
                for name, file in files.items():
                    if fnmatch(name, archive.name) and name.lower().endswith(PACKED):
                        yield self._take_out(name, file.read())

    def _plain(self, path: Path) -> Path:
        """A tar of which parts can be read: gunzipped once, if it is a .tar.gz."""
        return path if path.suffix == ".tar" else self._take_out(f"{path.stem}.tar", gzip.decompress(path.read_bytes()))

    def _take_out(self, name: str, content: bytes) -> Path:
        write_atomically(self.scratch / name, content)
        return self.scratch / name

    def _missing(self, what: str, archive: Archive) -> Exception:
        for name, error in self._damaged.items():
            if fnmatch(name, archive.name):
                return error
        there = {path.name for path in (*self.archives, *self.folders, *self.root.iterdir())}
        for path in self.archives:
            there |= {part for folder in self.content(path) for part in folder.split("/")}
        taken = (f" {n} there is {w}." for g, w in archive.not_these.items() for n in sorted(there) if fnmatch(n, g))
        return FileNotFoundError(
            f"{self.root} has neither an archive {archive.name} nor {what}; fetch it from {archive.address} and give "
            f"--from the folder that holds it.{next(taken, '')}"
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


def size_of(pixels: np.ndarray) -> tuple[int, int]:
    """(width, height) of pixels [H, W, ...], as PIL has it."""
    return pixels.shape[1], pixels.shape[0]


def need_size(file: File, found: tuple[int, int], wanted: tuple[int, int], said_by: object) -> None:
    """ValueError unless the picture has the (width, height) that `said_by` gives it."""
    if found != wanted:
        raise ValueError(
            f"{file} has {found[0]} x {found[1]} pixels (width x height), by {said_by} it has {wanted[0]} x "
            f"{wanted[1]}; take both from the same release."
        )
