"""Tasks that end every process they run in, and tasks that run out of memory: who pays, and what is told."""

import ctypes
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from operator import add

import psutil
import pytest

from chaos.nemesis.cgroup import Cgroup
from spark_ft import StorageLevel
from spark_ft.errors import JobError
from tests.cluster import faultlib

NUMBERS = 60
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


def fails(call) -> JobError:
    with pytest.raises(JobError) as caught:
        call()
    return caught.value


def assert_works(running: faultlib.Running) -> None:
    pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
    assert sorted(pairs.reduceByKey(add, 2).collect()) == SUMS


@pytest.mark.parametrize("poison", ["SIGSEGV", "SIGKILL"])
def test_TK_5_a_poison_task_costs_three_processes_the_last_one_alone_and_no_neighbour(start, poison) -> None:
    running = start("local-cluster[2,1,256]", spark_ft_task_prefetch=2)
    running.log.wait_for("executor_added", 2)

    def work(index, records):
        if index == 5:
            if poison == "SIGSEGV":
                ctypes.string_at(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return records

    error = fails(running.sc.parallelize(range(24), 12).mapPartitionsWithIndex(work).collect)
    assert error.getCondition() == "POISON_TASK" and error.partition == 5
    assert f"POISON_TASK(5, {poison}, rss peak " in str(error)
    deaths = len(running.log.of("executor_lost"))
    # Whoever sends a SIGKILL cannot be told: while others get on, it is no proof (EX-5).
    assert deaths == 3 if poison == "SIGSEGV" else 3 <= deaths <= 14
    assert running.starts("result")[5] == deaths
    quarantines = running.log.of("quarantine", partition=5, room="ALONE")
    for quarantine in quarantines:
        there = {
            event["partition"] for event in running.log.of("task_start", executor=quarantine["executor"])
        }
        assert there == {5}, "it had neighbours in quarantine"
    last = running.log.of("task_start", partition=5)[-1]["executor"]
    assert last == quarantines[-1]["executor"]
    faultlib.assert_r1(running.events())
    assert {event["partition"] for event in running.log.of("task_end", blame="task")} <= {5}
    assert_works(running)


@contextmanager
def memory_limit(running: faultlib.Running, limit_bytes: int) -> Iterator[None]:
    """A cgroup around the only worker and all that it starts, where this machine lets us make one."""
    group = Cgroup.make("memory", "blame")
    if group is None:
        pytest.skip("making a memory cgroup takes root, and cgroups of version 1 or 2")
    try:
        group.limit_memory(limit_bytes)
        (worker,) = running.log.of("worker_added")
        process = psutil.Process(worker["pid"])
        for each in [process, *process.children(recursive=True)]:
            group.take(each.pid)
        yield
    finally:
        running.stop()
        group.close()
    assert not group.path.exists()


def test_MEM_1_a_task_that_the_kernel_kills_for_memory_is_told_apart_and_ends_with_its_peak(start) -> None:
    running = start("local[2]")
    running.log.wait_for("executor_added", 2)

    def work(index, records):
        held = []
        while index == 2:
            held.append(bytearray(os.urandom(1 << 20)) * 16)
        return records

    with memory_limit(running, 350 << 20):
        error = fails(running.sc.parallelize(range(8), 4).mapPartitionsWithIndex(work).collect)
        assert error.getCondition() == "TASK_OUT_OF_MEMORY" and error.partition == 2
        peak = int(str(error).partition("rss peak ")[2].partition(" MiB")[0])
        assert 150 <= peak <= 450
        rooms = [event["room"] for event in running.log.of("quarantine")]
        assert rooms == ["ROOMY", "HOST"]
        lost = running.log.of("executor_lost")
        assert len(lost) == 3 and all("for want of memory" in event["why"] for event in lost)
        assert {place: n for place, n in running.starts("result").items() if n > 1} == {2: 3}
        assert_works(running)


def test_MEM_1_beyond_an_enforced_limit_the_task_fails_by_name_and_its_executor_lives(start) -> None:
    running = start("local[2]", spark_executor_memory="64m", spark_ft_executor_memory_enforce=True)
    cached = running.sc.parallelize(range(1000), 2).persist(StorageLevel.MEMORY_ONLY)
    assert cached.count() == 1000

    def work(index, records):
        if index == 1:
            return [len(bytearray(2 << 30))]
        return records

    error = fails(running.sc.parallelize(range(8), 4).mapPartitionsWithIndex(work).collect)
    assert error.getCondition() == "TASK_OUT_OF_MEMORY" and "limit 64 MiB" in str(error)
    assert "MemoryError" in str(error) and "in work" in str(error)
    assert running.starts("result")[1] - 1 == 3
    lost = [event["why"] for event in running.log.of("executor_lost")]
    assert len(lost) <= 1, f"only the fresh process for the last attempt: {lost}"
    assert cached.sum() == sum(range(1000)), "what was dropped from the cache is computed again"
    assert_works(running)


def test_MEM_1_an_attempt_that_has_room_goes_on(start, tmp_path) -> None:
    running = start("local[2]")

    def work(index, records):
        if index == 1:
            try:
                os.close(os.open(tmp_path / "once", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return records
            raise MemoryError
        return records

    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(work)
    assert numbers.collect() == list(range(NUMBERS)), (
        "though local[2] retries nothing that a task is blamed for"
    )
    assert running.starts("result") == Counter(range(6)) + Counter([1])
    assert [event["room"] for event in running.log.of("quarantine")] == ["ROOMY"]


def test_MEM_6_memory_that_runs_out_in_the_engine_costs_the_attempt_and_nothing_else(start, tmp_path) -> None:
    once = tmp_path / "once"
    running = start("local[2]", spark_ft_failpoints=f"after_block_put_before_manifest=memory!{once}")
    seen = running.sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x % 5, x

    sums = running.sc.parallelize(range(NUMBERS), 4).map(count).reduceByKey(add, 2)
    assert sorted(sums.collect()) == SUMS and once.exists()
    assert sum(running.starts("map").values()) == 5 and seen.value == NUMBERS
    assert not running.log.of("executor_lost"), "its executor goes on"
    assert_works(running)


def test_TK_7_what_a_task_leaves_behind_is_gone_before_the_next_begins(start, tmp_path) -> None:
    running = start("local[1]")

    def foul(_):
        os.chdir("/")
        os.environ["SPARK_FT_LEFT"] = "1"
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return subprocess.Popen(["sleep", "600"]).pid, os.getpid()

    def look(_):
        handlers = str(signal.getsignal(signal.SIGUSR1)), str(signal.getsignal(signal.SIGTERM))
        return os.getcwd(), os.environ.get("SPARK_FT_LEFT"), handlers, os.getpid()

    clean = running.sc.parallelize([0], 1).map(look).first()
    child, pid = running.sc.parallelize([0], 1).map(foul).first()
    assert running.sc.parallelize([0], 1).map(look).first() == clean and clean[3] == pid
    assert not faultlib.is_alive(child)
    assert not running.log.of("executor_lost"), "what can be put back costs no process"


def test_TK_7_a_process_in_which_a_thread_goes_on_is_replaced_before_the_next_task(start) -> None:
    running = start("local[1]", spark_ft_task_prefetch=4)

    def work(index, records):
        others = [thread.name for thread in threading.enumerate() if thread.name == "left"]
        if index == 1:
            threading.Thread(target=threading.Event().wait, name="left", daemon=True).start()
        return [(os.getpid(), others)]

    places = running.sc.parallelize(range(6), 6).mapPartitionsWithIndex(work).collect()
    assert [others for _, others in places] == [[]] * 6, "a later task met the thread"
    assert len({pid for pid, _ in places}) == 2
    (lost,) = running.log.of("executor_lost")
    assert lost["blame"] in ("", "system")
    assert running.starts("result") == Counter(range(6))
