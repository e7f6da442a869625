"""WorkerCore: events in, effects compared; no clock, no socket, no process."""

import itertools
from dataclasses import replace
from random import Random

import pytest

from spark_ft.cluster.worker import (
    EXIT_LEFT,
    PAUSE_S,
    SIGHUP,
    SIGKILL,
    SIGTERM,
    TERM_GRACE_S,
    WorkerCore,
)
from spark_ft.ids import AppId, Fingerprint, Generation, HostId, Incarnation, ShuffleId, TaskId
from spark_ft.protocol.effects import (
    AskStacks,
    ChildExited,
    ChildrenSeen,
    ChildSpawned,
    ChildStopped,
    ClosePeer,
    Connect,
    DriverRan,
    DropStores,
    Effect,
    Event,
    Exit,
    GranterMoved,
    Inherited,
    KillProcess,
    LeaveWanted,
    Measure,
    Note,
    PeerGone,
    Received,
    RunDriver,
    Send,
    SpawnExecutor,
    StacksDumped,
    Tick,
    WatchProcess,
)
from spark_ft.protocol.messages import (
    AppReleased,
    AssignExecutors,
    DriverChanged,
    DropShuffles,
    DumpStacks,
    ExecutorExited,
    ExecutorSpawned,
    ExecutorStacks,
    ExecutorStopped,
    ExecutorsUnavailable,
    Fenced,
    KillExecutor,
    Leave,
    Leaving,
    MapStatus,
    MayLeave,
    Message,
    RegisterWorker,
    ReleaseApp,
    StoresServed,
    SubmitDriver,
    WorkerBeat,
    WorkerHello,
    WorkerRegistered,
)
from spark_ft.settings import Settings

ME, MANAGER = Incarnation("worker-1"), Incarnation("manager-1")
DRIVER, OTHER = Incarnation("driver-1"), Incarnation("driver-2")
APP = AppId("app-1")
SETTINGS = Settings()


def assignment(count: int = 2, driver: Incarnation = DRIVER, app: AppId = APP) -> AssignExecutors:
    return AssignExecutors(app, driver, "ipc://d", 77, count, 1, 1 << 30, {})


class Driven:
    """A core, its time, and the processes that it asked for."""

    def __init__(self, has_manager: bool = False) -> None:
        self.core = WorkerCore(
            ME, HostId("host-0"), 7, 4, 4 << 30, MANAGER if has_manager else DRIVER, SETTINGS,
            has_manager=has_manager, data_endpoint="ipc://b", root="/r",
        )  # fmt: skip
        self.now_s = 100.0
        self.pid = 1000

    def event(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now_s)
        self.core.check_invariants()
        return effects

    def tell(self, message: Message, sender: Incarnation = DRIVER) -> list[Effect]:
        return self.event(Received(sender, message))

    def at(self, now_s: float) -> list[Effect]:
        """Let time pass, waking the core whenever it wants to be woken."""
        effects: list[Effect] = []
        while (wakeup_s := self.core.wakeup_s()) is not None and wakeup_s <= now_s:
            self.now_s = max(self.now_s, wakeup_s)
            effects += self.event(Tick())
        self.now_s = now_s
        return effects

    def start(self, count: int = 2) -> list[Incarnation]:
        """Assign and spawn ``count`` executors."""
        executors = spawned(self.tell(assignment(count)))
        for executor in executors:
            self.spawn(executor)
        return executors

    def spawn(self, executor: Incarnation) -> list[Effect]:
        self.pid += 1
        return self.event(ChildSpawned(executor, self.pid))

    def die(
        self,
        executor: Incarnation,
        status: int = 0,
        signal: int = 0,
        registered: bool = False,
        stderr: str = "",
    ) -> list[Effect]:
        return self.event(ChildExited(executor, status, signal, stderr, (), registered))


def spawned(effects: list[Effect]) -> list[Incarnation]:
    return [effect.executor for effect in effects if isinstance(effect, SpawnExecutor)]


def sent(effects: list[Effect], kind: type[Message]) -> list[Message]:
    return [
        effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)
    ]


