"""Workers and executors get SIGTERM and leave in order: what they hold is moved first (row EX-13)."""

import os
import signal
import time
from operator import add

from spark_ft import StorageLevel
from spark_ft.ids import HostId
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, Running, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
NO_SPECULATION = {"spark_speculation": False}


def worker_pid(running: Running, host: str) -> int:
    return int(running.log.of("worker_added", host=host)[-1]["pid"])


def terminate(running: Running, host: str) -> int:
    """SIGTERM to the worker of a host; the driver knows of it."""
    pid = worker_pid(running, host)
    running.kill(pid, signal.SIGTERM)
    running.log.wait_for("worker_leaving", host=host, deadline_s=5)
    return pid


def wait_for_the_end(running: Running, pid: int, host: str, deadline_s: float = 20.0) -> None:
    wait_until(lambda: not faultlib.is_alive(pid), deadline_s, f"the end of the worker of {host}")
    running.log.wait_for("worker_lost", host=host)


def test_EX_13_a_worker_with_SIGTERM_moves_its_outputs_and_goes_and_nothing_is_done_again(
    start, tmp_path
) -> None:
    running, gate, share = start(**NO_SPECULATION), Gate(tmp_path / "gate"), Gate(tmp_path / "share")
    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(share.share(3))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers, one on each host")
    there = running.log.of("task_start", kind="map", host="host-1")
    assert there, "the host that is left has outputs"
    pid = terminate(running, "host-1")
    running.log.wait_for("output_moved", len(there))
    assert faultlib.is_alive(pid), "a task runs there yet"
    gate.open()
    assert action.result() == SUMS
    wait_for_the_end(running, pid, "host-1")
    events = running.events()
    faultlib.assert_r0(events)
    assert sorted(sums.collect()) == SUMS
    faultlib.assert_r0(running.events(), "map")
    assert not running.log.of("output_lost") and not running.log.of("fetch_failed")
    told = running.log.of("worker_leaving", host="host-1")[0]["t_ms"]
    late = [e for e in running.log.of("task_start", host="host-1") if e["t_ms"] > told]
    assert not late, "S13: nothing is started where somebody leaves"
    assert not running.log.of("worker_added", host="host-1")[1:], "nobody takes its place"


def test_EX_13_partitions_in_memory_and_on_disk_are_moved_and_an_idle_host_goes_at_once(
    start, tmp_path
) -> None:
    running, counts = start("local-cluster[2,1,512]"), Gate(tmp_path / "counts")

    def computed(index, records):
        counts.arrive(index)
        return records

    kept = []
    for number, level in enumerate((StorageLevel.MEMORY_ONLY, StorageLevel.DISK_ONLY)):
        share = Gate(tmp_path / f"share-{number}")
        numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(share.share(2))
        kept.append(numbers.mapPartitionsWithIndex(computed).persist(level))
        assert kept[-1].sum() == sum(range(NUMBERS))
    assert counts.arrivals() == {str(index): 2 for index in range(6)}
    started_s = time.monotonic()
    running.sc._driver.decommission(HostId("host-0"), 30.0)
    running.log.wait_for("worker_leaving", host="host-0")
    pid = worker_pid(running, "host-0")
    wait_for_the_end(running, pid, "host-0")
    assert time.monotonic() - started_s < 10.0, "it does not wait for its deadline"
    assert running.log.of("block_moved"), "there was something to move"
    for each in kept:
        assert each.sum() == sum(range(NUMBERS))
    assert counts.arrivals() == {str(index): 2 for index in range(6)}, "R0"


def test_EX_13_killed_at_its_deadline_in_the_middle_of_a_copy_costs_only_what_was_not_moved(
    start, tmp_path
) -> None:
    copying = tmp_path / "copying"
    running = start(
        "local-cluster[2,1,512]",
        spark_executor_decommission_forceKillTimeout="1s",
        spark_ft_failpoints=f"copies.write=pause!{copying}",  # the target stands still in its first copy
        **NO_SPECULATION,
    )
    share = Gate(tmp_path / "share")
    numbers = running.sc.parallelize(range(NUMBERS), 8).mapPartitionsWithIndex(share.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    assert sorted(sums.collect()) == SUMS
    first = {(e["stage"], e["partition"]): e for e in running.log.of("task_start", kind="map")}
    lost = {place for place, event in first.items() if event["host"] == "host-0"}
    assert lost
    pid = terminate(running, "host-0")
    wait_until(copying.exists, what="a copy under way")
    wait_for_the_end(running, pid, "host-0")
    os.kill(worker_pid(running, "host-1"), signal.SIGCONT)
    assert sorted(sums.collect()) == SUMS
    assert set(faultlib.redone(running.events(), "map")) == lost
    faultlib.assert_r2(running.events(), lost, "map")


def test_EX_13_an_executor_with_SIGTERM_ends_its_task_and_keeps_nobody_from_what_it_cached(
    start, tmp_path
) -> None:
    running, gate, counts = start("local[2]", **NO_SPECULATION), Gate(tmp_path / "g"), Gate(tmp_path / "c")

    def computed(index, records):
        counts.arrive(index)
        return records

    share = Gate(tmp_path / "share")
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(share.share(2))
    kept = numbers.mapPartitionsWithIndex(computed).cache()
    assert kept.sum() == sum(range(NUMBERS))
    held = running.sc.parallelize(range(2), 2).mapPartitionsWithIndex(gate.hold)
    action = Action(held.sum)
    wait_until(lambda: gate.waiting() == 2, what="two running tasks")
    pid = gate.pid_of(0)
    running.kill(pid, signal.SIGTERM)
    (leaving,) = running.log.wait_for("executor_leaving")
    running.log.wait_for("block_copied", len(running.log.of("cached", executor=leaving["id"])))
    assert faultlib.is_alive(pid), "its task is not broken off"
    gate.open()
    assert action.result() == 1
    wait_until(lambda: not faultlib.is_alive(pid), 5, "its end")
    (gone,) = running.log.wait_for("executor_lost", executor=leaving["id"])
    assert (gone["status"], gone["signal"], gone["blame"]) == (73, 0, "")
    wait_until(lambda: len(running.executor_pids()) == 2, what="its successor")
    assert kept.sum() == sum(range(NUMBERS))
    assert counts.arrivals() == {str(index): 1 for index in range(4)}
    faultlib.assert_r0(running.events())


def test_EX_13_a_context_stops_in_time_while_a_worker_leaves_and_user_code_is_not_bothered(
    start, tmp_path
) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")

    def forks(index, records):
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)  # as multiprocessing's terminate does
        _, status = os.waitpid(pid, 0)
        yield os.WTERMSIG(status)

    assert running.sc.parallelize(range(2), 2).mapPartitionsWithIndex(forks).collect() == [15, 15]
    action = Action(running.sc.parallelize(range(2), 2).mapPartitionsWithIndex(gate.hold).count)
    wait_until(lambda: gate.waiting() == 2, what="running tasks")
    terminate(running, "host-0")
    started_s = time.monotonic()
    running.stop()
    assert time.monotonic() - started_s < 2.0
    gate.open()
    try:
        action.result()
    except Exception as error:  # noqa: BLE001  # whatever it was, the job has ended by it
        assert "stop" in str(error)
