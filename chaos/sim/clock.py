"""Virtual time: a heap of what happens when.  Ties are broken by the order in which things were planned."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Happening = tuple[float, int, Callable[[Any], None], Any]


class Clock:
    """``now_s`` never goes back."""

    __slots__ = ("_count", "_heap", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._count = 0
        self._heap: list[Happening] = []

    def at(self, when_s: float, what: Callable[[Any], None], about: Any = None) -> None:
        """Call ``what(about)`` at ``when_s``, or now if that has passed."""
        self._count += 1
        now_s = self.now_s
        heappush(self._heap, (when_s if when_s > now_s else now_s, self._count, what, about))

    def after(self, delay_s: float, what: Callable[[Any], None], about: Any = None) -> None:
        self._count += 1
        heappush(self._heap, (self.now_s + delay_s, self._count, what, about))

    def run(self, until_s: float) -> bool:
        """The next thing happens; false when there is none up to ``until_s``, which is then now."""
        if not self._heap or self._heap[0][0] > until_s:
            self.now_s = max(self.now_s, until_s)
            return False
        self.now_s, _, what, about = heappop(self._heap)
        what(about)
        return True


def cpu_s() -> float:
    """CPU seconds of this process so far: what a simulation costs, whatever else the machine does."""
    return time.process_time()