# --- Joining -------------------------------------------------------------------------------------


def test_CM_7_a_worker_registers_every_second_until_it_is_answered() -> None:
    driven = Driven(has_manager=True)
    assert driven.at(99.0) == [], "it has not seen yet what was here before it"
    driven.event(Inherited())
    driven.now_s = 100.0
    register = RegisterWorker(ME, HostId("host-0"), 7, 4, 4 << 30)
    assert sent(driven.at(102.5), RegisterWorker) == [register] * 3
    driven.tell(WorkerRegistered(), MANAGER)
    assert sent(driven.at(110.0), RegisterWorker) == []


def test_CLK_5_workers_that_wait_for_a_manager_do_not_knock_in_step() -> None:
    moments: set[float] = set()
    for number in range(50):
        core = WorkerCore(
            Incarnation(f"worker-{number}"), HostId("host-0"), 7, 4, 4 << 30, MANAGER, SETTINGS,
            has_manager=True, rng=Random(number),
        )  # fmt: skip
        core.handle(Inherited(), 0.0)
        moments.add(core.wakeup_s() or 0.0)
    assert len(moments) == 50 and min(moments) >= 1.0 and max(moments) <= 1.25


def test_an_assignment_greets_the_driver_before_anything_else_and_spawns() -> None:
    driven = Driven(has_manager=True)
    effects = driven.tell(assignment(2), MANAGER)
    assert effects[:3] == [
        WatchProcess(DRIVER, 77),
        Connect(DRIVER, "ipc://d"),
        Send(DRIVER, WorkerHello(ME, HostId("host-0"), 7, "ipc://b", "/r")),
    ]
    assert len(set(spawned(effects))) == 2


def test_a_repeated_assignment_changes_nothing() -> None:
    driven = Driven()
    driven.start(2)
    assert driven.tell(assignment(2)) == []


def test_a_later_assignment_replaces_the_count() -> None:
    driven = Driven()
    first, second = driven.start(2)
    (third,) = spawned(driven.tell(assignment(3)))
    effects = driven.tell(assignment(1))
    assert effects == [KillProcess(second, SIGTERM), KillProcess(third, SIGTERM)]
    assert spawned(driven.die(second, signal=SIGTERM)) == []
    assert spawned(driven.die(first, signal=SIGKILL, registered=True)) != []


def test_a_new_driver_of_the_application_gets_new_executors() -> None:
    driven = Driven(has_manager=True)
    old = spawned(driven.tell(assignment(1), MANAGER))[0]
    effects = driven.tell(assignment(1, OTHER), MANAGER)
    assert KillProcess(old, SIGKILL) in effects
    assert sent(effects, WorkerHello)
    assert len(spawned(effects)) == 1 and spawned(effects) != [old]


def test_spawned_and_stopped_executors_are_told_of() -> None:
    driven = Driven()
    (executor,) = spawned(driven.tell(assignment(1)))
    assert driven.event(ChildSpawned(executor, 5)) == [Send(DRIVER, ExecutorSpawned(executor, 5))]
    assert driven.event(ChildStopped(executor, True)) == [Send(DRIVER, ExecutorStopped(executor, True))]


def test_EX_9_only_its_own_driver_may_ask_where_an_executor_stands() -> None:
    driven = Driven()
    (executor,) = driven.start(1)
    assert driven.tell(DumpStacks(executor), OTHER) == []
    assert driven.tell(DumpStacks(executor)) == [AskStacks(executor)]
    told = driven.event(StacksDumped(executor, "here"))
    assert told == [Send(DRIVER, ExecutorStacks(executor, "here"))]


# --- Deaths ----------------------------------------------------------------------------------------


def test_EX_6_when_all_executors_die_at_once_all_are_started_again_at_once() -> None:
    driven = Driven()
    executors = driven.start(4)
    driven.now_s += 5
    for executor in executors:
        effects = driven.die(executor, signal=SIGKILL)
        assert sent(effects, ExecutorExited) == [ExecutorExited(executor, 0, SIGKILL)]
        assert len(spawned(effects)) == 1


