"""A standalone cluster: daemons on several loopback addresses, with data between them over TCP."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from spark_ft.errors import ClusterError
from tests.cluster import faultlib
from tests.cluster.daemons import Standalone
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


@pytest.fixture
def cluster(tmp_path: Path):
    standalone = Standalone(tmp_path)
    yield standalone
    standalone.close()


@pytest.fixture
def two_hosts(cluster):
    """For tests that kill daemons."""
    return with_two_hosts(cluster)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two hosts as well, for tests that leave the daemons alone."""
    standalone = Standalone(tmp_path_factory.mktemp("shared"))
    yield with_two_hosts(standalone)
    standalone.close()


def with_two_hosts(cluster: Standalone) -> Standalone:
    for number in (2, 3):
        cluster.start_worker(number, cores=2)
    cluster.wait_for_cores(4)
    return cluster


def sums_of(sc, gate: Gate | None = None):
    """Six maps, four reducers; with a gate, every executor has part in the maps."""
    numbers = sc.parallelize(range(NUMBERS), 6)
    if gate is not None:
        numbers = numbers.mapPartitionsWithIndex(gate.share(4))
    return numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 4)


def four_executors(running) -> dict[str, int]:
    return wait_until(lambda: pids if len(pids := running.log.pids()) == 4 else None, what="four executors")


def test_a_job_on_two_hosts_reads_from_both_over_tcp(shared, start, tmp_path) -> None:
    running = start(shared.url)
    four_executors(running)
    sums = sums_of(running.sc, Gate(tmp_path / "gate"))
    assert sorted(sums.collect()) == SUMS
    hosts = {event["host"] for event in running.log.of("executor_added")}
    assert hosts == {shared.host(2), shared.host(3)}
    wrote = {event["executor"] for event in running.log.of("task_start", kind="map")}
    where = {e["host"] for e in running.log.of("executor_added") if e["executor"] in wrote}
    assert where == hosts, "both hosts hold map outputs, so every reducer has read from another host"
    root = shared.root(2)
    assert list(root.glob("apps/*/stores/executor-*")), "outputs lie in the worker's directory"
    running.stop()
    wait_until(lambda: not list(root.glob("apps/*/stores/*")), 5, "the stores to go with their application")
    assert list(root.glob("apps/*/log/*.stderr")), "its logs stay"


def test_broadcasts_files_environment_and_prints_reach_executors_that_others_started(
    shared, start, tmp_path
) -> None:
    (tmp_path / "shipped.py").write_text("WORD = 'shipped'\n")
    running = start(shared.url, spark_executorEnv_FLAVOUR="mint")
    running.sc.addPyFile(str(tmp_path / "shipped.py"))
    large = running.sc.broadcast(bytes(3 << 20))

    def look(x: int) -> tuple[str, str | None, int]:
        import shipped

        print(f"printed {x}", flush=True)
        return shipped.WORD, os.environ.get("FLAVOUR"), len(large.value)

    try:
        assert set(running.sc.parallelize(range(4), 4).map(look).collect()) == {("shipped", "mint", 3 << 20)}
    finally:
        sys.modules.pop("shipped", None)
    logs = [path for number in (2, 3) for path in shared.root(number).glob("apps/*/log/*.stdout")]
    printed = sorted(line for path in logs for line in path.read_text().splitlines())
    assert printed == [f"printed {x}" for x in range(4)]


def test_EX_2_an_executor_of_another_host_is_killed_and_its_outputs_are_still_served(
    shared, start, tmp_path
) -> None:
    running, gate = start(shared.url), Gate(tmp_path / "gate")
    four_executors(running)
    sums = sums_of(running.sc, gate)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 4, what="four reducers")
    wrote = {event["executor"]: event["pid"] for event in running.log.of("task_start", kind="map")}
    executor, pid = next(iter(wrote.items()))
    os.kill(pid, signal.SIGKILL)
    running.log.wait_for("executor_lost", executor=executor, deadline_s=1.0)
    gate.open()
    assert action.result() == SUMS
    faultlib.assert_r0(running.events(), "map")
    faultlib.assert_r1(running.events())


