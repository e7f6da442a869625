"""How much a core keeps in mind, and whether that follows what is there (S29)."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from chaos.sim.violation import ViolationError
from spark_ft.scheduler.core import SchedulerCore

_SHARED = (
    "spark_ft.protocol",
    "spark_ft.lineage",
    "spark_ft.settings",
    "spark_ft.records",
)  # given, not kept


def size_of(core: object) -> Counter[str]:
    """Entries of all containers that are reached from a core, by ``Class.attribute``.  Linear in them."""
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", core)]
    while waiting:
        name, thing = waiting.pop()
        if isinstance(thing, dict | list | set | frozenset | deque | tuple):
            if id(thing) not in seen:
                seen.add(id(thing))
                sizes[name] += len(thing)
                inner = thing.values() if isinstance(thing, dict) else thing
                waiting += [(name, item) for item in inner if not isinstance(item, str | bytes | int | float)]
            continue
        kind = type(thing)
        if not kind.__module__.startswith("spark_ft.") or kind.__module__.startswith(_SHARED):
            continue
        if id(thing) not in seen:
            seen.add(id(thing))
            names = {name for above in kind.__mro__ for name in getattr(above, "__slots__", ())}
            names.update(getattr(thing, "__dict__", ()))
            waiting += [(f"{kind.__name__}.{name}", getattr(thing, name, None)) for name in sorted(names)]
    return sizes


_CAPPED = {
    "Executors.fenced": 10_000,  # by themselves: the oldest go first
    "Executors.kills": 64 * 64,
    "Releases._dropped": 4096,
    "Links._known": 1_000,  # by the next sweep, which a look may come before
    "Copies.waiting": 1_000,
}
_BASE, _BUSY, _IDLE = 40, 20, 6  # entries; for each thing that is there while there is work, and when not


def check(core: SchedulerCore, tasks: int) -> None:
    """Raise when the driver keeps more than what is there accounts for: ``tasks`` of jobs that are not over,
    blocks that are held, executors and workers that live."""
    sizes = size_of(core)
    for name, most in _CAPPED.items():
        if sizes.pop(name, 0) > most:
            raise ViolationError("S29", f"{name} has no end")
    tasks += sum(len(executor.running) for executor in core.executors.live.values())  # or to be killed yet
    outputs = sum(shuffle.map_count for shuffle in core.outputs)
    blocks = outputs + len(core.blocks.checksums)  # of all that is, or was, persisted and not unpersisted
    blocks += sum(len(partitions) for partitions in core.blocks.held.values())
    peers = len(core.executors.live) + len(core.executors.workers)
    bound = _BASE + (_BUSY if tasks or blocks else _IDLE) * (peers + tasks + blocks)
    if (whole := sum(sizes.values())) > bound:
        most_of_it = ", ".join(f"{name} {size}" for name, size in sizes.most_common(4))
        text = f"{whole} entries for {tasks} tasks, {blocks} blocks, {peers} peers: {most_of_it}"
        raise ViolationError("S29", text)
