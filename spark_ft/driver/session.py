"""What an RDD asks of its context (rdd/base.py), answered by a Driver; SparkContext builds on it.

    run(node, function) ──> driver.submit ──> JobHandle.result()

* Local properties belong to one thread and one session: a new session starts without any.
* A broadcast lives as long as a job, or a shuffle that may be written again, was pickled with it.
* Finalizers run anywhere, even inside this module's own calls: they post an event or append to a
  deque, nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSet, Sequence
from typing import Any, TypeVar

from spark_ft import broadcast
from spark_ft.broadcast import Broadcast
from spark_ft.driver.checkpoints import Checkpoints
from spark_ft.driver.driver import Driver
from spark_ft.errors import JobError, UsageError
from spark_ft.ids import Fingerprint, NodeId, ShuffleId, drawn_fingerprint
from spark_ft.lineage.dependency import Fingerprinted, ShuffleDependency
from spark_ft.lineage.narrow import CheckpointPoint
from spark_ft.lineage.node import Node
from spark_ft.lineage.sources import stored_slices
from spark_ft.protocol.messages import BlockRef

T = TypeVar("T")
R = TypeVar("R")

GROUP = "spark.jobGroup.id"
DESCRIPTION = "spark.job.description"
INTERRUPT = "spark.job.interruptOnCancel"
TAGS = "spark.job.tags"
POOL = "spark.scheduler.pool"

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_numbers = itertools.count(1)


class _LocalProperties(threading.local):
    """Strings of one thread that go with the jobs it submits."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.session = 0  # whose they are
        self.scope = -1  # of the action that this thread is in


_local = _LocalProperties()


