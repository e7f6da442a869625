"""The reduce side's input: one reduce partition of every map output, in the order of map partitions.

Outputs on this host are read from their stores by path, the others come from block servers, asked for
together and taken in order.  The order is that of map partitions whatever arrives first, which is
what makes a task's input the same each time.

Of an output with copies the one on this host is read; else the first, or the next when the host of that
is out of reach of ours (NET-8).  Damage is reported, never passed over: the driver must know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from operator import attrgetter

from spark_ft import rows
from spark_ft.clock import perf_s
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
_UNREACHABLE_S = 60.0
_EVIDENCE = {BlockMissing: "missing", BlockExpired: "expired", BlockIncomplete: "incomplete"}


class ShuffleReader:
    """``client`` is asked for a BlockClient when the first remote output is met; None: there is none.

    ``unreachable``: hosts that could not be reached of late, and until when (``perf_s``) others are
    preferred; shared by all readers of a process.
    """

    def __init__(
        self,
        reader: StoreReader,
        client: Callable[[], BlockClient] | None,
        local_hosts: Collection[HostId],
        unreachable: dict[HostId, float] | None = None,
    ) -> None:
        self._reader = reader
        self._client = client
        self._local_hosts = local_hosts
        self._unreachable = {} if unreachable is None else unreachable

    def pairs(self, outputs: MapOutputs, reduce_index: int) -> Iterator[Batch]:
        """Verified batches in map order.  Raises FetchError with the evidence.

        When it has been drained, each map output has given exactly the rows its manifest promises (BL-4).
        """
        places = _places(outputs)
        chosen = [self._nearest(each) for each in places]
        answers: _Answers | None = None
        position = 0
        in_vain: list[MapStatus] = []  # places that this position was asked for at
        while position < len(places):
            status, key, begun = chosen[position], _key(outputs, chosen[position]), False
            if status.generation != outputs.generation:
                raise _failed(outputs, status, "missing", f"it is of generation {status.generation}")
            try:
                if status.host in self._local_hosts:
                    buffers = self._reader.slice(status.host, status.store, status.segment, key, reduce_index)
                else:
                    answers = answers or self._fetch(outputs, chosen, position, reduce_index)
                    buffers = receive_slice(answers.of(position), key, reduce_index)
                for buffer in buffers:
                    begun = True
                    yield from rows.iter_batches(buffer)
                position += 1
                in_vain.clear()
            except RemoteFetch as error:
                others: tuple[TaskId, ...] = ()
                if error.evidence not in _NETWORK:
                    others = self._others(outputs, status)
                else:
                    self._unreachable[status.host] = perf_s() + _UNREACHABLE_S
                    in_vain.append(status)
                    left = [place for place in places[position] if place not in in_vain]
                    if not begun and left:
                        chosen[position:] = map(self._nearest, [left, *places[position + 1 :]])
                        answers = None
                        continue
                    if not left and len(in_vain) > 1:  # the next reader begins with it, and tells of another
                        del self._unreachable[status.host]
                raise _failed(outputs, status, error.evidence, error.text, others) from error
            except StorageError as error:
                evidence = _EVIDENCE.get(type(error), "corrupt")
                others = self._others(outputs, status)
                raise _failed(outputs, status, evidence, error.getMessage(), others) from error

    def _nearest(self, places: list[MapStatus]) -> MapStatus:
        """This host's, else the first within reach, else the one whose host was found out of reach first."""
        if len(places) == 1:
            return places[0]
        for place in places:
            if place.host in self._local_hosts:
                return place
        now_s = perf_s()
        return min(places, key=lambda place: max(self._unreachable.get(place.host, 0.0), now_s))

    def _fetch(
        self, outputs: MapOutputs, chosen: list[MapStatus], start: int, reduce_index: int
    ) -> _Answers:
        """Ask for every remote output from position ``start`` on."""
        remote = [p for p in range(start, len(chosen)) if chosen[p].host not in self._local_hosts]
        if self._client is None:
            raise _failed(outputs, chosen[start], "refused", "there is no way to other hosts")
        requests = [
            (s.host, pack_slice(s.store, s.segment, _key(outputs, s), reduce_index))
            for s in (chosen[position] for position in remote)
        ]
        return _Answers(remote, self._client().fetch(requests))

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


class _Answers:
    """The pieces of one fetch, answer by answer, for outputs at ascending ``positions``.

    The end of an answer shows only when the next one begins, or fails: that failure waits for its turn.
    """

    def __init__(self, positions: list[int], pieces: Iterator[tuple[int, bytes]]) -> None:
        self._positions, self._pieces = positions, pieces
        self._ahead: tuple[int, bytes] | None = None  # position and piece
        self._error: RemoteFetch | None = None
        self._done = False

    def of(self, position: int) -> Iterator[bytes]:
        """Raises RemoteFetch when this very answer cannot be had."""
        while True:
            if self._ahead is None and not self._done:
                self._pull()
            if self._ahead is not None and self._ahead[0] < position:  # nobody wanted the rest of it
                self._ahead = None
            elif self._ahead is not None:
                if self._ahead[0] > position:
                    return
                piece, self._ahead = self._ahead[1], None
                yield piece
            elif self._done:
                if self._error is not None and self._positions[self._error.index] == position:
                    raise self._error
                return

    def _pull(self) -> None:
        try:
            index, piece = next(self._pieces)
            self._ahead = self._positions[index], piece
        except StopIteration:
            self._done = True
        except RemoteFetch as error:
            self._error, self._done = error, True


def _places(outputs: MapOutputs) -> list[list[MapStatus]]:
    """For each map partition in order, everywhere that its output is."""
    copies: dict[int, list[MapStatus]] = {}
    for copy in outputs.copies:
        copies.setdefault(copy.map_index, []).append(copy)
    statuses = sorted(outputs.statuses, key=attrgetter("map_index"))
    return [[status, *copies.get(status.map_index, ())] for status in statuses]


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
