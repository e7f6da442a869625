"""Links between hosts that failed of late: blame the link, not the host at either end (NET-8).

A read that was refused or timed out says that this reader's host cannot reach that holder's host now.
It says nothing of the holder: others may reach it, and nothing that lies there is given up while anybody
does.  A link counts as cut for some seconds after its last failure; then it is tried again.

Invariants
  * a link is cut only by a failed read over it, and for a time (S31); no host is cut off from itself.
"""

from __future__ import annotations

from spark_ft.ids import HostId, ShuffleId, StageId
from spark_ft.scheduler.executors import Executors
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.stage import Stage

_CUT_S = 20.0  # until a link that failed is tried again
Stamp = tuple[tuple[int, ...], tuple[float, ...], int]  # versions, ends of cuts, second


class Links:
    """See the module."""

    def __init__(self, executors: Executors, outputs: MapOutputTracker) -> None:
        self._executors, self._outputs = executors, outputs
        self._cut: dict[tuple[HostId, HostId], float] = {}  # (reader, holder) -> until when
        self._known: dict[tuple[StageId, HostId], tuple[Stamp, bool]] = {}

    def __bool__(self) -> bool:
        return bool(self._cut)

    def failed(self, reader: HostId, holder: HostId, now_s: float) -> None:
        """A read over this link was refused or timed out."""
        if reader != holder:
            self._cut[(reader, holder)] = now_s + _CUT_S

    def is_cut(self, reader: HostId, holder: HostId, now_s: float) -> bool:
        return self._cut.get((reader, holder), 0.0) > now_s

    def forget_host(self, host: HostId) -> None:
        for link in [link for link in self._cut if host in link]:
            del self._cut[link]

    def sweep(self, now_s: float) -> None:
        """Links that are to be tried again, and answers that hold no more: with the last link go all."""
        for link in [link for link, until_s in self._cut.items() if until_s <= now_s]:
            del self._cut[link]
        if not self._cut:
            self._known.clear()
        for key in [key for key, (stamp, _) in self._known.items() if stamp[2] < int(now_s)]:
            del self._known[key]

    def readers(self, stage: Stage, now_s: float) -> list[HostId]:
        """Hosts with executors that can read all that this stage reads, as far as is known."""
        return [host for host in self._executors.on_host if self.can_read(stage, host, now_s)]

    def can_read(self, stage: Stage, host: HostId, now_s: float) -> bool:
        """Linear in the outputs that the stage reads, once for each change of them or of the links."""
        versions = tuple(self._outputs[shuffle].version for shuffle in stage.tree.parents)
        stamp: Stamp = (versions, tuple(self._cut.values()), int(now_s))
        known = self._known.get((stage.id, host))
        if known is None or known[0] != stamp:
            known = self._known[(stage.id, host)] = stamp, not self.out_of_reach(stage, host, now_s)
        return known[1]

    def out_of_reach(self, stage: Stage, host: HostId, now_s: float) -> list[tuple[ShuffleId, int]]:
        """What this stage reads that this host cannot, at none of its places: (shuffle, map index)."""
        return [
            (shuffle, index)
            for shuffle in stage.tree.parents
            for index in range(self._outputs[shuffle].map_count)
            if (places := self._outputs[shuffle].locations(index))
            and all(self.is_cut(host, place.host, now_s) for place in places)
        ]
