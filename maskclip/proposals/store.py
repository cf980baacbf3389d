"""Proposals stored once per data set: compressed, memory-mapped, and keyed so that a stale store is never used.

A file is a sequence of records, each a header (length, CRC-32) and a payload, then an index of (image id, offset) and a
footer. Records are appended to `<path>.partial`; a killed run goes on after its last whole record.

Logits are quantized in equal steps of tanh(logit / 4): by 1/4 near 0, more coarsely where the sigmoid is flat. The
sign, which is the mask, survives exactly. Deflated, flat regions cost next to nothing; an image whose masks are so
rough that one takes more than `BYTES_PER_MASK` gets steps twice as wide, and again, down to the masks alone.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from maskclip.proposals.base import Proposals, ProposalSource

MAGIC = b"MCPROP03"
HEADER = struct.Struct("<II")  # payload length, CRC-32
FOOTER = struct.Struct("<QQ8s")  # index offset, index length, magic
LEVELS = (16, 8, 4, 2, 1)  # on either side of 0, the finest first
BYTES_PER_MASK = 1980  # 2,000 images of 100 masks in 400 MB


def quantize(logits: np.ndarray, levels: int = LEVELS[0]) -> np.ndarray:
    """Logits to int8: with 16 levels, n from -15 to 16 stands for 4 atanh((n - 1/2) / 16); positive stays positive."""
    steps = np.ceil(levels * np.tanh(logits / 4)).clip(1 - levels, levels)
    return np.where(logits > 0, np.maximum(steps, 1), steps).astype(np.int8)  # a quarter of next to nothing may be 0


def dequantize(steps: np.ndarray, levels: int = LEVELS[0]) -> np.ndarray:
    """The inverse of `quantize`, to within 1 / (2 levels) in tanh(logit / 4); of 16 levels, logits end at +-8.3."""
    table = 4 * np.arctanh((np.arange(1 - levels, levels + 1) - 0.5) / levels)
    return table.astype(np.float32)[steps + (levels - 1)]


def encode(image_id: int | str, proposals: Proposals) -> bytes:
    """One image's proposals as a payload, with the most levels that leave it within `BYTES_PER_MASK` a mask, or one."""
    logits = proposals.mask_logits.float().numpy()
    for levels in LEVELS:
        masks = zlib.compress(quantize(logits, levels).tobytes(), 6)
        if len(masks) <= BYTES_PER_MASK * len(logits):
            break
    head = json.dumps({"id": image_id, "shape": list(logits.shape), "levels": levels}).encode()
    return struct.pack("<H", len(head)) + head + proposals.scores.float().numpy().tobytes() + masks


def decode(payload: bytes | memoryview) -> tuple[int | str, Proposals]:
    """The inverse of `encode`: (image id, proposals)."""
    head, start = _head(payload)
    count = head["shape"][0]
    scores = np.frombuffer(payload, dtype="<f4", count=count, offset=start).copy()
    steps = np.frombuffer(zlib.decompress(payload[start + 4 * count :]), dtype=np.int8).reshape(head["shape"])
    return head["id"], Proposals(torch.from_numpy(dequantize(steps, head["levels"])), torch.from_numpy(scores))


