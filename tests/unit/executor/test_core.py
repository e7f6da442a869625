"""ExecutorCore: events in, effects compared; no clock, no socket, no process."""

import random

import pytest

from spark_ft.executor.core import EXIT_FENCED, ExecutorCore
from spark_ft.ids import BlobId, Fingerprint, Generation, HostId, Incarnation, NodeId, ShuffleId, TaskId
from spark_ft.protocol.effects import (
    Effect,
    Event,
    Exit,
    Forget,
    InterruptTask,
    LearnHosts,
    Leased,
    LoadBlob,
    Measure,
    PeerGone,
    Progress,
    Received,
    RunTask,
    Send,
    SlotEnded,
    SlotStarted,
    Tick,
)
from spark_ft.protocol.messages import (
    BeatAck,
    BlobWanted,
    DropBlocks,
    ExecutorBeat,
    ExecutorHello,
    ExecutorWelcome,
    Fenced,
    Killed,
    KillTask,
    Launch,
    LaunchTasks,
    MapOutputs,
    Message,
    ShuffleInput,
    StageBlob,
    Success,
    TaskEnd,
    TaskProgress,
    TaskUpdates,
)
from spark_ft.settings import Settings

ME, WORKER, DRIVER = Incarnation("executor-1"), Incarnation("worker-1"), Incarnation("driver-1")
SETTINGS = Settings()


class Driven:
    """A core and its time."""

    def __init__(self, driver_is_local: bool = False, welcomed: bool = True) -> None:
        self.core = ExecutorCore(
            ME, WORKER, HostId("host-0"), DRIVER, 7, 1, SETTINGS, {"python": "3"}, driver_is_local
        )
        self.now_s = 100.0
        if welcomed:
            self.at(100.0)
            self.tell(ExecutorWelcome({}))
            self.tell(StageBlob(BlobId(1), b"code"))

    def event(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now_s)
        self.core.check_invariants(self.now_s)
        return effects

    def tell(self, message: Message) -> list[Effect]:
        return self.event(Received(DRIVER, message))

    def at(self, now_s: float) -> list[Effect]:
        """Let time pass, waking the core whenever it wants to be woken; answer what it did."""
        effects: list[Effect] = []
        while (wakeup_s := self.core.wakeup_s()) is not None and wakeup_s <= now_s:
            self.now_s = max(self.now_s, wakeup_s)
            effects += self.event(Tick())
        self.now_s = now_s
        return effects

    def beat(self, at_s: float) -> int:
        """Send the beat that is due at ``at_s``; answers its number."""
        self.now_s = at_s
        self.event(Tick())
        sent = [e.message for e in self.event(Progress()) if isinstance(e, Send)]
        assert isinstance(sent[0], ExecutorBeat)
        return sent[0].number


def launch(*tasks: int, blob: int = 1, inputs: tuple[ShuffleInput, ...] = ()) -> LaunchTasks:
    return LaunchTasks(BlobId(blob), 0, 0, tuple(Launch(TaskId(task), task, 0) for task in tasks), inputs)


def outputs(shuffle: int = 3, generation: int = 0, version: int = 1) -> MapOutputs:
    return MapOutputs(ShuffleId(shuffle), Generation(generation), version, Fingerprint(b"f" * 16), ())


def needs(shuffle: int = 3, generation: int = 0, version: int = 1) -> tuple[ShuffleInput, ...]:
    return (ShuffleInput(ShuffleId(shuffle), Generation(generation), version),)


def given(effects: list[Effect]) -> list[int]:
    return [e.launch.tasks[e.index].task for e in effects if isinstance(e, RunTask)]


def updates(effects: list[Effect]) -> list[TaskUpdates]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, TaskUpdates)]


# --- Joining -------------------------------------------------------------------------------------


def test_hello_is_repeated_every_second_until_welcomed() -> None:
    driven = Driven(welcomed=False)
    hello = Send(DRIVER, ExecutorHello(ME, WORKER, HostId("host-0"), 7, 1, {"python": "3"}))
    assert driven.at(100.0) == [hello]
    assert driven.at(102.5) == [hello, hello]
    assert driven.tell(ExecutorWelcome({HostId("host-1"): "tcp://x"})) == [
        Leased(100.0 + SETTINGS.lease_s),
        LearnHosts({"host-1": "tcp://x"}),
    ]
    assert hello not in driven.at(110.0)


