"""The scheduler meets what it never should: jobs end with that, nothing hangs, and the next job works."""

import time
from collections import Counter

import pytest

from spark_ft.errors import JobError
from tests.cluster.faultlib import Action, Gate, wait_until


def test_DR_10_an_error_in_the_scheduler_ends_the_jobs_and_the_next_one_works(
    start, tmp_path, monkeypatch
) -> None:
    running, gate = start("local[2]"), Gate(tmp_path / "gate")
    held = Action(running.sc.parallelize(range(4), 2).mapPartitionsWithIndex(gate.hold).collect)
    wait_until(lambda: gate.waiting() == 2, what="both tasks")

    def boom(*_: object) -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as broken:
        broken.setattr(running.sc._driver._core.ends, "ended", boom)
        gate.open()
        with pytest.raises(JobError, match="RuntimeError: boom") as caught:
            held.result(5)
        assert caught.value.getCondition() == "INTERNAL_ERROR"
        running.log.wait_for("internal_error", 2)  # one for the end of each task: none is still under way
    assert running.sc.parallelize(range(4), 2).sum() == 6


def test_DR_10_a_scheduler_that_fails_at_every_tick_neither_hangs_nor_spins(start, monkeypatch) -> None:
    running = start("local[2]")
    assert running.sc.parallelize(range(4), 2).sum() == 6

    def boom(*_: object) -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as broken:
        broken.setattr(running.sc._driver._core.liveness, "sweep", boom)
        running.log.wait_for("internal_error")
        action = Action(running.sc.parallelize(range(4), 2).map(lambda x: time.sleep(0.5)).collect)
        with pytest.raises(JobError, match="boom"):
            action.result(5)
        running.log.wait_for("internal_error", 3)
    errors = Counter(event["t_ms"] // 1000 for event in running.log.of("internal_error"))
    assert max(errors.values()) <= 10, "it spins"
    assert running.sc.parallelize(range(4), 2).sum() == 6
