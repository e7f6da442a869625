"""Which partition a key belongs to: equal in every process and after every restart."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from spark_ft.errors import PySparkRuntimeError


def portable_hash(x: Any) -> int:
    """PySpark's hash: None is 0, tuples are mixed by hand, all else is ``hash``.

    Executors run under one recorded PYTHONHASHSEED, so that ``hash`` of a string is the
    same in all of them.  In a process where the seed is random it raises
    PYTHON_HASH_SEED_NOT_SET, because an answer there would place keys elsewhere.
    """
    if sys.flags.hash_randomization and "PYTHONHASHSEED" not in os.environ:
        raise PySparkRuntimeError(
            errorClass="PYTHON_HASH_SEED_NOT_SET",
            messageParameters={},
        )
    if x is None:
        return 0
    if isinstance(x, tuple):
        h = 0x345678
        for item in x:
            h ^= portable_hash(item)
            h *= 1000003
            h &= sys.maxsize
        h ^= len(x)
        return -2 if h == -1 else int(h)
    return hash(x)


class Partitioner:
    """``partition_count`` partitions by ``function(key) % partition_count``.

    Equal when the count and the function *object* are equal, as in PySpark: a fresh lambda
    each time defeats co-partitioning.
    """

    __slots__ = ("function", "partition_count")

    def __init__(self, partition_count: int, function: Callable[[Any], int] = portable_hash) -> None:
        if partition_count < 0:
            raise ValueError(f"Number of partitions must not be negative, not {partition_count}")
        self.partition_count = partition_count
        self.function = function

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Partitioner)
            and self.partition_count == other.partition_count
            and self.function == other.function
        )

    def __hash__(self) -> int:
        return hash((self.partition_count, self.function))

    @property
    def numPartitions(self) -> int:  # noqa: N802 - the public face
        """PySpark's name of ``partition_count``."""
        return self.partition_count

    @property
    def partitionFunc(self) -> Callable[[Any], int]:  # noqa: N802 - the public face
        """PySpark's name of ``function``."""
        return self.function

    def __call__(self, key: Any) -> int:
        return self.function(key) % self.partition_count
