"""Tasks fail, blocks are lost, data changes (rows TK, BL, DR, ST)."""

from collections import Counter
from dataclasses import replace

import pytest

from spark_ft.ids import BlobId, Generation, HostId, Incarnation, JobId, NodeId, ShuffleId, TaskId
from spark_ft.protocol.effects import CancelJobs, Released, ResultLost
from spark_ft.protocol.messages import (
    BlockRef,
    CachedBlock,
    DropBlocks,
    ExecutorStopped,
    FetchFailed,
    HostError,
    InlineResult,
    Killed,
    KillExecutor,
    KillTask,
    NotLoadable,
    StoredResult,
    StoresServed,
    Success,
    UserError,
    WorkerLost,
)
from tests.builders import Launched, Lineage, Stand, block, current_generation, in_memory


def wide(stand: Stand, maps: int = 4, reduces: int = 2) -> tuple[Lineage, ShuffleId]:
    lineage = Lineage()
    shuffle = lineage.shuffle(lineage.source(maps), reduces)
    lineage.read(shuffle)
    return lineage, shuffle


def to_the_reduce_side(stand: Stand) -> None:
    while stand.running()[0].is_map:
        stand.succeed(stand.running()[0])


# --- User code ---


def test_TK_1_a_transient_error_is_tried_again_elsewhere_and_siblings_are_left_alone() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(4))
    first = stand.one(0)
    stand.fail(first)
    stand.succeed(next(task for task in stand.running() if task.executor != first.executor))
    assert stand.one(0).executor != first.executor
    stand.run(job)
    assert stand.starts() == {0: 2, 1: 1, 2: 1, 3: 1}


def test_TK_2_a_task_that_always_fails_ends_the_job_after_four_attempts_on_two_executors() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    sibling = stand.one(1)
    for number in range(4):
        stand.pass_time(6.0)
        stand.fail(stand.one(0), text="one" if number < 3 else "another")
    failure = stand.failure(job)
    assert failure.condition == "TASK_FAILED" and failure.cause_type == "ValueError"
    assert f"Task 0 in stage {failure.stage} failed 4 times" in failure.text
    assert failure.traceback == "Traceback: another" and failure.other_tracebacks == ("Traceback: one",)
    assert [record.attempt for record in failure.attempts] == [0, 1, 2, 3]
    assert {record.blame for record in failure.attempts} == {"task"}
    assert [kill.task for kill in stand.messages(KillTask)] == [sibling.task]


def test_TK_2_failures_are_spread_over_executors_where_there_is_a_choice() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.source(1))
    used = []
    while job not in stand.finished:
        used.append(stand.one(0).executor)
        stand.fail(stand.one(0))
    assert len(set(used[:3])) == 3 and len(used) == 4


def test_TK_2_once_two_executors_have_failed_it_a_busy_third_is_not_waited_for() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.source(2))
    sibling = stand.one(1)
    used = []
    while job not in stand.finished:
        used.append(stand.one(0).executor)
        stand.fail(stand.one(0))
    assert stand.failure(job).condition == "TASK_FAILED" and sibling.executor not in used
    assert len(used) == 4 and len(set(used)) == 2


def test_TK_2_the_only_executor_gets_the_task_again_at_once() -> None:
    lineage, stand = Lineage(), Stand(executors=1, max_failures=2)
    job = stand.submit(lineage, lineage.source(1))
    stand.fail(stand.one(0))
    stand.fail(stand.one(0))
    assert stand.failure(job).condition == "TASK_FAILED"


def test_an_error_that_cannot_be_cured_by_trying_again_ends_the_job_at_once() -> None:
    lineage, stand = Lineage(), Stand()
    job = stand.submit(lineage, lineage.source(1))
    stand.fail(stand.one(0), condition="INPUT_CHANGED", retryable=False)
    assert stand.failure(job).condition == "INPUT_CHANGED"


def test_S_14_failures_of_one_job_are_not_counted_against_another() -> None:
    lineage, stand = Lineage(), Stand(executors=2, max_failures=2)
    source = lineage.source(1)
    first, second = stand.submit(lineage, source), stand.submit(lineage, source)
    a, b = stand.running()
    stand.fail(a)
    stand.fail(b)
    assert not stand.finished
    stand.run(first, second)


def test_a_stage_that_fails_ends_every_job_that_needs_it_and_no_other() -> None:
    lineage, stand = Lineage(), Stand(executors=2, max_failures=1)
    reduced = lineage.reduce(lineage.source(1), 1)
    first, second = stand.submit(lineage, reduced), stand.submit(lineage, reduced)
    other = stand.submit(lineage, lineage.source(1))
    stand.fail(next(task for task in stand.running() if task.is_map))
    assert stand.failure(first).condition == stand.failure(second).condition == "TASK_FAILED"
    stand.run(other)
    assert stand.finished[other] is None


def test_TK_9_functions_that_two_executors_cannot_load_end_the_job() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(4))
    for task in stand.running()[:2]:
        stand.end(task, NotLoadable("ModuleNotFoundError", "No module named 'x'", "trace"))
    failure = stand.failure(job)
    assert failure.condition == "CLOSURE_NOT_LOADABLE" and "No module named 'x'" in failure.text


def test_TK_9_on_the_only_executor_twice_is_enough() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(1))
    stand.end(stand.one(0), NotLoadable("ImportError", "no", "trace"))
    assert job not in stand.finished
    stand.end(stand.one(0), NotLoadable("ImportError", "no", "trace"))
    assert stand.failure(job).condition == "CLOSURE_NOT_LOADABLE"


def test_TK_11_a_stored_result_that_is_lost_runs_that_task_again_even_after_the_job_ended() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(2))
    for task in stand.running():
        ref = BlockRef(HostId("h0"), task.executor, 0, b"r")
        stand.end(task, Success(result=StoredResult(ref)), accums=((1, b"x"),))
    assert stand.finished.pop(job) is None
    del stand.results[job][1]
    stand.do(ResultLost(job, 1, "gone"))
    stand.succeed(stand.one(1), accums=((1, b"x"),))
    assert stand.finished[job] is None and stand.starts() == {0: 1, 1: 2}
    assert len(stand.accums) == 2, "S20: the updates of partition 1 are not merged again"
    stand.do(Released(blobs=(BlobId(job),)))
    stand.core.assert_idle()


def test_TK_16_TK_11_a_job_that_was_cancelled_after_its_end_runs_nothing_again_for_a_lost_result() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(1))
    ref = BlockRef(HostId("h0"), stand.one(0).executor, 0, b"r")
    stand.end(stand.one(0), Success(result=StoredResult(ref)))
    assert stand.finished.pop(job) is None
    stand.cancel(job)
    assert job not in stand.finished, "it has its answer, if that can be read"
    stand.do(ResultLost(job, 0, "gone"))
    assert stand.failure(job).condition == "JOB_CANCELLED" and stand.starts() == {0: 1}


