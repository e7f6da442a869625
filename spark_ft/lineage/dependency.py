"""How a node depends on its parents: read this first.

A *narrow* dependency says which parent partitions one partition needs, and is served in
the same task.  A *shuffle* dependency needs something of every parent partition, so it is
where a stage ends: each parent partition's records are written out by key, and read back
by the partition that owns the key.

The mappings are plain data: they travel to the scheduler inside a ``LineageShape`` and
never hold a function.  (Idea: Spark's Dependency.scala.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from spark_ft.ids import Fingerprint, ShuffleId
from spark_ft.records import record

if TYPE_CHECKING:
    from spark_ft.lineage.node import Node
    from spark_ft.lineage.partitioner import Partitioner


@record
class OneToOne:
    """Partition p needs parent partition p."""

    def parents(self, partition: int) -> Sequence[int]:
        return (partition,)


@record
class Span:
    """Partitions [start, start + count) need parent partitions [0, count); others need none (union)."""

    start: int
    count: int

    def parents(self, partition: int) -> Sequence[int]:
        index = partition - self.start
        return (index,) if 0 <= index < self.count else ()


@record
class Groups:
    """Partition p needs the parent partitions listed at p (coalesce)."""

    groups: tuple[tuple[int, ...], ...]

    def parents(self, partition: int) -> Sequence[int]:
        return self.groups[partition]


@record
class Quotient:
    """Partition p needs parent partition p // divisor (left side of cartesian)."""

    divisor: int

    def parents(self, partition: int) -> Sequence[int]:
        return (partition // self.divisor,)


@record
class Remainder:
    """Partition p needs parent partition p % divisor (right side of cartesian)."""

    divisor: int

    def parents(self, partition: int) -> Sequence[int]:
        return (partition % self.divisor,)


Mapping = OneToOne | Span | Groups | Quotient | Remainder


@record
class NarrowDependency:
    """``parent``'s partitions that one partition needs, served in the same task."""

    parent: Node
    mapping: Mapping = field(default_factory=OneToOne)


@record
class Aggregator:
    """How the values of one key become one combiner: the three functions of ``combineByKey``."""

    create: Callable[[Any], Any]
    merge_value: Callable[[Any, Any], Any]
    merge_combiners: Callable[[Any, Any], Any]


@record
class KeyOrdering:
    """Records of a reduce partition are sorted by ``key(record[0])``; stable, also when descending."""

    key: Callable[[Any], Any] | None  # None: the key itself
    ascending: bool = True


@record
class Fingerprinted:
    """A fingerprint, and why it is of no use to another run: ``unsafe`` is empty when it is."""

    digest: Fingerprint
    unsafe: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class ShuffleDependency:
    """The parent's pairs, placed by ``partitioner``; identity is the object, as in Spark.

    ``aggregator`` with ``map_side_combine`` combines before writing; without it only after
    reading.  ``group`` asks the reader for (key, ResultIterable) pairs of all the key's values.
    At most one of ``aggregator``, ``group`` and ``ordering`` is set; none of them means raw pairs.
    ``fingerprint`` names the outputs on disk; drawn, until a job of an application that can be resumed
    fixes it together with ``lineage``, what it was made from (fingerprint.py).  ``parent`` is None inside an
    executor's reduce task: what lies beyond a shuffle is never shipped there.
    """

    shuffle: ShuffleId
    parent: Node | None
    partitioner: Partitioner
    fingerprint: Fingerprint
    aggregator: Aggregator | None = None
    map_side_combine: bool = False
    group: bool = False
    ordering: KeyOrdering | None = None
    map_count: int = 0  # parent's partitions, fixed when the job is planned
    lineage: Fingerprinted | None = None
    __weakref__: Any = field(init=False, repr=False)


Dependency = NarrowDependency | ShuffleDependency


class Mapped(Protocol):
    """A narrow dependency, or its shape."""

    @property
    def mapping(self) -> Mapping: ...


M = TypeVar("M", bound=Mapped)


def served(dependencies: Sequence[M | ShuffleDependency], partition: int) -> Iterator[tuple[M, int]]:
    """What one partition needs of narrow dependencies: (dependency, parent partition), in order.

    Where there are spans there is nothing else, and they follow one another (union): then the one that
    matters is found by halving, or the tasks of a union of thousands would cost their square (BL-16).
    """
    if len(dependencies) > 1 and _start(dependencies[0]) >= 0:
        at = bisect_right(dependencies, partition, key=_start) - 1
        dependencies = dependencies[at : at + 1]
    for dependency in dependencies:
        if not isinstance(dependency, ShuffleDependency):
            for parent in dependency.mapping.parents(partition):
                yield dependency, parent


def _start(dependency: Mapped | ShuffleDependency) -> int:
    mapping = None if isinstance(dependency, ShuffleDependency) else dependency.mapping
    return mapping.start if isinstance(mapping, Span) else -1
