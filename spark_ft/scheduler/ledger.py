"""What the scheduler has written down for the driver's next life: effects that wait for their records.

    a result is delivered        kept, with a digest of what it was built from
    a job with an identity ends  ActionFinished, or ActionCancelled ──guards──> FinishJob
    a generation begins          GenerationBegun ──guards──> all that this turn and later ones do
    data is dropped              Dropped ──guards──> the words that drop it

An application without an id has no ledger: then nothing here makes an effect of its own.

Invariant: of a kind that is journalled no effect leaves without its record (S24).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from spark_ft.ids import Fingerprint
from spark_ft.protocol.digests import UNKNOWN
from spark_ft.protocol.effects import Effect, FinishJob, JobFailure, Journal
from spark_ft.protocol.journal import ActionCancelled, ActionFinished, Dropped, GenerationBegun, Updates
from spark_ft.protocol.messages import InlineResult, StoredResult
from spark_ft.scheduler.map_outputs import MapOutputTracker, ShuffleOutputs
from spark_ft.scheduler.stage import StageTree
from spark_ft.scheduler.turn import Turn

if TYPE_CHECKING:
    from spark_ft.scheduler.dag import Job


class Ledger:
    """See the module.  ``is_on``: there is a journal."""

    def __init__(self, turn: Turn, outputs: MapOutputTracker, is_on: bool) -> None:
        self._turn, self._outputs, self.is_on = turn, outputs, is_on

    def digest(self, tree: StageTree) -> int:
        """Of what a task of this stage reads now.  What is persisted may have been built from other data:
        nobody can tell."""
        return UNKNOWN if tree.persisted else self._outputs.digest(tree.parents)

    def delivered(
        self, job: Job, partition: int, result: InlineResult | StoredResult, updates: Updates
    ) -> None:
        """A result is in the driver's hands."""
        if job.action:
            rows = self._turn.kept.setdefault(job.action, [])
            rows.append((partition, self.digest(job.result.tree), result, updates))

    def merged(self, job: Job, outputs: ShuffleOutputs, map_index: int, updates: Updates) -> None:
        """Accumulator updates of a map task are handed out while this job runs."""
        if job.action:
            job.map_updates.append((outputs.fingerprint, map_index, updates))

    def finished(self, job: Job, failure: JobFailure | None) -> None:
        """The one end of a job is told to its caller."""
        end = FinishJob(job.id, failure)
        if job.action and failure is None and not job.is_answered:
            sources = tuple(
                (outputs.fingerprint, outputs.generation, outputs.digest())
                for outputs in map(self._outputs.__getitem__, job.sources)
            )
            finished = ActionFinished(
                job.action, job.name, len(job.partitions), tuple(job.map_updates), sources
            )
            self._turn.out.append(Journal((finished,), (end,)))
        elif job.action and failure is not None and failure.condition == "JOB_CANCELLED":
            self._turn.out.append(Journal((ActionCancelled(job.action, failure.text),), (end,)))
        else:
            self._turn.out.append(end)

    def generation_begun(self, outputs: ShuffleOutputs) -> None:
        """Nothing of the new generation leaves before that is written."""
        if self.is_on:
            self._turn.records.append(GenerationBegun(outputs.fingerprint, outputs.generation))

    def dropped(self, fingerprints: Iterable[Fingerprint], words: list[Effect]) -> None:
        """``words`` tell others to delete the data of these."""
        names = tuple(fingerprints)
        if self.is_on and names:
            self._turn.out.append(Journal((Dropped(names),), tuple(words)))
        else:
            self._turn.out.extend(words)
