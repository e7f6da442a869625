"""Batches of records <-> bytes.

A batch is a fixed header and a payload; several batches may stand one after the other.

    magic  codec  compression  rows  raw length  stored length  xxh3_64 │ payload
    2 B    1 B    1 B          4 B   8 B         8 B            8 B     │ stored length B   (little endian)

The checksum covers the payload and, as its seed, the header before it: no flipped byte of a batch
goes unnoticed, and every batch that ``decode`` returns holds exactly the rows its header names.

Codecs: RECORDS is one pickle (protocol 5) of the list of records.  PAIRS is one pickle of two
columns, all keys and all values: no tuple is pickled for a pair, which halves the cost of plain
pairs, and ``for key, value in batch`` over two columns makes no tuple either.  Tuples of two
alone are written so; an object that occurs twice in a batch is still one object afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import lz4.block
from xxhash import xxh3_64_intdigest

from spark_ft import closures
from spark_ft.errors import BlockCorrupt

_PREFIX = struct.Struct("<2sBBIQQ")
_CHECKSUM = struct.Struct("<Q")
_PREFIX_BYTES = _PREFIX.size
HEADER_BYTES = _PREFIX.size + _CHECKSUM.size
_MAGIC = b"sR"
_RECORDS, _PAIRS = 0, 1
_PLAIN, _LZ4 = 0, 1
_COMPRESS_FROM_BYTES = 1024  # below, the header of a block costs more than is won
_TRIAL_BYTES = 16 << 10  # what is tried first of a large payload
_LZ4_MAX_BYTES = 1 << 30  # lz4 blocks end at 2 GiB
_FIRST_ROWS = 1024  # of a file, until it is known how large they are
_BATCH_BYTES = 128 << 10

Buffer = bytes | bytearray | memoryview


class Pairs:
    """A decoded batch of pairs, as two columns of equal length."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        self.keys = keys
        self.values = values

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.keys, self.values)  # noqa: B905 - equal by construction; strict costs in the hottest loop

    def __len__(self) -> int:
        return len(self.keys)


Batch = list[Any] | Pairs


class Header(NamedTuple):
    """What a batch says of itself; ``end`` is the offset right behind it."""

    codec: int
    compression: int
    rows: int
    raw_bytes: int
    start: int  # of the payload
    end: int
    seed: int
    checksum: int


def encode(records: Sequence[Any], compress: bool = False) -> bytes:
    """One batch of any records.  Raises what pickling them raises."""
    return _seal(_RECORDS, len(records), closures.dumps(records), compress)


def encode_pairs(keys: Sequence[Any], values: Sequence[Any], compress: bool = False) -> bytes:
    """One batch of pairs, from its columns."""
    return _seal(_PAIRS, len(keys), closures.dumps((keys, values)), compress)


def _seal(codec: int, rows: int, raw: bytes, compress: bool) -> bytes:
    payload, compression = raw, _PLAIN
    if compress and _COMPRESS_FROM_BYTES <= len(raw) <= _LZ4_MAX_BYTES and _compressible(raw):
        packed: bytes = lz4.block.compress(raw, store_size=False)
        if len(packed) < len(raw) * 0.9:
            payload, compression = packed, _LZ4
    prefix = _PREFIX.pack(_MAGIC, codec, compression, rows, len(raw), len(payload))
    checksum = xxh3_64_intdigest(payload, xxh3_64_intdigest(prefix))
    return b"".join((prefix, _CHECKSUM.pack(checksum), payload))


def _compressible(raw: bytes) -> bool:
    """Try the head of a large payload before the whole."""
    if len(raw) <= 4 * _TRIAL_BYTES:
        return True
    return len(lz4.block.compress(raw[:_TRIAL_BYTES], store_size=False)) < _TRIAL_BYTES * 0.9


