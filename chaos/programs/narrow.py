"""Steps without a shuffle, but for ``repartition``: each a step, or None where no RDD of the pool fits."""

from __future__ import annotations

from chaos.programs.drawing import NUMBERS, Drawing
from chaos.programs.program import Step


class NarrowSteps(Drawing):
    """Steps over each partition, or over each record."""

    def step_map(self) -> Step | None:
        i = self.index(pairs=False)
        if i is None:
            return None
        a, b = self.draw.integers(-3, 3), self.draw.integers(*NUMBERS)
        return Step(
            f"r{i}.map(lambda x: {a} * x + {b})",
            lambda _, pool: pool[i].map(lambda x: a * x + b),
            False,
            self.order_of(i),
        )

    def step_filter(self) -> Step | None:
        i = self.index()
        if i is None:
            return None
        is_pairs, m = self.program.steps[i].pairs, self.draw.integers(1, 4)
        test = (lambda pair: pair[1] % m != 0) if is_pairs else (lambda x: x % m != 0)
        return Step(
            f"r{i}.filter(% {m} != 0)", lambda _, pool: pool[i].filter(test), is_pairs, self.order_of(i)
        )

    def step_flatMap(self) -> Step | None:
        i = self.index(pairs=False)
        return i if i is None else Step(
            f"r{i}.flatMap(lambda x: range(x % 3))",
            lambda _, pool: pool[i].flatMap(lambda x: range(x % 3)),
            False,
            self.order_of(i),
        )  # fmt: skip

    def step_mapPartitionsWithIndex(self) -> Step | None:
        i = self.index(pairs=False, orders=("exact",))
        return i if i is None else Step(
            f"r{i}.mapPartitionsWithIndex(lambda p, it: (x + p for x in it))",
            lambda _, pool: pool[i].mapPartitionsWithIndex(lambda p, it: (x + p for x in it)),
            False,
            "exact",
        )  # fmt: skip

    def step_mapPartitions(self) -> Step | None:
        i = self.index(pairs=False, orders=("exact",))
        return i if i is None else Step(
            f"r{i}.mapPartitions(lambda it: [sum(it)])",
            lambda _, pool: pool[i].mapPartitions(lambda it: [sum(it)]),
            False,
            "exact",
        )  # fmt: skip

    def step_glom(self) -> Step | None:
        i = self.index(pairs=False, orders=("exact",))
        return i if i is None else Step(
            f"r{i}.glom().map(len)", lambda _, pool: pool[i].glom().map(len), False, "exact"
        )  # fmt: skip

    def step_keyBy(self) -> Step | None:
        i = self.index(pairs=False)
        if i is None:
            return None
        m = self.draw.integers(1, 6)
        return Step(
            f"r{i}.keyBy(lambda x: x % {m})",
            lambda _, pool: pool[i].keyBy(lambda x: x % m),
            True,
            self.order_of(i),
        )

    def step_keys(self) -> Step | None:
        i = self.index(pairs=True)
        return i if i is None else Step(
            f"r{i}.keys().map(lambda k: len(repr(k)))",
            lambda _, pool: pool[i].keys().map(lambda k: len(repr(k))),
            False,
            self.order_of(i),
        )  # fmt: skip

    def step_values(self) -> Step | None:
        i = self.index(pairs=True)
        return i if i is None else Step(
            f"r{i}.values()", lambda _, pool: pool[i].values(), False, self.order_of(i)
        )  # fmt: skip

    def step_mapValues(self) -> Step | None:
        i = self.index(pairs=True)
        return i if i is None else Step(
            f"r{i}.mapValues(lambda v: v * v % 50)",
            lambda _, pool: pool[i].mapValues(lambda v: v * v % 50),
            True,
            self.order_of(i),
        )  # fmt: skip

    def step_flatMapValues(self) -> Step | None:
        i = self.index(pairs=True)
        return i if i is None else Step(
            f"r{i}.flatMapValues(lambda v: [v] * (v % 3))",
            lambda _, pool: pool[i].flatMapValues(lambda v: [v] * (v % 3)),
            True,
            self.order_of(i),
        )  # fmt: skip

    def step_union(self) -> Step | None:
        i = self.index()
        if i is None:
            return None
        is_pairs = self.program.steps[i].pairs
        j = self.index(pairs=is_pairs)
        assert j is not None
        order = "exact" if self.order_of(i, j) == "exact" else "bag"
        return Step(f"r{i}.union(r{j})", lambda _, pool: pool[i].union(pool[j]), is_pairs, order)

    def step_zip(self) -> Step | None:
        i = self.index(pairs=False)
        return i if i is None else Step(
            f"r{i}.zip(r{i}.map(lambda x: -x))",
            lambda _, pool: pool[i].zip(pool[i].map(lambda x: -x)),
            True,
            self.order_of(i),
        )  # fmt: skip

    def step_zipWithIndex(self) -> Step | None:
        i = self.index(pairs=False, orders=("exact", "ordered"))
        return i if i is None else Step(
            f"r{i}.zipWithIndex()", lambda _, pool: pool[i].zipWithIndex(), True, self.order_of(i)
        )  # fmt: skip

    def step_zipWithUniqueId(self) -> Step | None:
        i = self.index(pairs=False, orders=("exact",))
        return i if i is None else Step(
            f"r{i}.zipWithUniqueId()", lambda _, pool: pool[i].zipWithUniqueId(), True, "exact"
        )  # fmt: skip

    def step_sample(self) -> Step | None:
        i = self.index(orders=("exact",))
        if i is None:
            return None
        again, fraction = self.draw.choice((False, True)), self.draw.choice([0.0, 0.3, 0.8])
        seed = self.draw.integers(0, 1000)
        return Step(
            f"r{i}.sample({again}, {fraction}, {seed})",
            lambda _, pool: pool[i].sample(again, fraction, seed),
            self.program.steps[i].pairs,
            "exact",
        )

    def step_randomSplit(self) -> Step | None:
        i = self.index(orders=("exact",))
        if i is None:
            return None
        seed, which = self.draw.integers(0, 1000), self.draw.integers(0, 1)
        return Step(
            f"r{i}.randomSplit([1, 2], {seed})[{which}]",
            lambda _, pool: pool[i].randomSplit([1.0, 2.0], seed)[which],
            self.program.steps[i].pairs,
            "exact",
        )

    def step_coalesce(self) -> Step | None:
        i = self.index()
        if i is None:
            return None
        n = self.draw.integers(1, 5)
        return Step(
            f"r{i}.coalesce({n})",
            lambda _, pool: pool[i].coalesce(n),
            self.program.steps[i].pairs,
            self.order_of(i),
        )

    def step_repartition(self) -> Step | None:
        i = self.index()
        if i is None:
            return None
        n = self.draw.integers(1, 5)
        return Step(
            f"r{i}.repartition({n})",
            lambda _, pool: pool[i].repartition(n),
            self.program.steps[i].pairs,
            "bag",
        )

    def step_cache(self) -> Step | None:
        i = self.index()
        if i is None:
            return None
        step = self.program.steps[i]
        a = self.draw.integers(0, 1)
        if step.pairs:
            return Step(
                f"r{i}.mapValues(lambda v: v + {a}).cache()",
                lambda _, pool: pool[i].mapValues(lambda v: v + a).cache(),
                True,
                step.order,
            )
        return Step(
            f"r{i}.map(lambda x: x + {a}).cache()",
            lambda _, pool: pool[i].map(lambda x: x + a).cache(),
            False,
            step.order,
        )
