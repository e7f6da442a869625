"""Wrong input, functions, use or settings: a clear word, no hang, and a session that goes on."""

import gzip
import os
import signal
import time
from operator import add
from pathlib import Path

import pytest

from spark_ft import SparkConf, SparkContext, TaskContext
from spark_ft.errors import JobError, SettingsError, TaskFailed, UsageError
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate

RETRYING = "local[2,4]"


def fails(call, condition: str) -> JobError:
    with pytest.raises(JobError) as caught:
        call()
    assert caught.value.getCondition() == condition, str(caught.value)
    return caught.value


def assert_works(running: faultlib.Running) -> None:
    pairs = running.sc.parallelize(range(60), 4).map(lambda x: (x % 5, x))
    assert sorted(pairs.reduceByKey(add, 2).collect()) == [(k, sum(range(k, 60, 5))) for k in range(5)]


def started(running: faultlib.Running) -> int:
    return len(running.log.of("task_start"))


# --- Input that is not there, or not what it was -------------------------------------------------------


@pytest.mark.parametrize("read", ["textFile", "wholeTextFiles", "binaryFiles", "pickleFile"])
def test_UE_1_input_that_is_missing_when_the_job_is_planned_starts_no_task(start, tmp_path, read) -> None:
    running = start("local[1]")
    for path in (f"{tmp_path}/none", f"{tmp_path}/*.none", f"{tmp_path}/none/deeper"):
        rdd = getattr(running.sc, read)(path)  # no error yet
        error = fails(rdd.count, "INPUT_NOT_FOUND")
        assert path in str(error)
    assert started(running) == 0
    assert_works(running)


def vanish(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def rewrite(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes().swapcase())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [vanish, grow, rewrite, become_a_directory])
def test_UE_1_input_that_changes_between_planning_and_reading_is_told_after_one_attempt(
    start, tmp_path, change
) -> None:
    running = start(RETRYING)
    text, pickled = tmp_path / "text", tmp_path / "pickled"
    text.write_text("one\ntwo\nthree\n")
    running.sc.parallelize(["a", "b"], 1).saveAsPickleFile(str(pickled))
    (part,) = pickled.glob("part-*")
    reads = {
        text: [running.sc.textFile(str(text), 1), running.sc.wholeTextFiles(str(text))],
        part: [running.sc.pickleFile(str(pickled))],
    }
    for path, rdds in reads.items():
        for rdd in rdds:
            rdd.getNumPartitions()  # planned
        change(path)
        for rdd in rdds:
            before = started(running)
            error = fails(rdd.count, "INPUT_CHANGED")
            assert isinstance(error, TaskFailed) and str(path) in str(error)
            assert len(error.attempts) == 1 and started(running) == before + 1
    assert_works(running)


def test_UE_1_input_that_changes_while_it_is_read_never_gives_a_mixed_answer(start, tmp_path) -> None:
    running, gate = start(RETRYING), Gate(tmp_path / "gate")
    path = tmp_path / "text"
    path.write_text("".join(f"{i}\n" for i in range(100_000)))

    def slowly(records):
        for i, line in enumerate(records):
            if i == 1000:
                gate.wait("reader")
            yield line

    rdd = running.sc.textFile(str(path), 1).mapPartitions(slowly)
    action = Action(rdd.count)
    faultlib.wait_until(lambda: gate.pid_of("reader"), what="the reader in mid-file")
    with path.open("r+b") as file:
        file.truncate(300_000)
    gate.open()
    error = fails(action.result, "INPUT_CHANGED")
    assert len(error.attempts) == 1 and started(running) == 1


def test_UE_1_empty_files_and_directories_are_no_error(start, tmp_path) -> None:
    running = start("local[2]")
    (tmp_path / "dir").mkdir()
    (tmp_path / "empty").touch()
    assert running.sc.textFile(str(tmp_path / "empty")).collect() == []
    assert running.sc.textFile(str(tmp_path / "dir")).count() == 0
    assert running.sc.wholeTextFiles(str(tmp_path / "empty")).collect() == [(f"file:{tmp_path}/empty", "")]


# --- Input that cannot be read as what it should be ------------------------------------------------------


