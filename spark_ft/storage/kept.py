"""A persisted partition's records in memory, such that no reader changes what the next one reads (TK-13).

    records of a batch                          held as             a read costs
    all of immutable types, tuples of such      themselves          nothing
    NumPy arrays among them                     copies, read-only   nothing; to write into one is an error
    anything else (dict, list, user's classes)  one pickle          unpickling: each reader has its own

Types are compared exactly, of every record and of all that lies in tuples: a subclass may be anything.
Whatever a function does to records that it had from the cache: a later task, and one that computes the
partition again elsewhere, see what was computed (docs/decisions/0017).
"""

from __future__ import annotations

import decimal
import pickle
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from spark_ft import closures

FIXED = frozenset({
    int, float, complex, bool, str, bytes, type(None), range, type(...), decimal.Decimal,
})  # fmt: skip
_DATES = ("date", "datetime", "time", "timedelta", "timezone")
_DEEP = 16  # levels of tuples in one another


class Pickled(NamedTuple):
    """A batch that is unpickled for each reader; of large buffers in it there is one copy, read-only."""

    payload: bytes
    buffers: tuple[bytes, ...]

    def records(self) -> list[Any]:
        batch: list[Any] = pickle.loads(self.payload, buffers=self.buffers)
        return batch

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + sum(map(len, self.buffers))


class Kept:
    """Batches as they are held.  Iterating opens one at a time; any number of readers may do so at once."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: list[list[Any] | Pickled] = []

    def add(self, batch: list[Any]) -> int:
        """Hold these records.  Answers the bytes of their pickle, 0 when they are held as objects.  Never
        raises: what cannot be pickled is held as it is."""
        held = _held(batch)
        self._batches.append(held)
        return held.size_bytes if isinstance(held, Pickled) else 0

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(map(_open, self._batches))

    def drain(self) -> Iterator[Any]:
        """The records, each batch let go of as soon as it has been passed on."""
        batches, self._batches = self._batches[::-1], []
        while batches:
            yield from _open(batches.pop())


def _open(held: list[Any] | Pickled) -> list[Any]:
    return held.records() if type(held) is Pickled else held  # type: ignore[return-value]


def _held(batch: list[Any]) -> list[Any] | Pickled:
    numpy = sys.modules.get("numpy")  # whoever has arrays has imported it
    fixed, arrays = _look_into(batch, numpy)
    if fixed:
        copies = {id(each): _read_only(each) for each in arrays}
        return [_with(record, copies) for record in batch] if copies else batch
    buffers: list[bytes] = []
    try:
        payload = closures.dumps(batch, lambda buffer: buffers.append(bytes(buffer.raw())))
    except Exception:  # the user's own __reduce__ may raise anything
        return batch
    return Pickled(payload, tuple(buffers))


def _read_only(array: Any) -> Any:
    copy = array.copy(order="K")
    copy.flags.writeable = False
    return copy


def _with(record: Any, copies: dict[int, Any]) -> Any:
    """This record with copies in the place of its arrays."""
    kind = type(record)
    if kind is tuple:
        return tuple([_with(each, copies) for each in record])
    if isinstance(record, tuple):
        return kind._make([_with(each, copies) for each in record])
    return copies.get(id(record), record)


def _look_into(batch: list[Any], numpy: Any) -> tuple[bool, list[Any]]:
    """Whether nothing in these records can be changed but the elements of arrays; and these.  About 15 ns a
    record, and as much for each member of a tuple."""
    arrays: list[Any] = []
    level: Iterable[Any] = batch
    for _ in range(_DEEP):
        types = set(map(type, level))
        if numpy is not None and numpy.ndarray in types:
            found = [each for each in level if type(each) is numpy.ndarray]
            if any(each.dtype.hasobject for each in found):
                return False, []
            arrays += found
        below = {kind for kind in types - FIXED if not is_fixed(kind, numpy)}
        if not below:
            return True, arrays
        if not all(map(_is_tuple, below)):
            return False, []
        if below != types:
            level = [each for each in level if type(each) in below]
        level = list(chain.from_iterable(level))
    return False, []


def is_fixed(kind: type, numpy: Any) -> bool:
    """Whether values of this type cannot be changed, or are arrays."""
    if kind.__module__ == "datetime":
        return kind.__name__ in _DATES
    if numpy is None or kind.__module__ != "numpy":
        return False
    return kind is numpy.ndarray or (issubclass(kind, numpy.generic) and not issubclass(kind, numpy.void))


def _is_tuple(kind: type) -> bool:
    """A tuple, a frozenset (which holds no arrays), or a named tuple without further attributes."""
    return kind in (tuple, frozenset) or (
        kind.__bases__ == (tuple,) and "_fields" in kind.__dict__ and kind.__dictoffset__ == 0
    )
