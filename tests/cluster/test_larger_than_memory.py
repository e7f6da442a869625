"""200 MB are sorted, grouped and joined in executors that hold 48 MB above an idle one."""

from collections.abc import Callable

import pytest

from tests.big.spilling import CHECKS, MIB, Load, run_within
from tests.cluster import faultlib


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(CHECKS))
def test_200_megabytes_pass_through_executors_of_48(
    what: str, start: Callable[..., faultlib.Running]
) -> None:
    running = start("local[2]", spark_executor_memory="48m")
    print(run_within(running, what, Load(200_000, 8), 48 * MIB))