def test_messages_of_strangers_change_nothing() -> None:
    driven = Driven()
    effects = driven.event(Received(Incarnation("driver-2"), launch(1)))
    assert given(effects) == []
    assert driven.event(Received(Incarnation("driver-2"), Fenced("x"))) != [Exit(EXIT_FENCED, "fenced: x")]


# --- Work ----------------------------------------------------------------------------------------


def test_attempts_are_given_in_the_order_of_the_launch() -> None:
    driven = Driven()
    assert given(driven.tell(launch(5, 2, 9))) == [5, 2, 9]


def test_a_launch_waits_for_its_functions_which_are_asked_for_once() -> None:
    driven = Driven()
    wanted = Send(DRIVER, BlobWanted(BlobId(2)))
    assert driven.tell(launch(1, blob=2)) == [wanted]
    assert driven.tell(launch(2, blob=2)) == []
    effects = driven.tell(StageBlob(BlobId(2), b"x"))
    assert effects[0] == LoadBlob(BlobId(2), b"x")
    assert given(effects) == [1, 2]


def test_a_launch_waits_for_outputs_of_the_named_version_and_generation() -> None:
    driven = Driven()
    assert given(driven.tell(launch(1, inputs=needs(generation=1, version=4)))) == []
    assert given(driven.tell(outputs(generation=1, version=3))) == []
    assert given(driven.tell(outputs(generation=2, version=9))) == []
    newer = outputs(generation=1, version=5)
    effects = driven.tell(newer)
    assert given(effects) == [1]
    assert [e.outputs for e in effects if isinstance(e, RunTask)] == [(newer,)]


def test_a_repeated_launch_or_an_older_version_changes_nothing() -> None:
    driven = Driven()
    driven.tell(outputs(version=5))
    driven.tell(outputs(version=4))
    effects = driven.tell(launch(1, inputs=needs(version=5)))
    assert given(effects) == [1]
    assert given(driven.tell(launch(1, inputs=needs(version=5)))) == []


def test_start_of_the_next_travels_with_the_end_of_the_former() -> None:
    driven = Driven()
    driven.tell(launch(1, 2))
    assert updates(driven.event(SlotStarted(TaskId(1)))) == [TaskUpdates(started=(TaskId(1),))]
    end = TaskEnd(TaskId(1), Success())
    assert updates(driven.event(SlotEnded(end, TaskId(2)))) == [TaskUpdates((TaskId(2),), (end,))]
    driven.event(SlotEnded(TaskEnd(TaskId(2), Success())))
    driven.core.assert_idle()


def test_S9_an_end_is_reported_once_and_only_for_known_attempts() -> None:
    driven = Driven()
    driven.tell(launch(1))
    end = SlotEnded(TaskEnd(TaskId(1), Success()))
    assert len(updates(driven.event(end))) == 1
    assert updates(driven.event(end)) == []
    assert updates(driven.event(SlotEnded(TaskEnd(TaskId(8), Success())))) == []


def test_dropped_blocks_are_forgotten_and_their_functions_asked_for_again() -> None:
    driven = Driven()
    assert driven.tell(DropBlocks(nodes=(NodeId(4),), blobs=(BlobId(1),))) == [
        Forget((NodeId(4),), (BlobId(1),), (), ())
    ]
    assert driven.tell(launch(1)) == [Send(DRIVER, BlobWanted(BlobId(1)))]


# --- Kills ---------------------------------------------------------------------------------------


def test_EX_15_a_running_task_is_interrupted_and_after_the_grace_killed_hard() -> None:
    driven = Driven(driver_is_local=True)
    driven.tell(launch(1))
    driven.event(SlotStarted(TaskId(1)))
    assert driven.tell(KillTask(TaskId(1), "twin won")) == [InterruptTask(TaskId(1))]
    assert driven.tell(KillTask(TaskId(1), "again")) == []
    effects = driven.at(100.0 + SETTINGS.kill_grace_s - 0.01)
    assert effects.count(InterruptTask(TaskId(1))) > 10  # a single signal may be missed
    assert InterruptTask(TaskId(1), hard=True) not in effects
    effects = driven.at(100.0 + SETTINGS.kill_grace_s)
    assert InterruptTask(TaskId(1), hard=True) in effects
    assert InterruptTask(TaskId(1), hard=True) not in driven.at(120.0)


