"""Ten thousand writers of stores killed in mid-write (`make chaos`); tests/cluster has two hundred."""

import os
from pathlib import Path

import pytest

from tests.cluster import writer_kills

KILLS = 10_000


@pytest.mark.chaos
def test_ST_7_ten_thousand_writers_killed_at_any_point_leave_whole_outputs(tmp_path: Path) -> None:
    seed = int(os.environ.get("SPARK_FT_CHAOS_SEED") or 0)
    told = writer_kills.in_a_process(tmp_path, KILLS, seed)
    print(told)
    assert told["kills"] == KILLS and told["committed"] > KILLS and told["torn"] > KILLS // 10
