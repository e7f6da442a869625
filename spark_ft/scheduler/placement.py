"""Placement: which executor runs what, and the few messages that say so.

Order: FIFO is by job, then by stage.  FAIR gives each pool the same number of running attempts, one
launch at a time to the pool with the fewest, and is FIFO within a pool.

    free slots first ──> then, and only when no slot is free anywhere, queues behind busy slots
                     └─> slots still free: second attempts of slow tasks; queued attempts asked back

Everything that one executor is given of one stage in a turn travels in one LaunchTasks, after the
stage's functions and the map outputs that it names, each sent once.

Invariants
  * nothing is sent to an executor that is not live, or is stopped, gone or to be killed (S13).
  * every input that a LaunchTasks names is complete at that generation and version (S5).
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator

from spark_ft.ids import BlobId, Incarnation, ShuffleId, StageId
from spark_ft.protocol.effects import SendBlob
from spark_ft.protocol.messages import CachedBlock, Launch, LaunchTasks, ShuffleInput
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.cached import CachedBlocks, survey
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.health import Health
from spark_ft.scheduler.links import Links
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.quarantine import Quarantine
from spark_ft.scheduler.stage import Stage
from spark_ft.scheduler.taskset import Mode, Reads, Task, TaskSet
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_KEEPING_S = 0.05  # until a task is looked at again whose data another one on the host is about to keep
_RECALL_AFTER_S = 0.05  # an attempt that stood in a queue for so long is asked back when a slot is free

Batch = tuple[ExecutorState, Stage, list[Launch]]


class Placement:
    """See the module.  ``wakeup_s``: when something may be placed that could not be now."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        health: Health,
        links: Links,
        dag: Dag,
    ) -> None:
        self._settings, self._turn, self._executors, self._attempts = settings, turn, executors, attempts
        self._outputs, self._blocks, self._health, self._dag = outputs, blocks, health, dag
        self._links = links
        self._batches: dict[tuple[Incarnation, StageId], Batch] = {}
        self._quarantine = Quarantine(turn, executors, attempts, dag)
        self.wakeup_s: float | None = None

    def fill(self) -> None:
        """Give out all that can be given out now, and say so to the executors."""
        self.wakeup_s = None
        if self._dag.delayed:
            self._dag.wake_delayed()
        if self._dag.suspects or self._quarantine.active or self._quarantine.is_draining:
            self._isolate()
        if not self._dag.active:
            return
        if self._executors.idle:
            self._offer_all(self._executors.idle, speculate=True)
        if self._executors.idle:
            self._look_ahead()
        elif self._executors.roomy:
            self._offer_all(self._executors.roomy, speculate=False)
        if self._batches:
            self._tell()

    # --- Who gets what ---

    def _isolate(self) -> None:
        """Tasks that need room come first: what they need is rare, and others would take it."""
        while (found := self._quarantine.next(self._fits)) is not None:
            stage, task, executor = found
            assert task.trouble is not None
            reads = tuple((shuffle, self._outputs[shuffle].generation) for shuffle in stage.tree.parents)
            self._launch(stage, task, executor, reads, False)
            self._quarantine.launched(task.attempts[-1], task.trouble.room)

    def _stages(self) -> list[Stage]:
        if self._dag.ordered is None:
            self._dag.ordered = sorted(self._dag.active.values(), key=lambda s: (min(s.jobs), s.id))
        return self._dag.ordered

    def _offer_all(self, having_room: dict[Incarnation, ExecutorState], speculate: bool) -> None:
        free = self._in_order(having_room, speculate)
        if self._settings.scheduler_mode == "FAIR":
            self._offer_fairly(free, having_room, speculate)
            return
        for stage in self._stages():
            for _ in self._offer(stage, free, having_room, speculate):
                pass
            if not free:
                return

    def _in_order(
        self, having_room: dict[Incarnation, ExecutorState], speculate: bool
    ) -> deque[ExecutorState]:
        """Executors that were slow repeatedly come last, and nothing waits behind what they run (EX-10)."""
        slow = self._executors.slow
        if not slow:
            return deque(having_room.values())
        free = deque(executor for executor in having_room.values() if executor.id not in slow)
        if speculate:
            free.extend(executor for executor in having_room.values() if executor.id in slow)
        return free

    def _offer_fairly(
        self, free: deque[ExecutorState], having_room: dict[Incarnation, ExecutorState], speculate: bool
    ) -> None:
        pools: dict[str, list[Stage]] = {}
        for stage in self._stages():
            pools.setdefault(stage.lead().pool, []).append(stage)
        turns: list[tuple[int, int, Iterator[None]]] = []
        for rank, stages in enumerate(pools.values()):
            running = sum(stage.tasks.running for stage in stages if stage.tasks is not None)
            offers: Iterator[None] = itertools.chain.from_iterable(
                self._offer(stage, free, having_room, speculate) for stage in stages
            )
            turns.append((running, rank, offers))
        heapq.heapify(turns)
        while turns and free:
            running, rank, offers = heapq.heappop(turns)
            for _ in offers:
                heapq.heappush(turns, (running + 1, rank, offers))
                break

    def _offer(
        self,
        stage: Stage,
        free: deque[ExecutorState],
        having_room: dict[Incarnation, ExecutorState],
        speculate: bool,
    ) -> Iterator[None]:
        """Launch this stage's tasks, one an executor in turn, while some executor may have one."""
        tasks, now_s = stage.tasks, self._turn.now_s
        assert tasks is not None
        if not (tasks.ready or (speculate and tasks.has_slow)):
            return
        if stage.tree.barrier:
            yield from self._offer_gang(stage, free, speculate)
            return
        reads = tuple((shuffle, self._outputs[shuffle].generation) for shuffle in stage.tree.parents)
        refused = 0
        while free and refused < len(free) and (tasks.ready or (speculate and tasks.has_slow)):
            executor = free[0]
            task, second = None, False
            if self._can_run(stage, executor):
                wary = self._is_wary(stage, executor)
                task = tasks.take_bound(executor) if wary else tasks.take(executor, self._executors, now_s)
                if task is not None and self._is_being_kept(stage, task, executor):
                    self._dag.postpone(stage, task, now_s + _KEEPING_S)
                    continue
                if task is None and not wary and speculate and tasks.has_slow:
                    task, second = tasks.take_slow(executor), True
            if task is None:
                refused += 1
                free.rotate(-1)
                continue
            refused = 0
            self._launch(stage, task, executor, reads, second)
            if executor.id in having_room:
                free.rotate(-1)
            else:
                free.popleft()
            yield

    def _offer_gang(self, stage: Stage, free: deque[ExecutorState], idle: bool) -> Iterator[None]:
        """Launch all its tasks, or none.  While it lacks slots that exist, what comes after it gets none."""
        tasks = stage.tasks
        assert tasks is not None and tasks.mode is Mode.OPEN and not tasks.running
        wanted = len(tasks.tasks)
        room: list[ExecutorState] = []
        # Those on which its tasks keep failing come last: it may need them all the same.
        wary = bool(tasks.failed_on)
        for executor in sorted(free, key=lambda e: wary and self._keeps_failing(tasks, e)) if idle else ():
            if self._fits(stage, executor):
                room += [executor] * (executor.usable_slots - len(executor.running))
        if len(room) < wanted:
            if self._executors.slots() >= wanted:
                free.clear()
            return
        reads = tuple((shuffle, self._outputs[shuffle].generation) for shuffle in stage.tree.parents)
        for (_, task), executor in zip(sorted(tasks.tasks.items()), room, strict=False):
            self._launch(stage, task, executor, reads, False)
            if len(executor.running) >= executor.usable_slots:
                free.remove(executor)
        tasks.clear_queues()  # nobody has taken them from there
        yield  # not before: pools take turns here

    def _fits(self, stage: Stage, executor: ExecutorState) -> bool:
        return self._can_run(stage, executor) and not self._is_wary(stage, executor)

    def _is_wary(self, stage: Stage, executor: ExecutorState) -> bool:
        """Whether it gets nothing of this stage but what no other executor may have."""
        tasks = stage.tasks
        return (
            tasks is not None
            and bool(tasks.failed_on)
            and tasks.mode is Mode.OPEN  # else a task may be bound to the one memory that holds its input
            and not stage.tree.barrier
            and self._keeps_failing(tasks, executor)
        )

    def _can_run(self, stage: Stage, executor: ExecutorState) -> bool:
        if executor.purging and stage.tree.persisted:
            return False  # a killed reader may still put rolled-back data into its memory
        if self._quarantine.active and not self._quarantine.allows(executor):
            return False
        if self._links and stage.tree.parents:
            host, now_s = executor.host, self._turn.now_s
            if not self._links.can_read(stage, host, now_s) and self._links.readers(stage, now_s):
                return False
        if stage.shuffle is None or not self._health.hosts:
            return True
        return not self._health.backing_off(executor.host, self._turn.now_s)

    def _keeps_failing(self, tasks: TaskSet, executor: ExecutorState) -> bool:
        """Whether several tasks of this stage failed there, and another executor may have the rest."""
        limit = self._settings.exclude_stage_tasks
        bad = {id for id, failed in tasks.failed_on.items() if len(failed) >= limit}
        return executor.id in bad and self._executors.others(bad, set())

    def _is_being_kept(self, stage: Stage, task: Task, executor: ExecutorState) -> bool:
        """Whether somebody on this host is computing a persisted partition that the task needs too."""
        keeping = self._attempts.keeping
        if not keeping or not stage.tree.persisted:
            return False
        found = survey(stage.tree, task.partition, self._blocks, trust_memory=False)
        return any((executor.host, *key) in keeping for key in found.unheld)

    def _launch(
        self, stage: Stage, task: Task, executor: ExecutorState, reads: Reads, speculative: bool
    ) -> None:
        # Where the normal one has ended before its twin, this one takes the place of that (S10).
        speculative = speculative and not task.attempts[0].speculative
        attempt = self._attempts.launch(stage, task, executor, reads, speculative)
        cached: tuple[CachedBlock, ...] = ()
        if stage.tree.persisted:
            found = survey(stage.tree, task.partition, self._blocks, False, executor.host)
            cached = tuple(found.disk)
            self._attempts.keep(attempt, found.unheld, bool(found.memory))
        launch = Launch(attempt.task_id, task.partition, attempt.number, speculative, cached)
        key = (executor.id, stage.id)
        batch = self._batches.get(key)
        if batch is None:
            self._batches[key] = (executor, stage, [launch])
        else:
            batch[2].append(launch)
        if speculative:
            self._turn.note("speculation", task=attempt.task_id, stage=stage.id, partition=task.partition)

    # --- What cannot be placed now ---

    def _look_ahead(self) -> None:
        """Slots are free and nothing fits: when will something, and can a queued attempt be had back?"""
        now_s = self._turn.now_s
        times = [
            time
            for stage in self._stages()
            if stage.tasks is not None and stage.tasks.ready
            if (time := stage.tasks.wakeup_s(now_s)) is not None
        ]
        times += [trouble.until_s for trouble in self._health.hosts.values() if trouble.until_s > now_s]
        wanted = len(self._executors.idle)
        for attempt in list(self._attempts.queued.values()):
            if not wanted:
                break
            if (
                not attempt.counts
                or not self._is_stuck(attempt.executor)
                or not self._may_move(attempt.stage)
            ):
                continue
            if attempt.launched_s + _RECALL_AFTER_S > now_s:
                times.append(attempt.launched_s + _RECALL_AFTER_S)
                break
            self._attempts.recall(attempt)
            wanted -= 1
        self.wakeup_s = min(times) if times else None

    def _is_stuck(self, executor: ExecutorState) -> bool:
        """All its slots are busy with attempts that have begun."""
        begun = sum(attempt.started_s is not None for attempt in executor.running.values())
        return begun >= executor.slots

    def _may_move(self, stage: Stage) -> bool:
        return stage.tasks is not None and stage.tasks.mode is Mode.OPEN and not stage.tree.barrier

    # --- Telling the executors ---

    def send_blob(self, executor: ExecutorState, blob: BlobId) -> None:
        """The stage's functions, once; the host holds the bytes."""
        if blob not in executor.blobs:
            executor.blobs.add(blob)
            self._turn.out.append(SendBlob(executor.id, blob))

    def _tell(self) -> None:
        inputs: dict[StageId, tuple[ShuffleInput, ...]] = {}
        for executor, stage, launches in self._batches.values():
            if stage.id not in inputs:
                inputs[stage.id] = self._inputs(stage)
            self.send_blob(executor, stage.blob)
            for read in inputs[stage.id]:
                if executor.outputs.get(read.shuffle) != (read.generation, read.version):
                    executor.outputs[read.shuffle] = (read.generation, read.version)
                    self._turn.send(executor.id, self._outputs[read.shuffle].message())
            self._turn.send(
                executor.id,
                LaunchTasks(
                    stage.blob, stage.id, stage.attempt, tuple(launches), inputs[stage.id],
                    self._output(stage.shuffle), stage.lead().properties, self._gang(stage),
                ),
            )  # fmt: skip
        self._batches.clear()

    def _gang(self, stage: Stage) -> tuple[str, ...]:
        """Where the members of a barrier stage run, by partition; empty for any other."""
        if not stage.tree.barrier:
            return ()
        assert stage.tasks is not None
        return tuple(
            self._executors.address(task.attempts[0].executor)
            for _, task in sorted(stage.tasks.tasks.items())
        )

    def _inputs(self, stage: Stage) -> tuple[ShuffleInput, ...]:
        """The parents that can be read; those that cannot are left out, so that no task reads half of one."""
        parents = [self._outputs[shuffle] for shuffle in stage.tree.parents]
        assert stage.tasks is not None
        assert stage.tasks.mode is Mode.PARTIAL or all(outputs.complete for outputs in parents)
        return tuple(ShuffleInput(o.shuffle, o.generation, o.version) for o in parents if o.complete)

    def _output(self, shuffle: ShuffleId | None) -> ShuffleInput | None:
        return None if shuffle is None else ShuffleInput(shuffle, self._outputs[shuffle].generation, 0)
