"""The handle: ids, names, storage levels, checkpoint marks."""

import gc
import pickle

import pytest

from spark_ft.errors import PySparkRuntimeError, UsageError
from spark_ft.rdd import RDD
from spark_ft.storagelevel import StorageLevel
from tests.unit.rdd.inprocess import InProcess


def test_narrow_functions_are_one_rdd_numbered_when_first_asked(sc):
    rdd = sc.parallelize([1, 2])
    child = rdd.map(str).filter(bool).mapPartitions(list)
    assert child.id() == rdd.id() + 1
    assert child.id() == child.id()


def test_a_cached_rdd_ends_a_pipeline_of_ids(sc):
    rdd = sc.parallelize([1])
    kept = rdd.map(str).cache()
    assert (kept.map(int).id(), kept.id()) == (rdd.id() + 2, rdd.id() + 1)


def test_a_name_is_none_until_it_is_set(sc):
    rdd = sc.parallelize([1])
    assert rdd.name() is None
    assert rdd.setName("numbers") is rdd
    assert rdd.name() == "numbers"
    assert rdd.context is sc


def test_an_rdd_is_neither_sized_nor_false_nor_iterable(sc):
    rdd = sc.emptyRDD()
    assert rdd
    for name in ("__len__", "__bool__", "__iter__"):
        assert not hasattr(rdd, name)


def test_an_rdd_can_be_subscripted_in_annotations():
    assert RDD[int] is not None


@pytest.mark.parametrize("hide", [lambda rdd: rdd, lambda rdd: {"deep": [rdd]}])
def test_an_rdd_cannot_be_pickled(sc, hide):
    with pytest.raises(PySparkRuntimeError) as caught:
        pickle.dumps(hide(sc.parallelize([1])))
    assert isinstance(caught.value, pickle.PicklingError)
    assert caught.value.getCondition() == "RDD_TRANSFORM_ONLY_VALID_ON_DRIVER"


def test_an_rdd_inside_a_function_fails_the_job_on_the_driver(sc):
    rdd = sc.parallelize([1])
    with pytest.raises(pickle.PicklingError, match="attempting to broadcast an RDD or reference an RDD"):
        rdd.map(lambda x: rdd.count()).collect()


def test_the_debug_string_shows_the_lineage_indented_at_shuffles(sc):
    text = sc.parallelize([(1, 2)], 2).map(lambda x: x).groupByKey(3).toDebugString()
    assert isinstance(text, bytes)
    kinds = [line.split(b"[")[0] for line in text.splitlines()]
    assert kinds == [b"(3) Shuffled", b" |  (2) Elementwise", b" |  (2) Slices"]


# --- Persist ---


def test_persisting_is_remembered_and_undone(sc):
    rdd = sc.parallelize([1])
    assert rdd.getStorageLevel() == StorageLevel.NONE
    assert rdd.cache() is rdd
    assert rdd.is_cached
    assert str(rdd.getStorageLevel()) == "Memory Serialized 1x Replicated"
    assert rdd.unpersist() is rdd
    assert not rdd.is_cached
    assert rdd.getStorageLevel() == StorageLevel.NONE
    assert rdd.persist(StorageLevel.DISK_ONLY).getStorageLevel() == StorageLevel.DISK_ONLY


def test_another_level_than_the_assigned_one_is_an_error_and_the_same_is_fine(sc):
    rdd = sc.parallelize([1]).persist(StorageLevel.DISK_ONLY)
    rdd.persist(StorageLevel.DISK_ONLY)
    with pytest.raises(
        UsageError, match="Cannot change storage level of an RDD after it was already assigned"
    ):
        rdd.cache()
    assert rdd.getStorageLevel() == StorageLevel.DISK_ONLY


def test_unpersisting_what_was_never_persisted_is_fine(sc):
    sc.parallelize([1]).unpersist()
    assert sc.unpersisted == []


