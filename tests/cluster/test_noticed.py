"""How soon an end or a stop is in the event log, with default settings: within 1 s, and within 10 s."""

import os
import signal
import time

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
