"""Fingerprints: what a lineage, and a job on it, is called in every run of the same program.

    node  ── its kind, functions, captured values, inputs, parents ──> 16 bytes
    job   ── node, function of the action, partitions ──> 16 bytes, and which of the equal ones it is

* Equal fingerprints: the same records, if user code is deterministic.  What cannot be known counts as
  different, each time anew; ``unsafe`` says why.  A wrong "different" costs time, a wrong "same" the answer.
* A lineage is looked at when it is pickled, and as it is then: a value that a program changes between two
  actions changes the second.  What lies beyond a shuffle that was pickled already is fixed: the shuffle
  remembers (``ShuffleDependency.lineage``), as does a checkpoint that was written.
* Equal ones are counted in the order of the program: the third of five equal jobs is the third also when
  the program is started again.  Which of several threads comes first does not matter: they are equal.
* Persistence is no part of it: where partitions are kept changes no record.

docs/resume.md tells users what counts as the same program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from spark_ft.ids import Fingerprint
from spark_ft.lineage import anatomy, packages
from spark_ft.lineage.canonical import Canon, Part, digest_of
from spark_ft.lineage.dependency import Fingerprinted, NarrowDependency, ShuffleDependency
from spark_ft.lineage.narrow import CheckpointPoint
from spark_ft.lineage.node import Node
from spark_ft.records import record

_NOT_OF_A_NODE = frozenset({"__weakref__", "_count", "dependencies", "id", "storage"})


@record
class JobIdentity:
    """A job among all of a program: ``ordinal`` counts equal ``digest``s from 0."""

    digest: Fingerprint
    ordinal: int
    unsafe: tuple[str, ...] = ()

    @property
    def key(self) -> Fingerprint:
        """16 bytes that name this job in every run of the program; not to be looked up when ``unsafe``."""
        return numbered(self.digest, self.ordinal)


def numbered(digest: Fingerprint, ordinal: int) -> Fingerprint:
    """The name of one of several things with equal fingerprints."""
    return Fingerprint(digest_of(b"ordinal", digest, ordinal.to_bytes(8, "little")))


class Fingerprints:
    """Of one life of one program; counts in the order of calls, from whatever threads.

    ``surroundings``: settings that records depend on beside the lineage, such as the hash seed.
    """

    def __init__(self, surroundings: Mapping[str, str] | None = None) -> None:
        settings = [part.encode() for pair in sorted((surroundings or {}).items()) for part in pair]
        self._ground = digest_of(packages.interpreter().digest, packages.engine().digest, *settings)
        self._counts: dict[Fingerprint, int] = {}
        self._lock = threading.Lock()  # never held while values are looked at: that may take long

    def value(self, value: Any) -> Fingerprinted:
        """Of any Python value, as it is now."""
        return self._of(Canon(expand), value)

    def node(self, node: Node) -> Fingerprinted:
        """Of a lineage, with its captured values as they are now.  Some 20 us a function.

        Raises JobError when an input is missing.
        """
        return self._of(Canon(expand), node)

    def job(
        self,
        node: Node,
        function: Callable[..., Any],
        partitions: Sequence[int] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> JobIdentity:
        """Of one job, to be asked once for each and where its functions are pickled.  ``properties`` of the
        thread that asks: its tasks can read them.

        Names the shuffles it is the first to use, from now on: their functions are pickled with it.
        """
        canon = Canon(expand)
        told = dict(sorted((properties or {}).items()))
        made = self._of(
            canon, ("job", node, function, None if partitions is None else list(partitions), told)
        )
        fixed = [(each, _as_it_is(canon, each)) for each in _unnamed(node)]
        properties_digest = canon.digest(told)
        with self._lock:
            for dependency, lineage in fixed:
                if dependency.lineage is None:  # no other thread was quicker
                    read = self._grounded(digest_of(lineage.digest, properties_digest))
                    dependency.fingerprint = numbered(read, self._count(Fingerprinted(read, lineage.unsafe)))
                    dependency.lineage = lineage
            return JobIdentity(made.digest, self._count(made), made.unsafe)

    def name(self, node: Node) -> Fingerprinted:
        """A name for what is kept of a node: another one for each node that asks, equal or not."""
        found = self.node(node)
        with self._lock:
            return Fingerprinted(numbered(found.digest, self._count(found)), found.unsafe)

    def fix(self, point: CheckpointPoint) -> None:
        """The fingerprint of a checkpoint stays what it is, though its lineage will be cut."""
        if point.lineage is None:
            point.lineage = _as_it_is(Canon(expand), point)

    def _of(self, canon: Canon, value: Any) -> Fingerprinted:
        return Fingerprinted(self._grounded(canon.digest(value)), canon.reasons(value))

    def _grounded(self, digest: bytes) -> Fingerprint:
        return Fingerprint(digest_of(self._ground, digest))

    def _count(self, found: Fingerprinted) -> int:
        if found.unsafe:
            return 0  # there is no second one
        ordinal = self._counts.get(found.digest, 0)
        self._counts[found.digest] = ordinal + 1
        return ordinal


def _as_it_is(canon: Canon, value: Any) -> Fingerprinted:
    """Without the surroundings: as others that rest on it see it."""
    return Fingerprinted(Fingerprint(canon.digest(value)), canon.reasons(value))


def _unnamed(target: Node) -> Iterator[ShuffleDependency]:
    """The shuffles of a lineage that have no lasting name yet, in the order of the walk from ``target``."""
    stack, seen = [target], {target.id}
    while stack:
        for dependency in stack.pop().dependencies:
            if isinstance(dependency, ShuffleDependency):
                if dependency.lineage is not None:
                    continue
                yield dependency
            parent = dependency.parent
            if parent is not None and parent.id not in seen:
                seen.add(parent.id)
                stack.append(parent)


# --- What a lineage is made of ------------------------------------------------------------------


def expand(value: Any) -> Part:
    """Nodes and dependencies by what they compute; everything else by anatomy.py."""
    if isinstance(value, Node):
        return _node(value)
    if isinstance(value, ShuffleDependency):
        return _shuffle(value) if value.lineage is None else _remembered(_shown(value), value.lineage)
    if isinstance(value, Fingerprinted):
        return _remembered("records", value)
    return anatomy.expand(value)


def _node(node: Node) -> Part:
    kind = type(node)
    how = f"({node.partition_count}) {kind.__name__}[{node.id}]"
    if isinstance(node, CheckpointPoint):
        if node.lineage is not None:
            return _remembered(how, node.lineage)
        return Part(how, b"checkpoint", [each.parent for each in node.dependencies], ["parent"])
    names: list[str] = []
    children: list[Any] = []
    if node.op is not None:
        names += ("operation", "function")
        children += node.op
    else:
        stands_for = node.counts_as()
        for name in _fields(kind):
            names.append(name)
            children.append(stands_for[name] if name in stands_for else getattr(node, name, None))
    if node.partitioner is not None:
        names.append("partitioner")
        children.append(node.partitioner)
    names.append("class")
    children.append(kind)
    mappings = b""
    for dependency in node.dependencies:
        names.append("parent")
        if isinstance(dependency, NarrowDependency):
            mappings += repr(dependency.mapping).encode()
            children.append(dependency.parent)
        else:
            children.append(dependency)
    return Part(how, b"node %d " % node.partition_count + mappings, children, names)


@cache
def _fields(kind: type[Node]) -> list[str]:
    slots = {name for base in kind.__mro__ for name in getattr(base, "__slots__", ())}
    return sorted(slots - _NOT_OF_A_NODE - {"partitioner"})


def _shuffle(dependency: ShuffleDependency) -> Part:
    names = ["parent", "partitioner", "aggregator", "map_side_combine", "group", "ordering"]
    return Part(_shown(dependency), b"shuffle", [getattr(dependency, name) for name in names], names)


def _shown(dependency: ShuffleDependency) -> str:
    return f"shuffle {dependency.shuffle}"


def expand_all(value: Any) -> Part:
    """The same for people: what lies beyond a shuffle is told though it is fixed."""
    if isinstance(value, ShuffleDependency) and (fixed := value.lineage) is not None:
        part = _shuffle(value)
        how = f"{part.how}, fixed when it was first used"
        return part._replace(how=how, known=fixed.digest, reasons=fixed.unsafe)
    return expand(value)


def _remembered(how: str, known: Fingerprinted) -> Part:
    return Part(how, b"", known=known.digest, reasons=known.unsafe)
