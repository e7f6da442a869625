"""Stages: what one task does in one go, cut out of a lineage at its shuffle dependencies.

    shuffle ─┐                 ┌─ map stage: every partition writes an output of one shuffle
             ├─ narrow tree ───┤
    shuffle ─┘                 └─ result stage: the asked-for partitions answer one job

A map stage belongs to its shuffle and is shared by all jobs that need it; a result stage belongs to
one job.  A stage is *active* while it has a TaskSet; between that it only remembers.

Invariants
  * a stage's id, and ``attempt``, and each partition's attempt number only grow.
  * ``jobs`` is empty exactly while the stage is not active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_ft.ids import BlobId, Incarnation, JobId, NodeId, ShuffleId, StageId
from spark_ft.lineage.shape import LineageShape, NodeShape

if TYPE_CHECKING:
    from spark_ft.scheduler.dag import Job
    from spark_ft.scheduler.taskset import TaskSet


@dataclass(frozen=True, slots=True)
class StageTree:
    """The narrow tree under ``root``: all that is computed in one task.

    ``parents`` are the shuffles it reads, ``persisted`` its nodes that may be found cached; ``placed`` is
    true when some node would rather be computed on certain hosts, ``barrier`` when its tasks are a gang.
    """

    root: NodeId
    nodes: Mapping[NodeId, NodeShape]
    parents: tuple[ShuffleId, ...]
    persisted: tuple[NodeId, ...]
    placed: bool
    barrier: bool = False


def cut(shape: LineageShape, root: NodeId) -> StageTree:
    """The stage that ends at ``root``: linear in its nodes, however they are shared (BL-16, BL-17)."""
    parents: dict[ShuffleId, None] = {}
    persisted: list[NodeId] = []
    placed = barrier = False
    seen = {root}
    stack = [root]
    while stack:
        node = shape.nodes[stack.pop()]
        if node.persisted:
            persisted.append(node.node)
        placed = placed or bool(node.preferred)
        barrier = barrier or node.barrier
        for shuffle in node.shuffles:
            parents[shuffle] = None
        for dependency in node.narrow:
            if dependency.parent not in seen:
                seen.add(dependency.parent)
                stack.append(dependency.parent)
    return StageTree(root, shape.nodes, tuple(parents), tuple(persisted), placed, barrier)


_NO_GANG = (
    "[SPARK-24820][SPARK-24821]: Barrier execution mode does not allow the following pattern of RDD chain "
    "within a barrier stage:\n1. Ancestor RDDs that have different number of partitions from the resulting "
    "RDD (e.g. union()/coalesce()/first()/take()/PartitionPruningRDD). A workaround for first()/take() can "
    "be barrierRdd.collect()[0]."
)


def why_no_gang(shape: LineageShape, partitions: Sequence[int]) -> str:
    """Why a lineage with barrier stages cannot be run, or nothing: each of them needs all of its tasks, one
    to one down to its sources (SPARK-24820)."""
    if not any(node.barrier for node in shape.nodes.values()):
        return ""
    for root in (shape.target, *(shuffle.parent for shuffle in shape.shuffles.values())):
        if not cut(shape, root).barrier:
            continue
        count = shape.nodes[root].partition_count
        if root == shape.target and len(partitions) != count:
            return _NO_GANG
        seen, stack = {root}, [root]
        while stack:
            node = shape.nodes[stack.pop()]
            if node.partition_count != count:
                return _NO_GANG
            below = {dependency.parent for dependency in node.narrow} - seen
            seen |= below
            stack.extend(below)
    return ""


class Stage:
    """One stage, through all its attempts.  ``shuffle`` is what it writes; None for a result stage."""

    __slots__ = (
        "attempt", "awaits", "blob", "failed_rounds", "fruitless", "id", "jobs", "name", "numbers",
        "progressed", "shape", "shuffle", "tasks", "tree", "under_way", "unloadable",
    )  # fmt: skip

    def __init__(self, id: StageId, shuffle: ShuffleId | None, name: str) -> None:
        self.id = id
        self.shuffle = shuffle
        self.name = name
        self.shape: LineageShape | None = None
        self.tree: StageTree = StageTree(NodeId(-1), {}, (), (), False)
        self.blob = BlobId(-1)
        self.tasks: TaskSet | None = None
        self.jobs: dict[JobId, Job] = {}
        self.awaits: dict[ShuffleId, Stage] = {}  # the active parents without which some task cannot run
        self.attempt = -1
        self.under_way = False  # between a stage attempt's start and its end
        self.numbers: dict[int, int] = {}  # partition -> number of its next attempt
        self.progressed = True  # a task succeeded since the last attempt that a failed fetch ended
        self.fruitless = 0  # attempts in a row that failed fetches ended, and nothing succeeded in
        self.failed_rounds = 0
        self.unloadable: set[Incarnation] = set()  # executors that could not load its functions

    def learn(self, shape: LineageShape, root: NodeId, blob: BlobId) -> None:
        """Take the lineage and the functions of a job that needs this stage now."""
        self.blob = blob
        if self.shape is not shape:
            self.shape, self.tree = shape, cut(shape, root)

    @property
    def kind(self) -> str:
        return "result" if self.shuffle is None else "map"

    def next_number(self, partition: int) -> int:
        number = self.numbers.get(partition, 0)
        self.numbers[partition] = number + 1
        return number

    def give_back(self, partition: int, number: int) -> None:
        """The attempt of this number never began: the next one may have its number, if it is the last."""
        if self.numbers.get(partition) == number + 1:
            self.numbers[partition] = number

    def lead(self) -> Job:
        """The job that has waited longest for this stage: its place in the queue and its properties."""
        return self.jobs[min(self.jobs)]
