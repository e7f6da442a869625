"""What the collector takes and what it leaves."""

import os
from pathlib import Path

import pytest

from spark_ft import rows
from spark_ft.errors import BlockExpired
from spark_ft.storage import gc, layout, lmdb_env
from spark_ft.storage.blocks import StoreReader
from tests.unit.storage.test_blocks import HOST, SHUFFLE, STORE, key, make_store, put_output, read


@pytest.fixture
def reader(tmp_path: Path) -> StoreReader:
    return StoreReader({HOST: tmp_path})


def die(store) -> None:
    """As after SIGKILL: handles are gone, nothing was closed properly."""
    for segment in store._segments.values():
        segment.close()


def test_a_live_store_is_left_alone(tmp_path: Path, reader) -> None:
    store = make_store(tmp_path)
    status = put_output(store, key(), [[[1]]])
    gc.collect_garbage(tmp_path, {STORE}, {key().fingerprint})
    assert read(reader, status, key(), 0) == [[1]]
    store.close()


def test_EX_3_a_dead_store_without_any_whole_output_is_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    output = store.begin(SHUFFLE, key(), 1)
    output.append(0, os.urandom(3_000_000), 1)
    output._chunks.flush()
    die(store)
    done = gc.collect_garbage(tmp_path, set(), ())
    assert done.stores_removed == 1 and not store.path.exists()


def test_a_dead_stores_outputs_stay_until_they_are_dropped(tmp_path: Path, reader) -> None:
    store = make_store(tmp_path)
    first = put_output(store, key(0, name=b"a"), [[[1]]])
    second = put_output(store, key(0, name=b"b"), [[[2]]])
    block = store.put_block("checkpoint", b"c", [b"kept"])
    die(store)
    gc.collect_garbage(tmp_path, set(), {key(name=b"a").fingerprint})
    assert read(reader, second, key(0, name=b"b"), 0) == [[2]]
    gc.collect_garbage(tmp_path, set(), {key(name=b"b").fingerprint})
    assert b"".join(reader.block(block)) == b"kept"
    gc.collect_garbage(tmp_path, set(), {block.key})
    assert not store.path.exists()
    for status, name in ((first, b"a"), (second, b"b")):
        with pytest.raises(BlockExpired):
            read(reader, status, key(0, name=name), 0)
    with pytest.raises(BlockExpired):
        list(reader.block(block))


def test_closed_segments_of_a_dead_store_go_one_by_one(tmp_path: Path, reader) -> None:
    store = make_store(tmp_path, segment_bytes=1 << 20, transaction_bytes=100_000)
    batch = [os.urandom(60_000)]
    put_output(store, key(0, name=b"a"), [[batch] * 30])
    kept = put_output(store, key(0, name=b"b"), [[batch] * 3])
    die(store)
    before = layout.segment_numbers(store.path)
    done = gc.collect_garbage(tmp_path, set(), {key(name=b"a").fingerprint})
    assert done.segments_unlinked >= 1
    assert len(layout.segment_numbers(store.path)) == len(before) - done.segments_unlinked
    assert read(reader, kept, key(0, name=b"b"), 0) == [batch] * 3


def test_a_dead_segment_that_is_mostly_garbage_is_compacted(tmp_path: Path, reader, monkeypatch) -> None:
    monkeypatch.setattr(gc, "COMPACT_FROM_BYTES", 1 << 20)
    store = make_store(tmp_path)
    kept = put_output(store, key(0), [[[1]], [[os.urandom(100_000)]]])
    expected = [read(reader, kept, key(0), index) for index in range(2)]
    output = store.begin(SHUFFLE, key(1), 1)
    for _ in range(5):
        output.append(0, rows.encode([os.urandom(1_000_000)]), 1)
    output._chunks.flush()
    die(store)
    data = layout.segment_path(store.path, 0) / "data.mdb"
    before = data.stat().st_size
    assert gc.collect_garbage(tmp_path, set(), ()).segments_compacted == 1
    assert data.stat().st_size < before / 10
    assert [read(reader, kept, key(0), index) for index in range(2)] == expected
    assert reader.outputs(HOST, STORE, deep=True) == [kept]
    assert gc.collect_garbage(tmp_path, set(), ()).segments_compacted == 0


def test_a_damaged_dead_store_is_left_to_its_readers(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    put_output(store, key(), [[[1]]])
    die(store)
    (layout.segment_path(store.path, 0) / "data.mdb").write_bytes(b"rubbish" * 1000)
    gc.collect_garbage(tmp_path, set(), ())
    assert store.path.exists()


def test_a_torn_record_of_the_expired_names_is_left_out(tmp_path: Path) -> None:
    layout.mark_expired(tmp_path, [b"a" * 16, b"key"])
    with open(tmp_path / "expired", "ab") as file:
        file.write(b"\x10\x00half")
    assert layout.read_expired(tmp_path) == {b"a" * 16, b"key"}


def test_ST_5_stale_readers_of_a_live_store_are_freed(tmp_path: Path) -> None:
    from tests.unit.storage.test_lmdb_env import STALE_READER, run_python

    store = make_store(tmp_path)
    put_output(store, key(), [[[1]]])
    assert run_python(STALE_READER, str(layout.segment_path(store.path, 0))).returncode == -9
    assert gc.collect_garbage(tmp_path, {STORE}, ()).readers_freed == 1
    store.close()
    assert lmdb_env.is_closed(layout.segment_path(store.path, 0))


def test_BL_15_the_list_of_what_was_dropped_is_bounded_and_knows_the_latest(tmp_path: Path) -> None:
    names = [number.to_bytes(16, "big") for number in range(60_000)]
    for start in range(0, len(names), 500):
        layout.mark_expired(tmp_path, names[start : start + 500])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000
    known = layout.read_expired(tmp_path)
    assert known >= set(names[-14_000:]) and names[0] not in known
