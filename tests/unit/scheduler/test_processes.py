"""Executors and workers die, stop, lie low, come back (rows EX, WK, CLK, CM)."""

from dataclasses import replace
from typing import Any

import pytest

from spark_ft.ids import HostId, Incarnation, JobId, NodeId, ShuffleId, TaskId
from spark_ft.protocol.effects import ClosePeer, EndWorker, PeerGone, Released, ResourcesGranted
from spark_ft.protocol.messages import (
    DropShuffles,
    ExecutorHello,
    ExecutorStopped,
    ExecutorsUnavailable,
    ExecutorWelcome,
    Fenced,
    Hosts,
    Killed,
    KillExecutor,
    KillTask,
    MapStatus,
    StoresServed,
    TaskEnd,
    TaskUpdates,
    WorkerBeat,
    WorkerHello,
    WorkerLost,
)
from tests.builders import Lineage, Stand, in_memory


def test_EX_1_a_killed_executor_costs_only_what_it_was_running() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(4))
    stand.start(*stand.running())
    stand.exit("e0")
    stand.add_executor("h0")
    stand.run(job)
    assert stand.finished[job] is None
    assert stand.starts() == {0: 2, 1: 1, 2: 1, 3: 1}


def test_EX_1_attempts_that_only_waited_in_a_queue_run_again_and_nobody_is_blamed() -> None:
    lineage, stand = Lineage(), Stand(executors=1, prefetch_tasks=1, max_failures=1)
    job = stand.submit(lineage, lineage.source(2))
    stand.start(stand.one(0))
    stand.exit("e0", status=0, signal=9)
    stand.add_executor("h0")
    stand.run(job)
    assert stand.finished[job] is None
    ends = {end["partition"]: end["blame"] for end in stand.noted("task_end")[:2]}
    assert ends == {0: "executor", 1: "system"}


def test_EX_2_map_outputs_survive_their_executor() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    reduced = lineage.reduce(lineage.source(4), 2)
    job = stand.submit(lineage, reduced)
    while stand.running()[0].is_map:
        stand.succeed(stand.running()[0])
    stand.exit("e0")
    stand.exit("e1")
    stand.add_executor("h0")
    stand.run(job)
    assert stand.starts(lineage.nodes[reduced].shuffles[0]) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_EX_4_an_output_committed_but_not_reported_is_adopted() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(1), 1)
    shuffle = lineage.nodes[reduced].shuffles[0]
    job = stand.submit(lineage, reduced)
    task = stand.one(0)
    stand.start(task)
    stand.exit("e0", outputs=[stand.status(task, accums=((7, b"x"),))])
    stand.add_executor("h0")
    stand.run(job)
    assert stand.starts(shuffle) == {0: 1}
    assert stand.accums == [((7, b"x"),)]


def test_EX_4_outputs_of_attempts_that_no_longer_count_are_not_adopted() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(1), 1)
    job = stand.submit(lineage, reduced)
    old = stand.one(0)
    stand.cancel(job)
    stand.exit("e0", outputs=[stand.status(old)])
    assert not stand.core.outputs[lineage.nodes[reduced].shuffles[0]].complete


def test_EX_5_kills_with_progress_between_never_end_a_job() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(12))
    victim = 0
    for _ in range(10):
        task = stand.one(victim)
        stand.start(task)
        other = next(t for t in stand.running() if t.partition != victim)
        stand.succeed(other)
        stand.exit(task.executor)
        stand.add_executor("h0")
    stand.run(job)
    assert stand.finished[job] is None and stand.starts()[victim] == 11


def test_EX_5_a_task_whose_process_is_killed_again_and_again_without_progress_is_poison() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(1))
    for _ in range(3):
        assert job not in stand.finished
        stand.start(stand.one(0))
        stand.exit(stand.one(0).executor)
        stand.add_executor("h0")
    failure = stand.failure(job)
    assert failure.condition == "POISON_TASK" and "POISON_TASK(0, SIGKILL, rss" in failure.text
    assert len(failure.attempts) == 3


def test_TK_5_a_segfault_is_blamed_on_the_task_and_three_processes_are_the_most_it_costs() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(8))
    deaths = 0
    while job not in stand.finished:
        task = stand.one(0)
        stand.start(task)
        for other in [t for t in stand.running() if t.partition != 0]:
            stand.succeed(other)
        stand.exit(task.executor, signal=11)
        stand.add_executor("h0")
        deaths += 1
    assert deaths == 3 and stand.failure(job).condition == "POISON_TASK"


