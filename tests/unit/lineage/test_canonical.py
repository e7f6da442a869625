"""Equal values have equal digests however they are shared, ordered in sets or entered; others differ."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import itertools
import math
import operator
import pathlib
import random
import re
import threading
import types

import numpy as np
import pytest

from spark_ft.lineage.anatomy import expand
from spark_ft.lineage.canonical import Canon, plain


def digest(value):
    canon = Canon(expand)
    made = canon.digest(value)
    assert not canon.reasons(value), canon.reasons(value)
    return made


def reasons(value):
    canon = Canon(expand)
    canon.digest(value)
    return canon.reasons(value)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


Pair = collections.namedtuple("Pair", "a b")


class Plain:
    def __init__(self, **values):
        vars(self).update(values)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


VALUES = [
    None, True, False, 0, 1, -1, 10**30, 0.0, -0.0, 1.0, math.inf, 1j, "", "a", "ä", "\ud800", b"", b"a",
    ..., NotImplemented, (), [], {}, set(), frozenset(), (1,), [1], {1}, frozenset({1}), {1: None}, {"a":
    1}, (1, 2), (2, 1), [[1], [2]], [[1, 2], []], [[1, 2]], {"a": 1, "b": 2}, {"b": 2, "a": 1},
    bytearray(b"a"), range(3), range(0, 4, 2), slice(3), Colour.RED, Colour.GREEN, Point(1), Point(1, 2),
    Pair(1, 2), Pair(2, 1), Plain(a=1), Plain(b=1), Slotted(1), Slotted(2), decimal.Decimal("1.0"),
    decimal.Decimal("1.00"), datetime.date(2020, 1, 1), datetime.timedelta(1), pathlib.PurePosixPath("a"),
    re.compile("a"), re.compile("a", re.IGNORECASE), collections.Counter("ab"), collections.deque([1]),
    collections.deque([1], 3), collections.defaultdict(int), collections.defaultdict(list),
    collections.OrderedDict(a=1), len, abs, str.upper, str.lower, "a".upper, "b".upper, [].append,
    dict.fromkeys, operator.itemgetter(1), operator.itemgetter(2), functools.partial(pow, 2),
    functools.partial(pow, 3), int, str, math, operator, np.arange(3), np.arange(3.0),
    np.arange(4).reshape(2, 2), np.asfortranarray(np.arange(4).reshape(2, 2)), np.array(["a", None],
    dtype=object), np.float64(1), np.int32(1), np.dtype("i4"), np.sin, np.cos, np.sum, np.linalg.norm,
    np.arange(3, dtype="<i2"), np.arange(3, dtype=">i2"), random.Random(1), random.Random(2),
    itertools.count(1), itertools.count(2), iter([1, 2]), Colour, Point, Pair, Plain, Slotted,
    datetime.datetime.now, math.sqrt, types.SimpleNamespace(a=1), types.MappingProxyType, property(len),
]  # fmt: skip


def test_every_value_has_a_digest_of_its_own():
    digests = {}
    for value in VALUES:
        made = digest(value)
        assert made not in digests, (value, digests[made])
        digests[made] = value
        assert digest(value) == made


def test_a_copy_has_the_same_digest():
    assert digest([1, "a" * 50, 2.5]) == digest([1, "".join(["a"] * 50), float("2.5")])
    assert digest({"k" + str(1): (1, [2])}) == digest({"k1": (1, [2])})
    assert digest(Point(1, [2])) == digest(Point(1, [2]))
    assert digest(np.arange(6)[::2]) == digest(np.array([0, 2, 4]))
    assert digest(frozenset("abc")) == digest(frozenset("cba"))


def test_sharing_does_not_show():
    class_of_one = Point(1)
    assert digest([class_of_one, class_of_one]) == digest([Point(1), Point(1)])
    word = "".join(["w", "ord"])
    assert digest((word, word)) == digest(("".join(["wo", "rd"]), "".join(["wor", "d"])))


def test_marshal_knows_nothing_of_references_and_interning():
    fresh = "".join(["na", "me"])
    assert plain([fresh, 12345678901234567890]) == plain(["name", int("12345678901234567890")])
    held = [fresh, fresh, [fresh]]
    assert plain(held) == plain(["".join(["na", "me"]), "".join(["n", "ame"]), ["name"]])


def test_sets_of_anything_are_put_in_order():
    things = [("a", 1), Colour.RED, frozenset({1}), None, 1.5, "x", b"x", int]
    assert len({digest(set(p)) for p in itertools.islice(itertools.permutations(things), 50)}) == 1
    assert digest({1, 2}) != digest({1, 2, 3})


class Words(set):
    pass


def test_kinds_of_sets_are_put_in_order_too():
    things = [("a", 1), frozenset({1}), None, 1.5, "x", b"x"]
    assert len({digest(Words(p)) for p in itertools.islice(itertools.permutations(things), 50)}) == 1
    assert digest(Words([1])) != digest({1})


def test_large_plain_collections_are_cut_into_chunks():
    many = list(range(10_000))
    assert digest(many) == digest(list(range(10_000)))
    assert digest(many) != digest(many[:-1])
    assert digest(dict.fromkeys(many)) != digest(dict.fromkeys(reversed(many)))
    assert plain([1, Point(1)]) is None
    assert plain([np.int64(1)]) is None, "marshal would call it bytes"
    assert plain([bytearray(b"x")]) is None


def cycle(length, start=0, make=list):
    """``length`` lists in a circle, each with its number; entered at ``start``."""
    nodes = [[i] for i in range(length)]
    for i, node in enumerate(nodes):
        node.append(nodes[(i + 1) % length])
    return nodes[start]


def test_cycles_end_and_are_compared_by_what_they_unfold_to():
    once: list = []
    once.append(once)
    twice: list = []
    twice.append([twice])
    assert digest(once) == digest(twice), "both are a list of one list of one list …"
    assert digest(cycle(3)) == digest(cycle(3))
    assert digest(cycle(3)) != digest(cycle(4))
    assert digest(cycle(3, 0)) != digest(cycle(3, 1))
    whole = cycle(3)
    assert digest([whole, whole[1]]) == digest([cycle(3, 0), cycle(3, 1)])
    in_set = Plain()
    in_set.others = {in_set, 1}
    assert len(digest(in_set)) == 16


def ring(labels):
    nodes = [Plain(label=label) for label in labels]
    for node, following in zip(nodes, nodes[1:] + nodes[:1], strict=True):
        node.next = following
    return nodes[0]


def test_a_ring_is_not_its_like():
    assert digest(ring("abab")) == digest(ring("ab"))
    seen = {digest(ring(labels)) for labels in ("ab", "abb", "aab", "ba", "abc", "abbb", "a")}
    assert len(seen) == 7


def test_depth_costs_no_stack():
    deep: object = None
    for _ in range(50_000):
        deep = Point(1, deep)
    assert len(digest(deep)) == 16
    chained = Plain()
    first = chained
    for _ in range(20_000):
        chained.next = Plain()
        chained = chained.next
    assert len(digest(first)) == 16


def test_shared_graphs_are_walked_once():
    value: object = Point(0)
    for _ in range(200):
        value = [value, value]
    assert len(digest(value)) == 16
    plainly: object = ()
    for _ in range(200):
        plainly = (plainly, plainly)
    assert len(digest(plainly)) == 16


def generator():
    yield 1


UNSAFE = {
    "lock": threading.Lock,
    "generator": generator,
    "TextIOWrapper": lambda: open(__file__),  # noqa: SIM115 - closed with the test
    "_thread._local": threading.local,
    "memoryview": lambda: memoryview(b""),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", UNSAFE)
def test_what_does_not_come_apart_is_different_each_time_and_says_why(kind):
    value = UNSAFE[kind]()
    [why] = reasons({"a": [Point(1, value)]})
    assert kind in why
    assert "attribute y" in why
    canons = [Canon(expand) for _ in range(2)]
    assert canons[0].digest([value]) != canons[1].digest([value])
    assert not canons[0].reasons([1])


def test_a_reason_reaches_all_that_rests_on_it_and_no_neighbour():
    bad, good = Point(threading.Lock()), Point(2)
    above, beside = [bad, good], [good]
    canon = Canon(expand)
    canon.digest([above, beside])
    assert canon.reasons(above)
    assert canon.reasons(bad)
    assert not canon.reasons(beside)
    assert not canon.reasons(good)


def test_a_class_may_say_what_its_objects_stand_for():
    class Connection:
        def __init__(self, url):
            self.url, self.lock = url, threading.Lock()

        def __fingerprint__(self):
            return self.url

    assert digest(Connection("a")) == digest(Connection("a"))
    assert digest(Connection("a")) != digest(Connection("b"))


def test_objects_that_make_new_ones_without_end_are_given_up(monkeypatch):
    class Endless:
        def __reduce__(self):
            return Endless, (Endless(),)

    monkeypatch.setattr("spark_ft.lineage.canonical.DEPTH_MAX", 1000)
    assert "inside one another" in reasons(Endless())[0]
