"""Blocks of bytes from one host to another: pieces on credit, in order, slow never taken for lost.

      reducer's thread                              the other host's server thread
      fetch([(host, request), ...])
        | GET    id request credit skip  ------->   open_slice(request) -> chunk, chunk, ...
        |                                           each chunk cut into pieces
        | <-------  PIECE id number bytes           one credit each, one request after the other
        | GRANT  id credit               ------->   when pieces were received
        | <-------  PIECE ... (last of its chunk)
      (index, chunk) to the caller
        | <-------  END id    or    ERROR id evidence text

What holds:

- A chunk that the server's iterator yields arrives as one chunk, whole and in order, or not at all;
  the caller sees the requests in its own order, whatever order they come in.
- The server takes a step of an iterator only with credit in hand and sends what it gives at once:
  it never holds more than one chunk a request, whatever the client does (NET-10).
- The client has at most ``window_bytes`` granted or received and not yet taken by the caller (a
  chunk larger than that alone excepted).  The first request not yet finished always has credit, so
  the later ones can never starve it.
- Slow is not lost: time counts only while the caller waits, and only without a single piece from the
  host that it waits for.  As ZeroMQ shows a piece only when it is whole, each retry asks for pieces
  an eighth in size: a line of 1 KB/s passes.  A retry comes by a fresh connection (what an old one
  still holds must not be mistaken for the new) and skips the chunks that the caller already has.
- Evidence: ``refused`` if nobody listens at the address, or none is known; ``timeout`` if somebody
  should have answered; else what the server says: missing, corrupt, incomplete, expired.
- The bytes are verified by the consumer (rows.py), not here.

Data has sockets, threads and contexts of its own: control is never queued behind it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from struct import Struct

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.errors import (
    BlockCorrupt,
    BlockExpired,
    BlockIncomplete,
    BlockMissing,
    ClusterError,
    ShuffleError,
)
from spark_ft.ids import HostId
from spark_ft.transport.sockets import SENT, Bell, Net, Socket, Waiter, connection_event

PIECE_BYTES = 1 << 20  # at most
PIECE_BYTES_MIN = 2048
FIRST_CREDIT = 2  # pieces that a request starts with: a small answer and its end need no grant
DEPTH = 4  # pieces under way for one request once it is known to be larger
REQUEST_BYTES_MAX = 1 << 20
IDLE_S = 60.0  # a request without credit for so long has been forgotten by its client

_GET, _GRANT, _CANCEL = 1, 2, 3
_PIECE, _LAST, _END, _ERROR, _UNKNOWN = 1, 2, 3, 4, 5  # _LAST: the last piece of a chunk
# magic, kind, token, request id, credit (pieces), size of a piece, chunks to skip
_ASK = Struct("<4sB16sQIII")
# magic, kind, token, request id, number of the message in its request
_ANSWER = Struct("<4sB16sQQ")
_MAGIC = b"SpFd"
_EVIDENCE = {
    BlockMissing: "missing",
    BlockCorrupt: "corrupt",
    BlockIncomplete: "incomplete",
    BlockExpired: "expired",
}


class RemoteFetch(ShuffleError):  # noqa: N818  # an answer of the other side, named as TaskFailed is
    """Request number ``index`` could not be had; ``evidence`` is one of refused, timeout, missing,
    corrupt, incomplete, expired."""

    default_condition = "FETCH_FAILED"

    def __init__(self, index: int, evidence: str, text: str) -> None:
        super().__init__(f"request {index}: {evidence}: {text}")
        self.index = index
        self.evidence = evidence
        self.text = text


# --- Server -------------------------------------------------------------------------------


class _Stream:
    """One request being answered."""

    def __init__(
        self, client: bytes, request_id: int, piece_bytes: int, chunks: Iterator[bytes | memoryview]
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.piece_bytes = piece_bytes
        self.chunks = chunks
        self.credit = 0
        self.skip = 0
        self.chunk: memoryview | None = None  # what is left of the present one
        self.number = 0
        self.queued = False
        self.touched_s = 0.0


class BlockServer:
    """Answers requests with what ``open_slice`` yields for them, from a thread of its own.

    ``open_slice`` raises BlockMissing, BlockCorrupt, BlockIncomplete or BlockExpired, at once or
    while it is iterated; whatever else it raises goes to the client as ``refused``.
    """

    def __init__(
        self, bind: str, token: bytes, open_slice: Callable[[bytes], Iterator[bytes | memoryview]]
    ) -> None:
        self.endpoint = ""
        self.dropped: Counter[str] = Counter()
        self._bind = bind
        self._token = token
        self._open_slice = open_slice
        self._clock = BootClock()
        self._streams: dict[tuple[bytes, int], _Stream] = {}
        self._runnable: deque[_Stream] = deque()
        self._sweep_s = 0.0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._net: Net | None = None

    def start(self) -> None:
        """Bind, and serve until ``stop``.  Raises ClusterError (BAD_BIND_ADDRESS)."""
        self._net = Net()
        try:
            self._router = self._net.router(self._bind, REQUEST_BYTES_MAX + _ASK.size, hwm=0)
        except BaseException:
            self._net.close()
            raise
        self.endpoint = self._router.endpoint
        self._bell = Bell()
        self._waiter = Waiter()
        self._waiter.add(self._router)
        self._waiter.add(self._bell.fd)
        self._thread = threading.Thread(target=self._run, name="spark-ft-blocks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Idempotent.  Returns when everything is closed; does nothing in a forked child."""
        if self._net is None or self._net.forked or self._thread is None:
            return
        self._stopping = True
        self._bell.ring()
        self._thread.join(5.0)  # an iterator that hangs must not hang its stopper too

    def _run(self) -> None:
        assert self._net is not None
        try:
            while not self._stopping:
                self._turn()
        finally:
            for stream in list(self._streams.values()):
                self._end(stream)
            self._net.close()
            self._bell.close()

    def _turn(self) -> None:
        self._waiter.wait(0.0 if self._runnable else IDLE_S / 4 if self._streams else None)
        while (parts := self._router.receive()) is not None:
            self._receive(parts)
        for _ in range(min(len(self._runnable), 16)):
            stream = self._runnable.popleft()
            stream.queued = False
            if self._streams.get((stream.client, stream.request_id)) is stream:
                self._serve(stream)
        now_s = self._clock.now_s()
        if now_s >= self._sweep_s:
            self._sweep_s = now_s + IDLE_S / 4
            late_s = now_s - IDLE_S
            for stream in [s for s in self._streams.values() if not s.queued and s.touched_s < late_s]:
                self._end(stream)

    def _receive(self, parts: list[bytes]) -> None:
        if len(parts) != 2 or len(parts[1]) < _ASK.size:
            self.dropped["short"] += 1
            return
        client, ask = parts
        magic, kind, token, request_id, credit, piece_bytes, skip = _ASK.unpack_from(ask)
        if magic != _MAGIC or token != self._token:
            self.dropped["magic" if magic != _MAGIC else "token"] += 1
            return
        stream = self._streams.get((client, request_id))
        if kind == _GET:
            if stream is not None:
                self._end(stream)
            size = min(max(piece_bytes, PIECE_BYTES_MIN), PIECE_BYTES)
            stream = _Stream(client, request_id, size, self._chunks(ask[_ASK.size :]))
            stream.skip = skip
            self._streams[client, request_id] = stream
        elif stream is None:
            if kind == _GRANT:
                self._answer(_Stream(client, request_id, 0, iter(())), _UNKNOWN, b"")
            return
        elif kind == _CANCEL:
            self._end(stream)
            return
        stream.credit += credit
        stream.touched_s = self._clock.now_s()
        self._enqueue(stream)

    def _chunks(self, request: bytes) -> Iterator[bytes | memoryview]:
        """So that opening fails where iterating does."""
        yield from self._open_slice(request)

    def _enqueue(self, stream: _Stream) -> None:
        if stream.credit > 0 and not stream.queued:
            stream.queued = True
            self._runnable.append(stream)

    def _serve(self, stream: _Stream) -> None:
        """One piece, for one credit; or the end."""
        try:
            while stream.chunk is None:
                chunk = next(stream.chunks, None)
                if chunk is None:
                    self._answer(stream, _END, b"")
                    self._end(stream)
                    return
                if stream.skip:
                    stream.skip -= 1
                else:
                    stream.chunk = memoryview(chunk)
        except Exception as error:  # of the store or the disk: the evidence is all the client wants
            evidence = next((word for kind, word in _EVIDENCE.items() if isinstance(error, kind)), "refused")
            text = str(error) if evidence != "refused" else f"{type(error).__name__}: {error}"
            self._answer(stream, _ERROR, f"{evidence} {text}".encode(errors="replace"))
            self._end(stream)
            return
        piece, rest = stream.chunk[: stream.piece_bytes], stream.chunk[stream.piece_bytes :]
        stream.chunk = rest if len(rest) else None
        stream.credit -= 1
        # A mapped page may be given back as soon as the iterator moves on, so ZeroMQ gets a copy of its
        # own: sharing the memory would need word from its thread back to Python's for every piece.
        if self._answer(stream, _PIECE if len(rest) else _LAST, piece):
            self._enqueue(stream)

    def _answer(self, stream: _Stream, kind: int, payload: bytes | memoryview) -> bool:
        head = _ANSWER.pack(_MAGIC, kind, self._token, stream.request_id, stream.number)
        stream.number += 1
        if failpoints.hit("blocks.send") == "drop":
            self.dropped["failpoint"] += 1
            return True
        if self._router.send(stream.client, head, payload) == SENT:
            return True
        for other in [s for s in self._streams.values() if s.client == stream.client]:
            self._end(other)  # its connection is gone; a retry comes by another one
        return False

    def _end(self, stream: _Stream) -> None:
        self._streams.pop((stream.client, stream.request_id), None)
        stream.chunk = None
        close = getattr(stream.chunks, "close", None)
        if close is not None:
            close()


