"""Map outputs and other blocks: whole or not at all, verified by the reader, dropped by segments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spark_ft import failpoints, interrupts, rows
from spark_ft.errors import BlockCorrupt, BlockExpired, BlockIncomplete, BlockMissing, StorageError
from spark_ft.ids import Fingerprint, Generation, HostId, ShuffleId, TaskId
from spark_ft.storage import layout, lmdb_env
from spark_ft.storage.blocks import (
    OutputKey,
    StoreReader,
    StoreWriter,
    pack_block,
    pack_slice,
    receive_block,
    receive_slice,
    serve,
)

HOST = HostId("host")
STORE = "executor-1"
SHUFFLE = ShuffleId(7)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def store(root: Path):
    store = make_store(root)
    yield store
    store.close()


def make_store(root: Path, segment_bytes: int = 16 << 20, transaction_bytes: int = 1 << 20) -> StoreWriter:
    return StoreWriter(
        root / "stores" / STORE, HOST, segment_bytes=segment_bytes, transaction_bytes=transaction_bytes
    )


@pytest.fixture
def reader(root: Path) -> StoreReader:
    return StoreReader({HOST: root})


def key(map_index: int = 0, generation: int = 1, name: bytes = b"f", attempt: int = 100) -> OutputKey:
    return OutputKey(Fingerprint(name * 16), Generation(generation), map_index, TaskId(attempt + map_index))


def put_output(store: StoreWriter, where: OutputKey, slices: list[list[list[object]]], accums=()):
    """``slices``: for each reduce partition its batches."""
    output = store.begin(SHUFFLE, where, len(slices))
    for index, batches in enumerate(slices):
        for batch in batches:
            output.append(index, rows.encode(batch), len(batch))
    return output.commit(accums)


def test_L_11_an_output_committed_after_its_shuffle_was_dropped_can_be_dropped_again(store):
    output = store.begin(SHUFFLE, key(), 1)
    output.append(0, rows.encode([1]), 1)
    store.drop_shuffles([SHUFFLE])
    output.commit()
    assert store._spans
    store.drop_shuffles([SHUFFLE])
    assert not store._spans


def read(reader: StoreReader, status, where: OutputKey, index: int) -> list[list[object]]:
    buffers = reader.slice(status.host, status.store, status.segment, where, index)
    return [list(batch) for buffer in buffers for batch in rows.iter_batches(buffer)]


def test_each_reduce_partition_reads_its_own_batches_in_order(store, reader) -> None:
    slices = [[[1, 2], [3]], [], [["x" * 100]], [[], [None]]]
    status = put_output(store, key(3), slices, accums=((5, b"update"),))
    assert [read(reader, status, key(3), index) for index in range(4)] == slices
    assert (status.map_index, status.row_count, status.store, status.accums) == (
        3,
        5,
        STORE,
        ((5, b"update"),),
    )


def test_an_output_without_its_manifest_does_not_exist(store, reader) -> None:
    output = store.begin(SHUFFLE, key(), 1)
    output.append(0, rows.encode([1] * 1000), 1000)
    output._chunks.flush()
    with pytest.raises(BlockMissing):
        reader.slice(HOST, STORE, 0, key(), 0)
    assert reader.outputs(HOST, STORE) == []
    status = output.commit()
    assert reader.outputs(HOST, STORE) == [status]


def test_empty_and_unknown_and_expired_are_three_answers(store, reader, root) -> None:
    status = put_output(store, key(), [[], [[1]]])
    assert read(reader, status, key(), 0) == []
    for other in (key(1), key(generation=2), key(name=b"g")):
        with pytest.raises(BlockMissing):
            read(reader, status, other, 0)
    with pytest.raises(BlockMissing):
        read(reader, status, key(), 2)
    store.drop([key().fingerprint])
    layout.mark_expired(root, [key().fingerprint])
    with pytest.raises(BlockExpired):
        read(reader, status, key(), 0)


def test_BL_20_a_batch_larger_than_many_chunks_comes_back_whole(store, reader) -> None:
    big = os.urandom(5_300_000)
    slices = [[[1]], [[2], [big], [3]], [[4]]]
    status = put_output(store, key(), slices)
    assert [read(reader, status, key(), index) for index in range(3)] == slices


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_batches_that_end_right_at_a_chunks_end_come_back(store, reader, extra: int) -> None:
    size = store.chunk_bytes - len(rows.encode([b"x" * 100_000])) + 100_000 + extra
    slices = [
        [[b"a" * size]],
        [[b"b"]],
        [[b"c" * size], [b"d"]],
        [[b"e" * (2 * store.chunk_bytes + size)]],
        [[1]],
    ]
    status = put_output(store, key(), slices)
    assert [read(reader, status, key(), index) for index in range(5)] == slices


def test_ST_2_a_full_segment_is_closed_and_an_output_goes_on_in_the_next(root, reader) -> None:
    store = make_store(root, segment_bytes=1 << 20, transaction_bytes=100_000)
    batch = [os.urandom(50_000)]
    slices = [[batch] * 10 for _ in range(6)]
    status = put_output(store, key(), slices)
    assert [read(reader, status, key(), index) for index in range(6)] == slices
    numbers = layout.segment_numbers(store.path)
    assert len(numbers) > 3
    closed = [lmdb_env.is_closed(layout.segment_path(store.path, number)) for number in numbers]
    assert closed == [True] * (len(numbers) - 1) + [False]
    assert reader.outputs(HOST, STORE, deep=True) == [status]
    store.drop([key().fingerprint])
    assert layout.segment_numbers(store.path) == numbers[-1:]  # what stays is the active one
    store.close()


@pytest.mark.parametrize("segment_bytes", [64 << 10, 96 << 10, 1 << 20])
def test_ST_2_a_manifest_larger_than_a_segment_gets_a_segment_that_it_fits_into(
    segment_bytes, root, reader
) -> None:
    store = make_store(root, segment_bytes, segment_bytes // 2)
    slices = [[[index]] if index % 100 == 0 else [] for index in range(40_000)]  # 32 bytes for each
    accums = ((1, os.urandom(2 * segment_bytes)),)
    statuses = [put_output(store, key(index), slices, accums) for index in range(2)]
    for index, status in enumerate(statuses):
        assert [read(reader, status, key(index), at) for at in (0, 1, 39_900)] == [[[0]], [], [[39_900]]]
    listed = reader.outputs(HOST, STORE, deep=True)
    assert sorted(listed, key=lambda status: status.map_index) == statuses
    assert statuses[0].accums == accums
    store.close()


def test_BL_1_after_its_files_were_taken_away_a_store_writes_where_readers_find_it(root, reader) -> None:
    store = make_store(root)
    lost = put_output(store, key(0), [[[1]]])
    shutil.rmtree(store.path)
    kept = put_output(store, key(1), [[[2]]])
    assert layout.segment_numbers(store.path) == [kept.segment] != [lost.segment]
    assert lmdb_env.open_segment(layout.segment_path(store.path, kept.segment)).is_in_place
    assert read(reader, kept, key(1), 0) == [[2]]
    store.close()


def test_ST_9_a_store_whose_active_segment_is_damaged_goes_on_in_a_new_one(root, reader) -> None:
    store = make_store(root)
    lost = [put_output(store, key(index), [[[index]]]) for index in range(20)]
    data = layout.segment_path(store.path, lost[0].segment) / "data.mdb"
    meta_bytes = 2 * os.sysconf("SC_PAGE_SIZE")
    with open(data, "r+b") as file:
        file.seek(meta_bytes)
        file.write(bytes(data.stat().st_size - meta_bytes))
    kept = put_output(store, key(20), [[[20]]])
    assert kept.segment != lost[0].segment
    assert read(reader, kept, key(20), 0) == [[20]]
    with pytest.raises((BlockCorrupt, BlockMissing)):
        read(reader, lost[0], key(0), 0)
    store.drop([key().fingerprint])  # what cannot be deleted any more is no reason to fail
    store.close()


def test_ST_12_a_forked_child_begins_no_segment_of_its_parents_store(root, reader) -> None:
    store = make_store(root)  # nothing has been written: there is no segment that the child could find dead
    child = os.fork()
    if child == 0:
        status = 1
        try:
            put_output(store, key(0), [[[1]]])
        except StorageError as error:
            status = 7 if error.getCondition() == "STORE_IN_USE" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert read(reader, put_output(store, key(1), [[[2]]]), key(1), 0) == [[2]]
    store.close()


def test_dropping_one_shuffle_leaves_its_neighbours_readable(store, reader) -> None:
    kept = put_output(store, key(0, name=b"k"), [[[1]]])
    gone = put_output(store, key(0, name=b"g"), [[[2]]])
    store.drop([key(name=b"g").fingerprint])
    assert read(reader, kept, key(0, name=b"k"), 0) == [[1]]
    with pytest.raises(BlockMissing):
        read(reader, gone, key(0, name=b"g"), 0)


def test_space_of_dropped_outputs_is_used_again(store) -> None:
    sizes = []
    for i in range(12):
        put_output(store, key(i), [[[os.urandom(1_000_000)]] for _ in range(3)])
        store.drop([key().fingerprint])
        sizes.append((layout.segment_path(store.path, 0) / "data.mdb").stat().st_size)
    assert layout.segment_numbers(store.path) == [0]
    assert sizes[-1] <= 2 * sizes[0]


def test_an_aborted_output_gives_its_space_back(store, reader) -> None:
    output = store.begin(SHUFFLE, key(), 1)
    output.append(0, os.urandom(3_000_000), 1)
    output.abort()
    segment = lmdb_env.open_segment(layout.segment_path(store.path, 0))
    assert segment.keys(b"c") == [] and reader.outputs(HOST, STORE) == []


def test_other_blocks_come_back_and_are_dropped(store, reader) -> None:
    pieces = [b"abc", b"", os.urandom(2_500_000)]
    ref = store.put_block("broadcast", b"name", pieces)
    again = store.put_block("broadcast", b"name", [b"other"])
    empty = store.put_block("result", b"", [])
    assert ref.key != again.key
    assert b"".join(reader.block(ref)) == b"".join(pieces)
    assert b"".join(reader.block(again)) == b"other" and b"".join(reader.block(empty)) == b""
    store.drop_blocks([ref])
    with pytest.raises(BlockMissing):
        list(reader.block(ref))
    assert b"".join(reader.block(again)) == b"other"


def test_a_block_whose_chunks_fail_half_way_leaves_nothing(store, reader) -> None:
    def chunks():
        yield os.urandom(3_000_000)
        raise ValueError("user code")

    with pytest.raises(ValueError, match="user code"):
        store.put_block("rdd", b"half", chunks())
    segment = lmdb_env.open_segment(layout.segment_path(store.path, 0))
    assert segment.keys(b"") == [lmdb_env.FORMAT_KEY]


def test_a_block_is_not_taken_for_another(store, reader) -> None:
    from dataclasses import replace

    ref = store.put_block("rdd", b"one", [b"data"])
    with pytest.raises(BlockCorrupt):
        list(reader.block(replace(ref, checksum=ref.checksum ^ 1)))
    with pytest.raises(BlockMissing):
        list(reader.block(replace(ref, key=ref.key + b"x")))


def test_BL_3_another_chunk_under_the_right_key_is_noticed(store, reader) -> None:
    status = put_output(store, key(0), [[[1, 2, 3]]])
    put_output(store, key(1), [[[4, 5, 6]]])
    segment = lmdb_env.open_segment(layout.segment_path(store.path, 0))
    mine, other = segment.keys(b"c")
    segment.write([(mine, segment.get(other))])
    with pytest.raises(BlockCorrupt, match="another one's"):
        read(reader, status, key(0), 0)


def test_BL_3_a_manifest_of_an_older_generation_under_the_new_key_is_noticed(store, reader) -> None:
    old, new = key(generation=1), key(generation=2)
    status = put_output(store, old, [[[1]]])
    put_output(store, new, [[[1]]])
    segment = lmdb_env.open_segment(layout.segment_path(store.path, 0))
    segment.write([(b"m" + new.pack(), segment.get(b"m" + old.pack()))])
    with pytest.raises(BlockCorrupt):
        read(reader, status, new, 0)


def test_BL_4_a_lost_row_is_incomplete_even_when_every_checksum_holds(store, reader) -> None:
    output = store.begin(SHUFFLE, key(), 1)
    output.append(0, rows.encode([1, 2]), 3)  # one record was dropped before writing
    status = output.commit()
    with pytest.raises(BlockIncomplete, match="2 of 3 rows"):
        read(reader, status, key(), 0)


def test_EX_4_after_a_kill_right_before_the_manifest_the_output_is_not_there(root, reader) -> None:
    code = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from spark_ft import failpoints
from tests.unit.storage.test_blocks import key, make_store, put_output
store = make_store(Path(sys.argv[1]))
put_output(store, key(0), [[[1]]])
failpoints.arm("after_block_put_before_manifest=kill")
put_output(store, key(1), [[[2]]])
"""
    done = subprocess.run([sys.executable, "-c", code, str(root), os.getcwd()], timeout=60)
    assert done.returncode == -9
    (status,) = reader.outputs(HOST, STORE, deep=True)
    assert status.map_index == 0 and read(reader, status, key(0), 0) == [[1]]


