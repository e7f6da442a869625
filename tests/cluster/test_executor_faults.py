"""Executors die, stop, repeat themselves or never come up: only what was lost is done again."""

import os
import signal
import sys
import time
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from spark_ft.errors import ClusterError, NoExecutors
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
LOST_AFTER_S = 1.5
QUICK_LOSS = {
    "spark_executor_heartbeatInterval": "200ms",
    "spark_ft_lease": "1s",
    "spark_network_timeout": f"{LOST_AFTER_S}s",
}


def assert_noticed(running: faultlib.Running, executors: set[str], within_s: float = 1.0) -> None:
    """The log tells of the loss of all of these in time."""
    wait_until(
        lambda: executors <= {event["executor"] for event in running.log.of("executor_lost")},
        within_s,
        f"the loss of {executors} to be noticed",
        poll_s=0.001,
    )


def executor_of(running: faultlib.Running, pid: int) -> str:
    return next(event["executor"] for event in running.log.of("executor_added") if event["pid"] == pid)


def kill_noticed(running: faultlib.Running, *pids: int) -> None:
    """SIGKILL in one go; each death is in the log within a second (D0)."""
    executors = {executor_of(running, pid) for pid in pids}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert_noticed(running, executors)
    assert not any(faultlib.is_alive(pid) for pid in pids)


def once(count: int) -> Counter[int]:
    return Counter(range(count))


# --- Deaths ---------------------------------------------------------------------------------------


def test_EX_1_of_a_killed_executor_only_the_map_task_it_ran_starts_again(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    pairs = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.hold)
    action = Action(lambda: sorted(pairs.map(lambda x: (x % 5, x)).reduceByKey(add, 3).collect()))
    running.log.wait_for("task_start", 3, kind="map")
    victim = running.log.of("task_start", kind="map")[1]
    wait_until(lambda: gate.pid_of(victim["partition"]) == victim["pid"], what="the victim to run user code")
    kill_noticed(running, victim["pid"])
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == once(6) + Counter([victim["partition"]])
    assert running.starts("result") == once(3)
    faultlib.assert_r1(running.events())


@pytest.mark.parametrize("master", ["local-cluster[3,1,512]", "local[3]"])
def test_EX_2_no_map_task_starts_again_whichever_executor_is_killed_after_the_map_stage(
    start, tmp_path, master
) -> None:
    running, gate = start(master), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.share(3))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 4)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    running.log.wait_for("task_start", 3, kind="result")
    writers = {event["pid"] for event in running.log.of("task_start", kind="map")}
    assert len(writers) == 3, "each executor has written map outputs"
    for pid in sorted(writers):
        kill_noticed(running, pid)
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == once(6)
    faultlib.assert_r1(running.events(), "result")
    assert sorted(sums.collect()) == SUMS, "the outputs of dead executors serve later jobs too"
    assert running.starts("map") == once(6)


