"""SparkContext over a driver that runs everything in this process: its rules, without a cluster."""

import copy
import gc
import os
import pickle
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest

from spark_ft import context
from spark_ft.conf import SparkConf
from spark_ft.context import SparkContext
from spark_ft.errors import JobError, PySparkRuntimeError, SettingsError, UsageError
from spark_ft.ids import HostId
from spark_ft.lineage.dependency import ShuffleDependency
from spark_ft.protocol.messages import BlockRef
from spark_ft.taskcontext import TaskContext
from spark_ft.util import InheritableThread, inheritable_thread_target
from tests.unit.rdd.inprocess import InProcess


class FakeDriver:
    """Runs jobs by walking the nodes; notes what it was asked for."""

    made = ()
    fingerprints = None
    seed = b""

    def __init__(self, settings, environment, observers):
        self.closed = []
        if settings.master == "bogus":
            raise SettingsError("Could not parse Master URL: 'bogus'")
        self.settings, self.environment, self.observers = settings, environment, observers
        self.app_id, self.start_ms, self.default_parallelism = "local-1", 1_700_000_000_000, 4
        self.scratch = Path(settings.local_dir)
        self.engine = InProcess()
        self.engine.read_block = self.read_block
        self.blocks, self.dropped, self.released, self.cancelled, self.discarded = {}, [], [], [], []
        self.jobs = []
        self.stops = 0
        FakeDriver.made = (*FakeDriver.made, self)

    def submit(self, node, function, partitions, **labels):
        cloudpickle.dumps([node.ship(), function])
        self.jobs.append(SimpleNamespace(partitions=partitions, **labels))
        return SimpleNamespace(result=lambda: self.engine.run(node, function, partitions))

    def identify(self, node, function, partitions=None, properties=None):
        return None

    def put_block(self, kind, name, chunks):
        self.blocks[kind, name] = b"".join(chunks)
        return BlockRef(HostId("driver"), kind, 0, name, len(self.blocks[kind, name]))

    def read_block(self, ref):
        return self.blocks[ref.store, ref.key]

    def drop_block(self, ref, tell=False):
        self.dropped.append((ref.store, ref.key))

    def discard(self, blocks):
        self.discarded += [block.key for block in blocks]

    def release(self, shuffles=(), nodes=(), broadcasts=(), scopes=()):
        self.closed += scopes
        self.released += [("shuffle", s) for s in shuffles]
        self.released += [("node", n) for n in nodes] + [("broadcast", b) for b in broadcasts]

    def cancel(self, job=None, group=None, tag=None, reason=""):
        self.cancelled.append((group, tag))

    def stop(self, keep=False):
        self.stops += 1
        self.kept = keep


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Make contexts whose driver is fake; whatever lives at the end is stopped."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # here tasks place keys in this process
    monkeypatch.setattr(context, "Driver", FakeDriver)
    monkeypatch.setattr(FakeDriver, "made", ())

    def starter(*args, **more):
        conf = more.pop("conf", SparkConf()).set("spark.local.dir", tmp_path / "scratch")
        (tmp_path / "scratch").mkdir(exist_ok=True)
        return SparkContext(*args, conf=conf, **more)

    yield starter
    if SparkContext._active_spark_context is not None:
        SparkContext._active_spark_context.stop()


@pytest.fixture
def sc(start):
    return start("local[2]", "units")


def driver_of(sc):
    return sc._driver


# --- Life ---


def test_without_master_and_name_pyspark_s_defaults_hold(start):
    sc = start()
    assert (sc.master, sc.appName) == ("local[*]", "pyspark-shell")


def test_arguments_override_the_conf_which_is_copied(start):
    conf = SparkConf().setAppName("from conf").set("spark.x", "1")
    sc = start("local[2]", "given", environment={"A": 1}, conf=conf)
    assert (sc.appName, conf.get("spark.app.name")) == ("given", "from conf")
    sc.getConf().set("spark.x", "2")
    assert sc.getConf().get("spark.x") == "1"
    assert driver_of(sc).environment == {"A": "1"}


def test_a_second_context_is_refused_with_the_place_of_the_first(sc, start):
    with pytest.raises(ValueError, match=(
        r"Cannot run multiple SparkContexts at once; existing SparkContext"
        r"\(app=units, master=local\[2\]\) created by __init__ at .*test_context_units.py:\d+"
    )):  # fmt: skip
        start("local", "second")
    assert SparkContext._active_spark_context is sc and len(FakeDriver.made) == 1


