"""What each wide node kind asks of its environment."""

import operator

import pytest

from spark_ft.lineage.dependency import Aggregator, KeyOrdering, NarrowDependency, ShuffleDependency
from spark_ft.lineage.partitioner import Partitioner
from spark_ft.lineage.wide import CoGrouped, Combined, Grouped, Shuffled, Sorted, record_key
from tests.unit.rdd.inprocess import InProcess, Slices

PLACE = Partitioner(2, operator.index)
PAIRS = [(0, "a"), (2, "b"), (0, "c")]


class Recorder:
    """An environment that answers with the names of what it was asked for."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        def answer(*args):
            self.asked.append((name, *args))
            return iter([name])

        return answer


@pytest.fixture
def env():
    return Recorder()


@pytest.fixture
def placed():
    node = Slices(1, PAIRS, 2)
    node.partitioner = PLACE
    return node


def shuffle(parent, **how):
    return ShuffleDependency(0, parent, PLACE, b"f" * 16, **how)


def test_a_shuffled_node_has_the_partitions_of_its_partitioner_and_reads_its_shuffle(env, placed):
    dependency = shuffle(placed)
    node = Shuffled(2, dependency)
    assert (node.partition_count, node.partitioner) == (2, PLACE)
    assert list(node.compute(1, [], env)) == ["read_shuffle"]
    assert env.asked == [("read_shuffle", dependency, 1)]


def test_narrow_combining_grouping_and_sorting_keep_the_placement_and_use_the_input(env, placed):
    aggregator = Aggregator(str, operator.add, operator.add)
    for node, name in (
        (Combined(2, placed, aggregator), "combine"),
        (Grouped(3, placed), "group"),
        (Sorted(4, placed, KeyOrdering(None, ascending=False)), "sort"),
    ):
        assert node.partitioner is PLACE
        assert node.partition_count == 2
        assert list(node.compute(0, [iter(PAIRS)], env)) == [name]
    assert env.asked[0][2] is aggregator
    assert env.asked[2][3] is True


def test_a_sort_key_looks_at_the_key_of_a_pair():
    assert record_key(None)((3, "x")) == 3
    assert record_key(operator.neg)((3, "x")) == -3


def test_cogroup_reads_shuffled_sides_and_takes_narrow_ones_as_they_come_in_order(env, placed):
    other = shuffle(placed)
    node = CoGrouped(2, [other, NarrowDependency(placed), other], PLACE)
    narrow = iter(PAIRS)
    list(node.compute(1, [narrow], env))
    name, sides = env.asked[-1]
    assert name == "cogroup"
    assert sides[1] is narrow
    assert [list(sides[0]), list(sides[2])] == [["read_shuffle"]] * 2
    assert node.partition_count == 2


def test_cogrouped_values_keep_their_order_of_arrival():
    session = InProcess()
    left = session.parallelize([("k", 1), ("k", 2), ("j", 3)], 2)
    right = session.parallelize([("k", "x")], 1)
    groups = {key: tuple(map(list, sides)) for key, sides in left.cogroup(right).collect()}
    assert groups == {"k": ([1, 2], ["x"]), "j": ([3], [])}
