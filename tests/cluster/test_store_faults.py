"""Stores meet full disks, full maps, dead readers and writers, forks, and what crashes have left behind."""

import contextlib
import gc
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections import Counter
from operator import add
from pathlib import Path

import lmdb
import psutil
import pytest

from chaos.nemesis import resources
from chaos.nemesis.disk import segments
from spark_ft import StorageLevel, failpoints
from spark_ft.errors import JobError
from tests.cluster import faultlib, writer_kills
from tests.cluster.faultlib import Action, Gate, wait_until

MIB = 1 << 20


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def host_root(running: faultlib.Running, host: str) -> Path:
    return running.sc._driver.scratch / "hosts" / host


def made_outputs(running: faultlib.Running) -> Counter[int]:
    """partition -> map tasks that succeeded."""
    begun = {event["task"]: event["partition"] for event in running.log.of("task_start", kind="map")}
    ends = running.log.of("task_end", reason="Success")
    return Counter(begun[end["task"]] for end in ends if end["task"] in begun)


def assert_stores_are_whole(running: faultlib.Running) -> int:
    """Every byte of every output that is called committed verifies.  Read in a process of its own: an
    environment must not be opened twice in one.  Answers how many outputs there are."""
    roots = {path.name: str(path) for path in (running.sc._driver.scratch / "hosts").iterdir()}
    command = faultlib.python("-c", _VERIFY, repr(roots))
    told = subprocess.run(**command, capture_output=True, text=True, check=True, timeout=30)
    listed, whole = map(int, told.stdout.split())
    assert listed == whole, f"{listed - whole} of {listed} outputs do not verify"
    return whole


_VERIFY = """
import ast, sys
from pathlib import Path
from spark_ft.ids import HostId
from spark_ft.storage.blocks import StoreReader

roots = {HostId(host): Path(root) for host, root in ast.literal_eval(sys.argv[1]).items()}
reader = StoreReader(roots)
stores = [(host, path.name) for host, root in roots.items() for path in (root / "stores").iterdir()]
print(*(sum(len(reader.outputs(host, store, deep)) for host, store in stores) for deep in (False, True)))
"""


# --- ST-1: the disk is full -----------------------------------------------------------------------


class SmallDisk:
    """The stores of one host on a disk of their own; where nobody may mount one, no file of that host's
    executors may grow beyond its size, which the kernel refuses in the same place."""

    def __init__(self, running: faultlib.Running, host: str, size_bytes: int, may_mount: bool = True) -> None:
        self._path = host_root(running, host) / "stores"
        self._pids = [e["pid"] for e in running.log.of("executor_added", host=host)]
        size = f"size={size_bytes}"
        self._mounted = may_mount and not _run("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self._path))
        if not self._mounted:
            self._limit(size_bytes)

    def _limit(self, size_bytes: int) -> None:
        for pid in self._pids:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))

    def grow(self, size_bytes: int) -> None:
        if self._mounted:
            assert not _run("mount", "-o", f"remount,size={size_bytes}", str(self._path))
        else:
            self._limit(size_bytes)

    def __enter__(self) -> "SmallDisk":
        return self

    def __exit__(self, *_: object) -> None:
        if self._mounted:
            assert not _run("umount", "--lazy", str(self._path))


def _run(*command: str) -> int:
    return subprocess.run(command, capture_output=True).returncode


def sizes_by_key(running: faultlib.Running, partitions: int, size: int):
    """A job that shuffles ``size`` bytes of noise from each of ``partitions``; its tasks take long enough
    for each executor to get some."""

    def make(i: int) -> tuple[int, bytes]:
        time.sleep(0.08)
        return i, noise(size, i)

    return running.sc.parallelize(range(partitions), partitions).map(make).partitionBy(4).mapValues(len)