def test_EX_5_executors_killed_soon_after_their_start_are_started_within_two_seconds_for_ever() -> None:
    driven = Driven()
    (executor,) = driven.start(1)
    for _ in range(50):
        driven.now_s += 0.05
        effects = driven.die(executor, signal=SIGKILL)
        assert sent(effects, ExecutorsUnavailable) == []
        (executor,) = spawned(effects + driven.at(driven.now_s + 2.0))
        driven.spawn(executor)


def test_an_executor_that_had_registered_may_die_young_as_often_as_it_likes() -> None:
    driven = Driven()
    (executor,) = driven.start(1)
    for _ in range(20):
        driven.now_s += 0.01
        (executor,) = spawned(driven.die(executor, status=3, registered=True))
        driven.spawn(executor)


def test_EX_12_crashes_at_start_back_off_and_are_given_up_with_the_last_words() -> None:
    driven = Driven()
    (executor,) = driven.start(1)
    starts = [driven.now_s]
    for round_ in range(SETTINGS.executor_max_crashes):
        effects = driven.die(executor, status=1, stderr=f"no module {round_}")
        if round_ < SETTINGS.executor_max_crashes - 1:
            assert sent(effects, ExecutorsUnavailable) == []
            wakeup_s = driven.core.wakeup_s()
            assert wakeup_s is not None and wakeup_s - driven.now_s <= 2.0
            while not (again := spawned(driven.at(driven.core.wakeup_s() or 0))):
                driven.event(ChildrenSeen())
            (executor,) = again
            starts.append(driven.now_s)
            driven.spawn(executor)
    assert sent(effects, ExecutorsUnavailable) == [ExecutorsUnavailable(5, "no module 4")]
    waits = [b - a for a, b in itertools.pairwise(starts)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8])
    gave_up_s = driven.now_s
    assert spawned(driven.at(gave_up_s + PAUSE_S - 0.1)) == []
    (executor,) = spawned(driven.at(gave_up_s + PAUSE_S))
    driven.spawn(executor)
    assert sent(driven.die(executor, status=1), ExecutorsUnavailable)  # one more try, not five


def test_EX_12_executors_that_crash_together_count_as_one_try() -> None:
    driven = Driven()
    executors = driven.start(8)
    for executor in executors:
        assert sent(driven.die(executor, status=1), ExecutorsUnavailable) == []
    assert len(spawned(driven.at(driven.now_s + SETTINGS.executor_restart_s))) == 8


def test_EX_12_a_start_that_succeeds_ends_the_count_for_those_of_the_last_round_too() -> None:
    driven = Driven()
    first, second = driven.start(2)
    driven.die(first, status=1)
    (third,) = spawned(driven.at(driven.now_s + 2.0))  # in the second round
    driven.spawn(third)
    driven.now_s += 1.5
    driven.die(second, status=1)  # it had run for long: the rounds are over, as check_invariants knows
    driven.now_s = driven.now_s - 1.4
    assert sent(driven.die(third, status=1), ExecutorsUnavailable) == []


def test_EX_12_a_start_that_succeeds_ends_the_count() -> None:
    driven = Driven()
    (executor,) = driven.start(1)
    for _ in range(3 * SETTINGS.executor_max_crashes):
        effects = driven.die(executor, status=1)
        assert sent(effects, ExecutorsUnavailable) == []
        (executor,) = spawned(effects + driven.at(driven.now_s + 2.0))
        driven.spawn(executor)
        driven.now_s += 1.5
        (executor,) = spawned(driven.die(executor, status=1))
        driven.spawn(executor)


def test_WK_9_a_process_that_cannot_be_forked_is_a_failed_start() -> None:
    driven = Driven()
    (executor,) = spawned(driven.tell(assignment(1)))
    effects = driven.die(executor, status=75, stderr="cannot fork")
    assert spawned(effects) == []
    assert len(spawned(driven.at(driven.now_s + 0.2))) == 1


def test_only_its_own_driver_may_have_an_executor_killed() -> None:
    driven = Driven()
    (executor,) = driven.start(1)
    assert KillProcess(executor, SIGKILL) not in driven.tell(KillExecutor(executor, "x"), OTHER)
    assert KillProcess(executor, SIGKILL) in driven.tell(KillExecutor(executor, "x"))


