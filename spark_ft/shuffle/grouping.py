"""All values of a key together, for one or several sides; a single group may be larger than memory.

Each side has a table from key to list of values.  When all of them together have outgrown their limit
they go to disk, bucket by bucket: short lists as entries of batches that are loaded again with
their bucket, long ones as *pieces*, of which only the place is remembered.  So a bucket is
small again even when one key's values are not, and a group's values stream from the file when the
user iterates them.  Order of arrival is kept within a key, whatever was where.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from spark_ft.lineage.node import Replayable
from spark_ft.resultiterable import ResultIterable
from spark_ft.rows import Batch, Pairs
from spark_ft.shuffle.spill import BATCH_BYTES, Extent, Piece, SpillFile, Values, mean_size, size_of
from spark_ft.shuffle.table import DEPTH_MAX, FANOUT, SALT

_SHORT_BYTES = 4 * BATCH_BYTES  # of short lists written at a time: enough for batches, little for the budget
_ENTRY_BYTES = 190  # of a dictionary, an empty list in it, and its first slots

Table = dict[Any, list[Any] | Values]  # values by key


def group(
    batches: Iterable[Batch], budget_bytes: int, spill_dir: Path
) -> Iterator[tuple[Any, ResultIterable[Any]]]:
    """(key, values in order of arrival); keys in order of first arrival, or by buckets when spilled."""
    for (table,) in _grouped([batches], budget_bytes, spill_dir):
        yield from zip(table, map(ResultIterable, table.values()))  # noqa: B905 - one dictionary twice


def cogroup(
    sides: Sequence[Iterable[Batch]], budget_bytes: int, spill_dir: Path
) -> Iterator[tuple[Any, tuple[Replayable, ...]]]:
    """(key, the values of each side) for every key of any side; in order of arrival as in ``group``."""
    for tables in _grouped(sides, budget_bytes, spill_dir):
        for side, table in enumerate(tables):
            earlier, later = tables[:side], tables[side + 1 :]
            none: tuple[Replayable, ...] = tuple([[] for _ in earlier])
            for key, values in table.items():
                if not side or not any(key in other for other in earlier):
                    yield key, (*none, values, *[other.get(key) or [] for other in later])


def _grouped(sides: Sequence[Iterable[Batch]], budget_bytes: int, spill_dir: Path) -> Iterator[list[Table]]:
    """The tables of all sides that make up the answer: one after the other, none sharing a key."""
    grouping = _Grouping(len(sides), budget_bytes // 2, spill_dir, 0)
    for side, batches in enumerate(sides):
        grouping.take(side, batches)
    return grouping.results()


class _Grouping:
    """Tables of all sides at one depth, and their buckets on disk once there was too much."""

    def __init__(self, side_count: int, limit_bytes: int, spill_dir: Path, depth: int) -> None:
        self._tables: list[Table] = [defaultdict(list) for _ in range(side_count)]
        self._limit_bytes = limit_bytes
        self._spill_dir = spill_dir
        self._depth = depth
        self._value_bytes = self._value_count = 0  # of what is in the tables
        self._file: SpillFile | None = None
        # For each bucket, in order of writing: a batch of (key, side, values), or a long list's place.
        self._buckets: list[list[Extent | tuple[Any, int, Piece]]] = [[] for _ in range(FANOUT)]
        self._long_bytes = max(4 << 10, limit_bytes // 256) if depth < DEPTH_MAX else 0

    # --- In ---

    def take(self, side: int, batches: Iterable[Batch]) -> None:
        """All pairs of one side.  Raises TypeError for a key that cannot be hashed."""
        for batch in batches:
            table: dict[Any, Any] = self._tables[side]  # at depth 0 it holds lists alone
            for key, value in batch:
                table[key].append(value)
            self._value_bytes += (_mean_value(batch) + 9) * len(batch)
            self._value_count += len(batch)
            if self._over_limit():
                self._spill()

    def add_short(self, entries: Iterable[tuple[Any, int, list[Any]]]) -> None:
        """One batch of (key, side, values), values that come after those the key has."""
        tables: list[dict[Any, Any]] = self._tables
        value_count = value_bytes = look_at = sampled = 0
        for key, side, values in entries:
            table = tables[side]
            known = table.get(key)
            if known is None:
                table[key] = values
            elif type(known) is list:
                known += values
            else:
                known.add(values)
            value_count += len(values)
            if value_count >= look_at:  # a few of the lists, at fixed places
                value_bytes += mean_size(values)
                sampled += 1
                look_at = value_count * 2
        if value_count:
            self._value_bytes += (value_bytes // sampled + 9) * value_count
            self._value_count += value_count
        if self._over_limit():
            self._spill()

    def add_long(self, key: Any, side: int, piece: Piece) -> None:
        """Values of a key that stay on disk, and come after those it has."""
        table = self._tables[side]
        known = table.get(key)
        if not isinstance(known, Values):
            values = Values()
            if known:
                values.add(known)
            table[key] = known = values
        known.add(piece)
        self._value_bytes += 100 + 80 * len(piece.extents)
        if self._over_limit():
            self._spill()

    def _over_limit(self) -> bool:
        if self._value_bytes >= self._limit_bytes:
            return True
        entry_count = sum(map(len, self._tables))
        if self._value_bytes + entry_count * (_ENTRY_BYTES + 16) < self._limit_bytes // 2:
            return False  # not worth a closer look
        return self._value_bytes + sum(map(_table_bytes, self._tables)) >= self._limit_bytes

    # --- To disk ---

    def _spill(self) -> None:
        """Write all tables out and empty them."""
        if self._depth > DEPTH_MAX:
            return  # long lists are on disk already; what is left is one bucket's keys
        file = self._file = self._file or SpillFile(self._spill_dir)
        depth, mean_bytes = self._depth, self._value_bytes // max(1, self._value_count) + 1
        # Lists of so few values are short without a look at them.
        few = self._long_bytes // (4 * mean_bytes)
        for side, table in enumerate(self._tables):
            short: list[list[Any]] = [[] for _ in range(FANOUT)]
            left_bytes = _SHORT_BYTES
            for key, values in table.items():
                bucket = hash((depth, key, SALT)) % FANOUT
                if type(values) is list and len(values) < few:
                    short[bucket].append((key, side, values))
                    left_bytes -= len(values) * mean_bytes + 200
                else:
                    for piece in values.pieces if isinstance(values, Values) else (values,):
                        left_bytes -= self._sort_out(bucket, key, side, piece, short[bucket], file)
                if left_bytes < 0:
                    left_bytes = _SHORT_BYTES
                    for index, entries in enumerate(short):
                        self._write_short(index, entries)
            for index, entries in enumerate(short):
                self._write_short(index, entries)
            table.clear()
        self._value_bytes = self._value_count = 0

    def _sort_out(
        self, bucket: int, key: Any, side: int, piece: list[Any] | Piece, short: list[Any], file: SpillFile
    ) -> int:
        """Put a piece where it belongs; returns how many bytes of it are in ``short`` now."""
        if isinstance(piece, list):
            piece_bytes = mean_size(piece) * len(piece)
            if piece_bytes < self._long_bytes:
                short.append((key, side, piece))
                return piece_bytes + 200
            piece = Piece(file, file.append_records(piece), len(piece))
        # It must come behind the short lists of its key that are older.
        self._write_short(bucket, short)
        self._buckets[bucket].append((key, side, piece))
        return 0

    def _write_short(self, bucket: int, entries: list[Any]) -> None:
        if entries:
            assert self._file is not None
            self._buckets[bucket] += self._file.append_records(entries)
            entries.clear()

    # --- Out ---

    def results(self) -> Iterator[list[Table]]:
        """The tables, or those of each bucket; what a key's values are stays good afterwards."""
        if self._file is None:
            yield self._tables
            return
        self._spill()
        file, side_count = self._file, len(self._tables)
        for bucket in self._buckets:
            below = _Grouping(side_count, self._limit_bytes, self._spill_dir, self._depth + 1)
            for entry in bucket:
                if isinstance(entry, Extent):
                    for batch in file.batches([entry]):
                        below.add_short(batch)  # type: ignore[arg-type]  # no pairs, but entries
                else:
                    below.add_long(*entry)
            bucket.clear()
            yield from below.results()


def _mean_value(batch: Batch) -> int:
    if isinstance(batch, Pairs):
        return mean_size(batch.values)
    step = max(1, len(batch) // 4)
    return mean_size([value for _, value in islice(batch, 0, None, step)])


def _table_bytes(table: Table) -> int:
    if not table:
        return 0
    keys = list(islice(table, 8))
    return sys.getsizeof(table) * 3 // 2 + len(table) * (88 + sum(map(size_of, keys)) // len(keys))
