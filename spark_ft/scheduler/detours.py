"""What is done about a read that was refused or timed out: another way round the link, while there is one.

  an output     the task is run on a host that reaches all its inputs; where there is none, what its own
                host cannot reach is relayed to one that it reaches (NET-8)
  a block       the task is tried on other hosts a few times

Invariant: a task takes so many detours and no more (L1); then what it cannot read counts as lost.
"""

from __future__ import annotations

from spark_ft.ids import HostId
from spark_ft.protocol.messages import MapStatus
from spark_ft.scheduler.copies import Copies
from spark_ft.scheduler.executors import Executors
from spark_ft.scheduler.links import Links
from spark_ft.scheduler.taskset import Attempt
from spark_ft.scheduler.turn import Turn

_DETOURS_MAX = 12  # of one task around links that are cut
_TRIES_ELSEWHERE = 3  # of a task that needs a cached block
_RELAY_S = 0.5  # until what is relayed is looked for


class Detours:
    """See the module."""

    def __init__(self, turn: Turn, executors: Executors, links: Links, copies: Copies) -> None:
        self._turn, self._executors, self._links, self._copies = turn, executors, links, copies

    def for_output(self, attempt: Attempt, output: MapStatus) -> float | None:
        """After how many seconds the task is to be tried again; None: there is no way, or none has helped."""
        host, stage, now_s = attempt.executor.host, attempt.stage, self._turn.now_s
        self._links.failed(host, output.host, now_s)
        trouble = attempt.task.troubled()
        if host == output.host or trouble.fetches >= _DETOURS_MAX:
            return None
        elsewhere = self._links.readers(stage, now_s)
        if not elsewhere and not self._copies.relay(self._links.out_of_reach(stage, host, now_s), host):
            return None
        trouble.fetches += 1
        self._turn.note("link_failed", reader=host, holder=output.host, elsewhere=elsewhere)
        return 0.0 if elsewhere else _RELAY_S

    def for_block(self, attempt: Attempt, holder: HostId) -> bool:
        """Whether the task is to be tried elsewhere before the block is given up."""
        host, trouble = attempt.executor.host, attempt.task.troubled()
        self._links.failed(host, holder, self._turn.now_s)
        trouble.fetches += 1
        return host != holder and self._executors.host_is_live(holder) and trouble.fetches < _TRIES_ELSEWHERE
