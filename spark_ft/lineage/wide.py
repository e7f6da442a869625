"""Node kinds that bring the records of one key together.

Where the parent's placement is already the wanted one, its partitions are narrow inputs and
the work is done in the task; everything else comes through a ``ShuffleDependency``.

    Shuffled   what a shuffle gives: raw pairs, combined, grouped or sorted
    Combined   a co-partitioned ``combineByKey``        Grouped   a co-partitioned ``groupByKey``
    Sorted     each partition sorted by key             CoGrouped several sides, narrow or shuffled

Invariant: reduce partitions take their inputs in map order, so a task that runs twice gives
the same records in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from spark_ft.ids import NodeId
from spark_ft.lineage.dependency import (
    Aggregator,
    Dependency,
    KeyOrdering,
    NarrowDependency,
    ShuffleDependency,
)
from spark_ft.lineage.narrow import OneToOneNode
from spark_ft.lineage.node import Node, TaskEnv
from spark_ft.lineage.partitioner import Partitioner


def identity(value: Any) -> Any:
    """The ``create`` of ``reduceByKey``: a combining loop that knows it may skip the call."""
    return value


class Shuffled(Node):
    """The reduce side of one shuffle."""

    __slots__ = ()

    def __init__(self, node_id: NodeId, dependency: ShuffleDependency) -> None:
        super().__init__(node_id, (dependency,), dependency.partitioner)

    @property
    def partition_count(self) -> int:
        assert self.partitioner is not None
        return self.partitioner.partition_count

    @property
    def keeps(self) -> bool:
        dependency = self.dependencies[0]
        assert isinstance(dependency, ShuffleDependency)
        return bool(dependency.aggregator or dependency.group or dependency.ordering)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        dependency = self.dependencies[0]
        assert isinstance(dependency, ShuffleDependency)
        return env.read_shuffle(dependency, partition)


class Combined(OneToOneNode):
    """Pairs whose keys are where they belong, combined by key."""

    __slots__ = ("aggregator",)

    def __init__(self, node_id: NodeId, parent: Node, aggregator: Aggregator) -> None:
        super().__init__(node_id, parent, parent.partitioner)
        self.aggregator = aggregator

    @property
    def keeps(self) -> bool:
        return True

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return env.combine(inputs[0], self.aggregator)


class Grouped(OneToOneNode):
    """Pairs whose keys are where they belong, as (key, values)."""

    __slots__ = ()

    def __init__(self, node_id: NodeId, parent: Node) -> None:
        super().__init__(node_id, parent, parent.partitioner)

    @property
    def keeps(self) -> bool:
        return True

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return env.group(inputs[0])


class Sorted(OneToOneNode):
    """Each partition's pairs sorted by key."""

    __slots__ = ("ordering",)

    def __init__(self, node_id: NodeId, parent: Node, ordering: KeyOrdering) -> None:
        super().__init__(node_id, parent, parent.partitioner)
        self.ordering = ordering

    @property
    def keeps(self) -> bool:
        return True

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        ordering = self.ordering
        return env.sort(inputs[0], record_key(ordering.key), not ordering.ascending)


def record_key(key: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """The sort key of a pair, from that of its key."""
    if key is None:
        return itemgetter(0)
    return lambda pair: key(pair[0])


class CoGrouped(Node):
    """For every key of any side, (key, values of each side).  A side is narrow or a shuffle."""

    __slots__ = ()

    def __init__(self, node_id: NodeId, sides: Sequence[Dependency], partitioner: Partitioner) -> None:
        super().__init__(node_id, tuple(sides), partitioner)

    @property
    def partition_count(self) -> int:
        assert self.partitioner is not None
        return self.partitioner.partition_count

    @property
    def keeps(self) -> bool:
        return True

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        narrow = iter(inputs)
        return env.cogroup(
            [
                next(narrow)
                if isinstance(dependency, NarrowDependency)
                else env.read_shuffle(dependency, partition)
                for dependency in self.dependencies
            ]
        )
