"""Broadcast: a value sent to each executor once, not with every task.

    driver: value --pickle--> block in the driver's store;  the handle pickles as (id, BlockRef)
    task:   handle.value --> this process's cache, else the loader reads the block, once a process

* The handle never carries the value: a closure that uses ten broadcasts of 100 MB stays small.
* A closure that was pickled keeps its handles alive until its job has ended (``collecting``), so
  a block is never dropped under a job that was submitted with it, unless it is destroyed.
* ``unpersist`` only forgets copies; they are fetched again on use.  After ``destroy`` a closure that
  uses the handle cannot be submitted any more, and a task that has yet to load it fails and says so (BL-14).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from spark_ft import closures
from spark_ft.errors import BlockExpired, FetchError, PySparkRuntimeError
from spark_ft.protocol.messages import BlockRef

__all__ = ["Broadcast"]

T = TypeVar("T")

_CHUNK_BYTES = 1 << 20
_ids = itertools.count()


class Owner(Protocol):
    """Who keeps the blocks of broadcasts: the context, on the driver."""

    def put_block(self, kind: str, name: bytes, chunks: Iterable[bytes]) -> BlockRef: ...

    def forget_broadcast(self, bid: int, block: BlockRef | None) -> None:
        """Drop the executors' copies, and the block itself unless that is None."""


class Broadcast(Generic[T]):
    """A read-only value shared with all tasks; made by ``SparkContext.broadcast``.

    >>> b = sc.broadcast([1, 2, 3])  # doctest: +SKIP
    >>> sc.parallelize([0, 1]).map(lambda i: b.value[i]).collect()  # doctest: +SKIP
    [1, 2]
    """

    def __init__(self, bid: int, block: BlockRef, owner: Owner | None = None) -> None:
        self._id = bid
        self._block = block
        self._owner = owner
        self._content: object = None  # stands for the value in a fingerprint
        self._destroyed = False

    @property
    def id(self) -> int:
        return self._id

    @cached_property
    def value(self) -> T:
        """The value; in a task loaded at the first use in this process.

        Being a cached property it costs an attribute lookup from then on: programs read it once
        per record.
        """
        if self._destroyed:
            raise _destroyed(self._id)
        loaded: T = _load(self._id, self._block)
        return loaded

    def __fingerprint__(self) -> object:
        """By content: as it was when it was made, where an application can be resumed."""
        return self._content if self._content is not None else self.value

    def unpersist(self, blocking: bool = False) -> None:
        """Drop the copies that executors hold; they fetch the value again when they need it."""
        self._driver("unpersisted").forget_broadcast(self._id, None)

    def destroy(self, blocking: bool = False) -> None:
        """Drop everything: a job that uses this broadcast afterwards fails."""
        owner = self._driver("destroyed")
        if not self._destroyed:
            self._destroyed = True
            self.__dict__.pop("value", None)
            owner.forget_broadcast(self._id, self._block)

    def dump(self, value: T, f: BinaryIO) -> None:
        """Pickle a value into a file, as it would be sent."""
        for chunk in _pickled(value):
            f.write(chunk)

    def load(self, file: BinaryIO) -> T:
        """The value that ``dump`` wrote."""
        gc.disable()  # a large value makes many objects at once, none of them garbage
        try:
            value: T = pickle.load(file)
        finally:
            gc.enable()
        return value

    def load_from_path(self, path: str) -> T:
        with open(path, "rb", 1 << 20) as file:
            return self.load(file)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._destroyed:
            raise _destroyed(self._id)
        if _used.handles is not None:
            _used.handles[self._id] = self
        return _unpickle, (self._id, self._block)

    def __repr__(self) -> str:
        return f"<Broadcast id={self._id}>"

    def _driver(self, operation: str) -> Owner:
        if self._owner is None:
            raise PySparkRuntimeError(
                errorClass="INVALID_BROADCAST_OPERATION", messageParameters={"operation": operation}
            )
        return self._owner


