"""Lineages and jobs: what changes a fingerprint, what does not, and how equal ones are counted."""

import os
import sys
import threading
import time

import pytest

from spark_ft import accumulators, broadcast
from spark_ft.badrecords import BadRecords
from spark_ft.errors import JobError
from spark_ft.lineage import sources
from spark_ft.lineage.explain import explain
from spark_ft.lineage.fingerprint import Fingerprints
from spark_ft.protocol.messages import BlockRef
from spark_ft.rdd import RDD
from spark_ft.storagelevel import StorageLevel
from tests.unit.rdd.inprocess import InProcess


def made(rdd):
    """The fingerprint, which must be safe."""
    found = Fingerprints().node(rdd._node)
    assert found.unsafe == ()
    return found.digest


def numbers(session=None, count=4, size=10):
    session = session or InProcess()
    node = sources.parallel_collection(session.new_node_id(), list(range(size)), count, None)
    return RDD(session, node)


def text_file(session, path, minimum=2):
    return RDD(session, sources.TextFile(session.new_node_id(), str(path), minimum))


def add(x, y):
    return x + y


PROGRAMS = {
    "map": lambda r: r.map(abs),
    "another map": lambda r: r.map(str),
    "filter": lambda r: r.filter(abs),
    "a lambda": lambda r: r.map(lambda x: x + 1),
    "another constant": lambda r: r.map(lambda x: x + 2),
    "mapPartitions": lambda r: r.mapPartitions(list),
    "sample": lambda r: r.sample(False, 0.5, 1),
    "another seed": lambda r: r.sample(False, 0.5, 2),
    "union": lambda r: r.union(r),
    "of three": lambda r: r.union(r).union(r),
    "zip": lambda r: r.zip(r),
    "cartesian": lambda r: r.cartesian(r),
    "coalesce": lambda r: r.coalesce(2),
    "fewer": lambda r: r.coalesce(3),
    "reduceByKey": lambda r: r.keyBy(abs).reduceByKey(add),
    "into 3": lambda r: r.keyBy(abs).reduceByKey(add, 3),
    "foldByKey": lambda r: r.keyBy(abs).foldByKey(0, add),
    "from 1": lambda r: r.keyBy(abs).foldByKey(1, add),
    "groupByKey": lambda r: r.keyBy(abs).groupByKey(),
    "partitionBy": lambda r: r.keyBy(abs).partitionBy(4),
    "by a function": lambda r: r.keyBy(abs).partitionBy(4, int),
    "sorted": lambda r: r.keyBy(abs).repartitionAndSortWithinPartitions(4),
    "descending": lambda r: r.keyBy(abs).repartitionAndSortWithinPartitions(4, ascending=False),
    "join": lambda r: r.keyBy(abs).join(r.keyBy(abs)),
    "cogroup": lambda r: r.keyBy(abs).cogroup(r.keyBy(abs)),
    "placed": lambda r: r.keyBy(abs).partitionBy(4).mapPartitions(list),
    "still placed": lambda r: r.keyBy(abs).partitionBy(4).mapPartitions(list, True),
    "pipe": lambda r: r.pipe("cat"),
    "barrier": lambda r: r.barrier().mapPartitions(list),
}


def test_every_step_counts_and_nothing_but_the_steps():
    found = {}
    for name, program in PROGRAMS.items():
        digest = made(program(numbers()))
        assert digest not in found, (name, found[digest])
        assert made(program(numbers())) == digest, "ids of nodes, shuffles and RDDs are no part of it"
        found[digest] = name
    assert len({made(numbers(count=c, size=s)) for c in (1, 2, 3) for s in (10, 11)}) == 6


def test_where_partitions_are_kept_does_not_count():
    kept = numbers().map(abs).persist(StorageLevel.DISK_ONLY)
    assert made(kept.map(str)) == made(numbers().map(abs).map(str))


def test_values_are_looked_at_when_they_are_asked_for():
    weights = {"w": 1}
    rdd, fingerprints = numbers().map(lambda x: x * weights["w"]), Fingerprints()
    before = fingerprints.job(rdd._node, len)
    weights["w"] = 2
    after = fingerprints.job(rdd._node, len)
    weights["w"] = 1
    again = fingerprints.job(rdd._node, len)
    assert before.digest != after.digest
    assert (again.digest, again.ordinal) == (before.digest, 1)


