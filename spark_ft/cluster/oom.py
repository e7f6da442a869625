"""Whether the kernel has killed for want of memory: a SIGKILL alone does not say who sent it.

Two counters tell: that of the machine (``/proc/vmstat``), which grows with every kill by the OOM killer,
and that of our own cgroup, which may be all that a container shows.  A child that ends by SIGKILL while one
of them has grown is taken for its victim; each growth accounts for as many ends as it counted kills.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_MACHINE = Path("/proc/vmstat")
_CGROUPS = Path("/sys/fs/cgroup")


class OomCounters:
    """``told_of_a_kill`` is to be asked at every end of a child."""

    def __init__(self, files: Iterable[Path] | None = None) -> None:
        self._files = list(_own_files() if files is None else files)
        self._seen = {path: _kills(path) for path in self._files}
        self._pending = 0  # kills that were counted and that no end has been put down to yet

    def told_of_a_kill(self) -> bool:
        """Whether the kernel has killed somebody since, whose end has not been told yet."""
        grown = 0
        for path in self._files:
            count = _kills(path)
            grown = max(grown, count - self._seen[path])
            self._seen[path] = count
        self._pending += grown
        if not self._pending:
            return False
        self._pending -= 1
        return True


def _own_files() -> Iterable[Path]:
    """Files that count kills, of the machine and of the cgroup that we are in (version 2, and 1)."""
    yield _MACHINE
    try:
        rows = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for row in rows:
        _, controllers, path = row.split(":", 2)
        if not controllers:
            yield _CGROUPS / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield _CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control"


def _kills(path: Path) -> int:
    try:
        words = path.read_text().split()
    except OSError:
        return 0
    return next((int(words[i + 1]) for i, word in enumerate(words) if word == "oom_kill"), 0)
