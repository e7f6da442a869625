"""Gangs: all tasks of a barrier stage at once, or none (rows BR)."""

from spark_ft.ids import ShuffleId, TaskId
from spark_ft.protocol.messages import BarrierReleased, BarrierSync, HostError, KillTask, Leaving
from tests.builders import Launched, Lineage, Stand, current_generation


def call(stand: Stand, task: Launched, number: int = 1, message: str = "", kind: str = "barrier") -> None:
    stand.tell(task.executor, BarrierSync(task.task, number, kind, message))


def released(stand: Stand) -> dict[TaskId, BarrierReleased]:
    return {told.task: told for told in stand.messages(BarrierReleased)}


def map_gang(stand: Stand, maps: int = 3) -> tuple[Lineage, ShuffleId]:
    lineage = Lineage()
    shuffle = lineage.shuffle(lineage.barrier(lineage.source(maps)), 2)
    stand.submit(lineage, lineage.read(shuffle))
    return lineage, shuffle


def test_S_33_a_gang_is_launched_whole_or_not_at_all() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    assert not stand.running() and len(stand.core.executors.idle) == 2
    stand.add_executor("h0")
    assert sorted(task.partition for task in stand.running()) == [0, 1, 2]
    assert all(len(task.message.gang) == 3 for task in stand.running())
    stand.run(job)
    assert stand.finished[job] is None


def test_S_33_two_gangs_never_wait_for_each_other_and_what_comes_after_one_does_not_starve_it() -> None:
    lineage, stand = Lineage(), Stand(executors=4)
    first = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    second = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    third = stand.submit(lineage, lineage.source(8))
    assert len(stand.running()) == 3, "the free slot is kept for the second gang"
    stand.succeed(stand.one(0), stand.one(1))
    assert len(stand.running()) == 4 and stand.finished == {}, "the second gang has got its three"
    stand.run(first, second, third)


def test_S_33_a_gang_has_no_twins_and_is_not_called_stalled() -> None:
    lineage = Lineage()
    stand = Stand(executors=13, speculation=True, speculation_min_finished=1, speculation_quantile=0.1)
    job = stand.submit(lineage, lineage.barrier(lineage.source(12)))
    slow = stand.one(0)
    stand.start(*stand.running())
    stand.succeed(*[task for task in stand.running() if task is not slow])
    stand.pass_time(200.0)
    assert stand.running() == [slow] and not stand.kinds()["task_stalled"]
    stand.succeed(slow)
    assert stand.finished[job] is None


def test_EX_13_S_33_a_member_on_a_leaving_executor_has_no_twin_either() -> None:
    lineage, stand = Lineage(), Stand(executors=3, speculation=True)
    job = stand.submit(lineage, lineage.barrier(lineage.source(2)))
    stand.start(*stand.running())
    stand.tell(stand.one(0).executor, Leaving(10.0))
    stand.pass_time(8.0)
    assert len(stand.running()) == 2
    stand.run(job)
    assert stand.finished[job] is None


def test_BR_1_one_lost_task_of_a_barrier_map_stage_runs_all_again_once_in_a_new_generation() -> None:
    stand = Stand(executors=3)
    _, shuffle = map_gang(stand)
    stand.succeed(stand.one(0))
    dead = stand.one(1)
    stand.exit(dead.executor)
    assert {kill.task for kill in stand.messages(KillTask)} == {stand.one(2).task}
    assert current_generation(stand, shuffle) == 1 and stand.core.outputs[shuffle].missing == 3
    assert stand.kinds()["gang_broken"] == 1
    late = stand.one(2)
    stand.kill_answers()
    assert not stand.running(), "it waits for the third slot"
    stand.add_executor("h0")
    assert sorted(task.partition for task in stand.running()) == [0, 1, 2]
    assert late not in stand.running()
    stand.run(0)
    assert stand.finished == {0: None}
    assert stand.starts(shuffle) == {0: 2, 1: 2, 2: 2}
    stand.core.assert_idle()


def test_BR_1_failures_of_one_attempt_of_the_gang_cost_one_retry_and_blame_one_task() -> None:
    stand = Stand(executors=3, max_failures=2)
    _, shuffle = map_gang(stand)
    first, second, third = stand.running()
    stand.fail(first)
    stand.fail(second)
    stand.end(third, HostError("STORAGE_FULL", "no space"))
    assert stand.kinds()["gang_broken"] == 1 and not stand.finished
    stand.run(0)
    assert stand.finished == {0: None} and set(stand.starts(shuffle).values()) == {2}