def test_UE_2_a_truncated_archive_is_told_with_file_offset_and_partition(start, tmp_path) -> None:
    running = start("local[2]")
    whole = gzip.compress(os.urandom(50_000).hex().encode() + b"\n")
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.gz", "b.gz", "c.gz"):
        (folder / name).write_bytes(whole if name != "b.gz" else whole[:30_000])
    error = fails(running.sc.textFile(str(folder)).count, "INPUT_CORRUPT")
    assert f"file:{folder}/b.gz: unreadable after byte" in str(error) and "partition 1" in str(error)
    assert error.partition == 1 and error.cause_type == "InputCorrupt"
    assert running.sc.textFile(f"{folder}/a.gz,{folder}/c.gz").count() == 2
    assert_works(running)


def raw_counts(running: faultlib.Running, path: Path) -> list[int]:
    """Lines of each partition."""
    lines = running.sc.textFile(str(path), 4, use_unicode=False)
    return lines.mapPartitions(lambda records: [sum(1 for _ in records)]).collect()


def test_UE_2_bytes_that_are_not_utf_8_are_told_with_file_offset_and_partition(start, tmp_path) -> None:
    running = start("local[2]")
    lines = [b"line %d" % i for i in range(20_000)]
    lines[17_000] += b"\xff"
    data = b"\n".join(lines)
    (tmp_path / "text").write_bytes(data)
    rdd = running.sc.textFile(str(tmp_path / "text"), 4)
    counts = raw_counts(running, tmp_path / "text")
    bad = next(i for i, count in enumerate(counts) if sum(counts[: i + 1]) > 17_000)
    error = fails(rdd.count, "INPUT_CORRUPT")
    assert f"file:{tmp_path}/text: byte {data.index(0xFF)} is not UTF-8" in str(error)
    assert error.partition == bad and f"partition {bad}" in str(error)
    raw = running.sc.textFile(str(tmp_path / "text"), 4, use_unicode=False)
    assert raw.filter(lambda line: b"\xff" in line).collect() == [b"line 17000\xff"]
    assert_works(running)


def test_UE_2_in_permissive_mode_bad_records_are_counted_once_and_the_others_read(start, tmp_path) -> None:
    running = start("local[2]", spark_ft_input_mode="PERMISSIVE")
    lines = [b"line %d" % i for i in range(20_000)]
    for number in (3, 17_000):
        lines[number] += b"\xff"
    (tmp_path / "text").write_bytes(b"\n".join(lines))
    rdd, failed = running.sc.textFile(str(tmp_path / "text"), 4), Gate(tmp_path / "failed")

    def fails_once(index, records):
        count = sum(1 for _ in records)
        if index == 0 and not failed.arrivals().get("0"):
            failed.arrive(index)
            os.kill(os.getpid(), signal.SIGKILL)
        return [count]

    assert running.sc.badRecords == {}
    assert sum(rdd.mapPartitionsWithIndex(fails_once).collect()) == 20_000
    assert running.starts("result")[0] == 2, "what an attempt counted that failed is not counted"
    assert running.sc.badRecords == {f"file:{tmp_path}/text": 2}
    assert rdd.filter(lambda line: "\ufffd" in line).collect() == ["line 3\ufffd", "line 17000\ufffd"]
    assert running.sc.badRecords == {f"file:{tmp_path}/text": 2}, "read twice, counted once"


def test_UE_2_a_record_that_user_code_cannot_read_names_its_partition(start) -> None:
    running = start("local[2]")
    texts = running.sc.parallelize([*map(str, range(10)), "ten", *map(str, range(11, 20))], 4)
    error = fails(texts.map(int).sum, "TASK_FAILED")
    assert error.cause_type == "ValueError" and error.partition == 2
    assert "invalid literal for int() with base 10: 'ten'" in str(error)
    assert_works(running)


# --- Wrong use ------------------------------------------------------------------------------------------


def test_UE_3_arguments_of_the_wrong_type_are_refused_in_words_where_they_are_given(start) -> None:
    running = start("local[1]")
    sc, rdd = running.sc, running.sc.parallelize([1, 2, 3], 2)
    refused = [
        (lambda: sc.parallelize(5), TypeError, "not iterable"),
        (lambda: sc.textFile(None).count(), TypeError, "NoneType"),
        (lambda: rdd + [1], TypeError, "only an RDD"),
        (lambda: rdd.zip(sc.parallelize([1], 1)), ValueError, "same number of partitions"),
        (lambda: rdd.sample(False, -1.0), ValueError, "nonnegative"),
        (lambda: rdd.coalesce(0), ValueError, "positive"),
        (lambda: sc.accumulator(object()), TypeError, "No default accumulator param"),
        (lambda: sc.runJob(rdd, list, [7]), JobError, "non-existent partition: 7"),
    ]
    for call, kind, words in refused:
        with pytest.raises(kind, match=words):
            call()
    assert started(running) == 0
    assert_works(running)


