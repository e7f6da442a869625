"""barrier() and allGather() as a slot sees them: say so, wait until the driver lets it go on.

    slot: reach ──BarrierReached──> core ──BarrierSync──> driver
          wait  <──release──────── ReleaseBarrier <────── BarrierReleased

The interrupt of a killed task ends the wait in a process of one slot; where threads cannot be interrupted
the driver's error does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from spark_ft.errors import SparkFtError
from spark_ft.ids import TaskId
from spark_ft.protocol.effects import BarrierReached, ReleaseBarrier

_LOOK_S = 0.2  # between looks for a signal that came just before the wait


class Barriers:
    """The calls that tasks of this process wait in.  ``post`` hands an event to the core."""

    def __init__(self) -> None:
        self.post: Callable[[BarrierReached], None] | None = None
        self._changed = threading.Condition()
        self._released: dict[TaskId, ReleaseBarrier] = {}

    def release(self, effect: ReleaseBarrier) -> None:
        """By the I/O thread."""
        with self._changed:
            self._released[effect.task] = effect
            self._changed.notify_all()

    def meet(self, task: TaskId, number: int, kind: str, message: str) -> list[str]:
        """All members' messages by partition.  Raises SparkFtError (BARRIER_ABORTED)."""
        assert self.post is not None
        self.post(BarrierReached(task, number, kind, message))
        with self._changed:
            while (told := self._released.get(task)) is None or told.round != number:
                self._changed.wait(_LOOK_S)
            del self._released[task]
        if told.error:
            raise SparkFtError(f"{kind}() in a barrier stage was given up: {told.error}", "BARRIER_ABORTED")
        return list(told.messages)

    def forget(self, task: TaskId) -> None:
        """The task has ended."""
        with self._changed:
            self._released.pop(task, None)