def test_what_lies_beyond_a_shuffle_is_fixed_once_it_was_pickled():
    weights = [1]
    pairs = numbers().map(lambda x: (x % weights[0], x))
    summed, fingerprints = pairs.reduceByKey(add), Fingerprints()
    dependency = summed._node.dependencies[0]
    drawn = dependency.fingerprint
    first = fingerprints.job(summed._node, len)
    name = dependency.fingerprint
    assert name != drawn
    weights.append(2)
    assert fingerprints.job(summed._node, len).digest == first.digest
    assert dependency.fingerprint == name
    assert fingerprints.job(pairs._node, len).digest != first.digest


def test_equal_shuffles_are_counted():
    fingerprints = Fingerprints()
    names = []
    for _ in range(3):
        summed = numbers().keyBy(abs).reduceByKey(add)
        fingerprints.job(summed._node, len)
        names.append(summed._node.dependencies[0].fingerprint)
    assert len(set(names)) == 3
    again = Fingerprints()
    for name in names:
        summed = numbers().keyBy(abs).reduceByKey(add)
        again.job(summed._node, len)
        assert summed._node.dependencies[0].fingerprint == name


def test_equal_jobs_are_counted_in_order_and_others_apart():
    rdd, fingerprints = numbers().map(abs), Fingerprints()
    loop = [fingerprints.job(rdd._node, len) for _ in range(5)]
    assert [job.ordinal for job in loop] == [0, 1, 2, 3, 4]
    assert len({job.key for job in loop}) == 5
    others = [
        fingerprints.job(rdd._node, sum),
        fingerprints.job(rdd._node, len, [0]),
        fingerprints.job(rdd._node, len, [1]),
        fingerprints.job(rdd.map(abs)._node, len),
    ]
    assert [job.ordinal for job in others] == [0, 0, 0, 0]
    assert len({job.digest for job in others} | {loop[0].digest}) == 5
    again = Fingerprints()
    assert again.job(rdd._node, len, [1]) == others[2], "another job before it changes nothing"
    assert [again.job(rdd._node, len).key for _ in range(5)] == [job.key for job in loop]


def test_properties_that_tasks_can_read_count_for_the_job_and_for_the_shuffles_it_is_the_first_to_use():
    names = set()
    for text in ("a", "b", "a"):
        summed, fingerprints = numbers().keyBy(abs).reduceByKey(add), Fingerprints()
        job = fingerprints.job(summed._node, len, None, {"mode": text})
        names.add((job.key, summed._node.dependencies[0].fingerprint))
    assert len(names) == 2
    assert len({name for pair in names for name in pair}) == 4


def test_methods_of_records_that_were_pickled_earlier_count(tmp_path, monkeypatch):
    session, file = InProcess(), tmp_path / "part-0"
    file.write_bytes(b"")

    def read(score):
        Point = type("Point", (), {"score": score, "__module__": "__main__"})
        monkeypatch.setattr(sys.modules["__main__"], "Point", Point, raising=False)
        return made(RDD(session, sources.PickleFile(session.new_node_id(), str(file))))

    assert read(lambda self: 1) == read(lambda self: 1)
    assert read(lambda self: 1) != read(lambda self: 2)


def test_what_cannot_be_known_is_counted_by_nobody():
    lock, fingerprints = threading.Lock(), Fingerprints()
    rdd = numbers().map(lambda x: (lock, x)).reduceByKey(add)
    jobs = [fingerprints.job(rdd._node, len) for _ in range(3)]
    assert [job.ordinal for job in jobs] == [0, 0, 0]
    assert "variable lock" in jobs[0].unsafe[0]
    assert jobs[0].unsafe == jobs[2].unsafe, "the shuffle remembers why"
    assert not fingerprints._counts
    assert Fingerprints().job(numbers().map(lambda x: (lock, x))._node, len).unsafe


def test_surroundings_count():
    rdd = numbers()
    one, two = Fingerprints({"hash seed": "0"}), Fingerprints({"hash seed": "1"})
    assert one.node(rdd._node).digest != two.node(rdd._node).digest
    assert one.node(rdd._node) == Fingerprints({"hash seed": "0"}).node(rdd._node)


def test_equal_jobs_of_several_threads_share_the_ordinals() -> None:
    fingerprints, found = Fingerprints(), []
    rdds = [numbers().keyBy(abs).reduceByKey(add) for _ in range(4)]

    def work(rdd):
        found.extend(fingerprints.job(rdd._node, len) for _ in range(20))

    threads = [threading.Thread(target=work, args=(rdd,)) for rdd in rdds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.ordinal for job in found) == list(range(80))
    assert len({job.key for job in found}) == 80
    assert len({rdd._node.dependencies[0].fingerprint for rdd in rdds}) == 4