def test_TK_16_a_cancel_during_a_retry_of_the_parent_leaves_nothing_behind() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    stand.fetch_failed(stand.running()[0], 1)
    stand.do(CancelJobs(job))
    stand.kill_answers()
    launched = len(stand.launched)
    stand.pass_time(10.0)
    assert len(stand.launched) == launched
    stand.core.assert_idle()


def test_DR_13_updates_of_a_failed_attempt_are_thrown_away_and_of_a_retry_taken_once() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(1))
    stand.fail(stand.one(0))
    stand.succeed(stand.one(0), accums=((1, b"x"),))
    assert stand.accums == [((1, b"x"),)] and stand.finished[job] is None


def test_DR_13_updates_of_a_map_partition_are_merged_once_although_its_output_is_rebuilt() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, maps=2)
    job = stand.submit(lineage, lineage.read(shuffle))
    while stand.running()[0].is_map:
        task = stand.running()[0]
        stand.succeed(task, accums=((1, b"m%d" % task.partition),))
    stand.fetch_failed(stand.running()[0], 1)
    rebuilt = next(task for task in stand.running() if task.is_map)
    stand.succeed(rebuilt, accums=((1, b"m1"),))
    stand.run(job)
    assert sorted(stand.accums) == [((1, b"m0"),), ((1, b"m1"),)]


# --- Shuffle data ---


@pytest.mark.parametrize("evidence", ["missing", "corrupt", "incomplete", "expired"])
def test_BL_1_an_unreadable_output_costs_only_that_map_task(evidence: str) -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    stand.fetch_failed(stand.running()[0], 2, evidence)
    stand.run(job)
    assert stand.finished[job] is None
    assert stand.starts(shuffle) == {0: 1, 1: 1, 2: 2, 3: 1}, "R2"


def test_BL_1_a_failed_fetch_is_not_counted_against_the_task() -> None:
    stand = Stand(executors=2, max_failures=1)
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    stand.fetch_failed(stand.running()[0], 2)
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_2_an_output_that_is_out_of_reach_is_given_time_and_then_given_up() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    for tries in range(3):
        assert stand.starts(shuffle)[0] == 1, tries
        stand.fetch_failed(stand.one(0), 0, "timeout")
        stand.pass_time(6.0)
    assert stand.starts(shuffle)[0] == 2, "after three reports it counts as lost"
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_2_a_burst_of_timeouts_is_one_report() -> None:
    stand = Stand(executors=6)
    lineage, shuffle = wide(stand, reduces=6)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    for task in [task for task in stand.running() if not task.is_map]:
        stand.fetch_failed(task, 0, "refused")
    stand.pass_time(2.0)
    stand.run(job)
    assert set(stand.starts(shuffle).values()) == {1}, "R0"


@pytest.mark.parametrize("heir_first", [False, True])
def test_WK_6_what_is_refused_between_two_workers_of_a_host_is_not_lost(heir_first: bool) -> None:
    stand = Stand(executors=2, hosts=1)
    lineage, shuffle = wide(stand, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    worker, stores = "worker-h0", tuple(sorted(stand.core.executors.live))
    for life in range(6):
        (reader,) = [task for task in stand.running() if not task.is_map]
        outputs = tuple(o for o in stand.core.outputs[shuffle].statuses if o is not None)
        stand.pass_time(0.1)
        stand.tell("manager-1", WorkerLost(Incarnation(worker), "killed"))
        if not heir_first:
            stand.fetch_failed(reader, 0, "refused")
        worker = f"worker-{life}"
        stand.add_worker("h0", worker, StoresServed(stores, outputs, stores))
        if heir_first:
            stand.fetch_failed(reader, 0, "refused")
        stand.pass_time(1.0)
    stand.run(job)
    assert stand.finished[job] is None and not stand.noted("output_lost")
    assert set(stand.starts(shuffle).values()) == {1}, "R0"


def test_BL_9_a_burst_of_reports_makes_one_recovery() -> None:
    stand = Stand(executors=8)
    lineage, shuffle = wide(stand, maps=4, reduces=8)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    readers = [task for task in stand.running() if not task.is_map]
    assert len(readers) == 8
    for number, task in enumerate(readers):
        stand.fetch_failed(task, number % 4)
    stand.run(job)
    assert stand.finished[job] is None
    assert set(stand.starts(shuffle).values()) == {2}
    map_stage = stand.core.dag.map_stages[shuffle].id
    attempts = [note["attempt"] for note in stand.noted("stage_start") if note["stage"] == map_stage]
    assert attempts == [0, 1], "exactly one attempt more of the map stage"


def test_BL_9_a_report_that_names_others_rebuilds_them_all_at_once_and_nothing_else() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, maps=6, reduces=2)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    reader, late = [task for task in stand.running() if not task.is_map]
    statuses = [status for status in stand.core.outputs[shuffle].statuses if status is not None]
    lost = [status for status in statuses if status.store == statuses[0].store]
    assert 2 <= len(lost) < 6
    stand.fetch_failed(reader, 0, others=(*(status.attempt for status in lost[1:]), TaskId(9999)))
    while maps := [task for task in stand.running() if task.is_map]:
        stand.succeed(*maps)
    # The rebuilt ones may lie in the same store: a report of those that were lost does not mean them.
    stand.fetch_failed(late, 0, others=tuple(status.attempt for status in lost[1:]))
    stand.run(job)
    again = {index for index, count in stand.starts(shuffle).items() if count > 1}
    assert again == {status.map_index for status in lost}
    assert set(stand.starts(shuffle).values()) == {1, 2}


def test_BL_9_a_late_report_of_what_was_already_rebuilt_changes_nothing() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    first, late = [task for task in stand.running() if not task.is_map]
    stand.fetch_failed(first, 2)
    stand.succeed(next(task for task in stand.running() if task.is_map))
    reason = FetchFailed(shuffle, Generation(0), 2, HostId("h0"), "no such store", "missing")
    stand.end(late, reason)
    stand.run(job)
    assert stand.starts(shuffle)[2] == 2


def test_BL_10_a_store_that_lies_twice_is_given_up_with_all_that_is_in_it() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, maps=6)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    bad = [
        i for i, status in enumerate(stand.core.outputs[shuffle].statuses) if status and status.store == "e0"
    ]
    assert len(bad) == 3
    first, second = [task for task in stand.running() if not task.is_map]
    stand.fetch_failed(first, bad[0], "corrupt")
    stand.fetch_failed(second, bad[1], "corrupt")
    assert stand.kinds()["store_quarantined"] == 1
    assert [kill.executor for kill in stand.messages(KillExecutor)] == ["e0"]
    stand.exit("e0")
    stand.run(job)
    assert stand.finished[job] is None
    again = {i for i, starts in stand.starts(shuffle).items() if starts > 1}
    assert again == set(bad), "and nothing else"


