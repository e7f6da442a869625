"""A process dies in the middle of a store whose pages are gone: the store is blamed, nobody else (ST-10)."""

import contextlib
import os
import signal
import time
from collections import Counter
from operator import add
from pathlib import Path

import psutil
import pytest

from spark_ft import failpoints
from spark_ft.storage import touched
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

SIZE = 400
EXPECTED = [(key, sum(range(key, SIZE, 5))) for key in range(5)]
LAST_WHOLE_BYTES = 2 * 4096  # the meta pages: whatever else is touched is gone


def sums_of(running: faultlib.Running, gate: Gate):
    """Outputs of four maps, two in each of two stores; read once."""
    numbers = running.sc.parallelize(range(SIZE), 4).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 1)
    assert sorted(sums.collect()) == EXPECTED
    return sums


def makers(running: faultlib.Running) -> dict[int, str]:
    """Map partition -> the executor that has made its output."""
    return {e["partition"]: e["executor"] for e in running.log.of("task_start", kind="map")}


def cut(segment: Path) -> None:
    assert (segment / "data.mdb").stat().st_size > LAST_WHOLE_BYTES
    os.truncate(segment / "data.mdb", LAST_WHOLE_BYTES)


def cut_in_transaction(running: faultlib.Running, point: str, whose: str, once: Path) -> None:
    """From now on the first executor that is in a transaction at ``point``, of a store that is its own or
    another's, has the file cut short under it."""
    pids = running.log.pids()
    runs = {pid: str(running.sc._driver.scratch / f"hosts/host-0/run/{name}") for name, pid in pids.items()}

    def arm(_: object) -> list[int]:
        mine, hit = runs[os.getpid()], failpoints.hit

        def hit_and_cut(name: str) -> str:
            for segment in touched.read(Path(f"{mine}.touched")) if name == point else ():
                if (segment.parent.name == os.path.basename(mine)) == (whose == "its own"):
                    with contextlib.suppress(FileExistsError):
                        once.touch(exist_ok=False)
                        cut(segment)
            return hit(name)

        failpoints.hit = hit_and_cut
        time.sleep(0.02)
        return [os.getpid()]

    armed = running.sc.parallelize(range(2), 2).mapPartitions(arm).collect()
    assert sorted(armed) == sorted(pids.values())


def the_end_of_one(running: faultlib.Running) -> faultlib.Event:
    (lost,) = running.log.wait_for("executor_lost", 1)
    assert (lost["signal"], lost["blame"]) == (signal.SIGBUS, "storage"), lost["why"]
    ends = {e["blame"] for e in running.log.of("task_end") if faultlib.reason(e) != "Success"}
    assert ends <= {"storage", "system"}, "somebody else was blamed"
    return lost


@pytest.mark.parametrize("whose", ["another's", "its own"])
def test_ST_10_who_dies_reading_a_damaged_segment_is_not_blamed_and_only_that_is_made_again(
    whose, start, tmp_path
) -> None:
    running = start("local[2]", spark_speculation=False)  # where one failure of a task ends its job
    sums = sums_of(running, Gate(tmp_path / "gate"))
    made_by, before, results = makers(running), running.starts("map"), len(running.log.of("task_start"))
    assert sorted(Counter(made_by.values()).values()) == [2, 2]
    cut_in_transaction(running, "store.read", whose, tmp_path / "once")
    assert sorted(Action(sums.collect).result()) == EXPECTED
    lost = the_end_of_one(running)
    (told,) = running.log.wait_for("segment_lost", 1)
    assert (told["store"] == lost["executor"]) == (whose == "its own")
    again = Counter(p for p, executor in made_by.items() if executor == told["store"])
    assert running.starts("map") - before == again
    assert len(running.log.of("task_start")) - results == 2 + 2 + 2, "armed, read twice, and two maps"
    (data,) = (running.sc._driver.scratch / "hosts").glob(f"*/stores/{told['store']}/seg-00000/data.mdb")
    assert data.stat().st_size == 0, "others can still be ended by it"


def test_ST_10_a_writer_that_dies_in_its_own_damaged_segment_is_not_blamed(start, tmp_path) -> None:
    running = start("local[2]", spark_speculation=False)
    sums = sums_of(running, Gate(tmp_path / "gate"))
    before = running.starts("map")
    cut_in_transaction(running, "store.write", "its own", tmp_path / "once")
    gate = Gate(tmp_path / "another")
    tens = running.sc.parallelize(range(40), 2).mapPartitionsWithIndex(gate.share(2))
    fours = tens.map(lambda x: (x % 4, x)).reduceByKey(add, 2)
    assert sorted(Action(fours.collect).result()) == [(key, sum(range(key, 40, 4))) for key in range(4)]
    the_end_of_one(running)
    assert sum((running.starts("map") - before).values()) == 2 + 1, "of two new maps, one runs again"
    assert sorted(Action(sums.collect).result()) == EXPECTED
    assert sum((running.starts("map") - before).values()) == 3 + 2, "what was lost is made when it is needed"


def test_ST_10_a_worker_that_dies_serving_a_damaged_segment_takes_it_out_of_use(start, tmp_path) -> None:
    running = start(
        "local-cluster[2,1,256]",
        spark_speculation=False,
        spark_task_maxFailures=1,
        spark_ft_failpoints=f"store.read=pause!{tmp_path / 'once'}",
    )
    hosts = {e["executor"]: e["host"] for e in running.log.wait_for("executor_added", 2)}
    workers = {e["host"]: e["pid"] for e in running.log.wait_for("worker_added", 2)}
    pairs = running.sc.parallelize(range(SIZE), 1).map(lambda x: (x % 5, x)).partitionBy(1)
    assert pairs.mapPartitions(lambda _: []).collect() == []  # there is an output, and nobody has read it
    writer, free = makers(running)[0], tmp_path / "free"
    busy = running.log.pids()[writer]

    def hold(_: object) -> list[int]:
        if os.getpid() == busy:
            wait_until(free.exists)
        return [os.getpid()]

    held = Action(running.sc.parallelize(range(2), 2).mapPartitions(hold).collect)
    running.log.wait_for("task_start", 1, executor=writer, kind="result", stage=2)
    action = Action(lambda: sorted(pairs.collect()))  # elsewhere: it has the output sent
    worker = workers[hosts[writer]]
    stopped = psutil.STATUS_STOPPED
    wait_until(lambda: psutil.Process(worker).status() == stopped, what="the worker in mid-transaction")
    root = running.sc._driver.scratch / "hosts" / hosts[writer]
    (segment,) = touched.read(root / "touched")
    assert segment.parent.name == writer
    cut(segment)
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not faultlib.is_alive(worker), 5, "the end of the worker")
    assert Action(action.result).result() == sorted((x % 5, x) for x in range(SIZE))
    free.touch()
    held.result()
    assert (segment / "data.mdb").stat().st_size == 0, "its successor can die of it, too"
    assert sum(running.starts("map").values()) == 2
    assert not running.log.of("executor_lost")