class DriverSession:
    """Ids, jobs, blocks and what keeps them; ``_open`` gives it its driver, ``_close`` takes it away."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._number = next(_numbers)
        self._driver: Driver | None = None
        self._ended = "has not been started"  # why there is no driver
        self._reference_tracking = True
        self.rng = random.Random()
        self.checkpoint_marks: MutableSet[CheckpointPoint] = weakref.WeakSet()
        self._nodes, self._rdds, self._shuffles = itertools.count(), itertools.count(), itertools.count()
        self._accumulators = itertools.count()
        self._tracked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._used_by_shuffle: weakref.WeakKeyDictionary[ShuffleDependency, dict[int, Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._scopes = itertools.count()
        self._counted: dict[NodeId, int] = {}  # node -> the scope of the job that it was made from
        self._unreferenced: deque[BlockRef] = deque()  # blocks of broadcasts that were collected
        self.checkpoints = Checkpoints(self)

    def _open(self, driver: Driver) -> None:
        self._driver = driver
        settings = driver.settings
        self._reference_tracking = settings.reference_tracking
        if driver.seed:
            self.rng = random.Random(driver.seed)  # seeds that are drawn are drawn again in the next life
        self.checkpoints = Checkpoints(self, settings.keep_lineage, settings.clean_checkpoints)

    def _close(self, why: str) -> Driver | None:
        """From now on every use is an error that says ``why``; answers the driver to be stopped."""
        driver, self._driver = self._driver, None
        if driver is not None:
            self._ended = why
        return driver

    def _live(self) -> Driver:
        """The driver, or the UsageError that tells why there is none."""
        if self._driver is None:
            raise UsageError(
                f"This SparkContext ({self._label}) {self._ended}; it cannot be used any more. "
                "Make a new SparkContext."
            )
        return self._driver

    def _sent_properties(self) -> dict[str, str]:
        """What goes with a job that this thread submits."""
        return dict(self._properties())

    # --- Names of things ---

    @property
    def default_parallelism(self) -> int:
        return self._live().default_parallelism

    def new_node_id(self) -> NodeId:
        self._live()
        return NodeId(next(self._nodes))

    def new_rdd_id(self) -> int:
        return next(self._rdds)

    def new_shuffle(self) -> tuple[ShuffleId, Fingerprint]:
        """A name that no other shuffle bears, until fingerprint.py gives it a lasting one."""
        return ShuffleId(next(self._shuffles)), drawn_fingerprint()

    def name_action(self, node: Node, action: Callable[..., Any]) -> str:
        """What an action on ``node`` is called in every life of this application; "" where it has no such
        name.  ``action`` stands for what it does."""
        identity = self._live().identify(node, action, None, self._properties())
        return identity.key.hex() if identity is not None and not identity.unsafe else ""

    # --- Local properties ---

    def _properties(self) -> dict[str, str]:
        self._live()
        if _local.session != self._number:
            _local.session, _local.values = self._number, {}
        return _local.values

    def _inherit(self, values: Mapping[str, str]) -> None:
        """This thread goes on with a copy of another thread's properties."""
        _local.session, _local.values = self._number, dict(values)

    # --- Jobs ---

    def run(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], R],
        partitions: Sequence[int] | None = None,
        scope: int = -1,
        *,
        answered: dict[int, R] | None = None,
    ) -> list[R]:
        """One job; the results in the order of ``partitions`` (None: all).  Into ``answered`` go those by
        partition, also of a job that fails then."""
        job = functools.partial(self._run_job, node, function, partitions, scope, answered)
        return self.checkpoints.look_after(node, job) if self.checkpoints.any else job()

    def _run_job(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], R],
        partitions: Sequence[int] | None,
        scope: int,
        answered: dict[int, R] | None,
    ) -> list[R]:
        driver = self._live()
        self._drop_unreferenced(driver)
        properties = self._properties()
        with broadcast.collecting() as used:  # held until the job has ended
            handle = driver.submit(
                node,
                function,
                partitions,
                name=_job_name(),
                properties=self._sent_properties(),
                pool=properties.get(POOL) or "default",
                group=properties.get(GROUP),
                tags=frozenset(filter(None, properties.get(TAGS, "").split(","))),
                scope=scope if scope >= 0 else _local.scope,
                counted=self._counted.copy(),
            )
        if used:
            self._keep_for_shuffles(node, used)
        try:
            results: list[R] = handle.result()
        except JobError:
            if answered is not None:
                answered.update(handle.answered())
            raise
        if answered is not None:
            asked = range(node.partition_count) if partitions is None else partitions
            answered.update(zip(asked, results, strict=True))
        return results

    def run_each(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], R],
        partitions: Sequence[int],
        prefetch: bool = False,
    ) -> Iterator[R]:
        """One job per partition, each when it is asked for; ``prefetch`` lets the next run ahead."""
        scope = next(self._scopes)
        ahead: deque[_Ahead] = deque()
        try:
            for partition in partitions:
                if not prefetch:
                    yield self.run(node, function, [partition], scope)[0]
                    continue
                ahead.append(_Ahead(self, functools.partial(self.run, node, function, [partition], scope)))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            self.close_scope(scope)

    @contextlib.contextmanager
    def one_action(self) -> Iterator[int]:
        """The jobs that this thread runs inside the block are of one scope (scheduler/scopes.py)."""
        if _local.scope >= 0:
            yield _local.scope
            return
        scope = _local.scope = next(self._scopes)
        try:
            yield scope
        finally:
            _local.scope = -1
            if scope not in self._counted.values():
                self.close_scope(scope)

    def made_from(self, node: Node, scope: int) -> None:
        """The functions of ``node`` were made from answers of this scope: it is kept as long as the node."""
        self._counted[node.id] = scope
        weakref.finalize(node, _scope_gone, weakref.ref(self), node.id, scope).atexit = False

    def new_scope(self) -> int:
        """Of jobs that must see one content; ``close_scope`` ends it."""
        return next(self._scopes)

    def close_scope(self, scope: int) -> None:
        """Safe from finalizers."""
        if self._driver is not None:
            self._driver.release(scopes=(scope,))

    def track(self, thing: ShuffleDependency | Node) -> None:
        """Release what executors hold for a shuffle or a persisted node once nothing refers to it."""
        if not self._reference_tracking or thing in self._tracked:
            return
        self._tracked.add(thing)
        shuffles = (thing.shuffle,) if isinstance(thing, ShuffleDependency) else ()
        nodes = () if isinstance(thing, ShuffleDependency) else (thing.id,)
        weakref.finalize(thing, _data_gone, weakref.ref(self), shuffles, nodes).atexit = False

    def unpersist(self, node: Node, blocking: bool) -> None:
        """Drop a node's partitions everywhere; nobody waits for it."""
        self._live().release(nodes=(node.id,))

    def _keep_for_shuffles(self, target: Node, used: Mapping[int, Broadcast[Any]]) -> None:
        """A shuffle's functions are pickled once and may run again: what they refer to stays."""
        stack, seen = [target], {target.id}
        while stack:
            for dependency in stack.pop().dependencies:
                if isinstance(dependency, ShuffleDependency):
                    self._used_by_shuffle.setdefault(dependency, {}).update(used)
                parent = dependency.parent
                if parent is not None and parent.id not in seen:
                    seen.add(parent.id)
                    stack.append(parent)

    # --- Broadcasts, and blocks of the driver's store ---

    def broadcast(self, value: T) -> Broadcast[T]:
        """A read-only value that each executor loads once.

        Raises pickle.PicklingError when the value does not pickle.
        """
        handle = broadcast.new_broadcast(value, self, self._fingerprint)
        if self._reference_tracking:
            watch = weakref.finalize(handle, _broadcast_gone, weakref.ref(self), handle.id, handle._block)
            watch.atexit = False
        return handle

    @property
    def _fingerprint(self) -> Callable[[object], Fingerprinted] | None:
        """What looks at values that tasks will get; None where nobody will ask."""
        fingerprints = self._live().fingerprints
        return None if fingerprints is None else fingerprints.value

    def put_block(self, kind: str, name: bytes, chunks: Iterable[bytes]) -> BlockRef:
        """Write a block into the driver's store."""
        driver = self._live()
        self._drop_unreferenced(driver)
        return driver.put_block(kind, name, chunks)

    def track_slices(self, node: Node) -> None:
        """Give back the blocks of a collection once nothing refers to its node."""
        slices = stored_slices(node)
        if slices and self._reference_tracking:
            weakref.finalize(node, _slices_gone, weakref.ref(self), slices).atexit = False

    def forget_broadcast(self, bid: int, block: BlockRef | None) -> None:
        """Drop executors' copies; with ``block``, the origin too."""
        driver = self._live()
        driver.release(broadcasts=(bid,))
        if block is not None:
            driver.drop_block(block, tell=True)

    def _drop_unreferenced(self, driver: Driver) -> None:
        while self._unreferenced:
            driver.drop_block(self._unreferenced.popleft())


