"""Every control message, grouped by who sends it to whom.

Messages are frozen dataclasses that ``codec.py`` turns into tagged msgpack.  They travel over
a *link* (transport/link.py), which gives each pair of incarnations in-order delivery without
loss or duplicates while both live; a message may still come late, or never when its
receiver dies, and each docstring says what happens then.  Handlers stay idempotent all the
same: the guard is the TaskId and the sender's incarnation, never the transport.

A new field gets a default.  Pickles appear only as opaque bytes that no manager, worker or
scheduler ever decodes.
"""

from __future__ import annotations

from dataclasses import field

from spark_ft.ids import (
    AppId,
    BlobId,
    Fingerprint,
    Generation,
    HostId,
    Incarnation,
    NodeId,
    ShuffleId,
    TaskId,
)
from spark_ft.protocol.parts import (
    BlockRef,
    CachedBlock,
    CopyOrder,
    EndReason,
    FetchFailed,
    HostError,
    InlineResult,
    Killed,
    Launch,
    MapStatus,
    NotLoadable,
    SegmentTouched,
    ShuffleInput,
    StoredResult,
    Success,
    TaskEnd,
    TaskProgress,
    UserError,
)
from spark_ft.records import record

__all__ = [  # of parts.py: whoever speaks of messages finds their parts here
    "BlockRef", "CachedBlock", "CopyOrder", "EndReason", "FetchFailed", "HostError", "InlineResult",
    "Killed", "Launch", "MapStatus", "NotLoadable", "SegmentTouched", "ShuffleInput", "StoredResult",
    "Success", "TaskEnd", "TaskProgress", "UserError",
]  # fmt: skip

# --- Executor to driver -------------------------------------------------------------------


@record
class ExecutorHello:
    """First word of an executor.  Repeated until welcomed; a second one changes nothing."""

    executor: Incarnation
    worker: Incarnation
    host: HostId
    pid: int
    slots: int
    versions: dict[str, str] = field(default_factory=dict)


@record
class TaskUpdates:
    """Attempts that began and ended, in order.  Lost with its sender: then the worker's
    ExecutorExited and the stores' manifests tell what counts."""

    started: tuple[TaskId, ...] = ()
    ended: tuple[TaskEnd, ...] = ()


@record
class BlobWanted:
    """The executor was told to run a stage whose functions it has not got; driver sends StageBlob."""

    blob: BlobId


@record
class BarrierSync:
    """An attempt of a barrier stage has called barrier() or allGather() (``kind``), for the ``round``-th
    time, and waits.  Answered by BarrierReleased, or by the attempt's end."""

    task: TaskId
    round: int
    kind: str
    message: str = ""


@record
class ExecutorBeat:
    """Progress, every heartbeat interval: how far each running attempt is, CPU seconds of the
    process, memory in bytes.  ``acked``: the last beat whose answer has come, so that the driver knows that
    it is heard.  A missing beat is not death: the worker tells of that."""

    number: int
    running: tuple[TaskProgress, ...] = ()
    cpu_s: float = 0.0
    rss_anon_bytes: int = 0
    acked: int = 0


# --- Driver to executor -------------------------------------------------------------------


@record
class ExecutorWelcome:
    """The driver counts on this executor from now on.  ``hosts`` maps each host to the address of
    its block server."""

    hosts: dict[HostId, str] = field(default_factory=dict)


@record
class Hosts:
    """Block servers that came or moved since the welcome."""

    hosts: dict[HostId, str]


@record
class Fenced:
    """The sender of this answer has given the receiver up: it must exit at once, and nothing it
    did since is used."""

    why: str


@record
class StageBlob:
    """A stage's functions, pickled once; sent before the first LaunchTasks that names it.  Large
    ones stand in the driver's store instead of ``payload``."""

    blob: BlobId
    payload: bytes = b""
    block: BlockRef | None = None


