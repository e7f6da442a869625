"""Sums, moments, histograms; StatCounter."""

import math
import statistics

import numpy
import pytest

from spark_ft.statcounter import StatCounter

NUMBERS = [1.0, 2.0, 3.5, -4.0, 10.25, 0.5, 7.0]


def test_sum_starts_from_zero(sc):
    assert sc.parallelize([1, 2, 3]).sum() == 6
    assert (sc.parallelize([], 2).sum(), sc.emptyRDD().sum()) == (0, 0)
    assert sc.parallelize([numpy.array([1, 2]), numpy.array([3, 4])], 2).sum().tolist() == [4, 6]


@pytest.mark.parametrize("slices", [1, 3, 20])
def test_moments_agree_with_the_statistics_module(sc, slices):
    rdd = sc.parallelize(NUMBERS, slices)
    assert rdd.mean() == pytest.approx(statistics.mean(NUMBERS))
    assert rdd.variance() == pytest.approx(statistics.pvariance(NUMBERS))
    assert rdd.stdev() == pytest.approx(statistics.pstdev(NUMBERS))
    assert rdd.sampleVariance() == pytest.approx(statistics.variance(NUMBERS))
    assert rdd.sampleStdev() == pytest.approx(statistics.stdev(NUMBERS))
    stats = rdd.stats()
    assert (stats.count(), stats.max(), stats.min()) == (7, 10.25, -4.0)
    assert stats.sum() == pytest.approx(sum(NUMBERS))


def test_moments_of_nothing(sc):
    hollow = sc.parallelize([], 2)
    assert hollow.mean() == 0.0
    assert math.isnan(hollow.variance())
    assert str(hollow.stats()) == "(count: 0, mean: 0.0, stdev: nan, max: -inf, min: inf)"
    for action in ("mean", "variance", "stats"):
        with pytest.raises(ValueError, match=r"Can not reduce\(\) empty RDD"):
            getattr(sc.emptyRDD(), action)()


def test_a_stat_counter_prints_plain_floats():
    assert (
        str(StatCounter([1, 2, 3])) == "(count: 3, mean: 2.0, stdev: 0.816496580927726, max: 3.0, min: 1.0)"
    )


def test_stat_counters_merge_in_any_sizes_and_with_themselves():
    for left, right in ((1, 6), (6, 1), (0, 7), (7, 0), (3, 4)):
        merged = StatCounter(NUMBERS[:left]).mergeStats(StatCounter(NUMBERS[len(NUMBERS) - right :]))
        whole = StatCounter(NUMBERS[:left] + NUMBERS[len(NUMBERS) - right :])
        assert merged.asDict() == pytest.approx(whole.asDict())
    twice = StatCounter(NUMBERS)
    twice.mergeStats(twice)
    assert twice.asDict() == pytest.approx(StatCounter(NUMBERS * 2).asDict())
    big = StatCounter(range(1000)).mergeStats(StatCounter([5]))
    assert big.asDict() == pytest.approx(StatCounter([*range(1000), 5]).asDict())
    with pytest.raises(TypeError, match="Can only merge StatCounter"):
        twice.mergeStats([1])


def test_a_copy_is_independent():
    counter = StatCounter([1.0])
    copy = counter.copy()
    copy.merge(5)
    assert (counter.count(), copy.count()) == (1, 2)


def test_the_dict_holds_the_sample_figures_unless_sample_is_asked_for():
    counter = StatCounter(NUMBERS)
    assert counter.asDict()["stdev"] == counter.sampleStdev()
    assert counter.asDict()["variance"] == counter.sampleVariance()
    assert counter.asDict(True)["stdev"] == counter.stdev()
    assert counter.asDict(True)["variance"] == counter.variance()
    assert sorted(counter.asDict()) == ["count", "max", "mean", "min", "stdev", "sum", "variance"]


def test_nan_shows_in_every_figure():
    counter = StatCounter([1.0, math.nan, 2.0])
    assert all(math.isnan(figure) for name, figure in counter.asDict().items() if name != "count")


def test_stats_of_arrays_go_element_by_element(sc):
    arrays = [numpy.array([1.0, 10.0]), numpy.array([3.0, 30.0])]
    stats = sc.parallelize(arrays, 2).stats()
    assert stats.mean().tolist() == [2.0, 20.0]
    assert stats.max().tolist() == [3.0, 30.0]
    assert stats.stdev().tolist() == [1.0, 10.0]


# --- Histogram ---


def test_even_buckets_between_min_and_max(sc):
    rdd = sc.parallelize(range(51), 3)
    assert rdd.histogram(2) == ([0, 25, 50], [25, 26])
    assert rdd.histogram([0, 5, 25, 50]) == ([0, 5, 25, 50], [5, 20, 26])
    assert rdd.histogram([0, 15, 30, 45, 60]) == ([0, 15, 30, 45, 60], [15, 15, 15, 6])
    assert sc.parallelize([1, 2, 3, 4], 2).histogram(3) == ([1, 2, 3, 4], [1, 1, 2])
    assert sc.parallelize([1, 5]).histogram(3)[0] == [1, 1 + 4 / 3, 1 + 2 * 4 / 3, 5]


def test_strings_are_counted_between_given_bounds_only(sc):
    rdd = sc.parallelize(["ab", "ac", "b", "bd", "ef"])
    assert rdd.histogram(("a", "b", "c")) == (("a", "b", "c"), [2, 2])
    assert rdd.histogram(1) == (["ab", "ef"], [5])
    with pytest.raises(TypeError, match="non-number"):
        rdd.histogram(2)


def test_missing_values_and_values_outside_are_left_out(sc):
    rdd = sc.parallelize([None, math.nan, 0, 10, 20, -1, 21])
    assert rdd.histogram([0, 10, 20])[1] == [1, 2]
    assert rdd.histogram(1) == ([-1, 21], [5])


def test_one_value_is_one_bucket(sc):
    assert sc.parallelize([3, 3]).histogram(10) == ([3, 3], [2])


@pytest.mark.parametrize(
    "buckets", [0, -2, [], [1], [2, 1], [1, 1, 2], [1, None], [math.nan, 1], [0, math.nan]]
)
def test_bad_buckets_are_refused(sc, buckets):
    with pytest.raises(ValueError, match="bucket"):
        sc.parallelize([1, 2]).histogram(buckets)


def test_other_refusals(sc):
    with pytest.raises(TypeError, match="buckets should be"):
        sc.parallelize([1]).histogram(2.5)
    with pytest.raises(ValueError, match="infinite"):
        sc.parallelize([-math.inf, 1.0]).histogram(2)
    with pytest.raises(ValueError, match="empty RDD"):
        sc.parallelize([]).histogram(2)
    assert sc.parallelize([]).histogram([0, 10])[1] == [0]
