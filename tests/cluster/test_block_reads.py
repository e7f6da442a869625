"""What the reader of a block may meet: rows that are missing, stores that lie, data dropped on purpose."""

import random
import re
import shutil
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import lmdb
import pytest

from spark_ft import rows
from spark_ft.errors import JobError
from spark_ft.ids import ShuffleId
from spark_ft.storage import blocks, layout
from tests.cluster.faultlib import Action, Gate, Running, wait_until
from tests.cluster.test_block_faults import NUMBERS, SUMS, reducers_at_gate, store_of, written_by


def losing_a_row(gate: Gate, victim: int):
    """For mapPartitionsWithIndex: the first attempt of ``victim`` drops one record of the first batch that it
    writes, and counts it all the same: every checksum is right."""

    def torn(index, records):
        if index == victim and gate.arrive("torn") == 0:
            whole = blocks.OutputWriter.append

            def append(self, reduce_index, batch, row_count):
                blocks.OutputWriter.append = whole
                left = [record for part in rows.iter_batches(batch) for record in part][1:]
                whole(self, reduce_index, rows.encode(left), row_count)

            blocks.OutputWriter.append = append
        return records

    return torn


def test_BL_4_a_row_that_was_lost_in_writing_is_missed_by_its_reader(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")
    pairs = running.sc.parallelize(range(NUMBERS), 4).map(lambda x: (x % 5, x))
    dealt = pairs.mapPartitionsWithIndex(losing_a_row(gate, 2)).partitionBy(1)
    assert sorted(x for _, x in dealt.collect()) == list(range(NUMBERS))
    assert gate.arrivals() == {"torn": 2}, "one attempt lost a row, and one did not"
    reports = running.log.of("fetch_failed")
    assert {(event["map"], event["evidence"]) for event in reports} == {(2, "incomplete")}
    assert running.starts("map") == Counter(range(4)) + Counter([2])


def test_BL_10_a_store_that_lies_twice_is_given_up_and_its_outputs_are_made_elsewhere(
    start, tmp_path
) -> None:
    running, gate = start(spark_shuffle_compress=False), Gate(tmp_path / "gate")
    numbers = running.sc.parallelize(range(NUMBERS), 9).mapPartitionsWithIndex(gate.share(3))
    grouped = numbers.map(lambda x: (x % 5, f"<{x:05d}>")).groupByKey(3).mapValues(sorted)
    action = Action(lambda: sorted(grouped.mapPartitionsWithIndex(gate.hold).collect()))
    wait_until(lambda: gate.waiting() == 3, what="three reducers")
    executor, written = max(written_by(running).items(), key=lambda item: len(item[1]))
    first, second, *_ = sorted(written)
    data = store_of(running, executor) / "seg-00000" / "data.mdb"
    before = data.read_bytes()
    with data.open("r+b") as file:
        for bad in (first, second):
            mine = range(bad * NUMBERS // 9, (bad + 1) * NUMBERS // 9)
            for record in mine:  # whichever reducer comes first meets it
                for found in re.finditer(b"<%05d>" % record, before):
                    file.seek(found.start())
                    file.write(b"<9")
    gate.open()
    assert action.result() == [(key, [f"<{x:05d}>" for x in range(key, NUMBERS, 5)]) for key in range(5)]
    reports = running.log.of("fetch_failed", evidence="corrupt")
    assert {(event["map"], event["store"]) for event in reports} == {(first, executor), (second, executor)}
    assert [event["store"] for event in running.log.of("store_quarantined")] == [executor]
    again = {index for index, starts in running.starts("map").items() if starts > 1}
    assert again == set(written), "what lay there, and nothing else"
    running.log.wait_for("executor_lost", executor=executor)
    late = [e for e in running.log.of("task_start", executor=executor) if e["t_ms"] > reports[-1]["t_ms"]]
    assert not late, "it is given nothing more"


def outputs_of(running: Running, shuffle: int):
    return running.sc._driver._core.outputs.get(ShuffleId(shuffle))


def test_BL_15_a_shuffle_that_nobody_refers_to_any_more_is_kept_while_a_recovery_needs_it(
    start, tmp_path
) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    action = reducers_at_gate(running, gate, maps=6, reducers=3)
    running.sc._driver.release((ShuffleId(0),))  # what the collector says of the last reference
    executor, lost = sorted(written_by(running).items())[0]
    shutil.rmtree(store_of(running, executor))
    gate.open()
    assert action.result() == SUMS
    assert running.starts("map") == Counter(range(6)) + Counter(lost), "and nothing that was dropped"
    wait_until(lambda: outputs_of(running, 0) is None, what="the end of what nobody needs any more")
    hosts = running.sc._driver.scratch / "hosts"
    wait_until(lambda: any(path.stat().st_size for path in hosts.glob("*/expired")), what="a tombstone")


def test_BL_15_what_was_dropped_on_purpose_is_expired_and_made_again(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    action = reducers_at_gate(running, gate, maps=6, reducers=3)
    executor, lost = sorted(written_by(running).items())[0]
    store = store_of(running, executor)
    layout.mark_expired(store.parent.parent, [outputs_of(running, 0).fingerprint])
    shutil.rmtree(store)
    gate.open()
    assert action.result() == SUMS, "it is never taken for empty"
    assert {event["evidence"] for event in running.log.of("fetch_failed")} == {"expired"}
    assert running.starts("map") == Counter(range(6)) + Counter(lost)


def broadcast_needed_again(running: Running, gate: Gate, table, give_up) -> Action:
    """Map outputs that were made with a broadcast are lost with all processes that have loaded it, after the
    program has given it up; the reducers have yet to read."""
    action = reducers_at_gate(running, gate, 6, 3, lambda x: (table.value[x], x))
    give_up()
    shutil.rmtree(store_of(running, sorted(written_by(running))[0]))
    for pid in running.executor_pids():
        running.kill(pid)
    gate.open()
    return action


def test_BL_14_a_broadcast_that_was_unpersisted_is_loaded_again_by_a_recovery(start, tmp_path) -> None:
    running = start()
    table = running.sc.broadcast({x: x % 5 for x in range(NUMBERS)})
    action = broadcast_needed_again(running, Gate(tmp_path / "gate"), table, table.unpersist)
    assert action.result() == SUMS
    assert max(running.starts("map").values()) == 2, "nobody needed it again: nothing is shown"


def test_BL_14_a_broadcast_that_was_destroyed_under_a_recovery_is_an_error_that_says_so(
    start, tmp_path
) -> None:
    running = start()
    table = running.sc.broadcast({x: x % 5 for x in range(NUMBERS)})
    action = broadcast_needed_again(running, Gate(tmp_path / "gate"), table, table.destroy)
    with pytest.raises(JobError, match="destroyed") as raised:
        action.result()
    assert f"Broadcast({table.id})" in str(raised.value)
    assert running.sc.parallelize(range(4), 2).sum() == 6, "the session goes on"


def test_BL_20_a_record_of_many_megabytes_travels_in_chunks(start) -> None:
    running, size = start("local-cluster[2,1,512]", spark_shuffle_compress=False), 24 << 20

    def made(x: int) -> tuple[int, bytes]:
        return x, random.Random(x).randbytes(size if x == 1 else 10)

    dealt = running.sc.parallelize(range(4), 4).map(made).partitionBy(2, lambda key: key // 2)
    told = dealt.mapValues(lambda data: (len(data), zlib.crc32(data))).collect()
    assert sorted(told) == [(x, (len(made(x)[1]), zlib.crc32(made(x)[1]))) for x in range(4)]
    longest = [0]
    for store in (running.sc._driver.scratch / "hosts").glob("*/stores/*"):
        with tempfile.TemporaryDirectory(prefix="sft-") as copy:  # none is opened twice in one process
            shutil.copytree(store, Path(copy, "store"))
            for segment in Path(copy, "store").glob("seg-*"):
                with lmdb.open(str(segment), readonly=True, lock=False) as env, env.begin() as txn:
                    longest += [len(value) for _, value in txn.cursor()]
    assert sum(longest) > size and max(longest) <= layout.CHUNK_BYTES + 128
    assert set(running.starts("map").values()) == {1}