# --- Inputs -----------------------------------------------------------------------------------


def test_records_of_a_collection_count_as_they_were_when_they_were_given():
    session, fingerprints = InProcess(), Fingerprints()

    def collection(data, count=2, look=fingerprints.value):
        return RDD(session, sources.parallel_collection(session.new_node_id(), data, count, None, look))

    data = [{"a": 1}, {"b": {2}}]
    rdd = collection(data)
    before = made(rdd)
    data[0]["a"] = 2
    assert made(rdd) == before
    assert made(collection(data)) != before
    data[0]["a"] = 1
    assert made(collection(data)) == made(collection(iter(data))) == before
    assert made(collection(data, 1)) != before
    assert made(collection(range(5))) == made(collection(range(5), look=None))
    assert made(collection(data, look=None)) == made(collection(data, look=None))


def test_records_in_blocks_are_not_read_again_to_explain():
    session = InProcess()
    node = sources.ParallelCollection(session.new_node_id(), [BlockRef("driver", "s", 0, b"k")])
    assert "spark.app.id" in Fingerprints().node(node).unsafe[0]


FILES = {
    sources.TextFile: (2,),
    sources.WholeFiles: (2, True, 2),
    sources.FixedRecords: (4, 2),
    sources.PickleFile: (),
}


@pytest.mark.parametrize("kind", FILES)
def test_DR_6_a_file_counts_by_path_size_and_time(tmp_path, kind):
    session = InProcess()
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "part-0"

    def read(path=tmp_path / "in"):
        return made(RDD(session, kind(session.new_node_id(), str(path), *FILES[kind])))

    file.write_bytes(b"abcdabcd" * 8)
    os.utime(file, ns=(0, 1))
    first = read()
    assert read() == first
    os.utime(file, ns=(0, 2))
    second = read()
    file.write_bytes(b"abcd")
    os.utime(file, ns=(0, 2))
    third = read()
    (tmp_path / "in" / "part-1").write_bytes(b"")
    fourth = read()
    file.rename(tmp_path / "in" / "part-2")
    assert len({first, second, third, fourth, read()}) == 5


def test_the_number_of_splits_counts_and_not_how_a_path_is_written(tmp_path):
    session, file = InProcess(), tmp_path / "a.txt"
    file.write_text("x\n" * 1000)
    assert made(text_file(session, file, 2)) != made(text_file(session, file, 3))
    assert made(text_file(session, file)) == made(text_file(session, f"file://{tmp_path}/*.txt"))


@pytest.mark.parametrize("kind", [sources.TextFile, sources.WholeFiles, sources.FixedRecords])
def test_UE_2_the_mode_of_reading_counts_and_what_was_read_does_not(tmp_path, kind):
    session, file = InProcess(), tmp_path / "a.txt"
    file.write_text("x\n" * 10)

    def read(bad):
        return made(RDD(session, kind(session.new_node_id(), str(file), *FILES[kind], bad)))

    tally = BadRecords()
    permissive = read(tally)
    assert permissive != read(None)
    tally("file:/x", 0, 3)
    assert read(tally) == read(BadRecords()) == permissive


def test_a_missing_input_is_told_as_such(tmp_path):
    with pytest.raises(JobError, match="does not exist"):
        Fingerprints().node(text_file(InProcess(), tmp_path / "none")._node)


def test_remote_files_count_by_what_their_file_system_says_of_them():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/fingerprints/a", b"x\n")
    first = made(text_file(InProcess(), "memory://fingerprints/a"))
    assert made(text_file(InProcess(), "memory://fingerprints/a")) == first
    memory.pipe("/fingerprints/a", b"y\n")
    assert made(text_file(InProcess(), "memory://fingerprints/a")) != first


def test_remote_files_of_no_version_are_different_each_time(monkeypatch):
    monkeypatch.setattr("spark_ft.lineage.inputs._VERSIONS", ())
    import fsspec

    fsspec.filesystem("memory").pipe("/fingerprints/b", b"x\n")
    [why] = Fingerprints().node(text_file(InProcess(), "memory://fingerprints/b")._node).unsafe
    assert "tells neither time nor version" in why


