"""SIGTERM, as whoever stops processes politely sends it: an executor or a whole host is asked to leave.

In order is: what runs there ends, what lies there is moved, the process goes by itself, nothing is done again
(R0).  So a departure takes nothing: ``LEAVES`` explains that somebody is gone, and no start of a task.  Only
a host that is killed before it has been let go takes what it had.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chaos.live.cluster import Cluster, Process
from chaos.nemesis import LEAVES, OUTPUTS, PROCESS, WORKER, Fault, Invocation, Kind, Nemesis, Notice

TOLD_WITHIN_S = 1.0  # D0: it tells its driver itself


class Decommission(Nemesis):
    """An executor leaves, or a host with all that lies there; or the power goes before it is ready."""

    name = "decommission"
    kinds = (
        Kind("executor", ("EX-13", "EX-2"), frozenset({LEAVES}), weight=2.0),
        Kind("host", ("EX-13",), frozenset({LEAVES}), managed=True, most=1),
        Kind("notice", ("EX-13",), frozenset({LEAVES}), (0.05, 1.0), managed=True, most=1),
    )

    def __init__(self) -> None:
        self._asked: dict[int, Sequence[Process]] = {}  # of each fault: who goes, the asked one first

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        if fault.kind == "executor":
            staying = [e for e in cluster.executors() if not is_leaving(cluster, e)]
            if not staying:
                return self.made(fault, False, why="no executor is there that stays")
            busy = [executor for executor in staying if cluster.log.running(executor.id)]
            return self.ask(fault, cluster, [rng.choice(busy or staying)])
        hosts = [worker for worker in cluster.workers() if not is_leaving(cluster, worker)]
        if len(hosts) < 2:
            return self.made(fault, False, why="nobody would be left to take over")
        worker = rng.choice(hosts)
        return self.ask(fault, cluster, [worker, *(e for e in cluster.executors() if e.host == worker.host)])

    def ask(self, fault: Fault, cluster: Cluster, going: Sequence[Process]) -> Invocation:
        """SIGTERM to the first; whether it has said that it leaves."""
        asked = going[0]
        self._asked[fault.number] = going
        evidence: dict[str, Any] = {
            "asked": {asked.id: asked.pid},
            "ran": sum(len(cluster.log.running(each.id)) for each in going),
            "cached": sum(cluster.log.caches(each.id) for each in going),
            "wrote": any(cluster.log.wrote_outputs(each.id) for each in going),
        }
        sent = cluster.signal(asked, signal.SIGTERM)
        told = sent and cluster.wait(lambda: is_leaving(cluster, asked), TOLD_WITHIN_S)
        return self.made(
            fault,
            True if told else None if sent else False,  # who stands still just now hears of it later
            victims=[asked.host, *(each.id for each in going)] if len(going) > 1 else [asked.id],
            notices=[Notice((f"{asked.role}_leaving",), {"id": asked.id}, TOLD_WITHIN_S)],
            **evidence,
        )

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        """A host that was given notice is killed when its time is over; what has become of who was asked."""
        going = self._asked.pop(invocation.fault.number, ())
        if not going:
            return invocation
        asked, takes = going[0], invocation.takes
        cluster.log.poll()
        released = bool(cluster.log.of("may_leave", id=asked.id))
        killed = []
        if invocation.fault.kind == "notice":
            killed = [each.id for each in going if cluster.signal(each, signal.SIGKILL)]
            if killed and not released:
                takes = takes | {PROCESS, WORKER, OUTPUTS}
        gone = not asked.is_alive()
        told = is_leaving(cluster, asked)
        evidence = {**invocation.evidence, "told": told, "released": released, "killed": killed, "gone": gone}
        rows = {"EX-13"} if told and (released or killed) else set()
        if rows and len(going) == 1 and evidence["wrote"]:
            rows.add("EX-2")
        takes = takes if told else frozenset()
        return replace(
            invocation, took_effect=told, rows=tuple(sorted(rows)), takes=takes, evidence=evidence
        )


def is_leaving(cluster: Cluster, process: Process) -> bool:
    """Whether this worker or executor, or the host that it is on, has said that it leaves."""
    return any(
        event["id"] == process.id or (event["event"] == "worker_leaving" and event["host"] == process.host)
        for kind in ("worker_leaving", "executor_leaving")
        for event in cluster.log.of(kind)
    )
