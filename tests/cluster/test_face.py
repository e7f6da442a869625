"""The driver's face on real executors: files, shared variables, labels, saving, wrong use."""

import os
import pickle
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from spark_ft import (
    AccumulatorParam,
    InheritableThread,
    SparkContext,
    SparkFiles,
    TaskContext,
    inheritable_thread_target,
)
from spark_ft.errors import JobCancelled, JobError, Py4JJavaError, PySparkRuntimeError, UsageError
from tests.cluster.faultlib import wait_until

MASTERS = ["local[2]", "local-cluster[2,1,512]"]


class Collect(AccumulatorParam):
    def zero(self, value):
        return []

    def addInPlace(self, a, b):
        a.extend(b)
        return a


@pytest.mark.parametrize("master", MASTERS)
def test_files_packages_and_archives_reach_every_executor(start, tmp_path, master):
    sc = start(master).sc
    (tmp_path / "data.txt").write_text("hello")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "x").write_text(" there")
    (tmp_path / "module_shipped.py").write_text("def triple(x):\n    return 3 * x\n")
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as package:
        package.writestr("package_shipped/__init__.py", "VALUE = 5\n")
        package.writestr("sndhdr.py", "OURS = True\n")
    sc.addFile(str(tmp_path / "data.txt"))
    sc.addFile(str(tmp_path / "dir"), recursive=True)
    sc.addPyFile(str(tmp_path / "module_shipped.py"))
    sc.addPyFile(str(tmp_path / "package.zip"))
    sc.addArchive(f"{tmp_path}/package.zip#unpacked")

    def look(x):
        import sndhdr

        from module_shipped import triple
        from package_shipped import VALUE

        with open(SparkFiles.get("data.txt")) as data, open(SparkFiles.get("dir/x")) as more:
            text = data.read() + more.read()
        return text, triple(x), VALUE, sndhdr.OURS, sorted(os.listdir(SparkFiles.get("unpacked")))

    expected = [("hello there", 3 * x, 5, True, ["package_shipped", "sndhdr.py"]) for x in range(4)]
    assert sc.parallelize(range(4), 4).map(look).collect() == expected


@pytest.mark.parametrize("master", MASTERS)
def test_broadcasts_are_loaded_dropped_and_destroyed(start, master):
    sc = start(master).sc
    table = sc.broadcast([bytes([i]) * 100_000 for i in range(100)])
    rdd = sc.parallelize(range(100), 4).map(lambda i: table.value[i][0])
    assert rdd.collect() == list(range(100))
    table.unpersist()
    assert rdd.collect() == list(range(100))
    with pytest.raises(Py4JJavaError, match=r"Broadcast can only be destroyed in driver"):
        sc.parallelize([1]).foreach(lambda _: table.destroy())
    table.destroy()
    with pytest.raises(PySparkRuntimeError, match="was destroyed"):
        rdd.collect()


def test_DR_13_failed_attempts_do_not_count_in_accumulators(start, tmp_path):
    sc = start("local[2,3]").sc
    count, seen = sc.accumulator(0), sc.accumulator([], Collect())

    def work(x):
        count.add(1)
        seen.add([x])
        if TaskContext.get().attemptNumber() < 2:
            raise ValueError("not yet")

    sc.parallelize(range(4), 2).foreach(work)
    assert count.value == 4 and sorted(seen.value) == [0, 1, 2, 3]


def test_an_accumulator_cannot_be_read_in_a_task(start):
    sc = start("local[1]").sc
    count = sc.accumulator(0)
    with pytest.raises(Py4JJavaError, match="VALUE_NOT_ACCESSIBLE"):
        sc.parallelize([1]).map(lambda x: count.value).collect()


def test_UE_1_an_input_that_changed_is_not_tried_again(start, tmp_path):
    sc = start("local[2,4]").sc
    (tmp_path / "f").write_text("a\nb\n")
    rdd = sc.textFile(str(tmp_path / "f"))
    assert rdd.collect() == ["a", "b"]
    (tmp_path / "f").write_text("a\nb\nc\n")
    with pytest.raises(JobError) as caught:
        rdd.collect()
    assert caught.value.getCondition() == "INPUT_CHANGED" and len(caught.value.attempts) == 1
    with pytest.raises(JobError, match="INPUT_NOT_FOUND"):
        sc.textFile(str(tmp_path / "none")).count()


@pytest.mark.parametrize("master", MASTERS)
def test_saved_text_and_pickles_come_back(start, tmp_path, master):
    sc = start(master).sc
    rdd = sc.parallelize(range(1000), 3)
    rdd.saveAsTextFile(str(tmp_path / "text"), "org.apache.hadoop.io.compress.GzipCodec")
    assert sorted(os.listdir(tmp_path / "text")) == ["_SUCCESS", *(f"part-0000{i}.gz" for i in range(3))]
    assert sorted(map(int, sc.textFile(str(tmp_path / "text")).collect())) == list(range(1000))
    rdd.map(lambda x: {x: None}).saveAsPickleFile(str(tmp_path / "pickles"))
    assert sc.pickleFile(str(tmp_path / "pickles")).collect() == [{x: None} for x in range(1000)]
    with pytest.raises(Py4JJavaError, match="FileAlreadyExists"):
        rdd.saveAsTextFile(str(tmp_path / "text"))


