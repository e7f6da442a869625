"""Accumulators: tasks add, the driver reads, each update counts once."""

import gc
import pickle
import threading
import timeit

import cloudpickle
import pytest

from spark_ft import accumulators
from spark_ft.accumulators import (
    Accumulator,
    AccumulatorParam,
    begin_task,
    merge,
    new_accumulator,
    take_updates,
)
from spark_ft.errors import PySparkRuntimeError


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """Each test has a registry of its own, and a task side that has loaded nothing."""
    monkeypatch.setattr(accumulators, "_in_task", accumulators._InTask())


def in_task(payload, use):
    """Run ``use(*accumulators)`` as a task whose functions hold them; the updates it ends with."""
    begin_task()
    use(*pickle.loads(payload))
    return take_updates()


class Vector(AccumulatorParam):
    def zero(self, value):
        return [0.0] * len(value)

    def addInPlace(self, a, b):
        for i, x in enumerate(b):
            a[i] += x
        return a


class Raising(AccumulatorParam):
    def zero(self, value):
        return 0

    def addInPlace(self, a, b):
        if b == 13:
            raise ValueError("unlucky")
        return a + b


def test_updates_of_a_task_are_merged_into_the_driver_s_value():
    a = new_accumulator(5)
    payload = pickle.dumps((a,))
    for _ in range(3):
        updates = in_task(payload, lambda acc: [acc.add(i) for i in range(4)])
        assert merge(updates) == []
    assert a.value == 5 + 3 * 6


@pytest.mark.parametrize(("zero", "term", "total"), [(1, 2, 3), (0.5, 2, 2.5), (1j, 1, 1 + 1j), (True, 1, 2)])
def test_plain_numbers_need_no_param(zero, term, total):
    a = new_accumulator(zero)
    a += term
    assert a.value == total


@pytest.mark.parametrize("value", ["x", [], None])
def test_anything_else_does(value):
    with pytest.raises(TypeError, match="No default accumulator param for type"):
        new_accumulator(value)


def test_plus_equals_works_in_tasks_too():
    a = new_accumulator(0)
    payload = pickle.dumps((a,))

    def use(acc):
        acc += 2
        acc += 3

    merge(in_task(payload, use))
    assert a.value == 5


def test_the_bound_method_travels_too():
    a, b = new_accumulator(5), new_accumulator([0.0, 0.0], Vector())

    def use(add_number, add_vector):
        add_number(3)
        add_vector([1.0, 2.0])

    updates = in_task(cloudpickle.dumps((a.add, b.add)), use)
    assert merge(updates) == [] and (a.value, b.value) == (8, [1.0, 2.0])


def test_the_value_cannot_be_read_or_set_in_a_task():
    payload = pickle.dumps((new_accumulator(1), new_accumulator([1.0], Vector())))

    def use(*accs):
        for acc in accs:
            with pytest.raises(PySparkRuntimeError) as caught:
                _ = acc.value
            assert caught.value.getCondition() == "VALUE_NOT_ACCESSIBLE"
            with pytest.raises(PySparkRuntimeError):
                acc.value = 3

    assert in_task(payload, use) == ()


def test_a_param_s_zero_is_fresh_for_every_task():
    a = new_accumulator([1.0, 2.0], Vector())
    payload = pickle.dumps((a,))
    held = pickle.loads(payload)  # the functions stay loaded between tasks
    for _ in range(2):
        merge(in_task(payload, lambda acc: acc.add([10.0, 20.0])))
    assert a.value == [21.0, 42.0]
    assert held


def test_what_a_failed_task_added_is_forgotten():
    a, v = new_accumulator(0), new_accumulator([0.0], Vector())
    payload = pickle.dumps((a, v))
    begin_task()
    accs = pickle.loads(payload)
    accs[0].add(100)
    accs[1].add([100.0])  # and now it fails: nobody takes the updates
    merge(in_task(payload, lambda x, y: (x.add(1), y.add([1.0]))))
    assert (a.value, v.value) == (1, [1.0])


def test_functions_that_stay_loaded_count_each_task_for_itself():
    a = new_accumulator(0)
    begin_task()
    (loaded,) = pickle.loads(pickle.dumps((a,)))
    for expected in (1, 2):
        begin_task()
        loaded.add(expected)
        assert [pickle.loads(value) for _, value in take_updates()] == [expected]


def test_one_object_however_often_it_is_unpickled_in_a_process():
    payload = pickle.dumps(new_accumulator(0))
    begin_task()
    one, two = pickle.loads(payload), pickle.loads(payload)
    assert one is two


def test_an_accumulator_that_nothing_was_added_to_sends_nothing():
    payload = pickle.dumps((new_accumulator(3), new_accumulator([0.0], Vector())))
    assert in_task(payload, lambda *_: None) == ()


def test_an_accumulator_that_only_the_task_held_still_reports():
    a = new_accumulator(0)
    payload = pickle.dumps((a,))
    begin_task()
    pickle.loads(payload)[0].add(4)
    gc.collect()
    merge(take_updates())
    assert a.value == 4


def test_on_the_driver_it_unpickles_to_itself():
    a = new_accumulator(0)
    assert pickle.loads(pickle.dumps(a)) is a


def test_DR_12_a_param_that_raises_costs_its_own_update_only():
    bad, good = new_accumulator(0, Raising()), new_accumulator(0)
    payload = pickle.dumps((bad, good))
    updates = in_task(payload, lambda b, g: (b.add(1), g.add(1)))
    assert merge(updates) == []
    updates = ((bad.aid, pickle.dumps(13)), (good.aid, pickle.dumps(1)), (bad.aid, pickle.dumps(2)))
    failed = merge(updates)
    assert [(aid, str(error)) for aid, error in failed] == [(bad.aid, "unlucky")]
    assert (bad.value, good.value) == (3, 2)


def test_an_update_for_a_dropped_accumulator_is_nobody_s():
    assert merge([(10**9, b"not even a pickle")]) == []


def test_adding_on_the_driver_loses_nothing_against_a_merge():
    a = new_accumulator(0)
    one = ((a.aid, pickle.dumps(1)),)
    threads = [threading.Thread(target=lambda: [merge(one) for _ in range(2000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        a.add(1)
    for thread in threads:
        thread.join()
    assert a.value == 8000


def test_it_prints_as_pyspark_s_does():
    a = Accumulator(0, 7, accumulators.INT_ACCUMULATOR_PARAM)
    assert repr(a) == "Accumulator<id=0, value=7>" and str(a) == "7"


def test_an_add_in_a_task_costs_little_more_than_a_method_call():
    begin_task()
    acc = pickle.loads(pickle.dumps(new_accumulator(0)))
    method = min(timeit.repeat("f(1)", globals={"f": Plain().add}, number=20000, repeat=9))
    ours = min(timeit.repeat("f(1)", globals={"f": acc.add}, number=20000, repeat=9))
    assert ours < 3 * method


class Plain:
    def __init__(self):
        self.total = 0

    def add(self, term):
        self.total = term
