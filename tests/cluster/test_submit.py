"""``spark-ft submit``: programs run from here, or by a worker, and are supervised there."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import faultlib
from tests.cluster.daemons import Standalone
from tests.cluster.faultlib import is_alive, wait_until

PROGRAM = """
import os, sys, time
from operator import add
from pathlib import Path
from spark_ft import SparkConf, SparkContext
import shipped

place = Path(sys.argv[1])
(place / f"ran-{os.getpid()}").touch()
with SparkContext(conf=SparkConf()) as sc:
    pairs = sc.parallelize(range(600), 4).map(lambda x: (x % 5, x + shipped.NOTHING))
    print(sc.appName, sc.getConf().get("spark.eggs"), sorted(pairs.reduceByKey(add, 2).collect()), flush=True)
    while not (place / "go").exists():
        time.sleep(0.01)
sys.exit(int(sys.argv[2]))
"""
SUMS = [(key, sum(range(key, 600, 5))) for key in range(5)]


@pytest.fixture
def cluster(tmp_path: Path):
    """One worker of three cores: one for a driver."""
    standalone = Standalone(tmp_path)
    standalone.start_worker(2, cores=3)
    standalone.wait_for_cores(3)
    yield standalone
    standalone.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a program says that it runs, and waits until it may end."""
    path = tmp_path / "place"
    path.mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "shipped.py").write_text("NOTHING = 0\n")
    yield path
    for each in begun:
        each.kill()
        each.wait(5)
    begun.clear()


begun: list[subprocess.Popen[str]] = []  # by this test


def runs(place: Path, count: int) -> list[int]:
    """Pids of so many runs of the program, in order of their starts."""
    wait_until(lambda: len(list(place.glob("ran-*"))) >= count, what=f"{count} runs of the program")
    found = sorted(place.glob("ran-*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(path.name.removeprefix("ran-")) for path in found]


class Submitted:
    """The command, and what it says."""

    def __init__(self, cluster: Standalone, place: Path, *options: str, status: int = 0) -> None:
        base = place.parent
        how = faultlib.python(
            "-m", "spark_ft", "submit", "--master", cluster.url, "--conf", "spark.eggs=scrambled",
            "--conf", f"spark.eventLog.dir={base / 'events'}", "--py-files", str(base / "shipped.py"),
            *options, str(base / "program.py"), str(place), str(status),
        )  # fmt: skip
        self.said = base / f"said-{len(begun)}"
        with self.said.open("w") as file:
            self.process = subprocess.Popen(**how, stdout=file, stderr=subprocess.STDOUT, text=True)
        begun.append(self.process)

    def end(self) -> tuple[int, str]:
        """Its exit status, and all that it said."""
        return self.process.wait(20.0), self.said.read_text()


def output_of(cluster: Standalone, stream: str = "stdout") -> str:
    return "".join(path.read_text() for path in cluster.root(2).glob(f"drivers/*/log/{stream}"))


def test_in_client_mode_this_process_becomes_the_program(cluster, place) -> None:
    (place / "go").touch()
    submitted = Submitted(cluster, place, "--name", "breakfast", status=7)
    status, said = submitted.end()
    assert status == 7, "its exit status is ours"
    assert f"breakfast scrambled {SUMS}" in said
    assert runs(place, 1) == [submitted.process.pid]


def test_in_cluster_mode_a_worker_runs_it_and_the_command_waits_for_its_end(cluster, place) -> None:
    submitted = Submitted(cluster, place, "--deploy-mode", "cluster")
    (pid,) = runs(place, 1)
    wait_until(lambda: str(SUMS) in output_of(cluster), what="its answer")
    assert f"program scrambled {SUMS}" in output_of(cluster)
    assert submitted.process.poll() is None, "it has not ended"
    assert f"NSpid:\t{pid}" in Path(f"/proc/{pid}/status").read_text()
    (place / "go").touch()
    status, said = submitted.end()
    assert status == 0 and re.search(r"submitted-\w+ running", said) and "finished" in said
    root = next(cluster.root(2).glob("drivers/submitted-*"))
    wait_until(lambda: [path.name for path in root.iterdir()] == ["log"], what="its files to go")


def test_a_driver_that_fails_in_the_cluster_is_told_with_its_last_words(cluster, place) -> None:
    (place / "go").touch()
    (place.parent / "shipped.py").write_text("raise ValueError('rotten')\n")
    status, said = Submitted(cluster, place, "--deploy-mode", "cluster").end()
    assert status == 1 and "failed: it exited with status 1" in said and "ValueError: rotten" in said


def test_a_supervised_driver_that_is_killed_is_started_again_until_it_ends_well(cluster, place) -> None:
    submitted = Submitted(cluster, place, "--deploy-mode", "cluster", "--supervise")
    (first,) = runs(place, 1)
    wait_until(lambda: str(SUMS) in output_of(cluster), what="its answer")
    os.kill(first, signal.SIGKILL)
    _, second = runs(place, 2)
    assert second != first and is_alive(second)
    (place / "go").touch()
    status, said = submitted.end()
    assert status == 0 and "was killed by signal 9, and is started again" in said


def test_CM_1_a_submitted_driver_and_who_waits_for_it_do_not_notice_another_manager(cluster, place) -> None:
    submitted = Submitted(cluster, place, "--deploy-mode", "cluster", "--supervise")
    (pid,) = runs(place, 1)
    wait_until(lambda: str(SUMS) in output_of(cluster), what="its answer")
    cluster.manager.kill()
    cluster.manager = cluster.start_manager()
    cluster.manager.says("is active under epoch 2")
    cluster.wait_for_cores(3)
    (place / "go").touch()
    status, _ = submitted.end()
    assert status == 0 and runs(place, 1) == [pid], "it was run once"


def test_WK_1_a_driver_outlives_its_worker_and_the_next_one_adopts_it(cluster, place) -> None:
    submitted = Submitted(cluster, place, "--deploy-mode", "cluster", "--supervise")
    (pid,) = runs(place, 1)
    wait_until(lambda: str(SUMS) in output_of(cluster), what="its answer")
    cluster.daemons[1].kill()
    assert is_alive(pid)
    cluster.start_worker(2, cores=3)
    cluster.wait_for_cores(3)
    os.kill(pid, signal.SIGKILL)  # which is noticed only by whoever has adopted it
    _, second = runs(place, 2)
    (place / "go").touch()
    status, _ = submitted.end()
    assert status == 0 and runs(place, 2) == [pid, second]


def test_a_driver_that_finds_no_room_waits(cluster, place) -> None:
    (place / "go").touch()
    submitted = Submitted(cluster, place, "--deploy-mode", "cluster", "--driver-cores", "5")
    wait_until(lambda: "waiting" in submitted.said.read_text(), 15, "word that it waits")
    cluster.start_worker(3, cores=6)
    status, said = submitted.end()
    assert status == 0 and "finished" in said


def test_what_cannot_be_submitted_is_refused_by_name(cluster, place) -> None:
    for options, says in (
        (["--supervise"], "--supervise is for --deploy-mode cluster"),
        (["--deploy-mode", "cluster", "--master", "local[2]"], "Could not parse Master URL"),
        (["--deploy-mode", "cluster", "--files", "/no/such/file"], "cannot read /no/such/file"),
        (["--conf", "spark.ft.lease=soon"], "spark.ft.lease"),
    ):
        status, said = Submitted(cluster, place, *options).end()
        assert status != 0 and says in said, said
