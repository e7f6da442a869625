"""How soon an end or a stop is in the event log, with default settings: within 1 s, and within 10 s."""

import os
import signal
import time

import pytest

from tests.cluster import faultlib
from tests.cluster.faultlib import wait_until

KILLED_S, STOPPED_S = 1.0, 10.0  # faults.md section 0: D0, D1


def wall_ms() -> float:
    return time.time() * 1000


def within(began_ms: float, event: faultlib.Event, bound_s: float) -> None:
    assert event["t_ms"] - began_ms <= bound_s * 1000, event


def test_EX_1_WK_1_the_death_of_an_executor_and_of_a_worker_is_in_the_log_within_a_second(start) -> None:
    running = start("local-cluster[2,1,512]")
    executors = running.log.wait_for("executor_added", 2)
    workers = {event["host"]: event for event in running.log.of("worker_added")}
    began_ms = wall_ms()
    running.kill(executors[0]["pid"])
    (lost,) = running.log.wait_for("executor_lost", executor=executors[0]["executor"], deadline_s=5.0)
    within(began_ms, lost, KILLED_S)
    began_ms, worker = wall_ms(), workers[executors[1]["host"]]
    running.kill(worker["pid"])
    (lost,) = running.log.wait_for("worker_lost", worker=worker["worker"], deadline_s=5.0)
    within(began_ms, lost, KILLED_S)


def test_EX_7_WK_8_a_stopped_executor_and_a_stopped_worker_are_given_up_and_replaced_within_ten_seconds(
    start,
) -> None:
    running = start("local-cluster[2,1,512]")
    executors = {event["host"]: event for event in running.log.wait_for("executor_added", 2)}
    workers = {event["host"]: event for event in running.log.of("worker_added")}
    victim, worker = executors["host-0"], workers["host-1"]
    began_ms = wall_ms()
    for pid in (victim["pid"], worker["pid"]):
        os.kill(pid, signal.SIGSTOP)
    (stopped,) = running.log.wait_for("executor_stopped", executor=victim["executor"], deadline_s=5.0)
    within(began_ms, stopped, KILLED_S)
    for kind, event, name in (("executor_lost", victim, "executor"), ("worker_lost", worker, "worker")):
        (lost,) = running.log.wait_for(kind, deadline_s=STOPPED_S + 5.0, **{name: event[name]})
        within(began_ms, lost, STOPPED_S)
    running.log.wait_for("executor_adopted", executor=executors["host-1"]["executor"], deadline_s=5.0)
    wait_until(lambda: len(running.executor_pids()) == 2, what="another in the stopped one's place")
    assert running.sc.parallelize(range(8), 4).sum() == 28


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
def test_CM_1_NET_5_the_loss_of_the_manager_is_in_the_log_in_time_and_costs_nothing(start, stopped) -> None:
    running = start("local-cluster[2,1,512]")
    running.log.wait_for("executor_added", 2)
    manager = running.sc._driver.cluster._manager.interpreter
    began_ms = wall_ms()
    manager.signal(signal.SIGSTOP if stopped else signal.SIGKILL)
    (lost,) = running.log.wait_for("manager_lost", deadline_s=STOPPED_S + 5.0)
    within(began_ms, lost, STOPPED_S if stopped else KILLED_S)
    assert running.sc.parallelize(range(8), 4).sum() == 28
    if stopped:
        manager.signal(signal.SIGCONT)
    (back,) = running.log.wait_for("manager_back", deadline_s=5.0)
    assert (back["manager"] == lost["manager"]) is stopped
    if stopped:
        host = running.sc._driver._host
        told = host.received_count
        wait_until(lambda: host.received_count > told + 8, 10.0, "beats, and whatever the manager has to say")
    faultlib.assert_r0(running.events())
    assert not running.log.of("worker_lost") and not running.log.of("executor_lost")


def test_CM_1_the_next_manager_takes_over_what_was_granted_and_serves_workers_that_come_later(start) -> None:
    running = start("local-cluster[2,1,512]")
    executors = {event["host"]: event for event in running.log.wait_for("executor_added", 2)}
    running.sc._driver.cluster._manager.interpreter.signal(signal.SIGKILL)
    running.log.wait_for("manager_back", deadline_s=5.0)
    wait_until(lambda: len(running.log.of("app_registered")[-1]["granted"]) == 2, 5.0, "what both hold")
    assert set(running.executor_pids()) == {event["pid"] for event in executors.values()}
    worker = next(event for event in running.log.of("worker_added") if event["host"] == "host-0")
    for pid in (worker["pid"], executors["host-0"]["pid"]):
        running.kill(pid)
    running.log.wait_for("worker_added", 2, host="host-0", deadline_s=10.0)
    running.log.wait_for("executor_added", 2, host="host-0", deadline_s=10.0)
    assert running.sc.parallelize(range(8), 4).sum() == 28
    assert [event["host"] for event in running.log.of("executor_lost")] == ["host-0"]
