"""Node kinds that are served in one task: each partition from a few parent partitions.

Element-wise kinds (map, filter, flatMap and their like) carry an ``op`` and nothing else.
A task runner collects a run of consecutive ones and hands it to ``fuse``, which strings the
functions together in C iterators, so that the engine adds no Python frame to a record:

    records -> chain -> map(f) -> filter(g) -> map(h) -> chain -> whoever pulls
                 |  the source has ended                    |  and so the run may end
                 +------------------- End -----------------+

A user function that raises StopIteration would end a C iterator early without a word.  The
first chain notes the end of the source, the second one asks for that note when the run ends:
a run that ends before its source is an error (STOP_ITERATION_OCCURRED).

Runs longer than ``FUSED_OPS_MAX`` go through one loop with an explicit stack, because nested
iterators use the C stack: 10,000 maps in a row work under the default recursion limit.

Invariants: ``compute`` never touches its inputs before the result is pulled; nothing here
recurses over the lineage; every function in a node is the user's own or importable by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat, starmap, tee
from operator import itemgetter
from typing import Any

from spark_ft.errors import PySparkRuntimeError
from spark_ft.ids import NodeId
from spark_ft.lineage.dependency import (
    Dependency,
    Fingerprinted,
    Groups,
    NarrowDependency,
    OneToOne,
    Quotient,
    Remainder,
    Span,
)
from spark_ft.lineage.node import Node, TaskEnv
from spark_ft.lineage.partitioner import Partitioner

Op = tuple[str, Callable[..., Any]]  # kind and the user's function

MAP, FILTER, FLAT_MAP = "map", "filter", "flatMap"
MAP_VALUES, FLAT_MAP_VALUES, KEY_BY = "mapValues", "flatMapValues", "keyBy"
KEYS, VALUES = "keys", "values"

FUSED_OPS_MAX = 32  # a run's C iterators nest this deep at most
_NOTHING = object()

first = itemgetter(0)
second = itemgetter(1)


# --- Element-wise operations ----------------------------------------------------------------


def _flat_map(f: Callable[[Any], Iterable[Any]], records: Iterator[Any]) -> Iterator[Any]:
    return chain.from_iterable(map(f, records))


def _map_values(f: Callable[[Any], Any], records: Iterator[Any]) -> Iterator[Any]:
    left, right = tee(records)
    return zip(map(first, left), map(f, map(second, right)), strict=False)


def _flat_map_values(f: Callable[[Any], Iterable[Any]], records: Iterator[Any]) -> Iterator[Any]:
    try:  # one frame that resumes is faster here than two small iterators for each pair
        for pair in records:
            key = pair[0]
            for value in f(pair[1]):
                yield key, value
    except StopIteration as error:
        raise user_stop_iteration(error) from error


def _key_by(f: Callable[[Any], Any], records: Iterator[Any]) -> Iterator[Any]:
    left, right = tee(records)
    return zip(map(f, left), right, strict=False)


def _item(get: Callable[[Any], Any], records: Iterator[Any]) -> Iterator[Any]:
    return map(get, records)


_STEPS: dict[str, Callable[[Any, Iterator[Any]], Iterator[Any]]] = {
    MAP: map,
    FILTER: filter,
    FLAT_MAP: _flat_map,
    MAP_VALUES: _map_values,
    FLAT_MAP_VALUES: _flat_map_values,
    KEY_BY: _key_by,
    KEYS: _item,
    VALUES: _item,
}


class End:
    """Appended to a source, it notes that the source was read to its end."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.reached = True
        raise StopIteration


def _check_end(end: End) -> Iterator[Any]:
    if not end.reached:
        raise user_stop_iteration()
    yield from ()


def user_stop_iteration(cause: BaseException | None = None) -> PySparkRuntimeError:
    """The error that takes the place of a StopIteration from user code (api.md, rule 0.11)."""
    return PySparkRuntimeError(
        errorClass="STOP_ITERATION_OCCURRED", messageParameters={"exc": repr(cause or StopIteration())}
    )


def fuse(ops: Sequence[Op], records: Iterable[Any]) -> Iterator[Any]:
    """The records that come out of a run of element-wise operations, lazily.

    ``ops`` are in the order of application.  About 15 ns a record on top of the functions.
    """
    if len(ops) > FUSED_OPS_MAX:
        return _loop([_as_step(kind, f) for kind, f in ops], iter(records))
    if all(kind in (KEYS, VALUES) for kind, _ in ops):  # no user function, so nothing to guard
        return _string(ops, iter(records))
    end = End()
    return chain(_string(ops, chain(records, end)), _check_end(end))


