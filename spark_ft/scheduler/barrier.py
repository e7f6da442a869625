"""Barrier stages: their tasks are a gang, launched together or not at all, and all again when one is lost.

    every member ready, slots for all ──> launched in one turn (placement.py)
    a member fails, dies, must read again ──> broken ──> the others are killed, what members have done is
                                              undone (map outputs, held results: a generation more), all again
    barrier(), allGather() ──BarrierSync──> every member has called ──BarrierReleased──> all go on
                                            broken, ended without it, too late ──> released with an error

A gang that lacks slots holds back what comes after it in the queue, so it gets them in the end; it holds
none itself, so that two gangs never wait for each other.  One that asks for more than there are ends by name.

Invariants
  * of an active barrier stage's tasks all are launched, or none is (S33).
  * a call in ``syncs`` waits for a member that still runs; nobody waits for one that has ended.
"""

from __future__ import annotations

from typing import Any

from spark_ft.ids import StageId, TaskId
from spark_ft.protocol.effects import JobFailure
from spark_ft.protocol.messages import BarrierReleased, BarrierSync
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.stage import Stage
from spark_ft.scheduler.taskset import Attempt, State
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_BREAKS_MAX = 100
_BROKEN = "BARRIER_ABORTED: another task of its barrier stage has ended or is run again"


class Sync:
    """One call of barrier() or allGather() that some members have made."""

    __slots__ = ("arrived", "kind", "round", "since_s")

    def __init__(self, told: BarrierSync, now_s: float) -> None:
        self.round, self.kind, self.since_s = told.round, told.kind, now_s
        self.arrived: dict[TaskId, tuple[Attempt, str]] = {}


class Gangs:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        dag: Dag,
        recovery: Recovery,
    ) -> None:
        self._settings, self._turn, self._executors = settings, turn, executors
        self._attempts, self._dag, self._recovery = attempts, dag, recovery
        self.syncs: dict[StageId, Sync] = {}
        self.passed: dict[StageId, int] = {}  # the last call that was released
        self.breaks: dict[StageId, int] = {}
        self._short_s: dict[StageId, float] = {}  # since when there are not as many slots as members

    # --- Members meet ---

    def sync(self, executor: ExecutorState, told: BarrierSync) -> None:
        """A member has called.  Told twice changes nothing."""
        attempt = executor.running.get(told.task)
        if (
            attempt is None
            or not attempt.counts
            or not attempt.stage.tree.barrier
            or told.round <= self.passed.get(attempt.stage.id, 0)
        ):
            self._turn.note("stale_barrier_sync", task=told.task, executor=executor.id)
            return
        stage = attempt.stage
        assert stage.tasks is not None
        sync = self.syncs.get(stage.id)
        if sync is None:
            sync = self.syncs[stage.id] = Sync(told, self._turn.now_s)
        sync.arrived[told.task] = attempt, told.message
        if (sync.round, sync.kind) != (told.round, told.kind):
            self._release(stage, f"one task called {sync.kind}(), another {told.kind}() or one call earlier")
        elif len(sync.arrived) == len(stage.tasks.tasks):
            self._turn.note("barrier_passed", stage=stage.id, round=sync.round, kind=sync.kind)
            self._release(stage)
        else:
            self._look_for_ended(stage)

    def _look_for_ended(self, stage: Stage) -> None:
        """Whoever has ended well will never call: the others need not wait."""
        assert stage.tasks is not None
        ended = [p for p, task in stage.tasks.tasks.items() if task.state is State.DONE]
        if ended:
            self._release(stage, f"task {min(ended)} of the stage has ended without calling it")

    def _release(self, stage: Stage, error: str = "") -> None:
        sync = self.syncs.pop(stage.id)
        self.passed[stage.id] = max(self.passed.get(stage.id, 0), sync.round)
        called = sorted(sync.arrived.values(), key=lambda call: call[0].partition)
        messages = () if error else tuple(message for _, message in called)
        for attempt, _ in called:
            if attempt.executor.id in self._executors.live:
                told = BarrierReleased(attempt.task_id, sync.round, messages, error)
                self._turn.send(attempt.executor.id, told)

    # --- A gang is broken ---

    def mend(self) -> None:
        """Gangs that have lost a member begin again, whole."""
        while self._dag.broken:
            _, stage = self._dag.broken.popitem()
            if stage.tasks is not None:
                self._begin_again(stage)

    def tidy(self) -> None:
        """Of stages that have ended nobody waits any more: their tasks were killed with them."""
        lefts: tuple[dict[StageId, Any], ...] = (self.syncs, self.passed, self.breaks)
        for left in lefts:
            for id in [id for id in left if id not in self._dag.active]:
                del left[id]

    def _begin_again(self, stage: Stage) -> None:
        tasks = stage.tasks
        assert tasks is not None
        if stage.id in self.syncs:
            self._release(stage, _BROKEN)
        self.passed.pop(stage.id, None)
        for task in list(tasks.active.values()):
            for attempt in list(task.attempts):
                self._attempts.kill(attempt, _BROKEN)
            tasks.wait(task)
        self._turn.note("gang_broken", stage=stage.id, attempt=stage.attempt)
        breaks = self.breaks[stage.id] = self.breaks.get(stage.id, 0) + 1
        if breaks >= _BREAKS_MAX:
            text = f"barrier stage {stage.id} has lost a task {breaks} times before all of them had ended"
            self._dag.fail_stage(stage, JobFailure("STAGE_ABORTED", text, stage.id))
            return
        if stage.shuffle is not None:
            self._recovery.gang_broken(stage.shuffle, stage.id)
        elif (job := stage.lead()).delivered:
            why = f"a task of barrier stage {stage.id} was lost after others had ended"
            self._dag.take_back(job, why)
            self._dag.broken.pop(stage.id, None)  # by that very step
        self._dag.mark(stage)

    # --- Time ---

    def sweep(self) -> None:
        """Gangs that can never start end by name; calls that can never return are released."""
        self.tidy()  # this turn may have ended some
        now_s = self._turn.now_s
        for id in list(self.syncs):
            stage = self._dag.active[id]
            self._look_for_ended(stage)
            sync = self.syncs.get(id)
            if sync is not None and now_s - sync.since_s >= self._settings.barrier_sync_timeout_s:
                self._release(stage, f"not every task called it within {now_s - sync.since_s:g} s")
        barriers = [stage for stage in self._dag.active.values() if stage.tree.barrier]
        self._short_s = {id: s for id, s in self._short_s.items() if id in self._dag.active}
        for stage in barriers:
            if stage.tasks is not None:  # it may have ended with another one of its job
                self._look_for_slots(stage)

    def _look_for_slots(self, stage: Stage) -> None:
        assert stage.tasks is not None
        slots, wanted = self._executors.slots(), len(stage.tasks.tasks)
        if slots >= wanted:
            self._short_s.pop(stage.id, None)
            return
        since_s = self._short_s.setdefault(stage.id, self._turn.now_s)
        patience_s = self._settings.barrier_check_interval_s * self._settings.barrier_check_failures
        if self._turn.now_s - since_s >= patience_s:
            text = (
                f"barrier stage {stage.id} needs {wanted} slots at once and there are {slots}: its tasks "
                "are launched together or not at all. Give the application more executors, or repartition "
                "the data into fewer partitions."
            )
            self._dag.fail_stage(stage, JobFailure("BARRIER_NO_SLOTS", text, stage.id))
