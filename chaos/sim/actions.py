"""Actions of several jobs, as take() and zipWithIndex() are: all see one content of what they read (S6).

    take    a few partitions at a time, one job after the other, all of one scope
    index   one job counts, of a scope that stays open; the jobs over what it was made into rest on it

The thread that acts submits a job when the one before has ended well, and closes the scope in the end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from chaos.sim.driver import Handle
from chaos.sim.program import Provenance, joined
from spark_ft.ids import JobId, NodeId
from spark_ft.protocol.effects import Released

if TYPE_CHECKING:
    from chaos.sim.world import World


@dataclass
class Action:
    """One scope.  ``waiting``: partitions of the jobs to come."""

    scope: int
    target: NodeId
    program: int
    counts: bool  # only the first job is of the scope, the others rest on it
    waiting: list[tuple[int, ...]]
    seen: Provenance = field(default_factory=dict)  # what the answers so far were built from


class Actions:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._count = 0
        self._of_job: dict[JobId, Action] = {}

    def begin(self, target: NodeId, program: int, rng: Random) -> None:
        """Act upon ``target``: take some of its partitions, or count them and use them twice."""
        partitions = tuple(range(self._world.lineage.nodes[target].partition_count))
        if counts := rng.random() < 0.3:
            waiting = [partitions[:-1] or partitions, partitions, partitions]
        else:
            cuts = sorted({0, len(partitions), *(rng.randrange(len(partitions) + 1) for _ in range(2))})
            waiting = [partitions[low:high] for low, high in itertools.pairwise(cuts)]
        action = Action(self._count, target, program, counts, waiting)
        self._count += 1
        self._go_on(action, first=True)

    def _go_on(self, action: Action, first: bool = False) -> None:
        scope = action.scope if first or not action.counts else -1
        rests_on = (action.scope,) if scope < 0 else ()
        partitions = action.waiting.pop(0)
        handle = self._world.driver.submit(
            action.target, partitions, action.program, scope=scope, rests_on=rests_on
        )
        self._of_job[handle.job] = action

    def answered(self, handle: Handle) -> None:
        """A job's answer was read.  Raises when it is not of one piece with those it must agree with: all
        before it, or the one that counted."""
        action = self._of_job.get(handle.job)
        if action is None:
            return
        seen = action.seen
        for task in handle.results.values():
            seen = joined(seen, self._world.contents[task].provenance)
        if not action.counts or not action.seen:
            action.seen = seen

    def closed(self, handle: Handle) -> None:
        """A job is over: the next one, or the end of the action."""
        action = self._of_job.get(handle.job)
        if action is None:
            return
        well = handle.done and handle.failure is None and not handle.cancelled
        if well and action.waiting and action.program not in self._world.released_programs:
            self._go_on(action)
        else:
            self._world.driver.post(Released(scopes=(action.scope,)))
