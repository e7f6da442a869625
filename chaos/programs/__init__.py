"""Random RDD programs, drawn so that they are valid, and run on any context that speaks the API.

A ``Program`` is a list of steps.  Each step makes one more RDD out of earlier ones; while it is drawn
it is also run on the oracle, so that the drawing knows sizes and never multiplies without end.
What may be promised about the order of an RDD's records is tracked with it:

    exact    partition by partition (sources and everything narrow over them)
    ordered  the whole sequence (after a sort)
    bag      as a multiset (after any other shuffle)

Steps that depend on positions (``zipWithIndex``, ``sample``, ``glom`` …) are drawn only where
positions are promised.  Functions are made in the calling scope, so that they travel by value.
"""

from __future__ import annotations

from chaos.programs.actions import Actions
from chaos.programs.drawing import KEYS, NUMBERS, RECORDS_MAX, Draw, Seeded
from chaos.programs.narrow import NarrowSteps
from chaos.programs.program import Program
from chaos.programs.wide import WideSteps

__all__ = ["KEYS", "NUMBERS", "RECORDS_MAX", "Draw", "Program", "Seeded", "program"]

SIZE_MAX = 400  # records of one RDD
PARTITIONS_MAX = 16


class Drawer(NarrowSteps, WideSteps, Actions):
    """Draws the steps and actions of one program."""

    def grow(self) -> None:
        """Draw one more step; one that does not fit the pool or its bounds is simply left out."""
        name = self.draw.choice(STEPS)
        step = getattr(self, f"step_{name}")()
        if step is None:
            return
        made = step.make(self.context, self.program.pool)
        if made.count() <= SIZE_MAX and 0 < made.getNumPartitions() <= PARTITIONS_MAX:
            self.program.pool.append(made)
            self.program.steps.append(step)


STEPS = sorted(name.removeprefix("step_") for name in dir(Drawer) if name.startswith("step_"))


def program(draw: Draw, steps_max: int = 9, actions_max: int = 3, dawdle_s: float = 0.0) -> Program:
    """A program of one to three sources, up to ``steps_max`` steps and a few actions.

    With ``dawdle_s`` each partition of a source takes so long, so that faults meet running tasks.
    """
    drawer = Drawer(draw, dawdle_s)
    for _ in range(draw.integers(1, 3)):
        drawer.source()
    for _ in range(draw.integers(1, steps_max)):
        drawer.grow()
    for _ in range(draw.integers(1, actions_max)):
        drawer.action()
    return drawer.program