def test_BL_10_data_that_cannot_be_had_anywhere_ends_the_job_after_four_fruitless_attempts() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, maps=1, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    while job not in stand.finished:
        task = stand.running()[0]
        if task.is_map:
            stand.succeed(task)
        else:
            stand.fetch_failed(task, 0)
    assert stand.failure(job).condition == "SHUFFLE_DATA_LOST"
    assert stand.starts(shuffle)[0] == 4


def test_BL_10_attempts_with_progress_between_are_not_counted_as_fruitless() -> None:
    stand = Stand(executors=1)
    lineage, shuffle = wide(stand, maps=1, reduces=10)
    job = stand.submit(lineage, lineage.read(shuffle))
    turn = 0
    while job not in stand.finished:
        task = stand.running()[0]
        turn += 1
        if not task.is_map and turn % 3 == 0:
            stand.fetch_failed(task, 0)
        else:
            stand.succeed(task)
    assert stand.finished[job] is None and stand.starts(shuffle)[0] > 4


# --- Data that changes ---


def lose_and_rebuild(stand: Stand, shuffle: ShuffleId, reader: Launched, map_index: int) -> None:
    """The reader finds the output gone; what is written in its place is different."""
    stand.checksums[(shuffle, map_index)] = 99
    stand.fetch_failed(reader, map_index)
    rebuilt = next(t for t in stand.running() if t.is_map and t.partition == map_index)
    stand.succeed(rebuilt)


def test_BL_5_a_changed_output_that_nobody_finished_with_just_replaces_the_old_one() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    first, second = stand.running()
    lose_and_rebuild(stand, shuffle, first, 0)
    assert [kill.task for kill in stand.messages(KillTask)] == [second.task], "a running reader starts again"
    stand.kill_answers()
    stand.run(job)
    assert stand.finished[job] is None and current_generation(stand, shuffle) == 0
    assert stand.starts(shuffle) == {0: 2, 1: 1, 2: 1, 3: 1}


def test_BL_5_results_that_have_left_the_engine_when_an_output_changes_are_an_error_by_name() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, reduces=3)
    job = stand.submit(lineage, lineage.read(shuffle), final=True)
    to_the_reduce_side(stand)
    stand.succeed(stand.one(0))
    lose_and_rebuild(stand, shuffle, stand.one(1), 0)
    assert stand.failure(job).condition == "INDETERMINATE_OUTPUT_ROLLBACK"
    assert current_generation(stand, shuffle) == 1, "S17: in the same step"
    assert not stand.withdrawn


def test_BL_5_a_final_job_none_of_whose_tasks_has_ended_goes_on() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, reduces=3)
    job = stand.submit(lineage, lineage.read(shuffle), final=True)
    to_the_reduce_side(stand)
    lose_and_rebuild(stand, shuffle, stand.one(1), 0)
    stand.kill_answers()
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_5_results_that_are_still_held_are_taken_back_and_computed_again() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand, reduces=3)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    stand.succeed(stand.one(0), accums=((1, b"old"),))
    lose_and_rebuild(stand, shuffle, stand.one(1), 0)
    assert stand.withdrawn == {job: 1} and current_generation(stand, shuffle) == 1
    assert stand.core.outputs[shuffle].missing == 4, "S17: nothing of the old generation is used"
    stand.kill_answers()
    while job not in stand.finished:
        task = stand.running()[0]
        if not task.is_map:
            assert {read.generation for read in task.message.inputs} == {1}, "S6"
        stand.succeed(task, accums=() if task.is_map else ((1, b"new %d" % task.partition),))
    assert stand.finished[job] is None and sorted(stand.results[job]) == [0, 1, 2]
    assert stand.starts(shuffle) == {0: 3, 1: 2, 2: 2, 3: 2}, "R3: the stage once more, whole"
    assert stand.starts() == {0: 2, 1: 2, 2: 2}
    assert sorted(payload for ((_, payload),) in stand.accums) == [b"new 0", b"new 1", b"new 2"], "S20"
    stand.core.assert_idle()


def test_BL_5_stored_results_of_an_ended_job_are_taken_back_when_one_is_lost_after_a_rollback() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    shuffle = lineage.shuffle(lineage.source(2), 2)
    target = lineage.read(shuffle)
    job = stand.submit(lineage, target)
    to_the_reduce_side(stand)
    for task in stand.running():
        ref = BlockRef(HostId("h0"), task.executor, 0, b"r")
        stand.end(task, Success(result=StoredResult(ref)), accums=((1, b"%d" % task.partition),))
    assert stand.finished.pop(job) is None and job in stand.core.dag.held
    other = stand.submit(lineage, target)
    lose_and_rebuild(stand, shuffle, stand.one(0), 0)
    stand.kill_answers()
    stand.run(other)
    assert not stand.withdrawn, "its results are whole and may yet be read"
    stand.do(ResultLost(job, 1, "gone"))
    assert stand.withdrawn == {job: 1}
    stand.run(job)
    assert stand.finished[job] is None and sorted(stand.results[job]) == [0, 1]
    assert sorted(payload for ((_, payload),) in stand.accums) == [b"0", b"1"], (
        "S20: merged with its first end"
    )


def test_BL_5_everything_built_on_an_output_that_changed_is_rolled_back() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    first = lineage.shuffle(lineage.source(2), 2)
    second = lineage.shuffle(lineage.persist(lineage.read(first)), 2)
    target = lineage.read(second)
    job = stand.submit(lineage, target)
    node = lineage.shuffles[second].parent
    stand.succeed(stand.one(0), stand.one(1))
    stand.succeed(stand.one(0), cached=(in_memory(node, 0),))
    lose_and_rebuild(stand, first, stand.one(1), 0)
    assert current_generation(stand, first) == current_generation(stand, second) == 1
    assert stand.core.outputs[second].missing == 2
    assert not stand.core.blocks.held[node]
    assert any(drop.nodes == (node,) for drop in stand.messages(DropBlocks))
    stand.kill_answers()
    stand.run(job)
    assert stand.finished[job] is None
    assert {note["cause"] for note in stand.noted("rollback")} == {first}


