"""Where the partitions of persisted nodes are: in the memory of executors, in blocks on disk.

Invariants
  * memory holdings name live executors; disk holdings name hosts that are not lost (S7).
  * only tracked nodes are held; a node that was unpersisted, or rolled back, holds nothing.
  * the two indices, by partition and by executor, mirror each other (S28).
  * all copies of a partition have the checksum recorded for it, which outlives them, and the node itself for
    as long as map outputs or held partitions that were built from it are left: what is computed again is
    compared with it (BL-12; the caller sees to it with ``differs``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from spark_ft.ids import HostId, Incarnation, NodeId, ShuffleId
from spark_ft.lineage.dependency import served
from spark_ft.protocol.messages import BlockRef, CachedBlock
from spark_ft.scheduler.stage import StageTree

Key = tuple[NodeId, int]  # (node, partition)


@dataclass(slots=True)
class Holding:
    """Who holds one partition."""

    memory: dict[Incarnation, int] = field(default_factory=dict)  # executor -> bytes
    disk: dict[HostId, CachedBlock] = field(default_factory=dict)


class CachedBlocks:
    """The table of cached partitions."""

    def __init__(self) -> None:
        self.held: dict[NodeId, dict[int, Holding]] = {}
        self.of_executor: dict[Incarnation, set[Key]] = {}
        self._trees: dict[NodeId, StageTree] = {}  # in which a tracked node was met
        self._below: dict[NodeId, tuple[set[ShuffleId], set[NodeId]]] = {}  # found out when it is asked for
        self.checksums: dict[Key, int] = {}
        self.outlived: set[NodeId] = set()  # not tracked any more; what was built from their editions is left
        self.indeterminate: set[NodeId] = set()  # came out different once: tasks go where their copy is
        self.replication: dict[NodeId, int] = {}  # on how many hosts, of tracked nodes that want several
        self.disk_count = 0  # holdings on disk: while there is none, launches need not look for any

    def track(self, tree: StageTree) -> None:
        """From now on this tree's persisted nodes may be held."""
        for node in tree.persisted:
            self.outlived.discard(node)
            self.held.setdefault(node, {})
            self._trees.setdefault(node, tree)

    def tracks(self, node: NodeId) -> bool:
        return node in self.held

    def any_of(self, nodes: Iterable[NodeId]) -> bool:
        return any(self.held.get(node) for node in nodes)

    def holding(self, node: NodeId, partition: int) -> Holding | None:
        partitions = self.held.get(node)
        return partitions.get(partition) if partitions else None

    def add(self, executor: Incarnation, block: CachedBlock) -> None:
        """``executor`` has it in memory, or has written it to disk.  Reported twice changes nothing."""
        holding = self.held[block.node].setdefault(block.partition, Holding())
        self.in_use(block)
        if block.block is None:
            holding.memory[executor] = block.size_bytes
            self.of_executor.setdefault(executor, set()).add((block.node, block.partition))
        else:
            self.disk_count += block.block.host not in holding.disk
            holding.disk[block.block.host] = block

    def in_use(self, block: CachedBlock) -> None:
        """This edition is the one that counts, held or not."""
        if block.checksum:
            self.checksums[block.node, block.partition] = block.checksum

    def differs(self, block: CachedBlock, moved: bool = False) -> bool:
        """Whether what was computed, or was ``moved`` from memory to disk, is not proved the same as what was
        held before."""
        known = self.checksums.get((block.node, block.partition))
        if not block.checksum or known is None:
            return False
        return block.checksum != known or (known < 0 and not moved)

    def is_held_by_others(self, key: Key, executor: Incarnation | None) -> bool:
        """Whether anybody but this executor holds it; None: anybody at all."""
        holding = self.holding(*key)
        return holding is not None and bool(holding.disk or holding.memory.keys() - {executor})

    def drop_memory(self, executor: Incarnation, key: Key) -> bool:
        """It is not in this executor's memory any more; false when it was not known to be."""
        keys = self.of_executor.get(executor)
        if keys is None or key not in keys:
            return False
        keys.discard(key)
        if not keys:
            del self.of_executor[executor]
        self._holding_lost(key, executor=executor)
        return True

    def drop_disk(self, ref: BlockRef) -> list[Key]:
        """This block cannot be read.  Linear in the nodes' held partitions: it is rare."""
        return self._drop_disk_where(lambda block: block.store == ref.store and block.key == ref.key)

    def drop_place(self, key: Key, host: HostId) -> None:
        """It is elsewhere too, and not to be read from this host's disk any more."""
        del self.held[key[0]][key[1]].disk[host]
        self.disk_count -= 1
        self._holding_lost(key)

    def drop_host(self, host: HostId) -> list[Key]:
        """A host is gone with what is on its disks."""
        return self._drop_disk_where(lambda block: block.host == host)

    def drop_but(self, host: HostId, stores: Container[str]) -> list[Key]:
        """Of a host's disks only these stores are left."""
        return self._drop_disk_where(lambda block: block.host == host and block.store not in stores)

    def drop_segment(self, store: str, segment: int) -> list[Key]:
        return self._drop_disk_where(lambda block: (block.store, block.segment) == (store, segment))

    def drop_store(self, store: str) -> list[Key]:
        return self._drop_disk_where(lambda block: block.store == store)

    def drop_executor(self, executor: Incarnation) -> list[Key]:
        """A process is gone with what was in its memory; exactly that is lost (R2)."""
        keys = sorted(self.of_executor.pop(executor, ()))
        for key in keys:
            self._holding_lost(key, executor=executor)
        return keys

    def drop_node(self, node: NodeId, forget: bool) -> bool:
        """All partitions of a node; with ``forget`` none will be held again.  True if any was held."""
        partitions = self.held.get(node)
        if partitions is None:
            return False
        for partition, holding in partitions.items():
            self.disk_count -= len(holding.disk)
            for executor in holding.memory:
                keys = self.of_executor[executor]
                keys.discard((node, partition))
                if not keys:
                    del self.of_executor[executor]
        had = bool(partitions)
        if forget:
            self.outlived.add(node)
            del self.held[node], self._trees[node]
            self._below.pop(node, None)
            self.indeterminate.discard(node)
            self.replication.pop(node, None)
        else:
            self.held[node] = {}
        return had

    def forget_editions(self, standing: Container[NodeId]) -> None:
        """Of nodes that are not tracked any more, are not in ``standing`` and not under a held one nothing is
        left.  Linear in what is tracked and known."""
        gone = {node for node in self.outlived if node not in standing}
        for node in self.held if gone else ():
            if self.held[node]:
                gone -= self._reach(node)[1]
        self.outlived -= gone
        for key in [key for key in self.checksums if key[0] in gone] if gone else ():
            del self.checksums[key]

    def standing_on(self, shuffle: ShuffleId) -> list[NodeId]:
        """Nodes whose partitions, known or not told of yet, are built from this shuffle."""
        return [node for node in self.held if shuffle in self._reach(node)[0]]

    def above(self, node: NodeId) -> list[NodeId]:
        """Tracked nodes whose partitions are built from those of ``node``, with no shuffle between."""
        return [other for other in self.held if other != node and node in self._reach(other)[1]]

    def _reach(self, node: NodeId) -> tuple[set[ShuffleId], set[NodeId]]:
        """The shuffles and the nodes that are under ``node`` in one task; linear in them, once."""
        found = self._below.get(node)
        if found is None:
            nodes, shuffles, seen, stack = self._trees[node].nodes, set[ShuffleId](), {node}, [node]
            while stack:
                shape = nodes[stack.pop()]
                shuffles.update(shape.shuffles)
                below = {dependency.parent for dependency in shape.narrow} - seen
                seen |= below
                stack.extend(below)
            found = self._below[node] = shuffles, seen
        return found

    def _drop_disk_where(self, gone: Callable[[BlockRef], bool]) -> list[Key]:
        lost: list[Key] = []
        for node, partitions in self.held.items():
            for partition, holding in list(partitions.items()):
                hosts = [host for host, block in holding.disk.items() if block.block and gone(block.block)]
                for host in hosts:
                    del holding.disk[host]
                    self.disk_count -= 1
                if hosts:
                    lost.append((node, partition))
                    self._holding_lost((node, partition))
        return lost

    def _holding_lost(self, key: Key, executor: Incarnation | None = None) -> None:
        node, partition = key
        holding = self.held[node][partition]
        if executor is not None:
            holding.memory.pop(executor, None)
        if not holding.memory and not holding.disk:
            del self.held[node][partition]


