"""Messages and bytes: what goes in comes out, and nothing wrong comes out."""

import contextlib
import dataclasses
import pickle
import types
import typing

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_ft.errors import LocalProtocolError, RemoteProtocolError
from spark_ft.protocol import codec
from spark_ft.protocol.messages import (
    BeatAck,
    BlockRef,
    ExecutorBeat,
    ExecutorWelcome,
    Fenced,
    FetchFailed,
    Goodbye,
    Hosts,
    InlineResult,
    KillTask,
    Launch,
    LaunchTasks,
    MapStatus,
    Message,
    StageBlob,
    StoredResult,
    Success,
    TaskEnd,
    TaskUpdates,
    UserError,
    WorkerWelcome,
)

ALL = typing.get_args(Message)
SCALARS = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    types.NoneType: st.none(),
}


def values(hint: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Anything that fits a type hint."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return SCALARS[hint]
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{row.name: values(hints[row.name]) for row in dataclasses.fields(hint)})
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    assert origin is dict, hint
    return st.dictionaries(values(args[0]), values(args[1]), max_size=3)


def raw(*fields: object) -> bytes:
    return msgpack.packb(list(fields))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_any_message_comes_back_equal(cls: type) -> None:
    @given(values(cls))
    def check(message: Message) -> None:
        assert codec.decode(codec.encode(message)) == message

    check()


def test_nested_unions_and_options_come_back_as_what_they_were() -> None:
    status = MapStatus(3, 1, 7, "host", "executor-1", 0, 9, 1000, 10, 2**64 - 1, ((1, b"x"),))  # type: ignore[arg-type]
    block = BlockRef("host", "executor-1", 2, b"key", 5, 6)  # type: ignore[arg-type]
    ends = (
        TaskEnd(1, Success(status)),  # type: ignore[arg-type]
        TaskEnd(2, Success(result=InlineResult(b"\x00\xff"))),  # type: ignore[arg-type]
        TaskEnd(3, Success(result=StoredResult(block))),  # type: ignore[arg-type]
        TaskEnd(4, UserError("ValueError", "no", "Traceback")),  # type: ignore[arg-type]
        TaskEnd(5, FetchFailed(3, 1, -1, "h", "s", "missing", block=block), run_s=1.5),  # type: ignore[arg-type]
    )
    message = TaskUpdates((1, 2), ends)  # type: ignore[arg-type]
    assert codec.decode(codec.encode(message)) == message


def test_text_that_is_not_unicode_survives_as_a_traceback_may_hold_any() -> None:
    assert codec.decode(codec.encode(Fenced("a\udcffb"))) == Fenced("a\udcffb")


def test_a_whole_number_in_a_float_field_arrives_as_a_float() -> None:
    beat = codec.decode(codec.encode(ExecutorBeat(1, (), 3)))
    assert isinstance(beat, ExecutorBeat) and type(beat.cpu_s) is float


def test_fields_missing_at_the_end_take_their_defaults() -> None:
    assert codec.decode(raw("StageBlob", 7)) == StageBlob(7)  # type: ignore[arg-type]
    assert codec.decode(raw("ExecutorWelcome")) == ExecutorWelcome({})
    assert codec.decode(raw("LaunchTasks", 1, 2, 0, [[4, 1, 0]])) == LaunchTasks(1, 2, 0, (Launch(4, 1, 0),))  # type: ignore[arg-type]


