"""What the user's jobs are answered: each partition once, by an attempt that counts; each update once.

A part of the shadow (shadow.py): S1 to S4, S6, S8, S9, S17, S20.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.sim.account import Told, Tried, Updates
from chaos.sim.violation import ViolationError
from spark_ft.ids import JobId
from spark_ft.protocol.effects import DeliverResult, FinishJob, JobSubmitted, Released
from spark_ft.protocol.messages import StoredResult

if TYPE_CHECKING:
    from chaos.sim.shadow import Shadow
    from chaos.sim.world import World


class Answers:
    """See the module."""

    def __init__(self, world: World, shadow: Shadow) -> None:
        self._world, self._shadow = world, shadow
        self.jobs: dict[JobId, Told] = {}
        self.open_jobs: dict[JobId, Told] = {}  # not finished
        self.held: dict[JobId, Told] = {}  # ended well, with results that are still to be read where they are
        self.merged: set[bytes] = set()
        self.short_of: set[JobId] = set()  # jobs that have ended because a gang had no slots, and so it was
        self.nobody_left = False  # a job has ended because everybody was excluded, and so it was

    def submitted(self, event: JobSubmitted) -> None:
        told = Told(event.shape, frozenset(event.partitions), event.final)
        self.jobs[event.job] = self.open_jobs[event.job] = told

    def released(self, event: Released) -> None:
        for blob in event.blobs:
            self.held.pop(JobId(blob), None)  # a job's blob has its number

    def delivered(self, effect: DeliverResult) -> None:
        job = self.jobs[effect.job]
        if job.finished:
            raise ViolationError("S3", f"a result of job {effect.job} is delivered after its end")
        if effect.partition in job.delivered:
            raise ViolationError("S1", f"partition {effect.partition} of job {effect.job} is delivered twice")
        attempt = self._shadow.attempts[self._world.attempt_of(effect.result)]
        if (attempt.job, attempt.partition) != (effect.job, effect.partition):
            raise ViolationError(
                "S9", f"the result of {attempt.job}/{attempt.partition} goes to job {effect.job}"
            )
        self._check_counts(attempt)
        job.delivered[effect.partition] = attempt
        job.stored |= type(effect.result) is StoredResult
        if effect.accums:
            job.updates.append(effect.accums)

    def _check_counts(self, attempt: Tried) -> None:
        if attempt.executor in self._shadow.fenced:
            raise ViolationError(
                "S8", f"task {attempt.task} of {attempt.executor}, which was given up, counts"
            )
        if not attempt.counts:
            raise ViolationError("S9", f"task {attempt.task} counts although it was told to stop")
        for shuffle, generation in attempt.inputs:
            if generation != self._shadow.outputs.generations.get(shuffle, 0):
                raise ViolationError(
                    "S6", f"task {attempt.task} counts: it read an old generation of {shuffle}"
                )

    def finished(self, effect: FinishJob) -> None:
        job = self.jobs[effect.job]
        if job.finished:
            raise ViolationError("S4", f"job {effect.job} ends twice")
        if effect.failure is not None and effect.failure.condition == "BARRIER_NO_SLOTS":
            widest = max(n.partition_count for n in job.shape.nodes.values() if n.barrier)
            excluded = self._world.excluded.until_s
            live, away = self._shadow.live, self._shadow.away
            if sum(1 if id in excluded else n for id, n in live.items() if id not in away) < widest:
                self.short_of.add(effect.job)
        if effect.failure is not None and effect.failure.condition == "ALL_EXECUTORS_EXCLUDED":
            self.nobody_left = self._world.excluded.is_everybody()
        if effect.failure is None and job.delivered.keys() != job.partitions:
            raise ViolationError("S2", f"job {effect.job} succeeds without all its results")
        job.finished = True
        for updates in job.updates:
            self.merge(updates)
        job.updates.clear()
        del self.open_jobs[effect.job]
        if job.stored and effect.failure is None:
            self.held[effect.job] = job

    def withdrawn(self, id: JobId) -> None:
        """All its results are taken back: they were the engine's still."""
        job = self.jobs[id]
        if job.finished:
            raise ViolationError("S3", f"results of job {id} are taken back after its end")
        if job.final:
            raise ViolationError(
                "S17", f"results of job {id} are taken back although they have left the engine"
            )
        job.delivered.clear()
        job.updates.clear()
        job.rollbacks += 1
        job.stored = False

    def result_lost(self, job: JobId, partition: int) -> None:
        """A stored result could not be read: the job may come back to life."""
        told = self.jobs[job]
        del told.delivered[partition]
        told.finished = False
        self.held.pop(job, None)
        self.open_jobs[job] = told

    def merge(self, accums: Updates) -> None:
        for _, payload in accums:
            if payload in self.merged:
                raise ViolationError("S20", f"{payload.decode()} is merged twice")
            self.merged.add(payload)
