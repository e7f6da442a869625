"""The store against a dictionary, under any order of writes, drops, deaths and damage.

Damage is tried in disposable children, because LMDB itself may crash on a damaged tree: that is allowed
(the probe after a death runs in such a child too), a wrong answer is not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spark_ft import rows
from spark_ft.errors import BlockExpired, StorageError
from spark_ft.ids import Fingerprint, Generation, HostId, ShuffleId, TaskId
from spark_ft.protocol.messages import BlockRef, MapStatus
from spark_ft.storage import gc, layout, lmdb_env
from spark_ft.storage.blocks import OutputKey, StoreReader, StoreWriter

HOST = HostId("host")
REDUCES = 3
names = st.integers(0, 2)
record = st.one_of(st.integers(), st.binary(max_size=40), st.integers(0, 90_000).map(bytes))
records = st.lists(record, max_size=4)
slices = st.lists(st.lists(records, max_size=3), min_size=REDUCES, max_size=REDUCES)


class StoreMachine(RuleBasedStateMachine):
    """Small segments, so that outputs roll over and span them."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.root = Path(self.directory.name)
        self.reader = StoreReader({HOST: self.root})
        self.life = self.tasks = 0
        self.epoch = [0, 0, 0]  # a dropped shuffle never comes again under its fingerprint
        self.outputs: dict[OutputKey, tuple[MapStatus, Any]] = {}
        self.blocks: list[tuple[BlockRef, bytes]] = []
        self.store = self.start()

    def start(self) -> StoreWriter:
        self.life += 1
        path = self.root / "stores" / f"life-{self.life}"
        return StoreWriter(path, HOST, segment_bytes=256 << 10, transaction_bytes=50_000)

    def fingerprint(self, name: int) -> Fingerprint:
        return Fingerprint(bytes([name, self.epoch[name]]) * 8)

    def read(self, status: MapStatus, key: OutputKey, index: int) -> list[Any]:
        buffers = self.reader.slice(HOST, status.store, status.segment, key, index)
        return [list(batch) for buffer in buffers for batch in rows.iter_batches(buffer)]

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def begin(self, name: int, what: Any) -> tuple[OutputKey, Any]:
        self.tasks += 1
        key = OutputKey(self.fingerprint(name), Generation(1), self.tasks % 4, TaskId(self.tasks))
        output = self.store.begin(ShuffleId(1), key, REDUCES)
        for index, batches in enumerate(what):
            for batch in batches:
                output.append(index, rows.encode(batch), len(batch))
        return key, output

    @rule(name=names, what=slices)
    def commit(self, name: int, what: Any) -> None:
        key, output = self.begin(name, what)
        self.outputs[key] = output.commit(((1, b"update"),)), what

    @rule(name=names, what=slices)
    def abort(self, name: int, what: Any) -> None:
        self.begin(name, what)[1].abort()

    @rule(name=names, what=slices)
    def leave_half_done_and_die(self, name: int, what: Any) -> None:
        self.begin(name, what)[1]._chunks.flush()
        self.die()

    @rule(chunks=st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 120_000).map(bytes)), max_size=4))
    def put_block(self, chunks: list[bytes]) -> None:
        self.blocks.append((self.store.put_block("rdd", b"name", chunks), b"".join(chunks)))

    @rule(name=names)
    def drop(self, name: int) -> None:
        gone, mine = self.fingerprint(name), self.store.path.name
        self.store.drop([gone])
        for key, (status, _) in list(self.outputs.items()):
            if key.fingerprint == gone and status.store == mine:
                del self.outputs[key]

    @rule(index=st.integers(0, 10))
    def drop_block(self, index: int) -> None:
        if self.blocks:
            ref, _ = self.blocks[index % len(self.blocks)]
            self.store.drop_blocks([ref])
            if ref.store == self.store.path.name:
                self.blocks = [entry for entry in self.blocks if entry[0] != ref]

    @rule()
    def die(self) -> None:
        for segment in list(self.store._segments.values()):
            segment.close()
        self.store = self.start()

    @rule()
    def collect(self) -> None:
        gc.collect_garbage(self.root, {self.store.path.name}, ())

    @rule(name=names)
    def drop_for_good(self, name: int) -> None:
        gone = self.fingerprint(name)
        self.epoch[name] += 1
        self.store.drop([gone])
        gc.collect_garbage(self.root, {self.store.path.name}, {gone})
        for key, (status, what) in list(self.outputs.items()):
            if key.fingerprint == gone:
                del self.outputs[key]
                # A neighbour may keep its closed segment there: then it is still whole, never empty.
                with contextlib.suppress(BlockExpired):
                    assert self.read(status, key, 2) == what[2]

    @invariant()
    def everything_committed_is_read_back(self) -> None:
        for key, (status, what) in self.outputs.items():
            for index in range(REDUCES):
                assert self.read(status, key, index) == what[index]
        for ref, data in self.blocks:
            assert b"".join(self.reader.block(ref)) == data

    @invariant()
    def what_a_probe_finds_is_what_was_reported(self) -> None:
        found = {
            (status.store, status.attempt): status
            for path in (self.root / "stores").glob("*")
            for status in self.reader.outputs(HOST, path.name, deep=True)
        }
        for status, _ in self.outputs.values():
            assert found[status.store, status.attempt] == status


