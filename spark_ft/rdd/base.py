"""The RDD handle: a session, a lineage node, a name.  Every method of the mixins lowers onto nodes.

``Session`` is all that an RDD needs of its context, so that this room can be driven by a
cluster or by a few lines in one process (tests/unit/rdd/inprocess.py).

Ids are numbered as PySpark does: sources and shuffles when they are made, narrow functions
when first asked, so ``rdd.map(f).filter(g).id() == rdd.id() + 1``.

Invariants: a handle never changes its partitioning or its records; only its name, its storage
level and, once a checkpoint mark is set, the node it stands for.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableSet, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from spark_ft.errors import ContextInTaskError, UsageError
from spark_ft.ids import Fingerprint, NodeId, ShuffleId
from spark_ft.lineage.dependency import NarrowDependency, ShuffleDependency
from spark_ft.lineage.narrow import CheckpointPoint, Elementwise, MapPartitions
from spark_ft.lineage.node import Node
from spark_ft.lineage.partitioner import Partitioner
from spark_ft.storagelevel import StorageLevel

if TYPE_CHECKING:
    from spark_ft.rdd import RDD

T = TypeVar("T")
R = TypeVar("R")


class Session(Protocol):
    """What an RDD needs of its context."""

    rng: random.Random
    """Seeds for samples that were given none: drawn when the transformation is called."""

    checkpoint_marks: MutableSet[CheckpointPoint]
    """Points marked and not yet written; a ``weakref.WeakSet`` kept by the context, filled here."""

    @property
    def default_parallelism(self) -> int: ...

    def conf(self, key: str, default: str) -> str: ...

    def new_node_id(self) -> NodeId: ...

    def new_rdd_id(self) -> int: ...

    def new_shuffle(self) -> tuple[ShuffleId, Fingerprint]: ...

    def run(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], R],
        partitions: Sequence[int] | None = None,
    ) -> list[R]:
        """``function(partition, records)`` in a task for each of ``partitions`` (None: all); the
        results in that order.  Raises JobError."""

    def run_each(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], R],
        partitions: Sequence[int],
        prefetch: bool = False,
    ) -> Iterator[R]:
        """The same one partition at a time, each when it is asked for; ``prefetch`` runs one ahead."""

    def one_action(self) -> AbstractContextManager[int]:
        """The jobs that this thread runs inside the block see one content of every shuffle, or the later ones
        raise JobError (INDETERMINATE_OUTPUT_ROLLBACK)."""

    def name_action(self, node: Node, action: Callable[..., Any]) -> str:
        """A name for an action on ``node``, known by ``action``, in every life of the application; or ""."""

    def made_from(self, node: Node, scope: int) -> None:
        """The functions of ``node`` were made from the answers of that block: so is every job on it bound."""

    def track(self, thing: ShuffleDependency | Node) -> None:
        """Release the data of a shuffle or of a persisted node when the object is collected."""

    def unpersist(self, node: Node, blocking: bool) -> None:
        """Drop the node's partitions wherever they are kept."""

    def has_checkpoint_dir(self) -> bool: ...

    def write_checkpoint(self, point: CheckpointPoint) -> None:
        """Save every partition of ``point`` as ``<checkpoint dir>/rdd-<point.rdd_id>`` and call
        ``point.settle(uri, reader)`` with a node that reads them.  Runs a job of its own."""