def header(buffer: Buffer, offset: int = 0) -> Header:
    """Read the header at ``offset``.  Raises BlockCorrupt when there is none; checks no payload."""
    start = offset + HEADER_BYTES
    if len(buffer) < start:
        raise BlockCorrupt(f"a batch header of {HEADER_BYTES} bytes has {len(buffer) - offset}")
    magic, codec, compression, rows, raw_bytes, stored_bytes = _PREFIX.unpack_from(buffer, offset)
    if magic != _MAGIC:
        raise BlockCorrupt(f"no batch begins with {magic!r}")
    seed = xxh3_64_intdigest(memoryview(buffer)[offset : offset + _PREFIX_BYTES])
    (checksum,) = _CHECKSUM.unpack_from(buffer, offset + _PREFIX_BYTES)
    return Header(codec, compression, rows, raw_bytes, start, start + stored_bytes, seed, checksum)


def decode_batch(buffer: Buffer, offset: int = 0) -> tuple[Batch, int]:
    """The batch at ``offset``, verified, and the offset behind it.

    Pairs come as columns.  Raises BlockCorrupt when any byte is not the one that was written.
    """
    head = header(buffer, offset)
    if head.end > len(buffer):
        raise BlockCorrupt(f"a batch of {head.end - offset} bytes has {len(buffer) - offset}")
    payload = memoryview(buffer)[head.start : head.end]
    if xxh3_64_intdigest(payload, head.seed) != head.checksum:
        raise BlockCorrupt(f"checksum of a batch of {head.rows} rows does not hold")
    raw: Buffer = payload
    if head.compression == _LZ4:
        raw = lz4.block.decompress(payload, uncompressed_size=head.raw_bytes)
    content = closures.loads(raw)
    batch: Batch = Pairs(*content) if head.codec == _PAIRS else content
    if len(batch) != head.rows:
        raise BlockCorrupt(f"a batch of {head.rows} rows holds {len(batch)}")
    return batch, head.end


def decode(buffer: Buffer) -> list[Any]:
    """The records of exactly one batch.  Raises BlockCorrupt."""
    batch, end = decode_batch(buffer)
    if end != len(buffer):
        raise BlockCorrupt(f"{len(buffer) - end} bytes too many behind a batch")
    return batch if isinstance(batch, list) else list(batch)


def iter_batches(buffer: Buffer) -> Iterator[Batch]:
    """Every batch of a buffer that holds whole ones, in order.  Raises BlockCorrupt."""
    offset, size = 0, len(buffer)
    while offset < size:
        batch, offset = decode_batch(buffer, offset)
        yield batch


def whole_buffers(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream of bytes at the borders of batches.  Raises BlockCorrupt when it ends within one."""
    parts: list[bytes] = []
    have = needed = 0
    for piece in pieces:
        parts.append(piece)
        have += len(piece)
        if have < needed:  # a batch larger than a piece: joined once, when it is whole
            continue
        buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        end, _, needed = whole_batches(buffer)
        have -= end
        parts = [buffer[end:]] if have else []
        if end:
            yield buffer[:end] if have else buffer
    if have:
        raise BlockCorrupt(f"{have} bytes too many behind the last whole batch")


def whole_batches(buffer: Buffer) -> tuple[int, int, int]:
    """What a buffer begins with: (bytes of its whole batches, their rows, bytes of the torn batch behind
    them, as far as its header is there to tell).

    Costs one header each; raises BlockCorrupt when a header is none.
    """
    end = rows = 0
    while len(buffer) - end >= HEADER_BYTES:
        head = header(buffer, end)
        if head.end > len(buffer):
            return end, rows, head.end - end
        end, rows = head.end, rows + head.rows
    return end, rows, HEADER_BYTES


def write(file: BinaryIO, records: Iterator[Any]) -> None:
    """Batches of about 128 KiB; their bounds depend on the records alone."""
    size = _FIRST_ROWS
    while batch := list(islice(records, size)):
        data = encode(batch)
        file.write(data)
        size = max(1, min(4 * size, size * _BATCH_BYTES // len(data)))
