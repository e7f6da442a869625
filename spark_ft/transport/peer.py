"""What a host knows of the other end of a link."""

from __future__ import annotations

from math import inf
from random import Random

from spark_ft.ids import Incarnation
from spark_ft.protocol import codec
from spark_ft.protocol.messages import Message
from spark_ft.transport import frames
from spark_ft.transport.link import Link
from spark_ft.transport.sockets import Socket

BATCH_BYTES = 1 << 20  # messages for one peer are sent as one frame up to about here


class Peer:
    """One incarnation at the other end: its link, the way to it, and what this turn has to tell it."""

    __slots__ = (
        "heard_s", "incarnation", "labels", "link", "outbox", "outbox_bytes",
        "route", "routing", "silent", "socket", "wake_s",
    )  # fmt: skip

    def __init__(
        self,
        incarnation: Incarnation,
        socket: Socket,
        routing: tuple[bytes, ...],
        route: frames.Route,
        now_s: float,
        rng: Random,
    ) -> None:
        self.incarnation, self.socket = incarnation, socket
        self.routing = routing  # what a ROUTER wants in front of a frame
        self.route = route
        self.link = Link(now_s, rng)
        self.outbox: list[bytes] = []
        self.labels: list[str] = []
        self.outbox_bytes = 0
        self.heard_s = now_s
        self.silent = False
        self.wake_s = inf  # the earliest entry of the host's heap for this peer

    def put(self, data: bytes, what: str) -> None:
        """One encoded message more that this turn has to say; ``what`` it is."""
        if self.outbox_bytes and self.outbox_bytes + len(data) > BATCH_BYTES:
            self.pack_outbox()
        self.outbox.append(data)
        self.labels.append(what)
        self.outbox_bytes += len(data)

    def pack_outbox(self) -> None:
        """Hand what has gathered to the link, as one body."""
        if self.outbox:
            self.link.send(codec.join(self.outbox), tuple(self.labels))
            self.outbox.clear()
            self.labels.clear()
            self.outbox_bytes = 0


_labels: dict[type, str] = {}


def label(message: Message) -> str:
    """The failpoint that a frame with this message passes."""
    kind = type(message)
    label = _labels.get(kind)
    if label is None:
        label = _labels[kind] = f"link.send.{kind.__name__}"
    return label
