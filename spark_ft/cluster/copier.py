"""The copies that a process holds of other hosts' data, and the thread that makes them.

    loop ── Copy ──> queue ──> thread: fetch from a block server, write, commit ──> CopyEnded ──> loop

One at a time and in the order asked for; how many are asked for is the scheduler's affair.  The store is
this process's own, so there is one writer, and it goes the way of every store: served by the host's
block server, by a successor's too, and given back with the application.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from spark_ft import failpoints
from spark_ft.errors import BlockCorrupt, StorageError, StoreFull
from spark_ft.ids import Fingerprint, HostId, Incarnation, NodeId
from spark_ft.protocol.effects import Copy, CopyEnded
from spark_ft.protocol.messages import BlockRef, CachedBlock, CopyMade, CopyOrder
from spark_ft.settings import Settings
from spark_ft.storage.blocks import OutputKey, StoreWriter, pack_block, pack_output
from spark_ft.storage.copying import copy_block, copy_output, output_key
from spark_ft.transport.blocks import BlockClient, RemoteFetch
from spark_ft.transport.keys import Keys

_WINDOW_BYTES = 8 << 20  # of answers under way: copying is never in a hurry


class Copier:
    """See the module.  ``report`` is called in the copier's thread."""

    def __init__(
        self,
        me: Incarnation,
        host: HostId,
        root: Path,
        token: bytes,
        settings: Settings,
        report: Callable[[CopyEnded], None],
        keys: Keys | None = None,
    ) -> None:
        self.me, self._host, self._path, self._settings = me, host, root / "stores" / me, settings
        self._report = report
        self._hosts: dict[HostId, str] = {}
        self._client = BlockClient(
            token,
            self._hosts,
            window_bytes=min(_WINDOW_BYTES, settings.fetch_window_bytes),
            timeout_s=settings.fetch_timeout_s,
            retries=settings.fetch_retries,
            rng=random.Random(me),
            keys=keys,
        )
        self._orders: SimpleQueue[tuple[Incarnation, CopyOrder] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._writer: StoreWriter | None = None
        self._lock = threading.Lock()
        self._outputs: dict[int, tuple[Fingerprint, OutputKey]] = {}  # by number of the order
        self._blocks: dict[int, tuple[NodeId, BlockRef]] = {}

    # --- In the loop ---

    @property
    def is_writing(self) -> bool:
        """Whether there is a store of ours, so that its directory has a living writer."""
        return self._writer is not None

    def copy(self, wanted: Copy) -> None:
        self._hosts.update(wanted.hosts)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spark-ft-copies", daemon=True)
            self._thread.start()
        for order in wanted.orders:
            self._orders.put((wanted.owner, order))

    def forget(self, nodes: Iterable[NodeId], numbers: Iterable[int]) -> None:
        """Copies of these nodes' partitions, and those made for these orders, are needed no more."""
        gone, late = set(nodes), set(numbers)
        with self._lock:
            blocks = [n for n, (node, _) in self._blocks.items() if node in gone or n in late]
            refs = [self._blocks.pop(number)[1] for number in blocks]
            keys = [self._outputs.pop(number)[1] for number in late if number in self._outputs]
        if self._writer is not None:
            self._writer.drop_blocks(refs)
            for key in keys:
                self._writer.drop_output(key)

    def drop(self, fingerprints: Iterable[Fingerprint]) -> None:
        """Nobody needs these shuffles any more."""
        gone = set(fingerprints)
        with self._lock:
            for number in [n for n, (name, _) in self._outputs.items() if name in gone]:
                del self._outputs[number]
        if self._writer is not None:
            self._writer.drop(gone)

    def close(self) -> None:
        """Nothing more is begun; the store is closed for good and stays readable."""
        if self._thread is not None:
            self._orders.put(None)
        if self._writer is not None:
            self._writer.close()

    # --- In the thread ---

    def _run(self) -> None:
        while (item := self._orders.get()) is not None:
            owner, order = item
            self._report(CopyEnded(owner, self._carry_out(order)))

    def _carry_out(self, order: CopyOrder) -> CopyMade:
        try:
            return self._copy(order)
        except RemoteFetch as error:
            return CopyMade(order.number, evidence=error.evidence, text=error.text)
        except BlockCorrupt as error:
            return CopyMade(order.number, evidence="corrupt", text=str(error))
        except StoreFull as error:
            told = CopyMade(order.number, evidence="STORAGE_FULL", text=str(error))
            return replace(told, needed_bytes=error.needed_bytes, free_bytes=error.free_bytes)
        except StorageError as error:
            return CopyMade(order.number, evidence=error.getCondition() or "failed", text=str(error))
        except Exception as error:  # this thread serves everybody: one copy's trouble must not end it
            return CopyMade(order.number, evidence="failed", text=f"{type(error).__name__}: {error}")

    def _copy(self, order: CopyOrder) -> CopyMade:
        writer = self._own_store()
        if order.output is not None:
            original, key = order.output, output_key(order.fingerprint, order.output)
            request = pack_output(original.store, original.segment, key)
            status = copy_output(writer, order.fingerprint, original, self._fetch(original.host, request))
            with self._lock:
                self._outputs[order.number] = order.fingerprint, key
            return CopyMade(order.number, output=replace(status, accums=()))
        assert order.cached is not None and order.cached.block is not None
        block = order.cached.block
        copy: CachedBlock = copy_block(writer, order.cached, self._fetch(block.host, pack_block(block)))
        assert copy.block is not None
        with self._lock:
            self._blocks[order.number] = copy.node, copy.block
        return CopyMade(order.number, cached=copy)

    def _fetch(self, host: HostId, request: bytes) -> Iterator[bytes]:
        for _, piece in self._client.fetch([(host, request)]):
            yield piece
        failpoints.hit("copies.write")  # all is written and nothing is committed

    def _own_store(self) -> StoreWriter:
        if self._writer is None:
            self._writer = StoreWriter(
                self._path,
                self._host,
                segment_bytes=self._settings.segment_bytes,
                transaction_bytes=min(self._settings.transaction_bytes, 4 << 20),
                any_file_system=self._settings.any_file_system,
            )
        return self._writer
