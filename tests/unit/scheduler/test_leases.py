"""Leases: who does not hear whom, how soon that shows, and that nobody is given up while it may still
believe in its lease (S30).  Rows NET-5 to NET-7, CLK-3, EX-7, EX-9."""

import pytest

from spark_ft.ids import Incarnation
from spark_ft.protocol.effects import Tick
from spark_ft.protocol.messages import (
    BeatAck,
    ExecutorBeat,
    ExecutorStopped,
    Fenced,
    Killed,
    KillExecutor,
    KillTask,
    TaskEnd,
    TaskUpdates,
)
from spark_ft.scheduler.leases import Lease
from spark_ft.settings import Settings
from tests.builders import Lineage, Stand

E0 = Incarnation("e0")


def granted(stand: Stand) -> list[int]:
    return [ack.number for ack in stand.messages(BeatAck, "e0")]


def test_NET_7_a_lease_is_granted_to_beats_that_prove_the_round_trip_and_to_no_others() -> None:
    stand = Stand(executors=1)
    for number, acked in ((1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 5)):
        stand.tell("e0", ExecutorBeat(number, acked=acked), after_s=1.0)
    assert granted(stand) == [1, 2, 2, 2, 5, 6]


def test_S30_no_lease_that_can_have_been_granted_outlives_the_declaration_of_loss() -> None:
    """Answers may come as late as they like: what they grant counts from a beat that proved the way."""
    settings = Settings()
    lease, sent_s = Lease(0.0), {0: 0.0}
    acked = 0
    for number in range(1, 60):
        now_s = number * 1.0
        sent_s[number] = now_s - 0.01
        answer = lease.heard(number, acked, now_s)
        assert sent_s[answer] <= lease.granted_s
        if lease.is_over(settings, now_s):
            assert sent_s[answer] + settings.lease_s < now_s
        if number < 20:
            acked = answer  # from then on nothing arrives
    assert lease.is_over(settings, 59.0)


def test_NET_7_an_executor_that_does_not_hear_us_gives_its_tasks_back_after_the_launch_timeout() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    stand.pass_time(2.0)
    stand.deaf.add(E0)
    job = stand.submit(lineage, lineage.source(2))
    unheeded = next(task for task in stand.running() if task.executor == "e0")
    began_s = stand.now_s
    stand.succeed(next(task for task in stand.running() if task.executor == "e1"))
    stand.pass_time(stand.settings.launch_ack_s - 1.0)
    assert stand.starts()[unheeded.partition] == 1
    stand.pass_time(2.0)
    again = stand.one(unheeded.partition)
    assert again.executor == "e1"
    assert stand.noted("executor_cut_off")[0]["why"] == "it does not hear the driver"
    assert stand.now_s - began_s <= stand.settings.launch_ack_s + 1.0
    del stand.open[unheeded.task]
    stand.run(job)
    assert stand.finished[job] is None and not stand.messages(KillExecutor)
    stand.pass_time(5.0)
    (lost,) = stand.noted("executor_lost")
    assert lost["executor"] == "e0" and E0 in stand.fenced
    assert stand.now_s - began_s <= stand.settings.lost_after_s + 1.5


def test_NET_7_one_that_hears_us_again_is_given_tasks_again() -> None:
    stand = Stand(executors=1)
    stand.pass_time(2.0)
    stand.deaf.add(E0)
    stand.pass_time(6.5)
    assert not stand.core.executors.live[E0].accepting
    stand.deaf.clear()
    stand.acked[E0] = granted(stand)[-1]
    stand.pass_time(1.0)
    assert stand.core.executors.live[E0].accepting
    assert [note["why"] for note in stand.noted("executor_cut_off")] == ["it does not hear the driver", ""]


