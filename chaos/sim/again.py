"""What a driver heard in a history, heard again by cores that nobody knows.

    one        at the same times, counted from another zero: its effects are the same (S34)
    stutterer  every so often twice in a row: the second hearing gives nobody anything (S26)

Times are set upon a grid of 2^-20 s, so that another zero rounds no sum otherwise.  What is asked back from
a queue is one choice of several (a schedule, nobody's right): where a second hearing makes another one, or
other launches follow from it, the stutterer has said enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from random import Random

from chaos.sim.violation import ViolationError
from spark_ft.protocol.effects import (
    DeliverResult,
    Effect,
    Event,
    FinishJob,
    MergeAccums,
    Note,
    Received,
    Send,
    WithdrawResults,
)
from spark_ft.protocol.messages import KillExecutor, KillTask, LaunchTasks, TaskUpdates
from spark_ft.scheduler.core import SchedulerCore

Heard = tuple[float, Event]

ZERO_S = float(1 << 16)  # where the other clock begins
_GRID = float(1 << 20)
_GIVEN = (DeliverResult, FinishJob, MergeAccums, WithdrawResults)
_ORDERED = (KillExecutor, KillTask, LaunchTasks)


def check(heard: Collection[Heard], make: Callable[[], SchedulerCore], rng: Random, doubled: float) -> None:
    """Raise when another core would do otherwise; ``doubled``: share of messages that are heard twice."""
    told, shifted, stutterer, speaks = make(), make(), make(), True
    for at_s, event in heard:
        at_s = math.ceil(at_s * _GRID) / _GRID
        effects = told.handle(event, at_s)
        if shifted.handle(event, at_s + ZERO_S) != effects:
            raise ViolationError("S34", f"another zero of the clock, other effects of {event!r}")
        if not speaks:
            continue
        first = stutterer.handle(event, at_s)
        if _launches(first) != _launches(effects) or _speaks_of_the_future(event, first):
            speaks = False  # attempts have other numbers from here on: what is heard is not about them
            continue
        if type(event) is Received and rng.random() < doubled:
            speaks = _check_second(event, first, stutterer.handle(event, at_s))


def _speaks_of_the_future(event: Event, effects: list[Effect]) -> bool:
    """Whether it tells of an attempt that begins only now: a rounded time has made a difference."""
    if type(event) is not Received or type(event.message) is not TaskUpdates:
        return False
    told = {*event.message.started, *(end.task for end in event.message.ended)}
    launched = {launch.task for e in _launches(effects) for launch in e.message.tasks}  # type: ignore[union-attr]
    return not told.isdisjoint(launched)


def _launches(effects: list[Effect]) -> list[Effect]:
    return [e for e in effects if type(e) is Send and type(e.message) is LaunchTasks]


def _check_second(event: Received, first: list[Effect], second: list[Effect]) -> bool:
    """Raise when it gives or orders anything that the first hearing has not; false when it asks something
    back."""
    for effect in second:
        ordered = False
        if type(effect) is Send and effect in first:
            continue  # the same word once more
        if type(effect) is Send and type(effect.message) in _ORDERED:
            if type(effect.message) is KillTask and effect.message.queued_only:
                return False
            ordered = True
        if ordered or type(effect) in _GIVEN or (type(effect) is Note and effect.kind == "rollback"):
            raise ViolationError("S26", f"{event!r} heard twice: {effect!r}")
    return True