@record
class MapOutputs:
    """Where the outputs of one shuffle are, for the tasks that read it; a later ``version``
    replaces an earlier one.  Sent before the LaunchTasks that names this version.  ``copies``: where some
    of them are too."""

    shuffle: ShuffleId
    generation: Generation
    version: int
    fingerprint: Fingerprint
    statuses: tuple[MapStatus, ...]
    copies: tuple[MapStatus, ...] = ()


@record
class LaunchTasks:
    """Run these attempts, in order, as slots come free.  ``output`` is the shuffle that a map
    stage writes, at which generation; None for a result stage.  ``gang``: of a barrier stage, the
    addresses of all its tasks' executors by partition."""

    blob: BlobId
    stage: int
    stage_attempt: int
    tasks: tuple[Launch, ...]
    inputs: tuple[ShuffleInput, ...] = ()
    output: ShuffleInput | None = None
    properties: dict[str, str] = field(default_factory=dict)
    gang: tuple[str, ...] = ()


@record
class BarrierReleased:
    """Every member of the gang has made this call: ``messages`` by partition.  Or, with ``error``, nobody
    need wait any more.  For an attempt that does not wait it means nothing."""

    task: TaskId
    round: int
    messages: tuple[str, ...] = ()
    error: str = ""


@record
class KillTask:
    """Break this attempt off (queued or running).  Answered by its TaskEnd(Killed) if it was known.

    With ``queued_only`` one that has begun goes on, and nothing is answered: the driver only wants
    it back for an executor that is idle.
    """

    task: TaskId
    reason: str
    queued_only: bool = False


@record
class DropBlocks:
    """Forget persisted nodes, blobs, broadcasts and shuffles that nothing needs any more; and ``copies``,
    by the numbers of their orders, that came too late.  Workers have copies of nodes."""

    nodes: tuple[NodeId, ...] = ()
    blobs: tuple[BlobId, ...] = ()
    shuffles: tuple[ShuffleId, ...] = ()
    broadcasts: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()


@record
class MakeCopies:
    """To a worker: copy these into a store of its own, from the block servers at ``hosts``.  To an
    executor: write these down from its memory.  Each order is answered by a CopyMade."""

    orders: tuple[CopyOrder, ...]
    hosts: dict[HostId, str] = field(default_factory=dict)


@record
class BeatAck:
    """The executor's lease counts from when it sent ExecutorBeat ``number``: the last one that proved that
    it hears the driver (scheduler/leases.py).  Answers every beat, late ones too."""

    number: int


# --- Driver to worker or executor -----------------------------------------------------------


@record
class Leave:
    """Leave in order within so many seconds, as after a SIGTERM.  Answered by Leaving."""

    within_s: float


@record
class MayLeave:
    """Nothing of value for this driver is left where the receiver is; it need not wait any longer."""


# --- Worker or executor to driver -----------------------------------------------------------


@record
class Leaving:
    """The sender was asked to go, and ends within so many seconds or when told MayLeave: give it nothing
    more, and take away what is worth keeping."""

    within_s: float
    why: str = ""


@record
class CopyMade:
    """How one order of a MakeCopies ended: where the copy is, or why there is none.

    ``evidence``: as in FetchFailed when the original could not be read, ``gone`` when it is not in this
    memory any more, a HostError's condition when it could not be written, ``failed`` for anything else.
    """

    number: int
    output: MapStatus | None = None
    cached: CachedBlock | None = None
    evidence: str = ""
    text: str = ""
    needed_bytes: int = 0
    free_bytes: int = 0


# --- Worker to driver ---------------------------------------------------------------------


@record
class WorkerHello:
    """First word of a worker that holds executors for this driver."""

    worker: Incarnation
    host: HostId
    pid: int
    data_endpoint: str  # of its block server
    root: str  # directory of its stores, useful to processes on the same machine