def test_TK_4_an_exit_code_under_a_task_is_a_failure_of_the_task() -> None:
    lineage, stand = Lineage(), Stand(executors=1, max_failures=1)
    job = stand.submit(lineage, lineage.source(1))
    stand.start(stand.one(0))
    stand.exit("e0", status=0, signal=0)
    assert stand.failure(job).condition == "TASK_FAILED"
    assert "executor process ended with exit code 0" in stand.failure(job).text


def test_TK_4_the_task_that_ran_is_blamed_though_word_of_its_start_died_with_the_process() -> None:
    lineage, stand = Lineage(), Stand(executors=1, prefetch_tasks=2, max_failures=1)
    job = stand.submit(lineage, lineage.source(3))
    stand.start(stand.one(0))
    stand.exit("e0", status=0, signal=0, running=(stand.one(1).task,))
    assert stand.failure(job).partition == 1
    ends = {end["partition"]: end["blame"] for end in stand.noted("task_end")}
    assert ends == {0: "system", 1: "task", 2: "system"}
    assert [start["partition"] for start in stand.noted("task_start")] == [0, 1]


def test_TK_4_an_executor_that_dies_between_two_tasks_is_nobodys_fault() -> None:
    lineage, stand = Lineage(), Stand(executors=1, max_failures=1)
    job = stand.submit(lineage, lineage.source(1))
    stand.start(stand.one(0))
    stand.exit("e0", status=3, signal=0, running=())
    stand.add_executor("h0")
    stand.run(job)
    assert stand.finished[job] is None


def test_an_executor_that_dies_idle_is_blamed_on_nobody() -> None:
    stand = Stand(executors=1)
    stand.exit("e0", signal=11)
    (lost,) = stand.noted("executor_lost")
    assert lost["blame"] == "" and lost["signal"] == 11


def test_EX_7_a_zombie_changes_nothing() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    zombie = stand.one(0)
    stand.start(*stand.running())
    stand.pass_time(11.0, silent=["e0"])
    assert zombie.executor in stand.fenced
    assert [kill.executor for kill in stand.messages(KillExecutor)] == ["e0"]
    (lost,) = stand.noted("executor_lost")
    assert stand.settings.lease_s < lost["silent_s"] < stand.settings.lost_after_s, "S30, D1"
    effects = stand.tell("e0", TaskUpdates((), (TaskEnd(zombie.task, stand.success(zombie)),)))
    assert [type(effect).__name__ for effect in effects] == ["Note"]
    del stand.open[zombie.task]
    stand.succeed(stand.one(1))
    stand.run(job)
    assert stand.finished[job] is None


def test_EX_7_the_late_exit_of_a_fenced_executor_adopts_nothing() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(1), 1)
    stand.submit(lineage, reduced)
    task = stand.one(0)
    stand.pass_time(11.0, silent=["e0"])
    stand.exit("e0", outputs=[stand.status(task)])
    assert not stand.core.outputs[lineage.nodes[reduced].shuffles[0]].complete


def test_EX_8_the_first_success_wins_and_counts_once() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    task = stand.one(0)
    stand.succeed(task, accums=((1, b"a"),))
    stand.tell(task.executor, TaskUpdates((), (TaskEnd(task.task, stand.success(task), ((1, b"a"),)),)))
    assert stand.kinds()["stale_task_end"] == 1
    stand.run(job)
    assert stand.accums == [((1, b"a"),)]


def test_an_end_told_by_another_executor_changes_nothing() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    stand.submit(lineage, lineage.source(1))
    task = stand.one(0)
    stand.tell("e1", TaskUpdates((), (TaskEnd(task.task, stand.success(task)),)))
    assert stand.kinds()["stale_task_end"] == 1 and not stand.finished


def test_EX_9_missing_beats_with_growing_cpu_time_are_busy_not_dead() -> None:
    stand = Stand(executors=1)
    stand.pass_time(60.0, silent=["e0"], cpu_s={"e0": 0.4})
    assert "e0" in stand.core.executors.live
    stand.pass_time(11.0, silent=["e0"])
    assert "e0" not in stand.core.executors.live


