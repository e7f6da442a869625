"""A simulated driver process: the real SchedulerCore, and the user's threads beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from chaos.sim.disk import FATAL
from chaos.sim.network import Process
from spark_ft.ids import AppId, BlobId, HostId, Incarnation, JobId, NodeId, ShuffleId, TaskId
from spark_ft.lineage.shape import LineageShape
from spark_ft.protocol.effects import (
    CancelJobs,
    DeliverResult,
    Effect,
    EndWorker,
    FinishJob,
    JobFailure,
    JobSubmitted,
    LearnHosts,
    MergeAccums,
    Released,
    ResultLost,
    SendBlob,
    WithdrawResults,
)
from spark_ft.protocol.messages import InlineResult, RegisterApp, StageBlob, StoredResult
from spark_ft.scheduler.core import SchedulerCore

if TYPE_CHECKING:
    from chaos.sim.world import World

SHUFFLE_BLOBS = 1_000_000  # blob ids of map stages begin here; below are jobs'


@dataclass
class Handle:
    """One action, as the thread that waits for it sees it."""

    job: JobId
    target: NodeId
    shape: LineageShape
    partitions: tuple[int, ...]
    begun_s: float
    program: int
    results: dict[int, TaskId] = field(default_factory=dict)
    stored: dict[int, StoredResult] = field(default_factory=dict)
    done: bool = False
    failure: JobFailure | None = None
    cancelled: bool = False  # by the user, or because nobody waits
    closed: bool = False
    final: bool = False
    scoped: bool = False  # it is of an action of several jobs


class Driver(Process):
    """See the module."""

    role = "driver"
    router = True

    def __init__(self, world: World, me: Incarnation, app: AppId) -> None:
        core = self._core_of(world, me, app)
        super().__init__(world, me, "driver", core)
        self.scheduler = core
        self.silence_s = world.options.settings.silence_s
        self.app = app
        self.handles: dict[JobId, Handle] = {}
        self.blobs: set[BlobId] = set()
        self.hosts: dict[HostId, str] = {}

    @staticmethod
    def _core_of(world: World, me: Incarnation, app: AppId) -> SchedulerCore:
        return SchedulerCore(world.options.settings, me, app, {"wire": "1"})

    def another_core(self) -> SchedulerCore:
        """As this one was when it began."""
        return self._core_of(self.world, self.me, self.app)

    def register(self, manager: Incarnation) -> None:
        options = self.world.options
        count = options.hosts * options.executors
        self.connect(manager)
        pid = self.pid if options.watched else 0
        self.send(manager, RegisterApp(self.app, self.me, "driver", pid, count, options.slots, options.slots))

    # --- Effects ---

    def perform(self, effect: Effect) -> None:
        match effect:
            case DeliverResult(job, partition, result):
                self._deliver(self.handles[job], partition, result)
            case WithdrawResults(job):
                self.handles[job].results.clear()
                self.handles[job].stored.clear()
            case FinishJob(job, failure):
                handle = self.handles[job]
                handle.done, handle.failure = True, failure
                self.own(self.world.options.reading_s, self._take, handle)
            case SendBlob(to, blob):
                if blob in self.blobs:
                    self.send(to, StageBlob(blob))
            case LearnHosts(hosts):
                self.hosts.update({HostId(host): endpoint for host, endpoint in hosts.items()})
            case EndWorker(worker):
                self.world.end_worker(worker)
            case MergeAccums():
                pass  # the shadow has seen it
            case _:
                assert_never(effect)  # type: ignore[arg-type]  # no scheduler asks for anything else

    def _deliver(self, handle: Handle, partition: int, result: InlineResult | StoredResult) -> None:
        if isinstance(result, StoredResult):
            handle.stored[partition] = result
            handle.results[partition] = TaskId(result.block.size_bytes)
        else:
            handle.stored.pop(partition, None)
            handle.results[partition] = TaskId(int(result.payload))
        self.world.reached("deliver", self)

    # --- The user's threads ---

    def submit(
        self,
        target: NodeId,
        partitions: tuple[int, ...],
        program: int,
        pool: str = "default",
        final: bool = False,
        scope: int = -1,
        rests_on: tuple[int, ...] = (),
    ) -> Handle:
        lineage = self.world.lineage
        shape = lineage.shape(target)
        job = JobId(len(self.handles))
        blobs: dict[ShuffleId, BlobId] = {s: BlobId(SHUFFLE_BLOBS + s) for s in shape.shuffles}
        handle = Handle(job, target, shape, partitions, self.world.clock.now_s, program, final=final)
        handle.scoped = scope >= 0 or bool(rests_on)
        self.handles[job] = handle
        self.blobs.update(blobs.values())
        self.blobs.add(BlobId(job))
        event = JobSubmitted(
            job, shape, partitions, BlobId(job), blobs, f"job {job}", pool, final=final, scope=scope,
            rests_on=rests_on,
        )  # fmt: skip
        self.post(event)
        return handle

    def cancel(self, handle: Handle) -> None:
        handle.cancelled = True
        self.post(CancelJobs(handle.job))
        if not handle.done:  # else nothing but the loss of a result brings it back, after this word
            self.world.lively.cancelled(handle)

    def abandon(self, handle: Handle) -> None:
        """Whoever iterated over the results has stopped to."""
        handle.cancelled = True
        self._close(handle)

    def release(self, shuffles: tuple[ShuffleId, ...], nodes: tuple[NodeId, ...]) -> None:
        blobs = tuple(BlobId(SHUFFLE_BLOBS + s) for s in shuffles)
        self.post(Released(shuffles, nodes, blobs))

    def _take(self, handle: Handle) -> None:
        """The thread that waited reads its results; one that cannot be read is asked for again."""
        if handle.closed or not handle.done:
            return
        if handle.failure is None:
            for partition, result in list(handle.stored.items()):
                if not self._readable(result):
                    handle.done = False
                    del handle.stored[partition]
                    handle.results.pop(partition)
                    self.world.shadow.answers.result_lost(handle.job, partition)
                    self.post(ResultLost(handle.job, partition, "gone"))
                    return
        self.world.judge(handle)
        self._close(handle)

    def _readable(self, result: StoredResult) -> bool:
        ref = result.block
        if self.world.way_to(self.machine, ref.host, self.hosts.get(ref.host, "")):
            return False
        found = self.world.disk(ref.host).block(ref.store, ref.key)
        if found == FATAL:  # its worker reads it for us, and dies of it
            self.world.workers[ref.host].die_serving(ref.store)
        return not isinstance(found, str)

    def _close(self, handle: Handle) -> None:
        if not handle.closed:
            handle.closed = True
            self.blobs.discard(BlobId(handle.job))
            self.post(Released(blobs=(BlobId(handle.job),)))
            self.world.actions.closed(handle)


def make_driver(world: World) -> Driver:
    return Driver(world, Incarnation("driver-0"), AppId("app"))