def test_fields_too_many_at_the_end_are_ignored_at_every_level() -> None:
    assert codec.decode(raw("BeatAck", 7, "from", ["the", "future"])) == BeatAck(7)
    assert codec.decode(raw("WorkerWelcome", 1)) == WorkerWelcome()
    launch = [4, 1, 0, False, [], "new"]
    assert codec.decode(raw("LaunchTasks", 1, 2, 0, [launch], [], None, {}, [], 1)) == LaunchTasks(
        1,
        2,
        0,
        (Launch(4, 1, 0),),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (raw("Nonsense", 1), "unknown tag"),
        (raw("MapStatus", 1, 0, 0, "h", "s", 0, 1, 1, 1, 1), "unknown tag"),  # a part is no message
        (raw("KillTask", 1), "needs 2 fields"),
        (raw("KillTask", "1", "x"), "KillTask.task"),
        (raw("KillTask", True, "x"), "KillTask.task"),
        (raw("KillTask", 1.0, "x"), "KillTask.task"),
        (raw("KillTask", None, "x"), "KillTask.task"),
        (raw("Fenced", b"bytes"), "Fenced.why"),
        (raw("Hosts", {"a": 1}), "Hosts.hosts"),
        (raw("Hosts", {1: "a"}), "Hosts.hosts"),
        (raw("Hosts", ["a"]), "Hosts.hosts"),
        (raw("TaskUpdates", [1, "2"]), "TaskUpdates.started"),
        (raw("TaskUpdates", [], [[1, ["Fired"]]]), "unknown tag"),
        (raw("TaskUpdates", [], [[1, []]]), "TaskEnd.reason"),
        (raw("TaskUpdates", [], [[1, ["Killed", "x"], [[1]]]]), "TaskEnd.accums"),
        (raw("TaskUpdates", [], 7), "TaskUpdates.ended"),
        (raw("StageBlob", 1, b"", [1]), "BlockRef"),
        (raw(), "unexpected"),
        (raw(["KillTask"], 1, "x"), "unexpected"),
        (msgpack.packb({"KillTask": 1}), "unexpected"),
        (msgpack.packb(7), "unexpected"),
        (raw("Fenced", msgpack.Timestamp(1)), "Fenced.why"),
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (codec.encode(KillTask(1, "x")) + b"\x00", "not msgpack"),  # type: ignore[arg-type]
        (codec.encode(KillTask(1, "x"))[:-1], "not msgpack"),  # type: ignore[arg-type]
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),  # an array of four billion, says it
        (b"\x91" * 5000, "not msgpack"),
        (b"\x81\x81\x01\x01\x01", "not msgpack"),  # a map as a key
    ],
)
def test_what_is_wrong_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        codec.decode(data)


def test_NET_12_a_pickle_is_refused_and_never_loaded() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("it was unpickled",)

    with pytest.raises(RemoteProtocolError):
        codec.decode(pickle.dumps(Bomb()))


@given(st.binary(max_size=200))
def test_NET_4_noise_raises_a_protocol_error_or_is_a_message(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        codec.decode(data)


@given(st.data())
def test_NET_4_a_flipped_byte_never_makes_a_message_of_wrong_types(data: st.DataObject) -> None:
    status = MapStatus(3, 1, 7, "host", "executor-1", 0, 9, 1000, 10, 77)  # type: ignore[arg-type]
    good = codec.encode(TaskUpdates((1,), (TaskEnd(2, Success(status)),)))  # type: ignore[arg-type]
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + bytes((data.draw(st.integers(0, 255)),)) + good[place + 1 :]
    try:
        message = codec.decode(bad)
    except RemoteProtocolError:
        return
    assert codec.decode(codec.encode(message)) == message


def test_size_limits_hold_both_ways() -> None:
    message = StageBlob(1, b"x" * 1000)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match=r"spark\.rpc\.message\.maxSize"):
        codec.encode(message, 1000)
    with pytest.raises(RemoteProtocolError, match="1000 allowed"):
        codec.decode(codec.encode(message), 1000)


@pytest.mark.parametrize("wrong", [KillTask(2**64, "x"), KillTask(object(), "x"), "text", None, Success()])  # type: ignore[arg-type]
def test_what_cannot_travel_is_our_own_error(wrong: Message) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode(wrong)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 70_000])
def test_messages_of_one_body_come_apart_as_they_were_joined(count: int) -> None:
    sent = [BeatAck(number) for number in range(count)]
    raws = codec.split(codec.join([codec.encode(message) for message in sent]))
    assert [codec.build(raw) for raw in raws] == sent


def test_one_bad_message_of_a_body_costs_only_itself() -> None:
    body = codec.join([codec.encode(Goodbye()), raw("Nonsense"), codec.encode(Hosts({}))])
    first, second, third = codec.split(body)
    assert (codec.build(first), codec.build(third)) == (Goodbye(), Hosts({}))
    with pytest.raises(RemoteProtocolError):
        codec.build(second)
