"""The parts that messages are made of: where data is, what is to be run, how it ended.

Frozen dataclasses like the messages themselves (messages.py); a new field gets a default.
"""

from __future__ import annotations

from spark_ft.ids import Fingerprint, Generation, HostId, NodeId, ShuffleId, TaskId
from spark_ft.records import record


@record
class BlockRef:
    """Where the bytes of one block are: a key in a segment of a store that a host serves."""

    host: HostId
    store: str  # directory name of the store: the incarnation that wrote it
    segment: int
    key: bytes
    size_bytes: int = 0
    checksum: int = 0


@record
class MapStatus:
    """One committed map output: where its manifest is and what it holds.

    ``checksum`` covers the output's bytes in order; equal checksums prove two outputs equal.
    ``accums`` are the task's accumulator updates as (accumulator id, pickled value): they are in
    the manifest too, so an adopted output brings them with it.  ``inputs``, of what its task has read
    (digests.py), is told of outputs that a worker has found.
    """

    shuffle: ShuffleId
    generation: Generation
    map_index: int
    host: HostId
    store: str
    segment: int
    attempt: TaskId
    size_bytes: int
    row_count: int
    checksum: int
    accums: tuple[tuple[int, bytes], ...] = ()
    inputs: int = 1


@record
class SegmentTouched:
    """A segment of a store that a process was in the middle of when it died.  ``damaged``: what lies there
    does not verify, and it has been taken out of use since."""

    host: HostId
    store: str
    segment: int
    damaged: bool = False


@record
class CachedBlock:
    """One partition of a persisted node as it is held: in the memory of the executor that says so
    (``block`` is None), or as a block on disk that the host serves whoever dies.  ``checksum`` is that of
    its records, below 0 when it cannot be told; 0: it is not told.  One that is not ``kept`` was computed
    and used, and found no room."""

    node: NodeId
    partition: int
    size_bytes: int
    block: BlockRef | None = None
    checksum: int = 0
    kept: bool = True


@record
class CopyOrder:
    """One thing to be copied under a number that only grows: a map output of the shuffle named
    ``fingerprint``, or a partition.  A partition without a block is in the receiver's own memory, and is to
    be written down by it."""

    number: int
    output: MapStatus | None = None
    fingerprint: Fingerprint = Fingerprint(b"")
    cached: CachedBlock | None = None


@record
class InlineResult:
    """A result task's answer, pickled, small enough (1 MiB) to travel in the message."""

    payload: bytes


@record
class StoredResult:
    """A result task's answer, pickled, in chunks that lie in the executor's store."""

    block: BlockRef


@record
class Success:
    """The task did all it had to: a map task has committed ``output``, a result task has ``result``."""

    output: MapStatus | None = None
    result: InlineResult | StoredResult | None = None


@record
class UserError:
    """User code raised.  Blamed on the task.  ``retryable`` is False where another try is
    pointless by nature (the input changed); ``condition`` names such cases.  ``rss_peak_bytes`` is told
    with TASK_OUT_OF_MEMORY."""

    type_name: str
    text: str
    traceback: str
    condition: str = "TASK_FAILED"
    retryable: bool = True
    rss_peak_bytes: int = 0


@record
class NotLoadable:
    """The stage's functions could not be unpickled here (TK-9): deterministic after two executors."""

    type_name: str
    text: str
    traceback: str


@record
class FetchFailed:
    """A block that the task needs could not be read.  Never blamed on the task.

    ``evidence`` is one of missing, corrupt, incomplete, expired, refused, timeout.  ``map_index``
    is -1 and ``block`` set when it was not a shuffle block.  ``attempt`` wrote the output that is meant:
    the same store may hold a newer one of the same map task by now; -1 is not told.  ``others``: attempts
    whose outputs, of the same shuffle and in the same store, cannot be read either.
    """

    shuffle: ShuffleId
    generation: Generation
    map_index: int
    host: HostId
    store: str
    evidence: str
    text: str = ""
    block: BlockRef | None = None
    attempt: TaskId = TaskId(-1)
    others: tuple[TaskId, ...] = ()


@record
class HostError:
    """The host could not do its part (disk full, no file handles).  Blamed on the host."""

    condition: str  # STORAGE_FULL, TOO_MANY_FILES …
    text: str
    needed_bytes: int = 0
    free_bytes: int = 0


@record
class Killed:
    """The attempt was broken off because the driver said so."""

    reason: str


EndReason = Success | UserError | NotLoadable | FetchFailed | HostError | Killed


@record
class TaskEnd:
    """How one attempt ended, and what it left behind.  ``cached``/``dropped`` tell of persisted
    partitions that came into and went from this executor's memory while it ran; ``dirty`` is why its
    process is to be replaced."""

    task: TaskId
    reason: EndReason
    accums: tuple[tuple[int, bytes], ...] = ()
    cached: tuple[CachedBlock, ...] = ()
    dropped: tuple[tuple[NodeId, int], ...] = ()
    run_s: float = 0.0
    record_count: int = 0
    dirty: str = ""


@record
class Launch:
    """One attempt to run.  ``cached`` says which partitions of persisted nodes that the task
    meets are on disk, and where."""

    task: TaskId
    partition: int
    attempt: int
    speculative: bool = False
    cached: tuple[CachedBlock, ...] = ()


@record
class ShuffleInput:
    """A parent shuffle at the generation and version of its map outputs that a task is to read."""

    shuffle: ShuffleId
    generation: Generation
    version: int


@record
class TaskProgress:
    """How far one running attempt is: records read from shuffles, bytes read and written by its thread,
    CPU seconds of it, its threads and its children.  Each only grows, as a rule."""

    task: TaskId
    record_count: int = 0
    byte_count: int = 0
    cpu_s: float = 0.0