def test_WK_1_a_worker_that_is_started_again_adopts_executors_and_outputs(two_hosts, start, tmp_path) -> None:
    running, gate = start(two_hosts.url, spark_ft_worker_grace="20s"), Gate(tmp_path / "gate")
    before = four_executors(running)
    sums = sums_of(running.sc, gate)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 4, what="four reducers")
    host = two_hosts.host(2)
    worker = running.log.of("worker_added", host=host)[-1]
    two_hosts.daemons[1].kill()
    running.log.wait_for("worker_lost", worker=worker["worker"], deadline_s=1.0)
    two_hosts.start_worker(2, cores=2)
    adopted = running.log.wait_for("executor_adopted", 2, deadline_s=5.0)
    assert {event["executor"] for event in adopted} <= set(before)
    gate.open()
    assert action.result() == SUMS
    assert sorted(sums.collect()) == SUMS, "the heir serves them"
    faultlib.assert_r0(running.events())
    assert running.starts("map") == Counter(range(6))


def test_WK_2_a_host_that_never_comes_back_costs_what_lay_there(two_hosts, start, tmp_path) -> None:
    running, gate = start(two_hosts.url, spark_ft_worker_grace="300ms"), Gate(tmp_path / "gate")
    four_executors(running)
    sums = sums_of(running.sc, gate)
    assert sorted(sums.collect()) == SUMS
    host = two_hosts.host(3)
    gone = {e["executor"]: e["pid"] for e in running.log.of("executor_added", host=host)}
    lost = {
        (event["stage"], event["partition"])
        for event in running.log.of("task_start", kind="map")
        if event["executor"] in gone
    }
    assert lost
    for pid in (two_hosts.daemons[2].pid, *gone.values()):
        os.kill(pid, signal.SIGKILL)
    two_hosts.daemons[2].process.wait(5)
    for executor in gone:
        running.log.wait_for("executor_lost", executor=executor, deadline_s=5.0)
    assert sorted(sums.mapValues(lambda v: v).collect()) == SUMS
    faultlib.assert_r2(running.events(), lost, "map")
    assert sum(faultlib.redone(running.events(), "map").values()) == len(lost)


