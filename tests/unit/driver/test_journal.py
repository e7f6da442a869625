"""The journal: durable before it answers, a prefix whatever happens to it, one writer, a budget."""

from __future__ import annotations

import queue
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from spark_ft.driver.journal import Journal
from spark_ft.errors import BlockMissing, DriverFenced, JournalFailed, SparkFtError
from spark_ft.ids import ActionId, Fingerprint, Generation, Incarnation
from spark_ft.protocol.journal import (
    ActionCancelled,
    ActionFinished,
    Dropped,
    EpochBegun,
    GenerationBegun,
    Record,
    Recovered,
    replay,
)

BUDGET = 1 << 20
A, B, C = (ActionId(letter * 16) for letter in (b"a", b"b", b"c"))
S = Fingerprint(b"s" * 16)


def begin(
    path: Path,
    name: str = "driver-1",
    budget: int = BUDGET,
    told: Callable[[SparkFtError], None] = lambda error: None,
) -> Journal:
    return Journal(path / "journal", Incarnation(name), 0, budget, told)


def written(journal: Journal, *records: Record) -> SparkFtError | None:
    """Write and wait: what the journal answers."""
    answers: list[SparkFtError | None] = []
    done = threading.Event()

    def then(error: SparkFtError | None) -> None:
        answers.append(error)
        done.set()

    journal.write(records, then)
    assert done.wait(10)
    return answers[0]


def finished(action: ActionId) -> ActionFinished:
    return ActionFinished(action, "count at x.py:1", 2, ((S, 3, ((1, b"u"),)),), ((S, 0, 99),))


def test_what_was_written_is_known_to_the_next_life(tmp_path: Path) -> None:
    first = begin(tmp_path)
    assert first.recovered == Recovered(epoch=1)
    assert written(first, finished(A), GenerationBegun(S, Generation(1)), Dropped((S,))) is None
    assert written(first, ActionCancelled(B, "by hand")) is None
    first.results.keep(A, [(0, 5, b"zero"), (1, 5, b"one")])
    first.close()
    second = begin(tmp_path, "driver-2")
    known = second.recovered
    assert known.epoch == 2
    assert known.finished == {A: finished(A)}
    assert known.generations == {S: 1} and known.dropped == {S}
    assert known.results == {A: {0: 5, 1: 5}}
    assert second.results.read(A, 1) == b"one"
    second.close()


