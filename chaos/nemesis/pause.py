"""SIGSTOP: to an executor, to all processes of a host, to the driver."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import replace

from chaos.live.cluster import Cluster, Process
from chaos.nemesis import OUTPUTS, PROCESS, TIME, WORKER, Fault, Invocation, Kind, Nemesis, Notice

STOPPED_WITHIN_S = 1.0
NOTICED_WITHIN_S = 1.0  # the kernel tells its worker


class _Pause(Nemesis):
    """Stops processes, and sees to it that each of them goes on again."""

    def __init__(self) -> None:
        self._stopped: dict[int, Sequence[Process]] = {}

    def stop(self, fault: Fault, victims: Sequence[Process], cluster: Cluster) -> bool:
        """Whether all of them stand still."""
        self._stopped[fault.number] = victims
        for victim in victims:
            cluster.signal(victim, signal.SIGSTOP)
        return cluster.wait(lambda: all(victim.is_stopped() for victim in victims), STOPPED_WITHIN_S)

    def resume(self, fault: Fault, cluster: Cluster) -> int:
        """How many were still there to go on."""
        victims = self._stopped.pop(fault.number, ())
        return sum(cluster.signal(victim, signal.SIGCONT) for victim in victims)

    def teardown(self, cluster: Cluster) -> None:
        for victims in self._stopped.values():
            for victim in victims:
                cluster.signal(victim, signal.SIGCONT)


class PauseExecutor(_Pause):
    """An executor stands still: briefly, or until it is given up and killed by its worker."""

    name = "pause"
    kinds = (
        Kind("short", ("EX-9", "CLK-3"), frozenset({TIME, PROCESS}), (0.3, 2.0), weight=2.0),
        Kind("long", ("EX-7", "EX-9", "CLK-3"), frozenset({TIME, PROCESS}), (2.0, 6.0)),
    )

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        victims = [executor for executor in cluster.executors() if not executor.is_stopped()]
        busy = [executor for executor in victims if cluster.log.running(executor.id)]
        if not victims:
            return self.made(fault, False, why="no executor is there")
        victim = rng.choice(busy or victims)
        running = cluster.log.running(victim.id)
        return self.made(
            fault,
            self.stop(fault, [victim], cluster),
            *(["EX-9"] if running else []),
            victims=[victim.id],
            notices=[
                Notice(("executor_stopped", "executor_lost"), {"executor": victim.id}, NOTICED_WITHIN_S),
                Notice(("executor_lost",), {"executor": victim.id}, cluster.given_up_after_s),
            ],
            paused={victim.id: victim.pid},
            ran=len(running),
        )

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        if not invocation.took_effect:
            self.resume(invocation.fault, cluster)
            return invocation
        resumed = self.resume(invocation.fault, cluster) > 0
        (victim,) = invocation.victims
        given_up = any(event["executor"] == victim for event in cluster.log.of("executor_lost"))
        still_s = cluster.now_s() - invocation.at_s
        rows = {*invocation.rows, *(["EX-7"] if given_up else [])}
        if resumed and still_s > cluster.lease_s:
            rows.add("CLK-3")  # it wakes up beyond its lease
        evidence = {**invocation.evidence, "resumed": resumed, "given_up": given_up, "still_s": still_s}
        return replace(invocation, rows=tuple(sorted(rows)), evidence=evidence)


class PauseHost(_Pause):
    """A host is suspended: its worker and its executors stand still together, and wake up together."""

    name = "pause-host"
    kinds = (
        Kind("short", ("WK-8",), frozenset({TIME, PROCESS, WORKER}), (0.5, 2.0), managed=True),
        Kind("long", ("WK-8",), frozenset({TIME, PROCESS, WORKER, OUTPUTS}), (4.0, 7.0), managed=True),
    )

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        workers = [worker for worker in cluster.workers() if not worker.is_stopped()]
        if not workers:
            return self.made(fault, False, why="no worker is there")
        worker = rng.choice(workers)
        executors = [executor for executor in cluster.executors() if executor.host == worker.host]
        return self.made(
            fault,
            self.stop(fault, [worker, *executors], cluster),
            "WK-8",
            victims=[worker.host, worker.id, *(executor.id for executor in executors)],
            notices=[Notice(("worker_lost",), {"worker": worker.id}, cluster.given_up_after_s)],
            paused={process.id: process.pid for process in [worker, *executors]},
        )

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        resumed = self.resume(invocation.fault, cluster)
        return replace(invocation, evidence={**invocation.evidence, "resumed": resumed})


class PauseDriver(_Pause):
    """The driver stands still: when it wakes up, what was said meanwhile counts before time does."""

    name = "pause-driver"
    kinds = (Kind("stall", ("CLK-4",), frozenset({TIME}), (1.0, 5.0)),)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        driver = cluster.driver()
        if driver is None or driver.is_stopped():
            return self.made(fault, False, why="the driver does not run")
        stopped = self.stop(fault, [driver], cluster)
        return self.made(fault, stopped, "CLK-4", victims=[driver.role], paused={driver.role: driver.pid})

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        resumed = self.resume(invocation.fault, cluster)
        return replace(invocation, evidence={**invocation.evidence, "resumed": resumed})
