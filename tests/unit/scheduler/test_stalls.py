"""Tasks that do not get on (EX-9, TK-6), slow and stopped executors (EX-10)."""

import pytest

from spark_ft.ids import Incarnation
from spark_ft.protocol.messages import (
    DumpStacks,
    ExecutorBeat,
    ExecutorStacks,
    ExecutorStopped,
    Killed,
    KillTask,
    TaskProgress,
)
from tests.builders import Launched, Lineage, Stand


def stalling(executors: int = 2, **settings: object) -> tuple[Stand, Launched]:
    """A job whose one task has begun and does not get on from now on."""
    lineage, stand = Lineage(), Stand(executors, **{"stall_timeout_s": 5.0, "speculation": True, **settings})
    stand.submit(lineage, lineage.source(1))
    task = stand.one(0)
    stand.start(task)
    stand.pass_time(0.5, stuck=[task.executor])
    return stand, task


def test_EX_9_a_task_without_progress_gets_its_stack_noted_and_a_twin() -> None:
    stand, task = stalling()
    stand.pass_time(4.0, stuck=[task.executor])
    assert not stand.noted("task_stalled")
    stand.pass_time(2.0, stuck=[task.executor])
    (stalled,) = stand.noted("task_stalled")
    assert (stalled["task"], stalled["executor"]) == (task.task, task.executor)
    assert stand.messages(DumpStacks, "worker-h0") == [DumpStacks(task.executor)]
    stand.tell("worker-h0", ExecutorStacks(task.executor, 'File "user.py", line 3 in wait'))
    (stacks,) = stand.noted("executor_stacks")
    assert stacks["tasks"] == [task.task] and "line 3 in wait" in stacks["text"]
    twin = next(t for t in stand.running() if t.task != task.task)
    assert twin.launch.speculative and twin.executor != task.executor
    stand.succeed(twin)
    stand.kill_answers()
    assert stand.finished == {0: None}


def test_EX_9_after_as_long_again_a_stalled_task_is_killed_and_runs_elsewhere_blamed_on_nobody() -> None:
    stand, task = stalling(speculation=False, max_failures=1)
    stand.pass_time(11.0, stuck=[task.executor])
    assert [kill.task for kill in stand.messages(KillTask, task.executor)] == [task.task]
    stand.kill_answers()
    second = stand.one(0)
    assert second.executor != task.executor
    stand.pass_time(15.0, stuck=[second.executor])
    assert len(stand.messages(KillTask)) == 1, "its patience has doubled"
    stand.pass_time(6.0, stuck=[second.executor])
    assert len(stand.messages(KillTask)) == 2 and not stand.finished


@pytest.mark.parametrize(
    "moved",
    [
        TaskProgress(Incarnation("x"), 1, 0, 0.0),  # type: ignore[arg-type]  # the task is put in below
        TaskProgress(Incarnation("x"), 0, 1, 0.0),  # type: ignore[arg-type]
        TaskProgress(Incarnation("x"), 0, 0, 0.01),  # type: ignore[arg-type]
    ],
    ids=["records", "bytes", "cpu"],
)
def test_EX_9_records_bytes_or_cpu_are_progress(moved: TaskProgress) -> None:
    stand, task = stalling()
    for step in range(1, 40):
        progress = TaskProgress(
            task.task, moved.record_count * step, moved.byte_count * step, moved.cpu_s * step
        )
        stand.tell(task.executor, ExecutorBeat(step, (progress,)), 0.5)
    assert not stand.noted("task_stalled")


def test_EX_9_time_without_beats_is_no_time_of_a_stall() -> None:
    stand, task = stalling(executors=1)
    stand.pass_time(30.0, silent=[task.executor], cpu_s={task.executor: 0.4})
    assert task.executor in stand.core.executors.live
    stand.pass_time(3.0, stuck=[task.executor])
    assert not stand.noted("task_stalled")
    stand.pass_time(3.0, stuck=[task.executor])
    assert stand.noted("task_stalled")


def test_EX_9_zero_switches_the_look_for_stalls_off() -> None:
    stand, task = stalling(stall_timeout_s=0.0)
    stand.pass_time(600.0, stuck=[task.executor])
    assert not stand.noted("task_stalled") and not stand.messages(KillTask)


def test_TK_6_a_task_over_its_time_is_tried_elsewhere_and_ends_the_job_with_its_stack() -> None:
    lineage, stand = Lineage(), Stand(2, task_timeout_s=3.0, max_failures=2)
    job = stand.submit(lineage, lineage.source(1))
    first = stand.one(0)
    stand.start(first)
    stand.pass_time(3.0)
    assert stand.messages(DumpStacks) == [DumpStacks(first.executor)] and not stand.messages(KillTask)
    stand.tell("worker-h0", ExecutorStacks(first.executor, "stack one"))
    assert [kill.task for kill in stand.messages(KillTask)] == [first.task]
    stand.kill_answers()
    second = stand.one(0)
    assert second.executor != first.executor
    stand.start(second)
    stand.pass_time(6.0)  # nobody says where it stands
    failure = stand.failure(job)
    assert failure.condition == "TASK_TIMEOUT" and "longer than spark.ft.task.timeout (3 s)" in failure.text
    assert "no stack could be had" in failure.traceback and "stack one" in failure.other_tracebacks[0]
    assert [attempt.outcome for attempt in failure.attempts] == ["TimedOut", "TimedOut"]


