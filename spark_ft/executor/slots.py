"""The threads that run tasks: one slot is the main thread itself, more are threads of their own.

          I/O thread                              slot
    RunTask ──put──> queue ──────────────────────> run(RunTask) ──SlotEnded(end, started)──> core
    InterruptTask ──┬─ still queued: out of it, SlotEnded(Killed)
                    └─ running: SIGINT to the main thread ──handler──> TaskKilled in the task
                                                     hard: SIGKILL to the process

What holds:
  * Whether an attempt waits or runs is decided under one lock, so an interrupt finds it in exactly
    one of the two, and each attempt that was put ends exactly once.
  * Nothing is begun without the lease: it is looked at in the very moment in which an attempt leaves the
    queue, so that a process that stood still does not go on with what others have by now (CLK-3).
  * A SIGINT that arrives late breaks nothing: the handler runs in the main thread, which alone says
    what it runs, and compares that with whom the signal was meant for.
  * A signal that falls between the interpreter's last look and a blocking system call is noticed only
    when that call returns.  So interrupts come several times, and the handler acts on the first
    that it sees: user code's own cleaning up is not broken off by the next.
  * With several slots there is no way to break one thread off; an interrupt then waits for the hard
    one, which takes the process and all its slots (docs: isolation is the process's).
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from spark_ft import interrupts
from spark_ft.ids import TaskId
from spark_ft.protocol.effects import RunTask, SlotEnded, SlotStarted
from spark_ft.protocol.messages import Killed, TaskEnd, UserError

Marks = memoryview | list[int]  # one entry a slot
NOTHING = -1  # the mark of a slot that runs nothing


def marks_path(ready: Path) -> Path:
    """Where an executor's marks are: beside the file by which it says that it is ready."""
    return ready.with_suffix(".marks")


def touched_path(ready: Path) -> Path:
    """Where an executor tells which segments it is in the middle of (storage/touched.py)."""
    return ready.with_suffix(".touched")


def open_marks(path: Path, count: int) -> Marks:
    """A file that always says which attempt each slot runs, whatever becomes of the process; and in its
    last entry which beat was sent last.

    What a process is doing when it dies is the one thing it cannot send any more: word of an attempt's
    start may still be in its hands.  So it is written to a shared mapping first, for a fraction of a
    microsecond, and the worker reads it after the death: nobody innocent is blamed.
    """
    path.write_bytes(struct.pack("q", NOTHING) * count + struct.pack("q", 0))
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * (count + 1))).cast("q")


def read_marks(path: Path) -> tuple[TaskId, ...] | None:
    """The attempts that a dead executor was running; None when it never got so far as to say."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return tuple(TaskId(task) for (task,) in struct.iter_unpack("q", data[:-8]) if task != NOTHING)


def read_beat(path: Path) -> int:
    """The last beat that an executor has sent, as far as its marks tell."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    return int.from_bytes(data[-8:], sys.byteorder)


class Runner(Protocol):
    """What runs one attempt to its end (executor/task.py)."""

    def run(self, run: RunTask) -> TaskEnd: ...


