"""A failing history, with as few decisions as will do: delta debugging over what was decided.

A seed's decisions are drawn before anything happens, so leaving some out gives another history that is as
reproducible.  One that breaks the same invariant is as good as the first, and shorter.
"""

from __future__ import annotations

from collections.abc import Callable

from chaos.sim.faults import Decision
from chaos.sim.run import Outcome

RUNS_MAX = 400


def shrink(play: Callable[..., Outcome], violation: str, runs_max: int = RUNS_MAX) -> list[Decision]:
    """The decisions of a subset from which ``play(keep=...)`` still breaks ``violation``; no single one of
    them can be left out, unless ``runs_max`` histories were not enough to find out."""
    kept = play().decisions
    runs = 0

    def fails(some: list[Decision]) -> bool:
        nonlocal runs
        runs += 1
        outcome = play(keep={decision.number for decision in some})
        return any(found.id == violation for found in outcome.violations)

    size = max(1, len(kept) // 2)
    while kept and runs < runs_max:
        index, smaller = 0, False
        while index < len(kept) and runs < runs_max:
            rest = kept[:index] + kept[index + size :]
            if fails(rest):
                kept, smaller = rest, True
            else:
                index += size
        if size == 1 and not smaller:
            break
        size = max(1, size // 2)
    return kept
