"""What a process is in the middle of outlives it; damage there is found and taken out of use (ST-10)."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_ft.errors import BlockCorrupt, BlockMissing
from spark_ft.storage import layout, lmdb_env, touched


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Path]:
    before, path = touched.table, tmp_path / "touched"
    touched.publish(path)
    yield path
    touched.table = before


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[lmdb_env.Segment]:
    made = lmdb_env.create_segment(tmp_path / "stores" / "a" / "seg-00000", 1 << 20, False)
    made.write([layout.sealed(b"c" + bytes([i]), b"\xab" * 3000) for i in range(20)])
    yield made
    made.close()


def test_ST_10_a_transaction_is_told_of_while_it_lasts_and_not_longer(told, segment) -> None:
    seen = segment.read(lambda get: touched.read(told))
    assert seen == [segment.path] and touched.read(told) == []
    with pytest.raises(ZeroDivisionError):
        segment.read(lambda get: 1 // 0)
    assert touched.read(told) == []


def test_ST_10_what_a_process_died_in_can_be_read_afterwards(told, segment) -> None:
    child = os.fork()
    if child == 0:
        touched.publish(told)  # as an executor does that was forked
        other = lmdb_env.create_segment(segment.path.with_name("seg-00001"), 1 << 20, False)
        other.read(lambda get: os.kill(os.getpid(), signal.SIGKILL))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert touched.read(told) == [segment.path.with_name("seg-00001")]


def test_ST_12_a_forked_child_tells_nothing_in_its_parents_name(told, segment) -> None:
    child = os.fork()
    if child == 0:
        other = lmdb_env.create_segment(segment.path.with_name("seg-00001"), 1 << 20, False)
        os._exit(other.read(lambda get: len(touched.read(told))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ST_10_more_transactions_than_entries_and_long_paths_are_no_trouble(told) -> None:
    entered = [touched.table.enter(touched.mark_of(Path(f"/s/{i}"))) for i in range(40)]
    assert len(touched.read(told)) == 32 and entered[32:] == [0] * 8
    for at in entered:
        touched.table.view[at] = 0
        if at:
            touched.table.free.append(at)
    touched.table.enter(touched.mark_of(Path("/" + "x" * 2000)))
    assert touched.read(told) == []


def test_ST_10_a_segment_is_whole_until_a_byte_of_it_is_another(segment) -> None:
    path, data = segment.path, segment.path / "data.mdb"
    assert layout.is_whole(path)
    with data.open("r+b") as file:
        for found in re.finditer(b"\xab" * 2000, file.read()):  # one may lie in what no page uses
            file.seek(found.start())
            file.write(b"!")
    assert not layout.is_whole(path)
    with pytest.raises(BlockMissing):
        layout.is_whole(path.with_name("seg-00007"))


def test_ST_10_a_condemned_segment_is_refused_by_all_and_left_by_its_writer(segment) -> None:
    assert segment.is_in_place
    lmdb_env.condemn(segment.path)
    assert not segment.is_in_place and not layout.is_whole(segment.path)
    with pytest.raises(BlockCorrupt):
        segment.get(b"c\x00")
    segment.close()
    with pytest.raises(BlockCorrupt):
        lmdb_env.open_segment(segment.path)
