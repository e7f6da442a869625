"""How blocks lie in a store: keys, values, and the proofs in them.  Plain functions, no state.

    <host root>/stores/<store>/seg-00000/    one LMDB environment, written by one process
                                sealed       its writer may commit no more
    <host root>/expired, expired.old         fingerprints and keys that were dropped on purpose

Keys (big endian, so they sort by what they name):

    'c' fingerprint 16 │ generation 4 │ map index 4 │ attempt 8 │ chunk 4     a chunk of a map output
    'm' fingerprint 16 │ generation 4 │ map index 4 │ attempt 8               its manifest
    kind letter │ number 8 │ name                                             head of another block
    'd' │ that key │ chunk 4                                                  its chunks

A chunk's value is its payload's length, a checksum over key and payload, the key again, the payload.
A manifest is a prefix (lengths and a checksum over key and the rest), a msgpack head, and a
table of fixed rows, one per reduce partition: a reducer unpacks its own row alone.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # it ships no types
from xxhash import xxh3_64, xxh3_64_intdigest

from spark_ft.errors import BlockCorrupt, BlockMissing, StorageError
from spark_ft.ids import Fingerprint, Generation, ShuffleId, TaskId
from spark_ft.storage import filesystem, lmdb_env
from spark_ft.storage.lmdb_env import Get, Segment

CHUNK_BYTES = (1 << 20) - 128  # value, key and page header fill whole pages
PIECE_BYTES = 1 << 20  # at most in one answer of a block server

KINDS = {"rdd": b"r", "broadcast": b"b", "result": b"t", "blob": b"f", "slice": b"s", "checkpoint": b"k"}
NAME_BYTES_MAX = 400
_EXPIRED_BYTES = 256 << 10  # some 14,000 shuffles, twice that in both files

OUTPUT_KEY = struct.Struct(">16sIIQ")
CHUNK_NO = struct.Struct(">I")
NUMBER = struct.Struct(">Q")
_CHUNK_HEAD = struct.Struct("<QQI")  # payload length, checksum, key length
MANIFEST = struct.Struct("<4sIIQ")  # magic, head length, rows of the table, checksum
MANIFEST_MAGIC = b"sFm2"
ROW = struct.Struct("<IIQQQ")  # first chunk, offset in it, length, rows, xxh3_64
EMPTY_ROW = ROW.pack(0, 0, 0, 0, xxh3_64_intdigest(b""))
SLICE_HEAD = struct.Struct("<4s32sIQQQ")  # magic, digest of the request, reduce index, length, rows, xxh3_64
SLICE_MAGIC = b"sFs1"


@dataclass(frozen=True, slots=True)
class OutputKey:
    """Names one map output on disk: equal in any driver that runs the same program."""

    fingerprint: Fingerprint
    generation: Generation
    map_index: int
    attempt: TaskId

    def pack(self) -> bytes:
        return OUTPUT_KEY.pack(self.fingerprint, self.generation, self.map_index, self.attempt)


class Row(NamedTuple):
    """Where one reduce partition lies in a map output."""

    first_chunk: int
    offset: int
    length: int
    rows: int
    checksum: int


def segment_path(store: Path, number: int) -> Path:
    return store / f"seg-{number:05d}"


def segment_number(path: Path) -> int:
    return int(path.name.removeprefix("seg-"))


def segment_numbers(store: Path) -> list[int]:
    """The segments of a store that are there, in order."""
    return sorted(int(path.name[4:]) for path in store.glob("seg-*") if path.name[4:].isdigit())


# --- Values ---------------------------------------------------------------------------------


def sealed(key: bytes, *parts: bytes | memoryview) -> tuple[bytes, bytes]:
    """Key and value of a chunk that says whose it is and proves that it is whole."""
    digest = xxh3_64(key)
    length = 0
    for part in parts:
        digest.update(part)
        length += len(part)
    return key, b"".join((_CHUNK_HEAD.pack(length, digest.intdigest(), len(key)), key, *parts))


@dataclass(slots=True)
class Manifest:
    """The head of a manifest, and one row of its table if one was asked for."""

    shuffle: ShuffleId
    key: OutputKey
    size_bytes: int
    row_count: int
    checksum: int
    spans: list[list[int]]
    accums: tuple[tuple[int, bytes], ...]
    inputs: int  # of what its task has read (protocol/digests.py)
    table: list[Row] = field(default_factory=list)


def payload(get: Get, key: bytes, offset: int = 0, size: int | None = None) -> bytes:
    value = get(key)
    if value is None:
        raise BlockMissing(f"no chunk {key!r}")
    head_bytes = _CHUNK_HEAD.size + len(key)
    if len(value) < head_bytes:
        raise BlockCorrupt(f"a chunk of {len(value)} bytes")
    length, checksum, key_bytes = _CHUNK_HEAD.unpack_from(value)
    if key_bytes != len(key) or value[_CHUNK_HEAD.size : head_bytes] != key:
        raise BlockCorrupt(f"the chunk under {key!r} is another one's")
    if len(value) != head_bytes + length:
        raise BlockCorrupt(f"a chunk of {length} bytes has {len(value) - head_bytes}")
    if size is not None:
        return bytes(value[head_bytes + offset : head_bytes + offset + size])
    if xxh3_64_intdigest(value[_CHUNK_HEAD.size :]) != checksum:
        raise BlockCorrupt(f"checksum of chunk {key!r} does not hold")
    return bytes(value[head_bytes:])


def opened(get: Get, key: bytes) -> bytes | None:
    return None if get(key) is None else payload(get, key)


def unpacked(head: bytes) -> Any:
    try:
        return msgpack.unpackb(head, use_list=True)
    except ValueError as error:
        raise BlockCorrupt(f"head of a block: {error}") from None


def manifest(get: Get, item: bytes, reduce_index: int | None = None, whole: bool = False) -> Manifest:
    """The manifest under ``item``, verified; with the row of ``reduce_index``, or all of them."""
    value = get(item)
    if value is None:
        raise BlockMissing(f"no map output {item!r}")
    if len(value) < MANIFEST.size:
        raise BlockCorrupt(f"a manifest of {len(value)} bytes")
    magic, head_bytes, reduce_count, checksum = MANIFEST.unpack_from(value)
    end = MANIFEST.size + head_bytes
    if magic != MANIFEST_MAGIC or len(value) != end + reduce_count * ROW.size:
        raise BlockCorrupt(f"a manifest of {len(value)} bytes that begins with {magic!r}")
    digest = xxh3_64(item)
    digest.update(value[MANIFEST.size :])
    if digest.intdigest() != checksum:
        raise BlockCorrupt("checksum of a manifest does not hold")
    shuffle, *names, size_bytes, row_count, total, spans, accums, inputs = unpacked(
        bytes(value[MANIFEST.size : end])
    )
    key = OutputKey(*names)
    if b"m" + key.pack() != item:
        raise BlockCorrupt(f"the manifest under {item!r} is that of {key}")
    if whole:
        table = [Row._make(row) for row in ROW.iter_unpack(value[end:])]
    elif reduce_index is None:
        table = []
    elif 0 <= reduce_index < reduce_count:
        table = [Row._make(ROW.unpack_from(value, end + reduce_index * ROW.size))]
    else:
        raise BlockMissing(f"reduce partition {reduce_index} of {reduce_count}")
    updates = tuple((accumulator, update) for accumulator, update in accums)
    return Manifest(shuffle, key, size_bytes, row_count, total, spans, updates, inputs, table)


# --- What a segment holds, for the collector ------------------------------------------------


def items_in(segment: Segment) -> list[bytes]:
    """Keys of the manifests and heads in a segment: one for each block that is whole."""
    return [key for kind in (b"m", *KINDS.values()) for key in segment.keys(kind)]


def item_name(item: bytes) -> bytes:
    """What a drop calls it: a shuffle's outputs by fingerprint, another block by its key."""
    return item[1:17] if item[:1] == b"m" else item


