"""A copy is byte for byte its original, or there is none (rows BL-3, BL-11, WK-2)."""

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from spark_ft import rows
from spark_ft.errors import BlockCorrupt, BlockMissing
from spark_ft.ids import Fingerprint, Generation, HostId, NodeId, ShuffleId, TaskId
from spark_ft.protocol.messages import CachedBlock, MapStatus
from spark_ft.storage.blocks import OutputKey, StoreReader, StoreWriter, pack_block, pack_output, serve
from spark_ft.storage.copying import copy_block, copy_output

HERE, THERE = HostId("here"), HostId("there")
PRINT = Fingerprint(b"p" * 16)
KEY = OutputKey(PRINT, Generation(3), 5, TaskId(8))


class Pair:
    """An original's store and a copy's, on two hosts."""

    def __init__(self, tmp_path: Path) -> None:
        self.roots = {host: tmp_path / host for host in (HERE, THERE)}
        sizes = {"segment_bytes": 4 << 20, "transaction_bytes": 256 << 10}
        self.original = StoreWriter(self.roots[THERE] / "stores" / "theirs", THERE, **sizes)
        self.copy = StoreWriter(self.roots[HERE] / "stores" / "ours", HERE, **sizes)
        self.reader = StoreReader(self.roots)

    def output(self) -> MapStatus:
        """Three reduce partitions: two batches, none, and many that fill chunks."""
        output = self.original.begin(ShuffleId(1), KEY, 3)
        for first in (0, 10):
            output.append(0, rows.encode(list(range(first, first + 10))), 10)
        for first in range(0, 20_000, 1000):
            batch = [f"{number:030d}" for number in range(first, first + 1000)]
            output.append(2, rows.encode(batch), 1000)
        return output.commit(((4, b"update"),))

    def pieces(self, status: MapStatus) -> Iterator[bytes]:
        return serve(self.reader, THERE)(pack_output(status.store, status.segment, KEY))

    def read(self, status: MapStatus) -> list[list[object]]:
        return [
            [record for buffer in self.reader.slice(status.host, status.store, status.segment, KEY, index)
             for batch in rows.iter_batches(buffer) for record in batch]
            for index in range(3)
        ]  # fmt: skip


def test_WK_2_a_copied_output_has_the_same_rows_checksums_and_updates(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    original = pair.output()
    copy = copy_output(pair.copy, PRINT, original, pair.pieces(original))
    assert (copy.host, copy.store) == (HERE, "ours")
    same = ("shuffle", "generation", "map_index", "attempt", "size_bytes", "row_count", "checksum", "accums")
    assert all(getattr(copy, name) == getattr(original, name) for name in same)
    assert pair.read(copy) == pair.read(original)
    assert pair.reader.outputs(HERE, "ours", deep=True) == [copy]


def test_WK_2_BL_3_whatever_byte_of_an_answer_is_changed_there_is_no_copy(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    output = pair.original.begin(ShuffleId(1), KEY, 2)
    output.append(1, rows.encode([1, 2, 3]), 3)
    original = output.commit()
    whole = list(pair.pieces(original))
    assert len(whole) == 2
    for number, piece in enumerate(whole):
        for position in range(len(piece)):
            damaged = bytearray(piece)
            damaged[position] ^= 1
            answer = [bytes(damaged) if at == number else each for at, each in enumerate(whole)]
            try:
                copy = copy_output(pair.copy, PRINT, original, iter(answer))
            except (BlockCorrupt, ValueError):
                assert pair.reader.outputs(HERE, "ours") == []
            else:  # a head may say the same in other words
                pair.copy.drop_output(KEY)
                assert copy.checksum == original.checksum
    with pytest.raises(BlockCorrupt):
        copy_output(pair.copy, PRINT, original, iter(whole[:1]))


def test_BL_3_an_answer_whose_rows_are_cut_elsewhere_is_no_output(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    output = pair.original.begin(ShuffleId(1), KEY, 2)
    for index in range(2):
        output.append(index, rows.encode([index] * 9), 9)
    original = output.commit()
    head, *pieces = pair.pieces(original)
    whole = b"".join(pieces)
    *told, table = msgpack.unpackb(head)
    cut = table[0][1] + 1
    table[0][1], table[1][1] = cut, len(whole) - cut
    answer = [msgpack.packb([*told, table]), whole[:cut], whole[cut:]]
    with pytest.raises(BlockCorrupt, match="reduce partition 0"):
        copy_output(pair.copy, PRINT, original, iter(answer))


def test_BL_11_a_copied_block_is_the_original_and_one_that_ends_early_is_none(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    ref = pair.original.put_block("rdd", b"7.1", [b"x" * 700_000, b"y" * 700_000])
    held = CachedBlock(NodeId(7), 1, ref.size_bytes, ref)
    pieces = list(serve(pair.reader, THERE)(pack_block(ref)))
    copy = copy_block(pair.copy, held, iter(pieces)).block
    assert copy is not None and (copy.host, copy.checksum) == (HERE, ref.checksum)
    assert b"".join(pair.reader.block(copy)) == b"x" * 700_000 + b"y" * 700_000
    for wrong in (pieces[:-1], [*pieces, b"z"], [bytes(len(pieces[0])), *pieces[1:]]):
        with pytest.raises(BlockCorrupt):
            copy_block(pair.copy, held, iter(wrong))
    pair.copy.drop_blocks([copy])
    with pytest.raises(BlockMissing):
        list(pair.reader.block(copy))
