"""What combines, groups and joins by key."""

import operator

import pytest

from spark_ft.lineage.narrow import MapPartitions
from spark_ft.lineage.partitioner import Partitioner, portable_hash
from spark_ft.lineage.wide import CoGrouped, Combined, Grouped, Sorted
from spark_ft.resultiterable import ResultIterable
from tests.unit.rdd.inprocess import InProcess

LEFT = [("a", 1), ("b", 4), ("a", 2)]
RIGHT = [("a", 3), ("c", 5)]


@pytest.fixture
def left(sc):
    return sc.parallelize(LEFT, 2)


@pytest.fixture
def right(sc):
    return sc.parallelize(RIGHT, 3)


def plain(rdd):
    return sorted((key, tuple(sorted(map(list, sides)))) for key, sides in rdd.collect())


def test_pairs_one_by_one(left):
    assert left.keys().collect() == ["a", "b", "a"]
    assert left.values().collect() == [1, 4, 2]
    assert left.mapValues(str).collect() == [("a", "1"), ("b", "4"), ("a", "2")]
    assert left.flatMapValues(range).collect() == [
        ("a", 0),
        *(("b", n) for n in range(4)),
        ("a", 0),
        ("a", 1),
    ]


def test_pairs_may_be_longer_than_two(sc):
    assert sc.parallelize([(1, 2, 3)]).mapValues(str).collect() == [(1, "2")]


def test_combining_by_key_uses_all_three_functions(left):
    combined = left.combineByKey(str, lambda text, v: text + "+" + str(v), lambda a, b: a + "|" + b, 2)
    assert sorted(combined.collect()) in ([("a", "1|2"), ("b", "4")], [("a", "1+2"), ("b", "4")])


def test_reducing_folding_and_aggregating_by_key(left):
    assert sorted(left.reduceByKey(operator.add).collect()) == [("a", 3), ("b", 4)]
    assert sorted(left.foldByKey(0, operator.add).collect()) == [("a", 3), ("b", 4)]
    listed = left.aggregateByKey([], lambda xs, x: xs + [x], operator.add)
    assert sorted(listed.collect()) == [("a", [1, 2]), ("b", [4])]


def test_each_key_has_a_zero_of_its_own(sc):
    def add(values, value):
        values.append(value)
        return values

    pairs = sc.parallelize([(n % 3, n) for n in range(12)], 2)
    grouped = pairs.aggregateByKey([], add, operator.iadd).collectAsMap()
    assert {key: sorted(values) for key, values in grouped.items()} == {
        0: [0, 3, 6, 9], 1: [1, 4, 7, 10], 2: [2, 5, 8, 11],
    }  # fmt: skip


def test_grouped_values_can_be_iterated_as_often_as_one_likes(left):
    groups = left.groupByKey().collectAsMap()
    assert isinstance(groups["a"], ResultIterable)
    assert (list(groups["a"]), list(groups["a"]), len(groups["a"])) == ([1, 2], [1, 2], 2)


def test_group_by_a_function(sc):
    groups = sc.parallelize([1, 1, 2, 3, 5, 8]).groupBy(lambda x: x % 2).collect()
    assert sorted((key, sorted(values)) for key, values in groups) == [(0, [2, 8]), (1, [1, 1, 3, 5])]


def test_distinct(sc):
    rdd = sc.parallelize([1, 1, 2, 3, 3.0, True] * 2000, 3)
    assert sorted(rdd.distinct().collect()) == [1, 2, 3]
    assert rdd.distinct().getNumPartitions() == 3
    assert rdd.distinct(2).getNumPartitions() == 2
    with pytest.raises(TypeError, match="unhashable"):
        sc.parallelize([[1]]).distinct().collect()


def test_joins(left, right):
    assert sorted(left.join(right).collect()) == [("a", (1, 3)), ("a", (2, 3))]
    assert sorted(left.leftOuterJoin(right).collect()) == [("a", (1, 3)), ("a", (2, 3)), ("b", (4, None))]
    assert sorted(left.rightOuterJoin(right).collect()) == [("a", (1, 3)), ("a", (2, 3)), ("c", (None, 5))]
    assert sorted(left.fullOuterJoin(right).collect()) == [
        ("a", (1, 3)), ("a", (2, 3)), ("b", (4, None)), ("c", (None, 5)),
    ]  # fmt: skip


def test_a_join_crosses_the_values_of_a_key_in_order_of_arrival(sc):
    left = sc.parallelize([("k", 1), ("k", 2)], 1)
    assert left.join(sc.parallelize([("k", "x"), ("k", "y")], 1)).values().collect() == [
        (1, "x"), (1, "y"), (2, "x"), (2, "y"),
    ]  # fmt: skip


def test_cogroup_and_group_with(left, right):
    assert plain(left.cogroup(right)) == [("a", ([1, 2], [3])), ("b", ([], [4])), ("c", ([], [5]))]
    [sides] = left.groupWith(right, left).filter(lambda pair: pair[0] == "a").values().collect()
    assert [type(side) for side in sides] == [ResultIterable] * 3
    assert [list(side) for side in sides] == [[1, 2], [3], [1, 2]]


