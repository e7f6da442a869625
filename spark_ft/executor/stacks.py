"""Where the threads of an executor stand, written down on demand of its worker.

    worker ── STACKS_SIGNAL ──> executor: faulthandler's handler, in C ──> a file ──> worker

The handler writes though a thread holds the GIL, computes or sleeps in C; only a stopped process is deaf.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spark_ft.clock import BootClock

STACKS_SIGNAL = signal.SIGRTMIN + 7  # of all signals one that user code hardly uses
_WAIT_S, _POLL_S, _BYTES_MAX = 1.0, 0.02, 16 << 10
_open: list[Any] = []  # the handler writes to the file's descriptor for as long as the process lives


def stacks_path(ready: Path) -> Path:
    """Where an executor writes them: beside the file by which it says that it is ready."""
    return ready.with_suffix(".stacks")


def answer_requests(path: Path) -> None:
    """In the executor: from now on ``ask`` finds in this file where our threads stand."""
    file = path.open("ab")
    _open.append(file)
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)


def ask(pid: int, path: Path, answer: Callable[[str], None]) -> None:
    """In its parent: have the child write, and call ``answer`` from another thread with what it wrote: ''
    when it is deaf.  ``pid`` is a child that has not been reaped."""
    if pid <= 0 or not _catches(pid):
        answer("")
        return
    with contextlib.suppress(OSError):
        os.truncate(path, 0)
    os.kill(pid, STACKS_SIGNAL)
    threading.Thread(target=lambda: answer(_read(path)), name="stacks", daemon=True).start()


def _catches(pid: int) -> bool:
    """Whether the process has a handler for the signal: to one that has not it would be deadly."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            mask = int(file.read().partition(b"\nSigCgt:")[2].split(maxsplit=1)[0], 16)
    except (OSError, IndexError, ValueError):
        return False
    return bool(mask >> (STACKS_SIGNAL - 1) & 1)


def _read(path: Path) -> str:
    """What the handler has written, once it writes no more."""
    clock, seen, never = BootClock(), b"", threading.Event()
    until_s = clock.now_s() + _WAIT_S
    while clock.now_s() < until_s:
        never.wait(_POLL_S)
        try:
            data = path.read_bytes()
        except OSError:
            return ""
        if data and data == seen:
            break
        seen = data
    return seen[:_BYTES_MAX].decode(errors="replace")