def test_BL_5_what_a_killed_reader_put_into_memory_is_dropped_before_anybody_meets_it() -> None:
    lineage, stand = Lineage(), Stand(executors=1, slots=4)
    first = lineage.shuffle(lineage.source(2), 3)
    node = lineage.persist(lineage.read(first))
    second = lineage.shuffle(node, 1)
    job = stand.submit(lineage, lineage.read(second))
    stand.succeed(stand.one(0), stand.one(1))
    stand.succeed(stand.one(0))
    reader = stand.one(1)
    lose_and_rebuild(stand, first, stand.one(2), 0)
    assert [kill.task for kill in stand.messages(KillTask)] == [reader.task]
    stand.succeed(*[task for task in stand.running() if task is not reader])
    assert stand.core.outputs[first].complete
    assert stand.running() == [reader], "until it has ended it may still put old data into that memory"
    stand.end(reader, Killed("told to"), cached=(in_memory(node, 1),))
    assert not stand.core.blocks.held[node]
    assert stand.messages(DropBlocks)[-1].nodes == (node,)
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_6_an_output_of_an_older_generation_is_not_taken() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    first = lineage.shuffle(lineage.source(2), 2)
    second = lineage.shuffle(lineage.read(first), 3)
    target = lineage.read(second)
    stand.submit(lineage, target)
    stand.succeed(stand.one(0), stand.one(1))
    stand.succeed(stand.one(0))
    old = stand.one(1)
    stand.tell("manager-1", WorkerLost(stand.host_of[old.executor], "nobody"))  # a stranger: nothing happens
    stand.core.recovery.rollback(first, 0)
    stand.tick()
    stand.succeed(old)
    assert stand.core.outputs[second].missing == 2
    assert stand.kinds()["ended_after_kill"] == 1


def test_BL_6_a_result_of_an_older_generation_is_not_taken() -> None:
    stand = Stand(executors=3)
    lineage, shuffle = wide(stand, reduces=3)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    stand.succeed(stand.one(0))
    old = stand.one(2)
    lose_and_rebuild(stand, shuffle, stand.one(1), 0)
    stand.succeed(old)
    assert stand.results[job] == {} and stand.kinds()["ended_after_kill"] == 1
    stand.run(job)
    assert stand.finished[job] is None and stand.starts() == {0: 2, 1: 2, 2: 2}


def test_L_1_a_job_that_is_rolled_back_without_end_is_given_up_by_name() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(1), 2)
    job = stand.submit(lineage, reduced)
    stand.succeed(stand.one(0))
    while job not in stand.finished:
        (first,) = stand.running()
        stand.succeed(first)
        (second,) = stand.running()
        stand.fetch_failed(second, 0)
        stand.checksums[(ShuffleId(0), 0)] = len(stand.launched)
        stand.succeed(*stand.running())  # it comes out different under a delivered result
        stand.succeed(*stand.running())
    assert stand.failure(job).condition == "INDETERMINATE_OUTPUT_ROLLBACK"
    assert "50th time" in stand.failure(job).text


def test_BL_7_a_rollback_reaches_every_live_job_through_all_that_was_built_on_it() -> None:
    lineage, stand = Lineage(), Stand(executors=4)
    first = lineage.shuffle(lineage.source(2), 2)
    second = lineage.shuffle(lineage.read(first), 2)
    left, right = lineage.read(second), lineage.map(lineage.read(second))
    a, b = stand.submit(lineage, left), stand.submit(lineage, right)
    while len(stand.results[a]) + len(stand.results[b]) < 2:
        task = next(t for t in stand.running() if t.is_map or t.partition == 0)
        stand.succeed(task)
    assert stand.results[a].keys() == stand.results[b].keys() == {0}
    for reader in stand.running():
        stand.fetch_failed(reader, 0)
    lose_and_rebuild(stand, first, stand.one(0), 0)
    stand.kill_answers()
    stand.run(a, b)
    assert stand.finished == {a: None, b: None} and stand.withdrawn == {a: 1, b: 1}
    assert current_generation(stand, first) == current_generation(stand, second) == 1


def test_BL_7_a_finished_job_is_untouched_when_its_shuffle_changes_under_a_later_one() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand)
    target = lineage.read(shuffle)
    first = stand.submit(lineage, target)
    stand.run(first)
    second = stand.submit(lineage, target)
    lose_and_rebuild(stand, shuffle, stand.running()[0], 0)
    stand.kill_answers()
    stand.run(second)
    assert stand.finished == {first: None, second: None}


# --- Cached partitions ---


def cached_job(stand: Stand, count: int = 4) -> tuple[Lineage, int, ShuffleId]:
    """A persisted node above a shuffle, every partition in the memory of whoever computed it."""
    lineage = Lineage()
    shuffle = lineage.shuffle(lineage.source(2), count)
    node = lineage.persist(lineage.read(shuffle))
    job = stand.submit(lineage, node)
    to_the_reduce_side(stand)
    while job not in stand.finished:
        task = stand.running()[0]
        stand.succeed(task, cached=(in_memory(node, task.partition),))
    return lineage, node, shuffle


def test_BL_11_only_the_lost_cached_partitions_are_computed_again() -> None:
    stand = Stand(executors=2, slots=4)
    lineage, node, shuffle = cached_job(stand)
    on_e0 = sorted(p for p, h in stand.core.blocks.held[node].items() if "e0" in h.memory)
    stand.exit("e0")
    assert sorted(stand.core.blocks.held[node]) == sorted(set(range(4)) - set(on_e0))
    for index in range(2):
        output = stand.core.outputs[shuffle].statuses[index]
        assert output is not None
        stand.core.recovery.location_lost(output, "missing")
    job = stand.submit(lineage, lineage.map(node))
    launched = [task for task in stand.launched.values() if task.message.blob == BlobId(job)]
    assert {t.partition for t in launched} == set(range(4)) - set(on_e0), "S5: only those that are cached"
    assert {t.executor for t in launched} == {"e1"}, "S5: and only where they are"
    assert launched[0].message.inputs == (), "no input that is not complete is named"
    stand.run(job)
    assert stand.finished[job] is None
    assert stand.starts(shuffle) == {0: 2, 1: 2}


def test_BL_11_EX_14_tasks_bound_to_one_memory_go_on_there_although_several_have_failed_there() -> None:
    stand = Stand(executors=3, slots=4, exclude_stage_tasks=2)
    lineage, node, shuffle = cached_job(stand, count=6)
    stand.exit("e0")
    for index in range(2):
        output = stand.core.outputs[shuffle].statuses[index]
        assert output is not None
        stand.core.recovery.location_lost(output, "missing")
    job = stand.submit(lineage, lineage.map(node))
    bound = [task for task in stand.running() if task.message.blob == BlobId(job) and task.executor == "e1"]
    assert len(bound) >= 2
    for task in bound:
        stand.fail(task)
    stand.pass_time(6.0)
    again = [task for task in stand.running() if task.message.blob == BlobId(job)]
    assert {task.partition for task in bound} <= {task.partition for task in again if task.executor == "e1"}
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_11_a_task_goes_where_its_partition_is_cached_and_waits_for_it_a_while() -> None:
    stand = Stand(executors=2, locality_wait_s=3.0)
    lineage, node, _ = cached_job(stand, count=4)
    blocker = stand.submit(lineage, lineage.source(1))
    busy = stand.running()[0].executor
    job = stand.submit(lineage, lineage.map(node))
    there = {p for p, h in stand.core.blocks.held[node].items() if busy in h.memory}
    while len(stand.results[job]) < 4 - len(there):
        stand.succeed(next(t for t in stand.running() if t.message.blob == BlobId(job)))
    assert not [t for t in stand.running() if t.message.blob == BlobId(job)], (
        "the rest waits for its executor"
    )
    due_s = stand.core.wakeup_s()
    assert due_s is not None and due_s <= stand.now_s + 3.0
    stand.pass_time(3.1)
    while job not in stand.finished:
        stand.succeed(next(t for t in stand.running() if t.message.blob == BlobId(job)))
    assert stand.finished[job] is None and blocker not in stand.finished


