"""Total order over partitions."""

import random

import pytest

from spark_ft.rdd.sampling import reservoir

NUMBERS = [(n * 37) % 101 for n in range(101)]


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize(("slices", "targets"), [(1, 1), (4, 1), (2, 5), (7, 3)])
def test_partitions_and_records_within_them_are_in_order(sc, ascending, slices, targets):
    parts = sc.parallelize(NUMBERS, slices).sortBy(lambda x: x, ascending, targets).glom().collect()
    assert [x for part in parts for x in part] == sorted(NUMBERS, reverse=not ascending)
    assert len(parts) == targets


def test_all_output_partitions_are_used_for_101_keys_in_five(sc):
    rdd = sc.parallelize([(n, n) for n in NUMBERS], 2)
    sizes = [len(part) for part in rdd.sortByKey(numPartitions=5).glom().collect()]
    assert sorted(sizes) == [20, 20, 20, 20, 21]


def test_the_default_number_of_partitions_is_that_of_the_parent(sc):
    assert sc.parallelize(NUMBERS, 3).sortBy(lambda x: x).getNumPartitions() == 3


def test_sorting_nothing_gives_the_rdd_itself(sc):
    for empty in (sc.parallelize([], 3), sc.emptyRDD()):
        assert empty.sortByKey(numPartitions=2) is empty


def test_bounds_cost_one_job_and_a_single_partition_none(sc):
    rdd = sc.parallelize([(n, n) for n in NUMBERS], 2)
    rdd.sortByKey(numPartitions=1)
    assert sc.jobs == []
    rdd.sortByKey(numPartitions=5)
    assert len(sc.jobs) == 1


def test_an_error_in_the_parent_shows_at_the_call(sc):
    with pytest.raises(ZeroDivisionError):
        sc.parallelize([1, 0], 2).map(lambda x: 1 // x).sortBy(lambda x: x)


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("targets", [1, 3])
def test_equal_keys_stay_in_order_of_arrival(sc, ascending, targets):
    pairs = [(n % 3, n) for n in range(60)]
    ordered = sc.parallelize(pairs, 4).sortByKey(ascending, targets).collect()
    assert ordered == sorted(pairs, key=lambda pair: pair[0], reverse=not ascending)


def test_a_key_function_decides_both_bounds_and_order(sc):
    words = ["b", "A", "D", "c", "E", "f"] * 10
    rdd = sc.parallelize([(w, None) for w in words], 3)
    parts = rdd.sortByKey(numPartitions=3, keyfunc=str.lower).keys().glom().collect()
    assert [w for part in parts for w in part] == sorted(words, key=str.lower)
    assert all(parts)
    descending = rdd.sortByKey(False, 3, lambda w: w.lower()).keys().collect()
    assert descending == sorted(words, key=str.lower, reverse=True)


def test_a_skewed_parent_still_gives_even_partitions(sc):
    rdd = sc.parallelize(range(1000), 2).flatMap(lambda n: [n] * (20 if n < 500 else 1))
    sizes = [len(part) for part in rdd.sortBy(lambda x: x, True, 4).glom().collect()]
    assert min(sizes) > 0.5 * sum(sizes) / 4


def test_repartition_and_sort_within_partitions(sc):
    rdd = sc.parallelize([(0, 5), (3, 8), (2, 6), (0, 8), (3, 8), (1, 3)], 2)
    parts = rdd.repartitionAndSortWithinPartitions(2, lambda x: x % 2, True).glom().collect()
    assert parts == [[(0, 5), (0, 8), (2, 6)], [(1, 3), (3, 8), (3, 8)]]
    down = rdd.repartitionAndSortWithinPartitions(2, lambda x: x % 2, True, lambda k: -k).glom().collect()
    assert down == [[(2, 6), (0, 5), (0, 8)], [(3, 8), (3, 8), (1, 3)]]


def test_a_sort_over_a_placed_parent_needs_no_shuffle(sc):
    placed = sc.parallelize([(n, n) for n in NUMBERS], 3).partitionBy(2)
    tracked = len(sc.tracked)
    parts = placed.repartitionAndSortWithinPartitions(2).keys().glom().collect()
    assert len(sc.tracked) == tracked
    assert parts == [[n for n in range(101) if n % 2 == parity] for parity in (0, 1)]


# --- The sample behind the bounds ---


@pytest.mark.parametrize("size", [0, 1, 10, 1000])
@pytest.mark.parametrize("total", [0, 1, 9, 10, 11, 5000])
def test_a_reservoir_counts_all_and_keeps_as_many_as_asked(size, total):
    chosen, counted = reservoir(iter(range(total)), size, random.Random(1))
    assert len(chosen) == len(set(chosen)) == min(size, total)
    if size:
        assert counted == total


def test_a_reservoir_draws_evenly():
    hits = [0] * 50
    for seed in range(2000):
        for n in reservoir(iter(range(50)), 10, random.Random(seed))[0]:
            hits[n] += 1
    assert all(300 < times < 500 for times in hits)  # 400 expected, deviation 18
