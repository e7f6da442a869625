"""One task from bytes to its end: a ShuffleMapTask writes a map output, a ResultTask answers.

    blob ──load_stage──> nodes ──pipeline──> iterator ──┬─ write_map_output ──> MapStatus
                                                         └─ function ──> result, inline or stored

The pipeline is built bottom-up with an explicit stack, so depth of lineage costs no recursion:
runs of element-wise nodes become one loop, persisted partitions are looked up before anything is
computed, and a chain of iterators that would nest too deep is cut by a spool.

Nothing that user code does gets past ``TaskRunner.run``: it answers a ``TaskEnd`` whatever happens.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from spark_ft import accumulators, broadcast, closures, failpoints, files, interrupts, rows
from spark_ft.clock import perf_s
from spark_ft.errors import BlockCorrupt, FetchError, StorageError
from spark_ft.executor.barrier import Barriers
from spark_ft.executor.captured import Fresh
from spark_ft.executor.env import Env, ProcessEnv, block_failed
from spark_ft.executor.failures import UnpicklableResultError, reason_of, words_and_trace
from spark_ft.executor.tidy import Tidy
from spark_ft.ids import BlobId, HostId, Incarnation, NodeId, TaskId
from spark_ft.lineage.dependency import NarrowDependency, served
from spark_ft.lineage.narrow import fuse
from spark_ft.lineage.node import Node
from spark_ft.protocol.effects import Forget, LearnHosts, LoadBlob, RunTask
from spark_ft.protocol.messages import (
    BlockRef,
    CachedBlock,
    EndReason,
    HostError,
    InlineResult,
    Killed,
    Launch,
    LaunchTasks,
    NotLoadable,
    StoredResult,
    Success,
    TaskEnd,
)
from spark_ft.settings import Settings
from spark_ft.shuffle.spill import estimate_bytes, in_batches
from spark_ft.shuffle.writer import write_map_output
from spark_ft.storage.blocks import OutputKey
from spark_ft.storage.digest import UNKNOWN, Digest
from spark_ft.storage.kept import Kept
from spark_ft.storage.memory import Held
from spark_ft.taskcontext import BarrierTaskContext, TaskContext
from spark_ft.transport.keys import Keys

_DEPTH_MAX = 100  # iterators nested in one another; each may need several frames
_CHUNK = 1 << 20


class TaskRunner:
    """Runs this executor's tasks.  ``run`` is called by the slot's thread, all else by the I/O thread."""

    def __init__(
        self,
        settings: Settings,
        me: Incarnation,
        host: HostId,
        roots: dict[HostId, Path],
        root: Path,
        token: bytes,
        keys: Keys | None = None,
    ) -> None:
        self._settings = settings
        self._env = ProcessEnv(settings, me, host, root, roots, token, keys)
        self._blobs: dict[BlobId, LoadBlob] = {}
        self._stages: dict[BlobId, dict[int, Fresh]] = {}  # of each slot's thread
        self._results: dict[BlobId, list[BlockRef]] = {}
        self._kept: dict[NodeId, list[BlockRef]] = {}  # persisted partitions in our store
        self.barriers = Barriers()
        self._lock = threading.RLock()
        self._tidy: Tidy | None = None
        self._current: dict[TaskId, Env] = {}
        broadcast.set_loader(Env(self._env, ()).read_block)

    @property
    def env(self) -> ProcessEnv:
        return self._env

    def keep(self, node: NodeId, block: BlockRef) -> None:
        """A persisted partition lies in our store until the node is dropped."""
        with self._lock:
            self._kept.setdefault(node, []).append(block)

    # --- I/O thread ---

    def load(self, blob: LoadBlob) -> None:
        self._blobs[blob.blob] = blob

    def forget(self, what: Forget) -> None:
        with self._lock:
            for node in what.nodes:
                self._env.memory.drop(node)
            stale = [ref for blob in what.blobs for ref in self._results.pop(blob, ())]
            for blob in what.blobs:
                self._blobs.pop(blob, None)
                self._stages.pop(blob, None)
            stale += [ref for node in what.nodes for ref in self._kept.pop(node, ())]
        for shared in what.broadcasts:
            broadcast.forget(shared)
        if stale:
            self._env.writer().drop_blocks(stale)
        if what.shuffles:
            self._env.drop_shuffles(what.shuffles)

    def learn(self, hosts: LearnHosts) -> None:
        self._env.hosts.update({HostId(host): endpoint for host, endpoint in hosts.hosts.items()})

    def records(self, task: TaskId) -> int:
        """Records that this running task has read from shuffles so far."""
        env = self._current.get(task)
        return env.record_count if env else 0

    def tidy(self) -> None:
        """Let go of files that others have unlinked meanwhile: until then their space is taken."""
        self._env.reader.tidy()

    def close(self) -> None:
        self._env.close()

    # --- Slot ---

    def tidy_up_after_each(self) -> None:
        """From now on no task finds what another one has left; for a process that runs one at a time."""
        self._tidy = Tidy()

    def run(self, run: RunTask) -> TaskEnd:
        launch = run.launch.tasks[run.index]
        attempt = _Attempt(self._env, run, self._lock)
        self._current[launch.task] = attempt.env
        started_s = perf_s()
        accumulators.begin_task()
        try:
            with interrupts.armed():
                reason = self._attempt(run.launch, launch, attempt)
        except interrupts.TaskKilled:
            reason = Killed("killed by the driver")
        except BaseException as error:  # whatever user code raises ends the task, not the executor
            reason = reason_of(error)
            if isinstance(error, MemoryError):
                attempt.drop_cache()
        finally:
            TaskContext._set(None)
            self._current.pop(launch.task, None)
            if run.launch.gang:
                self.barriers.forget(launch.task)
        for held in attempt.cached:
            if held.block is not None:
                self.keep(held.node, held.block)
        updates = accumulators.take_updates() if isinstance(reason, Success) else ()
        return TaskEnd(
            launch.task,
            reason,
            updates if run.launch.output is None else (),
            tuple(attempt.cached),
            tuple(attempt.dropped),
            perf_s() - started_s,
            attempt.env.record_count,
            self._tidy.up() if self._tidy is not None else "",
        )

    def _attempt(self, stage_launch: LaunchTasks, launch: Launch, attempt: _Attempt) -> EndReason:
        kind = BarrierTaskContext if stage_launch.gang else TaskContext
        context = kind(
            stage_launch.stage,
            launch.partition,
            launch.attempt,
            launch.task,
            dict(stage_launch.properties),
            cpus=self._settings.task_cpus,
        )
        if isinstance(context, BarrierTaskContext):
            context._join(stage_launch.gang, partial(self.barriers.meet, launch.task))
        TaskContext._set(context)
        files.ensure(stage_launch.properties, attempt.env)
        try:
            again = launch.attempt > 0 or stage_launch.stage_attempt > 0
            stage = self._stage(stage_launch.blob, again)
        except (interrupts.TaskKilled, FetchError):
            raise
        except BaseException as error:  # user modules may do anything when they are imported
            if isinstance(reason := reason_of(error), HostError):  # modules are files, too (WK-9)
                return reason
            return NotLoadable(type(error).__name__, *words_and_trace(error))
        # A generation only grows, and so does the sum of several: it changes whenever one of them does.
        written = stage_launch.output
        generation = sum(each.generation for each in ([written] if written else stage_launch.inputs))
        name = stage.name if stage.output is None else stage.output.fingerprint
        context._name(name.hex() or f"{self._settings.app_id}.{stage_launch.stage}", generation)
        records = attempt.pipeline(stage.target, launch.partition, writes=stage_launch.output is not None)
        if stage_launch.output is None:
            assert stage.function is not None
            return Success(result=self._result(stage_launch, launch, stage.function, records))
        assert stage.output is not None
        key = OutputKey(
            stage.output.fingerprint, stage_launch.output.generation, launch.partition, launch.task
        )
        status = write_map_output(
            records,
            stage.output,
            self._env.writer(),
            key,
            budget_bytes=attempt.env.budget_bytes,
            spill_dir=self._env.spill_dir,
            accums=accumulators.take_updates,
            codec_compress=self._env.compress,
            inputs=attempt.env.digest(),
        )
        failpoints.hit("after_manifest_before_report")
        return Success(output=status)

    def _stage(self, blob_id: BlobId, again: bool) -> closures.Stage:
        """The stage's functions as they were sent, whatever earlier attempts have made of what they hold
        (captured.py).  Who computes something ``again`` has the broadcasts so, too (TK-13)."""
        blob, mine = self._blobs[blob_id], self._stages.setdefault(blob_id, {})
        slot = threading.get_ident()
        if again:
            broadcast.forget_all()
            mine.pop(slot, None)
        fresh = mine.get(slot)
        if fresh is None:
            fresh = mine[slot] = Fresh(partial(self._payload, blob))
        return fresh.stage()

    def _payload(self, blob: LoadBlob) -> bytes:
        return blob.payload if blob.block is None else Env(self._env, ()).read_block(blob.block)

    def _result(
        self,
        stage_launch: LaunchTasks,
        launch: Launch,
        function: Callable[[int, Iterator[Any]], Any],
        records: Iterator[Any],
    ) -> InlineResult | StoredResult:
        answer = function(launch.partition, records)
        try:
            payload = closures.dumps(answer)
        except (interrupts.TaskKilled, MemoryError):
            raise
        except BaseException as error:  # the user's own __reduce__ may raise anything
            raise UnpicklableResultError(f"{type(error).__name__}: {error}") from error
        if len(payload) <= self._settings.inline_result_bytes:
            return InlineResult(payload)
        view = memoryview(payload)
        chunks = (bytes(view[i : i + _CHUNK]) for i in range(0, len(view), _CHUNK))
        ref = self._env.writer().put_block("result", b"%d" % launch.task, chunks)
        self._results.setdefault(stage_launch.blob, []).append(ref)
        return StoredResult(ref)


class _Attempt:
    """The pipeline of one attempt, and what it puts into the cache on the way."""

    def __init__(self, process: ProcessEnv, run: RunTask, lock: threading.RLock) -> None:
        self.env = Env(process, run.outputs)
        self.cached: list[CachedBlock] = []
        self.dropped: list[tuple[NodeId, int]] = []
        self._process, self._lock = process, lock
        on_disk = run.launch.tasks[run.index].cached
        self._on_disk = {(c.node, c.partition): c.block for c in on_disk if c.block is not None}

    def pipeline(self, target: Node, partition: int, writes: bool = False) -> Iterator[Any]:
        """The records of one partition, for a task that also ``writes`` a map output or does not.

        Post-order over (node, partition) with an explicit stack.  A pair that several children
        need is computed for each of them, as Spark does, unless that would grow without bound
        (``zip`` of an RDD with itself, thirty times over): then it is computed once and shared.
        """
        plan = _plan(target, partition, self._held)
        self.env.share_budget(sum(step.held is None and step.node.keeps for step in plan) + writes)
        ready: dict[tuple[NodeId, int], list[tuple[Iterator[Any], int]]] = {}
        for step in plan:
            inputs = [ready[key].pop() for key in reversed(step.inputs)][::-1]
            depth = max((d for _, d in inputs), default=0) + step.weight
            sources = [source for source, _ in inputs]
            if depth > _DEPTH_MAX and sources:
                sources = [iter(self.env.spool(source)) for source in sources]
                depth = step.weight
            node, index = step.node, step.partition
            records = step.held() if step.held else None
            if records is None and step.persisted and (again := self._held(node, index)):
                records = again()  # an earlier step of this very task has kept it
            if records is None:
                if step.run is not None:
                    records = fuse(step.run, sources[0])
                else:
                    records = iter(node.compute(index, sources, self.env))
                if step.persisted:
                    records, depth = self._keep(node, index, records), 1
            copies = itertools.tee(records, step.uses) if step.uses > 1 else (records,)
            ready.setdefault((node.id, index), []).extend((copy, depth) for copy in copies)
        return ready[(target.id, partition)].pop()[0]

    # --- Persisted partitions ---

    def _held(self, node: Node, partition: int) -> Callable[[], Iterator[Any]] | None:
        """How to read a persisted partition that is here already, as often as needed."""
        with self._lock:
            found = self._process.memory.get(node.id, partition)
        if found is not None:
            return found.__iter__
        block = self._on_disk.get((node.id, partition))
        return None if block is None else partial(self._from_disk, block)

    def _from_disk(self, block: BlockRef) -> Iterator[Any]:
        try:
            yield from self.env.read_rows(block)
        except BlockCorrupt as error:
            raise _corrupt(block, error) from error

    def _keep(self, node: Node, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        """Compute a persisted partition whole and hold it as its level says."""
        level = node.storage
        if not level.useMemory:
            return self._write(node, partition, records)
        held, size, digest, more = Kept(), 0, Digest(), in_batches(records)
        for batch in more:
            digest.add(batch)
            size += held.add(batch) or estimate_bytes(batch)
            if not self._make_room(node.id, size):
                if level.useDisk:
                    return self._write(node, partition, itertools.chain(held.drain(), records))
                rest = itertools.chain.from_iterable(self._passed_on(node.id, partition, more, digest))
                return itertools.chain(held.drain(), rest)
        checksum = digest.value()
        with self._lock:
            evicted = self._process.memory.put(node.id, partition, held, size, level.useDisk, checksum)
        if any((old.node, old.partition) == (node.id, partition) for old in evicted):  # no room after all
            if level.useDisk:
                return self._write(node, partition, iter(held))
            self._not_kept(node.id, partition, checksum)
            return iter(held)
        self.cached.append(CachedBlock(node.id, partition, size, checksum=checksum))
        self._let_go(evicted)
        return iter(held)

    def _passed_on(
        self, node: NodeId, partition: int, more: Iterator[list[Any]], digest: Digest
    ) -> Iterator[list[Any]]:
        """There is no room: the records go by.  Whoever reads them all has used this edition of the
        partition, and says so (BL-12)."""
        for batch in more:
            digest.add(batch)
            yield batch
        self._not_kept(node, partition, digest.value())

    def _not_kept(self, node: NodeId, partition: int, checksum: int) -> None:
        if checksum != UNKNOWN:  # equal to nothing: each time it is computed all others would begin again
            self.cached.append(CachedBlock(node, partition, 0, checksum=checksum, kept=False))

    def drop_cache(self) -> None:
        """Memory has run out: what is only kept goes first, so that the next attempt has room (MEM-2)."""
        with self._lock:
            gone = self._process.memory.clear()
        self.cached = [held for held in self.cached if held.block is not None]
        self.dropped.extend((old.node, old.partition) for old in gone)

    def _make_room(self, node: NodeId, size_bytes: int) -> bool:
        with self._lock:
            evicted = self._process.memory.make_room(node, size_bytes)
        self._let_go(evicted or ())
        return evicted is not None

    def _let_go(self, evicted: Iterable[Held]) -> None:
        """What had to leave memory goes to disk, where its level says so."""
        for old in evicted:
            self.dropped.append((old.node, old.partition))
            if old.use_disk:
                block = self._store(old.node, old.partition, in_batches(iter(old.records)))
                size = block.size_bytes
                self.cached.append(CachedBlock(old.node, old.partition, size, block, old.checksum))

    def _write(self, node: Node, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        digest = Digest()

        def seen() -> Iterator[list[Any]]:
            for batch in in_batches(records):
                digest.add(batch)
                yield batch

        block = self._store(node.id, partition, seen())
        self.cached.append(CachedBlock(node.id, partition, block.size_bytes, block, digest.value()))
        return self._from_disk(block)

    def _store(self, node: NodeId, partition: int, batches: Iterable[list[Any]]) -> BlockRef:
        return self.env.write_block("rdd", b"%d.%d" % (node, partition), map(rows.encode, batches))


class _Step:
    """One iterator to build: a node's partition, or a whole run of element-wise nodes at its top."""

    __slots__ = ("held", "inputs", "node", "partition", "persisted", "run", "uses", "weight")

    def __init__(self, node: Node, partition: int) -> None:
        self.node, self.partition = node, partition
        self.inputs: list[tuple[NodeId, int]] = []
        self.run: list[tuple[str, Callable[..., Any]]] | None = None
        self.persisted = node.is_persisted
        self.held: Callable[[], Iterator[Any]] | None = None
        self.uses, self.weight = 0, 1


