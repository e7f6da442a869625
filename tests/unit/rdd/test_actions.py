"""Actions: their answers, their errors, and what they do not compute."""

import operator

import pytest

from spark_ft.rdd.tasks import count_records, fresh
from tests.unit.rdd.inprocess import InProcess


@pytest.fixture
def ten(sc):
    return sc.parallelize(range(10), 4)


@pytest.fixture
def hollow(sc):
    return sc.parallelize([], 3)


def partitions_of(sc):
    return [partitions for _, partitions in sc.jobs]


def test_collect_goes_by_partition_index(ten):
    assert ten.collect() == list(range(10))


@pytest.mark.parametrize(
    "records", [list(range(7)), (x for x in range(7)), range(7), tuple(range(7)), {*range(7)}]
)
def test_counting_agrees_with_every_kind_of_iterator(records):
    assert count_records(0, iter(records)) == 7


def test_counting_what_is_left_of_an_iterator():
    records = iter([1, 2, 3])
    next(records)
    assert count_records(0, records) == 2


def test_first_and_is_empty(sc, ten, hollow):
    assert ten.first() == 0
    assert (ten.isEmpty(), hollow.isEmpty(), sc.emptyRDD().isEmpty()) == (False, True, True)
    for empty in (hollow, sc.emptyRDD()):
        with pytest.raises(ValueError, match="RDD is empty"):
            empty.first()


# --- take ---


def test_take_asks_one_partition_and_then_four_times_as_many(sc):
    rdd = sc.parallelize([], 99).union(sc.parallelize([1, 2], 1))
    assert rdd.take(1) == [1]
    assert [len(partitions) for partitions in partitions_of(sc)] == [1, 4, 20, 75]


def test_take_does_not_compute_what_it_does_not_need(sc, ten):
    assert ten.take(2) == [0, 1]
    assert partitions_of(sc) == [[0]]
    sc.jobs.clear()
    assert ten.take(6) == [0, 1, 2, 3, 4, 5]
    assert partitions_of(sc) == [[0], [1, 2, 3]]


@pytest.mark.parametrize(("num", "expected"), [(0, []), (-1, []), (99, list(range(10)))])
def test_take_of_nothing_and_of_too_much(sc, ten, num, expected):
    assert ten.take(num) == expected
    assert sc.emptyRDD().take(num) == []


def test_take_stops_pulling_inside_a_partition(sc):
    def once(it):
        yield next(it)
        raise AssertionError("pulled too far")

    assert sc.parallelize(range(4), 2).mapPartitions(once).take(1) == [0]


def test_a_local_iterator_computes_a_partition_when_it_is_asked_for(sc, ten):
    records = ten.toLocalIterator()
    assert partitions_of(sc) == []
    assert [next(records), next(records)] == [0, 1]
    assert partitions_of(sc) == [[0]]
    assert list(records) == list(range(2, 10))
    assert list(ten.toLocalIterator(prefetchPartitions=True)) == list(range(10))


# --- Reduced to one value ---


def test_reduce_goes_by_partition_order(sc, hollow):
    assert sc.parallelize("abcdefg", 3).reduce(operator.add) == "abcdefg"
    assert sc.parallelize([1, 2], 5).reduce(operator.add) == 3  # some partitions are empty
    for empty in (hollow, sc.emptyRDD()):
        for action in (
            lambda rdd: rdd.reduce(operator.add), lambda rdd: rdd.max(), lambda rdd: rdd.min(key=abs),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"Can not reduce\(\) empty RDD"):
                action(empty)


def test_a_zero_enters_once_a_partition_and_once_on_the_driver(sc):
    rdd = sc.parallelize([1, 2, 3], 3)
    assert rdd.fold(1, operator.add) == 10
    assert rdd.treeAggregate(1, operator.add, operator.add) == 9
    count = rdd.aggregate((0, 0), lambda a, x: (a[0] + x, a[1] + 1), lambda a, b: (a[0] + b[0], a[1] + b[1]))
    assert count == (6, 3)
    assert sc.emptyRDD().fold(7, operator.add) == 7
    assert sc.emptyRDD().treeAggregate(7, operator.add, operator.add) == 7