def test_BR_1_a_lost_output_of_a_complete_gang_runs_all_of_it_again() -> None:
    stand = Stand(executors=3)
    _, shuffle = map_gang(stand)
    stand.succeed(*stand.running())
    reader = stand.one(0)
    stand.fetch_failed(reader, 1)
    stand.kill_answers()
    stand.run(0)
    assert stand.finished == {0: None} and stand.starts(shuffle) == {0: 2, 1: 2, 2: 2}
    assert current_generation(stand, shuffle) == 1


def test_BR_2_results_that_are_held_are_taken_back_and_the_gang_runs_again() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    stand.succeed(stand.one(0), accums=((1, b"old"),))
    stand.exit(stand.one(1).executor)
    stand.kill_answers()
    stand.add_executor("h0")
    assert stand.withdrawn == {job: 1}
    stand.run(job)
    assert stand.finished[job] is None and stand.starts() == {0: 2, 1: 2, 2: 2}
    assert stand.accums == [], "the updates went with their result"


def test_BR_2_results_that_have_left_the_engine_end_the_job_by_name() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)), final=True)
    stand.succeed(stand.one(0))
    stand.exit(stand.one(1).executor)
    assert stand.failure(job).condition == "INDETERMINATE_OUTPUT_ROLLBACK"
    stand.kill_answers()
    stand.core.assert_idle()


def test_BR_3_more_tasks_than_slots_end_the_job_by_name_within_15_s() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    stand.pass_time(9.0)
    assert job not in stand.finished
    stand.pass_time(5.0)
    failure = stand.failure(job)
    assert failure.condition == "BARRIER_NO_SLOTS" and "3 slots" in failure.text and "are 2" in failure.text
    assert not stand.launched


def test_BR_3_slots_that_vanish_while_the_gang_waits_end_it_and_slots_that_come_start_it() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    busy = stand.submit(lineage, lineage.source(1))
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    stand.pass_time(60.0)
    assert not stand.finished, "there are slots, only not free ones"
    stand.exit("e2")
    stand.pass_time(8.0)
    stand.add_executor("h0")
    stand.pass_time(8.0)
    stand.run(busy, job)
    assert stand.finished == {busy: None, job: None}


def test_BR_3_EX_14_a_gang_that_needs_executors_on_which_it_keeps_failing_has_them() -> None:
    """Found by the simulator: seed 9920116."""
    lineage, stand = Lineage(), Stand(executors=4, exclude_stage_tasks=1, exclude_app_tasks=9)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    bad: set[str] = set()
    for _ in range(2):
        task = next(task for task in stand.running() if task.executor not in bad)
        bad.add(task.executor)
        stand.fail(task)
        stand.kill_answers()
    assert len(stand.running()) == 3, "two executors are left on which none has failed"
    stand.run(job)


def test_BR_1_TK_5_a_member_that_ends_its_process_each_time_costs_no_more_than_three() -> None:
    """Found by the simulator: seed 9930088."""
    lineage, stand = Lineage(), Stand(executors=2, max_failures=9)
    job = stand.submit(lineage, lineage.barrier(lineage.source(2)))
    deaths = 0
    while job not in stand.finished:
        task = stand.one(0)
        stand.start(task)
        stand.exit(task.executor, running=(task.task,), signal=11)
        stand.kill_answers()
        stand.add_executor("h0")
        deaths += 1
    assert deaths == 3 and stand.failure(job).condition == "POISON_TASK"


def test_BR_1_EX_5_a_member_that_is_killed_each_time_without_progress_costs_no_more_than_20() -> None:
    """Found by the simulator: seed 4102207."""
    lineage, stand = Lineage(), Stand(executors=2, max_failures=9)
    job = stand.submit(lineage, lineage.barrier(lineage.source(2)))
    kills = 0
    while job not in stand.finished:
        task = stand.one(0)
        stand.start(task)
        stand.exit(task.executor, running=(task.task,), signal=9)
        stand.kill_answers()
        stand.add_executor("h0")
        kills += 1
    assert kills == 20 and stand.failure(job).condition == "POISON_TASK"


