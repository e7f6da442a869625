"""The asking side of ``blocks.py``: everything happens in the caller's thread, while it asks for more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from spark_ft.clock import BootClock
from spark_ft.errors import ClusterError, ShuffleError
from spark_ft.ids import HostId
from spark_ft.transport.blockwire import (
    ANSWER,
    ASK,
    CANCEL,
    END,
    ERROR,
    GET,
    GRANT,
    LAST,
    MAGIC,
    PIECE,
    PIECE_BYTES,
    PIECE_BYTES_MIN,
    UNKNOWN,
)
from spark_ft.transport.keys import Keys
from spark_ft.transport.sockets import Net, Socket, Waiter, connection_event

FIRST_CREDIT = 2  # pieces that a request starts with: a small answer and its end need no grant
DEPTH = 4  # pieces under way for one request once it is known to be larger
GAP_S = 0.25  # a message that later ones have overtaken is lost if it is still missing after so long


class RemoteFetch(ShuffleError):  # noqa: N818  # an answer of the other side, named as TaskFailed is
    """Request number ``index`` could not be had; ``evidence`` is one of refused, timeout, missing,
    corrupt, incomplete, expired."""

    default_condition = "FETCH_FAILED"

    def __init__(self, index: int, evidence: str, text: str) -> None:
        super().__init__(f"request {index}: {evidence}: {text}")
        self.index = index
        self.evidence = evidence
        self.text = text

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.index, self.evidence, self.text)


class _Connection:
    """To one host's server; used by one fetch at a time."""

    def __init__(self, endpoint: str, socket: Socket) -> None:
        self.endpoint = endpoint
        self.socket = socket
        self.last_id = 0


class _Line:
    """What one fetch knows of one host."""

    def __init__(self, host: HostId, piece_bytes: int) -> None:
        self.host = host
        self.piece_bytes = piece_bytes
        self.connection: _Connection | None = None
        self.requests: dict[int, _Request] = {}  # open ones by request id
        self.tries = 0
        self.refusals = 0
        self.heard = False  # since the caller began to wait
        self.early = 0  # messages that came before an earlier one, over all its requests


class _Request:
    """One request of one fetch."""

    def __init__(self, index: int, line: _Line, ask: bytes) -> None:
        self.index = index
        self.line = line
        self.ask = ask
        self.request_id = 0  # 0: not open
        self.granted = 0  # pieces asked for and not received
        self.number = 0  # of the next message
        self.early: dict[int, tuple[int, bytes]] = {}  # later ones; no more than were granted, and an end
        self.whole = 0  # chunks received
        self.parts: list[bytes] = []  # of the present chunk
        self.ready: deque[bytes] = deque()  # chunks that the caller has not taken yet
        self.finished = False
        self.failure: tuple[str, str] | None = None