@record
class StoresServed:
    """Follows every WorkerHello: what the worker found on its host when it started.  ``executors`` outlived
    the worker before it and are its own from now on; ``stores`` could be opened, and ``outputs`` is all that
    verified in those whose writers are gone.  ``names``: (store, shuffle, fingerprint) of these, for a driver
    that did not number the shuffles.  Twice: the same."""

    executors: tuple[Incarnation, ...] = ()
    outputs: tuple[MapStatus, ...] = ()
    stores: tuple[str, ...] = ()
    names: tuple[tuple[str, ShuffleId, Fingerprint], ...] = ()


@record
class ExecutorSpawned:
    """The worker started an executor process: from here on its death will be told."""

    executor: Incarnation
    pid: int


@record
class ExecutorExited:
    """An executor's process has ended and was reaped; ``outputs`` are the map outputs its store
    holds committed, found by a probe after its death, so that unreported ones are adopted (EX-4).

    ``status`` is the exit code, ``signal`` the signal's number or 0; ``stderr`` its last words.
    ``running`` are the attempts that it was running when it died, whatever it had said of their start;
    None when that is not known.  ``oom``: the kernel killed it for memory; ``rss_peak_bytes``: the most
    that it ever had resident.  ``touched``: what it was reading or writing when a fault (SIGBUS, SIGSEGV …)
    ended it, or something that nobody knows.
    """

    executor: Incarnation
    status: int
    signal: int
    stderr: str = ""
    outputs: tuple[MapStatus, ...] = ()
    running: tuple[TaskId, ...] | None = None
    oom: bool = False
    rss_peak_bytes: int = 0
    touched: tuple[SegmentTouched, ...] = ()


@record
class ExecutorStopped:
    """The kernel told the worker that an executor was stopped (SIGSTOP) or goes on."""

    executor: Incarnation
    stopped: bool


@record
class ExecutorStacks:
    """Where every thread of an executor stands, as faulthandler writes it: answers DumpStacks.  Empty when
    none could be had: the process is stopped, or ends."""

    executor: Incarnation
    text: str


@record
class ExecutorsUnavailable:
    """Executors on this host crash at every start; the worker has given up after ``tries`` (EX-12)."""

    tries: int
    stderr: str


@record
class WorkerBeat:
    """The worker lives and vouches for its children: (executor, seconds that it was busy, stopped).  Busy
    is CPU time, and time in which a thread of it waited for the GIL.  ``said``: the last beat that each of
    them has sent, which tells a busy one from one that is cut off."""

    number: int
    executors: tuple[tuple[Incarnation, float, bool], ...] = ()
    free_bytes: int = 0
    said: tuple[tuple[Incarnation, int], ...] = ()


# --- Driver to worker ---------------------------------------------------------------------


@record
class WorkerWelcome:
    """The driver knows this worker."""


@record
class KillExecutor:
    """SIGKILL this executor (fenced, or deaf to KillTask); its successor is started as after any death."""

    executor: Incarnation
    why: str


@record
class DumpStacks:
    """Make this executor write down where its threads stand; a thread that holds the GIL is no hindrance."""

    executor: Incarnation


@record
class DropShuffles:
    """These fingerprints are dead: their space may be given back, readers get ``expired``."""

    fingerprints: tuple[Fingerprint, ...]


# --- To a worker from whoever grants resources (manager, or the driver in local[n]) -----------


@record
class AssignExecutors:
    """Keep ``count`` executors of ``slots`` slots and ``memory_bytes`` alive for this driver; a later
    one for the same driver replaces it.  ``settings`` are the application's, for its executors; ``cores`` of
    each, 0: as many as slots."""

    app: AppId
    driver: Incarnation
    driver_endpoint: str
    driver_pid: int
    count: int
    slots: int
    memory_bytes: int
    settings: dict[str, str] = field(default_factory=dict)
    cores: int = 0


@record
class ReleaseApp:
    """The application has ended: end its executors, drop its stores, answer AppReleased."""

    app: AppId


# --- Whoever submits, manager, worker: drivers that run within the cluster ------------------------


