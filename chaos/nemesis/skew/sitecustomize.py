"""Loaded by every interpreter that has this directory on its path: makes its wall clock lie.

The directory named by SPARK_FT_CHAOS_SKEW holds ``all`` and files named by pid, each with the seconds by
which clocks are wrong; a process's own file counts more.  They are looked at every tenth of a second of real
time.  ``seen-<pid>`` says which skew a process has applied when it last asked for the time.

``time.monotonic``, CLOCK_MONOTONIC and CLOCK_BOOTTIME are left alone.
"""

import os
import time

_LOOK_S = 0.1


class _Liar:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.looked_s = -1.0
        self.pid = 0
        self.skew_s = 0.0
        self.true_time, self.true_time_ns = time.time, time.time_ns
        self.true_gettime, self.true_gettime_ns = time.clock_gettime, time.clock_gettime_ns

    def skew(self) -> float:
        now_s, pid = time.monotonic(), os.getpid()
        if pid != self.pid or now_s - self.looked_s > _LOOK_S:
            self.pid, self.looked_s = pid, now_s
            before, self.skew_s = self.skew_s, self.read(str(pid), self.read("all", 0.0))
            if before != self.skew_s:
                try:
                    with open(f"{self.directory}/seen-{pid}", "w") as file:
                        file.write(repr(self.skew_s))
                except OSError:
                    self.skew_s = 0.0  # the directory is gone: the lying is over
        return self.skew_s

    def read(self, name: str, otherwise: float) -> float:
        try:
            with open(f"{self.directory}/{name}") as file:
                return float(file.read())
        except (OSError, ValueError):
            return otherwise

    def time(self) -> float:
        return self.true_time() + self.skew()

    def time_ns(self) -> int:
        return self.true_time_ns() + int(self.skew() * 1e9)

    def clock_gettime(self, clock: int) -> float:
        return self.true_gettime(clock) + (self.skew() if clock == time.CLOCK_REALTIME else 0.0)

    def clock_gettime_ns(self, clock: int) -> int:
        lie = int(self.skew() * 1e9) if clock == time.CLOCK_REALTIME else 0
        return self.true_gettime_ns(clock) + lie


if os.environ.get("SPARK_FT_CHAOS_SKEW"):
    _liar = _Liar(os.environ["SPARK_FT_CHAOS_SKEW"])
    time.time, time.time_ns = _liar.time, _liar.time_ns
    time.clock_gettime, time.clock_gettime_ns = _liar.clock_gettime, _liar.clock_gettime_ns
