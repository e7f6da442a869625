"""Two attempts of one partition write the same output: it shows once, whole, and nothing beside it."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

PARTS = 12
ROWS = 5  # in a partition
HELD = PARTS - 1  # the partition that keeps the job alive until the test lets it go
LOST_AFTER_S = 1.5
QUICK_LOSS = {
    "spark_executor_heartbeatInterval": "200ms",
    "spark_ft_lease": "1s",
    "spark_network_timeout": f"{LOST_AFTER_S}s",
}


class Watcher(threading.Thread):
    """Waits for a directory to appear: what is in it when it is first seen?"""

    def __init__(self, target: Path) -> None:
        super().__init__(daemon=True)
        self.target = target
        self.first: set[str] | None = None
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.is_set():
            with contextlib.suppress(FileNotFoundError):
                self.first = set(os.listdir(self.target))
                return
            time.sleep(0.0005)


def assert_saved_once(target: Path, watcher: Watcher) -> None:
    """Every row once, in its partition's file; no other file; ``_SUCCESS`` behind all of them."""
    watcher.join(5)
    watcher.done.set()
    parts = [f"part-{index:05d}" for index in range(PARTS)]
    assert sorted(os.listdir(target)) == ["_SUCCESS", *parts]
    assert os.listdir(target.parent) == [target.name], "something is left beside it"
    for index, part in enumerate(parts):
        assert (target / part).read_text().splitlines() == [f"{index}.{row}" for row in range(ROWS)]
    assert watcher.first == {"_SUCCESS", *parts}, "the directory showed before it was whole"
    success_ns = (target / "_SUCCESS").stat().st_mtime_ns
    assert all((target / part).stat().st_mtime_ns <= success_ns for part in parts)


def attempt_files(target: Path, partition: int) -> dict[str, int]:
    """name -> size of the files that attempts of a partition have written so far."""
    found = {}
    for path in target.parent.glob(f".{target.name}.*/_temporary/part-{partition:05d}.*"):
        found[path.name] = path.stat().st_size
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Alone in its directory."""
    return tmp_path / "saved" / "out"


def test_OUT_1_a_task_and_its_twin_both_finish_writing_and_one_of_them_counts(
    start, tmp_path, target
) -> None:
    running = start("local-cluster[4,1,256]", spark_speculation_quantile=0.5)
    slow, held = Gate(tmp_path / "slow"), Gate(tmp_path / "held")

    def rows(index, _):
        sign = "."
        if index == 0 and slow.arrive("attempt") == 0:  # the first one dawdles, deaf to its kill
            sign = ":"  # so that it can be told from its twin
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            slow.wait("first")
        if index == HELD:
            held.wait("held")
        for row in range(ROWS):
            yield f"{index}{sign}{row}"

    watcher = Watcher(target)
    rdd = running.sc.parallelize(range(PARTS), PARTS).mapPartitionsWithIndex(rows)
    action = Action(lambda: rdd.saveAsTextFile(str(target)))
    running.log.wait_for("task_start", partition=0, speculative=True)
    slow_task = running.log.of("task_start", partition=0, speculative=False)[0]["task"]
    wait_until(lambda: succeeded_at(running, 0), what="the twin to succeed")
    slow.open()
    size = len("".join(f"0.{row}\n" for row in range(ROWS)))
    wait_until(
        lambda: list(attempt_files(target, 0).values()) == [size, size], what="both to have written it all"
    )
    assert any(name.startswith(f"part-00000.{slow_task}-") for name in attempt_files(target, 0))
    held.open()
    action.result()
    assert_saved_once(target, watcher)
    wait_until(lambda: len(succeeded_at(running, 0)) == 2, 5, "the word of both that they have succeeded")


def test_OUT_1_a_retry_and_the_zombie_that_it_replaces_show_once(start, tmp_path, target) -> None:
    running = start("local-cluster[3,1,512]", **QUICK_LOSS, spark_speculation=False)
    gate = Gate(tmp_path / "gate")

    def rows(index, _):
        for row in range(ROWS):
            if row == 3 and index == 0 and gate.arrive("attempt") == 0:
                gate.wait("zombie")
            yield f"{index}.{row}"

    watcher = Watcher(target)
    rdd = running.sc.parallelize(range(PARTS), PARTS).mapPartitionsWithIndex(rows)
    action = Action(lambda: rdd.saveAsTextFile(str(target)))
    zombie = wait_until(lambda: gate.pid_of("zombie"), what="an attempt in the middle of its file")
    os.kill(zombie, signal.SIGSTOP)
    wait_until(lambda: running.log.of("executor_lost"), 5, "the stopped executor to be given up")
    gate.open()
    if faultlib.is_alive(zombie):  # as a rule its worker has ended it by now
        os.kill(zombie, signal.SIGCONT)
    action.result()
    assert_saved_once(target, watcher)
    faultlib.assert_r1(running.events())
    assert faultlib.redone(running.events())[(0, 0)] == 1
    wait_until(lambda: not faultlib.is_alive(zombie), 5, "the zombie's end")
    assert_saved_once(target, watcher)


def test_OUT_1_attempts_that_fail_in_mid_file_leave_nothing_of_it(start, tmp_path, target) -> None:
    running = start("local-cluster[3,1,512]")
    gate = Gate(tmp_path / "gate")

    def rows(index, _):
        for row in range(ROWS):
            if row == 3 and index % 4 == 0 and gate.arrive(index) < 2:
                raise OSError("the disk has hiccups")
            yield f"{index}.{row}"

    watcher = Watcher(target)
    running.sc.parallelize(range(PARTS), PARTS).mapPartitionsWithIndex(rows).saveAsTextFile(str(target))
    assert_saved_once(target, watcher)
    assert set(faultlib.failed_by_user_code(running.events()).values()) == {2}


def succeeded_at(running: faultlib.Running, partition: int) -> list[faultlib.Event]:
    return running.log.of("task_end", reason="Success", partition=partition)
