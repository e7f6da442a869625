"""What every suite shares: one hash seed, Hypothesis profiles, and no success without a test.

Profiles (environment variable HYPOTHESIS_PROFILE): ``test`` is quick and the same every time; ``sim``
draws many more examples, new ones every time unless ``--hypothesis-seed`` is given.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import hypothesis.configuration
import pytest

from tests import objectstore

# Hypothesis keeps what it learns about the source tree somewhere: not in the checkout.
_HOME = Path(tempfile.gettempdir()) / f"spark-ft-hypothesis-{os.getuid()}"
hypothesis.configuration.set_hypothesis_home_dir(_HOME)

_CALM = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile(
    "test",
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=_CALM,
)
hypothesis.settings.register_profile(
    "sim",
    max_examples=int(os.environ.get("SPARK_FT_SIM_EXAMPLES", "2000")),
    stateful_step_count=80,
    deadline=None,
    print_blob=True,
    suppress_health_check=_CALM,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# The chosen marks run only when they are asked for.
_APART = ("big", "chaos")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start over under a fixed hash seed when there is none: only then does the driver, which is this
    process, place keys where executors do, and a failure comes again."""
    if "PYTHONHASHSEED" not in os.environ:
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()  # or all that is printed would go into its files
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.getoption("-m") or ""
    apart = [mark for mark in _APART if mark not in asked]
    left_out = [item for item in items if any(map(item.get_closest_marker, apart))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which nothing passed is no success, whatever was skipped or left out."""
    if exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and not reporter.stats.get("passed"):
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The endpoint of an S3 server on loopback; ``s3:`` URLs mean it from then on, in child processes too."""
    yield from objectstore.serve()


def pytest_report_header() -> str:
    return f"hash seed {os.environ.get('PYTHONHASHSEED', 'random')}, python {sys.version.split()[0]}"
