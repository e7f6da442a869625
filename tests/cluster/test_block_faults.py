"""Blocks are missing, damaged or gone with a process: only what was proved lost is done again."""

import os
import random
import re
import shutil
from collections import Counter, defaultdict
from operator import add
from pathlib import Path

import pytest

from spark_ft import StorageLevel
from spark_ft.errors import JobError
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, Running, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


def store_of(running: Running, executor: str) -> Path:
    (path,) = (running.sc._driver.scratch / "hosts").glob(f"*/stores/{executor}")
    return path


def written_by(running: Running) -> dict[str, list[int]]:
    """executor -> map partitions whose output it has committed."""
    places: dict[str, list[int]] = defaultdict(list)
    kinds = {event["task"]: faultlib.stage_kind(event) for event in running.log.of("task_start")}
    for event in running.log.of("task_end", reason="Success"):
        if kinds.get(event["task"]) == "map":
            places[event["executor"]].append(event["partition"])
    return dict(places)


def reducers_at_gate(running: Running, gate: Gate, maps: int, reducers: int, map_function=None) -> Action:
    """Sums by key; the map stage has run on all three executors, and the reducers have yet to read."""
    function = map_function or (lambda x: (x % 5, x))
    numbers = running.sc.parallelize(range(NUMBERS), maps).mapPartitionsWithIndex(gate.share(3))
    sums = numbers.map(function).reduceByKey(add, reducers)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers")
    assert len(written_by(running)) == 3, "each executor has written map outputs"
    return action


def counted(running: Running, gate: Gate, counts: Gate):
    """Nine partitions, spread over three executors; ``counts`` sees how often each is computed."""

    def computed(index, records):
        counts.arrive(index)
        return records

    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(gate.share(3))
    return numbers.mapPartitionsWithIndex(computed)


def test_BL_1_of_a_deleted_store_only_its_maps_run_again(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    action = reducers_at_gate(running, gate, maps=6, reducers=3)
    executor, lost = sorted(written_by(running).items())[0]
    path = store_of(running, executor)
    shutil.rmtree(path)
    assert not path.exists()
    gate.open()
    assert action.result() == SUMS
    assert running.log.of("fetch_failed", evidence="missing"), "nobody missed it"
    assert running.starts("map") == Counter(range(6)) + Counter(lost)
    assert not running.log.of("executor_lost")


def test_BL_9_a_burst_of_failed_fetches_is_one_recovery_with_one_extra_attempt(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    action = reducers_at_gate(running, gate, maps=18, reducers=9)
    executor, lost = max(written_by(running).items(), key=lambda item: len(item[1]))
    assert len(lost) >= 5
    shutil.rmtree(store_of(running, executor))
    gate.open()
    assert action.result() == SUMS
    assert len(running.log.of("fetch_failed")) >= 2, "it was no burst"
    assert running.starts("map") == Counter(range(18)) + Counter(lost)
    (first, *again) = running.log.of("stage_start", kind="map")
    assert [(e["stage"], e["tasks"]) for e in again] == [(first["stage"], len(lost))]


def test_BL_1_a_lone_reducer_survives_the_loss_of_more_outputs_than_attempts_are_allowed(
    start, tmp_path
) -> None:
    running, gate = start("local-cluster[2,1,256]"), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 24).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 1)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    reducer = wait_until(lambda: gate.pid_of(0), what="the reducer")
    ((executor, lost),) = [
        (executor, maps)
        for executor, maps in written_by(running).items()
        if executor != running.log.of("executor_added", pid=reducer)[0]["executor"]
    ]
    assert len(lost) > 4
    shutil.rmtree(store_of(running, executor))
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == Counter(range(24)) + Counter(lost)
    assert running.starts("result") == Counter({0: 2})
    # What is written after the loss is found: nothing is missed again, by a later job neither.
    again = running.sc.parallelize(range(NUMBERS), 8).map(lambda x: (x % 5, x)).reduceByKey(add, 4)
    assert sorted(again.collect()) == SUMS
    assert len(running.log.of("fetch_failed")) == 1