def test_BR_3_a_chain_that_is_no_gang_is_refused() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    gang = lineage.barrier(lineage.source(2))
    pruned = stand.submit(lineage, gang, partitions=[0])
    union = stand.submit(lineage, lineage.union(gang, lineage.source(1)))
    for job in (pruned, union):
        assert stand.failure(job).condition == "BARRIER_CHAIN_NOT_ALLOWED"
        assert "SPARK-24820" in stand.failure(job).text


def test_BR_4_a_call_returns_when_every_member_has_made_it() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    tasks = sorted(stand.running(), key=lambda task: task.partition)
    for task in reversed(tasks):
        assert not stand.messages(BarrierReleased)
        call(stand, task, message=f"m{task.partition}")
        call(stand, task, message=f"m{task.partition}")
    assert {told.messages for told in released(stand).values()} == {("m0", "m1", "m2")}
    assert len(stand.messages(BarrierReleased)) == 3 and not stand.core.gangs.syncs, "told twice: the same"
    stand.run(job)
    stand.core.assert_idle()


def test_BR_4_a_member_that_dies_releases_those_that_wait_for_it() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    first, second, third = stand.running()
    call(stand, first)
    call(stand, second)
    stand.exit(third.executor)
    assert set(released(stand)) == {first.task, second.task}
    assert all("BARRIER_ABORTED" in told.error for told in released(stand).values())
    assert {kill.task for kill in stand.messages(KillTask)} == {first.task, second.task}
    stand.add_executor("h0")
    stand.kill_answers()
    call(stand, first)
    assert stand.kinds()["stale_barrier_sync"] == 1, "S9"
    stand.run(job)
    assert stand.finished[job] is None
    stand.core.assert_idle()


def test_BR_4_who_waits_for_a_member_that_has_ended_is_released() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    stand.submit(lineage, lineage.barrier(lineage.source(2)))
    first, second = stand.running()
    call(stand, first)
    stand.succeed(second)
    stand.pass_time(1.0)
    assert "has ended without calling" in released(stand)[first.task].error


def test_BR_4_different_calls_and_calls_that_take_too_long_are_released() -> None:
    lineage, stand = Lineage(), Stand(executors=2, barrier_sync_timeout_s=5.0)
    stand.submit(lineage, lineage.barrier(lineage.source(2)))
    first, second = stand.running()
    call(stand, first)
    call(stand, second, kind="allGather")
    assert set(released(stand)) == {first.task, second.task}
    assert "another allGather()" in released(stand)[first.task].error
    call(stand, first, number=2)
    stand.pass_time(6.0)
    assert "within 5" in released(stand)[first.task].error


def test_BR_1_a_gang_that_never_gets_through_ends_in_the_end() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.barrier(lineage.source(2)))
    while job not in stand.finished:
        dead = stand.one(0)
        stand.exit(dead.executor)
        stand.kill_answers()
        stand.add_executor("h0")
    assert stand.failure(job).condition in ("STAGE_ABORTED", "POISON_TASK")
    assert stand.starts()[0] <= 100


def test_S_29_a_gang_that_begins_again_and_again_leaves_nothing_in_its_queues() -> None:
    stand = Stand(executors=2, max_failures=99)
    lineage = Lineage()
    stand.submit(lineage, lineage.barrier(lineage.source(2)))
    for _ in range(5):
        tasks = stand.core.dag.active[stand.one(0).message.stage].tasks
        assert tasks is not None and not tasks._anywhere and not tasks._choosy and not tasks._suspects
        stand.fail(stand.one(0))
        stand.kill_answers()
        stand.pass_time(6.0)


def test_BR_4_TK_16_a_gang_that_is_cancelled_while_it_meets_at_the_moment_of_a_sweep_is_no_error() -> None:
    stand = Stand(executors=2)
    lineage = Lineage()
    job = stand.submit(lineage, lineage.barrier(lineage.source(2)))
    stand.start(*stand.running())
    stand.tell(stand.one(0).executor, BarrierSync(stand.one(0).task, 1, "barrier"))
    stand.now_s += 10.0  # a sweep is due
    stand.cancel(job)
    assert stand.failure(job).condition == "JOB_CANCELLED"
