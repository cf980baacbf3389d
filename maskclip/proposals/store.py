"""Proposals stored once per data set, in an SQLite file of one row per image, keyed so that a stale one is never used.

Logits are quantized in equal steps of tanh(logit / 4), by 1/4 near 0; the sign, which is the mask,
survives exactly. An image whose masks are so rough that one takes more than `room_for` it, deflated,
gets steps twice as wide, and again, down to the masks alone; not if the store is of whole precision,
as those of test sets are: where many masks compete, wide steps would change who wins a pixel.
"""

import glob
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from maskclip.files import written_record
from maskclip.proposals.base import Proposals, ProposalSource

LEVELS = (16, 8, 4, 2, 1)  # on either side of 0, the finest first
SMALLEST_ROOM = 1980  # bytes for a mask of few pixels
PIXELS_PER_BYTE = 10
PAGE_SIZE = 1024  # so small that little is lost at the end of an image
SCHEMA = """
    CREATE TABLE meta (key TEXT);
    CREATE TABLE images (place INTEGER PRIMARY KEY, checksum, id, levels, height, width, scores BLOB, masks BLOB);
"""
Row = tuple[Any, ...]  # an image: what follows the checksum


def quantize(logits: np.ndarray, levels: int = LEVELS[0]) -> np.ndarray:
    """Logits to int8: with 16 levels, n from -15 to 16 stands for 4 atanh((n - 1/2) / 16); positive stays positive."""
    steps = np.ceil(levels * np.tanh(logits / 4)).clip(1 - levels, levels)
    return np.where(logits > 0, np.maximum(steps, 1), steps).astype(np.int8)  # a quarter of next to nothing may be 0


def dequantize(steps: np.ndarray, levels: int = LEVELS[0]) -> np.ndarray:
    """The inverse of `quantize`, to within 1 / (2 levels) in tanh(logit / 4); of 16 levels, logits end at +-8.3."""
    table = 4 * np.arctanh((np.arange(1 - levels, levels + 1) - 0.5) / levels)
    return table.astype(np.float32)[steps + (levels - 1)]


def room_for(height: int, width: int) -> int:
    """How many bytes a mask of so many pixels may take before its image gets wider steps."""
    return max(SMALLEST_ROOM, height * width // PIXELS_PER_BYTE)


def encode(image_id: int | str, proposals: Proposals, whole: bool = False) -> Row:
    """One image's proposals, with the most levels that leave it within `room_for` a mask, or one; all if `whole`."""
    logits = proposals.mask_logits.float().numpy()
    if np.isnan(logits).any() or proposals.scores.isnan().any():
        raise ValueError(f"the proposals of image {image_id} are no numbers; the network has diverged, train it again")
    for levels in LEVELS:
        masks = zlib.compress(quantize(logits, levels).tobytes(), 6)
        if whole or len(masks) <= room_for(*logits.shape[1:]) * max(1, len(logits)):
            break
    return (image_id, levels, *logits.shape[1:], proposals.scores.float().numpy().tobytes(), masks)


def _checksum(row: Row) -> int:
    """What tells a damaged row: SQLite itself would not."""
    return zlib.crc32(repr(row[:-2]).encode() + row[-2] + row[-1])


def proposal_key(network: str | Path, dataset: Any) -> str:
    """What a store is keyed by: the network's weights, how it proposes for these pictures, their fingerprint.

    `network` is a folder of `train_proposals` or of transformers, a file of `maskclip convert`, or another name. How a
    network was trained is in its weights: a folder's record may change in that without making its stores stale.
    """
    path = Path(network)
    name = "" if path.exists() else network
    digest = hashlib.sha256(f"{SCHEMA} {dataset.fingerprint()} {name} {_proposing(path, dataset.name)}".encode())
    of_transformers = sorted([*path.glob("*config.json"), *path.glob("model*.safetensors"), *path.glob("*model*.bin")])
    for file in (path, path / "network.safetensors", *of_transformers):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _proposing(folder: Path, dataset: str) -> str:
    """Of a trained network's record, what its proposals for one data set depend on beside its weights."""
    record = written_record(folder)
    settings = record.get("config")
    if isinstance(settings, dict):
        sizes = settings.get("test_sizes") or {}
        size = sizes.get(dataset, [settings.get("short_side"), settings.get("long_side")])
        apart = ("training", "test_sizes", "short_side", "long_side", "start", "backbone")
        settings = {key: value for key, value in settings.items() if key not in apart} | {"size": size}
    return json.dumps([record.get("network"), record.get("classes"), settings], sort_keys=True)


def store_proposals(
    source: ProposalSource, dataset: Any, path: str | Path, key: str, *, batch: int = 8, progress: bool = True,
    whole: bool = False,
) -> Path:  # fmt: skip
    """Run a source over a data set, once: nothing happens if `path` is already the whole store of this key.

    Written to `<path>.partial` and moved into place at the end; after a kill the next call goes on after
    the last whole batch. A damaged store, or one of other images, is written anew. Another process that
    writes the same store is waited for. The same proposals give the same bytes. OSError: a full disk.

    `whole`: keep all steps of all masks, whatever room they take.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock") as lock:
        if not holds(path, key, dataset):
            path.unlink(missing_ok=True)
            try:
                _write_store(source, dataset, path, key, batch, progress, whole)
            except sqlite3.Error as error:
                raise OSError(f"cannot store proposals in {path}: {error}; make room or allow writing") from None
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it notices, and takes a new one
    return path


def holds(path: Path, key: str, dataset: Any) -> bool:
    """Whether `path` is the whole store of a data set and this key, every row of it intact."""
    return path.is_file() and _levels(path, key).keys() == set(dataset.image_ids)


def _levels(path: Path, key: str) -> dict[int | str, int]:
    """`StoredProposals.levels`; none where nothing is, or what is damaged or of another network or data set."""
    try:
        return StoredProposals(path, key).levels()  # each row is checked
    except (FileNotFoundError, ValueError):
        return {}


def _write_store(
    source: ProposalSource, dataset: Any, path: Path, key: str, batch: int, progress: bool, whole: bool
) -> None:
    partial = Path(f"{path}.partial")
    if not (done := _levels(partial, key)):
        partial.unlink(missing_ok=True)
        Path(f"{partial}-journal").unlink(missing_ok=True)
    remaining = [index for index, image_id in enumerate(dataset.image_ids) if image_id not in done]
    with closing(sqlite3.connect(partial)) as connection:
        if not done:
            _begin(connection, key)
        batches = [remaining[start : start + batch] for start in range(0, len(remaining), batch)]
        coded: Iterable[tuple[int, Row]] = ()
        try:
            with ThreadPoolExecutor() as pool:  # compression takes its time, beside the network
                for indices in tqdm(batches, desc=f"proposals of {dataset.name}", disable=not progress):
                    samples = [dataset[index] for index in indices]
                    found = source([sample.image for sample in samples])
                    _insert(connection, coded)
                    ids = [sample.image_id for sample in samples]
                    coded = zip(indices, pool.map(encode, ids, found, repeat(whole)))
        finally:
            _insert(connection, coded)
    partial.replace(path)
    levels = list(StoredProposals(path, key).levels().values())
    if coarser := len(levels) - levels.count(LEVELS[0]):
        print(f"{path}: the masks of {coarser} of {len(levels)} images were too rough to be stored in full precision")


def _begin(connection: sqlite3.Connection, key: str) -> None:
    connection.executescript(f"PRAGMA page_size = {PAGE_SIZE}; {SCHEMA}")
    connection.execute("INSERT INTO meta VALUES (?)", [key])
    connection.commit()


def _insert(connection: sqlite3.Connection, rows: Iterable[tuple[int, Row]]) -> None:
    values = ([place, _checksum(row), *row] for place, row in rows)
    connection.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.commit()


def part_of(dataset: Any, path: Path, share: tuple[int, int]) -> tuple[Any, Path]:
    """A process's share of a data set, and the store of its own for it; share: its number, and how many there are."""
    return dataset.subset(dataset.image_ids[share[0] :: share[1]]), Path(f"{path}.part{share[0]}of{share[1]}")


def join_parts(dataset: Any, path: Path, key: str, processes: int) -> Path:
    """One store of the parts that `processes` wrote of a data set (`part_of`), with the rows that one would write.

    Both lie there for a moment. Parts that another number of processes had begun go, too.
    """
    parts = [part_of(dataset, path, (number, processes))[1] for number in range(processes)]
    stores = [StoredProposals(part, key) for part in parts]
    partial = Path(f"{path}.joining")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(partial)) as connection:
        _begin(connection, key)
        _insert(connection, ((n, stores[n % processes]._row(i)) for n, i in enumerate(dataset.image_ids)))
    partial.replace(path)
    remove_parts(path)
    return path