def test_a_failure_in_a_data_transaction_leaves_nothing(store, reader) -> None:
    failpoints.arm("store.put=raise@2")
    try:
        with pytest.raises(failpoints.FailpointError):
            store.put_block("rdd", b"x", [os.urandom(1_000_000)] * 3)
    finally:
        failpoints.arm("")
    segment = lmdb_env.open_segment(layout.segment_path(store.path, 0))
    assert segment.keys(b"d") == []


def test_a_sealed_store_commits_nothing_more(store, reader, root) -> None:
    from spark_ft.storage.gc import seal

    put_output(store, key(0), [[[1]]])
    output = store.begin(SHUFFLE, key(1), 1)
    output.append(0, rows.encode([1]), 1)
    seal(root, STORE)
    listed = reader.outputs(HOST, STORE)
    with pytest.raises(StorageError, match="STORE_SEALED"):
        output.commit()
    assert reader.outputs(HOST, STORE) == listed
    with pytest.raises(StorageError, match="STORE_SEALED"):
        store.put_block("rdd", b"x", [b"x"])


def test_a_kill_that_comes_in_a_transaction_waits_for_its_end(store, reader) -> None:
    """The signal's handler runs while chunks are written: the output is broken off between transactions."""
    output = store.begin(SHUFFLE, key(), 1)
    output.append(0, rows.encode([1]), 1)
    real = lmdb_env.Segment.write

    def killed_inside(self, *args, **kwargs):
        interrupts.deliver()
        real(self, *args, **kwargs)

    with interrupts.armed():
        lmdb_env.Segment.write = killed_inside  # type: ignore[method-assign]
        try:
            with pytest.raises(interrupts.TaskKilled):
                output.commit()
        finally:
            lmdb_env.Segment.write = real  # type: ignore[method-assign]
    output.abort()
    status = put_output(store, key(1), [[[1]]])
    assert reader.outputs(HOST, STORE) == [status]


