"""A host is lost for good with all that lay on it: what is needed of it is planned at once."""

import os
import shutil
import signal
from collections import Counter, defaultdict
from operator import add

from spark_ft import StorageLevel
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 600


def lose_host(running: faultlib.Running, host: str) -> None:
    """SIGKILL to its worker and executors, and its directory goes; the death is noticed within a second."""
    worker = running.log.of("worker_added", host=host)[-1]
    executors = [
        e for e in running.log.of("executor_added", host=host) if e["executor"] in running.log.pids()
    ]
    pids = [worker["pid"], *(event["pid"] for event in executors)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    directory = running.sc._driver.scratch / "hosts" / host
    shutil.rmtree(directory)
    wait_until(lambda: not any(faultlib.is_alive(pid) for pid in pids), 1.0, "the end of the host")
    running.log.wait_for("worker_lost", worker=worker["worker"], deadline_s=1.0)
    assert executors


def test_WK_2_a_lost_host_costs_its_outputs_of_all_live_shuffles_planned_at_once(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    shared = [Gate(tmp_path / f"shared-{number}").share(3) for number in range(4)]
    numbers = running.sc.parallelize(range(NUMBERS), 6)
    left = numbers.mapPartitionsWithIndex(shared[0]).map(lambda x: (x % 50, x)).reduceByKey(add, 6)
    right = numbers.mapPartitionsWithIndex(shared[1]).map(lambda x: (x % 50, -x)).reduceByKey(max, 6)
    left, right = left.mapPartitionsWithIndex(shared[2]), right.mapPartitionsWithIndex(shared[3])
    joined = left.join(right, 3).mapPartitionsWithIndex(gate.hold)
    action = Action(lambda: sorted(joined.collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers")
    starts = {e["task"]: e for e in running.log.of("task_start", kind="map")}
    written = defaultdict(set)  # host -> (stage, partition) of map outputs
    for end in running.log.of("task_end", reason="Success"):
        if end["task"] in starts:
            start_event = starts[end["task"]]
            written[start_event["host"]].add((start_event["stage"], start_event["partition"]))
    host = "host-1"
    stages = {stage for stage, _ in written[host]}
    assert len(stages) == 4, "outputs of all four shuffles lie there"
    lose_host(running, host)
    gate.open()
    assert action.result() == [(key, (sum(range(key, NUMBERS, 50)), -key)) for key in range(50)]
    lost = {(event["shuffle"], event["map"]) for event in running.log.of("output_lost")}
    assert {event["evidence"] for event in running.log.of("output_lost")} == {"host lost"}
    assert len(lost) == len(written[host])
    # Reducers that ran already may meet the loss; nobody learns anything from it that was not known.
    assert {event["host"] for event in running.log.of("fetch_failed")} <= {host}
    assert set(faultlib.redone(running.events(), "map")) == written[host]
    faultlib.assert_r2(running.events(), written[host], "map")
    again = Counter(event["stage"] for event in running.log.of("stage_start", kind="map"))
    assert again == dict.fromkeys(stages, 2), "each map stage is entered again once"


def test_WK_2_a_host_lost_between_jobs_is_rebuilt_as_far_as_the_next_job_needs_it(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.share(3))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    counts = running.sc.parallelize(range(NUMBERS), 6).map(lambda x: (x % 5, 1)).reduceByKey(add, 3)
    expected = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
    assert sorted(sums.collect()) == expected
    assert sorted(counts.collect()) == [(key, NUMBERS // 5) for key in range(5)]
    before = faultlib.starts_per_partition(running.events(), "map")
    on_host = [e for e in running.log.of("task_start", kind="map") if e["host"] == "host-2"]
    lose_host(running, "host-2")
    assert sorted(sums.collect()) == expected
    needed = Counter((e["stage"], e["partition"]) for e in on_host if e["stage"] == 0)
    assert needed
    assert faultlib.starts_per_partition(running.events(), "map") - before == needed
    wait_until(lambda: len(running.executor_pids()) == 3, what="executors in place of the lost ones")


def test_WK_2_of_partitions_kept_on_disk_only_those_of_the_lost_host_are_computed_again(
    start, tmp_path
) -> None:
    running, gate, counts = start(), Gate(tmp_path / "gate"), Gate(tmp_path / "counts")

    def computed(index, records):
        counts.arrive(index)
        return records

    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(gate.share(3))
    kept = numbers.mapPartitionsWithIndex(computed).persist(StorageLevel.DISK_ONLY)
    assert kept.sum() == sum(range(NUMBERS))
    hosts = {event["executor"]: event["host"] for event in running.log.of("executor_added")}
    lost = [e["partition"] for e in running.log.wait_for("cached", 9) if hosts[e["executor"]] == "host-0"]
    assert 0 < len(lost) < 9
    lose_host(running, "host-0")
    for _ in range(2):
        assert kept.sum() == sum(range(NUMBERS))
        assert counts.arrivals() == {str(index): 2 if index in lost else 1 for index in range(9)}


def test_WK_7_the_host_that_rebuilds_is_lost_too_and_the_two_cuts_alone_made_again(
    start, tmp_path
) -> None:
    running, gate, second = start(), Gate(tmp_path / "gate"), Gate(tmp_path / "second")
    flag, share = tmp_path / "flag", Gate(tmp_path / "share").share(3)

    def held(index: int, rows):
        if flag.exists():
            second.wait(index)
        return rows

    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(share)
    sums = numbers.mapPartitionsWithIndex(held).map(lambda x: (x % 50, x)).reduceByKey(add, 3)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers")

    def written_on(host: str) -> list[tuple[int, int]]:
        starts = {e["task"]: e for e in running.log.of("task_start", kind="map", host=host)}
        ends = [e["task"] for e in running.log.of("task_end", reason="Success")]
        return [(starts[task]["stage"], starts[task]["partition"]) for task in ends if task in starts]

    first_cut = written_on("host-1")
    assert first_cut
    flag.touch()
    lose_host(running, "host-1")
    gate.open()
    wait_until(second.waiting, what="a rebuilding task")
    pids = {second.pid_of(name) for name in second.arrivals()}
    rebuilders = {e["host"] for e in running.log.of("task_start", kind="map") if e["pid"] in pids}
    victim = next(iter(rebuilders - {"host-1"}))
    second_cut = written_on(victim)
    assert second_cut
    lose_host(running, victim)
    second.open()
    assert action.result() == [(key, sum(range(key, NUMBERS, 50))) for key in range(50)]
    assert set(faultlib.redone(running.events(), "map")) == {*first_cut, *second_cut}
    faultlib.assert_r2(running.events(), first_cut + second_cut, "map")
