"""The RDD API over plain lists of partitions: what every suite compares the engine with.

An ``OracleRDD`` is a list of lists, computed at once.  Narrow operations are exact to the partition
and its order.  What a shuffle leaves is right as a multiset, and the oracle puts it in one partition
after another by a rule of its own: compare it sorted (``same_bag``), except after a sort, where
the whole sequence is promised.  (Samplers give PySpark's numbers: a generator a partition,
seeded with seed ^ partition, after ten throw-away draws.)
"""

from __future__ import annotations

import copy
import heapq
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

Partitions = list[list[Any]]


def sliced(values: Iterable[Any], count: int) -> Partitions:
    """How ``parallelize`` cuts: ranges evenly, everything else by batches."""
    if isinstance(values, range):
        size = len(values)
        return [list(values[i * size // count : (i + 1) * size // count]) for i in range(count)]
    items = list(values)
    batch = max(1, min(len(items) // count, 1024))
    batches = [items[i : i + batch] for i in range(0, len(items), batch)]
    m = len(batches)
    return [
        list(itertools.chain.from_iterable(batches[i * m // count : (i + 1) * m // count]))
        for i in range(count)
    ]


def sampler(seed: int, partition: int) -> random.Random:
    rng = random.Random(seed ^ partition)
    for _ in range(10):
        rng.randint(0, 1)
    return rng


def poisson(rng: random.Random, mean: float) -> int:
    """For means below 20, which is all that tests ask for."""
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        count += 1
        product *= rng.random()
    return count


def canonical(value: Any) -> Any:
    """A value that sorts beside any other: containers by their parts, unordered ones sorted."""
    if isinstance(value, (list, tuple)):
        return ("seq", tuple(canonical(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return ("set", tuple(sorted(canonical(item) for item in value)))
    if isinstance(value, dict):
        return ("map", tuple(sorted((canonical(k), canonical(v)) for k, v in value.items())))
    if isinstance(value, bool | int | float):
        return ("num", repr(float(value)), value)
    return (type(value).__name__, repr(value))


def same_bag(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Equal as multisets."""
    return sorted(map(canonical, one)) == sorted(map(canonical, other))


class OracleContext:
    """``SparkContext``, as far as an RDD program without faults needs it."""

    def __init__(self, default_parallelism: int = 2) -> None:
        self.defaultParallelism = default_parallelism

    def parallelize(self, c: Iterable[Any], numSlices: int | None = None) -> OracleRDD:
        return OracleRDD(self, sliced(c, self.defaultParallelism if numSlices is None else numSlices))

    def range(
        self, start: int, end: int | None = None, step: int = 1, numSlices: int | None = None
    ) -> OracleRDD:
        values = range(start) if end is None else range(start, end, step)
        return self.parallelize(values, numSlices)

    def emptyRDD(self) -> OracleRDD:
        return OracleRDD(self, [])

    def union(self, rdds: Sequence[OracleRDD]) -> OracleRDD:
        return OracleRDD(self, [part for rdd in rdds for part in rdd.partitions])


class OracleRDD:
    def __init__(self, ctx: OracleContext, partitions: Partitions) -> None:
        self.ctx = self.context = ctx
        self.partitions = partitions

    def _each(self, function: Callable[[int, Iterator[Any]], Iterable[Any]]) -> OracleRDD:
        return OracleRDD(self.ctx, [list(function(i, iter(p))) for i, p in enumerate(self.partitions)])

    def _shuffled(self, items: Iterable[Any], count: int | None) -> OracleRDD:
        """Records after a shuffle: in ``count`` partitions, dealt out in turn."""
        parts: Partitions = [[] for _ in range(count or max(1, len(self.partitions)))]
        for index, item in enumerate(items):
            parts[index % len(parts)].append(item)
        return OracleRDD(self.ctx, parts)

    def _flat(self) -> list[Any]:
        return [item for part in self.partitions for item in part]

    def _grouped(self) -> dict[Any, list[Any]]:
        groups: dict[Any, list[Any]] = defaultdict(list)
        for key, value in self._flat():
            groups[key].append(value)
        return groups

    # --- Narrow ---

    def map(self, f: Callable[[Any], Any], preservesPartitioning: bool = False) -> OracleRDD:
        return self._each(lambda _, items: map(f, items))

    def flatMap(self, f: Callable[[Any], Iterable[Any]], preservesPartitioning: bool = False) -> OracleRDD:
        return self._each(lambda _, items: itertools.chain.from_iterable(map(f, items)))

    def filter(self, f: Callable[[Any], Any]) -> OracleRDD:
        return self._each(lambda _, items: filter(f, items))

    def mapPartitions(
        self, f: Callable[..., Iterable[Any]], preservesPartitioning: bool = False
    ) -> OracleRDD:
        return self._each(lambda _, items: f(items))

    def mapPartitionsWithIndex(
        self, f: Callable[..., Iterable[Any]], preservesPartitioning: bool = False
    ) -> OracleRDD:
        return self._each(f)

    def glom(self) -> OracleRDD:
        return self._each(lambda _, items: [list(items)])

    def keyBy(self, f: Callable[[Any], Any]) -> OracleRDD:
        return self.map(lambda x: (f(x), x))

    def keys(self) -> OracleRDD:
        return self.map(lambda pair: pair[0])

    def values(self) -> OracleRDD:
        return self.map(lambda pair: pair[1])

    def mapValues(self, f: Callable[[Any], Any]) -> OracleRDD:
        return self.map(lambda pair: (pair[0], f(pair[1])))

    def flatMapValues(self, f: Callable[[Any], Iterable[Any]]) -> OracleRDD:
        return self.flatMap(lambda pair: [(pair[0], value) for value in f(pair[1])])

    def union(self, other: OracleRDD) -> OracleRDD:
        return OracleRDD(self.ctx, self.partitions + other.partitions)

    def zip(self, other: OracleRDD) -> OracleRDD:
        if len(self.partitions) != len(other.partitions):
            raise ValueError("Can only zip with RDD which has the same number of partitions")
        pairs = zip(self.partitions, other.partitions, strict=True)
        return OracleRDD(self.ctx, [list(zip(left, right, strict=True)) for left, right in pairs])

    def zipWithIndex(self) -> OracleRDD:
        counter = itertools.count()
        return self._each(lambda _, items: [(item, next(counter)) for item in items])

    def zipWithUniqueId(self) -> OracleRDD:
        n = len(self.partitions)
        return self._each(lambda k, items: [(item, i * n + k) for i, item in enumerate(items)])

    def sample(self, withReplacement: bool, fraction: float, seed: int) -> OracleRDD:
        def kept(partition: int, items: Iterator[Any]) -> Iterator[Any]:
            rng = sampler(seed, partition)
            for item in items:
                times = poisson(rng, fraction) if withReplacement else int(rng.random() < fraction)
                yield from itertools.repeat(item, times)

        return self._each(kept)

    def randomSplit(self, weights: Sequence[float], seed: int) -> list[OracleRDD]:
        total = float(sum(weights))
        bounds = [0.0]
        for weight in weights:
            bounds.append(bounds[-1] + weight / total)

        def part(low: float, high: float) -> OracleRDD:
            def kept(partition: int, items: Iterator[Any]) -> list[Any]:
                rng = sampler(seed, partition)
                return [item for item in items if low <= rng.random() < high]

            return self._each(kept)

        return [part(low, high) for low, high in itertools.pairwise(bounds)]

    def coalesce(self, numPartitions: int, shuffle: bool = False) -> OracleRDD:
        if shuffle:
            return self.repartition(numPartitions)
        p = len(self.partitions)
        n = min(numPartitions, p)
        groups = [self.partitions[g * p // n : (g + 1) * p // n] for g in range(n)]
        return OracleRDD(self.ctx, [list(itertools.chain.from_iterable(group)) for group in groups])

    def cache(self) -> OracleRDD:
        return self

    def persist(self, storageLevel: object = None) -> OracleRDD:
        return self

    def unpersist(self, blocking: bool = False) -> OracleRDD:
        return self

    def getNumPartitions(self) -> int:
        return len(self.partitions)

    # --- Wide ---

    def repartition(self, numPartitions: int) -> OracleRDD:
        return self._shuffled(self._flat(), numPartitions)

    def partitionBy(self, numPartitions: int, partitionFunc: object = None) -> OracleRDD:
        return self._shuffled(self._flat(), numPartitions)

    def distinct(self, numPartitions: int | None = None) -> OracleRDD:
        return self._shuffled(dict.fromkeys(self._flat()), numPartitions)

    def intersection(self, other: OracleRDD) -> OracleRDD:
        common = set(other._flat())
        return self._shuffled((x for x in dict.fromkeys(self._flat()) if x in common), None)

    def subtract(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        gone = set(other._flat())
        return self._shuffled((x for x in self._flat() if x not in gone), numPartitions)

    def subtractByKey(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        gone = set(other._grouped())
        return self._shuffled((kv for kv in self._flat() if kv[0] not in gone), numPartitions)

    def cartesian(self, other: OracleRDD) -> OracleRDD:
        parts = itertools.product(self.partitions, other.partitions)
        return OracleRDD(self.ctx, [list(itertools.product(left, right)) for left, right in parts])

    def sortBy(
        self, keyfunc: Callable[[Any], Any], ascending: bool = True, numPartitions: int | None = None
    ) -> OracleRDD:
        count = numPartitions or max(1, len(self.partitions))
        ordered = sorted(self._flat(), key=keyfunc, reverse=not ascending)
        return OracleRDD(self.ctx, sliced(ordered, count))

    def sortByKey(
        self,
        ascending: bool = True,
        numPartitions: int | None = None,
        keyfunc: Callable[[Any], Any] = lambda key: key,
    ) -> OracleRDD:
        return self.sortBy(lambda pair: keyfunc(pair[0]), ascending, numPartitions)

    def repartitionAndSortWithinPartitions(
        self, numPartitions: int | None = None, partitionFunc: object = None, ascending: bool = True,
        keyfunc: object = None,
    ) -> OracleRDD:  # fmt: skip
        return self._shuffled(self._flat(), numPartitions)

    def combineByKey(
        self,
        createCombiner: Callable[[Any], Any],
        mergeValue: Callable[[Any, Any], Any],
        mergeCombiners: Callable[[Any, Any], Any],
        numPartitions: int | None = None,
    ) -> OracleRDD:
        merged: dict[Any, Any] = {}
        for part in self.partitions:
            combined: dict[Any, Any] = {}
            for key, value in part:
                combined[key] = mergeValue(combined[key], value) if key in combined else createCombiner(value)
            for key, combiner in combined.items():
                merged[key] = mergeCombiners(merged[key], combiner) if key in merged else combiner
        return self._shuffled(merged.items(), numPartitions)

    def reduceByKey(self, func: Callable[[Any, Any], Any], numPartitions: int | None = None) -> OracleRDD:
        return self.combineByKey(lambda value: value, func, func, numPartitions)

    def aggregateByKey(
        self,
        zeroValue: Any,
        seqFunc: Callable[[Any, Any], Any],
        combFunc: Callable[[Any, Any], Any],
        numPartitions: int | None = None,
    ) -> OracleRDD:
        """The zero is copied for each key of each partition."""
        return self.combineByKey(
            lambda value: seqFunc(copy.deepcopy(zeroValue), value), seqFunc, combFunc, numPartitions
        )

    def foldByKey(
        self, zeroValue: Any, func: Callable[[Any, Any], Any], numPartitions: int | None = None
    ) -> OracleRDD:
        return self.aggregateByKey(zeroValue, func, func, numPartitions)

    def groupByKey(self, numPartitions: int | None = None) -> OracleRDD:
        return self._shuffled(self._grouped().items(), numPartitions)

    def groupBy(self, f: Callable[[Any], Any], numPartitions: int | None = None) -> OracleRDD:
        return self.keyBy(f).groupByKey(numPartitions)

    def groupWith(self, other: OracleRDD, *others: OracleRDD) -> OracleRDD:
        return self._cogroup((other, *others), None)

    def cogroup(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        return self._cogroup((other,), numPartitions)

    def _cogroup(self, others: Sequence[OracleRDD], numPartitions: int | None) -> OracleRDD:
        sides = [rdd._grouped() for rdd in (self, *others)]
        keys = dict.fromkeys(key for side in sides for key in side)
        return self._shuffled(
            [(key, tuple(side.get(key, []) for side in sides)) for key in keys], numPartitions
        )

    def _joined(self, other: OracleRDD, count: int | None, keep_left: bool, keep_right: bool) -> OracleRDD:
        rows = []
        for key, (left, right) in self.cogroup(other)._flat():
            lefts = left or ([None] if keep_right else [])
            rights = right or ([None] if keep_left else [])
            rows += [(key, (v, w)) for v in lefts for w in rights]
        return self._shuffled(rows, count)

    def join(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        return self._joined(other, numPartitions, False, False)

    def leftOuterJoin(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        return self._joined(other, numPartitions, True, False)

    def rightOuterJoin(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        return self._joined(other, numPartitions, False, True)

    def fullOuterJoin(self, other: OracleRDD, numPartitions: int | None = None) -> OracleRDD:
        return self._joined(other, numPartitions, True, True)

    # --- Actions ---

    def collect(self) -> list[Any]:
        return self._flat()

    def toLocalIterator(self, prefetchPartitions: bool = False) -> Iterator[Any]:
        return iter(self._flat())

    def count(self) -> int:
        return len(self._flat())

    def isEmpty(self) -> bool:
        return not self._flat()

    def take(self, num: int) -> list[Any]:
        return self._flat()[: max(0, num)]

    def first(self) -> Any:
        for item in self._flat():
            return item
        raise ValueError("RDD is empty")

    def reduce(self, f: Callable[[Any, Any], Any]) -> Any:
        partials = [reduce(f, part) for part in self.partitions if part]
        if not partials:
            raise ValueError("Can not reduce() empty RDD")
        return reduce(f, partials)

    def treeReduce(self, f: Callable[[Any, Any], Any], depth: int = 2) -> Any:
        if not self._flat():
            raise ValueError("Cannot reduce empty RDD.")
        return self.reduce(f)

    def fold(self, zeroValue: Any, op: Callable[[Any, Any], Any]) -> Any:
        return self.aggregate(zeroValue, op, op)

    def aggregate(
        self, zeroValue: Any, seqOp: Callable[[Any, Any], Any], combOp: Callable[[Any, Any], Any]
    ) -> Any:
        """The zero counts once a partition and once on the driver."""
        partials = [reduce(seqOp, part, copy.deepcopy(zeroValue)) for part in self.partitions]
        return reduce(combOp, partials, copy.deepcopy(zeroValue))

    def treeAggregate(
        self,
        zeroValue: Any,
        seqOp: Callable[[Any, Any], Any],
        combOp: Callable[[Any, Any], Any],
        depth: int = 2,
    ) -> Any:
        """The zero counts once a partition only."""
        partials = [reduce(seqOp, part, copy.deepcopy(zeroValue)) for part in self.partitions]
        return reduce(combOp, partials) if partials else zeroValue

    def sum(self) -> Any:
        return sum(self._flat())

    def max(self, key: Callable[[Any], Any] | None = None) -> Any:
        return self.reduce(lambda a, b: max(a, b, key=key))

    def min(self, key: Callable[[Any], Any] | None = None) -> Any:
        return self.reduce(lambda a, b: min(a, b, key=key))

    def top(self, num: int, key: Callable[[Any], Any] | None = None) -> list[Any]:
        return heapq.nlargest(num, self._flat(), key)

    def takeOrdered(self, num: int, key: Callable[[Any], Any] | None = None) -> list[Any]:
        return heapq.nsmallest(num, self._flat(), key)

    def countByKey(self) -> dict[Any, int]:
        return {key: len(values) for key, values in self._grouped().items()}

    def countByValue(self) -> dict[Any, int]:
        counts: dict[Any, int] = defaultdict(int)
        for item in self._flat():
            counts[item] += 1
        return dict(counts)

    def collectAsMap(self) -> dict[Any, Any]:
        return dict(self._flat())

    def reduceByKeyLocally(self, func: Callable[[Any, Any], Any]) -> dict[Any, Any]:
        return dict(self.reduceByKey(func)._flat())

    def lookup(self, key: Any) -> list[Any]:
        return self._grouped().get(key, [])
