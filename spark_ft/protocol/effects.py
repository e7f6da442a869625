"""What may happen to a core (events) and all it may ask of its host (effects).

A core is ``handle(event, now_s) -> list[Effect]`` plus ``wakeup_s()``: when it wants a ``Tick`` if
nothing else happens.  There are no timers to set or to cancel.  Same events in the same order: same effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Protocol

from spark_ft.ids import (
    NO_ACTION,
    ActionId,
    AppId,
    BlobId,
    Fingerprint,
    HostId,
    Incarnation,
    JobId,
    NodeId,
    ShuffleId,
    StageId,
    TaskId,
)
from spark_ft.lineage.shape import LineageShape
from spark_ft.protocol.deployment import DriverRan as DriverRan
from spark_ft.protocol.deployment import Remember as Remember
from spark_ft.protocol.deployment import RunDriver as RunDriver
from spark_ft.protocol.journal import Record, Updates
from spark_ft.protocol.messages import (
    AssignExecutors,
    BlockRef,
    CopyMade,
    CopyOrder,
    EndReason,
    InlineResult,
    LaunchTasks,
    MapOutputs,
    MapStatus,
    Message,
    SegmentTouched,
    StoredResult,
    TaskEnd,
    TaskProgress,
)
from spark_ft.records import record

# --- Events any core may get --------------------------------------------------------------


@record
class Received:
    """A message from a peer, by its link.  ``sender``: the incarnation that it is bound to, no address."""

    sender: Incarnation
    message: Message


@record
class PeerGone:
    """A peer has ended, or said that it is about to: nothing comes of it any more."""

    peer: Incarnation
    why: str


@record
class PeerSilent:
    """Nothing at all has come from a peer for so long that it is stopped, or cut off.  Its link stays."""

    peer: Incarnation
    silent_s: float


@record
class PeerHeard:
    """A peer that was silent is not any more."""

    peer: Incarnation


@record
class GranterMoved:
    """Another manager has taken the place of the one before: this worker is to register with it."""

    granter: Incarnation
    endpoint: str


@record
class Tick:
    """Time has passed: the core's ``wakeup_s()`` has come."""


# --- Events of the SchedulerCore, from the driver's own threads ------------------------------


@record
class JobSubmitted:
    """Run ``partitions`` of ``shape.target``.  ``blob`` holds the result stage's functions,
    ``shuffle_blobs`` those of every map stage in the shape.  ``max_failures`` is how many
    failures blamed on one task end the job.  ``properties`` are the thread's local ones."""

    job: JobId
    shape: LineageShape
    partitions: tuple[int, ...]
    blob: BlobId
    shuffle_blobs: Mapping[ShuffleId, BlobId]
    name: str = ""
    pool: str = "default"
    group: str | None = None
    tags: frozenset[str] = frozenset()
    properties: Mapping[str, str] = field(default_factory=dict)
    final: bool = False  # what a task of it has done is out in the world when it ends, as with foreach
    scope: int = -1  # of the action, if that has several jobs (scheduler/scopes.py)
    rests_on: tuple[int, ...] = ()  # scopes from whose answers its functions were made
    action: ActionId = NO_ACTION  # what it is called in every life of this program, if it can be told


@record
class CancelJobs:
    """End jobs for good: ``job``, all of ``group``, all with ``tag``, or all when all three are None."""

    job: JobId | None = None
    group: str | None = None
    tag: str | None = None
    reason: str = "cancelled"


@record
class Released:
    """The program no longer refers to these: shuffles and stage blobs of collected lineage,
    unpersisted nodes, broadcasts, scopes of actions.  Jobs that still need them keep them until they end."""

    shuffles: tuple[ShuffleId, ...] = ()
    nodes: tuple[NodeId, ...] = ()
    blobs: tuple[BlobId, ...] = ()
    broadcasts: tuple[int, ...] = ()
    scopes: tuple[int, ...] = ()


@record
class ResourcesGranted:
    """Executors have been asked for: how many the application is to have, and of which manager, if any."""

    expected: int
    manager: Incarnation | None = None


@record
class ResultLost:
    """A stored result could not be fetched by the driver: that task must run again (TK-11).  ``unheard``: nor
    has anybody heard of its accumulator updates."""

    job: JobId
    partition: int
    text: str
    unheard: bool = False


@record
class Decommission:
    """Whoever is on this host is to leave it in order within so many seconds."""

    host: HostId
    within_s: float


@record
class Stopping:
    """The application ends: cancel every job, launch nothing more."""


# --- Events of the WorkerCore, from the worker's own process ---------------------------------


@record
class Inherited:
    """The worker has looked at what the one before it left: executors that live, with their drivers, and what
    their stores and those of dead ones hold; see StoresServed.  Comes before anything is assigned: once, or
    once for each application that has something there, and ``more`` is to come.  ``app``: whose it is; None:
    of whoever comes first."""

    executors: tuple[tuple[Incarnation, Incarnation], ...] = ()  # (executor, its driver)
    outputs: tuple[MapStatus, ...] = ()
    stores: tuple[str, ...] = ()
    names: tuple[tuple[str, ShuffleId, Fingerprint], ...] = ()
    app: AppId | None = None
    more: bool = False