def _head(payload: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """What a payload says of itself, and where its scores begin."""
    (length,) = struct.unpack_from("<H", payload)
    return json.loads(bytes(payload[2 : 2 + length])), 2 + length


def proposal_key(network: str | Path, dataset: Any, limit: int | None = None) -> str:
    """What a store is keyed by: the network's weights and record, the data set's fingerprint, the number of images.

    `network` is a folder that `train_proposals` or `maskclip.released.convert` wrote, a file, or another name as it is.
    """
    digest = hashlib.sha256(f"{MAGIC!r} {dataset.fingerprint()} {limit}".encode())
    path = Path(network)
    files = [path / "record.json", path / "network.safetensors"] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        else:
            digest.update(str(file).encode())
    return digest.hexdigest()


def store_proposals(
    source: ProposalSource, dataset: Any, path: str | Path, key: str, *, batch: int = 8, progress: bool = True
) -> Path:
    """Run a source over a data set, once: nothing happens if `path` is already the whole store of this key.

    Written to `<path>.partial` record by record and moved into place at the end; after a kill the next call goes on
    after the last whole record of the same key. A damaged store, or one of other images, is written anew. Another
    process that is writing the same store is waited for.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock") as lock:
            if not _is_whole(path, key, dataset):
                _write_store(source, dataset, path, key, batch, progress)
            Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it notices, and takes a new one
    except OSError as error:
        if error.errno is None:  # a reader's own sentence about a picture
            raise
        raise OSError(error.errno, f"cannot store proposals in {path}: {error.strerror or error}") from None
    return path


def _is_whole(path: Path, key: str, dataset: Any) -> bool:
    try:
        return StoredProposals(path, key).levels().keys() == set(dataset.image_ids)  # each record has been checked
    except (FileNotFoundError, ValueError):
        return False  # not there, of another network or data set, or damaged


def _write_store(source: ProposalSource, dataset: Any, path: Path, key: str, batch: int, progress: bool) -> None:
    path.unlink(missing_ok=True)
    partial = path.with_name(path.name + ".partial")
    done, end = _whole_records(partial, key)
    remaining = [index for index, image_id in enumerate(dataset.image_ids) if image_id not in done]
    with partial.open("r+b" if end else "wb") as file:
        file.truncate(end)
        file.seek(end)
        if not end:
            _write_record(file, json.dumps({"key": key}).encode())
        for start in tqdm(range(0, len(remaining), batch), desc=f"proposals of {dataset.name}", disable=not progress):
            samples = [dataset[index] for index in remaining[start : start + batch]]
            for sample, proposals in zip(samples, source([sample.image for sample in samples])):
                done[sample.image_id] = file.tell()
                _write_record(file, encode(sample.image_id, proposals))
        index = json.dumps({"key": key, "records": list(done.items())}).encode()
        offset = file.tell()
        file.write(index + FOOTER.pack(offset, len(index), MAGIC))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    levels = StoredProposals(path, key).levels()
    if coarser := sum(value < LEVELS[0] for value in levels.values()):
        print(f"{path}: the masks of {coarser} of {len(levels)} images were too rough to be stored in full precision")


def _write_record(file: Any, payload: bytes) -> None:
    file.write(HEADER.pack(len(payload), zlib.crc32(payload)) + payload)


def _whole_records(partial: Path, key: str) -> tuple[dict[int | str, int], int]:
    """An interrupted store's offsets by image id, and where its whole records end; ({}, 0) if of another key."""
    done: dict[int | str, int] = {}
    if not partial.is_file():
        return done, 0
    with partial.open("rb") as file:
        end = 0
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            payload = file.read(length)
            if length == 0 or len(payload) < length or zlib.crc32(payload) != checksum:
                break
            if end == 0:
                if payload != json.dumps({"key": key}).encode():
                    return {}, 0
            else:
                done[decode(payload)[0]] = end
            end = file.tell()
    return done, end


class StoredProposals(Mapping[int | str, Proposals]):
    """The proposals of a data set by image id, read from a memory map as they are asked for.

    Raises:
        FileNotFoundError: there is no such store.
        ValueError: cut off or damaged, or of another network or data set than `key` says.
        KeyError: an image that it does not have is asked for.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no stored proposals at {path}; run the proposals stage first")
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        damaged = f"{path} is cut off or no store of proposals; delete it and run the proposals stage again"
        if len(self._map) < FOOTER.size:
            raise ValueError(damaged)
        offset, length, magic = FOOTER.unpack(self._map[-FOOTER.size :])
        if magic != MAGIC or offset + length + FOOTER.size != len(self._map):
            raise ValueError(damaged)
        try:
            index = json.loads(self._map[offset : offset + length])
            found, self._offsets = index["key"], {image_id: int(position) for image_id, position in index["records"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(damaged) from None
        if found != key:
            raise ValueError(f"{path} is of another network or other pictures; run the proposals stage again")
        if not all(0 <= position <= offset - HEADER.size for position in self._offsets.values()):
            raise ValueError(damaged)

    def levels(self) -> dict[int | str, int]:
        """Steps on either side of 0 in which each image's logits are stored: `LEVELS[0]`, fewer where it is rough."""
        return {image_id: _head(self._payload(image_id))[0]["levels"] for image_id in self}

    def __getitem__(self, image_id: int | str) -> Proposals:
        return decode(self._payload(image_id))[1]

    def _payload(self, image_id: int | str) -> bytes:
        if image_id not in self._offsets:
            raise KeyError(f"{self.path} has no proposals of image {image_id!r}; run the proposals stage again")
        offset = self._offsets[image_id]
        length, checksum = HEADER.unpack(self._map[offset : offset + HEADER.size])
        payload = self._map[offset + HEADER.size : offset + HEADER.size + length]
        try:
            whole = zlib.crc32(payload) == checksum and _head(payload)[0]["id"] == image_id
        except (ValueError, KeyError, TypeError, struct.error):  # no record of an image
            whole = False
        if not whole:
            raise ValueError(f"{self.path} is damaged at image {image_id}; delete it and run the proposals stage again")
        return payload

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)