@dataclass(slots=True)
class Survey:
    """What one task meets on the way down its narrow tree.

    ``needs``: shuffles it must read; ``unheld``: persisted partitions that nobody holds yet, so that it will
    compute and keep them; ``memory``: holdings that are in memory alone; ``disk``: blocks it can
    read from disk, and ``places`` the hosts that have some; ``near``: executors that have something in
    memory; ``hosts``: where its sources are.
    """

    needs: dict[ShuffleId, None] = field(default_factory=dict)
    unheld: list[Key] = field(default_factory=list)
    memory: list[Holding] = field(default_factory=list)
    disk: list[CachedBlock] = field(default_factory=list)
    places: dict[HostId, None] = field(default_factory=dict)
    near: dict[Incarnation, None] = field(default_factory=dict)
    hosts: tuple[HostId, ...] = ()


def survey(
    tree: StageTree, partition: int, blocks: CachedBlocks, trust_memory: bool, host: HostId | None = None
) -> Survey:
    """Walk down to the first cached blocks.  Below a block on disk nothing is needed, wherever the
    task runs; below one in memory nothing is needed where that memory is: ``trust_memory``.  Of several
    copies on disk the one on ``host`` is taken."""
    found = Survey()
    seen: set[Key] = set()
    stack: list[Key] = [(tree.root, partition)]
    while stack:
        key = stack.pop()
        if key in seen:
            continue
        seen.add(key)
        node = tree.nodes[key[0]]
        holding = blocks.holding(*key) if node.persisted else None
        if holding is not None:
            found.near.update(dict.fromkeys(holding.memory))
            if holding.disk:
                near = holding.disk.get(host) if host is not None else None
                found.disk.append(near or next(iter(holding.disk.values())))
                found.places.update(dict.fromkeys(holding.disk))
                continue
            found.memory.append(holding)
            if trust_memory:
                continue
        elif node.persisted:
            found.unheld.append(key)
        for shuffle in node.shuffles:
            found.needs[shuffle] = None
        if node.preferred and not found.hosts:
            found.hosts = node.preferred.get(key[1], ())
        stack.extend((dependency.parent, parent) for dependency, parent in served(node.narrow, key[1]))
    return found


def rests_on(tree: StageTree, partition: int, key: Key) -> bool:
    """Whether a task at ``partition`` of this tree needs that partition of a persisted node."""
    if key[0] not in tree.persisted:
        return False
    seen = {(tree.root, partition)}
    stack = [(tree.root, partition)]
    while stack:
        at = stack.pop()
        if at == key:
            return True
        for dependency, parent in served(tree.nodes[at[0]].narrow, at[1]):
            if (below := (dependency.parent, parent)) not in seen:
                seen.add(below)
                stack.append(below)
    return False


def common(holdings: Sequence[Holding]) -> list[Incarnation]:
    """Executors that hold all of these in memory."""
    first, *rest = holdings
    return [executor for executor in first.memory if all(executor in other.memory for other in rest)]
