"""Jobs, the stages that they need, and which tasks of these may run.

    JobSubmitted ──> want(result stage) ──> replan: parents complete?  yes: OPEN its tasks
                                               │ no: want(each parent that lacks outputs)
                                               └── (or PARTIAL: tasks whose needs are all cached)

A shuffle is computed once, by one map stage, for all jobs; one whose outputs exist is not entered.
Nothing here recurses: wants and replans go over work lists, so depth costs no stack (BL-16).

Invariants
  * an active stage has a TaskSet and at least one job that is not ended; no other stage has one (S11).
  * a map stage's unfinished tasks are exactly its shuffle's missing outputs (S16).
  * tasks of a stage are OPEN only while every output of every parent is available (S5).
  * job.active and stage.jobs mirror each other; ``readers`` is the inverse of active stages' parents (S28).
  * a job ends once, delivers each partition at most once and nothing after its end (S1-S4); results that
    are taken back never were delivered.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from spark_ft.ids import (
    BlobId,
    Fingerprint,
    Generation,
    HostId,
    Incarnation,
    JobId,
    NodeId,
    ShuffleId,
    StageId,
)
from spark_ft.protocol.effects import (
    DeliverResult,
    JobFailure,
    JobSubmitted,
    Redeliver,
    ResultLost,
    WithdrawResults,
)
from spark_ft.protocol.journal import Updates
from spark_ft.protocol.messages import InlineResult, StoredResult
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.cached import CachedBlocks, Survey, common, survey
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.ledger import Ledger
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.scopes import Scopes
from spark_ft.scheduler.stage import Stage, why_no_gang
from spark_ft.scheduler.taskset import Attempt, Mode, Reads, Room, Task, TaskSet
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

if TYPE_CHECKING:
    from spark_ft.scheduler.resume import Prior

_RESULT_LOSSES_MAX = 10  # times that one stored result may be lost before the job is given up


class Job:
    """One action.  ``ended`` jobs may still be held, because a stored result may yet be lost."""

    def __init__(self, event: JobSubmitted, result: Stage) -> None:
        self.id = event.job
        self.name, self.pool, self.group, self.tags = event.name, event.pool, event.group, event.tags
        self.properties = dict(event.properties)
        self.shape = event.shape
        self.blob, self.shuffle_blobs = event.blob, event.shuffle_blobs
        self.result = result
        self.final = event.final
        self.scope, self.rests_on = event.scope, event.rests_on
        self.partitions = frozenset(event.partitions)
        assert len(self.partitions) == len(event.partitions), "a partition was asked for twice"
        self.active: dict[StageId, Stage] = {}
        self.delivered: set[int] = set()
        self.merged: set[int] = set()  # partitions whose accumulator updates have been handed out
        self.settled = False  # it has ended well once: what was handed out till then stays merged
        self.sources: dict[ShuffleId, Generation] = {}  # what the delivered results were built from
        self.stored = False  # some result lies in a store: it may be lost before it is read
        self.tainted = False  # a shuffle that its results were built from has been rolled back since
        self.losses: dict[int, int] = {}
        self.cancelled: JobFailure | None = None  # after it had ended well: nothing of it is run again
        self.rollbacks = 0  # times that data under it was rolled back
        self.action = event.action
        self.is_answered = False  # by what an earlier life of the driver has kept
        self.map_updates: list[tuple[Fingerprint, int, Updates]] = []  # of accumulators, while it ran
        self.progress = 0  # tasks of its stages that have succeeded


class Dag:
    """See the module.  ``ordered`` is None when the order of active stages has changed."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        ledger: Ledger,
    ) -> None:
        self._settings, self._turn, self._ledger = settings, turn, ledger
        self._executors, self._attempts, self._outputs, self._blocks = executors, attempts, outputs, blocks
        self.jobs: dict[JobId, Job] = {}
        self.held: dict[JobId, Job] = {}  # ended well, with stored results that may be lost
        self.map_stages: dict[ShuffleId, Stage] = {}
        self.active: dict[StageId, Stage] = {}
        self.readers: dict[ShuffleId, dict[StageId, Stage]] = {}
        self.delayed: dict[StageId, Stage] = {}  # active stages with tasks in back-off
        self.suspects: dict[StageId, Stage] = {}  # active stages with ready tasks that need room
        self.ordered: list[Stage] | None = None
        self.unpinned = False  # a job or stage has ended: what only it needed may be released
        self.scopes = Scopes()
        self.broken: dict[StageId, Stage] = {}  # barrier stages that have lost a member
        self.completed = False  # since this was last set to False: some shuffle has got all its outputs
        self._dirty: dict[StageId, Stage] = {}
        self._next_stage = 0

    # --- Jobs begin and end ---

    def submit(self, event: JobSubmitted, prior: Prior | None = None) -> Job:
        """Take a job in, of which ``prior`` is done already; nothing is launched yet."""
        assert event.job not in self.jobs and event.job not in self.held
        # Shuffle ids grow from parents to children, so stage ids do too.
        stages = [self._map_stage(shuffle, event).id for shuffle in sorted(event.shape.shuffles)]
        job = Job(event, self._new_stage(None, event.name))
        self.jobs[job.id] = job
        self._turn.note(
            "job_start", job=job.id, name=job.name, group=job.group, tags=sorted(job.tags),
            stages=[*stages, job.result.id],
        )  # fmt: skip
        self.scopes.begin(job)
        if spoilt := self.scopes.refusal(job):
            self.end_job(job, spoilt)
        elif refusal := why_no_gang(job.shape, event.partitions):
            self.end_job(job, JobFailure("BARRIER_CHAIN_NOT_ALLOWED", refusal, job.result.id))
        elif job.partitions and not self._is_done(job, prior):
            self._want(job.result, [job])
        else:
            self.end_job(job)
        return job

    def _is_done(self, job: Job, prior: Prior | None) -> bool:
        """Hand out what an earlier life of the driver has kept of this job; whether that is all of it.
        Should some of it be unreadable, an answer that was given before is computed anew as a whole."""
        if prior is None:
            return False
        job.map_updates += prior.map_updates
        if prior.partitions:
            job.delivered.update(prior.partitions)
            job.merged.update(prior.partitions)
            job.stored, job.is_answered, job.tainted = True, prior.whole, prior.whole
            if not prior.whole or job.scope >= 0:
                job.sources.update((source, self._outputs[source].generation) for source in prior.sources)
            for partition in prior.partitions:
                self._turn.out.append(Redeliver(job.id, job.action, partition))
        return job.delivered == job.partitions

    def end_job(self, job: Job, failure: JobFailure | None = None) -> None:
        """The one end of a job: what only it needed is broken off."""
        if failure is None:
            failure = self.scopes.refusal(job)  # its last task may just have spoilt its scope
        del self.jobs[job.id]
        self.unpinned = True
        job.settled = failure is None
        if job.scope >= 0:
            self.scopes.ended(job)
        if failure is None and job.stored:
            self.held[job.id] = job
        for stage in list(job.active.values()):
            del stage.jobs[job.id]
            del job.active[stage.id]
            self.ordered = None
            if not stage.jobs:
                self._retire(stage, failure is None, "its job has ended")
        condition = failure.condition if failure else ""
        # Noted first: whoever waits for the job finds it ended in the status when it wakes.
        self._turn.note("job_end", job=job.id, ok=failure is None, condition=condition)
        self._ledger.finished(job, failure)

    def end_spoilt(self) -> None:
        """Jobs whose scope was spoilt cannot be answered any more."""
        if not self.scopes.spoilt:
            return
        self.scopes.spoilt = False
        for job in list(self.jobs.values()):
            if failure := self.scopes.refusal(job):
                self.end_job(job, failure)

    def fail_stage(self, stage: Stage, failure: JobFailure) -> None:
        """The stage cannot be had: every job that needs it ends."""
        for job in list(stage.jobs.values()):
            self.end_job(job, failure)

    def result_lost(self, event: ResultLost) -> None:
        """A delivered result could not be read: that task runs again, also after the job's end (TK-11)."""
        job_id, partition, text = event.job, event.partition, event.text
        job = self.jobs.get(job_id) or self.held.get(job_id)
        if job is None or partition not in job.delivered:
            return
        if event.unheard:
            job.merged.discard(partition)
        self._turn.note("result_lost", job=job_id, partition=partition, text=text)
        if self.held.pop(job_id, None) is not None:
            self.jobs[job_id] = job
        if failure := job.cancelled or self.scopes.refusal(job):
            self.end_job(job, failure)
            return
        losses = job.losses[partition] = job.losses.get(partition, 0) + 1
        if losses > _RESULT_LOSSES_MAX:
            what = f"the result of partition {partition} was lost {losses} times: {text}"
            self.end_job(job, JobFailure("RESULT_LOST", what, job.result.id, partition))
        elif job.tainted or job.result.tree.barrier:
            self.take_back(job, "a result was lost after data that the others were built from had changed")
        else:
            self._deliver_again(job, [partition])

    def take_back(self, job: Job, why: str) -> None:
        """Its results were built from data that is no more.  The engine holds them still: they are forgotten
        and computed again, all of them (R3).  Of a final job they have left the engine: it fails."""
        if job.final:
            text = (
                f"{why}. Make the functions before the shuffle deterministic, or checkpoint their result "
                "before an action with side effects."
            )
            self.end_job(job, JobFailure("INDETERMINATE_OUTPUT_ROLLBACK", text, job.result.id))
            return
        self._turn.note("results_withdrawn", job=job.id, partitions=sorted(job.delivered))
        self._turn.out.append(WithdrawResults(job.id))
        job.sources.clear()
        job.tainted = job.stored = job.is_answered = False
        if not job.settled:
            job.merged.clear()
        self._deliver_again(job, sorted(job.delivered))

    def _deliver_again(self, job: Job, partitions: Iterable[int]) -> None:
        job.delivered.difference_update(partitions)
        if job.result.tasks is None:
            self._want(job.result, [job])
            return
        for partition in partitions:
            job.result.tasks.add(partition)
        if job.result.tree.barrier:
            self.broken[job.result.id] = job.result
        self.mark(job.result)

    # --- Stages begin and end ---

    def _new_stage(self, shuffle: ShuffleId | None, name: str) -> Stage:
        stage = Stage(StageId(self._next_stage), shuffle, name)
        self._next_stage += 1
        return stage

    def _map_stage(self, shuffle: ShuffleId, event: JobSubmitted) -> Stage:
        stage = self.map_stages.get(shuffle)
        if stage is None:
            self._outputs.ensure(event.shape.shuffles[shuffle])
            stage = self.map_stages[shuffle] = self._new_stage(shuffle, event.name)
        return stage

    def _want(self, stage: Stage, jobs: Iterable[Job]) -> None:
        """These jobs cannot go on without the stage's outputs: it becomes, or stays, active for them."""
        work = [(stage, list(jobs))]
        while work:
            stage, jobs = work.pop()
            new = [job for job in jobs if job.id not in stage.jobs]
            if not new:
                continue
            for job in new:
                stage.jobs[job.id] = job
                job.active[stage.id] = stage
            self.ordered = None
            if stage.tasks is None:
                self._activate(stage, new[-1])
            work.extend((parent, new) for parent in stage.awaits.values())

    def _activate(self, stage: Stage, job: Job) -> None:
        if stage.shuffle is None:
            stage.learn(job.shape, job.shape.target, job.blob)
            partitions: Iterable[int] = sorted(job.partitions - job.delivered)
        else:
            outputs = self._outputs[stage.shuffle]
            partitions = outputs.lacking()
            if stage.tree.barrier and outputs.missing < outputs.map_count:
                self.broken[stage.id] = stage  # a gang has no part of it done
        self._blocks.track(stage.tree)
        for node in stage.tree.persisted:
            if stage.tree.nodes[node].replication > 1:
                self._blocks.replication[node] = stage.tree.nodes[node].replication
        stage.tasks = TaskSet(stage, partitions)
        stage.unloadable.clear()
        stage.progressed, stage.fruitless = True, 0
        self.active[stage.id] = stage
        for shuffle in stage.tree.parents:
            self.readers.setdefault(shuffle, {})[stage.id] = stage
        self.mark(stage)

    def _retire(self, stage: Stage, ok: bool, why: str) -> None:
        """The stage is done, or nobody wants it any more."""
        assert stage.tasks is not None and not stage.jobs
        for task in list(stage.tasks.active.values()):
            for attempt in list(task.attempts):
                self._attempts.kill(attempt, why)
        self._end_attempt(stage, ok)
        stage.tasks = None
        stage.awaits = {}
        self.unpinned = True
        del self.active[stage.id]
        self.delayed.pop(stage.id, None)
        self.suspects.pop(stage.id, None)
        self._dirty.pop(stage.id, None)
        self.broken.pop(stage.id, None)
        self.ordered = None
        for shuffle in stage.tree.parents:
            readers = self.readers[shuffle]
            del readers[stage.id]
            if not readers:
                del self.readers[shuffle]

    def _complete(self, stage: Stage) -> None:
        """Every output of a map stage is there: whoever waited for it may go on."""
        assert stage.shuffle is not None
        for job in stage.jobs.values():
            del job.active[stage.id]
        stage.jobs.clear()
        self._retire(stage, True, "its stage is complete")
        self.completed = True
        for reader in self.readers.get(stage.shuffle, {}).values():
            self.mark(reader)

    def _start_attempt(self, stage: Stage) -> None:
        if stage.under_way:
            return
        stage.under_way = True
        stage.attempt += 1
        assert stage.tasks is not None
        parents = [self.map_stages[shuffle].id for shuffle in stage.tree.parents]
        self._turn.note(
            "stage_start", stage=stage.id, attempt=stage.attempt, job=min(stage.jobs), name=stage.name,
            kind=stage.kind, shuffle=stage.shuffle, tasks=stage.tasks.unfinished, parents=parents,
        )  # fmt: skip

    def _end_attempt(self, stage: Stage, ok: bool) -> None:
        if stage.under_way:
            stage.under_way = False
            self._turn.note("stage_end", stage=stage.id, attempt=stage.attempt, ok=ok)

    # --- Which tasks may run ---

    def mark(self, stage: Stage) -> None:
        """What its tasks may do is to be looked at again before this turn ends."""
        if stage.tasks is not None:
            self._dirty[stage.id] = stage

    def mark_readers(self, shuffle: ShuffleId) -> None:
        for reader in self.readers.get(shuffle, {}).values():
            self.mark(reader)

    def mark_holders(self, nodes: Iterable[NodeId]) -> None:
        """Cached partitions of these nodes are gone: tasks may need parents that they could do without."""
        gone = set(nodes)
        for stage in self.active.values():
            if (
                stage.tasks is not None
                and stage.tasks.mode is Mode.PARTIAL
                and gone & set(stage.tree.persisted)
            ):
                self.mark(stage)

    def replan(self) -> None:
        """Bring every stage whose parents or tasks have changed up to date."""
        while self._dirty:
            _, stage = self._dirty.popitem()
            self._replan(stage)

    def _replan(self, stage: Stage) -> None:
        tasks = stage.tasks
        assert tasks is not None
        lacking = {shuffle for shuffle in stage.tree.parents if not self._outputs[shuffle].complete}
        needed: dict[ShuffleId, None] = {}
        bound: list[tuple[Task, list[Incarnation]]] = []  # tasks that need no lacking parent, and where
        if not lacking:
            if tasks.mode is not Mode.OPEN:
                tasks.clear_queues()
                tasks.mode = Mode.OPEN
                self._start_attempt(stage)
            for _, task in sorted(tasks.waiting.items()):
                self._enqueue(stage, task)
        else:
            tasks.close()
            if self._blocks.any_of(stage.tree.persisted) and not stage.tree.barrier:
                for _, task in sorted(tasks.waiting.items()):
                    where = self._cached_places(stage, task.partition, lacking, needed)
                    if where is not None:
                        bound.append((task, where))
            elif tasks.waiting:
                needed = {shuffle: None for shuffle in stage.tree.parents if shuffle in lacking}
            if bound:
                tasks.mode = Mode.PARTIAL
                self._start_attempt(stage)
            elif tasks.waiting:
                self._end_attempt(stage, False)
            for task, where in bound:
                tasks.enqueue(task, where)
                if task.trouble is not None and task.trouble.room is not Room.SHARED:
                    self.suspects[stage.id] = stage
        stage.awaits = {}
        for shuffle in needed:
            self._want_parent(stage, shuffle)

    def _want_parent(self, stage: Stage, shuffle: ShuffleId) -> None:
        parent = self.map_stages[shuffle]
        if parent.tasks is None:
            assert stage.shape is not None
            jobs = [job for job in stage.jobs.values() if shuffle in job.shuffle_blobs]
            blob = jobs[-1].shuffle_blobs[shuffle] if jobs else parent.blob
            parent.learn(stage.shape, stage.shape.shuffles[shuffle].parent, blob)
        stage.awaits[shuffle] = parent
        self._want(parent, stage.jobs.values())

    def _cached_places(
        self, stage: Stage, partition: int, lacking: set[ShuffleId], needed: dict[ShuffleId, None]
    ) -> list[Incarnation] | None:
        """Where a task can run although parents lack: [] is anywhere, None nowhere; then what it needs
        is added to ``needed``.  Disk blocks are readable from anywhere; memory binds it (S5)."""
        anywhere = survey(stage.tree, partition, self._blocks, trust_memory=False)
        needs = [shuffle for shuffle in anywhere.needs if shuffle in lacking]
        assert stage.tasks is not None
        trouble = stage.tasks.tasks[partition].trouble
        if not needs:
            return self._where_held(stage, anywhere) if trouble is None else []
        is_suspect = trouble is not None and trouble.room is not Room.SHARED  # it needs a fresh process
        if anywhere.memory and not is_suspect:
            trusting = survey(stage.tree, partition, self._blocks, trust_memory=True)
            if trusting.memory and not any(shuffle in lacking for shuffle in trusting.needs):
                where = common(trusting.memory)
                if where:
                    return where
        needed.update(dict.fromkeys(needs))
        return None

    def _where_held(self, stage: Stage, found: Survey) -> list[Incarnation]:
        """Whose memory alone will do: what is computed elsewhere would be another edition (BL-12)."""
        if self._blocks.indeterminate.isdisjoint(stage.tree.persisted):
            return []
        return [id for id in found.near if self._executors.live[id].accepting]

    def _enqueue(self, stage: Stage, task: Task) -> None:
        """Ready for whoever is nearest to its data."""
        assert stage.tasks is not None
        tree = stage.tree
        if task.trouble is not None and task.trouble.room is not Room.SHARED and not tree.barrier:
            task.trouble.suspect_since_s = self._turn.now_s
            self.suspects[stage.id] = stage
        if not tree.barrier and task.trouble is None and (tree.placed or self._blocks.any_of(tree.persisted)):
            found = survey(tree, task.partition, self._blocks, trust_memory=True)
            near = [id for id in found.near if self._executors.live[id].accepting]
            hosts: list[HostId] = []
            if not near:
                hosts = [host for host in found.places or found.hosts if host in self._executors.on_host]
            if near or hosts:
                until_s: float | None = self._turn.now_s + self._settings.locality_wait_s
                if near and not self._blocks.indeterminate.isdisjoint(tree.persisted):
                    until_s = None  # computed elsewhere it would be another one (BL-12)
                stage.tasks.enqueue(task, near, hosts, until_s)
                return
        stage.tasks.enqueue(task)

    def requeue(self, attempt: Attempt, delay_s: float = 0.0) -> None:
        """An attempt that did not count, or failed, has been taken off its task: run that again."""
        stage, task = attempt.stage, attempt.task
        if task.attempts:  # its twin still runs
            return
        assert stage.tasks is not None
        if stage.tree.barrier:
            stage.tasks.wait(task)
            self.broken[stage.id] = stage
        elif stage.tasks.mode is not Mode.OPEN:
            stage.tasks.wait(task)
            self.mark(stage)
        elif delay_s > 0:
            self.postpone(stage, task, self._turn.now_s + delay_s)
        else:
            self._enqueue(stage, task)

    def restart(self, attempt: Attempt, why: str) -> None:
        """Kill an attempt that counts and run its task again; nobody is blamed."""
        self._attempts.kill(attempt, why)
        self.requeue(attempt)

    def interrupt(self, stage: Stage) -> None:
        """A failed fetch has shown that parents lack: nothing more of this stage attempt is launched."""
        assert stage.tasks is not None
        stage.tasks.close()
        self._end_attempt(stage, False)
        self.mark(stage)

    def postpone(self, stage: Stage, task: Task, due_s: float) -> None:
        """A task that could be launched is to be looked at again at ``due_s``."""
        assert stage.tasks is not None
        stage.tasks.delay(task, due_s)
        self.delayed[stage.id] = stage

    def wake_delayed(self) -> None:
        """Tasks whose back-off is over are ready."""
        for stage in list(self.delayed.values()):
            assert stage.tasks is not None
            for task in stage.tasks.due(self._turn.now_s):
                self._enqueue(stage, task)
            if not stage.tasks.has_delayed:
                del self.delayed[stage.id]

    def executor_left(self, executor: ExecutorState) -> None:
        """Tasks that waited for an executor, or for its host, look for another place."""
        last = executor.host not in self._executors.on_host
        for stage in self.active.values():
            assert stage.tasks is not None
            left = stage.tasks.left_by(executor.id)
            if last:
                left += stage.tasks.left_by_host(executor.host)
            if stage.tasks.mode is Mode.PARTIAL:
                self.mark(stage)
            else:
                for task in left:
                    self._enqueue(stage, task)

    # --- Tasks succeed ---

    def succeeded(self, stage: Stage, task: Task, run_s: float) -> None:
        """The task's outcome is in its place; what remains of the stage decides what follows."""
        assert stage.tasks is not None
        for twin in list(task.attempts):
            self._attempts.kill(twin, "another attempt succeeded")
        stage.tasks.done(task, run_s)
        stage.progressed, stage.fruitless = True, 0
        for job in stage.jobs.values():
            job.progress += 1
        if stage.tasks.unfinished:
            return
        if stage.shuffle is None:
            self.end_job(stage.lead())
        else:
            self._complete(stage)

    def deliver(
        self,
        job: Job,
        partition: int,
        result: InlineResult | StoredResult,
        accums: tuple[tuple[int, bytes], ...],
        reads: Reads,
    ) -> None:
        """Hand one result out; its accumulator updates only the first time."""
        assert partition not in job.delivered
        job.delivered.add(partition)
        job.sources.update(reads)
        job.stored = job.stored or isinstance(result, StoredResult)
        if partition in job.merged:
            accums = ()
        job.merged.add(partition)
        self._turn.out.append(DeliverResult(job.id, partition, result, accums))
        self._ledger.delivered(job, partition, result, accums)

    # --- What jobs still need ---

    def needs_shuffle(self, shuffle: ShuffleId) -> bool:
        return any(shuffle in job.shape.shuffles for job in self._pinning()) or any(
            stage.shape is not None and shuffle in stage.shape.shuffles for stage in self.active.values()
        )

    def needs_node(self, node: NodeId) -> bool:
        return any(node in job.shape.nodes for job in self._pinning())

    def needs_blob(self, blob: BlobId) -> bool:
        if any(stage.blob == blob for stage in self.active.values()):
            return True
        return any(blob == job.blob or blob in job.shuffle_blobs.values() for job in self.jobs.values())

    def _pinning(self) -> list[Job]:
        return [*self.jobs.values(), *self.held.values()]
