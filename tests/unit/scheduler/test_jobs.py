"""Jobs and stages when nothing fails."""

import pytest

from spark_ft.ids import BlobId, JobId
from spark_ft.protocol.effects import CancelJobs, Released, Stopping
from spark_ft.protocol.messages import DropBlocks, DropShuffles, Killed, KillTask, LaunchTasks, MapOutputs
from tests.builders import Lineage, Stand


def test_a_job_of_one_stage_delivers_every_partition_and_ends() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(5))
    assert len(stand.running()) == 2
    stand.run(job)
    assert sorted(stand.results[job]) == [0, 1, 2, 3, 4]
    assert stand.finished[job] is None
    stand.core.assert_idle()


def test_only_the_partitions_asked_for_are_run() -> None:
    lineage, stand = Lineage(), Stand()
    job = stand.submit(lineage, lineage.source(5), partitions=[3, 1])
    stand.run(job)
    assert stand.starts() == {1: 1, 3: 1}


def test_a_job_of_no_partitions_ends_at_once_without_executors() -> None:
    lineage, stand = Lineage(), Stand(executors=0)
    job = stand.submit(lineage, lineage.source(0))
    assert stand.finished[job] is None


def test_a_shuffle_is_written_before_it_is_read_and_told_once_a_version() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.reduce(lineage.map(lineage.source(3)), 2))
    for _ in range(3):
        assert stand.running()[0].is_map
        stand.succeed(stand.running()[0])
    assert not stand.running()[0].is_map
    stand.run(job)
    assert len(stand.messages(MapOutputs)) == 1
    assert [s.map_index for s in stand.messages(MapOutputs)[0].statuses] == [0, 1, 2]


def test_the_functions_of_a_stage_are_sent_once_to_each_executor() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(9))
    stand.run(job)
    assert set(stand.blobs.values()) == {1} and len(stand.blobs) == 2


def test_stage_ids_of_successive_one_stage_jobs_are_consecutive() -> None:
    lineage, stand = Lineage(), Stand()
    source = lineage.source(1)
    for _ in range(3):
        stand.run(stand.submit(lineage, source))
    assert [note["stages"] for note in stand.noted("job_start")] == [[0], [1], [2]]


def test_a_shuffle_is_computed_once_and_counts_as_a_stage_of_every_job_on_it() -> None:
    lineage, stand = Lineage(), Stand()
    reduced = lineage.reduce(lineage.source(3), 2)
    stand.run(stand.submit(lineage, reduced))
    stand.run(stand.submit(lineage, lineage.map(reduced)))
    assert stand.starts(lineage.nodes[reduced].shuffles[0]) == {0: 1, 1: 1, 2: 1}
    assert [note["stages"] for note in stand.noted("job_start")] == [[0, 1], [0, 2]]
    starts = stand.noted("stage_start")
    assert [(s["stage"], s["kind"], s["tasks"], s["parents"]) for s in starts] == [
        (0, "map", 3, []), (1, "result", 2, [0]), (2, "result", 2, [0]),
    ]  # fmt: skip


def test_two_jobs_share_a_shuffle_that_is_still_being_written() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    reduced = lineage.reduce(lineage.source(3), 2)
    first, second = stand.submit(lineage, reduced), stand.submit(lineage, reduced)
    stand.run(first, second)
    assert set(stand.starts(lineage.nodes[reduced].shuffles[0]).values()) == {1}


def test_fifo_gives_slots_to_the_older_job_first() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    source = lineage.source(3)
    stand.submit(lineage, source), stand.submit(lineage, source)
    blobs = []
    while stand.running():
        blobs.append(stand.running()[0].message.blob)
        stand.succeed(stand.running()[0])
    assert blobs == [0, 0, 0, 1, 1, 1]


def test_fair_gives_pools_the_same_number_of_slots() -> None:
    lineage, stand = Lineage(), Stand(executors=4, scheduler_mode="FAIR")
    source = lineage.source(20)
    stand.submit(lineage, source, pool="a")
    for _ in range(4):
        stand.succeed(stand.running()[0])
    stand.submit(lineage, source, pool="b")
    for _ in range(4):
        stand.succeed(stand.running()[0])
    blobs = [task.message.blob for task in stand.running()]
    assert blobs.count(BlobId(0)) == blobs.count(BlobId(1)) == 2


def test_launches_of_one_turn_travel_in_one_message_an_executor() -> None:
    lineage, stand = Lineage(), Stand(executors=1, slots=4)
    stand.submit(lineage, lineage.source(8), properties={"k": "v"})
    (message,) = stand.messages(LaunchTasks)
    assert [launch.partition for launch in message.tasks] == [0, 1, 2, 3]
    assert message.properties == {"k": "v"}


def test_attempts_are_queued_behind_busy_slots_only_when_no_slot_is_free() -> None:
    lineage, stand = Lineage(), Stand(executors=2, prefetch_tasks=1)
    stand.submit(lineage, lineage.source(3))
    assert [stand.one(p).executor for p in range(3)] == ["e0", "e1", "e0"]
    assert stand.kinds()["task_start"] == 0
    stand.start(stand.one(0), stand.one(1))
    assert stand.kinds()["task_start"] == 2


