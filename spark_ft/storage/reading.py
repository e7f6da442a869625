"""Reading blocks, from this machine's stores or as another host's block server sent them.

The reader verifies: what it hands out is what was written, or it raises.  A read never holds a
transaction across a yield; at most one chunk is copied out at a time.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it ships no types
from xxhash import xxh3_64, xxh3_64_intdigest

from spark_ft import rows
from spark_ft.errors import BlockCorrupt, BlockExpired, BlockIncomplete, BlockMissing, StorageError
from spark_ft.ids import Fingerprint, HostId, ShuffleId
from spark_ft.protocol.messages import BlockRef, MapStatus
from spark_ft.storage import layout, lmdb_env
from spark_ft.storage.layout import Manifest, OutputKey, Row
from spark_ft.storage.lmdb_env import Segment

_Where = tuple[HostId, str]  # a host and one of its stores


class StoreReader:
    """Reads the stores of hosts whose directories can be reached by path.

    ``roots`` maps a host to its root; it may grow meanwhile.  Open environments are shared by
    the whole process (lmdb_env.py), so readers are cheap; any thread may use one.
    """

    def __init__(self, roots: Mapping[HostId, Path]) -> None:
        self.roots = roots
        self._segments: dict[tuple[HostId, str, int], Segment] = {}  # some may have been closed since

    def tidy(self) -> None:
        """Close what has been unlinked or replaced since it was opened, in the whole process."""
        lmdb_env.sweep()

    def slice(
        self, host: HostId, store: str, segment: int, key: OutputKey, reduce_index: int
    ) -> Iterator[bytes]:
        """What a map output holds for one reduce partition, as buffers of whole batches in order.

        Row count and checksum of the whole are verified when the last has been taken; each batch proves
        itself when it is decoded.  Raises BlockMissing, BlockExpired, BlockCorrupt, BlockIncomplete.
        """
        where = (host, store)
        row, spans = self._locate(where, segment, key, reduce_index)
        if not row.length:
            return iter(())
        prefix = b"c" + key.pack()
        return _verified(self._extent(where, prefix, spans, row), row)

    def open_slice(
        self, host: HostId, store: str, segment: int, key: OutputKey, reduce_index: int
    ) -> Iterator[bytes]:
        """The same as one head and raw pieces of at most 1 MiB, for ``receive_slice`` at the other end."""
        where = (host, store)
        row, spans = self._locate(where, segment, key, reduce_index)
        echo = key.pack()
        yield layout.SLICE_HEAD.pack(
            layout.SLICE_MAGIC, echo, reduce_index, row.length, row.rows, row.checksum
        )
        yield from self._extent(where, b"c" + echo, spans, row)

    def open_output(self, host: HostId, store: str, segment: int, key: OutputKey) -> Iterator[bytes]:
        """A whole map output as one head and raw pieces, row by row, for ``copying.copy_output``."""
        where, item = (host, store), b"m" + key.pack()
        try:
            manifest = self._segment(where, segment).read(lambda get: layout.manifest(get, item, whole=True))
        except BlockMissing as missing:
            raise self._gone(host, key.fingerprint, missing) from None
        rows = [(index, *row[2:]) for index, row in enumerate(manifest.table) if row.length]
        head: list[object] = [manifest.size_bytes, manifest.row_count, manifest.checksum]
        head += [manifest.accums, manifest.inputs]
        yield msgpack.packb([*head, len(manifest.table), rows])
        for index, *_ in rows:
            yield from self._extent(where, b"c" + item[1:], manifest.spans, manifest.table[index])

    def lacking(self, host: HostId, store: str, outputs: Sequence[tuple[int, OutputKey]]) -> list[int]:
        """Positions of those outputs, given as (segment, key), whose manifest is not there or is damaged."""
        where = (host, store)
        self._store(where)  # a host that cannot be reached lacks nothing: BlockMissing is raised
        found = []
        for position, (segment, key) in enumerate(outputs):
            item = b"m" + key.pack()
            try:
                self._segment(where, segment).read(lambda get, item=item: layout.manifest(get, item))  # type: ignore[misc]
            except StorageError:
                found.append(position)
        return found

    def block(self, ref: BlockRef) -> Iterator[bytes]:
        """The bytes of a block, chunk by chunk, each verified before it is handed out.

        Raises BlockMissing, BlockExpired, BlockCorrupt.
        """
        where = (ref.host, ref.store)
        try:
            head = self._segment(where, ref.segment).read(lambda get: layout.opened(get, ref.key))
            if head is None:
                raise BlockMissing(f"{where} holds no block {ref.key!r}")
            size_bytes, checksum, spans = layout.unpacked(head)
            if (size_bytes, checksum) != (ref.size_bytes, ref.checksum):
                raise BlockCorrupt(f"block {ref.key!r} of {where} is another one than {ref}")
        except BlockMissing as missing:
            raise self._gone(ref.host, ref.key, missing) from None
        got, digest, prefix = 0, xxh3_64(), b"d" + ref.key
        for chunk_no in itertools.count():
            if got >= size_bytes:
                break
            payload = self._chunk(where, spans, prefix, chunk_no)
            got += len(payload)
            digest.update(payload)
            yield payload
        if got != size_bytes or digest.intdigest() != checksum:
            raise BlockCorrupt(f"block {ref.key!r} of {where} has {got} of {size_bytes} bytes, or others")

    def outputs(
        self,
        host: HostId,
        store: str,
        deep: bool = False,
        names: dict[ShuffleId, Fingerprint] | None = None,
    ) -> list[MapStatus]:
        """Every map output that a store holds committed, as its writer would have reported it.

        ``names`` is filled with the fingerprints of their shuffles.  ``deep`` verifies each byte too.
        Manifests that do not verify are left out: what they spoke of counts as lost.  Touching a damaged
        environment may kill the process, so after a writer's death this runs in a disposable child (ST-9).
        """
        where = (host, store)
        found = []
        for number in layout.segment_numbers(self._store(where)):
            try:
                segment = self._segment(where, number)
                keys = segment.keys(b"m")
            except StorageError:
                continue
            for item in keys:
                try:
                    manifest = segment.read(lambda get, item=item: layout.manifest(get, item, whole=deep))  # type: ignore[misc]
                    if deep:
                        self._verify(where, manifest)
                except StorageError:
                    continue
                key = manifest.key
                found.append(
                    MapStatus(
                        manifest.shuffle,
                        key.generation,
                        key.map_index,
                        host,
                        store,
                        number,
                        key.attempt,
                        manifest.size_bytes,
                        manifest.row_count,
                        manifest.checksum,
                        manifest.accums,
                        manifest.inputs,
                    )
                )
                if names is not None:
                    names[manifest.shuffle] = key.fingerprint
        return found

    def _verify(self, where: _Where, manifest: Manifest) -> None:
        prefix = b"c" + manifest.key.pack()
        for row in manifest.table:
            for _ in _verified(self._extent(where, prefix, manifest.spans, row), row):
                pass

    def host_of(self, store: str) -> HostId:
        """The host whose directory holds a store.  Raises BlockMissing."""
        for host in list(self.roots):
            if self._store((host, store)).is_dir():
                return host
        raise BlockMissing(f"no host within reach has a store {store!r}")

    def _locate(
        self, where: _Where, segment: int, key: OutputKey, reduce_index: int
    ) -> tuple[Row, list[list[int]]]:
        item = b"m" + key.pack()
        try:
            manifest = self._segment(where, segment).read(
                lambda get: layout.manifest(get, item, reduce_index)
            )
        except BlockMissing as missing:
            raise self._gone(where[0], key.fingerprint, missing) from None
        return manifest.table[0], manifest.spans

    def _gone(self, host: HostId, name: bytes, missing: BlockMissing) -> StorageError:
        """Why it is not there: dropped on purpose, or unknown."""
        if name in layout.read_expired(self.roots[host]):
            return BlockExpired(f"dropped on purpose: {missing.getMessage()}")
        return missing

    def _store(self, where: _Where) -> Path:
        host, store = where
        root = self.roots.get(host)
        if root is None:
            raise BlockMissing(f"the stores of host {host} cannot be reached by path")
        if "/" in store or store.startswith("."):
            raise BlockMissing(f"{store!r} is not the name of a store")
        return root / "stores" / store

    def _segment(self, where: _Where, number: int) -> Segment:
        segment = self._segments.get((*where, number))
        if segment is None or not segment.is_open:
            if len(self._segments) >= lmdb_env.OPEN_SEGMENTS_MAX:
                self._segments.clear()  # they are only references: what is open stays open
            segment = lmdb_env.open_segment(layout.segment_path(self._store(where), number))
            self._segments[(*where, number)] = segment
        return segment

    def _extent(self, where: _Where, prefix: bytes, spans: list[list[int]], row: Row) -> Iterator[bytes]:
        """The bytes of a table row, chunk by chunk; each is copied out, no transaction stays open."""
        left, offset = row.length, row.offset
        for chunk_no in itertools.count(row.first_chunk):
            if left <= 0:
                return
            piece = self._chunk(where, spans, prefix, chunk_no, offset, left)
            if not piece:
                raise BlockCorrupt(f"chunk {chunk_no} of {where} ends early")
            yield piece
            left -= len(piece)
            offset = 0

    def _chunk(
        self,
        where: _Where,
        spans: list[list[int]],
        prefix: bytes,
        chunk_no: int,
        offset: int = 0,
        size: int | None = None,
    ) -> bytes:
        """A chunk's payload, verified; or ``size`` bytes from ``offset`` on, which the caller verifies."""
        number = next((segment for segment, first in reversed(spans) if first <= chunk_no), -1)
        key = prefix + layout.CHUNK_NO.pack(chunk_no)
        try:
            return self._segment(where, number).read(lambda get: layout.payload(get, key, offset, size))
        except BlockMissing as missing:  # its manifest was there: not unknown, but torn
            raise BlockCorrupt(f"a manifest names what is not there: {missing.getMessage()}") from None


