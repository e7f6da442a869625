"""The reduce side: combine, sort and replay records, in memory while they fit and beyond it on disk.

Everything takes *batches*: iterators of lists or ``rows.Pairs``.  ``budget_bytes`` is what the task
may use in all; tables and runs take a fixed share of it, so that what decoding, encoding and
the allocator need beside them stays within it too.  What comes out, and in which order, depends
on records and budget alone.  All of it is lazy: nothing is read before the first pull.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from spark_ft.lineage.dependency import Aggregator
from spark_ft.lineage.node import Replayable
from spark_ft.rows import Batch
from spark_ft.shuffle.grouping import cogroup, group
from spark_ft.shuffle.spill import Extent, Piece, SpillFile, Values, estimate_bytes
from spark_ft.shuffle.table import combined

__all__ = ["cogroup", "combine", "group", "merge_combiners", "sort", "spool"]

_FAN_IN = 64  # runs merged at once
_KEY_SLOT_BYTES = 24  # a sort's own arrays, per record

Key = Callable[[Any], Any] | None


def combine(
    batches: Iterable[Iterable[Any]], aggregator: Aggregator, budget_bytes: int, spill_dir: Path
) -> Iterator[tuple[Any, Any]]:
    """(key, combiner) of plain pairs."""
    merge = aggregator.merge_combiners
    return combined(batches, aggregator.create, aggregator.merge_value, merge, budget_bytes // 2, spill_dir)


def merge_combiners(
    batches: Iterable[Iterable[Any]], aggregator: Aggregator, budget_bytes: int, spill_dir: Path
) -> Iterator[tuple[Any, Any]]:
    """(key, combiner) of pairs whose values are combiners already (map-side combine)."""
    merge = aggregator.merge_combiners
    return combined(batches, None, merge, merge, budget_bytes // 2, spill_dir)


def spool(batches: Iterable[Batch], budget_bytes: int, spill_dir: Path) -> Replayable:
    """Drain everything, to be iterated as often as one likes.  Drained at once."""
    spooled, used_bytes = Values(), 0
    held: list[Any] = []
    file: SpillFile | None = None
    for batch in batches:
        held += batch
        used_bytes += estimate_bytes(batch)
        if used_bytes >= budget_bytes // 2:
            file = file or SpillFile(spill_dir)
            spooled.add(Piece(file, file.append_records(held), len(held)))
            held, used_bytes = [], 0
    if file is None:
        return held
    spooled.add(Piece(file, file.append_records(held), len(held)))
    return spooled


def sort(
    batches: Iterable[Batch], key: Key, reverse: bool, budget_bytes: int, spill_dir: Path
) -> Iterator[Any]:
    """Records in order of ``key(record)``, stable: equal ones keep their order, also when reversed."""
    held: list[Any] = []
    used_bytes = 0
    limit_bytes = budget_bytes // 2
    file: SpillFile | None = None
    runs: list[list[Extent]] = []
    block_bytes = max(8 << 10, min(256 << 10, budget_bytes // (8 * _FAN_IN)))
    for batch in batches:
        held += batch
        used_bytes += estimate_bytes(batch) + _KEY_SLOT_BYTES * len(batch)
        if used_bytes >= limit_bytes:
            file = file or SpillFile(spill_dir)
            held.sort(key=key, reverse=reverse)
            runs.append(file.append_records(held, block_bytes))
            held, used_bytes = [], 0
    held.sort(key=key, reverse=reverse)
    if file is None:
        yield from held
        return
    runs.append(file.append_records(held, block_bytes))
    del held
    while len(runs) > _FAN_IN:
        # Neighbours only, so that equal records of earlier runs still come first.
        fresh = SpillFile(spill_dir)
        merged = []
        for start in range(0, len(runs), _FAN_IN):
            extents: list[Extent] = []
            for part in _merged(file, runs[start : start + _FAN_IN], key, reverse):
                extents += fresh.append_records(part, block_bytes)
            merged.append(extents)
        file, runs = fresh, merged
    for part in _merged(file, runs, key, reverse):
        yield from part


class _Run:
    """A sorted run being read: the records of one batch that are still to come, and their keys."""

    __slots__ = ("_batches", "_key", "keys", "records", "start")

    def __init__(self, batches: Iterator[Batch], key: Key) -> None:
        self._batches = batches
        self._key = key
        self.records: list[Any] = []
        self.keys: list[Any] = []
        self.start = 0

    def load(self) -> bool:
        """See to it that there is a record; False at the end of the run."""
        if self.start < len(self.keys):
            return True
        batch = next(self._batches, None)
        if batch is None:
            return False
        self.records = list(batch)
        self.keys = self.records if self._key is None else list(map(self._key, self.records))
        self.start = 0
        return True


def _merged(file: SpillFile, runs: list[list[Extent]], key: Key, reverse: bool) -> Iterator[list[Any]]:
    """Merge sorted runs into sorted lists.

    Each turn looks at one batch of every run.  The batch that ends first bounds what may be put out: all
    that comes before its last key in any batch, and equals of that key from runs up to and including
    its own, because later runs' equals must wait for what that run still holds.  What was taken is
    sorted by C, which finds the runs in it.
    """
    alive = [_Run(file.batches(extents), key) for extents in runs]
    while alive := [run for run in alive if run.load()]:
        first = 0
        bound = alive[0].keys[-1]
        for i, run in enumerate(alive):
            last = run.keys[-1]
            if (bound < last) if reverse else (last < bound):
                first, bound = i, last
        keys: list[Any] = []
        records: list[Any] = []
        for i, run in enumerate(alive):
            end = len(run.keys) if i == first else _cut(run.keys, run.start, bound, i < first, reverse)
            keys += run.keys[run.start : end]
            records += run.records[run.start : end]
            run.start = end
        if len(alive) == 1:
            yield records
        else:
            order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
            yield [records[i] for i in order]


def _cut(keys: list[Any], start: int, bound: Any, with_equals: bool, reverse: bool) -> int:
    """How far a batch may be put out: before ``bound``, or up to its last equal."""
    if not reverse:
        return (bisect_right if with_equals else bisect_left)(keys, bound, start)
    low, high = start, len(keys)
    while low < high:  # bisect knows ascending keys only
        middle = (low + high) // 2
        before = not keys[middle] < bound if with_equals else bound < keys[middle]
        if before:
            low = middle + 1
        else:
            high = middle
    return low