# --- Beats -------------------------------------------------------------------------------------------


def test_beats_vouch_for_the_children_to_driver_and_manager() -> None:
    driven = Driven(has_manager=True)
    driven.tell(WorkerRegistered(), MANAGER)
    (executor,) = spawned(driven.tell(assignment(1), MANAGER))
    effects = driven.at(driven.now_s + 1.0)
    assert effects.count(Measure()) == 1
    rows = ((executor, 1.5, False), (Incarnation("executor-x"), 1.0, False))
    assert driven.event(ChildrenSeen(rows, 99)) == [
        Send(DRIVER, WorkerBeat(1, rows[:1], 99)),
        Send(MANAGER, WorkerBeat(1, (), 99)),
    ]


# --- The end of an application -------------------------------------------------------------------------


def test_release_ends_executors_softly_then_hard_and_drops_stores_when_all_are_reaped() -> None:
    driven = Driven(has_manager=True)
    first, second = spawned(driven.tell(assignment(2), MANAGER))
    driven.spawn(first)
    effects = driven.tell(ReleaseApp(APP), MANAGER)
    assert effects == [KillProcess(first, SIGHUP), KillProcess(second, SIGHUP)]
    assert spawned(driven.die(first, signal=SIGHUP)) == []
    assert KillProcess(second, SIGKILL) in driven.at(driven.now_s + TERM_GRACE_S)
    effects = driven.die(second, signal=SIGKILL)
    assert effects[-3:] == [
        DropStores(app=APP),
        Send(MANAGER, AppReleased(APP, ME, DRIVER)),
        ClosePeer(DRIVER, fence=False, why="its application was released"),
    ]
    assert driven.tell(ReleaseApp(APP), MANAGER) == [Send(MANAGER, AppReleased(APP, ME))]


def test_a_process_that_comes_up_after_its_release_is_killed() -> None:
    driven = Driven(has_manager=True)
    (executor,) = spawned(driven.tell(assignment(1), MANAGER))
    driven.tell(ReleaseApp(APP), MANAGER)
    assert KillProcess(executor, SIGKILL) in driven.spawn(executor)


@pytest.mark.parametrize("gone", [PeerGone(DRIVER, "its process has ended"), Received(DRIVER, Fenced("x"))])
def test_executors_and_stores_of_a_driver_that_is_gone_go_at_once(gone: Event) -> None:
    driven = Driven(has_manager=True)
    (executor,) = spawned(driven.tell(assignment(1), MANAGER))
    assert KillProcess(executor, SIGHUP) in driven.event(gone)
    assert DropStores(app=APP) in driven.die(executor, signal=SIGHUP)


def test_dropped_shuffles_are_dropped_from_the_stores() -> None:
    driven = Driven()
    driven.start(1)
    assert driven.tell(DropShuffles((Fingerprint(b"f" * 16),))) == [
        DropStores(fingerprints=(b"f" * 16,), owner=DRIVER)
    ]


def test_CM_1_a_manager_that_is_gone_disturbs_nothing_that_runs() -> None:
    driven = Driven(has_manager=True)
    driven.tell(assignment(1), MANAGER)
    effects = driven.event(PeerGone(MANAGER, "killed"))
    assert not any(isinstance(effect, KillProcess | Exit) for effect in effects)


def test_CM_1_another_manager_is_told_what_the_one_before_had_granted() -> None:
    driven = Driven(has_manager=True)
    driven.event(Inherited())
    driven.at(driven.now_s)
    driven.tell(WorkerRegistered(), MANAGER)
    driven.tell(assignment(2), MANAGER)
    other = Incarnation("manager-2")
    effects = driven.event(GranterMoved(other, "ipc://m"))
    said = [e.message for e in effects if isinstance(e, Send) and e.to == other]
    assert [message.held for message in said if isinstance(message, RegisterWorker)] == [
        ((APP, DRIVER, 2, 1, 1 << 30),)
    ]
    assert Connect(other, "ipc://m") in effects
    assert not any(isinstance(effect, KillProcess | Exit) for effect in effects)
    driven.tell(WorkerRegistered(), other)
    assert any(isinstance(effect, Exit) for effect in driven.tell(Fenced("lost"), other))


