"""Samplers: the same seed draws the same records as PySpark, in every attempt of a task.

Each partition has a generator of its own, seeded by ``seed ^ partition`` and stirred by ten
draws (PySpark's rddsampler.py); one uniform number is drawn for each record, or, with
replacement, a Poisson count.  ``reservoir`` and ``KeySample`` are ours.
"""

from __future__ import annotations

import math
import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import compress, islice, repeat, starmap
from typing import Any

_END = object()
POISSON_LOG_DOMAIN = 20.0  # from this mean on, counts are drawn by exponential gaps


def stirred(seed: int, partition: int) -> random.Random:
    """The generator of one partition."""
    rng = random.Random(seed ^ partition)
    for _ in range(10):
        rng.randint(0, 1)
    return rng


def poisson(rng: random.Random, mean: float) -> int:
    """Knuth's algorithm; above a mean of 20 in the log domain."""
    count = 0
    if mean < POISSON_LOG_DOMAIN:
        limit = math.exp(-mean)
        product = rng.random()
        while product > limit:
            count += 1
            product *= rng.random()
    else:
        total = rng.expovariate(mean)
        while total < 1.0:
            count += 1
            total += rng.expovariate(mean)
    return count


class _Seeded:
    __slots__ = ("seed",)

    def __init__(self, seed: int) -> None:
        self.seed = seed


class Bernoulli(_Seeded):
    """Each record with probability ``fraction``, without a Python frame a record."""

    __slots__ = ("fraction",)

    def __init__(self, fraction: float, seed: int) -> None:
        super().__init__(seed)
        self.fraction = fraction

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        uniform = starmap(stirred(self.seed, partition).random, repeat(()))
        return compress(records, map(partial(operator.gt, self.fraction), uniform))


class Poisson(Bernoulli):
    """Each record as often as a Poisson draw of mean ``fraction`` says."""

    __slots__ = ()

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        rng = stirred(self.seed, partition)
        for record in records:
            yield from repeat(record, poisson(rng, self.fraction))


class Interval(_Seeded):
    """Records whose uniform number falls in [lower, upper): one part of a random split."""

    __slots__ = ("lower", "upper")

    def __init__(self, lower: float, upper: float, seed: int) -> None:
        super().__init__(seed)
        self.lower = lower
        self.upper = upper

    def __call__(self, partition: int, records: Iterator[Any]) -> Iterator[Any]:
        uniform = stirred(self.seed, partition).random
        for record in records:
            if self.lower <= uniform() < self.upper:
                yield record


class Stratified(_Seeded):
    """Each pair at the rate of its key; a key without a rate raises KeyError."""

    __slots__ = ("fractions", "with_replacement")

    def __init__(self, with_replacement: bool, fractions: Mapping[Any, float], seed: int) -> None:
        super().__init__(seed)
        self.with_replacement = with_replacement
        self.fractions = fractions

    def __call__(self, partition: int, pairs: Iterator[Any]) -> Iterator[Any]:
        rng = stirred(self.seed, partition)
        for key, value in pairs:
            rate = self.fractions[key]
            times = poisson(rng, rate) if self.with_replacement else rng.random() < rate
            for _ in range(times):
                yield key, value


def fraction_for(size: int, total: int, with_replacement: bool) -> float:
    """A rate that gives at least ``size`` of ``total`` records with probability 0.9999 (PySpark's)."""
    fraction = size / total
    if with_replacement:
        deviations = 9 if size < 12 else 5
        return fraction + deviations * math.sqrt(fraction / total)
    gamma = -math.log(0.00005) / total
    return min(1, fraction + gamma + math.sqrt(gamma * gamma + 2 * gamma * fraction))


def reservoir(records: Iterator[Any], size: int, rng: random.Random) -> tuple[list[Any], int]:
    """``size`` records drawn evenly, and how many there were.

    Algorithm L (Li 1994) draws how many records to skip, so most of them cost no Python at all.
    """
    chosen = list(islice(records, size))
    total = len(chosen)
    if total < size or size == 0:
        return chosen, total
    weight = math.exp(math.log(1.0 - rng.random()) / size)
    while True:
        skip = int(min(math.log(1.0 - rng.random()) / math.log1p(-weight), sys.maxsize))
        passed = deque(enumerate(islice(records, skip), 1), maxlen=1)
        record = next(records, _END)
        total += (passed[0][0] if passed else 0) + (record is not _END)
        if record is _END:
            return chosen, total
        chosen[rng.randrange(size)] = record
        weight *= math.exp(math.log(1.0 - rng.random()) / size)


class KeySample:
    """A partition's record count and a sample of its sort keys: what range bounds are made of."""

    __slots__ = ("key", "size")

    def __init__(self, key: Callable[[Any], Any], size: int) -> None:
        self.key = key
        self.size = size

    def __call__(self, partition: int, pairs: Iterator[Any]) -> tuple[int, list[Any]]:
        chosen, total = reservoir(pairs, self.size, stirred(1, partition))
        return total, [self.key(pair[0]) for pair in chosen]