def test_EX_15_a_task_that_obeys_is_not_killed_hard_and_says_why_it_ended() -> None:
    driven = Driven(driver_is_local=True)
    driven.tell(launch(1))
    driven.event(SlotStarted(TaskId(1)))
    driven.tell(KillTask(TaskId(1), "twin won"))
    effects = driven.event(SlotEnded(TaskEnd(TaskId(1), Killed("interrupted"))))
    assert updates(effects) == [TaskUpdates(ended=(TaskEnd(TaskId(1), Killed("twin won")),))]
    assert not any(isinstance(e, InterruptTask) for e in driven.at(130.0))


def test_a_held_task_is_killed_without_a_slot_ever_seeing_it() -> None:
    driven = Driven()
    driven.tell(launch(1, blob=2))
    effects = driven.tell(KillTask(TaskId(1), "stage done"))
    assert updates(effects) == [TaskUpdates(ended=(TaskEnd(TaskId(1), Killed("stage done")),))]
    assert given(driven.tell(StageBlob(BlobId(2), b"x"))) == []


def test_a_kill_of_an_unknown_or_ended_task_does_nothing() -> None:
    driven = Driven()
    assert driven.tell(KillTask(TaskId(3), "x")) == []
    driven.tell(launch(1))
    driven.event(SlotEnded(TaskEnd(TaskId(1), Success())))
    assert driven.tell(KillTask(TaskId(1), "x")) == []


def test_a_recalled_task_is_asked_of_the_slots_once_and_goes_on_when_it_has_begun() -> None:
    driven = Driven(driver_is_local=True)
    driven.tell(launch(1, 2))
    driven.tell(launch(3, blob=2))
    driven.event(SlotStarted(TaskId(1)))
    assert driven.tell(KillTask(TaskId(1), "idle", queued_only=True)) == []
    recall = driven.tell(KillTask(TaskId(2), "idle", queued_only=True))
    assert recall == [InterruptTask(TaskId(2), queued_only=True)]
    held = driven.tell(KillTask(TaskId(3), "idle", queued_only=True))
    assert updates(held) == [TaskUpdates(ended=(TaskEnd(TaskId(3), Killed("idle")),))]
    assert not any(isinstance(e, InterruptTask) for e in driven.at(110.0))
    success = TaskEnd(TaskId(1), Success())
    assert updates(driven.event(SlotEnded(success))) == [TaskUpdates(ended=(success,))]


# --- Lease, silence, fencing -------------------------------------------------------------------------


def test_beats_carry_progress_of_what_runs() -> None:
    driven = Driven()
    driven.tell(launch(1))
    driven.event(SlotStarted(TaskId(1)))
    driven.now_s = 101.0
    assert driven.event(Tick()) == [Measure()]
    assert driven.event(Tick()) == []  # measured already
    one, other = TaskProgress(TaskId(1), 40, 7, 0.5), TaskProgress(TaskId(2), 1)
    effects = driven.event(Progress((one, other), 2.5, 1000))
    assert effects == [Send(DRIVER, ExecutorBeat(1, (one,), 2.5, 1000, acked=0))]
    driven.tell(BeatAck(1))
    assert driven.core.wakeup_s() == pytest.approx(102.0)
    driven.now_s = 102.0
    driven.event(Tick())
    assert driven.event(Progress())[0] == Send(DRIVER, ExecutorBeat(2, acked=1))


def test_EX_7_without_an_acknowledged_beat_the_lease_ends_and_launches_are_held() -> None:
    driven = Driven(driver_is_local=True)
    number = driven.beat(101.0)
    driven.now_s = 100.0 + SETTINGS.lease_s
    assert given(driven.tell(launch(1))) == []
    assert given(driven.tell(BeatAck(number))) == [1]  # it was sent at 101


def test_EX_7_the_lease_counts_from_when_the_beat_was_sent() -> None:
    driven = Driven(driver_is_local=True)
    number = driven.beat(101.0)
    driven.now_s = 101.0 + SETTINGS.lease_s
    assert given(driven.tell(launch(1))) == []
    assert given(driven.tell(BeatAck(number))) == []  # an answer that came after it ran out renews nothing
    assert given(driven.tell(BeatAck(number + 7))) == []  # nor does one to a beat never sent
    assert given(driven.tell(BeatAck(driven.beat(driven.now_s)))) == [1]