def test_records_that_come_together_are_one_transaction(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    answered: list[object] = []
    under_way, all_in = threading.Event(), threading.Event()

    def first(error: object) -> None:
        answered.append(error)
        under_way.set()
        assert all_in.wait(10)  # meanwhile the others queue up

    journal.write([finished(A)], first)
    assert under_way.wait(10)
    for number in range(20):
        journal.write([GenerationBegun(S, Generation(number + 1))], answered.append)
    all_in.set()
    journal.close()
    assert answered == [None] * 21
    assert journal.commit_count == 2


@pytest.mark.parametrize("kept", range(5))
def test_DR_9_reading_stops_at_the_first_damaged_record(tmp_path: Path, kept: int) -> None:
    journal = begin(tmp_path)
    for number in range(4):
        assert written(journal, GenerationBegun(S, Generation(number + 1))) is None
    key = b"r" + kept.to_bytes(8, "big")
    whole = journal._segment.get(key)
    assert whole is not None
    journal._segment.write([(key, whole[:-1] + bytes((whole[-1] ^ 1,)))])
    journal.close()
    again = begin(tmp_path, "driver-2")
    assert again.recovered.epoch == (2 if kept else 1)
    assert again.recovered.generations == ({S: kept - 1} if kept > 1 else {})
    assert written(again, Dropped((S,))) is None
    again.close()
    last = begin(tmp_path, "driver-3")  # what was behind the damage does not come back
    assert last.recovered.generations == ({S: kept - 1} if kept > 1 else {})
    assert last.recovered.dropped == {S}
    last.close()


@pytest.mark.parametrize("bytes_left", (0, 100, 4096, 8192, 12288))
def test_DR_9_a_journal_cut_short_is_put_aside_and_a_new_one_begun(tmp_path: Path, bytes_left: int) -> None:
    journal = begin(tmp_path)
    assert written(journal, *[GenerationBegun(S, Generation(n + 1)) for n in range(400)]) is None
    journal.close()
    file = tmp_path / "journal" / "records" / "data.mdb"
    assert file.stat().st_size > bytes_left
    with open(file, "r+b") as opened:
        opened.truncate(bytes_left)
    again = begin(tmp_path, "driver-2")
    assert again.recovered.generations == {}
    assert (tmp_path / "journal.damaged" / "records").is_dir()
    assert written(again, finished(A)) is None
    again.close()
    third = begin(tmp_path, "driver-3")
    assert set(third.recovered.finished) == {A}
    third.close()


def test_DR_9_any_prefix_of_records_is_a_state_that_only_grows() -> None:
    records: Sequence[Record] = [
        EpochBegun(1, Incarnation("driver-1")), GenerationBegun(S, Generation(1)), finished(A),
        EpochBegun(2, Incarnation("driver-2")), GenerationBegun(S, Generation(2)), Dropped((S,)), finished(B),
    ]  # fmt: skip
    before = Recovered()
    for count in range(len(records) + 1):
        state = replay(records[:count])
        assert state.epoch >= before.epoch
        assert state.generations.get(S, 0) >= before.generations.get(S, 0)
        assert before.finished.items() <= state.finished.items() and before.dropped <= state.dropped
        before = state


_OTHER = """
import sys
from pathlib import Path
from spark_ft.driver.journal import Journal
Journal(Path(sys.argv[1]), "driver-2", 0, 1 << 20, print).close()
"""


@pytest.mark.parametrize("writes", (True, False))
def test_DR_4_the_older_driver_writes_nothing_once_another_has_begun(tmp_path: Path, writes: bool) -> None:
    told: queue.Queue[SparkFtError] = queue.Queue()
    older = begin(tmp_path, told=told.put)
    assert written(older, finished(A)) is None
    subprocess.run([sys.executable, "-c", _OTHER, str(tmp_path / "journal")], check=True)
    if writes:
        answer = written(older, finished(B))
        assert isinstance(answer, DriverFenced) and answer.getCondition() == "DRIVER_FENCED"
        assert isinstance(written(older, finished(C)), DriverFenced)
    assert told.get(timeout=10).getCondition() == "DRIVER_FENCED"  # also with nothing to write
    older.results.keep(B, [(0, 0, b"late")])
    older.close()
    assert told.empty()
    last = begin(tmp_path, "driver-3")
    assert last.recovered.epoch == 3
    assert set(last.recovered.finished) == {A} and not last.recovered.results
    last.close()


def test_DR_8_a_full_disk_ends_the_journal_and_leaves_what_was_true(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    assert written(journal, finished(A)) is None
    size = (tmp_path / "journal" / "records" / "data.mdb").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        big = ActionFinished(B, "x" * 100_000, 1)
        answer = written(journal, big)
        assert isinstance(answer, JournalFailed) and answer.getCondition() == "JOURNAL_WRITE_FAILED"
        assert "data" in str(answer) or "bytes needed" in str(answer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(written(journal, finished(C)), JournalFailed)  # one is lost, so no later one counts
    journal.close()
    again = begin(tmp_path, "driver-2")
    assert set(again.recovered.finished) == {A}
    again.close()


def test_results_have_a_budget_and_the_oldest_go_first(tmp_path: Path) -> None:
    journal = begin(tmp_path, budget=10_000)
    for action in (A, B, C):
        journal.results.keep(action, [(0, 0, b"x" * 4_000)])
        assert written(journal, finished(action)) is None
    assert set(journal.results.index()) == {B, C}
    with pytest.raises(BlockMissing):
        journal.results.read(A, 0)
    assert written(journal, Dropped((S,))) is None
    journal.close()
    again = begin(tmp_path, "driver-2", budget=10_000)
    assert set(again.recovered.finished) == {B, C}, "what cannot be answered is forgotten"
    assert set(again.recovered.results) == {B, C}
    assert again.results.size_bytes == 8_000
    again.close()


def test_an_action_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    journal = begin(tmp_path, budget=10_000)
    for partition in range(4):
        journal.results.keep(A, [(partition, 0, b"x" * 4_000)])
    assert journal.results.index() == {}
    journal.results.keep(B, [(0, 0, b"small")])
    assert journal.results.read(B, 0) == b"small"
    journal.close()


def test_a_result_that_comes_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    journal.results.keep(A, [(0, 1, b"old")])
    journal.results.keep(A, [(0, 2, b"newer")])
    journal.close()
    again = begin(tmp_path, "driver-2")
    assert again.recovered.results == {A: {0: 2}}
    assert again.results.read(A, 0) == b"newer"
    assert again.results.size_bytes == len(b"newer")
    again.results.withdraw(A)
    again.close()
    last = begin(tmp_path, "driver-3")
    assert last.recovered.results == {}
    last.close()


def test_damaged_results_cost_no_more_than_themselves(tmp_path: Path) -> None:
    journal = begin(tmp_path)
    journal.results.keep(A, [(0, 1, b"zero")])
    assert written(journal, finished(A)) is None
    journal.close()
    with open(tmp_path / "journal" / "results" / "data.mdb", "r+b") as file:
        file.truncate(4096)
    again = begin(tmp_path, "driver-2")
    assert set(again.recovered.finished) == {A} and again.recovered.results == {}
    again.results.keep(B, [(0, 1, b"zero")])
    assert again.results.read(B, 0) == b"zero"
    again.close()
