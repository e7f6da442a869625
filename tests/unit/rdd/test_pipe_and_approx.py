"""Programs in the pipeline; approximate answers."""

import pickle
from itertools import count

import pytest

from spark_ft.errors import PySparkRuntimeError


def test_records_go_through_a_program_as_lines(sc):
    assert sc.parallelize(["1", "2", "é", 4, "x\n"], 2).pipe("cat").collect() == ["1", "2", "é", "4", "x"]
    assert sc.parallelize(range(100), 3).pipe("wc -l").map(int).collect() == [33, 33, 34]


def test_the_environment_is_the_given_one_and_nothing_else(sc, monkeypatch):
    monkeypatch.setenv("VISIBLE", "no")
    assert sc.parallelize([1], 1).pipe("/usr/bin/env").collect() == []
    assert sc.parallelize([1], 1).pipe("/usr/bin/env", {"A": "b"}).collect() == ["A=b"]


def test_an_exit_code_matters_only_when_it_is_asked_for(sc):
    rdd = sc.parallelize([1], 1)
    command = "sh -c 'cat; exit 3'"
    assert rdd.pipe(command).collect() == ["1"]
    with pytest.raises(PySparkRuntimeError, match="exited with error code 3"):
        rdd.pipe(command, checkCode=True).collect()


def test_a_program_may_leave_its_input_unread_and_its_output_may_be_left_unread(sc):
    many = sc.parallelize([1], 1).flatMap(lambda _: ("x" * 100 for _ in range(100_000)))
    assert many.pipe("head -n 1").collect() == ["x" * 100]
    endless = sc.parallelize([1], 1).flatMap(lambda _: count())
    assert endless.pipe("cat").take(2) == ["0", "1"]


def test_an_error_among_the_records_fails_the_task(sc):
    with pytest.raises(ZeroDivisionError):
        sc.parallelize([1, 0], 1).map(lambda x: 1 // x).pipe("cat").collect()


@pytest.mark.parametrize("distinct", [20, 1000, 100_000])
def test_distinct_counts_are_about_right(sc, distinct):
    rdd = sc.parallelize(range(distinct), 4).map(lambda n: n % distinct)
    assert abs(rdd.countApproxDistinct(0.03) - distinct) <= 0.05 * distinct
    words = rdd.map(lambda n: f"word {n}").union(rdd.map(lambda n: f"word {n}"))
    assert abs(words.countApproxDistinct(0.01) - distinct) <= 0.05 * distinct


def test_twenty_are_counted_between_eighteen_and_twenty_two(sc):
    for make in (float, str, lambda n: (n, -n), int):
        assert 18 < sc.parallelize([make(n % 20) for n in range(1000)], 4).countApproxDistinct() < 22
    assert sc.emptyRDD().countApproxDistinct() == 0


def test_too_much_precision_is_refused(sc):
    with pytest.raises(ValueError, match=r"relativeSD should be greater than 0\.000017"):
        sc.parallelize([1]).countApproxDistinct(0.00000001)


def test_approximate_sums_are_exact_once_all_tasks_have_ended(sc):
    rdd = sc.parallelize(range(1000), 10)
    assert rdd.countApprox(1000) == 1000
    total = rdd.sumApprox(1000)
    assert (total, total.mean, total.low, total.high, total.confidence) == (499500.0,) * 4 + (1.0,)
    assert rdd.meanApprox(1000) == pytest.approx(499.5)
    assert pickle.loads(pickle.dumps(total)).confidence == 1.0
