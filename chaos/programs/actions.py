"""What a program asks of its RDDs in the end."""

from __future__ import annotations

from operator import add
from typing import Any

from chaos.programs.drawing import KEYS, Drawing
from chaos.programs.program import Action


class Actions(Drawing):
    """Draws an action; one whose answer rests on the order of records only where that is promised."""

    def action(self) -> None:
        index = self.index()
        if index is None:
            return
        i: int = index
        step = self.program.steps[i]
        plain: dict[str, Any] = {"count": lambda r: r.count(), "isEmpty": lambda r: r.isEmpty()}
        if step.order != "bag":
            n = self.draw.integers(-1, 8)
            plain |= {
                f"take({n})": lambda r: r.take(n),
                "first": lambda r: r.first(),
                "toLocalIterator": lambda r: list(r.toLocalIterator()),
            }
        bags: dict[str, Any] = {"countByValue": lambda r: r.countByValue()}
        if step.pairs:
            key = self.draw.choice(KEYS)
            bags |= {
                "countByKey": lambda r: r.countByKey(),
                f"lookup({key!r})": lambda r: r.lookup(key),
                "reduceByKeyLocally": lambda r: r.reduceByKeyLocally(add),
            }
        else:
            n = self.draw.integers(0, 8)
            plain |= {
                "sum": lambda r: r.sum(),
                "reduce": lambda r: r.reduce(add),
                "treeReduce": lambda r: r.treeReduce(add),
                "max": lambda r: r.max(),
                "min": lambda r: r.min(),
                f"top({n})": lambda r: r.top(n),
                f"takeOrdered({n})": lambda r: r.takeOrdered(n),
                "aggregate": lambda r: r.aggregate(0, lambda a, x: a + x * x, add),
            }
            if step.order == "exact":
                plain["fold(1)"] = lambda r: r.fold(1, add)
        name = self.draw.choice(sorted(plain) + sorted(bags))
        run = plain.get(name) or bags[name]
        self.program.actions.append(Action(f"r{i}.{name}", lambda pool: run(pool[i]), name in bags))
