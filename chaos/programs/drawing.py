"""Where the choices of a program come from, and what every draw of one knows."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

from chaos.oracle import OracleContext, OracleRDD
from chaos.programs.program import Program, Step

KEYS: tuple[Any, ...] = (*range(-3, 7), "", "a", "b", "naïve", None, (1, "x"))
NUMBERS = (-20, 20)
RECORDS_MAX = 30


class Draw(Protocol):
    """Where choices come from: a seeded generator, or Hypothesis, which can make a failure smaller."""

    def integers(self, least: int, most: int) -> int: ...

    def choice(self, values: Sequence[Any]) -> Any: ...

    def records(self, pairs: bool) -> list[Any]:
        """At most RECORDS_MAX numbers within NUMBERS, or pairs of one of KEYS with a number."""
        ...


class Seeded:
    """Choices of a seeded generator."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def integers(self, least: int, most: int) -> int:
        return self._rng.randint(least, most)

    def choice(self, values: Sequence[Any]) -> Any:
        return self._rng.choice(values)

    def records(self, pairs: bool) -> list[Any]:
        numbers = [self._rng.randint(*NUMBERS) for _ in range(self._rng.randint(0, RECORDS_MAX))]
        return [(self._rng.choice(KEYS), number) for number in numbers] if pairs else numbers


class Drawing:
    """One draw of one program: knows the pool so far, and which RDDs of it fit a step."""

    def __init__(self, draw: Draw, dawdle_s: float = 0.0) -> None:
        self.draw, self.dawdle_s = draw, dawdle_s
        self.context = OracleContext()
        self.program = Program()

    def index(self, pairs: bool | None = None, orders: tuple[str, ...] = ()) -> int | None:
        """Some RDD of the pool with these properties, or None."""
        fit = [
            i
            for i, step in enumerate(self.program.steps)
            if (pairs is None or step.pairs == pairs) and (not orders or step.order in orders)
        ]
        return self.draw.choice(fit) if fit else None

    def order_of(self, *indices: int) -> str:
        """What narrow steps over these RDDs may promise."""
        orders = {self.program.steps[i].order for i in indices}
        return orders.pop() if len(orders) == 1 else "bag"

    def source(self) -> None:
        n, seconds = self.draw.integers(1, 5), self.dawdle_s
        kind = self.draw.choice(["numbers", "pairs", "pairs", "range"])
        if kind == "range":
            size = self.draw.integers(0, 40)
            step = Step(
                f"sc.parallelize(range({size}), {n})",
                lambda sc, _: dawdling(sc.parallelize(range(size), n), seconds),
                False,
                "exact",
            )
        else:
            items = self.draw.records(kind == "pairs")
            step = Step(
                f"sc.parallelize({items!r}, {n})",
                lambda sc, _: dawdling(sc.parallelize(items, n), seconds),
                kind == "pairs",
                "exact",
            )
        self.program.add(step, self.context)


def dawdling(rdd: Any, seconds: float) -> Any:
    """The same records, but each partition takes its time (not on the oracle)."""
    if not seconds or isinstance(rdd, OracleRDD):
        return rdd

    def wait(items: Any) -> Any:
        time.sleep(seconds)
        return items

    return rdd.mapPartitions(wait)