def test_OUT_1_retries_and_failures_never_show(start, tmp_path):
    sc = start("local[2,3]").sc

    def shaky(x):
        if x == 7 and TaskContext.get().attemptNumber() < 2:
            raise ValueError("not yet")
        return x

    sc.parallelize(range(10), 2).map(shaky).saveAsTextFile(str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["_SUCCESS", "part-00000", "part-00001"]
    assert sorted(map(int, sc.textFile(str(tmp_path / "out")).collect())) == list(range(10))
    with pytest.raises(JobError, match="ZeroDivisionError"):
        sc.parallelize([0]).map(lambda x: 1 // x).saveAsTextFile(str(tmp_path / "failed"))
    assert [name for name in os.listdir(tmp_path) if "failed" in name] == []


@pytest.mark.parametrize("master", MASTERS)
def test_a_checkpoint_spares_the_lineage(start, tmp_path, master):
    sc = start(master).sc
    sc.setCheckpointDir(str(tmp_path / "checkpoints"))
    computed = sc.accumulator(0)

    def count(x):
        computed.add(1)
        return x

    rdd = sc.parallelize(range(10), 2).map(count)
    rdd.checkpoint()
    assert rdd.sum() == 45 and rdd.isCheckpointed()
    before = computed.value
    assert rdd.collect() == list(range(10)) and computed.value == before


def test_local_properties_reach_tasks_and_inheritable_threads(start):
    sc = start("local[2]").sc
    sc.setLocalProperty("key", "value")
    seen = {}

    def look(name):
        seen[name] = sc.parallelize([1]).map(lambda _: TaskContext.get().getLocalProperty("key")).first()

    threads = [
        threading.Thread(target=look, args=("plain",)),
        InheritableThread(target=look, args=("inheritable",)),
        threading.Thread(target=inheritable_thread_target(look), args=("wrapped",)),
    ]
    for thread in threads:
        thread.start()
        thread.join()
    look("main")
    assert seen == {"plain": None, "inheritable": "value", "wrapped": "value", "main": "value"}


def test_a_cancelled_group_ends_its_jobs_and_is_seen_as_failed(start, tmp_path):
    sc = start("local[2]").sc
    caught = []

    def work():
        sc.setJobGroup("slow", "sleeps")
        with pytest.raises(JobCancelled) as error:
            sc.parallelize(range(4), 4).foreach(sleep)
        caught.append(error.value)

    def sleep(_):
        import time

        (tmp_path / "asleep").touch()
        time.sleep(60)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until((tmp_path / "asleep").exists, 10, "a sleeping task")
    tracker = sc.statusTracker()
    (job,) = tracker.getJobIdsForGroup("slow")
    assert tracker.getJobInfo(job).status == "RUNNING" and tracker.getActiveJobsIds() == [job]
    sc.cancelJobGroup("slow")
    thread.join(10)
    assert caught
    wait_until(lambda: tracker.getJobInfo(job).status == "FAILED", 5, "the job's end in the status")
    assert sc.parallelize(range(10)).sum() == 45


def test_co_partitioned_joins_have_fewer_stages(start):
    sc = start("local[2]").sc
    parted = sc.parallelize([(1, 2)]).partitionBy(2)
    tracker = sc.statusTracker()
    for group, other, stages in (("narrow", parted, 2), ("wide", sc.parallelize([(1, 3)]), 3)):
        sc.setJobGroup(group, "")
        parted.join(other).collect()
        (job,) = tracker.getJobIdsForGroup(group)
        assert len(tracker.getJobInfo(job).stageIds) == stages


def test_UE_3_contexts_and_rdds_inside_tasks_are_told_apart_and_the_session_survives(start):
    sc = start("local[2]").sc
    rdd = sc.parallelize([1])
    with pytest.raises(pickle.PicklingError, match="attempting to reference SparkContext"):
        rdd.map(lambda x: sc.defaultParallelism).collect()
    with pytest.raises(PySparkRuntimeError, match="attempting to broadcast an RDD or reference an RDD"):
        rdd.map(lambda x: rdd.count()).collect()

    def nested(_):
        SparkContext("local[1]", "nested")

    with pytest.raises(Py4JJavaError, match="CONTEXT_ONLY_VALID_ON_DRIVER"):
        rdd.foreach(nested)
    assert rdd.collect() == [1]


def test_UE_3_after_stop_every_use_says_so(start):
    sc = start("local[1]").sc
    rdd = sc.parallelize([1])
    sc.stop()
    for use in (lambda: sc.parallelize([1]), rdd.count):
        with pytest.raises(UsageError, match="has been stopped"):
            use()


PROGRAM = """
import sys
from spark_ft import SparkConf, SparkContext

sc = SparkContext(conf=SparkConf().setMaster("local[2]").set("spark.local.dir", {scratch!r}))


class Point:
    def __init__(self, x):
        self.x = x


print(sc.parallelize([Point(1), Point(2)]).map(lambda p: Point(p.x + 1)).map(lambda p: p.x).sum())
print(type(sc.parallelize([Point(1)]).first()) is Point)
raise SystemExit(3)
"""


def test_DR_16_a_program_without_a_stop_ends_by_itself(scratch, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(scratch=str(scratch)))
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, path], cwd=root, env={**os.environ, "PYTHONPATH": root},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (ended.stdout, ended.returncode) == ("5\nTrue\n", 3), ended.stderr


def test_the_shell_runs_what_is_typed(scratch, tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    typed = "def f(x):\n    return x + y\n\ny = 5\nprint(sc.parallelize([1, 2]).map(f).collect())\n"
    shell = [sys.executable, "-m", "spark_ft", "shell", "--master", "local[1]"]
    ended = subprocess.run(
        [*shell, "--conf", f"spark.local.dir={scratch}"],
        cwd=root, input=typed, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "[6, 7]" in ended.stdout and "SparkContext available as 'sc'" in ended.stderr