# --- Over the wire ---


def test_a_served_slice_is_verified_and_equal(store, reader) -> None:
    slices = [[[1], [2]], [], [[os.urandom(3_000_000)]]]
    status = put_output(store, key(), slices)
    for answer in (serve(reader, HOST), serve(reader)):
        for index, expected in enumerate(slices):
            pieces = list(answer(pack_slice(status.store, status.segment, key(), index)))
            assert all(len(piece) <= layout.PIECE_BYTES for piece in pieces)
            got = receive_slice(iter(pieces), key(), index)
            assert [list(batch) for buffer in got for batch in rows.iter_batches(buffer)] == expected


def test_an_answer_to_another_request_or_one_cut_short_is_corrupt(store, reader) -> None:
    status = put_output(store, key(), [[[1], [2]], [[1], [2]]])
    pieces = list(serve(reader)(pack_slice(status.store, status.segment, key(), 0)))
    for bad, where in ((pieces, 1), (pieces[:1], 0), ([], 0), (pieces[1:], 0), ([*pieces, b"x"], 0)):
        with pytest.raises(BlockCorrupt):
            list(receive_slice(iter(bad), key(), where))
    with pytest.raises(BlockCorrupt):
        list(receive_slice(iter(pieces), key(1), 0))


def test_a_served_block_is_verified_and_equal(store, reader) -> None:
    ref = store.put_block("broadcast", b"n", [b"one", b"two"])
    pieces = list(serve(reader)(pack_block(ref)))
    assert receive_block(pieces, ref) == b"onetwo"
    with pytest.raises(BlockCorrupt):
        receive_block([b"onetwO"], ref)