def test_NET_7_an_answer_that_came_too_late_to_renew_the_lease_is_confirmed_at_once() -> None:
    """The driver stood still: it grants the next lease only to a beat that proves that it is heard."""
    driven = Driven(driver_is_local=True)
    number = driven.beat(101.0)
    driven.now_s = 130.0
    assert driven.tell(BeatAck(number)) == [Leased(101.0 + SETTINGS.lease_s), Measure()]
    sent = driven.event(Progress())[0]
    assert isinstance(sent, Send) and isinstance(sent.message, ExecutorBeat) and sent.message.acked == number
    assert Leased(130.0 + SETTINGS.lease_s) in driven.tell(BeatAck(sent.message.number))


def test_EX_7_work_that_was_given_before_the_lease_ended_is_finished_and_reported() -> None:
    driven = Driven(driver_is_local=True)
    driven.tell(launch(1, 2))
    driven.event(SlotStarted(TaskId(1)))
    driven.now_s = 120.0
    end = TaskEnd(TaskId(1), Success())
    assert updates(driven.event(SlotEnded(end))) == [TaskUpdates(ended=(end,))]


def test_EX_7_a_fenced_executor_exits_at_once_and_does_nothing_more() -> None:
    driven = Driven()
    driven.tell(launch(1))
    assert driven.tell(Fenced("lost")) == [Exit(EXIT_FENCED, "fenced: lost")]
    assert driven.event(SlotEnded(TaskEnd(TaskId(1), Success()))) == []
    assert driven.core.wakeup_s() is None


def test_DR_3_an_executor_whose_driver_is_silent_for_the_grace_exits() -> None:
    driven = Driven()
    driven.event(PeerGone(DRIVER, "link closed"))
    assert given(driven.tell(launch(1))) == []
    heard_s = driven.now_s
    assert not any(isinstance(e, Exit) for e in driven.at(heard_s + SETTINGS.driver_grace_s - 0.1))
    assert any(isinstance(e, Exit) for e in driven.at(heard_s + SETTINGS.driver_grace_s))


def test_silence_of_a_driver_on_this_machine_is_no_reason_to_exit() -> None:
    driven = Driven(driver_is_local=True)
    assert not any(isinstance(e, Exit) for e in driven.at(10_000.0))


def test_a_driver_that_never_answers_the_hello_is_given_up_too() -> None:
    driven = Driven(welcomed=False)
    assert any(isinstance(e, Exit) for e in driven.at(101.0 + SETTINGS.driver_grace_s))


# --- Any order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_every_launched_task_ends_exactly_once_whatever_the_order(seed: int) -> None:
    rng = random.Random(seed)
    driven = Driven(driver_is_local=True)
    queue: list[int] = []
    ended: list[int] = []
    running: int | None = None
    messages: list[Message] = [
        launch(*range(n, n + 3), blob=n % 4 + 1, inputs=needs(n % 3)) for n in range(0, 30, 3)
    ]
    messages += [StageBlob(BlobId(blob), b"") for blob in range(2, 5)]
    messages += [outputs(shuffle) for shuffle in range(3)]
    messages += [KillTask(TaskId(rng.randrange(30)), "x") for _ in range(10)]
    rng.shuffle(messages)
    while messages or queue or running is not None:
        choice = rng.random()
        if messages and choice < 0.6:
            effects = driven.tell(messages.pop())
        elif running is not None:
            started = queue.pop(0) if queue else None
            effects = driven.event(
                SlotEnded(TaskEnd(TaskId(running), Success()), None if started is None else TaskId(started))
            )
            running = started
        elif queue:
            running = queue.pop(0)
            effects = driven.event(SlotStarted(TaskId(running)))
        else:
            effects = driven.at(driven.now_s + 0.01)
        queue += given(effects)
        for effect in list(effects):
            if isinstance(effect, InterruptTask) and effect.task in queue:
                queue.remove(effect.task)
                effects += driven.event(SlotEnded(TaskEnd(effect.task, Killed(""))))
        ended += [end.task for update in updates(effects) for end in update.ended]
    assert sorted(ended) == sorted(set(ended))
    assert len(ended) == 30
    driven.core.assert_idle()