def test_BL_11_nobody_waits_for_an_executor_that_is_gone() -> None:
    stand = Stand(executors=2, locality_wait_s=3.0)
    lineage, node, _ = cached_job(stand, count=2)
    stand.submit(lineage, lineage.source(2))
    job = stand.submit(lineage, lineage.map(node))
    stand.exit("e0")
    stand.add_executor("h0")
    stand.exit("e1")
    stand.add_executor("h0")
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_11_a_cached_block_on_disk_outlives_its_executor_but_not_its_host() -> None:
    lineage, stand = Lineage(), Stand(executors=2, hosts=2)
    node = lineage.persist(lineage.source(1))
    stand.submit(lineage, node)
    task = stand.one(0)
    host = stand.host_of[task.executor]
    stand.succeed(task, cached=(block(node, 0, host, task.executor),))
    stand.exit(task.executor)
    job = stand.submit(lineage, lineage.map(node))
    assert [b.partition for b in stand.one(0).launch.cached] == [0]
    stand.cancel(job)
    stand.kill_answers()
    stand.tell("manager-1", WorkerLost(f"worker-{host}", "gone"))
    stand.add_worker(host, "worker-again")  # and what lay there is gone
    stand.submit(lineage, lineage.map(node))
    assert stand.one(0).launch.cached == ()


def test_a_cached_block_that_cannot_be_read_is_dropped_and_the_task_tries_without_it() -> None:
    lineage, stand = Lineage(), Stand(executors=1, max_failures=1)
    node = lineage.persist(lineage.source(1))
    stand.submit(lineage, node)
    bad = block(node, 0)
    stand.succeed(stand.one(0), cached=(bad,))
    job = stand.submit(lineage, lineage.map(node))
    task = stand.one(0)
    ref = bad.block
    assert ref is not None
    stand.end(task, FetchFailed(ShuffleId(-1), Generation(0), -1, ref.host, ref.store, "corrupt", "", ref))
    assert stand.one(0).launch.cached == ()
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_13_a_block_that_only_the_driver_has_is_tried_again_and_costs_no_try_till_it_is_given_up() -> None:
    lineage, stand = Lineage(), Stand(executors=1, max_failures=1)
    job = stand.submit(lineage, lineage.source(1))
    ref = BlockRef(HostId("driver"), "driver-0", 0, b"slice")
    for _ in range(4):
        reason = FetchFailed(ShuffleId(-1), Generation(0), -1, ref.host, ref.store, "missing", "gone", ref)
        stand.end(stand.one(0), reason)
    assert stand.failure(job).condition == "BLOCK_LOST"


def test_an_unpersisted_node_is_dropped_when_the_jobs_that_use_it_have_ended() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    node = lineage.persist(lineage.source(2))
    job = stand.submit(lineage, node)
    stand.succeed(stand.one(0), cached=(in_memory(node, 0),))
    stand.do(Released(nodes=(node,)))
    assert stand.core.blocks.tracks(node)
    stand.succeed(stand.one(1), cached=(in_memory(node, 1),))
    assert stand.finished[job] is None and not stand.core.blocks.tracks(node)
    assert stand.messages(DropBlocks)[-1].nodes == (node,)


def test_an_evicted_partition_is_no_longer_looked_for_there() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    node = lineage.persist(lineage.source(2))
    stand.submit(lineage, node)
    stand.succeed(stand.one(0), cached=(in_memory(node, 0),))
    stand.succeed(stand.one(1), cached=(in_memory(node, 1),), dropped=((node, 0),))
    assert list(stand.core.blocks.held[node]) == [1]


# --- Hosts ---