def test_a_stopped_executor_gets_nothing_new_and_is_lost_after_a_while() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    stand.tell("worker-h0", ExecutorStopped(Incarnation("e0"), True))
    stand.submit(lineage, lineage.source(1))
    assert not stand.running()
    stand.tell("worker-h0", ExecutorStopped(Incarnation("e0"), False))
    assert stand.running()
    stand.tell("worker-h0", ExecutorStopped(Incarnation("e0"), True))
    stand.pass_time(11.0, silent=["e0"])
    assert stand.noted("executor_lost")[0]["why"] == "it was stopped for too long"


def test_S_30_an_executor_that_is_heard_goes_on_though_its_worker_could_not_say_so() -> None:
    stand = Stand(executors=1)
    stand.tell("worker-h0", ExecutorStopped(Incarnation("e0"), True))
    for second in range(13):
        # Its worker was stopped too, before it could tell that e0 goes on; it only gets one word out.
        stand.pass_time(1.0, silent=["worker-h0"])
        stand.beat(Incarnation("e0"))
        if second == 7:
            stand.tell("worker-h0", WorkerBeat(0, ((Incarnation("e0"), 0.0, True),)))
    assert not stand.noted("executor_lost"), "its beats are answered, so its lease holds"


def test_EX_11_an_executor_of_other_versions_is_refused_by_name() -> None:
    stand = Stand(executors=0)
    hello = ExecutorHello(Incarnation("e9"), Incarnation("worker-h0"), HostId("h0"), 7, 1, {"wire": "2"})
    stand.tell("e9", hello)
    (fenced,) = stand.messages(Fenced, "e9")
    assert "EXECUTOR_VERSION_MISMATCH: wire is 2 there and 1 here" in fenced.why
    assert "e9" not in stand.core.executors.live


def test_EX_12_executors_that_crash_at_every_start_end_the_jobs_with_their_last_words() -> None:
    lineage, stand = Lineage(), Stand(executors=0)
    job = stand.submit(lineage, lineage.source(1))
    stand.tell("worker-h0", ExecutorsUnavailable(5, "no module named x"))
    assert stand.failure(job).condition == "EXECUTOR_CRASH_LOOP"
    assert "no module named x" in stand.failure(job).text
    late = stand.submit(lineage, lineage.source(1))
    assert stand.failure(late).condition == "EXECUTOR_CRASH_LOOP"
    stand.add_executor("h0")
    well = stand.submit(lineage, lineage.source(1))
    stand.run(well)
    assert stand.finished[well] is None


def test_EX_15_an_attempt_that_is_deaf_to_its_kill_costs_its_process_after_five_seconds() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(1))
    task = stand.one(0)
    stand.start(task)
    stand.cancel(job)
    stand.pass_time(4.0)
    assert not stand.messages(KillExecutor)
    stand.pass_time(2.0)
    assert [kill.executor for kill in stand.messages(KillExecutor)] == [task.executor]
    stand.exit(task.executor)
    assert stand.noted("task_end")[-1]["blame"] == "system"
    stand.core.assert_idle()


def test_EX_15_a_kill_that_is_answered_costs_only_the_attempt() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(1))
    stand.cancel(job)
    stand.kill_answers()
    stand.pass_time(10.0)
    assert not stand.messages(KillExecutor) and len(stand.messages(KillTask)) == 1
    stand.core.assert_idle()


def test_a_hello_told_again_changes_nothing_and_is_welcomed_again() -> None:
    stand = Stand(executors=1)
    before = stand.core.executors.live["e0"]
    stand.tell("e0", ExecutorHello(Incarnation("e0"), Incarnation("worker-h0"), HostId("h0"), 7, 1, {}))
    assert stand.core.executors.live["e0"] is before and stand.kinds()["executor_added"] == 1


def test_a_hello_after_the_word_of_its_own_exit_finds_the_door_closed() -> None:
    stand = Stand(executors=0)
    stand.host_of[Incarnation("e0")] = HostId("h0")
    stand.exit("e0")
    stand.add_executor("h0", name="e0")
    assert "e0" not in stand.core.executors.live


def test_a_lost_link_waits_for_the_word_of_the_worker() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(1), 1)
    stand.submit(lineage, reduced)
    task = stand.one(0)
    stand.do(PeerGone(Incarnation("e0"), "closed"))
    assert "e0" in stand.core.executors.live
    stand.exit("e0", outputs=[stand.status(task)])
    assert stand.core.outputs[lineage.nodes[reduced].shuffles[0]].complete


