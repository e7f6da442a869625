"""A process dies in the middle of a store: who is blamed, and what is made again (ST-10)."""

from spark_ft.ids import HostId
from spark_ft.protocol.messages import KillExecutor, SegmentTouched, Success
from tests.builders import Launched, Stand
from tests.unit.scheduler.test_failures import to_the_reduce_side, wide


def die_in(stand: Stand, task: Launched, store: str, segment: int, damaged: bool = True) -> None:
    """The process of this attempt dies reading there, and a new one takes its place."""
    stand.start(task)
    touched = (SegmentTouched(HostId("h0"), store, segment, damaged),)
    stand.exit(task.executor, signal=11, running=(task.task,), touched=touched)
    stand.add_executor("h0")


def reducers(stand: Stand) -> list[Launched]:
    return [task for task in stand.running() if not task.is_map]


def test_ST_10_who_dies_in_a_damaged_segment_has_not_failed_and_only_that_segment_is_made_again() -> None:
    stand = Stand(executors=2, max_failures=1)
    lineage, shuffle = wide(stand, maps=6)
    job = stand.submit(lineage, lineage.read(shuffle))
    while any(task.is_map for task in stand.running()):  # the last ones lie in their stores' next segments
        task = next(task for task in stand.running() if task.is_map)
        stand.end(task, Success(stand.status(task, segment=task.partition // 4)))
    statuses = [status for status in stand.core.outputs[shuffle].statuses if status is not None]
    bad = {s.map_index for s in statuses if (s.store, s.segment) == ("e0", 0)}
    assert len(statuses) == 6 and 0 < len(bad) < len({s.map_index for s in statuses if s.store == "e0"})
    die_in(stand, reducers(stand)[1], "e0", 0)
    (lost,) = stand.noted("executor_lost")
    assert lost["blame"] == "storage" and "segment 0 of store e0 on h0, which is damaged" in str(lost["why"])
    assert {note["map"] for note in stand.noted("output_lost")} == bad
    stand.run(job)
    assert stand.finished[job] is None
    assert {i for i, starts in stand.starts(shuffle).items() if starts > 1} == bad


def test_ST_10_a_segment_that_verifies_is_kept_and_the_task_is_not_blamed_for_its_reader_either() -> None:
    stand = Stand(executors=2, max_failures=1)
    lineage, shuffle = wide(stand, maps=2)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    die_in(stand, reducers(stand)[0], "e0", 0, damaged=False)
    (lost,) = stand.noted("executor_lost")
    assert lost["blame"] == "executor" and "which verifies" in str(lost["why"])
    stand.run(job)
    assert stand.finished[job] is None and set(stand.starts(shuffle).values()) == {1}


def test_ST_10_two_deaths_in_one_segment_count_once_and_two_segments_condemn_the_store() -> None:
    stand = Stand(executors=3)
    lineage, shuffle = wide(stand, maps=3, reduces=3)
    job = stand.submit(lineage, lineage.read(shuffle))
    to_the_reduce_side(stand)
    first, second, third = reducers(stand)
    die_in(stand, second, "e0", 0)
    die_in(stand, third, "e0", 0)
    assert stand.kinds()["segment_lost"] == 1 and not stand.kinds()["store_quarantined"]
    assert not stand.messages(KillExecutor), "who has written there is healthy"
    task = next(task for task in stand.running() if task.executor != "e0" and task is not first)
    die_in(stand, task, "e0", 1)
    assert stand.kinds()["store_quarantined"] == 1
    stand.exit("e0")
    stand.run(job)
    assert stand.finished[job] is None


def test_ST_10_deaths_in_ever_new_segments_end_the_job_by_name() -> None:
    stand = Stand(executors=1)
    lineage, shuffle = wide(stand, maps=1, reduces=1)
    job = stand.submit(lineage, lineage.read(shuffle))
    deaths = 0
    while job not in stand.finished:
        task = stand.running()[0]
        if task.is_map:
            stand.succeed(task)
            continue
        (status,) = [status for status in stand.core.outputs[shuffle].statuses if status is not None]
        die_in(stand, task, status.store, status.segment)
        deaths += 1
        assert deaths < 50, "it would go on for ever"
    assert stand.failure(job).condition == "SHUFFLE_DATA_LOST"
