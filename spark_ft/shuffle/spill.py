"""Records on disk while a task needs more of them than its memory holds, and how many that is.

Sizes are estimated from the records alone, by sampling at fixed places: never from live memory, so
that a task that runs twice spills at the same points and writes the same bytes.

A spill file has no name: it is unlinked as soon as it is open, so it is gone with the last iterator
that reads it, or with the process, however that ends.  Any number of iterators may read it at once.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from spark_ft import rows
from spark_ft.errors import BlockCorrupt, StoreFull
from spark_ft.rows import Batch

BATCH_ROWS = 1024  # pickle loads batches of this size faster per record than larger ones
BATCH_BYTES = 512 << 10  # of records in memory that go into one batch at most
_SAMPLES = 4  # records looked at in a batch
_NESTED_SAMPLES = 8  # elements looked at in a container
_DEPTH_MAX = 4
_GC_HEAD_BYTES = 16

# What a value of a plain type takes, its allocator's rounding included; None: ask sys.getsizeof.
_PLAIN: dict[type, int | None] = {
    bool: 0, NoneType: 0, int: 32, float: 32, complex: 48, str: None, bytes: None, bytearray: None,
}  # fmt: skip


def size_of(value: Any, depth: int = 0) -> int:
    """Bytes that a value takes in memory, roughly; containers are sampled.  Objects of unknown types
    count with their attributes; what several records share is counted in each."""
    kind = type(value)
    plain = _PLAIN.get(kind, -1)
    if plain != -1:
        return plain if plain is not None else sys.getsizeof(value) + 8
    own: int = sys.getsizeof(value, 64) + _GC_HEAD_BYTES
    if depth >= _DEPTH_MAX:
        return own
    if isinstance(value, (tuple, list)):
        return own + _sampled(value, depth)
    if isinstance(value, (set, frozenset)):
        seen = [size_of(item, depth + 1) for item in islice(value, _NESTED_SAMPLES)]
        return own + (sum(seen) * len(value) // len(seen) if seen else 0)
    if isinstance(value, dict):
        seen = [size_of(pair, depth + 1) for pair in islice(value.items(), _NESTED_SAMPLES)]
        return own + (sum(seen) * len(value) // len(seen) if seen else 0)
    attributes = getattr(value, "__dict__", None)
    return own + (size_of(attributes, depth + 1) if isinstance(attributes, dict) else 0)


def _sampled(values: Sequence[Any], depth: int) -> int:
    count = len(values)
    if count <= _NESTED_SAMPLES:
        return sum([size_of(item, depth + 1) for item in values])
    step = count // _NESTED_SAMPLES
    return sum([size_of(values[i * step], depth + 1) for i in range(_NESTED_SAMPLES)]) * step


def mean_size(values: Sequence[Any]) -> int:
    """Mean size of a few of ``values``, at fixed places."""
    count = len(values)
    if count <= _SAMPLES:
        return sum([size_of(value) for value in values]) // max(1, count)
    step = count // _SAMPLES
    return sum([size_of(values[step - 1 + i * step]) for i in range(_SAMPLES)]) // _SAMPLES


def estimate_bytes(batch: Batch) -> int:
    """What a batch of records takes in memory as a list."""
    if isinstance(batch, rows.Pairs):
        record = mean_size(batch.keys) + mean_size(batch.values) + 56
    else:
        record = mean_size(batch)
    return (record + 8) * len(batch)


def rows_per_batch(record_bytes: int, batch_bytes: int = BATCH_BYTES) -> int:
    """How many records of this size go into one batch."""
    return max(1, min(BATCH_ROWS, batch_bytes // max(1, record_bytes)))


def in_batches(records: Iterable[Any]) -> Iterator[list[Any]]:
    """Cut an iterator into lists of at most ``BATCH_ROWS`` records and about ``BATCH_BYTES``.

    Begins small and grows, so that large records are not taken by the thousand.
    """
    iterator = iter(records)
    count = 16
    while batch := list(islice(iterator, count)):
        yield batch
        count = min(count * 4, rows_per_batch(mean_size(batch)))


# --- Files ----------------------------------------------------------------------------------


class Extent(NamedTuple):
    """One batch in a spill file."""

    offset: int
    length: int


class SpillFile:
    """An unnamed file of batches, written at its end only.  Closed when the last reference goes."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd, name = tempfile.mkstemp(prefix="spill-", dir=directory)
            os.unlink(name)
        except OSError as error:
            raise _no_space(error, directory, 0) from None
        self._directory = directory
        self.size_bytes = 0

    def append(self, data: bytes) -> Extent:
        """Raises StoreFull when the disk has no room."""
        extent = Extent(self.size_bytes, len(data))
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise _no_space(error, self._directory, len(data)) from None
        self.size_bytes += len(data)
        return extent

    def read(self, extent: Extent) -> bytes:
        data = os.pread(self._fd, extent.length, extent.offset)
        if len(data) != extent.length:
            raise BlockCorrupt(f"a spill file ends after {len(data)} of {extent.length} bytes")
        return data

    def append_records(self, records: Sequence[Any], batch_bytes: int = BATCH_BYTES) -> list[Extent]:
        """Write records as batches of sensible size."""
        extents = []
        start = 0
        while start < len(records):
            head = records[start : start + BATCH_ROWS]
            count = rows_per_batch(mean_size(head), batch_bytes)
            extents.append(self.append(rows.encode(head[:count])))
            start += count
        return extents

    def batches(self, extents: Iterable[Extent]) -> Iterator[Batch]:
        """Read batches back, one at a time.  Raises BlockCorrupt."""
        for extent in extents:
            yield rows.decode_batch(self.read(extent))[0]

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)


def _no_space(error: OSError, directory: Path, needed_bytes: int) -> StoreFull:
    try:
        status = os.statvfs(directory)
        free_bytes = status.f_bavail * status.f_frsize
    except OSError:
        free_bytes = 0
    return StoreFull(f"{directory}: {error}: {needed_bytes} bytes needed", needed_bytes, free_bytes)


class Piece(NamedTuple):
    """A run of values on disk."""

    file: SpillFile
    extents: list[Extent]
    value_count: int


class Values:
    """Values of one key, or records of a partition, in order; some in memory, some on disk.

    A replayable: may be iterated any number of times, also at once.  Pickles as a list.
    """

    __slots__ = ("_count", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[list[Any] | Piece] = []
        self._count = 0

    def add(self, piece: list[Any] | Piece) -> None:
        """Append a piece; a list is kept as it is, and is the Values' own from now on."""
        self._pieces.append(piece)
        self._count += len(piece) if isinstance(piece, list) else piece.value_count

    def append(self, value: Any) -> None:
        """Add one value, as to a list."""
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, list):
            last.append(value)
        else:
            self._pieces.append([value])
        self._count += 1

    @property
    def pieces(self) -> list[list[Any] | Piece]:
        return self._pieces

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for piece in self._pieces:
            if isinstance(piece, list):
                yield from piece
            else:
                for batch in piece.file.batches(piece.extents):
                    yield from batch

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)