def test_a_cached_partition_is_computed_once_and_again_after_unpersist(sc):
    rdd = sc.parallelize(range(4), 2).map(lambda x: x + 1).cache()
    times = [rdd.sum() and sc.computed[rdd._node.id, 0] for _ in range(3)]
    assert times == [1, 1, 1]
    rdd.unpersist(blocking=True)
    assert sc.unpersisted == [(rdd._node.id, True)]
    rdd.count()
    assert sc.computed[rdd._node.id, 0] == 2


def test_shuffles_and_persisted_nodes_are_tracked_and_let_go(sc):
    rdd = sc.parallelize([(1, 2)]).groupByKey().cache()
    assert [type(ref()).__name__ for ref in sc.tracked] == ["ShuffleDependency", "Shuffled"]
    del rdd
    gc.collect()
    assert [ref() for ref in sc.tracked] == [None, None]


# --- Checkpoint ---


def test_a_checkpoint_needs_a_directory(sc):
    with pytest.raises(UsageError, match="Checkpoint directory has not been set in the SparkContext"):
        sc.parallelize([1]).checkpoint()


def test_a_checkpoint_is_written_before_the_first_job_and_cuts_the_lineage():
    sc = InProcess(checkpoint_dir="/ckpt")
    source = sc.parallelize(range(4), 2)
    rdd = source.map(lambda x: x + 1)
    rdd.checkpoint()
    below = rdd.map(lambda x: -x)
    assert not rdd.isCheckpointed()
    assert rdd.getCheckpointFile() is None
    assert below.collect() == [-1, -2, -3, -4]
    assert rdd.isCheckpointed()
    assert rdd.getCheckpointFile() == f"file:/ckpt/rdd-{rdd.id()}"
    before = dict(sc.computed)
    assert below.collect() == [-1, -2, -3, -4]
    assert sc.computed[source._node.id, 0] == before[source._node.id, 0] == 1  # to write
    assert b"Elementwise" not in rdd.toDebugString()


def test_a_cached_rdd_is_not_computed_a_second_time_for_its_checkpoint():
    sc = InProcess(checkpoint_dir="/ckpt")
    source = sc.parallelize(range(4), 2)
    rdd = source.map(lambda x: x + 1).cache()
    rdd.checkpoint()
    assert (rdd.count(), rdd.is_cached) == (4, True)
    assert rdd.count() == 4
    assert sc.computed[source._node.id, 0] == 1
    assert {node for node, _ in sc.cache} >= {rdd._node.id}
    rdd.unpersist()
    assert rdd._node.id not in {node for node, _ in sc.cache}


def test_a_job_that_does_not_touch_a_marked_rdd_does_not_write_it():
    sc = InProcess(checkpoint_dir="/ckpt")
    marked = sc.parallelize([1])
    marked.checkpoint()
    sc.parallelize([2]).count()
    assert not marked.isCheckpointed()


def test_parents_are_checkpointed_before_their_children():
    sc = InProcess(checkpoint_dir="/ckpt")
    parent = sc.parallelize([1, 2]).map(lambda x: x + 1)
    parent.checkpoint()
    child = parent.map(lambda x: x + 1)
    child.checkpoint()
    child.count()
    assert [kind for kind, _ in sc.jobs] == ["CheckpointPoint"] * 3
    assert parent.isCheckpointed()
    assert child.isCheckpointed()
    assert sc.computed[parent._node.id, 0] == 2  # its own writing, the reader for the child


def test_a_local_checkpoint_is_kept_in_executors(sc):
    rdd = sc.parallelize([1])
    rdd.localCheckpoint()
    assert rdd.isLocallyCheckpointed()
    assert rdd.isCheckpointed()
    assert rdd.getStorageLevel() == StorageLevel.MEMORY_AND_DISK


def test_a_checkpoint_that_could_not_be_written_is_tried_again_by_the_next_job():
    class Full(InProcess):
        def write_checkpoint(self, point):
            raise OSError("disk full")

    sc = Full(checkpoint_dir="/ckpt")
    rdd = sc.parallelize([1])
    rdd.checkpoint()
    with pytest.raises(OSError, match="disk full"):
        rdd.count()
    assert not rdd.isCheckpointed()
    sc.__class__ = InProcess
    rdd.count()
    assert rdd.isCheckpointed()