class RDDBase(Generic[T]):
    """Fields and marks; ``_derive`` makes the next handle."""

    def __init__(self, session: Session, node: Node, *, pipelined: bool = False) -> None:
        self.ctx = session
        self._node = node
        self._id: int | None = None if pipelined else session.new_rdd_id()
        self._name: str | None = None
        self._level = StorageLevel.NONE
        self._point: CheckpointPoint | None = None  # a checkpoint mark
        self._beneath: Callable[[], Node | None] = _nowhere  # weakly, the node that was marked
        self._local = False  # a local checkpoint mark
        self.is_cached = False
        self.is_checkpointed = False

    # --- What it is ---

    @property
    def context(self) -> Any:
        """The SparkContext it was made by."""
        return self.ctx

    @property
    def partitioner(self) -> Partitioner | None:
        return self._node.partitioner

    def id(self) -> int:
        """A number of its own within the application."""
        if self._id is None:
            self._id = self.ctx.new_rdd_id()
        return self._id

    def name(self) -> str | None:
        return self._name

    def setName(self, name: str) -> RDD[T]:
        self._name = name
        return self._self()

    def getNumPartitions(self) -> int:
        return self._node.partition_count

    def __repr__(self) -> str:
        return f"{self._name or ''}{type(self._node).__name__}[{self.id()}]"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ContextInTaskError(errorClass="RDD_TRANSFORM_ONLY_VALID_ON_DRIVER", messageParameters={})

    def __fingerprint__(self) -> Node:
        return self._node

    def getResourceProfile(self) -> None:
        """None: tasks ask for nothing but a slot."""
        return None

    def _is_barrier(self) -> bool:
        """Whether its partitions are computed in a barrier stage."""
        seen, stack = {self._node.id}, [self._node]
        while stack:
            node = stack.pop()
            if node.barrier:
                return True
            for dependency in node.dependencies:
                if isinstance(dependency, NarrowDependency) and dependency.parent.id not in seen:
                    seen.add(dependency.parent.id)
                    stack.append(dependency.parent)
        return False

    def _reserialize(self, serializer: Any = None) -> RDD[T]:
        """Programs that choose PySpark's serializers go on working; records are not stored as such."""
        return self._self()

    def _pickled(self) -> RDD[T]:
        return self._self()

    def toDebugString(self) -> bytes:
        """The lineage, one node a line, indented by one step at each shuffle."""
        lines: list[str] = []
        stack: list[tuple[Node, int]] = [(self._node, 0)]
        seen: set[NodeId] = set()
        while stack:
            node, depth = stack.pop()
            kept = f" [{node.storage}]" if node.storage != StorageLevel.NONE else ""
            lines.append(f"{' |  ' * depth}({node.partition_count}) {type(node).__name__}[{node.id}]{kept}")
            if node.id in seen:
                continue
            seen.add(node.id)
            for dependency in reversed(node.dependencies):
                assert dependency.parent is not None
                stack.append((dependency.parent, depth + isinstance(dependency, ShuffleDependency)))
        return "\n".join(lines).encode("utf-8")

    def explainFingerprint(self) -> str:
        """What names this RDD's data for another run of the program, part by part, and what it is that
        differs in every run, if something does (docs/resume.md).

        >>> print(sc.parallelize([1, 2]).map(abs).explainFingerprint())  # doctest: +SKIP
        Safe: another run of this program finds its data.
        (2) Elementwise[1]  a7bd2c04
          operation: 'map'
          function: function builtins.abs, of CPython 3.11.7  1d40f2aa
        (2) ParallelCollection[0]  77bd7aa3
          input: list of 2  5f1b3f5e
        """
        from spark_ft.lineage.explain import explain  # 20 ms, and seldom asked for
        from spark_ft.lineage.fingerprint import Fingerprints

        return explain(self._node, Fingerprints())

    # --- Persist ---

    def cache(self) -> RDD[T]:
        """Keep the partitions in memory once they have been computed."""
        return self.persist(StorageLevel.MEMORY_ONLY)

    def persist(self, storageLevel: StorageLevel = StorageLevel.MEMORY_ONLY) -> RDD[T]:
        """Keep the partitions at ``storageLevel``; another level than an assigned one is an error."""
        if self._level not in (StorageLevel.NONE, storageLevel):
            raise UsageError("Cannot change storage level of an RDD after it was already assigned a level")
        self.is_cached = True
        self._level = storageLevel
        self._keep(storageLevel)
        return self._self()

    def unpersist(self, blocking: bool = False) -> RDD[T]:
        """Drop what is kept; the RDD can be used and persisted again."""
        for node in (self._node, self._beneath()):
            if node is not None and node.storage != StorageLevel.NONE:
                node.storage = StorageLevel.NONE
                self.ctx.unpersist(node, blocking)
        self.is_cached = False
        self._level = StorageLevel.NONE
        return self._self()

    def getStorageLevel(self) -> StorageLevel:
        return self._level

    # --- Checkpoint ---

    def checkpoint(self) -> None:
        """Mark for saving: written by a job of its own before the first job on it, which reads it from there,
        as all later ones do.  So it is computed once, and every job sees the same records."""
        if not self.ctx.has_checkpoint_dir():
            raise UsageError("Checkpoint directory has not been set in the SparkContext")
        self.is_checkpointed = True
        if self._point is None:
            self._beneath = weakref.ref(self._node)
            self._node = self._point = CheckpointPoint(self.ctx.new_node_id(), self._node, self.id())
            self.ctx.checkpoint_marks.add(self._point)
            if self._level != StorageLevel.NONE:  # what is kept shall also spare reading the checkpoint
                self._keep(self._level)

    def localCheckpoint(self) -> None:
        """Keep the partitions in executors.  Unlike in Spark the lineage stays, so that a lost
        partition is computed again instead of ending the job."""
        self._local = self.is_checkpointed = True
        if self._level == StorageLevel.NONE:
            self.persist(StorageLevel.MEMORY_AND_DISK)

    def isCheckpointed(self) -> bool:
        return self._local or (self._point is not None and self._point.file is not None)

    def isLocallyCheckpointed(self) -> bool:
        return self._local

    def getCheckpointFile(self) -> str | None:
        return self._point.file if self._point is not None else None

    def _keep(self, level: StorageLevel) -> None:
        self._node.storage = level
        self.ctx.track(self._node)

    def _write_marked(self) -> None:
        """Write the marked points that a job is about to go through, parents first."""
        marks = self.ctx.checkpoint_marks
        if not marks:
            return
        for point in _points_above(self._node):
            try:
                marks.remove(point)
            except KeyError:  # not marked, or another thread is at it
                continue
            try:
                self.ctx.write_checkpoint(point)
            except BaseException:  # it was not written, whatever it was: Ctrl-C in its job is no checkpoint
                marks.add(point)  # the next job tries again
                raise

    # --- For the mixins ---

    def _self(self) -> RDD[T]:
        return self  # type: ignore[return-value]  # the mixins are only ever used as parts of RDD

    def _derive(self, node: Node, *, pipelined: bool = False) -> RDD[Any]:
        """A handle of the same session on ``node``.  A persisted parent ends a pipeline of ids."""
        if pipelined and (self.is_cached or self.is_checkpointed):
            self.id()
        return type(self)(self.ctx, node, pipelined=pipelined)  # type: ignore[return-value]  # as above

    def _elementwise(self, kind: str, function: Callable[..., Any], keeps_keys: bool = False) -> RDD[Any]:
        partitioner = self._node.partitioner if keeps_keys else None
        node = Elementwise(self.ctx.new_node_id(), self._node, kind, function, partitioner)
        return self._derive(node, pipelined=True)

    def _partitionwise(
        self, function: Callable[[int, Iterator[Any]], Iterable[Any]], keeps_keys: bool = False
    ) -> RDD[Any]:
        partitioner = self._node.partitioner if keeps_keys else None
        node = MapPartitions(self.ctx.new_node_id(), self._node, function, partitioner)
        return self._derive(node, pipelined=True)

    def _run(
        self, function: Callable[[int, Iterator[Any]], R], partitions: Sequence[int] | None = None
    ) -> list[R]:
        self._write_marked()
        return self.ctx.run(self._node, function, partitions)

    def _defaultReducePartitions(self) -> int:
        if self.ctx.conf("spark.default.parallelism", ""):
            return self.ctx.default_parallelism
        return self.getNumPartitions()


def _nowhere() -> None:
    return None


def _points_above(target: Node) -> list[CheckpointPoint]:
    """Checkpoint points in the lineage of ``target``, the oldest first."""
    found: dict[NodeId, CheckpointPoint] = {}
    seen: set[NodeId] = set()
    stack = [target]
    while stack:
        node = stack.pop()
        if node.id in seen:
            continue
        seen.add(node.id)
        if isinstance(node, CheckpointPoint):
            found[node.id] = node
        stack.extend(d.parent for d in node.dependencies if d.parent is not None)
    return [found[node_id] for node_id in sorted(found)]  # node ids only grow along the lineage
