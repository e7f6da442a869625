"""The five properties of a lineage node.  A node kind implements them and nothing else.

1. ``partition_count``      how many partitions
2. ``dependencies``         on which parents, and how (dependency.py)
3. ``compute``              the records of one partition, from its narrow inputs
4. ``partitioner``          how keys are placed, when they are
5. ``preferred(partition)`` hosts where a partition is best computed

``compute`` gets its narrow inputs as ready iterators, one for each parent partition, in the
order of ``dependencies`` and then of each mapping.  It never calls a parent's compute: the
task builds the tree with an explicit stack, so a lineage 10,000 deep needs no recursion.
It must be lazy (return an iterator that works when it is pulled).  (Source of the five:
Spark's RDD.scala class comment.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from spark_ft.ids import HostId, NodeId
from spark_ft.storagelevel import StorageLevel

if TYPE_CHECKING:
    from spark_ft.lineage.dependency import Dependency, ShuffleDependency
    from spark_ft.lineage.partitioner import Partitioner
    from spark_ft.protocol.messages import BlockRef


class Replayable(Protocol):
    """Records that can be iterated as often as one likes; may live partly on disk."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class TaskEnv(Protocol):
    """What ``compute`` may reach of the process it runs in."""

    def read_shuffle(self, dependency: ShuffleDependency, partition: int) -> Iterator[Any]:
        """The pairs of reduce partition ``partition``, in map order; combined, grouped or
        sorted as the dependency says.  Raises FetchFailed."""

    def cogroup(self, sides: Sequence[Iterator[Any]]) -> Iterator[tuple[Any, tuple[Replayable, ...]]]:
        """For every key of any side, the values of each side in arrival order; spills."""

    def combine(self, pairs: Iterator[Any], aggregator: Any) -> Iterator[Any]:
        """Combine pairs by key in this task (a co-partitioned ``combineByKey``); spills."""

    def group(self, pairs: Iterator[Any]) -> Iterator[tuple[Any, Replayable]]:
        """Group pairs by key in this task; spills."""

    def sort(self, records: Iterator[Any], key: Any, reverse: bool) -> Iterator[Any]:
        """Stable external sort (equal keys keep their order also when reversed)."""

    def spool(self, records: Iterator[Any]) -> Replayable:
        """Drain ``records`` into memory, or disk when they are many, to be replayed."""

    def read_block(self, block: BlockRef) -> bytes:
        """The bytes of a block of the driver's or a worker's store, verified.  Raises FetchFailed."""


class Node(ABC):
    """A handle on one lineage node; see the module's head for the five properties."""

    __slots__ = ("__weakref__", "dependencies", "id", "partitioner", "storage")

    # Element-wise nodes (narrow.py) say what they do to each record, so that a run of them
    # over one parent becomes one loop; None for every other kind.
    op: tuple[str, Callable[..., Any]] | None = None

    barrier = False  # whether the tasks that compute it are launched all together

    def __init__(
        self,
        node_id: NodeId,
        dependencies: tuple[Dependency, ...] = (),
        partitioner: Partitioner | None = None,
    ) -> None:
        self.id = node_id
        self.dependencies = dependencies
        self.partitioner = partitioner
        self.storage: StorageLevel = StorageLevel.NONE

    @property
    @abstractmethod
    def partition_count(self) -> int:
        """How many partitions; a source may look for its input to tell, and raises JobError without any."""

    @property
    def is_persisted(self) -> bool:
        return self.storage.useMemory or self.storage.useDisk

    @property
    def keeps(self) -> bool:
        """Whether ``compute`` holds records in memory, up to its share of the task's budget."""
        return False

    @abstractmethod
    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        """The records of one partition; lazy."""

    def preferred(self, partition: int) -> Sequence[HostId]:
        return ()

    def counts_as(self) -> Mapping[str, object]:
        """In a fingerprint every field counts; those named here count as what they are named with, which is
        None for what changes no record.  Asked after ``partition_count``."""
        return {}

    def unfolded(self) -> tuple[Dependency, ...]:
        """``dependencies`` as they are planned and shipped: a kind that only hands partitions on may look
        through parents of its own kind, so that a long chain of them is one step (BL-16)."""
        return self.dependencies

    def ship(self) -> Node:
        """A shallow copy to be sent to an executor, leaving out what only the driver needs.

        Its dependencies are replaced by the stage blob's flat table, so pickling never recurses.
        """
        import copy

        return copy.copy(self)
