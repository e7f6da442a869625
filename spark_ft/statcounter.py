"""StatCounter: count, mean, variance, least and greatest of numbers in one pass (Welford, Chan et al.).

Python numbers are kept as floats and never touch numpy; anything else is taken to be numpy's,
element by element.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any


class StatCounter:
    """Moments of a stream of numbers; two can be merged."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        self.n = 0
        self.mu: Any = 0.0
        self.m2: Any = 0.0  # sum of squared distances from the mean
        self.maxValue: Any = -math.inf
        self.minValue: Any = math.inf
        for value in values or ():
            self.merge(value)

    def merge(self, value: Any) -> StatCounter:
        """One more value."""
        delta = value - self.mu
        self.n += 1
        self.mu = self.mu + delta / self.n
        self.m2 = self.m2 + delta * (value - self.mu)
        self._stretch(value, value)
        return self

    def mergeStats(self, other: StatCounter) -> StatCounter:
        """All values of ``other``, which may be this very object."""
        if not isinstance(other, StatCounter):
            raise TypeError(f"Can only merge StatCounter but got {type(other)}")
        n, m = self.n, other.n
        if n == 0:
            self.n, self.mu, self.m2 = m, other.mu, other.m2
            self.maxValue, self.minValue = other.maxValue, other.minValue
        elif m:
            delta = other.mu - self.mu
            m2 = self.m2 + (other.m2 + (delta * delta * n * m) / (n + m))
            if m * 10 < n:
                self.mu = self.mu + (delta * m) / (n + m)
            elif n * 10 < m:
                self.mu = other.mu - (delta * n) / (n + m)
            else:
                self.mu = (self.mu * n + other.mu * m) / (n + m)
            self._stretch(other.minValue, other.maxValue)
            self.n, self.m2 = n + m, m2
        return self

    def _stretch(self, low: Any, high: Any) -> None:
        if isinstance(low, (int, float)) and isinstance(self.minValue, float):
            if high > self.maxValue or high != high:  # NaN stays, as with numpy
                self.maxValue = float(high)
            if low < self.minValue or low != low:
                self.minValue = float(low)
        else:
            import numpy

            self.maxValue = numpy.maximum(self.maxValue, high)
            self.minValue = numpy.minimum(self.minValue, low)

    def copy(self) -> StatCounter:
        return copy.deepcopy(self)

    def count(self) -> int:
        return int(self.n)

    def mean(self) -> Any:
        return self.mu

    def sum(self) -> Any:
        return self.n * self.mu

    def min(self) -> Any:
        return self.minValue

    def max(self) -> Any:
        return self.maxValue

    def variance(self) -> Any:
        return self.m2 / self.n if self.n else math.nan

    def sampleVariance(self) -> Any:
        """With N - 1 in the denominator."""
        return self.m2 / (self.n - 1) if self.n > 1 else math.nan

    def stdev(self) -> Any:
        return _root(self.variance())

    def sampleStdev(self) -> Any:
        """With N - 1 in the denominator."""
        return _root(self.sampleVariance())

    def asDict(self, sample: bool = False) -> dict[str, Any]:
        """All figures by name.  As in PySpark the *sample* figures come without ``sample``."""
        return {
            "count": self.count(),
            "mean": self.mean(),
            "sum": self.sum(),
            "min": self.min(),
            "max": self.max(),
            "stdev": self.stdev() if sample else self.sampleStdev(),
            "variance": self.variance() if sample else self.sampleVariance(),
        }

    def __repr__(self) -> str:
        return (
            f"(count: {self.count()}, mean: {self.mean()}, stdev: {self.stdev()}, "
            f"max: {self.max()}, min: {self.min()})"
        )


def _root(value: Any) -> Any:
    if isinstance(value, float):
        return math.sqrt(value)
    import numpy

    return numpy.sqrt(value)