@pytest.mark.parametrize("may_mount", [True, False], ids=["a disk", "a limit"])
def test_ST_1_a_full_disk_costs_the_task_nothing_and_what_it_holds_is_served(may_mount, start) -> None:
    running = start("local-cluster[3,1,512]", spark_task_maxFailures=1)
    running.log.wait_for("executor_added", 3)
    with SmallDisk(running, "host-1", MIB // 2, may_mount):
        lengths = sizes_by_key(running, 12, 300_000)
        assert Action(lambda: sorted(lengths.collect())).result() == [(i, 300_000) for i in range(12)]
        errors = running.log.of("host_error")
        assert {(error["host"], error["condition"]) for error in errors} == {("host-1", "STORAGE_FULL")}
        assert made_outputs(running) == Counter(range(12)), "finished outputs are served, not made again"
        full = [end for end in running.log.of("task_end") if faultlib.reason(end) == "HostError"]
        again = faultlib.redone(running.events())
        assert sum(again.values()) == len(full) >= 1


def test_ST_1_when_no_host_has_room_the_job_ends_with_host_and_numbers(start) -> None:
    running = start("local-cluster[2,1,512]")
    running.log.wait_for("executor_added", 2)
    with SmallDisk(running, "host-0", 1 * MIB), SmallDisk(running, "host-1", 1 * MIB):
        lengths = sizes_by_key(running, 2, 3 * MIB)
        with pytest.raises(JobError) as caught:
            Action(lambda: sorted(lengths.collect())).result()
    assert caught.value.getCondition() == "STORAGE_FULL"
    assert re.search(r"STORAGE_FULL\(host-\d, \d+ bytes needed, \d+ free\) on every host", str(caught.value))


def test_ST_1_a_job_that_waits_for_room_goes_on_when_there_is_some(start) -> None:
    running = start("local-cluster[2,1,512]")
    running.log.wait_for("executor_added", 2)
    with SmallDisk(running, "host-0", 1 * MIB) as disk, SmallDisk(running, "host-1", 1 * MIB):
        lengths = sizes_by_key(running, 2, 3 * MIB)
        action = Action(lambda: sorted(lengths.collect()))
        running.log.wait_for("host_error", 1, host="host-0")
        running.log.wait_for("host_error", 1, host="host-1")
        disk.grow(64 * MIB)
        assert action.result() == [(0, 3 * MIB), (1, 3 * MIB)]
        assert_stores_are_whole(running)


# --- ST-2: the map is full --------------------------------------------------------------------------


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,512]"])
def test_ST_2_outputs_span_many_small_segments_and_read_the_same(master, start) -> None:
    running = start(master, spark_ft_store_segmentSize="1m", spark_ft_store_transactionSize="128k")
    lengths = sizes_by_key(running, 4, 3 * MIB + 17)
    assert sorted(lengths.collect()) == [(i, 3 * MIB + 17) for i in range(4)]
    segments = list((running.sc._driver.scratch / "hosts").glob("*/stores/*/seg-*"))
    assert len(segments) >= 12, "no output can have spanned segments"
    assert assert_stores_are_whole(running) == 4
    rows = running.sc.parallelize(range(4), 4).map(lambda i: (i % 2, noise(2 * MIB, i)))
    assert [(key, sorted(map(len, values))) for key, values in sorted(rows.groupByKey(2).collect())] == [
        (key, [2 * MIB, 2 * MIB]) for key in range(2)
    ]
    faultlib.assert_r0(running.events())


