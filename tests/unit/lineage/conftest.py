"""Keys may be hashed in this process: the "tasks" of these tests all run right here."""

import pytest


@pytest.fixture(autouse=True)
def any_seed_will_do(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
