"""Persisted partitions as live objects: least recently used first out, within a budget of bytes.

Invariants: the sum of the sizes held never exceeds the budget; a partition is never evicted to
make room for another one of the same node, which would only turn the cache over (Spark's rule).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from spark_ft.ids import NodeId

Evicted = tuple[NodeId, int, list[Any]]


class MemoryStore:
    """Partitions by (node, partition); sizes are the caller's estimates, in bytes.  Any thread may call."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[NodeId, int], tuple[list[Any], int]] = OrderedDict()

    def get(self, node: NodeId, partition: int) -> list[Any] | None:
        """The very list that was put, or None; counts as a use."""
        with self._lock:
            entry = self._held.get((node, partition))
            if entry is None:
                return None
            self._held.move_to_end((node, partition))
            return entry[0]

    def put(self, node: NodeId, partition: int, records: list[Any], size_bytes: int) -> list[Evicted]:
        """Keep a partition, in place of the least recently used of other nodes, which are returned.

        When even those would not make room, nothing is evicted but the newcomer itself: it alone is returned.
        """
        with self._lock:
            self._forget((node, partition))
            chosen, free_bytes = [], self.budget_bytes - self.used_bytes
            for key, (_, held_bytes) in self._held.items():
                if free_bytes >= size_bytes:
                    break
                if key[0] != node:
                    chosen.append(key)
                    free_bytes += held_bytes
            if free_bytes < size_bytes:
                return [(node, partition, records)]
            evicted = [(*key, self._forget(key)) for key in chosen]
            self._held[node, partition] = records, size_bytes
            self.used_bytes += size_bytes
            return evicted

    def drop(self, node: NodeId) -> None:
        """Forget all partitions of a node."""
        with self._lock:
            for key in [key for key in self._held if key[0] == node]:
                self._forget(key)

    def shrink(self, target_bytes: int) -> list[Evicted]:
        """Evict until at most ``target_bytes`` are held: storage gives way to execution."""
        with self._lock:
            evicted = []
            while self.used_bytes > target_bytes:
                key = next(iter(self._held))
                evicted.append((*key, self._forget(key)))
            return evicted

    def sizes(self) -> dict[tuple[NodeId, int], int]:
        """What is held, least recently used first, with its size in bytes."""
        with self._lock:
            return {key: size_bytes for key, (_, size_bytes) in self._held.items()}

    def _forget(self, key: tuple[NodeId, int]) -> list[Any]:
        records, size_bytes = self._held.pop(key, ([], 0))
        self.used_bytes -= size_bytes
        return records
