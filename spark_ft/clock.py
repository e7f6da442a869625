"""Time, in one place: cores are handed ``now_s`` and never ask."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only grow, comparable within one machine."""

    def now_s(self) -> float: ...


class BootClock:
    """CLOCK_BOOTTIME where there is one: it goes on while the machine is suspended.

    A lease must not survive a suspended laptop, which is why CLOCK_MONOTONIC, which
    stands still meanwhile, will not do.
    """

    _source = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now_s(self) -> float:
        return time.clock_gettime(self._source)


def wall_ms() -> int:
    """Milliseconds since the epoch, for people to read: no decision rests on them."""
    return time.time_ns() // 1_000_000


def thread_cpu_s(ident: int) -> float:
    """CPU seconds so far of one live thread of this process."""
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def local_time(t_ms: int | None) -> str:
    """A wall time as people write it where they are; empty for None."""
    if t_ms is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t_ms / 1000)) + f".{t_ms % 1000:03d}"


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    return time.process_time()


def perf_s() -> float:
    """A fine clock for measuring how long something took."""
    return time.perf_counter()
