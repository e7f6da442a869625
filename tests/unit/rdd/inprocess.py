"""A session in one process: what an RDD asks of its context and ``compute`` of its environment.

Nodes are evaluated directly, shuffles are dicts, nothing spills.  It documents both contracts by
their shortest implementation, and it pickles every function on the way to a "task", as the real
one does, so that a test sees what would not travel.  ``jobs`` lists the partitions of each job run.
"""

import contextlib
import random
import weakref
from collections import defaultdict
from itertools import count, pairwise

from spark_ft import closures
from spark_ft.ids import Fingerprint, NodeId, ShuffleId
from spark_ft.lineage.dependency import NarrowDependency
from spark_ft.lineage.narrow import Elementwise, fuse
from spark_ft.lineage.node import Node
from spark_ft.lineage.wide import record_key
from spark_ft.rdd import RDD
from spark_ft.resultiterable import ResultIterable


class Slices(Node):
    """A collection cut by PySpark's rule: batches first, then batches into slices (api.md 0.7)."""

    __slots__ = ("slices",)

    def __init__(self, node_id, records, slice_count):
        super().__init__(node_id)
        if isinstance(records, range):
            size = len(records)
            bounds = [i * size // slice_count for i in range(slice_count + 1)]
            self.slices = [list(records[a:b]) for a, b in pairwise(bounds)]
            return
        records = list(records)
        batch = max(1, min(len(records) // slice_count, 1024))
        batches = -(-len(records) // batch)
        cuts = [i * batches // slice_count * batch for i in range(slice_count + 1)]
        self.slices = [records[a:b] for a, b in pairwise(cuts)]

    @property
    def partition_count(self):
        return len(self.slices)

    def compute(self, partition, inputs, env):
        return iter(self.slices[partition])


class InProcess:
    """The Session: ids, one job after the other, and the marks that a context keeps."""

    def __init__(self, default_parallelism=4, checkpoint_dir=None, **conf):
        self.default_parallelism = default_parallelism
        self.rng = random.Random(0)
        self.checkpoint_marks = weakref.WeakSet()
        self.settings = {key.replace("_", "."): value for key, value in conf.items()}
        self.checkpoint_dir = checkpoint_dir
        self.nodes, self.rdds, self.shuffles = count(100), count(), count()
        self.jobs = []  # (node kind, partitions) of every job
        self.computed = defaultdict(int)  # (node id, partition) -> how often
        self.map_outputs = weakref.WeakKeyDictionary()  # dependency -> reduce buckets
        self.cache = {}  # (node id, partition) -> records
        self.tracked, self.unpersisted = [], []

    # --- Session ---

    def conf(self, key, default):
        return self.settings.get(key, default)

    def new_node_id(self):
        return NodeId(next(self.nodes))

    def new_rdd_id(self):
        return next(self.rdds)

    def new_shuffle(self):
        number = next(self.shuffles)
        return ShuffleId(number), Fingerprint(number.to_bytes(16, "big"))

    def run(self, node, function, partitions=None):
        partitions = range(node.partition_count) if partitions is None else partitions
        self.jobs.append((type(node).__name__, list(partitions)))
        payload = closures.dumps(function)
        return [
            closures.loads(closures.dumps(closures.loads(payload)(p, self.records(node, p))))
            for p in partitions
        ]

    def run_each(self, node, function, partitions, prefetch=False):
        return (self.run(node, function, [p])[0] for p in partitions)

    def one_action(self):
        return contextlib.nullcontext(0)

    def made_from(self, node, scope):
        pass

    def name_action(self, node, action):
        return ""

    def track(self, thing):
        self.tracked.append(weakref.ref(thing))

    def unpersist(self, node, blocking):
        self.unpersisted.append((node.id, blocking))
        self.cache = {key: records for key, records in self.cache.items() if key[0] != node.id}

    def has_checkpoint_dir(self):
        return self.checkpoint_dir is not None

    def write_checkpoint(self, point):
        saved = self.run(point, lambda partition, records: list(records))
        reader = Slices(self.new_node_id(), [], 1)
        reader.slices = saved
        point.settle(f"file:{self.checkpoint_dir}/rdd-{point.rdd_id}", reader)

    # --- Sources, as the context has them ---

    def parallelize(self, records, slice_count=None):
        return RDD(self, Slices(self.new_node_id(), records, slice_count or self.default_parallelism))

    def emptyRDD(self):
        source = Slices(self.new_node_id(), [], 1)
        source.slices = []
        return RDD(self, source)

    # --- Tasks ---

    def records(self, node, partition):
        """Build bottom-up with an explicit stack; a run of element-wise nodes becomes one ``fuse``."""
        ready = {}
        stack = [(node, partition)]
        while stack:
            target, index = stack[-1]
            if (target.id, index) in self.cache:
                ready[target.id, index] = lambda key=(target.id, index): iter(self.cache[key])
            if (target.id, index) in ready:
                stack.pop()
                continue
            ops, bottom = [], target
            while isinstance(bottom, Elementwise) and (bottom is target or not bottom.storage.useMemory):
                ops.append(bottom.op)
                bottom = bottom.dependencies[0].parent
            wanted = [(bottom, index)] if ops else list(_narrow_parents(target, index))
            missing = [(parent, p) for parent, p in wanted if (parent.id, p) not in ready]
            if missing:
                stack += missing
                continue
            stack.pop()
            inputs = [ready[parent.id, p] for parent, p in wanted]
            ready[target.id, index] = self._lazily(target, index, ops[::-1], inputs)
        return ready[node.id, partition]()

    def _lazily(self, node, partition, ops, inputs):
        def build():
            self.computed[node.id, partition] += 1
            made = [make() for make in inputs]
            if ops:
                records = fuse(closures.loads(closures.dumps(ops)), made[0])
            else:
                shipped = closures.loads(closures.dumps(_detached(node)))
                shipped.dependencies = node.dependencies
                records = shipped.compute(partition, made, self)
            if node.storage.useMemory:
                records = self.cache[node.id, partition] = list(records)
            return iter(records)

        return build

    # --- TaskEnv ---

    def read_shuffle(self, dependency, partition):
        if dependency not in self.map_outputs:
            self.map_outputs[dependency] = self._map_side(dependency)
        pairs = self.map_outputs[dependency][partition]
        if dependency.aggregator:
            merged, merge = {}, dependency.aggregator.merge_combiners
            for key, combiner in pairs:
                merged[key] = merge(merged[key], combiner) if key in merged else combiner
            return iter(merged.items())
        if dependency.group:
            return self.group(iter(pairs))
        if dependency.ordering:
            ordering = dependency.ordering
            return self.sort(iter(pairs), record_key(ordering.key), not ordering.ascending)
        return iter(pairs)

    def _map_side(self, dependency):
        parent, place = dependency.parent, dependency.partitioner
        buckets = [[] for _ in range(place.partition_count)]
        for index in range(parent.partition_count):
            pairs = self.records(parent, index)
            if dependency.map_side_combine:
                pairs = self.combine(pairs, dependency.aggregator)
            for pair in pairs:
                buckets[place(pair[0])].append(closures.loads(closures.dumps(pair)))
        return buckets

    def cogroup(self, sides):
        groups = {}
        for number, side in enumerate(sides):
            for key, value in side:
                groups.setdefault(key, tuple([] for _ in sides))[number].append(value)
        return iter(groups.items())

    def combine(self, pairs, aggregator):
        combined = {}
        for key, value in pairs:
            combined[key] = (
                aggregator.merge_value(combined[key], value) if key in combined else aggregator.create(value)
            )
        return iter(combined.items())

    def group(self, pairs):
        return ((key, ResultIterable(values)) for key, (values,) in self.cogroup([pairs]))

    def sort(self, records, key, reverse):
        return iter(sorted(records, key=key, reverse=reverse))

    def spool(self, records):
        return list(records)

    def read_block(self, block):
        raise NotImplementedError


def _narrow_parents(node, partition):
    for dependency in node.dependencies:
        if isinstance(dependency, NarrowDependency):
            for p in dependency.mapping.parents(partition):
                yield dependency.parent, p


def _detached(node):
    copy = node.ship()
    copy.dependencies = ()
    copy.partitioner = None
    return copy
