"""Transformations of any records; each lowers onto one node, or a few."""

from __future__ import annotations

import contextlib
import operator
import shlex
import subprocess  # noqa: TID251  pipe() runs the user's program, which is what it is for
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, cycle, islice, pairwise, repeat
from typing import IO, TYPE_CHECKING, Any, TypeVar

from spark_ft.errors import PySparkRuntimeError
from spark_ft.lineage.narrow import (
    FILTER,
    FLAT_MAP,
    KEY_BY,
    MAP,
    VALUES,
    Cartesian,
    Coalesced,
    PartitionwiseUnion,
    Union,
    Zipped,
    second,
)
from spark_ft.lineage.partitioner import Partitioner
from spark_ft.rdd.base import RDDBase, Session
from spark_ft.rdd.sampling import Bernoulli, Interval, Poisson
from spark_ft.rdd.tasks import count_records

if TYPE_CHECKING:
    from spark_ft.rdd import RDD

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")

DEDUPE_CHUNK = 4096  # records deduplicated at a time, before they are combined by key


class TransformMixin(RDDBase[T]):
    """map filter flatMap mapPartitions union zip sample coalesce glom …"""

    # --- Element by element ---

    def map(self, f: Callable[[T], U], preservesPartitioning: bool = False) -> RDD[U]:
        """``f`` of each record."""
        return self._elementwise(MAP, f, preservesPartitioning)

    def flatMap(self, f: Callable[[T], Iterable[U]], preservesPartitioning: bool = False) -> RDD[U]:
        """Everything in ``f`` of each record."""
        return self._elementwise(FLAT_MAP, f, preservesPartitioning)

    def filter(self, f: Callable[[T], bool]) -> RDD[T]:
        """The records for which ``f`` is true."""
        return self._elementwise(FILTER, f, True)

    def keyBy(self, f: Callable[[T], K]) -> RDD[tuple[K, T]]:
        """``(f(x), x)`` for each record."""
        return self._elementwise(KEY_BY, f)

    # --- Partition by partition ---

    def mapPartitions(
        self, f: Callable[[Iterator[T]], Iterable[U]], preservesPartitioning: bool = False
    ) -> RDD[U]:
        """``f`` of each partition's iterator; consumed lazily when ``f`` is a generator."""
        return self._partitionwise(_WithoutIndex(f), preservesPartitioning)

    def mapPartitionsWithIndex(
        self, f: Callable[[int, Iterator[T]], Iterable[U]], preservesPartitioning: bool = False
    ) -> RDD[U]:
        """``f(index, iterator)`` of each partition."""
        return self._partitionwise(f, preservesPartitioning)

    def mapPartitionsWithSplit(
        self, f: Callable[[int, Iterator[T]], Iterable[U]], preservesPartitioning: bool = False
    ) -> RDD[U]:
        """Older name of ``mapPartitionsWithIndex``."""
        warnings.warn(
            "mapPartitionsWithSplit is deprecated; use mapPartitionsWithIndex instead",
            FutureWarning,
            stacklevel=2,
        )
        return self.mapPartitionsWithIndex(f, preservesPartitioning)

    def glom(self) -> RDD[list[T]]:
        """One list for each partition."""
        return self._partitionwise(_glom)

    def pipe(self, command: str, env: dict[str, str] | None = None, checkCode: bool = False) -> RDD[str]:
        """Each partition's records as lines through a program; its output lines.

        No shell; without ``env`` the environment is empty.  With ``checkCode`` an exit code other
        than 0 fails the task.
        """
        return self._partitionwise(_Pipe(command, dict(env or {}), checkCode))

    def zipWithIndex(self) -> RDD[tuple[T, int]]:
        """Each record with its position.  With more than one partition a job counts them first."""
        starts = [0]
        if self.getNumPartitions() > 1:
            with self.ctx.one_action() as scope:
                for size in self._run(count_records, range(self.getNumPartitions() - 1)):
                    starts.append(starts[-1] + size)
                indexed = self._partitionwise(_IndexFrom(starts))
                self.ctx.made_from(indexed._node, scope)
            return indexed
        return self._partitionwise(_IndexFrom(starts))

    def zipWithUniqueId(self) -> RDD[tuple[T, int]]:
        """Item i of partition k of n with ``i * n + k``; no job."""
        return self._partitionwise(_UniqueId(self.getNumPartitions()))

    # --- Several RDDs ---

    def union(self, other: RDD[U]) -> RDD[T | U]:
        """The records of both, duplicates kept."""
        return union_of(self.ctx, [self, other])

    def __add__(self, other: RDD[T]) -> RDD[T]:
        if not isinstance(other, RDDBase):
            raise TypeError(f"only an RDD can be added to an RDD, not {type(other).__name__}")
        return self.union(other)

    def zip(self, other: RDD[U]) -> RDD[tuple[T, U]]:
        """Pairs by position.  Partition counts must agree now, partition lengths when it runs."""
        if self.getNumPartitions() != other.getNumPartitions():
            raise ValueError("Can only zip with RDD which has the same number of partitions")
        return self._derive(Zipped(self.ctx.new_node_id(), self._node, other._node))

    def cartesian(self, other: RDD[U]) -> RDD[tuple[T, U]]:
        """All pairs; partition ``i * m + j`` holds those of partitions i and j."""
        return self._derive(Cartesian(self.ctx.new_node_id(), self._node, other._node))

    # --- Samples ---

    def sample(self, withReplacement: bool, fraction: float, seed: int | None = None) -> RDD[T]:
        """Each record with probability ``fraction``, or so many times on average."""
        if not fraction >= 0:
            raise ValueError("Fraction must be nonnegative.")
        sampler = Poisson if withReplacement else Bernoulli
        return self._partitionwise(sampler(fraction, self._seed(seed)), True)

    def randomSplit(self, weights: Sequence[float], seed: int | None = None) -> list[RDD[T]]:
        """Disjoint parts in proportion to ``weights``."""
        if not all(weight >= 0 for weight in weights):
            raise ValueError("Weights must be nonnegative")
        total = float(sum(weights))
        if not total > 0:
            raise ValueError("Sum of weights must be positive")
        seed = self._seed(seed)
        bounds = [0.0]
        for weight in weights:
            bounds.append(bounds[-1] + weight / total)
        return [self._partitionwise(Interval(lower, upper, seed), True) for lower, upper in pairwise(bounds)]

    def _seed(self, seed: int | None) -> int:
        return self.ctx.rng.getrandbits(32) if seed is None else seed

    # --- Number of partitions ---

    def coalesce(self, numPartitions: int, shuffle: bool = False) -> RDD[T]:
        """Fewer partitions by joining neighbours; with ``shuffle`` any number, evenly filled."""
        if not numPartitions > 0:
            raise ValueError("Number of partitions must be positive.")
        if not shuffle:
            return self._derive(Coalesced(self.ctx.new_node_id(), self._node, numPartitions))
        spread = self._partitionwise(_Spread(self.getNumPartitions(), numPartitions))
        dealt = spread._shuffled(Partitioner(numPartitions, operator.index))
        return dealt._elementwise(VALUES, second)

    def repartition(self, numPartitions: int) -> RDD[T]:
        """Any number of partitions, evenly filled whatever the records are."""
        return self.coalesce(numPartitions, shuffle=True)