def test_a_mutable_zero_leaks_neither_between_partitions_nor_between_jobs(sc):
    def add(values, value):
        values.append(value)
        return values

    zero = []
    for _ in range(2):
        assert sc.parallelize([1, 2, 3, 4], 2).aggregate(zero, add, operator.iadd) == [1, 2, 3, 4]
    assert zero == []


@pytest.mark.parametrize("zero", [0, 1.5, "text", None, (1, "a"), frozenset([1])])
def test_an_immutable_zero_is_not_copied(zero):
    assert fresh(zero) is zero


@pytest.mark.parametrize("zero", [[], {}, set(), ([],), [[1]]])
def test_a_mutable_zero_is_copied(zero):
    assert fresh(zero) == zero
    assert fresh(zero) is not zero


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
@pytest.mark.parametrize("slices", [1, 4, 37])
def test_tree_actions_agree_with_flat_ones_at_every_depth(sc, depth, slices):
    rdd = sc.parallelize(range(-5, 5), slices)
    assert rdd.treeReduce(operator.add, depth) == -5
    assert rdd.treeAggregate(0, operator.add, operator.add, depth) == -5


def test_tree_actions_refuse_no_depth_and_no_records(sc, ten, hollow):
    for action in (
        lambda: ten.treeReduce(max, 0), lambda: ten.treeAggregate(0, max, max, 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Depth cannot be smaller than 1 but got 0"):
            action()
    for empty in (hollow, sc.emptyRDD()):
        with pytest.raises(ValueError, match="Cannot reduce empty RDD"):
            empty.treeReduce(operator.add)


def test_max_and_min_give_the_first_of_equals(sc):
    rdd = sc.parallelize(["bb", "a", "cc", "d"], 3)
    assert (rdd.max(), rdd.min()) == ("d", "a")
    assert (rdd.max(key=len), rdd.min(key=len)) == ("bb", "a")


# --- Ordered and random choices ---


def test_top_and_take_ordered(sc):
    rdd = sc.parallelize([10, 1, 2, 9, 3, 4, 5, 6, 7], 2)
    assert rdd.top(3) == [10, 9, 7]
    assert rdd.top(3, key=lambda x: -x) == rdd.takeOrdered(3) == [1, 2, 3]
    assert rdd.takeOrdered(6, key=lambda x: -x) == [10, 9, 7, 6, 5, 4]
    assert rdd.top(99) == sorted(rdd.collect(), reverse=True)


def test_top_and_take_ordered_of_nothing(sc, ten, hollow):
    assert (ten.top(0), ten.top(-1), ten.takeOrdered(0), hollow.top(2), hollow.takeOrdered(2)) == ([],) * 5
    assert sc.emptyRDD().takeOrdered(3) == []
    with pytest.raises(ValueError, match="top N cannot be negative"):
        ten.takeOrdered(-1)
    with pytest.raises(ValueError, match=r"Can not reduce\(\) empty RDD"):
        sc.emptyRDD().top(3)


def test_take_sample_draws_what_pyspark_draws(ten):
    assert ten.takeSample(False, 3, 1) == [6, 8, 9]
    assert ten.takeSample(True, 5, 1) == [6, 0, 3, 7, 8]
    assert ten.takeSample(False, 20, 1) == [6, 8, 9, 7, 5, 3, 0, 4, 1, 2]


def test_take_sample_has_the_exact_size(sc, ten):
    for seed in range(20):
        assert len(set(ten.takeSample(False, 5, seed))) == 5
        assert len(ten.takeSample(True, 20, seed)) == 20
    assert len(ten.takeSample(False, 4)) == 4
    assert ten.takeSample(True, 0, 1) == sc.emptyRDD().takeSample(False, 3) == []
    with pytest.raises(ValueError, match="Sample size cannot be negative"):
        ten.takeSample(False, -1)


# --- By key ---


def test_lookup_without_a_partitioner_asks_all_partitions(sc):
    rdd = sc.parallelize([("a", 1), ("b", 2), ("a", 3)], 2)
    assert rdd.lookup("a") == [1, 3]
    assert partitions_of(sc) == [[0, 1]]


def test_lookup_of_an_int_runs_one_task_when_keys_are_placed(sc):
    placed = sc.parallelize([(n, -n) for n in range(100)], 3).partitionBy(7)
    sc.jobs.clear()
    assert (placed.lookup(12), placed.lookup(1000)) == ([-12], [])
    assert partitions_of(sc) == [[5], [6]]


def test_lookup_asks_a_task_where_any_other_key_lives(sc):
    placed = sc.parallelize([(str(n), n) for n in range(100)], 3).partitionBy(7)
    sc.jobs.clear()
    assert placed.lookup("42") == [42]
    assert all(len(partitions) == 1 for partitions in partitions_of(sc))
    assert len(sc.jobs) <= 2


def test_lookup_with_a_placement_of_ones_own(sc):
    placed = sc.parallelize([(n, -n) for n in range(10)], 2).partitionBy(4, lambda key: -key)
    assert [placed.lookup(n) for n in range(4)] == [[0], [-1], [-2], [-3]]


def test_the_driver_never_calls_a_partition_function(sc):
    calls = []

    def place(key):
        calls.append(key)
        return 0

    placed = sc.parallelize([("k", 1)], 2).partitionBy(2, place)
    assert placed.lookup("k") == [1]
    assert calls.count("k") <= 1  # in the map side's one process here; tasks have copies of their own


def test_dicts_of_pairs(sc):
    rdd = sc.parallelize([("a", 1), ("b", 1), ("a", 2)], 2)
    assert rdd.collectAsMap() == {"a": 2, "b": 1}
    assert rdd.countByKey() == {"a": 2, "b": 1}
    assert rdd.countByValue()[("a", 1)] == 1
    assert rdd.countByKey()["never"] == 0
    assert rdd.reduceByKeyLocally(operator.add) == {"a": 3, "b": 1}


def test_counts_of_nothing(sc, hollow):
    assert (hollow.countByValue(), hollow.countByKey(), hollow.reduceByKeyLocally(max)) == ({}, {}, {})
    for action in (
        lambda rdd: rdd.countByValue(), lambda rdd: rdd.countByKey(), lambda rdd: rdd.reduceByKeyLocally(max),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"Can not reduce\(\) empty RDD"):
            action(sc.emptyRDD())


# --- For each ---


def test_foreach_calls_the_function_with_every_record_and_answers_none(tmp_path, ten):
    def write(record, folder=str(tmp_path)):
        open(f"{folder}/{record}", "w").close()

    assert ten.foreach(write) is None
    assert {path.name for path in tmp_path.iterdir()} == {str(n) for n in range(10)}


def test_foreach_partition_drains_what_the_function_returns(tmp_path, ten):
    def write(records, folder=str(tmp_path)):
        for record in records:
            open(f"{folder}/{record}", "w").close()
            yield

    assert ten.foreachPartition(write) is None
    assert len(list(tmp_path.iterdir())) == 10
    ten.foreachPartition(lambda records: None)
    ten.foreachPartition(lambda records: 5)


def test_a_job_group_collect_warns():
    class Labelled(InProcess):
        def setJobGroup(self, *args):
            self.group = args

    sc = Labelled()
    with pytest.warns(FutureWarning):
        assert sc.parallelize([1]).collectWithJobGroup("id", "text") == [1]
    assert sc.group == ("id", "text", False)
