"""Faults of single links, made by the fault proxy between the sockets of real processes."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import add
from typing import Any

import pytest

from chaos.nemesis.faultproxy import FaultProxy
from chaos.nemesis.rules import Rule, both_ways
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

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
        return Action(lambda: sorted(pairs.reduceByKey(add, 2).collect()))

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


# --- NET-5, NET-7: half open, one way --------------------------------------------------------------------

PROMPT = {  # the proportions of the defaults, a sixth of their length
    "spark_executor_heartbeatInterval": "150ms",
    "spark_ft_lease": "1200ms",
    "spark_network_timeout": "1500ms",
    "spark_ft_launchTimeout": "750ms",
    "spark_ft_fetch_timeout": "500ms",
}
LOST_AFTER_S = 1.5
SLACK_S = 2.0  # of a machine that others use too


def held_tasks(net: Network, gate: Gate) -> Action:
    """One task on each executor; they stay until the gate opens, but for those that come later."""

    def stay(index: int, records: Any) -> Any:
        if not gate.arrive(index):
            gate.wait("held")
        return records

    numbers = net.running.sc.parallelize(range(NUMBERS), 2).mapPartitionsWithIndex(stay)
    action = Action(lambda: sum(numbers.collect()))
    wait_until(lambda: gate.waiting() == 2, what="two tasks")
    return action


@pytest.mark.parametrize("direction", ["both", "to the driver", "from the driver"])
def test_NET_5_NET_7_an_executor_behind_a_cut_line_is_given_up_in_time(network, tmp_path, direction) -> None:
    net, gate = network(**PROMPT), Gate(tmp_path / "gate")
    action = held_tasks(net, gate)
    victim = sorted(net.running.log.pids())[0]
    rules = both_ways("hold", victim, "driver")
    net.proxy.rules(*{"both": rules, "to the driver": rules[:1], "from the driver": rules[1:]}[direction])
    cut_s = time.monotonic()
    net.running.log.wait_for("executor_lost", executor=victim)
    took_s = time.monotonic() - cut_s
    assert took_s < LOST_AFTER_S + SLACK_S, f"noticed after {took_s:.1f} s"
    gate.open()
    assert action.result(JOB_S) == sum(range(NUMBERS))
    (held, *_) = net.proxy.heal()
    assert held["touched"]
    faultlib.assert_r1(net.running.events())
    assert [event["executor"] for event in net.running.log.of("executor_lost")] == [victim]


def test_NET_5_a_half_open_connection_of_the_data_plane_is_replaced(network) -> None:
    net = network(**QUICK)
    net.assert_right(slow_s=0.02)
    assert net.proxy.freeze("executor", "worker") >= 1
    net.assert_right(slow_s=0.02)
    faultlib.assert_r0(net.running.events())


def test_NET_5_links_with_the_manager_may_break_in_silence_while_jobs_run(network) -> None:
    net = network(**PROMPT)
    net.proxy.cut("manager", "*")
    until_s = time.monotonic() + 2 * LOST_AFTER_S
    while time.monotonic() < until_s:
        net.assert_right()
    while_cut = net.running.events()
    assert sum(tally["touched"] for tally in net.proxy.heal()) > 0
    faultlib.assert_r0(while_cut)
    assert not any(event["event"] == "executor_lost" for event in while_cut)
    net.assert_right()  # the manager has given the workers up meanwhile: others take their place


# --- NET-10: slow ---------------------------------------------------------------------------------------


def test_NET_10_a_line_of_a_few_kilobytes_a_second_delays_data_and_nothing_else(network) -> None:
    net = network("local-cluster[2,2,512]", **PROMPT)
    size, speed = 40_000, 20_000.0
    numbers = net.running.sc.parallelize(range(8), 4)
    blobs = numbers.map(lambda x: (x % 4, random.Random(x).randbytes(size // 8)))
    net.proxy.rules(Rule("throttle", plane="data", bytes_per_s=speed))
    slow = Action(lambda: sorted((k, len(v)) for k, v in blobs.partitionBy(4).collect()))
    quick_s = []
    while slow.is_alive():
        began_s = time.monotonic()
        assert net.running.sc.parallelize(range(10), 1).sum() == 45
        quick_s.append(time.monotonic() - began_s)
    assert slow.result(JOB_S) == sorted((x % 4, size // 8) for x in range(8))
    (done,) = net.proxy.heal()
    assert done["touched_bytes"] > size / 4, "hardly anything went over the slow line"
    assert len(quick_s) > 3 and sorted(quick_s)[len(quick_s) // 2] < 0.5
    assert not net.running.log.of("executor_lost")
    faultlib.assert_r0(net.running.events())


# --- NET-8: between two of several hosts ----------------------------------------------------------


def reducers_behind_a_cut(net: Network, tmp_path, hosts: int) -> Action:
    """Map outputs on every host, then host-0 and host-1 cannot reach each other's, then the reducers read."""
    running, gate, share = net.running, Gate(tmp_path / "gate"), Gate(tmp_path / "share")
    numbers = running.sc.parallelize(range(NUMBERS), 2 * hosts).mapPartitionsWithIndex(share.share(hosts))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 2 * hosts)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == hosts, what="a reducer on every host")
    assert len({event["host"] for event in running.log.of("task_start", kind="map")}) == hosts
    net.proxy.cut("host-0", "host-1", plane="data")
    gate.open()
    return action


