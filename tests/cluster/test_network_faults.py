"""Frames are lost, come twice, or are a stranger's: the answer stays, and in time."""

import contextlib
import os
import pickle
import socket
import time
from collections.abc import Iterator
from operator import add
from pathlib import Path

import pytest
import zmq

from spark_ft import failpoints
from spark_ft.ids import Incarnation
from spark_ft.protocol import codec
from spark_ft.protocol.messages import Goodbye
from spark_ft.transport import frames
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, wait_until

NUMBERS = 200
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
JOB_S = 20.0  # with frames lost; without, a job takes a few hundredths of a second
STOP_S = 3.0

# What is said again and again while shuffle jobs run, and what is said once.
REPEATED = [
    "BeatAck", "ExecutorBeat", "LaunchTasks", "MapOutputs", "StageBlob", "TaskUpdates", "WorkerBeat",
]  # fmt: skip
ONCE = [
    "AppRegistered", "AssignExecutors", "DropShuffles", "ExecutorHello", "ExecutorSpawned", "ExecutorWelcome",
    "RegisterApp", "RegisterWorker", "WorkerHello", "WorkerRegistered", "WorkerWelcome",
]  # fmt: skip
LATE_WORKERS = "link.send.WorkerHello=drop@1"  # executors are there first, and are told of hosts later
FREQUENT = {"spark_executor_heartbeatInterval": "100ms"}


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.fixture
def start_faulty(start, tmp_path):
    """``start_faulty(points, master, **settings)``: armed in every process, this one (the driver's) too."""
    witness = tmp_path / "fired"
    witness.mkdir()

    def begin(points: str, master: str = "local-cluster[2,1,512]", **settings: object) -> faultlib.Running:
        description = f"witness={witness},{points}"
        failpoints.arm(description, "driver")
        return start(master, spark_ft_failpoints=description, **settings)

    return begin


def sums(running: faultlib.Running) -> list[tuple[int, int]]:
    pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
    return sorted(pairs.reduceByKey(add, 3).collect())


def fired(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "fired"))


def assert_right_and_in_time(running: faultlib.Running, jobs: int = 3) -> None:
    """The answer of several jobs, no task started twice, and an end within bounds."""
    for _ in range(jobs):
        assert Action(lambda: sums(running)).result(JOB_S) == SUMS
    faultlib.assert_r0(running.events())


def assert_stops(running: faultlib.Running) -> None:
    started_s = time.monotonic()
    running.stop()
    assert time.monotonic() - started_s < STOP_S


# --- NET-1: lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("message", REPEATED)
def test_NET_1_three_in_ten_frames_with_one_kind_of_message_are_lost(message, start_faulty, tmp_path) -> None:
    point = f"link.send.{message}"
    running = start_faulty(f"{point}=drop%0.3", **FREQUENT)
    assert_right_and_in_time(running, jobs=2)
    wait_until(lambda: sums(running) == SUMS and point in fired(tmp_path), 10, f"a lost {message}", 0.0)
    faultlib.assert_r0(running.events())
    assert_stops(running)


@pytest.mark.parametrize("message", [*ONCE, "Hosts"])
def test_NET_1_the_first_frame_with_one_kind_of_message_is_lost_everywhere(
    message, start_faulty, tmp_path
) -> None:
    point = f"link.send.{message}"
    others = f",{LATE_WORKERS}" if message == "Hosts" else ""
    running = start_faulty(f"{point}=drop@1{others}", **FREQUENT)
    assert_right_and_in_time(running, jobs=2)
    wait_until(lambda: point in fired(tmp_path), 5, f"a lost {message}")
    assert_stops(running)


def test_NET_1_three_in_ten_frames_of_everybody_are_lost(start_faulty, tmp_path) -> None:
    running = start_faulty("link.send=drop%0.3", **FREQUENT)
    assert_right_and_in_time(running, jobs=1)
    assert fired(tmp_path) == {"link.send"}
    assert running.sc._driver._host.dropped["failpoint"] > 0
    assert_stops(running)


def test_NET_1_whichever_frame_of_the_driver_is_lost_the_job_ends(start) -> None:
    running = start("local-cluster[2,1,512]")
    assert sums(running) == SUMS
    host = running.sc._driver._host
    for nth in range(1, 100):
        before = host.dropped["failpoint"]
        failpoints.arm(f"link.send=drop@{nth}")
        assert Action(lambda: sums(running)).result(JOB_S) == SUMS
        failpoints.arm("")
        if host.dropped["failpoint"] == before:
            break  # the job has fewer frames
    assert nth > 4, "too few frames for a job of two stages"
    faultlib.assert_r0(running.events())


@pytest.mark.parametrize("nth", range(1, 9))
def test_NET_1_whichever_frame_of_each_other_process_is_lost_the_job_ends(nth, start, tmp_path) -> None:
    witness = tmp_path / "fired"
    witness.mkdir()
    points = f"witness={witness},link.send=drop@{nth}"
    running = start("local-cluster[2,1,512]", spark_ft_failpoints=points, **FREQUENT)
    assert_right_and_in_time(running, jobs=2)
    wait_until(lambda: fired(tmp_path) == {"link.send"}, 5, f"the loss of frame {nth}")
    assert_stops(running)


def test_NET_1_pieces_of_blocks_are_lost_and_asked_for_again(start_faulty, tmp_path) -> None:
    running = start_faulty("blocks.send=drop@2", spark_ft_fetch_timeout="200ms")
    running.log.wait_for("executor_added", 2)

    def slow(x):
        if x % 50 == 0:
            time.sleep(0.1)  # long enough for both hosts to get some
        return x % 5, x

    for _ in range(2):
        pairs = running.sc.parallelize(range(NUMBERS), 4).map(slow)
        assert Action(lambda pairs=pairs: sorted(pairs.reduceByKey(add, 4).collect())).result(JOB_S) == SUMS
    assert {event["host"] for event in running.log.of("task_start", kind="map")} == {"host-0", "host-1"}
    assert fired(tmp_path) == {"blocks.send"}
    faultlib.assert_r0(running.events())


