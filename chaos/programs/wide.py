"""Steps with a shuffle: each a step, or None where no RDD of the pool fits."""

from __future__ import annotations

from collections.abc import Callable
from operator import add
from typing import Any

from chaos.programs.drawing import Drawing
from chaos.programs.program import Step


class WideSteps(Drawing):
    """Steps over one RDD, whose records move, and over two that are brought together."""

    def _wide(
        self, call: str, pairs_in: bool | None, pairs_out: bool | None, order: str, f: Any
    ) -> Step | None:
        """A shuffle of one RDD into a drawn number of partitions: ``f(rdd, n)``."""
        i = self.index(pairs=pairs_in)
        if i is None:
            return None
        n = self.draw.choice((None, *range(1, 6)))
        out = self.program.steps[i].pairs if pairs_out is None else pairs_out
        return Step(f"r{i}.{call} in {n}", lambda _, pool: f(pool[i], n), out, order)

    def step_distinct(self) -> Step | None:
        return self._wide("distinct()", None, None, "bag", lambda rdd, n: rdd.distinct(n))

    def step_sortBy(self) -> Step | None:
        up = self.draw.choice((False, True))
        return self._wide(
            f"sortBy(repr, {up})", None, None, "ordered", lambda rdd, n: rdd.sortBy(lambda x: repr(x), up, n)
        )

    def step_sortNumbers(self) -> Step | None:
        up = self.draw.choice((False, True))
        return self._wide(
            f"sortBy(identity, {up})", False, False, "ordered", lambda rdd, n: rdd.sortBy(lambda x: x, up, n)
        )

    def step_sortByKey(self) -> Step | None:
        up = self.draw.choice((False, True))
        return self._wide(
            f"sortByKey({up}, repr)",
            True,
            True,
            "bag",  # equal keys come in no promised order
            lambda rdd, n: rdd.sortByKey(up, n, lambda key: repr(key)),
        )

    def step_repartitionAndSort(self) -> Step | None:
        return self._wide(
            "repartitionAndSortWithinPartitions()",
            True,
            True,
            "bag",
            lambda rdd, n: rdd.repartitionAndSortWithinPartitions(n or 2, keyfunc=lambda key: repr(key)),
        )

    def step_partitionBy(self) -> Step | None:
        return self._wide("partitionBy()", True, True, "bag", lambda rdd, n: rdd.partitionBy(n or 3))

    def step_groupByKey(self) -> Step | None:
        return self._wide(
            "groupByKey() folded to sorted sums",
            True,
            True,
            "bag",
            lambda rdd, n: rdd.groupByKey(n).mapValues(
                lambda values: sum(k * v for k, v in enumerate(sorted(values), 1))
            ),
        )

    def step_groupBy(self) -> Step | None:
        return self._wide(
            "groupBy(% 4) summed",
            False,
            True,
            "bag",
            lambda rdd, n: rdd.groupBy(lambda x: x % 4, n).mapValues(lambda xs: sum(xs) + len(xs)),
        )

    def step_reduceByKey(self) -> Step | None:
        return self._wide("reduceByKey(add)", True, True, "bag", lambda rdd, n: rdd.reduceByKey(add, n))

    def step_foldByKey(self) -> Step | None:
        return self._wide(
            "foldByKey(0, max)", True, True, "bag", lambda rdd, n: rdd.foldByKey(0, lambda a, b: max(a, b), n)
        )

    def step_aggregateByKey(self) -> Step | None:
        def extend(seen: list[int], value: int) -> list[int]:
            seen.append(value)
            return seen

        return self._wide(
            "aggregateByKey([], append, +) summed",
            True,
            True,
            "bag",
            lambda rdd, n: rdd.aggregateByKey([], extend, add, n).mapValues(lambda xs: sum(xs) + len(xs)),
        )

    def step_combineByKey(self) -> Step | None:
        return self._wide(
            "combineByKey(count and sum)",
            True,
            True,
            "bag",
            lambda rdd, n: rdd.combineByKey(
                lambda v: (1, v),
                lambda c, v: (c[0] + 1, c[1] + v),
                lambda a, b: (a[0] + b[0], a[1] + b[1]),
                n,
            ).mapValues(lambda c: c[0] * 100 + c[1]),
        )

    def _two(self, call: str, pairs_in: bool | None, f: Any) -> Step | None:
        """A step over two RDDs of one type: ``f(left, right, n)``; the result is of that type too."""
        i = self.index(pairs=pairs_in)
        if i is None:
            return None
        is_pairs = self.program.steps[i].pairs
        j = self.index(pairs=is_pairs)
        assert j is not None
        n = self.draw.choice((None, *range(1, 6)))
        return Step(f"r{i}.{call}(r{j}) in {n}", lambda _, pool: f(pool[i], pool[j], n), is_pairs, "bag")

    def step_join(self) -> Step | None:
        combined = mix_by_value()
        return self._two("join", True, lambda left, right, n: left.join(right, n).mapValues(combined))

    def step_leftOuterJoin(self) -> Step | None:
        combined = mix_by_value()
        return self._two("leftOuterJoin", True, lambda a, b, n: a.leftOuterJoin(b, n).mapValues(combined))

    def step_rightOuterJoin(self) -> Step | None:
        combined = mix_by_value()
        return self._two("rightOuterJoin", True, lambda a, b, n: a.rightOuterJoin(b, n).mapValues(combined))

    def step_fullOuterJoin(self) -> Step | None:
        combined = mix_by_value()
        return self._two("fullOuterJoin", True, lambda a, b, n: a.fullOuterJoin(b, n).mapValues(combined))

    def step_cogroup(self) -> Step | None:
        return self._two(
            "cogroup",
            True,
            lambda a, b, n: a.cogroup(b, n).mapValues(
                lambda two: sum(two[0]) * 7 + sum(two[1]) + len(two[0])
            ),
        )

    def step_groupWith(self) -> Step | None:
        return self._two(
            "groupWith(…, itself)",
            True,
            lambda a, b, n: a.groupWith(b, a).mapValues(lambda s: sum(s[0]) + 2 * sum(s[1]) + 3 * sum(s[2])),
        )

    def step_subtractByKey(self) -> Step | None:
        return self._two("subtractByKey", True, lambda a, b, n: a.subtractByKey(b, n))

    def step_subtract(self) -> Step | None:
        return self._two("subtract", None, lambda a, b, n: a.subtract(b, n))

    def step_intersection(self) -> Step | None:
        return self._two("intersection", None, lambda a, b, n: a.intersection(b))

    def step_cartesian(self) -> Step | None:
        return self._two(
            "cartesian", False, lambda a, b, n: a.cartesian(b).map(lambda two: two[0] * 41 + two[1])
        )


def mix_by_value() -> Callable[[tuple[Any, Any]], int]:
    """``mix`` as a function that travels by value: tasks need not import this module."""
    return lambda pair: (1000 if pair[0] is None else pair[0]) * 3 + (2000 if pair[1] is None else pair[1])
