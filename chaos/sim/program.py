"""Programs without functions: a random lineage, and the truth about what each partition of it holds.

A partition's *content* is a value (a hash of where it is and of all it was computed from), a count of rows,
and its provenance: for every shuffle under it, the map outputs that it was built from; for every persisted
partition that comes out different each time, which of its editions.  Two contents that disagree in their
provenance must never meet in one job: that is what a wrong answer of an indeterminate program is.  Values
of a deterministic program follow from the lineage alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from chaos.shapes import Shapes
from chaos.sim.options import Options
from chaos.sim.violation import ViolationError
from spark_ft.ids import HostId, NodeId, ShuffleId
from spark_ft.lineage.dependency import Mapping as PartitionMapping
from spark_ft.lineage.dependency import OneToOne, Span
from spark_ft.lineage.shape import NarrowShape, NodeShape

Key = tuple[NodeId, int]
Source = ShuffleId | Key  # a shuffle, or a persisted partition that comes out different each time
Provenance = Mapping[Source, tuple["Content", ...]]
_NONE: Provenance = {}


class Content:
    """What a partition, or a map output, holds.  Equal content is equal in ``value``."""

    __slots__ = ("mixed", "nonce", "provenance", "rows", "value")

    def __init__(self, value: int, rows: int, provenance: Provenance, nonce: int = 0) -> None:
        self.value, self.rows, self.provenance, self.nonce = value, rows, provenance, nonce
        self.mixed = ""  # what met in it that must not: a task may see it, nobody may use it


def joined(ours: Provenance, theirs: Provenance) -> Provenance:
    """What was built from both.  Raises when they were built from different data of one shuffle."""
    if theirs is ours or not theirs:
        return ours
    if not ours:
        return theirs
    both = dict(ours)
    for shuffle, contents in theirs.items():
        known = both.setdefault(shuffle, contents)
        if known is not contents and [c.value for c in known] != [c.value for c in contents]:
            raise ViolationError("S6", f"two contents of {shuffle} meet")
    return both


def _met(ours: Provenance, theirs: Provenance, mixed: str) -> tuple[Provenance, str]:
    """As ``joined``; what met that must not is noted instead."""
    if theirs is ours or not theirs:
        return ours, mixed
    if not ours:
        return theirs, mixed
    try:
        return joined(ours, theirs), mixed
    except ViolationError as met:
        return ours, mixed or met.text


def share(content: Content, reduce_count: int, reduce_index: int) -> int:
    """Rows of a map output that belong to one reducer; which these are depends on chance (its nonce) where
    the program does.  The shares of all reducers add up to the rows there are."""
    base, rest = divmod(content.rows, reduce_count)
    rows = base + (reduce_index < rest)
    if content.nonce:
        moved = (content.nonce >> 8) % (base + 1)
        rows -= moved * (reduce_index == content.nonce % reduce_count)
        rows += moved * (reduce_index == (content.nonce >> 4) % reduce_count)
    return rows


Outputs = tuple[Content, ...]


@dataclass
class Lineage(Shapes):
    """All nodes and shuffles of a history; programs are ranges of it."""

    random: set[ShuffleId] = field(default_factory=set)  # outputs come out different each time
    fickle: set[NodeId] = field(default_factory=set)  # persisted, and different each time
    chatty: set[ShuffleId] = field(default_factory=set)  # equal rows, other bytes
    poison: dict[tuple[NodeId, int], str] = field(
        default_factory=dict
    )  # partitions that always fail, and how
    sizes: dict[NodeId, int] = field(default_factory=dict)  # rows of each partition of a source
    disk_only: set[NodeId] = field(default_factory=set)
    spills: set[NodeId] = field(default_factory=set)  # evicted to disk

    def add(
        self,
        count: int,
        narrow: tuple[NarrowShape, ...] = (),
        shuffles: tuple[ShuffleId, ...] = (),
        preferred: Mapping[int, tuple[HostId, ...]] | None = None,
        persisted: bool = False,
        replication: int = 1,
        barrier: bool = False,
    ) -> NodeId:
        id = NodeId(len(self.nodes))
        self.nodes[id] = NodeShape(
            id,
            count,
            narrow,
            shuffles,
            persisted,
            preferred or {},
            replication=replication,
            barrier=barrier,
        )
        return id

    def may_be_gang(self, node: NodeId) -> bool:
        """Whether all that one task of it computes has as many partitions (SPARK-24820)."""
        count, stack = self.nodes[node].partition_count, [node]
        while stack:
            below = self.nodes[stack.pop()]
            if below.partition_count != count:
                return False
            stack.extend(narrow.parent for narrow in below.narrow)
        return True

    def keeps_something(self, shuffle: ShuffleId) -> bool:
        """Whether a map task of this shuffle computes anything that is persisted."""
        stack = [self.shuffles[shuffle].parent]
        while stack:
            node = self.nodes[stack.pop()]
            if node.persisted:
                return True
            stack.extend(narrow.parent for narrow in node.narrow)
        return False

    def size_of(self, source: NodeId, partition: int) -> int:
        """Rows of a partition that is not computed from others."""
        return self.sizes.get(source, 100 + 7 * partition + source)

    # --- The truth ---

    def compute(
        self,
        key: tuple[NodeId, int],
        read: Callable[[ShuffleId], Outputs],
        held: Callable[[tuple[NodeId, int]], Content | None] | None = None,
        fresh: dict[tuple[NodeId, int], Content] | None = None,
        known: dict[tuple[NodeId, int], Content] | None = None,
        chance: Callable[[Key], int] | None = None,
    ) -> Content:
        """What one partition holds, computed in one task.  ``read`` gives a shuffle's outputs, ``held`` a
        persisted partition that is there already; ``fresh`` collects what is to be persisted; ``chance`` is
        what a fickle partition comes out as."""
        if known is None:
            known = {}
        found = known.get(key)
        if found is not None:
            return found
        id, partition = key
        node = self.nodes[id]
        if node.persisted and held is not None and (found := held(key)) is not None:
            known[key] = found
            return found
        parts: list[int] = [id, partition]
        rows, provenance, mixed = 0, _NONE, ""
        for shuffle in node.shuffles:
            outputs = read(shuffle)
            provenance, mixed = _met(provenance, {shuffle: outputs}, mixed)
            count = self.shuffles[shuffle].reduce_count
            for output in outputs:
                parts.append(output.value)
                rows += share(output, count, partition)
                provenance, mixed = _met(provenance, output.provenance, mixed or output.mixed)
        for narrow in node.narrow:
            for parent in narrow.mapping.parents(partition):
                below = self.compute((narrow.parent, parent), read, held, fresh, known, chance)
                parts.append(below.value)
                rows += below.rows
                provenance, mixed = _met(provenance, below.provenance, mixed or below.mixed)
        if not node.shuffles and not node.narrow:
            rows = self.size_of(id, partition)
        content = known[key] = Content(hash(tuple(parts)), rows, provenance)
        content.mixed = mixed
        if id in self.fickle:
            assert chance is not None
            content.nonce = chance(key)
            content.value = hash((content.value, content.nonce))
            content.provenance = joined(provenance, {key: (content,)})
        if fresh is not None and node.persisted:
            fresh[key] = content
        return content

    def output(self, shuffle: ShuffleId, content: Content, chance: int) -> Content:
        """The map output that is written of a partition."""
        nonce = chance if shuffle in self.random else 0
        made = Content(hash((shuffle, content.value, nonce)), content.rows, content.provenance, nonce)
        made.mixed = content.mixed
        return made

    def checked(self, target: NodeId, partition: int, content: Content) -> None:
        """Raise unless this is what the partition holds, given the data its provenance says it was built
        from, and that data is what the program makes, too."""
        provenance = content.provenance

        def read(shuffle: ShuffleId) -> Outputs:
            if shuffle not in provenance:
                raise ViolationError("S6", f"an answer was built without shuffle {shuffle}")
            return provenance[shuffle]

        def chance(key: Key) -> int:
            if key not in provenance:
                raise ViolationError("S6", f"an answer was built without partition {key}")
            return provenance[key][0].nonce

        known: dict[tuple[NodeId, int], Content] = {}
        told = self.compute((target, partition), read, known=known, chance=chance)
        if told.value != content.value or told.rows != content.rows:
            raise ViolationError("answer", f"partition {partition} of node {target} is not what it should be")
        for source, outputs in provenance.items():
            if isinstance(source, tuple):
                if self.compute(source, read, known=known, chance=chance).value != outputs[0].value:
                    raise ViolationError("answer", f"partition {source} is not what its task has kept")
                continue
            shuffle, parent = source, self.shuffles[source].parent
            for index, output in enumerate(outputs):
                below = self.compute((parent, index), read, known=known, chance=chance)
                if self.output(shuffle, below, output.nonce).value != output.value:
                    raise ViolationError(
                        "answer", f"output {index} of shuffle {shuffle} is not its map task's"
                    )

    def rows_of(self, target: NodeId) -> int:
        """How many rows a node has in all: the same in every run."""
        total: dict[NodeId, int] = {}
        order: list[NodeId] = []
        stack = [target]
        while stack:
            id = stack.pop()
            if id in total:
                continue
            node = self.nodes[id]
            below = [n.parent for n in node.narrow] + [self.shuffles[s].parent for s in node.shuffles]
            waiting = [parent for parent in below if parent not in total]
            if waiting:
                stack.append(id)
                stack.extend(waiting)
                continue
            if below:
                total[id] = sum(total[parent] for parent in below)
            else:
                total[id] = sum(self.size_of(id, p) for p in range(node.partition_count))
            order.append(id)
        return total[target]


def one_to_one(parent: NodeId) -> NarrowShape:
    return NarrowShape(parent, OneToOne())


def grow(lineage: Lineage, options: Options, rng: Random) -> range:
    """Add one program; returns its nodes."""
    first = len(lineage.nodes)
    width = options.width
    for _ in range(options.nodes):
        mine = [NodeId(n) for n in range(first, len(lineage.nodes))]
        kinds = (
            ["source", "map", "zip", "union", "reduce", "reduce", "reduce", "join"] if mine else ["source"]
        )
        kind, count = rng.choice(kinds), rng.randrange(1, width + 1)
        node = rng.choice(mine[-4:]) if mine else NodeId(0)
        if mine and rng.random() < options.chain:
            kind, node = "reduce", mine[-1]
        kept = rng.random() < options.persisted
        size = lineage.nodes[node].partition_count if mine else 0
        narrow: tuple[NarrowShape, ...] = ()
        shuffles: tuple[ShuffleId, ...] = ()
        preferred: dict[int, tuple[HostId, ...]] = {}
        match kind:
            case "source":
                if rng.random() < 0.3:
                    preferred = {0: (HostId("h0"),)}
            case "map":
                narrow, count = (one_to_one(node),), size
            case "zip":
                peers = [n for n in mine[-6:] if lineage.nodes[n].partition_count == size]
                narrow, count = (one_to_one(node), one_to_one(rng.choice(peers))), size
            case "union":
                other = rng.choice(mine)
                more = lineage.nodes[other].partition_count
                mappings: tuple[PartitionMapping, ...] = (Span(0, size), Span(size, more))
                narrow, count = (NarrowShape(node, mappings[0]), NarrowShape(other, mappings[1])), size + more
            case "reduce":
                shuffles = (_shuffle(lineage, options, rng, node, count),)
            case _:
                other = rng.choice(mine)
                shuffles = tuple(_shuffle(lineage, options, rng, n, count) for n in (node, other))
        if count > 2 * width:
            continue
        copies = 2 if rng.random() < options.replicated else 1
        below = lineage.may_be_gang(node) if kind == "map" else kind in ("source", "reduce", "join")
        gang = below and rng.random() < options.barrier
        id = lineage.add(count, narrow, shuffles, preferred, kept, copies, gang)
        if kept and rng.random() < options.fickle:
            lineage.fickle.add(id)
        if kept and rng.random() < 0.3:
            lineage.disk_only.add(id)
        elif kept and rng.random() < 0.5:
            lineage.spills.add(id)
    mine = [NodeId(n) for n in range(first, len(lineage.nodes))]
    if rng.random() < options.poison:
        node = rng.choice(mine)
        how = rng.choice(["raise", "raise", "segv", "exit", "oom", "unretryable", "kernel", "memory"])
        lineage.poison[(node, rng.randrange(lineage.nodes[node].partition_count))] = how
    return range(first, len(lineage.nodes))


def _shuffle(lineage: Lineage, options: Options, rng: Random, parent: NodeId, count: int) -> ShuffleId:
    shuffle = lineage.shuffle(parent, count)
    if rng.random() < options.indeterminate:
        lineage.random.add(shuffle)
    elif rng.random() < options.chatty:
        lineage.chatty.add(shuffle)
    return shuffle