def test_a_bad_master_raises_and_leaves_nothing(start):
    with pytest.raises(SettingsError, match="Master"):
        start("bogus")
    assert SparkContext._active_spark_context is None
    start("local").stop()


def test_a_start_that_fails_late_stops_the_driver(start):
    with pytest.raises(JobError, match="does not exist"):
        start("local", pyFiles=["/no/such/file.py"])
    assert SparkContext._active_spark_context is None
    assert [driver.stops for driver in FakeDriver.made] == [1]


def test_stop_is_idempotent_and_every_later_use_says_so(sc):
    rdd, driver = sc.parallelize([1]), driver_of(sc)
    sc.stop()
    sc.stop()
    assert driver.stops == 1 and SparkContext._active_spark_context is None
    uses = (
        lambda: sc.parallelize([1]), lambda: sc.emptyRDD(), lambda: sc.textFile("x"), lambda: rdd.collect(),
        lambda: rdd.map(str), lambda: sc.broadcast(1), lambda: sc.accumulator(1), lambda: sc.cancelAllJobs(),
        lambda: sc.setLocalProperty("a", "b"), lambda: sc.applicationId, lambda: sc.defaultParallelism,
    )  # fmt: skip
    for use in uses:
        with pytest.raises(UsageError, match=r"SparkContext \(app=units, .*\) has been stopped"):
            use()


def test_with_stops_it_also_on_an_error(start):
    with pytest.raises(KeyError), start("local") as sc:
        driver = driver_of(sc)
        raise KeyError
    assert driver.stops == 1


def test_get_or_create_gives_the_live_one(sc):
    assert SparkContext.getOrCreate(SparkConf().setAppName("ignored")) is sc


def test_inside_a_task_it_is_refused_unless_allowed(start):
    TaskContext._set(TaskContext(1))
    try:
        with pytest.raises(PySparkRuntimeError) as caught:
            start("local")
        assert caught.value.getCondition() == "CONTEXT_ONLY_VALID_ON_DRIVER"
        start("local", conf=SparkConf().set("spark.executor.allowSparkContext", True)).stop()
    finally:
        TaskContext._set(None)


@pytest.mark.parametrize("exception", [PySparkRuntimeError, pickle.PicklingError])
def test_pickling_it_is_refused_by_either_name(sc, exception):
    for attempt in (pickle.dumps, cloudpickle.dumps, copy.deepcopy):
        with pytest.raises(exception, match="attempting to reference SparkContext"):
            attempt(sc)


