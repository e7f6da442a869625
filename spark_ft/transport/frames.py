"""One frame: what goes through a control socket in one piece.

     0  magic "SpFt"      4  version   5  flags   6  length of from   7  length of to
     8  xxh64 of everything after it, seeded with the eight bytes before it
    16  token (16 bytes)  32 seq u64   40 ack u64 48 from, to (ascii incarnations), then the body

Little endian.  ``seq`` 0 means: no body to deliver, only ``ack`` counts.  The checksum covers the
header too, as a bit flipped in ``ack`` would lose messages.  A frame is judged completely before
a byte of its body is decoded; what does not verify is named by a word to count it under, never
raised: noise from a stranger costs a counter and nothing else (NET-4, NET-12).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from xxhash import xxh64

from spark_ft.ids import Incarnation
from spark_ft.protocol.codec import WIRE_VERSION

MAGIC = b"SpFt"
TOKEN_BYTES = 16
UNLINKED = 1  # flag: stands outside the link's sequence; only Fenced travels so
OVERHEAD_BYTES = 48 + 2 * 255  # at most

_FIRST = Struct("<4sBBBB")
_CHECK = Struct("<Q")
_SECOND = Struct("<16sQQ")
_HEAD = Struct("<4sBBBBQ16sQQ")


class Header(NamedTuple):
    sender: Incarnation
    receiver: Incarnation
    flags: int
    seq: int
    ack: int
    body: memoryview


class Route:
    """From one incarnation to another under one token: the parts of a frame that never change."""

    def __init__(self, token: bytes, sender: Incarnation, receiver: Incarnation) -> None:
        self._token = token
        self._sizes = len(sender), len(receiver)
        self._names = f"{sender}{receiver}".encode("ascii")

    def pack(self, seq: int, ack: int, body: bytes, flags: int = 0) -> bytes:
        first = _FIRST.pack(MAGIC, WIRE_VERSION, flags, *self._sizes)
        second = _SECOND.pack(self._token, seq, ack) + self._names
        check = xxh64(second, seed=_CHECK.unpack(first)[0])
        check.update(body)
        return b"".join((first, _CHECK.pack(check.intdigest()), second, body))


def unpack(frame: bytes, token: bytes) -> Header | str:
    """The frame's header, or the word for what is wrong with it."""
    if len(frame) < _HEAD.size:
        return "short"
    magic, version, flags, sender_bytes, receiver_bytes, check, its_token, seq, ack = _HEAD.unpack_from(frame)
    if magic != MAGIC:
        return "magic"
    if version != WIRE_VERSION:
        return "version"
    if its_token != token:
        return "token"
    view = memoryview(frame)
    if xxh64(view[16:], seed=_CHECK.unpack_from(frame)[0]).intdigest() != check:
        return "checksum"
    middle = _HEAD.size + sender_bytes
    end = middle + receiver_bytes
    try:
        sender = Incarnation(str(view[_HEAD.size : middle], "ascii"))
        receiver = Incarnation(str(view[middle:end], "ascii"))
    except UnicodeDecodeError:
        return "names"
    return Header(sender, receiver, flags, seq, ack, view[end:])
