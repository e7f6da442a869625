"""Two links over a channel that drops, duplicates and reorders: what is sent is what is delivered.

The channel is a bag of frames in flight.  Each step of a schedule sends something, lets time pass,
delivers some frame of the bag (any, so: reordered), delivers one and keeps it (duplicated) or
throws one away.  After the schedule comes fair weather, in which every frame arrives; then both sides
must have delivered exactly what the other was given.
"""

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from spark_ft.transport.link import (
    ACK_AFTER_FRAMES,
    ACK_AFTER_S,
    FLIGHT_BYTES,
    KEEPALIVE_S,
    RETRY_FRAMES,
    RETRY_MAX_S,
    RETRY_S,
    WINDOW,
    Frame,
    Link,
)

STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 1), st.integers(1, 40)),
    st.tuples(st.just("wait"), st.integers(0, 1), st.floats(0.0, 3.0)),
    st.tuples(st.sampled_from(["deliver", "duplicate", "drop"]), st.integers(0, 1), st.integers(0, 10_000)),
)


class World:
    """Two ends, the frames between them and what each has been given and has delivered."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.links = [Link(self.now_s), Link(self.now_s)]
        self.flying: list[list[Frame]] = [[], []]  # towards end 0, towards end 1
        self.given: list[list[bytes]] = [[], []]
        self.delivered: list[list[bytes]] = [[], []]

    def send(self, end: int, count: int = 1) -> None:
        for _ in range(count):
            body = f"{end}:{len(self.given[end])}".encode()
            self.given[end].append(body)
            self.links[end].send(body)

    def poll(self) -> None:
        for end, link in enumerate(self.links):
            self.flying[1 - end] += link.poll(self.now_s)

    def deliver(self, end: int, frame: Frame) -> None:
        bodies = self.links[end].receive(frame.seq, frame.ack, frame.body, self.now_s)
        self.delivered[end] += [bytes(body) for body in bodies]

    def step(self, action: str, end: int, amount: float) -> None:
        if action == "send":
            self.send(end, int(amount))
        elif action == "wait":
            self.now_s += amount
        elif self.flying[end]:
            place = int(amount) % len(self.flying[end])
            if action == "duplicate":
                self.deliver(end, self.flying[end][place])
            elif action == "deliver":
                self.deliver(end, self.flying[end].pop(place))
            else:
                self.flying[end].pop(place)
        self.poll()
        for end in (0, 1):
            assert self.delivered[end] == self.given[1 - end][: len(self.delivered[end])]
            assert self.links[1 - end].unacked >= len(self.given[1 - end]) - len(self.delivered[end])

    def fair_weather(self, seconds: float = 10.0) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.poll()
            while any(self.flying):
                for end in (0, 1):
                    frames, self.flying[end] = self.flying[end], []
                    for frame in frames:
                        self.deliver(end, frame)
                self.poll()
            self.now_s = max(min(link.wakeup_s() for link in self.links), self.now_s + 0.001)


@given(st.lists(STEPS, max_size=150))
def test_NET_1_2_3_any_schedule_of_losses_doubles_and_detours_delivers_what_was_sent(
    steps: list[tuple[str, int, float]],
) -> None:
    world = World()
    for step in steps:
        world.step(*step)
    world.fair_weather()
    assert world.delivered == world.given[::-1]
    assert [link.unacked for link in world.links] == [0, 0]


@given(st.integers(0, 2**32), st.integers(1, 95))
def test_NET_1_any_loss_rate_below_all_gets_everything_through(seed: int, percent: int) -> None:
    world, rng = World(), Random(seed)
    world.send(0, 60)
    world.send(1, 60)
    for _ in range(20_000):
        world.poll()
        for end in (0, 1):
            frames, world.flying[end] = world.flying[end], []
            for frame in frames:
                if rng.randrange(100) >= percent:
                    world.deliver(end, frame)
        if world.delivered == world.given[::-1]:
            break
        world.now_s += 0.05
    assert world.delivered == world.given[::-1]


@given(st.integers(1, 30))
def test_NET_1_losing_exactly_the_nth_frame_loses_nothing(nth: int) -> None:
    world, seen = World(), 0
    for _ in range(10):
        world.send(0)
        world.poll()
        for end in (0, 1):
            frames, world.flying[end] = world.flying[end], []
            for frame in frames:
                seen += 1
                if seen != nth:
                    world.deliver(end, frame)
        world.now_s += 0.06
    world.fair_weather()
    assert world.delivered == world.given[::-1]


@given(st.permutations(range(1, 51)))
def test_NET_3_a_window_of_fifty_in_any_order_is_delivered_in_order(order: list[int]) -> None:
    link, delivered = Link(0.0), []
    for seq in order:
        delivered += link.receive(seq, 0, b"%d" % seq, 0.0)
    assert delivered == [b"%d" % seq for seq in range(1, 51)]


def test_NET_2_a_frame_that_comes_twice_is_delivered_once_and_acknowledged_at_once() -> None:
    link = Link(0.0)
    assert link.receive(1, 0, b"a", 0.0) == [b"a"]
    assert link.poll(0.0) == []
    assert link.receive(1, 0, b"a", 0.0) == []
    assert link.poll(0.0) == [Frame(0, 1, b"", ())]


def test_an_acknowledgement_rides_on_the_next_frame_or_goes_alone_after_its_delay() -> None:
    link = Link(0.0)
    link.receive(1, 0, b"a", 0.0)
    assert link.wakeup_s() == ACK_AFTER_S
    link.send(b"b")
    assert link.poll(0.01) == [Frame(1, 1, b"b", ())]
    link.receive(2, 1, b"c", 0.5)
    assert link.poll(0.5 + ACK_AFTER_S - 0.001) == []
    assert link.poll(0.5 + ACK_AFTER_S) == [Frame(0, 2, b"", ())]
    assert link.poll(0.5 + ACK_AFTER_S + 0.001) == []


def test_many_frames_are_acknowledged_without_delay() -> None:
    link = Link(0.0)
    for seq in range(1, ACK_AFTER_FRAMES):
        link.receive(seq, 0, b"", 0.0)
    assert link.poll(0.0) == []
    link.receive(ACK_AFTER_FRAMES, 0, b"", 0.0)
    assert link.poll(0.0) == [Frame(0, ACK_AFTER_FRAMES, b"", ())]


def test_an_idle_link_speaks_once_a_second() -> None:
    link, spoke = Link(0.0), []
    for tenth in range(1, 51):
        spoke += [tenth / 10 for _ in link.poll(tenth / 10)]
    assert spoke == [KEEPALIVE_S * n for n in range(1, 6)]


def test_retries_slow_down_to_their_limit_and_start_afresh_after_progress() -> None:
    link, times = Link(0.0), []
    link.send(b"a")
    link.send(b"b")
    assert len(link.poll(0.0)) == 2
    while len(times) < 6:
        now_s = link.wakeup_s()
        if any(frame.seq for frame in link.poll(now_s)):
            times.append(now_s)
    gaps = [round(b - a, 3) for a, b in zip([0.0, *times], times, strict=False)]
    assert gaps == [RETRY_S, 0.5, 1.0, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]
    link.acknowledged(1, times[-1])
    assert [frame.seq for frame in link.poll(times[-1] + RETRY_S)] == [2]


def test_what_is_under_way_is_bounded_in_frames_and_in_bytes() -> None:
    link = Link(0.0)
    for _ in range(WINDOW + 10):
        link.send(b"x")
    assert len(link.poll(0.0)) == WINDOW
    assert len(link.poll(RETRY_S)) == RETRY_FRAMES
    assert link.unacked == WINDOW + 10
    link.acknowledged(5, RETRY_S)
    assert [frame.seq for frame in link.poll(RETRY_S)] == [WINDOW + n for n in range(1, 6)]
    link, big = Link(0.0), bytes(FLIGHT_BYTES // 2)
    for _ in range(4):
        link.send(big)
    assert len(link.poll(0.0)) == 2
    assert len(link.poll(RETRY_S)) == 1


def test_a_frame_far_ahead_is_not_kept_and_comes_again() -> None:
    link = Link(0.0)
    assert link.receive(WINDOW + 1, 0, b"far", 0.0) == []
    for seq in range(1, WINDOW + 1):
        assert link.receive(seq, 0, b"x", 0.0) == [b"x"]
    assert link.receive(WINDOW + 1, 0, b"far", 0.0) == [b"far"]


def test_an_acknowledgement_of_what_was_never_sent_is_ignored() -> None:
    link = Link(0.0)
    link.send(b"a")
    link.poll(0.0)
    link.acknowledged(2, 0.0)
    assert link.unacked == 1
    link.acknowledged(1, 0.0)
    assert link.unacked == 0


def test_NET_1_what_was_lost_is_sent_again_soon_while_the_peer_is_heard_of() -> None:
    """Or a bad link would keep quiet for seconds, and look like a cut one."""
    link, now_s = Link(0.0), 0.0
    link.send(b"x")
    link.poll(0.0)
    times = []
    for _ in range(40):
        now_s += 0.1
        link.receive(0, 0, b"", now_s)  # it lives, and has not got it
        times += [now_s for frame in link.poll(now_s) if frame.seq]
    assert max(b - a for a, b in itertools.pairwise([0.0, *times])) <= 2 * RETRY_S


def test_CLK_5_a_hundred_who_have_lost_one_peer_do_not_come_back_in_step() -> None:
    links = [Link(0.0, Random(f"executor-{number}")) for number in range(100)]
    times: list[list[float]] = []
    for link in links:
        link.send(b"lost")
        link.poll(0.0)
        times.append([])
        for _ in range(5):
            while (now_s := link.wakeup_s()) and not any(frame.seq for frame in link.poll(now_s)):
                pass
            times[-1].append(now_s)
    for nth in range(1, 5):
        moments = sorted(each[nth] for each in times)
        assert len(set(moments)) == 100 and moments[-1] - moments[0] > 0.1 * nth
    assert max(each[4] for each in times) <= 1.25 * (0.25 + 0.5 + 1.0 + 2.0 + 2.0)
