"""Tasks that fail, exit, kill their process, cannot be loaded or cannot be answered: what is tried again,
where, how often, and what the user is told."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from spark_ft import TaskContext
from spark_ft.driver.handle import JobHandle
from spark_ft.errors import JobError, PySparkException, TaskFailed
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 60
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


def starts(running: faultlib.Running, kind: str | None = None) -> Counter[int]:
    """partition -> starts in all stages of one kind."""
    counted: Counter[int] = Counter()
    for (_, partition), count in faultlib.starts_per_partition(running.events(), kind).items():
        counted[partition] += count
    return counted


def assert_works(running: faultlib.Running) -> None:
    """The session takes another job, with a shuffle, and soon."""
    began_s = time.monotonic()
    pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
    assert sorted(pairs.reduceByKey(add, 2).collect()) == SUMS
    assert time.monotonic() - began_s < 5


def fails(call) -> JobError:
    with pytest.raises(JobError) as caught:
        call()
    return caught.value


# --- User code raises ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["map", "result"])
def test_TK_1_a_task_that_raises_once_is_tried_again_elsewhere_and_no_other(start, kind) -> None:
    running = start()
    running.log.wait_for("executor_added", 3)
    seen = running.sc.accumulator(0)

    def shaky(index, records):
        for x in records:
            seen.add(1)
            yield x % 5, x
        if index == 2 and TaskContext.get().attemptNumber() == 0:
            raise ConnectionError("not today")

    pairs = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(shaky)
    if kind == "map":
        assert sorted(pairs.reduceByKey(add, 3).collect()) == SUMS
    else:
        assert sorted(pairs.collect()) == sorted((x % 5, x) for x in range(NUMBERS))
    failed = running.log.of("task_end", reason="UserError")
    assert [event["partition"] for event in failed] == [2], "the fault did not take place"
    assert starts(running, kind) == Counter(range(6)) + Counter([2])
    places = {event["executor"] for event in running.log.of("task_start", partition=2, kind=kind)}
    assert len(places) == 2, "the second attempt was made where the first one failed"
    assert seen.value == NUMBERS, "DR-13: the failed attempt counted"
    assert len(running.executor_pids()) == 3 and not running.log.of("executor_lost")


def test_TK_2_a_task_that_always_raises_ends_the_job_with_every_error_and_its_siblings_at_once(
    start, tmp_path
) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 3)

    def work(index, records):
        if index == 0:
            gate.arrive("sibling")
            time.sleep(60)
        wait_until(lambda: os.path.exists(f"{gate.path}/sibling@0"), what="the sibling")
        if TaskContext.get().attemptNumber() % 2:
            raise KeyError("odd")
        raise ValueError("grün")

    error = fails(running.sc.parallelize(range(4), 2).mapPartitionsWithIndex(work).collect)
    ended_s = time.monotonic()
    assert isinstance(error, TaskFailed) and error.getCondition() == "TASK_FAILED"
    assert error.partition == 1 and error.cause_type in ("KeyError", "ValueError")
    text = str(error)
    assert "failed 4 times" in text and "4 attempt(s) were made" in text
    assert "KeyError: 'odd'" in text and "ValueError: grün" in text
    assert text.count("Traceback (most recent call last)") == 2, "each distinct error once"
    assert text.count("in work") == 2 and "spark_ft/executor" not in text
    assert len(error.attempts) == 4 and all(attempt.executor in text for attempt in error.attempts)
    assert len({attempt.executor for attempt in error.attempts}) >= 2
    (sibling,) = running.log.wait_for("task_end", partition=0, reason="Killed", deadline_s=5)
    assert time.monotonic() - ended_s < 5 and sibling["reason"] == "Killed"
    assert starts(running) == Counter({0: 1, 1: 4})
    assert_works(running)


EXITS = {
    "sys.exit(0)": lambda _: sys.exit(0),
    "sys.exit(3)": lambda _: sys.exit(3),
    "sys.exit(text)": lambda _: sys.exit("over"),
    "KeyboardInterrupt": lambda _: (_ for _ in ()).throw(KeyboardInterrupt()),
}


def test_TK_3_leaving_the_interpreter_fails_the_task_and_the_executor_stays(start) -> None:
    running = start("local[2,2]")
    running.log.wait_for("executor_added", 2)
    pids = sorted(running.executor_pids())
    codes = ["USER_CODE_EXITED(0)", "USER_CODE_EXITED(3)", "USER_CODE_EXITED(over)", "USER_CODE_EXITED()"]
    for (name, leave), code in zip(EXITS.items(), codes, strict=True):
        error = fails(running.sc.parallelize([1], 1).map(leave).collect)
        assert error.getCondition() == "USER_CODE_EXITED" and code in str(error), name
        assert len(error.attempts) == 2 and "in <lambda>" in str(error), name
    assert sorted(running.executor_pids()) == pids and all(map(faultlib.is_alive, pids))
    assert not running.log.of("executor_lost")
    assert_works(running)


DEATHS = {
    "exit 0": (lambda: os._exit(0), "exit code 0"),
    "exit 7": (lambda: os._exit(7), "exit code 7"),
    "abort": (os.abort, "SIGABRT"),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_TK_4_only_the_tasks_own_process_dies_and_it_alone_is_tried_again(start, tmp_path, death) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)
    die = DEATHS[death][0]

    def work(index, records):
        if index == 0:
            gate.wait("sibling")
        elif index == 1 and TaskContext.get().attemptNumber() == 0:
            wait_until(lambda: os.path.exists(f"{gate.path}/sibling@0"), what="the sibling")
            die()
        return records

    action = Action(running.sc.parallelize(range(12), 6).mapPartitionsWithIndex(work).collect)
    (lost,) = running.log.wait_for("executor_lost")
    assert DEATHS[death][1] in lost["why"]
    gate.open()
    assert action.result() == list(range(12))
    assert starts(running) == Counter(range(6)) + Counter([1]), "a queued or a running neighbour paid for it"
    assert len(running.log.of("executor_lost")) == 1
    wait_until(lambda: len(running.executor_pids()) == 2, what="another executor in its place")
    assert_works(running)


@pytest.mark.parametrize("death", DEATHS)
def test_TK_4_a_task_that_always_ends_its_process_ends_the_job_with_how_it_died(start, death) -> None:
    running = start("local[2,3]")
    die, how = DEATHS[death]
    error = fails(running.sc.parallelize(range(2), 1).map(lambda _: die()).collect)
    assert isinstance(error, TaskFailed) and how in str(error) and error.partition == 0
    assert {attempt.outcome for attempt in error.attempts} == {"ExecutorLost"}
    assert len(running.log.of("executor_lost")) == len(error.attempts) == 3
    assert_works(running)


# --- Functions that do not travel ------------------------------------------------------------------


def test_TK_8_a_function_that_does_not_pickle_is_refused_before_any_task_and_the_variable_is_named(
    start,
) -> None:
    running = start("local[1]")
    rdd = running.sc.parallelize(range(4), 2)
    lock, ends = threading.Lock(), socket.socketpair()
    holder = {"deep": [1, lock]}

    class Service:
        def __init__(self):
            self.connection = ends[0]

        def call(self, x):
            return self.connection.send(x)

    def locked(x):
        with lock:
            return x

    def nested(x):
        return holder["deep"][0] + x

    refused = [
        (lambda: rdd.map(locked).collect(), "lock", "variable 'lock'"),
        (lambda: rdd.map(nested).count(), "lock", "variable 'holder' -> ['deep'] -> [1]"),
        (lambda: rdd.map(Service().call).collect(), "socket", "self -> attribute 'connection'"),
        (lambda: rdd.map(lambda x: (x, x)).reduceByKey(lambda a, b: locked(a)).collect(), "lock", "'lock'"),
        (lambda: rdd.foreachPartition(lambda it: locked(it)), "lock", "variable 'lock'"),
    ]
    for call, kind, path in refused:
        with pytest.raises(Exception, match="CLOSURE_NOT_SERIALIZABLE") as caught:
            call()
        assert type(caught.value).__name__ == "PicklingError"
        assert "Could not serialize object" in str(caught.value)
        assert path in str(caught.value) and kind in str(caught.value), str(caught.value)
    for end in ends:
        end.close()
    sc = running.sc
    with pytest.raises(PySparkException, match="attempting to reference SparkContext"):
        rdd.map(lambda x: sc.parallelize([x])).collect()
    assert not running.log.of("task_start") and not running.log.of("job_start")
    assert_works(running)


@pytest.mark.parametrize("master", ["local-cluster[3,1,512]", "local[1,4]"])
def test_TK_9_functions_that_no_executor_can_load_end_the_job_after_two_have_tried(
    start, tmp_path, monkeypatch, master
) -> None:
    running = start(master)
    expected = 3 if "cluster" in master else 1
    running.log.wait_for("executor_added", expected)
    pids = sorted(running.executor_pids())
    name = f"only_on_the_driver_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text("def triple(x):\n    return 3 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # after the executors were started
    module = __import__(name)
    error = fails(running.sc.parallelize([1], 1).map(module.triple).collect)
    assert error.getCondition() == "CLOSURE_NOT_LOADABLE" and error.cause_type == "ModuleNotFoundError"
    assert name in str(error) and "Traceback" in str(error)
    assert starts(running) == Counter({0: 2})
    tried = {event["executor"] for event in running.log.of("task_start")}
    assert len(tried) == min(2, expected)
    assert sorted(running.executor_pids()) == pids and not running.log.of("executor_lost")
    assert_works(running)
    running.sc.addPyFile(str(tmp_path / f"{name}.py"))
    assert running.sc.parallelize([1], 1).map(module.triple).collect() == [3], "shipped, it can be loaded"


# --- Exceptions that do not travel -------------------------------------------------------------------


class NeedsKeywords(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


class FailsOnArrival(Exception):
    def __setstate__(self, state):
        raise RuntimeError("never again")

    def __reduce__(self):
        raise RuntimeError("never at all")


class NoWords(Exception):
    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


class NoEnd(Exception):
    def __str__(self):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)


ODD = {
    "required keywords": (lambda: NeedsKeywords(code=5), "NeedsKeywords: code 5"),
    "raising __setstate__ and __reduce__": (lambda: FailsOnArrival("hello"), "FailsOnArrival: hello"),
    "raising __str__": (NoWords, "NoWords: <exception str() failed>"),
    "hanging __str__": (NoEnd, "NoEnd: <exception str() failed>"),
    "huge arguments": (lambda: ValueError(b"x" * (40 << 20), {i: i for i in range(10**6)}), "ValueError: ("),
}


def test_TK_10_odd_exceptions_reach_the_driver_as_type_words_and_traceback(start) -> None:
    running = start("local[2]")

    def fail(make):
        raise make()

    for name, (make, words) in ODD.items():
        began_s = time.monotonic()
        error = fails(lambda make=make: running.sc.parallelize([1], 1).foreach(lambda _: fail(make)))
        assert time.monotonic() - began_s < 6, name
        text = str(error)
        assert words in text and "in fail" in text, name
        assert len(text) < 1 << 20, name
        assert len(error.attempts) == 1, name
    assert not running.log.of("executor_lost")
    assert_works(running)


# --- Results -------------------------------------------------------------------------------------------


def numbers():
    yield 1


def test_TK_11_a_result_that_does_not_pickle_fails_its_task_once_and_by_name(start) -> None:
    running = start("local[2,4]")
    for make, kind in ((numbers, "generator"), (threading.Lock, "lock"), (socket.socket, "socket")):
        error = fails(lambda make=make: running.sc.parallelize([1], 1).map(lambda _: make()).collect())
        assert error.getCondition() == "RESULT_NOT_SERIALIZABLE" and kind in str(error)
        assert len(error.attempts) == 1, "another attempt would fare no better"
    assert_works(running)


class Unwelcome:
    def __setstate__(self, state):
        raise RuntimeError("not in this process")


def test_TK_11_a_result_that_cannot_be_unpickled_is_an_error_of_that_action_alone(start) -> None:
    running = start("local[2]")

    def make(_):
        thing = Unwelcome()
        thing.x = 1
        return thing

    with pytest.raises(PySparkException, match="RuntimeError: not in this process") as caught:
        running.sc.parallelize([1], 1).map(make).collect()
    assert caught.value.getCondition() == "RESULT_NOT_LOADABLE"
    assert_works(running)


MIB = 1 << 20


def big(x):
    return bytes([x]) * (3 * MIB)


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,512]"])
def test_TK_11_results_over_a_mebibyte_come_by_the_store(start, master) -> None:
    running = start(master)
    assert running.sc.parallelize(range(4), 4).map(big).collect() == [big(x) for x in range(4)]
    stores = running.sc._driver.scratch.glob("hosts/*/stores/*/*/data.mdb")
    assert sum(store.stat().st_blocks * 512 for store in stores) >= 12 * MIB
    faultlib.assert_r0(running.events())


def test_TK_11_MEM_3_results_over_the_limit_are_refused_before_the_driver_has_read_them(
    start, monkeypatch
) -> None:
    running = start("local[2]", spark_driver_maxResultSize="10m")
    read = []
    whole = JobHandle.__init__

    def watched(self, *args, read_block, **rest):
        whole(self, *args, read_block=lambda ref: (read.append(ref), read_block(ref))[1], **rest)

    monkeypatch.setattr(JobHandle, "__init__", watched)
    for make in (big, lambda x: bytes([x]) * (MIB // 2)):  # by the store, and inline
        error = fails(lambda make=make: running.sc.parallelize(range(100), 100).map(make).collect())
        assert error.getCondition() == "RESULT_TOO_LARGE" and "spark.driver.maxResultSize" in str(error)
        assert not read
    assert running.sc.parallelize(range(3), 3).map(big).count() == 3
    assert len(running.sc.parallelize(range(3), 3).map(big).collect()) == 3 and len(read) == 3
    assert_works(running)


def remove(path: Path) -> None:
    path.unlink()


def garble(path: Path) -> None:
    data = path.read_bytes()
    where = data.index(b"\x01" * 4096)
    with path.open("r+b") as file:
        file.seek(where + 1000)
        file.write(b"\xff")


@pytest.mark.parametrize("damage", [remove, garble])
def test_TK_11_a_result_lost_before_it_was_read_is_computed_again_and_no_other(
    start, monkeypatch, damage
) -> None:
    """The worker has read nothing yet when the file is damaged: no copy is in anybody's cache."""
    running = start("local-cluster[2,1,512]")
    running.log.wait_for("executor_added", 2)
    damaged = []
    whole = JobHandle.__init__

    def fragile(self, *args, read_block, **rest):
        def read(ref):
            if not damaged:
                (path,) = running.sc._driver.scratch.glob(f"hosts/*/stores/{ref.store}/*/data.mdb")
                damage(path)
                damaged.append(path)
            return read_block(ref)

        whole(self, *args, read_block=read, **rest)

    monkeypatch.setattr(JobHandle, "__init__", fragile)

    def one_big(x):
        return big(x) if x == 1 else x

    assert running.sc.parallelize(range(4), 4).map(one_big).collect() == [0, big(1), 2, 3]
    assert damaged and running.log.of("result_lost", partition=1)
    assert starts(running) == Counter(range(4)) + Counter([1])
    assert_works(running)


