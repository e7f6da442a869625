"""Whether the manager is there: said in the event log, and nothing else, for what runs does not need it.

    named ──> there ──its process ended, or silence──> lost (manager_lost) ──heard──> there (manager_back)
                                                            └──its successor answers──> there (manager_back)

One whose process has ended comes back no more: what is heard of it then was said before.

While it is lost nothing new is granted: executors that end are replaced by their workers (CM-1).
"""

from __future__ import annotations

from spark_ft.ids import Incarnation
from spark_ft.scheduler.turn import Turn


class Granter:
    """See the module."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._manager: Incarnation | None = None  # None: the driver grants by itself
        self._lost_s: float | None = None
        self._ended = False

    def named(self, manager: Incarnation | None) -> None:
        self._manager, self._ended = manager, False

    def lost(self, peer: Incarnation, why: str, ended: bool = False) -> None:
        if peer != self._manager:
            return
        self._ended = self._ended or ended
        if self._lost_s is None:
            self._lost_s = self._turn.now_s
            self._turn.note("manager_lost", manager=peer, why=why)

    def heard(self, peer: Incarnation) -> None:
        if peer == self._manager and not self._ended:
            self._back()

    def _back(self) -> None:
        if self._lost_s is not None:
            self._turn.note(
                "manager_back", manager=self._manager, after_s=round(self._turn.now_s - self._lost_s, 3)
            )
            self._lost_s = None