# --- NET-2: twice -----------------------------------------------------------------------------------


def test_NET_2_every_frame_comes_twice(start_faulty, tmp_path) -> None:
    running = start_faulty("link.send=duplicate", **FREQUENT)
    running.log.wait_for("executor_added", 2)
    seen = running.sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x % 5, x

    for _ in range(3):
        pairs = running.sc.parallelize(range(NUMBERS), 4).map(count)
        assert sorted(pairs.reduceByKey(add, 3).collect()) == SUMS
    assert seen.value == 3 * NUMBERS
    repeated = running.sc._driver._host.dropped["repeated"]
    assert repeated > 10, "too few frames came twice"
    events = running.events()
    faultlib.assert_r0(events)
    begun = {event["task"] for event in running.log.of("task_start")}
    ended = [event["task"] for event in running.log.of("task_end") if event["task"] in begun]
    assert len(begun) == len(ended) == len(set(ended)) == 3 * (4 + 3)
    assert len(running.log.of("executor_added")) == 2
    assert_stops(running)


# --- NET-12: strangers --------------------------------------------------------------------------------


class Bomb:
    """Whoever unpickles this leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def endpoints(running: faultlib.Running) -> dict[str, str]:
    """name -> address of every socket that the application listens at."""
    running.log.wait_for("executor_added", 2)
    found = {path.name: f"ipc://{path}" for path in (running.sc._driver.scratch / "c").iterdir()}
    assert {"driver", "driver-data", "manager"} < set(found), found
    assert sum(name.startswith("host-") for name in found) == 2
    return found


def noise(running: faultlib.Running, bomb: bytes) -> list[list[bytes]]:
    """What a stranger may say, some of it with the token that it cannot know."""
    me = running.sc._driver.me
    stranger = Incarnation("stranger-1")
    body = codec.encode(Goodbye("says a stranger"))
    token = running.sc._driver._token
    guessed = frames.Route(bytes(16), stranger, me).pack(1, 0, body)
    elsewhere = frames.Route(token, stranger, Incarnation("driver-before")).pack(1, 0, body)
    forged = frames.Route(token, next(iter(running.sc._driver._host.peers())), me).pack(1, 0, body)
    whole = frames.Route(token, stranger, me).pack(1, 0, body)
    torn = bytearray(whole)
    torn[-1] ^= 1
    return [
        [b""],
        [os.urandom(300)],
        [bomb],
        [b"SpFt" + bomb],
        [guessed],
        [elsewhere],
        [forged],
        [bytes(torn)],
        [b"one", b"part", b"too many"],
        [bomb] * 5,
    ]


def test_NET_12_a_foreign_peer_is_told_nothing_loads_nothing_and_is_counted(start, tmp_path) -> None:
    running = start("local-cluster[2,1,512]")
    assert sums(running) == SUMS
    exploded = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(exploded))
    driver = running.sc._driver
    said = noise(running, bomb)
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        strangers = {}
        for name, address in endpoints(running).items():
            stranger = strangers[name] = stack.enter_context(context.socket(zmq.DEALER))
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.setsockopt(zmq.ROUTING_ID, b"stranger-1")
            stranger.connect(address)
            for parts in said:
                stranger.send_multipart(parts)
        wait_until(
            lambda: sum(driver._host.dropped.values()) >= len(said), what="the noise to reach the driver"
        )
        wait_until(lambda: sum(driver._server.dropped.values()) >= len(said), what="it to reach the other")
        for _ in range(3):
            assert sums(running) == SUMS
        time.sleep(0.2)  # for an answer that must not come
        answered = {name for name, stranger in strangers.items() if stranger.poll(0)}
        assert answered <= set(), f"{answered} have answered a stranger"
    counted = driver._host.dropped
    for reason in ("short", "magic", "token", "not_for_me", "sender", "checksum", "parts"):
        assert counted[reason] >= 1, f"{reason} was not counted: {counted}"
    assert "stranger-1" not in driver._host.peers()
    assert not exploded.exists()
    faultlib.assert_r0(running.events())


def test_NET_12_noise_that_is_not_even_ZeroMQ_costs_nothing(start) -> None:
    running = start("local-cluster[2,1,512]")
    with contextlib.ExitStack() as stack:
        for address in endpoints(running).values():
            for words in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(1 << 16), b"\xff" + bytes(63)):
                raw = stack.enter_context(socket.socket(socket.AF_UNIX))
                raw.connect(address.removeprefix("ipc://"))
                with contextlib.suppress(OSError):  # they may hang up on us
                    raw.sendall(words)
        for _ in range(3):
            assert sums(running) == SUMS
    faultlib.assert_r0(running.events())


def test_NET_12_who_announces_too_much_loses_the_connection(start) -> None:
    small = {"spark_rpc_message_maxSize": "1m", "spark_ft_result_inlineSize": "256k"}
    running = start("local-cluster[2,1,512]", **small)
    with zmq.Context() as context:
        for name, address in endpoints(running).items():
            with context.socket(zmq.DEALER) as stranger:
                stranger.setsockopt(zmq.LINGER, 0)
                monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
                stranger.connect(address)
                stranger.send(bytes(8 << 20))
                assert monitor.poll(5000), f"{name} has kept a peer that says 8 MiB at once"
                stranger.disable_monitor()
                monitor.close()
    assert sums(running) == SUMS
    faultlib.assert_r0(running.events())
