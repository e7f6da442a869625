"""Barrier stages on real executors: tasks that meet, and what becomes of a gang that loses one (rows BR)."""

import os
import signal
import time

import pytest

from spark_ft import BarrierTaskContext, TaskContext
from spark_ft.errors import JobError, PySparkRuntimeError
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until


def test_BR_4_tasks_of_a_barrier_stage_meet_and_tell_each_other(start) -> None:
    running = start("local[3]")

    def talk(index, records):
        context = BarrierTaskContext.get()
        assert TaskContext.get() is context
        context.barrier()
        first = context.allGather(f"{index}:{sum(records)}")
        infos = [info.address for info in context.getTaskInfos()]
        return [(index, first, context.allGather(), infos)]

    barrier = running.sc.parallelize(range(6), 3).barrier()
    assert not running.sc.parallelize([1])._is_barrier()
    rdd = barrier.mapPartitionsWithIndex(talk)
    assert rdd._is_barrier() and rdd.map(str)._is_barrier() and not rdd.repartition(2)._is_barrier()
    for _, first, second, infos in rdd.collect():
        assert first == ["0:1", "1:5", "2:9"] and second == ["", "", ""]
        assert len(infos) == len(set(infos)) == 3 and all(":" in info for info in infos)
    sums = barrier.mapPartitions(lambda it: [(sum(it), 1)]).groupByKey()
    assert sorted(sums.keys().collect()) == [1, 5, 9]
    with pytest.raises(PySparkRuntimeError, match="NOT_IN_BARRIER_STAGE"):
        BarrierTaskContext.get()
    with pytest.raises(JobError, match="NOT_IN_BARRIER_STAGE"):
        running.sc.parallelize([1], 1).map(lambda _: BarrierTaskContext.get()).count()
    with pytest.raises(JobError, match="Argument `message` must be of type `str`"):
        barrier.mapPartitions(lambda _: BarrierTaskContext.get().allGather(1)).count()
    with pytest.raises(JobError, match="SPARK-24820"):
        rdd.first()
    assert running.sc.parallelize(range(6), 3).sum() == 15


@pytest.mark.parametrize("kind", ["map", "result"])
def test_BR_1_BR_2_one_killed_task_of_a_gang_runs_all_of_it_again_once(start, tmp_path, kind) -> None:
    running, gate = start(), Gate(tmp_path / "gate")

    def meet(index, records):
        context = BarrierTaskContext.get()
        context.barrier()
        if index == 0:
            return [(index, context.attemptNumber())]  # it has ended well when another one dies
        if gate.arrive(f"in-{index}") == 0:
            gate.wait("held", 60)
        return [(index, context.attemptNumber())]

    pairs = running.sc.parallelize(range(3), 3).barrier().mapPartitionsWithIndex(meet)
    asked = pairs.partitionBy(2) if kind == "map" else pairs
    action = Action(lambda: sorted(asked.collect()))
    pid = wait_until(lambda: gate.pid_of("in-1") and gate.pid_of("in-2"), what="two tasks") and gate.pid_of(
        "in-1"
    )
    running.log.wait_for("task_end", reason="Success", partition=0)
    running.kill(pid)
    assert action.result() == [(0, 1), (1, 1), (2, 1)]
    running.log.wait_for("job_end")
    assert running.starts(kind) == {0: 2, 1: 2, 2: 2}
    assert len(running.log.of("gang_broken")) == 1
    undone = "rollback" if kind == "map" else "results_withdrawn"
    assert len(running.log.of(undone)) == 1


def test_BR_2_a_gang_whose_effects_have_left_ends_by_name(start, tmp_path) -> None:
    running, gate = start("local[2,4]"), Gate(tmp_path / "gate")

    def effect(record):
        if record == 1:
            gate.wait("held", 60)

    rdd = running.sc.parallelize(range(2), 2).barrier().mapPartitions(lambda it: it)
    action = Action(lambda: rdd.foreach(effect))
    pid = wait_until(lambda: gate.pid_of("held"), what="the second task")
    running.log.wait_for("task_end", reason="Success", partition=0)
    running.kill(pid)
    with pytest.raises(JobError) as raised:
        action.result()
    assert raised.value.getCondition() == "INDETERMINATE_OUTPUT_ROLLBACK"
    assert running.sc.parallelize(range(4), 2).sum() == 6


def test_BR_3_more_tasks_than_slots_are_refused_by_name(start) -> None:
    name = "spark_scheduler_barrier_maxConcurrentTasksCheck_interval"
    running = start("local[2]", **{name: "1s"})
    running.log.wait_for("executor_added", 2)
    began = time.monotonic()
    with pytest.raises(JobError, match="needs 3 slots at once and there are 2") as raised:
        running.sc.parallelize(range(3), 3).barrier().mapPartitions(lambda it: it).collect()
    assert raised.value.getCondition() == "BARRIER_NO_SLOTS" and time.monotonic() - began < 15
    assert not running.log.of("task_start")


def test_BR_3_two_gangs_that_each_want_most_slots_both_end(start) -> None:
    running = start("local[3]")

    def meet(index, records):
        BarrierTaskContext.get().barrier()
        return records

    rdd = running.sc.parallelize(range(30), 2).barrier().mapPartitionsWithIndex(meet)
    actions = [Action(rdd.sum) for _ in range(4)]
    assert [action.result() for action in actions] == [435] * 4


def test_BR_4_a_task_blocked_in_barrier_is_released_when_its_peer_died(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")

    def meet(index, records):
        context = BarrierTaskContext.get()
        first = gate.arrive(f"in-{index}") == 0
        if first and index == 2:
            gate.wait("never", 60)
        try:
            context.barrier()
        except BaseException as error:
            gate.arrive(f"released-{index}")
            assert "BARRIER_ABORTED" in str(error) or type(error).__name__ == "TaskKilled"
            raise
        return records

    action = Action(running.sc.parallelize(range(6), 3).barrier().mapPartitionsWithIndex(meet).sum)
    pid = wait_until(lambda: gate.pid_of("never"), what="the task that never calls")
    wait_until(lambda: {"in-0", "in-1"} <= gate.arrivals().keys(), what="its peers")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: {"released-0", "released-1"} <= gate.arrivals().keys(), 10.0, "their release")
    assert not faultlib.is_alive(pid)
    assert action.result() == 15
    running.log.wait_for("job_end")
    assert running.starts("result") == {0: 2, 1: 2, 2: 2}


def test_BR_4_a_call_that_not_everybody_makes_is_given_up(start) -> None:
    running = start("local[2]", spark_barrier_sync_timeout="1s")

    def meet(index, records):
        if index == 0:
            BarrierTaskContext.get().barrier()
        else:
            time.sleep(0 if next(records) else 4)
        return [index]

    began = time.monotonic()
    with pytest.raises(JobError, match=r"BARRIER_ABORTED.*not every task called it within"):
        running.sc.parallelize([0, 0], 2).barrier().mapPartitionsWithIndex(meet).collect()
    with pytest.raises(JobError, match=r"BARRIER_ABORTED.*has ended without calling it"):
        running.sc.parallelize([1, 1], 2).barrier().mapPartitionsWithIndex(meet).collect()
    assert time.monotonic() - began < 10