def _destroyed(bid: int) -> PySparkRuntimeError:
    return PySparkRuntimeError(
        errorClass="BROADCAST_DESTROYED", messageParameters={"variable": f"Broadcast({bid})"}
    )


# --- Driver side ----------------------------------------------------------------------------


_handles: weakref.WeakValueDictionary[int, Broadcast[Any]] = weakref.WeakValueDictionary()


class _Used(threading.local):
    handles: dict[int, Broadcast[Any]] | None = None


_used = _Used()


@contextlib.contextmanager
def collecting() -> Iterator[dict[int, Broadcast[Any]]]:
    """The broadcasts that this thread pickles inside the block, by id."""
    before, _used.handles = _used.handles, {}
    try:
        yield _used.handles
    finally:
        _used.handles = before


def new_broadcast(
    value: T, owner: Owner, fingerprint: Callable[[object], object] | None = None
) -> Broadcast[T]:
    """Store a value with ``owner`` and answer its handle.  ``fingerprint`` looks at the value.

    Raises pickle.PicklingError when the value does not pickle.
    """
    bid = next(_ids)
    block = owner.put_block("broadcast", str(bid).encode(), _pickled(value))
    handle: Broadcast[T] = Broadcast(bid, block, owner)
    handle.__dict__["value"] = value
    if fingerprint is not None:
        handle._content = fingerprint(value)
    _handles[bid] = handle
    return handle


def _pickled(value: Any) -> Iterator[bytes]:
    try:
        data = closures.dumps(value)
    except pickle.PicklingError:
        raise
    except Exception as error:  # user objects may raise anything while they are pickled
        text = f"Could not serialize broadcast: {type(error).__name__}: {error}"
        raise pickle.PicklingError(text) from error
    view = memoryview(data)
    return (bytes(view[i : i + _CHUNK_BYTES]) for i in range(0, len(view), _CHUNK_BYTES))


# --- Task side ------------------------------------------------------------------------------


class _Process:
    """What this process has loaded: values by id, and how to load more."""

    loader: Callable[[BlockRef], bytes] | None = None
    values: dict[int, Any] = {}  # noqa: RUF012 - one per process on purpose
    loading: dict[int, threading.Lock] = {}  # noqa: RUF012
    lock = threading.Lock()


def set_loader(loader: Callable[[BlockRef], bytes] | None) -> None:
    """How this process reads a broadcast's block: all its bytes, verified.  May raise FetchError."""
    _Process.loader = loader


def forget(bid: int) -> None:
    """Drop a loaded value; handles that still live keep it."""
    _Process.values.pop(bid, None)
    _Process.loading.pop(bid, None)


def forget_all() -> None:
    """Drop every loaded value: user code may have changed some in place."""
    _Process.values = {}


def _unpickle(bid: int, block: BlockRef) -> Broadcast[Any]:
    """The driver's own handle on the driver, a bare one in a task."""
    return _handles.get(bid) or Broadcast(bid, block)


def _load(bid: int, block: BlockRef) -> Any:
    """The value, loaded at most once in this process; threads that want the same one wait."""
    known = _Process.values
    if bid in known:
        return known[bid]
    if _Process.loader is None:
        raise PySparkRuntimeError(
            errorClass="BROADCAST_VARIABLE_NOT_LOADED", messageParameters={"variable": f"Broadcast({bid})"}
        )
    with _Process.lock:
        lock = _Process.loading.setdefault(bid, threading.Lock())
    with lock:
        values = _Process.values  # of before ``forget_all``, should that come meanwhile
        if bid not in values:
            try:
                data = _Process.loader(block)
            except BlockExpired:
                raise _destroyed(bid) from None
            except FetchError as error:
                if error.failed.evidence == "expired":
                    raise _destroyed(bid) from None
                raise
            values[bid] = closures.loads(data)
        return values[bid]
