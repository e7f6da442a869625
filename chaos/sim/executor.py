"""A simulated executor process: the real ExecutorCore, with slots, memory and a store that the world plays.

RunTask -> queue -> slot: reads ──────> computes ──> keeps, commits ──> SlotEnded
                           │ evidence      │ fails, dies, hangs as it is told to
                           └── waits while the other host cannot be reached, up to the fetch retries
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, assert_never

from chaos.sim.disk import FATAL, Block, Output
from chaos.sim.network import DEAD, Process
from chaos.sim.program import Content, Key, Outputs
from spark_ft.executor.core import ExecutorCore
from spark_ft.ids import Generation, HostId, Incarnation, ShuffleId, TaskId
from spark_ft.protocol.effects import (
    BarrierReached,
    Copy,
    CopyEnded,
    Effect,
    Event,
    Exit,
    Forget,
    InterruptTask,
    LearnHosts,
    Leased,
    LoadBlob,
    Measure,
    Progress,
    Received,
    ReleaseBarrier,
    RunTask,
    SlotEnded,
    SlotStarted,
)
from spark_ft.protocol.messages import (
    AssignExecutors,
    BlobWanted,
    BlockRef,
    CachedBlock,
    CopyMade,
    CopyOrder,
    EndReason,
    Fenced,
    FetchFailed,
    HostError,
    InlineResult,
    Killed,
    Launch,
    MapOutputs,
    MapStatus,
    Message,
    NotLoadable,
    StoredResult,
    Success,
    TaskEnd,
    TaskProgress,
    UserError,
)

if TYPE_CHECKING:
    from chaos.sim.worker import Worker
    from chaos.sim.world import World


class UnreadableError(Exception):
    """Something that a task needs cannot be read.  ``waits``: by now, that is; it may be worth waiting."""

    def __init__(self, failed: FetchFailed, waits: bool = False) -> None:
        super().__init__(failed.evidence)
        self.failed, self.waits = failed, waits


class DeadlyError(Exception):
    """What a task reads ends the process that touches it."""

    def __init__(self, host: HostId, store: str, failed: FetchFailed) -> None:
        super().__init__(store)
        self.host, self.store, self.failed = host, store, failed


class Run:
    """One attempt in a slot."""

    __slots__ = (
        "cached", "content", "deaf", "dropped", "ended", "fate", "fresh", "launch", "of", "outputs",
        "planned_s", "round", "tries",
    )  # fmt: skip

    def __init__(self, of: RunTask) -> None:
        self.of = of
        self.launch: Launch = of.launch.tasks[of.index]
        self.outputs: dict[ShuffleId, MapOutputs] = {o.shuffle: o for o in of.outputs}
        self.content: Content | None = None  # once it has read all it needs
        self.fresh: dict[Key, Content] = {}
        self.cached: list[CachedBlock] = []
        self.dropped: list[Key] = []
        self.fate = ""  # how it is to fail, if it is
        self.deaf = False
        self.ended = False
        self.planned_s = 0.0
        self.tries = 0
        self.round = 0  # the call of barrier() in which it waits, or has waited last


class Executor(Process):
    """See the module."""

    role = "executor"

    def __init__(self, world: World, me: Incarnation, worker: Worker, assignment: AssignExecutors) -> None:
        settings = world.options.settings
        core = ExecutorCore(
            me, worker.me, worker.host, assignment.driver, world.peek_index() + 1, assignment.slots, settings,
            {"wire": "1"}, driver_is_local=assignment.driver_pid > 0,
        )  # fmt: skip
        super().__init__(world, me, worker.machine, core)
        self.worker, self.host, self.slots = worker, worker.host, assignment.slots
        self.driver, self.adopted = assignment.driver, False
        self.executor_core = core
        world.executors[me] = self
        self.hosts: dict[HostId, str] = {}  # where block servers are, as it was told
        self.memory: dict[Key, Content] = {}
        self.queue: deque[Run] = deque()
        self.running: dict[TaskId, Run] = {}
        self.last_read: Run | None = None  # the last attempt here that has read outputs
        self.welcomed = False
        self.busy_s = 0.0
        self.said = 0  # beats
        self.lease_end_s = inf
        self.written: dict[int, bytes] = {}  # number of an order -> block
        self.oom = False  # the kernel has killed it for memory, and its worker will know
        self.died_in = ""  # the store that it was reading when that ended it
        self.dirty = False  # a task has left something behind: nothing more begins
        self.connect(assignment.driver)

    # --- Effects ---

    def handle(self, event: Event) -> None:
        super().handle(event)
        if type(event) is Received and type(event.message) is Fenced and self.state != DEAD:
            self.world.violated("EX-7", f"{self.me} has been told that it was given up, and lives on")

    def send(self, to: Incarnation, message: Message) -> None:
        if type(message) is BlobWanted and message.blob in self.executor_core._blobs:
            self.world.violated("S26", f"{self.me} asks for functions that it has")
        super().send(to, message)

    def perform(self, effect: Effect) -> None:
        match effect:
            case RunTask():
                if self.world.clock.now_s + self.offset_s >= self.executor_core._lease_end_s:
                    self.world.violated("NET-6", f"{self.me} gives work to a slot without a lease")
                self.queue.append(Run(effect))
                self._fill_slots()
            case InterruptTask(task, hard, queued_only):
                self._interrupt(task, hard, queued_only)
            case Leased(until_s):
                self.lease_end_s = until_s
                self._fill_slots()
            case Copy(owner, orders):
                for order in orders:
                    self.own(0.01, self._write_down, (owner, order))
            case Measure():
                self.said += 1
                self.post(Progress(self._progress(), self.cpu_s(), 0))
            case Forget():
                self._forget(effect)
            case LearnHosts(hosts):
                self.hosts.update({HostId(host): endpoint for host, endpoint in hosts.items()})
                self.welcomed = True
            case ReleaseBarrier():
                self._go_on(effect)
            case LoadBlob():
                pass
            case Exit(status):
                self.end(status, 0)
            case _:
                assert_never(effect)  # type: ignore[arg-type]  # no executor asks for anything else

    def _progress(self) -> tuple[TaskProgress, ...]:
        """Each running task uses its thread, save one that hangs."""
        now_s = self.world.clock.now_s
        return tuple(
            TaskProgress(task, cpu_s=0.0 if run.fate == "hang" else now_s)
            for task, run in self.running.items()
        )

    def cpu_s(self) -> float:
        """Busy time so far, as its worker would see it: of running tasks, hung ones excepted."""
        busy = any(run.fate != "hang" for run in self.running.values())
        if busy and self.state != DEAD:
            self.busy_s += 0.01
        return self.busy_s

    def end(self, status: int, signal: int) -> None:
        """This process ends; its worker, the parent, will reap it."""
        if self.die():
            self.world.executor_died(self, status, signal)

    def _forget(self, gone: Forget) -> None:
        nodes, shuffles = gone.nodes, gone.shuffles
        if nodes:
            for key in [key for key in self.memory if key[0] in nodes]:
                del self.memory[key]
        store = self.world.disk(self.host).stores.get(self.me)
        if store is None:
            return
        for attempt in [a for a, output in store.outputs.items() if output.status.shuffle in shuffles]:
            del store.outputs[attempt]
        for name in [n for n in store.blocks if nodes and n.startswith(b"rdd") and _node_of(n) in nodes]:
            del store.blocks[name]
        for number in gone.copies:
            store.blocks.pop(self.written.pop(number, b""), None)

    def _write_down(self, item: tuple[Incarnation, CopyOrder]) -> None:
        """A partition in memory is written to disk, so that others can copy it."""
        owner, order = item
        assert order.cached is not None
        key = order.cached.node, order.cached.partition
        content = self.memory.get(key)
        disk, now_s = self.world.disk(self.host), self.world.clock.now_s
        if content is None:
            made = CopyMade(order.number, evidence="gone")
        elif now_s < disk.full_until_s:
            made = CopyMade(order.number, evidence="STORAGE_FULL", text="disk full")
        else:
            name = b"rdd%d.%d.c%d" % (*key, order.number)
            disk.store(self.me).blocks[name] = Block(content, now_s)
            self.written[order.number] = name
            made = CopyMade(order.number, cached=self._block(key, name, content))
        self.post(CopyEnded(owner, made))

    def _block(self, key: Key, name: bytes, content: Content) -> CachedBlock:
        segment = self.world.disk(self.host).store(self.me).segment
        ref = BlockRef(self.host, self.me, segment, name, 1, content.value & 0xFFFFFFFF)
        return CachedBlock(*key, 1, ref, _checksum(content))

    # --- Slots ---

    def _fill_slots(self) -> None:
        while self._may_begin() and len(self.running) < self.slots:
            run = self.queue.popleft()
            self._begin(run)
            self.post(SlotStarted(run.launch.task))

    def _may_begin(self) -> bool:
        now_s = self.world.clock.now_s + self.offset_s
        return bool(self.queue) and not self.dirty and now_s < self.lease_end_s

    def _begin(self, run: Run) -> None:
        world, task = self.world, run.launch.task
        self.running[task] = run
        run.fate, run.deaf = world.fate_of(self, run)
        whole_s = world.duration_of(self, run)
        reads_at_s = whole_s * world.chance(2, task)  # reads may lie anywhere in it
        run.planned_s = whole_s - reads_at_s
        self.own(reads_at_s, self._read, run)

    def _interrupt(self, task: TaskId, hard: bool, queued_only: bool) -> None:
        for run in self.queue:
            if run.launch.task == task:
                self.queue.remove(run)
                self.post(SlotEnded(TaskEnd(task, Killed("killed before it began"))))
                return
        found = self.running.get(task)
        if queued_only or found is None:
            return
        if hard:
            self.end(0, 9)
        elif self.slots == 1 and not found.deaf:
            self.own(0.002, self._broken_off, found)

    def _broken_off(self, run: Run) -> None:
        if not run.ended:
            if run.content is not None and self.world.chance(7, run.launch.task) < 0.5:
                self._keep_all(run)  # it had got as far as that
            self._finish(run, Killed("interrupted"))

    def _finish(self, run: Run, reason: EndReason, accums: tuple[tuple[int, bytes], ...] = ()) -> None:
        """The attempt ends, and the next one begins in the same word."""
        if run.ended:
            return
        run.ended = True
        task = run.launch.task
        del self.running[task]
        started = None
        self.dirty = self.dirty or run.fate == "dirty"
        if self._may_begin():
            later = self.queue.popleft()
            self._begin(later)
            started = later.launch.task
        dirty = "a thread" if run.fate == "dirty" else ""
        end = TaskEnd(task, reason, accums, tuple(run.cached), tuple(run.dropped), 0.01, dirty=dirty)
        self.post(SlotEnded(end, started))
        self.world.reached("report", self)

    # --- What a task does ---

    def _read(self, run: Run) -> None:
        if run.ended:
            return
        world = self.world
        if world.gate is not None and world.gate(run):
            self.own(0.05, self._read, run)
            return
        if self._meets_fate(run):
            return
        try:
            run.content = self._compute(run)
        except DeadlyError as deadly:
            self._die_of(deadly, run)
            return
        except UnreadableError as unreadable:
            retries = world.options.settings.fetch_retries
            if unreadable.waits and run.tries < retries:
                run.tries += 1
                pause_s = (
                    0.2 if unreadable.failed.evidence == "refused" else world.options.settings.fetch_timeout_s
                )
                self.own(pause_s, self._read, run)
            else:
                self._finish(run, unreadable.failed)
            return
        if run.outputs:
            self.last_read = run
            world.reached("read", self)
        if run.launch.task in self.running and run.of.launch.gang and world.rounds_of(run):
            self._meet(run)
        else:
            self.own(run.planned_s, self._write, run)

    def _die_of(self, deadly: DeadlyError, run: Run) -> None:
        """A damaged page ends who maps it: this process, or the worker that was to send it (ST-10)."""
        self.world.marks["died_reading"] += 1
        if deadly.host == self.host:
            self.died_in = deadly.store
            self.end(0, 7 if run.launch.task % 2 else 11)
        else:
            self.world.workers[deadly.host].die_serving(deadly.store)
            self._finish(run, replace(deadly.failed, evidence="refused"))

    # --- Barriers ---

    def _meet(self, run: Run) -> None:
        """It calls allGather(), and waits until every member has."""
        run.round += 1
        self.post(BarrierReached(run.launch.task, run.round, "allGather", str(run.launch.partition)))

    def _go_on(self, told: ReleaseBarrier) -> None:
        run = self.running.get(told.task)
        if run is None or run.round != told.round:
            return
        if told.error:
            self._finish(run, UserError("SparkFtError", told.error, f"trace {run.launch.partition}"))
            return
        if told.messages != tuple(str(partition) for partition in range(len(run.of.launch.gang))):
            self.world.violated("BR-4", f"task {told.task} is told {told.messages} by its gang")
        if run.round < self.world.rounds_of(run):
            self.own(0.01, self._meet_again, run)
        else:
            self.own(run.planned_s, self._write, run)

    def _meet_again(self, run: Run) -> None:
        if not run.ended:
            self._meet(run)

    def _meets_fate(self, run: Run) -> bool:
        """It fails, dies or hangs if that is what it is to do."""
        match run.fate:
            case "" | "dirty":
                return False
            case "hang":
                pass
            case "segv" | "oom" | "exit":
                self.world.died_by_task(self)
                self.end(1 if run.fate == "exit" else 0, {"segv": 11, "oom": 9}.get(run.fate, 0))
            case "kernel":
                self.oom = True
                self.end(0, 9)
            case _:
                self._finish(run, _failure(run))
        return True

    def _compute(self, run: Run) -> Content:
        lineage = self.world.lineage
        offered = {(c.node, c.partition): c.block for c in run.launch.cached}
        run.fresh = {}

        def held(key: Key) -> Content | None:
            found = self.memory.get(key)
            if found is None and (ref := offered.get(key)) is not None:
                found = self._fetch_block(ref)
            return found

        def read(shuffle: ShuffleId) -> Outputs:
            return self._fetch(run, shuffle)

        def chance(key: Key) -> int:
            return self.world.draw(8, hash((run.launch.task, key)) & 0xFFFFFFFF) | 1

        target = self.world.root_of(run.of.launch), run.launch.partition
        return lineage.compute(target, read, held, run.fresh, chance=chance)

    def _fetch(self, run: Run, shuffle: ShuffleId) -> Outputs:
        outputs = run.outputs.get(shuffle)
        if outputs is None:
            raise UnreadableError(FetchFailed(shuffle, Generation(0), -1, HostId(""), "", "missing"))
        found: list[Content] = []
        for first in outputs.statuses:
            status = self._nearest(first, outputs.copies)
            trouble = self._way_to(status.host)
            damage = ""
            if not trouble:
                output = self.world.disk(status.host).output(
                    status.store, status.attempt, outputs.fingerprint
                )
                if not isinstance(output, str):
                    found.append(output.content)
                    continue
                damage = output
            if damage == FATAL:
                failed = FetchFailed(
                    shuffle, outputs.generation, status.map_index, status.host, status.store, damage,
                    attempt=status.attempt,
                )  # fmt: skip
                raise DeadlyError(status.host, status.store, failed)
            others: tuple[TaskId, ...] = ()
            if damage:
                store = self.world.disk(status.host).stores.get(status.store)
                others = tuple(
                    s.attempt for s in outputs.statuses
                    if s.store == status.store and s.attempt != status.attempt
                    and (store is None or s.attempt not in store.outputs)
                )  # fmt: skip
            raise UnreadableError(
                FetchFailed(
                    shuffle, outputs.generation, status.map_index, status.host, status.store,
                    trouble or damage, attempt=status.attempt, others=others,
                ),
                waits=bool(trouble),
            )  # fmt: skip
        return tuple(found)

    def _nearest(self, first: MapStatus, copies: tuple[MapStatus, ...]) -> MapStatus:
        """Where to read an output: on this host, else at the first place within reach."""
        if not copies:
            return first
        places = [first, *(copy for copy in copies if copy.map_index == first.map_index)]
        here = [place for place in places if place.host == self.host]
        return next(iter(here or [place for place in places if not self._way_to(place.host)]), first)

    def _fetch_block(self, ref: BlockRef) -> Content:
        trouble = self._way_to(ref.host)
        damage = ""
        if not trouble:
            block = self.world.disk(ref.host).block(ref.store, ref.key)
            if not isinstance(block, str):
                return block.content
            damage = block
        failed = FetchFailed(
            ShuffleId(-1), Generation(0), -1, ref.host, ref.store, trouble or damage, "", ref
        )
        if damage == FATAL:
            raise DeadlyError(ref.host, ref.store, failed)
        raise UnreadableError(failed, waits=bool(trouble))

    def _way_to(self, host: HostId) -> str:
        """Empty when this host's blocks can be reached; else the evidence."""
        if host == self.host:
            return ""
        return self.world.way_to(self.machine, host, self.hosts.get(host, ""))

    def _write(self, run: Run) -> None:
        if run.ended:
            return
        world, launch = self.world, run.launch
        assert run.content is not None
        disk = world.disk(self.host)
        full = world.clock.now_s < disk.full_until_s
        output = run.of.launch.output
        if full and (output is not None or any(key[0] in world.lineage.disk_only for key in run.fresh)):
            self._keep_all(run, full)
            self._finish(run, HostError("STORAGE_FULL", "disk full", 10, 1))
            return
        self._keep_all(run, full)
        if output is not None:
            shape = world.lineage.shuffles[output.shuffle]
            chance = world.draw(3, launch.task)
            content = world.lineage.output(output.shuffle, run.content, chance)
            bytes_of = (
                content.value if output.shuffle not in world.lineage.chatty else hash((content.value, chance))
            )
            accums = ((1, b"m%d.%d" % (output.shuffle, launch.partition)),)
            store = disk.store(self.me)
            status = MapStatus(
                output.shuffle, output.generation, launch.partition, self.host, self.me, store.segment,
                launch.task, 10, content.rows, bytes_of & 0xFFFFFFFF, accums,
            )  # fmt: skip
            if store.sealed:
                world.violated("S8", f"{self.me} commits into its sealed store")
            store.commit(launch.task, Output(status, shape.fingerprint, content, world.clock.now_s))
            world.contents[launch.task] = content
            world.reached("commit", self)
            if self.state != DEAD:
                self._finish(run, Success(output=status))
            return
        world.contents[launch.task] = run.content
        accums = ((1, b"r%d.%d" % (run.of.launch.blob, launch.partition)),)
        result: InlineResult | StoredResult = InlineResult(b"%d" % launch.task)
        if world.chance(4, launch.task) < world.options.stored and not full:
            key = b"result%d" % launch.task
            disk.store(self.me).blocks[key] = Block(run.content, world.clock.now_s)
            result = StoredResult(BlockRef(self.host, self.me, disk.store(self.me).segment, key, launch.task))
        self._finish(run, Success(result=result), accums)

    # --- Persisted partitions ---

    def _keep_all(self, run: Run, full: bool = False) -> None:
        for key, content in run.fresh.items():
            if key[0] in self.world.lineage.disk_only:
                if not full:
                    self._store(run, key, content)
                continue
            if self._finds_no_room(run, key):
                run.cached.append(CachedBlock(*key, 0, checksum=_checksum(content), kept=False))
                continue
            if key not in self.memory and len(self.memory) >= self.world.options.memory:
                self.evict(run, full)
            self.memory[key] = content
            run.cached.append(CachedBlock(*key, 1, checksum=_checksum(content)))
        run.fresh = {}

    def _finds_no_room(self, run: Run, key: Key) -> bool:
        """In one history of four some partitions are too large for any memory (BL-12)."""
        world = self.world
        return (
            world.chance(16, 0) < 0.25
            and key[0] not in world.lineage.spills
            and world.chance(17, hash((key, run.launch.task)) & 0xFFFFFFFF) < 0.5
        )

    def evict(self, run: Run | None, full: bool = False) -> None:
        """The oldest partition has to go; its end is told with a task's, as the engine does."""
        key, content = next(iter(self.memory.items()))
        del self.memory[key]
        if run is not None:
            run.dropped.append(key)
            if key[0] in self.world.lineage.spills and not full:
                self._store(run, key, content)

    def _store(self, run: Run, key: Key, content: Content) -> None:
        name = b"rdd%d.%d.%d" % (key[0], key[1], run.launch.task)
        self.world.disk(self.host).store(self.me).blocks[name] = Block(content, self.world.clock.now_s)
        run.cached.append(self._block(key, name, content))


def _checksum(content: Content) -> int:
    return content.value & 0xFFFFFFFF | 1


def _node_of(name: bytes) -> int:
    return int(name[3:].split(b".", 1)[0])


def _failure(run: Run) -> EndReason:
    """What an attempt says that fails."""
    match run.fate:
        case "memory":
            return UserError("MemoryError", "no", "trace", "TASK_OUT_OF_MEMORY", True, 1 << 30)
        case "unloadable":
            return NotLoadable("ImportError", "no module", "trace")
        case "unretryable":
            return UserError("InputChanged", "no", "trace", "INPUT_CHANGED", False)
        case "host":
            return HostError("TOO_MANY_FILES", "no handles")
        case "killed":
            return Killed("by itself")
        case _:
            return UserError("ValueError", "no", f"trace {run.launch.partition}")
