"""Tables by key with a limit, and what happens to them beyond it: runs on disk, split by hash.

A table that has outgrown its limit is written out whole, each key's entry to one of ``FANOUT`` buckets
by a hash that is salted with the depth, and starts empty again.  In the end each bucket is merged on
its own, in the order of the runs, so values of one key keep their order of arrival; a bucket that is
still too large is split again, with another salt.  (Idea: PySpark's ExternalMerger.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from spark_ft.shuffle.spill import BATCH_ROWS, Extent, SpillFile, mean_size, size_of

FANOUT = 32
SALT = 0x5F37  # makes a bucket's hash of a key, hash((depth, key, SALT)), unlike the one that placed it here
DEPTH_MAX = 6  # 32 ** 6 buckets are enough: what is too large then is one key's
ROUND_ROWS = 512  # records taken between two looks at the clock of records
_FIRST_LOOK_ROWS = 256
_SAMPLES = 16
_END = object()
_SIZED: dict[type, int] = {
    list: 9,
    set: 40,
    dict: 72,
    str: 1,
    bytes: 1,
    bytearray: 1,
}  # bytes a slot of an element takes

Create = Callable[[Any], Any]
Merge = Callable[[Any, Any], Any]


def rounds(records: Iterable[Any], size: int = ROUND_ROWS) -> Iterator[Iterable[Any]]:
    """Cut an iterator into lazy rounds of ``size``; each must be drained before the next is asked for."""
    iterator = iter(records)
    while (first := next(iterator, _END)) is not _END:
        yield chain((first,), islice(iterator, size - 1))


class CombineTable:
    """Combiners by key, in order of first arrival.

    ``create`` makes a combiner of a key's first value; None: the value is one already.
    """

    def __init__(self, create: Create | None, merge: Merge, limit_bytes: float) -> None:
        self._create = create
        self._merge = merge
        self._limit_bytes = limit_bytes
        self._entries: dict[Any, Any] = {}
        self._seen = 0  # rows since the table was empty
        self._look_at = _FIRST_LOOK_ROWS

    def fill(self, batches: Iterable[Iterable[Any]], size: int = 0) -> Iterator[None]:
        """Take in all pairs; yields whenever the table has reached its limit and should be emptied.

        ``size``: rows of a batch that has no length.  Raises TypeError for a key that cannot be hashed.
        """
        create, merge = self._create, self._merge
        for batch in batches:
            entries = self._entries
            if create is None:
                for key, value in batch:
                    if key in entries:
                        entries[key] = merge(entries[key], value)
                    else:
                        entries[key] = value
            else:
                for key, value in batch:
                    if key in entries:
                        entries[key] = merge(entries[key], value)
                    else:
                        entries[key] = create(value)
            self._seen += size or len(batch)  # type: ignore[arg-type]  # either is given
            if self._seen >= self._look_at and self._over_limit():
                yield

    def _over_limit(self) -> bool:
        used_bytes = self.size_bytes()
        if used_bytes >= self._limit_bytes:
            return True
        # The next look: when the table may have doubled, or half of what is left may be used up.
        left = (self._limit_bytes - used_bytes) / max(1.0, used_bytes / self._seen)
        self._look_at = self._seen + max(_FIRST_LOOK_ROWS, int(min(self._seen, left / 2)))
        return False

    def size_bytes(self) -> int:
        """Estimate from a few entries; the lengths of all combiners count if they are containers."""
        entries = self._entries
        count = len(entries)
        if not count:
            return 0
        step = max(1, count // _SAMPLES)
        keys = list(islice(entries, 0, None, step))
        combiners = list(islice(entries.values(), 0, None, step))
        # A dictionary that grows is there twice for a while, the new one twice as large.
        own: int = sys.getsizeof(entries) * 5 // 2 + count * sum(map(size_of, keys)) // len(keys)
        kinds = set(map(type, combiners))
        slot_bytes = _SIZED.get(kinds.pop()) if len(kinds) == 1 else None
        if slot_bytes is not None:
            try:
                element_count = sum(map(len, entries.values()))
            except TypeError:  # not all of them are containers after all
                element_count = 0
            if element_count:
                return own + count * 88 + element_count * (slot_bytes + _element_bytes(combiners))
        return own + count * sum(map(size_of, combiners)) // len(combiners)

    def batches(self, size: int = BATCH_ROWS) -> Iterator[list[Any]]:
        """The (key, combiner) pairs."""
        items = iter(self._entries.items())
        while batch := list(islice(items, size)):
            yield batch

    def items(self) -> Iterable[tuple[Any, Any]]:
        return self._entries.items()

    def clear(self) -> None:
        self._entries = {}
        self._seen = 0
        self._look_at = _FIRST_LOOK_ROWS


def _element_bytes(containers: list[Any]) -> int:
    """Mean size of an element, from the first ones of a few containers; characters count with their slot."""
    if isinstance(containers[0], (str, bytes, bytearray)):
        return 0
    firsts: list[Any] = []
    for container in containers:
        firsts += islice(container.items() if isinstance(container, dict) else container, 2)
    return mean_size(firsts) if firsts else 0


class HashRuns:
    """Entries on disk by bucket, in the order in which they were written."""

    def __init__(self, spill_dir: Path, depth: int) -> None:
        self.file = SpillFile(spill_dir)
        self.extents: list[list[Extent]] = [[] for _ in range(FANOUT)]
        self._depth = depth

    def add(self, entries: list[Any]) -> None:
        """Write tuples that begin with their key."""
        parts: list[list[Any]] = [[] for _ in range(FANOUT)]
        depth = self._depth
        for entry in entries:
            parts[hash((depth, entry[0], SALT)) % FANOUT].append(entry)
        for part, extents in zip(parts, self.extents, strict=True):
            if part:
                extents += self.file.append_records(part)


def combined(
    batches: Iterable[Iterable[Any]],
    create: Create | None,
    merge: Merge,
    merge_combiners: Merge,
    limit_bytes: int,
    spill_dir: Path,
    depth: int = 0,
) -> Iterator[tuple[Any, Any]]:
    """(key, combiner) of all pairs: in order of first arrival, or by buckets when they were too many."""
    table = CombineTable(create, merge, limit_bytes if depth < DEPTH_MAX else float("inf"))
    runs: HashRuns | None = None
    for _ in table.fill(batches):
        runs = runs or HashRuns(spill_dir, depth)
        _empty(table, runs)
    if runs is None:
        yield from table.items()
        return
    _empty(table, runs)
    for extents in runs.extents:
        bucket = runs.file.batches(extents)
        yield from combined(bucket, None, merge_combiners, merge_combiners, limit_bytes, spill_dir, depth + 1)


def _empty(table: CombineTable, runs: HashRuns) -> None:
    for entries in table.batches(BATCH_ROWS * 8):
        runs.add(entries)
    table.clear()
