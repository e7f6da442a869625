"""TaskContext: what a running task may know of itself.

The runner sets it for its thread before a task and clears it after.  A thread that user code
starts inside a task sees the task's context too, as long as only one task runs in the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from spark_ft.errors import PySparkRuntimeError

__all__ = ["BarrierTaskContext", "BarrierTaskInfo", "TaskContext"]

_running: dict[int, TaskContext] = {}  # by thread ident


@dataclass(frozen=True, slots=True)
class ResourceInformation:
    """Addresses of one kind of resource given to a task, e.g. GPU indices."""

    name: str
    addresses: list[str]


@dataclass(slots=True)
class _Facts:
    stage: int = 0
    partition: int = 0
    attempt: int = 0
    task: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 1
    cpu_amount: Decimal | None = None
    resources: Mapping[str, ResourceInformation] = field(default_factory=dict)
    key: str = ""


class TaskContext:
    """Facts about the running task; ``TaskContext.get()`` is None on the driver."""

    _facts: _Facts

    def __new__(cls, *facts: Any, **more: Any) -> TaskContext:
        """``TaskContext()`` in a task is the task's own object.

        The runner makes one from stage, partition, attempt (from 0), task, properties, cpus, ….
        """
        current = TaskContext.get()
        if current is not None and not facts and not more:
            return current
        made = super().__new__(cls)
        made._facts = _Facts(*facts, **more)
        return made

    @classmethod
    def get(cls) -> TaskContext | None:
        """The running task's context, or None outside a task."""
        if not _running:
            return None
        mine = _running.get(threading.get_ident())
        if mine is None and len(_running) == 1:
            mine = next(iter(_running.values()), None)
        return mine

    def stageId(self) -> int:
        return self._facts.stage

    def partitionId(self) -> int:
        return self._facts.partition

    def attemptNumber(self) -> int:
        """How often this task was tried before."""
        return self._facts.attempt

    def taskAttemptId(self) -> int:
        """Unique within the application."""
        return self._facts.task

    def idempotencyKey(self) -> str:
        """Names what this task does, and not this try at it: work/partition/generation, equal in every
        attempt, twin and recomputation, and another one once an input has come out different (TK-14).

        Tasks run at least once.  Who writes to the outside writes under this key, so that a second time
        replaces the first.
        """
        return self._facts.key

    def getLocalProperty(self, key: str) -> str | None:
        """A local property of the thread that submitted the job, or None."""
        return self._facts.properties.get(key)

    def cpus(self) -> int:
        """Cores that the task takes."""
        return self._facts.cpus

    def cpuAmount(self) -> Decimal:
        """Cores that the task takes, perhaps a fraction."""
        facts = self._facts
        return Decimal(facts.cpus) if facts.cpu_amount is None else facts.cpu_amount

    def resources(self) -> dict[str, ResourceInformation]:
        return dict(self._facts.resources)

    def _name(self, work: str, generation: int) -> None:
        """For the runner: what ``idempotencyKey`` is made of."""
        self._facts.key = f"{work}/{self._facts.partition}/{generation}"

    @staticmethod
    def _set(context: TaskContext | None) -> None:
        """For the runner: this thread runs the task that ``context`` tells of, or none any more."""
        if context is None:
            _running.pop(threading.get_ident(), None)
        else:
            _running[threading.get_ident()] = context


class BarrierTaskInfo:
    """Of one task of a barrier stage: the ``address`` of its executor, as host:number."""

    def __init__(self, address: str) -> None:
        self.address = address


class BarrierTaskContext(TaskContext):
    """The context of a task of a barrier stage: its peers, and meeting them."""

    _addresses: Sequence[str] = ()
    _meet: Callable[[int, str, str], list[str]] | None = None
    _round = 0  # calls so far

    @classmethod
    def get(cls) -> BarrierTaskContext:
        """The running task's context.  Raises PySparkRuntimeError (NOT_IN_BARRIER_STAGE) in any other task,
        and on the driver."""
        current = TaskContext.get()
        if not isinstance(current, BarrierTaskContext):
            raise PySparkRuntimeError(errorClass="NOT_IN_BARRIER_STAGE", messageParameters={})
        return current

    def barrier(self) -> None:
        """Wait until every task of the stage has called this as often.

        Raises SparkFtError (BARRIER_ABORTED) when that cannot be any more.
        """
        self._call("barrier", "")

    def allGather(self, message: str = "") -> list[str]:
        """Like ``barrier``; answers the messages of all tasks by partition."""
        if not isinstance(message, str):
            raise TypeError("Argument `message` must be of type `str`")
        return self._call("allGather", message)

    def getTaskInfos(self) -> list[BarrierTaskInfo]:
        """Of all tasks of the stage, by partition."""
        return [BarrierTaskInfo(address) for address in self._addresses]

    def _join(self, addresses: Sequence[str], meet: Callable[[int, str, str], list[str]]) -> None:
        """For the runner: who its peers are, and how it meets them."""
        self._addresses, self._meet = addresses, meet

    def _call(self, kind: str, message: str) -> list[str]:
        if self._meet is None:
            raise PySparkRuntimeError(
                errorClass="CALL_BEFORE_INITIALIZE",
                messageParameters={"func_name": kind, "object": "BarrierTaskContext"},
            )
        self._round += 1
        return self._meet(self._round, kind, message)