def test_a_worker_that_its_manager_has_given_up_ends() -> None:
    driven = Driven(has_manager=True)
    driven.tell(assignment(1), MANAGER)
    assert any(isinstance(effect, Exit) for effect in driven.tell(Fenced("lost"), MANAGER))
    assert driven.core.wakeup_s() is None


def test_the_same_events_give_the_same_names() -> None:
    assert Driven().start(3) == Driven().start(3)


# --- Leaving in order ---


def exits(effects: list[Effect]) -> list[int]:
    return [effect.status for effect in effects if isinstance(effect, Exit)]


@pytest.mark.parametrize("asked", [LeaveWanted(30.0), Received(DRIVER, Leave(30.0))])
def test_EX_13_a_worker_asked_to_leave_tells_its_driver_and_goes_when_that_says_so(asked: Event) -> None:
    driven = Driven(has_manager=True)
    (executor,) = spawned(driven.tell(assignment(1), MANAGER))
    driven.spawn(executor)
    effects = driven.event(asked)
    assert [type(message) for message in sent(effects, Leaving)] == [Leaving] and not exits(effects)
    assert driven.event(LeaveWanted(99.0)) == [], "the first deadline stands"
    driven.die(executor, signal=SIGKILL)
    assert spawned(driven.at(driven.now_s + 10.0)) == [], "nobody is started any more"
    assert exits(driven.tell(MayLeave(), OTHER)) == [], "another driver cannot say so"
    assert exits(driven.tell(MayLeave())) == [EXIT_LEFT]


def test_EX_13_a_worker_leaves_at_its_deadline_at_the_latest_and_at_once_when_nobody_needs_it() -> None:
    driven = Driven(has_manager=True)
    driven.tell(assignment(1), MANAGER)
    driven.event(LeaveWanted(30.0))
    assert exits(driven.at(driven.now_s + 29.0)) == []
    assert exits(driven.at(driven.now_s + 2.0)) == [EXIT_LEFT]
    assert exits(Driven(has_manager=True).event(LeaveWanted(30.0))) == [EXIT_LEFT]


# --- What was here before ------------------------------------------------------------------------


def test_WK_1_executors_of_its_driver_are_adopted_and_others_ended() -> None:
    driven = Driven()
    mine, another = Incarnation("executor-a"), Incarnation("executor-b")
    driven.event(Inherited(((mine, DRIVER), (another, OTHER)), (), ("executor-a", "executor-z")))
    effects = driven.tell(assignment(2))
    assert sent(effects, StoresServed) == [StoresServed((mine,), (), ("executor-a", "executor-z"))]
    hello = next(
        i for i, e in enumerate(effects) if isinstance(e, Send) and isinstance(e.message, WorkerHello)
    )
    served = next(
        i for i, e in enumerate(effects) if isinstance(e, Send) and isinstance(e.message, StoresServed)
    )
    assert hello < served
    assert KillProcess(another, SIGKILL) in effects and KillProcess(mine, SIGKILL) not in effects
    assert len(spawned(effects)) == 1, "one of the two is there already"
    (end,) = sent(driven.die(mine, status=-1, registered=True), ExecutorExited)
    assert isinstance(end, ExecutorExited) and end.executor == mine
    assert driven.tell(assignment(2)) == [], "told once"


