"""One frame: what is packed is unpacked, and any damage is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_ft.ids import Incarnation, new_incarnation
from spark_ft.transport import frames

TOKEN = b"0123456789abcdef"
A, B = Incarnation("driver-0011223344556677"), Incarnation("executor-8899aabbccddeeff")
u64 = st.integers(0, 2**64 - 1)


@given(u64, u64, st.binary(max_size=300), st.integers(0, 255))
def test_a_frame_comes_apart_as_it_was_packed(seq: int, ack: int, body: bytes, flags: int):
    header = frames.unpack(frames.Route(TOKEN, A, B).pack(seq, ack, body, flags), TOKEN)
    assert header == frames.Header(A, B, flags, seq, ack, memoryview(body))


@given(st.binary(max_size=100), st.data())
def test_NET_4_any_flipped_bit_is_noticed(body: bytes, data: st.DataObject):
    frame = bytearray(frames.Route(TOKEN, A, B).pack(7, 6, body))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert frames.unpack(bytes(frame), TOKEN) in ("magic", "version", "token", "checksum")


@given(st.binary(max_size=100), st.data())
def test_NET_4_any_cut_is_noticed(body: bytes, data: st.DataObject):
    frame = frames.Route(TOKEN, A, B).pack(7, 6, body)
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    assert frames.unpack(cut, TOKEN) in ("short", "checksum")


@given(st.binary(max_size=300))
def test_NET_4_noise_is_no_frame(noise: bytes):
    assert isinstance(frames.unpack(noise, TOKEN), str)
    assert isinstance(frames.unpack(frames.MAGIC + b"\x01" + noise, TOKEN), str)


def test_NET_12_a_frame_of_another_application_is_refused():
    assert frames.unpack(frames.Route(bytes(16), A, B).pack(1, 0, b""), TOKEN) == "token"


@pytest.mark.parametrize("role", ["driver", "manager", "worker", "executor"])
def test_every_incarnation_fits(role: str):
    me = new_incarnation(role)
    header = frames.unpack(frames.Route(TOKEN, me, A).pack(1, 0, b""), TOKEN)
    assert isinstance(header, frames.Header) and header.sender == me
