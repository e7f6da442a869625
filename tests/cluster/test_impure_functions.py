"""Functions that are not as pure as one would like: what is promised of them all the same."""

import os
import random
import time
from collections import Counter
from operator import add
from pathlib import Path

import numpy as np
import pytest

from spark_ft import StorageLevel, TaskContext
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

MIB = 1 << 20


# --- TK-12: they do not say the same twice --------------------------------------------------------


def test_TK_12_hashes_and_orders_of_sets_are_the_same_in_whoever_computes_again(start, tmp_path) -> None:
    running = start("local[2]")
    running.log.wait_for("executor_added", 2)
    share = Gate(tmp_path / "share").share(2)
    words = [f"word-{i}" for i in range(200)]

    def seen(index: int, rows):
        return [(os.getpid(), hash("text"), tuple(set(words)), hash((index, "é", b"x")))]

    both = running.sc.parallelize(range(4), 4).mapPartitionsWithIndex(share).mapPartitionsWithIndex(seen)
    before = both.collect()
    assert len({pid for pid, *_ in before}) == 2
    for pid in running.executor_pids():
        running.kill(pid)
    running.log.wait_for("executor_added", 4)
    after = running.sc.parallelize(range(4), 4).mapPartitionsWithIndex(seen).collect()
    assert not {pid for pid, *_ in before} & {pid for pid, *_ in after}, "somebody has not been replaced"
    assert [row[1:] for row in before] == [row[1:] for row in after]


# --- TK-13: they change what was given to them ------------------------------------------------------


def test_TK_13_who_computes_again_sees_broadcasts_and_closures_as_they_were_sent(start, tmp_path) -> None:
    running, gate = start("local[1,4]", spark_speculation=False), Gate(tmp_path / "gate")
    table, mine = running.sc.broadcast([1, 2, 3]), [10]

    def spoil(index: int, rows):
        found = (list(table.value), list(mine))
        table.value.append(index)
        mine.append(index)
        if gate.arrive(index) == 0:
            raise ValueError("not yet")
        return [(os.getpid(), found)]

    answer = running.sc.parallelize(range(3), 3).mapPartitionsWithIndex(spoil).collect()
    assert len({pid for pid, _ in answer}) == 1, "another process would have had fresh ones anyhow"
    assert [found for _, found in answer] == [([1, 2, 3], [10])] * 3
    assert gate.arrivals() == {"0": 2, "1": 2, "2": 2}


def test_TK_13_what_a_task_does_to_cached_records_no_later_task_sees(start) -> None:
    running = start("local[2]", spark_speculation=False)

    def spoil(record):
        record["n"] = -1
        record["of"].append(record)
        return 1

    def add_in_place(array):
        array += 1
        return array

    dicts = running.sc.parallelize(range(100), 4).map(lambda n: {"n": n, "of": [n]}).cache()
    assert dicts.map(spoil).sum() == 100, "those that computed them, too"
    assert dicts.map(spoil).sum() == 100
    assert dicts.map(lambda record: (record["n"], record["of"])).collect() == [(n, [n]) for n in range(100)]
    arrays = running.sc.parallelize(range(8), 4).map(lambda n: (n, np.full(3, n))).cache()
    assert arrays.map(lambda pair: int(pair[1].sum())).sum() == 3 * sum(range(8))
    assert arrays.map(lambda pair: add_in_place(pair[1].copy()).tolist()).collect()[0] == [1, 1, 1]
    with pytest.raises(Exception, match=r"array\.copy\(\)"):
        arrays.map(lambda pair: add_in_place(pair[1])).collect()
    assert arrays.map(lambda pair: int(pair[1].sum())).sum() == 3 * sum(range(8))
    assert len(running.log.of("cached")) == 8, "read from memory each time"


def test_TK_13_a_retry_does_not_see_what_the_failed_attempt_left_behind(start, tmp_path) -> None:
    running, gate = start("local[1,4]", spark_speculation=False), Gate(tmp_path / "gate")
    seen: set[int] = set()
    calls = {"count": 0}

    def once(x: int) -> bool:
        calls["count"] += 1
        if x == 5 and gate.arrive(0) == 0:
            raise ValueError(f"in the middle, after {calls['count']} records")
        return x % 5 not in seen and not seen.add(x % 5)

    kept = running.sc.parallelize(range(30), 3).filter(once).map(lambda x: (x, os.getpid())).collect()
    assert len({pid for _, pid in kept}) == 1, "another process would have had fresh ones anyhow"
    assert [x for x, _ in kept] == [10 * p + x for p in range(3) for x in range(5)]
    assert gate.arrivals() == {"0": 2}, (
        "the first attempt has failed, and others ran between it and the second"
    )


