"""What a program is: steps and actions, with the oracle's answers, to be run and compared on any context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.oracle import OracleContext, OracleRDD, canonical, same_bag


@dataclass(frozen=True)
class Step:
    """``make(context, pool)`` gives the next RDD; ``text`` is the step as a line of program."""

    text: str
    make: Callable[[Any, list[Any]], Any]
    pairs: bool
    order: str


@dataclass
class Action:
    """``run(pool)`` gives an answer; ``bag`` compares it as a multiset."""

    text: str
    run: Callable[[list[Any]], Any]
    bag: bool = False


@dataclass
class Program:
    """Steps, the oracle's pool that they gave, and actions on it."""

    steps: list[Step] = field(default_factory=list)
    pool: list[OracleRDD] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)

    def __repr__(self) -> str:
        lines = [f"r{i} = {step.text}  # {step.order}" for i, step in enumerate(self.steps)]
        return "\n".join(["", *lines, *(action.text for action in self.actions)])

    def add(self, step: Step, context: OracleContext) -> None:
        self.pool.append(step.make(context, self.pool))
        self.steps.append(step)

    def outcomes(self, context: Any) -> list[tuple[str, str]]:
        """Every RDD and every action on ``context`` (None: as the oracle has them): its text and a spelling
        of its answer that is equal when the answers are, as far as their order is promised."""
        pool: list[Any] = []
        for index, step in enumerate(self.steps):
            pool.append(self.pool[index] if context is None else step.make(context, pool))
        told = []
        for step, rdd in zip(self.steps, pool, strict=True):
            answer = rdd.glom().collect() if step.order == "exact" else rdd.collect()
            told.append((step.text, repr(sorted(map(canonical, answer)) if step.order == "bag" else answer)))
        for action in self.actions:
            answer = outcome(action, pool)
            told.append((action.text, repr(sorted(map(canonical, answer)) if action.bag else answer)))
        return told

    def check(self, context: Any) -> None:
        """Run on ``context`` and compare every RDD and every action with the oracle."""
        pool: list[Any] = []
        for step in self.steps:
            pool.append(step.make(context, pool))
        for index, (step, rdd) in enumerate(zip(self.steps, pool, strict=True)):
            wanted = self.pool[index]
            if step.order == "exact":
                got = rdd.glom().collect()
                assert got == wanted.partitions, f"r{index}: {got} is not {wanted.partitions}{self!r}"
            else:
                got, expected = rdd.collect(), wanted.collect()
                same = got == expected if step.order == "ordered" else same_bag(got, expected)
                assert same, f"r{index}: {got} is not {expected}{self!r}"
        for action in self.actions:
            expected, got = outcome(action, self.pool), outcome(action, pool)
            same = same_bag(got, expected) if action.bag else got == expected
            assert same, f"{action.text}: {got!r} is not {expected!r}{self!r}"


def outcome(action: Action, pool: list[Any]) -> Any:
    """The answer, or the driver-side error as a value."""
    try:
        answer = action.run(pool)
    except ValueError as error:
        return ["ValueError", str(error).split("]")[-1].strip()]
    return list(answer.items()) if action.bag and isinstance(answer, dict) else answer
