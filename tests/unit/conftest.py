"""Unit tests run what executors run, in this process, so they say what executors are started with."""

import pytest


@pytest.fixture(autouse=True)
def a_declared_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one process any seed will do; ``portable_hash`` only wants it not to be left to chance."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