def disk_use(path: Path) -> int:
    """Bytes under ``path``; what is unlinked while we look does not count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(f"{folder}/{name}").st_blocks * 512
    return total


def deleted_and_open(running: faultlib.Running) -> list[str]:
    """Unlinked store files that some process of the application still holds: their space is taken."""
    found = []
    for pid in running.own_pids():
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if path.endswith("data.mdb (deleted)"):
                        found.append(path)
    return found


@pytest.mark.parametrize("what", ["shuffle", "persisted"])
def test_ST_2_what_is_dropped_gives_its_segments_back(what, start) -> None:
    running = start(
        "local[2]",
        spark_ft_store_segmentSize="1m",
        spark_ft_store_transactionSize="128k",
        spark_ft_store_gcInterval="200ms",
        spark_executor_heartbeatInterval="100ms",
    )
    hosts = running.sc._driver.scratch / "hosts"
    rows = running.sc.parallelize(range(4), 4).map(lambda i: (i, noise(3 * MIB, i)))
    kept = rows.persist(StorageLevel.DISK_ONLY) if what == "persisted" else rows.partitionBy(4)
    for _ in range(2):
        assert kept.mapValues(len).collect() == [(i, 3 * MIB) for i in range(4)]
    assert disk_use(hosts) > 12 * MIB
    if what == "persisted":
        kept.unpersist()
    del rows, kept  # the reference was all that held a shuffle
    gc.collect()
    wait_until(lambda: disk_use(hosts) < 3 * MIB, 10, "the space", 0.05)
    wait_until(lambda: not deleted_and_open(running), 5, "readers to let go of unlinked segments", 0.05)


# --- ST-5: a dead reader ------------------------------------------------------------------------------


# --- ST-4: reader slots ---------------------------------------------------------------------------


def test_ST_4_when_all_reader_slots_are_taken_readers_wait_and_no_task_fails(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,256]"), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)
    numbers = running.sc.parallelize(range(400), 4).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 2)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 2, what="two reducers")
    stores = sorted((running.sc._driver.scratch / "hosts").glob("*/stores/executor-*"))
    assert len(stores) == 2
    active = [str(segments(store)[-1].parent) for store in stores]
    holders = [resources.helper("hold-readers", segment, life_s=20) for segment in active]
    try:
        taken = [int(holder.stdout.readline()) for holder in holders]
        assert min(taken) > 400, f"{taken} slots were had"
        gate.open()
        until_s = time.monotonic() + 1.0
        wait_until(lambda: time.monotonic() > until_s)
        assert not running.log.of("task_end", reason="Success", kind="result"), "somebody has read"
    finally:
        for holder in holders:
            resources.end(holder)  # killed: its slots are free for whoever looks
    assert action.result() == [(key, sum(range(key, 400, 5))) for key in range(5)]
    assert [e["text"][-300:] for e in running.log.of("task_end") if faultlib.reason(e) != "Success"] == []
    faultlib.assert_r0(running.events())


def reader_pids(segment: Path) -> set[int]:
    """The processes that hold a slot in the segment's lock table."""
    env = lmdb.open(str(segment), readonly=True, lock=True, create=False)
    try:
        rows = [line.split() for line in env.readers().splitlines()[1:]]
        return {int(row[0]) for row in rows if row and row[0].isdigit()}
    finally:
        env.close()


