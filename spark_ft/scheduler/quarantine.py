"""Tasks that are suspected of ending processes, or that ran out of memory, run with room around them.

    room      given to                                         its attempt has
    SHARED    everybody                                        neighbours
    ROOMY     a task that ran out of memory once               half of its host's executors idle
    ALONE     a task under which two processes died (TK-5)     a fresh process, no neighbour in it
    HOST      a task that ran out of memory twice (MEM-1)      that, and its whole host

Fresh is a process that has run nothing: what an earlier task left in it cannot be the cause.  The death that
made the task suspect brings one; where none comes within a second, an executor is drained and replaced.
Meanwhile the others work.  One suspect is prepared for at a time; the rest wait.

Invariants
  * an executor that is ``reserved`` runs that one attempt and is sent no other (S15).
  * an executor is drained only while a suspect waits; nothing is taken from what runs there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spark_ft.ids import HostId
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.taskset import Attempt, Room, Task
from spark_ft.scheduler.turn import Turn

if TYPE_CHECKING:
    from spark_ft.scheduler.dag import Dag
    from spark_ft.scheduler.stage import Stage

Fits = Callable[["Stage", ExecutorState], bool]
FRESH_PROCESS = "a suspect task needs a fresh process"  # why an idle executor is replaced
_PATIENCE_S = 1.0  # until a fresh process is made rather than waited for


class Quarantine:
    """See the module."""

    def __init__(self, turn: Turn, executors: Executors, attempts: Attempts, dag: Dag) -> None:
        self._turn, self._executors, self._attempts, self._dag = turn, executors, attempts, dag
        self._roomy: list[Attempt] = []  # that run and want room on their host
        self._drained: ExecutorState | None = None
        self._cleared: HostId | None = None  # a host on which a suspect waits for others to end
        self._cleared_for = Room.SHARED
        self.active = False  # whether ``allows`` has anything to say

    def next(self, fits: Fits) -> tuple[Stage, Task, ExecutorState] | None:
        """A suspect and the executor on which it may be launched now; ``fits`` knows what else must hold."""
        self._roomy = [a for a in self._roomy if a.task_id in a.executor.running]
        self._cleared = None
        found = self._next(fits)
        if self._drained is not None and (found is not None or not self._dag.suspects):
            self._drain(None)
        self.active = bool(self._roomy or self._cleared)
        return found

    def _next(self, fits: Fits) -> tuple[Stage, Task, ExecutorState] | None:
        for stage in list(self._dag.suspects.values()):
            assert stage.tasks is not None
            task = stage.tasks.first_suspect()
            if task is None:
                del self._dag.suspects[stage.id]
                continue
            executor = self._place_for(stage, task, fits)
            if executor is not None:
                stage.tasks.take_suspect()
                return stage, task, executor
            self._prepare(task)
            return None
        return None

    @property
    def is_draining(self) -> bool:
        return self._drained is not None

    def launched(self, attempt: Attempt, room: Room) -> None:
        attempt.room = room
        if room >= Room.ALONE:
            attempt.executor.reserved = attempt.task_id
            self._executors.touch(attempt.executor)
        if room in (Room.ROOMY, Room.HOST):
            self._roomy.append(attempt)
            self.active = True
        self._turn.note(
            "quarantine", task=attempt.task_id, stage=attempt.stage.id, partition=attempt.partition,
            executor=attempt.executor.id, room=room.name,
        )  # fmt: skip

    def allows(self, executor: ExecutorState) -> bool:
        """Whether another attempt may start there, as far as those are concerned that want room."""
        host = executor.host
        if executor.running:  # it is busy already: a queue behind it takes no more memory, but time
            return host != self._cleared or self._busy(host) < self._most(host, self._cleared_for)
        if host == self._cleared and self._busy(host) >= self._most(host, self._cleared_for) - 1:
            return False
        return all(
            attempt.executor.host != host or self._busy(host) < self._most(host, attempt.room)
            for attempt in self._roomy
        )

    # --- Places ---

    def _place_for(self, stage: Stage, task: Task, fits: Fits) -> ExecutorState | None:
        assert task.trouble is not None
        room = task.trouble.room
        for executor in self._executors.idle.values():
            if executor.running or (room >= Room.ALONE and executor.used):
                continue
            has_room = room is Room.ALONE or self._busy(executor.host) < self._most(executor.host, room)
            if has_room and fits(stage, executor):
                return executor
        return None

    def _busy(self, host: HostId) -> int:
        return sum(bool(e.running) for e in self._executors.live.values() if e.host == host)

    def _most(self, host: HostId, room: Room) -> int:
        """How many executors of a host may be busy, the one with room included."""
        return 1 if room is Room.HOST else max(1, self._executors.on_host.get(host, 1) // 2)

    def _prepare(self, task: Task) -> None:
        """Nowhere can it run now: see to it that it soon can."""
        trouble = task.trouble
        assert trouble is not None
        live = [e for e in self._executors.live.values() if not e.doomed]
        if not live:
            return
        if trouble.room in (Room.ROOMY, Room.HOST):
            self._cleared = min(live, key=lambda e: (self._busy(e.host), e.host)).host
            self._cleared_for = trouble.room
        if trouble.room is Room.ROOMY or self._turn.now_s - trouble.suspect_since_s < _PATIENCE_S:
            return
        if any(not e.used for e in live):
            return  # a fresh one is there, and its host is being cleared
        if self._drained is None or self._drained.id not in self._executors.live:
            there = [e for e in live if e.accepting and self._cleared in (None, e.host)]
            if not there:
                return
            self._drain(min(there, key=lambda e: len(e.running)))
        if self._drained is not None and not self._drained.running and not self._drained.doomed:
            self._attempts.doom(self._drained, FRESH_PROCESS)
            trouble.suspect_since_s = self._turn.now_s  # its successor needs a moment, too

    def _drain(self, executor: ExecutorState | None) -> None:
        """Send nothing more to this one; the one before takes tasks again, if it is not gone."""
        if self._drained is not None:
            self._drained.draining = False
            self._executors.touch(self._drained)
        self._drained = executor
        if executor is not None:
            executor.draining = True
            self._executors.touch(executor)
