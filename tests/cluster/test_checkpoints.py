"""Checkpoints: right rows or a named error, whatever becomes of their files, writers and lineage."""

import gc
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from operator import add
from pathlib import Path

import pytest

from spark_ft.errors import JobError
from spark_ft.filesystems import at
from tests.cluster import faultlib
from tests.cluster.faultlib import Gate

PARTS = 4
ROWS = [(i, i * i) for i in range(40)]


def folder_of(rdd) -> Path:
    return Path(rdd.getCheckpointFile().removeprefix("file:"))


def part(rdd, index: int) -> Path:
    return folder_of(rdd) / f"part-{index:05d}"


def squares(sc, gate: Gate):
    """ROWS in four partitions; each computation of one leaves a trace."""

    def compute(index, records):
        gate.arrive(index)
        return ((i, i * i) for i in records)

    return sc.parallelize(range(40), PARTS).mapPartitionsWithIndex(compute)


@pytest.fixture
def gate(tmp_path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def running(start, tmp_path):
    running = start("local[2]")
    running.sc.setCheckpointDir(str(tmp_path / "checkpoints"))
    return running


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, flip, lambda path: os.truncate(path, 7)])
def test_BL_18_a_damaged_part_is_computed_again_and_no_other(running, gate, damage):
    rdd = squares(running.sc, gate)
    rdd.checkpoint()
    assert rdd.count() == 40 and gate.arrivals() == dict.fromkeys(map(str, range(PARTS)), 1)
    gc.collect()
    before = part(rdd, 2).read_bytes()
    damage(part(rdd, 2))
    assert not part(rdd, 2).exists() or part(rdd, 2).read_bytes() != before
    assert rdd.collect() == ROWS
    assert gate.arrivals() == {"0": 1, "1": 1, "2": 2, "3": 1}
    assert part(rdd, 2).read_bytes() == before
    faultlib.assert_r0(running.events())


def test_BL_18_half_of_the_parts_and_what_they_rest_on_are_damaged(running, gate):
    sums = squares(running.sc, gate).map(lambda pair: (pair[0] % 8, pair[1])).reduceByKey(add, PARTS)
    sums.checkpoint()
    below = sums.mapValues(lambda x: x + 1)
    below.checkpoint()
    wanted = sorted(below.collect())
    assert wanted == sorted((k, 1 + sum(i * i for i in range(40) if i % 8 == k)) for k in range(8))
    gc.collect()
    for index in (0, 2):
        part(below, index).unlink()
        flip(part(below, index + 1))
        part(sums, index).unlink()
    assert sorted(below.collect()) == wanted
    assert sorted(sums.map(lambda pair: (pair[0], pair[1] + 1)).collect()) == wanted


def test_BL_18_without_a_way_back_the_loss_is_named_at_once(start, tmp_path, gate):
    running = start("local[2]", spark_ft_checkpoint_keepLineage=False)
    running.sc.setCheckpointDir(str(tmp_path / "checkpoints"))
    rdd = squares(running.sc, gate)
    rdd.checkpoint()
    assert rdd.count() == 40
    gc.collect()
    flip(part(rdd, 1))
    with pytest.raises(JobError, match=r"CHECKPOINT_LOST.*1 of its 4 partitions \(1\).*no lineage"):
        rdd.collect()
    faultlib.assert_r0(running.events())  # nobody has tried again
    assert gate.arrivals() == dict.fromkeys(map(str, range(PARTS)), 1)
    assert running.sc.parallelize([1]).count() == 1


def test_BL_18_rows_that_come_out_different_do_not_take_the_place_of_lost_ones(running):
    rdd = running.sc.parallelize(range(40), PARTS).map(lambda i: (i, os.urandom(4)))
    rdd.checkpoint()
    first = rdd.take(15)  # of two jobs
    rows = rdd.collect()
    assert rows[:15] == first and rdd.zipWithIndex().map(lambda pair: pair[0]).collect() == rows
    gc.collect()
    part(rdd, 3).unlink()
    with pytest.raises(JobError, match=r"CHECKPOINT_LOST.*\(3\).*other records"):
        rdd.count()