class _Ahead:
    """A call in a thread of its own, with the local properties of the thread that asks for it."""

    def __init__(self, session: DriverSession, call: Callable[[], list[Any]]) -> None:
        self._answer: list[Any] = []
        self._error: BaseException | None = None
        properties = dict(session._properties())

        def work() -> None:
            session._inherit(properties)
            try:
                self._answer = call()
            except BaseException as error:  # handed on to the thread that asks
                self._error = error

        self._thread = threading.Thread(target=work, name="spark-ft-ahead", daemon=True)
        self._thread.start()

    def result(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer[0]


def callsite() -> tuple[str, str, int]:
    """(this package's function that was called, file, line) of the call that led here from outside."""
    frame: types.FrameType | None = sys._getframe(1)
    function = ""
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        function, frame = frame.f_code.co_name, frame.f_back
    if frame is None:
        return function, "", 0
    return function, frame.f_code.co_filename, frame.f_lineno


def _job_name() -> str:
    """As Spark names jobs: ``collect at program.py:12``."""
    function, path, line = callsite()
    return f"{function} at {os.path.basename(path)}:{line}"


def _data_gone(
    session: weakref.ref[DriverSession], shuffles: tuple[ShuffleId, ...], nodes: tuple[NodeId, ...]
) -> None:
    """A finalizer: ``release`` only posts an event, so it may run anywhere."""
    found = session()
    driver = None if found is None else found._driver
    if driver is not None:
        driver.release(shuffles, nodes)


def _scope_gone(session: weakref.ref[DriverSession], node: NodeId, scope: int) -> None:
    """A finalizer: see ``_data_gone``."""
    found = session()
    if found is not None:
        found._counted.pop(node, None)
        found.close_scope(scope)


def _slices_gone(session: weakref.ref[DriverSession], slices: Sequence[BlockRef]) -> None:
    """A finalizer: see ``_data_gone``."""
    found = session()
    driver = None if found is None else found._driver
    if driver is not None:
        driver.discard(slices)


def _broadcast_gone(session: weakref.ref[DriverSession], bid: int, block: BlockRef) -> None:
    """A finalizer: the block itself is dropped by the next call that may write to the store."""
    found = session()
    driver = None if found is None else found._driver
    if found is not None and driver is not None:
        driver.release(broadcasts=(bid,))
        found._unreferenced.append(block)
