"""What the kernel says of processes, told apart by pid and start time: here it is read, and nothing done."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What the kernel says of a process."""

    parent: int
    group: int
    cpu_s: float  # user and system so far
    start: int  # clock ticks since boot: with the pid, an identity
    stopped: bool
    ended: bool  # and not reaped yet


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_stat(pid: int) -> ProcessStat | None:
    """None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            row = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    cpu_s = (int(row[11]) + int(row[12])) / _TICKS_PER_S
    state = row[0]
    return ProcessStat(int(row[1]), int(row[2]), cpu_s, int(row[19]), state in b"Tt", state in b"ZX")


class Pulse:
    """What a process does, as the kernel sees it: a number of seconds that grows while it computes, and
    while one of its threads stands in line for the GIL.

    Such a thread wakes 200 times a second to ask again.  So a process whose task sleeps in a C call that
    keeps the GIL, and which can therefore say nothing, is told from one that is stuck for good or is not
    heard for other reasons: those wake a few times a second, or never.
    """

    _WAKEUPS_PER_S = 100.0
    _WINDOW_S = 0.5

    def __init__(self, pid: int, now_s: float) -> None:
        self._pid = pid
        self._seen_s, self._wakeups = now_s, _wakeups(pid)
        self._waited_s = 0.0

    def busy_s(self, now_s: float) -> float:
        """The number as it is now.  To be asked for regularly."""
        elapsed_s = now_s - self._seen_s
        if elapsed_s >= self._WINDOW_S:
            before, self._seen_s, self._wakeups = self._wakeups, now_s, _wakeups(self._pid)
            if self._wakeups - before >= self._WAKEUPS_PER_S * elapsed_s:
                self._waited_s += elapsed_s
        stat = process_stat(self._pid)
        return (stat.cpu_s if stat else 0.0) + self._waited_s


def _wakeups(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    count = 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0
    for thread in threads:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/status", "rb") as file:
            text = file.read().partition(b"\nvoluntary_ctxt_switches:")[2]
            count += int(text.split(maxsplit=1)[0])
    return count


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process that may be met by somebody who is not its parent; ``start`` tells it from another that has
    got its number since."""

    name: str
    pid: int
    start: int
    driver: str  # whom it works for


def record_self(path: Path, driver: str) -> None:
    """Write down this process, under the name of the file, before it does anything else."""
    stat = process_stat(os.getpid())
    if stat is not None:
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{os.getpid()} {stat.start} {driver}")
        fresh.rename(path)


def recorded(directory: Path) -> list[Recorded]:
    """The recorded processes that still are what was recorded."""
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        try:
            pid, start, driver = path.read_text().split()
            entry = Recorded(path.name, int(pid), int(start), driver)
        except (OSError, ValueError):
            continue  # being removed, or not a record
        stat = process_stat(entry.pid)
        if stat is not None and stat.start == entry.start and not stat.ended:
            found.append(entry)
    return found
