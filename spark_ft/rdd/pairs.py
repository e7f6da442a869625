"""Transformations of (key, value) records: what combines, groups and joins by key.

Where records are already placed as wanted, nothing is shuffled: the node is narrow.

``join`` and ``cogroup`` without a partition count take the number of the sides' union, as
PySpark does, except where a side is already hash-partitioned with a count of the same order:
then that placement is used, so that only the other sides move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from spark_ft.lineage.dependency import (
    Aggregator,
    Dependency,
    KeyOrdering,
    NarrowDependency,
    ShuffleDependency,
)
from spark_ft.lineage.narrow import FLAT_MAP_VALUES, KEYS, MAP_VALUES, VALUES, first, second
from spark_ft.lineage.node import Node
from spark_ft.lineage.partitioner import Partitioner, portable_hash
from spark_ft.lineage.wide import CoGrouped, Combined, Grouped, Shuffled, Sorted, identity
from spark_ft.rdd.sampling import Stratified
from spark_ft.rdd.tasks import fresh
from spark_ft.rdd.transform import TransformMixin, keyed, keyed_once
from spark_ft.resultiterable import ResultIterable

if TYPE_CHECKING:
    from spark_ft.rdd import RDD

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")

PLACEMENT_RATIO_MAX = 10  # an existing placement is used unless the union has this many times its partitions


class PairsMixin(TransformMixin[T]):
    """partitionBy combineByKey groupByKey join cogroup … and what lowers onto them."""

    # --- Pairs, one by one ---

    def keys(self: PairsMixin[tuple[K, V]]) -> RDD[K]:
        return self._elementwise(KEYS, first)

    def values(self: PairsMixin[tuple[K, V]]) -> RDD[V]:
        return self._elementwise(VALUES, second)

    def mapValues(self: PairsMixin[tuple[K, V]], f: Callable[[V], U]) -> RDD[tuple[K, U]]:
        """``f`` of each value; keys and their placement stay."""
        return self._elementwise(MAP_VALUES, f, True)

    def flatMapValues(self: PairsMixin[tuple[K, V]], f: Callable[[V], Iterable[U]]) -> RDD[tuple[K, U]]:
        """The key with everything in ``f`` of the value; keys and their placement stay."""
        return self._elementwise(FLAT_MAP_VALUES, f, True)

    def sampleByKey(
        self: PairsMixin[tuple[K, V]],
        withReplacement: bool,
        fractions: Mapping[K, float],
        seed: int | None = None,
    ) -> RDD[tuple[K, V]]:
        """Pairs at the rate of their key."""
        for fraction in fractions.values():
            assert fraction >= 0.0, f"Negative fraction value: {fraction}"
        return self._partitionwise(Stratified(withReplacement, fractions, self._seed(seed)), True)

    # --- By key ---

    def partitionBy(
        self: PairsMixin[tuple[K, V]],
        numPartitions: int | None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, V]]:
        """Pairs placed by ``partitionFunc(key) % numPartitions``; itself if they already are."""
        partitioner = self._wanted(numPartitions, partitionFunc)
        return self._self() if self.partitioner == partitioner else self._shuffled(partitioner)

    def combineByKey(
        self: PairsMixin[tuple[K, V]],
        createCombiner: Callable[[V], U],
        mergeValue: Callable[[U, V], U],
        mergeCombiners: Callable[[U, U], U],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, U]]:
        """One combiner a key: made of its first value, others merged in, combiners merged last."""
        partitioner = self._wanted(numPartitions, partitionFunc)
        aggregator = Aggregator(createCombiner, mergeValue, mergeCombiners)
        if self.partitioner == partitioner:
            return self._derive(Combined(self.ctx.new_node_id(), self._node, aggregator))
        return self._shuffled(partitioner, aggregator=aggregator)

    def reduceByKey(
        self: PairsMixin[tuple[K, V]],
        func: Callable[[V, V], V],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, V]]:
        """The values of each key reduced by ``func``, first where they are."""
        return self.combineByKey(identity, func, func, numPartitions, partitionFunc)

    def aggregateByKey(
        self: PairsMixin[tuple[K, V]],
        zeroValue: U,
        seqFunc: Callable[[U, V], U],
        combFunc: Callable[[U, U], U],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, U]]:
        """Like ``combineByKey`` from a zero of each key's own, in each map partition."""
        return self.combineByKey(
            _from_zero(zeroValue, seqFunc), seqFunc, combFunc, numPartitions, partitionFunc
        )

    def foldByKey(
        self: PairsMixin[tuple[K, V]],
        zeroValue: V,
        func: Callable[[V, V], V],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, V]]:
        """``aggregateByKey`` with one function."""
        return self.aggregateByKey(zeroValue, func, func, numPartitions, partitionFunc)

    def groupByKey(
        self: PairsMixin[tuple[K, V]],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, Iterable[V]]]:
        """(key, ResultIterable of its values)."""
        partitioner = self._wanted(numPartitions, partitionFunc)
        if self.partitioner == partitioner:
            return self._derive(Grouped(self.ctx.new_node_id(), self._node))
        return self._shuffled(partitioner, group=True)

    def groupBy(
        self,
        f: Callable[[T], K],
        numPartitions: int | None = None,
        partitionFunc: Callable[[K], int] = portable_hash,
    ) -> RDD[tuple[K, Iterable[T]]]:
        """(f(x), all such x)."""
        keyed: RDD[Any] = self.keyBy(f)
        return keyed.groupByKey(numPartitions, partitionFunc)

    def distinct(self, numPartitions: int | None = None) -> RDD[T]:
        """Each record once.  Records must hash."""
        once = self._partitionwise(keyed_once)
        return once.combineByKey(identity, _keep, _keep, numPartitions).keys()

    # --- Several sides ---

    def cogroup(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, W]], numPartitions: int | None = None
    ) -> RDD[tuple[K, tuple[ResultIterable[V], ResultIterable[W]]]]:
        """For each key of either side, the values of both."""
        return self._cogrouped([other], numPartitions)._elementwise(MAP_VALUES, _result_iterables, True)

    def groupWith(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, Any]], *others: RDD[tuple[K, Any]]
    ) -> RDD[tuple[K, tuple[ResultIterable[Any], ...]]]:
        """``cogroup`` of any number of sides."""
        return self._cogrouped([other, *others])._elementwise(MAP_VALUES, _result_iterables, True)

    def join(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, W]], numPartitions: int | None = None
    ) -> RDD[tuple[K, tuple[V, W]]]:
        """(k, (v, w)) for every pair of values of one key."""
        return self._cogrouped([other], numPartitions)._partitionwise(_inner_join, True)

    def leftOuterJoin(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, W]], numPartitions: int | None = None
    ) -> RDD[tuple[K, tuple[V, W | None]]]:
        """``join``, and None for a left value without a right one."""
        return self._cogrouped([other], numPartitions)._partitionwise(_left_join, True)

    def rightOuterJoin(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, W]], numPartitions: int | None = None
    ) -> RDD[tuple[K, tuple[V | None, W]]]:
        """``join``, and None for a right value without a left one."""
        return self._cogrouped([other], numPartitions)._partitionwise(_right_join, True)

    def fullOuterJoin(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, W]], numPartitions: int | None = None
    ) -> RDD[tuple[K, tuple[V | None, W | None]]]:
        """``join``, and None on either side for a value without partner."""
        return self._cogrouped([other], numPartitions)._partitionwise(_full_join, True)

    def subtractByKey(
        self: PairsMixin[tuple[K, V]], other: RDD[tuple[K, Any]], numPartitions: int | None = None
    ) -> RDD[tuple[K, V]]:
        """Pairs whose key is not in ``other``."""
        return self._cogrouped([other], numPartitions)._partitionwise(_left_only, True)

    def subtract(self, other: RDD[T], numPartitions: int | None = None) -> RDD[T]:
        """Records that are not in ``other``; duplicates stay."""
        left = self._partitionwise(keyed)
        return left.subtractByKey(other._partitionwise(keyed_once), numPartitions).keys()

    def intersection(self, other: RDD[T]) -> RDD[T]:
        """Records of both, each once."""
        left, right = self._partitionwise(keyed_once), other._partitionwise(keyed_once)
        return left._cogrouped([right])._partitionwise(_keys_of_both)

    # --- Lowering ---

    def _wanted(self, count: int | None, function: Callable[[Any], int]) -> Partitioner:
        return Partitioner(self._defaultReducePartitions() if count is None else count, function)

    def _shuffled(
        self,
        partitioner: Partitioner,
        *,
        aggregator: Aggregator | None = None,
        group: bool = False,
        ordering: KeyOrdering | None = None,
    ) -> RDD[Any]:
        dependency = self._shuffle(self._node, partitioner)
        dependency.aggregator = aggregator
        dependency.map_side_combine = aggregator is not None
        dependency.group = group
        dependency.ordering = ordering
        return self._derive(Shuffled(self.ctx.new_node_id(), dependency))

    def _shuffle(self, parent: Node, partitioner: Partitioner) -> ShuffleDependency:
        shuffle, fingerprint = self.ctx.new_shuffle()
        dependency = ShuffleDependency(shuffle, parent, partitioner, fingerprint)
        self.ctx.track(dependency)
        return dependency

    def _sorted_partitions(self, partitioner: Partitioner | None, ordering: KeyOrdering) -> RDD[Any]:
        if partitioner is None or self.partitioner == partitioner:
            return self._derive(Sorted(self.ctx.new_node_id(), self._node, ordering))
        return self._shuffled(partitioner, ordering=ordering)

    def _cogrouped(self, others: list[RDD[Any]], count: int | None = None) -> RDD[Any]:
        """Sides in order; one that is placed as wanted is narrow, each other node is shuffled once."""
        nodes = [self._node, *(other._node for other in others)]
        partitioner = self._placement_of(nodes, count)
        sides: dict[Node, Dependency] = {}
        for node in nodes:
            if node not in sides:
                sides[node] = (
                    NarrowDependency(node)
                    if node.partitioner == partitioner
                    else self._shuffle(node, partitioner)
                )
        return self._derive(CoGrouped(self.ctx.new_node_id(), [sides[node] for node in nodes], partitioner))

    def _placement_of(self, nodes: list[Node], count: int | None) -> Partitioner:
        """The placement a cogroup of ``nodes`` gives; see the module's head."""
        if count is not None:
            return Partitioner(count)
        if self.ctx.conf("spark.default.parallelism", ""):
            return Partitioner(self.ctx.default_parallelism)
        total = sum(node.partition_count for node in nodes)
        placed = [p for node in nodes if (p := node.partitioner) is not None and p.function is portable_hash]
        best = max(placed, key=lambda p: p.partition_count, default=None)
        if best is not None and best.partition_count * PLACEMENT_RATIO_MAX >= total:
            return best
        return Partitioner(total)


