"""Sizes that are estimated alike each time, and files that go with their last reader."""

import gc
import os
import pickle
from pathlib import Path

import pytest

from spark_ft import rows
from spark_ft.errors import BlockCorrupt
from spark_ft.shuffle.spill import Extent, Piece, SpillFile, Values, estimate_bytes, in_batches, size_of


def test_a_file_leaves_no_name_and_its_space_goes_with_the_last_reference(tmp_path: Path) -> None:
    file = SpillFile(tmp_path / "new")
    extents = file.append_records(list(range(5000)))
    assert list((tmp_path / "new").iterdir()) == []
    open_before = len(os.listdir("/proc/self/fd"))
    batches = file.batches(extents)
    del file
    assert [x for batch in batches for x in batch] == list(range(5000))
    del batches
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) < open_before


def test_values_in_memory_and_on_disk_are_one_sequence_as_often_as_one_likes(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    values = Values()
    values.add([1, 2])
    values.add(Piece(file, file.append_records([3, 4]), 2))
    values.add([5])
    left, right = iter(values), iter(values)
    assert [next(left), next(right), next(left)] == [1, 1, 2]
    assert list(values) == list(values) == [1, 2, 3, 4, 5] and len(values) == 5
    assert pickle.loads(pickle.dumps(values)) == [1, 2, 3, 4, 5]


def test_a_flipped_byte_on_the_disk_is_noticed(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    (extent,) = file.append_records(["some", "words"])
    os.pwrite(file._fd, b"\xff", extent.length - 2)
    with pytest.raises(BlockCorrupt):
        list(file.batches([extent]))
    with pytest.raises(BlockCorrupt):
        file.read(Extent(0, 10_000))


def test_large_records_make_small_batches(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    extents = file.append_records([bytes(100_000)] * 50)
    assert len(extents) == 10
    assert len(file.append_records(list(range(5000)))) == 5


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (1, 28, 40),
        ("x" * 1000, 1000, 1100),
        ((1, 2), 100, 150),
        ([0] * 1000, 8000, 45_000),
        ({i: str(i) for i in range(1000)}, 80_000, 250_000),
        ({"a": [1.5] * 100}, 1000, 6000),
    ],
)
def test_sizes_are_of_the_right_order(value: object, low: int, high: int) -> None:
    assert low <= size_of(value) <= high


def test_objects_count_with_their_attributes_and_cycles_end() -> None:
    class Thing:
        pass

    thing = Thing()
    thing.payload = "x" * 10_000
    thing.me = [thing, [thing]]
    assert 10_000 < size_of(thing) < 10_000_000


def test_pairs_and_lists_of_pairs_are_estimated_nearly_alike() -> None:
    records = [(i, "v" * 50) for i in range(1000)]
    columns = rows.Pairs([key for key, _ in records], [value for _, value in records])
    assert 0.8 < estimate_bytes(columns) / estimate_bytes(records) < 1.25
    assert estimate_bytes([]) == 0


def test_batches_begin_small_and_grow() -> None:
    sizes = [len(batch) for batch in in_batches(range(10_000))]
    assert sizes[:4] == [16, 64, 256, 1024] and sum(sizes) == 10_000
