"""Long and tangled lineages: no recursion, linear work, little memory, in running as in recovering."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from operator import add

import psutil
import pytest

from tests.cluster import faultlib

pytestmark = pytest.mark.slow

GIB = 1 << 30
DEFAULT_RECURSION_LIMIT = 1000


def cpu_s(running: faultlib.Running) -> float:
    """Processor time of the driver and all executors so far: unlike wall time, it is nobody else's."""
    times = [psutil.Process(pid).cpu_times() for pid in running.executor_pids()]
    return time.process_time() + sum(each.user + each.system for each in times)


def peak_bytes(pid: int | str) -> int:
    """The most memory that a process has ever held."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def assert_linear(running: faultlib.Running, work: Callable[[int], None], most: int) -> None:
    """Four times the depth costs about four times as much (the square would be sixteen times)."""
    assert sys.getrecursionlimit() == DEFAULT_RECURSION_LIMIT
    running.sc.parallelize(range(8), 8).count()
    spent_s = []
    for depth in (most // 4, most):
        before_s = cpu_s(running)
        work(depth)
        spent_s.append(cpu_s(running) - before_s)
    shallow_s, deep_s = spent_s
    told = f"{shallow_s:.2f} s at depth {most // 4}, {deep_s:.2f} s at {most}"
    assert deep_s <= 8 * shallow_s + 0.2, told
    for pid in ["self", *running.executor_pids()]:
        assert peak_bytes(pid) <= GIB


def limits(_: object) -> list[int]:
    return [sys.getrecursionlimit()]


def test_BL_16_ten_thousand_maps_in_a_row(start) -> None:
    running = start("local[2]")
    assert set(running.sc.parallelize(range(4), 4).mapPartitions(limits).collect()) == {
        DEFAULT_RECURSION_LIMIT
    }

    def maps(depth: int) -> None:
        rdd = running.sc.parallelize(range(20), 2)
        for _ in range(depth):
            rdd = rdd.map(lambda x: x + 1)
        assert rdd.collect() == list(range(depth, depth + 20))

    assert_linear(running, maps, 10_000)


def test_BL_16_a_thousand_mapPartitions_in_a_row(start) -> None:
    running = start("local[2]")

    def passes(depth: int) -> None:
        rdd = running.sc.parallelize(range(20), 2)
        for _ in range(depth):
            rdd = rdd.mapPartitions(lambda records: (x + 1 for x in records))
        assert rdd.collect() == list(range(depth, depth + 20))

    assert_linear(running, passes, 1_000)


def test_BL_16_a_union_of_five_thousand(start) -> None:
    running = start("local[2]")

    def union(count: int) -> None:
        parts = [running.sc.parallelize([i], 1) for i in range(count)]
        assert running.sc.union(parts).collect() == list(range(count))

    assert_linear(running, union, 5_000)


def test_BL_16_two_thousand_unions_of_two_one_in_the_other(start) -> None:
    running = start("local[2]")

    def unions(depth: int) -> None:
        rdd = running.sc.parallelize([0], 1)
        for i in range(1, depth):
            rdd = rdd.union(running.sc.parallelize([i], 1))
        assert rdd.collect() == list(range(depth))

    assert_linear(running, unions, 2_000)


def test_BL_16_two_hundred_shuffles_in_a_row(start) -> None:
    running = start("local[2]")

    def shuffles(depth: int) -> None:
        rdd = running.sc.parallelize([(i % 4, 1) for i in range(20)], 2)
        for _ in range(depth):
            rdd = rdd.reduceByKey(add, 2).map(lambda pair: (pair[0], pair[1] + 1))  # forgets how it is placed
        before = len(running.log.of("stage_start"))
        assert sorted(rdd.collect()) == [(key, 5 + depth) for key in range(4)]
        assert len(running.log.of("stage_start")) - before == depth + 1, "not a shuffle each"

    assert_linear(running, shuffles, 200)


def test_BL_16_two_hundred_lost_shuffles_are_made_again_from_the_first_on(start) -> None:
    running, depth = start("local-cluster[2,1,512]"), 200
    rdd = running.sc.parallelize([(i % 4, 1) for i in range(20)], 2)
    for _ in range(depth):
        rdd = rdd.reduceByKey(add, 2).map(lambda pair: (pair[0], pair[1] + 1))
    expected = [(key, 5 + depth) for key in range(4)]
    assert sorted(rdd.collect()) == expected
    made = made_outputs(running)
    assert made == Counter(dict.fromkeys(made, 1)) and len(made) == 2 * depth
    for stores in (running.sc._driver.scratch / "hosts").glob("*/stores"):
        shutil.rmtree(stores)
        stores.mkdir()
    executors = running.executor_pids()
    for pid in [*{psutil.Process(pid).ppid() for pid in executors}, *executors]:
        running.kill(pid)  # whoever has a store open would still read it
    assert sorted(rdd.collect()) == expected
    assert made_outputs(running) - made == made, "each lost output is made again, once"


def made_outputs(running: faultlib.Running) -> Counter[faultlib.Place]:
    """(stage, partition) -> map tasks that succeeded."""
    starts = running.log.of("task_start", kind="map")
    places = {event["task"]: (event["stage"], event["partition"]) for event in starts}
    ends = running.log.of("task_end", reason="Success")
    return Counter(places[end["task"]] for end in ends if end["task"] in places)


# --- Shared lineages --------------------------------------------------------------------------------


def test_BL_17_thirty_zips_of_an_rdd_with_itself(start) -> None:
    running = start("local[2]")

    def zips(depth: int) -> None:
        rdd = running.sc.parallelize(range(6), 2)
        for _ in range(depth):
            rdd = rdd.zip(rdd).map(lambda pair: (pair[0] + pair[1]) % 1009)
        assert rdd.collect() == [x * 2**depth % 1009 for x in range(6)]

    assert_linear(running, zips, 120)


def test_BL_17_thirty_bare_zips_are_planned_and_counted(start) -> None:
    running = start("local[2]")
    rdd = running.sc.parallelize(range(6), 2)
    for _ in range(30):
        rdd = rdd.zip(rdd)
    assert rdd.count() == 6


def test_BL_17_thirty_unions_of_an_rdd_with_itself(start) -> None:
    running = start("local[2]")

    def unions(depth: int) -> None:
        rdd = running.sc.parallelize(range(6), 2)
        for _ in range(depth):
            rdd = rdd.union(rdd).coalesce(2).mapPartitions(lambda records: [sum(records) % 1009])
        assert rdd.collect() == [15 * 2 ** (depth - 1) % 1009] * 2

    assert_linear(running, unions, 120)


def test_BL_17_empty_unions_thirty_times_over(start) -> None:
    running = start("local[2]")
    rdd = running.sc.emptyRDD()
    for _ in range(30):
        rdd = rdd.union(rdd)
    assert rdd.collect() == []


def test_BL_17_thirty_joins_of_an_rdd_with_itself_run_every_stage_once(start) -> None:
    running = start("local[2]")
    rdd = running.sc.parallelize([(key, 1) for key in range(6)], 2)
    for _ in range(30):
        rdd = rdd.join(rdd, 2).map(lambda row: (row[0], (row[1][0] + row[1][1]) % 1009))
    assert sorted(rdd.collect()) == [(key, 2**30 % 1009) for key in range(6)]
    assert set(faultlib.starts_per_partition(running.events()).values()) == {1}
    stages = Counter(event["kind"] for event in running.log.of("stage_start"))
    assert sum(stages.values()) <= 2 * 30 + 1
