"""SIGKILL to executors, one or all of them, and to workers."""

from __future__ import annotations

import random
import signal

from chaos.live.cluster import Cluster, Process
from chaos.nemesis import OUTPUTS, PROCESS, WORKER, Fault, Invocation, Kind, Nemesis, Notice
from chaos.nemesis.leave import is_leaving

GONE_WITHIN_S = 2.0
NOTICED_WITHIN_S = 1.0  # D0


class KillExecutor(Nemesis):
    """Executors die without a word: one, preferably a busy one, or all at once."""

    name = "kill-executor"
    kinds = (
        Kind("one", ("EX-1", "EX-2", "EX-5", "BL-11", "ST-7"), frozenset({PROCESS}), weight=4.0),
        Kind("all", ("EX-1", "EX-2", "EX-5", "EX-6", "BL-11", "ST-7"), frozenset({PROCESS})),
    )

    def __init__(self) -> None:
        self._kills = 0

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        victims = cluster.executors()
        if fault.kind == "one" and victims:
            busy = [executor for executor in victims if cluster.log.running(executor.id)]
            victims = [rng.choice(busy or victims)]
        if not victims:
            return self.made(fault, False, why="no executor is there")
        rows = [row for victim in victims for row in rows_of_death(cluster, victim)]
        for victim in victims:
            cluster.signal(victim, signal.SIGKILL)
        cluster.wait(lambda: not any(victim.is_alive() for victim in victims), GONE_WITHIN_S)
        gone = [victim for victim in victims if not victim.is_alive()]
        self._kills += len(gone)
        if self._kills >= 3:
            rows.append("EX-5")
        if fault.kind == "all" and len(gone) > 1:
            rows.append("EX-6")
        return self.made(
            fault,
            len(gone) == len(victims),
            *sorted(set(rows)),
            victims=[victim.id for victim in victims],
            notices=[
                Notice(("executor_lost",), {"executor": victim.id}, NOTICED_WITHIN_S) for victim in victims
            ],
            killed={victim.id: victim.pid for victim in gone},
        )


class KillWorker(Nemesis):
    """A worker dies; its successor serves the stores that lie there."""

    name = "kill-worker"
    kinds = (Kind("one", ("WK-1", "WK-6"), frozenset({PROCESS, WORKER}), managed=True),)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        workers = cluster.workers()
        if not workers:
            return self.made(fault, False, why="no worker is there")
        victim = rng.choice(workers)
        rows = ["WK-1"]
        if any(start["kind"] == "result" for start in cluster.log.running()):
            rows.append("WK-6")  # somebody may be reading what it serves
        cluster.signal(victim, signal.SIGKILL)
        gone = cluster.wait(lambda: not victim.is_alive(), GONE_WITHIN_S)
        return self.made(
            fault,
            gone,
            *rows,
            takes=taken_with_a_worker(cluster, victim),
            victims=[victim.id, victim.host],
            notices=[Notice(("worker_lost",), {"worker": victim.id}, NOTICED_WITHIN_S)],
            killed={victim.id: victim.pid},
        )


def taken_with_a_worker(cluster: Cluster, worker: Process) -> frozenset[str]:
    """Its successor serves what it served; but while no manager lives nobody learns of the successor, and who
    was asked to leave has none."""
    orphaned = (cluster.launch.managed and cluster.manager() is None) or is_leaving(cluster, worker)
    return frozenset({PROCESS, WORKER, OUTPUTS} if orphaned else {PROCESS, WORKER})


def rows_of_death(cluster: Cluster, executor: Process) -> list[str]:
    """Which rows the death of this executor exercises, by what it is doing and has done."""
    log = cluster.log
    rows = []
    running = log.running(executor.id)
    if any(start["kind"] == "map" for start in running):
        rows += ["EX-1", "ST-7"]
    if log.wrote_outputs(executor.id):
        rows.append("EX-2")
    if log.caches(executor.id):
        rows.append("BL-11")
    return rows


class KillHost(Nemesis):
    """A host loses power: its worker and all its executors die at once; its files stay."""

    name = "kill-host"
    kinds = (Kind("one", ("WK-3", "WK-6"), frozenset({PROCESS, WORKER}), managed=True),)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        workers = cluster.workers()
        if not workers:
            return self.made(fault, False, why="no worker is there")
        worker = rng.choice(workers)
        executors = [executor for executor in cluster.executors() if executor.host == worker.host]
        for process in [worker, *executors]:
            cluster.signal(process, signal.SIGKILL)
        cluster.wait(lambda: not any(p.is_alive() for p in [worker, *executors]), GONE_WITHIN_S)
        gone = [process.id for process in [worker, *executors] if not process.is_alive()]
        return self.made(
            fault,
            len(gone) == 1 + len(executors),
            *self.kind(fault.kind).rows,
            takes=taken_with_a_worker(cluster, worker),
            victims=[worker.host, worker.id, *(executor.id for executor in executors)],
            killed=gone,
        )


class KillManager(Nemesis):
    """The manager dies: what runs goes on, nothing new is granted."""

    name = "kill-manager"
    kinds = (Kind("one", ("CM-1",), frozenset(), managed=True, most=1),)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        manager = cluster.manager()
        if manager is None:
            return self.made(fault, False, why="no manager is there")
        cluster.signal(manager, signal.SIGKILL)
        gone = cluster.wait(lambda: not manager.is_alive(), GONE_WITHIN_S)
        notice = Notice(("manager_lost",), {}, NOTICED_WITHIN_S)
        return self.made(fault, gone, "CM-1", notices=[notice], manager=manager.pid)


class KillPairs(Nemesis):
    """Two executors every second, for as long as it lasts."""

    name = "kill-pairs"
    kinds = (Kind("pair", ("EX-1", "EX-2", "EX-5"), frozenset({PROCESS}), weight=1.0),)

    def __init__(self) -> None:
        self._kills = 0

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        victims = cluster.executors()
        victims = rng.sample(victims, min(2, len(victims)))
        if not victims:
            return self.made(fault, False, why="no executor is there")
        rows = {row for victim in victims for row in rows_of_death(cluster, victim) if row != "BL-11"}
        for victim in victims:
            cluster.signal(victim, signal.SIGKILL)
        cluster.wait(lambda: not any(victim.is_alive() for victim in victims), GONE_WITHIN_S)
        gone = [victim.id for victim in victims if not victim.is_alive()]
        self._kills += len(gone)
        if self._kills >= 3:
            rows.add("EX-5")
        ids = [victim.id for victim in victims]
        notices = [Notice(("executor_lost",), {"executor": id}, NOTICED_WITHIN_S) for id in ids]
        rows.discard("ST-7")
        took = len(gone) == len(ids)
        return self.made(fault, took, *sorted(rows), victims=ids, notices=notices, killed=gone)
