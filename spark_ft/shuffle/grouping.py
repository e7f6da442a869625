"""All values of a key together, for one or several sides; a single group may be larger than memory.

Each side has a table from key to list of values.  When all of them together have outgrown their limit
they go to disk, bucket by bucket: short lists as entries of batches that are loaded again with
their bucket, long ones as *pieces*, of which only the place is remembered.  So a bucket is
small again even when one key's values are not, and a group's values stream from the file when the
user iterates them.  Order of arrival is kept within a key, whatever was where.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from spark_ft.resultiterable import ResultIterable
from spark_ft.rows import Batch, Pairs
from spark_ft.shuffle.spill import BATCH_BYTES, Extent, Piece, SpillFile, Values, mean_size, size_of
from spark_ft.shuffle.table import DEPTH_MAX, FANOUT, bucket_of

_ENTRY_BYTES = 190  # of a dictionary, an empty list in it, and its first slots

Group = list[Any] | Values
Groups = tuple[Any, tuple[Group, ...]]  # key, values of each side


def group(
    batches: Iterable[Batch], budget_bytes: int, spill_dir: Path
) -> Iterator[tuple[Any, ResultIterable[Any]]]:
    """(key, values in order of arrival); keys in order of first arrival, or by buckets when spilled."""
    for key, (values,) in _grouped([batches], budget_bytes, spill_dir):
        yield key, ResultIterable(values)


def cogroup(
    sides: Sequence[Iterable[Batch]], budget_bytes: int, spill_dir: Path
) -> Iterator[tuple[Any, tuple[ResultIterable[Any], ...]]]:
    """(key, one iterable of values for each side) for every key of any side."""
    for key, groups in _grouped(sides, budget_bytes, spill_dir):
        yield key, tuple([ResultIterable(values) for values in groups])


def _grouped(sides: Sequence[Iterable[Batch]], budget_bytes: int, spill_dir: Path) -> Iterator[Groups]:
    grouping = _Grouping(len(sides), budget_bytes // 2, spill_dir, 0)
    for side, batches in enumerate(sides):
        grouping.take(side, batches)
    return grouping.results()


class _Grouping:
    """Tables of all sides at one depth, and their buckets on disk once there was too much."""

    def __init__(self, side_count: int, limit_bytes: int, spill_dir: Path, depth: int) -> None:
        self._tables: list[dict[Any, Group]] = [{} for _ in range(side_count)]
        self._limit_bytes = limit_bytes
        self._spill_dir = spill_dir
        self._depth = depth
        self._value_bytes = 0  # of values in lists
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
                if key in table:
                    table[key].append(value)
                else:
                    table[key] = [value]
            self._value_bytes += (_mean_value(batch) + 9) * len(batch)
            if self._over_limit():
                self._spill()

    def add(self, side: int, key: Any, piece: list[Any] | Piece) -> None:
        """Some values of a key that come after those it has."""
        table = self._tables[side]
        known = table.get(key)
        if isinstance(piece, list):
            self._value_bytes += (mean_size(piece) + 9) * len(piece)
            if known is None:
                table[key] = piece
            elif isinstance(known, list):
                known += piece
            else:
                known.add(piece)
        else:
            if not isinstance(known, Values):
                table[key] = values = Values()
                if known:
                    values.add(known)
                known = values
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
        for side, table in enumerate(self._tables):
            short: list[list[Any]] = [[] for _ in range(FANOUT)]
            short_bytes = 0
            for key, values in table.items():
                bucket = bucket_of(key, self._depth)
                for piece in values.pieces if isinstance(values, Values) else (values,):
                    if isinstance(piece, list):
                        piece_bytes = mean_size(piece) * len(piece)
                        if piece_bytes < self._long_bytes:
                            short[bucket].append((key, side, piece))
                            short_bytes += piece_bytes + 200
                            continue
                        piece = Piece(file, file.append_records(piece), len(piece))
                    # A piece must come behind the short lists of its key that are older.
                    self._write_short(bucket, short[bucket])
                    self._buckets[bucket].append((key, side, piece))
                if short_bytes >= BATCH_BYTES * 4:
                    for index, entries in enumerate(short):
                        self._write_short(index, entries)
                    short_bytes = 0
            for index, entries in enumerate(short):
                self._write_short(index, entries)
            table.clear()
        self._value_bytes = 0

    def _write_short(self, bucket: int, entries: list[Any]) -> None:
        if entries:
            assert self._file is not None
            self._buckets[bucket] += self._file.append_records(entries)
            entries.clear()

    # --- Out ---

    def results(self) -> Iterator[Groups]:
        """Every key once.  Iterators of a group stay good after the next one was taken."""
        if self._file is None:
            yield from self._in_memory()
            return
        self._spill()
        file, side_count = self._file, len(self._tables)
        for bucket in self._buckets:
            below = _Grouping(side_count, self._limit_bytes, self._spill_dir, self._depth + 1)
            for entry in bucket:
                if isinstance(entry, Extent):
                    for batch in file.batches([entry]):
                        for key, side, values in batch:  # type: ignore[misc]  # no pairs, but entries
                            below.add(side, key, values)
                else:
                    key, side, piece = entry
                    below.add(side, key, piece)
            bucket.clear()
            yield from below.results()

    def _in_memory(self) -> Iterator[Groups]:
        if len(self._tables) == 1:
            for key, values in self._tables[0].items():
                yield key, (values,)
            return
        seen: set[Any] = set()
        for side, table in enumerate(self._tables):
            for key in table:
                if side and any(key in earlier for earlier in self._tables[:side]):
                    continue
                yield key, tuple([other.get(key, []) for other in self._tables])
        seen.clear()


def _mean_value(batch: Batch) -> int:
    if isinstance(batch, Pairs):
        return mean_size(batch.values)
    step = max(1, len(batch) // 4)
    return mean_size([value for _, value in islice(batch, 0, None, step)])


def _table_bytes(table: dict[Any, Group]) -> int:
    if not table:
        return 0
    keys = list(islice(table, 8))
    return sys.getsizeof(table) * 3 // 2 + len(table) * (88 + sum(map(size_of, keys)) // len(keys))
