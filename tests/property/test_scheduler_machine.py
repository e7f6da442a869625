"""SchedulerCore under random histories: programs that grow, executors that come, die and lie low.

The world beside the core knows the truth: which outputs and blocks exist and what they were computed
from.  A task that is told to succeed does so only if all it needs can be read; else it reports what it
met.  So beside ``check_invariants`` after every event these are checked:

  * results of one job never mix two contents of one shuffle, however often data was lost, also
    when the program is not deterministic (S6, S17, S18), and cached partitions count as read;
  * nor do the results of jobs that are of one scope;
  * each accumulator update is merged once (S20), each result delivered once (S1, S3, S4);
  * the notes say why each task was started again, and that each recovery has ended;
  * when the faults stop and executors are there, every job ends and nothing is left (L1, S28).
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from spark_ft.history.causes import Causes
from spark_ft.history.recoveries import Recoveries
from spark_ft.ids import BlobId, Generation, HostId, Incarnation, JobId, NodeId, ShuffleId
from spark_ft.protocol.effects import (
    DeliverResult,
    Effect,
    MergeAccums,
    PeerGone,
    Released,
    ResultLost,
    Send,
    WithdrawResults,
)
from spark_ft.protocol.messages import (
    BarrierSync,
    BlockRef,
    CachedBlock,
    CopyMade,
    DropBlocks,
    EndReason,
    ExecutorExited,
    ExecutorStacks,
    ExecutorStopped,
    FetchFailed,
    HostError,
    InlineResult,
    Killed,
    KillTask,
    LaunchTasks,
    Leaving,
    MapStatus,
    MayLeave,
    NotLoadable,
    SegmentTouched,
    StoredResult,
    StoresServed,
    Success,
    TaskEnd,
    TaskUpdates,
    UserError,
    WorkerLost,
)
from spark_ft.settings import environment
from tests.builders import Launched, Lineage, Stand

# The checksums that were read, by shuffle; and by ("kept", node, partition) which edition of a persisted
# partition that was read, or put into the cache.
Content = dict[Any, tuple[int, ...]]
HOSTS = ("h0", "h1", "h2")
# Errors that a job may well end with in a world like this one; whatever else is a bug.
NAMED = {
    "TASK_FAILED", "POISON_TASK", "JOB_CANCELLED", "SHUFFLE_DATA_LOST", "STORAGE_FULL", "NO_RESOURCES",
    "BARRIER_NO_SLOTS", "BARRIER_CHAIN_NOT_ALLOWED",
    "CLOSURE_NOT_LOADABLE", "INDETERMINATE_OUTPUT_ROLLBACK", "RESULT_LOST", "STAGE_ABORTED", "BLOCK_LOST",
    "TASK_TIMEOUT", "TASK_OUT_OF_MEMORY", "ALL_EXECUTORS_EXCLUDED",
}  # fmt: skip


class World(Stand):
    """Executors with memories and disks, as far as a scheduler could be wrong about them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(executors=0, hosts=0, **settings)
        self.lineage = Lineage()
        self.memory: dict[tuple[Incarnation, NodeId, int], Content] = {}
        self.disk: dict[bytes, tuple[HostId, NodeId, Content]] = {}
        self.lost: set[tuple[Any, ...]] = set()  # outputs that cannot be read any more
        self.contents: dict[int, Content] = {}  # attempt -> what it read
        # Running attempts that have read all they need: what, and what of it is to be persisted.
        self.far_on: dict[int, tuple[Content, dict[tuple[NodeId, int], Content]]] = {}
        self.chaos = 0  # the functions' results change when this does
        self.reads: dict[JobId, dict[int, Content]] = {}
        self.zombies: list[Launched] = []
        self.last: list[tuple[Incarnation, TaskUpdates]] = []
        self.job_of_blob: dict[BlobId, JobId] = {}
        self.targets: dict[BlobId, NodeId] = {}
        self.submitted: set[NodeId] = set()
        self.final: set[JobId] = set()
        self.copied_outputs: dict[tuple[Any, ...], HostId] = {}  # (store, attempt) of a copy -> its host
        self.scopes: dict[JobId, int] = {}
        self.scope = 0  # of the action that is under way
        self.unpersisted: set[NodeId] = set()  # nobody promises that these are computed only once
        self.floor = 0  # nodes of earlier programs are below
        self.workers = 0

    # --- The cluster ---

    def fresh_worker(self, host: str) -> None:
        self.workers += 1
        self.add_worker(host, f"worker-{host}-{self.workers}")

    def fresh_executor(self, host: str) -> None:
        worker = self.worker_of(host)
        if worker is not None:
            self.add_executor(host, worker)

    def worker_of(self, host: str) -> str | None:
        ids = [w.id for w in self.core.executors.workers.values() if w.host == host]
        return ids[-1] if ids else None

    @property
    def live(self) -> list[Incarnation]:
        return list(self.core.executors.live)

    def gone(self, executor: Incarnation) -> None:
        """The process is no more, whatever the driver thinks."""
        self.forget_orders(executor)
        for task in [t for t in self.open.values() if t.executor == executor]:
            self.zombies.append(self.open.pop(task.task))
        for key in [k for k in self.memory if k[0] == executor]:
            del self.memory[key]

    def host_gone(self, host: str) -> None:
        for key in [k for k, (where, _, _) in self.disk.items() if where == host]:
            del self.disk[key]
        for copy in [copy for copy, where in self.copied_outputs.items() if where == host]:
            self.lost.add(copy)

    def _perform(self, effect: Effect) -> None:
        super()._perform(effect)
        if isinstance(effect, WithdrawResults):
            self.reads.pop(effect.job, None)

    def _sent(self, to: Incarnation, message: Any) -> None:
        super()._sent(to, message)
        if isinstance(message, LaunchTasks):
            for launch in message.tasks:
                self._check_parents(self.launched[launch.task])
        if isinstance(message, DropBlocks):
            for key in [k for k in self.memory if k[0] == to and k[1] in message.nodes]:
                del self.memory[key]

    def _check_parents(self, task: Launched) -> None:
        """What a task needs is among its inputs, or cached where it was sent."""
        with contextlib.suppress(UnreadableError):
            self._content(task, (self._root(task), task.partition), {}, {}, strict=True)

    def told_to_stop(self) -> list[Launched]:
        kills = [(m.task, m.queued_only) for m in self.messages(KillTask)]
        return [self.open[task] for task, _ in kills if task in self.open]

    # --- Copies ---

    def carry_out(self, number: int) -> None:
        """A copy is made of what is there; or the truth is told of what is not."""
        maker, order = self.orders.pop(number)
        told, status, cached = self.copied(maker, order), order.output, order.cached
        if status is not None:
            if (status.store, status.attempt) in self.lost or not self._host_is_there(status.host):
                told = CopyMade(number, evidence="missing" if self._host_is_there(status.host) else "refused")
            else:
                self.copied_outputs[(maker, status.attempt)] = self.host_of[maker]
        else:
            assert cached is not None and told.cached is not None and told.cached.block is not None
            if cached.block is None:
                content = self.memory.get((maker, cached.node, cached.partition))
            else:
                content = self.disk[cached.block.key][2] if cached.block.key in self.disk else None
            if content is None:
                told = CopyMade(number, evidence="gone" if cached.block is None else "missing")
            else:
                ref = told.cached.block
                self.disk[ref.key] = (ref.host, cached.node, content)
                checksum = zlib.crc32(repr(sorted(content.items(), key=repr)).encode())
                told = replace(told, cached=replace(told.cached, block=replace(ref, checksum=checksum)))
        self.tell(maker, told)

    def forget_orders(self, maker: Incarnation) -> None:
        for number in [n for n, (to, _) in self.orders.items() if to == maker]:
            del self.orders[number]

    # --- Tasks ---

    def committed(self, task: Launched, content: Content) -> MapStatus:
        """The output that the attempt writes; its bytes follow from what it has read, and from chance."""
        assert task.message.output is not None
        self.contents[task.task] = content
        shuffle = task.message.output.shuffle
        read = sorted(self.far_on[task.task][0].items(), key=repr)
        checksum = zlib.crc32(repr((shuffle, task.partition, self.chaos, read)).encode())
        accums = ((1, f"m{shuffle}.{task.partition}".encode()),)
        return self.status(task, checksum=checksum, accums=accums)

    def output(
        self, task: Launched, content: Content, cached: list[CachedBlock] | None, on_disk: bool
    ) -> MapStatus | None:
        return (
            self.committed(task, content) if self._compute(task, content, cached, on_disk) is None else None
        )

    def finish(
        self, task: Launched, cache: bool = False, on_disk: bool = False, stored: bool = False
    ) -> None:
        """The attempt runs to its end: a success if all that it needs can be read."""
        content: Content = {}
        cached: list[CachedBlock] = []
        problem = self._compute(task, content, cached, on_disk, room=cache)
        if problem is not None:
            self.say(task, TaskEnd(task.task, problem))
            return
        if task.is_map:
            output = self.committed(task, content)
            self.say(task, TaskEnd(task.task, Success(output), output.accums, tuple(cached)))
            return
        job = self.job_of_blob[task.message.blob]
        host, key_ = self.host_of[task.executor], b"result%d" % task.task
        result = StoredResult(BlockRef(host, task.executor, 0, key_)) if stored else InlineResult(b"")
        accums = ((1, f"r{job}.{task.partition}".encode()),)
        self.say(task, TaskEnd(task.task, Success(result=result), accums, tuple(cached)))
        if self.results[job].get(task.partition) is result:
            self.reads.setdefault(job, {})[task.partition] = content

    def read_ahead(self, task: Launched) -> None:
        """The attempt reads all its inputs now, whatever becomes of them later."""
        if task.task in self.open:
            self._compute(task, {}, [], False)

    def break_off(self, task: Launched) -> None:
        """The attempt does what it was told; it may have put something into its executor's memory."""
        _, fresh = self.far_on.get(task.task, ({}, {}))
        cached = [self._keep(task, node, partition, held, False) for (node, partition), held in fresh.items()]
        self.say(task, TaskEnd(task.task, Killed("told to"), cached=tuple(cached)))

    def _compute(
        self,
        task: Launched,
        content: Content,
        cached: list[CachedBlock] | None,
        on_disk: bool,
        room: bool = True,
    ) -> FetchFailed | None:
        """What the task reads, all told, into ``content``; or what it could not read.  ``cached`` takes what
        it says of persisted partitions."""
        if task.task not in self.far_on:
            fresh: dict[tuple[NodeId, int], Content] = {}
            try:
                read = self._content(task, (self._root(task), task.partition), {}, fresh)
            except UnreadableError as unreadable:
                return unreadable.failed
            self.far_on[task.task] = read, fresh
        read, fresh = self.far_on[task.task]
        content.update(read)
        for (node, partition), held in fresh.items() if cached is not None else ():
            assert cached is not None
            if room:
                cached.append(self._keep(task, node, partition, held, on_disk))
            else:  # it is told all the same which edition was computed (BL-12)
                (edition,) = held["kept", node, partition]
                cached.append(CachedBlock(node, partition, 0, checksum=edition, kept=False))
        return None

    def _content(
        self,
        task: Launched,
        key: tuple[NodeId, int],
        known: dict[tuple[NodeId, int], Content],
        fresh: dict[tuple[NodeId, int], Content],
        strict: bool = False,
    ) -> Content:
        """What one partition of one node is made of.  ``fresh`` collects what is to be persisted."""
        if key in known:
            return known[key]
        content = known[key] = {}
        node = self.lineage.nodes[key[0]]
        if node.persisted and (held := self._held(task, key)) is not None:
            content.update(held)
            return content
        for shuffle in node.shuffles:
            assert not strict or shuffle in task.outputs, "S5: launched without what it needs"
            _join(content, self._shuffle_content(task, shuffle), self.unpersisted)
        for narrow in node.narrow:
            for parent in narrow.mapping.parents(key[1]):
                below = self._content(task, (narrow.parent, parent), known, fresh, strict)
                _join(content, below, self.unpersisted)
        if node.persisted:
            edition = zlib.crc32(repr((key, self.chaos, sorted(content.items(), key=repr))).encode()) | 1
            content["kept", *key] = (edition,)
            fresh[key] = content
        return content

    def _held(self, task: Launched, key: tuple[NodeId, int]) -> Content | None:
        if (task.executor, *key) in self.memory:
            return self.memory[(task.executor, *key)]
        for offered in task.launch.cached:
            if (offered.node, offered.partition) == key:
                assert offered.block is not None
                if offered.block.key not in self.disk:
                    raise UnreadableError(_block_missing(offered.block))
                return self.disk[offered.block.key][2]
        return None

    def _shuffle_content(self, task: Launched, shuffle: ShuffleId) -> Content:
        read = next((read for read in task.message.inputs if read.shuffle == shuffle), None)
        if read is None:
            raise UnreadableError(FetchFailed(shuffle, Generation(0), -1, HostId(""), "", "missing"))
        statuses = task.outputs[shuffle].statuses
        content: Content = {shuffle: tuple(status.checksum for status in statuses)}
        for status in statuses:
            if (status.store, status.attempt) in self.lost or not self._host_is_there(status.host):
                where = status.map_index, status.host, status.store
                raise UnreadableError(FetchFailed(shuffle, read.generation, *where, "missing"))
            _join(content, self.contents[status.attempt], self.unpersisted)
        return content

    def _keep(
        self, task: Launched, node: NodeId, partition: int, content: Content, on_disk: bool
    ) -> CachedBlock:
        (edition,) = content["kept", node, partition]
        if not on_disk:
            self.memory[(task.executor, node, partition)] = content
            return CachedBlock(node, partition, 1, checksum=edition)
        key, host = b"%d.%d.%d" % (node, partition, task.task), self.host_of[task.executor]
        self.disk[key] = (host, node, content)
        checksum = zlib.crc32(repr(sorted(content.items(), key=repr)).encode())
        return CachedBlock(node, partition, 1, BlockRef(host, task.executor, 0, key, 10, checksum), edition)

    def _root(self, task: Launched) -> NodeId:
        if task.message.output is not None:
            return self.lineage.shuffles[task.message.output.shuffle].parent
        return self.targets[task.message.blob]

    def _host_is_there(self, host: str) -> bool:
        return self.worker_of(host) is not None

    def say(self, task: Launched, end: TaskEnd) -> None:
        self.open.pop(task.task, None)
        message = TaskUpdates((task.task,), (end,))
        self.last.append((task.executor, message))
        self.tell(task.executor, message)


