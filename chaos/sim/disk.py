"""The disks of a host: stores with their crash semantics, and what can become of what was written.

Each executor writes a store of its own.  A map output exists once its manifest is committed; what was not
written to the platter yet may vanish, or be torn, when the host loses power.  A reader verifies: it
gets the content that was written, or evidence.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from chaos.sim.program import Content
from spark_ft.ids import Fingerprint, Incarnation, TaskId
from spark_ft.protocol.messages import MapStatus

FATAL = "fatal"  # a damage that ends the process that reads it


@dataclass(slots=True)
class Output:
    """One committed map output, as it lies there."""

    status: MapStatus
    fingerprint: Fingerprint
    content: Content
    written_s: float
    damage: str = ""  # corrupt, incomplete, FATAL: what a reader will find; "" is sound


@dataclass(slots=True)
class Block:
    """A persisted partition or a stored result."""

    content: Content
    written_s: float
    damage: str = ""


class Store:
    """What one executor has written, all of it in one segment until that is condemned."""

    __slots__ = ("blocks", "outputs", "sealed", "segment", "to_rot")

    def __init__(self) -> None:
        self.outputs: dict[TaskId, Output] = {}
        self.blocks: dict[bytes, Block] = {}
        self.sealed = False
        self.segment = 0
        self.to_rot = 0  # outputs that turn bad as they are written (BL-10)

    def commit(self, attempt: TaskId, output: Output) -> None:
        if self.to_rot:
            self.to_rot -= 1
            output.damage = "corrupt"
        self.outputs[attempt] = output

    @property
    def is_fatal(self) -> bool:
        return any(item.damage == FATAL for item in (*self.outputs.values(), *self.blocks.values()))

    def condemn(self) -> None:
        """The segment that has ended a process is out of use; what is written from now on goes elsewhere."""
        for item in (*self.outputs.values(), *self.blocks.values()):
            item.damage = "corrupt"
        self.segment += 1

    def drop(self, fingerprints: Collection[Fingerprint]) -> None:
        for attempt in [a for a, output in self.outputs.items() if output.fingerprint in fingerprints]:
            del self.outputs[attempt]


class Disk:
    """All stores of one host."""

    def __init__(self) -> None:
        self.stores: dict[str, Store] = {}
        self.expired: set[Fingerprint] = set()
        self.full_until_s = -1.0
        self.rebooted = False  # and no worker has looked since

    def store(self, name: Incarnation) -> Store:
        store = self.stores.get(name)
        if store is None:
            store = self.stores[name] = Store()
        return store

    def output(self, store: str, attempt: TaskId, fingerprint: Fingerprint) -> Output | str:
        """A committed output, or why it cannot be had."""
        found = self.stores[store].outputs.get(attempt) if store in self.stores else None
        if found is None:
            return "expired" if fingerprint in self.expired else "missing"
        return found.damage or found

    def block(self, store: str, key: bytes) -> Block | str:
        found = self.stores[store].blocks.get(key) if store in self.stores else None
        return "missing" if found is None else found.damage or found

    def lose_power(self, rng: Random, now_s: float, flush_s: float) -> int:
        """What was committed lately may vanish or be torn; returns how much was."""
        hit, self.rebooted = 0, True
        for name in sorted(self.stores):
            store = self.stores[name]
            for kept in (store.outputs, store.blocks):
                for key, item in list(kept.items()):  # type: ignore[attr-defined]
                    if now_s - item.written_s < flush_s and (chance := rng.random()) < 0.7:
                        hit += 1
                        if chance < 0.5:
                            del kept[key]  # type: ignore[arg-type]
                        else:
                            item.damage = "corrupt"
        return hit
