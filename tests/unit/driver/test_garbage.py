"""What the driver holds for jobs goes when the last job is over that could ask for it (BL-15)."""

from spark_ft.driver.garbage import Garbage
from spark_ft.ids import BlobId, HostId, JobId
from spark_ft.protocol.messages import BlockRef


def test_BL_15_nothing_goes_before_the_jobs_that_were_live_when_it_was_given_up() -> None:
    live: dict[JobId, object] = {JobId(1): None, JobId(2): None}
    gone: list[object] = []
    garbage = Garbage(live, gone.append, gone.append)
    block = BlockRef(HostId("driver"), "s", 0, b"k", 1)
    garbage.add(blobs=[BlobId(5)])
    del live[JobId(1)]
    garbage.collect()
    assert gone == []
    live[JobId(3)] = None  # later ones cannot reach it
    garbage.add(blocks=[block])
    del live[JobId(2)]
    garbage.collect()
    assert gone == [5]
    del live[JobId(3)]
    garbage.collect()
    garbage.collect()
    assert gone == [5, block]


def test_what_is_given_up_while_nothing_runs_goes_at_once() -> None:
    gone: list[object] = []
    garbage = Garbage({}, gone.append, gone.append)
    garbage.add(blobs=[BlobId(1), BlobId(2)])
    garbage.collect()
    assert gone == [1, 2]