def remove_parts(path: Path) -> None:
    """Of a finished store, what was begun of it, also by another number of processes, and left by a kill."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.part*"):
        part.unlink()


class StoredProposals(Mapping[int | str, Proposals]):
    """The proposals of a data set by image id, read as they are asked for, by any number of processes.

    FileNotFoundError without a store, ValueError if it is damaged or of another key (network, pictures),
    KeyError for an image that it does not have.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no stored proposals at {path}; run the proposals stage first")
        try:
            [(found,)] = self._select("SELECT key FROM meta")
            self._places = dict(self._select("SELECT id, place FROM images ORDER BY place"))
        except (sqlite3.Error, ValueError):
            raise ValueError(
                f"{path} is cut off or no store of proposals; delete it and run the proposals stage again"
            ) from None
        if found != key:
            raise ValueError(f"{path} is of another network or other pictures; run the proposals stage again")

    def levels(self) -> dict[int | str, int]:
        """Steps on either side of 0 in which each image's logits are stored: `LEVELS[0]`, fewer where it is rough."""
        return {image_id: self._row(image_id)[1] for image_id in self}

    def __getitem__(self, image_id: int | str) -> Proposals:
        _, levels, height, width, scores, masks = self._row(image_id)
        steps = np.frombuffer(zlib.decompress(masks), np.int8).reshape(-1, height, width)
        objectness = np.frombuffer(scores, np.float32).copy()
        return Proposals(torch.from_numpy(dequantize(steps, levels)), torch.from_numpy(objectness))

    def _row(self, image_id: int | str) -> Row:
        if image_id not in self._places:
            raise KeyError(f"{self.path} has no proposals of image {image_id!r}; run the proposals stage again")
        try:
            [(_, found, *rest)] = self._select("SELECT * FROM images WHERE place = ?", self._places[image_id])
            row = tuple(rest)
            if found == _checksum(row) and row[0] == image_id:
                return row
        except (sqlite3.Error, ValueError, TypeError):
            pass
        raise ValueError(f"{self.path} is damaged at image {image_id}; delete it and run the proposals stage again")

    def _select(self, query: str, *values: Any) -> list[Any]:
        """The rows, over a connection of their own: none outlives a fork."""
        killed = Path(f"{self.path}-journal").exists()  # then SQLite has to roll back; else nothing changes any more
        uri = self.path.absolute().as_uri() + ("" if killed else "?mode=ro&immutable=1")
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