# --- Client -------------------------------------------------------------------------------


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


class _Request:
    """One request of one fetch."""

    def __init__(self, index: int, line: _Line, ask: bytes) -> None:
        self.index = index
        self.line = line
        self.ask = ask
        self.request_id = 0  # 0: not open
        self.granted = 0  # pieces asked for and not received
        self.number = 0  # of the next message
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
    ) -> None:
        self.token = token
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
                self._net = Net()
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
                self._say(request, _CANCEL, 0)
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
            self._say(request, _GRANT, count)

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
        self._say(request, _GET, FIRST_CREDIT)

    def _say(self, request: _Request, kind: int, credit: int) -> None:
        line = request.line
        assert line.connection is not None
        head = _ASK.pack(
            _MAGIC, kind, self._client.token, request.request_id, credit, line.piece_bytes, request.whole
        )
        line.connection.socket.send(head + request.ask if kind == _GET else head)

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
        until_s = now_s + self._client.timeout_s * self._client.rng.uniform(1.0, 1.1)  # not all in step
        while not line.heard and head.failure is None:
            ready = self._waiter.wait(max(0.0, until_s - now_s))
            now_s = self._clock.now_s()
            if not ready and now_s >= until_s:
                # This process may have stood still: what came meanwhile needs a moment to show.
                ready = self._waiter.wait(0.02)
                if not ready:
                    self._retry(line, "timeout", f"nothing came for {self._client.timeout_s:g} s")
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
        if len(parts) != 2 or len(parts[0]) != _ANSWER.size:
            return  # noise: as good as nothing
        head, payload = parts
        magic, kind, token, request_id, number = _ANSWER.unpack(head)
        request = line.requests.get(request_id)
        if magic != _MAGIC or token != self._client.token or request is None:
            return  # of a request that was cancelled, or of a stranger
        line.heard = True
        if kind == _UNKNOWN:  # it waited so long for us that the server gave it up
            self._reopen(request)
        elif number != request.number:
            self._retry(line, "timeout", "messages were lost")
        elif kind in (_PIECE, _LAST):
            line.tries = 0
            request.number += 1
            request.parts.append(payload)
            self._reserve(request, -1)
            self._used_bytes += len(payload)
            if kind == _LAST:
                request.ready.append(b"".join(request.parts) if len(request.parts) > 1 else payload)
                request.parts.clear()
                request.whole += 1
        elif kind == _END:
            self._forget(request)
            request.finished = True
        elif kind == _ERROR:
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
        self._forget(request)
        self._start(request)

    def _forget(self, request: _Request) -> None:
        """Nothing more comes for this request under its present id."""
        self._open.pop(request, None)
        request.line.requests.pop(request.request_id, None)
        request.request_id = 0
        self._reserve(request, -request.granted)
        self._used_bytes -= sum(map(len, request.parts))
        request.parts.clear()

    def _fail(self, request: _Request, evidence: str, text: str) -> None:
        self._forget(request)
        request.failure = (evidence, text)
