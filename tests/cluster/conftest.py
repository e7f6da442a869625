"""Contexts for fault tests, and the check after each of them that nothing is left behind."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster import faultlib


@pytest.fixture(autouse=True)
def a_terminal_program() -> Iterator[None]:
    """SIGINT means what it means to a program on a terminal.  Whoever is started in the background of a
    shell, as a CI job may be, has it ignored, and so have all its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """``spark.local.dir`` of this test's contexts."""
    path = faultlib.short_directory()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(tmp_path: Path, scratch: Path) -> Iterator[Callable[..., faultlib.Running]]:
    """``start(master, **settings) -> Running``; every context is stopped when the test ends."""
    running: list[faultlib.Running] = []

    def make(master: str = "local-cluster[3,1,512]", **settings: object) -> faultlib.Running:
        directory = tmp_path / f"app-{len(running)}"
        running.append(faultlib.start_context(directory, scratch, master, **settings))
        return running[-1]

    yield make
    for each in running:
        each.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(scratch: Path) -> Iterator[None]:
    """After the test: no context, no process, no scratch directory."""
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    from spark_ft import SparkContext

    live = SparkContext._active_spark_context
    if live is not None:
        live.stop()
    faultlib.assert_nothing_left(scratch, children)
    assert live is None, "the test left a context running"