@record
class ChildSpawned:
    """The process asked for by ``SpawnExecutor`` exists."""

    executor: Incarnation
    pid: int


@record
class ChildExited:
    """A child was reaped.  ``signal`` is 0 for a normal exit; ``outputs`` come from the probe of its
    store, ``stderr`` is the tail of what it wrote."""

    executor: Incarnation
    status: int
    signal: int
    stderr: str = ""
    outputs: tuple[object, ...] = ()
    registered: bool = False  # a driver had welcomed it: its death is not a failed start
    running: tuple[TaskId, ...] | None = None  # see ExecutorExited; the next two as well
    oom: bool = False
    rss_peak_bytes: int = 0
    touched: tuple[SegmentTouched, ...] = ()


@record
class ChildStopped:
    """A child was stopped by a signal, or went on."""

    executor: Incarnation
    stopped: bool


@record
class ChildrenSeen:
    """Answers ``Measure`` in a worker: (executor, busy seconds so far, stopped) of every live child, and
    what is free on the disk of the stores.  ``said``: the last beat that each of them has sent."""

    executors: tuple[tuple[Incarnation, float, bool], ...] = ()
    free_bytes: int = 0
    said: tuple[tuple[Incarnation, int], ...] = ()


@record
class StacksDumped:
    """Answers ``AskStacks``; see ExecutorStacks."""

    executor: Incarnation
    text: str


# --- Events of the ExecutorCore, from the executor's own threads --------------------------------


@record
class SlotStarted:
    """A slot has begun to run an attempt."""

    task: TaskId


@record
class SlotEnded:
    """A slot has ended an attempt, and begun ``started`` in the same turn when one was queued."""

    end: TaskEnd
    started: TaskId | None = None


@record
class BarrierReached:
    """User code in a slot has called barrier() or allGather(), and waits (see BarrierSync)."""

    task: TaskId
    round: int
    kind: str
    message: str = ""


@record
class Progress:
    """Answers ``Measure`` in an executor: how far each running attempt is, CPU seconds of the process,
    anonymous memory in bytes."""

    running: tuple[TaskProgress, ...] = ()
    cpu_s: float = 0.0
    rss_anon_bytes: int = 0


@record
class LeaveWanted:
    """This process was asked to go (SIGTERM), within so many seconds."""

    within_s: float


@record
class CopyEnded:
    """An order of a ``Copy`` has ended."""

    owner: Incarnation
    made: CopyMade


Event = (
    Received | PeerGone | PeerSilent | PeerHeard | GranterMoved | Tick | CopyEnded | LeaveWanted
    | JobSubmitted | CancelJobs | Released | ResourcesGranted | ResultLost | Stopping | Decommission
    | Inherited | ChildSpawned | ChildExited | ChildStopped | ChildrenSeen | StacksDumped
    | SlotStarted | SlotEnded | BarrierReached | Progress | DriverRan
)  # fmt: skip


# --- Effects ---------------------------------------------------------------------------------


@record
class Send:
    """Give a message to the link with ``to``."""

    to: Incarnation
    message: Message


@record
class SendBlob:
    """Send the stage blob ``blob`` to an executor; the host holds the bytes."""

    to: Incarnation
    blob: BlobId


@record
class ClosePeer:
    """Forget the link with a peer.  With ``fence`` every later word of it is answered by Fenced."""

    peer: Incarnation
    fence: bool
    why: str = ""


@record
class Note:
    """Something worth knowing happened.  The host writes it to the event log; tests and
    simulations also count kinds as marks that a branch was reached."""

    kind: str
    fields: Mapping[str, object] = field(default_factory=dict)


@record
class DeliverResult:
    """Partition ``partition`` of a job has its answer; at most once per (job, partition)."""

    job: JobId
    partition: int
    result: InlineResult | StoredResult
    accums: tuple[tuple[int, bytes], ...] = ()


KeptRow = tuple[int, int, InlineResult | StoredResult, Updates]  # partition, digest of its inputs, …


@record
class Keep:
    """Keep these results of an action for the driver's next life; before what comes after it."""

    action: ActionId
    rows: tuple[KeptRow, ...]


@record
class Journal:
    """Write these down, and carry out ``guarded`` once they are on the disk (S24).  With ``hold`` whatever
    else is asked for meanwhile waits too."""

    records: tuple[Record, ...]
    guarded: tuple[Effect, ...]
    hold: bool = False


@record
class Redeliver:
    """Hand out a result that was kept in an earlier life."""

    job: JobId
    action: ActionId
    partition: int