def test_NET_6_an_executor_that_speaks_unheard_is_cut_off_however_busy_it_is() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    stand.start(*stand.running())
    began_s = stand.now_s
    while E0 in stand.core.executors.live:
        stand.pass_time(0.5, unheard=["e0"], cpu_s={"e0": 0.5})
        assert stand.now_s - began_s <= stand.settings.lost_after_s, "D1"
    assert stand.now_s - began_s > stand.settings.lease_s, "S30"
    (lost,) = stand.noted("executor_lost")
    assert lost["why"] == "the driver does not hear it"
    assert [kill.executor for kill in stand.messages(KillExecutor)] == ["e0"]
    for task in [t for t in stand.open.values() if t.executor == "e0"]:
        del stand.open[task.task]
        effects = stand.tell("e0", TaskUpdates((), (TaskEnd(task.task, stand.success(task)),)))
        assert [type(effect).__name__ for effect in effects] == ["Note"], "its late word is dropped"
    stand.run(job)
    assert stand.finished[job] is None and set(stand.starts().values()) == {1, 2}, "R1"


def test_NET_5_half_a_minute_of_one_that_holds_the_GIL_is_no_cut() -> None:
    """It says nothing, so its worker can tell of nothing that we have not heard; and it computes."""
    lineage, stand = Lineage(), Stand(executors=1, prefetch_tasks=1)
    stand.pass_time(3.0)
    job = stand.submit(lineage, lineage.source(2))
    stand.start(stand.one(0))
    stand.pass_time(30.0, silent=["e0"], cpu_s={"e0": 0.5})
    stand.tell("e0", TaskUpdates(started=()))
    stand.tick(0.4)
    assert E0 in stand.core.executors.live and not stand.kinds()["executor_cut_off"]
    stand.run(job)
    assert set(stand.starts().values()) == {1}, "R0"


def test_NET_5_a_beat_that_overtakes_the_word_of_its_worker_is_no_cut_either() -> None:
    stand = Stand(executors=1)
    stand.pass_time(12.0, silent=["e0"], cpu_s={"e0": 0.5})
    stand.pass_time(0.5, unheard=["e0"])  # the GIL is free: its worker is the first to tell
    stand.pass_time(0.5)
    assert E0 in stand.core.executors.live and not stand.kinds()["executor_cut_off"]


def test_EX_7_a_stopped_executor_gives_back_at_once_what_waits_in_its_queue() -> None:
    lineage, stand = Lineage(), Stand(executors=2, prefetch_tasks=1)
    job = stand.submit(lineage, lineage.source(4))
    first = [task for task in stand.running() if task.executor == "e0"]
    assert len(first) == 2
    stand.start(first[0])
    stand.succeed(*[task for task in stand.running() if task.executor == "e1"])
    stand.tell("worker-h0", ExecutorStopped(E0, True))
    again = stand.one(first[1].partition)
    assert again.executor == "e1", "given to the other in the same turn"
    assert stand.one(first[0].partition) is first[0], "what it runs may go on when it wakes"
    stand.pass_time(7.0, silent=["e0"])
    assert not stand.messages(KillExecutor), "a process that is stopped cannot answer a kill"
    stand.tell("worker-h0", ExecutorStopped(E0, False))
    assert [kill.task for kill in stand.messages(KillTask, "e0")] == [first[1].task]
    stand.end(first[1], Killed("told to"))
    stand.run(job)
    assert stand.finished[job] is None
    assert stand.starts() == {p: 2 if p == first[1].partition else 1 for p in range(4)}


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_EX_7_one_that_stays_stopped_is_given_up_within_the_bound_and_after_its_lease(how: str) -> None:
    stand = Stand(executors=1)
    stand.pass_time(3.0)
    began_s = stand.now_s
    if how == "stopped":
        stand.tell("worker-h0", ExecutorStopped(E0, True))
    while E0 in stand.core.executors.live:
        stand.pass_time(0.25, silent=["e0"])
    assert stand.settings.lease_s < stand.now_s - began_s <= stand.settings.lost_after_s
    assert E0 in stand.fenced and not stand.messages(Fenced, "e0"), "the host answers its next word"


def test_CLK_3_the_bounds_scale_with_the_settings() -> None:
    stand = Stand(executors=1, heartbeat_interval_s=0.2, lease_s=1.0, lost_after_s=1.5)
    began_s = stand.now_s
    while E0 in stand.core.executors.live:
        due_s = stand.core.wakeup_s()
        assert due_s is not None
        stand.do(Tick(), max(0.0, due_s - stand.now_s))
    assert 1.0 < stand.now_s - began_s <= 1.5
