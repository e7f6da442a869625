"""The shape of a lineage: ids, partition counts, dependencies, persist marks.  No functions.

This is all that a scheduler sees of a program, which is why a million histories of one can
be simulated without running a line of user code.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import field

from spark_ft.ids import Fingerprint, HostId, NodeId, ShuffleId
from spark_ft.lineage.dependency import Mapping, NarrowDependency, ShuffleDependency
from spark_ft.lineage.node import Node
from spark_ft.records import record


@record
class NarrowShape:
    """One narrow dependency: partition p of the child needs ``mapping.parents(p)`` of ``parent``."""

    parent: NodeId
    mapping: Mapping


@record
class NodeShape:
    """One node: narrow parents, shuffles it reads whole, whether its partitions are persisted, and on how
    many hosts."""

    node: NodeId
    partition_count: int
    narrow: tuple[NarrowShape, ...] = ()
    shuffles: tuple[ShuffleId, ...] = ()
    persisted: bool = False
    preferred: MappingABC[int, tuple[HostId, ...]] = field(default_factory=dict)
    name: str = ""
    replication: int = 1
    barrier: bool = False  # its tasks are launched together


@record
class ShuffleShape:
    """One shuffle: every partition of ``parent`` is a map task, ``reduce_count`` partitions read it."""

    shuffle: ShuffleId
    parent: NodeId
    map_count: int
    reduce_count: int
    fingerprint: Fingerprint


@record
class LineageShape:
    """Everything reachable from ``target``, shuffles included."""

    target: NodeId
    nodes: MappingABC[NodeId, NodeShape]
    shuffles: MappingABC[ShuffleId, ShuffleShape]


def shape_of(target: Node) -> LineageShape:
    """Walk the lineage once, with an explicit stack: linear in nodes, shared ones met once."""
    nodes: dict[NodeId, NodeShape] = {}
    shuffles: dict[ShuffleId, ShuffleShape] = {}
    stack = [target]
    while stack:
        node = stack.pop()
        if node.id in nodes:
            continue
        narrow: list[NarrowShape] = []
        wide: list[ShuffleId] = []
        for dependency in node.unfolded():
            if isinstance(dependency, NarrowDependency):
                narrow.append(NarrowShape(dependency.parent.id, dependency.mapping))
                stack.append(dependency.parent)
            else:
                wide.append(dependency.shuffle)
                shuffles[dependency.shuffle] = _shuffle_shape(dependency)
                assert dependency.parent is not None
                stack.append(dependency.parent)
        name, preferred = type(node).__name__, _preferred(node)
        nodes[node.id] = NodeShape(
            node.id, node.partition_count, tuple(narrow), tuple(wide), node.is_persisted, preferred, name,
            node.storage.replication, node.barrier,
        )  # fmt: skip
    return LineageShape(target.id, nodes, shuffles)


def _preferred(node: Node) -> dict[int, tuple[HostId, ...]]:
    if type(node).preferred is Node.preferred:
        return {}  # most kinds: not worth asking for each partition
    return {p: tuple(hosts) for p in range(node.partition_count) if (hosts := node.preferred(p))}


def _shuffle_shape(dependency: ShuffleDependency) -> ShuffleShape:
    assert dependency.parent is not None
    return ShuffleShape(
        dependency.shuffle,
        dependency.parent.id,
        dependency.parent.partition_count,
        dependency.partitioner.partition_count,
        dependency.fingerprint,
    )
