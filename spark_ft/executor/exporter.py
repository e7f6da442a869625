"""Partitions in this executor's memory, written down so that they can be copied and outlive it.

A thread of its own does it, beside the running task; the blocks go into the executor's own store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from spark_ft import rows
from spark_ft.errors import StorageError, StoreFull
from spark_ft.executor.env import ProcessEnv
from spark_ft.ids import Incarnation, NodeId
from spark_ft.protocol.effects import Copy, CopyEnded
from spark_ft.protocol.messages import BlockRef, CachedBlock, CopyMade, CopyOrder
from spark_ft.shuffle.spill import in_batches


class Exporter:
    """``kept`` is told of each block written; ``report`` of each order's end.  Both in its thread."""

    def __init__(
        self,
        env: ProcessEnv,
        kept: Callable[[NodeId, BlockRef], None],
        report: Callable[[CopyEnded], None],
    ) -> None:
        self._env, self._kept, self._report = env, kept, report
        self._orders: SimpleQueue[tuple[Incarnation, CopyOrder]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._written: dict[int, BlockRef] = {}  # by number of the order

    def copy(self, wanted: Copy) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="executor-exports", daemon=True)
            self._thread.start()
        for order in wanted.orders:
            self._orders.put((wanted.owner, order))

    def forget(self, numbers: Iterable[int]) -> None:
        """What was written for these orders is needed no more."""
        refs = [self._written.pop(number) for number in numbers if number in self._written]
        if refs:
            self._env.writer().drop_blocks(refs)

    def _run(self) -> None:
        while True:
            owner, order = self._orders.get()
            self._report(CopyEnded(owner, self._carry_out(order)))

    def _carry_out(self, order: CopyOrder) -> CopyMade:
        try:
            return self._export(order)
        except StoreFull as error:
            sizes = error.needed_bytes, error.free_bytes
            return CopyMade(order.number, None, None, "STORAGE_FULL", str(error), *sizes)
        except StorageError as error:
            return CopyMade(order.number, evidence=error.getCondition() or "failed", text=str(error))
        except Exception as error:  # the records' own __reduce__ may raise anything
            return CopyMade(order.number, evidence="failed", text=f"{type(error).__name__}: {error}")

    def _export(self, order: CopyOrder) -> CopyMade:
        assert order.cached is not None
        node, partition = order.cached.node, order.cached.partition
        held = self._env.memory.held(node, partition)
        if held is None:
            return CopyMade(order.number, evidence="gone", text="it is not in this memory any more")
        chunks = (rows.encode(batch) for batch in in_batches(iter(held.records)))
        ref = self._env.writer().put_block("rdd", b"%d.%d" % (node, partition), chunks)
        self._written[order.number] = ref
        self._kept(node, ref)
        return CopyMade(order.number, cached=CachedBlock(node, partition, ref.size_bytes, ref, held.checksum))