@record
class WithdrawResults:
    """What was delivered of a job rests on data that has been rolled back: forget all of it, with its
    accumulator updates unless the job had ended.  Every partition is delivered again (BL-5)."""

    job: JobId


@record
class MergeAccums:
    """Apply a map task's accumulator updates; once per (shuffle output, partition)."""

    accums: tuple[tuple[int, bytes], ...]


@record
class AttemptRecord:
    """One attempt of a task, for the error that a user sees."""

    attempt: int
    executor: Incarnation
    host: str
    outcome: str  # the reason's kind, e.g. UserError
    blame: str  # task, executor, host, network, storage, system, user-cancel
    text: str


@record
class JobFailure:
    """Why a job ended without an answer: a condition's name, what happened and every attempt."""

    condition: str
    text: str
    stage: StageId | None = None
    partition: int | None = None
    cause_type: str = ""
    traceback: str = ""
    other_tracebacks: tuple[str, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()


@record
class FinishJob:
    """The job's one terminal event; ``failure`` is None for success."""

    job: JobId
    failure: JobFailure | None = None


@record
class SpawnExecutor:
    """Start an executor process of this incarnation."""

    executor: Incarnation
    assignment: AssignExecutors


@record
class KillProcess:
    """Send a signal to a child (SIGTERM or SIGKILL by number)."""

    executor: Incarnation
    signal: int


@record
class AskStacks:
    """Have a child write down where its threads stand."""

    executor: Incarnation


@record
class DropStores:
    """Delete what nothing needs: all stores of ``app``, or segments whose every output has one of
    ``fingerprints``, which are names of the driver ``owner``'s; None: of this process's own."""

    app: AppId | None = None
    fingerprints: tuple[bytes, ...] = ()
    owner: Incarnation | None = None


@record
class RunTask:
    """Put an attempt into a slot's queue."""

    launch: LaunchTasks
    index: int  # which of launch.tasks
    outputs: tuple[MapOutputs, ...]


@record
class InterruptTask:
    """Break an attempt off: one that still waits in a slot's queue is taken out of it and ends as
    Killed, a running one gets SIGINT; ``hard`` means SIGKILL to the whole process.  With
    ``queued_only`` a running one goes on."""

    task: TaskId
    hard: bool = False
    queued_only: bool = False


@record
class Leased:
    """Until then, on the clock of ``handle``, queued attempts may begin; each begins only if it still holds."""

    until_s: float


@record
class ReleaseBarrier:
    """Let an attempt that waits in barrier() go on, or raise ``error`` in it."""

    task: TaskId
    round: int
    messages: tuple[str, ...]
    error: str = ""


@record
class LoadBlob:
    """Keep a stage's functions for the tasks to come."""

    blob: BlobId
    payload: bytes
    block: BlockRef | None = None


@record
class Forget:
    """Drop cached nodes, blobs, broadcasts, shuffle locations from this process, as the driver ``owner``
    numbers them, where there are several."""

    nodes: tuple[NodeId, ...] = ()
    blobs: tuple[BlobId, ...] = ()
    shuffles: tuple[ShuffleId, ...] = ()
    broadcasts: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()
    owner: Incarnation | None = None


@record
class Copy:
    """Copy these blocks and outputs into a store of this process, or write partitions down from its
    memory, without keeping any task from running; tell of each by a ``CopyEnded``."""

    owner: Incarnation
    orders: tuple[CopyOrder, ...]
    hosts: Mapping[HostId, str] = field(default_factory=dict)


@record
class LearnHosts:
    """Addresses of block servers."""

    hosts: Mapping[str, str]


@record
class Exit:
    """End this process with ``status``."""

    status: int
    why: str


@record
class Measure:
    """Hand in a ``Progress`` (executor) or a ``ChildrenSeen`` (worker): a beat is due."""


@record
class EndWorker:
    """See to it that this worker, which was given up, ends, and that another takes over its host, if that
    is in our power."""

    worker: Incarnation
    why: str


@record
class Connect:
    """Open a link to a peer that this core has been told of."""

    to: Incarnation
    endpoint: str


@record
class WatchProcess:
    """Tell by ``PeerGone`` as soon as this process of this machine has ended."""

    peer: Incarnation
    pid: int


Effect = (
    Send | SendBlob | ClosePeer | Note
    | DeliverResult | WithdrawResults | MergeAccums | FinishJob
    | SpawnExecutor | KillProcess | AskStacks | DropStores
    | RunTask | InterruptTask | ReleaseBarrier | Leased | LoadBlob | Forget | Copy | LearnHosts | Exit
    | Measure | EndWorker | Connect | WatchProcess | Remember | RunDriver | Keep | Journal | Redeliver
)  # fmt: skip


class Core(Protocol):
    """Whatever decides: no clock, no socket, no thread, no randomness of its own."""

    def handle(self, event: Event, now_s: float) -> list[Effect]: ...

    def wakeup_s(self) -> float | None: ...


__all__ = [name for name in dir() if not name.startswith("_")] + ["EndReason"]
