"""Everything that outlives a task is a block in a store: map outputs whole or not at all.

Invariants:

- A map output exists once its manifest is committed; chunks without one are garbage.  The manifest is
  written last, in a transaction of its own, so whoever sees it sees all its chunks.
- Nothing is ever overwritten: an output's key holds its attempt, a block's key a number of its store.
- A closed segment never changes; it is unlinked when nothing in it is needed.
- What is read is verified by its reader (reading.py): length, key, generation, row count and checksum.
  Bytes that cannot be proved to be the ones written are BlockCorrupt, never a value.
- Empty, unknown (BlockMissing) and dropped (BlockExpired) are three answers.

layout.py says how it all lies on the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it ships no types
from xxhash import xxh3_64, xxh3_64_intdigest

from spark_ft import failpoints
from spark_ft.errors import StorageError, StoreFull
from spark_ft.ids import Fingerprint, HostId, ShuffleId
from spark_ft.protocol.digests import UNKNOWN
from spark_ft.protocol.messages import BlockRef, MapStatus
from spark_ft.storage import layout, lmdb_env
from spark_ft.storage.layout import OutputKey
from spark_ft.storage.lmdb_env import Segment, SegmentDamaged, SegmentFull
from spark_ft.storage.reading import (
    StoreReader,
    pack_block,
    pack_lacking,
    pack_output,
    pack_slice,
    receive_block,
    receive_lacking,
    receive_slice,
    serve,
)

__all__ = [
    "OutputKey",
    "OutputWriter",
    "StoreReader",
    "StoreWriter",
    "pack_block",
    "pack_lacking",
    "pack_output",
    "pack_slice",
    "receive_block",
    "receive_lacking",
    "receive_slice",
    "serve",
]

_PAGE_BYTES = 4096
_TREE_BYTES = 12 * _PAGE_BYTES  # of a new segment, beside what it holds


class StoreWriter:
    """The store of this process: takes map outputs and other blocks, whole or not at all.

    ``segment_bytes`` is the map size of a segment, ``transaction_bytes`` the most that one
    transaction holds in memory.  Nothing is created before the first write.  Any thread may write.
    """

    def __init__(
        self,
        path: Path,
        host: HostId,
        *,
        segment_bytes: int,
        transaction_bytes: int,
        sync: bool = False,
        any_file_system: bool = False,
    ) -> None:
        self.path = path
        self.host = host
        self.chunk_bytes = min(layout.CHUNK_BYTES, transaction_bytes, segment_bytes // 4)
        self._seal = os.path.join(path, "sealed")
        self._segment_bytes = segment_bytes
        self._sync, self._any_file_system = sync, any_file_system
        self._lock = threading.RLock()
        self._segments: dict[int, Segment] = {}  # open, not yet unlinked; the last one is active
        self._live: dict[int, set[bytes]] = {}  # segment -> items (manifest or head keys) with a part in it
        self._spans: dict[bytes, set[int]] = {}  # item -> its segments
        self._shuffles: dict[ShuffleId, Fingerprint] = {}
        self._next_segment = 0
        self._pid = os.getpid()
        self._numbers = itertools.count()

    def begin(self, shuffle: ShuffleId, key: OutputKey, reduce_count: int) -> OutputWriter:
        """Start one map output.  Give it up with ``abort``, publish it with ``commit``."""
        self._shuffles[shuffle] = key.fingerprint
        return OutputWriter(self, shuffle, key, reduce_count)

    def put_block(self, kind: str, name: bytes, chunks: Iterable[bytes]) -> BlockRef:
        """Store the concatenation of ``chunks`` under a fresh key; it exists once this returns.

        ``kind`` is one of rdd, broadcast, result, blob, slice, checkpoint; ``name`` is for
        people and has at most 400 bytes.  Raises StoreFull, StorageError, and what ``chunks`` raises.
        """
        assert len(name) <= layout.NAME_BYTES_MAX, "an LMDB key has 511 bytes at most"
        key = layout.KINDS[kind] + layout.NUMBER.pack(next(self._numbers)) + name
        chunk_writer = _ChunkWriter(self, key, b"d" + key)
        try:
            for chunk in chunks:
                chunk_writer.append(chunk)
            chunk_writer.flush()
            checksum = chunk_writer.digest.intdigest()
            head = msgpack.packb([chunk_writer.size_bytes, checksum, chunk_writer.spans])
            self._check_seal()
            segment = self.write(key, [layout.sealed(key, head)])
            self._check_seal()
        except BaseException:  # ``chunks`` may be user code's; a kill is a BaseException: no half block
            self.discard(key, b"d" + key)
            raise
        return BlockRef(self.host, self.path.name, segment, key, chunk_writer.size_bytes, checksum)

    def drop(self, fingerprints: Iterable[Fingerprint]) -> None:
        """Forget the map outputs of these shuffles and give their space back."""
        wanted = set(fingerprints)
        with lmdb_env.whole(), self._lock:
            for item in [item for item in self._spans if item[:1] == b"m" and item[1:17] in wanted]:
                self.discard(item, b"c" + item[1:])

    def drop_output(self, key: OutputKey) -> None:
        """Forget one map output."""
        self.discard(b"m" + key.pack(), b"c" + key.pack())

    def drop_shuffles(self, shuffles: Iterable[ShuffleId]) -> None:
        """As ``drop``, for shuffles that this store has written outputs of."""
        with self._lock:
            self.drop([self._shuffles.pop(shuffle) for shuffle in shuffles if shuffle in self._shuffles])

    def mark_expired(self, refs: Iterable[BlockRef]) -> None:
        """Whoever asks for these from now on hears that they were dropped on purpose."""
        layout.mark_expired(self.path.parent.parent, [ref.key for ref in refs])

    def drop_blocks(self, refs: Iterable[BlockRef]) -> None:
        """Forget these blocks; those of other stores are passed over."""
        with lmdb_env.whole(), self._lock:
            for ref in refs:
                if ref.store == self.path.name:
                    self.discard(ref.key, b"d" + ref.key)

    def close(self) -> None:
        """Write no more: every segment is closed for good and stays readable."""
        with lmdb_env.whole(), self._lock:
            for number in list(self._segments):
                path = layout.segment_path(self.path, number)
                if path.exists():
                    lmdb_env.mark_closed(path)
                self._segments.pop(number).close()

    # --- For the two kinds of writers ---

    def write(self, item: bytes, puts: list[tuple[bytes, bytes]]) -> int:
        """One transaction that belongs to ``item``; returns the segment it went to.

        Raises StoreFull when there is no room on the disk.
        """
        needed = sum(len(value) for _, value in puts)
        with lmdb_env.whole(), self._lock:
            for _ in range(3):  # a damaged segment, then a full one: two are the most that are left in a row
                number, segment = self._active(needed)
                try:
                    segment.write(puts)
                except SegmentFull:
                    self._roll(number, needed)
                    continue
                except SegmentDamaged:
                    continue
                self._live[number].add(item)
                self._spans.setdefault(item, set()).add(number)
                return number
        raise StoreFull(f"{needed} bytes do not fit into a new segment of {self.path}", needed, 0)

    def discard(self, item: bytes, chunk_prefix: bytes) -> None:
        """Take an item out: deleted in the active segment, and closed ones left empty are unlinked.

        A full map or disk may refuse the deletion; then the garbage stays until its segment goes.
        """
        with lmdb_env.whole(), self._lock:
            active = next(reversed(self._segments), None)
            for number in self._spans.pop(item, ()):
                self._live[number].discard(item)
                if number == active:
                    # The manifest first: a kill between the two leaves garbage, never a torn output.
                    with contextlib.suppress(SegmentFull, SegmentDamaged, StorageError):
                        self._segments[number].write(delete_prefixes=[item])
                        self._segments[number].write(delete_prefixes=[chunk_prefix])
                elif not self._live[number]:
                    self._unlink(number)

    def _check_seal(self) -> None:
        """Asked before and after each commit: whoever sealed the store and listed it afterwards has seen
        every output that this process will ever call committed."""
        if os.path.exists(self._seal):
            raise StorageError(f"{self.path} has been sealed: its writer was given up", "STORE_SEALED")

    def _active(self, needed: int) -> tuple[int, Segment]:
        """The segment to write to.  One whose file was taken away or damaged is left: what it held is lost
        to all others, and whatever else went there would be too (BL-1, ST-9)."""
        number = next(reversed(self._segments), -1)
        if number < 0 or not self._segments[number].is_in_place:
            self._new_segment(needed)
            number = next(reversed(self._segments))
        return number, self._segments[number]

    def _new_segment(self, needed: int) -> None:
        """A segment that takes ``needed`` bytes in one transaction.  A chunk is a quarter of a map at most; a
        manifest, with a row for each reduce partition and what its task added up, may be larger than one."""
        if os.getpid() != self._pid:  # it would stand where the owner's next one is to be (ST-12)
            text = f"{self.path} belongs to the process that this one was forked from"
            raise StorageError(text, "STORE_IN_USE")
        number = self._next_segment
        self._next_segment += 1
        self._segments[number] = lmdb_env.create_segment(
            layout.segment_path(self.path, number),
            max(self._segment_bytes, -(-needed // _PAGE_BYTES) * _PAGE_BYTES + _TREE_BYTES),
            self._sync,
            self._any_file_system,
        )
        self._live[number] = set()

    def _roll(self, number: int, needed: int) -> None:
        """Close the full segment and open the next one (ST-2)."""
        self._new_segment(needed)
        lmdb_env.mark_closed(layout.segment_path(self.path, number))
        if not self._live[number]:
            self._unlink(number)

    def _unlink(self, number: int) -> None:
        self._segments.pop(number).close()
        del self._live[number]
        layout.remove_tree(layout.segment_path(self.path, number))


class _ChunkWriter:
    """Cuts appended bytes into chunks, one transaction each, at the borders of appended pieces where
    that is possible."""

    def __init__(self, store: StoreWriter, item: bytes, prefix: bytes) -> None:
        self.chunk_no = 0  # of the chunk that is being filled
        self.filled = 0  # bytes in it
        self.size_bytes = 0
        self.spans: list[list[int]] = []  # [segment, first chunk in it]
        self.digest = xxh3_64()
        self._store = store
        self._item = item
        self._prefix = prefix
        self._limit = store.chunk_bytes
        self._parts: list[bytes | memoryview] = []

    def append(self, data: bytes) -> None:
        size = len(data)
        if self.filled and self.filled + size > self._limit:
            self.flush()
        self.digest.update(data)
        self.size_bytes += size
        if size <= self._limit:
            self._parts.append(data)
            self.filled += size
            return
        view = memoryview(data)
        for start in range(0, size, self._limit):  # BL-20: no value is larger than a chunk
            part = view[start : start + self._limit]
            self._parts.append(part)
            self.filled = len(part)
            if self.filled == self._limit:
                self.flush()

    def flush(self) -> None:
        if not self._parts:
            return
        failpoints.hit("store.put")
        key = self._prefix + layout.CHUNK_NO.pack(self.chunk_no)
        segment = self._store.write(self._item, [layout.sealed(key, *self._parts)])
        if not self.spans or self.spans[-1][0] != segment:
            self.spans.append([segment, self.chunk_no])
        self.chunk_no += 1
        self.filled = 0
        self._parts.clear()


class OutputWriter:
    """One map output in the making: batches in ascending order of reduce partition, then ``commit``."""

    def __init__(self, store: StoreWriter, shuffle: ShuffleId, key: OutputKey, reduce_count: int) -> None:
        self._store = store
        self._shuffle = shuffle
        self._key = key
        packed = key.pack()
        self._item = b"m" + packed
        self._prefix = b"c" + packed
        self._chunks = _ChunkWriter(store, self._item, self._prefix)
        self._table = [layout.EMPTY_ROW] * reduce_count
        self._row_count = 0
        self._current = -1
        self._first_chunk = self._offset = self._length = self._rows = 0
        self._digest = xxh3_64()

    def append(self, reduce_index: int, batch: bytes, row_count: int) -> None:
        """Add one batch.  Raises StoreFull and StorageError; then only ``abort`` is left to do."""
        if reduce_index != self._current:
            assert reduce_index > self._current, "reduce partitions come in ascending order"
            self._end_row()
            self._current = reduce_index
        chunks = self._chunks
        chunks.append(batch)
        if not self._length:
            # Where the batch began: its last chunk may be flushed already when it filled that exactly.
            self._first_chunk, self._offset = self._began(len(batch))
        self._length += len(batch)
        self._rows += row_count
        self._digest.update(batch)

    def _began(self, size: int) -> tuple[int, int]:
        chunks, limit = self._chunks, self._store.chunk_bytes
        if size <= limit:
            return chunks.chunk_no, chunks.filled - size
        return chunks.chunk_no - size // limit, 0  # a large one starts a chunk of its own

    def _end_row(self) -> None:
        if self._length:
            self._table[self._current] = layout.ROW.pack(
                self._first_chunk, self._offset, self._length, self._rows, self._digest.intdigest()
            )
            self._row_count += self._rows
            self._length = self._rows = 0
            self._digest = xxh3_64()

    def commit(self, accums: tuple[tuple[int, bytes], ...] = (), inputs: int = UNKNOWN) -> MapStatus:
        """Publish the output by its manifest; ``inputs``: of what it was built from.  Raises StoreFull;
        StorageError (STORE_SEALED) when the process has been given up, and then nothing may be reported."""
        self._end_row()
        self._chunks.flush()
        size_bytes, checksum = self._chunks.size_bytes, self._chunks.digest.intdigest()
        key = self._key
        head = msgpack.packb(
            [
                self._shuffle,
                key.fingerprint,
                key.generation,
                key.map_index,
                key.attempt,
                size_bytes,
                self._row_count,
                checksum,
                self._chunks.spans,
                accums,
                inputs,
            ]
        )
        table = b"".join(self._table)
        digest = xxh3_64_intdigest(b"".join((self._item, head, table)))
        prefix = layout.MANIFEST.pack(layout.MANIFEST_MAGIC, len(head), len(self._table), digest)
        failpoints.hit("after_block_put_before_manifest")
        self._store._check_seal()
        segment = self._store.write(self._item, [(self._item, b"".join((prefix, head, table)))])
        self._store._check_seal()
        self._store._shuffles[self._shuffle] = key.fingerprint  # dropped while it was written, perhaps
        return MapStatus(
            self._shuffle,
            key.generation,
            key.map_index,
            self._store.host,
            self._store.path.name,
            segment,
            key.attempt,
            size_bytes,
            self._row_count,
            checksum,
            accums,
        )

    def abort(self) -> None:
        """Give the output up; what was written of it is garbage and its space is given back."""
        self._store.discard(self._item, self._prefix)
