"""A link: reliable, in-order, exactly-once delivery between two incarnations, without any I/O.

The channel below may drop, duplicate and reorder frames as it likes (a ZeroMQ socket does so
across reconnects, and silently).  A link numbers what it sends from 1, sends again what is not
acknowledged, and delivers what it receives once and in order.

What holds, for any behaviour of the channel:

- The bodies delivered are a prefix of the bodies that the peer's link was given (NET-1..3).
- They become all of them if a frame that is sent often enough gets through once in a while:
  everything unacknowledged is sent again, after 0.25 s, then ever more seldom up to 2 s; but as long as the
  peer is heard of, again after 0.25 s: a bad link must not look like a cut one (scheduler/leases.py).
- ``acked <= sent``; ``received`` and ``acked`` only grow.  A frame is forgotten only when the
  peer has said that it delivered it, which is why forgetting it is safe.
- At most WINDOW frames, or FLIGHT_BYTES and one frame, are under way; the receiver keeps at most
  WINDOW early ones and drops those beyond, which come again.  So a peer that stands still costs
  a bounded amount below this layer; what waits to be sent is the core's to bound (``unacked``).

A link says nothing about life: two links may well be silent and alive.  Only so that the host can
judge that, an idle link sends an acknowledgement every second.
"""

from __future__ import annotations

from collections import deque
from math import inf
from random import Random
from typing import NamedTuple

WINDOW = 1024  # frames under way
FLIGHT_BYTES = 64 << 20  # under way
ACK_AFTER_S = 0.05  # a lone acknowledgement waits so long for a frame that could carry it
ACK_AFTER_FRAMES = 32  # or for so many frames
RETRY_S = 0.25
RETRY_MAX_S = 2.0
RETRY_FRAMES = 256  # sent again at once: the oldest, at least one
RETRY_BYTES = 1 << 20
KEEPALIVE_S = 1.0


class Frame(NamedTuple):
    """To be sent now.  ``seq`` 0 carries nothing but the acknowledgement."""

    seq: int
    ack: int
    body: bytes
    labels: tuple[str, ...]  # what the host said with ``send``: it names failpoints


class Link:
    """One end.  ``now_s`` is any clock that only grows; all methods are O(frames touched).  ``rng``:
    what is sent again is so a little later, lest hundreds who lost one peer come back in step (CLK-5)."""

    def __init__(self, now_s: float, rng: Random | None = None) -> None:
        self._rng = rng
        self._waiting: deque[tuple[int, bytes, tuple[str, ...]]] = deque()  # not sent yet
        self._flying: deque[tuple[int, bytes, tuple[str, ...]]] = deque()  # sent, not acknowledged
        self._flying_bytes = 0
        self._last_seq = 0
        self._sent = 0
        self._retry_s = RETRY_S
        self._retry_at_s = inf
        self._received = 0  # delivered up to here
        self._early: dict[int, bytes | memoryview] = {}
        self._fresh_count = 0  # delivered, but not yet acknowledged by any frame
        self._ack_at_s = inf
        self._spoke_s = now_s

    @property
    def unacked(self) -> int:
        """How many bodies the peer has not confirmed yet, waiting ones included."""
        return len(self._flying) + len(self._waiting)

    @property
    def received(self) -> int:
        """How many bodies came from the peer and were delivered: what an acknowledgement says."""
        return self._received

    def send(self, body: bytes, labels: tuple[str, ...] = ()) -> None:
        """Take a body to be delivered; the next ``poll`` sends it if the window allows."""
        self._last_seq += 1
        self._waiting.append((self._last_seq, body, labels))

    def receive(self, seq: int, ack: int, body: bytes | memoryview, now_s: float) -> list[bytes | memoryview]:
        """A frame has come: the bodies that can be delivered now, in order."""
        self.acknowledged(ack, now_s)
        if self._retry_s > RETRY_S and self._flying:  # it lives: what it lacks was lost
            self._retry_s = RETRY_S
            self._retry_at_s = min(self._retry_at_s, now_s + RETRY_S)
        if seq == 0 or seq > self._received + WINDOW:
            return []
        if seq <= self._received or seq in self._early:
            self._ack_at_s = now_s  # it was sent again: our acknowledgement was lost, or is late
            return []
        if seq != self._received + 1:
            self._early[seq] = body
            return []
        ready = [body]
        self._received = seq
        while self._early and (later := self._early.pop(self._received + 1, None)) is not None:
            ready.append(later)
            self._received += 1
        self._fresh_count += len(ready)
        due_s = now_s if self._fresh_count >= ACK_AFTER_FRAMES else now_s + ACK_AFTER_S
        self._ack_at_s = min(self._ack_at_s, due_s)
        return ready

    def acknowledged(self, ack: int, now_s: float) -> None:
        """The peer has delivered everything up to ``ack``.  A number never sent is ignored."""
        flying = self._flying
        if not flying or not flying[0][0] <= ack <= self._sent:
            return
        while flying and flying[0][0] <= ack:
            self._flying_bytes -= len(flying.popleft()[1])
        self._retry_s = RETRY_S
        self._retry_at_s = now_s + RETRY_S if flying else inf

    def poll(self, now_s: float) -> list[Frame]:
        """The frames to be sent now: new ones, overdue ones, or a lone acknowledgement."""
        out: list[Frame] = []
        if now_s >= self._retry_at_s:
            size_bytes = 0
            for seq, body, labels in self._flying:
                size_bytes += len(body)
                if out and (size_bytes > RETRY_BYTES or len(out) == RETRY_FRAMES):
                    break
                out.append(Frame(seq, self._received, body, labels))
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            self._retry_at_s = now_s + self._retry_s * (
                1.0 if self._rng is None else self._rng.uniform(1.0, 1.25)
            )
        while self._waiting and self._has_room():
            item = self._waiting.popleft()
            if not self._flying:
                self._retry_at_s = now_s + self._retry_s
            self._flying.append(item)
            self._sent, body, labels = item
            self._flying_bytes += len(body)
            out.append(Frame(self._sent, self._received, body, labels))
        if not out and now_s >= min(self._ack_at_s, self._spoke_s + KEEPALIVE_S):
            out.append(Frame(0, self._received, b"", ()))
        if out:
            self._spoke_s = now_s
            self._ack_at_s = inf
            self._fresh_count = 0
        return out

    def wakeup_s(self) -> float:
        """When ``poll`` will have something to send if nothing happens until then."""
        if self._waiting and self._has_room():
            return -inf
        return min(self._retry_at_s, self._ack_at_s, self._spoke_s + KEEPALIVE_S)

    def _has_room(self) -> bool:
        return len(self._flying) < WINDOW and self._flying_bytes < FLIGHT_BYTES
