"""Sorting, grouping and joining more bytes than an executor may hold, and how much it held meanwhile.

Records are a number and about a kilobyte that does not compress.  Every answer is known by
construction: counts, bytes and an exclusive-or of all keys, so a lost or doubled record shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import add, xor
from typing import Any

from spark_ft import StorageLevel
from tests.cluster import faultlib

MIB = 1 << 20
WIDTH = 1000


@dataclass(frozen=True)
class Load:
    """``records`` of about a kilobyte in ``partitions``."""

    records: int
    partitions: int


def keyed(sc: Any, load: Load) -> Any:
    """(random number, bytes)."""

    def make(index: int, numbers: Iterator[int]) -> Iterator[tuple[int, bytes]]:
        rng = random.Random(index)
        noise = rng.randbytes(1 << 20)
        for _ in numbers:
            key = rng.getrandbits(60)
            at = key % ((1 << 20) - 1000)
            yield key, noise[at : at + 1000]

    return sc.parallelize(range(load.records), load.partitions).mapPartitionsWithIndex(make)


def all_keys(load: Load) -> int:
    """Exclusive-or of every key that ``keyed`` makes."""
    folded = 0
    for index in range(load.partitions):
        rng = random.Random(index)
        rng.randbytes(1 << 20)
        start, end = index * load.records // load.partitions, (index + 1) * load.records // load.partitions
        for _ in range(end - start):
            folded ^= rng.getrandbits(60)
    return folded


def check_sort(sc: Any, load: Load) -> None:
    def summary(index: int, rows: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, int, int, int, int]]:
        count = folded = 0
        low = high = -1
        for key, value in rows:
            assert key >= high, f"partition {index} is out of order"
            assert len(value) == 1000
            low = key if count == 0 else low
            high, count, folded = key, count + 1, folded ^ key
        yield index, count, low, high, folded

    ordered = keyed(sc, load).sortByKey(numPartitions=load.partitions)
    parts = sorted(ordered.mapPartitionsWithIndex(summary).collect())
    assert sum(part[1] for part in parts) == load.records
    bounds = [(low, high) for _, count, low, high, _ in parts if count]
    assert bounds == sorted(bounds)
    folded = 0
    for part in parts:
        folded ^= part[4]
    assert folded == all_keys(load)


def check_aggregate(sc: Any, load: Load) -> None:
    """Nearly every key is its only one: the tables of both sides outgrow their memory."""
    rows = keyed(sc, load).flatMap(lambda row: [(row[0], row[1][:500]), (row[0] ^ 1, row[1][500:])])
    longest = rows.reduceByKey(lambda one, two: max(one, two), load.partitions)
    count, size, folded = longest.map(lambda row: (1, len(row[1]), row[0])).reduce(
        lambda one, two: (one[0] + two[0], one[1] + two[1], one[2] ^ two[2])
    )
    assert (count, size) == (2 * load.records, load.records * WIDTH)
    assert folded == load.records % 2  # of each pair of keys the last bit is left


def check_group(sc: Any, load: Load) -> None:
    """A thousand keys, one of which has a quarter of all records: more than memory in one group."""

    def key_of(key: int) -> int:
        return 0 if key % 4 == 0 else 1 + key % 1009

    def measure(group: tuple[int, Any]) -> tuple[int, int, int]:
        count = size = 0
        for value in group[1]:
            count, size = count + 1, size + len(value)
        return group[0], count, size

    rows = keyed(sc, load).map(lambda row: (key_of(row[0]), row[1]))
    groups = rows.groupByKey(load.partitions).map(measure).collect()
    assert len({key for key, _, _ in groups}) == len(groups)
    assert sum(count for _, count, _ in groups) == load.records
    assert sum(size for _, _, size in groups) == load.records * WIDTH
    largest = max(count for _, count, _ in groups)
    assert load.records * 0.2 < largest < load.records * 0.3


def check_join(sc: Any, load: Load) -> None:
    """Both sides are large; the left side's hot key is larger than memory, and meets two on the right."""

    def key_of(key: int) -> int:
        return -1 if key % 4 == 0 else key

    left = keyed(sc, load).map(lambda row: (key_of(row[0]), row[1]))
    right = keyed(sc, load).filter(lambda row: row[0] % 4 != 0)
    hot = sc.parallelize([(-1, b"one"), (-1, b"two")], 1)

    def measure(rows: Iterator[tuple[int, tuple[bytes, bytes]]]) -> Iterator[tuple[int, int, int, int]]:
        count = hot_count = size = folded = 0
        for key, (mine, theirs) in rows:
            if key == -1:
                hot_count, size = hot_count + 1, size + len(mine)
            else:
                assert mine == theirs
                count, folded = count + 1, folded ^ key
        yield count, hot_count, size, folded

    parts = left.join(right.union(hot), load.partitions).mapPartitions(measure).collect()
    cold, cold_keys = (
        keyed(sc, load)
        .map(lambda row: row[0])
        .filter(lambda key: key % 4 != 0)
        .aggregate((0, 0), lambda a, key: (a[0] + 1, a[1] ^ key), lambda a, b: (a[0] + b[0], a[1] ^ b[1]))
    )
    assert sum(part[0] for part in parts) == cold
    assert sum(part[1] for part in parts) == 2 * (load.records - cold)
    assert sum(part[2] for part in parts) == 2 * (load.records - cold) * WIDTH
    folded = 0
    for part in parts:
        folded = xor(folded, part[3])
    assert folded == cold_keys