@record
class SubmitDriver:
    """Run a program as a driver: ``main``, one of ``files`` (name, content), with ``arguments`` and these
    ``settings``, where so many cores and so much memory are free.  From a manager: run it here.  Known by
    ``driver``, a name that whoever submits it has drawn: twice changes nothing.  ``supervise``: one that
    fails, or whose host is lost, is started again.  ``has_run``: a manager before this one was told; it is
    not to be started once more before its worker had time to say that it runs, or has ended."""

    driver: str
    main: str
    files: tuple[tuple[str, bytes], ...] = ()
    arguments: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    cores: int = 1
    memory_bytes: int = 1 << 30
    supervise: bool = False
    has_run: bool = False


@record
class DriverChanged:
    """How a submitted driver is: WAITING for room, RUNNING, and then for good FINISHED, FAILED or LOST."""

    driver: str
    state: str
    text: str = ""


# --- Worker to whoever grants resources ------------------------------------------------------


@record
class RegisterWorker:
    """A worker offers its cores and memory.  Repeated until answered.  ``held``: (application, its driver,
    executors, cores and memory of each) that a manager before this one has granted, and that live."""

    worker: Incarnation
    host: HostId
    pid: int
    cores: int
    memory_bytes: int
    held: tuple[tuple[AppId, Incarnation, int, int, int], ...] = ()
    drivers: tuple[SubmitDriver, ...] = ()  # that run here


@record
class WorkerRegistered:
    """Answer to RegisterWorker."""


@record
class AppReleased:
    """Everything of this application is gone from this worker: it was told so, or its ``driver`` has ended,
    or could not be reached from there for long."""

    app: AppId
    worker: Incarnation
    driver: Incarnation = Incarnation("")


# --- Driver to manager and back ---------------------------------------------------------------


@record
class RegisterApp:
    """An application asks for executors: ``executors`` of ``slots`` and ``memory_bytes`` each, at most; 0: all
    there are.  Idempotent by the driver's incarnation.  ``cores`` as in AssignExecutors."""

    app: AppId
    driver: Incarnation
    driver_endpoint: str
    driver_pid: int
    executors: int
    slots: int
    memory_bytes: int
    settings: dict[str, str] = field(default_factory=dict)
    cores: int = 0


@record
class AppRegistered:
    """What the application was granted so far: worker -> number of executors.  Sent again on change."""

    granted: dict[Incarnation, int] = field(default_factory=dict)
    hosts: dict[Incarnation, HostId] = field(default_factory=dict)


@record
class WorkerLost:
    """The manager has lost a worker: with it go its executors (their stores too, if its host did)."""

    worker: Incarnation
    why: str


@record
class UnregisterApp:
    """The application ends; every worker releases it.  Answered by AppUnregistered."""

    app: AppId


@record
class AppUnregistered:
    """All workers that could be reached have released the application."""

    app: AppId


# --- Anyone to anyone ---------------------------------------------------------------------


@record
class Goodbye:
    """The sender ends now and wants nothing more; its link may be forgotten."""

    why: str = ""


Message = (
    ExecutorHello | TaskUpdates | BlobWanted | BarrierSync | ExecutorBeat
    | ExecutorWelcome | Hosts | Fenced | StageBlob | MapOutputs | LaunchTasks | BarrierReleased
    | KillTask | DropBlocks | BeatAck
    | MakeCopies | CopyMade | Leave | MayLeave | Leaving
    | WorkerHello | StoresServed | ExecutorSpawned | ExecutorExited | ExecutorStopped | ExecutorStacks
    | ExecutorsUnavailable
    | WorkerBeat | WorkerWelcome | KillExecutor | DumpStacks | DropShuffles
    | AssignExecutors | ReleaseApp | RegisterWorker | WorkerRegistered | AppReleased
    | SubmitDriver | DriverChanged
    | RegisterApp | AppRegistered | WorkerLost | UnregisterApp | AppUnregistered
    | Goodbye
)  # fmt: skip