def test_a_queued_attempt_is_asked_back_for_an_idle_executor() -> None:
    lineage, stand = Lineage(), Stand(executors=2, prefetch_tasks=1)
    stand.submit(lineage, lineage.source(3))
    first, second, queued = (stand.one(p) for p in range(3))
    stand.start(first, second)
    stand.succeed(second)
    wakeup_s = stand.core.wakeup_s()
    assert wakeup_s is not None and wakeup_s - stand.now_s < 0.1
    stand.tick(0.06)
    (recall,) = stand.messages(KillTask)
    assert recall.task == queued.task and recall.queued_only
    stand.end(queued, Killed("taken out of the queue"))
    assert stand.one(queued.partition).executor == "e1"


def test_an_attempt_that_began_in_spite_of_being_asked_back_counts() -> None:
    lineage, stand = Lineage(), Stand(executors=2, prefetch_tasks=1)
    job = stand.submit(lineage, lineage.source(3))
    first, second, queued = (stand.one(p) for p in range(3))
    stand.start(first, second)
    stand.succeed(second)
    stand.tick(0.06)
    stand.succeed(first, queued)
    assert stand.finished[job] is None and stand.starts()[queued.partition] == 1


def test_TK_16_a_cancelled_job_ends_once_and_launches_nothing_more() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(3))
    running = stand.running()[0]
    stand.cancel(job)
    assert stand.failure(job).condition == "JOB_CANCELLED"
    assert [kill.task for kill in stand.messages(KillTask)] == [running.task]
    stand.succeed(running)
    assert stand.results[job] == {} and len(stand.launched) == 1
    stand.core.assert_idle()


def test_TK_16_a_stage_that_another_job_needs_goes_on_after_a_cancel() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    reduced = lineage.reduce(lineage.source(2), 1)
    first, second = stand.submit(lineage, reduced), stand.submit(lineage, reduced)
    stand.cancel(first)
    assert not stand.messages(KillTask)
    stand.run(second)
    assert stand.finished[second] is None
    assert set(stand.starts(lineage.nodes[reduced].shuffles[0]).values()) == {1}


def test_jobs_are_cancelled_by_group_by_tag_and_all_at_once() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    source = lineage.source(1)
    jobs = [
        stand.submit(lineage, source, group="g"),
        stand.submit(lineage, source, tags=frozenset({"t"})),
        stand.submit(lineage, source),
    ]
    stand.do(CancelJobs(group="g"))
    assert set(stand.finished) == {jobs[0]}
    stand.do(CancelJobs(tag="t"))
    assert set(stand.finished) == {jobs[0], jobs[1]}
    stand.do(CancelJobs())
    assert set(stand.finished) == set(jobs)


def test_a_stopping_application_cancels_its_jobs_and_takes_no_new_ones() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    job = stand.submit(lineage, lineage.source(1))
    stand.do(Stopping())
    late = stand.submit(lineage, lineage.source(1))
    assert stand.failure(job).condition == stand.failure(late).condition == "JOB_CANCELLED"


def test_BL_15_a_shuffle_is_dropped_only_when_no_job_in_flight_needs_it() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    reduced = lineage.reduce(lineage.source(2), 1)
    shuffle = lineage.nodes[reduced].shuffles[0]
    job = stand.submit(lineage, reduced)
    stand.do(Released(shuffles=(shuffle,)))
    assert shuffle in stand.core.outputs and not stand.messages(DropShuffles)
    stand.run(job)
    assert shuffle not in stand.core.outputs
    assert stand.messages(DropShuffles)[0].fingerprints == (lineage.shuffles[shuffle].fingerprint,)
    for executor in ("e0", "e1", "e2"):  # whoever has read some of it, or written
        assert any(drop.shuffles == (shuffle,) for drop in stand.messages(DropBlocks, executor))


def test_functions_are_dropped_from_executors_that_have_them() -> None:
    lineage, stand = Lineage(), Stand(executors=2)
    job = stand.submit(lineage, lineage.source(1))
    stand.run(job)
    stand.do(Released(blobs=(BlobId(job),)))
    assert [(s.to, s.message.blobs) for s in stand.sent if isinstance(s.message, DropBlocks)] == [
        ("e0", (0,))
    ]


def test_BL_16_deep_lineages_are_planned_without_recursion() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    node = lineage.source(1)
    for _ in range(10_000):
        node = lineage.map(node)
    for _ in range(200):
        node = lineage.reduce(node, 1)
    job = stand.submit(lineage, node)
    stand.run(job)
    assert stand.finished[job] is None and len(stand.launched) == 201


def test_BL_17_shared_sub_graphs_are_walked_once() -> None:
    lineage, stand = Lineage(), Stand(executors=1)
    node = lineage.persist(lineage.source(2))
    for _ in range(30):
        node = lineage.persist(lineage.zip(node, node))
    job = stand.submit(lineage, node)
    stand.run(job)
    assert stand.finished[job] is None


def test_a_partition_asked_for_twice_is_a_mistake_of_the_caller() -> None:
    lineage, stand = Lineage(), Stand()
    source = lineage.source(2)
    with pytest.raises(AssertionError):
        stand.submit(lineage, source, partitions=[1, 1])
    assert JobId(0) not in stand.core.dag.jobs
