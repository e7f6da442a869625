"""Hosts in network namespaces of their own: addresses that others can reach, keys, cables that are pulled.

Left out where root does not permit namespaces; tests/cluster/test_standalone.py has its hosts at loopback
addresses then, and test_keys_on_loopback below its keys."""

import os
import signal
import subprocess
from operator import add
from pathlib import Path

import pytest

from spark_ft.errors import ClusterError
from spark_ft.transport.keys import Keys
from tests.cluster import faultlib, namespaces
from tests.cluster.daemons import Standalone
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]

needs_hosts = pytest.mark.skipif(bool(namespaces.permitted()), reason=namespaces.permitted() or "permitted")

# A tenth of the defaults: silence is noticed after 0.9 s, an orphan's end after 3.
QUICK = {
    "spark.ft.lease": "800ms", "spark.network.timeout": "1s", "spark.executor.heartbeatInterval": "100ms",
    "spark.ft.driver.grace": "3s", "spark.ft.worker.grace": "500ms", "spark.ft.fetch.timeout": "500ms",
}  # fmt: skip


@pytest.fixture
def keys(tmp_path: Path) -> str:
    place = tmp_path / "keys"
    Keys.draw().write(place)
    return str(place)


@pytest.fixture
def cluster(tmp_path: Path, keys: str):
    """Two hosts of two cores, and us at the bridge."""
    settings = {"spark.ft.keys": keys, **QUICK}
    options = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    with namespaces.Namespaces(2) as hosts:
        standalone = Standalone(tmp_path, *options, hosts=hosts)
        try:
            for number in (2, 3):
                standalone.start_worker(number, cores=2)
            standalone.wait_for_cores(4)
            yield standalone
        finally:
            for number in range(2):
                hosts.plug(number)
            standalone.close()


def underscored(settings: dict[str, str]) -> dict[str, str]:
    return {key.replace(".", "_"): value for key, value in settings.items()}


def gated_sums(running, gate: Gate):
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.share(4))
    return numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 4)


@needs_hosts
def test_NET_5_a_host_whose_cable_is_pulled_is_given_up_and_fenced_when_it_is_plugged_in(
    cluster, keys, start, tmp_path
) -> None:
    running = start(cluster.url, spark_ft_keys=keys, **underscored(QUICK))
    wait_until(lambda: len(running.log.pids()) == 4, what="four executors")
    gate = Gate(tmp_path / "gate")
    sums = gated_sums(running, gate)
    assert sorted(sums.collect()) == SUMS
    host = cluster.host(3)
    gone = {event["executor"] for event in running.log.of("executor_added", host=host)}
    held = {
        (event["stage"], event["partition"])
        for event in running.log.of("task_start", kind="map")
        if event["executor"] in gone
    }
    assert held, "nothing lay on that host"
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 4, what="four readers")
    cluster.hosts.cut(1)
    for executor in gone:
        running.log.wait_for("executor_lost", executor=executor, deadline_s=10.0)
    gate.open()
    assert action.result() == SUMS
    faultlib.assert_r2(running.events(), held, "map")
    cluster.hosts.plug(1)
    pids = {event["pid"] for event in running.log.of("executor_added", host=host)}
    wait_until(lambda: not any(map(faultlib.is_alive, pids)), 10.0, "the end of those that were given up")
    assert sorted(sums.mapValues(lambda v: v).collect()) == SUMS


@needs_hosts
def test_orphans_of_a_driver_on_another_host_end_when_nobody_has_been_there_for_the_grace(
    cluster, keys, tmp_path
) -> None:
    """No kernel tells a worker of the end of a process elsewhere; a connection that cannot be made does."""
    program = tmp_path / "hangs.py"
    program.write_text(
        "import sys, time\n"
        "from spark_ft import SparkConf, SparkContext\n"
        "conf = SparkConf().setMaster(sys.argv[1]).set('spark.eventLog.dir', sys.argv[2])\n"
        "sc = SparkContext(conf=conf.setAll(item.split('=', 1) for item in sys.argv[3:]))\n"
        "sc.parallelize(range(4), 4).foreach(lambda x: time.sleep(600))\n"
    )
    pairs = [f"{key}={value}" for key, value in {**QUICK, "spark.ft.keys": keys}.items()]
    how = faultlib.python(str(program), cluster.url, str(tmp_path / "hangs"), *pairs)
    driver = subprocess.Popen(**how)
    log = faultlib.EventLog(tmp_path / "hangs")
    wait_until(lambda: len(log.of("task_start")) == 4, what="four tasks")
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(5)
    executors = list(log.pids().values())
    assert any(map(faultlib.is_alive, executors)), "they outlive it for a while"
    wait_until(lambda: not any(map(faultlib.is_alive, executors)), 12.0, "the end of orphans")
    for number in (2, 3):
        wait_until(lambda n=number: not list(cluster.root(n).glob("apps/*/stores/*")), 12.0, "stores to go")


@needs_hosts
def test_NET_12_without_keys_or_with_others_nobody_takes_part(cluster, start, tmp_path) -> None:
    Keys.draw().write(tmp_path / "others")
    for given in ({}, {"spark_ft_keys": str(tmp_path / "others")}):
        with pytest.raises(ClusterError, match="MANAGER_NOT_FOUND"):
            start(cluster.url, spark_ft_submitTimeout="1s", **given)


def test_keys_on_loopback(keys, tmp_path, start) -> None:
    standalone = Standalone(tmp_path, "--conf", f"spark.ft.keys={keys}")
    try:
        standalone.start_worker(2, cores=2)
        standalone.wait_for_cores(2)
        running = start(standalone.url, spark_ft_keys=keys)
        pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
        assert sorted(pairs.reduceByKey(add, 2).collect()) == SUMS
    finally:
        for running in filter(None, [locals().get("running")]):
            running.stop()
        standalone.close()


def test_keys_on_one_machine_without_a_cluster(keys, start) -> None:
    running = start("local-cluster[2,1,512]", spark_ft_keys=keys)
    pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
    assert sorted(pairs.reduceByKey(add, 2).collect()) == SUMS


def test_keys_are_made_by_one_command(tmp_path) -> None:
    for expected in (0, 1):  # the second time there are keys, which are not overwritten
        how = faultlib.python("-m", "spark_ft", "keys", str(tmp_path / "k"))
        ended = subprocess.run(**how, capture_output=True, text=True, timeout=20)
        assert ended.returncode == expected
    assert "BAD_KEYS" in ended.stderr
    assert Keys.load(str(tmp_path / "k")) is not None
