"""What the shadow of a driver remembers of each attempt and of each job."""

from __future__ import annotations

from spark_ft.ids import Generation, Incarnation, JobId, ShuffleId, TaskId
from spark_ft.lineage.shape import LineageShape

Updates = tuple[tuple[int, bytes], ...]


class Tried:
    """One attempt, as far as the driver has told and heard of it."""

    __slots__ = (
        "counts", "ended", "executor", "inputs", "job", "partition", "shuffle", "speculative", "stage",
        "stale", "task",
    )  # fmt: skip

    def __init__(
        self,
        task: TaskId,
        executor: Incarnation,
        stage: int,
        partition: int,
        shuffle: ShuffleId | None,
        job: JobId | None,
        inputs: tuple[tuple[ShuffleId, Generation], ...],
        speculative: bool,
    ) -> None:
        self.task, self.executor, self.stage, self.partition = task, executor, stage, partition
        self.shuffle, self.job, self.inputs, self.speculative = shuffle, job, inputs, speculative
        self.counts = True  # not told to stop
        self.ended = False
        self.stale = False  # what it has read was replaced since


class Told:
    """One job, as far as the driver's user has been told of it."""

    __slots__ = (
        "delivered", "final", "finished", "partitions", "rollbacks", "shape", "stored", "updates",
    )  # fmt: skip

    def __init__(self, shape: LineageShape, partitions: frozenset[int], final: bool) -> None:
        self.shape, self.partitions, self.final = shape, partitions, final
        self.updates: list[Updates] = []  # of accumulators: they count at its end
        self.delivered: dict[int, Tried] = {}
        self.finished = False
        self.rollbacks = 0  # generations that shuffles under it have begun
        self.stored = False  # some result was delivered that is still to be read where it is
