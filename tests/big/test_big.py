"""``make big``: 2 GB of 1 KB records in executors of 256 MB."""

import pytest

from tests.big.spilling import CHECKS, MIB, Load, run_within
from tests.cluster import faultlib
from tests.cluster.conftest import nothing_is_left, scratch, start  # noqa: F401 - fixtures

GIGABYTES = 2


@pytest.mark.big
@pytest.mark.parametrize("what", sorted(CHECKS))
def test_two_gigabytes_pass_through_executors_of_256_megabytes(what, start) -> None:  # noqa: F811
    running: faultlib.Running = start("local[2]", spark_executor_memory="256m")
    print(run_within(running, what, Load(GIGABYTES * 1_000_000, 32), 256 * MIB))
