"""Errors that travel arrive as what they were."""

import pickle

import pytest

from spark_ft import errors
from spark_ft.ids import Generation, HostId, ShuffleId
from spark_ft.protocol.messages import FetchFailed


def arrived(error: errors.PySparkException) -> errors.PySparkException:
    return pickle.loads(pickle.dumps(error))


def test_a_job_error_keeps_its_fields():
    error = errors.TaskFailed("it failed", "POISON_TASK")
    error.partition, error.cause_type = 3, "ZeroDivisionError"
    there = arrived(error)
    assert type(there) is errors.TaskFailed and isinstance(there, RuntimeError)
    assert str(there) == "[POISON_TASK] it failed" and there.getCondition() == "POISON_TASK"
    assert (there.partition, there.cause_type) == (3, "ZeroDivisionError")


def test_errors_with_constructors_of_their_own_travel_too():
    failed = FetchFailed(ShuffleId(1), Generation(0), 2, HostId("h"), "store", "missing", "gone")
    there = arrived(errors.FetchError(failed))
    assert isinstance(there, errors.FetchError) and there.failed == failed
    full = arrived(errors.StoreFull("no room", 5, 3))
    assert isinstance(full, errors.StoreFull) and (full.needed_bytes, full.free_bytes) == (5, 3)


KINDS = [errors.PySparkValueError, errors.PySparkPicklingError, errors.SettingsError]


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_fills_its_parameters_in_and_keeps_them(kind):
    error = kind(errorClass="VALUE_NOT_ACCESSIBLE", messageParameters={"value": "x"})
    there = arrived(error)
    assert str(there) == "[VALUE_NOT_ACCESSIBLE] Value `x` cannot be accessed inside tasks."
    assert there.getMessageParameters() == {"value": "x"}