class BlockClient:
    """Fetches from the servers at ``hosts`` (which may change meanwhile).  Any number of fetches may run
    at a time, in any threads; each has its own connections, which are kept for the next one.

    ``retries``: how often a host is tried in all.  ``timeout_s``: without a byte, per try.
    """

    def __init__(
        self,
        token: bytes,
        hosts: Mapping[HostId, str],
        *,
        window_bytes: int,
        timeout_s: float,
        retries: int,
        rng: Random,
        keys: Keys | None = None,
    ) -> None:
        self.token, self._keys = token, keys
        self.hosts = hosts
        self.window_bytes = window_bytes
        self.piece_bytes = min(PIECE_BYTES, max(PIECE_BYTES_MIN, window_bytes // 8))
        self.timeout_s = timeout_s
        self.tries = max(1, retries)
        self.rng = rng
        self._net: Net | None = None
        self._idle: dict[str, list[_Connection]] = {}
        self._lock = threading.Lock()

    def fetch(self, requests: Sequence[tuple[HostId, bytes]]) -> Iterator[tuple[int, bytes]]:
        """(index of the request, chunk) for every chunk of every request, in order.

        A chunk is one item of the server's iterator; a request may have none.  Raises RemoteFetch when
        the first request not yet finished cannot be had.  Closing the iterator cancels the rest.
        """
        run = _Fetch(self, requests)
        try:
            for request in run.requests:
                while True:
                    while request.ready:
                        yield request.index, run.take(request)
                    if request.finished:
                        break
                    if request.failure is not None:
                        raise RemoteFetch(request.index, *request.failure)
                    run.advance(request)
        finally:
            run.close()

    def close(self) -> None:
        """Every connection; a fetch that still runs fails with ClusterError."""
        with self._lock:
            self._idle.clear()
            if self._net is not None:
                self._net.close()
                self._net = None

    def is_forked(self) -> bool:
        """Whether what is open here belongs to the parent process."""
        return self._net is None or self._net.forked

    def borrow(self, endpoint: str) -> _Connection:
        """A connection that nobody else uses."""
        with self._lock:
            if self._net is None or self._net.forked:
                self._net = Net(self._keys)
                self._idle.clear()
            idle = self._idle.get(endpoint, [])
            while idle:
                connection = idle.pop()
                if not _has_changed(connection):
                    return connection
                connection.socket.close()
            socket = self._net.dealer("", endpoint, PIECE_BYTES + 4096, hwm=0, monitored=True)
            return _Connection(endpoint, socket)

    def give_back(self, connection: _Connection, usable: bool) -> None:
        """``usable``: whatever still comes belongs to requests whose ids are never used again."""
        with self._lock:
            if self._net is None or self._net.forked:
                return
            if usable:
                self._idle.setdefault(connection.endpoint, []).append(connection)
            else:
                connection.socket.close()


def _has_changed(connection: _Connection) -> bool:
    """Whether it was lost or never made: what is said about that belongs to an earlier fetch."""
    monitor, changed = connection.socket.monitor, False
    while monitor is not None and (parts := monitor.receive()) is not None:
        changed |= connection_event(parts) != "up"
    return changed


class _Fetch:
    """The state of one ``fetch``."""

    def __init__(self, client: BlockClient, requests: Sequence[tuple[HostId, bytes]]) -> None:
        self._client = client
        self._clock = BootClock()
        self._waiter = Waiter()
        self._lines = {host: _Line(host, client.piece_bytes) for host, _ in requests}
        self._sources: dict[Socket, _Line] = {}
        self.requests = [_Request(i, self._lines[host], ask) for i, (host, ask) in enumerate(requests)]
        self._open: dict[_Request, None] = {}  # opened and neither finished nor failed, in order
        self._next = 0  # the first request not opened yet
        self._used_bytes = 0  # granted and not received, or received and not taken, by all

    def take(self, request: _Request) -> bytes:
        """The next chunk of ``request`` goes to the caller."""
        chunk = request.ready.popleft()
        self._used_bytes -= len(chunk)
        return chunk

    def advance(self, head: _Request) -> None:
        """Ask for what there is room for, then wait until there is something new from head's host."""
        self._ask(head)
        if head.failure is None:
            self._wait(head)

    def close(self) -> None:
        """Cancel what is open; connections go back, as their late answers are known by old ids."""
        if self._client.is_forked():
            return
        for request in self._open:
            if request.request_id and request.line.connection is not None:
                self._say(request, CANCEL, 0)
        for line in self._lines.values():
            if line.connection is not None:
                self._part(line, usable=not line.tries)

    # --- Asking -----------------------------------------------------------------------------

    def _ask(self, head: _Request) -> None:
        for request in list(self._open):
            self._grant(request, request is head)
        while self._next < len(self.requests):
            request = self.requests[self._next]
            size = FIRST_CREDIT * request.line.piece_bytes
            if request is not head and self._used_bytes + size > self._client.window_bytes:
                return
            self._next += 1
            self._start(request)

    def _grant(self, request: _Request, is_head: bool) -> None:
        room = (self._client.window_bytes - self._used_bytes) // request.line.piece_bytes
        count = min((DEPTH if request.number else FIRST_CREDIT) - request.granted, room)
        if is_head and not request.granted:
            count = max(count, 1)
        if count > 0 and request.request_id:
            self._reserve(request, count)
            self._say(request, GRANT, request.number + request.granted)

    def _start(self, request: _Request) -> None:
        """(Re)open a request from the first chunk that has not come whole."""
        line = request.line
        self._open[request] = None
        try:
            if line.connection is None:
                self._connect(line)
        except ClusterError as error:
            self._fail(request, "refused", str(error))
            return
        connection = line.connection
        if connection is None:
            self._fail(request, "refused", f"no address is known for host {line.host}")
            return
        connection.last_id += 1
        request.request_id = connection.last_id
        request.number = 0
        line.requests[request.request_id] = request
        self._reserve(request, FIRST_CREDIT)
        self._say(request, GET, FIRST_CREDIT)

    def _say(self, request: _Request, kind: int, credit: int) -> None:
        line = request.line
        assert line.connection is not None
        head = ASK.pack(
            MAGIC, kind, self._client.token, request.request_id, credit, line.piece_bytes, request.whole
        )
        line.connection.socket.send(head + request.ask if kind == GET else head)

    def _reserve(self, request: _Request, pieces: int) -> None:
        request.granted += pieces
        self._used_bytes += pieces * request.line.piece_bytes

    def _connect(self, line: _Line) -> None:
        endpoint = self._client.hosts.get(line.host, "")
        if not endpoint:
            return
        line.refusals = 0
        line.connection = self._client.borrow(endpoint)
        socket = line.connection.socket
        for source in (socket, socket.monitor):
            if source is not None:
                self._sources[source] = line
                self._waiter.add(source)

    def _part(self, line: _Line, usable: bool) -> None:
        assert line.connection is not None
        socket = line.connection.socket
        for source in (socket, socket.monitor):
            if source is not None:
                self._sources.pop(source, None)
                self._waiter.remove(source)
        self._client.give_back(line.connection, usable)
        line.connection = None

    # --- Listening --------------------------------------------------------------------------

    def _wait(self, head: _Request) -> None:
        """Until something comes from head's host; a try of that host ends after ``timeout_s`` without."""
        line = head.line
        line.heard = False
        now_s = self._clock.now_s()
        timeout_s = self._client.timeout_s * self._client.rng.uniform(1.0, 1.1)  # not all in step
        until_s = now_s + (min(timeout_s, GAP_S) if line.early else timeout_s)
        while not line.heard and head.failure is None:
            ready = self._waiter.wait(max(0.0, until_s - now_s))
            now_s = self._clock.now_s()
            if not ready and now_s >= until_s:
                # This process may have stood still: what came meanwhile needs a moment to show.
                ready = self._waiter.wait(0.02)
                if not ready:
                    lost = "messages were lost"
                    text = lost if line.early else f"nothing came for {self._client.timeout_s:g} s"
                    self._retry(line, "timeout", text)
                    return
            for source in ready:
                if isinstance(source, Socket) and source in self._sources:
                    self._listen(source, self._sources[source])
            if not line.heard:
                self._ask(head)

    def _listen(self, source: Socket, line: _Line) -> None:
        while source in self._sources and (parts := source.receive()) is not None:
            assert line.connection is not None
            if source is line.connection.socket:
                self._answer(line, parts)
            else:
                self._connection_changed(line, connection_event(parts))

    def _connection_changed(self, line: _Line, event: str) -> None:
        if event == "up":
            line.refusals = 0
        elif not line.requests:
            self._part(line, usable=False)
        elif event == "down":
            self._retry(line, "refused", "the connection was closed")
        else:
            line.refusals += 1
            if line.refusals >= self._client.tries:  # each of these was a try, of its own kind
                line.tries = self._client.tries - 1
                self._retry(line, "refused", f"nobody listens at {self._client.hosts.get(line.host)}")

    def _answer(self, line: _Line, parts: list[bytes]) -> None:
        if len(parts) != 2 or len(parts[0]) != ANSWER.size:
            return  # noise: as good as nothing
        head, payload = parts
        magic, kind, token, request_id, number = ANSWER.unpack(head)
        request = line.requests.get(request_id)
        if magic != MAGIC or token != self._client.token or request is None:
            return  # of a request that was cancelled, or of a stranger
        line.heard = True
        if kind == UNKNOWN:  # it waited so long for us that the server gave it up
            self._reopen(request)
        elif number > request.number:
            line.early += number not in request.early
            request.early[number] = kind, payload
        elif number == request.number:
            self._next_message(request, kind, payload)
            while (later := request.early.pop(request.number, None)) is not None:
                line.early -= 1
                self._next_message(request, *later)

    def _next_message(self, request: _Request, kind: int, payload: bytes) -> None:
        """The message whose turn it is."""
        if kind in (PIECE, LAST):
            request.line.tries = 0
            request.number += 1
            request.parts.append(payload)
            self._reserve(request, -1)
            self._used_bytes += len(payload)
            if kind == LAST:
                request.ready.append(b"".join(request.parts) if len(request.parts) > 1 else payload)
                request.parts.clear()
                request.whole += 1
        elif kind == END:
            self._forget(request)
            request.finished = True
        elif kind == ERROR:
            evidence, _, text = payload.decode(errors="replace").partition(" ")
            self._fail(request, evidence, text)

    # --- When it goes wrong -----------------------------------------------------------------

    def _retry(self, line: _Line, evidence: str, text: str) -> None:
        """Ask again for everything from this host by a new connection, or give the host up."""
        line.tries += 1
        requests = list(line.requests.values())
        if line.tries >= self._client.tries:
            for request in requests:
                self._fail(request, evidence, f"{text}; host {line.host}, {line.tries} tries")
            self._part(line, usable=False)
            return
        for request in requests:
            self._forget(request)
        self._part(line, usable=False)
        if evidence == "timeout":
            line.piece_bytes = max(PIECE_BYTES_MIN, line.piece_bytes // 8)
        for request in requests:
            self._start(request)

    def _reopen(self, request: _Request) -> None:
        self._say(request, CANCEL, 0)  # if it knows it after all: a GRANT may overtake its GET
        self._forget(request)
        self._start(request)

    def _forget(self, request: _Request) -> None:
        """Nothing more comes for this request under its present id."""
        self._open.pop(request, None)
        request.line.requests.pop(request.request_id, None)
        request.request_id = 0
        self._reserve(request, -request.granted)
        request.line.early -= len(request.early)
        request.early.clear()
        self._used_bytes -= sum(map(len, request.parts))
        request.parts.clear()

    def _fail(self, request: _Request, evidence: str, text: str) -> None:
        self._forget(request)
        request.failure = (evidence, text)
