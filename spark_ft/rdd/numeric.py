"""Sums, moments and histograms of numbers."""

from __future__ import annotations

import functools
import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from math import isinf, isnan
from typing import Any, TypeVar

from spark_ft.rdd import tasks
from spark_ft.rdd.actions import ActionsMixin
from spark_ft.statcounter import StatCounter

T = TypeVar("T")


class NumericMixin(ActionsMixin[T]):
    """sum mean variance stdev stats histogram countApproxDistinct."""

    def sum(self) -> Any:
        """0 plus all records."""
        return functools.reduce(operator.add, self._run(tasks.sum_records), 0)

    def stats(self) -> StatCounter:
        """Count, mean, variance, max and min in one pass; numpy arrays element by element."""
        counters = self._run(_stats)
        if not counters:
            raise ValueError("Can not reduce() empty RDD")
        return functools.reduce(StatCounter.mergeStats, counters)

    def mean(self) -> Any:
        return self.stats().mean()

    def variance(self) -> Any:
        return self.stats().variance()

    def stdev(self) -> Any:
        return self.stats().stdev()

    def sampleStdev(self) -> Any:
        """With N - 1 in the denominator."""
        return self.stats().sampleStdev()

    def sampleVariance(self) -> Any:
        """With N - 1 in the denominator."""
        return self.stats().sampleVariance()

    def histogram(self, buckets: int | Sequence[Any]) -> tuple[Sequence[Any], list[int]]:
        """Bucket bounds and counts; the last bucket is closed, None and NaN are left out.

        An int asks for so many even buckets between min and max.  ValueError for bounds that are
        not two or more ascending values, TypeError for what is no number where one is needed.
        """
        if isinstance(buckets, int):
            return self._even_histogram(buckets)
        if not isinstance(buckets, list | tuple):
            raise TypeError("buckets should be a list or tuple or number(int or long)")
        _check_bounds(buckets)
        return buckets, self._bucket_counts(_Buckets(buckets, _even_step(buckets)))

    def _even_histogram(self, count: int) -> tuple[list[Any], list[int]]:
        if count < 1:
            raise ValueError("number of buckets must be >= 1")
        with self.ctx.one_action():
            return self._between_extremes(count)

    def _between_extremes(self, count: int) -> tuple[list[Any], list[int]]:
        found = list(chain.from_iterable(self._run(_extremes)))
        if not found:
            raise ValueError("can not generate buckets from empty RDD")
        low = min(each[0] for each in found)
        high = max(each[1] for each in found)
        if low == high or count == 1:
            return [low, high], [sum(each[2] for each in found)]
        try:
            step = (high - low) / count
        except TypeError:
            raise TypeError("Can not generate buckets with non-number in RDD") from None
        if isinf(step):
            raise ValueError("Can not generate buckets with infinite value")
        if int(step) * count == high - low:
            step = int(step)
        bounds = [*(i * step + low for i in range(count)), high]
        return bounds, self._bucket_counts(_Buckets(bounds, step))

    def _bucket_counts(self, buckets: _Buckets) -> list[int]:
        counted = self._run(buckets)
        if not counted:
            raise ValueError("Can not reduce() empty RDD")
        return [sum(column) for column in zip(*counted, strict=True)]


def _stats(partition: int, records: Iterator[Any]) -> StatCounter:
    return StatCounter(records)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and isnan(value))


def _extremes(partition: int, records: Iterator[Any]) -> list[tuple[Any, Any, int]]:
    """Least and greatest record and how many there are; none of it for a partition without any."""
    low = high = None
    count = 0
    for value in records:
        if not _missing(value):
            low = value if low is None else min(low, value)
            high = value if high is None else max(high, value)
            count += 1
    return [(low, high, count)] if count else []


def _check_bounds(bounds: Sequence[Any]) -> None:
    if len(bounds) < 2:
        raise ValueError("buckets should have more than one value")
    if any(map(_missing, bounds)):
        raise ValueError("can not have None or NaN in buckets")
    if sorted(bounds) != list(bounds):
        raise ValueError("buckets should be sorted")
    if len(set(bounds)) != len(bounds):
        raise ValueError("buckets should not contain duplicated values")


def _even_step(bounds: Sequence[Any]) -> Any:
    """The width of the buckets if they are all alike, else None."""
    try:
        steps = [right - left for left, right in pairwise(bounds)]
    except TypeError:  # strings and the like: found by bisection
        return None
    even = max(steps) - min(steps) < 1e-10
    return (bounds[-1] - bounds[0]) / len(steps) if even else None


class _Buckets:
    """How many records fall into each bucket of one partition."""

    __slots__ = ("bounds", "step")

    def __init__(self, bounds: Sequence[Any], step: Any) -> None:
        self.bounds = bounds
        self.step = step

    def __call__(self, partition: int, records: Iterator[Any]) -> list[int]:
        bounds, step = self.bounds, self.step
        low, high = bounds[0], bounds[-1]
        counts = [0] * len(bounds)
        for value in records:
            if _missing(value) or value > high or value < low:
                continue
            counts[int((value - low) / step) if step is not None else bisect_right(bounds, value) - 1] += 1
        last = counts.pop()  # the closed end
        counts[-1] += last
        return counts
