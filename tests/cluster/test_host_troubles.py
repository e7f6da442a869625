"""A host has no more files, or its disk fails: that is nobody else's fault, and others go on."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 400
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


def few_files(executor: faultlib.Event, run: Path) -> None:
    """Not one file more than it keeps open may this executor open.  What it opens for a moment only when it
    has been welcomed would be room for another, or its end; whatever else is open just now is looked for."""
    pid, ready = executor["pid"], run / f"{executor['executor']}.ready"
    free: list[int] = []

    def has() -> dict[int, str]:
        found = {}
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        return found

    def looked() -> bool:
        free.append(min(set(range(len(open := has()) + 1)) - open.keys()))
        return len(free) == 20

    wait_until(lambda: ready.exists() and str(ready) not in has().values(), what="the end of its start")
    wait_until(looked, what="twenty looks")
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(free), hard))


def assert_only_the_host_was_blamed(running: faultlib.Running, host: str, condition: str, blame: str) -> None:
    """What failed there ran elsewhere, once each, and nothing else ran twice."""
    ends = [end for end in running.log.of("task_end") if faultlib.reason(end) == "HostError"]
    assert ends and {end["blame"] for end in ends} == {blame}
    told = {(error["host"], error["condition"]) for error in running.log.of("host_error")}
    assert told == {(host, condition)}
    assert sum(faultlib.redone(running.events()).values()) == len(ends)


def test_WK_9_a_host_without_files_to_spare_is_backed_off_from_and_costs_no_try(start, tmp_path) -> None:
    running = start("local-cluster[3,1,256]", spark_task_maxFailures=1, spark_speculation=False)
    added = running.log.wait_for("executor_added", 3)
    (poor,) = [event for event in added if event["host"] == "host-1"]
    few_files(poor, running.sc._driver.scratch / "hosts" / "host-1" / "run")
    share = Gate(tmp_path / "gate").share(2)  # whoever can open a file of it
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(share)
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    assert Action(lambda: sorted(sums.collect())).result() == SUMS
    assert_only_the_host_was_blamed(running, "host-1", "HOST_EXHAUSTED", "host")
    assert not running.log.of("executor_lost")


def _mounted(path: Path, *options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("trouble", ["no inodes", "no directory"])
def test_ST_15_where_no_file_can_be_made_is_no_place_for_map_tasks(trouble, start, tmp_path) -> None:
    running = start("local-cluster[3,1,256]", spark_task_maxFailures=1, spark_speculation=False)
    running.log.wait_for("executor_added", 3)
    stores = running.sc._driver.scratch / "hosts" / "host-1" / "stores"
    stores.mkdir(exist_ok=True)
    mounted = trouble == "no inodes" and _mounted(stores, "size=8m", "nr_inodes=2")
    if not mounted:  # nobody may mount here, or that is the trouble
        shutil.rmtree(stores)
        stores.touch()
    try:
        share = Gate(tmp_path / "gate").share(3)
        numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(share)
        sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
        assert Action(lambda: sorted(sums.collect())).result() == SUMS
        condition = "STORAGE_FULL" if mounted else "STORE_NOT_WRITABLE"
        assert_only_the_host_was_blamed(running, "host-1", condition, "host")
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(stores)], check=True)


def test_ST_14_a_write_that_the_disk_refuses_is_blamed_on_storage_and_done_elsewhere(start, tmp_path) -> None:
    once = tmp_path / "once"
    running = start(
        "local-cluster[2,1,256]", spark_task_maxFailures=1, spark_ft_failpoints=f"store.write=io!{once}"
    )
    running.log.wait_for("executor_added", 2)
    share = Gate(tmp_path / "gate").share(2)
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(share)
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    assert Action(lambda: sorted(sums.collect())).result() == SUMS
    assert once.exists(), "no write has failed"
    (error,) = running.log.of("host_error")
    assert_only_the_host_was_blamed(running, error["host"], "STORAGE_ERROR", "storage")


def test_ST_14_a_read_that_the_disk_refuses_costs_the_output_it_was_of(start, tmp_path) -> None:
    once = tmp_path / "once"
    running = start("local[2]", spark_task_maxFailures=1, spark_ft_failpoints=f"store.read=io!{once}")
    running.log.wait_for("executor_added", 2)
    share = Gate(tmp_path / "gate").share(2)
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(share)
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    assert Action(lambda: sorted(sums.collect())).result() == SUMS
    assert once.exists(), "no read has failed"
    (failed,) = running.log.of("fetch_failed")
    assert failed["evidence"] == "corrupt" and "Input/output error" in failed["text"]
    (end,) = [end for end in running.log.of("task_end") if faultlib.reason(end) == "FetchFailed"]
    assert end["blame"] == "storage"
    assert running.starts("map") == Counter(dict.fromkeys(range(4), 1)) + Counter([failed["map"]])
