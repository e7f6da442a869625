"""Copies on other hosts: a host that is lost for good costs nothing of what has them (rows BL-11, WK-2)."""

import os
from operator import add

import pytest

from spark_ft import StorageLevel
from tests.cluster import faultlib
from tests.cluster.faultlib import Gate, wait_until
from tests.cluster.test_host_loss import lose_host

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


def places(running: faultlib.Running) -> dict[tuple[int, int], set[str]]:
    """(node, partition) -> hosts that hold it, told by the scheduler."""
    held = running.sc._driver._core.blocks.held
    live = running.sc._driver._core.executors.live
    return {
        (node, partition): {*holding.disk, *(live[e].host for e in list(holding.memory) if e in live)}
        for node, partitions in list(held.items())
        for partition, holding in list(partitions.items())
    }


@pytest.mark.parametrize("level", ["MEMORY_ONLY_2", "MEMORY_AND_DISK_2", "DISK_ONLY_2"])
def test_BL_11_a_lost_host_costs_no_partition_that_has_a_second_copy(level, start, tmp_path) -> None:
    running, gate, counts = start(), Gate(tmp_path / "gate"), Gate(tmp_path / "counts")

    def computed(index, records):
        counts.arrive(index)
        return records

    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(gate.share(3))
    kept = numbers.mapPartitionsWithIndex(computed).persist(getattr(StorageLevel, level))
    assert kept.sum() == sum(range(NUMBERS))
    wait_until(lambda: all(len(hosts) >= 2 for hosts in places(running).values()), 30, "second copies")
    lost = {key for key, hosts in places(running).items() if "host-0" in hosts}
    assert 0 < len(lost) <= 9
    lose_host(running, "host-0")
    assert kept.sum() == sum(range(NUMBERS))
    assert counts.arrivals() == {str(index): 1 for index in range(9)}, "nothing was computed again"
    faultlib.assert_r0(running.events())
    wait_until(
        lambda: all(len(hosts) >= 2 for hosts in places(running).values()), 30, "copies in place of lost ones"
    )
    again = {(e["node"], e["partition"]) for e in running.log.of("block_copied")}
    assert lost <= again


def test_BL_11_on_one_host_a_dead_executors_memory_is_read_from_the_disk(start, tmp_path) -> None:
    running, gate, counts = start("local[2]"), Gate(tmp_path / "gate"), Gate(tmp_path / "counts")

    def computed(index, records):
        counts.arrive(index)
        return records

    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(gate.share(2))
    kept = numbers.mapPartitionsWithIndex(computed).persist(StorageLevel.MEMORY_ONLY_2)
    assert kept.sum() == sum(range(NUMBERS))
    running.log.wait_for("block_copied", 4)
    assert len(running.log.of("copies_lack_hosts")) == 1
    pid = running.executor_pids()[0]
    running.kill(pid)
    running.log.wait_for("executor_lost")
    assert kept.sum() == sum(range(NUMBERS))
    assert counts.arrivals() == {str(index): 1 for index in range(4)}


def test_WK_2_with_two_replicas_a_host_lost_with_its_files_costs_no_map_task(start, tmp_path) -> None:
    running = start(spark_ft_shuffle_replicas=2)
    gate, share = Gate(tmp_path / "gate"), Gate(tmp_path / "share")
    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(share.share(3))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 6)
    action = faultlib.Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers")
    running.log.wait_for("output_copied", 9, deadline_s=30)
    on_host = {e["partition"] for e in running.log.of("task_start", kind="map", host="host-1")}
    assert on_host, "the host that is lost has outputs"
    lose_host(running, "host-1")
    gate.open()
    assert action.result() == SUMS
    assert not running.log.of("output_lost")
    faultlib.assert_r0(running.events(), "map")
    faultlib.assert_r1(running.events(), "result", but=[(1, partition) for partition in range(6)])
    wait_until(
        lambda: len(running.log.of("output_copied")) >= 9 + len(on_host), 30, "replicas in place of lost ones"
    )


def test_WK_2_a_host_that_dies_in_the_middle_of_a_copy_leaves_nothing_half_made(start, tmp_path) -> None:
    once = tmp_path / "killed"
    running = start(spark_ft_shuffle_replicas=2, spark_ft_failpoints=f"copies.write=kill!{once}")
    share = Gate(tmp_path / "share")
    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(share.share(3))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 3)
    assert sorted(sums.collect()) == SUMS
    wait_until(once.exists, what="a copy under way")
    running.log.wait_for("worker_lost")
    assert sorted(sums.collect()) == SUMS
    core = running.sc._driver._core
    wait_until(
        lambda: all(len(o.locations(i)) == 2 for o in list(core.outputs) for i in range(9)), 30, "replicas"
    )
    assert sorted(sums.collect()) == SUMS


def test_BL_11_copies_are_given_back_with_the_partitions(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(gate.share(2))
    kept = numbers.map(lambda x: os.urandom(20_000)).persist(StorageLevel.DISK_ONLY_2)
    assert kept.count() == NUMBERS
    running.log.wait_for("block_copied", 4)
    hosts = running.sc._driver.scratch / "hosts"

    def used_bytes() -> int:
        return sum(path.stat().st_blocks * 512 for path in hosts.glob("*/stores/worker-*/*/data.mdb"))

    assert used_bytes() > NUMBERS * 20_000
    first = used_bytes()
    kept.unpersist()
    again = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: os.urandom(20_000))
    again.persist(StorageLevel.DISK_ONLY_2)
    assert again.count() == NUMBERS
    running.log.wait_for("block_copied", 8)
    assert used_bytes() < first * 1.6, "the pages of what was dropped are used again"