def test_a_process_whose_link_is_lost_and_whose_exit_is_never_told_is_killed() -> None:
    stand = Stand(executors=1)
    stand.do(PeerGone(Incarnation("e0"), "closed"))
    stand.pass_time(3.0)
    assert [kill.executor for kill in stand.messages(KillExecutor)] == ["e0"]


@pytest.mark.parametrize("heir", [True, False], ids=["an heir finds nothing", "nobody comes"])
@pytest.mark.parametrize("how", ["told by the manager", "link lost", "silent"])
def test_WK_2_a_lost_host_is_planned_at_once_for_all_shuffles(how: str, heir: bool) -> None:
    lineage, stand = Lineage(), Stand(executors=2, hosts=2)
    first = lineage.shuffle(lineage.source(4), 4)
    second = lineage.shuffle(lineage.read(first), 4)
    target = lineage.read(second)
    job = stand.submit(lineage, target)
    while stand.running()[0].is_map:
        stand.succeed(stand.running()[0])
    on_h1 = {
        s: [o.map_index for o in stand.core.outputs[s].statuses if o is not None and o.host == "h1"]
        for s in (first, second)
    }
    assert all(on_h1.values())
    match how:
        case "told by the manager":
            stand.tell("manager-1", WorkerLost(Incarnation("worker-h1"), "gone"))
        case "link lost":
            stand.do(PeerGone(Incarnation("worker-h1"), "closed"))
        case "silent":
            stand.pass_time(11.0, silent=["worker-h1"])
    assert [end.worker for end in stand.ended_workers] == ["worker-h1"]
    if heir:
        stand.add_worker("h1", "worker-h1-again")  # on a new disk
    else:
        stand.pass_time(stand.settings.worker_grace_s + 0.5)
    lost = {(note["shuffle"], note["map"]) for note in stand.noted("output_lost")}
    assert lost == {(s, i) for s, indices in on_h1.items() for i in indices}
    for task in [t for t in stand.open.values() if t.executor == "e1"]:
        del stand.open[task.task]
    reader = next(iter(stand.open.values()))
    stand.end(reader, Killed("whatever"))  # it needs its input again: both shuffles are planned in this turn
    active = {stage.shuffle for stage in stand.core.dag.active.values()}
    assert active == {first, second, None}
    stand.run(job)
    for shuffle, indices in on_h1.items():
        assert stand.starts(shuffle) == {i: 2 if i in indices else 1 for i in range(4)}, "R2"


def mapped(stand: Stand, lineage: Lineage) -> tuple[NodeId, JobId]:
    """A job whose map stage is done, all of it on h0, and whose readers run."""
    reduced = lineage.reduce(lineage.source(4), 2)
    job = stand.submit(lineage, reduced)
    while stand.running()[0].is_map:
        stand.succeed(stand.running()[0])
    return reduced, job


def statuses(stand: Stand, shuffle: ShuffleId) -> list[MapStatus]:
    return [status for status in stand.core.outputs[shuffle].statuses if status is not None]


@pytest.mark.parametrize("loss_first", [True, False])
def test_WK_1_executors_that_outlive_their_worker_compute_on_and_are_adopted(loss_first: bool) -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    _, job = mapped(stand, lineage)
    stand.start(*stand.running())
    loss = WorkerLost(Incarnation("worker-h0"), "killed")
    served = StoresServed((Incarnation("e0"), Incarnation("e1")), (), ("e0", "e1"))
    if loss_first:
        stand.tell("manager-1", loss)
        assert not any(executor.accepting for executor in stand.core.executors.live.values())
        stand.succeed(stand.one(0))  # an orphan is still heard
        stand.pass_time(2.0)
    stand.add_worker("h0", "worker-2", served)
    if not loss_first:
        stand.tell("manager-1", loss)
    assert all(executor.accepting for executor in stand.core.executors.live.values())
    assert len(stand.noted("executor_adopted")) == 2 and not stand.noted("executor_lost")
    stand.pass_time(12.0)
    stand.run(job)
    assert stand.finished[job] is None and len(stand.launched) == 6, "R0"
    assert not stand.noted("output_lost")


