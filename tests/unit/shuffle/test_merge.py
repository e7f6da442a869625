"""Combining, grouping, sorting and replaying, in memory and far beyond it."""

import itertools
import math
import pickle
import random
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from spark_ft.lineage.dependency import Aggregator
from spark_ft.resultiterable import ResultIterable
from spark_ft.shuffle import merge
from spark_ft.shuffle.spill import Values

TINY, AMPLE = 1 << 15, 1 << 28
SUM = Aggregator(lambda v: v, lambda a, b: a + b, lambda a, b: a + b)
LISTS = Aggregator(lambda v: [v], lambda c, v: [*c, v], lambda a, b: a + b)
budgets = pytest.mark.parametrize("budget", [TINY, 1 << 17, AMPLE])


def batches(records: Any, size: int = 100) -> Iterator[list[Any]]:
    iterator = iter(records)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def pairs(count: int, keys: int, seed: int = 1) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randrange(keys), i) for i in range(count)]


def model(records: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in records:
        groups.setdefault(key, []).append(value)
    return groups


@budgets
@pytest.mark.parametrize("keys", [1, 50, 5000])
def test_groups_hold_all_values_in_order_of_arrival(tmp_path: Path, budget: int, keys: int) -> None:
    records = pairs(20_000, keys)
    groups = [(key, list(values)) for key, values in merge.group(batches(records), budget, tmp_path)]
    assert dict(groups) == model(records) and len(groups) == len(model(records))
    if budget == AMPLE:
        assert groups == list(model(records).items())


@budgets
def test_combined_values_come_in_order_of_arrival(tmp_path: Path, budget: int) -> None:
    records = pairs(20_000, 3000)
    combined = list(merge.combine(batches(records), LISTS, budget, tmp_path))
    assert dict(combined) == model(records) and len(combined) == len(model(records))


@budgets
def test_combiners_are_merged(tmp_path: Path, budget: int) -> None:
    records = [(key, [value]) for key, value in pairs(20_000, 3000)]
    merged = list(merge.merge_combiners(batches(records), LISTS, budget, tmp_path))
    assert dict(merged) == model(pairs(20_000, 3000)) and len(merged) == len(dict(merged))


@budgets
def test_a_cogroup_has_every_key_of_any_side_once(tmp_path: Path, budget: int) -> None:
    sides = [pairs(8000, 900, 1), pairs(3000, 2000, 2), []]
    got = list(merge.cogroup([batches(side) for side in sides], budget, tmp_path))
    models = [model(side) for side in sides]
    assert len(got) == len(dict(got)) == len(models[0] | models[1])
    for key, groups in got:
        assert [list(values) for values in groups] == [groups_.get(key, []) for groups_ in models]


@budgets
def test_spilled_results_are_the_same_each_time(tmp_path: Path, budget: int) -> None:
    records = [(f"key{key}", value) for key, value in pairs(20_000, 2000)]

    def runs() -> tuple[Any, ...]:
        return (
            [(k, list(v)) for k, v in merge.group(batches(records), budget, tmp_path)],
            list(merge.combine(batches(records), LISTS, budget, tmp_path)),
        )

    assert runs() == runs()


def test_MEM_4_one_group_larger_than_the_budget_streams_from_disk(tmp_path: Path) -> None:
    def records() -> Iterator[tuple[str, bytes]]:
        for i in range(4000):
            yield "hot", b"%04d" % i + bytes(1000)
            if i % 100 == 0:
                yield f"cold{i}", b"x"

    for key, values in merge.group(batches(records()), 1 << 18, tmp_path):
        if key == "hot":
            assert isinstance(values.data, Values) and len(values) == values.maxindex == 4000
            for _ in range(2):
                assert [int(value[:4]) for value in values] == list(range(4000))
            on_disk = sum(not isinstance(piece, list) for piece in values.data.pieces)
            assert on_disk >= 1


def test_a_group_outlives_the_iterator_that_gave_it(tmp_path: Path) -> None:
    groups = list(merge.group(batches(pairs(5000, 3)), TINY, tmp_path))
    expected = model(pairs(5000, 3))
    assert {key: list(values) for key, values in groups} == expected


def test_a_spilled_group_is_pickled_as_a_list(tmp_path: Path) -> None:
    ((_, values),) = merge.group(batches(pairs(5000, 1)), TINY, tmp_path)
    again = pickle.loads(pickle.dumps(values))
    assert isinstance(again, ResultIterable) and again.data == list(range(5000))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("key", [None, itemgetter(0), lambda record: -record[0]])
@budgets
def test_sort_is_stable_in_both_directions(tmp_path: Path, budget: int, key: Any, reverse: bool) -> None:
    records = pairs(20_000, 300)
    if key is None:
        records = [(k, 0) for k, _ in records]
    expected = sorted(records, key=key, reverse=reverse)
    assert list(merge.sort(batches(records), key, reverse, budget, tmp_path)) == expected


def test_sort_of_more_runs_than_are_merged_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(merge, "_FAN_IN", 3)
    records = pairs(30_000, 50)
    for reverse in (False, True):
        expected = sorted(records, key=itemgetter(0), reverse=reverse)
        assert list(merge.sort(batches(records), itemgetter(0), reverse, 1 << 15, tmp_path)) == expected


def test_sort_of_keys_without_an_order_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(3)
    records = [math.nan if rng.random() < 0.2 else rng.random() for _ in range(20_000)]
    for reverse in (False, True):
        got = list(merge.sort(batches(records), None, reverse, TINY, tmp_path))
        assert len(got) == len(records)
        assert sorted(x for x in got if x == x) == sorted(x for x in records if x == x)


def test_sort_of_what_cannot_be_compared_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not supported"):
        list(merge.sort(batches([1, "a"]), None, False, AMPLE, tmp_path))


@budgets
def test_a_spool_is_replayed(tmp_path: Path, budget: int) -> None:
    spooled = merge.spool(batches(range(10_000)), budget, tmp_path)
    assert len(spooled) == 10_000 and list(spooled) == list(spooled) == list(range(10_000))


@budgets
def test_keys_that_cannot_be_hashed_are_type_errors(tmp_path: Path, budget: int) -> None:
    bad = [([1], 1)]
    for result in (
        lambda: merge.group(batches(bad), budget, tmp_path),
        lambda: merge.combine(batches(bad), SUM, budget, tmp_path),
        lambda: merge.merge_combiners(batches(bad), SUM, budget, tmp_path),
        lambda: merge.cogroup([batches(bad)], budget, tmp_path),
    ):
        with pytest.raises(TypeError, match="unhashable"):
            list(result())


@budgets
def test_equal_keys_of_different_types_are_one_key(tmp_path: Path, budget: int) -> None:
    records = [(kind(i), i) for i in range(2000) for kind in (int, float)] + [(True, -1)]
    groups = [(key, list(values)) for key, values in merge.group(batches(records), budget, tmp_path)]
    assert len(groups) == 2000 and dict(groups)[1] == [1, 1, -1]
    assert all(type(key) is int for key, _ in groups)  # the first that arrived


@budgets
def test_every_nan_is_a_key_of_its_own(tmp_path: Path, budget: int) -> None:
    records = [(float("nan"), i) for i in range(3000)]
    got = list(merge.group(batches(records), budget, tmp_path))
    assert sorted(list(values) for _, values in got) == [[i] for i in range(3000)]


@budgets
def test_nothing_in_is_nothing_out(tmp_path: Path, budget: int) -> None:
    assert list(merge.group(iter(()), budget, tmp_path)) == []
    assert list(merge.combine(iter(()), SUM, budget, tmp_path)) == []
    assert list(merge.cogroup([iter(()), iter(())], budget, tmp_path)) == []
    assert list(merge.sort(iter(()), None, False, budget, tmp_path)) == []
    assert list(merge.spool(iter(()), budget, tmp_path)) == []


def test_spill_files_are_gone_when_the_iterator_is_left_half_way(tmp_path: Path) -> None:
    import os

    before = len(os.listdir("/proc/self/fd"))
    results = [
        merge.group(batches(pairs(5000, 500)), TINY, tmp_path),
        merge.sort(batches(pairs(5000, 500)), None, False, TINY, tmp_path),
        merge.combine(batches(pairs(5000, 500)), SUM, TINY, tmp_path),
    ]
    for result in results:
        next(result)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) > before
    del results, result
    assert len(os.listdir("/proc/self/fd")) == before


def test_combiners_that_grow_are_spilled_too(tmp_path: Path, monkeypatch) -> None:
    """Few keys whose lists grow without end: the number of keys alone would never call for it."""
    from spark_ft.shuffle import table

    spills = []
    real = table.HashRuns.add
    monkeypatch.setattr(table.HashRuns, "add", lambda self, entries: (spills.append(1), real(self, entries)))
    aggregator = Aggregator(lambda v: [v], lambda c, v: (c.append(v), c)[1], lambda a, b: a + b)
    records = [(i % 3, f"v{i:06}") for i in range(50_000)]
    got = dict(merge.combine(batches(records), aggregator, 1 << 20, tmp_path))
    assert got == model(records) and len(spills) >= 5
