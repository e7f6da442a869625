"""Jobs that must see one content of what they read: those of one action, and those over what was counted.

    take, toLocalIterator …   several jobs, one answer: each is *of* the action's scope
    zipWithIndex              a job counts; every later job over the result *rests on* that job's scope

A job of a scope leaves there, when it ends, what its results were built from: also a job that fails, for a
checkpoint goes on from what a failed try has answered.  The engine has let go of these results and cannot
take them back.  When some of that data is replaced or rolled back, the scope is spoilt: no job of it, nor
any that rests on it, ends well any more (INDETERMINATE_OUTPUT_ROLLBACK).  Checksums of what is unpersisted
meanwhile are forgotten elsewhere; a scope keeps them, should it be persisted again.

Invariants
  * a live job is of no spoilt scope, and rests on none, between two turns (S6 for several jobs).
  * scopes are closed by whoever opened them; what they hold is bounded by the lineage, not by their jobs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from spark_ft.ids import NodeId, ShuffleId
from spark_ft.protocol.effects import JobFailure
from spark_ft.protocol.messages import CachedBlock
from spark_ft.scheduler.cached import Key, rests_on
from spark_ft.scheduler.stage import StageTree

if TYPE_CHECKING:
    from spark_ft.scheduler.dag import Job

_SPOILT = (
    "data that an earlier job of the same action was answered from was lost and came out different when it "
    "was computed again. Make the functions before the shuffle deterministic, or persist or checkpoint their "
    "result; then call the action again"
)


class _Scope:
    __slots__ = ("checksums", "delivered", "sources", "spoilt", "trees")

    def __init__(self) -> None:
        self.sources: set[ShuffleId] = set()  # what results were built from
        self.trees: dict[NodeId, StageTree] = {}  # target -> what its tasks go through
        self.delivered: dict[NodeId, set[int]] = {}  # target -> its partitions that were handed out
        self.checksums: dict[Key, int] = {}  # of what was unpersisted since
        self.spoilt = False


class Scopes:
    """See the module."""

    def __init__(self) -> None:
        self._open: dict[int, _Scope] = {}
        self.spoilt = False  # since this was last set to False: some scope was spoilt

    def begin(self, job: Job) -> None:
        if job.scope >= 0:
            self._open.setdefault(job.scope, _Scope())

    def close(self, scopes: Iterable[int]) -> None:
        for id in scopes:
            self._open.pop(id, None)

    def ended(self, job: Job) -> None:
        scope = self._open.get(job.scope)
        if scope is not None and job.delivered:
            target = job.shape.target
            scope.sources.update(job.sources)
            scope.trees[target] = job.result.tree
            scope.delivered.setdefault(target, set()).update(job.delivered)

    def changed(self, shuffles: Container[ShuffleId]) -> None:
        """The outputs of these are others now."""
        for scope in self._unspoilt():
            if any(shuffle in shuffles for shuffle in scope.sources):
                self._spoil(scope)

    def changed_partition(self, key: Key) -> None:
        """A persisted partition is another one now."""
        for scope in self._unspoilt():
            for target, tree in scope.trees.items():
                if any(rests_on(tree, partition, key) for partition in scope.delivered[target]):
                    self._spoil(scope)
                    break

    def forgotten(self, checksums: Mapping[Key, int]) -> None:
        """These persisted partitions are about to be dropped for good, and their checksums forgotten."""
        for scope in self._unspoilt():
            for target, tree in scope.trees.items():
                for key, checksum in checksums.items():
                    if any(rests_on(tree, partition, key) for partition in scope.delivered[target]):
                        scope.checksums.setdefault(key, checksum)

    def persisted_anew(self, block: CachedBlock) -> None:
        """A partition of which nobody else knows what it was."""
        key = block.node, block.partition
        for scope in self._unspoilt():
            known = scope.checksums.get(key)
            if known is not None and block.checksum and (known < 0 or known != block.checksum):
                self._spoil(scope)

    def _unspoilt(self) -> Iterator[_Scope]:
        return (scope for scope in self._open.values() if not scope.spoilt)

    def _spoil(self, scope: _Scope) -> None:
        scope.spoilt = self.spoilt = True

    def refusal(self, job: Job) -> JobFailure | None:
        """Why this job cannot be answered."""
        for id in (job.scope, *job.rests_on):
            scope = self._open.get(id)
            if scope is not None and scope.spoilt:
                return JobFailure("INDETERMINATE_OUTPUT_ROLLBACK", _SPOILT, job.result.id)
        return None

    def is_idle(self) -> bool:
        return not self._open
