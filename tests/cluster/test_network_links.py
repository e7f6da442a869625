"""Faults of single links, made by the fault proxy between the sockets of real processes."""

import time
from collections.abc import Callable, Iterator
from operator import add
from typing import Any

import pytest

from chaos.nemesis.faultproxy import FaultProxy
from chaos.nemesis.rules import Rule
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, wait_until

NUMBERS = 200
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]
JOB_S = 20.0  # with a fault; without, a job takes a few hundredths of a second
QUICK = {"spark_executor_heartbeatInterval": "100ms", "spark_ft_fetch_timeout": "200ms"}


class Network:
    """A context all of whose links go through a fault proxy."""

    def __init__(self, running: faultlib.Running, proxy: FaultProxy) -> None:
        self.running, self.proxy = running, proxy

    def job(self, slow_s: float = 0.0) -> Action:
        """Map tasks on every executor, then reduce tasks that fetch from every host."""

        def pair(x: int) -> tuple[int, int]:
            if slow_s and x % 50 == 0:
                time.sleep(slow_s)
            return x % 5, x

        pairs = self.running.sc.parallelize(range(NUMBERS), 4).map(pair)
        return Action(lambda: sorted(pairs.reduceByKey(add, 4).collect()))

    def assert_right(self, jobs: int = 1, slow_s: float = 0.0) -> None:
        for _ in range(jobs):
            assert self.job(slow_s).result(JOB_S) == SUMS

    def under(self, *rules: Rule, jobs: int = 1, slow_s: float = 0.0) -> list[dict[str, Any]]:
        """Jobs under these rules give the right answer and start nothing twice; what the rules did."""
        before = len(self.running.events())
        self.proxy.rules(*rules)
        self.assert_right(jobs, slow_s)
        done = self.proxy.heal()
        faultlib.assert_r0(self.running.events()[before:])
        return done


@pytest.fixture
def network(start: Callable[..., faultlib.Running], scratch) -> Iterator[Callable[..., Network]]:
    """``network(master, **settings) -> Network``, up with all its executors."""
    with FaultProxy(scratch) as proxy:

        def begin(master: str = "local-cluster[2,1,512]", **settings: object) -> Network:
            named = {key.replace(".", "_"): value for key, value in proxy.settings.items()}
            running = start(master, **named, **settings)
            running.log.wait_for("executor_added", running.sc._driver.cluster.expected_executors)
            return Network(running, proxy)

        yield begin


def test_every_link_of_an_application_goes_through_the_proxy(network) -> None:
    net = network()
    net.assert_right(jobs=2, slow_s=0.05)
    links = {(c["dialler"][0], c["listener"][0], c["plane"]) for c in net.proxy.connections()}
    assert links == {
        ("executor", "driver", "control"),
        ("worker", "driver", "control"),
        ("worker", "manager", "control"),
        ("driver", "manager", "control"),
        ("executor", "worker", "data"),
    }
    hosts = {(c["dialler"][-1], c["listener"][-1]) for c in net.proxy.connections() if c["plane"] == "data"}
    assert hosts == {("host-0", "host-1"), ("host-1", "host-0")}
    faultlib.assert_r0(net.running.events())


# --- NET-1: lost ------------------------------------------------------------------------------------


CONTROL = ("LaunchTasks", "StageBlob", "TaskUpdates", "MapOutputs")
DATA = ("GET", "GRANT", "LAST", "END")


@pytest.mark.parametrize("kinds", [CONTROL, DATA], ids=["control", "data"])
def test_NET_1_whichever_message_of_a_kind_is_lost_the_job_ends(network, kinds) -> None:
    net = network(**QUICK)
    net.assert_right()
    for message in kinds:
        for nth in range(1, 40):
            (done,) = net.under(Rule("drop", messages=(message,), nth=nth))
            if not done["touched"]:
                break  # a job has fewer of them
        assert 1 < nth < 40, f"{message}: {nth}"


# --- NET-2: twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["control", "data"])
def test_NET_2_every_message_of_a_plane_comes_twice(network, plane) -> None:
    net = network(**QUICK)
    (done,) = net.under(Rule("duplicate", plane=plane), jobs=5, slow_s=0.02)
    assert done["touched"] > 20


# --- NET-3: in another order -----------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["control", "data"])
def test_NET_3_messages_overtake_each_other(network, plane) -> None:
    net = network(**QUICK)
    (done,) = net.under(Rule("reorder", plane=plane, window=50), jobs=3, slow_s=0.02)
    assert done["touched"] > 20


# --- NET-4: garbled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["corrupt", "truncate"])
def test_NET_4_a_garbled_control_frame_costs_a_counter(network, action) -> None:
    net = network(**QUICK)
    pids = set(net.running.executor_pids())
    rule = Rule(action, plane="control", probability=0.15, seed=3)
    (done,) = net.under(rule, jobs=3, slow_s=0.02)
    assert done["touched"] > 3
    wait_until(lambda: sum(net.running.sc._driver._host.dropped.values()) > 0, 5, "a frame that was refused")
    assert set(net.running.executor_pids()) == pids
