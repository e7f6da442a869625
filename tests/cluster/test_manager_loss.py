"""The manager of a standalone cluster dies, is stopped, loses its state: what runs goes on, and nothing is
granted twice."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from tests.cluster import faultlib
from tests.cluster.daemons import Daemon, Standalone
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


QUICK = {
    "spark.ft.lease": "800ms", "spark.network.timeout": "1s", "spark.executor.heartbeatInterval": "100ms",
    "spark.ft.worker.grace": "200ms",
}  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path, request):
    """Two hosts of two cores; a parameter: settings of the daemons."""
    settings = getattr(request, "param", {})
    options = [word for pair in settings.items() for word in ("--conf", "=".join(pair))]
    standalone = Standalone(tmp_path, *options)
    for number in (2, 3):
        standalone.start_worker(number, cores=2)
    standalone.wait_for_cores(4)
    yield standalone
    standalone.close()


def executors(running, count: int) -> dict[str, int]:
    return wait_until(
        lambda: pids if len(pids := running.log.pids()) == count else None, what=f"{count} executors"
    )


def restart(cluster: Standalone) -> Daemon:
    cluster.manager = cluster.start_manager()
    return cluster.manager


def test_CM_1_a_job_does_not_notice_the_death_of_the_manager_nor_its_return(cluster, start, tmp_path) -> None:
    running, gate = start(cluster.url), Gate(tmp_path / "gate")
    before = executors(running, 4)
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.share(4))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 4)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 4, what="four reducers")
    cluster.manager.kill()
    assert not faultlib.is_alive(cluster.manager.pid)
    begun_s = time.monotonic()
    restart(cluster).says(r"is active under epoch 2")
    cluster.wait_for_cores(4)
    assert time.monotonic() - begun_s < 7.0, "2 s to start, 5 to be told"
    gate.open()
    assert action.result() == SUMS
    faultlib.assert_r0(running.events())
    assert running.starts("map") == Counter(range(6))
    assert running.log.pids() == before, "nobody was ended, and nobody came"
    # The books of the new one are right: a worker that comes is granted, and the end is told to all.
    cluster.start_worker(4, cores=1)
    executors(running, 5)
    running.stop()
    for number in (2, 3, 4):
        wait_until(lambda n=number: not list(cluster.root(n).glob("apps/*/stores/*")), 5, "stores to go")


def test_CM_1_an_executor_that_dies_without_a_manager_is_replaced_all_the_same(cluster, start) -> None:
    running = start(cluster.url)
    before = executors(running, 4)
    cluster.manager.kill()
    running.kill(next(iter(before.values())))
    wait_until(lambda: len(pids := running.log.pids()) == 4 and pids != before, 5.0, "its successor")
    assert running.sc.parallelize(range(100), 4).sum() == 4950


def test_CM_2_cores_that_are_held_are_granted_to_nobody_else_afterwards(cluster, start, tmp_path) -> None:
    """The second application comes back before the first: what runs there is the truth."""
    running = start(cluster.url, spark_executor_instances=3)
    before = executors(running, 3)
    program = tmp_path / "other.py"
    program.write_text(
        "import sys\n"
        "from spark_ft import SparkConf, SparkContext\n"
        "conf = SparkConf().setMaster(sys.argv[1]).set('spark.eventLog.dir', sys.argv[2])\n"
        "with SparkContext(conf=conf) as sc:\n"
        "    print(sc.parallelize(range(10), 2).sum(), flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    how = faultlib.python(str(program), cluster.url, str(tmp_path / "other"))
    other = subprocess.Popen(**how, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == "45"
        log = faultlib.EventLog(tmp_path / "other")
        theirs = log.pids()
        assert len(theirs) == 1
        cluster.manager.kill()
        restart(cluster).says("is active under epoch 2")
        cluster.wait_for_cores(4)
        assert running.sc.parallelize(range(100), 3).sum() == 4950
        assert running.log.pids() == before and log.pids() == theirs, "all of them are as they were"
        running.stop()
        wait_until(lambda: len(log.pids()) == 4, what="what the first one had")
        assert theirs.items() <= log.pids().items()
    finally:
        other.communicate("\n", timeout=10)
    assert other.returncode == 0


@pytest.mark.parametrize("cluster", [QUICK], indirect=True)
def test_CM_3_a_worker_that_dies_while_there_is_no_manager_is_missed(cluster, start) -> None:
    running = start(cluster.url, **{key.replace(".", "_"): value for key, value in QUICK.items()})
    executors(running, 4)
    host = cluster.host(3)
    worker = running.log.of("worker_added", host=host)[-1]["worker"]
    cluster.manager.kill()
    doomed = [cluster.daemons[2].pid, *(e["pid"] for e in running.log.of("executor_added", host=host))]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    cluster.daemons[2].process.wait(5)
    running.log.wait_for("worker_lost", worker=worker, deadline_s=10.0)
    assert running.sc.parallelize(range(100), 4).sum() == 4950
    restart(cluster).says("is active under epoch 2")
    cluster.start_worker(3, cores=2)
    executors(running, 4)


def test_CM_4_a_standby_takes_over_from_one_that_is_killed(cluster, start, tmp_path) -> None:
    standby = cluster.start_rival("--standby")
    port = int(standby.says(r"listens at tcp://127\.0\.0\.1:(\d+)")[1])
    url = f"{cluster.url},127.0.0.1:{port}"
    worker = cluster._start(
        "worker-4", "worker", url, "--host", "127.0.0.4", "--cores", "2", "--work-dir", str(tmp_path / "w4")
    )
    cluster.wait_for_cores(6)
    running = start(url, spark_executor_memory="512m")
    mine = set(executors(running, 6))
    assert worker.process.poll() is None
    cluster.manager.kill()
    standby.says("is active under epoch 2", 5.0)
    worker.says(r"manager manager-\w+ \(epoch 2\) at", 5.0)
    assert running.sc.parallelize(range(100), 6).sum() == 4950
    assert set(running.log.pids()) == mine


def test_CM_4_one_that_was_stopped_and_replaced_ends_when_it_wakes(cluster) -> None:
    standby = cluster.start_rival("--standby")
    standby.says("listens at")
    os.kill(cluster.manager.pid, signal.SIGSTOP)
    try:
        standby.says("is active under epoch 2", 10.0)
    finally:
        os.kill(cluster.manager.pid, signal.SIGCONT)
    assert cluster.manager.process.wait(3.0) == 71
    assert "another one has taken its place" in cluster.manager.log


def test_CM_5_a_damaged_state_is_learnt_anew_from_those_who_hold_it(cluster, start) -> None:
    running = start(cluster.url)
    before = executors(running, 4)
    cluster.manager.kill()
    data = cluster.directory / "manager" / "state" / "data.mdb"
    data.write_bytes(bytes(data.stat().st_size))
    restart(cluster)
    cluster.manager.says("it is put aside and learnt anew")
    cluster.manager.says("is active under epoch 2")
    cluster.wait_for_cores(4)
    assert running.sc.parallelize(range(100), 4).sum() == 4950
    assert running.log.pids() == before


def test_CM_6_a_program_that_is_started_meanwhile_waits_and_is_one_application(cluster, start) -> None:
    cluster.manager.kill()
    url = cluster.url
    timer = threading.Timer(0.5, lambda: restart(cluster))
    timer.start()
    running = start(url, spark_ft_submitTimeout="20s")
    timer.join()
    assert running.sc.parallelize(range(100), 4).sum() == 4950
    assert len(list(cluster.root(2).glob("apps/*"))) == 1
    assert not re.search("driver_gone", cluster.daemons[1].log)