def test_BL_18_a_checkpoint_outlives_every_executor(running, gate):
    rdd = squares(running.sc, gate)
    rdd.checkpoint()
    rdd.count()
    pids = running.executor_pids()
    for pid in pids:
        running.kill(pid)
    running.log.wait_for("executor_lost", len(pids))
    assert rdd.collect() == ROWS
    assert gate.arrivals() == dict.fromkeys(map(str, range(PARTS)), 1)


_ANOTHER = """
import json, sys
from spark_ft import SparkConf, SparkContext
conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.local.dir", sys.argv[1])
conf.set("spark.eventLog.enabled", "false")
with SparkContext(conf=conf) as sc:
    rdd = sc.checkpointFile(sys.argv[2])
    try:
        said = rdd.collect()
    except Exception as error:
        said = error.getCondition(), str(error).splitlines()[0]
    print(json.dumps([said, sc.parallelize([1]).count()]))
"""


def test_BL_18_another_application_with_another_hash_seed_reads_the_same_rows_or_is_told(
    running, scratch, gate
):
    rows = squares(running.sc, gate).map(lambda pair: (f"key {pair[0]}", pair[1]))
    rdd = rows.reduceByKey(add, PARTS)
    rdd.checkpoint()
    wanted = [list(pair) for pair in rdd.collect()]

    def another() -> list:
        command = faultlib.python("-c", _ANOTHER, str(scratch), rdd.getCheckpointFile())
        command["env"] = {**command.get("env", os.environ), "PYTHONHASHSEED": "77"}
        return json.loads(subprocess.run(**command, check=True, capture_output=True, timeout=60).stdout)

    assert another() == [wanted, 1]
    for index in (1, 3):
        flip(part(rdd, index))
    (condition, text), alive = another()
    assert condition == "CHECKPOINT_LOST" and "2 of its 4 partitions (1, 3)" in text and alive == 1
    assert [list(pair) for pair in rdd.collect()] == wanted  # who has the lineage mends it


def test_BL_19_what_a_failed_try_has_written_is_not_written_again(start, tmp_path, gate):
    sc = start("local[1]").sc  # one after the other
    sc.setCheckpointDir(str(tmp_path / "checkpoints"))

    def compute(index, records):
        if gate.arrive(index) == 0 and index == PARTS - 1:
            raise ValueError("not yet")
        return ((i, i * i) for i in records)

    rdd = sc.parallelize(range(40), PARTS).mapPartitionsWithIndex(compute)
    rdd.checkpoint()
    with pytest.raises(JobError, match="not yet"):
        rdd.count()
    assert not rdd.isCheckpointed() and rdd.getCheckpointFile() is None
    assert gate.arrivals() == dict.fromkeys(map(str, range(PARTS)), 1)
    assert rdd.collect() == ROWS
    assert gate.arrivals() == {"0": 1, "1": 1, "2": 1, "3": 2}
    assert [name for name in os.listdir(folder_of(rdd).parent) if name.startswith(".")] == []


def test_BL_18_BL_19_in_an_object_store(object_store, start, gate):
    import s3fs

    s3fs.S3FileSystem().mkdir("checkpoints")
    once = gate.path + "/killed"
    running = start("local[2]", spark_ft_failpoints=f"save.written=kill!{once}")
    running.sc.setCheckpointDir("s3://checkpoints/here")
    rdd = squares(running.sc, gate)
    rdd.checkpoint()
    assert rdd.collect() == ROWS and os.path.exists(once)
    assert rdd.getCheckpointFile().startswith("s3://checkpoints/here/")
    again = sum(gate.arrivals().values())
    assert again == PARTS + 1
    gc.collect()
    files, path = at(rdd.getCheckpointFile())
    files.delete_tree(f"{path}/part-00001")
    data = files.read(f"{path}/part-00002")
    files.write(f"{path}/part-00002", data[:-1] + bytes([data[-1] ^ 1]))
    assert rdd.collect() == ROWS
    assert sum(gate.arrivals().values()) == again + 2
    assert running.sc.checkpointFile(rdd.getCheckpointFile()).collect() == ROWS


