"""What a task may reach of its process: stores, shuffles, memory, and places to spill.

``ProcessEnv`` lives as long as the executor; ``Env`` as long as one task.  The budget of a task is a
share of the executor's memory that is fixed when the executor starts: spill points depend on the
task's records and on this number, never on live memory, so that a task run twice writes the same
bytes (docs/architecture.md).
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_ft import rows
from spark_ft.errors import BlockCorrupt, BlockMissing, FetchError
from spark_ft.ids import DRIVER_HOST, Generation, HostId, Incarnation, ShuffleId
from spark_ft.lineage.dependency import Aggregator, ShuffleDependency
from spark_ft.lineage.node import Replayable
from spark_ft.protocol.digests import digest_of_inputs, digest_of_outputs
from spark_ft.protocol.messages import BlockRef, FetchFailed, MapOutputs
from spark_ft.rows import Batch
from spark_ft.settings import Settings
from spark_ft.shuffle import grouping, merge
from spark_ft.shuffle.reader import ShuffleReader
from spark_ft.shuffle.spill import in_batches
from spark_ft.storage.blocks import StoreReader, StoreWriter, pack_block
from spark_ft.storage.memory import MemoryStore
from spark_ft.transport.blocks import BlockClient, RemoteFetch
from spark_ft.transport.keys import Keys

_BUDGET_MIN_BYTES = 1 << 20
_DIGESTS_MAX = 1000


class ProcessEnv:
    """One executor's stores and memory.  Opened on first use, never before a fork."""

    def __init__(
        self,
        settings: Settings,
        me: Incarnation,
        host: HostId,
        root: Path,
        roots: Mapping[HostId, Path],
        token: bytes,
        keys: Keys | None = None,
    ) -> None:
        self.settings, self.me, self.host, self.root = settings, me, host, root
        self._token, self._keys = token, keys
        self.hosts: dict[HostId, str] = {}
        self.unreachable: dict[HostId, float] = {}  # see ShuffleReader
        self._digests: dict[tuple[ShuffleId, int, int], int] = {}
        share = int(settings.executor_memory_bytes * settings.memory_fraction)
        execution = int(share * (1 - settings.storage_fraction)) // settings.executor_cores
        self.budget_bytes = min(execution, settings.python_worker_memory_bytes)
        self.memory = MemoryStore(share)  # may fill what no task uses; with one task it stays below the whole
        self.spill_dir = root / "tmp" / me
        self.reader = StoreReader(roots)
        self.reachable = frozenset(roots)
        # With one host every reader maps the file itself, and writing it is five times as fast as lz4.
        one_host = DRIVER_HOST in roots
        self.compress = settings.compress and (not one_host or "spark.shuffle.compress" in settings.extra)
        self._writer: StoreWriter | None = None
        self._client: BlockClient | None = None
        self._lock = threading.Lock()

    @property
    def transaction_bytes(self) -> int:
        """Dirty pages that LMDB may hold count as the task's memory too."""
        return min(self.settings.transaction_bytes, max(1 << 20, self.budget_bytes // 8))

    def writer(self) -> StoreWriter:
        """This process's own store."""
        with self._lock:
            if self._writer is None:
                self._writer = StoreWriter(
                    self.root / "stores" / self.me,
                    self.host,
                    segment_bytes=self.settings.segment_bytes,
                    transaction_bytes=self.transaction_bytes,
                    any_file_system=self.settings.any_file_system,
                )
            return self._writer

    def digest(self, outputs: MapOutputs) -> int:
        """Of all outputs of a shuffle; linear in them, once for each version."""
        key = outputs.shuffle, outputs.generation, outputs.version
        known = self._digests.get(key)
        if known is None:
            if len(self._digests) >= _DIGESTS_MAX:
                self._digests.clear()
            checksums = [status.checksum for status in outputs.statuses]
            known = digest_of_outputs(outputs.fingerprint, outputs.generation, checksums)
            self._digests[key] = known
        return known

    def drop_shuffles(self, shuffles: Iterable[ShuffleId]) -> None:
        """Give back the space of outputs that nothing refers to any more."""
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.drop_shuffles(shuffles)

    def client(self) -> BlockClient:
        """Reads from other hosts' block servers."""
        with self._lock:
            if self._client is None:
                self._client = BlockClient(
                    self._token,
                    self.hosts,
                    window_bytes=min(self.settings.fetch_window_bytes, max(1 << 20, self.budget_bytes // 4)),
                    timeout_s=self.settings.fetch_timeout_s,
                    retries=self.settings.fetch_retries,
                    rng=random.Random(self.me),
                    keys=self._keys,
                )
            return self._client

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._client is not None:
            self._client.close()


class Env:
    """The TaskEnv of one task (lineage/node.py)."""

    def __init__(self, process: ProcessEnv, outputs: Sequence[MapOutputs]) -> None:
        self.process = process
        self._outputs: dict[ShuffleId, MapOutputs] = {item.shuffle: item for item in outputs}
        self._shuffle = ShuffleReader(process.reader, process.client, process.reachable, process.unreachable)
        self.budget_bytes, self._spill_dir = process.budget_bytes, process.spill_dir
        self.record_count = 0  # read from shuffles so far: the task's progress

    def digest(self) -> int:
        """Of what this task was given to read (protocol/digests.py)."""
        return digest_of_inputs(map(self.process.digest, self._outputs.values()))

    def share_budget(self, keepers: int) -> None:
        """Each of so many that keep records at the same time gets an equal part of the task's budget."""
        self.budget_bytes = max(_BUDGET_MIN_BYTES, self.process.budget_bytes // max(1, keepers))

    def _pairs(self, dependency: ShuffleDependency, partition: int) -> Iterator[Batch]:
        outputs = self._outputs.get(dependency.shuffle)
        if outputs is None:  # the task was sent here for a cached partition, and that is gone
            missing = FetchFailed(dependency.shuffle, Generation(0), -1, HostId(""), "", "missing")
            raise FetchError(missing)
        for batch in self._shuffle.pairs(outputs, partition):
            self.record_count += len(batch)
            yield batch

    def read_shuffle(self, dependency: ShuffleDependency, partition: int) -> Iterator[Any]:
        pairs = self._pairs(dependency, partition)
        if dependency.aggregator is not None:
            merged = merge.merge_combiners if dependency.map_side_combine else merge.combine
            return merged(pairs, dependency.aggregator, self.budget_bytes, self._spill_dir)
        if dependency.group:
            return grouping.group(pairs, self.budget_bytes, self._spill_dir)
        if dependency.ordering is not None:
            key, reverse = _record_key(dependency.ordering.key), not dependency.ordering.ascending
            return merge.sort(pairs, key, reverse, self.budget_bytes, self._spill_dir)
        return itertools.chain.from_iterable(pairs)

    def cogroup(self, sides: Sequence[Iterator[Any]]) -> Iterator[tuple[Any, tuple[Replayable, ...]]]:
        return grouping.cogroup([in_batches(side) for side in sides], self.budget_bytes, self._spill_dir)

    def combine(self, pairs: Iterator[Any], aggregator: Aggregator) -> Iterator[Any]:
        return merge.combine(in_batches(pairs), aggregator, self.budget_bytes, self._spill_dir)

    def group(self, pairs: Iterator[Any]) -> Iterator[tuple[Any, Replayable]]:
        return grouping.group(in_batches(pairs), self.budget_bytes, self._spill_dir)

    def sort(self, records: Iterator[Any], key: Any, reverse: bool) -> Iterator[Any]:
        return merge.sort(in_batches(records), key, reverse, self.budget_bytes, self._spill_dir)

    def spool(self, records: Iterator[Any]) -> Replayable:
        return merge.spool(in_batches(records), self.budget_bytes, self._spill_dir)

    # --- Blocks ---

    def block_pieces(self, block: BlockRef) -> Iterator[bytes]:
        """The bytes of a block, piece by piece, from wherever it is.  Raises FetchError."""
        try:
            if block.host in self.process.reachable:
                yield from (bytes(piece) for piece in self.process.reader.block(block))
            else:
                for _, piece in self.process.client().fetch([(block.host, pack_block(block))]):
                    yield piece
        except RemoteFetch as error:
            raise block_failed(block, error.evidence, error.text) from error
        except (BlockCorrupt, BlockMissing) as error:
            evidence = "missing" if isinstance(error, BlockMissing) else "corrupt"
            raise block_failed(block, evidence, error.getMessage()) from error

    def read_block(self, block: BlockRef) -> bytes:
        return b"".join(self.block_pieces(block))

    def write_block(
        self, kind: str, name: bytes, chunks: Iterable[bytes], store: StoreWriter | None = None
    ) -> BlockRef:
        """Keep a block in this process's store (or in ``store``): whole, or not at all."""
        return (store or self.process.writer()).put_block(kind, name, chunks)

    def read_rows(self, block: BlockRef) -> Iterator[Any]:
        """The records of a block of batches, of which one piece is in memory at a time."""
        for buffer in rows.whole_buffers(self.block_pieces(block)):
            for batch in rows.iter_batches(buffer):
                yield from batch


def _record_key(key: Any) -> Any:
    if key is None:
        return _first
    return lambda record: key(record[0])


def _first(record: Any) -> Any:
    return record[0]


def block_failed(block: BlockRef, evidence: str, text: str) -> FetchError:
    return FetchError(
        FetchFailed(ShuffleId(-1), Generation(0), -1, block.host, block.store, evidence, text, block)
    )