def union_of(session: Session, rdds: Sequence[RDDBase[Any]]) -> RDD[Any]:
    """One after the other; partition by partition when all are partitioned alike."""
    nodes = [rdd._node for rdd in rdds]
    partitioner = nodes[0].partitioner
    if partitioner is not None and all(node.partitioner == partitioner for node in nodes):
        return rdds[0]._derive(PartitionwiseUnion(session.new_node_id(), nodes, partitioner))
    return rdds[0]._derive(Union(session.new_node_id(), nodes))


class _WithoutIndex:
    """A function of an iterator as one of (index, iterator)."""

    __slots__ = ("f",)

    def __init__(self, f: Callable[[Iterator[Any]], Iterable[Any]]) -> None:
        self.f = f

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterable[Any]:
        return self.f(records)


def _glom(partition: int, records: Iterator[Any]) -> Iterator[list[Any]]:
    yield list(records)


class _Pipe:
    """Lines through a program.  The program is gone when the iterator is, however that ends."""

    __slots__ = ("check", "command", "env")

    def __init__(self, command: str, env: dict[str, str], check: bool) -> None:
        self.command = command
        self.env = env
        self.check = check

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(shlex.split(self.command), env=self.env, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        failed: list[BaseException] = []
        threading.Thread(target=_feed, args=(records, process.stdin, failed), daemon=True).start()
        try:
            for line in process.stdout:
                yield line.rstrip(b"\n").decode("utf-8")
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        if failed:  # noted before the input was closed, hence before the program ended
            raise failed[0]
        if self.check and code:
            raise PySparkRuntimeError(
                errorClass="PIPE_FUNCTION_EXITED",
                messageParameters={"func_name": self.command, "error_code": str(code)},
            )


def _feed(records: Iterator[Any], stdin: IO[bytes], failed: list[BaseException]) -> None:
    try:
        for record in records:
            stdin.write((str(record).rstrip("\n") + "\n").encode("utf-8"))
    except BrokenPipeError:
        pass  # the program has read all it wants
    except BaseException as error:  # whatever the records raise belongs to the task, not to this thread
        failed.append(error)
    finally:
        with contextlib.suppress(OSError):  # the last buffer may find the program gone
            stdin.close()


class _IndexFrom:
    __slots__ = ("starts",)

    def __init__(self, starts: Sequence[int]) -> None:
        self.starts = starts

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        return zip(records, count(self.starts[partition]), strict=False)


class _UniqueId:
    __slots__ = ("step",)

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        return zip(records, count(partition, self.step), strict=False)


class _Spread:
    """Deals the records of ``sources`` partitions round ``targets`` ones, as (target, record).

    Sources start at targets spread evenly, so that few records still fill many partitions.
    """

    __slots__ = ("sources", "targets")

    def __init__(self, sources: int, targets: int) -> None:
        self.sources = sources
        self.targets = targets

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        start = partition * self.targets // self.sources
        return zip(cycle(chain(range(start, self.targets), range(start))), records, strict=False)


def keyed_once(partition: int, records: Iterator[Any]) -> Iterator[Any]:
    """``(record, None)``, most duplicates already dropped: a dict a chunk, at C speed."""
    while chunk := dict.fromkeys(islice(records, DEDUPE_CHUNK)):
        yield from chunk.items()


def keyed(partition: int, records: Iterator[Any]) -> Iterator[Any]:
    """``(record, None)``."""
    return zip(records, repeat(None), strict=False)