class Slots:
    """``count`` slots that share one queue.  ``post`` hands an event to the core, from any thread;
    ``marks`` has one entry a slot and always holds what it runs; ``now_s`` is the core's clock."""

    def __init__(
        self,
        runner: Runner,
        post: Callable[[SlotStarted | SlotEnded], None],
        count: int = 1,
        marks: Marks | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._marks: Any = [NOTHING] * count if marks is None else marks
        self._runner = runner
        self._post = post
        self._count = count
        self._changed = threading.Condition()
        self._queue: deque[RunTask] = deque()
        self._running: dict[TaskId, int] = {}  # the thread that runs it
        self._closed = False
        self._dirty = False
        self._now_s = now_s
        self._lease_end_s = inf  # nobody has said anything of a lease
        self._current: TaskId | None = None  # of the main thread, which alone writes it
        self._doomed: TaskId | None = None  # whom the last soft interrupt was meant for
        self._struck: TaskId | None = None  # who has felt it; main thread only
        self._main: int = 0

    # --- I/O thread ---

    def put(self, run: RunTask) -> None:
        with self._changed:
            self._queue.append(run)
            self._changed.notify()

    def interrupt(self, task: TaskId, hard: bool = False, queued_only: bool = False) -> None:
        """See the effect InterruptTask.  An attempt that has ended meanwhile is left in peace."""
        with self._changed:
            for run in self._queue:
                if _task(run) == task:
                    self._queue.remove(run)
                    self._post(SlotEnded(TaskEnd(task, Killed("killed before it began"))))
                    return
            if queued_only or task not in self._running:
                return
            if hard:
                os.kill(os.getpid(), signal.SIGKILL)
            elif self._count == 1:
                self._doomed = task
                signal.pthread_kill(self._main, signal.SIGINT)

    def lease(self, until_s: float) -> None:
        """See the effect Leased."""
        with self._changed:
            self._lease_end_s = until_s
            self._changed.notify_all()

    def running(self) -> dict[TaskId, int]:
        """What runs now, and in which thread."""
        with self._changed:
            return dict(self._running)

    def close(self) -> None:
        """Let ``serve`` return once the running attempts have ended; what waits is forgotten."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    # --- Slots ---

    def serve(self) -> None:
        """Run attempts until ``close``.  To be called by the main thread."""
        self._main = threading.get_ident()
        if self._count == 1:
            self.take_interrupts()
            self._slot(0)
            return
        threads = [
            threading.Thread(target=self._slot, args=(i,), name=f"slot-{i}") for i in range(self._count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def take_interrupts(self) -> None:
        """SIGINT breaks the running task off; to be called by the main thread."""
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._current is not None and self._current == self._doomed != self._struck:
            self._struck = self._current
            interrupts.deliver()

    def _slot(self, slot: int) -> None:
        run = self._wait(slot)
        while run is not None:
            end = self._run(run)
            run = self._hand_over(slot, end) or self._wait(slot)

    def _wait(self, slot: int) -> RunTask | None:
        with self._changed:
            while not self._closed and not self._may_begin():
                self._changed.wait()
            if self._closed:
                return None
            run = self._take(slot)
            self._post(SlotStarted(_task(run)))
            return run

    def _hand_over(self, slot: int, end: TaskEnd) -> RunTask | None:
        """End one attempt and begin the next in one word, when there is a next."""
        with self._changed:
            self._running.pop(end.task, None)
            self._marks[slot] = NOTHING
            self._dirty = self._dirty or bool(end.dirty)  # nothing more begins: we are to be replaced
            run = self._take(slot) if self._may_begin() else None
            self._post(SlotEnded(end, None if run is None else _task(run)))
            return run

    def _may_begin(self) -> bool:
        return bool(self._queue) and not self._dirty and self._now_s() < self._lease_end_s

    def _take(self, slot: int) -> RunTask:
        run = self._queue.popleft()
        self._marks[slot] = _task(run)
        self._running[_task(run)] = threading.get_ident()
        return run

    def _run(self, run: RunTask) -> TaskEnd:
        task = _task(run)
        single = self._count == 1
        try:
            try:
                with interrupts.armed():
                    if single:
                        self._current = task
                        if self._doomed == task:  # its SIGINT came before it was armed
                            self._struck = task
                            raise interrupts.TaskKilled
                    return self._runner.run(run)
            finally:
                if single:
                    self._current = None
        except interrupts.TaskKilled:
            return TaskEnd(task, Killed("interrupted"))
        except BaseException as error:
            # The runner answers for user code; what still gets here (MemoryError while it wrote its
            # answer, a bug of ours) ends this attempt and must not end the slot.
            return TaskEnd(task, _internal(error))


def _internal(error: BaseException) -> UserError:
    """Memory that runs out is told as what it is, wherever it does (MEM-6)."""
    condition = "TASK_OUT_OF_MEMORY" if isinstance(error, MemoryError) else "TASK_FAILED"
    return UserError(type(error).__name__, str(error), traceback.format_exc(), condition)


def _task(run: RunTask) -> TaskId:
    return run.launch.tasks[run.index].task