class Tally:
    def __init__(self) -> None:
        self.count = 0

    def next(self, _: object) -> int:
        self.count += 1
        return self.count


def _impure(sc) -> dict[str, object]:
    """The answers of functions that change what they have captured, 40 numbers in 8 partitions."""
    numbers = sc.parallelize(range(40), 8)
    seen: set[int] = set()
    taken: list[int] = []
    rebound = 0

    def count(x: int) -> int:
        nonlocal rebound
        rebound += 1
        return rebound

    def place(key: int) -> int:
        taken.append(key)
        return len(taken)

    space: dict[str, object] = {"__name__": "__main__"}
    source = "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n\nclass C:\n    n = []\n"
    source += "def g(x):\n    C.n.append(x)\n    return len(C.n)"
    exec(source, space)  # noqa: S102 - as a script defines them: they go by value
    pairs = numbers.map(lambda x: (x % 2, x))
    return {
        "filter": numbers.filter(lambda x: x % 5 not in seen and not seen.add(x % 5)).count(),
        "object": numbers.map(Tally().next).collect(),
        "default": numbers.map(lambda x, n=[]: n.append(x) or len(n)).collect(),
        "nonlocal": numbers.map(count).collect(),
        "global": numbers.map(space["f"]).collect(),
        "class": numbers.map(space["g"]).collect(),
        "partitions": numbers.mapPartitions(lambda rows: [taken.extend(rows) or len(taken)]).collect(),
        "placement": pairs.partitionBy(4, place).glom().map(len).collect(),
        "merging": sorted(
            pairs.combineByKey(lambda v: taken.append(v) or len(taken), lambda a, b: a, max, 2).collect()
        ),
        "fold": numbers.aggregate([], lambda a, x: a.append(x) or a, lambda a, b: a + b),
        "foldByKey": sorted(
            pairs.mapValues(lambda x: [x]).foldByKey([], lambda a, b: a.extend(b) or a).collect()
        ),
    }


def test_TK_13_answers_do_not_tell_which_process_ran_which_task(start) -> None:
    running = start("local[1]")
    alone = _impure(running.sc)
    running.stop()
    running = start("local[4]")
    running.log.wait_for("executor_added", 4)
    four = _impure(running.sc)
    assert alone == four
    own = [1, 2, 3, 4, 5] * 8
    for name in ("object", "default", "nonlocal", "global", "class"):
        assert alone[name] == own, name
    assert alone["filter"] == 40 and alone["partitions"] == [5] * 8
    assert alone["placement"] == [8, 16, 8, 8], "each map task numbers its five pairs from 1"
    assert alone["merging"] == [(0, 2), (1, 2)]
    assert alone["fold"] == list(range(40))
    assert alone["foldByKey"] == [(0, list(range(0, 40, 2))), (1, list(range(1, 40, 2)))]


# --- TK-14: they write somewhere else -----------------------------------------------------------------


def test_TK_14_a_key_names_what_is_done_however_often_it_is_tried(start, tmp_path) -> None:
    running, gate = start("local[2,4]", spark_speculation=False), Gate(tmp_path / "gate")

    def write(index: int, rows):
        context = TaskContext.get()
        Path(tmp_path, f"{context.idempotencyKey().replace('/', '_')}@{context.attemptNumber()}").touch()
        if gate.arrive(index) == 0 and index != 2:
            raise ValueError("after it was written")
        return rows

    numbers = running.sc.parallelize(range(8), 4)
    shuffled = numbers.mapPartitionsWithIndex(write).map(lambda x: (x % 2, x)).reduceByKey(add, 2)
    assert sorted(shuffled.collect()) == [(0, 12), (1, 16)]
    maps = Counter(path.name.split("@")[0] for path in tmp_path.glob("*@*"))
    assert sorted(maps.values()) == [1, 2, 2, 2]
    gate = Gate(tmp_path / "another")
    assert numbers.mapPartitionsWithIndex(write).count() == 8
    both = Counter(path.name.split("@")[0] for path in tmp_path.glob("*@*"))
    assert len(both) == 8 and {key: both[key] for key in maps} == maps, "another job, other keys"


