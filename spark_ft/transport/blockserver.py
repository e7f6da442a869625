"""The serving side of ``blocks.py``: one thread, one ROUTER, one piece at a time for whoever has credit."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.transport.blockwire import (
    ANSWER,
    ASK,
    CANCEL,
    END,
    ERROR,
    EVIDENCE,
    GET,
    GRANT,
    LAST,
    MAGIC,
    PIECE,
    PIECE_BYTES,
    PIECE_BYTES_MIN,
    REQUEST_BYTES_MAX,
    UNKNOWN,
)
from spark_ft.transport.keys import Keys
from spark_ft.transport.sockets import SENT, Bell, Net, Waiter

ENDED_KEPT = 1024  # requests that we remember to have answered: a GET or GRANT of theirs may come again
IDLE_S = 60.0  # a request without credit for so long has been forgotten by its client


class _Stream:
    """One request being answered."""

    def __init__(
        self, client: bytes, request_id: int, piece_bytes: int, chunks: Iterator[bytes | memoryview]
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.piece_bytes = piece_bytes
        self.chunks = chunks
        self.granted = 0  # pieces since the GET, in all: so a GRANT may come twice, or too late
        self.sent = 0
        self.skip = 0
        self.chunk: memoryview | None = None  # what is left of the present one
        self.number = 0
        self.queued = False
        self.touched_s = 0.0

    @property
    def credit(self) -> int:
        return self.granted - self.sent


class BlockServer:
    """Answers requests with what ``open_slice`` yields for them, from a thread of its own.

    ``open_slice`` raises BlockMissing, BlockCorrupt, BlockIncomplete or BlockExpired, at once or
    while it is iterated; whatever else it raises goes to the client as ``refused``.
    """

    def __init__(
        self,
        bind: str,
        token: bytes,
        open_slice: Callable[[bytes], Iterator[bytes | memoryview]],
        keys: Keys | None = None,
    ) -> None:
        self.endpoint = ""
        self.dropped: Counter[str] = Counter()
        self._bind = bind
        self._token, self._keys = token, keys
        self._open_slice = open_slice
        self._clock = BootClock()
        self._streams: dict[tuple[bytes, int], _Stream] = {}
        self._ended: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        self._runnable: deque[_Stream] = deque()
        self._sweep_s = 0.0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._net: Net | None = None

    def start(self) -> None:
        """Bind, and serve until ``stop``.  Raises ClusterError (BAD_BIND_ADDRESS)."""
        self._net = Net(self._keys)
        try:
            self._router = self._net.router(self._bind, REQUEST_BYTES_MAX + ASK.size, hwm=0)
        except BaseException:  # Ctrl-C too: ``stop`` ends a server that has started
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
                self._end(stream, answered=False)

    def _receive(self, parts: list[bytes]) -> None:
        if len(parts) != 2 or len(parts[1]) < ASK.size:
            self.dropped["short"] += 1
            return
        client, ask = parts
        magic, kind, token, request_id, credit, piece_bytes, skip = ASK.unpack_from(ask)
        if magic != MAGIC or token != self._token:
            self.dropped["magic" if magic != MAGIC else "token"] += 1
            return
        if (client, request_id) in self._ended:
            return
        stream = self._streams.get((client, request_id))
        if kind == GET and stream is None:  # an id is used once: another GET is the same one again
            size = min(max(piece_bytes, PIECE_BYTES_MIN), PIECE_BYTES)
            stream = _Stream(client, request_id, size, self._chunks(ask[ASK.size :]))
            stream.skip = skip
            self._streams[client, request_id] = stream
        elif stream is None:
            if kind == GRANT:
                self._answer(_Stream(client, request_id, 0, iter(())), UNKNOWN, b"")
            return
        elif kind == CANCEL:
            self._end(stream)
            return
        stream.granted = max(stream.granted, credit)
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
                    self._answer(stream, END, b"")
                    self._end(stream)
                    return
                if stream.skip:
                    stream.skip -= 1
                else:
                    stream.chunk = memoryview(chunk)
        except Exception as error:  # of the store or the disk: the evidence is all the client wants
            evidence = next((word for kind, word in EVIDENCE.items() if isinstance(error, kind)), "refused")
            text = str(error) if evidence != "refused" else f"{type(error).__name__}: {error}"
            self._answer(stream, ERROR, f"{evidence} {text}".encode(errors="replace"))
            self._end(stream)
            return
        piece, rest = stream.chunk[: stream.piece_bytes], stream.chunk[stream.piece_bytes :]
        stream.chunk = rest if len(rest) else None
        stream.sent += 1
        # A mapped page may be given back as soon as the iterator moves on, so ZeroMQ gets a copy of its
        # own: sharing the memory would need word from its thread back to Python's for every piece.
        if self._answer(stream, PIECE if len(rest) else LAST, piece):
            self._enqueue(stream)

    def _answer(self, stream: _Stream, kind: int, payload: bytes | memoryview) -> bool:
        head = ANSWER.pack(MAGIC, kind, self._token, stream.request_id, stream.number)
        stream.number += 1
        if failpoints.hit("blocks.send") == "drop":
            self.dropped["failpoint"] += 1
            return True
        if self._router.send(stream.client, head, payload) == SENT:
            return True
        for other in [s for s in self._streams.values() if s.client == stream.client]:
            self._end(other)  # its connection is gone; a retry comes by another one
        return False

    def _end(self, stream: _Stream, answered: bool = True) -> None:
        """``answered``: whatever else its client says of it is old."""
        key = stream.client, stream.request_id
        self._streams.pop(key, None)
        if answered:
            self._ended[key] = None
            if len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)
        stream.chunk = None
        close = getattr(stream.chunks, "close", None)
        if close is not None:
            close()
