"""Actions: what starts a job.  Tasks run a small function of tasks.py, the driver merges by partition."""

from __future__ import annotations

import functools
import math
import operator
import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from spark_ft.rdd import tasks
from spark_ft.rdd.ordering import OrderingMixin
from spark_ft.rdd.sampling import fraction_for

if TYPE_CHECKING:
    from spark_ft.rdd import RDD

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
V = TypeVar("V")

TAKE_GROWTH = 4  # each further round of ``take`` scans at most so many times the partitions scanned
SAMPLE_SIZE_MAX = sys.maxsize - int(10.0 * math.sqrt(sys.maxsize))
_EMPTY = "Can not reduce() empty RDD"


class ActionsMixin(OrderingMixin[T]):
    """collect reduce fold aggregate count* take top lookup foreach toLocalIterator …"""

    # --- All records ---

    def collect(self) -> list[T]:
        """All records, by partition index."""
        return list(chain.from_iterable(self._run(tasks.as_list)))

    def collectWithJobGroup(self, groupId: str, description: str, interruptOnCancel: bool = False) -> list[T]:
        """``collect`` in a job group."""
        warnings.warn("Deprecated in 3.1, use InheritableThread instead.", FutureWarning, stacklevel=2)
        self.context.setJobGroup(groupId, description, interruptOnCancel)
        return self.collect()

    def toLocalIterator(self, prefetchPartitions: bool = False) -> Iterator[T]:
        """All records, one partition at a time; nothing is computed before it is asked for."""
        self._write_marked()
        partitions = range(self.getNumPartitions())
        lists = self.ctx.run_each(self._node, tasks.as_list, partitions, prefetchPartitions)
        return chain.from_iterable(lists)

    def foreach(self, f: Callable[[T], None]) -> None:
        """Call ``f`` with each record, in tasks."""
        self._run(tasks.ForEach(f))

    def foreachPartition(self, f: Callable[[Iterator[T]], Any]) -> None:
        """Call ``f`` with each partition's iterator; what it returns is drained."""
        self._run(tasks.ForEachPartition(f))

    def collectAsMap(self: ActionsMixin[tuple[K, V]]) -> dict[K, V]:
        """A dict of all pairs; the last value of a key wins."""
        return dict(self.collect())

    # --- Some records ---

    def take(self, num: int) -> list[T]:
        """The first ``num`` records, from as few partitions as will do: one, then four times as many."""
        with self.ctx.one_action():
            return self._taken(num)

    def _taken(self, num: int) -> list[T]:
        taken: list[T] = []
        total = self.getNumPartitions()
        scanned = 0
        while len(taken) < num and scanned < total:
            width = 1
            if scanned:
                width = scanned * TAKE_GROWTH
                if taken:
                    likely = int(1.5 * num * scanned / len(taken)) - scanned
                    width = min(max(likely, 1), width)
            partitions = range(scanned, min(scanned + width, total))
            for records in self._run(tasks.Take(num - len(taken)), partitions):
                taken += records
            scanned += width
        return taken[: max(num, 0)]

    def first(self) -> T:
        """The first record; ValueError when there is none."""
        for record in self.take(1):
            return record
        raise ValueError("RDD is empty")

    def isEmpty(self) -> bool:
        """Whether there is no record at all."""
        return self.getNumPartitions() == 0 or not self.take(1)

    def top(self, num: int, key: Callable[[T], Any] | None = None) -> list[T]:
        """The ``num`` largest, descending."""
        largest = tasks.Largest(num, key)
        found = self._run(largest)
        if not found:
            raise ValueError(_EMPTY)
        return largest.choose(chain.from_iterable(found))

    def takeOrdered(self, num: int, key: Callable[[T], Any] | None = None) -> list[T]:
        """The ``num`` smallest, ascending."""
        if num < 0:
            raise ValueError("top N cannot be negative.")
        if num == 0 or self.getNumPartitions() == 0:
            return []
        smallest = tasks.Smallest(num, key)
        return smallest.choose(chain.from_iterable(self._run(smallest)))

    def takeSample(self, withReplacement: bool, num: int, seed: int | None = None) -> list[T]:
        """Exactly ``num`` records drawn at random, shuffled; all of them when there are no more."""
        if num < 0:
            raise ValueError("Sample size cannot be negative.")
        if num > SAMPLE_SIZE_MAX:
            raise ValueError(f"Sample size cannot be greater than {SAMPLE_SIZE_MAX}.")
        with self.ctx.one_action():
            return self._sampled(withReplacement, num, seed)

    def _sampled(self, withReplacement: bool, num: int, seed: int | None) -> list[T]:
        total = self.count() if num else 0
        if total == 0:
            return []
        seed = self._seed(seed)
        rng = random.Random(seed)
        if not withReplacement and num >= total:
            drawn = self.collect()
        else:
            fraction = fraction_for(num, total, withReplacement)
            drawn = self.sample(withReplacement, fraction, seed).collect()
            while len(drawn) < num:
                seed = rng.randint(0, sys.maxsize)
                drawn = self.sample(withReplacement, fraction, seed).collect()
        rng.shuffle(drawn)
        return drawn[:num]

    def lookup(self: ActionsMixin[tuple[K, V]], key: K) -> list[V]:
        """The values of ``key``; only its own partition is computed when keys are placed.

        The first try is a guess, because only a task may evaluate the partition function: an int
        is found at once, any other key where the first task says.
        """
        partitioner = self.partitioner
        if partitioner is None:
            return list(chain.from_iterable(self._run(tasks.LookupHere(key))))
        if partitioner.partition_count == 0:
            return []
        guess = hash(key) % partitioner.partition_count if type(key) is int else 0
        place = tasks.Lookup(key, partitioner)
        [(home, values)] = self._run(place, [guess])
        if home != guess:
            [(_, values)] = self._run(place, [home])
        return values

    # --- Reduced to one value ---

    def reduce(self, f: Callable[[T, T], T]) -> T:
        """All records reduced by ``f``, each partition first; ValueError when there is none."""
        return self._reduced(tasks.Reduce(f), functools.partial(functools.reduce, f))

    def max(self, key: Callable[[T], Any] | None = None) -> T:
        """The largest record; the first of equals."""
        largest = tasks.Extreme(max, key)
        return self._reduced(largest, largest.of)

    def min(self, key: Callable[[T], Any] | None = None) -> T:
        """The smallest record; the first of equals."""
        smallest = tasks.Extreme(min, key)
        return self._reduced(smallest, smallest.of)

    def _reduced(
        self, function: Callable[[int, Iterator[T]], tuple[T, ...]], merge: Callable[[list[T]], T]
    ) -> T:
        values = list(chain.from_iterable(self._run(function)))
        if not values:
            raise ValueError(_EMPTY)
        return tasks.guarded(merge, values)  # type: ignore[no-any-return]

    def fold(self, zeroValue: T, op: Callable[[T, T], T]) -> T:
        """``reduce`` from ``zeroValue``, which enters once for each partition and once here."""
        return self.aggregate(zeroValue, op, op)

    def aggregate(self, zeroValue: U, seqOp: Callable[[U, T], U], combOp: Callable[[U, U], U]) -> U:
        """Partitions folded by ``seqOp``, their results by ``combOp``, both from ``zeroValue``."""
        values = self._run(tasks.Aggregate(seqOp, zeroValue))
        return tasks.guarded(functools.reduce, combOp, values, tasks.fresh(zeroValue))  # type: ignore[no-any-return]

    def treeReduce(self, f: Callable[[T, T], T], depth: int = 2) -> T:
        """``reduce`` in ``depth`` rounds of tasks."""
        _check_depth(depth)
        partials: RDD[T] = self._partitionwise(tasks.Reduce(f))
        for value in partials._merged_in_tree(f, depth):
            return value
        raise ValueError("Cannot reduce empty RDD.")

    def treeAggregate(
        self, zeroValue: U, seqOp: Callable[[U, T], U], combOp: Callable[[U, U], U], depth: int = 2
    ) -> U:
        """``aggregate`` merged in ``depth`` rounds of tasks; ``zeroValue`` enters once a partition."""
        _check_depth(depth)
        if self.getNumPartitions() == 0:
            return zeroValue
        partials: RDD[U] = self._partitionwise(_One(tasks.Aggregate(seqOp, zeroValue)))
        [value] = partials._merged_in_tree(combOp, depth)
        return value

    def _merged_in_tree(self, merge: Callable[[T, T], T], depth: int) -> list[T]:
        """At most one record a partition, merged in rounds of ``count ** (1 / depth)`` to one or none."""
        merged: RDD[T] = self._self()
        count: float = self.getNumPartitions()
        scale = max(math.ceil(count ** (1.0 / depth)), 2)
        while count > scale + count / scale:
            count /= scale
            keyed: RDD[Any] = merged._partitionwise(_Numbered(int(count)))
            merged = keyed.reduceByKey(merge, int(count), operator.index).values()
        values = list(chain.from_iterable(merged._run(tasks.Reduce(merge))))
        return [tasks.guarded(functools.reduce, merge, values)] if values else []

    # --- Counts ---

    def count(self) -> int:
        return sum(self._run(tasks.count_records))

    def countByValue(self) -> dict[T, int]:
        """How often each record occurs."""
        return _summed(self._run(tasks.count_values))

    def countByKey(self: ActionsMixin[tuple[K, V]]) -> dict[K, int]:
        """How many records each key has."""
        return _summed(self._run(tasks.count_keys))

    def reduceByKeyLocally(self: ActionsMixin[tuple[K, V]], func: Callable[[V, V], V]) -> dict[K, V]:
        """``reduceByKey`` into a dict on the driver."""
        reduced = tasks.ReduceValues(func)
        values = self._run(reduced)
        if not values:
            raise ValueError(_EMPTY)
        pairs = chain.from_iterable(value.items() for value in values)
        return tasks.guarded(reduced.merge, {}, pairs)  # type: ignore[no-any-return]


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"Depth cannot be smaller than 1 but got {depth}.")


def _summed(counts: Sequence[dict[Any, int]]) -> dict[Any, int]:
    if not counts:
        raise ValueError(_EMPTY)
    total: defaultdict[Any, int] = defaultdict(int)
    for each in counts:
        for value, times in each.items():
            total[value] += times
    return total


class _One:
    """A function's result as the only record."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[int, Iterator[Any]], Any]) -> None:
        self.function = function

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterable[Any]:
        return (self.function(partition, records),)


class _Numbered:
    """(partition modulo ``count``, record)."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        return ((partition % self.count, record) for record in records)
