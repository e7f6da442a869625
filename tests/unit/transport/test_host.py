"""Hosts over real sockets: delivery, strangers, fences, stalls, ends."""

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
import zmq

from spark_ft import failpoints
from spark_ft.errors import ClusterError, LocalProtocolError, UsageError
from spark_ft.ids import Incarnation
from spark_ft.protocol import codec
from spark_ft.protocol.effects import ClosePeer, Exit, Note, Received, ResourcesGranted, Send, Tick
from spark_ft.protocol.messages import BeatAck, Fenced, Goodbye, KillTask, StageBlob
from spark_ft.transport import frames
from spark_ft.transport.host import BATCH_BYTES, CLOSED_KEPT
from tests.unit.transport.hosting import (
    TOKEN,
    Node,
    Recorder,
    bound,
    echo,
    numbered,
    open_fds,
    pair,
    running,
    until,
)


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


def test_messages_arrive_both_ways_in_order(tmp_path: Path):
    driver, executor = pair(tmp_path, Recorder(echo))
    with running(driver, executor):
        executor.send(driver.me, *numbered(500))
        until(lambda: len(executor.core.messages(driver.me)) == 500)
        assert executor.core.messages() == driver.core.messages() == numbered(500)
        until(lambda: executor.host.unacked(driver.me) == driver.host.unacked(executor.me) == 0)


def test_effects_are_carried_out_in_the_order_the_core_gave(tmp_path: Path):
    core = Recorder()
    driver, executor = pair(tmp_path, core)
    core.answer = lambda event: (
        [Note("before"), Send(event.sender, BeatAck(1)), Note("after"), Exit(0, "")]
        if isinstance(event, Received)
        else []
    )
    with running(driver, executor):
        executor.send(driver.me, BeatAck(0))
        until(executor.core.messages)
        assert driver.performed == [Note("before"), Note("after"), Exit(0, "")]


def test_a_message_sent_before_the_peer_is_bound_waits_for_it(tmp_path: Path):
    executor = Node("executor")
    driver_name = Incarnation("driver-later")
    executor.host.connect(driver_name, f"ipc://{tmp_path}/later")
    with running(executor):
        executor.send(driver_name, *numbered(3))
        driver = Node("driver", bind=f"ipc://{tmp_path}/later")
        driver.me = driver.host.me = driver_name
        with running(driver):
            until(lambda: driver.core.messages() == numbered(3))