class UnreadableError(Exception):
    """Something that a task needs cannot be read."""

    def __init__(self, failed: FetchFailed) -> None:
        super().__init__(failed.evidence)
        self.failed = failed


def _join(content: Content, other: Content, unpersisted: Collection[NodeId]) -> None:
    """Everything under a result must be of one content: this is what a rollback is for.  A task may meet two
    while it runs, when one of them is what it has just put into the cache: its end must not count."""
    for what, checksums in other.items():
        if content.setdefault(what, checksums) != checksums and (
            isinstance(what, int) or what[1] not in unpersisted
        ):
            content["mixed", *(what if isinstance(what, tuple) else (what,))[1:]] = (1,)


def _assert_of_one_piece(whole: Content, what: str) -> None:
    mixed = [key for key in whole if isinstance(key, tuple) and key[0] == "mixed"]
    assert not mixed, f"S6: {what} was answered from two contents of {mixed}"


def _block_missing(block: BlockRef) -> FetchFailed:
    return FetchFailed(ShuffleId(-1), Generation(0), -1, block.host, block.store, "missing", "", block)


class History:
    """One random history.  Every method of ``ACTIONS`` is one step; ``rng`` decides what it leaves open."""

    def __init__(self, rng: Random) -> None:
        self.world = world = World(
            scheduler_mode=rng.choice(["FIFO", "FAIR"]),
            prefetch_tasks=rng.randrange(3),
            locality_wait_s=rng.choice([0.0, 1.0]),
            max_failures=rng.choice([1, 2, 4, 4]),
            speculation=True,
            speculation_min_finished=1,
            speculation_quantile=0.5,
            speculation_min_s=0.01,
            stall_timeout_s=rng.choice([0.0, 2.0]),
            exclude_app_tasks=rng.choice([1, 2]),
            exclude_stage_tasks=rng.choice([1, 2]),
            exclude_app_executors=rng.choice([1, 2]),
            task_timeout_s=rng.choice([0.0, 0.0, 8.0]),
            shuffle_replicas=rng.choice([1, 2, 3]),
        )
        for host in HOSTS[: rng.choice([1, 2, 2])]:
            world.fresh_worker(host)
            for _ in range(rng.randrange(3)):
                world.fresh_executor(host)
        for _ in range(rng.randrange(10)):
            self.grow(rng)

    def step(self, action: str, rng: Random) -> None:
        getattr(self, action)(rng)

    # --- The program ---

    def grow(self, rng: Random) -> None:
        lineage = self.world.lineage
        kinds = [
            "source",
            "barrier",
            "map",
            "zip",
            "union",
            "reduce",
            "reduce",
            "reduce",
            "join",
            "persist",
            "persist",
        ]
        kind, count = rng.choice(kinds), rng.randrange(1, 4)
        nodes = self._nodes()
        if not nodes:
            kind = "source"
        node = rng.choice(nodes[-6:]) if nodes else NodeId(0)
        size = lineage.nodes[node].partition_count if nodes else 0
        match kind:
            case "source":
                lineage.source(count, {0: (HostId("h0"),)} if rng.random() < 0.3 else None)
            case "map":
                lineage.map(node)
            case "barrier" if not self.world.submitted & {node} and rng.random() < 0.5:
                lineage.barrier(node)
            case "zip":
                peers = [n for n in nodes[-6:] if lineage.nodes[n].partition_count == size]
                lineage.zip(node, rng.choice(peers))
            case "union" if size <= 4:
                lineage.union(node, rng.choice(nodes[:3]))
            case "reduce":
                lineage.reduce(node, count)
            case "join":
                other = rng.choice(nodes[-6:])
                lineage.read(lineage.shuffle(node, count), lineage.shuffle(other, count))
            case "persist" if not self._used(node):
                lineage.persist(node, rng.choice([1, 2, 2, 3]))

    def _nodes(self) -> list[NodeId]:
        """Nodes of the program that runs now."""
        return [node for node in sorted(self.world.lineage.nodes) if node >= self.world.floor]

    def _used(self, node: NodeId) -> bool:
        """Marks of nodes that were submitted stay as they are: functions are pickled once."""
        return node in self.world.submitted

    def submit(self, rng: Random) -> None:
        world = self.world
        if not self._nodes() or len(world.core.dag.jobs) >= 4:
            return
        target = rng.choice(self._nodes()[-5:])
        count = world.lineage.nodes[target].partition_count
        chosen = None if rng.random() < 0.8 else sorted(rng.sample(range(count), rng.randrange(count + 1)))
        job = JobId(world._jobs)
        world.targets[BlobId(job)] = target
        world.job_of_blob[BlobId(job)] = job
        world.submitted.update(world.lineage.shape(target).nodes)
        final = rng.random() < 0.2
        if final:
            world.final.add(job)
        scope = world.scopes[job] = world.scope if rng.random() < 0.5 else -1
        world.submit(world.lineage, target, chosen, pool=rng.choice("ab"), final=final, scope=scope)

    def an_action_ends(self, rng: Random) -> None:
        """Its jobs have ended, and all their results have been read."""
        world, dag = self.world, self.world.core.dag
        if all(job.scope != world.scope for job in [*dag.jobs.values(), *dag.held.values()]):
            world.do(Released(scopes=(world.scope,)))
            world.scope += 1

    def cancel(self, rng: Random) -> None:
        if self.world.core.dag.jobs:
            self.world.cancel(rng.choice(sorted(self.world.core.dag.jobs)))

    def unpersist(self, rng: Random) -> None:
        nodes = sorted(n for n, shape in self.world.lineage.nodes.items() if shape.persisted)
        if nodes:
            node = rng.choice(nodes)
            self.world.unpersisted.add(node)
            self.world.do(Released(nodes=(node,)))

    def close_ended_jobs(self, rng: Random) -> None:
        self.world.do(Released(blobs=tuple(BlobId(job) for job in self.world.finished)))

    def release_the_program(self, rng: Random) -> None:
        world = self.world
        world.unpersisted.update(world.lineage.nodes)
        world.do(Released(tuple(world.lineage.shuffles), tuple(world.lineage.nodes)))
        world.floor = len(world.lineage.nodes)

    def result_is_lost(self, rng: Random) -> None:
        world = self.world
        stored = [
            (job, partition)
            for job in [*world.core.dag.jobs, *world.core.dag.held]
            for partition, result in world.results[job].items()
            if isinstance(result, StoredResult)
        ]
        if stored:
            job, partition = rng.choice(sorted(stored))
            world.finished.pop(job, None)
            del world.results[job][partition]
            world.do(ResultLost(job, partition, "gone"))
            assert job in world.core.dag.jobs or job in world.finished

    def functions_turn_out_random(self, rng: Random) -> None:
        self.world.chaos += 1

    # --- Tasks ---

    def _task(self, rng: Random) -> Launched | None:
        return rng.choice([task for _, task in sorted(self.world.open.items())]) if self.world.open else None

    def task_starts(self, rng: Random) -> None:
        if task := self._task(rng):
            self.world.start(task)
            self.world.read_ahead(task)

    def task_runs(self, rng: Random) -> None:
        if task := self._task(rng):
            self.world.finish(task, rng.random() < 0.7, rng.random() < 0.3, rng.random() < 0.5)

    def some_tasks_run(self, rng: Random) -> None:
        for _ in range(rng.randrange(1, 9)):
            self.task_runs(rng)

    def barrier_is_called(self, rng: Random) -> None:
        """A member calls, or all members of its gang do."""
        gangs = [task for _, task in sorted(self.world.open.items()) if task.message.gang]
        if gangs:
            task = rng.choice(gangs)
            everyone = rng.random() < 0.5
            for each in gangs if everyone else [task]:
                if each.message.stage == task.message.stage:
                    self.world.tell(each.executor, BarrierSync(each.task, 1, "barrier"))

    def task_fails(self, rng: Random) -> None:
        if task := self._task(rng):
            kinds: list[EndReason] = [
                UserError("ValueError", "no", "trace"),
                UserError("ValueError", "no", "trace"),
                UserError("ValueError", "no", "trace", retryable=False),
                HostError("STORAGE_FULL", "disk full", 10, 1),
                NotLoadable("ImportError", "no", "trace"),
                UserError("MemoryError", "no", "trace", "TASK_OUT_OF_MEMORY"),
                Killed("by itself"),
            ]
            self.world.say(task, TaskEnd(task.task, rng.choice(kinds)))

    def task_cannot_fetch(self, rng: Random) -> None:
        task = self._task(rng)
        if task is not None and task.message.inputs:
            count = len(task.outputs[task.message.inputs[0].shuffle].statuses)
            if count:
                evidence = rng.choice(["refused", "timeout", "corrupt", "missing"])
                self.world.fetch_failed(task, rng.randrange(count), evidence)

    def killed_tasks_stop(self, rng: Random) -> None:
        for task in self.world.told_to_stop():
            self.world.break_off(task)

    def a_store_lies(self, rng: Random) -> None:
        """Two readers in a row meet something corrupt in the store of one live executor (BL-10)."""
        world = self.world
        store = rng.choice(sorted(world.core.executors.live) or [""])
        for _ in range(2):
            for task in [task for task in world.running() if task.message.inputs]:
                statuses = task.outputs[task.message.inputs[0].shuffle].statuses
                here = [index for index, status in enumerate(statuses) if status.store == store]
                if here:
                    world.fetch_failed(task, here[0], "corrupt")
                    break

    def an_output_rots(self, rng: Random) -> None:
        statuses = [s for outputs in self.world.core.outputs for s in outputs.statuses if s is not None]
        if statuses:
            status = rng.choice(statuses)
            self.world.lost.add((status.store, status.attempt))

    def something_is_said_again(self, rng: Random) -> None:
        if self.world.last:
            sender, message = rng.choice(self.world.last[-8:])
            before = {job: len(results) for job, results in self.world.results.items()}
            self.world.tell(sender, message)
            assert before == {job: len(results) for job, results in self.world.results.items()}, "S26"

    def a_zombie_speaks(self, rng: Random) -> None:
        world = self.world
        if not world.zombies:
            return
        task = rng.choice(world.zombies[-8:])
        if task.executor in world.core.executors.live:
            # An orphan that died with its worker is listed until the grace is over: its last word counts.
            world.finish(task)
            return
        assert task.executor in world.core.executors.fenced
        end = TaskEnd(task.task, world.success(task))
        world.tick()  # what is due anyway (a gang without slots is given up) is no answer either
        effects = world.tell(task.executor, TaskUpdates((), (end,)))
        # One that leaves may be let go in any turn: that is no answer.
        told = [e.message for e in effects if isinstance(e, Send) and e.to == task.executor]
        assert set(map(type, told)) <= {MayLeave}, "S8"
        assert not any(isinstance(e, DeliverResult | MergeAccums) for e in effects), "S8"

    # --- Copies ---

    def copies_are_made(self, rng: Random) -> None:
        for number in rng.sample(sorted(self.world.orders), min(len(self.world.orders), rng.randrange(1, 5))):
            if number in self.world.orders:
                self.world.carry_out(number)

    def a_copy_fails(self, rng: Random) -> None:
        if self.world.orders:
            evidence = rng.choice(["timeout", "refused", "STORAGE_FULL", "corrupt", "failed"])
            self.world.copy_fails(evidence, rng.choice(sorted(self.world.orders)))

    # --- Who leaves ---

    def somebody_is_asked_to_leave(self, rng: Random) -> None:
        core = self.world.core
        leavers = sorted(core.executors.live) + sorted(core.executors.workers)
        if leavers:
            self.world.tell(rng.choice(leavers), Leaving(rng.choice([2.0, 30.0])))

    def who_may_leave_goes(self, rng: Random) -> None:
        """It was told so, or its time is over."""
        world, core = self.world, self.world.core
        leavers = list(core.executors.leaving.values())
        for leaver in leavers:
            notice = leaver.leaving
            assert notice is not None
            if leaver.id not in core.executors.leaving or not (
                notice.released or notice.until_s <= core.turn.now_s
            ):
                continue
            if leaver.id in core.executors.live:
                world.gone(leaver.id)
                world.tell(core.executors.live[leaver.id].worker.id, ExecutorExited(leaver.id, 73, 0))
            else:
                self._lose_worker(leaver.id)

    # --- Processes ---

    def executor_comes(self, rng: Random) -> None:
        if len(self.world.live) < 6:
            host = rng.choice(HOSTS)
            if self.world.worker_of(host) is None:
                self.world.fresh_worker(host)
            self.world.fresh_executor(host)

    def executor_dies(self, rng: Random) -> None:
        world = self.world
        if not world.live:
            return
        executor = rng.choice(sorted(world.live))
        how = rng.choice([(0, 9), (0, 9), (0, 11), (1, 0), (70, 0)])
        outputs = []
        if rng.random() < 0.5:
            for task in [t for t in world.open.values() if t.executor == executor and t.is_map]:
                if (output := world.output(task, {}, None, False)) is not None:
                    outputs.append(output)
        worker = world.core.executors.live[executor].worker.id
        touched = []
        places = [place for o in world.core.outputs for place in o.statuses if place is not None]
        if how == (0, 11) and places:  # it has died reading one of these, and so will not be adopted itself
            place = rng.choice(places)
            damaged = rng.random() < 0.7
            touched.append(SegmentTouched(place.host, place.store, place.segment, damaged))
            outputs = [] if damaged and place.store == executor else outputs
        world.gone(executor)
        oom = how == (0, 9) and rng.random() < 0.3
        exited = ExecutorExited(executor, *how, "", tuple(outputs), oom=oom, touched=tuple(touched))
        world.tell(worker, exited)

    def executor_falls_silent(self, rng: Random) -> None:
        world = self.world
        if world.live:
            executor = rng.choice(sorted(world.live))
            world.pass_time(11.0, silent=[executor])
            if executor not in world.core.executors.live:
                world.gone(executor)

    def executor_is_stopped(self, rng: Random) -> None:
        if self.world.live:
            executor = rng.choice(sorted(self.world.live))
            worker = self.world.core.executors.live[executor].worker.id
            self.world.tell(worker, ExecutorStopped(executor, rng.random() < 0.5))

    def link_to_an_executor_breaks(self, rng: Random) -> None:
        if self.world.live:
            self.world.do(PeerGone(rng.choice(sorted(self.world.live)), "link closed"))

    def worker_is_lost(self, rng: Random) -> None:
        world = self.world
        if not world.core.executors.workers:
            return
        self._lose_worker(rng.choice(sorted(world.core.executors.workers)))

    def _lose_worker(self, worker: Incarnation) -> None:
        world = self.world
        state = world.core.executors.workers[worker]
        for executor in list(state.executors):
            world.gone(executor)
        world.forget_orders(worker)
        world.tell("manager-1", WorkerLost(worker, "gone"))
        if world.worker_of(state.host) is None:
            world.host_gone(state.host)

    def worker_is_replaced(self, rng: Random) -> None:
        """Some of its executors outlive it, and its heir finds some of what lay on the host."""
        world = self.world
        if not world.core.executors.workers:
            return
        worker = rng.choice(sorted(world.core.executors.workers))
        state = world.core.executors.workers[worker]
        host, survivors = state.host, [e for e in state.executors if rng.random() < 0.6]
        others = [w for w in world.core.executors.workers.values() if w.host == host and w is not state]
        for executor in list(state.executors):
            if executor not in survivors:
                world.gone(executor)
        world.tell("manager-1", WorkerLost(worker, "gone"))
        world.pass_time(rng.choice([0.5, 1.0, 6.0]))
        statuses = [s for o in world.core.outputs for s in o.statuses if s is not None and s.host == host]
        kept = [s for s in statuses if (s.store, s.attempt) not in world.lost and rng.random() < 0.7]
        if not others:  # what another serves is there, whatever this one finds
            alive = [e.id for e in world.core.executors.live.values() if e.host == host]
            gone = [s for s in statuses if s not in kept and s.store not in alive]
            world.lost.update((s.store, s.attempt) for s in gone)
        stores = tuple(sorted({s.store for s in statuses} | set(survivors)))
        world.workers += 1
        served = StoresServed(tuple(survivors), tuple(kept), stores)
        world.add_worker(host, f"worker-{host}-{world.workers}", served)
        for executor in survivors:
            if executor not in world.core.executors.live:
                world.gone(executor)

    def time_passes(self, rng: Random) -> None:
        self.world.pass_time(rng.choice([0.06, 0.5, 1.0, 6.0]))

    def tasks_hang(self, rng: Random) -> None:
        stuck = [executor for executor in self.world.live if rng.random() < 0.5]
        self.world.pass_time(5.0, stuck=stuck)
        if self.world.live and rng.random() < 0.5:
            executor = rng.choice(sorted(self.world.live))
            worker = self.world.core.executors.live[executor].worker.id
            self.world.tell(worker, ExecutorStacks(executor, "it stands here"))

    def the_driver_stalls(self, rng: Random) -> None:
        self.world.pass_time(0.5)
        well = {executor.id for executor in self.world.core.executors.live.values() if executor.accepting}
        self.world.tick(rng.choice([5.0, 60.0]))
        assert well <= set(self.world.live), "CLK-4: nobody is lost by the driver's own stall"

    # --- The end ---

    def end(self) -> None:
        """The faults stop: every job ends, nothing is left, and the answers are of one piece."""
        world = self.world
        self._heal()
        assert not world.core.dag.jobs, f"L1: {world.core.dag.jobs} never end"
        world.do(Released(blobs=tuple(BlobId(job) for job in world.finished), scopes=(world.scope,)))
        for _ in range(8):
            self._settle()
        self._check_copies()
        world.core.assert_idle()
        self._check_answers()
        self._check_the_story()

    def _check_the_story(self) -> None:
        """What is noted explains every start, and every recovery that began has ended."""
        causes, recoveries = Causes(), Recoveries()
        begun: set[tuple[int, int]] = set()
        told: Counter[str] = Counter()
        for at, note in enumerate(self.world.notes):
            record = {"event": note.kind, "t_ms": at, **note.fields}
            why = causes.feed(record)
            if note.kind == "task_start":
                place = record["stage"], record["partition"]
                again = place in begun and not record["speculative"]
                unexplained = {cause.kind for cause in why} <= {"unknown", "stage_attempt"}
                assert not (again and unexplained), f"nothing says why {record} was started again: {why}"
                begun.add(place)
            told.update(found["event"] for found in recoveries.feed(record))
        assert told["recovery_start"] == told["recovery_end"]
        assert recoveries.is_idle(), "the recoveries of ended jobs are forgotten"

    def _check_copies(self) -> None:
        """Everything gets its copies, as far as there are hosts and nobody has had trouble making one."""
        world, core = self.world, self.world.core
        for _ in range(100):
            for number in sorted(world.orders):
                if number in world.orders:
                    world.carry_out(number)
            world.pass_time(0.5)
            if not (world.orders or core.copies.lacking):
                break
        assert not core.copies.flying and not core.copies.lacking, "L5"
        wanted = min(world.settings.shuffle_replicas, len(core.executors.staying()))
        for outputs in core.outputs if not world.kinds()["copy_failed"] else ():
            counts = [len(outputs.locations(index)) for index in range(outputs.map_count)]
            assert all(count >= wanted for count in counts if count), "L5: nobody makes a copy"

    def _heal(self) -> None:
        world = self.world
        self.who_may_leave_goes(Random(0))
        for host in HOSTS[:2]:
            world.fresh_worker(host)
            for _ in range(2):
                world.fresh_executor(host)
        for executor in list(world.core.executors.live.values()):
            world.tell(executor.worker.id, ExecutorStopped(executor.id, False))
        for _ in range(200):
            if not world.core.dag.jobs:
                return
            told = {task.task for task in world.told_to_stop()}
            for task in list(world.open.values()):
                if task.task in told:
                    world.break_off(task)
                elif task.task in world.open:
                    world.finish(task)
            world.pass_time(0.5)
            self._doomed_die()

    def _settle(self) -> None:
        """Executors answer what they were told, or are killed for not doing so."""
        for task in self.world.told_to_stop():
            self.world.break_off(task)
        self.world.pass_time(1.0)
        self._doomed_die()

    def _doomed_die(self) -> None:
        world = self.world
        for executor in list(world.core.executors.live.values()):
            if executor.doomed:
                world.gone(executor.id)
                world.tell(executor.worker.id, ExecutorExited(executor.id, 0, 9))

    def _check_answers(self) -> None:
        world, scopes = self.world, dict[int, Content]()
        for job, failure in world.finished.items():
            if failure is not None:
                assert failure.condition in NAMED, failure
                taken_back = failure.condition != "INDETERMINATE_OUTPUT_ROLLBACK"
                scoped = world.scopes[job] >= 0
                assert taken_back or scoped or job in world.final, "BL-5: results that are held come again"
                continue
            whole: Content = {}
            for content in world.reads.get(job, {}).values():
                _join(whole, content, world.unpersisted)
            _assert_of_one_piece(whole, f"job {job}")
            if (scope := world.scopes[job]) >= 0:
                _join(scopes.setdefault(scope, {}), whole, world.unpersisted)
        for scope, whole in scopes.items():
            _assert_of_one_piece(whole, f"scope {scope}")
        merged = Counter(payload for update in world.accums for _, payload in update)
        assert not [payload for payload, count in merged.items() if count > 1], "S20"


