"""The wire of ZeroMQ (ZMTP 3.0 and 3.1), as far as a stranger in the middle has to understand it.

    greeting (64 bytes)   frame  frame  frame …
    frame = flags (1 byte: 1 more, 2 long, 4 command), length (1 or 8 bytes, big endian), payload

One ``Cutter`` follows one direction of one connection.  It gives back every byte it was fed, cut where a
message ends, so that whole messages can be dropped, doubled or put in another order and what remains is
still a stream that real ZeroMQ sockets accept.  Nothing here does I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from spark_ft.errors import RemoteProtocolError
from spark_ft.protocol import codec
from spark_ft.transport import frames
from spark_ft.transport.blockwire import (
    CANCEL,
    END,
    ERROR,
    GET,
    GRANT,
    LAST,
    PIECE,
    UNKNOWN,
)
from spark_ft.transport.blockwire import MAGIC as DATA_MAGIC

GREETING_BYTES = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_ASKS = {GET: "GET", GRANT: "GRANT", CANCEL: "CANCEL"}
_ANSWERS = {PIECE: "PIECE", LAST: "LAST", END: "END", ERROR: "ERROR", UNKNOWN: "UNKNOWN"}


class Unit(NamedTuple):
    """What a direction carries next: ``raw`` bytes; for a message ``parts`` too, else None."""

    raw: bytes
    parts: list[bytes] | None = None
    command: bytes = b""  # its name and what follows


class Cutter:
    """Cuts the bytes of one direction.  Raises ValueError for what is no ZMTP 3."""

    def __init__(self) -> None:
        self._greeting_left = GREETING_BYTES
        self._buffer = bytearray()
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[Unit]:
        """The units that are complete now.  Greetings come as they are: each side waits for parts of
        the other's."""
        units = []
        if self._greeting_left:
            units.append(Unit(data[: self._greeting_left]))
            data = data[self._greeting_left :]
            self._greeting_left -= len(units[0].raw)
        self._buffer += data
        start = 0
        while (found := self._frame(start)) is not None:
            flags, payload_start, start = found
            payload = bytes(self._buffer[payload_start:start])
            if flags & _COMMAND:
                units.append(Unit(encode([payload], command=True), None, payload))
                continue
            self._parts.append(payload)
            if not flags & _MORE:
                units.append(Unit(encode(self._parts), self._parts))
                self._parts = []
        del self._buffer[:start]
        return units

    def _frame(self, start: int) -> tuple[int, int, int] | None:
        """(flags, where the payload begins, where it ends), or None while the frame is not whole."""
        buffer = self._buffer
        if len(buffer) < start + 2:
            return None
        flags = buffer[start]
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise ValueError(f"frame flags {flags:#x}")
        head = 9 if flags & _LONG else 2
        if len(buffer) < start + head:
            return None
        end = start + head + int.from_bytes(buffer[start + 1 : start + head], "big")
        return (flags, start + head, end) if len(buffer) >= end else None


def encode(parts: list[bytes], command: bool = False) -> bytes:
    """The frames of one message, or of one command."""
    out = bytearray()
    for number, part in enumerate(parts, 1):
        flags = (_COMMAND if command else 0) | (_MORE if number < len(parts) else 0)
        if len(part) > 255:
            out += bytes((flags | _LONG,)) + len(part).to_bytes(8, "big")
        else:
            out += bytes((flags, len(part)))
        out += part
    return bytes(out)


def identity(command: bytes) -> str:
    """The routing id that a READY command tells, or ''."""
    if not command.startswith(b"\x05READY"):
        return ""
    at = 6
    while at + 1 < len(command):
        name_end = at + 1 + command[at]
        name = command[at + 1 : name_end]
        value_end = name_end + 4 + int.from_bytes(command[name_end : name_end + 4], "big")
        if name.lower() == b"identity":
            return command[name_end + 4 : value_end].decode("ascii", "replace")
        at = value_end
    return ""


def labels(parts: list[bytes]) -> tuple[str, ...]:
    """What a message of ours says: the types of its control messages (``Ack`` if there is none), or the
    word of the block protocol; () for anything else."""
    head = parts[0] if parts else b""
    if head.startswith(DATA_MAGIC) and len(head) > 4:
        words = _ANSWERS if len(parts) > 1 else _ASKS
        return (words.get(head[4], "?"),)
    if not head.startswith(frames.MAGIC) or len(head) < 48:
        return ()
    if not int.from_bytes(head[32:40], "little"):
        return ("Fenced",) if head[5] & frames.UNLINKED else ("Ack",)
    try:
        raws = codec.split(memoryview(head)[48 + head[6] + head[7] :])
    except RemoteProtocolError:
        return ()
    return tuple(raw[0] for raw in raws if type(raw) is tuple and raw and type(raw[0]) is str)