def test_BL_3_flipped_bytes_are_noticed_and_only_the_damaged_output_is_made_again(start, tmp_path) -> None:
    running, gate = start(spark_shuffle_compress=False), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.share(3))
    grouped = numbers.map(lambda x: (x % 5, f"<{x:05d}>")).groupByKey(3).mapValues(sorted)
    action = Action(lambda: sorted(grouped.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers")
    (executor,) = [executor for executor, maps in written_by(running).items() if 2 in maps]
    data = store_of(running, executor) / "seg-00000" / "data.mdb"
    before = data.read_bytes()
    assert b"<00251>" in before and b"<99251>" not in before
    with data.open("r+b") as file:  # in freed pages, too, where earlier copies of the page lie
        for found in re.finditer(b"<00251>", before):
            file.seek(found.start())
            file.write(b"<99251>")  # still a fine string, only not the one that was written
    assert data.read_bytes() == before.replace(b"<00251>", b"<99251>")
    gate.open()
    assert action.result() == [(key, [f"<{x:05d}>" for x in range(key, NUMBERS, 5)]) for key in range(5)]
    reports = running.log.of("fetch_failed")
    assert {(event["map"], event["evidence"]) for event in reports} == {(2, "corrupt")}
    assert running.starts("map") == Counter(range(6)) + Counter([2])


def test_BL_11_of_cached_partitions_only_those_of_the_killed_holder_are_computed_again(
    start, tmp_path
) -> None:
    running, gate, counts = start(), Gate(tmp_path / "gate"), Gate(tmp_path / "counts")
    cached = counted(running, gate, counts).cache()
    assert cached.sum() == sum(range(NUMBERS))
    holders = defaultdict(list)
    for event in running.log.wait_for("cached", 9):
        assert not event["disk"]
        holders[event["executor"]].append(event["partition"])
    assert len(holders) == 3
    assert cached.sum() == sum(range(NUMBERS))
    assert counts.arrivals() == {str(index): 1 for index in range(9)}, "the cache was not used"
    victim, lost = sorted(holders.items())[0]
    running.kill(running.log.pids()[victim])
    running.log.wait_for("executor_lost", executor=victim, deadline_s=1.0)
    expected = {str(index): 2 if index in lost else 1 for index in range(9)}
    for _ in range(2):
        assert cached.sum() == sum(range(NUMBERS))
        assert counts.arrivals() == expected


def test_BL_11_two_jobs_that_meet_at_an_uncached_partition_compute_it_once(start, tmp_path) -> None:
    running, gate = start("local[2]"), Gate(tmp_path / "gate")

    def numbers(index, records):
        gate.wait(index)
        return records

    cached = running.sc.parallelize(range(NUMBERS), 1).mapPartitionsWithIndex(numbers).cache()
    jobs = [Action(cached.count), Action(cached.sum)]
    running.log.wait_for("job_start", 2)
    wait_until(lambda: gate.arrivals(), what="the first one to compute it")
    running.sc.parallelize(range(20), 20).count()  # the other executor is free and takes tasks all the while
    assert gate.arrivals() == {"0": 1}
    gate.open()
    assert [job.result() for job in jobs] == [NUMBERS, sum(range(NUMBERS))]
    assert gate.arrivals() == {"0": 1}, "two tasks of one host computed the same cached partition"


def test_BL_11_partitions_on_disk_outlive_their_executors_and_are_read_from_other_hosts(
    start, tmp_path
) -> None:
    running, gate, counts = start(), Gate(tmp_path / "gate"), Gate(tmp_path / "counts")
    kept = counted(running, gate, counts).persist(StorageLevel.DISK_ONLY)
    assert kept.sum() == sum(range(NUMBERS))
    assert len({event["executor"] for event in running.log.wait_for("cached", 9, disk=True)}) == 3
    first = set(running.executor_pids())
    for pid in first:
        running.kill(pid)
    wait_until(lambda: len(set(running.executor_pids()) - first) == 3, what="their successors")
    assert kept.sum() == sum(range(NUMBERS))
    assert kept.coalesce(1).glom().collect() == [list(range(NUMBERS))], "one task reads all hosts' blocks"
    assert counts.arrivals() == {str(index): 1 for index in range(9)}


def test_DR_13_accumulators_count_once_although_map_outputs_are_made_again(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    seen, total = running.sc.accumulator(0), running.sc.accumulator(0)

    def count(x):
        seen.add(1)
        total.add(x)
        return x % 5, x

    action = reducers_at_gate(running, gate, 6, 3, count)
    killed = running.log.pids()
    executor, lost = sorted(written_by(running).items())[0]
    shutil.rmtree(store_of(running, executor))
    running.kill(killed[executor])  # and with it the reducer that it ran
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == Counter(range(6)) + Counter(lost), "nothing was made again"
    assert (seen.value, total.value) == (NUMBERS, sum(range(NUMBERS)))


# --- BL-13: broadcasts -------------------------------------------------------------------------------


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,256]"])
def test_BL_13_a_broadcast_is_fetched_again_by_whoever_comes_for_the_dead(start, master, tmp_path) -> None:
    running, value = start(master, spark_task_maxFailures=1), random.Random(7).randbytes(3 << 20)
    running.log.wait_for("executor_added", 2)
    shared, share = running.sc.broadcast(value), Gate(tmp_path / "gate").share(2)
    numbers = running.sc.parallelize(range(4), 4).mapPartitionsWithIndex(share)
    seen = numbers.map(lambda i: (os.getpid(), shared.value[i : i + 90]))
    expected = [value[i : i + 90] for i in range(4)]
    before = seen.collect()
    for pid in running.executor_pids():
        running.kill(pid)
    after = seen.collect()
    assert not {pid for pid, _ in before} & {pid for pid, _ in after}
    assert [part for _, part in before] == [part for _, part in after] == expected


def test_BL_13_a_read_of_a_broadcast_that_goes_wrong_costs_no_try(start, tmp_path) -> None:
    once, value = tmp_path / "once", random.Random(7).randbytes(3 << 20)
    running = start("local[2]", spark_task_maxFailures=1, spark_ft_failpoints=f"store.read=io!{once}")
    shared = running.sc.broadcast(value)
    parts = running.sc.parallelize(range(4), 4).map(lambda i: shared.value[i : i + 90])
    assert Action(parts.collect).result() == [value[i : i + 90] for i in range(4)]
    assert once.exists(), "no read has gone wrong"
    (failed,) = [end for end in running.log.of("task_end") if faultlib.reason(end) == "FetchFailed"]
    assert failed["blame"] == "storage"
    assert sum(running.starts("result").values()) == 5


def test_BL_13_a_broadcast_that_is_damaged_is_an_error_by_name_and_never_another_value(
    start,
) -> None:
    running, value = start("local[2]"), random.Random(7).randbytes(3 << 20)
    shared = running.sc.broadcast(value)
    (data,) = (running.sc._driver.scratch / "driver" / "stores").glob("*/seg-*/data.mdb")
    where = data.read_bytes().index(value[1 << 20 : (1 << 20) + 64])
    with data.open("r+b") as file:
        file.seek(where)
        file.write(bytes(64))
    parts = running.sc.parallelize(range(2), 2).map(lambda i: shared.value[i : i + 90])
    with pytest.raises(JobError, match="BLOCK_LOST"):
        Action(parts.collect).result()
    assert {e["evidence"] for e in running.log.of("fetch_failed")} == {"corrupt"}
    assert max(running.starts("result").values()) <= 4
    assert running.sc.parallelize(range(3)).count() == 3
