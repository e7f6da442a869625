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

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any, Protocol

from chaos.oracle import OracleContext, OracleRDD, canonical, same_bag

SIZE_MAX = 400  # records of one RDD
PARTITIONS_MAX = 16


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


# --- Drawing ------------------------------------------------------------------------------------

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


class Drawer:
    """One draw of one program: knows the pool so far and offers the steps that are valid on it."""

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

    # Each returns a step, or None where the pool has no RDD that fits.

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

    # --- Actions ---

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


def dawdling(rdd: Any, seconds: float) -> Any:
    """The same records, but each partition takes its time (not on the oracle)."""
    if not seconds or isinstance(rdd, OracleRDD):
        return rdd

    def wait(items: Any) -> Any:
        import time

        time.sleep(seconds)
        return items

    return rdd.mapPartitions(wait)


def mix_by_value() -> Callable[[tuple[Any, Any]], int]:
    """``mix`` as a function that travels by value: tasks need not import this module."""
    return lambda pair: (1000 if pair[0] is None else pair[0]) * 3 + (2000 if pair[1] is None else pair[1])


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