# --- Accumulators ----------------------------------------------------------------------------------------


def test_DR_13_retries_and_twins_count_once_in_map_and_result_stages(start, tmp_path) -> None:
    running = start(
        spark_ft_speculation_minFinished=3,
        spark_speculation_quantile=0.5,
        spark_speculation_minTaskRuntime="50ms",
        spark_speculation_interval="20ms",
    )
    gate = Gate(tmp_path / "gate")
    mapped, reduced = running.sc.accumulator(0), running.sc.accumulator(0)

    def shaky(index, records):
        """Partition 1 fails at its end, partition 4's first attempt never ends by itself."""
        attempt = TaskContext.get().attemptNumber()
        for x in records:
            mapped.add(1)
            yield x % 5, x
        if index == 1 and attempt == 0:
            raise ValueError("not yet")
        if index == 4 and gate.arrive("slow") == 0:
            time.sleep(60)

    def count(index, records):
        for pair in records:
            reduced.add(1)
            yield pair
        if index == 2 and TaskContext.get().attemptNumber() < 2:
            raise ValueError("not yet")

    sums = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(shaky).reduceByKey(add, 3)
    assert sorted(sums.mapPartitionsWithIndex(count).collect()) == SUMS
    assert running.log.of("task_start", partition=4, kind="map", speculative=True), "no twin was made"
    assert len(running.log.of("task_end", reason="UserError")) == 3
    assert (mapped.value, reduced.value) == (NUMBERS, len(SUMS))
    assert starts(running, "map") == Counter(range(6)) + Counter([1])
    assert starts(running, "result") == Counter(range(3)) + Counter([2, 2])