def item_segments(segment: Segment, item: bytes) -> set[int]:
    """Every segment that a chunk of the item lies in.  Raises BlockCorrupt."""
    if item[:1] == b"m":
        spans = segment.read(lambda get: manifest(get, item)).spans
    else:
        _, _, spans = unpacked(segment.read(lambda get: payload(get, item)))
    return {number for number, _ in spans}


def garbage_in(segment: Segment, live: Container[bytes]) -> list[bytes]:
    """Keys in a segment that belong to no live item."""
    items = [item for item in items_in(segment) if item not in live]
    chunks = [key for key in segment.keys(b"c") if b"m" + key[1:-4] not in live]
    return items + chunks + [key for key in segment.keys(b"d") if key[1:-4] not in live]


def is_whole(path: Path) -> bool:
    """Whether every byte that the segment at ``path`` holds verifies.  Touching one that does not may kill
    the process: call this in a disposable child.  Raises BlockMissing when there is no such segment."""

    def verify(get: Get, key: bytes) -> None:
        if get(key) is None:
            return  # dropped since it was listed
        manifest(get, key, whole=True) if key[:1] == b"m" else payload(get, key)

    try:
        segment = lmdb_env.open_segment(path)
        for key in segment.keys(b""):
            if key != lmdb_env.FORMAT_KEY:
                segment.read(lambda get, key=key: verify(get, key))  # type: ignore[misc]
    except BlockMissing:
        raise
    except StorageError:
        return False
    return True


# --- What was dropped on purpose ------------------------------------------------------------


def mark_expired(root: Path, names: Iterable[bytes]) -> None:
    """Note for all readers of this host that these fingerprints and block keys are gone on purpose.

    The latest thousands are remembered: who asks for an older one hears that it is missing, which costs the
    same (BL-15).
    """
    records = b"".join(struct.pack("<H", len(name)) + name for name in names)
    if records:
        try:
            with open(root / "expired", "ab", buffering=0) as file:
                file.write(records)
                full = file.tell() > _EXPIRED_BYTES
            if full:
                os.replace(root / "expired", root / "expired.old")
        except OSError as error:
            raise filesystem.os_error(error, root / "expired", len(records)) from None


def read_expired(root: Path) -> set[bytes]:
    """The names that were marked last; a record that is being written just now is left out."""
    return _expired_in(root / "expired.old") | _expired_in(root / "expired")


def _expired_in(path: Path) -> set[bytes]:
    try:
        data = path.read_bytes()
    except OSError:
        return set()
    names, offset = set(), 0
    while offset + 2 <= len(data):
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "little")
        if end > len(data):
            break
        names.add(data[offset + 2 : end])
        offset = end
    return names


def remove_tree(path: Path) -> None:
    """Unlink a segment or a store; readers that have it mapped keep it.  What is gone already is fine."""
    shutil.rmtree(path, ignore_errors=True)