_Held = Callable[[Node, int], Callable[[], Iterator[Any]] | None]


def _plan(target: Node, partition: int, held: _Held) -> list[_Step]:
    """The steps that build ``target``'s partition, inputs first.  Linear in distinct (node, partition)."""
    steps: dict[tuple[NodeId, int], _Step] = {}
    order: list[_Step] = []
    stack: list[tuple[Node, int, bool]] = [(target, partition, False)]
    children: dict[tuple[NodeId, int], list[tuple[Node, int]]] = {}
    while stack:
        node, index, done = stack.pop()
        key = (node.id, index)
        if done:
            order.append(steps[key])
            continue
        if key in steps:
            continue
        step = steps[key] = _Step(node, index)
        below: list[tuple[Node, int]] = []
        if step.persisted:
            step.held = held(node, index)
        if step.held is None:
            top = node
            run = []
            while top.op is not None and (top is node or not top.is_persisted):
                run.append(top.op)
                below_it = top.dependencies[0]
                assert isinstance(below_it, NarrowDependency)
                top = below_it.parent
            if run:
                step.run = run[::-1]
                step.weight = min(len(run), 32)
                below = [(top, index)]
            else:
                below = [(d.parent, p) for d, p in served(node.dependencies, index)]
        children[key] = below
        step.inputs = [(n.id, p) for n, p in below]
        stack.append((node, index, True))
        stack.extend((n, p, False) for n, p in below if (n.id, p) not in steps)
    return _unfold(order, steps, (target.id, partition))


def _unfold(
    order: list[_Step], steps: dict[tuple[NodeId, int], _Step], target: tuple[NodeId, int]
) -> list[_Step]:
    """Repeat each step as often as it is needed, or mark it shared where that would explode."""
    size: dict[tuple[NodeId, int], int] = {}
    for step in order:
        size[(step.node.id, step.partition)] = 1 + sum(size[key] for key in step.inputs)
    if size[target] == len(order):
        for step in order:
            step.uses = 1
        return order
    if size[target] > 4 * len(order) + 64:
        for step in order:
            for key in step.inputs:
                steps[key].uses += 1
        steps[target].uses = 1
        return order
    unfolded: list[_Step] = []
    stack: list[tuple[tuple[NodeId, int], bool]] = [(target, False)]
    while stack:
        key, done = stack.pop()
        if done:
            steps[key].uses = 1
            unfolded.append(steps[key])
            continue
        stack.append((key, True))
        stack.extend((child, False) for child in reversed(steps[key].inputs))
    return unfolded


def _corrupt(block: BlockRef, error: StorageError) -> FetchError:
    return block_failed(block, "corrupt", str(error))
