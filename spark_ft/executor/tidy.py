"""What a task leaves behind is gone before the next one begins (TK-7).

    child processes                              killed
    working directory, environment, handlers     put back
    threads that go on                           cannot be ended: the process is replaced

Looked at after each task of a process that runs one at a time; what is found clean costs a few microseconds.
Threads and children are told from the engine's own; a thread that is about to end is waited for a moment.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.getsignal makes an enum of each answer: 10 us
import contextlib
import os
import signal
import threading
from typing import Any

from spark_ft.settings import restore_environment, snapshot_environment

_HANDLERS = (
    _signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGALRM, _signal.SIGCHLD, _signal.SIGUSR1,
    _signal.SIGUSR2, _signal.SIGPIPE, _signal.SIGQUIT,
)  # fmt: skip
# The last two: of fsspec, one for all its stores, and the pool that resolves names for it.
_ENGINE_THREADS = ("executor-", "slot-", "words", "MainThread", "fsspecIO", "asyncio_")
_ENDING_S = 0.1  # that a thread may take to end by itself


class Tidy:
    """Remembers how the process is before its first task, and brings it back to that."""

    def __init__(self) -> None:
        self._directory = os.getcwd()
        self._environment = snapshot_environment()
        self._handlers = self._read_handlers()
        self._threads = threading.active_count()
        self._known = {thread.ident for thread in threading.enumerate()}

    def up(self) -> str:
        """Take away and put back what the last task has left; answers what could not be."""
        if _has_children():
            _end_children()
        try:
            moved = os.getcwd() != self._directory
        except OSError:  # the directory is gone
            moved = True
        if moved:
            with contextlib.suppress(OSError):
                os.chdir(self._directory)
        restore_environment(self._environment)
        handlers = self._read_handlers()
        if handlers != self._handlers:
            for number, now, before in zip(_HANDLERS, handlers, self._handlers, strict=True):
                if now != before and before is not None:
                    signal.signal(number, before)
        if threading.active_count() <= self._threads:
            return ""
        left = self._threads_left()
        self._threads = max(self._threads, threading.active_count() - len(left))
        return f"{len(left)} thread(s): {', '.join(left[:5])}" if left else ""

    def _threads_left(self) -> list[str]:
        left = []
        for thread in threading.enumerate():
            if thread.ident in self._known or thread.name.startswith(_ENGINE_THREADS):
                continue
            thread.join(_ENDING_S)
            if thread.is_alive():
                left.append(thread.name)
        return left

    @staticmethod
    def _read_handlers() -> list[Any]:
        return [_signal.getsignal(number) for number in _HANDLERS]


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _end_children() -> None:
    """SIGKILL to whatever is in our session or is our own child, and take the ends of the latter."""
    me, session = os.getpid(), os.getsid(0)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
            row = file.read().rpartition(b")")[2].split()
            if row[0] != b"Z" and (int(row[1]) == me or int(row[3]) == session):
                os.kill(int(name), signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass
