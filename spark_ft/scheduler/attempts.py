"""Attempts from launch to end: who holds which slot, who waits in a queue, who is being killed.

    launch ──> queued ──TaskUpdates.started──> started ──> free
                 │                                │
                 └──────── kill: counts no more ──┴── answered within 5 s, or its process is killed

Invariants
  * task ids only grow and are never used again.
  * an attempt is in its executor's ``running`` from launch until its end or the executor's.
  * ``queued`` holds the attempts that are not started, ``killing`` those that were told to stop.
"""

from __future__ import annotations

from collections.abc import Iterable

from spark_ft.ids import HostId, NodeId, TaskId
from spark_ft.protocol.messages import KillExecutor, KillTask
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.stage import Stage
from spark_ft.scheduler.taskset import Attempt, Reads, Task
from spark_ft.scheduler.turn import Turn

_KILL_ANSWER_S = 5.0  # a KillTask that is not answered for so long costs the whole process (EX-15)


class Attempts:
    """All attempts that hold a slot or a place in a queue."""

    def __init__(self, turn: Turn, executors: Executors, first: int = 0) -> None:
        self._turn, self._executors = turn, executors
        self._next = first
        self.queued: dict[TaskId, Attempt] = {}
        self.keeping: dict[tuple[HostId, NodeId, int], TaskId] = {}  # by host and persisted partition
        self.killing: dict[TaskId, tuple[Attempt, float]] = {}  # with the time at which patience ends

    def launch(
        self, stage: Stage, task: Task, executor: ExecutorState, reads: Reads, speculative: bool
    ) -> Attempt:
        """Give the task to the executor; the caller tells it."""
        task_id = TaskId(self._next)
        self._next += 1
        number = stage.next_number(task.partition)
        attempt = Attempt(task_id, stage, task, number, executor, speculative, reads, self._turn.now_s)
        assert stage.tasks is not None
        stage.tasks.launched(attempt)
        executor.running[task_id] = attempt
        executor.used = True
        if executor.excluded is not None:
            executor.reserved, attempt.probe = task_id, True
        self.queued[task_id] = attempt
        self._executors.touch(executor)
        return attempt

    def keep(self, attempt: Attempt, keys: Iterable[tuple[NodeId, int]], perhaps_more: bool) -> None:
        """It will compute these persisted partitions; until its end nobody else on its host does (BL-11).
        ``perhaps_more``: those too that it does not find in memory."""
        attempt.keeps = tuple(keys)
        attempt.keeps_anew = perhaps_more or bool(attempt.keeps)
        for key in attempt.keeps:
            self.keeping.setdefault((attempt.executor.host, *key), attempt.task_id)

    def started(self, attempt: Attempt) -> None:
        """A slot has begun to run it.  Told twice changes nothing."""
        if attempt.started_s is not None:
            return
        attempt.started_s = self._turn.now_s
        self.queued.pop(attempt.task_id, None)
        executor = attempt.executor
        self._turn.note(
            "task_start",
            task=attempt.task_id,
            stage=attempt.stage.id,
            stage_attempt=attempt.stage_attempt,
            partition=attempt.task.partition,
            attempt=attempt.number,
            executor=executor.id,
            pid=executor.pid,
            host=executor.host,
            speculative=attempt.speculative,
            kind=attempt.stage.kind,
        )

    def free(
        self,
        attempt: Attempt,
        reason: str,
        blame: str = "",
        run_s: float = 0.0,
        records: int = 0,
        text: str = "",
    ) -> None:
        """It has ended: its slot is free.  ``text`` is for people."""
        executor = attempt.executor
        del executor.running[attempt.task_id]
        if executor.reserved == attempt.task_id:
            executor.reserved = None
        self.queued.pop(attempt.task_id, None)
        self.killing.pop(attempt.task_id, None)
        for key in attempt.keeps:
            if self.keeping.get((executor.host, *key)) == attempt.task_id:
                del self.keeping[(executor.host, *key)]
        if run_s:
            self._executors.took(executor, run_s)
        self._executors.touch(executor)
        if attempt.started_s is None:
            attempt.stage.give_back(attempt.task.partition, attempt.number)
        self._turn.note(
            "task_end",
            task=attempt.task_id,
            stage=attempt.stage.id,
            partition=attempt.task.partition,
            attempt=attempt.number,
            executor=executor.id,
            reason=reason,
            blame=blame,
            run_s=run_s,
            records=records,
            text=text,
        )

    def kill(self, attempt: Attempt, reason: str) -> None:
        """Its outcome is not wanted any more.  It keeps its slot until its end is told."""
        assert attempt.counts and attempt.stage.tasks is not None
        attempt.stage.tasks.ended(attempt)
        self._turn.note("task_killed", task=attempt.task_id, why=reason)
        if attempt.task_id in attempt.executor.running and attempt.executor.id in self._executors.live:
            self._turn.send(attempt.executor.id, KillTask(attempt.task_id, reason))
            self.killing[attempt.task_id] = attempt, self._turn.now_s + _KILL_ANSWER_S

    def recall(self, attempt: Attempt) -> None:
        """Ask it back from a queue.  It counts until the executor answers: it may just have begun."""
        attempt.recalled = True
        self.queued.pop(attempt.task_id, None)
        self._turn.send(attempt.executor.id, KillTask(attempt.task_id, "another executor is idle", True))

    def enforce(self) -> None:
        """Processes that are deaf to KillTask are killed (EX-15), once they can have heard it."""
        for id, (attempt, until_s) in list(self.killing.items()):
            if not attempt.executor.heeds:
                self.killing[id] = attempt, self._turn.now_s + _KILL_ANSWER_S
            elif self._turn.now_s >= until_s:
                self.doom(attempt.executor, f"deaf to KillTask of attempt {attempt}")

    def doom(self, executor: ExecutorState, why: str) -> None:
        """Ask an executor's worker to kill it; its end will be told, and is nobody's fault."""
        if not executor.doomed:
            executor.doomed = why
            self._executors.touch(executor)
            self._turn.note("executor_doomed", executor=executor.id, host=executor.host, why=why)
            if self._executors.has_worker(executor):  # else its heir is told
                self._turn.send(executor.worker.id, KillExecutor(executor.id, why))
