"""What may be shared by the attempts of a slot, and what has to be unpickled for each (row TK-13)."""

import collections
import functools
import itertools
import math
import operator
import random
import re
from types import FunctionType

import numpy as np
import pytest

from spark_ft import closures
from spark_ft.accumulators import new_accumulator
from spark_ft.executor.captured import Fresh, bindings
from spark_ft.lineage.dependency import Aggregator, ShuffleDependency
from spark_ft.lineage.narrow import MAP, Elementwise
from spark_ft.lineage.partitioner import Partitioner
from spark_ft.lineage.sources import ParallelCollection
from spark_ft.rdd.tasks import Aggregate, count_records


def blob(function, action=count_records, output=None) -> bytes:
    return closures.dump_stage(
        Elementwise(2, ParallelCollection(1, [range(3), range(3, 5)]), MAP, function), action, output
    )


def by_value(source: str, **names) -> FunctionType:
    """``f`` of this source as a script's ``__main__`` would define it: it comes by value."""
    space = {"__name__": "__main__", **names}
    exec(source, space)  # noqa: S102
    return space["f"]


def capturing(value):
    return lambda x: (x, value)


def is_shared(function, **more) -> bool:
    return bindings(closures.load_stage(blob(function, **more))) is not None


def answers(data: bytes, attempts: int = 3):
    """What the stage's function says in each attempt of one slot, called twice in each."""
    fresh = Fresh(lambda: data)
    return [[function(0), function(0)] for _ in range(attempts) for function in [fresh.stage().target.op[1]]]


IMMUTABLE = [
    None, True, 3, 2.5, 1j, "s", b"b", range(4), (1, ("a", frozenset({2}))), frozenset({(1, 2)}),
    len, str.upper, "x".join, math, int, collections.OrderedDict, re.compile("a"), operator.itemgetter(1, 2),
    operator.methodcaller("split", ","), functools.partial(operator.add, 3), random.Random.random,
    np.float64(2), capturing(capturing((1, 2))),
]  # fmt: skip
CHANGING = [
    [], {}, set(), bytearray(b"x"), (1, [2]), frozenset({functools.partial(print, [])}), [].append,
    set().add, collections.Counter(), itertools.count(), iter([1]), random.Random(1), np.zeros(2),
    functools.partial(operator.add, []), operator.methodcaller("f", []),
    capturing(capturing({})), collections.deque().append, random.Random(1).random,
]  # fmt: skip


def name_of(value):
    """The same in every process."""
    return re.sub(r" at 0x[0-9a-f]+| from '[^']*'", "", repr(value))


@pytest.mark.parametrize("value", IMMUTABLE, ids=name_of)
def test_TK_13_what_nobody_can_change_is_shared(value):
    assert is_shared(capturing(value))


@pytest.mark.parametrize("value", CHANGING, ids=name_of)
def test_TK_13_of_all_else_each_attempt_has_its_own(value):
    data = blob(capturing(value))
    assert bindings(closures.load_stage(data)) is None
    fresh = Fresh(lambda: data)
    assert len({id(stage.target) for stage in [fresh.stage() for _ in range(3)]}) == 3


def test_TK_13_every_place_where_a_function_can_lie_is_looked_at():
    def shuffled(*functions, place=hash):
        return ShuffleDependency(1, None, Partitioner(2, place), b"f" * 16, Aggregator(*functions))

    def mutable(x, y=None, *, seen=[]):  # noqa: B006
        return x

    assert is_shared(len, output=shuffled(len, len, len), action=None)
    for at in range(3):
        functions = [capturing(1)] * 3
        functions[at] = capturing([])
        assert not is_shared(len, output=shuffled(*functions), action=None)
    assert not is_shared(len, output=shuffled(len, len, len, place=capturing([])), action=None)
    assert is_shared(len, action=Aggregate(operator.add, 0))
    assert not is_shared(len, action=Aggregate(operator.add, []))
    assert not is_shared(mutable)


REBINDING = {
    "global": "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n",
    "nonlocal": "def g():\n    n = 0\n    def f(x):\n        nonlocal n\n        n += 1\n        return n\n"
    "    return f\nf = g()",
    "attribute": "def f(x):\n    f.n += 1\n    return f.n\nf.n = 0",
    "new attribute": "def f(x):\n    f.n = getattr(f, 'n', 0) + 1\n    return f.n",
    "of a helper": "def g(): pass\ndef f(x):\n    setattr(g, 'n', getattr(g, 'n', 0) + 1)\n    return g.n",
    "default": "def f(x, n=0):\n    f.__defaults__ = (n + 1,)\n    return n + 1",
    "keyword": "def f(x, *, n=0):\n    f.__kwdefaults__['n'] = n + 1\n    return n + 1",
    "globals()": "def f(x):\n    globals()['n'] = globals().get('n', 0) + 1\n    return globals()['n']",
    "class": "class C:\n    n = 0\ndef f(x):\n    C.n += 1\n    return C.n",
    "method": "class C:\n    def m(self): pass\n"
    "def f(x):\n    C.m.n = getattr(C.m, 'n', 0) + 1\n    return C.m.n",
    "list": "n = []\ndef f(x):\n    n.append(x)\n    return len(n)",
    "default list": "def f(x, n=[]):\n    n.append(x)\n    return len(n)",
    "class list": "class C:\n    n = []\ndef f(x):\n    C.n.append(x)\n    return len(C.n)",
}


@pytest.mark.parametrize("what", REBINDING)
def test_TK_13_whatever_is_changed_the_next_attempt_begins_afresh(what):
    assert answers(blob(by_value(REBINDING[what]))) == [[1, 2]] * 3


def test_TK_13_a_program_that_changes_nothing_shares_its_helpers_and_classes():
    source = """
class Point:
    "with a method"
    scale = 2
    def __init__(self, x): self.x = x
    @property
    def wide(self): return self.x * self.scale
    @staticmethod
    def make(x): return Point(x)
def helper(x): return Point.make(x).wide
def f(x): return helper(x) + 1
"""
    data = blob(by_value(source))
    fresh = Fresh(lambda: data)
    stages = []
    for _ in range(3):
        stages.append(fresh.stage())
        assert stages[-1].target.op[1](4) == 9
    assert stages[0] is stages[1] is stages[2]


def test_TK_13_handles_of_the_engine_are_shared():
    assert is_shared(capturing(new_accumulator(0)))


def test_TK_13_instances_stay_of_one_class_from_attempt_to_attempt():
    data = blob(by_value("class C: pass\nseen = []\ndef f(x): return C()"))
    fresh = Fresh(lambda: data)
    first, second = (fresh.stage().target.op[1](0) for _ in range(2))
    assert type(first) is type(second)


def test_what_is_shared_is_read_once_and_what_is_not_is_held():
    for value, kept in ((1, True), ([], False)):
        data, reads = blob(capturing(value)), []
        fresh = Fresh(lambda data=data, reads=reads: reads.append(1) or data)
        stages = {id(each): each for each in [fresh.stage() for _ in range(4)]}
        assert len(reads) == 1 and (len(stages) == 1) is kept
