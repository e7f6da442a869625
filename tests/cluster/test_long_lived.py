"""Applications that live long stay small: what is no longer referred to is held by nobody (BL-15, ST-17)."""

import shutil
from pathlib import Path

from spark_ft import SparkContext
from tests.cluster import long_lived

ROUNDS = 30


def test_BL_15_ST_17_hundreds_of_jobs_leave_nothing_of_themselves(scratch: Path) -> None:
    held: list[tuple[int, ...]] = []

    def look(_: str) -> None:
        sc = SparkContext._active_spark_context
        assert sc is not None and sc._driver is not None
        driver, core = sc._driver, sc._driver._core
        held.append((len(driver._blobs), len(driver._shuffle_blobs), len(core.dag.map_stages)))

    early, late = long_lived.live(scratch, ROUNDS, look)
    assert long_lived.grown(early, late, ROUNDS * long_lived.JOBS_A_ROUND) == []
    assert len(held) >= 10
    assert all(max(counts) <= 8 for counts in held), f"functions and shuffles that nothing refers to: {held}"
    assert sorted(path.name for path in scratch.iterdir()) == ["checkpoints", "events"]
    (root,) = (scratch / "checkpoints").iterdir()
    assert len(list(root.iterdir())) <= 1, "checkpoints that nothing reads"
    shutil.rmtree(scratch / "checkpoints")
    shutil.rmtree(scratch / "events")