def test_TK_6_a_task_that_ends_while_its_stack_is_asked_for_is_not_blamed() -> None:
    lineage, stand = Lineage(), Stand(1, task_timeout_s=3.0, max_failures=1)
    job = stand.submit(lineage, lineage.source(1))
    task = stand.one(0)
    stand.start(task)
    stand.pass_time(3.0)
    stand.succeed(task)
    stand.tell("worker-h0", ExecutorStacks(task.executor, "idle"))
    assert stand.finished[job] is None


def test_EX_10_a_task_of_a_stopped_executor_starts_elsewhere_after_a_second_and_its_queue_at_once() -> None:
    lineage, stand = Lineage(), Stand(executors=2, speculation=True, prefetch_tasks=1)
    job = stand.submit(lineage, lineage.source(4))
    stand.start(stand.one(0), stand.one(1))
    mine = [task for task in stand.running() if task.executor == "e0"]
    assert len(mine) == 2, "one runs there and one waits there"
    stand.tell("worker-h0", ExecutorStopped(Incarnation("e0"), True))
    stand.succeed(*[task for task in stand.running() if task.executor == "e1"])
    stand.pass_time(0.5)
    assert not stand.noted("speculation"), "it may be over in a moment"
    for _ in range(2):
        stand.pass_time(1.0)
        stand.succeed(*[task for task in stand.running() if task.executor == "e1"])
    assert stand.finished[job] is None
    assert {note["partition"] for note in stand.noted("speculation")} == {mine[0].partition}
    assert stand.starts() == {p: 2 if p in {task.partition for task in mine} else 1 for p in range(4)}


def test_EX_10_an_executor_that_goes_on_keeps_its_tasks() -> None:
    lineage, stand = Lineage(), Stand(executors=2, speculation=True)
    stand.submit(lineage, lineage.source(2))
    stand.start(stand.one(0), stand.one(1))
    stopped = stand.one(0).executor
    stand.tell("worker-h0", ExecutorStopped(stopped, True))
    stand.pass_time(2.0, silent=[stopped])
    stand.tell("worker-h0", ExecutorStopped(stopped, False))
    stand.pass_time(2.0, stuck=[stopped])
    stand.succeed(stand.one(1))
    stand.pass_time(5.0, stuck=[stopped])
    assert not stand.noted("speculation")


def test_EX_9_a_task_that_gets_on_again_needs_no_twin() -> None:
    stand, task = stalling(executors=1)
    stand.pass_time(6.0, stuck=[task.executor])
    assert stand.noted("task_stalled")
    stand.pass_time(2.0)
    stand.add_executor("h0")
    stand.pass_time(2.0)
    assert not stand.noted("speculation")


def slow_twice(stand: Stand, lineage: Lineage, slow: str) -> None:
    """Two stages in which twins elsewhere outrun what ``slow`` runs."""
    for _ in range(2):
        job = stand.submit(lineage, lineage.source(12))
        late = next(task for task in stand.running() if task.executor == slow)
        stand.start(late)
        while job not in stand.finished:
            for task in [task for task in stand.running() if task.executor != slow]:
                stand.start(task)
                stand.pass_time(0.5)
                stand.succeed(task)
            stand.pass_time(0.5)
            for kill in stand.messages(KillTask, slow):
                if kill.queued_only and kill.task in stand.open:
                    stand.end(stand.open[kill.task], Killed("asked back"))
        stand.kill_answers()


def test_EX_10_an_executor_that_was_slow_twice_comes_last_and_is_not_killed() -> None:
    lineage, stand = Lineage(), Stand(executors=3, speculation=True, prefetch_tasks=1)
    slow_twice(stand, lineage, "e0")
    assert list(stand.core.executors.slow) == ["e0"] and "e0" in stand.core.executors.live
    stand.submit(lineage, lineage.source(2))
    assert {task.executor for task in stand.running()} == {"e1", "e2"}
    stand.succeed(*stand.running())
    stand.submit(lineage, lineage.source(9))
    assert [task.executor for task in stand.running()].count("e0") == 1, "nothing waits behind what it runs"


def test_EX_10_an_executor_that_keeps_pace_again_is_slow_no_more() -> None:
    lineage, stand = Lineage(), Stand(executors=3, speculation=True)
    slow_twice(stand, lineage, "e0")
    job = stand.submit(lineage, lineage.source(40))
    while job not in stand.finished:
        for task in stand.running():
            stand.start(task)
        stand.pass_time(0.5)
        stand.succeed(*stand.running())
    assert not stand.core.executors.slow
