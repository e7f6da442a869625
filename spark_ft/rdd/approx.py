"""Approximate answers: distinct counts by HyperLogLog, and PySpark's ``…Approx`` actions.

HyperLogLog (Flajolet et al. 2007): a record's hash picks one of 2**p registers, which keeps the
longest run of leading zeros seen.  Registers are a dict, so few records take little memory
whatever the precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from spark_ft.lineage.partitioner import portable_hash
from spark_ft.rdd.numeric import NumericMixin

T = TypeVar("T")

Registers = dict[int, int]

RELATIVE_SD_MIN = 0.000017
_CHUNK = 4096
_WORD = (1 << 64) - 1


class BoundedFloat(float):
    """A number with the interval it lies in at some confidence."""

    confidence: float
    low: float
    high: float

    def __new__(cls, mean: float, confidence: float, low: float, high: float) -> BoundedFloat:
        self = float.__new__(cls, mean)
        self.confidence, self.low, self.high = confidence, low, high
        return self

    @property
    def mean(self) -> float:
        return float(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundedFloat, (float(self), self.confidence, self.low, self.high)


class ApproxMixin(NumericMixin[T]):
    """countApproxDistinct countApprox sumApprox meanApprox.

    The last three wait for all tasks whatever ``timeout`` says, so their answers are exact: the
    interval is a point, its confidence 1.
    """

    def countApproxDistinct(self, relativeSD: float = 0.05) -> int:
        """About how many distinct records there are, with this relative standard deviation."""
        if relativeSD < RELATIVE_SD_MIN:
            raise ValueError(f"relativeSD should be greater than {RELATIVE_SD_MIN:f}")
        precision = max(math.ceil(2.0 * math.log2(1.054 / relativeSD)), 4)
        merged: Registers = {}
        for registers in self._run(_Sketch(precision)):
            for register, rank in registers.items():
                merged[register] = max(rank, merged.get(register, 0))
        return round(_estimate(merged, 1 << precision))

    def countApprox(self, timeout: int, confidence: float = 0.95) -> int:
        """How many records there are."""
        return self.count()

    def sumApprox(self, timeout: int, confidence: float = 0.95) -> BoundedFloat:
        """The sum."""
        return _exactly(float(self.sum()))

    def meanApprox(self, timeout: int, confidence: float = 0.95) -> BoundedFloat:
        """The mean."""
        return _exactly(float(self.mean()))


def _exactly(value: float) -> BoundedFloat:
    return BoundedFloat(value, 1.0, value, value)


class _Sketch:
    """One partition's registers."""

    __slots__ = ("precision",)

    def __init__(self, precision: int) -> None:
        self.precision = precision

    def __call__(self, partition: int, records: Iterator[Any]) -> Registers:
        shift = 64 - self.precision
        low_bits = (1 << shift) - 1
        registers: Registers = {}
        known = registers.get
        while chunk := set(islice(records, _CHUNK)):  # repeats in a chunk are dropped at C speed
            for hashed in map(portable_hash, chunk):
                word = _mixed(hashed)
                register = word >> shift
                rank = shift - (word & low_bits).bit_length() + 1
                if rank > known(register, 0):
                    registers[register] = rank
        return registers


def _mixed(number: int) -> int:
    """64 well mixed bits of an integer (the finalizer of splitmix64)."""
    word = (number + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _estimate(registers: Registers, size: int) -> float:
    empty = size - len(registers)
    harmonic = empty + math.fsum(2.0**-rank for rank in registers.values())
    raw = 0.7213 / (1 + 1.079 / size) * size * size / harmonic
    if raw <= 2.5 * size and empty:
        return size * math.log(size / empty)  # few records: count empty registers instead
    return raw