def test_after_a_fork_the_child_s_context_is_dead_and_a_new_one_can_be_made(sc, start):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                sc.parallelize([1])
                answer = "usable"
            except UsageError as error:
                answer = str(error)
            answer += f"|{start('local', 'child').appName}"
            os.write(write, answer.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    assert "belongs to the process that this one was forked from" in answer and answer.endswith("|child")
    assert sc.parallelize([1, 2]).collect() == [1, 2]


# --- What it is ---


def test_facts(sc):
    assert (sc.defaultParallelism, sc.defaultMinPartitions) == (4, 2)
    assert sc.applicationId == sc.getConf().get("spark.app.id") == "local-1"
    assert sc.startTime > 0 and sc.uiWebUrl is None and sc._jvm is None
    assert sc.sparkUser()
    with pytest.raises(ValueError, match="LOUD"):
        sc.setLogLevel("LOUD")


def test_an_application_id_that_was_drawn_is_not_taken_over_by_the_next_run(sc, start):
    conf = sc.getConf()
    sc.stop()
    start(conf=conf)
    assert FakeDriver.made[-1].settings.app_id == ""
    SparkContext._active_spark_context.stop()
    start(conf=conf.set("spark.app.id", "chosen"))
    assert FakeDriver.made[-1].settings.app_id == "chosen"


def test_UE_6_a_bad_log_level_is_refused_by_name(start):
    with pytest.raises(SettingsError, match=r"spark\.log\.level='LOUD'"):
        start("local", conf=SparkConf().set("spark.log.level", "loud"))
    assert FakeDriver.made == ()


# --- Sources and jobs ---


def test_collections_and_ranges(sc):
    assert sc.parallelize(range(10)).getNumPartitions() == 4
    assert sc.parallelize(range(10), 4).glom().map(len).collect() == [2, 3, 2, 3]
    assert sc.parallelize(list(range(10)), 4).glom().map(len).collect() == [2, 2, 2, 4]
    assert sc.range(3, 10, 3).collect() == [3, 6, 9] and sc.range(2).collect() == [0, 1]
    assert sc.emptyRDD().getNumPartitions() == 0 and sc.parallelize([]).getNumPartitions() == 4


def test_large_collections_go_through_the_driver_s_store(sc):
    data = [random.Random(i).randbytes(1000) for i in range(200)]
    assert sc.parallelize(data, 3).collect() == data
    assert len(driver_of(sc).blocks) == 3


def test_union_of_many(sc):
    assert sc.union([sc.parallelize([1], 1), sc.emptyRDD(), sc.range(2)]).collect() == [1, 0, 1]


def test_text_files_are_looked_for_when_used(sc, tmp_path):
    rdd = sc.textFile(str(tmp_path / "later"))
    (tmp_path / "later").write_text("a\nb\n")
    assert rdd.collect() == ["a", "b"] and rdd.getNumPartitions() == 2


def test_run_job_answers_one_flat_list_in_the_order_asked_for(sc):
    rdd = sc.parallelize(range(8), 4)
    assert sc.runJob(rdd, lambda part: [x * x for x in part], [2, 0]) == [16, 25, 0, 1]
    assert sc.runJob(rdd, list) == list(range(8))
    with pytest.raises(JobError, match=r"non-existent partition: 4\. Total number of partitions: 4"):
        sc.runJob(rdd, list, [4])


def test_the_jobs_of_one_action_are_of_one_scope_that_ends_with_it(sc):
    numbers = sc.parallelize(range(8), 4)
    before = len(driver_of(sc).jobs)
    assert numbers.take(8) == list(range(8))
    scopes = {job.scope for job in driver_of(sc).jobs[before:]}
    assert len(driver_of(sc).jobs) - before == 2 and len(scopes) == 1 and scopes == set(driver_of(sc).closed)
    numbers.count()
    assert driver_of(sc).jobs[-1].scope == -1
    indexed = numbers.zipWithIndex()
    scope = driver_of(sc).jobs[-1].scope
    indexed.count()
    assert driver_of(sc).jobs[-1].counted == {indexed._node.id: scope}
    assert scope not in driver_of(sc).closed
    del indexed
    assert scope in driver_of(sc).closed


def test_iterating_computes_one_partition_at_a_time(sc):
    iterator = sc.parallelize(range(6), 3).toLocalIterator()
    assert driver_of(sc).jobs == []
    assert next(iterator) == 0 and [job.partitions for job in driver_of(sc).jobs] == [[0]]
    assert list(iterator) == [1, 2, 3, 4, 5] and len(driver_of(sc).jobs) == 3


def test_with_prefetch_the_next_partition_runs_ahead(sc):
    sc.setLocalProperty("k", "v")
    iterator = sc.parallelize(range(6), 3).toLocalIterator(prefetchPartitions=True)
    assert list(iterator) == list(range(6))
    assert [job.properties["k"] for job in driver_of(sc).jobs] == ["v"] * 3


def test_an_error_ahead_reaches_who_iterates(sc):
    iterator = sc.parallelize([1, 0], 2).map(lambda x: 1 // x).toLocalIterator(prefetchPartitions=True)
    with pytest.raises(ZeroDivisionError):
        list(iterator)


def test_jobs_are_named_by_action_and_place(sc):
    sc.parallelize([1]).count()
    assert driver_of(sc).jobs[-1].name.startswith("count at test_context_units.py:")


# --- Labels ---


def test_labels_go_with_the_jobs_of_their_thread(sc):
    sc.setJobGroup("g", "what it does")
    sc.addJobTag("x")
    sc.addJobTag("y")
    sc.setLocalProperty("spark.scheduler.pool", "fast")
    sc.parallelize([1]).count()
    job = driver_of(sc).jobs[-1]
    assert (job.group, job.tags, job.pool) == ("g", {"x", "y"}, "fast")
    assert job.properties["spark.job.description"] == "what it does"
    thread = threading.Thread(target=lambda: sc.parallelize([1]).count())
    thread.start()
    thread.join()
    job = driver_of(sc).jobs[-1]
    assert (job.group, job.tags, job.pool) == (None, frozenset(), "default")


def test_tags_are_a_set_and_are_checked(sc):
    sc.addJobTag("x")
    sc.addJobTag("x")
    assert sc.getJobTags() == {"x"}
    sc.removeJobTag("x")
    assert sc.getJobTags() == set() and sc.getLocalProperty("spark.job.tags") is None
    for tag in ("", "a,b"):
        with pytest.raises(ValueError, match="tag"):
            sc.addJobTag(tag)


def test_local_properties_are_inherited_only_by_inheritable_threads(sc):
    sc.setLocalProperty("k", "v")
    seen = {}

    def look(name):
        seen[name] = sc.getLocalProperty("k")
        sc.setLocalProperty("k", "child's own")

    def child():
        grand = InheritableThread(target=look, args=("grand-child",))
        grand.start()
        grand.join()
        look("child")

    threads = [
        threading.Thread(target=look, args=("plain",)),
        threading.Thread(target=inheritable_thread_target(look), args=("wrapped",)),
        InheritableThread(target=child),
    ]
    for thread in threads:
        thread.start()
        thread.join()
    assert seen == {"plain": None, "wrapped": "v", "child": "v", "grand-child": "v"}
    assert sc.getLocalProperty("k") == "v"
    sc.setLocalProperty("k", None)
    assert sc.getLocalProperty("k") is None


def test_another_context_starts_without_properties(sc, start):
    sc.setLocalProperty("k", "v")
    sc.stop()
    assert start("local").getLocalProperty("k") is None


def test_cancelling_names_a_group_a_tag_or_everything(sc):
    sc.cancelJobGroup("g")
    sc.cancelJobsWithTag("t")
    sc.cancelAllJobs()
    assert driver_of(sc).cancelled == [("g", None), (None, "t"), (None, None)]


# --- What is kept and what is given back ---


def pairs(sc):
    return sc.parallelize([(1, 2)], 2)


def test_data_that_nothing_refers_to_is_released(sc):
    rdd = pairs(sc).reduceByKey(lambda a, b: a + b).cache()
    assert rdd.collect() == [(1, 2)]
    assert driver_of(sc).released == []
    del rdd
    gc.collect()
    assert sorted(kind for kind, _ in driver_of(sc).released) == ["node", "shuffle"]


def test_without_reference_tracking_nothing_is_released(start):
    sc = start("local", conf=SparkConf().set("spark.cleaner.referenceTracking", False))
    pairs(sc).groupByKey().collect()
    sc.broadcast(1)
    gc.collect()
    assert driver_of(sc).released == []


def test_unpersist_releases_at_once(sc):
    rdd = pairs(sc).cache()
    rdd.count()
    rdd.unpersist()
    assert [kind for kind, _ in driver_of(sc).released] == ["node"]


def test_a_broadcast_that_nothing_refers_to_is_dropped_by_the_next_call(sc):
    handle = sc.broadcast([1])
    name = ("broadcast", str(handle.id).encode())
    del handle
    gc.collect()
    assert driver_of(sc).dropped == [] and driver_of(sc).released
    sc.parallelize([1]).count()
    assert driver_of(sc).dropped == [name]


def test_BL_15_the_blocks_of_a_collection_go_with_the_last_that_refers_to_it(sc):
    rdd = sc.parallelize([bytes(50_000)] * 4, 2).map(len)
    assert rdd.collect() == [50_000] * 4
    gc.collect()
    held = [key for _, key in driver_of(sc).blocks]
    assert held and driver_of(sc).discarded == []
    del rdd
    gc.collect()
    assert sorted(driver_of(sc).discarded) == sorted(held)


def test_a_broadcast_in_a_shuffle_s_functions_lives_as_long_as_the_shuffle(sc):
    def program():
        handle = sc.broadcast([1])
        rdd = pairs(sc).map(lambda pair: (pair[0], handle.value)).groupByKey()
        rdd.count()
        return rdd

    rdd = program()
    (dependency,) = (d for d in rdd._node.dependencies if isinstance(d, ShuffleDependency))
    dependency.parent = None  # with it goes the function that refers to the handle
    gc.collect()
    assert driver_of(sc).released == []
    del rdd, dependency
    gc.collect()
    assert {kind for kind, _ in driver_of(sc).released} == {"shuffle", "broadcast"}


def test_a_destroyed_broadcast_is_dropped_at_once(sc):
    handle = sc.broadcast([1])
    handle.destroy()
    assert driver_of(sc).dropped == [("broadcast", str(handle.id).encode())]
    with pytest.raises(PySparkRuntimeError, match="was destroyed"):
        sc.parallelize([1]).map(lambda x: handle.value).collect()


# --- Checkpoints and files ---


def parts_of(rdd):
    return sorted(Path(rdd.getCheckpointFile().removeprefix("file:")).glob("part-*"))


def test_a_checkpoint_is_written_before_the_first_job_and_read_from_then_on(sc, tmp_path):
    assert sc.getCheckpointDir() is None
    sc.setCheckpointDir(str(tmp_path / "checkpoints"))
    assert sc.getCheckpointDir().startswith(f"file:{tmp_path}/checkpoints/")
    rdd = sc.parallelize(range(10), 3).map(lambda x: x * 2)
    rdd.checkpoint()
    assert not rdd.isCheckpointed()
    assert rdd.count() == 10
    assert rdd.isCheckpointed() and rdd.getCheckpointFile() == f"{sc.getCheckpointDir()}/rdd-{rdd.id()}"
    assert rdd.glom().collect() == [[0, 2, 4], [6, 8, 10], [12, 14, 16, 18]]
    assert sc.checkpointFile(rdd.getCheckpointFile()).glom().collect() == rdd.glom().collect()
    assert sc.checkpointFile(f"rdd-{rdd.id()}").count() == 10
    with pytest.raises(JobError, match="CHECKPOINT_NOT_FOUND"):
        sc.checkpointFile("rdd-99")


def test_BL_18_a_lost_part_is_computed_again_from_the_lineage_that_is_written_beside_it(sc, tmp_path):
    sc.setCheckpointDir(str(tmp_path / "checkpoints"))
    above = sc.parallelize([(i % 5, i) for i in range(40)], 4).reduceByKey(lambda a, b: a + b, 3)
    above.checkpoint()
    below = above.mapValues(lambda x: x + 1)
    below.checkpoint()
    rows = below.glom().collect()
    wanted = [part.read_bytes() for part in parts_of(below)]
    for victims in ([0], [1, 2], [0, 1, 2]):
        for victim in victims:
            Path(below.getCheckpointFile().removeprefix("file:"), f"part-{victim:05d}").unlink()
        assert below.glom().collect() == rows
        assert [part.read_bytes() for part in parts_of(below)] == wanted
    parts_of(above)[1].unlink()  # and what that rests on, too
    parts_of(below)[1].unlink()
    assert below.glom().collect() == rows
    assert not list(tmp_path.rglob("_temporary"))


def test_BL_18_a_part_that_cannot_be_had_again_is_named_at_once(sc, tmp_path):
    sc.setCheckpointDir(str(tmp_path / "checkpoints"))

    def other_each_time(index, records):
        yield index, os.urandom(8), *records

    rdd = sc.parallelize(range(8), 4).mapPartitionsWithIndex(other_each_time)
    rdd.checkpoint()
    rows = rdd.collect()
    assert rdd.collect() == rows  # all jobs see what was saved
    parts_of(rdd)[2].unlink()
    for _ in range(2):
        with pytest.raises(JobError, match=r"CHECKPOINT_LOST.*1 of its 4 partitions \(2\).*other records"):
            rdd.collect()
    assert sc.parallelize([1]).count() == 1


def test_a_checkpoint_that_nothing_reads_is_deleted_where_the_settings_say_so(tmp_path):
    conf = SparkConf().set("spark.cleaner.referenceTracking.cleanCheckpoints", "true")
    with SparkContext("local[2]", "clean", conf=conf) as sc:
        sc.setCheckpointDir(str(tmp_path / "checkpoints"))
        first = sc.parallelize(range(4), 2)
        first.checkpoint()
        second = first.map(lambda x: x + 1)
        second.checkpoint()
        second.count()
        names = [Path(rdd.getCheckpointFile().removeprefix("file:")) for rdd in (first, second)]
        del first
        gc.collect()
        sc.parallelize([1]).count()
        assert [name.exists() for name in names] == [True, True]  # the way back of the second
        del second
        gc.collect()
        sc.parallelize([1]).count()
        assert [name.exists() for name in names] == [False, False]


def test_files_travel_as_a_property_of_jobs(sc, tmp_path):
    sc.parallelize([1]).count()
    assert "spark.ft.files" not in driver_of(sc).jobs[-1].properties
    (tmp_path / "f.txt").write_text("x")
    sc.addFile(str(tmp_path / "f.txt"))
    sc.parallelize([1]).count()
    assert "f.txt" in driver_of(sc).jobs[-1].properties["spark.ft.files"]
    assert sc.listFiles == [f"file:{tmp_path}/f.txt"] and sc.listArchives == []
