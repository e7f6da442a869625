"""Copies: blocks and map outputs of another host, written again into a store of this process.

A copy is byte for byte what it was made of.  It exists once its head or manifest is committed, and
that happens only after length, rows and checksums of the whole have been verified against what the
original's owner told the driver: a torn or damaged original never gets a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgpack  # type: ignore[import-untyped]  # it ships no types
from xxhash import xxh3_64

from spark_ft.errors import BlockCorrupt
from spark_ft.ids import Fingerprint
from spark_ft.protocol.messages import BlockRef, CachedBlock, MapStatus
from spark_ft.storage.blocks import StoreWriter
from spark_ft.storage.layout import OutputKey


def output_key(fingerprint: Fingerprint, status: MapStatus) -> OutputKey:
    return OutputKey(fingerprint, status.generation, status.map_index, status.attempt)


def copy_block(writer: StoreWriter, original: CachedBlock, pieces: Iterator[bytes]) -> CachedBlock:
    """``pieces`` are what a block server answers to ``pack_block``.  Raises BlockCorrupt, StoreFull."""
    ref = original.block
    assert ref is not None
    name = b"%d.%d" % (original.node, original.partition)
    copy = writer.put_block("rdd", name, _whole(pieces, ref))
    return replace(original, block=copy)


def _whole(pieces: Iterator[bytes], ref: BlockRef) -> Iterator[bytes]:
    """The pieces; at their end they must have been all, and those that were written."""
    digest, size_bytes = xxh3_64(), 0
    for piece in pieces:
        digest.update(piece)
        size_bytes += len(piece)
        yield piece
    if (size_bytes, digest.intdigest()) != (ref.size_bytes, ref.checksum):
        raise BlockCorrupt(f"{size_bytes} of {ref.size_bytes} bytes, or others than were written")


def copy_output(
    writer: StoreWriter, fingerprint: Fingerprint, original: MapStatus, pieces: Iterator[bytes]
) -> MapStatus:
    """``pieces`` are what a block server answers to ``pack_output``.  Raises BlockCorrupt, StoreFull."""
    promised = original.size_bytes, original.row_count, original.checksum
    try:
        *found, accums, inputs, reduce_count, table = msgpack.unpackb(next(pieces, b""), use_list=True)
    except (ValueError, TypeError) as error:
        raise BlockCorrupt(f"head of a map output: {error}") from None
    if tuple(found) != promised:
        raise BlockCorrupt(f"a map output of {found} where {promised} was told")
    output = writer.begin(original.shuffle, output_key(fingerprint, original), reduce_count)
    whole = xxh3_64()
    try:
        for index, length, row_count, checksum in table:
            digest, left = xxh3_64(), length
            while left > 0:
                piece = next(pieces, b"")
                if not 0 < len(piece) <= left:
                    raise BlockCorrupt(f"a piece of {len(piece)} bytes where {left} are left")
                output.append(index, piece, row_count if left == length else 0)
                digest.update(piece)
                whole.update(piece)
                left -= len(piece)
            if digest.intdigest() != checksum:
                raise BlockCorrupt(f"checksum of reduce partition {index} does not hold")
        if next(pieces, b""):
            raise BlockCorrupt("more than a whole map output")
        if whole.intdigest() != original.checksum or sum(row[1] for row in table) != original.size_bytes:
            raise BlockCorrupt("checksum of the map output does not hold")
        return output.commit(tuple((accumulator, update) for accumulator, update in accums), inputs)
    except BaseException:  # ``pieces`` comes from elsewhere and may raise anything: no half copy stays
        output.abort()
        raise