# --- TK-15: nobody wants all that they give -------------------------------------------------------------


@pytest.mark.parametrize("end", ["enough", "killed"])
def test_TK_15_what_is_left_unread_is_closed_and_leaves_nothing(end, start, tmp_path) -> None:
    running = start("local[1]", spark_executor_memory="64m", spark_ft_task_killGrace="20s")
    closed, begun = tmp_path / "closed", tmp_path / "begun"
    rows = running.sc.parallelize(range(64), 4).map(lambda i: (i % 16, random.Random(i).randbytes(MIB // 2)))
    grouped = rows.groupByKey(1).sortByKey(numPartitions=1)  # spills on the way

    def endless(records):
        with open(tmp_path / "resource", "w"):
            try:
                for key, _ in records:
                    yield key
                    begun.touch()
                    while end == "killed":
                        time.sleep(0.01)
            finally:
                closed.touch()

    taken = grouped.mapPartitions(endless)
    if end == "enough":
        assert taken.take(1) == [0]
    else:
        action = Action(lambda: (running.sc.setJobGroup("doomed", ""), taken.collect()))
        wait_until(begun.exists)
        running.sc.cancelJobGroup("doomed")
        with pytest.raises(Exception, match="JOB_CANCELLED"):
            action.result()
    wait_until(closed.exists, 5, "the generator to be closed")
    (pid,) = running.executor_pids()
    (root,) = (running.sc._driver.scratch / "hosts").iterdir()

    def open_files() -> list[str]:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        return [link for link in links if "/tmp/executor" in link or link.startswith(str(tmp_path / "res"))]

    wait_until(lambda: not open_files(), 5, "its files to be closed")
    assert not [path for path in (root / "tmp").rglob("*") if path.is_file()]
    assert running.sc.parallelize(range(3)).count() == 3 and running.executor_pids() == [pid]


# --- MEM-2: too much is kept ------------------------------------------------------------------------------


def kept(running: faultlib.Running, node: int) -> Counter[int]:
    """partition -> how often it was put into memory, less how often it left."""
    now: Counter[int] = Counter()
    for event in running.events():
        if event["event"] in ("cached", "uncached") and event["node"] == node:
            now[event["partition"]] += 1 if event["event"] == "cached" else -1
    return +now


def test_MEM_2_what_is_kept_leaves_memory_for_what_comes_and_the_disk_takes_the_rest(start) -> None:
    running = start("local[1]", spark_executor_memory="64m")  # of which 38 are for this

    def block(seed: int) -> bytes:
        return random.Random(seed).randbytes(8 * MIB)

    old = running.sc.parallelize(range(2), 2).map(block).cache()
    assert old.map(len).collect() == [8 * MIB] * 2
    new = running.sc.parallelize(range(2, 8), 6).map(block).persist(StorageLevel.MEMORY_AND_DISK)
    assert Action(lambda: new.map(len).collect()).result() == [8 * MIB] * 6
    assert running.log.of("uncached"), "nothing had to leave"
    assert {e["node"] for e in running.log.of("uncached")} == {running.log.of("cached")[0]["node"]}
    assert [e for e in running.log.of("cached") if e["disk"]], "nothing was spilled"
    before = len(running.log.of("task_start"))
    assert new.map(lambda data: data[:9]).collect() == [block(i)[:9] for i in range(2, 8)]
    assert old.map(len).collect() == [8 * MIB] * 2
    assert len(running.log.of("task_start")) == before + 8
    faultlib.assert_r0(running.events())


def test_MEM_2_a_task_that_finds_no_memory_has_what_is_only_kept_for_its_next_try(start, tmp_path) -> None:
    running, gate = start("local[1,4]"), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(8), 2).cache()
    assert numbers.sum() == 28
    (node,) = {event["node"] for event in running.log.of("cached")}
    assert kept(running, node) == Counter({0: 1, 1: 1})

    def hungry(index: int, rows):
        if gate.arrive(index) == 0 and index == 1:
            raise MemoryError
        return rows

    assert Action(running.sc.parallelize(range(4), 2).mapPartitionsWithIndex(hungry).count).result() == 4
    assert gate.arrivals() == {"0": 1, "1": 2}
    assert kept(running, node) == Counter(), "the cache is still there"
    assert numbers.sum() == 28 and kept(running, node) == Counter({0: 1, 1: 1})
