"""SIGSTOP to an executor: for a while, or until it has been given up."""

from __future__ import annotations

import random
import signal
from dataclasses import replace

from chaos.live.cluster import Cluster, Process
from chaos.nemesis import PROCESS, TIME, Fault, Invocation, Kind, Nemesis, Notice

STOPPED_WITHIN_S = 1.0
NOTICED_WITHIN_S = 1.0  # the kernel tells its worker


class PauseExecutor(Nemesis):
    """An executor stands still.  A short stop is mere slowness; one for longer than its lease makes a
    zombie: given up, killed by its worker, its tasks given to others."""

    name = "pause"
    kinds = (
        Kind("short", ("EX-9",), frozenset({TIME, PROCESS}), (0.3, 2.0), weight=2.0),
        Kind("long", ("EX-7", "EX-9", "CLK-3"), frozenset({TIME, PROCESS}), (4.0, 6.0)),
    )

    def __init__(self) -> None:
        self._stopped: dict[int, Process] = {}

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        victims = [executor for executor in cluster.executors() if not executor.is_stopped()]
        busy = [executor for executor in victims if cluster.log.running(executor.id)]
        if not victims:
            return self.made(fault, False, why="no executor is there")
        victim = rng.choice(busy or victims)
        running = cluster.log.running(victim.id)
        cluster.signal(victim, signal.SIGSTOP)
        stopped = cluster.wait(victim.is_stopped, STOPPED_WITHIN_S)
        self._stopped[fault.number] = victim
        rows = ["EX-9"] if running else []
        return self.made(
            fault,
            stopped,
            *rows,
            victims=[victim.id],
            notices=[
                Notice(("executor_stopped", "executor_lost"), {"executor": victim.id}, NOTICED_WITHIN_S),
                Notice(("executor_lost",), {"executor": victim.id}, cluster.given_up_after_s),
            ],
            paused={victim.id: victim.pid},
            ran=len(running),
        )

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        victim = self._stopped.pop(invocation.fault.number, None)
        if victim is None:
            return invocation
        resumed = victim.is_alive()
        if resumed:
            cluster.signal(victim, signal.SIGCONT)
        given_up = any(event["executor"] == victim.id for event in cluster.log.of("executor_lost"))
        rows = invocation.rows
        if given_up and invocation.took_effect:
            rows = tuple(sorted({*rows, "EX-7"}))
        evidence = {**invocation.evidence, "resumed": resumed, "given_up": given_up}
        return replace(invocation, rows=rows, evidence=evidence)

    def teardown(self, cluster: Cluster) -> None:
        for victim in self._stopped.values():
            if victim.is_alive():
                cluster.signal(victim, signal.SIGCONT)