def test_UE_3_a_stopped_session_refuses_everything_in_words_and_another_can_be_made(start) -> None:
    running = start("local[1]")
    sc = running.sc
    rdd, shared, count = sc.parallelize([1]), sc.broadcast([1]), sc.accumulator(0)
    sc.stop()
    sc.stop()
    uses = [
        rdd.collect, lambda: rdd.map(str), lambda: rdd.persist().count(), sc.cancelAllJobs,
        lambda: sc.parallelize([1]), lambda: sc.textFile("/"), lambda: sc.broadcast(1),
        lambda: sc.accumulator(1), lambda: sc.defaultParallelism, lambda: sc.setJobGroup("a", "b"),
        lambda: sc.applicationId, lambda: sc.addFile("/"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(UsageError, match="has been stopped"):
            use()
    assert shared.value == [1] and count.value == 0
    assert_works(start("local[1]"))


# --- Functions that place keys ------------------------------------------------------------------------


def divide(key):
    return 1 // key


def stop(key):
    raise StopIteration


PLACES = {
    "raises": (divide, "ZeroDivisionError"),
    "stops iterating": (stop, "Caught StopIteration thrown from user's code"),
    "a string": (lambda key: "x", "partitionFunc must return int, not str"),
    "a float": (lambda key: 1.5, "partitionFunc must return int, not float"),
    "nothing": (lambda key: None, "partitionFunc must return int, not NoneType"),
}


def test_UE_4_a_partition_function_that_fails_costs_its_job_alone(start, tmp_path) -> None:
    running, gate = start("local[2]"), Gate(tmp_path / "gate")
    waiting = running.sc.parallelize([1], 1).map(lambda x: gate.wait("neighbour") or x)
    neighbour = Action(waiting.collect)
    pairs = running.sc.parallelize([(0, 1), (1, 2)], 2)
    for name, (function, words) in PLACES.items():
        calls = [
            lambda f=function: pairs.partitionBy(2, f).collect(),
            lambda f=function: pairs.reduceByKey(add, 2, f).collect(),
            lambda f=function: pairs.repartitionAndSortWithinPartitions(2, f).collect(),
        ]
        for call in calls:
            error = fails(call, "TASK_FAILED")
            assert words in str(error), name
    gate.open()
    assert neighbour.result() == [1]
    assert running.sc.parallelize([(k, k) for k in range(6)]).partitionBy(3, lambda k: k - 10).count() == 6
    assert_works(running)


# --- Odd sizes and keys ---------------------------------------------------------------------------------


def test_UE_5_no_partitions_and_no_rows_give_empty_answers_or_the_usual_errors(start) -> None:
    running = start("local[2]")
    sc = running.sc
    some = sc.parallelize([(1, 2)], 2)
    for none in (sc.emptyRDD(), sc.parallelize([], 3)):
        pairs = none.map(lambda x: (x, 1))
        empty = [
            none, none.distinct(), none.sortBy(lambda x: x, numPartitions=2), none.union(none),
            none.zipWithIndex(), none.cartesian(some), none.repartition(2), none.subtract(some),
            none.intersection(some), none.sample(False, 0.5), none.coalesce(1), none.pipe("cat"),
            pairs.reduceByKey(add), pairs.groupByKey(), pairs.join(some), pairs.cogroup(pairs),
            pairs.partitionBy(0), pairs.repartitionAndSortWithinPartitions(2), none.cache(),
        ]  # fmt: skip
        for rdd in empty:
            assert rdd.collect() == [] and rdd.count() == 0 and rdd.take(3) == [] and rdd.isEmpty()
        assert (none.sum(), none.fold(0, add), none.collectAsMap()) == (0, 0, {})
        for call in (none.reduce, none.treeReduce):
            with pytest.raises(ValueError, match=r"(?i)reduce.* empty RDD"):
                call(add)
        with pytest.raises(ValueError, match="RDD is empty"):
            none.first()
    assert some.partitionBy(0).collect() == []
    for count, kind in ((0, ZeroDivisionError), (-1, JobError)):
        with pytest.raises(kind):
            sc.parallelize([1], count).count()
    with pytest.raises(ValueError, match="must not be negative"):
        some.partitionBy(-1)


def test_UE_5_odd_keys_are_placed_and_met_again_and_unhashable_ones_fail_their_task(start) -> None:
    running = start("local[2]")
    keys = [None, (), ("a", None), "", b"", 0, -1, 2**70, 1.5, frozenset([1]), (None, (None,)), "ü"]
    pairs = running.sc.parallelize([(key, i) for i in range(3) for key in keys], 5)
    assert dict(pairs.reduceByKey(add, 3).collect()) == dict.fromkeys(keys, 3)
    assert dict(pairs.groupByKey(4).mapValues(len).collect()) == dict.fromkeys(keys, 3)
    assert pairs.join(pairs, 3).count() == len(keys) * 9
    assert pairs.partitionBy(3).lookup(None) == pairs.lookup(None) == [0, 1, 2]
    equal = running.sc.parallelize([(1, 1), (1.0, 1), (True, 1)], 3).reduceByKey(add, 4)
    assert equal.values().collect() == [3], "equal keys are one"
    for key in ([1], {1: 2}, {1}, ([],)):
        odd = running.sc.parallelize([(key, 1)], 1)
        for rdd in (odd.groupByKey(2), odd.reduceByKey(add, 2), odd.keys().distinct(2)):
            assert "unhashable type" in str(fails(rdd.collect, "TASK_FAILED"))
    assert_works(running)


def test_UE_5_thousands_of_partitions_for_a_few_rows(start) -> None:
    running = start("local[2]")
    assert running.sc.parallelize(range(10), 3000).map(lambda x: (x, 1)).count() == 10
    few = running.sc.parallelize([(k % 5, k) for k in range(20)], 2).reduceByKey(add, 1500)
    assert sorted(few.collect()) == [(k, 4 * k + 30) for k in range(5)]


# --- Settings ------------------------------------------------------------------------------------------

BAD = {
    "spark.master": ["yarn", "local[0]", "local-cluster[1,0,512]"],
    "spark.executor.memory": ["lots", "1m"],
    "spark.executor.cores": ["0", "two"],
    "spark.default.parallelism": ["-1", "many"],
    "spark.task.maxFailures": ["0"],
    "spark.network.timeout": ["0", "5s", "-1s", "soon"],  # 5s: shorter than the lease
    "spark.ft.lease": ["20s", "0"],
    "spark.executor.heartbeatInterval": ["9s", "0"],
    "spark.speculation": ["maybe"],
    "spark.speculation.quantile": ["2", "nan"],
    "spark.scheduler.mode": ["LIFO"],
    "spark.memory.fraction": ["0", "1.5"],
    "spark.ft.store.segmentSize": ["1"],
    "spark.ft.store.transactionSize": ["1g", "0"],
    "spark.rpc.message.maxSize": ["0", "1m"],
    "spark.driver.maxResultSize": ["-1"],
    "spark.log.level": ["LOUD"],
    "spark.ui.retainedJobs": ["some"],
    "spark.files.overwrite": ["perhaps"],
    "spark.eventLog.dir": ["/proc/none"],
    "spark.ft.failpoints": ["here=explode"],
}


def test_UE_6_bad_and_contradictory_settings_are_refused_by_name_before_anything_is_started(
    scratch,
) -> None:
    children = {child.pid for child in faultlib.psutil.Process().children(recursive=True)}
    for key, values in BAD.items():
        for value in values:
            conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.local.dir", str(scratch))
            began_s = time.monotonic()
            with pytest.raises(SettingsError) as caught:
                SparkContext(conf=conf.set(key, value))
            assert time.monotonic() - began_s < 1.5
            text = str(caught.value)
            assert caught.value.getCondition() == "BAD_CONFIG" and value in text, text
            assert key in text or "Master URL" in text
            assert SparkContext._active_spark_context is None
    faultlib.assert_nothing_left(scratch, children)


@pytest.mark.parametrize(
    ("master", "settings"),
    [
        ("local[4]", {"spark_task_cpus": 8}),
        ("local-cluster[2,2,256]", {"spark_task_cpus": 3}),
        ("local[4]", {"spark_task_cpus": 2, "spark_executor_cores": 1}),
    ],
)
def test_UE_8_a_task_that_wants_more_cores_than_an_executor_has_is_refused_at_once(
    start, master, settings
) -> None:
    with pytest.raises(SettingsError, match=r"spark\.task\.cpus=\d: no executor can run such a task"):
        start(master, **settings)


def test_UE_8_a_task_of_two_cores_takes_two(start, tmp_path) -> None:
    running = start("local[4]", spark_task_cpus=2)
    assert running.sc.parallelize(range(4), 4).map(lambda _: TaskContext.get().cpus()).collect() == [2] * 4
    assert len(running.executor_pids()) == 2
