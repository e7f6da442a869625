"""Suspects run alone, kills for memory are told apart, innocents pay for nobody (TK-5, MEM-1, EX-5)."""

import pytest

from spark_ft.protocol.messages import KillExecutor, KillTask, Leaving, UserError
from tests.builders import Launched, Lineage, Stand


def die(stand: Stand, task: Launched, **how: object) -> None:
    """The process of this attempt ends and a new one takes its place."""
    stand.start(task)
    stand.exit(task.executor, running=(task.task,), **how)  # type: ignore[arg-type]
    stand.add_executor("h0")


def neighbours(stand: Stand, task: Launched) -> set[int]:
    return {other.partition for other in stand.launched.values() if other.executor == task.executor} - {
        task.partition
    }


@pytest.mark.parametrize("how", [{"signal": 11}, {"signal": 9}, {"status": 3, "signal": 0}])
def test_TK_5_after_two_deaths_the_third_attempt_is_alone_in_a_fresh_process(how: dict[str, int]) -> None:
    lineage, stand = Lineage(), Stand(executors=2, prefetch_tasks=2)
    job = stand.submit(lineage, lineage.source(30))
    die(stand, stand.one(0), **how)
    die(stand, stand.one(0), **how)
    third = stand.one(0)
    assert stand.noted("quarantine")[0]["room"] == "ALONE"
    for _ in range(0 if how["signal"] == 9 else 5):  # with progress a SIGKILL proves nothing
        stand.succeed(next(task for task in stand.running() if task.partition != 0))
    assert neighbours(stand, third) == set()
    die(stand, third, rss_peak_bytes=70 << 20, **how)
    failure = stand.failure(job)
    name = {11: "SIGSEGV", 9: "SIGKILL", 0: "exit code 3"}[how["signal"]]
    assert failure.condition == "POISON_TASK"
    assert f"POISON_TASK(0, {name}, rss peak 70 MiB)" in failure.text
    assert stand.starts()[0] == 3 and failure.partition == 0


def test_TK_5_a_suspect_that_ends_well_in_quarantine_gives_its_executor_back() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(3))
    die(stand, stand.one(0), signal=11)
    die(stand, stand.one(0), signal=11)
    stand.run(job)
    assert stand.finished[job] is None and stand.starts() == {0: 3, 1: 1, 2: 1}


def test_TK_5_neighbours_in_one_process_are_tried_apart_and_only_the_poison_is_blamed() -> None:
    lineage, stand = Lineage(), Stand(executors=1, slots=2, max_failures=2)
    job = stand.submit(lineage, lineage.source(2))
    deaths = 0
    while job not in stand.finished:
        running = list(stand.running())
        stand.start(*running)
        if poison := next((task for task in running if task.partition == 0), None):
            stand.exit(poison.executor, status=3, signal=0, running=tuple(task.task for task in running))
            stand.add_executor("h0")
            deaths += 1
        else:
            stand.succeed(*running)
    assert deaths == 3 and stand.failure(job).partition == 0
    assert stand.failure(job).condition == "POISON_TASK"


def test_ST_10_a_process_that_ends_by_SIGBUS_costs_its_task_no_try() -> None:
    lineage, stand = Lineage(), Stand(executors=2, max_failures=1)
    job = stand.submit(lineage, lineage.source(2))
    die(stand, stand.one(0), signal=7)
    (lost,) = stand.noted("executor_lost")
    assert lost["blame"] == "executor" and "SIGBUS" in str(lost["why"])
    stand.run(job)
    assert stand.finished[job] is None and stand.starts() == {0: 2, 1: 1}


def test_EX_5_kills_of_others_at_the_same_time_keep_a_suspect_from_being_convicted() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.source(2))
    for _ in range(8):
        task = stand.one(0)
        stand.start(task)
        for id in list(stand.core.executors.live):
            stand.exit(id, running=(task.task,) if id == task.executor else ())
        for _ in range(3):
            stand.add_executor("h0")
        assert job not in stand.finished
    stand.pass_time(31.0)
    stand.run(job)
    assert stand.finished[job] is None


def test_EX_5_kills_without_end_and_without_any_progress_end_the_job() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    rounds = 0
    while job not in stand.finished and rounds < 40:
        rounds += 1
        for task in list(stand.running()):
            stand.start(task)
        for id in list(stand.core.executors.live):
            stand.exit(id)
            stand.add_executor("h0")
    assert rounds == 20 and stand.failure(job).condition == "POISON_TASK"


