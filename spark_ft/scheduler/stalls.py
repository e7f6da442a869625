"""Attempts that do not get on: stalled ones, those on stopped executors, those that run for too long.

    beats: no records, no bytes, no CPU for ``stall_timeout_s``   its stack is noted, a twin may start
           for as long again                                      killed, and given to another executor
    its executor was stopped a second ago (the kernel's word)     a twin may start
    it has run for ``task_timeout_s``                             stack, then killed and blamed (TK-6)

A stall is nobody's proved fault, so it counts against nothing; but a task's patience doubles with each
kill of this kind: one that only waits for somebody gets through in the end.  Only what beats show counts:
while none comes (a C call holds the GIL) no time of a stall passes.  Members of a gang wait for each other.

Invariants
  * ``ExecutorState.progress`` holds attempts of its last beat only; ``_late`` attempts that have not ended.
  * a twin is asked for (``Attempt.suspect``), never started, here: placement keeps S10.
"""

from __future__ import annotations

from spark_ft.ids import Incarnation, TaskId
from spark_ft.protocol.messages import DumpStacks, ExecutorBeat, TaskProgress
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.ends import Ends
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.taskset import Attempt, avoid, remember
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_STOPPED_S = 1.0  # an executor that was stopped so long ago may not go on soon
_CPU_S = 0.005  # less than this is the price of waiting, not progress
_STACKS_WAIT_S = 2.0  # for the stack of an attempt that is to be killed
_BEATS_MISSED = 3.0  # a gap between beats that is longer than so many is no time of a stall


class Seen:
    """What beats have told of one attempt: how far it was when it last moved, and when that was."""

    __slots__ = ("asked", "moved_s", "noted", "progress", "stack")

    def __init__(self, progress: TaskProgress, now_s: float) -> None:
        self.progress, self.moved_s = progress, now_s
        self.noted = False
        self.asked = 0  # so many beats may tell of the CPU time that writing its stack cost: no progress
        self.stack = ""

    def has_moved(self, now: TaskProgress) -> bool:
        old = self.progress
        return (
            now.record_count != old.record_count
            or now.byte_count != old.byte_count
            or not -_CPU_S < now.cpu_s - old.cpu_s < _CPU_S
        )


class Stalls:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        dag: Dag,
        ends: Ends,
    ) -> None:
        self._settings, self._turn, self._executors = settings, turn, executors
        self._attempts, self._dag, self._ends = attempts, dag, ends
        self._late: dict[TaskId, tuple[Attempt, float]] = {}  # with when their stack is waited for no more

    # --- What beats show ---

    def beat(self, executor: ExecutorState, beat: ExecutorBeat) -> None:
        now_s, before = self._turn.now_s, executor.progress
        gap_s = now_s - executor.beat_s
        unseen_s = gap_s if gap_s > _BEATS_MISSED * self._settings.heartbeat_interval_s else 0.0
        executor.beat_s = now_s
        executor.progress = {}
        for progress in beat.running:
            attempt = executor.running.get(progress.task)
            if attempt is None:
                continue
            seen = before.get(progress.task)
            if seen is not None and seen.asked:
                seen.asked -= 1
                seen.progress = progress
            if seen is not None and seen.has_moved(progress):
                seen, attempt.suspect = None, False
            if seen is None:
                seen = Seen(progress, now_s)
            seen.moved_s += unseen_s
            executor.progress[progress.task] = seen
            if self._settings.stall_timeout_s and attempt.counts and not attempt.stage.tree.barrier:
                self._judge(executor, attempt, seen)

    def _judge(self, executor: ExecutorState, attempt: Attempt, seen: Seen) -> None:
        trouble = attempt.task.trouble
        patience_s = self._settings.stall_timeout_s * 2 ** (trouble.stalls if trouble else 0)
        idle_s = self._turn.now_s - seen.moved_s
        if idle_s >= 2 * patience_s:
            self._give_up(attempt, seen, idle_s)
        elif idle_s >= patience_s and not seen.noted:
            seen.noted = attempt.suspect = True
            seen.asked = 2
            self._turn.note(
                "task_stalled", task=attempt.task_id, stage=attempt.stage.id, partition=attempt.partition,
                attempt=attempt.number, executor=executor.id, idle_s=round(idle_s, 3),
                records=seen.progress.record_count, cpu_s=round(seen.progress.cpu_s, 3),
            )  # fmt: skip
            self._ask(executor)

    def _give_up(self, attempt: Attempt, seen: Seen, idle_s: float) -> None:
        why = f"no progress and no CPU time for {idle_s:.0f} s"
        attempt.task.troubled().stalls += 1
        stack = f"; it stood at:\n{seen.stack}" if seen.stack else ""
        remember(attempt.task, attempt, "Stalled", "executor", why + stack)
        avoid(attempt.task, attempt.executor, self._turn.now_s)
        self._turn.note("stalled_task_killed", task=attempt.task_id, executor=attempt.executor.id, why=why)
        self._dag.restart(attempt, why)

    # --- Stacks ---

    def stacks(self, id: Incarnation, text: str) -> None:
        """Where the threads of an executor stand."""
        executor = self._executors.live.get(id)
        if executor is None:
            return
        self._turn.note("executor_stacks", executor=id, tasks=list(executor.running), text=text)
        for seen in executor.progress.values():
            if seen.noted:
                seen.stack = text
        for task in [task for task, (attempt, _) in self._late.items() if attempt.executor is executor]:
            self._time_out(self._late.pop(task)[0], text)

    # --- Time passes ---

    def sweep(self) -> None:
        if self._settings.task_timeout_s:
            self._look_for_late()
        for executor in self._executors.live.values():
            if executor.stopped_s is not None and self._turn.now_s - executor.stopped_s >= _STOPPED_S:
                for attempt in executor.running.values():
                    attempt.suspect = True

    def _look_for_late(self) -> None:
        now_s = self._turn.now_s
        for task, (attempt, until_s) in list(self._late.items()):
            if not attempt.counts or task not in attempt.executor.running:
                del self._late[task]
            elif now_s >= until_s:
                del self._late[task]
                self._time_out(attempt, "")
        for executor in self._executors.live.values():
            late = [
                attempt
                for attempt in executor.running.values()
                if attempt.counts
                and attempt.started_s is not None
                and now_s - attempt.started_s >= self._settings.task_timeout_s
                and attempt.task_id not in self._late
            ]
            for attempt in late:
                self._late[attempt.task_id] = attempt, now_s + _STACKS_WAIT_S
            if late:
                self._ask(executor)

    def _ask(self, executor: ExecutorState) -> None:
        if self._executors.has_worker(executor):
            self._turn.send(executor.worker.id, DumpStacks(executor.id))

    def _time_out(self, attempt: Attempt, stack: str) -> None:
        if not attempt.counts or attempt.task_id not in attempt.executor.running:
            return
        self._turn.note(
            "task_timeout", task=attempt.task_id, stage=attempt.stage.id, partition=attempt.partition,
            executor=attempt.executor.id, text=stack,
        )  # fmt: skip
        self._attempts.kill(attempt, "it ran for longer than spark.ft.task.timeout")
        self._ends.timed_out(attempt, stack)
