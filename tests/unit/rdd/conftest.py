"""A session for each test, in a process that may hash text: its "tasks" all run right here."""

import pytest

from tests.unit.rdd.inprocess import InProcess


@pytest.fixture(autouse=True)
def any_seed_will_do(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")


@pytest.fixture
def sc():
    return InProcess()