def _string(ops: Sequence[Op], records: Iterator[Any]) -> Iterator[Any]:
    for kind, f in ops:
        records = _STEPS[kind](f, records)
    return records


class _OnValue:
    """f on the value of a pair."""

    __slots__ = ("f",)

    def __init__(self, f: Callable[[Any], Any]) -> None:
        self.f = f

    def __call__(self, pair: Any) -> Any:
        return pair[0], self.f(pair[1])


class _OnValues(_OnValue):
    def __call__(self, pair: Any) -> Any:
        return zip(repeat(pair[0]), self.f(pair[1]), strict=False)


class _WithKey(_OnValue):
    def __call__(self, record: Any) -> Any:
        return self.f(record), record


def _as_step(kind: str, f: Callable[[Any], Any]) -> Op:
    """The operation as one of map, filter and flatMap."""
    match kind:
        case "mapValues":
            return MAP, _OnValue(f)
        case "keyBy":
            return MAP, _WithKey(f)
        case "flatMapValues":
            return FLAT_MAP, _OnValues(f)
        case "flatMap":
            return FLAT_MAP, f
        case "filter":
            return FILTER, f
        case _:
            return MAP, f


def _loop(steps: Sequence[Op], records: Iterator[Any]) -> Iterator[Any]:
    """A run of any length in one frame; each flatMap in progress is an entry of the stack."""
    stack = [(records, 0)]  # records yet to come, and the step they enter at
    while stack:
        source, entry = stack[-1]
        todo = steps[entry:] if entry else steps
        for record in source:
            try:
                for position, (kind, f) in enumerate(todo, entry + 1):
                    if kind is MAP:
                        record = f(record)
                    elif kind is FLAT_MAP:
                        stack.append((iter(f(record)), position))
                        break
                    elif not f(record):
                        break
                else:
                    yield record
            except StopIteration as error:
                raise user_stop_iteration(error) from error
            if stack[-1][0] is not source:
                break
        else:
            stack.pop()


# --- Node kinds -----------------------------------------------------------------------------


class OneToOneNode(Node):
    """A kind whose partitions are those of its first parent, one to one."""

    __slots__ = ("_count",)

    def __init__(self, node_id: NodeId, parent: Node, partitioner: Partitioner | None = None) -> None:
        super().__init__(node_id, (NarrowDependency(parent, OneToOne()),), partitioner)
        self._count: int | None = None

    @property
    def partition_count(self) -> int:
        """Asked of the first ancestor that knows, once, and noted all the way down: a source that
        cannot tell yet (a missing file) raises only when it is asked, and depth costs no stack."""
        if self._count is not None:
            return self._count
        path: list[OneToOneNode] = []
        node: Node = self
        while isinstance(node, OneToOneNode) and node._count is None:
            path.append(node)
            dependency = node.dependencies[0]
            assert isinstance(dependency, NarrowDependency)
            node = dependency.parent
        count = node.partition_count
        for below in path:
            below._count = count
        return count


class Elementwise(OneToOneNode):
    """One operation on each record; ``op`` is what ``fuse`` takes."""

    __slots__ = ("op",)

    def __init__(
        self, node_id: NodeId, parent: Node, kind: str, function: Any, partitioner: Partitioner | None = None
    ) -> None:
        super().__init__(node_id, parent, partitioner)
        self.op: Op = (kind, function)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return fuse((self.op,), inputs[0])


class MapPartitions(OneToOneNode):
    """``function(partition, records) -> iterable``, called when the first record is asked for."""

    __slots__ = ("function",)

    def __init__(
        self,
        node_id: NodeId,
        parent: Node,
        function: Callable[[int, Iterator[Any]], Iterable[Any]],
        partitioner: Partitioner | None = None,
    ) -> None:
        super().__init__(node_id, parent, partitioner)
        self.function = function

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return chain.from_iterable(starmap(_call, ((self.function, partition, inputs[0]),)))


class BarrierMap(MapPartitions):
    """The same in a barrier stage."""

    __slots__ = ()
    barrier = True


def _call(function: Callable[[int, Iterator[Any]], Any], partition: int, records: Iterator[Any]) -> Any:
    try:
        return function(partition, records)
    except StopIteration as error:  # would end the chain around it as if there were no records
        raise user_stop_iteration(error) from error


