"""The oracle itself gives what PySpark gives (figures tried on PySpark 4.3)."""

from operator import add

import pytest

from chaos.oracle import OracleContext, same_bag

sc = OracleContext(2)


def sizes(rdd):
    return [len(part) for part in rdd.partitions]


def test_a_range_is_cut_evenly_and_a_list_by_batches():
    assert sizes(sc.parallelize(range(10), 4)) == [2, 3, 2, 3]
    assert sizes(sc.parallelize(list(range(10)), 4)) == [2, 2, 2, 4]
    assert sc.parallelize([], 3).partitions == [[], [], []]


def test_samples_are_those_of_pyspark():
    rdd = sc.parallelize(range(100), 4)
    assert rdd.sample(False, 0.1, 2).collect() == [36, 40, 74, 86, 88]
    assert rdd.sample(True, 0.2, 5).collect() == [
        0, 6, 12, 14, 18, 20, 21, 24, 27, 31, 32, 38, 38, 40, 45, 46, 56, 87, 96,
    ]  # fmt: skip
    first, second = sc.parallelize(range(20), 2).randomSplit([1, 2], 17)
    assert first.collect() == [7, 9, 10, 11, 12, 17, 18]
    assert same_bag(first.collect() + second.collect(), range(20))


def test_coalesce_groups_neighbours():
    assert sizes(sc.parallelize(range(8), 8).coalesce(3)) == [2, 3, 3]


def test_fold_counts_its_zero_once_a_partition_and_once_on_the_driver():
    rdd = sc.parallelize([1, 2, 3], 3)
    assert rdd.fold(1, add) == 10
    assert rdd.treeAggregate(1, add, add) == 9


def test_joins_keep_what_they_promise():
    left, right = sc.parallelize([("a", 1), ("b", 2)], 2), sc.parallelize([("a", 3), ("a", 4), ("c", 5)], 2)
    assert same_bag(left.join(right).collect(), [("a", (1, 3)), ("a", (1, 4))])
    assert same_bag(left.leftOuterJoin(right).collect(), [("a", (1, 3)), ("a", (1, 4)), ("b", (2, None))])
    assert same_bag(left.rightOuterJoin(right).collect(), [("a", (1, 3)), ("a", (1, 4)), ("c", (None, 5))])
    assert same_bag(
        left.fullOuterJoin(right).collect(),
        [("a", (1, 3)), ("a", (1, 4)), ("b", (2, None)), ("c", (None, 5))],
    )


def test_a_bag_knows_a_lost_and_a_doubled_record():
    assert not same_bag([1, 2, 2], [1, 2])
    assert not same_bag([1, (1, None)], [1, (1, 0)])
    with pytest.raises(ValueError, match="empty"):
        sc.parallelize([], 2).first()