def test_two_applications_share_a_cluster_first_come_first_served(shared, start, tmp_path) -> None:
    """``spark.cores.max`` leaves room for the other; what neither may have waits for the first to end."""
    running = start(shared.url, spark_cores_max=3)
    assert running.sc.defaultParallelism == 3
    wait_until(lambda: len(running.log.pids()) == 3, what="three executors")
    program = tmp_path / "other.py"
    program.write_text(
        "import sys\n"
        "from operator import add\n"
        "from spark_ft import SparkConf, SparkContext\n"
        "conf = SparkConf().setMaster(sys.argv[1]).set('spark.eventLog.dir', sys.argv[2])\n"
        "with SparkContext(conf=conf) as sc:\n"
        "    pairs = sc.parallelize(range(600), 6).map(lambda x: (x % 5, x))\n"
        "    print(sorted(pairs.reduceByKey(add, 4).collect()))\n"
        "    sys.stdin.read()\n"
    )
    how = faultlib.python(str(program), shared.url, str(tmp_path / "other"))
    other = subprocess.Popen(**how, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == str(SUMS)
        log = faultlib.EventLog(tmp_path / "other")
        assert len(log.pids()) == 1
        assert sorted(sums_of(running.sc).collect()) == SUMS, "the end of one's data is not the other's"
        running.stop()
        wait_until(lambda: len(log.pids()) == 4, what="what the first one had")
    finally:
        other.stdin.close()
        assert other.wait(10) == 0
    for number in (2, 3):
        wait_until(lambda n=number: not list(shared.root(n).glob("apps/*/stores/*")), 5, "stores to go")


def test_executors_end_with_a_driver_that_is_killed_and_the_next_one_gets_their_cores(
    shared, start, tmp_path
) -> None:
    program = tmp_path / "hangs.py"
    program.write_text(
        "import sys, time\n"
        "from spark_ft import SparkConf, SparkContext\n"
        "sc = SparkContext(conf=SparkConf().setMaster(sys.argv[1]).set('spark.eventLog.dir', sys.argv[2]))\n"
        "sc.parallelize(range(4), 4).foreach(lambda x: time.sleep(600))\n"
    )
    driver = subprocess.Popen(**faultlib.python(str(program), shared.url, str(tmp_path / "hangs")))
    log = faultlib.EventLog(tmp_path / "hangs")
    wait_until(lambda: len(log.of("task_start")) == 4, what="four tasks")
    pids = log.pids().values()
    driver.kill()
    driver.wait(5)
    wait_until(lambda: not any(map(faultlib.is_alive, pids)), 2.0, "the end of a dead driver's executors")
    assert sorted(sums_of(start(shared.url).sc).collect()) == SUMS


def test_EX_11_a_worker_of_another_version_is_refused_by_name(cluster, tmp_path) -> None:
    other = tmp_path / "other-version"
    other.mkdir()
    (other / "sitecustomize.py").write_text(
        "from spark_ft.executor import versions\nversions.VERSION = '0.0.9'\n"
    )
    path = os.pathsep.join([str(other), *filter(None, sys.path)])
    worker = cluster.start_worker(2, PYTHONPATH=path)
    assert worker.process.wait(15) == 78
    assert "VERSION_MISMATCH: spark_ft is 0.0.9 there and 0.1.0 here" in worker.log
    assert "refused a worker: VERSION_MISMATCH: spark_ft is 0.0.9 there and 0.1.0 here" in cluster.manager.log


def test_EX_11_a_driver_of_another_version_is_refused_at_once(shared, start, monkeypatch) -> None:
    from spark_ft.executor import versions

    monkeypatch.setattr(versions, "VERSION", "0.2.0")
    begun_s = time.monotonic()
    with pytest.raises(ClusterError, match=r"\[VERSION_MISMATCH\] .*spark_ft is 0\.2\.0 there and"):
        start(shared.url)
    assert time.monotonic() - begun_s < 2.0


def test_CM_6_a_driver_waits_for_a_manager_and_says_whom_it_waits_for(shared, start) -> None:
    with pytest.raises(ClusterError, match=r"MANAGER_NOT_FOUND.*has answered at tcp://127.0.0.1:1 "):
        start("spark://127.0.0.1:1", spark_ft_submitTimeout="200ms")
    with pytest.raises(ClusterError, match="MANAGER_NOT_FOUND"):  # of another cluster
        start(shared.url, spark_ft_submitTimeout="500ms", spark_authenticate_secret="another")


def test_NET_11_no_daemon_binds_a_public_address_without_keys(tmp_path) -> None:
    for arguments in (
        ["manager", "--port", "0", "--work-dir", str(tmp_path / "m")],
        ["worker", "spark://127.0.0.1:1", "--work-dir", str(tmp_path / "w")],
    ):
        how = faultlib.python("-m", "spark_ft", *arguments, "--host", "0.0.0.0")
        ended = subprocess.run(**how, stderr=subprocess.PIPE, text=True, timeout=20)
        assert ended.returncode == 78
        assert "BAD_BIND_ADDRESS" in ended.stderr


def test_WK_5_a_second_daemon_in_one_work_directory_is_refused(cluster) -> None:
    cluster.start_worker(2).says("worker worker-")
    second = cluster.start_worker(2)
    assert second.process.wait(15) == 78
    assert "STORE_IN_USE" in second.log
    rival = cluster.start_rival()
    assert rival.process.wait(15) == 78
    assert "STORE_IN_USE" in rival.log


def test_a_worker_that_is_asked_to_end_leaves_in_order(two_hosts, start, tmp_path) -> None:
    running = start(two_hosts.url)
    four_executors(running)
    sums = sums_of(running.sc, Gate(tmp_path / "gate"))
    assert sorted(sums.collect()) == SUMS
    assert two_hosts.daemons[1].terminate() == 73
    assert re.search(r"ends: it has left in order", two_hosts.daemons[1].log)
    assert sorted(sums.mapValues(lambda v: v).collect()) == SUMS
    faultlib.assert_r0(running.events(), "map")


def test_EX_13_workers_are_restarted_one_after_the_other_and_no_job_fails(two_hosts, start, tmp_path) -> None:
    """A rolling restart: what each of them holds moves to the other before it ends."""
    running = start(two_hosts.url, spark_ft_noResourcesTimeout="20s")
    four_executors(running)
    sums = sums_of(running.sc, Gate(tmp_path / "gate"))
    kept = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: x + 1).persist()
    assert sorted(sums.collect()) == SUMS and kept.sum() == sum(range(1, NUMBERS + 1))
    jobs: list[bool] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            jobs.append(sorted(sums.mapValues(lambda v: v).collect()) == SUMS)
            jobs.append(kept.sum() == sum(range(1, NUMBERS + 1)))

    action = Action(work)
    for number, daemon in zip((2, 3), two_hosts.daemons[1:3], strict=True):
        before = len(running.log.of("worker_added"))
        assert daemon.terminate(30.0) == 73, daemon.log
        two_hosts.start_worker(number, cores=2)
        running.log.wait_for("worker_added", before + 1)
        wait_until(lambda: len(running.log.pids()) == 4, what="four executors again")
    seen = len(jobs)
    wait_until(lambda: len(jobs) >= seen + 4, what="jobs after the restarts")
    done.set()
    action.result()
    assert all(jobs) and len(jobs) >= 8
    faultlib.assert_r0(running.events(), "map")