def test_ST_1_a_full_disk_is_blamed_on_the_host_and_another_host_takes_over() -> None:
    stand = Stand(executors=2, hosts=2, max_failures=1)
    lineage, shuffle = wide(stand, maps=4, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    task = stand.running()[0]
    stand.end(task, HostError("STORAGE_FULL", "no space", 100, 5))
    while job not in stand.finished:
        running = stand.running()[0]
        if running.is_map:
            assert running.executor != task.executor, "no map task on a full host"
        stand.succeed(running)
    assert stand.finished[job] is None


def test_ST_1_when_every_host_is_full_the_job_ends_with_the_numbers() -> None:
    stand = Stand(executors=2, hosts=2)
    lineage, shuffle = wide(stand, maps=1, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    stand.end(stand.one(0), HostError("STORAGE_FULL", "no space", 100, 5))
    stand.end(stand.one(0), HostError("STORAGE_FULL", "no space", 100, 5))
    failure = stand.failure(job)
    assert failure.condition == "STORAGE_FULL" and "100 bytes needed, 5 free" in failure.text


def test_ST_1_tasks_that_meet_the_same_full_hosts_in_turns_end_with_the_numbers() -> None:
    stand = Stand(executors=2, hosts=2)
    lineage, shuffle = wide(stand, maps=2, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    for _ in range(2):
        for task in stand.running():
            stand.end(task, HostError("STORAGE_FULL", "no space", 100, 5))
        stand.pass_time(6.0)
    assert stand.failure(job).condition == "STORAGE_FULL"


def test_ST_1_a_host_that_has_not_been_tried_again_may_have_room_by_now() -> None:
    stand = Stand(executors=2, hosts=2)
    lineage, shuffle = wide(stand, maps=2, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    first, second = stand.running()
    stand.end(first, HostError("STORAGE_FULL", "no space", 100, 5))
    stand.pass_time(1.0)
    stand.end(second, HostError("STORAGE_FULL", "no space", 100, 5))
    stand.pass_time(4.5)  # the first host may be tried again, the second not yet
    (again,) = stand.running()
    stand.end(again, HostError("STORAGE_FULL", "no space", 100, 5))
    assert job not in stand.finished
    stand.pass_time(1.0)
    stand.run(job)
    assert stand.finished[job] is None


def test_ST_1_the_only_host_is_tried_again_after_its_back_off() -> None:
    stand = Stand(executors=1)
    lineage, shuffle = wide(stand, maps=1, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    stand.end(stand.one(0), HostError("STORAGE_FULL", "no space", 100, 5))
    stand.pass_time(4.0)
    assert not stand.running()
    stand.pass_time(2.0)
    stand.run(job)
    assert stand.finished[job] is None


# --- Slow tasks ---


def test_EX_10_a_slow_task_gets_a_twin_elsewhere_and_the_first_success_wins() -> None:
    lineage = Lineage()
    stand = Stand(executors=3, speculation=True)
    job = stand.submit(lineage, lineage.source(12))
    slow = stand.one(0)
    stand.start(*stand.running())
    while len(stand.results[job]) < 11:
        stand.now_s += 0.05
        stand.succeed(next(task for task in stand.running() if task.partition != 0))
    stand.pass_time(2.0)
    twin = stand.one(0)
    assert twin is not slow and twin.launch.speculative and twin.executor != slow.executor
    stand.succeed(twin)
    assert stand.finished[job] is None
    assert [kill.task for kill in stand.messages(KillTask)] == [slow.task]
    stand.succeed(slow)
    assert stand.results[job][0] == InlineResult(b"0")
    stand.core.assert_idle()


def test_EX_10_no_twin_before_ten_tasks_have_finished() -> None:
    lineage = Lineage()
    stand = Stand(executors=3, speculation=True)
    job = stand.submit(lineage, lineage.source(9))
    stand.start(*stand.running())
    while len(stand.results[job]) < 8:
        stand.succeed(next(task for task in stand.running() if task.partition != 0))
    stand.pass_time(30.0)
    assert stand.starts()[0] == 1


def test_EX_10_a_twin_that_is_left_alone_may_get_a_normal_attempt_beside_it_and_no_other_twin() -> None:
    lineage = Lineage()
    stand = Stand(executors=3, speculation=True)
    job = stand.submit(lineage, lineage.source(12))
    slow = stand.one(0)
    stand.start(*stand.running())
    while len(stand.results[job]) < 11:
        stand.now_s += 0.05
        stand.succeed(next(task for task in stand.running() if task.partition != 0))
    stand.pass_time(2.0)
    twin = stand.one(0)
    stand.start(twin)
    stand.exit(slow.executor)
    stand.pass_time(2.0)
    third = stand.one(0)
    assert twin.launch.speculative and third is not twin and not third.launch.speculative


def test_L_11_an_output_written_by_a_killed_attempt_after_its_shuffle_was_dropped_is_dropped_too() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(1), 1)
    job = stand.submit(lineage, reduced)
    writer = stand.one(0)
    stand.start(writer)
    stand.cancel(job)
    stand.do(Released(tuple(lineage.shuffles), tuple(lineage.nodes)))
    before = len(stand.messages(DropBlocks))
    stand.succeed(writer)
    assert [message.shuffles for message in stand.messages(DropBlocks)[before:]] == [tuple(lineage.shuffles)]


def test_BL_8_a_failed_twin_leaves_the_original_running() -> None:
    lineage = Lineage()
    stand = Stand(executors=3, speculation=True, max_failures=2)
    job = stand.submit(lineage, lineage.source(12))
    slow = stand.one(0)
    stand.start(*stand.running())
    while len(stand.results[job]) < 11:
        stand.now_s += 0.05
        stand.succeed(next(task for task in stand.running() if task.partition != 0))
    stand.pass_time(2.0)
    stand.fail(stand.one(0))
    stand.succeed(slow)
    assert stand.finished[job] is None


# --- Cached partitions that come out different (BL-12) ---


def two_uses(stand: Stand, **fields: object) -> tuple[Lineage, NodeId, ShuffleId, JobId]:
    """A persisted node of two partitions that a job reads twice: by a map stage, and by its result stage."""
    lineage = Lineage()
    node = lineage.persist(lineage.source(2))
    shuffle = lineage.shuffle(node, 2)
    job = stand.submit(lineage, lineage.zip(node, lineage.read(shuffle)), **fields)
    for partition in (0, 1):
        task = stand.one(partition)
        stand.succeed(task, cached=(in_memory(node, partition, checksum=10 + partition),))
    return lineage, node, shuffle, job


def in_other_hands(stand: Stand, node: NodeId, partition: int) -> str:
    (executor,) = stand.core.blocks.held[node][partition].memory
    return executor


def test_BL_12_what_was_built_from_a_cached_partition_that_came_out_different_is_undone() -> None:
    stand = Stand(executors=2)
    _, node, shuffle, job = two_uses(stand)
    stand.succeed(stand.one(1))
    stand.exit(in_other_hands(stand, node, 0))
    again = stand.one(0)
    assert not again.is_map and stand.core.outputs[shuffle].complete, "its outputs outlive it"
    stand.succeed(again, cached=(in_memory(node, 0, checksum=99),))
    (told,) = stand.noted("cached_indeterminate_recomputed")
    assert (told["node"], told["partition"]) == (node, 0)
    assert current_generation(stand, shuffle) == 1 and stand.withdrawn == {job: 1}, "S17"
    assert stand.results[job] == {}, "nor does the attempt count that had read the old outputs"
    stand.run(job)
    assert stand.finished[job] is None and stand.starts(shuffle) == {0: 2, 1: 2}, "R3"
    assert sorted(stand.core.blocks.held[node]) == [0, 1], "what was not lost is kept"


def one_on_the_other(stand: Stand) -> tuple[NodeId, NodeId, NodeId]:
    """Two persisted nodes, the second made of the first, of which the first is gone from memory; and a node
    that needs both."""
    lineage = Lineage()
    below = lineage.persist(lineage.source(1))
    above = lineage.persist(lineage.map(below))
    stand.submit(lineage, above)
    held = (in_memory(below, 0, checksum=10), in_memory(above, 0, checksum=20))
    stand.succeed(stand.one(0), cached=held)
    stand.submit(lineage, lineage.source(1))
    stand.succeed(stand.one(0), dropped=((below, 0),))
    both = lineage.zip(above, below)
    stand.submit(lineage, lineage.reduce(both, 1))
    return below, above, both


def test_BL_12_an_attempt_that_read_what_stood_on_another_edition_does_not_count() -> None:
    stand = Stand(executors=1)
    below, above, _ = one_on_the_other(stand)
    stand.succeed(stand.one(0), cached=(in_memory(below, 0, checksum=99),))  # it has read ``above`` as it was
    assert stand.kinds()["output_refused"] == 1 and not stand.core.blocks.held[above]
    stand.pass_time(1.0)
    stand.succeed(stand.one(0), cached=(in_memory(above, 0, checksum=98),))
    assert stand.kinds()["output_refused"] == 1


def test_BL_12_nor_one_that_made_both_anew_of_which_the_second_is_dropped() -> None:
    stand = Stand(executors=1)
    below, above, _ = one_on_the_other(stand)
    anew = in_memory(below, 0, checksum=99), in_memory(above, 0, checksum=98)
    stand.succeed(stand.one(0), cached=anew)
    assert stand.kinds()["output_refused"] == 1, "nobody else could ever have that edition of the second"
    assert stand.core.blocks.held[below] and not stand.core.blocks.held[above]


def test_BL_12_an_output_is_not_adopted_when_what_its_attempt_has_kept_died_with_it() -> None:
    stand = Stand(executors=1)
    one_on_the_other(stand)
    writer = stand.one(0)
    stand.exit(writer.executor, outputs=[stand.status(writer)])
    assert not stand.kinds()["output_adopted"]


def test_BL_12_nor_when_it_was_the_first_to_compute_it_or_may_not_have_found_it_in_memory() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    node = lineage.persist(lineage.source(1))
    job = stand.submit(lineage, lineage.reduce(node, 1))
    first = stand.one(0)
    stand.exit(first.executor, outputs=[stand.status(first)])
    stand.add_executor("h0")
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=10),))
    stand.run(job)
    stand.submit(lineage, lineage.reduce(node, 1))
    second = stand.one(0)
    stand.exit(second.executor, outputs=[stand.status(second)])
    assert not stand.kinds()["output_adopted"]


def elsewhere(stand: Stand) -> tuple[Lineage, NodeId, str]:
    """A persisted partition (checksum 10) that is in the memory of an executor that is given no tasks."""
    lineage = Lineage()
    node = lineage.persist(lineage.source(1))
    stand.run(stand.submit(lineage, node))
    holder = stand.add_executor("h0")
    stand.tell("worker-h0", ExecutorStopped(holder, True))
    stand.core.blocks.add(holder, in_memory(node, 0, checksum=10))
    return lineage, node, holder


def test_BL_12_who_may_have_read_what_is_refused_in_the_same_memory_begins_again() -> None:
    stand = Stand(executors=1, slots=2, locality_wait_s=0.0)
    lineage, node, holder = elsewhere(stand)
    first = stand.submit(lineage, lineage.map(node))
    second = stand.submit(lineage, lineage.map(node))
    third = stand.submit(lineage, lineage.source(1))
    astray, reader = (
        next(t for t in stand.running() if t.message.blob == BlobId(j)) for j in (first, second)
    )
    assert astray.executor == reader.executor != holder
    stand.succeed(astray, cached=(in_memory(node, 0, checksum=99),))
    stand.succeed(reader)  # it may have found that edition there
    stand.run(third)
    assert stand.results[first] == stand.results[second] == {} and stand.finished[third] is None
    assert set(stand.core.blocks.held[node][0].memory) == {holder}


@pytest.mark.parametrize("checksum", [10, 99])
def test_BL_12_what_is_evicted_to_disk_is_used_only_if_it_is_the_same_edition(checksum: int) -> None:
    stand = Stand(executors=1, locality_wait_s=0.0)
    lineage, node, holder = elsewhere(stand)
    stand.submit(lineage, lineage.source(1))
    evicted = replace(in_memory(node, 0, checksum=checksum), block=block(node, 0).block)
    stand.succeed(stand.one(0), cached=(evicted,), dropped=((node, 0),))
    holding = stand.core.blocks.held[node][0]
    assert set(holding.memory) == {holder} and bool(holding.disk) is (checksum == 10)


def test_BL_12_a_cached_partition_that_comes_out_the_same_costs_nothing_else() -> None:
    stand = Stand(executors=2)
    _, node, shuffle, job = two_uses(stand)
    stand.succeed(stand.one(1))
    stand.exit(in_other_hands(stand, node, 0))
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=10),))
    stand.run(job)
    assert stand.finished[job] is None and stand.starts(shuffle) == {0: 1, 1: 1}, "R2"
    assert not stand.kinds()["cached_indeterminate_recomputed"] and not stand.withdrawn


