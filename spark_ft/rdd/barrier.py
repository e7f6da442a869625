"""RDDBarrier: what runs as a gang, all tasks at once and none without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from spark_ft.lineage.narrow import BarrierMap
from spark_ft.rdd.transform import _WithoutIndex

if TYPE_CHECKING:
    from spark_ft.rdd import RDD

T = TypeVar("T")
U = TypeVar("U")


class RDDBarrier(Generic[T]):
    """Made by ``RDD.barrier``: transformations whose tasks are launched together and may meet in
    ``BarrierTaskContext.barrier``.  When one of them is lost all of them begin again."""

    def __init__(self, rdd: RDD[T]) -> None:
        self.rdd = rdd

    def mapPartitions(
        self, f: Callable[[Iterator[T]], Iterable[U]], preservesPartitioning: bool = False
    ) -> RDD[U]:
        """``f(iterator)`` of each partition, in a barrier stage."""
        return self.mapPartitionsWithIndex(_WithoutIndex(f), preservesPartitioning)

    def mapPartitionsWithIndex(
        self, f: Callable[[int, Iterator[T]], Iterable[U]], preservesPartitioning: bool = False
    ) -> RDD[U]:
        """``f(index, iterator)`` of each partition, in a barrier stage."""
        parent = self.rdd._node
        partitioner = parent.partitioner if preservesPartitioning else None
        node = BarrierMap(self.rdd.ctx.new_node_id(), parent, f, partitioner)
        return self.rdd._derive(node, pipelined=True)
