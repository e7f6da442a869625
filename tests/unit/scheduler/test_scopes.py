"""Jobs of one action see one content of what they read, or end by name (S6, BL-5, BL-7, BL-12)."""

import pytest

from spark_ft.ids import HostId, JobId, NodeId, ShuffleId
from spark_ft.protocol.effects import Released, ResultLost
from spark_ft.protocol.messages import BlockRef, StoredResult, Success
from tests.builders import Lineage, Stand, in_memory
from tests.unit.scheduler.test_failures import lose_and_rebuild, to_the_reduce_side, wide


def first_job(stand: Stand, **fields: object) -> tuple[Lineage, ShuffleId]:
    """A job of scope 7 has been answered from one of two partitions above a shuffle."""
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle), [0], scope=7, **fields)
    to_the_reduce_side(stand)
    stand.run(job)
    assert stand.finished[job] is None
    return lineage, shuffle


def second_job(stand: Stand, lineage: Lineage, shuffle: ShuffleId, **fields: object) -> JobId:
    """Another job reads the same shuffle, of which an output is lost and comes out different."""
    job = stand.submit(lineage, lineage.read(shuffle), [1], **fields)
    lose_and_rebuild(stand, shuffle, stand.running()[0], 0)
    return job


@pytest.mark.parametrize("fields", [{"scope": 7}, {"rests_on": (3, 7)}], ids=["of it", "rests on it"])
def test_BL_5_a_later_job_of_an_action_that_would_read_other_data_is_an_error_by_name(fields) -> None:
    stand = Stand(executors=2)
    lineage, shuffle = first_job(stand)
    job = second_job(stand, lineage, shuffle, **fields)
    assert stand.failure(job).condition == "INDETERMINATE_OUTPUT_ROLLBACK"
    assert not stand.results[job], "nothing was handed out"
    third = stand.submit(lineage, lineage.read(shuffle), [1], **fields)
    assert stand.failure(third).condition == "INDETERMINATE_OUTPUT_ROLLBACK"


def test_BL_7_a_job_that_is_of_no_scope_or_of_another_goes_on() -> None:
    for scope in (-1, 8):
        stand = Stand(executors=2)
        lineage, shuffle = first_job(stand)
        job = second_job(stand, lineage, shuffle, scope=scope)
        stand.run(job)
        assert stand.finished[job] is None


def test_an_output_that_comes_out_the_same_spoils_nothing() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = first_job(stand)
    job = stand.submit(lineage, lineage.read(shuffle), [1], scope=7)
    stand.fetch_failed(stand.running()[0], 0)
    stand.run(job)
    assert stand.finished[job] is None


def test_a_scope_that_was_closed_is_forgotten() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = first_job(stand)
    stand.do(Released(scopes=(7,)))
    assert stand.core.dag.scopes.is_idle()
    job = second_job(stand, lineage, shuffle)
    stand.run(job)
    assert stand.finished[job] is None


def test_BL_19_what_a_job_had_answered_before_it_failed_counts_as_handed_out() -> None:
    stand = Stand(executors=2, max_failures=1)
    lineage, shuffle = wide(stand)
    job = stand.submit(lineage, lineage.read(shuffle), scope=7)
    to_the_reduce_side(stand)
    stand.succeed(stand.one(0))
    stand.fail(stand.one(1))
    assert stand.failure(job).condition == "TASK_FAILED"
    again = second_job(stand, lineage, shuffle, scope=7)
    assert stand.failure(again).condition == "INDETERMINATE_OUTPUT_ROLLBACK"


def test_a_result_that_is_lost_after_its_scope_was_spoilt_is_not_computed_from_other_data() -> None:
    stand = Stand(executors=2)
    lineage, shuffle = wide(stand)
    first = stand.submit(lineage, lineage.read(shuffle), [0], scope=7)
    to_the_reduce_side(stand)
    (task,) = stand.running()
    stand.end(task, Success(result=StoredResult(BlockRef(HostId("h0"), "e0", 0, b"r"))))
    assert stand.finished[first] is None
    second_job(stand, lineage, shuffle, scope=7)
    del stand.finished[first]
    stand.do(ResultLost(first, 0, "gone"))
    assert stand.failure(first).condition == "INDETERMINATE_OUTPUT_ROLLBACK"


def test_BL_12_a_persisted_partition_that_came_out_different_spoils_what_rests_on_it() -> None:
    stand = Stand(executors=2)
    lineage = Lineage()
    node = lineage.persist(lineage.source(2))
    first = stand.submit(lineage, node, [0], scope=7)
    task = stand.one(0)
    stand.succeed(task, cached=(in_memory(node, 0, checksum=5),))
    assert stand.finished[first] is None
    stand.exit(task.executor)
    other = stand.submit(lineage, node, scope=7)
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=6),))
    assert stand.failure(other).condition == "INDETERMINATE_OUTPUT_ROLLBACK"


def answered_from_a_persisted_partition(stand: Stand) -> tuple[Lineage, NodeId]:
    """A job of scope 7 was answered from a partition with checksum 5."""
    lineage = Lineage()
    node = lineage.persist(lineage.source(2))
    first = stand.submit(lineage, node, [0], scope=7)
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=5),))
    assert stand.finished[first] is None
    return lineage, node


def test_BL_12_the_task_that_makes_the_other_edition_does_not_end_its_job_well() -> None:
    """It is the last of its job, and spoils the scope in the turn in which it would end it."""
    stand = Stand(executors=2)
    lineage, node = answered_from_a_persisted_partition(stand)
    stand.exit(next(iter(stand.core.blocks.of_executor)))
    other = stand.submit(lineage, node, [0], scope=7)
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=6),))
    assert stand.failure(other).condition == "INDETERMINATE_OUTPUT_ROLLBACK"


@pytest.mark.parametrize(("again", "well"), [(5, True), (6, False)])
def test_BL_12_what_is_unpersisted_amid_an_action_and_comes_back_is_compared(again: int, well: bool) -> None:
    stand = Stand(executors=2)
    lineage, node = answered_from_a_persisted_partition(stand)
    stand.do(Released(nodes=(node,)))
    assert not stand.core.blocks.tracks(node), "it is dropped at once"
    other = stand.submit(lineage, node, [0, 1], scope=7)
    stand.succeed(stand.one(0), cached=(in_memory(node, 0, checksum=again),))
    if well:
        stand.succeed(stand.one(1))
        assert stand.finished[other] is None
    else:
        assert stand.failure(other).condition == "INDETERMINATE_OUTPUT_ROLLBACK"
