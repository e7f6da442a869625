"""What actions run in their tasks: ``function(partition, records) -> result``.

Module-level functions and small callables, so that a job's pickle holds a name and the user's
function, nothing more.  A StopIteration out of user code becomes an error (api.md, rule 0.11).
"""

from __future__ import annotations

import copy
import functools
import heapq
import operator
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

from spark_ft.lineage.narrow import MAP, first, fuse, user_stop_iteration

Key = Callable[[Any], Any] | None

# Iterators whose length_hint is exact.
_COUNTED: tuple[type, ...] = (type(iter([])), type(iter(())), type(iter(range(0))))
_IMMUTABLE = (int, float, complex, bool, str, bytes, type(None), frozenset)


def as_list(partition: int, records: Iterator[Any]) -> list[Any]:
    return list(records)


def nothing(partition: int, records: Iterator[Any]) -> None:
    """Compute the partition, keep nothing."""
    deque(records, maxlen=0)


def count_records(partition: int, records: Iterator[Any]) -> int:
    """Without a Python frame a record; without any work when the length is known."""
    if type(records) in _COUNTED:
        return operator.length_hint(records)
    counter = count()
    deque(zip(records, counter, strict=False), maxlen=0)
    return next(counter)


def sum_records(partition: int, records: Iterator[Any]) -> Any:
    return sum(records)


def count_values(partition: int, records: Iterator[Any]) -> dict[Any, int]:
    return dict(Counter(records))


def count_keys(partition: int, records: Iterator[Any]) -> dict[Any, int]:
    return dict(Counter(map(first, records)))


def guarded(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, its StopIteration told as what it is."""
    try:
        return function(*args)
    except StopIteration as error:
        raise user_stop_iteration(error) from error


def fresh(zero: Any) -> Any:
    """A zero value that nobody else can change: a copy, unless it is plainly immutable."""
    kind = type(zero)
    if kind in _IMMUTABLE or (kind is tuple and all(type(item) in _IMMUTABLE for item in zero)):
        return zero
    return copy.deepcopy(zero)


class _WithFunction:
    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class Reduce(_WithFunction):
    """``()`` for an empty partition, else the reduced value in a tuple."""

    def __call__(self, partition: int, records: Iterator[Any]) -> tuple[Any, ...]:
        for initial in records:
            return (guarded(functools.reduce, self.function, records, initial),)
        return ()


class Extreme:
    """The builtin ``min`` or ``max`` of a partition, as ``Reduce`` gives it; the first of equals."""

    __slots__ = ("choose", "key")

    def __init__(self, choose: Callable[..., Any], key: Key) -> None:
        self.choose = choose
        self.key = key

    def __call__(self, partition: int, records: Iterator[Any]) -> tuple[Any, ...]:
        for initial in records:
            return (guarded(self.of, chain((initial,), records)),)
        return ()

    def of(self, records: Iterable[Any]) -> Any:
        return self.choose(records, key=self.key)


class Aggregate(_WithFunction):
    """``functools.reduce`` from a zero of the partition's own."""

    __slots__ = ("zero",)

    def __init__(self, function: Callable[[Any, Any], Any], zero: Any) -> None:
        super().__init__(function)
        self.zero = zero

    def __call__(self, partition: int, records: Iterator[Any]) -> Any:
        return guarded(functools.reduce, self.function, records, fresh(self.zero))


class ReduceValues(_WithFunction):
    """Values reduced by key into a dict."""

    def __call__(self, partition: int, records: Iterator[Any]) -> dict[Any, Any]:
        return guarded(self.merge, {}, records)  # type: ignore[no-any-return]

    def merge(self, values: dict[Any, Any], pairs: Iterable[Any]) -> dict[Any, Any]:
        function = self.function
        for key, value in pairs:
            values[key] = function(values[key], value) if key in values else value
        return values


class ForEach(_WithFunction):
    """What it has done to the world cannot be taken back: ``final`` (see JobSubmitted)."""

    final = True

    def __call__(self, partition: int, records: Iterator[Any]) -> None:
        deque(fuse([(MAP, self.function)], records), maxlen=0)


class ForEachPartition(_WithFunction):
    """What the function returns is drained if it can be, and ignored."""

    final = True

    def __call__(self, partition: int, records: Iterator[Any]) -> None:
        result = self.function(records)
        if isinstance(result, Iterable):
            deque(result, maxlen=0)


class Take:
    """At most ``limit`` records."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, partition: int, records: Iterator[Any]) -> list[Any]:
        return list(islice(records, self.limit))


class Smallest(Take):
    """The ``limit`` smallest records, in order."""

    __slots__ = ("key",)

    def __init__(self, limit: int, key: Key) -> None:
        super().__init__(limit)
        self.key = key

    def __call__(self, partition: int, records: Iterator[Any]) -> list[Any]:
        return self.choose(records)

    def choose(self, records: Iterable[Any]) -> list[Any]:
        return heapq.nsmallest(self.limit, records, key=self.key)


class Largest(Smallest):
    def choose(self, records: Iterable[Any]) -> list[Any]:
        return heapq.nlargest(self.limit, records, key=self.key)


class Lookup:
    """Where ``key`` lives and, when that is here, its values.

    Only a task evaluates a partition function: strings hash differently on the driver.
    """

    __slots__ = ("key", "partitioner")

    def __init__(self, key: Any, partitioner: Callable[[Any], int]) -> None:
        self.key = key
        self.partitioner = partitioner

    def __call__(self, partition: int, records: Iterator[Any]) -> tuple[int, list[Any]]:
        home = self.partitioner(self.key)
        return home, values_of(self.key, records) if home == partition else []


class LookupHere:
    """The values of ``key`` in a partition."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __call__(self, partition: int, records: Iterator[Any]) -> list[Any]:
        return values_of(self.key, records)


def values_of(key: Any, pairs: Iterable[Any]) -> list[Any]:
    return [pair[1] for pair in pairs if pair[0] == key]
