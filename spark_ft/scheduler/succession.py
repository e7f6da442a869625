"""A worker is gone: what it leaves behind waits for its heir.

    worker lost ──> its executors are orphans ──StoresServed──> what lives is adopted, what verifies stays,
                    its host's data waits                       the rest is lost, planned at once
                          └── no heir within ``worker_grace_s`` ──> the host is lost

An executor is no part of its worker: it computes on under its driver lease and is given nothing new
until somebody can vouch for it again (WK-1).  Nor are the stores: they lie on the host's disk, and
the worker that takes over says what of them it found whole (WK-3).  What it does not name is lost, be it
gone, damaged, or an older copy than the one we know of (WK-4).

Invariants
  * a host that waits has no more than one orphanage, and counts as live until that is closed (S7).
  * an executor's worker is a live one, or its host's orphanage; an orphan is given nothing (S13).
"""

from __future__ import annotations

from collections.abc import Callable

from spark_ft.ids import HostId, Incarnation
from spark_ft.protocol.effects import ClosePeer, EndWorker
from spark_ft.protocol.messages import KillExecutor, MapStatus, StoresServed
from spark_ft.scheduler.executors import Executors, ExecutorState, WorkerState
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

Lose = Callable[[ExecutorState, str, tuple[MapStatus, ...]], None]


class Succession:
    """See the module.  ``lose`` gives an executor up whose store holds these outputs."""

    def __init__(
        self, settings: Settings, turn: Turn, executors: Executors, recovery: Recovery, lose: Lose
    ) -> None:
        self._settings, self._turn, self._executors = settings, turn, executors
        self._recovery, self._lose = recovery, lose

    def worker_lost(self, worker: WorkerState, why: str) -> None:
        """It is fenced; whoever keeps workers alive is asked to see to its end, and to an heir."""
        self._turn.note("worker_lost", worker=worker.id, host=worker.host, why=why)
        self._turn.out.append(ClosePeer(worker.id, True, why))
        self._turn.out.append(EndWorker(worker.id, why))
        # Who has left in order has no heir: what was of value has moved (departures.py).
        grace_s = self._settings.worker_grace_s if worker.leaving is None else 0.0
        self._executors.orphan(worker, self._turn.now_s + grace_s)
        self._recovery.host_unserved(worker.host)
        if not grace_s:
            self.sweep()
        if any(other.has_inherited for other in self._executors.workers_on(worker.host)):
            self._close(worker.host, f"its worker is lost: {why}", ())

    def served(self, sender: Incarnation, told: StoresServed) -> None:
        """A worker says what it found on its host.  Told twice changes nothing."""
        worker = self._executors.workers.get(sender)
        if worker is None:
            return
        worker.has_inherited = True
        for id in told.executors:
            executor = self._executors.live.get(id)
            if executor is not None and executor.host == worker.host and executor.worker is not worker:
                self._executors.adopt(executor, worker, self._turn.now_s)
                self._turn.note("executor_adopted", executor=id, worker=sender, host=worker.host)
                if executor.doomed:  # who was to kill it is gone
                    self._turn.send(sender, KillExecutor(id, executor.doomed))
            elif id in self._executors.fenced:
                self._turn.send(sender, KillExecutor(id, "it has been given up"))
        self._close(worker.host, "its worker is lost, and it did not outlive it", told.outputs)
        alive = {executor.id for executor in self._executors.live.values() if executor.host == worker.host}
        self._recovery.host_inherited(worker.host, told.outputs, {*told.stores, *alive}, alive)

    def sweep(self) -> None:
        """Hosts that nobody has taken over in time are lost."""
        for host, orphanage in list(self._executors.orphaned.items()):
            if self._turn.now_s >= orphanage.until_s:
                self._close(host, "its worker is lost and nobody has taken its place", ())
                if not self._executors.host_is_live(host):
                    self._executors.addresses.pop(host, None)
                    self._recovery.host_lost(host)

    def _close(self, host: HostId, why: str, outputs: tuple[MapStatus, ...]) -> None:
        orphanage = self._executors.orphaned.get(host)
        if orphanage is not None:
            for executor in list(orphanage.executors.values()):
                self._lose(executor, why, tuple(o for o in outputs if o.store == executor.id))
            del self._executors.orphaned[host]
