"""A session for each test, under the seed that every executor has."""

import pytest

from tests.unit.rdd.inprocess import InProcess


@pytest.fixture
def sc():
    return InProcess()
