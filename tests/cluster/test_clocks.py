"""Wall clocks jump and stand apart: nobody is lost, nothing runs again, and people read odd times."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from operator import add
from pathlib import Path

import pytest

from chaos.nemesis import clock
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, Running, wait_until

NUMBERS = 200
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
HOUR_S = 3600.0
PROMPT = {  # so short that a jump of an hour, or of minutes, would cost everything
    "spark_executor_heartbeatInterval": "100ms",
    "spark_ft_lease": "1200ms",
    "spark_network_timeout": "1500ms",
    "spark_ft_launchTimeout": "750ms",
    "spark_ft_store_gcInterval": "500ms",
}


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose files say how wrong clocks are, of this process (the driver) and of its children."""
    directory = tmp_path / "clocks"
    directory.mkdir()
    for name, value in clock.environment(directory).items():
        monkeypatch.setenv(name, value)
    for name in ("time", "time_ns", "clock_gettime", "clock_gettime_ns"):
        monkeypatch.setattr(time, name, getattr(time, name))  # restored with all else
    spec = importlib.util.spec_from_file_location("skew", clock.SKEW_DIRECTORY / "sitecustomize.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield directory


def sums(running: Running) -> list[tuple[int, int]]:
    pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
    return sorted(pairs.reduceByKey(add, 3).collect())


def clocks_of_executors(running: Running) -> dict[int, float]:
    """pid -> what time it is there, as user code asks."""

    def ask(index: int, records: object) -> Iterator[tuple[int, float]]:
        import os
        import time

        time.sleep(0.15)
        yield os.getpid(), time.time()

    return dict(running.sc.parallelize(range(4), 4).mapPartitionsWithIndex(ask).collect())


def assert_nobody_was_lost(running: Running) -> None:
    assert not running.log.of("executor_lost") and not running.log.of("worker_lost")
    faultlib.assert_r0(running.events())


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S], ids=["forward", "back"])
def test_CLK_1_all_clocks_jump_by_an_hour_while_a_job_runs(
    start: Callable[..., Running], clocks, tmp_path, seconds
) -> None:
    running, gate = start("local-cluster[2,1,512]", **PROMPT), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)
    true_s = time.time()
    held = running.sc.parallelize(range(NUMBERS), 2).mapPartitionsWithIndex(gate.hold)
    action = Action(lambda: sorted(held.map(lambda x: (x % 5, x)).reduceByKey(add, 2).collect()))
    wait_until(lambda: gate.waiting() == 2, what="two map tasks")
    clock.skew(clocks, seconds)
    until_s = time.monotonic() + 2.0  # longer than anybody may be silent
    wait_until(lambda: time.monotonic() > until_s)
    gate.open()
    assert action.result() == SUMS
    assert sums(running) == SUMS
    assert abs(time.time() - true_s - seconds) < 60, "the driver's clock has jumped"
    there = clocks_of_executors(running)
    assert len(there) == 2 and all(abs(at - true_s - seconds) < 60 for at in there.values())
    assert_nobody_was_lost(running)


def test_CLK_1_the_clocks_of_one_host_jump_and_jump_back(start, clocks) -> None:
    running = start("local-cluster[2,1,512]", **PROMPT)
    (first, _) = running.log.wait_for("executor_added", 2)
    (worker,) = running.log.of("worker_added", host=first["host"])
    for seconds in (HOUR_S, -HOUR_S, 0.0):
        for pid in (first["pid"], worker["pid"]):
            clock.skew(clocks, seconds, pid)
        until_s = time.monotonic() + 0.7
        while time.monotonic() < until_s:
            assert sums(running) == SUMS
        there = clocks_of_executors(running)
        others = [at for pid, at in there.items() if pid != first["pid"]]
        assert abs(there[first["pid"]] - others[0] - seconds) < 60
    assert_nobody_was_lost(running)


def test_CLK_2_hosts_whose_clocks_are_minutes_apart_work_together(start, clocks) -> None:
    clock.skew(clocks, -300.0)
    running = start("local-cluster[2,1,512]", **PROMPT)
    for number, event in enumerate(running.log.wait_for("executor_added", 2)):
        clock.skew(clocks, 240.0 * (number + 1), event["pid"])
    for _ in range(10):
        assert sums(running) == SUMS
    cached = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: x * x).cache()
    assert cached.sum() == cached.sum() == sum(x * x for x in range(NUMBERS))
    there = sorted(clocks_of_executors(running).values())
    assert there[1] - there[0] > 200, "their clocks agree"
    assert_nobody_was_lost(running)