# --- Handles ------------------------------------------------------------------------------------


class Owner:
    def put_block(self, kind, name, chunks):
        return BlockRef("driver", "s", 0, name)

    def forget_broadcast(self, bid, block):
        pass


def test_broadcasts_count_by_content_and_as_they_were():
    look = Fingerprints().value
    value = {"a": [1, 2]}
    one, two = (broadcast.new_broadcast(value, Owner(), look) for _ in range(2))
    same = [made(numbers().map(lambda x, b=b: b.value)) for b in (one, two)]
    assert same[0] == same[1]
    value["a"].append(3)
    assert made(numbers().map(lambda x, b=one: b.value)) == same[0]
    other = broadcast.new_broadcast(value, Owner(), look)
    assert made(numbers().map(lambda x, b=other: b.value)) != same[0]


def test_accumulators_count_by_order_and_param():
    class Longest(accumulators.AccumulatorParam):
        def zero(self, value):
            return ""

        def addInPlace(self, a, b):
            return max(a, b, key=len)

    def program(counter):
        return made(numbers().map(lambda x: counter.add(x)))

    one, again = (accumulators.new_accumulator(0, None, 0) for _ in range(2))
    assert one.aid != again.aid
    assert program(one) == program(again)
    one.add(5)
    assert program(one) == program(again), "the sum so far is the driver's"
    assert program(accumulators.new_accumulator(0, None, 1)) != program(one)
    assert program(accumulators.new_accumulator(0.0, None, 0)) != program(one)
    assert program(accumulators.new_accumulator("", Longest(), 0)) != program(one)


def test_an_rdd_among_the_values_counts_by_its_lineage():
    rdd = numbers()
    look = Fingerprints().value
    assert look([rdd.map(abs)]) == look([numbers().map(abs)])
    assert look([rdd.map(abs)]) != look([rdd.map(str)])


def test_a_checkpoint_keeps_its_fingerprint_when_its_lineage_is_cut(tmp_path):
    session = InProcess(checkpoint_dir=str(tmp_path))
    rdd = numbers(session).map(abs)
    rdd.checkpoint()
    fingerprints = Fingerprints()
    before = fingerprints.node(rdd._node)
    below = fingerprints.node(rdd.map(str)._node)
    fingerprints.fix(rdd._node)
    rdd.count()
    assert rdd.isCheckpointed()
    assert fingerprints.node(rdd._node) == before
    assert fingerprints.node(rdd.map(str)._node) == below


# --- Size ---------------------------------------------------------------------------------------


def chain(length):
    offset, rdd = 3, numbers()
    for _ in range(length):
        rdd = rdd.map(lambda x: x + offset)
    return rdd


def test_BL_16_two_chains_of_10000_maps_take_linear_time_and_no_stack():
    begin = time.process_time()
    short = chain(1000)
    made(short)
    short_s = time.process_time() - begin
    begin = time.process_time()
    rdd = chain(10_000).union(chain(10_000))
    Fingerprints().job(rdd._node, len)
    assert time.process_time() - begin < 60 * max(short_s, 0.05)


def test_BL_17_shared_lineages_are_walked_once():
    rdd = numbers(count=1)
    for _ in range(30):
        rdd = rdd.zip(rdd)
    assert made(rdd) == made(rdd)


# --- Explanations -------------------------------------------------------------------------------


def test_explanations_name_the_variable_and_the_reason():
    lock, factor = threading.Lock(), 3
    rdd = numbers().map(lambda x: x * factor).map(lambda x: (x, lock)).reduceByKey(add).values()
    text = rdd.explainFingerprint()
    assert text.startswith("Differs in every run")
    assert "variable lock: _thread.lock  differs each time: it cannot be taken apart" in text
    assert "variable factor: 3" in text
    assert "aggregator" in text
    assert explain(numbers().map(abs)._node, Fingerprints()).startswith("Safe")


def test_explanations_look_beyond_shuffles_that_are_fixed():
    rdd, fingerprints = numbers().keyBy(abs).reduceByKey(add), Fingerprints()
    fingerprints.job(rdd._node, len)
    text = explain(rdd._node, fingerprints)
    assert "fixed when it was first used" in text
    assert "ParallelCollection" in text


def test_BL_16_explanations_of_long_lineages_are_flat():
    lines = explain(chain(3000)._node, Fingerprints()).splitlines()
    assert len(lines) > 3000
    assert max(map(len, lines)) < 200
