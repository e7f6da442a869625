"""A network that loses, doubles, reorders, garbles and delays messages, and that falls apart and heals.

All links of the application go through the fault proxy (proxy.py).  Each fault is a handful of rules on it,
as long as the fault lasts; what the rules have touched is the evidence.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.nemesis import MESSAGES, OUTPUTS, PROCESS, TIME, WORKER, Fault, Invocation, Kind, Nemesis
from chaos.nemesis.faultproxy import FaultProxy
from chaos.nemesis.rules import Rule, both_ways

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Launch

_LATE = frozenset({MESSAGES, TIME})
_APART = frozenset({MESSAGES, TIME, PROCESS})  # who is cut off for too long is given up


class Network(Nemesis):
    """Rules on links, for a while."""

    name = "network"
    kinds = (
        Kind("drop", ("NET-1",), _LATE, (0.5, 3.0), weight=2.0),
        Kind("twice", ("NET-2",), _LATE, (0.5, 3.0)),
        Kind("reorder", ("NET-3",), _LATE, (0.5, 3.0)),
        Kind("garble", ("NET-4",), _LATE, (0.5, 3.0)),
        Kind("late", ("BL-2",), _LATE, (0.5, 3.0)),
        Kind("slow", ("BL-2", "NET-10"), _LATE, (0.5, 3.0)),
        Kind("reset", ("NET-1",), _LATE),
        Kind("cut-executor", ("NET-5", "NET-6"), _APART, (1.0, 6.0)),
        Kind("one-way", ("NET-7",), _APART, (1.0, 6.0)),
        Kind("cut-hosts", ("NET-8",), _LATE, (1.0, 4.0), managed=True),
        Kind("cut-host", ("NET-6",), _APART | {WORKER, OUTPUTS}, (1.0, 6.0), managed=True),
        # A manager that does not hear a worker for too long gives its cores to others.
        Kind("cut-manager", ("NET-5",), _APART | {WORKER}, (1.0, 4.0), managed=True),
    )

    def __init__(self) -> None:
        self._proxy: FaultProxy | None = None
        self._local_dir: Path | None = None
        self._active: dict[int, list[Rule]] = {}
        self._in_force: list[tuple[int, Rule]] = []
        self._touched: dict[int, Counter[str]] = {}

    def prepare(self, launch: Launch, rng: random.Random) -> None:
        if launch.local_dir is None:
            launch.local_dir = self._local_dir = Path(tempfile.mkdtemp(prefix="sft-", dir="/tmp"))
        self._proxy = FaultProxy(launch.local_dir)
        launch.conf.update(self._proxy.settings)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        assert self._proxy is not None
        if fault.kind == "reset":
            return self._reset(fault, cluster, rng)
        made = _MAKERS[fault.kind](cluster, rng)
        if made is None:
            return self.made(fault, False, why="nobody is there to be cut off")
        rules, victims = made
        rules = [replace(rule, seed=rng.randrange(1 << 30)) for rule in rules]
        links = [_ways(each) for each in self._proxy.connections()]
        reached = sum(any(rule.concerns(*way) for rule in rules for way in ways) for ways in links)
        self._active[fault.number] = rules
        self._touched[fault.number] = Counter()
        self._apply()
        told = [{k: v for k, v in rule.as_json().items() if v != getattr(Rule("hold"), k)} for rule in rules]
        # Whether any message comes by is seen when it is over.
        return self.made(
            fault, None if reached else False, victims=victims, rules=told, connections=reached
        )

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        number = invocation.fault.number
        if self._active.pop(number, None) is None:
            return invocation
        self._apply()
        touched = self._touched.pop(number)
        evidence = {**invocation.evidence, "touched": dict(touched)}
        if not touched:
            return replace(invocation, took_effect=False, takes=frozenset(), evidence=evidence)
        rows = self._rows(invocation, cluster)
        return replace(invocation, took_effect=True, rows=rows, evidence=evidence)

    def _rows(self, invocation: Invocation, cluster: Cluster) -> tuple[str, ...]:
        """NET-6 is exercised only by whoever was given up meanwhile, and NET-10 and BL-2 by what was slow."""
        rows = set(self.kind(invocation.fault.kind).rows)
        lost = {event["executor"] for event in cluster.log.of("executor_lost")}
        lost |= {event["host"] for event in cluster.log.of("executor_lost")}
        if not lost & set(invocation.victims):
            rows -= {"NET-6"}
        return tuple(sorted(rows))

    def _apply(self) -> None:
        """Put the rules of all active faults in force; what those before have touched is written down."""
        assert self._proxy is not None
        before = self._in_force
        self._in_force = [(number, rule) for number, rules in self._active.items() for rule in rules]
        tallies = self._proxy.rules(*(rule for _, rule in self._in_force))
        for (number, rule), tally in zip(before, tallies, strict=True):
            if tally["touched"]:
                self._touched.setdefault(number, Counter())[rule.action] += tally["touched"]

    def _reset(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        assert self._proxy is not None
        victims = cluster.executors()
        if not victims:
            return self.made(fault, False, why="no executor is there")
        victim = rng.choice(victims)
        count = self._proxy.reset(victim.id, "*")
        return self.made(fault, count > 0, "NET-1", victims=[victim.id], connections=count)

    def teardown(self, cluster: Cluster) -> None:
        if self._proxy is not None:
            self._proxy.close()
        if self._local_dir is not None:
            shutil.rmtree(self._local_dir, ignore_errors=True)


Made = tuple[list[Rule], list[str]] | None  # rules, and whom they may cost their lives
_Maker = Callable[["Cluster", random.Random], Made]


def _ways(connection: dict[str, Any]) -> list[tuple[list[str], list[str], str]]:
    one, other, plane = connection["dialler"], connection["listener"], connection["plane"]
    return [(one, other, plane), (other, one, plane)]


def _some(action: str, **fixed: Any) -> _Maker:
    """On all links, on some messages."""

    def make(cluster: Cluster, rng: random.Random) -> Made:
        how = dict(fixed)
        if action in ("drop", "corrupt"):
            how["probability"] = rng.uniform(0.02, 0.3)
        if action == "delay":
            how |= {"probability": rng.uniform(0.1, 1.0), "delay_s": (0.0, rng.choice([0.05, 0.3, 1.0]))}
        if action == "throttle":
            how |= {"bytes_per_s": rng.choice([2_000.0, 50_000.0, 500_000.0])}
        if action == "reorder":
            how |= {"window": rng.choice([3, 10, 50])}
        return [Rule(action, **how)], []

    return make


def _cut_executor(cluster: Cluster, rng: random.Random) -> Made:
    victims = cluster.executors()
    if not victims:
        return None
    victim = rng.choice(victims)
    return both_ways("hold", victim.id, "driver"), [victim.id]


def _one_way(cluster: Cluster, rng: random.Random) -> Made:
    victims = cluster.executors()
    if not victims:
        return None
    victim = rng.choice(victims)
    source, target = rng.sample([victim.id, "driver"], 2)
    return [Rule("hold", source, target)], [victim.id]


def _cut_hosts(cluster: Cluster, rng: random.Random) -> Made:
    hosts = sorted({worker.host for worker in cluster.workers()})
    if len(hosts) < 2:
        return None
    one, other = rng.sample(hosts, 2)
    return both_ways("hold", one, other, plane="data"), []


def _cut_host(cluster: Cluster, rng: random.Random) -> Made:
    workers = cluster.workers()
    if len(workers) < 2:
        return None
    worker = rng.choice(workers)
    gone = [executor.id for executor in cluster.executors() if executor.host == worker.host]
    return both_ways("hold", worker.host, "*"), [worker.host, worker.id, *gone]


def _cut_manager(cluster: Cluster, rng: random.Random) -> Made:
    return both_ways("hold", "manager", "*"), []


_MAKERS: dict[str, _Maker] = {
    "drop": _some("drop"),
    "twice": _some("duplicate"),
    "reorder": _some("reorder"),
    "garble": _some("corrupt", plane="control"),
    "late": _some("delay"),
    "slow": _some("throttle", plane="data"),
    "cut-executor": _cut_executor,
    "one-way": _one_way,
    "cut-hosts": _cut_hosts,
    "cut-host": _cut_host,
    "cut-manager": _cut_manager,
}