def test_subtracting_and_intersecting(sc, left, right):
    assert sorted(left.subtractByKey(right).collect()) == [("b", 4)]
    a, b = sc.parallelize([1, 1, 2, 3]), sc.parallelize([3, 4, 3])
    assert sorted(a.subtract(b).collect()) == [1, 1, 2]
    assert a.intersection(b).collect() == [3]


# --- How many partitions (api.md 0.5) ---


def test_without_a_count_the_parent_or_the_union_of_the_sides_gives_it(sc, left, right):
    assert left.reduceByKey(operator.add).getNumPartitions() == 2
    assert left.groupByKey().getNumPartitions() == 2
    assert left.partitionBy(None).getNumPartitions() == 2
    assert left.join(right).getNumPartitions() == 5
    assert left.cogroup(right).getNumPartitions() == 5
    assert left.join(right, 7).getNumPartitions() == 7
    assert left.subtract(right).getNumPartitions() == 5


def test_default_parallelism_decides_when_it_is_set():
    sc = InProcess(default_parallelism=3, spark_default_parallelism="3")
    rdd = sc.parallelize(LEFT, 8)
    assert [r.getNumPartitions() for r in (rdd.groupByKey(), rdd.join(rdd), rdd.distinct())] == [3, 3, 3]


def test_partitioning_by_zero_partitions_is_an_empty_result(left):
    assert left.partitionBy(0).collect() == []


# --- Placement (api.md 0.3, 0.4) ---


def test_pairs_are_where_the_function_says(sc):
    rdd = sc.parallelize([(n, n) for n in range(6)], 2).partitionBy(3, lambda key: -key)
    assert rdd.keys().glom().collect() == [[0, 3], [2, 5], [1, 4]]


def test_partitioning_again_alike_is_the_same_object_and_a_fresh_lambda_is_not_alike(left):
    def place(key):
        return 0

    placed = left.partitionBy(2, place)
    assert placed.partitionBy(2, place) is placed
    assert placed.partitionBy(3, place) is not placed
    assert placed.partitionBy(2, lambda key: 0) is not placed


def test_what_is_already_placed_is_not_shuffled_again(sc, left):
    placed = left.partitionBy(2)
    tracked = len(sc.tracked)
    nodes = [
        placed.reduceByKey(operator.add)._node,
        placed.groupByKey()._node,
        placed.repartitionAndSortWithinPartitions(2)._node,
        placed.join(placed)._node.dependencies[0].parent,
    ]
    assert [type(node) for node in nodes] == [Combined, Grouped, Sorted, CoGrouped]
    assert len(sc.tracked) == tracked
    assert sorted(placed.reduceByKey(operator.add).collect()) == [("a", 3), ("b", 4)]
    assert sorted(placed.groupByKey().mapValues(list).collect()) == [("a", [1, 2]), ("b", [4])]
    assert sorted(placed.join(placed.mapValues(str)).collect()) == [
        ("a", (1, "1")), ("a", (1, "2")), ("a", (2, "1")), ("a", (2, "2")), ("b", (4, "4")),
    ]  # fmt: skip


def test_a_join_uses_the_placement_of_the_side_that_has_one(left, right):
    placed = left.partitionBy(2)
    for joined in (placed.join(right), right.join(placed)):
        assert joined.partitioner == Partitioner(2, portable_hash)
        sides = joined._node.dependencies[0].parent.dependencies
        assert sorted(type(side).__name__ for side in sides) == ["NarrowDependency", "ShuffleDependency"]
    assert sorted(placed.join(right).collect()) == sorted(left.join(right).collect())


def test_a_join_does_not_squeeze_many_partitions_into_a_small_placement(sc):
    one = sc.parallelize([(1, 2)], 4).partitionBy(1)
    many = sc.parallelize([(n, n) for n in range(40)], 40)
    assert one.join(many).getNumPartitions() == 41


def test_a_join_ignores_placements_by_other_functions_unless_they_are_wanted(sc, right):
    ordered = sc.parallelize(LEFT, 2).sortByKey(numPartitions=2)
    assert ordered.join(right).partitioner == Partitioner(5, portable_hash)


def test_one_rdd_on_both_sides_is_shuffled_once(left):
    node = left.join(left)._node.dependencies[0].parent
    assert node.dependencies[0] is node.dependencies[1]
    assert len(left.join(left).collect()) == 5


def test_chained_keyed_operations_share_one_placement(sc, left):
    reduced = left.reduceByKey(operator.add)
    again = reduced.mapValues(str).join(reduced)
    assert isinstance(again._node, MapPartitions)
    assert all(
        type(d).__name__ == "NarrowDependency" for d in again._node.dependencies[0].parent.dependencies
    )
    assert sorted(again.collect()) == [("a", ("3", 3)), ("b", ("4", 4))]
