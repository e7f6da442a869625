"""Control groups of this machine, version 1 or 2, as far as a fault needs one: a limit on some processes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Cgroup:
    """A group of its own for ``cpu`` or ``memory``; ``make`` answers None where we may not have one."""

    def __init__(self, controller: str, path: Path, version: int) -> None:
        self.controller, self.path, self.version = controller, path, version
        self._home: dict[int, Path] = {}

    @classmethod
    def make(cls, controller: str, name: str) -> Cgroup | None:
        """Groups that this process made before under this name are used again."""
        name = f"spark-ft-chaos-{os.getpid()}-{name}"
        for base, version in ((ROOT / controller, 1), (ROOT, 2)):
            with contextlib.suppress(OSError):
                if version == 2 and controller not in (base / "cgroup.controllers").read_text().split():
                    continue
                if not (base / "cgroup.procs").exists():
                    continue
                if version == 2:
                    (base / "cgroup.subtree_control").write_text(f"+{controller}")
                (base / name).mkdir(exist_ok=True)
                return cls(controller, base / name, version)
        return None

    def take(self, pid: int) -> None:
        """The process, with all its threads, belongs here from now on."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def limit_cpu(self, share: float) -> None:
        """Of one processor, for all members together."""
        period_us = 100_000
        quota_us = max(1000, int(share * period_us))
        if self.version == 2:
            (self.path / "cpu.max").write_text(f"{quota_us} {period_us}")
        else:
            (self.path / "cpu.cfs_period_us").write_text(str(period_us))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota_us))

    def throttled_count(self) -> int:
        """In how many periods the members had to wait."""
        return self._stat("cpu.stat", "nr_throttled")

    def limit_memory(self, size_bytes: int) -> None:
        """Of what members are charged for while they are here; what a process had before counts in version 1
        where it was.  Beyond it the kernel kills."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        (self.path / name).write_text(str(size_bytes))

    def oom_kills(self) -> int:
        """How many members the kernel has killed for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return self._stat(name, "oom_kill")

    def _stat(self, file: str, key: str) -> int:
        with contextlib.suppress(OSError):
            for line in (self.path / file).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
        return 0

    def close(self) -> None:
        """Members go back to the root group; the group is removed."""
        root = ROOT if self.version == 2 else ROOT / self.controller
        for _ in range(50):
            with contextlib.suppress(OSError):
                for pid in (self.path / "cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):
                        (root / "cgroup.procs").write_text(pid)
                self.path.rmdir()
                return
            time.sleep(0.02)  # a member is being reaped
