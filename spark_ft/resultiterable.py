"""All the values of one key, as ``groupByKey`` and ``cogroup`` hand them to the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class SizedIterable(Protocol[T_co]):
    """What ``data`` must offer: as many iterations as one likes, and a length."""

    def __iter__(self) -> Iterator[T_co]: ...
    def __len__(self) -> int: ...


class ResultIterable(Iterable[T], Generic[T]):
    """Iterable as often as one likes, with a length; not a list, because it may live on disk.

    Pickling it brings the values into memory, in one list.  (Source: PySpark's resultiterable.)
    """

    __slots__ = ("__weakref__", "data", "index", "maxindex")  # one is made per key

    def __init__(self, data: SizedIterable[T]) -> None:
        self.data = data
        self.index = 0
        self.maxindex = len(data)

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        data = self.data if isinstance(self.data, list) else list(self.data)
        return type(self), (data,)