def test_WK_1_one_that_did_not_outlive_it_costs_what_it_ran_and_its_last_output_is_adopted() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    reduced = lineage.reduce(lineage.source(2), 1)
    job = stand.submit(lineage, reduced)
    stand.start(*stand.running())
    dead, alive = stand.one(0), stand.one(1)
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "killed"))
    del stand.open[dead.task]
    served = StoresServed((alive.executor,), (stand.status(dead),), (dead.executor, alive.executor))
    stand.add_worker("h0", "worker-2", served)
    (lost,) = stand.noted("executor_lost")
    assert (lost["executor"], lost["blame"]) == (dead.executor, "host")
    stand.run(job)
    assert stand.starts(lineage.nodes[reduced].shuffles[0]) == {0: 1, 1: 1}, "R0: it had committed"


def test_WK_1_orphans_that_nobody_adopts_are_fenced_when_patience_ends() -> None:
    lineage, stand = Lineage(), Stand(executors=2, hosts=2)
    job = stand.submit(lineage, lineage.source(2))
    stand.start(*stand.running())
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "killed"))
    stand.pass_time(stand.settings.worker_grace_s - 0.5)
    assert "e0" in stand.core.executors.live
    stand.pass_time(1.5)
    assert Incarnation("e0") in stand.fenced
    for task in [t for t in stand.open.values() if t.executor == "e0"]:
        del stand.open[task.task]
    stand.run(job)
    assert stand.starts() == {0: 2, 1: 1}, "R1"


def test_WK_1_an_heir_is_told_to_end_what_was_given_up_meanwhile() -> None:
    stand = Stand(executors=1, hosts=1)
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "killed"))
    stand.pass_time(stand.settings.worker_grace_s + 1.0)
    assert "e0" in stand.fenced
    stand.add_worker("h0", "worker-2", StoresServed((Incarnation("e0"),), (), ("e0",)))
    assert [kill.executor for kill in stand.messages(KillExecutor, "worker-2")] == ["e0"]


def test_WK_3_outputs_that_an_heir_has_verified_are_read_and_the_others_computed_again() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    reduced, job = mapped(stand, lineage)
    (shuffle,) = lineage.nodes[reduced].shuffles
    held = statuses(stand, shuffle)
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "the host went down"))
    stand.open.clear()
    stand.add_worker("h0", "worker-2", StoresServed((), tuple(held[1:]), ("e0", "e1")))
    assert [note["map"] for note in stand.noted("output_lost")] == [0]
    stand.add_executor("h0", "worker-2")
    stand.run(job)
    assert stand.starts(shuffle) == {0: 2, 1: 1, 2: 1, 3: 1}, "R2"


def test_WK_4_an_older_copy_of_a_store_is_not_taken_for_the_one_we_know() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced, job = mapped(stand, lineage)
    (shuffle,) = lineage.nodes[reduced].shuffles
    held = statuses(stand, shuffle)
    changes: list[dict[str, Any]] = [
        {"checksum": 7},
        {"attempt": TaskId(77)},
        {"segment": 3},
        {"store": "e9"},
    ]
    old = [replace(status, **change) for status, change in zip(held, changes, strict=True)]
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "restored from a backup"))
    stand.open.clear()
    stand.add_worker("h0", "worker-2", StoresServed((), tuple(old), ("e0", "e9")))
    assert sorted(note["map"] for note in stand.noted("output_lost")) == [0, 1, 2, 3]
    stand.add_executor("h0", "worker-2")
    stand.run(job)
    assert stand.finished[job] is None


def test_an_executor_of_a_worker_that_was_given_up_is_refused() -> None:
    stand = Stand(executors=0)
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "gone"))
    stand.add_executor("h0")
    assert not stand.core.executors.live and stand.kinds()["executor_refused"] == 1


def test_CLK_4_a_stall_of_the_driver_is_nobodys_silence() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    stand.pass_time(1.0)
    stand.tick(after_s=60.0)
    assert len(stand.core.executors.live) == 2 and stand.kinds()["driver_stalled"] == 1
    stand.pass_time(stand.settings.silence_s - 0.5, silent=["e0"])
    assert len(stand.core.executors.live) == 2
    stand.run(job)


def test_CLK_4_after_a_stall_the_wakeup_is_on_the_clock_of_the_host() -> None:
    stand = Stand(executors=1)
    stand.tick(after_s=100.0)
    due_s = stand.core.wakeup_s()
    assert due_s is not None and stand.now_s <= due_s <= stand.now_s + 1.0