def test_two_applications_each_get_their_own_back_and_nothing_of_the_other() -> None:
    driven = Driven(has_manager=True)
    mine, another, other_app = Incarnation("executor-a"), Incarnation("executor-b"), AppId("app-2")
    driven.event(Inherited(((mine, DRIVER),), (), ("executor-a",), app=APP, more=True))
    assert driven.at(driven.now_s) == [], "nobody is told of us before all is known"
    last = driven.event(Inherited(((another, OTHER),), (), ("executor-b", "executor-c"), app=other_app))
    assert sent(last, RegisterWorker)
    effects = driven.tell(assignment(1), MANAGER)
    assert sent(effects, StoresServed) == [StoresServed((mine,), (), ("executor-a",))]
    assert not [effect for effect in effects if isinstance(effect, KillProcess | SpawnExecutor)]
    theirs = replace(assignment(1), app=other_app, driver=OTHER)
    effects = driven.tell(theirs, MANAGER)
    assert sent(effects, StoresServed) == [StoresServed((another,), (), ("executor-b", "executor-c"))]
    assert not [effect for effect in effects if isinstance(effect, KillProcess | SpawnExecutor)]
    driven.tell(ReleaseApp(APP), MANAGER)
    effects = driven.die(mine, signal=SIGHUP)
    assert [effect.app for effect in effects if isinstance(effect, DropStores)] == [APP]
    assert driven.tell(DropShuffles((Fingerprint(b"f" * 16),)), OTHER) == [
        DropStores(fingerprints=(b"f" * 16,), owner=OTHER)
    ]


def test_EX_4_an_heirloom_that_ends_before_its_driver_comes_is_not_adopted_and_its_outputs_are() -> None:
    driven = Driven(has_manager=True)
    mine = Incarnation("executor-a")
    driven.event(Inherited(((mine, DRIVER),), (), ("executor-a",), app=APP))
    where = ShuffleId(1), Generation(0), 0, HostId("host-0"), "executor-a", 0
    status = MapStatus(*where, TaskId(1), 1, 1, 1)
    driven.event(ChildExited(mine, -1, 0, "", (status,), True))
    effects = driven.tell(assignment(1), MANAGER)
    assert sent(effects, StoresServed) == [StoresServed((), (status,), ("executor-a",))]
    assert len(spawned(effects)) == 1


# --- Drivers that were submitted ---


def test_a_submitted_driver_is_run_once_told_of_and_reported_to_another_manager() -> None:
    driven = Driven(has_manager=True)
    driven.event(Inherited())
    driven.tell(WorkerRegistered(), MANAGER)
    program = SubmitDriver("submitted-1", "a.py", (("a.py", b"x"),), supervise=True)
    other = replace(program, driver="submitted-2", supervise=False)
    assert driven.tell(program, OTHER) == [Note("message_not_for_worker", {"kind": "SubmitDriver"})]
    assert driven.tell(program, MANAGER) == [RunDriver(program)] and driven.tell(program, MANAGER) == []
    driven.tell(other, MANAGER)
    assert sent(driven.event(DriverRan("submitted-1", "RUNNING", "pid 5")), DriverChanged) == [
        DriverChanged("submitted-1", "RUNNING", "pid 5")
    ]
    another = Incarnation("manager-2")
    (register,) = sent(driven.event(GranterMoved(another, "ipc://m")), RegisterWorker)
    assert isinstance(register, RegisterWorker)
    assert register.drivers == (program, replace(other, files=())), "only who may start again is sent whole"
    assert sent(driven.event(DriverRan("submitted-2", "FAILED", "x")), DriverChanged) == [], "nobody is there"
    assert sent(driven.tell(WorkerRegistered(), another), DriverChanged) == [
        DriverChanged("submitted-2", "FAILED", "x")
    ]


def test_EX_13_a_worker_that_leaves_waits_for_the_drivers_that_run_there() -> None:
    driven = Driven(has_manager=True)
    driven.tell(SubmitDriver("submitted-1", "a.py"), MANAGER)
    assert exits(driven.event(LeaveWanted(30.0))) == []
    assert exits(driven.event(DriverRan("submitted-1", "FINISHED"))) == [EXIT_LEFT]


def test_WK_1_a_driver_that_outlived_the_worker_before_is_told_of_when_this_one_registers() -> None:
    driven = Driven(has_manager=True)
    program = SubmitDriver("submitted-1", "a.py")
    assert driven.event(DriverRan("submitted-1", "RUNNING", "", program)) == []
    (register,) = sent(driven.event(Inherited()), RegisterWorker)
    assert isinstance(register, RegisterWorker) and register.drivers == (program,)
