"""The map side: place pairs by key, combine them where that is allowed, write one map output.

    records ─┬─ combine in a table ─┐
             └──────────────────────┴─> buckets ──encode──> batches ──spill──> file
                                                               └──────────────┴── in order ──> store

Deterministic: batches come in the order of reduce partitions and within one in the order of arrival,
and where a batch or a run ends depends on the records and on the budget alone.

One record costs one tuple index, one hash, one list append and its share of one pickle: everything
per record is a C call or a loop over local names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from operator import index, itemgetter
from pathlib import Path
from types import NoneType
from typing import Any

from spark_ft import rows
from spark_ft.errors import StorageError
from spark_ft.lineage.dependency import Aggregator, ShuffleDependency
from spark_ft.lineage.narrow import user_stop_iteration
from spark_ft.lineage.partitioner import Partitioner, portable_hash
from spark_ft.protocol.digests import UNKNOWN
from spark_ft.protocol.messages import MapStatus
from spark_ft.shuffle.spill import (
    BATCH_BYTES,
    BATCH_ROWS,
    Extent,
    SpillFile,
    estimate_bytes,
    in_batches,
    rows_per_batch,
)
from spark_ft.shuffle.table import ROUND_ROWS, CombineTable, rounds
from spark_ft.storage.blocks import OutputKey, OutputWriter, StoreWriter

_key, _value = itemgetter(0), itemgetter(1)
_END = object()
_PLAIN_KEYS = {int, str, bytes, bool}  # portable_hash is hash for these; floats may be NaN
_Accums = Callable[[], tuple[tuple[int, bytes], ...]]


def write_map_output(
    records: Iterable[Any],
    dependency: ShuffleDependency,
    store: StoreWriter,
    key: OutputKey,
    *,
    budget_bytes: int,
    spill_dir: Path,
    accums: _Accums,
    codec_compress: bool,
    inputs: int = UNKNOWN,
) -> MapStatus:
    """Drain ``records``, pairs all of them, into one committed map output.

    ``accums`` is asked for the task's accumulator updates when all records have been seen; ``inputs`` is what
    it was built from (protocol/digests.py).
    Raises what the user's functions raise; TypeError for a key that cannot be hashed or placed;
    StoreFull and StorageError.  Whatever it raises, nothing of the output stays.
    """
    buckets = _Buckets(dependency.partitioner, budget_bytes, spill_dir, codec_compress)
    if dependency.aggregator is not None and dependency.map_side_combine:
        buckets.take_combined(records, dependency.aggregator)
    else:
        for batch in in_batches(records):
            buckets.take(batch)
    output = store.begin(dependency.shuffle, key, dependency.partitioner.partition_count)
    try:
        buckets.write(output)
        return output.commit(accums(), inputs)
    except BaseException:  # user code runs above, and a kill is a BaseException: no half output stays
        with contextlib.suppress(StorageError):  # a store in trouble: its garbage is collected later
            output.abort()
        raise


class _Buckets:
    """Pairs by reduce partition: as lists, then as encoded batches, then in a file."""

    def __init__(self, partitioner: Partitioner, budget_bytes: int, spill_dir: Path, compress: bool) -> None:
        count = partitioner.partition_count
        self._count = count
        self._place = _placer(partitioner)
        self._compress = compress
        self._spill_dir = spill_dir
        self._budget_bytes = budget_bytes
        self._raw_limit = budget_bytes // 4
        self._encoded_limit = budget_bytes // 4
        self._batch_bytes = max(16 << 10, min(BATCH_BYTES, budget_bytes // 64))
        self._row_limit = count * BATCH_ROWS
        self._lists: list[list[Any]] = [[] for _ in range(count)]
        self._raw_bytes = self._raw_rows = 0
        self._encoded: list[list[tuple[bytes | Extent, int]]] = [[] for _ in range(count)]
        self._encoded_bytes = 0
        self._file: SpillFile | None = None

    def take_combined(self, records: Iterable[Any], aggregator: Aggregator) -> None:
        """Combine by key first; the table is emptied into the buckets whenever it has grown to its share."""
        table = CombineTable(aggregator.create, aggregator.merge_value, self._budget_bytes // 4)
        for _ in table.fill(rounds(records), ROUND_ROWS):
            for batch in table.batches():
                self.take(batch)
            table.clear()
        for batch in table.batches():
            self.take(batch)

    def take(self, batch: Sequence[Any]) -> None:
        """Place the pairs of one batch.  Raises TypeError for keys that cannot be hashed."""
        lists, count = self._lists, self._count
        left = iter(batch)
        for place, record in zip(self._place(list(map(_key, batch))), left):  # noqa: B905 - a hot loop
            lists[place % count].append(record)
        if next(left, _END) is not _END:  # a StopIteration of user code has ended the places early
            raise user_stop_iteration()
        self._raw_rows += len(batch)
        self._raw_bytes += estimate_bytes(batch)  # type: ignore[arg-type]  # any sequence will do
        if self._raw_rows >= self._row_limit or self._raw_bytes >= self._raw_limit:
            self._encode()

    def _encode(self) -> None:
        """Turn the lists into batches."""
        step = rows_per_batch(self._raw_bytes // max(1, self._raw_rows), self._batch_bytes)
        for bucket, encoded in zip(self._lists, self._encoded, strict=True):
            for start in range(0, len(bucket), step):
                part = bucket if len(bucket) <= step else bucket[start : start + step]
                data = _encode_pairs(part, self._compress)
                encoded.append((data, len(part)))
                self._encoded_bytes += len(data)
            bucket.clear()
        self._raw_rows = self._raw_bytes = 0
        if self._encoded_bytes >= self._encoded_limit:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = SpillFile(self._spill_dir)
        for encoded in self._encoded:
            for i in range(len(encoded) - 1, -1, -1):
                data, row_count = encoded[i]
                if not isinstance(data, bytes):
                    break  # what stands before it has been spilled already
                encoded[i] = (self._file.append(data), row_count)
        self._encoded_bytes = 0

    def write(self, output: OutputWriter) -> None:
        """Hand everything to the output, in order of reduce partition."""
        self._encode()
        for reduce_index, encoded in enumerate(self._encoded):
            for data, row_count in encoded:
                if not isinstance(data, bytes):
                    assert self._file is not None
                    data = self._file.read(data)
                output.append(reduce_index, data, row_count)
            encoded.clear()


def _encode_pairs(records: list[Any], compress: bool) -> bytes:
    """One batch of pairs; lists and other sequences of two become tuples, as in PySpark."""
    try:
        keys, values = list(map(_key, records)), list(map(_value, records))
        plain = sum(map(len, records)) == 2 * len(records)  # none has less, so each has two
    except (TypeError, IndexError, KeyError):
        plain = False
    if not plain:
        pairs = [(key, value) for key, value in records]  # says what is wrong in the usual words
        keys, values = list(map(_key, pairs)), list(map(_value, pairs))
    return rows.encode_pairs(keys, values, compress)


# --- Placing keys -----------------------------------------------------------------------------

_Places = Iterable[int]


def _placer(partitioner: Partitioner) -> Callable[[list[Any]], _Places]:
    """From keys to numbers whose remainder is the reduce partition."""
    function = partitioner.function
    if function is portable_hash:
        portable_hash("")  # refuses here and now where the hash seed is not fixed
        return _hashes

    def place(keys: list[Any]) -> _Places:
        places = list(map(function, keys))
        return places if set(map(type, places)) <= {int} else list(map(_as_int, places))

    return place


def _as_int(place: Any) -> int:
    try:
        return index(place)
    except TypeError:
        raise TypeError(f"partitionFunc must return int, not {type(place).__name__}") from None


def _hashes(keys: list[Any]) -> _Places:
    """``portable_hash`` of each key, without a Python call per key for plain ones.

    A NaN, whose hash is its address, is placed as 0: it equals nothing, but must not wander.
    """
    types = set(map(type, keys))
    if types <= _PLAIN_KEYS:
        return map(hash, keys)
    if types == {tuple}:
        return _tuple_hashes(keys)
    if types <= _PLAIN_KEYS | {float, NoneType}:
        return [hash(key) if key == key and key is not None else 0 for key in keys]
    return map(portable_hash, keys)


def _tuple_hashes(keys: list[Any]) -> _Places:
    """``portable_hash`` of tuples of two plain values, written out; of others by the function."""
    if set(map(len, keys)) == {2}:
        lefts, rights = list(map(_key, keys)), list(map(_value, keys))
        if set(map(type, lefts)) | set(map(type, rights)) <= _PLAIN_KEYS:
            mask = (1 << 63) - 1
            return [
                ((((0x345678 ^ left) * 1000003 & mask) ^ right) * 1000003 & mask) ^ 2
                for left, right in zip(map(hash, lefts), map(hash, rights), strict=True)
            ]
    return map(portable_hash, keys)
