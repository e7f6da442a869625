"""What runs while things break: jobs whose right answer is known by construction.

A workload draws its parameters from a seed, prepares its input, runs, and tells what it *observed* as plain
JSON values; afterwards ``check`` says, from the parameters alone, what is wrong with that.  No
check asks the engine for anything: each one would see a record that was lost, doubled or changed.

``WORKLOADS`` has them by name.  A round takes one to three seconds on two quiet cores with ``scale`` 1;
much of it is tasks that sleep a little, so that a fault meets tasks that run.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Params = Mapping[str, Any]


class Workload(ABC):
    """Base of all workloads.  Objects hold no state: one serves any number of rounds."""

    name = ""
    deadline_s = 20.0  # of one round, without faults, on two busy cores
    deterministic = True  # a task that runs again writes the same records in the same order
    rounds_max = 0  # 0: round after round, as long as the run lasts

    @abstractmethod
    def params(self, rng: random.Random, scale: float) -> dict[str, Any]:
        """What one round does: plain JSON values, drawn from ``rng``."""

    def setup(self, params: Params, directory: Path) -> None:  # noqa: B027 - most need none
        """Prepare input in a fresh directory."""

    @abstractmethod
    def run(self, sc: Any, params: Params, directory: Path) -> Any:
        """Do it on a SparkContext; answer what was observed as plain JSON values."""

    @abstractmethod
    def check(self, params: Params, observed: Any) -> list[str]:
        """What is wrong with the observation; nothing when it is right."""


def dawdle(seconds: float) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """For mapPartitions: the same records, but the task takes its time, half before and half after them."""

    def slow(records: Iterable[Any]) -> Iterable[Any]:
        time.sleep(seconds / 2)
        yield from records
        time.sleep(seconds / 2)

    return slow


def differences(expected: Mapping[Any, Any], observed: Mapping[Any, Any], most: int = 5) -> list[str]:
    """Where two mappings differ, the first few in words."""
    if expected == observed:
        return []
    wrong = []
    for key in list(expected) + [key for key in observed if key not in expected]:
        want, got = expected.get(key, "nothing"), observed.get(key, "nothing")
        if want != got:
            wrong.append(f"{key!r}: {got!r} instead of {want!r}")
    return [*wrong[:most], *([f"and {len(wrong) - most} more"] if len(wrong) > most else [])]


def keyed(pairs: Iterable[Sequence[Any]]) -> tuple[dict[Any, Any], list[str]]:
    """Pairs as a mapping, and the keys that came more than once."""
    found: dict[Any, Any] = {}
    doubled = []
    for key, value in pairs:
        if key in found:
            doubled.append(f"{key!r} came twice")
        found[key] = value
    return found, doubled[:5]


def exact(expected: Mapping[Any, Any], pairs: Iterable[Sequence[Any]]) -> list[str]:
    """What is wrong with pairs that should be exactly this mapping, each key once."""
    found, doubled = keyed(pairs)
    return doubled + differences(expected, found)


def scaled(count: int, scale: float, least: int = 1) -> int:
    return max(least, round(count * scale))
