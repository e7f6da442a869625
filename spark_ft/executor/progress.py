"""How far running tasks are, asked once a heartbeat from outside: the tasks themselves pay nothing for it.

    records   read from shuffles: the task's own count
    bytes     that its thread read from and wrote to files, as the kernel counts them
    CPU       of a single slot: all that this process used, less what the engine's own threads did, and of
              its children; of several slots: the slot's thread

A task without any of these for long is stalled (scheduler/stalls.py): blocked on a lock, or on a socket
that nobody writes to.  One that computes, in whatever thread or child, is not.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping

from spark_ft.clock import cpu_s, thread_cpu_s
from spark_ft.ids import TaskId
from spark_ft.protocol.messages import TaskProgress

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Meter:
    """To be made when the engine's threads run and no task has begun; ``slots``: threads that run tasks."""

    def __init__(self, slots: int) -> None:
        self._single = slots == 1
        self._engine = {int(thread) for thread in os.listdir("/proc/self/task")} - {os.getpid()}

    def read(
        self, running: Mapping[TaskId, int], records: Callable[[TaskId], int]
    ) -> tuple[TaskProgress, ...]:
        """What to tell of each running task; ``running`` has its thread."""
        threads = {thread.ident: thread.native_id for thread in threading.enumerate()}
        threads[threading.main_thread().ident] = os.getpid()  # what it knows itself is from before the fork
        return tuple(
            TaskProgress(task, records(task), _bytes_of(threads.get(ident)), self._cpu_s(ident))
            for task, ident in running.items()
        )

    def _cpu_s(self, ident: int) -> float:
        if not self._single:
            with contextlib.suppress(OSError):
                return thread_cpu_s(ident)
            return 0.0
        me = threading.get_native_id()  # what the kernel has written down of a thread that runs is old
        others_s = sum(_thread_cpu_s(thread) for thread in self._engine if thread != me)
        children_s = _children_cpu_s() if _has_children() else 0.0
        return cpu_s() - others_s - thread_cpu_s(threading.get_ident()) + children_s


def _thread_cpu_s(thread: int) -> float:
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
            return int(file.read().split(maxsplit=1)[0]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _bytes_of(thread: int | None) -> int:
    try:
        with open(f"/proc/self/task/{thread}/io", "rb") as file:
            fields = file.read().split()
        return int(fields[1]) + int(fields[3])  # rchar, wchar
    except (OSError, IndexError, ValueError):
        return 0


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children_cpu_s() -> float:
    """CPU seconds of everything that user code has started and that is in our session."""
    session, ticks = os.getsid(0), 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
            row = file.read().rpartition(b")")[2].split()
            if int(row[3]) == session:
                ticks += int(row[11]) + int(row[12])
    return ticks / _TICKS_PER_S
