"""An executor on which tasks fail that succeed elsewhere is kept from tasks until a probe ends well."""

import os
from operator import add

from tests.cluster.faultlib import wait_until


def test_EX_14_a_sick_executor_is_excluded_by_evidence_and_healed_it_is_let_in_by_a_probe(
    start, tmp_path
) -> None:
    running = start("local-cluster[3,1,256]", spark_excludeOnFailure_timeout="1s")
    running.log.wait_for("executor_added", 3)
    sick_pid, sick = running.executor_pids()[0], tmp_path / "sick"
    sick.touch()

    def work(x):
        if os.getpid() == sick_pid and sick.exists():
            raise OSError("no such device")
        return x % 5, x

    def sums():
        pairs = running.sc.parallelize(range(60), 30).map(work)
        return sorted(pairs.reduceByKey(add, 3).collect())

    expected = [(key, sum(range(key, 60, 5))) for key in range(5)]

    def until_excluded():
        assert sums() == expected
        return running.log.of("executor_excluded")

    (excluded,) = wait_until(until_excluded, what="two proved tasks")
    (executor,) = (e["executor"] for e in running.log.of("executor_added", pid=sick_pid))
    assert excluded["executor"] == executor and len(excluded["evidence"]) == 2
    assert "OSError: no such device" in excluded["why"]
    sick.unlink()

    def until_let_in():
        assert sums() == expected
        return running.log.of("executor_readmitted")

    wait_until(until_let_in, 10.0, what="a probe that ends well")
    events = running.events()
    (out,) = (i for i, e in enumerate(events) if e["event"] == "executor_excluded")
    back = next(i for i, e in enumerate(events) if e["event"] == "executor_readmitted")
    there = [e for e in events[out:back] if e["event"] == "task_start" and e["executor"] == executor]
    assert len(there) == 1, "one task, the probe, between exclusion and readmission"
    assert not running.log.of("executor_lost"), "nobody is killed for it"
