"""The reduce side against plain Python, with budgets so small that everything goes to disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spark_ft import rows
from spark_ft.lineage.dependency import Aggregator
from spark_ft.shuffle import grouping, merge, table

LISTS = Aggregator(lambda v: [v], lambda c, v: [*c, v], lambda a, b: a + b)

keys = st.one_of(
    st.integers(-3, 40), st.booleans(), st.sampled_from([0.0, -0.0, 1.0, 2.5]), st.text("ab", max_size=3),
    st.none(),
    st.tuples(st.integers(0, 3), st.text("x", max_size=2)), st.frozensets(st.integers(0, 2)),
)  # fmt: skip
values = st.one_of(st.integers(), st.binary(max_size=10), st.integers(1000, 30_000).map(bytes))
pairs = st.lists(st.tuples(keys, values), max_size=120)
budgets = st.sampled_from([0, 2000, 60_000, 1 << 26])
sizes = st.integers(1, 50)


def batches(records: list[Any], size: int) -> Iterator[rows.Batch]:
    """As lists and as columns, in turn."""
    for number, start in enumerate(range(0, len(records), size)):
        part = records[start : start + size]
        yield rows.Pairs(*zip(*part, strict=True)) if number % 2 else part


def model(records: list[Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in records:
        groups.setdefault(key, []).append(value)
    return groups


def same_groups(got: list[tuple[Any, Any]], expected: dict[Any, Any]) -> bool:
    """Each key once, under the object that came first, with its values in order."""

    def named(items: Any) -> list[str]:
        return sorted(repr((type(key), key, value)) for key, value in items)

    return named(got) == named(expected.items())


def spill_dir() -> Path:
    return Path(tempfile.gettempdir()) / "spark-ft-test-spill"


@given(pairs, budgets, sizes)
def test_group_is_a_dictionary_of_lists(records: list[Any], budget: int, size: int) -> None:
    got = [(key, list(values)) for key, values in merge.group(batches(records, size), budget, spill_dir())]
    assert same_groups(got, model(records))


@given(pairs, budgets, sizes)
def test_combine_is_a_dictionary_of_folds(records: list[Any], budget: int, size: int) -> None:
    got = list(merge.combine(batches(records, size), LISTS, budget, spill_dir()))
    assert same_groups(got, model(records))


@given(st.lists(pairs, min_size=1, max_size=3), budgets, sizes)
def test_cogroup_is_a_join_of_dictionaries(sides: list[list[Any]], budget: int, size: int) -> None:
    got = merge.cogroup([batches(side, size) for side in sides], budget, spill_dir())
    models = [model(side) for side in sides]
    first = {key: None for part in models for key in part}
    expected = {key: [part.get(key, []) for part in models] for key in first}
    assert same_groups([(key, [list(values) for values in groups]) for key, groups in got], expected)


@given(
    st.lists(st.tuples(st.one_of(st.integers(-5, 5), st.floats(-2, 2)), st.integers())),
    st.booleans(),
    st.booleans(),
    budgets,
    sizes,
)
def test_sort_is_sorted(records: list[Any], reverse: bool, by_key: bool, budget: int, size: int) -> None:
    key = (lambda record: record[0]) if by_key else None
    chunks = [records[start : start + size] for start in range(0, len(records), size)]
    assert list(merge.sort(iter(chunks), key, reverse, budget, spill_dir())) == sorted(
        records, key=key, reverse=reverse
    )


@given(pairs, st.sampled_from([1, 2, 3]))
def test_many_levels_of_buckets_lose_nothing(records: list[Any], fanout: int) -> None:
    """With few buckets and next to no budget every level is reached, and then left behind."""
    saved = table.FANOUT, grouping.FANOUT
    table.FANOUT = grouping.FANOUT = fanout
    try:
        got = [(key, list(values)) for key, values in merge.group(batches(records, 7), 500, spill_dir())]
        assert same_groups(got, model(records))
        combined = list(merge.combine(batches(records, 7), LISTS, 500, spill_dir()))
        assert same_groups(combined, model(records))
    finally:
        table.FANOUT, grouping.FANOUT = saved


@given(st.lists(values), budgets)
def test_a_spool_is_the_list(records: list[Any], budget: int) -> None:
    spooled = merge.spool(iter([records[:3], records[3:]]), budget, spill_dir())
    assert list(spooled) == list(spooled) == records and len(spooled) == len(records)