def test_BL_12_one_that_differs_under_nothing_that_is_held_only_takes_the_place_of_the_old_one() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    node = lineage.persist(lineage.source(2))
    first = stand.submit(lineage, node)
    for partition in (0, 1):
        stand.succeed(stand.one(partition), cached=(in_memory(node, partition, checksum=10),))
    holder = in_other_hands(stand, node, 0)
    stand.exit(holder)
    second = stand.submit(lineage, lineage.map(node), final=True)
    stand.succeed(stand.one(1))
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=99),))
    assert stand.finished == {first: None, second: None}, "partition 1 does not rest on partition 0"
    assert stand.kinds()["cached_indeterminate_recomputed"] == 1


def test_BL_12_a_second_copy_that_differs_is_not_used_and_its_task_goes_where_the_first_is() -> None:
    lineage, stand = Lineage(), Stand(executors=2, locality_wait_s=1.0)
    node = lineage.persist(lineage.source(1))
    stand.run(stand.submit(lineage, node))
    stand.submit(lineage, lineage.source(1))
    busy = stand.one(0)
    stand.core.blocks.add(busy.executor, in_memory(node, 0, checksum=10))
    job = stand.submit(lineage, lineage.map(node))
    stand.pass_time(1.1)
    astray = next(t for t in stand.running() if t.message.blob == BlobId(job))
    assert astray.executor != busy.executor
    stand.succeed(astray, cached=(in_memory(node, 0, checksum=99),))
    assert stand.results[job] == {} and set(stand.core.blocks.held[node][0].memory) == {busy.executor}
    assert stand.messages(DropBlocks, astray.executor)[-1].nodes == (node,)
    stand.pass_time(10.0)
    assert stand.running() == [busy], "from now on it waits, however long"
    stand.succeed(busy)
    stand.run(job)
    assert stand.finished[job] is None and set(stand.core.blocks.held[node][0].memory) == {busy.executor}


def test_BL_12_nor_is_it_computed_elsewhere_while_others_of_its_stage_wait_for_a_shuffle() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    node = lineage.persist(lineage.source(2))
    stand.submit(lineage, node)
    for partition in (0, 1):
        stand.succeed(stand.one(partition), cached=(in_memory(node, partition, checksum=10 + partition),))
    stand.core.blocks.indeterminate.add(node)
    stand.submit(lineage, lineage.source(2))
    busy = stand.running()
    idle = stand.add_executor("h0")
    either = lineage.union(node, lineage.read(lineage.shuffle(node, 2)))
    job = stand.submit(lineage, either)
    stand.pass_time(10.0)
    assert not [task for task in stand.running() if task.executor == idle], "both memories are busy: it waits"
    stand.succeed(*busy)
    stand.run(job)
    assert stand.finished[job] is None and not stand.noted("cached_indeterminate_recomputed")
    direct = [t for t in stand.launched.values() if t.message.blob == BlobId(job) and t.partition < 2]
    assert all(t.executor == in_other_hands(stand, node, t.partition) for t in direct)


