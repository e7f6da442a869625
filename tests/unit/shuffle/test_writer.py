"""The map side: where keys go, what is combined, and that a run twice gives the same bytes."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spark_ft import rows
from spark_ft.errors import BlockMissing, PySparkRuntimeError
from spark_ft.ids import Fingerprint, Generation, HostId, ShuffleId, TaskId
from spark_ft.lineage.dependency import Aggregator, ShuffleDependency
from spark_ft.lineage.partitioner import Partitioner, portable_hash
from spark_ft.shuffle.writer import write_map_output
from spark_ft.storage.blocks import OutputKey, StoreReader, StoreWriter

HOST = HostId("host")
SUM = Aggregator(lambda v: v, lambda a, b: a + b, lambda a, b: a + b)
LISTS = Aggregator(lambda v: [v], lambda c, v: [*c, v], lambda a, b: a + b)


class Shuffle:
    """One shuffle's map side on a store of its own."""

    def __init__(self, root: Path) -> None:
        self.store = StoreWriter(
            root / "stores" / "executor", HOST, segment_bytes=64 << 20, transaction_bytes=1 << 20
        )
        self.reader = StoreReader({HOST: root})
        self.root = root
        self.tasks = 0

    def write(
        self,
        records: Any,
        count: int = 4,
        function: Any = portable_hash,
        aggregator: Aggregator | None = None,
        budget_bytes: int = 64 << 20,
        compress: bool = False,
    ) -> tuple[Any, list[list[Any]]]:
        """The status, and what each reduce partition reads."""
        self.tasks += 1
        key = OutputKey(Fingerprint(b"f" * 16), Generation(1), 0, TaskId(self.tasks))
        dependency = ShuffleDependency(
            ShuffleId(1),
            None,
            Partitioner(count, function),
            key.fingerprint,
            aggregator,
            map_side_combine=aggregator is not None,
        )
        status = write_map_output(
            iter(records),
            dependency,
            self.store,
            key,
            budget_bytes=budget_bytes,
            spill_dir=self.root / "tmp",
            accums=lambda: ((1, b"a"),),
            codec_compress=compress,
        )
        slices = [
            [
                record
                for buffer in self.reader.slice(HOST, status.store, status.segment, key, index)
                for batch in rows.iter_batches(buffer)
                for record in batch
            ]
            for index in range(count)
        ]
        return status, slices


@pytest.fixture
def shuffle(tmp_path: Path):
    shuffle = Shuffle(tmp_path)
    yield shuffle
    shuffle.store.close()


MIXED = [
    1,
    -1,
    -7,
    2**70,
    "a",
    "é" * 40,
    b"b",
    None,
    True,
    1.5,
    -0.0,
    (1, "a"),
    (1, -1),
    (),
    (1,),
    (None, (2, 3)),
    (1.5, 2),
]


def test_every_key_goes_where_its_portable_hash_says(shuffle) -> None:
    for keys in (
        MIXED,
        [k for k in MIXED if isinstance(k, tuple)],
        [1, -1, 5],
        ["x", "y"],
        [None, 1],
        [(1, 2), (-1, "c")],
    ):
        _, slices = shuffle.write([(key, i) for i, key in enumerate(keys)], count=5)
        for index, records in enumerate(slices):
            assert all(portable_hash(key) % 5 == index for key, _ in records)
        assert sorted(value for records in slices for _, value in records) == list(range(len(keys)))


def test_every_nan_goes_to_one_place(shuffle) -> None:
    _, slices = shuffle.write([(float("nan"), i) for i in range(10)])
    assert [len(records) for records in slices] == [10, 0, 0, 0]


def test_records_of_a_partition_keep_their_order(shuffle) -> None:
    records = [(random.Random(i).randrange(50), i) for i in range(6_000)]
    _, slices = shuffle.write(records, count=7)
    for index, got in enumerate(slices):
        assert got == [record for record in records if record[0] % 7 == index]


def test_lists_and_other_pairs_become_tuples(shuffle) -> None:
    _, slices = shuffle.write([[1, "a"], (1, "b"), "1c"], count=1)
    assert slices == [[(1, "a"), (1, "b"), ("1", "c")]]


@pytest.mark.parametrize(
    ("record", "error"), [((1, 2, 3), ValueError), ((1,), ValueError), (5, TypeError), ("abc", ValueError)]
)
def test_what_is_no_pair_fails_the_task_and_leaves_nothing(shuffle, record, error) -> None:
    with pytest.raises(error, match=r"unpack|subscriptable"):
        shuffle.write([(1, 2), record])
    assert shuffle.reader.outputs(HOST, "executor") == []


def test_a_key_that_cannot_be_hashed_is_a_type_error(shuffle) -> None:
    for aggregator in (None, SUM):
        for key in ([1], {}, (1, [2])):
            with pytest.raises(TypeError, match="unhashable"):
                shuffle.write([(key, 1)], aggregator=aggregator)


@pytest.mark.parametrize("place", [1.0, "1", None])
def test_a_partition_function_must_return_an_int(shuffle, place) -> None:
    with pytest.raises(TypeError, match="partitionFunc must return int, not"):
        shuffle.write([(1, 2)], function=lambda key: place)


