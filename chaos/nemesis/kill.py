"""SIGKILL to executors, one or all of them, and to workers."""

from __future__ import annotations

import random
import signal

from chaos.live.cluster import Cluster, Process
from chaos.nemesis import PROCESS, WORKER, Fault, Invocation, Kind, Nemesis, Notice

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
            victims=[victim.id, victim.host],
            notices=[Notice(("worker_lost",), {"worker": victim.id}, NOTICED_WITHIN_S)],
            killed={victim.id: victim.pid},
        )


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