_LIVES = """
import os, signal, sys, time
from spark_ft import SparkConf, SparkContext, failpoints
from spark_ft.listener import SparkListener
scratch, marks, folder, armed = sys.argv[1:5]
failpoints.arm(armed)
conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.app.id", "checkpoints")
conf.set("spark.local.dir", scratch).set("spark.eventLog.enabled", "false")

def touch(name):
    open(f"{marks}/{name}", "w").close()

class Answered(SparkListener):
    def onTaskEnd(self, end):  # in a later turn of the loop: by then the result is kept
        sc._driver._host.call(lambda: touch(f"answered-{end.taskInfo.index}"))

def marked(index, records):
    open(f"{marks}/{index}@{time.monotonic_ns()}", "w").close()
    try:
        os.unlink(f"{marks}/kill-at-{index}")
    except FileNotFoundError:
        return ((i, i * i) for i in records)
    while not all(os.path.exists(f"{marks}/answered-{i}") for i in range(index)):
        time.sleep(0.005)
    os.kill(int(open(f"{marks}/driver").read()), signal.SIGKILL)
    time.sleep(60)

with SparkContext(conf=conf) as sc, open(f"{marks}/driver", "w") as file:
    file.write(str(os.getpid()))
    file.flush()
    sc.addSparkListener(Answered())
    sc.setCheckpointDir(folder)
    rdd = sc.parallelize(range(40), 4).mapPartitionsWithIndex(marked)
    rdd.checkpoint()
    print(rdd.collect() == [(i, i * i) for i in range(40)], rdd.getCheckpointFile())
"""


def lives(
    scratch: Path, tmp_path: Path, *armed: str
) -> Iterator[tuple[subprocess.CompletedProcess, Counter]]:
    """Lives of one application, one after the other, and how often each partition has been begun by then."""
    marks = tmp_path / "marks"
    marks.mkdir(exist_ok=True)
    for points in armed:
        command = faultlib.python(
            "-c", _LIVES, str(scratch), str(marks), str(tmp_path / "checkpoints"), points
        )
        ended = subprocess.run(**command, capture_output=True, text=True, timeout=60)
        yield ended, Counter(int(name.partition("@")[0]) for name in os.listdir(marks) if "@" in name)


def visible(tmp_path: Path) -> list[str]:
    (root,) = (tmp_path / "checkpoints").iterdir()
    return [f"file:{root / name}" for name in os.listdir(root) if not name.startswith(".")]


def test_BL_19_the_next_life_of_a_driver_ends_what_was_written(scratch, tmp_path):
    step = "save.before_manifest=kill@1"
    (killed, begun), (ended, in_all) = (
        (life, (marks, visible(tmp_path))) for life, marks in lives(scratch, tmp_path, step, "")
    )
    assert killed.returncode == -signal.SIGKILL and begun == (dict.fromkeys(range(PARTS), 1), [])
    assert ended.returncode == 0, ended.stderr
    assert in_all[0] == begun[0], "no part that was written is computed again"
    assert ended.stdout.split() == ["True", *in_all[1]]


def test_BL_19_a_driver_killed_half_way_goes_on_from_the_parts_that_are_written(scratch, tmp_path):
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "kill-at-2").touch()
    (killed, begun), (ended, in_all) = (
        (life, (marks, visible(tmp_path))) for life, marks in lives(scratch, tmp_path, "", "")
    )
    assert killed.returncode == -signal.SIGKILL and begun == ({0: 1, 1: 1, 2: 1}, [])
    assert ended.returncode == 0, ended.stderr
    assert in_all[0] == {0: 1, 1: 1, 2: 2, 3: 1}, "the one that was running, and what had not begun"
    assert ended.stdout.split() == ["True", *in_all[1]]