def test_EX_2_a_reducer_killed_in_mid_task_starts_again_and_nothing_else(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    sums = running.sc.parallelize(range(NUMBERS), 6).map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    victim = wait_until(lambda: gate.pid_of(1), what="reducer 1")
    kill_noticed(running, victim)
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == once(6)
    assert running.starts("result") == once(3) + Counter([1])


def test_EX_3_a_kill_before_the_manifest_leaves_nothing_that_counts_and_its_bytes_go(start, tmp_path) -> None:
    fired = tmp_path / "fired"
    running = start(
        spark_ft_failpoints=f"after_block_put_before_manifest=kill!{fired}",
        spark_ft_store_gcInterval="1s",
        spark_executor_heartbeatInterval="200ms",
    )
    sums = running.sc.parallelize(range(NUMBERS), 6).map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    action = Action(lambda: sorted(sums.collect()))
    wait_until(fired.exists, what="the failpoint", poll_s=0.001)
    hosts = running.sc._driver.scratch / "hosts"
    stores = {path.name: path for path in hosts.glob("*/stores/*")}
    (lost,) = running.log.wait_for("executor_lost", signal=signal.SIGKILL)
    assert (stores[lost["executor"]] / "seg-00000" / "data.mdb").stat().st_size > 0
    assert action.result() == SUMS
    assert not running.log.of("output_adopted")
    faultlib.assert_r1(running.events())
    assert sum(faultlib.redone(running.events(), "map").values()) == 1
    wait_until(
        lambda: not stores[lost["executor"]].exists(),
        3.0,
        "the bytes of the half-written output to be given back",
    )
    assert sorted(sums.collect()) == SUMS


def test_EX_4_an_output_committed_but_never_reported_is_adopted_with_its_accumulators(
    start, tmp_path
) -> None:
    fired = tmp_path / "fired"
    running = start(spark_ft_failpoints=f"after_manifest_before_report=kill!{fired}")
    seen = running.sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x % 5, x

    assert sorted(running.sc.parallelize(range(NUMBERS), 6).map(count).reduceByKey(add, 3).collect()) == SUMS
    assert fired.exists()
    assert len(running.log.of("executor_lost", signal=signal.SIGKILL)) == 1
    assert len(running.log.of("output_adopted")) == 1
    assert running.starts("map") == once(6)
    assert running.starts("result") == once(3)
    assert seen.value == NUMBERS


def test_EX_5_a_kill_loop_never_ends_a_job_that_makes_progress(start) -> None:
    running = start(spark_speculation=False)
    seen = running.sc.accumulator(0)

    def slow(x):
        if x % 20 == 0:
            time.sleep(0.2)  # once a task: shorter than the pause between two kills
        seen.add(1)
        return x % 5, x

    killer = faultlib.RandomKiller(running, seed=5, most=8, pause_s=(0.4, 0.6))
    killer.start()
    try:
        sums = running.sc.parallelize(range(NUMBERS), 30).map(slow).reduceByKey(add, 3)
        assert sorted(sums.collect()) == SUMS
    finally:
        killer.done.set()
        killer.join()
    assert len(running.log.of("executor_lost", signal=signal.SIGKILL)) >= 4, "too few kills landed"
    assert faultlib.running_in_lost(running.events()), "no kill met a running task"
    faultlib.assert_r1(running.events())
    assert seen.value == NUMBERS


def test_EX_6_all_executors_at_once_cost_only_what_they_ran(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")

    def later(index, records):
        if index >= 3:
            gate.wait(index)
        return records

    pairs = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(later)
    action = Action(lambda: sorted(pairs.map(lambda x: (x % 5, x)).reduceByKey(add, 3).collect()))
    wait_until(lambda: len(gate.arrivals()) == 3, what="the second half to run")
    running.log.wait_for("task_end", 3, reason="Success")
    first = set(running.executor_pids())
    kill_noticed(running, *first)
    wait_until(lambda: len(set(running.executor_pids()) - first) == 3, 2.0, "three new executors")
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == once(6) + Counter([3, 4, 5])
    assert running.starts("result") == once(3)


def test_EX_6_a_task_answers_for_no_executor_that_died_before_it_came(start, tmp_path) -> None:
    """Offered to one dead executor after the other until the log knows of all, it was killed but once."""
    running, gate = start("local-cluster[4,1,512]", spark_ft_task_maxKills=1), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 4)
    action = Action(running.sc.parallelize(range(10), 1).mapPartitionsWithIndex(gate.hold).collect)
    wait_until(lambda: gate.waiting() == 1, what="the task")
    kill_noticed(running, *running.executor_pids())
    wait_until(lambda: gate.arrivals()["0"] == 2 or not action.is_alive(), what="its second attempt")
    gate.open()
    assert action.result() == list(range(10))
    assert running.starts("result") == Counter({0: 2})


def test_EX_6_a_cluster_that_stays_empty_ends_the_job_by_name(start, tmp_path, monkeypatch) -> None:
    running = start("local-cluster[2,1,256]", spark_ft_noResourcesTimeout="1s", **QUICK_LOSS)
    gate = Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)
    numbers = running.sc.parallelize(range(10), 2).mapPartitionsWithIndex(gate.hold)
    action = Action(numbers.collect)
    wait_until(lambda: len(gate.arrivals()) == 2, what="both tasks")
    executors = running.executor_pids()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-is-gone"))  # nobody can be started anew
    for worker in running.log.of("worker_added"):
        running.kill(worker["pid"])
    for pid in executors:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(NoExecutors) as caught:
        action.result()
    assert caught.value.getCondition() == "NO_RESOURCES"
    assert "asked for 2 executor(s) of 1 slot(s) and 256 MiB" in str(caught.value)


# --- Zombies and twins ----------------------------------------------------------------------------


def test_EX_7_an_executor_stopped_for_too_long_is_replaced_and_never_wakes(start, tmp_path) -> None:
    running, gate = start(**QUICK_LOSS), Gate(tmp_path / "gate")
    seen = running.sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x

    numbers = running.sc.parallelize(range(30), 3).mapPartitionsWithIndex(gate.hold).map(count)
    action = Action(lambda: numbers.collect())
    victim = wait_until(lambda: gate.pid_of(1), what="task 1")
    running.kill(victim, signal.SIGSTOP)
    running.log.wait_for("executor_stopped", stopped=True, deadline_s=1.0)
    assert_noticed(running, {executor_of(running, victim)}, within_s=LOST_AFTER_S + 1.5)
    wait_until(lambda: not faultlib.is_alive(victim), 1.0, "the end of the stopped executor")
    gate.open()
    assert action.result() == list(range(30))
    assert running.starts("result") == once(3) + Counter([1])
    assert seen.value == 30