def _verified(pieces: Iterator[bytes], row: Row) -> Iterator[bytes]:
    """Cut raw pieces at batch borders; at the end length, rows and checksum must be the promised ones."""
    digest = xxh3_64()
    got = found_rows = have = needed = 0
    parts: list[bytes] = []
    for piece in pieces:
        got += len(piece)
        if got > row.length:
            raise BlockCorrupt(f"more than the promised {row.length} bytes")
        digest.update(piece)
        parts.append(piece)
        have += len(piece)
        if have < needed:  # a batch larger than a piece: joined once, when it is whole
            continue
        buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        end, seen, needed = rows.whole_batches(buffer)
        found_rows += seen
        have -= end
        parts = [buffer[end:]] if have else []
        if end:
            yield buffer if not have else buffer[:end]
    if got != row.length or digest.intdigest() != row.checksum:
        raise BlockCorrupt(f"{got} of {row.length} bytes, or others than were written")
    if have or found_rows != row.rows:
        raise BlockIncomplete(f"{found_rows} of {row.rows} rows")


# --- Over the wire --------------------------------------------------------------------------


def pack_slice(store: str, segment: int, key: OutputKey, reduce_index: int) -> bytes:
    """The request for one slice, opaque to the transport."""
    request: bytes = msgpack.packb(["slice", store, segment, key.pack(), reduce_index])
    return request


