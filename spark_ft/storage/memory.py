"""Persisted partitions in memory (kept.py: in which form), least recently used first out, within a budget.

Invariants: the sum of the sizes held never exceeds the budget; a partition is never evicted to
make room for another one of the same node, which would only turn the cache over (Spark's rule).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

from spark_ft.ids import NodeId


class Held(NamedTuple):
    """One partition in memory; ``use_disk``: whoever evicts it should write it to the store."""

    node: NodeId
    partition: int
    records: Iterable[Any]  # as often as wanted
    size_bytes: int
    use_disk: bool
    checksum: int = 0  # of the records, whichever way they are held


class MemoryStore:
    """Partitions by (node, partition); sizes are the caller's estimates, in bytes.  Any thread may call."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[NodeId, int], Held] = OrderedDict()  # least recently used first

    def get(self, node: NodeId, partition: int) -> Iterable[Any] | None:
        """The very records that was put, or None; counts as a use."""
        entry = self.held(node, partition)
        return None if entry is None else entry.records

    def held(self, node: NodeId, partition: int) -> Held | None:
        """As ``get``, with all that is known of it."""
        with self._lock:
            entry = self._held.get((node, partition))
            if entry is not None:
                self._held.move_to_end((node, partition))
            return entry

    def put(
        self,
        node: NodeId,
        partition: int,
        records: Iterable[Any],
        size_bytes: int,
        use_disk: bool = False,
        checksum: int = 0,
    ) -> list[Held]:
        """Keep a partition, in place of the least recently used of other nodes, which are returned.

        When even those would not make room, nothing is evicted but the newcomer itself: it alone is returned.
        """
        with self._lock:
            self._forget((node, partition))
            newcomer = Held(node, partition, records, size_bytes, use_disk, checksum)
            evicted = self._evict(node, size_bytes)
            if evicted is None:
                return [newcomer]
            self._held[node, partition] = newcomer
            self.used_bytes += size_bytes
            return evicted

    def make_room(self, node: NodeId, size_bytes: int) -> list[Held] | None:
        """Evict what ``put`` would for a partition of this size, while that is still being computed: the
        old ones and the new one must not be in memory together.  None when there is no such room, and
        then nothing is evicted."""
        with self._lock:
            return self._evict(node, size_bytes)

    def drop(self, node: NodeId) -> None:
        """Forget all partitions of a node."""
        with self._lock:
            for key in [key for key in self._held if key[0] == node]:
                self._forget(key)

    def clear(self) -> list[Held]:
        """Forget all partitions of all nodes, which are returned."""
        with self._lock:
            gone = list(self._held.values())
            self._held.clear()
            self.used_bytes = 0
            return gone

    def sizes(self) -> dict[tuple[NodeId, int], int]:
        """What is held, least recently used first, with its size in bytes."""
        with self._lock:
            return {key: entry.size_bytes for key, entry in self._held.items()}

    def _evict(self, node: NodeId, size_bytes: int) -> list[Held] | None:
        evicted: list[Held] = []
        free_bytes = self.budget_bytes - self.used_bytes
        for entry in self._held.values():
            if free_bytes >= size_bytes:
                break
            if entry.node != node:
                evicted.append(entry)
                free_bytes += entry.size_bytes
        if free_bytes < size_bytes:
            return None
        for entry in evicted:
            self._forget((entry.node, entry.partition))
        return evicted

    def _forget(self, key: tuple[NodeId, int]) -> None:
        entry = self._held.pop(key, None)
        if entry is not None:
            self.used_bytes -= entry.size_bytes