def _keep(kept: Any, other: Any) -> Any:
    return kept


def _from_zero(zero: Any, function: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """The first value of a key merged into a zero of its own."""
    if fresh(zero) is zero:
        return partial(function, zero)
    return lambda value: function(fresh(zero), value)


def _result_iterables(sides: Iterable[Any]) -> tuple[ResultIterable[Any], ...]:
    return tuple(side if isinstance(side, ResultIterable) else ResultIterable(side) for side in sides)


Groups = Iterator[Any]  # (key, (values of each side))


def _inner_join(partition: int, groups: Groups) -> Iterator[Any]:
    for key, (left, right) in groups:
        for v in left:
            for w in right:
                yield key, (v, w)


def _left_join(partition: int, groups: Groups) -> Iterator[Any]:
    for key, (left, right) in groups:
        found = right if len(right) else (None,)
        for v in left:
            for w in found:
                yield key, (v, w)


def _right_join(partition: int, groups: Groups) -> Iterator[Any]:
    for key, (left, right) in groups:
        for v in left if len(left) else (None,):
            for w in right:
                yield key, (v, w)


def _full_join(partition: int, groups: Groups) -> Iterator[Any]:
    for key, (left, right) in groups:
        found = right if len(right) else (None,)
        for v in left if len(left) else (None,):
            for w in found:
                yield key, (v, w)


def _left_only(partition: int, groups: Groups) -> Iterator[Any]:
    for key, (left, right) in groups:
        if not len(right):
            for v in left:
                yield key, v


def _keys_of_both(partition: int, groups: Groups) -> Iterator[Any]:
    for key, (left, right) in groups:
        if len(left) and len(right):
            yield key
