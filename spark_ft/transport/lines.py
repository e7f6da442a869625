"""TCP connections that this process keeps up: which are down, and since when.

Of a process on this machine the kernel tells when it has ended.  Of one on another there is only the
connection: while its process lives, be it stopped or deaf, its kernel and ZeroMQ's own thread keep it up, or
let it be made again.  So an end that could not be connected for a long time is as good as an ended process;
silence alone is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from spark_ft.ids import Incarnation
from spark_ft.transport.sockets import Socket, connection_event


@dataclass(slots=True)
class _Line:
    peer: Incarnation
    down_s: float  # since when; inf while it is up


class Lines:
    """Known by the sockets that tell of their connections.  ``patience_s``: how long one may be down."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lines: dict[Socket, _Line] = {}

    def __contains__(self, monitor: object) -> bool:
        return monitor in self._lines

    def add(self, monitor: Socket, peer: Incarnation, now_s: float) -> None:
        self._lines[monitor] = _Line(peer, now_s)

    def remove(self, monitor: Socket) -> None:
        self._lines.pop(monitor, None)

    def listen(self, monitor: Socket, now_s: float) -> None:
        """Take in what it tells."""
        line = self._lines[monitor]
        while (parts := monitor.receive()) is not None:
            if connection_event(parts) == "up":
                line.down_s = inf
            elif line.down_s == inf:
                line.down_s = now_s

    def awake(self, now_s: float) -> None:
        """This process stood still: nobody is blamed for time in which it could not have noticed anything."""
        for line in self._lines.values():
            if line.down_s != inf:
                line.down_s = now_s

    def gone(self, now_s: float) -> list[tuple[Incarnation, float]]:
        """(peer, seconds) of those down for too long; each is told once, until it was up again."""
        found = []
        for line in self._lines.values():
            if now_s >= line.down_s + self._patience_s:
                found.append((line.peer, now_s - line.down_s))
                line.down_s = inf
        return found

    def wakeup_s(self) -> float:
        """When ``gone`` may have something to tell."""
        return min((line.down_s + self._patience_s for line in self._lines.values()), default=inf)
