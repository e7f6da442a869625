"""Transformations of any records, with the figures that PySpark gives."""

import operator

import pytest

from spark_ft.errors import PySparkRuntimeError
from spark_ft.lineage.partitioner import Partitioner, portable_hash
from tests.unit.rdd.inprocess import InProcess


def test_nothing_runs_before_an_action(sc):
    rdd = sc.parallelize([3, 1, 2], 2).map(lambda x: (x, 1 // 0)).filter(bool).flatMap(list)
    rdd.distinct().union(rdd).zip(rdd.union(rdd)).coalesce(1).repartition(3).groupBy(len)
    rdd.sample(False, 0.5), rdd.randomSplit([1, 1]), rdd.zipWithUniqueId()
    assert sc.jobs == []


def test_records_keep_their_order_through_narrow_functions(sc):
    rdd = sc.parallelize(range(10), 3)
    assert rdd.map(lambda x: -x).collect() == [-x for x in range(10)]
    assert rdd.filter(lambda x: x % 2).collect() == [1, 3, 5, 7, 9]
    assert rdd.flatMap(range).collect() == [y for x in range(10) for y in range(x)]
    assert rdd.keyBy(str).collect() == [(str(x), x) for x in range(10)]
    assert rdd.mapPartitions(lambda it: [sum(it)]).collect() == [3, 12, 30]
    assert rdd.mapPartitionsWithIndex(lambda i, it: [i]).collect() == [0, 1, 2]
    assert rdd.glom().collect() == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_a_range_and_a_list_are_cut_by_their_own_rules(sc):
    assert [len(x) for x in sc.parallelize(range(10), 4).glom().collect()] == [2, 3, 2, 3]
    assert [len(x) for x in sc.parallelize(list(range(10)), 4).glom().collect()] == [2, 2, 2, 4]


def test_the_older_name_of_map_partitions_with_index_warns(sc):
    with pytest.warns(FutureWarning, match="mapPartitionsWithSplit is deprecated"):
        rdd = sc.parallelize([1, 2], 2).mapPartitionsWithSplit(lambda i, it: [i])
    assert rdd.collect() == [0, 1]


def test_flat_map_of_something_that_is_not_iterable_fails(sc):
    with pytest.raises(TypeError):
        sc.parallelize([1]).flatMap(lambda x: x).collect()


def stop(*args):
    raise StopIteration


@pytest.mark.parametrize(
    "action",
    [
        lambda rdd: rdd.map(stop).collect(),
        lambda rdd: rdd.filter(stop).collect(),
        lambda rdd: rdd.cartesian(rdd).flatMap(stop).collect(),
        lambda rdd: rdd.foreach(stop),
        lambda rdd: rdd.reduce(stop),
        lambda rdd: rdd.fold(0, stop),
        lambda rdd: rdd.aggregate(0, stop, operator.add),
        lambda rdd: rdd.aggregate(0, lambda *x: 1, stop),
        lambda rdd: rdd.keyBy(lambda x: x % 2).reduceByKeyLocally(stop),
        lambda rdd: rdd.max(key=stop),
        lambda rdd: rdd.treeReduce(stop),
    ],
)
def test_stop_iteration_in_user_code_fails_the_job(sc, action):
    with pytest.raises(
        PySparkRuntimeError, match="Caught StopIteration thrown from user's code; failing the"
    ):
        action(sc.parallelize(range(10)))


# --- Partitioner (api.md 0.3) ---


def test_the_partitioner_survives_what_keeps_keys_in_place(sc):
    placed = sc.parallelize([(1, 2)], 2).partitionBy(3)
    same = Partitioner(3, portable_hash)
    kept = [
        placed.filter(bool),
        placed.mapValues(str),
        placed.flatMapValues(range),
        placed.sample(False, 0.5),
        placed.sampleByKey(False, {1: 0.5}),
        *placed.randomSplit([1, 2]),
        placed.map(tuple, preservesPartitioning=True),
        placed.flatMap(list, preservesPartitioning=True),
        placed.mapPartitions(list, preservesPartitioning=True),
        placed.mapPartitionsWithIndex(lambda i, it: it, preservesPartitioning=True),
        placed.map(tuple, True).cache(),
    ]
    assert [rdd.partitioner for rdd in kept] == [same] * len(kept)


def test_the_partitioner_is_lost_by_what_may_move_keys(sc):
    placed = sc.parallelize([(1, 2)], 2).partitionBy(3)
    lost = [
        placed.map(tuple),
        placed.flatMap(list),
        placed.keys(),
        placed.values(),
        placed.glom(),
        placed.zipWithIndex(),
        placed.coalesce(2),
        placed.repartition(3),
        placed.distinct(),
        placed.cartesian(placed),
        placed.zip(placed),
        placed.keyBy(str),
    ]
    assert [rdd.partitioner for rdd in lost] == [None] * len(lost)


def test_the_partitioner_is_set_by_what_places_keys(sc):
    rdd = sc.parallelize([(1, 2), (3, 4)], 2)
    for placed in (
        rdd.groupByKey(5),
        rdd.reduceByKey(operator.add, 5),
        rdd.join(rdd, 5),
        rdd.cogroup(rdd, 5),
        rdd.subtractByKey(rdd, 5),
        rdd.repartitionAndSortWithinPartitions(5),
    ):
        assert placed.partitioner == Partitioner(5, portable_hash)
    assert rdd.sortByKey(numPartitions=2).partitioner.partition_count == 2


# --- Union, zip, cartesian ---


def test_union_keeps_duplicates_and_partitions(sc):
    a, b = sc.parallelize([1, 2], 2), sc.parallelize([2, 3], 3)
    assert (a + b).collect() == [1, 2, 2, 3]
    assert a.union(b).getNumPartitions() == 5
    with pytest.raises(TypeError):
        a + [1]


def test_union_of_rdds_placed_alike_keeps_their_partitions(sc):
    placed = sc.parallelize([(1, "a"), (2, "b")], 2).partitionBy(2)
    union = placed.union(placed.mapValues(str.upper))
    assert union.getNumPartitions() == 2
    assert union.partitioner == placed.partitioner
    assert union.glom().collect() == [[(2, "b"), (2, "B")], [(1, "a"), (1, "A")]]
    assert placed.union(sc.parallelize([1], 3)).getNumPartitions() == 5


def test_zip_needs_equal_partition_counts_at_once_and_equal_lengths_when_it_runs(sc):
    a = sc.parallelize(range(4), 2)
    assert a.zip(a.map(str)).collect() == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    with pytest.raises(ValueError, match="Can only zip with RDD which has the same number of partitions"):
        a.zip(sc.parallelize(range(4), 3))
    with pytest.raises(ValueError, match="same number of elements in each partition"):
        a.zip(sc.parallelize(range(6), 2)).collect()


def test_an_rdd_can_be_zipped_and_crossed_with_itself_and_nested(sc):
    rdd = sc.parallelize([1, 2], 2)
    assert rdd.zip(rdd).cartesian(rdd).collect() == [
        ((1, 1), 1), ((1, 1), 2), ((2, 2), 1), ((2, 2), 2),
    ]  # fmt: skip
    assert rdd.cartesian(sc.emptyRDD()).collect() == []


def test_zip_with_index_counts_all_but_the_last_partition_first(sc):
    rdd = sc.parallelize("abcde", 3)
    indexed = rdd.zipWithIndex()
    assert sc.jobs == [("Slices", [0, 1])]
    assert indexed.collect() == [(c, i) for i, c in enumerate("abcde")]
    sc.jobs.clear()
    sc.parallelize("ab", 1).zipWithIndex()
    assert sc.jobs == []


def test_unique_ids_are_the_position_times_the_partitions_plus_the_partition(sc):
    rdd = sc.parallelize(["a", "b", "c", "d", "e"], 3)
    assert rdd.zipWithUniqueId().collect() == [("a", 0), ("b", 1), ("c", 4), ("d", 2), ("e", 5)]


# --- Samples: PySpark's very numbers ---


def test_samples_are_those_of_pyspark(sc):
    hundred = sc.parallelize(range(100), 4)
    assert hundred.sample(False, 0.1, 2).collect() == [36, 40, 74, 86, 88]
    assert hundred.sample(True, 0.2, 5).collect() == [
        0, 6, 12, 14, 18, 20, 21, 24, 27, 31, 32, 38, 38, 40, 45, 46, 56, 87, 96,
    ]  # fmt: skip
    parts = sc.parallelize(range(20), 2).randomSplit([1, 2], 17)
    assert parts[0].collect() == [7, 9, 10, 11, 12, 17, 18]
    assert sorted(parts[0].collect() + parts[1].collect()) == list(range(20))


def test_a_sample_without_a_seed_draws_the_same_records_each_time_it_is_computed(sc):
    sampled = sc.parallelize(range(1000), 2).sample(False, 0.5)
    assert sampled.collect() == sampled.collect()
    left, right = sc.parallelize(range(1000), 2).randomSplit([1, 1])
    assert not set(left.collect()) & set(right.collect())


@pytest.mark.parametrize("mean", [0.5, 30.0])
def test_a_sample_with_replacement_has_the_asked_for_mean(sc, mean):
    assert abs(sc.parallelize(range(2000), 2).sample(True, mean, 3).count() / 2000 - mean) < mean * 0.1


def test_bad_rates_and_weights_are_refused(sc):
    rdd = sc.parallelize([1])
    with pytest.raises(ValueError, match="Fraction must be nonnegative"):
        rdd.sample(False, -0.1)
    with pytest.raises(ValueError, match="nonnegative"):
        rdd.randomSplit([1, -1])
    with pytest.raises(ValueError, match="Sum of weights must be positive"):
        rdd.randomSplit([0.0])
    with pytest.raises(AssertionError, match="Negative fraction"):
        rdd.sampleByKey(False, {1: -0.5})


def test_sample_by_key_takes_the_rate_of_each_key_and_fails_for_a_key_without_one(sc):
    rdd = sc.parallelize([(key, n) for n in range(1000) for key in "ab"], 4)
    counts = rdd.sampleByKey(False, {"a": 0.2, "b": 1.0}, 1).countByKey()
    assert 100 < counts["a"] < 300
    assert counts["b"] == 1000
    assert rdd.sampleByKey(True, {"a": 0.0, "b": 2.0}, 1).count() > 1500
    with pytest.raises(KeyError):
        rdd.sampleByKey(False, {"a": 0.2}).collect()


# --- Number of partitions ---


def test_coalesce_joins_neighbours_and_cannot_grow(sc):
    rdd = sc.parallelize(range(8), 8)
    assert rdd.coalesce(3).glom().collect() == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert rdd.coalesce(20).getNumPartitions() == 8
    for count in (0, -1):
        with pytest.raises(ValueError, match="Number of partitions must be positive"):
            rdd.coalesce(count)


@pytest.mark.parametrize(
    ("records", "slices", "targets"), [(1000, 20, 20), (1000, 1, 20), (10, 5, 10), (100, 50, 3), (12, 4, 3)]
)
def test_repartition_fills_all_partitions_evenly(records, slices, targets):
    sizes = [
        len(part)
        for part in InProcess().parallelize(range(records), slices).repartition(targets).glom().collect()
    ]
    assert len(sizes) == targets
    assert sum(sizes) == records
    assert max(sizes) - min(sizes) <= 1 + min(slices, targets) // 2


def test_repartition_is_the_same_each_time(sc):
    rdd = sc.parallelize(range(100), 7)
    assert rdd.repartition(5).glom().collect() == rdd.repartition(5).glom().collect()
    assert sorted(rdd.coalesce(5, shuffle=True).collect()) == list(range(100))