def test_EX_7_a_zombie_of_a_host_that_stood_still_is_fenced_and_its_result_is_not_used(
    start, tmp_path
) -> None:
    """Worker and executor stop together; the executor wakes first, with a finished task in hand."""
    running, gate = start(**QUICK_LOSS), Gate(tmp_path / "gate")
    seen = running.sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x

    numbers = running.sc.parallelize(range(30), 3).mapPartitionsWithIndex(gate.hold).map(count)
    action = Action(lambda: numbers.collect())
    zombie = wait_until(lambda: gate.pid_of(1), what="task 1")
    (added,) = running.log.of("executor_added", pid=zombie)
    (worker,) = running.log.of("worker_added", host=added["host"])
    running.sc._driver.cluster.end_worker = lambda worker: None  # a host that is not in our power
    for pid in (worker["pid"], zombie):
        running.kill(pid, signal.SIGSTOP)
    assert_noticed(running, {added["executor"]}, within_s=LOST_AFTER_S + 1.5)
    gate.open()
    assert action.result() == list(range(30))
    running.kill(zombie, signal.SIGCONT)  # it finishes its task and says so
    wait_until(lambda: not faultlib.is_alive(zombie), 1.0, "the end of the fenced zombie", poll_s=0.001)
    stderr = running.sc._driver.scratch / "hosts" / added["host"] / "log" / f"{added['executor']}.stderr"
    assert "fenced" in stderr.read_text()
    running.kill(worker["pid"], signal.SIGCONT)
    wait_until(lambda: len(running.executor_pids()) == 3, what="three executors again")
    assert numbers.map(lambda x: x + 1).collect() == list(range(1, 31))
    assert seen.value == 60
    assert running.starts("result") == once(3) + once(3) + Counter([1])
    assert len(running.log.wait_for("job_end", 2)) == 2


def test_EX_8_repeated_task_updates_count_once(start) -> None:
    running = start(spark_ft_failpoints="link.send.TaskUpdates=duplicate%1.0")
    mapped, reduced = running.sc.accumulator(0), running.sc.accumulator(0)

    def first(x):
        mapped.add(1)
        return x % 5, x

    def second(pair):
        reduced.add(1)
        return pair

    sums = running.sc.parallelize(range(NUMBERS), 8).map(first).reduceByKey(add, 4).map(second)
    assert sorted(sums.collect()) == SUMS
    assert running.sc._driver._host.dropped["repeated"] >= 4, "hardly a message came twice"
    assert (mapped.value, reduced.value) == (NUMBERS, len(SUMS))
    faultlib.assert_r0(running.events())


@pytest.mark.parametrize("kind", ["map", "result"])
def test_EX_8_of_two_attempts_that_both_succeed_one_counts(start, tmp_path, kind) -> None:
    running = start(
        spark_ft_speculation_minFinished=3,
        spark_speculation_quantile=0.5,
        spark_speculation_minTaskRuntime="50ms",
        spark_speculation_interval="20ms",
    )
    gate = Gate(tmp_path / "gate")
    seen = running.sc.accumulator(0)

    def slow(index, records):
        """Partition 5 takes until both of its attempts are told to end, and is deaf to being killed."""
        if index == 5:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            count = gate.arrive(index)
            wait_until(lambda: os.path.exists(f"{gate.path}/end-{count}"))
        for x in records:
            seen.add(1)
            yield x % 5, x

    pairs = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(slow)
    job = pairs if kind == "result" else pairs.reduceByKey(add, 3)
    action = Action(lambda: job.collect())
    wait_until(lambda: gate.arrivals().get("5") == 2, what="the twin")
    running.log.wait_for("task_start", partition=5, speculative=True)
    Path(gate.path, "end-1").touch()  # the twin ends first
    running.log.wait_for("task_end", partition=5, reason="Success")
    Path(gate.path, "end-0").touch()
    running.log.wait_for("ended_after_kill", reason="Success")
    expected = SUMS if kind == "map" else sorted((x % 5, x) for x in range(NUMBERS))
    assert sorted(action.result()) == expected
    assert seen.value == NUMBERS
    faultlib.assert_r0(running.events())


# --- Executors that cannot start --------------------------------------------------------------------


def test_EX_12_executors_that_crash_at_every_start_end_the_job_by_name_with_their_last_words(start) -> None:
    running = start("local-cluster[2,1,256]", spark_executor_pyspark_memory="1m")  # RLIMIT_AS: no thread fits
    began_s = time.monotonic()
    with pytest.raises(NoExecutors) as caught:
        running.sc.parallelize(range(4), 2).collect()
    assert time.monotonic() - began_s < 10
    assert caught.value.getCondition() == "EXECUTOR_CRASH_LOOP"
    assert "5 starts in a row" in str(caught.value)
    # Where the memory lacks first is chance; its own words tell.
    assert "Traceback" in str(caught.value) or "Fatal Python error" in str(caught.value)
    assert "spark_ft/executor/main.py" in str(caught.value)
    with pytest.raises(NoExecutors):
        running.sc.parallelize(range(4), 2).collect()  # the next job is told at once
    assert not running.log.of("executor_added")


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,256]"])
def test_EX_12_an_environment_in_which_no_python_starts_ends_the_job_by_name(start, master) -> None:
    began_s = time.monotonic()
    with pytest.raises((ClusterError, NoExecutors), match="exited with status 1") as caught:
        start(master, spark_executorEnv_PYTHONHOME="/nowhere").sc.parallelize(range(4), 2).collect()
    assert time.monotonic() - began_s < 5
    # The death of the first worker may come before or after the context is made.
    assert caught.value.getCondition() in ("CLUSTER_ERROR", "EXECUTOR_CRASH_LOOP")
