"""Workers die, hosts go down and come back: executors compute on, and files that verify are read again."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from spark_ft import StorageLevel
from spark_ft.cluster.processes import Interpreter
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

NUMBERS = 600
SUMS = [(key, sum(range(key, NUMBERS, 5))) for key in range(5)]


def worker_of(running: faultlib.Running, host: str) -> faultlib.Event:
    return running.log.of("worker_added", host=host)[-1]


def executors_on(running: faultlib.Running, host: str) -> dict[str, int]:
    live = running.log.pids()
    return {
        e["executor"]: e["pid"] for e in running.log.of("executor_added", host=host) if e["executor"] in live
    }


def kill_worker(running: faultlib.Running, host: str) -> None:
    """SIGKILL to the worker process alone; that is in the log within a second."""
    worker = worker_of(running, host)
    running.kill(worker["pid"])
    running.log.wait_for("worker_lost", worker=worker["worker"], deadline_s=1.0)


def take_down(running: faultlib.Running, host: str, change) -> None:
    """Every process of a host is killed, and ``change(root)`` happens to its files meanwhile."""
    worker, executors = worker_of(running, host), executors_on(running, host)
    root = running.sc._driver.scratch / "hosts" / host
    cluster = running.sc._driver.cluster
    with cluster._lock:  # the machine stays down meanwhile
        for pid in [worker["pid"], *executors.values()]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(faultlib.is_alive, [worker["pid"], *executors.values()])), 5)
        change(root)
    running.log.wait_for("worker_lost", worker=worker["worker"])
    for executor in executors:
        running.log.wait_for("executor_lost", executor=executor, deadline_s=5.0)


# --- WK-1: orphans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,512]"])
def test_WK_1_when_a_worker_dies_its_executors_compute_on_and_nothing_is_run_again(
    start, tmp_path, master
) -> None:
    running, gate = start(master), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 2)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 2, what="two reducers")
    before = running.log.pids()
    for host in {event["host"] for event in running.log.of("worker_added")}:
        kill_worker(running, host)
    adopted = running.log.wait_for("executor_adopted", 2, deadline_s=5.0)
    assert {event["executor"] for event in adopted} == set(before)
    gate.open()
    assert action.result() == SUMS
    assert sorted(sums.collect()) == SUMS, "their outputs are served by the heirs"
    faultlib.assert_r0(running.events())
    assert running.starts("map") == Counter(range(4))
    assert running.log.pids() == before and not running.log.of("executor_lost")


def test_WK_1_an_orphan_that_ends_costs_what_it_ran_and_nobody_knows_how(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")
    held = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(gate.share(2))
    sums = held.map(lambda x: (x % 5, x)).reduceByKey(add, 2)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 2, what="two reducers")
    (executor, pid), *_ = executors_on(running, "host-0").items()
    kill_worker(running, "host-0")
    running.log.wait_for("executor_adopted", executor=executor)
    running.kill(pid)
    (lost,) = running.log.wait_for("executor_lost", executor=executor, deadline_s=1.0)
    assert lost["blame"] == "host" and "how cannot be known" in lost["why"]
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == Counter(range(4)), "R0: its outputs are served"
    faultlib.assert_r1(running.events())


_DRIVER = """
import json, os, sys, time
from tests.cluster import faultlib
from pathlib import Path
running = faultlib.start_context(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
running.log.wait_for("executor_added", 2)
workers = [e["pid"] for e in running.log.of("worker_added")]
print(json.dumps([workers, running.executor_pids()]), flush=True)
time.sleep(120)
"""


def test_WK_1_when_worker_and_driver_die_together_no_executor_outlives_them(tmp_path, scratch) -> None:
    root = str(Path(__file__).resolve().parents[2])
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tmp_path), str(scratch), "local-cluster[2,1,256]"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert driver.stdout is not None
    workers, executors = json.loads(driver.stdout.readline())
    os.kill(driver.pid, signal.SIGSTOP)  # it must not put others in their place
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(faultlib.is_alive, workers)), 5)
    time.sleep(0.1)
    assert all(map(faultlib.is_alive, executors)), "orphans live while their driver does"
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_until(lambda: not any(map(faultlib.is_alive, executors)), 5, "the end of the orphans")
    for path in scratch.iterdir():
        shutil.rmtree(path, ignore_errors=True)


def test_WK_6_reducers_go_on_when_the_worker_that_serves_them_restarts(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 4).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 4)
    action = Action(lambda: sorted(sums.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 2, what="two reducers")
    worker = worker_of(running, "host-0")
    gate.open()  # the two that wait and the two that follow read from a host whose worker dies this moment
    running.kill(worker["pid"])
    began_s = time.monotonic()
    assert action.result() == SUMS
    assert time.monotonic() - began_s < 5.0 + 1.0
    faultlib.assert_r0(running.events(), "map")


# --- WK-3, WK-4: files that are there, and files that are not the ones we know -------------------------


def mapped(running: faultlib.Running, gate: Gate):
    """Map outputs and persisted partitions on both hosts; what each host holds of the outputs."""
    numbers = running.sc.parallelize(range(NUMBERS), 6).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 2)
    assert sorted(sums.collect()) == SUMS
    begun = {e["task"]: e for e in running.log.of("task_start", kind="map")}
    return sums, {e["partition"]: e["host"] for e in begun.values()}


def test_WK_3_of_a_host_that_goes_down_and_comes_back_with_its_files_nothing_is_computed_again(
    start, tmp_path
) -> None:
    running = start("local-cluster[2,1,512]")
    sums, hosts = mapped(running, Gate(tmp_path / "gate"))
    kept = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: x + 1).persist(StorageLevel.DISK_ONLY)
    assert kept.sum() == sum(range(1, NUMBERS + 1))
    before = running.starts("map")
    take_down(running, "host-0", lambda root: None)
    assert "host-0" in hosts.values()
    assert sorted(sums.collect()) == SUMS
    assert kept.sum() == sum(range(1, NUMBERS + 1))
    assert running.starts("map") == before, "R0"
    assert not running.log.of("output_lost") and not running.log.of("block_lost")


def test_ST_8_after_a_reboot_every_byte_is_verified_and_what_does_not_verify_is_computed_again(
    start, tmp_path
) -> None:
    """A page that the kernel had not written yet is not there after a power loss."""
    running = start("local-cluster[2,1,512]")
    sums, hosts = mapped(running, Gate(tmp_path / "gate"))
    mine = {partition for partition, host in hosts.items() if host == "host-0"}

    def lose_power(root: Path) -> None:
        (root / "boot_id").write_text("another boot")
        (data,) = root.glob("stores/*/seg-00000/data.mdb")
        content = bytearray(data.read_bytes())
        for at in _a_chunk_of(content):
            content[at] ^= 0xFF
        data.write_bytes(content)

    take_down(running, "host-0", lose_power)
    lost = {event["map"] for event in running.log.wait_for("output_lost", deadline_s=5.0)}
    assert len(lost) == 1 and lost <= mine, "one byte is one output"
    assert sorted(sums.collect()) == SUMS
    assert running.starts("map") == Counter(range(6)) + Counter(lost), "R2"
    assert not running.log.of("fetch_failed"), "it was known before anybody read it"


def _a_chunk_of(content: bytes) -> list[int]:
    """Where the last byte of one chunk's payload lies in a store file, in old copies of its page too."""
    from spark_ft.storage import layout

    head, key_bytes = layout._CHUNK_HEAD, 1 + layout.OUTPUT_KEY.size + layout.CHUNK_NO.size
    found: dict[bytes, list[int]] = {}
    for at in range(0, len(content) - head.size - key_bytes):
        length, _, size = head.unpack_from(content, at)
        key = bytes(content[at + head.size : at + head.size + key_bytes])
        if size == key_bytes and 0 < length < 1 << 20 and key[:1] == b"c":
            found.setdefault(key, []).append(at + head.size + key_bytes + length - 1)
    return found[min(found)]


def test_WK_4_a_host_restored_from_an_older_copy_costs_what_was_written_since(start, tmp_path) -> None:
    running = start("local-cluster[2,1,512]")
    first, _ = mapped(running, Gate(tmp_path / "gate"))
    root = running.sc._driver.scratch / "hosts" / "host-0"
    shutil.copytree(root / "stores", tmp_path / "backup")
    second, _ = mapped(running, Gate(tmp_path / "gate-2"))
    newer = {
        e["partition"] for e in running.log.of("task_start", kind="map", stage=2) if e["host"] == "host-0"
    }
    assert newer

    def restore(root: Path) -> None:
        shutil.rmtree(root / "stores")
        shutil.copytree(tmp_path / "backup", root / "stores")

    take_down(running, "host-0", restore)
    lost = running.log.wait_for("output_lost", len(newer), deadline_s=5.0)
    assert {event["map"] for event in lost} == newer
    assert sorted(second.collect()) == SUMS and sorted(first.collect()) == SUMS
    starts = faultlib.starts_per_partition(running.events(), "map")
    assert starts == Counter({(0, p): 1 for p in range(6)}) + Counter(
        {(2, p): 2 if p in newer else 1 for p in range(6)}
    ), "R2"


def test_WK_4_ST_9_a_store_that_is_none_or_kills_its_reader_is_taken_out_of_use(start, tmp_path) -> None:
    running = start("local-cluster[2,1,512]", spark_ft_store_gcInterval="500ms")
    sums, hosts = mapped(running, Gate(tmp_path / "gate"))
    mine = {partition for partition, host in hosts.items() if host == "host-0"}

    def damage(root: Path) -> None:
        """The meta pages stay whole, so that LMDB believes in all that follows; which is gone by half."""
        (data,) = root.glob("stores/*/seg-00000/data.mdb")
        size = data.stat().st_size
        with data.open("r+b") as file:
            file.seek(2 * 4096)
            file.write(b"\xff" * (size - 2 * 4096))
        foreign = root / "stores" / "executor-of-another-application"
        shutil.copytree(data.parent, foreign / "seg-00000")

    take_down(running, "host-0", damage)
    lost = {event["map"] for event in running.log.wait_for("output_lost", len(mine), deadline_s=5.0)}
    assert lost == mine
    assert sorted(sums.collect()) == SUMS
    assert running.starts("map") == Counter(range(6)) + Counter(mine), "R2"
    wait_until(lambda: len(running.executor_pids()) == 2, what="executors on both hosts")
    assert len(running.log.of("executor_lost")) == 1, "nobody else died of it"


# --- WK-5: twice ---------------------------------------------------------------------------------------


def test_WK_5_a_second_worker_on_a_hosts_directory_is_refused_by_name_and_harms_nothing(
    start, tmp_path, capfd
) -> None:
    running = start("local-cluster[2,1,512]")
    sums, _ = mapped(running, Gate(tmp_path / "gate"))
    first = worker_of(running, "host-0")["worker"]
    told: list[dict[str, object]] = []
    cluster = running.sc._driver.cluster
    (process,) = [process for process in cluster._workers if process.host == "host-0"]
    twin = Interpreter("worker", {})
    original, process.interpreter = process.interpreter, twin
    try:
        process.me = type(process.me)("worker-twice00000000")
        cluster._configure(process)
    finally:
        process.interpreter, process.me = original, first
    assert twin.wait(5.0) and twin.describe_end() != "exited with status 0", told
    assert "STORE_IN_USE" in (said := capfd.readouterr().err) and first in said
    assert sorted(sums.collect()) == SUMS
    assert len(running.log.of("worker_added")) == 2
    faultlib.assert_r0(running.events())


# --- WK-8: a whole host stands still -------------------------------------------------------------------


def test_WK_8_a_host_that_stood_still_is_given_up_and_nothing_it_writes_on_waking_is_used(
    start, tmp_path
) -> None:
    running = start(
        "local-cluster[2,1,512]",
        spark_executor_heartbeatInterval="100ms",
        spark_ft_lease="1s",
        spark_network_timeout="1500ms",
        spark_ft_worker_grace="100ms",
        spark_speculation=False,
    )
    gate = Gate(tmp_path / "gate")
    held = running.sc.parallelize(range(NUMBERS), 2).mapPartitionsWithIndex(gate.hold)
    action = Action(lambda: sorted(held.map(lambda x: (x % 5, x)).reduceByKey(add, 2).collect()))
    wait_until(lambda: gate.waiting() == 2, what="two map tasks")
    worker = worker_of(running, "host-0")
    (executor, pid), *_ = executors_on(running, "host-0").items()
    for stopped in (worker["pid"], pid):
        os.kill(stopped, signal.SIGSTOP)
    running.log.wait_for("worker_lost", worker=worker["worker"], deadline_s=2.5)
    running.log.wait_for("executor_lost", executor=executor, deadline_s=2.5)
    gate.open()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not faultlib.is_alive(pid), 2.0, "the end of the fenced executor")
    assert action.result() == SUMS
    assert not running.log.of("output_adopted")
    assert sum(faultlib.redone(running.events(), "map").values()) == 1, "R1"
    wait_until(lambda: len(running.executor_pids()) == 2, what="the host is in use again")
