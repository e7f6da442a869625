"""Batches of records to bytes and back; no flipped byte goes unnoticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_ft import rows
from spark_ft.errors import BlockCorrupt

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(left: object, right: object) -> bool:
    """Equal, and of the same types all through."""
    return repr(left) == repr(right)


@given(st.lists(values), st.booleans())
def test_any_records_come_back_as_they_were(records: list[object], compress: bool) -> None:
    assert same(rows.decode(rows.encode(records, compress)), records)


@given(st.lists(st.tuples(values, values)), st.booleans())
def test_pairs_come_back_as_tuples_in_order(records: list[tuple[object, object]], compress: bool) -> None:
    data = rows.encode_pairs([key for key, _ in records], [value for _, value in records], compress)
    batch, end = rows.decode_batch(data)
    assert end == len(data) and len(batch) == len(records)
    assert same(list(batch), records) and same(rows.decode(data), records)


def test_an_object_that_occurs_twice_is_one_object_afterwards() -> None:
    shared = [1]
    (_, left), (_, right) = rows.decode(rows.encode_pairs([1, 2], [shared, shared]))
    assert left is right


def test_text_is_compressed_and_noise_is_not() -> None:
    import random

    text = [(i, f"the same words, {i} of them, again and again") for i in range(2000)]
    noise = [(i, random.Random(i).randbytes(400)) for i in range(400)]
    assert len(rows.encode(text, compress=True)) < len(rows.encode(text)) / 2
    assert len(rows.encode(noise, compress=True)) == len(rows.encode(noise))
    assert rows.decode(rows.encode(text, compress=True)) == text


@pytest.mark.parametrize("compress", [False, True])
def test_BL_3_a_flip_of_any_bit_of_any_byte_is_noticed(compress: bool) -> None:
    data = bytearray(rows.encode([("key", "value" * 300)] * 5, compress))
    step = 1 if len(data) < 400 else 7
    for position in [*range(rows.HEADER_BYTES), *range(rows.HEADER_BYTES, len(data), step)]:
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(BlockCorrupt):
                rows.decode(data)
            data[position] ^= 1 << bit
    assert len(rows.decode(data)) == 5


def test_a_batch_cut_short_or_with_more_behind_it_is_refused() -> None:
    data = rows.encode([1, 2, 3])
    for end in range(len(data)):
        with pytest.raises(BlockCorrupt):
            rows.decode(data[:end])
    with pytest.raises(BlockCorrupt):
        rows.decode(data + b"x")


def test_batches_one_after_the_other_are_read_in_order() -> None:
    parts = [[1, 2], [], ["a"]]
    buffer = b"".join(rows.encode(part) for part in parts)
    assert list(rows.iter_batches(buffer)) == parts
    assert rows.whole_batches(buffer) == (len(buffer), 3, rows.HEADER_BYTES)


def test_whole_batches_leaves_a_torn_one_out_and_tells_its_size() -> None:
    first, second = rows.encode([1]), rows.encode(["x" * 100, "y"])
    assert rows.whole_batches(first + second[:-1]) == (len(first), 1, len(second))
    assert rows.whole_batches(first + second[: rows.HEADER_BYTES - 1]) == (len(first), 1, rows.HEADER_BYTES)


def test_what_plain_pickle_refuses_goes_by_value() -> None:
    (function,) = rows.decode(rows.encode([lambda x: x + 1]))
    assert function(1) == 2


@pytest.mark.parametrize("cut", [1, 7, 40, 100, 1000, 10**6])
def test_a_stream_is_cut_at_the_borders_of_batches(cut):
    batches = [[i] * (i * 7) for i in range(30)]
    data = b"".join(map(rows.encode, batches))
    pieces = (data[i : i + cut] for i in range(0, len(data), cut))
    found = [list(batch) for buffer in rows.whole_buffers(pieces) for batch in rows.iter_batches(buffer)]
    assert found == batches


def test_a_stream_that_ends_within_a_batch_is_corrupt():
    with pytest.raises(BlockCorrupt, match="too many behind the last whole batch"):
        list(rows.whole_buffers([rows.encode([1]) + rows.encode([2])[:-1]]))