@pytest.mark.parametrize("by_kernel", [True, False])
def test_MEM_1_a_task_out_of_memory_gets_more_room_then_all_then_ends_the_job(by_kernel: bool) -> None:
    lineage, stand = Lineage(), Stand(executors=4, max_failures=1, executor_memory_bytes=1 << 30)
    job = stand.submit(lineage, lineage.source(400))

    def run_out(task: Launched) -> None:
        stand.start(task)
        if by_kernel:
            die(stand, task, oom=True, rss_peak_bytes=900 << 20)
        else:
            stand.end(task, UserError("MemoryError", "", "", "TASK_OUT_OF_MEMORY", rss_peak_bytes=900 << 20))

    def until_it_runs() -> Launched:
        for _ in range(60):
            found = next((task for task in stand.running() if task.partition == 0), None)
            if found:
                return found
            others = stand.running()
            if others:
                stand.succeed(others[0])
            stand.pass_time(0.5)
            for kill in stand.messages(KillExecutor):
                if kill.executor in stand.core.executors.live:
                    stand.exit(kill.executor)
                    stand.add_executor("h0")
        raise AssertionError("it never runs again")

    run_out(stand.one(0))
    second = until_it_runs()
    assert len(stand.running()) <= 2, "half of the host's executors"
    run_out(second)
    third = until_it_runs()
    assert stand.running() == [third] and job not in stand.finished, "alone on its host"
    stand.pass_time(2.0)
    assert stand.running() == [third]
    run_out(third)
    failure = stand.failure(job)
    assert failure.condition == "TASK_OUT_OF_MEMORY"
    assert "TASK_OUT_OF_MEMORY(0, rss peak 900 MiB, limit 1024 MiB)" in failure.text
    assert [note["room"] for note in stand.noted("quarantine")] == ["ROOMY", "HOST"]
    # No death has brought a fresh process: one was drained and replaced.
    replaced = [kill.why for kill in stand.messages(KillExecutor)]
    assert set(replaced) == (set() if by_kernel else {"a suspect task needs a fresh process"})


def test_MEM_1_TK_5_one_death_does_not_convict_a_task_that_is_alone_for_want_of_memory() -> None:
    """Found by the simulator: seed 9100564."""
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(1))
    for _ in range(2):
        die(stand, stand.one(0), signal=9, oom=True)
    assert stand.noted("quarantine")[-1]["room"] == "HOST"
    die(stand, stand.one(0), signal=11)
    assert job not in stand.finished
    die(stand, stand.one(0), signal=11)
    assert job not in stand.finished
    die(stand, stand.one(0), signal=11)
    assert stand.failure(job).condition == "POISON_TASK" and stand.starts() == {0: 5}


def test_MEM_1_a_task_that_gets_through_with_room_leaves_the_host_to_the_others() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(6))
    first = stand.one(0)
    stand.end(first, UserError("MemoryError", "", "", "TASK_OUT_OF_MEMORY"))
    stand.run(job)
    assert stand.finished[job] is None and stand.starts() == {0: 2, **dict.fromkeys(range(1, 6), 1)}


def test_TK_5_the_twin_of_a_suspect_is_killed_before_it_ends_a_process_outside() -> None:
    lineage = Lineage()
    stand = Stand(executors=2, speculation=True, stall_timeout_s=1.0)
    stand.submit(lineage, lineage.source(1))
    die(stand, stand.one(0), signal=11)
    first = stand.one(0)
    stand.start(first)
    stand.pass_time(2.0, stuck=[first.executor])
    twin = next(task for task in stand.running() if task.launch.speculative)
    stand.start(twin)
    stand.exit(first.executor, signal=11)
    assert twin.task in {kill.task for kill in stand.messages(KillTask)}
    stand.add_executor("h0")
    assert [note["room"] for note in stand.noted("quarantine")] == ["ALONE"]


def test_MEM_1_EX_13_a_task_with_room_around_it_gets_no_twin_when_its_executor_is_to_leave() -> None:
    lineage, stand = Lineage(), Stand(executors=4, speculation=True)
    stand.submit(lineage, lineage.source(1))
    stand.end(stand.one(0), UserError("MemoryError", "", "", "TASK_OUT_OF_MEMORY"))
    again = stand.one(0)
    stand.start(again)
    stand.tell(again.executor, Leaving(4.0))
    stand.pass_time(3.0)
    assert stand.running() == [again] and [n["room"] for n in stand.noted("quarantine")] == ["ROOMY"]


def test_MEM_1_a_task_that_waits_for_room_is_not_passed_by_for_as_long_as_there_is_work() -> None:
    """Its host is cleared for it: what is busy there is given nothing more (L9)."""
    lineage, stand = Lineage(), Stand(executors=1, slots=2)
    stand.submit(lineage, lineage.source(1))
    younger = stand.submit(lineage, lineage.source(100))
    stand.end(stand.running()[0], UserError("MemoryError", "", "", "TASK_OUT_OF_MEMORY"))
    passed_by = 0
    while passed_by < 100 and not stand.noted("quarantine"):
        stand.succeed(stand.running(younger)[0])
        passed_by += 1
    assert passed_by < 10