def test_any_int_of_a_partition_function_is_taken_modulo(shuffle) -> None:
    import numpy

    _, slices = shuffle.write([(i, i) for i in range(-4, 4)], count=3, function=lambda k: numpy.int64(k))
    assert [[k for k, _ in records] for records in slices] == [[-3, 0, 3], [-2, 1], [-4, -1, 2]]
    _, slices = shuffle.write([("a", 1), ("b", 2)], count=3, function=lambda k: k == "a")
    assert slices == [[("b", 2)], [("a", 1)], []]


def test_values_of_a_key_are_combined_before_they_are_written(shuffle) -> None:
    status, slices = shuffle.write([(i % 10, 1) for i in range(10_000)], aggregator=SUM)
    assert status.row_count == 10
    assert Counter(dict(record for records in slices for record in records)) == Counter(
        dict.fromkeys(range(10), 1000)
    )


def test_one_and_true_and_one_point_zero_are_one_key(shuffle) -> None:
    _, slices = shuffle.write([(1, "a"), (True, "b"), (1.0, "c")], aggregator=SUM)
    assert [record for records in slices for record in records] == [(1, "abc")]
    _, slices = shuffle.write([(1, "a"), (True, "b"), (1.0, "c")])
    assert sum(map(bool, slices)) == 1


@pytest.mark.parametrize("aggregator", [None, SUM, LISTS])
@pytest.mark.parametrize("budget_bytes", [1 << 12, 1 << 16, 1 << 20])
def test_a_small_budget_changes_no_answer(shuffle, aggregator, budget_bytes: int) -> None:
    records = [(random.Random(i).randrange(3000), i) for i in range(30_000)]
    _, free = shuffle.write(records, count=3, aggregator=aggregator)
    _, tight = shuffle.write(records, count=3, aggregator=aggregator, budget_bytes=budget_bytes)
    for left, right in zip(free, tight, strict=True):
        if aggregator is None:
            assert left == right
        else:
            merged: dict[Any, Any] = {}
            for key, value in right:
                merged[key] = merged[key] + value if key in merged else value
            assert merged == dict(left)
    assert not list((shuffle.root / "tmp").glob("*"))


def test_the_same_records_give_the_same_bytes(shuffle) -> None:
    def records():
        return [(random.Random(i).randrange(500), f"v{i}") for i in range(6_000)]

    for budget_bytes in (1 << 16, 64 << 20):
        for aggregator in (None, LISTS):
            one, _ = shuffle.write(records(), aggregator=aggregator, budget_bytes=budget_bytes)
            two, _ = shuffle.write(records(), aggregator=aggregator, budget_bytes=budget_bytes)
            assert (one.checksum, one.size_bytes, one.row_count) == (
                two.checksum,
                two.size_bytes,
                two.row_count,
            )


def test_two_thousand_reduce_partitions_and_no_records(shuffle) -> None:
    status, slices = shuffle.write([], count=2000)
    assert status.row_count == 0 and slices == [[]] * 2000
    status, slices = shuffle.write([(i, i) for i in range(1000)], count=2000)
    assert [len(records) for records in slices] == [1] * 1000 + [0] * 1000


def test_compression_changes_the_size_alone(shuffle) -> None:
    records = [(i % 100, f"some words {i % 7} that come again") for i in range(5000)]
    plain, expected = shuffle.write(records)
    packed, got = shuffle.write(records, compress=True)
    assert got == expected and packed.size_bytes < plain.size_bytes


def test_accumulator_updates_are_asked_for_after_the_last_record(shuffle) -> None:
    status, _ = shuffle.write([(1, 1)])
    assert status.accums == ((1, b"a"),)


def test_an_error_of_the_user_leaves_no_output(shuffle) -> None:
    def records():
        yield from ((i, i) for i in range(50_000))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        shuffle.write(records(), budget_bytes=1 << 16)
    with pytest.raises(BlockMissing):
        key = OutputKey(Fingerprint(b"f" * 16), Generation(1), 0, TaskId(shuffle.tasks))
        shuffle.reader.slice(HOST, "executor", 0, key, 0)


def test_a_key_error_of_the_users_function_is_not_taken_for_a_new_key(shuffle) -> None:
    def merge(a, b):
        raise KeyError(b)

    with pytest.raises(KeyError):
        shuffle.write([(1, 1), (1, 2)], aggregator=Aggregator(lambda v: v, merge, merge))


class _StopsWhenHashed:
    def __hash__(self) -> int:
        raise StopIteration


def _stops(key: int) -> int:
    if key == 3:
        raise StopIteration
    return key


@pytest.mark.parametrize("aggregator", [None, SUM])
@pytest.mark.parametrize("key", [3, _StopsWhenHashed()])
def test_a_partition_function_or_hash_that_stops_iterating_loses_no_record_in_silence(
    shuffle, key, aggregator
) -> None:
    records = [(0, 1), (1, 1), (key, 1)]  # the last one: nothing is left over to be missed
    function = _stops if key == 3 else portable_hash
    with pytest.raises((PySparkRuntimeError, RuntimeError), match="StopIteration"):
        shuffle.write(records, function=function, aggregator=aggregator)


def test_large_records_are_not_taken_by_the_thousand(shuffle) -> None:
    taken = 0

    def records():
        nonlocal taken
        for i in range(64):
            taken += 1
            yield i, bytes(1 << 20)

    from spark_ft.shuffle.spill import in_batches

    batches = in_batches(records())
    next(batches)
    assert taken == 16
    next(batches)
    assert taken == 17