def test_ST_5_a_reader_killed_in_mid_transaction_does_not_pin_the_writers_pages(start) -> None:
    running = start(
        "local[2]",
        spark_ft_store_gcInterval="3s",
        spark_executor_heartbeatInterval="200ms",
        spark_ft_result_inlineSize="1k",
        spark_speculation=False,
    )
    sums = running.sc.parallelize(range(100), 1).map(lambda x: (x % 4, x)).reduceByKey(lambda a, b: a + b, 8)
    expected = sorted(sums.collect())
    (writer,) = {event["pid"] for event in running.log.of("task_start", kind="map")}

    def arm(_: object) -> list[int]:
        if os.getpid() == writer:
            time.sleep(0.01)
            return []
        failpoints.arm("store.read=pause")
        return [os.getpid()]

    (reader,) = wait_until(lambda: set(running.sc.parallelize(range(8), 8).mapPartitions(arm).collect()))
    action = Action(sums.collect)
    stopped = psutil.STATUS_STOPPED
    wait_until(lambda: psutil.Process(reader).status() == stopped, what="the reader in mid-transaction")
    (name,) = [e["executor"] for e in running.log.of("executor_added", pid=writer)]
    (segment,) = (running.sc._driver.scratch / "hosts").glob(f"*/stores/{name}/seg-*")
    assert reader in reader_pids(segment), "it was not stopped inside a transaction"
    running.kill(reader)
    killed_s = time.monotonic()
    assert sorted(action.result()) == expected
    wait_until(lambda: running.log.of("executor_lost", signal=signal.SIGKILL), what="word of the kill")
    wait_until(lambda: reader not in reader_pids(segment), 10, "the dead reader's slot to be freed")
    assert time.monotonic() - killed_s < 10

    data = segment / "data.mdb"
    for _ in range(40):  # each writes a result of half a MiB into the store, and drops it
        sizes = running.sc.parallelize(range(2), 2).map(lambda i: noise(MIB // 2, i)).collect()
        assert list(map(len, sizes)) == [MIB // 2] * 2
    assert data.stat().st_size < 6 * MIB, "pages of dropped results are not used again"


# --- ST-7: a dead writer --------------------------------------------------------------------------------


def test_ST_7_a_writer_killed_at_any_point_leaves_whole_outputs_and_a_free_lock(tmp_path) -> None:
    told = writer_kills.in_a_process(tmp_path, 200, seed=7)
    assert told["kills"] == 200
    assert told["committed"] > 200, "writers were killed before they had done anything"
    assert told["torn"] > 20, "no kill met an output in the making"


# --- ST-12: forks -----------------------------------------------------------------------------------------


def square(x: int) -> int:
    return x * x


def test_ST_12_pools_and_forks_inside_tasks_work_and_harm_nothing(start) -> None:
    running = start("local[2]")
    grouped = running.sc.parallelize(range(40), 4).map(lambda x: (x % 4, x)).groupByKey(2)

    def pooled(groups):
        groups = [(key, list(values)) for key, values in groups]  # stores are open in this process now
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return [(key, sum(pool.map(square, values))) for key, values in groups]

    expected = sorted((key, sum(x * x for x in range(key, 40, 4))) for key in range(4))
    for _ in range(3):
        assert sorted(grouped.mapPartitions(pooled).collect()) == expected

    def forked(groups):
        groups = [(key, list(values)) for key, values in groups]
        child = os.fork()
        if child == 0:
            return iter(groups)  # a child that forgets to leave: it must not go on as an executor
        os.waitpid(child, 0)
        return iter(groups)

    again = grouped.mapPartitions(forked).map(lambda pair: (pair[0], sum(pair[1]))).reduceByKey(max, 3)
    assert sorted(Action(again.collect).result()) == [(key, sum(range(key, 40, 4))) for key in range(4)]
    assert sorted(grouped.mapPartitions(pooled).collect()) == expected
    assert assert_stores_are_whole(running) >= 6
    assert not running.log.of("executor_lost")
    faultlib.assert_r0(running.events())


def test_ST_12_a_forked_child_writes_nothing_into_a_store_that_is_still_empty(start) -> None:
    running = start("local[1]")

    def forked(records):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return records  # the child goes on with the task, and comes to write its output first

    pairs = running.sc.parallelize([(i % 4, i) for i in range(40)], 2).mapPartitions(forked)
    sums = pairs.reduceByKey(lambda a, b: a + b, 2)
    assert sorted(Action(sums.collect).result()) == [(key, sum(range(key, 40, 4))) for key in range(4)]
    assert not running.log.of("host_error") and not running.log.of("executor_lost")
    faultlib.assert_r0(running.events())


def test_ST_12_pools_and_forks_in_the_driver_work_and_harm_nothing(start) -> None:
    running = start("local[2]", spark_ft_result_inlineSize="1k")
    shared = running.sc.broadcast(noise(2 * MIB, 1))  # in the driver's own store
    sizes = running.sc.parallelize(range(4), 4).map(lambda i: shared.value[i : i + 50_000])
    expected = [noise(2 * MIB, 1)[i : i + 50_000] for i in range(4)]
    assert sizes.collect() == expected
    for _ in range(2):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(square, range(10)) == [x * x for x in range(10)]
            assert sizes.collect() == expected
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    sizes.collect()  # the context is the parent's
                except Exception:  # whatever it is called: an error, and not a hang
                    status = 7
            os._exit(status)
        wait_until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT), 5, "the child")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert sizes.collect() == expected
    fresh = running.sc.broadcast(noise(MIB, 2))
    assert running.sc.parallelize([1], 1).map(lambda _: fresh.value).collect() == [noise(MIB, 2)]
    assert not running.log.of("executor_lost")


# --- ST-17: what crashes leave ---------------------------------------------------------------------


_APPLICATION = """
import os, sys, time
from spark_ft import SparkConf, SparkContext

for number in range(int(sys.argv[2])):
    if os.fork() == 0:
        conf = SparkConf(loadDefaults=False).setMaster(sys.argv[3]).set("spark.local.dir", sys.argv[1])
        sc = SparkContext(conf=conf)
        rows = sc.parallelize(range(4), 4).map(lambda i: (i, os.urandom(300_000))).partitionBy(4).cache()
        assert rows.count() == 4
        shared = sc.broadcast(os.urandom(1_000_000))
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(120)
        os._exit(1)
for _ in range(int(sys.argv[2])):
    os.wait()
"""


def kill_the_world(scratch: Path, count: int, master: str) -> None:
    """Start ``count`` applications, and kill -9 all their processes."""
    before = set(scratch.glob("spark-ft-*"))
    command = faultlib.python("-c", _APPLICATION, str(scratch), str(count), master)
    with subprocess.Popen(**command, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdout is not None
        drivers = [int(nursery.stdout.readline() or 0) for _ in range(count)]
        family = psutil.Process(nursery.pid).children(recursive=True)
        for driver in filter(None, drivers):
            os.kill(driver, signal.SIGSTOP)  # it must not tidy up, nor replace anybody
        for process in [*family, *psutil.Process(nursery.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert all(drivers), "an application has not come up"
    own = set(scratch.glob("spark-ft-*")) - before
    assert len(own) == count
    wait_until(lambda: not any(map(faultlib.processes_that_mention, own)), 10, "all processes to be gone")


def test_ST_17_the_next_start_removes_what_twenty_crashes_have_left(start, scratch) -> None:
    baseline = disk_use(scratch)
    kill_the_world(scratch, 20, "local[1]")
    left_bytes = disk_use(scratch) - baseline
    assert left_bytes > 20 * MIB, "the crashes have left next to nothing"
    running = start("local[2]")
    wait_until(lambda: len(list(scratch.iterdir())) == 1, 10, "the leftovers to be removed")
    assert running.sc.parallelize(range(10)).sum() == 45
    running.stop()
    assert abs(disk_use(scratch) - baseline) <= 1 * MIB


def test_ST_17_UE_7_applications_of_one_name_and_directory_leave_each_other_alone(
    start, scratch
) -> None:
    running = start("local[2]", spark_app_name="the same")
    kept = running.sc.parallelize(range(4), 2).map(lambda x: (x, x)).reduceByKey(max, 2)
    assert kept.count() == 4
    kill_the_world(scratch, 1, "local-cluster[2,1,256]")
    command = faultlib.python("-c", _ANOTHER, str(scratch))
    done = subprocess.run(**command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(list(scratch.iterdir())) == 1, 10, "the crashed one's directory to be removed")
    assert kept.count() == 4
    faultlib.assert_r0(running.events())


_ANOTHER = """
import sys, time
from pathlib import Path
from spark_ft import SparkConf, SparkContext

conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.local.dir", sys.argv[1])
conf.set("spark.app.name", "the same")
with SparkContext(conf=conf) as sc:
    assert sc.parallelize(range(3)).count() == 3
    deadline = time.monotonic() + 10
    while len(list(Path(sys.argv[1]).iterdir())) > 2 and time.monotonic() < deadline:
        time.sleep(0.02)
"""