def test_CM_8_no_executor_for_too_long_ends_the_job_saying_what_was_asked_for() -> None:
    lineage, stand = Lineage(), Stand(executors=0, executor_instances=3)
    stand.do(ResourcesGranted(3))
    job = stand.submit(lineage, lineage.source(1))
    stand.pass_time(16.0)
    assert stand.kinds()["no_executors"] == 1 and job not in stand.finished
    stand.pass_time(50.0)
    failure = stand.failure(job)
    assert failure.condition == "NO_RESOURCES" and "asked for 3 executor(s)" in failure.text


def test_EX_6_all_executors_die_at_once_and_the_job_goes_on_when_new_ones_come() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    reduced = lineage.reduce(lineage.source(6), 3)
    job = stand.submit(lineage, reduced)
    stand.succeed(*stand.running()[:3])
    running = {task.partition for task in stand.running()}
    for executor in ("e0", "e1", "e2"):
        stand.exit(executor)
    stand.pass_time(5.0)
    stand.add_executor("h0")
    stand.run(job)
    starts = stand.starts(lineage.nodes[reduced].shuffles[0])
    assert starts == {p: 2 if p in running else 1 for p in range(6)}, "R1"


def test_executors_learn_the_addresses_of_block_servers() -> None:
    stand = Stand(executors=1)
    stand.tell("worker-h9", WorkerHello(Incarnation("worker-h9"), HostId("h9"), 1, "tcp://h9", "/h9"))
    assert stand.core.executors.addresses["h9"] == "tcp://h9"
    assert stand.messages(ExecutorWelcome, "e0")[0].hosts == {"h0": "tcp://h0"}
    assert stand.messages(Hosts, "e0")[0].hosts == {"h9": "tcp://h9"}


def test_an_executor_gets_no_task_before_its_worker_has_said_where_its_outputs_can_be_read() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    stand.add_executor("h1", name="early")
    job = stand.submit(lineage, lineage.reduce(lineage.source(8), 2))
    assert {task.executor for task in stand.running()} == {"e0"}
    stand.add_worker("h1")
    assert {task.executor for task in stand.running()} == {"e0", "early"}
    assert stand.messages(Hosts, "e0")[0].hosts == {"h1": "tcp://h1"}
    stand.run(job)


def test_a_beat_of_a_worker_about_strangers_is_harmless() -> None:
    stand = Stand(executors=1)
    stand.tell("worker-h0", WorkerBeat(1, ((Incarnation("e77"), 1.0, False),)))
    assert list(stand.core.executors.live) == ["e0"]


def test_a_fenced_executor_takes_its_memory_along_and_no_more() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    cached = lineage.persist(lineage.source(2))
    job = stand.submit(lineage, cached)
    for task in stand.running():
        stand.succeed(task, cached=(in_memory(cached, task.partition),))
    stand.exit("e0")
    assert list(stand.core.blocks.held[cached]) == [1]
    assert stand.finished[job] is None


def test_the_late_hello_of_a_worker_that_the_manager_gave_up_is_not_believed() -> None:
    stand = Stand(executors=0)
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h9"), "its cores were given to others"))
    stand.add_worker("h9")
    assert Incarnation("worker-h9") not in stand.core.executors.workers


def test_L11_who_takes_over_a_host_is_told_again_what_was_dropped_meanwhile() -> None:
    stand = Stand(executors=1, hosts=2)
    lineage = Lineage()
    shuffle, kept = (lineage.shuffle(lineage.source(2), 1) for _ in range(2))
    for each in (shuffle, kept):
        stand.run(stand.submit(lineage, lineage.read(each)))
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h0"), "killed"))
    stand.do(Released(shuffles=(shuffle,)))
    assert not stand.messages(DropShuffles, "worker-h0")
    stand.add_worker("h0", "heir", StoresServed((Incarnation("e0"),), (), ("e0",)))
    (told,) = stand.messages(DropShuffles, "heir")
    assert told.fingerprints == (lineage.shuffles[shuffle].fingerprint,), "and nothing that is needed"


def test_CM_1_a_worker_that_was_given_up_before_it_said_hello_is_told_so_and_ended() -> None:
    """Its manager may be dead by then, and would be the only one to fence it (seed 6001799)."""
    stand = Stand(executors=1)
    stranger = Incarnation("worker-late")
    effects = stand.tell("manager-1", WorkerLost(stranger, "silent"))
    assert {type(effect) for effect in effects} >= {ClosePeer, EndWorker}
    assert stranger in stand.core.executors.fenced
