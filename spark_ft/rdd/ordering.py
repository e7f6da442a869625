"""Total order over partitions: range bounds from a sample, then a shuffle that sorts.

One job counts the records of each partition and draws from it a sample of its sort keys, so
the bounds cost one pass over the parent.  Equal keys always meet in one partition.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from spark_ft.lineage.dependency import KeyOrdering
from spark_ft.lineage.partitioner import Partitioner, portable_hash
from spark_ft.lineage.wide import identity
from spark_ft.rdd.pairs import PairsMixin
from spark_ft.rdd.sampling import KeySample

if TYPE_CHECKING:
    from spark_ft.rdd import RDD

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

SAMPLES_PER_PARTITION = 20  # keys sampled for each output partition
OVERSAMPLING = 3  # since input partitions may differ in size
SAMPLES_MIN = 200  # from each input partition, if it has them


class OrderingMixin(PairsMixin[T]):
    """sortBy sortByKey repartitionAndSortWithinPartitions."""

    def sortBy(
        self, keyfunc: Callable[[T], Any], ascending: bool = True, numPartitions: int | None = None
    ) -> RDD[T]:
        """Records in the order of ``keyfunc``.  With several partitions a job runs at once."""
        keyed: RDD[Any] = self.keyBy(keyfunc)
        return keyed.sortByKey(ascending, numPartitions).values()

    def sortByKey(
        self: OrderingMixin[tuple[K, V]],
        ascending: bool = True,
        numPartitions: int | None = None,
        keyfunc: Callable[[K], Any] = identity,
    ) -> RDD[tuple[K, V]]:
        """Pairs in the order of ``keyfunc(key)``; equal keys in arrival order, also descending."""
        count = self._defaultReducePartitions() if numPartitions is None else numPartitions
        ordering = _ordering(keyfunc, ascending)
        if count == 1:
            whole = self.coalesce(1) if self.getNumPartitions() > 1 else self._self()
            return whole._sorted_partitions(None, ordering)
        bounds = self._range_bounds(count, keyfunc)
        if bounds is None:
            return self._self()
        return self._sorted_partitions(_range_partitioner(count, bounds, keyfunc, ascending), ordering)

    def repartitionAndSortWithinPartitions(
        self: OrderingMixin[tuple[K, V]],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
        ascending: bool = True,
        keyfunc: Callable[[K], Any] = identity,
    ) -> RDD[tuple[K, V]]:
        """Placed by ``partitionFunc``, each partition sorted by ``keyfunc(key)``, stably."""
        partitioner = self._wanted(numPartitions, partitionFunc)
        return self._sorted_partitions(partitioner, _ordering(keyfunc, ascending))

    def _range_bounds(self, count: int, keyfunc: Callable[[Any], Any]) -> list[Any] | None:
        """``count - 1`` sort keys that cut the records into equal parts; None when there are none."""
        wanted = SAMPLES_PER_PARTITION * count
        share = OVERSAMPLING * wanted // max(self.getNumPartitions(), 1) + 1
        drawn = self._run(KeySample(keyfunc, min(wanted, max(share, SAMPLES_MIN))))
        if not any(total for total, _ in drawn):
            return None
        weighted = sorted(
            ((key, total / len(keys)) for total, keys in drawn for key in keys), key=lambda pair: pair[0]
        )
        step = sum(weight for _, weight in weighted) / count
        bounds: list[Any] = []
        passed = 0.0
        for key, weight in weighted:
            passed += weight
            while passed >= step * (len(bounds) + 1) and len(bounds) < count - 1:
                bounds.append(key)
        return bounds


def _ordering(keyfunc: Callable[[Any], Any], ascending: bool) -> KeyOrdering:
    return KeyOrdering(None if keyfunc is identity else keyfunc, bool(ascending))


def _range_partitioner(
    count: int, bounds: list[Any], keyfunc: Callable[[Any], Any], ascending: bool
) -> Partitioner:
    fixed = tuple(bounds)  # so that tasks of one process can share it
    place: Callable[[Any], int] = partial(bisect_left, fixed)  # C: no frame a record
    if keyfunc is not identity:
        place = _Ranged(fixed, keyfunc)
    return Partitioner(count, place if ascending else _Mirrored(place))


class _Ranged:
    __slots__ = ("bounds", "keyfunc")

    def __init__(self, bounds: tuple[Any, ...], keyfunc: Callable[[Any], Any]) -> None:
        self.bounds = bounds
        self.keyfunc = keyfunc

    def __call__(self, key: Any) -> int:
        return bisect_left(self.bounds, self.keyfunc(key))


class _Mirrored:
    """Places from the end: range 0 is the last partition."""

    __slots__ = ("place",)

    def __init__(self, place: Callable[[Any], int]) -> None:
        self.place = place

    def __call__(self, key: Any) -> int:
        return -1 - self.place(key)