def test_NET_8_two_hosts_out_of_each_others_reach_lose_no_output_while_a_third_reaches_both(
    network, tmp_path
) -> None:
    net = network("local-cluster[3,1,512]", **QUICK, spark_speculation=False)
    action = reducers_behind_a_cut(net, tmp_path, 3)
    assert action.result(JOB_S) == SUMS
    assert net.running.log.of("fetch_failed"), "nobody met the cut"
    assert any(tally["touched"] for tally in net.proxy.tallies())
    faultlib.assert_r0(net.running.events(), "map")
    assert not net.running.log.of("output_lost") and not net.running.log.of("worker_lost")
    late = net.running.log.of("task_start", kind="result")[3:]
    assert {"host-2"} <= {event["host"] for event in late}


def test_NET_8_the_driver_relays_between_two_hosts_out_of_each_others_reach(network, tmp_path) -> None:
    net = network("local-cluster[2,1,512]", **QUICK, spark_speculation=False)
    action = reducers_behind_a_cut(net, tmp_path, 2)
    assert action.result(JOB_S) == SUMS
    assert net.running.log.of("fetch_failed"), "nobody met the cut"
    copied = net.running.log.of("output_copied")
    assert copied and {event["host"] for event in copied} == {"driver"}
    faultlib.assert_r0(net.running.events(), "map")
    assert not net.running.log.of("output_lost") and not net.running.log.of("worker_lost")
    net.proxy.heal()
    net.assert_right()


# --- BL-2, BL-8: reads that are slow, or fail for one of two twins ------------------------------------


def test_BL_2_a_read_that_takes_longer_than_the_patience_with_silence_is_no_loss(network, tmp_path) -> None:
    net = network(spark_ft_fetch_timeout="600ms", spark_shuffle_io_maxRetries=1)
    size, written, read = 3_000, Gate(tmp_path / "written"), Gate(tmp_path / "read")
    numbers = net.running.sc.parallelize(range(24), 12).mapPartitionsWithIndex(written.share(2))
    blobs = numbers.map(lambda x: (x % 2, random.Random(x).randbytes(size))).partitionBy(2)
    readers = blobs.mapPartitionsWithIndex(read.share(2))
    net.proxy.rules(Rule("throttle", plane="data", source="worker", bytes_per_s=16_000.0))
    began_s = time.monotonic()
    found = sorted((k, len(v)) for k, v in readers.collect())
    assert found == sorted((x % 2, size) for x in range(24))
    (done,) = net.proxy.heal()
    assert done["touched_bytes"] > 24 * size / 3, "hardly anything went over the slow line"
    assert time.monotonic() - began_s > 2 * 0.6, "it was not slow: nothing is shown"
    assert not net.running.log.of("fetch_failed") and not net.running.log.of("output_lost")
    faultlib.assert_r0(net.running.events())


def test_BL_8_a_twin_that_cannot_fetch_costs_no_output_and_the_original_counts(network, tmp_path) -> None:
    early = {"spark_ft_speculation_minFinished": 1, "spark_speculation_quantile": 0.5}
    net = network(spark_ft_fetch_timeout="200ms", spark_shuffle_io_maxRetries=1, **early)
    running, share = net.running, Gate(tmp_path / "share").share(2)
    held, twin = Gate(tmp_path / "held"), Gate(tmp_path / "twin")
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(share)
    dealt = numbers.map(lambda x: (x % 4, x)).partitionBy(4).values()

    def step(index: int, records: Any) -> Any:
        if index == 0 and held.arrive("begun") == 0:
            seen = list(records)
            held.wait("original")
            return seen
        if index == 0 and not twin.arrive("twin"):
            twin.wait("held")  # it has yet to read
        return records

    action = Action(lambda: sorted(dealt.mapPartitionsWithIndex(step).collect()))
    wait_until(lambda: twin.arrivals().get("held"), what="the twin of the slow reducer")
    net.proxy.cut("host-0", "host-1", plane="data")
    twin.open()
    (missed, *_) = running.log.wait_for("fetch_failed")
    net.proxy.heal()
    held.open()
    assert action.result() == list(range(NUMBERS))
    (start,) = running.log.of("task_start", task=missed["task"])
    assert start["speculative"] and missed["evidence"] in ("refused", "timeout")
    assert running.starts("map") == Counter(range(4)), "what can be read is not made again"
    assert not running.log.of("output_lost")
    assert running.starts("result") == Counter(range(4))
