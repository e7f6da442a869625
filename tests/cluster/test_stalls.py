"""Tasks that hang and executors that stand still: noticed by what they do, not by what they say."""

import ctypes
import os
import signal
import threading
import time
from collections import Counter
from operator import add

import pytest

from spark_ft import TaskContext
from spark_ft.errors import JobError
from tests.cluster.faultlib import Action, Gate, wait_until

QUICK_BEATS = {"spark_executor_heartbeatInterval": "200ms"}


def hang_first(index, records):
    """Partition 1's first attempt waits for what never comes."""
    if index == 1:
        if TaskContext.get().attemptNumber() == 0:
            threading.Event().wait()
        time.sleep(0.3)  # the first one's stack is written meanwhile
    return records


@pytest.mark.parametrize("speculation", [True, False])
def test_EX_9_a_task_that_hangs_is_started_elsewhere_and_its_stack_is_told(start, speculation) -> None:
    running = start("local[2]", spark_ft_task_stallTimeout="1s", spark_speculation=speculation, **QUICK_BEATS)
    began_s = time.monotonic()
    numbers = running.sc.parallelize(range(40), 4).mapPartitionsWithIndex(hang_first)
    assert numbers.collect() == list(range(40))
    assert time.monotonic() - began_s < 10
    (stalled,) = running.log.of("task_stalled")
    assert stalled["partition"] == 1 and stalled["idle_s"] >= 1.0
    stacks = running.log.wait_for("executor_stacks", executor=stalled["executor"])
    assert "hang_first" in stacks[0]["text"]
    assert len(running.log.of("speculation")) == speculation
    assert len(running.log.of("stalled_task_killed")) == (not speculation)
    ended = running.log.wait_for("task_end", task=stalled["task"])[0]
    assert ended["reason"] == "Killed" and not running.log.of("executor_lost"), "the process goes on"
    assert running.starts("result") == Counter(range(4)) + Counter([] if speculation else [1])


def test_EX_9_computing_in_threads_or_children_or_reading_slowly_is_no_stall(start) -> None:
    running = start("local[3]", spark_ft_task_stallTimeout="600ms", **QUICK_BEATS)

    def work(index, records):
        until_s = time.monotonic() + 2.0
        if index == 0:  # a thread of the task's own, while its main thread waits

            def spin():
                while time.monotonic() < until_s:
                    sum(range(1000))

            thread = threading.Thread(target=spin)
            thread.start()
            thread.join()
        elif index == 1:
            import subprocess

            subprocess.run(["timeout", "2", "sh", "-c", "while :; do :; done"], check=False)
        else:
            with open("/dev/zero", "rb", buffering=0) as file:
                while time.monotonic() < until_s:
                    file.read(1000)
                    time.sleep(0.3)
        return records

    assert running.sc.parallelize(range(3), 3).mapPartitionsWithIndex(work).collect() == [0, 1, 2]
    assert not running.log.of("task_stalled")


def wait_for_ever():
    threading.Event().wait()


def wait_with_the_gil():
    silent, _ = os.pipe()
    ctypes.PyDLL(None).read(silent, ctypes.create_string_buffer(1), 1)


@pytest.mark.parametrize("how", [wait_for_ever, wait_with_the_gil])
def test_TK_6_a_task_over_its_time_ends_the_job_with_its_stack(start, how) -> None:
    tries = 1 if how is wait_with_the_gil else 2
    running = start("local-cluster[2,1,256]", spark_ft_task_timeout="1s", spark_task_maxFailures=tries)
    running.log.wait_for("executor_added", 2)

    def work(index, records):
        if index == 0:
            how()
        return records

    with pytest.raises(JobError) as caught:
        running.sc.parallelize(range(4), 2).mapPartitionsWithIndex(work).collect()
    assert caught.value.getCondition() == "TASK_TIMEOUT"
    assert how.__name__ in str(caught.value), "the stack is told"
    places = [event["executor"] for event in running.log.of("task_start", partition=0)]
    assert len(places) == len(set(places)) == tries
    if how is wait_for_ever:
        assert running.sc.parallelize(range(10), 2).sum() == 45


def test_EX_10_a_job_with_one_of_two_executors_stopped_goes_on_at_once(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,256]"), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)
    seen = running.sc.accumulator(0)

    def work(index, records):
        gate.arrive(index)
        for x in records:
            time.sleep(0.01)
            seen.add(1)
            yield x % 5, x

    pairs = running.sc.parallelize(range(240), 12).mapPartitionsWithIndex(work)
    began_s = time.monotonic()
    action = Action(lambda: sorted(pairs.reduceByKey(add, 2).collect()))
    victim = wait_until(lambda: gate.pid_of(2) or gate.pid_of(3), what="a second round of tasks")
    running.kill(victim, signal.SIGSTOP)
    running.log.wait_for("executor_stopped", stopped=True, deadline_s=1.0)
    assert action.result(20.0) == [(key, sum(range(key, 240, 5))) for key in range(5)]
    assert time.monotonic() - began_s < 8, "long before the stopped one is given up"
    assert not running.log.of("executor_lost")
    assert running.log.of("speculation") and seen.value == 240
    os.kill(victim, signal.SIGCONT)


def test_EX_10_with_one_executor_ten_times_slower_a_job_takes_twice_its_time_and_a_task(start) -> None:
    running = start()
    running.log.wait_for("executor_added", 3)
    slow_pid = running.executor_pids()[0]
    seen = running.sc.accumulator(0)

    def work(slow):
        def each(index, records):
            time.sleep(2.0 if slow and os.getpid() == slow_pid else 0.2)
            for x in records:
                seen.add(1)
                yield x

        return each

    def timed(slow):
        began_s = time.monotonic()
        numbers = running.sc.parallelize(range(48), 24).mapPartitionsWithIndex(work(slow))
        assert numbers.collect() == list(range(48))
        return time.monotonic() - began_s

    free_s = timed(slow=False)
    slow_s = timed(slow=True)
    assert slow_s <= 2 * free_s + 0.2, f"{slow_s:.2f} s against {free_s:.2f} s"
    assert slow_pid in [event["pid"] for event in running.log.of("task_start", stage=1)], "it was not asked"
    twins = running.log.of("task_start", stage=1, speculative=True)
    assert twins and slow_pid not in [event["pid"] for event in twins]
    assert seen.value == 2 * 48 and not running.log.of("executor_lost")
