"""The reduce side's input: one reduce partition of every map output, in the order of map partitions.

Outputs on this host are read from their stores by path, the others come from block servers, asked for
together and taken in order.  The order is that of map partitions whatever arrives first, which is
what makes a task's input the same each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter

from spark_ft import rows
from spark_ft.errors import (
    BlockExpired,
    BlockIncomplete,
    BlockMissing,
    FetchError,
    StorageError,
)
from spark_ft.ids import HostId, TaskId
from spark_ft.protocol.messages import FetchFailed, MapOutputs, MapStatus
from spark_ft.rows import Batch
from spark_ft.storage.blocks import (
    OutputKey,
    StoreReader,
    pack_lacking,
    pack_slice,
    receive_lacking,
    receive_slice,
)
from spark_ft.transport.blocks import BlockClient, RemoteFetch

_ASKED_MAX = 20_000  # outputs in one request, which has at most a megabyte
_NETWORK = ("refused", "timeout")
_EVIDENCE = {BlockMissing: "missing", BlockExpired: "expired", BlockIncomplete: "incomplete"}


class ShuffleReader:
    """``client`` is asked for a BlockClient when the first remote output is met; None: there is none."""

    def __init__(
        self,
        reader: StoreReader,
        client: Callable[[], BlockClient] | None,
        local_hosts: Collection[HostId],
    ) -> None:
        self._reader = reader
        self._client = client
        self._local_hosts = local_hosts

    def pairs(self, outputs: MapOutputs, reduce_index: int) -> Iterator[Batch]:
        """Verified batches in map order.  Raises FetchError with the evidence.

        When it has been drained, each map output has given exactly the rows its manifest promises (BL-4).
        """
        statuses = sorted(outputs.statuses, key=attrgetter("map_index"))
        remote = [status for status in statuses if status.host not in self._local_hosts]
        answers = self._fetch(outputs, remote, reduce_index)
        for status in statuses:
            if status.generation != outputs.generation:
                raise _failed(outputs, status, "missing", f"it is of generation {status.generation}")
            key = _key(outputs, status)
            try:
                if status.host in self._local_hosts:
                    buffers = self._reader.slice(status.host, status.store, status.segment, key, reduce_index)
                else:
                    buffers = receive_slice(next(answers, iter(())), key, reduce_index)
                for buffer in buffers:
                    yield from rows.iter_batches(buffer)
            except RemoteFetch as error:
                status = remote[error.index]
                others = () if error.evidence in _NETWORK else self._others(outputs, status)
                raise _failed(outputs, status, error.evidence, error.text, others) from error
            except StorageError as error:
                evidence = _EVIDENCE.get(type(error), "corrupt")
                others = self._others(outputs, status)
                raise _failed(outputs, status, evidence, error.getMessage(), others) from error

    def _fetch(
        self, outputs: MapOutputs, remote: list[MapStatus], reduce_index: int
    ) -> Iterator[Iterator[bytes]]:
        """The pieces of each remote answer, in order."""
        if not remote:
            return
        if self._client is None:
            raise _failed(outputs, remote[0], "refused", "there is no way to other hosts")
        requests = [
            (status.host, pack_slice(status.store, status.segment, _key(outputs, status), reduce_index))
            for status in remote
        ]
        pieces = self._client().fetch(requests)
        for _, answer in itertools.groupby(pieces, key=lambda item: item[0]):
            yield (piece for _, piece in answer)

    def _others(self, outputs: MapOutputs, failed: MapStatus) -> tuple[TaskId, ...]:
        """Whose outputs cannot be read either, of those in the store of ``failed``: told together, they
        are rebuilt together (BL-9).  Only what is proved unreadable is named (BL-1)."""
        rest = [
            status
            for status in outputs.statuses
            if (status.host, status.store) == (failed.host, failed.store) and status is not failed
        ][:_ASKED_MAX]
        asked = [(status.segment, _key(outputs, status)) for status in rest]
        try:
            if failed.host in self._local_hosts:
                lacking = self._reader.lacking(failed.host, failed.store, asked)
            else:
                assert self._client is not None  # it has answered just now
                request = (failed.host, pack_lacking(failed.store, asked))
                lacking = receive_lacking(b"".join(piece for _, piece in self._client().fetch([request])))
        except (StorageError, RemoteFetch):  # nothing is proved of the others
            return ()
        return tuple(rest[position].attempt for position in lacking if position < len(rest))


def _key(outputs: MapOutputs, status: MapStatus) -> OutputKey:
    return OutputKey(outputs.fingerprint, status.generation, status.map_index, status.attempt)


def _failed(
    outputs: MapOutputs, status: MapStatus, evidence: str, text: str, others: tuple[TaskId, ...] = ()
) -> FetchError:
    return FetchError(
        FetchFailed(
            outputs.shuffle,
            outputs.generation,
            status.map_index,
            status.host,
            status.store,
            evidence,
            text,
            attempt=status.attempt,
            others=others,
        )
    )