@pytest.mark.parametrize("request_", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x95\xa5slice\xa1x\x00\xa1k\x00"])
def test_a_request_that_is_none_is_missing(reader, request_: bytes) -> None:
    with pytest.raises(BlockMissing):
        list(serve(reader, HOST)(request_))


@pytest.mark.parametrize("name", ["../other", ".", "..", "a/b", "/etc"])
def test_a_request_cannot_leave_the_stores(store, reader, name: str) -> None:
    put_output(store, key(), [[[1]]])
    with pytest.raises(BlockMissing):
        list(serve(reader, HOST)(pack_slice(name, 0, key(), 0)))


# --- Deaths ---


def writer_in_child(root: Path, failpoint: str) -> tuple[int, int]:
    """Fork a writer of endless outputs, which tells of each commit; returns its pid and the pipe's end."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(told)
            store = make_store(root, segment_bytes=1 << 20, transaction_bytes=60_000)
            failpoints.arm(failpoint)
            for number in range(1 << 20):
                put_output(store, key(number), [[[number, os.urandom(70_000)]], [[number]] * 3])
                os.write(tell, number.to_bytes(4, "little"))
        finally:
            os._exit(1)
    os.close(tell)
    return child, told


def check_survivors(root: Path, reader: StoreReader, told: list[int]) -> None:
    """All that was told is there and whole, and at most one more that was not told any more."""
    found = {status.map_index: status for status in reader.outputs(HOST, STORE, deep=True)}
    assert found.keys() >= set(told) and len(found) <= len(told) + 1
    for number, status in found.items():
        assert read(reader, status, key(number), 1) == [[number]] * 3
    for segment in list(lmdb_env._registry.by_inode.values()):
        segment.close()


@pytest.mark.parametrize("nth", [1, 2, 3, 10, 25])
@pytest.mark.parametrize("place", ["store.put", "after_block_put_before_manifest"])
def test_ST_7_after_a_kill_in_a_transaction_all_that_was_committed_is_whole(root, reader, place, nth) -> None:
    child, pipe = writer_in_child(root, f"{place}=kill@{nth}")
    with os.fdopen(pipe, "rb") as stream:
        data = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    check_survivors(root, reader, [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)])


@pytest.mark.parametrize("count", [1, 3, 8, 20, 40])
def test_ST_7_after_a_kill_at_any_moment_all_that_was_committed_is_whole(root, reader, count: int) -> None:
    child, pipe = writer_in_child(root, "")
    with os.fdopen(pipe, "rb") as stream:
        data = stream.read(4 * count)
        os.kill(child, 9)
        data += stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    check_survivors(root, reader, [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)])


def reading_now(path: Path) -> int:
    """Transactions that are open in the segment for reading, in any process."""
    environment = lmdb_env.open_segment(path)._env
    assert environment is not None
    return sum(line.split()[-1] != "-" for line in environment.readers().splitlines()[1:])


def test_ST_6_whoever_stops_in_the_middle_of_a_read_holds_no_transaction(store, reader) -> None:
    chunks = [bytes([number]) * (900 << 10) for number in range(4)]
    ref = store.put_block("rdd", b"rows", iter(chunks))
    put_output(store, key(), [[[chunk] for chunk in chunks]])
    path = layout.segment_path(store.path, 0)

    def look(get: lmdb_env.Get) -> int:
        assert get(b"nothing") is None
        return reading_now(path)

    assert lmdb_env.open_segment(path).read(look) == 1, "one that is open would not be seen"
    for pieces in (reader.block(ref), reader.slice(HOST, STORE, 0, key(), 0)):
        held = [reading_now(path) for _ in pieces]  # here user code is, for as long as it likes
        assert not any(held) and len(held) >= 3, "it came in one piece"
