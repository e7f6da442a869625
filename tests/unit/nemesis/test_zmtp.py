"""The proxy's knife: whatever way the bytes come, every message is cut where it ends and none is changed."""

import random

import pytest

from chaos.nemesis import zmtp
from spark_ft.ids import Incarnation
from spark_ft.protocol import codec
from spark_ft.protocol.messages import Fenced, Goodbye
from spark_ft.transport import frames
from spark_ft.transport.blockwire import ANSWER, ASK, GET, LAST, MAGIC

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x0aexecutor-1"
TOKEN = bytes(16)


def stream(messages: list[list[bytes]]) -> bytes:
    return GREETING + zmtp.encode([READY], command=True) + b"".join(map(zmtp.encode, messages))


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_in_any_pieces_is_cut_at_its_messages_and_loses_no_byte(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [0, 1, 255, 256, 70_000]
    messages = [[rng.randbytes(rng.choice(sizes)) for _ in range(rng.randint(1, 3))] for _ in range(10)]
    whole = stream(messages)
    cutter, units, at = zmtp.Cutter(), [], 0
    while at < len(whole):
        size = rng.choice([1, 7, 64, 5000, 100_000])
        units += cutter.feed(whole[at : at + size])
        at += size
    assert b"".join(unit.raw for unit in units) == whole
    assert [unit.parts for unit in units if unit.parts is not None] == messages
    assert [zmtp.identity(unit.command) for unit in units if unit.command] == ["executor-1"]


def test_greetings_pass_as_they_come_because_each_side_waits_for_parts_of_the_other() -> None:
    cutter = zmtp.Cutter()
    assert [unit.raw for unit in cutter.feed(GREETING[:10])] == [GREETING[:10]]
    assert [unit.raw for unit in cutter.feed(GREETING[10:])] == [GREETING[10:]]


def test_what_is_no_ZMTP_is_refused() -> None:
    with pytest.raises(ValueError, match="flags"):
        zmtp.Cutter().feed(GREETING + b"\xf0 what is this")


def test_labels_tell_the_messages_of_a_frame() -> None:
    route = frames.Route(TOKEN, Incarnation("executor-1"), Incarnation("driver-1"))
    body = codec.join([codec.encode(Goodbye("one")), codec.encode(Fenced("two"))])
    assert zmtp.labels([route.pack(1, 0, body)]) == ("Goodbye", "Fenced")
    assert zmtp.labels([route.pack(0, 7, b"")]) == ("Ack",)
    assert zmtp.labels([route.pack(0, 0, codec.encode(Fenced("")), frames.UNLINKED)]) == ("Fenced",)
    assert zmtp.labels([ASK.pack(MAGIC, GET, TOKEN, 1, 2, 4096, 0) + b"request"]) == ("GET",)
    assert zmtp.labels([ANSWER.pack(MAGIC, LAST, TOKEN, 1, 0), b"bytes"]) == ("LAST",)
    for noise in ([], [b""], [b"SpFt"], [b"SpFd"], [b"GET / HTTP/1.1"], [route.pack(1, 0, b"\xc1")]):
        assert zmtp.labels(noise) in ((), ("?",))