class CheckpointPoint(OneToOneNode):
    """Passes its parent's records on; once they are saved, ``settle`` puts a reader in the parent's place.

    All that was built on it keeps its node, and the lineage above it can be forgotten.
    """

    __slots__ = ("file", "lineage", "rdd_id")

    def __init__(self, node_id: NodeId, parent: Node, rdd_id: int) -> None:
        super().__init__(node_id, parent, parent.partitioner)
        self.rdd_id = rdd_id
        self.file: str | None = None  # URI of the directory; None until settled
        self.lineage: Fingerprinted | None = None  # what was saved, where an application can be resumed

    def settle(self, file: str, reader: Node) -> None:
        assert reader.partition_count == self.partition_count
        self.dependencies = (NarrowDependency(reader, OneToOne()),)
        self.file = file

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return inputs[0]


class Union(Node):
    """The parents' partitions one parent after the other."""

    __slots__ = ("_count",)

    def __init__(self, node_id: NodeId, parents: Sequence[Node]) -> None:
        dependencies: list[NarrowDependency] = []
        start = 0
        for parent in parents:
            dependencies.append(NarrowDependency(parent, Span(start, parent.partition_count)))
            start += parent.partition_count
        super().__init__(node_id, tuple(dependencies))
        self._count = start

    @property
    def partition_count(self) -> int:
        return self._count

    def unfolded(self) -> tuple[Dependency, ...]:
        """Reaches through unions that are not persisted.  Parents without partitions are left out, so
        there are never more dependencies than partitions, however the unions are shared (BL-17)."""
        found: list[Dependency] = []
        start = 0
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            count = node.partition_count
            if not count:
                continue
            if isinstance(node, Union) and (node is self or not node.is_persisted):
                parents = [d.parent for d in node.dependencies if isinstance(d, NarrowDependency)]
                stack.extend(reversed(parents))
            else:
                found.append(NarrowDependency(node, Span(start, count)))
                start += count
        return tuple(found)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return inputs[0]


class PartitionwiseUnion(Node):
    """Union of parents with equal partitioners: partition p is the parents' partitions p in a row."""

    __slots__ = ()

    def __init__(self, node_id: NodeId, parents: Sequence[Node], partitioner: Partitioner) -> None:
        super().__init__(node_id, tuple(NarrowDependency(p, OneToOne()) for p in parents), partitioner)

    @property
    def partition_count(self) -> int:
        assert self.partitioner is not None
        return self.partitioner.partition_count

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return chain.from_iterable(inputs)


class Coalesced(Node):
    """``partition_count`` groups of neighbouring parent partitions."""

    __slots__ = ("_count",)

    def __init__(self, node_id: NodeId, parent: Node, partition_count: int) -> None:
        have = parent.partition_count
        want = min(partition_count, have)
        groups = tuple(tuple(range(g * have // want, (g + 1) * have // want)) for g in range(want))
        super().__init__(node_id, (NarrowDependency(parent, Groups(groups)),))
        self._count = want

    @property
    def partition_count(self) -> int:
        return self._count

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return chain.from_iterable(inputs)


class Zipped(OneToOneNode):
    """Pairs by position; partitions of unequal lengths fail the task."""

    __slots__ = ()

    def __init__(self, node_id: NodeId, left: Node, right: Node) -> None:
        super().__init__(node_id, left)
        self.dependencies = (*self.dependencies, NarrowDependency(right, OneToOne()))

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        left, right = inputs
        end = End()
        return chain(zip(chain(left, end), right, strict=False), _check_lengths(end, right))


def _check_lengths(left_end: End, right: Iterator[Any]) -> Iterator[Any]:
    if not left_end.reached or next(right, _NOTHING) is not _NOTHING:
        raise ValueError("Can only zip RDDs with same number of elements in each partition")
    yield from ()


class Cartesian(Node):
    """All pairs of a left and a right partition; the right one is spooled and replayed."""

    __slots__ = ("_count",)

    def __init__(self, node_id: NodeId, left: Node, right: Node) -> None:
        width = right.partition_count
        super().__init__(
            node_id, (NarrowDependency(left, Quotient(width)), NarrowDependency(right, Remainder(width)))
        )
        self._count = left.partition_count * width

    @property
    def partition_count(self) -> int:
        return self._count

    @property
    def keeps(self) -> bool:
        return True

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return chain.from_iterable(_rows(inputs[0], inputs[1], env))


def _rows(left: Iterator[Any], right: Iterator[Any], env: TaskEnv) -> Iterator[Iterator[Any]]:
    replayed = env.spool(right)
    for record in left:
        yield zip(repeat(record), replayed, strict=False)