ACTIONS = {  # and how often they come in a long history, in relation to each other
    "grow": 6, "submit": 10, "cancel": 1, "unpersist": 1, "close_ended_jobs": 2, "release_the_program": 1,
    "result_is_lost": 1, "functions_turn_out_random": 2,
    "task_starts": 10, "task_runs": 40, "some_tasks_run": 10, "task_fails": 3, "task_cannot_fetch": 2,
    "copies_are_made": 8, "a_copy_fails": 1, "somebody_is_asked_to_leave": 2,
    "who_may_leave_goes": 2,
    "barrier_is_called": 2, "an_action_ends": 1,
    "killed_tasks_stop": 5, "an_output_rots": 3, "a_store_lies": 2,
    "something_is_said_again": 2, "a_zombie_speaks": 2,
    "executor_comes": 8, "executor_dies": 4, "executor_falls_silent": 1, "executor_is_stopped": 1,
    "link_to_an_executor_breaks": 1, "worker_is_lost": 2, "worker_is_replaced": 2,
    "time_passes": 5, "the_driver_stalls": 1,
    "tasks_hang": 1,
}  # fmt: skip


def play(seed: int, steps: int) -> History:
    """A long history drawn from a seed."""
    rng = Random(seed)
    history = History(rng)
    # Swarm: each history leaves some kinds of steps out, so that others go deeper.
    left_out = set(rng.sample(sorted(ACTIONS), rng.randrange(8))) - {"submit", "task_runs", "grow"}
    actions = [action for action in ACTIONS if action not in left_out]
    for action in rng.choices(actions, [ACTIONS[action] for action in actions], k=steps):
        history.step(action, rng)
    history.end()
    return history


SEEDS = int(environment("SPARK_FT_SIM_SEEDS", "60"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_history_keeps_every_invariant_and_ends(seed: int) -> None:
    play(seed, 150)


class SchedulerMachine(RuleBasedStateMachine):
    """The same steps, chosen and shrunk by Hypothesis."""

    @initialize(rng=st.randoms(use_true_random=False))
    def begin(self, rng: Random) -> None:
        self.history = History(rng)

    @rule(action=st.sampled_from(list(ACTIONS)), rng=st.randoms(use_true_random=False))
    def step(self, action: str, rng: Random) -> None:
        self.history.step(action, rng)

    def teardown(self) -> None:
        if hasattr(self, "history"):
            self.history.end()


TestSchedulerMachine = SchedulerMachine.TestCase