def test_WK_1_each_application_gets_its_own_back_from_a_worker_that_is_started_again(
    two_hosts, start, tmp_path
) -> None:
    running = start(two_hosts.url, spark_executor_instances=2, spark_ft_worker_grace="20s")
    wait_until(lambda: len(running.log.pids()) == 2, what="two executors")
    program = tmp_path / "other.py"
    program.write_text(
        "import sys\n"
        "from operator import add\n"
        "from spark_ft import SparkConf, SparkContext\n"
        "conf = SparkConf().setMaster(sys.argv[1]).set('spark.eventLog.dir', sys.argv[2])\n"
        "conf.set('spark.ft.worker.grace', '20s')\n"
        "with SparkContext(conf=conf) as sc:\n"
        "    pairs = sc.parallelize(range(600), 6).map(lambda x: (x % 5, x)).reduceByKey(add, 4)\n"
        "    for _ in range(2):\n"
        "        print(sorted(pairs.collect()), flush=True)\n"
        "        sys.stdin.readline()\n"
    )
    how = faultlib.python(str(program), two_hosts.url, str(tmp_path / "other"))
    other = subprocess.Popen(**how, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == str(SUMS)
        log = faultlib.EventLog(tmp_path / "other")
        wait_until(lambda: len(log.pids()) == 2, what="two executors")
        sums = sums_of(running.sc)
        assert sorted(sums.collect()) == SUMS
        before = {**running.log.pids(), **log.pids()}
        for daemon in two_hosts.daemons[1:3]:
            daemon.kill()
        for number in (2, 3):
            two_hosts.start_worker(number, cores=2)
        for each in (running.log, log):
            each.wait_for("executor_adopted", 2, deadline_s=10.0)
        assert sorted(sums.mapValues(lambda v: v).collect()) == SUMS
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline().strip() == str(SUMS)
        assert {**running.log.pids(), **log.pids()} == before, "nobody was ended"
        faultlib.assert_r0(running.events(), "map")
        faultlib.assert_r0(log.read(), "map")
    finally:
        other.communicate("\n\n", timeout=10)
    assert other.returncode == 0