def check_join_the_other_way(sc: Any, load: Load) -> None:
    """The hot key is larger than memory on the right side, and meets three on the left."""
    right = keyed(sc, load).map(lambda row: (-1 if row[0] % 4 == 0 else row[0], row[1]))
    left = sc.parallelize([(-1, "a"), (-1, "b"), (-1, "c")], 2)

    def measure(rows: Iterator[tuple[int, tuple[str, bytes]]]) -> Iterator[tuple[int, int, str]]:
        count = size = 0
        names: list[str] = []
        for _, (mine, theirs) in rows:
            count, size = count + 1, size + len(theirs)
            if not names or names[-1] != mine:
                names.append(mine)
        yield count, size, "".join(names)

    parts = left.join(right, load.partitions).mapPartitions(measure).collect()
    hot = keyed(sc, load).filter(lambda row: row[0] % 4 == 0).count()
    assert [part for part in parts if part[0]] == [(3 * hot, 3 * hot * WIDTH, "abc")]


def check_cogroup(sc: Any, load: Load) -> None:
    """Two sides of which each has a group larger than memory, of the same key."""

    def measure(row: tuple[int, Any]) -> tuple[int, list[int]]:
        key, sides = row
        return key, [sum(len(value) for value in side) for side in sides]

    half = Load(load.records // 2, load.partitions)
    rows = keyed(sc, half).map(lambda row: (row[0] % 2, row[1]))
    shorter = rows.mapValues(lambda value: value[1:])
    sizes = dict(rows.cogroup(shorter, numPartitions=2).map(measure).collect())
    assert set(sizes) == {0, 1}
    assert sizes[0][0] + sizes[1][0] == half.records * WIDTH
    assert sizes[0][1] + sizes[1][1] == half.records * (WIDTH - 1)


def check_persisted(sc: Any, load: Load, level: StorageLevel) -> None:
    """More partitions than memory holds are persisted, read again and aggregated."""
    kept = keyed(sc, load).persist(level)
    for _ in range(2):
        assert kept.map(lambda row: len(row[1])).sum() == load.records * WIDTH
    counts = kept.map(lambda row: (row[0] % 1000, 1)).reduceByKey(add, load.partitions).collect()
    assert sum(count for _, count in counts) == load.records
    kept.unpersist()


CHECKS: dict[str, Callable[[Any, Load], None]] = {
    "aggregate": check_aggregate,
    "sort": check_sort,
    "group": check_group,
    "join": check_join,
    "join-right": check_join_the_other_way,
    "cogroup": check_cogroup,
    "memory-only": lambda sc, load: check_persisted(sc, load, StorageLevel.MEMORY_ONLY),
    "memory-and-disk": lambda sc, load: check_persisted(sc, load, StorageLevel.MEMORY_AND_DISK),
    "disk-only": lambda sc, load: check_persisted(sc, load, StorageLevel.DISK_ONLY),
}

# Whether partitions are on disk.
HELD = {"memory-only": {False}, "memory-and-disk": {False, True}, "disk-only": {True}}


def run_within(running: faultlib.Running, what: str, load: Load, budget_bytes: int) -> str:
    """Do the work; no executor may pass its budget by more than a third over an idle one.

    Mapped stores do not count as memory (RssAnon).  Answers a line for people.
    """
    running.sc.parallelize(range(8), 8).count()
    with faultlib.MemoryWatch(running.log) as watch:
        CHECKS[what](running.sc, load)
    above = watch.peak - watch.baseline
    if what in HELD:
        cached = {event["partition"]: event["disk"] for event in running.log.of("cached")}
        assert len(cached) == load.partitions or what == "memory-only"
        assert set(cached.values()) == HELD[what]
        assert len(cached) < load.partitions or what != "memory-only", "all of it was held in memory"
    told = f"{what}: {above / MIB:.0f} MiB above {watch.baseline / MIB:.0f}, budget {budget_bytes / MIB:.0f}"
    assert above <= budget_bytes * 4 / 3, told
    return told
