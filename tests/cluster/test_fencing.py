"""Zombies, cuts and leases with real processes: what was given up changes nothing when it comes back."""

import os
import signal
import time
from collections import Counter
from operator import add

import pytest

from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Cut, Gate, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
LEASE_S, LOST_AFTER_S, LAUNCH_S = 1.0, 1.5, 0.5
QUICK = {
    "spark_executor_heartbeatInterval": "100ms",
    "spark_ft_lease": f"{LEASE_S}s",
    "spark_network_timeout": f"{LOST_AFTER_S}s",
    "spark_ft_launchTimeout": f"{LAUNCH_S}s",
    "spark_speculation": False,
}
SLACK_S = 1.0  # of a loaded machine


def executor_of(running: faultlib.Running, pid: int) -> str:
    return next(event["executor"] for event in running.log.of("executor_added") if event["pid"] == pid)


def stderr_of(running: faultlib.Running, executor: str) -> str:
    (added,) = running.log.of("executor_added", executor=executor)
    return (running.sc._driver.scratch / "hosts" / added["host"] / "log" / f"{executor}.stderr").read_text()


def committed(running: faultlib.Running, executor: str) -> set[int]:
    """Attempts whose map output the executor's store holds whole, whatever the driver thinks of them."""
    (added,) = running.log.of("executor_added", executor=executor)
    root = running.sc._driver.scratch / "hosts" / added["host"]
    return {output.attempt for output in faultlib.outputs_in(root, added["host"], executor)}


def test_EX_7_the_late_commit_of_a_zombie_is_in_its_store_and_in_no_answer(start, tmp_path) -> None:
    """Worker and executor of a host stand still in the middle of a map task; the executor wakes alone."""
    running, gate = start(**QUICK), Gate(tmp_path / "gate")
    held = running.sc.parallelize(range(NUMBERS), 3).mapPartitionsWithIndex(gate.hold)
    action = Action(lambda: sorted(held.map(lambda x: (x % 5, x)).reduceByKey(add, 3).collect()))
    zombie = wait_until(lambda: gate.pid_of(1), what="map task 1")
    (event,) = running.log.wait_for("task_start", kind="map", partition=1)
    executor = executor_of(running, zombie)
    (added,) = running.log.of("executor_added", executor=executor)
    (worker,) = running.log.of("worker_added", host=added["host"])
    running.sc._driver.cluster.end_worker = lambda worker: None  # a host that is not in our power
    for pid in (worker["pid"], zombie):
        running.kill(pid, signal.SIGSTOP)
    running.log.wait_for("executor_lost", executor=executor, deadline_s=LOST_AFTER_S + SLACK_S)
    gate.open()
    running.kill(zombie, signal.SIGCONT)  # it goes on in user code, commits, and hears what it is
    wait_until(lambda: not faultlib.is_alive(zombie), 1.0, "the end of the fenced zombie", poll_s=0.001)
    assert "fenced" in stderr_of(running, executor)
    assert action.result() == SUMS
    assert committed(running, executor) <= {event["task"]}
    assert running.starts("map") == Counter(range(3)) + Counter([1]), "R1"
    assert running.starts("result") == Counter(range(3))
    assert not running.log.of("output_adopted")
    assert len(running.log.of("job_end")) == 1
    running.kill(worker["pid"], signal.SIGCONT)


def test_NET_7_tasks_given_to_an_executor_that_cannot_hear_are_given_to_another_in_time(start) -> None:
    running = start("local-cluster[2,1,512]", **QUICK)
    added = running.log.wait_for("executor_added", 2)
    running.sc.parallelize(range(4), 4).count()
    deaf = added[0]["executor"]
    cut = Cut(running, deaf, of=False)
    began_s = time.monotonic()
    assert running.sc.parallelize(range(4), 2).map(lambda x: x + 1).collect() == [1, 2, 3, 4]
    assert time.monotonic() - began_s <= LAUNCH_S + SLACK_S
    assert cut.lost["to"], "nothing was lost"
    (told,) = running.log.of("executor_cut_off", executor=deaf)
    assert told["why"] == "it does not hear the driver"
    assert running.starts("result") == Counter({0: 2, 1: 2, 2: 1, 3: 1}), "two jobs, R0: it never began"
    (lost,) = running.log.wait_for("executor_lost", executor=deaf, deadline_s=LOST_AFTER_S + SLACK_S)
    assert lost["why"] == "it does not hear the driver"
    cut.heal()
    wait_until(lambda: len(running.executor_pids()) == 2, what="another in its place")


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "waiting"])
def test_NET_6_an_executor_cut_off_is_fenced_within_the_bound_and_what_it_finished_is_done_again(
    start, tmp_path, busy
) -> None:
    running, gate = start("local-cluster[2,1,512]", **QUICK), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)

    def spin(index, records):
        gate.arrive(index)
        while not os.path.exists(f"{gate.path}/open"):
            if not busy:
                time.sleep(0.01)
        return records

    pairs = running.sc.parallelize(range(NUMBERS), 2).mapPartitionsWithIndex(spin).map(lambda x: (x % 5, x))
    action = Action(lambda: sorted(pairs.reduceByKey(add, 2).collect()))
    victim = wait_until(lambda: gate.pid_of(1), what="map task 1")
    running.log.wait_for("task_start", 2, kind="map")
    executor = executor_of(running, victim)
    cut = Cut(running, executor)
    began_s = time.monotonic()
    (lost,) = running.log.wait_for("executor_lost", executor=executor, deadline_s=LOST_AFTER_S + SLACK_S)
    assert time.monotonic() - began_s + 0.2 > LEASE_S, "S30: not before its lease is over"
    assert lost["why"] == "the driver does not hear it" and cut.lost["of"]
    wait_until(lambda: not faultlib.is_alive(victim), 2.0, "its worker to end it")
    gate.open()
    cut.heal()
    assert action.result() == SUMS
    assert running.starts("map") == Counter({0: 1, 1: 2}), "R1"
    assert not running.log.of("output_adopted")


def test_EX_7_of_a_stopped_executor_the_queue_is_given_to_others_at_once(start, tmp_path) -> None:
    """With default settings: it is suspended and its queue moved within a second, and nothing is lost when
    it goes on in time."""
    running, gate = start("local-cluster[2,1,512]", spark_speculation=False), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)

    def first_two_wait(index, records):
        if index < 2:
            gate.wait(index)
        return records

    numbers = running.sc.parallelize(range(8), 8).mapPartitionsWithIndex(first_two_wait)
    action = Action(numbers.collect)
    victim = wait_until(lambda: gate.pid_of(1), what="task 1")
    running.log.wait_for("task_start", 2)
    running.kill(victim, signal.SIGSTOP)
    running.log.wait_for("executor_stopped", stopped=True, deadline_s=1.0)
    os.close(os.open(f"{gate.path}/open", os.O_CREAT | os.O_WRONLY))
    running.log.wait_for("task_end", 7, reason="Success", deadline_s=5.0)
    running.kill(victim, signal.SIGCONT)
    assert action.result() == list(range(8))
    again = faultlib.redone(running.events())
    assert sum(again.values()) <= 1, "R0, save that what was taken from its queue may begin as it wakes"
    assert not running.log.of("executor_lost")