def test_BL_12_what_was_built_from_a_partition_that_was_unpersisted_since_is_undone_too() -> None:
    stand = Stand(executors=2)
    lineage, node, shuffle, job = two_uses(stand)
    stand.run(job)
    other = lineage.reduce(node, 2)
    stand.do(Released(nodes=(node,), blobs=(BlobId(job),)))
    assert not stand.core.blocks.tracks(node)
    job = stand.submit(lineage, lineage.zip(other, lineage.read(shuffle)))
    assert not stand.starts(shuffle) - Counter({0: 1, 1: 1}), "the outputs of the first job are used"
    for partition in (0, 1):
        task = stand.one(partition)
        stand.succeed(task, cached=(in_memory(node, partition, checksum=90 + partition),))
    assert current_generation(stand, shuffle) >= 1, "they were built from another edition"
    stand.run(job)
    assert stand.finished[job] is None and stand.starts(shuffle) == {0: 2, 1: 2}, "R3"


def test_BL_12_editions_are_forgotten_with_what_was_built_from_them() -> None:
    stand = Stand(executors=2)
    lineage = Lineage()
    below = lineage.persist(lineage.source(1))
    above = lineage.persist(lineage.map(below))
    shuffle = lineage.shuffle(above, 1)
    job = stand.submit(lineage, lineage.read(shuffle))
    stand.succeed(stand.one(0), cached=(in_memory(below, 0, 10), in_memory(above, 0, 20)))
    stand.run(job)
    stand.do(Released(nodes=(below,), blobs=(BlobId(job),)))
    assert (below, 0) in stand.core.blocks.checksums, "the shuffle and the other node stand on it"
    stand.do(Released(shuffles=(shuffle,)))
    assert (below, 0) in stand.core.blocks.checksums, "the other node stands on it"
    stand.do(Released(nodes=(above,)))
    assert not stand.core.blocks.checksums and not stand.core.blocks.outlived


def test_BL_12_a_killed_attempt_changes_no_cached_partition() -> None:
    stand = Stand(executors=2)
    _, node, shuffle, job = two_uses(stand)
    stand.succeed(stand.one(1))
    stand.exit(in_other_hands(stand, node, 0))
    task = stand.one(0)
    stand.cancel(job)
    stand.end(task, Killed("told to"), cached=(in_memory(node, 0, checksum=99),))
    assert current_generation(stand, shuffle) == 0 and 0 not in stand.core.blocks.held[node]
    assert stand.messages(DropBlocks, task.executor)[-1].nodes == (node,)


def passed_by(node: int, partition: int, checksum: int) -> CachedBlock:
    """A partition that its task computed and used, and that found no room."""
    return CachedBlock(NodeId(node), partition, 0, checksum=checksum, kept=False)


def two_uses_without_room(stand: Stand) -> tuple[NodeId, ShuffleId, JobId]:
    """As ``two_uses``, in a memory that is full."""
    lineage = Lineage()
    node = lineage.persist(lineage.source(1))
    shuffle = lineage.shuffle(node, 1)
    job = stand.submit(lineage, lineage.zip(node, lineage.read(shuffle)))
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 10),))
    return node, shuffle, job


def test_BL_12_what_found_no_room_and_comes_out_different_is_not_mixed_with_what_it_was() -> None:
    stand = Stand(executors=2)
    node, shuffle, job = two_uses_without_room(stand)
    assert not stand.core.blocks.held[node], "nobody holds it"
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 99),))
    assert current_generation(stand, shuffle) == 1 and stand.results[job] == {}, "S17"
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 99),))
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 99),))
    assert stand.finished[job] is None and stand.starts(shuffle) == {0: 2}


def test_BL_12_what_finds_no_room_and_comes_out_the_same_costs_nothing() -> None:
    stand = Stand(executors=2)
    node, shuffle, job = two_uses_without_room(stand)
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 10),))
    assert stand.finished[job] is None and stand.starts(shuffle) == {0: 1}
    assert not stand.kinds()["rollback"] and len(stand.noted("not_cached")) == 2


def test_BL_12_one_that_never_comes_out_the_same_and_finds_no_room_ends_its_job_by_name() -> None:
    stand = Stand(executors=2)
    node, _, job = two_uses_without_room(stand)
    for edition in range(100, 400):
        if job in stand.finished:
            break
        stand.succeed(stand.one(0), cached=(passed_by(node, 0, edition),))
    failure = stand.finished[job]
    assert failure is not None and failure.condition == "INDETERMINATE_OUTPUT_ROLLBACK"


def test_BL_12_who_computes_another_edition_beside_a_held_one_for_want_of_room_does_not_count() -> None:
    stand = Stand(executors=1, locality_wait_s=0.0)
    lineage, node, holder = elsewhere(stand)
    job = stand.submit(lineage, lineage.map(node))
    astray = stand.one(0)
    assert astray.executor != holder
    stand.succeed(astray, cached=(passed_by(node, 0, 99),))
    assert stand.results[job] == {} and stand.kinds()["output_refused"] == 1
    assert set(stand.core.blocks.held[node][0].memory) == {holder}


def test_BL_12_nor_who_has_computed_one_twice_and_got_two() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    node = lineage.persist(lineage.source(1))
    job = stand.submit(lineage, lineage.zip(node, lineage.map(node)))
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 10), passed_by(node, 0, 11)))
    assert stand.results[job] == {} and stand.kinds()["output_refused"] == 1
    stand.pass_time(1.0)
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 12), passed_by(node, 0, 12)))
    assert stand.finished[job] is None


def test_BL_12_an_attempt_that_failed_has_used_nothing() -> None:
    stand = Stand(executors=2)
    node, shuffle, job = two_uses_without_room(stand)
    stand.end(stand.one(0), UserError("ValueError", "no", "trace"), cached=(passed_by(node, 0, 99),))
    stand.succeed(stand.one(0), cached=(passed_by(node, 0, 10),))
    assert stand.finished[job] is None and current_generation(stand, shuffle) == 0


def test_BL_10_a_block_in_a_store_that_was_given_up_is_held_by_nobody_and_its_edition_counts() -> None:
    stand = Stand(executors=2)
    lineage = Lineage()
    node = lineage.persist(lineage.source(1))
    job = stand.submit(lineage, node)
    task = stand.one(0)
    stand.core.health.quarantined.add(task.executor)
    written = replace(block(node, 0, stand.host_of[task.executor], task.executor), checksum=10)
    stand.succeed(task, cached=(written,))
    assert stand.finished[job] is None and not stand.core.blocks.held[node]
    assert stand.core.blocks.checksums == {(node, 0): 10}
