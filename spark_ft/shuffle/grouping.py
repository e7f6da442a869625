"""All values of a key together, for one or several sides; a single group may be larger than memory.

Each side has a table from key to list of values.  When all of them together have outgrown their limit
they go to disk, bucket by bucket: short lists as batches of pairs that are taken in again with
their bucket, long ones as *pieces*, of which only the place is remembered.  So a bucket is
small again even when one key's values are not, and a group's values stream from the file when the
user iterates them.  Order of arrival is kept within a key, whatever was where.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from spark_ft import rows
from spark_ft.lineage.node import Replayable
from spark_ft.resultiterable import ResultIterable
from spark_ft.rows import Batch, Pairs
from spark_ft.shuffle.spill import (
    BATCH_BYTES,
    Extent,
    Piece,
    SpillFile,
    Values,
    mean_size,
    rows_per_batch,
    size_of,
)
from spark_ft.shuffle.table import DEPTH_MAX, FANOUT, SALT

_SHORT_BYTES = 4 * BATCH_BYTES  # of short lists written at a time: enough for batches, little for the budget
_ENTRY_BYTES = 220  # of a dictionary, an empty list in it, and its first slots

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
        # For each bucket, in order of writing: a side's batch of pairs, or the place of a key's long list.
        self._buckets: list[list[tuple[int, Extent] | tuple[int, Any, Piece]]] = [[] for _ in range(FANOUT)]
        self._long_bytes = max(4 << 10, limit_bytes // 256) if depth < DEPTH_MAX else 0

    # --- In ---

    def take(self, side: int, batches: Iterable[Batch]) -> None:
        """Pairs of one side, which come after those it has.  Raises TypeError for keys without a hash."""
        for batch in batches:
            table = self._tables[side]
            for key, value in batch:
                table[key].append(value)
            self._value_bytes += (_mean_value(batch) + 9) * len(batch)
            self._value_count += len(batch)
            if self._over_limit():
                self._spill()

    def take_long(self, side: int, key: Any, piece: Piece) -> None:
        """Values of a key that stay on disk, and come after those it has."""
        table = self._tables[side]
        known = table[key]
        if isinstance(known, list):
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
        if self._value_bytes + entry_count * _ENTRY_BYTES < self._limit_bytes // 2:
            return False  # not worth a closer look
        return self._value_bytes + sum(map(_table_bytes, self._tables)) >= self._limit_bytes

    # --- To disk ---

    def _spill(self) -> None:
        """Write all tables out and empty them: short lists as pairs again, long ones as pieces."""
        if self._depth > DEPTH_MAX:
            return  # long lists are on disk already; what is left is one bucket's keys
        file = self._file = self._file or SpillFile(self._spill_dir)
        depth, mean_bytes = self._depth, self._value_bytes // max(1, self._value_count) + 1
        few = self._long_bytes // (4 * mean_bytes)  # so few values are short without a look at them
        rows_at_once = max(1, _SHORT_BYTES // (mean_bytes + 64))
        for side, table in enumerate(self._tables):
            keys: list[list[Any]] = [[] for _ in range(FANOUT)]
            values: list[list[Any]] = [[] for _ in range(FANOUT)]
            left = rows_at_once
            for key, group in table.items():
                bucket = hash((depth, key, SALT)) % FANOUT
                for piece in group.pieces if isinstance(group, Values) else (group,):
                    if isinstance(piece, list):
                        count = len(piece)
                        if count < few or mean_size(piece) * count < self._long_bytes:
                            keys[bucket].extend(repeat(key, count))
                            values[bucket] += piece
                            left -= count
                            continue
                        piece = Piece(file, file.append_records(piece), count)
                    # It must come behind the short lists of its key that are older.
                    self._write_short(side, bucket, keys[bucket], values[bucket], mean_bytes)
                    self._buckets[bucket].append((side, key, piece))
                if left <= 0:
                    left = rows_at_once
                    for bucket in range(FANOUT):
                        self._write_short(side, bucket, keys[bucket], values[bucket], mean_bytes)
            for bucket in range(FANOUT):
                self._write_short(side, bucket, keys[bucket], values[bucket], mean_bytes)
            table.clear()
        self._value_bytes = self._value_count = 0

    def _write_short(
        self, side: int, bucket: int, keys: list[Any], values: list[Any], mean_bytes: int
    ) -> None:
        assert self._file is not None
        step = rows_per_batch(mean_bytes + 64)
        for start in range(0, len(keys), step):
            data = rows.encode_pairs(keys[start : start + step], values[start : start + step])
            self._buckets[bucket].append((side, self._file.append(data)))
        keys.clear()
        values.clear()

    # --- Out ---

    def results(self) -> Iterator[list[Table]]:
        """The tables, or those of each bucket; what a key's values are stays good afterwards."""
        if self._file is None:
            yield self._tables
            for table in self._tables:
                table.clear()  # before the next bucket comes in, whoever still holds them
            return
        self._spill()
        file, side_count = self._file, len(self._tables)
        for bucket in self._buckets:
            below = _Grouping(side_count, self._limit_bytes, self._spill_dir, self._depth + 1)
            for entry in bucket:
                if len(entry) == 2:
                    below.take(entry[0], file.batches([entry[1]]))
                else:
                    below.take_long(*entry)
            bucket.clear()
            yield from below.results()


def _mean_value(batch: Batch) -> int:
    if isinstance(batch, Pairs):
        return mean_size(batch.values)
    step = max(1, len(batch) // 4)
    return mean_size([value for _, value in islice(batch, 0, None, step)])


def _table_bytes(table: Table) -> int:
    """Of the table itself, which is there twice while it grows, its keys, and its lists without values."""
    if not table:
        return 0
    keys = list(islice(table, 8))
    return sys.getsizeof(table) * 2 + len(table) * (112 + sum(map(size_of, keys)) // len(keys))