def test_a_router_can_speak_first_to_a_peer_it_has_been_told_of(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(driver, executor):
        driver.send(executor.me, BeatAck(7))
        until(lambda: executor.core.messages() == [BeatAck(7)])


def test_NET_1_thirty_percent_loss_changes_nothing(tmp_path: Path):
    driver, executor = pair(tmp_path, Recorder(echo))
    failpoints.arm("link.send=drop%0.3")
    with running(driver, executor):
        for message in numbered(40):
            executor.send(driver.me, message)
        until(lambda: len(executor.core.messages()) == 40)
        assert executor.core.messages() == driver.core.messages() == numbered(40)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_NET_1_dropping_exactly_the_nth_message_changes_nothing(tmp_path: Path, nth: int):
    driver, executor = pair(tmp_path)
    failpoints.arm(f"link.send.KillTask=drop@{nth}")
    with running(driver, executor):
        for number in range(3):
            executor.do(lambda n=number: executor.host.send(driver.me, numbered(3)[n]))
        until(lambda: len(driver.core.messages()) == 3)
        assert driver.core.messages() == numbered(3)
        assert executor.host.dropped["failpoint"] == 1


def test_NET_2_every_frame_doubled_changes_nothing(tmp_path: Path):
    driver, executor = pair(tmp_path, Recorder(echo))
    failpoints.arm("link.send=duplicate")
    with running(driver, executor):
        for message in numbered(50):
            executor.send(driver.me, message)
        until(lambda: len(executor.core.messages()) == 50)
        assert executor.core.messages() == driver.core.messages() == numbered(50)


def test_one_turn_sends_one_frame_to_a_peer_and_splits_only_what_is_large(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(driver, executor):
        executor.do(lambda: [executor.host.send(driver.me, m) for m in numbered(100)])
        until(lambda: len(driver.core.messages()) == 100)
        assert driver.do(lambda: driver.host._peers[executor.me].link.received) == 1
        big = StageBlob(1, bytes(BATCH_BYTES // 2))
        executor.do(lambda: [executor.host.send(driver.me, big) for _ in range(4)])
        until(lambda: len(driver.core.messages()) == 104)
        assert driver.do(lambda: driver.host._peers[executor.me].link.received) == 5


def test_a_message_larger_than_allowed_is_the_senders_error_and_costs_nothing_else(tmp_path: Path):
    errors: list[BaseException] = []
    driver, executor = pair(
        tmp_path, max_message_bytes=10_000, on_error=lambda error, event: errors.append(error)
    )
    executor.core.answer = lambda event: (
        [Send(driver.me, StageBlob(1, bytes(20_000))), Send(driver.me, BeatAck(1))]
        if isinstance(event, ResourcesGranted)
        else []
    )
    with running(driver, executor):
        executor.host.post(ResourcesGranted(1))
        until(lambda: driver.core.messages() == [BeatAck(1)])
        assert [type(error) for error in errors] == [LocalProtocolError]


# --- Strangers ------------------------------------------------------------------------------


class Stranger:
    """A raw DEALER that speaks to a bound node as ``name``."""

    def __init__(self, node: Node, name: str = "executor-stranger") -> None:
        self.node, self.name = node, name
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, name.encode())
        self.socket.connect(node.host.endpoint)

    def frame(self, seq: int = 1, *, token: bytes = TOKEN, to: str = "", as_name: str = "") -> bytes:
        route = frames.Route(token, Incarnation(as_name or self.name), Incarnation(to or self.node.me))
        return route.pack(seq, 0, codec.join([codec.encode(BeatAck(seq))]))

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def answer(self) -> frames.Header:
        assert self.socket.poll(20_000)
        header = frames.unpack(self.socket.recv(), TOKEN)
        assert isinstance(header, frames.Header)
        return header

    def __enter__(self) -> "Stranger":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(0)


def test_NET_4_frames_that_do_not_verify_are_counted_and_cost_nothing(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(driver, executor), Stranger(driver) as stranger:
        good = stranger.frame()
        flipped = good[:-1] + bytes((good[-1] ^ 1,))
        acked = bytearray(good)
        acked[40] ^= 1  # a bit of the acknowledgement, in the header
        wrong = {
            "parts": [good, b"more"],
            "short": [good[:47]],
            "magic": [b"GET / HTTP/1.1\r\n" * 8],
            "version": [good[:4] + b"\x63" + good[5:]],
            "token": [stranger.frame(token=bytes(16))],
            "checksum": [flipped],
            "not_for_me": [stranger.frame(to="driver-before-me")],
            "sender": [stranger.frame(as_name="executor-another")],
            "unknown_peer": [stranger.frame(seq=5)],
        }
        for parts in wrong.values():
            stranger.send(*parts)
        stranger.send(bytes(acked))
        until(lambda: driver.host.dropped["checksum"] == 2)
        counted = {reason: driver.host.dropped[reason] for reason in wrong}
        assert counted == dict.fromkeys(wrong, 1) | {"checksum": 2}
        assert driver.core.events == []
        stranger.send(good)
        executor.send(driver.me, BeatAck(3))
        until(lambda: len(driver.core.messages()) == 2)


def test_NET_4_noise_on_the_tcp_port_costs_nothing():
    driver = Node("driver", bind="tcp://127.0.0.1:*")
    executor = Node("executor")
    executor.host.connect(driver.me, driver.host.endpoint)
    port = int(driver.host.endpoint.rpartition(":")[2])
    with running(driver, executor):
        greeting = b"\xff" + bytes(8) + b"\x7f"  # ZeroMQ's own, so that what follows is parsed as frames
        for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), greeting + os.urandom(200)):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(noise)
        executor.send(driver.me, *numbered(10))
        until(lambda: driver.core.messages() == numbered(10))


def test_NET_12_a_body_that_is_no_message_is_counted_and_its_neighbours_are_delivered(tmp_path: Path):
    driver = bound(tmp_path)
    with running(driver), Stranger(driver) as stranger:
        route = frames.Route(TOKEN, Incarnation(stranger.name), driver.me)
        body = codec.join([codec.encode(BeatAck(1)), b"\x91\xa6Pickle", codec.encode(BeatAck(2))])
        stranger.send(route.pack(1, 0, body))
        stranger.send(route.pack(2, 0, b"\x80\x05cos\nsystem\n."))
        stranger.send(route.pack(3, 0, codec.join([codec.encode(BeatAck(3))])))
        until(lambda: driver.core.messages() == [BeatAck(1), BeatAck(2), BeatAck(3)])
        assert driver.host.dropped["decode"] == 2


def test_NET_9_a_successor_at_the_same_address_never_gets_its_predecessors_messages(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(executor):
        with running(driver):
            executor.send(driver.me, BeatAck(1))
            until(driver.core.messages)
        successor = Node("driver", bind=f"ipc://{tmp_path}/d")
        with running(successor):
            executor.send(driver.me, BeatAck(2))
            until(lambda: successor.host.dropped["not_for_me"] >= 1)
            assert successor.core.events == []


# --- Closed, fenced, silent -----------------------------------------------------------------


def test_NET_6_every_word_of_a_fenced_peer_is_answered_by_fenced_and_none_is_delivered(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(driver, executor):
        executor.send(driver.me, BeatAck(1))
        until(driver.core.messages)
        driver.do(lambda: driver.host.close_peer(executor.me, fence=True, why="lost its lease"))
        executor.send(driver.me, BeatAck(2))
        until(lambda: Fenced("lost its lease") in executor.core.messages(driver.me))
        assert driver.core.messages() == [BeatAck(1)]
        assert driver.do(driver.host.peers) == []


def test_even_an_idle_fenced_peer_is_told_as_its_link_speaks_every_second(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(driver, executor):
        executor.send(driver.me, BeatAck(1))
        until(driver.core.messages)
        driver.do(lambda: driver.host.close_peer(executor.me, fence=True))
        until(lambda: Fenced("") in executor.core.messages())


def test_an_effect_closes_the_sender_amid_a_batch_and_the_rest_of_it_is_not_delivered(tmp_path: Path):
    core = Recorder()
    driver, executor = pair(tmp_path, core)
    core.answer = lambda event: (
        [Send(event.sender, Goodbye("enough")), ClosePeer(event.sender, fence=False)]
        if isinstance(event, Received) and event.message == numbered(10)[3]
        else []
    )
    with running(driver, executor):
        executor.do(lambda: [executor.host.send(driver.me, m) for m in numbered(10)])
        until(lambda: executor.core.messages() == [Goodbye("enough")])
        until(lambda: executor.host.unacked(driver.me) == 0)
        assert driver.core.messages() == numbered(4)
        driver.send(executor.me, BeatAck(1))
        driver.do(lambda: None)
        assert driver.host.dropped["no_link"] == 1


def test_NET_2_a_late_copy_of_the_first_frame_does_not_bring_a_closed_peer_back(tmp_path: Path):
    driver = bound(tmp_path)
    with running(driver), Stranger(driver) as stranger:
        stranger.send(stranger.frame(1))
        until(driver.core.messages)
        driver.do(lambda: driver.host.close_peer(Incarnation(stranger.name)))
        assert stranger.answer().ack == 1
        stranger.send(stranger.frame(1))
        again = stranger.answer()
        assert (again.seq, again.ack, again.flags) == (0, 1, 0)
        assert driver.core.messages() == [BeatAck(1)]


def test_the_memory_of_closed_peers_is_bounded(tmp_path: Path):
    driver = bound(tmp_path)
    with running(driver):
        names = [Incarnation(f"executor-{number}") for number in range(CLOSED_KEPT + 5)]
        driver.do(lambda: [driver.host.close_peer(name, fence=True) for name in names])
        assert driver.do(lambda: len(driver.host._closed)) == CLOSED_KEPT


def test_only_fenced_may_come_outside_a_link(tmp_path: Path):
    driver = bound(tmp_path)
    with running(driver), Stranger(driver) as stranger:
        route = frames.Route(TOKEN, Incarnation(stranger.name), driver.me)
        stranger.send(route.pack(0, 0, codec.encode(KillTask(1, "x")), frames.UNLINKED))
        stranger.send(route.pack(0, 0, codec.encode(Fenced("you")), frames.UNLINKED))  # who are you?
        until(lambda: driver.host.dropped["unlinked"] == 2)
        stranger.send(stranger.frame(1))
        until(driver.core.messages)
        stranger.send(route.pack(0, 0, codec.encode(Fenced("you")), frames.UNLINKED))
        until(lambda: driver.core.messages() == [BeatAck(1), Fenced("you")])


def test_NET_5_the_core_is_told_of_a_silent_peer_and_of_its_return_and_not_of_an_idle_one(tmp_path: Path):
    driver = bound(tmp_path, peer_silence_s=1.5)
    idle = Node("executor")
    idle.host.connect(driver.me, driver.host.endpoint)
    with running(driver, idle), Stranger(driver) as stranger:
        stranger.send(stranger.frame(1))
        idle.send(driver.me, BeatAck(1))
        until(lambda: len(driver.core.messages()) == 2)
        until(driver.core.silent)
        assert driver.core.silent() == [Incarnation(stranger.name)]
        assert not driver.core.heard()
        stranger.send(stranger.frame(2))  # its link has stayed
        until(driver.core.heard)
        assert driver.core.heard() == [Incarnation(stranger.name)]
        assert len(driver.core.messages()) == 3


def test_a_peer_that_never_answers_at_all_is_silent_too(tmp_path: Path):
    executor = Node("executor", peer_silence_s=0.3)
    executor.host.connect(Incarnation("driver-nowhere"), f"ipc://{tmp_path}/nowhere")
    with running(executor):
        executor.send(Incarnation("driver-nowhere"), BeatAck(1))
        until(lambda: executor.core.silent() == ["driver-nowhere"])


# --- Time -----------------------------------------------------------------------------------


def test_a_tick_comes_when_the_core_asked_for_it_and_only_then(tmp_path: Path):
    core = Recorder()
    node = Node("driver", core)
    core.tick_at_s = node.clock.now_s() + 0.05
    with running(node):
        until(lambda: core.events)
        node.do(lambda: None)
        assert core.events == [Tick()]


def test_CLK_4_after_a_stall_everything_that_arrived_is_handled_before_time_passes(tmp_path: Path):
    driver, executor = pair(tmp_path, peer_silence_s=5.0)
    with running(driver, executor):
        executor.send(driver.me, BeatAck(-1))
        until(driver.core.messages)
        stalled, go_on = threading.Event(), threading.Event()

        def stall() -> None:
            driver.core.tick_at_s = driver.clock.now_s() + 2.0
            stalled.set()
            go_on.wait(20)
            driver.clock.offset_s += 30.0

        driver.host.call(stall)
        assert stalled.wait(20)
        for message in numbered(200):
            executor.do(lambda m=message: executor.host.send(driver.me, m))
        go_on.set()
        until(lambda: Tick() in driver.core.events)
        place = driver.core.events.index(Tick())
        assert sum(isinstance(event, Received) for event in driver.core.events[:place]) == 201
        assert driver.notes("host_stalled")
        assert not driver.core.silent()


def test_CLK_4_nobody_is_blamed_for_silence_while_we_stood_still(tmp_path: Path):
    driver = bound(tmp_path, peer_silence_s=4.0)
    with running(driver), Stranger(driver) as stranger:
        stranger.send(stranger.frame(1))
        until(driver.core.messages)

        def jump() -> None:
            driver.clock.offset_s += 30.0

        driver.do(jump)
        until(lambda: driver.notes("host_stalled"))
        driver.do(lambda: None)
        assert not driver.core.silent()


def test_CLK_4_a_stopped_process_hears_what_was_said_to_it_before_it_sees_the_time(tmp_path: Path):
    """The whole process stands still, ZeroMQ's thread too, as in a suspended machine."""
    name, core = Incarnation("driver-stopped"), Recorder()
    endpoint, (read, write) = f"ipc://{tmp_path}/d", os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        driver = Node("driver", core, bind=endpoint)
        driver.host.me = name

        def answer(event):
            if event == Received(executor_name, BeatAck(-1)):
                core.tick_at_s = driver.clock.now_s() + 1.0
                os.write(write, b"ready")
            if isinstance(event, Tick):
                os.write(write, b"%d" % sum(isinstance(e, Received) for e in core.events))
                os._exit(0)
            return []

        executor_name, core.answer = Incarnation("executor-1"), answer
        driver.host.run()
        os._exit(1)
    try:
        executor = Node("executor")
        executor.host.me = Incarnation("executor-1")
        executor.host.connect(name, endpoint)
        with running(executor):
            executor.send(name, BeatAck(-1))
            assert os.read(read, 5) == b"ready"
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
            for message in numbered(200):
                executor.do(lambda m=message: executor.host.send(name, m))
            threading.Event().wait(2.5)  # until the tick is overdue by more than a stall
            os.kill(pid, signal.SIGCONT)
            assert os.read(read, 10) == b"201"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


# --- Threads, errors, ends ------------------------------------------------------------------


def test_events_posted_by_many_threads_are_all_handled_each_threads_in_order():
    node = Node("driver")
    with running(node):

        def post(first: int) -> None:
            for number in range(first, first + 500):
                node.host.post(ResourcesGranted(number))

        threads = [threading.Thread(target=post, args=(k * 1000,)) for k in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(node.core.events) == 2000)
        for k in range(4):
            mine = [e.expected for e in node.core.events if e.expected // 1000 == k]
            assert mine == [k * 1000 + n for n in range(500)]


def test_a_watched_descriptor_wakes_the_loop():
    node = Node("worker")
    read, write = os.pipe()
    seen = []
    node.host.watch(read, lambda: seen.append(os.read(read, 100)))
    with running(node):
        os.write(write, b"a")
        until(lambda: seen == [b"a"])
        node.do(lambda: node.host.unwatch(read))
        os.write(write, b"b")
        node.do(lambda: None)
        assert seen == [b"a"]
    os.close(read)
    os.close(write)


def test_what_the_core_raises_goes_to_on_error_with_its_event_and_the_loop_goes_on():
    errors = []
    node = Node("driver", on_error=lambda error, event: errors.append((str(error), event)))

    def answer(event):
        if event == ResourcesGranted(1):
            raise ZeroDivisionError("boom")
        return []

    node.core.answer = answer
    with running(node):
        node.host.post(ResourcesGranted(1))
        node.host.post(ResourcesGranted(2))
        until(lambda: len(node.core.events) == 2)
        assert errors == [("boom", ResourcesGranted(1))]


def test_without_on_error_the_loop_ends_with_the_error_and_everything_is_closed(tmp_path: Path):
    node = Node("driver", bind=f"ipc://{tmp_path}/d")
    node.host.call(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        node.host.run()
    assert not (tmp_path / "d").exists()


def test_stop_lets_what_was_sent_arrive(tmp_path: Path):
    driver, executor = pair(tmp_path)
    failpoints.arm("link.send.KillTask=drop@1")
    with running(driver, executor):
        executor.do(lambda: [executor.host.send(driver.me, m) for m in numbered(20)])
        executor.host.stop(5.0)
        assert not executor.thread.is_alive() or executor.thread.join(5) is None
        until(lambda: driver.core.messages() == numbered(20))


def test_stop_waits_for_a_dead_peer_only_as_long_as_it_was_told(tmp_path: Path):
    executor = Node("executor")
    executor.host.connect(Incarnation("driver-dead"), f"ipc://{tmp_path}/dead")
    with running(executor):
        executor.send(Incarnation("driver-dead"), BeatAck(1))
        executor.do(lambda: None)
        before_s = executor.clock.now_s()
        executor.host.stop(0.2)
        assert 0.15 < executor.clock.now_s() - before_s < 3.0


def test_stop_may_come_from_anywhere_and_twice_and_before_the_loop_runs(tmp_path: Path):
    never_run = Node("driver", bind=f"ipc://{tmp_path}/a")
    never_run.host.stop()
    never_run.host.stop()
    never_run.host.run()  # returns at once
    never_run.host.post(ResourcesGranted(1))
    inside = Node("driver", bind=f"ipc://{tmp_path}/b")
    with running(inside):
        inside.host.call(inside.host.stop)
        inside.thread.join(20)
        assert not inside.thread.is_alive()
        inside.host.stop()
    assert os.listdir(tmp_path) == []


def test_two_hosts_stopped_at_once_both_end_soon(tmp_path: Path):
    driver, executor = pair(tmp_path, Recorder(echo))
    with running(driver, executor):
        executor.send(driver.me, *numbered(100))
        until(driver.core.messages)
        threads = [threading.Thread(target=node.host.stop, args=(2.0,)) for node in (driver, executor)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_a_hundred_hosts_made_and_stopped_leave_no_descriptor_thread_or_file(tmp_path: Path):
    def live_and_end() -> None:
        driver, executor = pair(tmp_path, Recorder(echo))
        with running(driver, executor):
            executor.send(driver.me, BeatAck(1))
            until(executor.core.messages)

    live_and_end()  # whatever is made once and kept
    fds, tasks = open_fds(), len(os.listdir("/proc/self/task"))
    for _ in range(50):
        live_and_end()
    assert open_fds() <= fds
    until(lambda: len(os.listdir("/proc/self/task")) <= tasks)  # a joined thread may still be ending
    assert os.listdir(tmp_path) == []


def test_a_host_can_be_made_here_and_run_there_and_runs_once(tmp_path: Path):
    made: list[Node] = []
    maker = threading.Thread(target=lambda: made.extend(pair(tmp_path)))
    maker.start()
    maker.join()
    driver, executor = made
    with running(driver, executor):
        executor.send(driver.me, BeatAck(1))
        until(driver.core.messages)
        with pytest.raises(UsageError):
            driver.host.run()


def test_NET_11_an_address_that_cannot_be_bound_is_an_error_at_once_and_leaks_nothing(tmp_path: Path):
    Node("driver", bind=f"ipc://{tmp_path}/ok").host.stop()
    fds = open_fds()
    nowhere = f"ipc://{tmp_path}/no/such/directory"
    for endpoint in (nowhere, "tcp://0.0.0.0:5555", "tcp://[::1]:1", "nonsense"):
        with pytest.raises(ClusterError) as caught:
            Node("driver", bind=endpoint)
        assert caught.value.getCondition() == "BAD_BIND_ADDRESS"
    assert open_fds() <= fds


def test_a_token_of_the_wrong_length_is_refused():
    with pytest.raises(UsageError):
        Node("driver", token=b"short")


def test_a_connection_that_moves_loses_and_doubles_nothing(tmp_path: Path):
    driver, executor = pair(tmp_path)
    with running(driver, executor):
        for number, message in enumerate(numbered(30)):
            executor.do(lambda m=message: executor.host.send(driver.me, m))
            if number % 10 == 5:
                executor.do(lambda: executor.host.connect(driver.me, driver.host.endpoint))
        until(lambda: len(driver.core.messages()) >= 30)
        assert driver.core.messages() == numbered(30)
