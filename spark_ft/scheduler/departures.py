"""Workers and executors that were asked to leave (EX-13): they get nothing more, and go when nothing is lost.

    Leaving ──> queues are asked back ──> what runs ends, or has a twin elsewhere when time runs short
                copies.py moves what lies there ──> nothing is left: MayLeave ──> the process ends
                the deadline comes first: the process ends all the same; what was not moved is lost (R2)

A worker leaves with its executors and its host's stores; an executor alone leaves its memory behind, which
is written down on its host.

Invariants
  * nothing is launched on whoever leaves (S13), and no copy is made there.
  * ``executors.leaving`` holds exactly the live processes that have a notice (S28).
"""

from __future__ import annotations

from collections.abc import Iterable

from spark_ft.ids import HostId
from spark_ft.protocol.messages import Leave, Leaving, MayLeave
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.copies import Copies
from spark_ft.scheduler.executors import Executors, ExecutorState, Notice, WorkerState
from spark_ft.scheduler.taskset import Attempt
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

Leaver = WorkerState | ExecutorState


class Departures:
    """See the module."""

    def __init__(
        self, settings: Settings, turn: Turn, executors: Executors, attempts: Attempts, copies: Copies
    ) -> None:
        self._settings, self._turn, self._executors = settings, turn, executors
        self._attempts, self._copies = attempts, copies

    def ask(self, host: HostId, within_s: float) -> None:
        """Whoever is on this host is to leave it."""
        for worker in self._executors.workers.values():
            if worker.host == host:
                self._turn.send(worker.id, Leave(within_s))

    def leaves(self, leaver: Leaver, told: Leaving) -> None:
        """A process was asked to go; told twice changes nothing."""
        if leaver.leaving is not None:
            return
        now_s = self._turn.now_s
        leaver.leaving = Notice(now_s, now_s + told.within_s)
        self._executors.leaving[leaver.id] = leaver
        kind = "worker" if isinstance(leaver, WorkerState) else "executor"
        self._turn.note(
            f"{kind}_leaving", id=leaver.id, host=leaver.host, within_s=told.within_s, why=told.why
        )
        for executor in _executors(leaver):
            self._executors.touch(executor)
            for attempt in list(executor.running.values()):
                if attempt.started_s is None and attempt.counts and not attempt.recalled:
                    self._attempts.recall(attempt)
        self._copies.look_again = True

    def settle(self) -> None:
        """Whoever has nothing left to lose may go."""
        for leaver in self._executors.leaving.values():
            notice = leaver.leaving
            assert notice is not None
            if not notice.released and not self.is_needed(leaver, notice):
                notice.released = True
                after_s = round(self._turn.now_s - notice.since_s, 3)
                self._turn.note("may_leave", id=leaver.id, after_s=after_s)
                self._turn.send(leaver.id, MayLeave())

    def is_needed(self, leaver: Leaver, notice: Notice) -> bool:
        """Whether something still runs there, or is only there, or may be read there."""
        if any(executor.running for executor in _executors(leaver)):
            return True
        executor = leaver.id if isinstance(leaver, ExecutorState) else None
        if self._copies.moving and self._copies.is_busy_with(leaver.host, executor):
            return True
        return any(
            _may_read(attempt, notice.moved_s)
            for executor in self._executors.live.values()
            for attempt in executor.running.values()
        )

    def sweep(self) -> None:
        """Tasks that will not end in time get a twin: when half of the time is over, or when it is known
        that the rest will not do."""
        now_s = self._turn.now_s
        for leaver in self._executors.leaving.values() if self._settings.speculation else ():
            notice = leaver.leaving
            assert notice is not None
            late = now_s - notice.since_s >= (notice.until_s - notice.since_s) / 2
            for executor in _executors(leaver):
                for attempt in executor.running.values():
                    stage, tasks = attempt.stage, attempt.stage.tasks
                    if not attempt.counts or attempt.started_s is None or tasks is None:
                        continue
                    if stage.tree.barrier:  # a gang has no twins: it runs again when it is broken
                        continue
                    if late or attempt.started_s + tasks.usual_s > notice.until_s:
                        tasks.hurry(attempt.task)


def _executors(leaver: Leaver) -> Iterable[ExecutorState]:
    return leaver.executors.values() if isinstance(leaver, WorkerState) else (leaver,)


def _may_read(attempt: Attempt, moved_s: float) -> bool:
    """Whether it may still read what has been moved since it was told where that is."""
    return bool(attempt.reads or attempt.stage.tree.persisted) and attempt.launched_s <= moved_s
