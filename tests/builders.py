"""Builders that fill the dull fields: shapes of lineages, and a stand that plays the scheduler's peers.

    lineage = Lineage()
    pairs = lineage.map(lineage.source(4))
    stand = Stand(executors=2)
    job = stand.submit(lineage, lineage.reduce(pairs, 3))
    stand.run(job)                                   # every task succeeds, in order of launch
    assert stand.finished[job] is None

``Stand`` keeps what the core has asked for: launches by task, results, ends of jobs, notes; and calls
``check_invariants`` after every event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chaos.shapes import Shapes
from spark_ft.ids import (
    NO_ACTION,
    ActionId,
    AppId,
    BlobId,
    Generation,
    HostId,
    Incarnation,
    JobId,
    NodeId,
    ShuffleId,
    TaskId,
)
from spark_ft.lineage.dependency import OneToOne, Span
from spark_ft.lineage.shape import NarrowShape, NodeShape
from spark_ft.protocol.effects import (
    CancelJobs,
    ClosePeer,
    DeliverResult,
    Effect,
    EndWorker,
    Event,
    FinishJob,
    JobFailure,
    JobSubmitted,
    Journal,
    Keep,
    KeptRow,
    MergeAccums,
    Note,
    Received,
    Redeliver,
    Send,
    SendBlob,
    Tick,
    WithdrawResults,
)
from spark_ft.protocol.journal import Record, Recovered
from spark_ft.protocol.messages import (
    BeatAck,
    BlockRef,
    CachedBlock,
    CopyMade,
    CopyOrder,
    EndReason,
    ExecutorBeat,
    ExecutorExited,
    ExecutorHello,
    FetchFailed,
    InlineResult,
    Killed,
    KillTask,
    Launch,
    LaunchTasks,
    MakeCopies,
    MapOutputs,
    MapStatus,
    Message,
    StoresServed,
    Success,
    TaskEnd,
    TaskProgress,
    TaskUpdates,
    UserError,
    WorkerBeat,
    WorkerHello,
    WorkerLost,
)
from spark_ft.scheduler.core import SchedulerCore
from spark_ft.settings import Settings


class Lineage(Shapes):
    """A lineage that grows: each method adds a node (or a shuffle and its reader) and returns its id."""

    def node(
        self,
        count: int,
        narrow: Iterable[NarrowShape] = (),
        shuffles: Iterable[ShuffleId] = (),
        preferred: Mapping[int, tuple[HostId, ...]] | None = None,
    ) -> NodeId:
        id = NodeId(len(self.nodes))
        self.nodes[id] = NodeShape(id, count, tuple(narrow), tuple(shuffles), False, preferred or {})
        return id

    def source(self, count: int, preferred: Mapping[int, tuple[HostId, ...]] | None = None) -> NodeId:
        return self.node(count, preferred=preferred)

    def barrier(self, parent: NodeId) -> NodeId:
        """A node above ``parent`` whose stage is a gang."""
        id = self.map(parent)
        self.nodes[id] = replace(self.nodes[id], barrier=True)
        return id

    def map(self, parent: NodeId) -> NodeId:
        return self.node(self.nodes[parent].partition_count, [NarrowShape(parent, OneToOne())])

    def zip(self, *parents: NodeId) -> NodeId:
        count = self.nodes[parents[0]].partition_count
        return self.node(count, [NarrowShape(parent, OneToOne()) for parent in parents])

    def union(self, *parents: NodeId) -> NodeId:
        narrow, start = [], 0
        for parent in parents:
            count = self.nodes[parent].partition_count
            narrow.append(NarrowShape(parent, Span(start, count)))
            start += count
        return self.node(start, narrow)

    def read(self, *shuffles: ShuffleId) -> NodeId:
        return self.node(self.shuffles[shuffles[0]].reduce_count, shuffles=shuffles)

    def reduce(self, parent: NodeId, reduce_count: int) -> NodeId:
        return self.read(self.shuffle(parent, reduce_count))

    def persist(self, node: NodeId, replication: int = 1) -> NodeId:
        self.nodes[node] = replace(self.nodes[node], persisted=True, replication=replication)
        return node


@dataclass
class Launched:
    """One attempt that the core has launched: to whom, in which message."""

    executor: Incarnation
    message: LaunchTasks
    launch: Launch
    outputs: dict[ShuffleId, MapOutputs]  # its inputs, as its executor knew them at launch

    @property
    def task(self) -> TaskId:
        return self.launch.task

    @property
    def partition(self) -> int:
        return self.launch.partition

    @property
    def is_map(self) -> bool:
        return self.message.output is not None


SETTINGS: dict[str, Any] = {"prefetch_tasks": 0, "speculation": False, "locality_wait_s": 0.0}


class Stand:
    """A core and the rest of its world, played by hand.  ``Stand(executors=2, hosts=2, max_failures=2)``.

    With ``recovered`` it has a journal, which is written at once; ``kept`` is what is kept beside it.
    """

    def __init__(
        self,
        executors: int = 2,
        hosts: int = 1,
        slots: int = 1,
        recovered: Recovered | None = None,
        awaited: Iterable[HostId] = (),
        **settings: Any,
    ) -> None:
        self.settings = Settings(**{**SETTINGS, **settings})
        self.core = SchedulerCore(
            self.settings, Incarnation("driver-0"), AppId("app"), {"wire": "1"},
            recovered=recovered, awaited=awaited,
        )  # fmt: skip
        self.journal: list[Record] = []
        self.kept: dict[ActionId, dict[int, KeptRow]] = {}
        self.actions: dict[JobId, ActionId] = {}
        self.now_s = 100.0
        self.slots = slots
        self.effects: list[Effect] = []  # of the last event
        self.notes: list[Note] = []
        self.launched: dict[TaskId, Launched] = {}  # everything ever launched
        self.open: dict[TaskId, Launched] = {}  # not ended yet, as its executor sees it
        self.told: dict[Incarnation, dict[ShuffleId, MapOutputs]] = {}
        self.blobs: Counter[tuple[Incarnation, BlobId]] = Counter()
        self.results: dict[JobId, dict[int, Any]] = {}
        self.finished: dict[JobId, JobFailure | None] = {}
        self.accums: list[tuple[tuple[int, bytes], ...]] = []
        self._updates: dict[JobId, list[tuple[tuple[int, bytes], ...]]] = {}  # of jobs that have not ended
        self.withdrawn: Counter[JobId] = Counter()  # how often a job's results were taken back
        self.fenced: set[Incarnation] = set()
        self.beats: Counter[Incarnation] = Counter()  # that each executor has sent
        self.acked: dict[Incarnation, int] = {}  # the last answer that it has heard
        self.deaf: set[Incarnation] = set()  # what is said to these does not arrive
        self.sent: list[Send] = []
        self.ended_workers: list[EndWorker] = []
        self.checksums: dict[tuple[ShuffleId, int], int] = {}
        self._jobs = 0
        self._executors = 0
        self.host_of: dict[Incarnation, HostId] = {}  # of executors and workers
        self.orders: dict[int, tuple[Incarnation, CopyOrder]] = {}  # for copies, not answered yet
        for index in range(hosts):
            self.add_worker(f"h{index}")
        for index in range(executors):
            self.add_executor(f"h{index % hosts}")

    # --- Events ---

    def do(self, event: Event, after_s: float = 0.0) -> list[Effect]:
        """One event; what the core asks for is noted down."""
        self.now_s += after_s
        effects = self.core.handle(event, self.now_s)
        self.core.check_invariants()
        self.effects = effects
        for effect in effects:
            self._perform(effect)
        return effects

    def tell(self, sender: str, message: Message, after_s: float = 0.0) -> list[Effect]:
        return self.do(Received(Incarnation(sender), message), after_s)

    def tick(self, after_s: float = 0.0) -> list[Effect]:
        return self.do(Tick(), after_s)

    def pass_time(
        self,
        seconds: float,
        silent: Iterable[str] = (),
        cpu_s: Mapping[str, float] | None = None,
        stuck: Iterable[str] = (),
        unheard: Iterable[str] = (),
    ) -> None:
        """Time goes by in small steps; everyone alive beats, save the silent and the stopped.  The
        ``unheard`` beat too, but that their workers alone can tell.  Tasks get on, but for the stuck."""
        unmoved = {Incarnation(name) for name in stuck}
        cut = {Incarnation(name) for name in unheard}
        quiet = {Incarnation(name) for name in silent} | cut
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            self.now_s = min(self.now_s + 0.5, end_s)
            for worker in list(self.core.executors.workers.values()):
                if worker.id in quiet:
                    continue
                vouched, said = [], []
                for executor in worker.executors.values():
                    used_s = (cpu_s or {}).get(executor.id, 0.0)
                    vouched.append((executor.id, executor.cpu_s + used_s, executor.stopped_s is not None))
                    self.beats[executor.id] += executor.id in cut
                    said.append((executor.id, self.beats[executor.id]))
                self.tell(worker.id, WorkerBeat(0, tuple(vouched), said=tuple(said)))
            for executor in list(self.core.executors.live.values()):
                if executor.id not in quiet and executor.stopped_s is None:
                    self.beat(executor.id, 0.0 if executor.id in unmoved else self.now_s)
            self.tick()

    def beat(self, executor: Incarnation, cpu_s: float = 0.0) -> None:
        """It says how far it is: ``cpu_s`` in each of its tasks."""
        self.beats[executor] += 1
        acked = self.acked.get(executor, 0)
        self.tell(executor, ExecutorBeat(self.beats[executor], self._progress(executor, cpu_s), acked=acked))

    def _progress(self, executor: Incarnation, cpu_s: float) -> tuple[TaskProgress, ...]:
        open = [task for task in self.open.values() if task.executor == executor]
        return tuple(TaskProgress(task.task, cpu_s=cpu_s) for task in open)

    def add_worker(self, host: str, name: str = "", inherits: StoresServed | None = None) -> Incarnation:
        """``inherits``: what it finds on its host; nothing, unless told."""
        id = Incarnation(name or f"worker-{host}")
        self.host_of[id] = HostId(host)
        self.tell(id, WorkerHello(id, HostId(host), 1, f"tcp://{host}", f"/{host}"))
        if inherits is not None or HostId(host) in self.core.executors.orphaned:
            self.tell(id, inherits or StoresServed())
        return id

    def add_executor(self, host: str, worker: str = "", name: str = "") -> Incarnation:
        id = Incarnation(name or f"e{self._executors}")
        self._executors += 1
        self.host_of[id] = HostId(host)
        worker_id = Incarnation(worker or f"worker-{host}")
        self.tell(id, ExecutorHello(id, worker_id, HostId(host), 7, self.slots, {"wire": "1"}))
        return id

    def submit(
        self, lineage: Lineage, target: NodeId, partitions: Iterable[int] | None = None, **fields: Any
    ) -> JobId:
        job = JobId(self._jobs)
        self._jobs += 1
        shape = lineage.shape(target)
        chosen = range(lineage.nodes[target].partition_count) if partitions is None else partitions
        blobs = {shuffle: BlobId(1000 + shuffle) for shuffle in shape.shuffles}
        self.results[job] = {}
        self.actions[job] = fields.get("action", NO_ACTION)
        self.do(JobSubmitted(job, shape, tuple(chosen), BlobId(job), blobs, **fields))
        return job

    def cancel(self, job: JobId) -> None:
        self.do(CancelJobs(job))

    # --- What executors say ---

    def start(self, *tasks: Launched) -> None:
        for task in tasks:
            self.tell(task.executor, TaskUpdates(started=(task.task,)))

    def end(self, task: Launched, reason: EndReason, **fields: Any) -> None:
        self.open.pop(task.task, None)
        self.tell(task.executor, TaskUpdates((task.task,), (TaskEnd(task.task, reason, **fields),)))

    def succeed(self, *tasks: Launched, **fields: Any) -> None:
        for task in tasks:
            self.end(task, self.success(task), **fields)

    def success(self, task: Launched) -> Success:
        if task.is_map:
            return Success(self.status(task))
        return Success(result=InlineResult(b"%d" % task.partition))

    def status(self, task: Launched, **fields: Any) -> MapStatus:
        """The output that this attempt has committed."""
        output = task.message.output
        assert output is not None
        checksum = self.checksums.get((output.shuffle, task.partition), 1000 + task.partition)
        values: dict[str, Any] = {
            "shuffle": output.shuffle, "generation": output.generation, "map_index": task.partition,
            "host": self.host_of[task.executor], "store": task.executor, "segment": 0, "attempt": task.task,
            "size_bytes": 10, "row_count": 1, "checksum": checksum,
        }  # fmt: skip
        return MapStatus(**{**values, **fields})

    def fail(self, task: Launched, text: str = "no", **fields: Any) -> None:
        self.end(task, UserError("ValueError", text, f"Traceback: {text}", **fields))

    def fetch_failed(
        self, task: Launched, map_index: int, evidence: str = "missing", others: tuple[TaskId, ...] = ()
    ) -> None:
        """The attempt could not read one of the outputs that it was told of."""
        read = task.message.inputs[0]
        outputs = task.outputs[read.shuffle]
        status = outputs.statuses[map_index]
        where = map_index, status.host, status.store
        reason = FetchFailed(
            read.shuffle, outputs.generation, *where, evidence, attempt=status.attempt, others=others
        )
        self.end(task, reason)

    def exit(
        self,
        executor: str,
        status: int = 0,
        signal: int = 9,
        outputs: Iterable[MapStatus] = (),
        running: tuple[TaskId, ...] | None = None,
        **fields: Any,
    ) -> None:
        """The executor's process ends and its worker says so; ``running``: what it was doing, if known."""
        id = Incarnation(executor)
        for task in [t for t in self.open.values() if t.executor == id]:
            del self.open[task.task]
        worker = f"worker-{self.host_of[id]}"
        self.tell(worker, ExecutorExited(id, status, signal, "", tuple(outputs), running, **fields))

    def run(self, *jobs: JobId, start: bool = True) -> None:
        """Every open task succeeds, in order, until these jobs have ended."""
        while any(job not in self.finished for job in jobs):
            task = next(iter(self.open.values()))
            self.succeed(task)

    def copy(self, *numbers: int) -> None:
        """These orders, or all that are open, are carried out."""
        for number in numbers or list(self.orders):
            maker, order = self.orders.pop(number)
            self.tell(maker, self.copied(maker, order))

    def copied(self, maker: Incarnation, order: CopyOrder) -> CopyMade:
        """The answer of a maker that had no trouble."""
        host = self.host_of[maker]
        if order.output is not None:
            return CopyMade(order.number, replace(order.output, host=host, store=maker))
        assert order.cached is not None
        original = order.cached.block
        size, checksum = (original.size_bytes, original.checksum) if original else (10, 7)
        ref = BlockRef(host, maker, 0, b"copy%d" % order.number, size, checksum)
        return CopyMade(order.number, cached=replace(order.cached, block=ref))

    def copy_fails(self, evidence: str, *numbers: int) -> None:
        """These orders, or all that are open, come to nothing."""
        for number in numbers or list(self.orders):
            maker, _ = self.orders.pop(number)
            self.tell(maker, CopyMade(number, evidence=evidence))

    def lose_host(self, host: str) -> None:
        """Its worker is gone, and all that it had."""
        worker = Incarnation(f"worker-{host}")
        for task in [t for t in self.open.values() if self.host_of[t.executor] == host]:
            del self.open[task.task]
        for number in [n for n, (maker, _) in self.orders.items() if self.host_of[maker] == host]:
            del self.orders[number]
        self.tell("manager-1", WorkerLost(worker, "gone"))
        self.pass_time(self.settings.worker_grace_s + 0.5)

    # --- What the core asked for ---

    def running(self, job: JobId | None = None) -> list[Launched]:
        """Open attempts, in order of launch."""
        return list(self.open.values())

    def one(self, partition: int) -> Launched:
        """The newest open attempt at this partition."""
        return [task for task in self.open.values() if task.partition == partition][-1]

    def starts(self, shuffle: ShuffleId | None = None) -> Counter[int]:
        """Launches of map tasks of a shuffle, or of result tasks, by partition."""
        return Counter(
            task.partition
            for task in self.launched.values()
            if (task.message.output.shuffle if task.message.output else None) == shuffle
        )

    def kinds(self) -> Counter[str]:
        return Counter(note.kind for note in self.notes)

    def noted(self, kind: str) -> list[dict[str, Any]]:
        return [dict(note.fields) for note in self.notes if note.kind == kind]

    def failure(self, job: JobId) -> JobFailure:
        failure = self.finished[job]
        assert failure is not None
        return failure

    def messages(self, kind: type[Any], to: str | None = None) -> list[Any]:
        return [s.message for s in self.sent if isinstance(s.message, kind) and to in (None, s.to)]

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                assert to not in self.fenced or type(message).__name__ == "Fenced", "S13: sent to the dead"
                self.sent.append(effect)
                self._sent(to, message)
            case SendBlob(to, blob):
                self.blobs[(to, blob)] += 1
            case ClosePeer(peer, fence):
                if fence:
                    self.fenced.add(peer)
            case EndWorker():
                self.ended_workers.append(effect)
            case Note():
                self.notes.append(effect)
            case DeliverResult(job, partition, result, accums):
                assert job not in self.finished, "S3: delivered after the end"
                assert partition not in self.results[job], "S1: delivered twice"
                self.results[job][partition] = result
                if accums:
                    self._updates.setdefault(job, []).append(accums)
            case WithdrawResults(job):
                assert job not in self.finished, "S3: taken back after the end"
                self._updates.pop(job, None)
                self.results[job].clear()
                self.withdrawn[job] += 1
                self.kept.pop(self.actions[job], None)
            case Keep(action, rows):
                self.kept.setdefault(action, {}).update((row[0], row) for row in rows)
            case Journal(records, guarded):
                self.journal += records
                for each in guarded:
                    self._perform(each)
            case Redeliver(job, action, partition):
                _, _, result, accums = self.kept[action][partition]
                self._perform(DeliverResult(job, partition, result, accums))
            case MergeAccums(accums):
                self.accums.append(accums)
            case FinishJob(job, failure):
                assert job not in self.finished, "S4: ended twice"
                self.finished[job] = failure
                self.accums += self._updates.pop(job, [])

    def _sent(self, to: Incarnation, message: Message) -> None:
        match message:
            case LaunchTasks():
                assert self.blobs[(to, message.blob)], "functions are sent first"
                for read in message.inputs:
                    outputs = self.told[to][read.shuffle]
                    assert (outputs.generation, outputs.version) == (read.generation, read.version), "S5"
                outputs = {read.shuffle: self.told[to][read.shuffle] for read in message.inputs}
                for launch in message.tasks:
                    assert launch.task not in self.launched, "task ids are never used again"
                    launched = Launched(to, message, launch, outputs)
                    self.launched[launch.task] = self.open[launch.task] = launched
            case BeatAck(number) if to not in self.deaf:
                self.acked[to] = number
            case MakeCopies(orders, hosts):
                for order in orders:
                    self.orders[order.number] = to, order
                    source = source_of(order)
                    assert source is None or source in hosts, "a copier is told where to read"
            case MapOutputs():
                self.told.setdefault(to, {})[message.shuffle] = message

    def kill_queued(self) -> None:
        """Executors give back what they were asked for and have not begun."""
        told = {m.task for m in self.messages(KillTask) if m.queued_only}
        for task in [t for t in self.open.values() if t.task in told]:
            del self.open[task.task]
            self.tell(task.executor, TaskUpdates(ended=(TaskEnd(task.task, Killed("told to")),)))

    def kill_answers(self) -> None:
        """Executors break off what they were told to."""
        told = {m.task for m in self.messages(KillTask) if not m.queued_only}
        for task in [t for t in self.open.values() if t.task in told]:
            self.end(task, Killed("told to"))


def source_of(order: CopyOrder) -> HostId | None:
    """The host that a copy is to be read from; None: it is in the maker's own memory."""
    if order.output is not None:
        return order.output.host
    assert order.cached is not None
    return order.cached.block.host if order.cached.block is not None else None


def block(node: int, partition: int, host: str = "h0", store: str = "e0") -> CachedBlock:
    """A cached partition on disk."""
    key = b"%d.%d" % (node, partition)
    return CachedBlock(NodeId(node), partition, 10, BlockRef(HostId(host), store, 0, key))


def in_memory(node: int, partition: int, checksum: int = 0) -> CachedBlock:
    """A cached partition in the memory of whoever says so."""
    return CachedBlock(NodeId(node), partition, 10, checksum=checksum)


def current_generation(stand: Stand, shuffle: ShuffleId) -> Generation:
    return stand.core.outputs[shuffle].generation
