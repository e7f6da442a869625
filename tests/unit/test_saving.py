"""Saving: a directory appears whole, once, or not at all, whatever the attempts did."""

import bz2
import gzip
import os
import random
import zlib

import pytest

from spark_ft import rows
from spark_ft.errors import JobError
from spark_ft.ids import NodeId
from spark_ft.lineage import sources
from spark_ft.rdd.saving import write_text
from spark_ft.storage.outputs import published, save
from spark_ft.taskcontext import TaskContext


class Cluster:
    """Runs the write job over lists of records; each attempt has an id of its own."""

    def __init__(self, *partitions, during=lambda function: None):
        self.partitions = partitions
        self.during = during
        self.attempts = 0

    def attempt(self, function, index, records=None):
        self.attempts += 1
        TaskContext._set(TaskContext(0, index, 0, self.attempts))
        try:
            return function(index, iter(self.partitions[index] if records is None else records))
        finally:
            TaskContext._set(None)

    def __call__(self, function):
        self.during(function)
        return [self.attempt(function, index) for index in range(len(self.partitions))]


def files_of(folder):
    """name -> content; of ``_SUCCESS`` the parts that its manifest names."""
    found = {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}
    if "_SUCCESS" in found:
        found["_SUCCESS"] = published(str(folder)).parts
    return found


def test_each_partition_is_a_part_file_and_success_comes_with_them(tmp_path):
    save(str(tmp_path / "deep" / "out"), Cluster(["a", "b"], [], [1, None, b"\xff", "é"]), write_text)
    assert files_of(tmp_path / "deep" / "out") == {
        "_SUCCESS": ["part-00000", "part-00001", "part-00002"],
        "part-00000": b"a\nb\n",
        "part-00001": b"",
        "part-00002": b"1\nNone\n\xff\n\xc3\xa9\n",
    }
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_no_partitions_give_a_directory_with_nothing_but_success(tmp_path):
    save(str(tmp_path / "out"), Cluster(), write_text)
    assert os.listdir(tmp_path / "out") == ["_SUCCESS"]


@pytest.mark.parametrize(
    ("extension", "expand"),
    [(".gz", gzip.decompress), (".bz2", bz2.decompress), (".deflate", zlib.decompress)],
)
def test_codecs_name_and_compress_the_parts(tmp_path, extension, expand):
    lines = [str(i) for i in range(20000)]
    save(str(tmp_path / "out"), Cluster(lines), write_text, extension)
    data = (tmp_path / "out" / f"part-00000{extension}").read_bytes()
    assert expand(data).decode().splitlines() == lines
    node = sources.TextFile(NodeId(1), str(tmp_path / "out"), 2)
    assert node.partition_count == 1 and list(node.compute(0, (), None)) == lines


def test_OUT_1_of_two_attempts_only_the_one_in_the_results_shows(tmp_path):
    cluster = Cluster(["right"], ["two"])
    cluster.during = lambda function: cluster.attempt(function, 0, ["twin that finished too"])
    save(str(tmp_path / "out"), cluster, write_text)
    assert files_of(tmp_path / "out") == {
        "_SUCCESS": ["part-00000", "part-00001"],
        "part-00000": b"right\n",
        "part-00001": b"two\n",
    }


def test_OUT_5_an_existing_target_is_refused_before_any_task(tmp_path):
    (tmp_path / "out").mkdir()
    cluster = Cluster(["x"])
    with pytest.raises(JobError, match="FileAlreadyExists") as caught:
        save(str(tmp_path / "out"), cluster, write_text)
    assert caught.value.getCondition() == "TARGET_EXISTS"
    assert cluster.attempts == 0 and os.listdir(tmp_path) == ["out"]


def test_of_two_jobs_with_one_target_one_wins_whole(tmp_path):
    target = str(tmp_path / "out")
    late = Cluster(["late"], during=lambda function: save(target, Cluster(["early"]), write_text))
    with pytest.raises(JobError, match="FileAlreadyExists"):
        save(target, late, write_text)
    assert files_of(tmp_path / "out") == {"_SUCCESS": ["part-00000"], "part-00000": b"early\n"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_job_leaves_nothing(tmp_path):
    def fail(function):
        raise RuntimeError("no executors")

    with pytest.raises(RuntimeError, match="no executors"):
        save(str(tmp_path / "out"), Cluster(["x"], during=fail), write_text)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 1)])
def test_a_part_that_the_driver_cannot_see_whole_is_named_and_nothing_is_published(tmp_path, damage):
    class Elsewhere(Cluster):  # as on a host with a disk of its own
        def attempt(self, function, index, records=None):
            answer = super().attempt(function, index, records)
            if index == 1:
                damage(os.path.join(function.args[0], answer[0]))
            return answer

    with pytest.raises(JobError, match=r"OUTPUT_PART_LOST.*1 of 2 files.*all hosts share"):
        save(str(tmp_path / "out"), Elsewhere(["x"], ["y"]), write_text)
    assert os.listdir(tmp_path) == []


def test_a_failed_attempt_leaves_no_file(tmp_path):
    seen = []

    def records():
        yield "x"
        raise ValueError("bad record")

    def during(function):
        with pytest.raises(ValueError, match="bad record"):
            cluster.attempt(function, 0, records())
        seen.extend(os.listdir(function.args[0]))

    cluster = Cluster(["x"], during=during)
    save(str(tmp_path / "out"), cluster, write_text)
    assert seen == []


def test_OUT_6_a_zombie_cannot_write_after_the_job(tmp_path):
    kept = []
    cluster = Cluster(["x"], during=kept.append)
    save(str(tmp_path / "out"), cluster, write_text)
    with pytest.raises(FileNotFoundError):
        cluster.attempt(kept[0], 0, ["zombie"])
    assert files_of(tmp_path / "out") == {"_SUCCESS": ["part-00000"], "part-00000": b"x\n"}
    assert os.listdir(tmp_path) == ["out"]


def test_OUT_3_while_the_job_runs_readers_see_nothing(tmp_path):
    def during(function):
        cluster.attempt(function, 0)
        with pytest.raises(JobError, match="INPUT_NOT_FOUND"):
            _ = sources.TextFile(NodeId(1), str(tmp_path / "out"), 2).partition_count
        with pytest.raises(JobError, match="matches 0 files"):
            _ = sources.TextFile(NodeId(1), str(tmp_path / "*"), 2).partition_count

    cluster = Cluster(["x"], during=during)
    save(str(tmp_path / "out"), cluster, write_text)


def test_pickle_files_come_back_in_order(tmp_path):
    rng = random.Random(3)
    parts = [[(i, rng.randbytes(rng.randrange(3000))) for i in range(3000)], [], [{1}, None, "x"]]
    saved = save(str(tmp_path / "out"), Cluster(*parts), rows.write)
    names = [str(tmp_path / "out" / part) for part in saved.parts]
    node = sources.PickleFile(NodeId(1), str(tmp_path / "out"))
    assert [list(node.compute(p, (), None)) for p in range(node.partition_count)] == parts
    node = sources.PickleFile.of(NodeId(2), names[::-1])
    assert [list(node.compute(p, (), None)) for p in range(node.partition_count)] == parts[::-1]