def pack_block(ref: BlockRef) -> bytes:
    """The request for one block, opaque to the transport."""
    request: bytes = msgpack.packb(["block", ref.store, ref.segment, ref.key, ref.size_bytes, ref.checksum])
    return request


def pack_output(store: str, segment: int, key: OutputKey) -> bytes:
    """The request for a whole map output, opaque to the transport."""
    request: bytes = msgpack.packb(["output", store, segment, key.pack()])
    return request


def pack_lacking(store: str, outputs: Sequence[tuple[int, OutputKey]]) -> bytes:
    """The request for what ``StoreReader.lacking`` says, opaque to the transport."""
    rows = [(segment, key.pack()) for segment, key in outputs]
    request: bytes = msgpack.packb(["lacking", store, 0, b"", rows])
    return request


def serve(
    reader: StoreReader, host: HostId | Callable[[str], HostId] | None = None
) -> Callable[[bytes], Iterator[bytes]]:
    """What a block server does with a request: the pieces of the answer, each of at most 1 MiB.

    ``host``: whose stores it serves, or who says which host of the reader's has a store; None: those of all
    the reader's hosts, told apart by their names.
    The iterator raises the StorageErrors of ``StoreReader``; a request that is none is BlockMissing.
    """

    only = host

    def answer(request: bytes) -> Iterator[bytes]:
        try:
            what, store, segment, key, *rest = msgpack.unpackb(request)
            host = only(store) if callable(only) else only or reader.host_of(store)
            if what == "lacking":
                outputs = [(number, OutputKey(*layout.OUTPUT_KEY.unpack(item))) for number, item in rest[0]]
                return iter([msgpack.packb(reader.lacking(host, store, outputs))])
            if what == "output":
                whole = OutputKey(*layout.OUTPUT_KEY.unpack(key))
                return reader.open_output(host, store, segment, whole)
            if what == "slice":
                (reduce_index,) = rest
                output = OutputKey(*layout.OUTPUT_KEY.unpack(key))
                return reader.open_slice(host, store, segment, output, reduce_index)
            size_bytes, checksum = rest
            return reader.block(BlockRef(host, store, segment, key, size_bytes, checksum))
        except (ValueError, TypeError, struct.error) as error:
            raise BlockMissing(f"not a request: {error}") from None

    return answer


def receive_slice(pieces: Iterator[bytes], key: OutputKey, reduce_index: int) -> Iterator[bytes]:
    """Verify what a block server sent for a slice: the same as ``StoreReader.slice`` gives.

    Raises BlockCorrupt, BlockIncomplete.
    """
    head = next(pieces, b"")
    if len(head) != layout.SLICE_HEAD.size:
        raise BlockCorrupt(f"an answer that begins with {len(head)} bytes")
    magic, echo, index, length, row_count, checksum = layout.SLICE_HEAD.unpack(head)
    if (magic, echo, index) != (layout.SLICE_MAGIC, key.pack(), reduce_index):
        raise BlockCorrupt("the answer is to another request")
    return _verified(pieces, Row(0, 0, length, row_count, checksum))


def receive_lacking(answer: bytes) -> list[int]:
    """Positions in the list that was asked for; an answer that is none says nothing."""
    try:
        return [position for position in msgpack.unpackb(answer) if type(position) is int]
    except (ValueError, TypeError):
        return []


def receive_block(pieces: Iterable[bytes], ref: BlockRef) -> bytes:
    """Verify what a block server sent for a block.  Raises BlockCorrupt."""
    data = b"".join(pieces)
    if len(data) != ref.size_bytes or xxh3_64_intdigest(data) != ref.checksum:
        raise BlockCorrupt(f"{len(data)} of {ref.size_bytes} bytes, or others than were written")
    return data