TestStore = StoreMachine.TestCase
TestStore.settings = hypothesis.settings(max_examples=max(10, hypothesis.settings().max_examples // 3))


# --- Damage -----------------------------------------------------------------------------------


class Damaged:
    """A small store whose file is damaged byte by byte, and what its reader must answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        store = StoreWriter(root / "stores" / "s", HOST, segment_bytes=1 << 20, transaction_bytes=100_000)
        self.key = OutputKey(Fingerprint(b"k" * 16), Generation(1), 2, TaskId(3))
        output = store.begin(ShuffleId(1), self.key, REDUCES)
        self.slices = [[["one", 1]], [], [[b"two" * 30], [None, (1, 2)]]]
        for index, batches in enumerate(self.slices):
            for batch in batches:
                output.append(index, rows.encode(batch), len(batch))
        self.status = output.commit(((7, b"update"),))
        self.block = store.put_block("rdd", b"block", [b"the bytes", b" of a block" * 10])
        store.close()
        self.data = layout.segment_path(store.path, 0) / "data.mdb"
        self.pristine = self.data.read_bytes()

    def wrong_answers(self) -> list[str]:
        """Everything that is neither right nor an error of the tree."""
        reader, status = StoreReader({HOST: self.root}), self.status
        wrong = []
        for index, expected in enumerate(self.slices):
            try:
                buffers = reader.slice(HOST, "s", status.segment, self.key, index)
                got = [list(batch) for buffer in buffers for batch in rows.iter_batches(buffer)]
            except StorageError:
                continue
            if got != expected:
                wrong.append(f"slice {index}: {got}")
        try:
            if b"".join(reader.block(self.block)) != b"the bytes" + b" of a block" * 10:
                wrong.append("block")
        except StorageError:
            pass
        found = reader.outputs(HOST, "s", deep=True)
        if found not in ([], [status]):
            wrong.append(f"outputs {found}")
        for segment in list(lmdb_env._registry.by_inode.values()):
            segment.close()
        return wrong

    def examine(self, positions: range, report: Path) -> None:
        """In the child: damage and read, one position after the other; a line says what came of each."""
        signal.alarm(60)  # a hang is no answer either
        with open(report, "a") as lines, open(self.data, "r+b", buffering=0) as file:
            for position in positions:
                byte = self.pristine[position]
                file.seek(position)
                file.write(bytes([byte ^ (1 << position % 8)]))
                lines.write(f"{position} ")
                lines.flush()
                for wrong in self.wrong_answers():
                    lines.write(f"WRONG {wrong} ")
                lines.write("\n")
                file.seek(position)
                file.write(bytes([byte]))


def in_child(work: Any) -> int:
    """The exit code of a forked child that does ``work``; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_BL_3_ST_10_a_bit_flip_at_any_byte_of_the_file_is_never_a_wrong_answer(tmp_path: Path) -> None:
    damaged = Damaged(tmp_path)
    report = tmp_path / "report"
    size, start, crashes = len(damaged.pristine), 0, 0
    while start < size:
        code = in_child(lambda start=start: damaged.examine(range(start, size), report))
        damaged.data.write_bytes(damaged.pristine)
        if code == 0:
            break
        assert code in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT), f"exit code {code} at {start}"
        crashes += 1
        start = int(report.read_text().rsplit("\n", 1)[-1].split()[0]) + 1
    lines = report.read_text().splitlines()
    assert "WRONG" not in report.read_text()
    assert len(lines) + crashes >= size
    assert damaged.wrong_answers() == []  # and the pristine file is right


def test_ST_10_a_bit_flip_in_any_page_of_a_deeper_tree_is_never_a_wrong_answer(tmp_path: Path) -> None:
    store = StoreWriter(tmp_path / "stores" / "s", HOST, segment_bytes=4 << 20, transaction_bytes=100_000)
    statuses = {}
    for number in range(80):  # some leaves and a branch page above them
        key = OutputKey(Fingerprint(b"k" * 16), Generation(1), number, TaskId(number))
        output = store.begin(ShuffleId(1), key, 2)
        output.append(1, rows.encode([number] * 3), 3)
        statuses[key] = output.commit()
    segment = lmdb_env.open_segment(layout.segment_path(store.path, 0))
    for number in range(20, 40):  # and pages on the free list
        store.discard(
            b"m" + OutputKey(Fingerprint(b"k" * 16), Generation(1), number, TaskId(number)).pack(), b"x"
        )
    store.close()
    data = segment.path / "data.mdb"
    pristine = data.read_bytes()
    reader = StoreReader({HOST: tmp_path})

    def examine(page: int, rng: random.Random) -> None:
        for _ in range(3):
            position = page * 4096 + rng.choice((rng.randrange(64), rng.randrange(4096)))
            damaged = bytearray(pristine)
            damaged[position] ^= 1 << rng.randrange(8)
            data.write_bytes(damaged)
            found = {status.map_index: status for status in reader.outputs(HOST, "s", deep=True)}
            assert all(
                status == statuses[key] for key, status in statuses.items() if status.map_index in found
            )
            for key, status in statuses.items():
                with contextlib.suppress(StorageError):
                    buffers = reader.slice(HOST, "s", status.segment, key, 1)
                    got = [list(batch) for buffer in buffers for batch in rows.iter_batches(buffer)]
                    assert got == [[key.map_index] * 3]
            for opened in list(lmdb_env._registry.by_inode.values()):
                opened.close()

    for page in range(len(pristine) // 4096):
        code = in_child(lambda page=page: examine(page, random.Random(page)))
        assert code in (0, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT), f"page {page}"


def test_ST_9_a_file_cut_or_zeroed_anywhere_is_never_a_wrong_answer(tmp_path: Path) -> None:
    damaged = Damaged(tmp_path)
    pages = len(damaged.pristine) // 4096

    def examine() -> None:
        for page in range(pages):
            cut = damaged.pristine[: page * 4096]
            zeroed = cut + bytes(4096) + damaged.pristine[(page + 1) * 4096 :]
            for content in (cut, zeroed):
                damaged.data.write_bytes(content)
                assert damaged.wrong_answers() == []

    assert in_child(examine) in (0, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)
