"""Who is suspected, and what follows: room for suspects, fresh processes, no more deaths than it takes.

The shadow (shadow.py) tells of launches, ends and exits; this keeps its own account of deaths and of memory
that ran out, by task, since the task last succeeded or its stage began again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from chaos.sim.violation import ViolationError
from spark_ft.ids import HostId, Incarnation, TaskId
from spark_ft.protocol.messages import ExecutorExited, Success, TaskEnd, UserError

if TYPE_CHECKING:
    from chaos.sim.account import Tried
    from chaos.sim.world import World

Where = tuple[int, int]  # stage, partition
_OOMS_MAX = 2


class Blame:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._deaths: Counter[Where] = Counter()  # processes that ended by their own doing while it ran there
        self._ooms: Counter[Where] = Counter()
        self._used: set[Incarnation] = set()  # executors that were given something
        self._soiled: set[Incarnation] = set()  # … in which a task has left something behind
        self._alone: dict[Incarnation, Tried] = {}  # where a suspect was launched last
        self._roomy: dict[HostId, Tried] = {}  # hosts that one task was to have for itself
        self._exits: dict[Incarnation, ExecutorExited] = {}
        self._left: dict[Incarnation, list[Tried]] = {}

    def stage_begins(self, stage: int) -> None:
        for known in (self._deaths, self._ooms):
            for where in [where for where in known if where[0] == stage]:
                del known[where]

    # --- Launches ---

    def launched(self, attempt: Tried, to: Incarnation, running: dict[TaskId, Tried], in_gang: bool) -> None:
        """``running``: what it has been given, this attempt included."""
        where = attempt.stage, attempt.partition
        if to in self._soiled:
            raise ViolationError("TK-7", f"task {attempt.task} is launched on {to}, which is to be replaced")
        host = self._world.executors[to].host
        for other in (self._alone.get(to), self._roomy.get(host)):
            if other is not None and not other.ended:
                raise ViolationError("S15", f"task {attempt.task} is launched beside {other.task}, a suspect")
        was_used = to in self._used
        self._used.add(to)
        if in_gang:
            return  # it needs the others, whatever it is suspected of
        ooms = self._ooms[where]
        if self._deaths[where] >= self._world.options.settings.max_kills or ooms >= _OOMS_MAX:
            if was_used or len(running) > 1:
                raise ViolationError("S15", f"task {attempt.task}, a suspect, is launched on {to}: not fresh")
            self._alone[to] = attempt
        if ooms >= _OOMS_MAX:
            for other_id, others in self._world.shadow.given():
                if other_id != to and others and self._world.executors[other_id].host == host:
                    raise ViolationError("MEM-1", f"task {attempt.task} has no host for itself: {other_id}")
            self._roomy[host] = attempt

    # --- Ends ---

    def ended(self, attempt: Tried, end: TaskEnd) -> None:
        if end.dirty:
            self._soiled.add(attempt.executor)
        where = attempt.stage, attempt.partition
        match end.reason:
            case UserError(condition="TASK_OUT_OF_MEMORY") if attempt.counts:
                self._ooms[where] += 1
            case Success():
                self._deaths.pop(where, None)
                self._ooms.pop(where, None)
            case _:
                pass

    def exited(self, message: ExecutorExited) -> None:
        self._exits[message.executor] = message

    def lost(self, executor: Incarnation, blame: str, left: list[Tried]) -> None:
        """It was given up; ``left``: what counted there until then."""
        exited = self._exits.get(executor)
        if exited is None or exited.running is None:
            return  # who had begun is not known
        if blame in ("task", "executor") and any(each.damaged for each in exited.touched):
            raise ViolationError("ST-10", f"{executor} has died reading a damaged segment: {blame} is blamed")
        adopted = {output.attempt for output in exited.outputs}
        for attempt in left:
            if attempt.task not in exited.running or attempt.task in adopted:
                continue
            where = attempt.stage, attempt.partition
            if exited.oom and blame == "executor":
                self._ooms[where] += 1
                self._world.shadow.failures[(*where, "memory")] += 1
            elif blame == "task":
                self._deaths[where] += 1
                if self._deaths[where] > self._world.options.settings.max_kills + 1:
                    raise ViolationError(
                        "S15", f"{self._deaths[where]} processes have ended under {where}, and it goes on"
                    )
