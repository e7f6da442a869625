"""The journal of an application, and the results that it keeps.

    I/O thread ── write(records, then) ──> journal thread: one synced transaction for all that came meanwhile
                                                └─ then(None), or then(error)
               ── keep(results) ──> one transaction, not synced

    <application>/journal/records/     synced: lost by nothing but the disk
                          results/     not synced: safe from any death of a process, as stores are

* A record is on the disk before ``then`` is called (S24).  Records are numbered; each proves itself by key
  and checksum.  Reading stops at the first that does not, and what comes behind it is cut off (DR-9): what
  is left is a prefix of what happened, and a prefix is always true (protocol/journal.py).
* Each environment names its owner, and each transaction looks there first: a driver that another one has
  taken over from can write nothing more, not even in the same instant (DR-4).
* After a failed write nothing more is written: the journal stays the prefix that it is (DR-8).
* Results have a budget.  Those of the oldest actions go first, and these actions are forgotten with them.
  Damaged or lost ones cost their tasks, no more.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from spark_ft.errors import (
    BlockCorrupt,
    BlockMissing,
    DriverFenced,
    JournalFailed,
    RemoteProtocolError,
    SparkFtError,
    StorageError,
)
from spark_ft.ids import ActionId, Incarnation
from spark_ft.log import get_logger
from spark_ft.protocol.codec import pack_record, unpack_record
from spark_ft.protocol.journal import KINDS, ActionFinished, EpochBegun, Record, Recovered, replay
from spark_ft.storage import layout, lmdb_env
from spark_ft.storage.lmdb_env import Segment, SegmentDamaged, SegmentFull, SegmentTaken

MAP_BYTES = 1 << 30  # of the records; the file grows with what is in it
CHECK_S = 0.5  # between two looks at whose it is
TAKE_OVER_S = 10.0  # a driver that is stopped in the midst of a transaction would keep us from ours

_OWNER = b"\x00owner"
_RECORD, _ORDER, _RESULT = b"r", b"a", b"k"
_NUMBER = struct.Struct(">Q")
_RESULT_KEY = struct.Struct(">16sIQI")  # action, partition, digest of what it was built from, bytes

Then = Callable[[SparkFtError | None], None]

log = get_logger(__name__)


class Journal:
    """Opens, or begins, the journal in ``directory`` and makes it ``me``'s; ``recovered`` is what it tells.

    A journal that cannot be read at all is put aside as ``journal.damaged``, and a new one begun.
    ``on_failure`` is told once, in the journal's thread, when it can be written no more (JournalFailed), or
    belongs to another driver by now (DriverFenced), which is seen within CHECK_S also while there is nothing
    to write.  Raises StorageError when none can be had: no room, another format, or another driver that
    holds it and does not go on.
    """

    def __init__(
        self,
        directory: Path,
        me: Incarnation,
        now_ms: int,
        results_bytes: int,
        on_failure: Callable[[SparkFtError], None],
        any_file_system: bool = False,
    ) -> None:
        self._me, self._now_ms, self._on_failure = me, now_ms, on_failure
        self._path = directory / "records"
        self._any_file_system = any_file_system
        self._queue: deque[tuple[Sequence[Record], Then]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failure: SparkFtError | None = None
        self.bytes_written = self.commit_count = 0  # of records, with their keys
        self._next = 0
        self._numbers: dict[ActionId, int] = {}  # action -> the number of its ActionFinished
        self._doomed: list[bytes] = []  # keys that the next transaction deletes
        self._begun = threading.Event()
        self.recovered = Recovered()
        self._thread = threading.Thread(
            target=self._run, args=(directory,), name="spark-ft-journal", daemon=True
        )
        self._thread.start()
        if not self._begun.wait(TAKE_OVER_S):
            text = f"the journal in {directory} is held by another driver that does not go on; end it"
            raise StorageError(text, "STORE_IN_USE")
        if self._failure is not None:
            raise self._failure
        self.results = Results(directory / "results", me, results_bytes, self._forget, any_file_system)
        self.recovered.results = self.results.index()

    # --- Any thread ---

    def write(self, records: Sequence[Record], then: Then) -> None:
        """Have ``then`` called, in the journal's thread, once the records are on the disk; or with
        DriverFenced or JournalFailed, and then they are not, nor will any later ones be."""
        with self._changed:
            self._queue.append((records, then))
            self._changed.notify()

    def is_ours(self) -> bool:
        """Whether no other driver has begun; also after ``close``."""
        try:
            segment = lmdb_env.open_segment(self._path)
        except StorageError:
            return False
        try:
            return segment.get(_OWNER) == self._me.encode()
        except StorageError:
            return False

    def close(self) -> None:
        """Write what is left, and write nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(TAKE_OVER_S)
        self._segment.close()
        self.results.close()

    def _forget(self, actions: Iterable[ActionId]) -> None:
        """The results of these are gone: their records tell of nothing any more."""
        numbers = [self._numbers.pop(action) for action in actions if action in self._numbers]
        if numbers:
            keys = [_RECORD + _NUMBER.pack(number) for number in numbers]
            with self._changed:
                self._doomed = [*self._doomed, *keys]  # with the next transaction

    # --- The journal's thread ---

    def _run(self, directory: Path) -> None:
        try:
            self._segment = self._take_over(directory)
        except SparkFtError as error:
            self._failure = error
            return
        finally:
            self._begun.set()
        while True:
            with self._changed:
                if not self._queue and not self._closing:
                    self._changed.wait(CHECK_S)
                batch, self._queue = self._queue, deque()
                if self._closing and not batch:
                    break
            failed = self._failure is not None
            if batch:
                self._commit([each for records, _ in batch for each in records])
            elif not failed:
                self._check_owner()
            if self._failure is not None and not failed:
                self._on_failure(self._failure)
            for _, then in batch:
                then(self._failure)

    def _take_over(self, directory: Path) -> Segment:
        path = self._path
        try:
            segment = self._opened(path)
            numbered, bad = _read(segment)
        except (BlockCorrupt, BlockMissing) as error:
            log.warning("the journal %s cannot be read and is put aside: %s", path, error)
            layout.remove_tree(directory.with_suffix(".damaged"))
            directory.rename(directory.with_suffix(".damaged"))
            segment, numbered, bad = self._opened(path), [], []
        if bad:
            log.warning("the journal %s is damaged: %d records at its end are given up", path, len(bad))
        while True:
            self.recovered = replay(each for _, each in numbered)
            self._next = numbered[-1][0] + 1 if numbered else 0
            before = segment.get(_OWNER)
            begun = EpochBegun(self.recovered.epoch + 1, self._me, self._now_ms)
            puts = [(_OWNER, self._me.encode()), self._numbered(begun)]
            try:
                segment.write(puts, bad, expect=(_OWNER, before))
                break
            except SegmentTaken:  # another driver begins in this very moment: whoever is last has it
                numbered, bad = _read(segment)
            except (SegmentFull, SegmentDamaged) as error:
                segment.close()
                raise JournalFailed(f"{path}: {error!r}") from error
        self.recovered.epoch = begun.epoch
        self._numbers = {e.action: n for n, e in numbered if isinstance(e, ActionFinished)}
        return segment

    def _opened(self, path: Path) -> Segment:
        return lmdb_env.open_shared(path, MAP_BYTES, sync=True, any_file_system=self._any_file_system)

    def _numbered(self, each: Record) -> tuple[bytes, bytes]:
        key = _RECORD + _NUMBER.pack(self._next)
        if isinstance(each, ActionFinished):
            self._numbers[each.action] = self._next
        self._next += 1
        return layout.sealed(key, pack_record(each))

    def _commit(self, records: list[Record]) -> None:
        """One transaction; after one that failed, none."""
        if self._failure is not None:
            return
        with self._changed:
            doomed, self._doomed = self._doomed, []
        puts = [self._numbered(each) for each in records]
        try:
            if not self._segment.is_in_place:
                raise self._fenced()
            self._segment.write(puts, doomed, expect=(_OWNER, self._me.encode()))
        except SegmentTaken:
            self._failure = self._fenced()
        except (SegmentFull, SegmentDamaged, SparkFtError) as error:
            text = f"the journal {self._segment.path} cannot be written: {error!r}"
            self._failure = error if isinstance(error, DriverFenced) else JournalFailed(text)
        else:
            self.commit_count += 1
            self.bytes_written += sum(len(key) + len(value) for key, value in puts)

    def _check_owner(self) -> None:
        try:
            owner = self._segment.get(_OWNER)
        except StorageError:
            return  # the next record will not be written, and that is soon enough
        if owner != self._me.encode() or not self._segment.is_in_place:
            self._failure = self._fenced()

    def _fenced(self) -> DriverFenced:
        return DriverFenced(
            "another driver has taken over this application (the same spark.app.id): this one may not go on"
        )


class Results:
    """Results of single partitions, kept for the driver's next life.  One thread writes; any may read."""

    def __init__(
        self,
        path: Path,
        me: Incarnation,
        budget_bytes: int,
        forgotten: Callable[[Iterable[ActionId]], None],
        any_file_system: bool = False,
    ) -> None:
        self._owner, self._budget_bytes, self._forgotten = me.encode(), budget_bytes, forgotten
        self._keys: dict[ActionId, dict[int, bytes]] = {}  # the oldest action first
        self._sizes: dict[ActionId, int] = {}
        self.size_bytes = 0  # of all
        self._refused: set[ActionId] = set()  # larger than the whole budget
        map_bytes = 2 * budget_bytes + (64 << 20)
        self._last = 0  # actions are numbered as they come
        self._segment: Segment | None = None
        try:
            self._segment = _openable(path, map_bytes, any_file_system)
            before = self._segment.get(_OWNER)
            self._segment.write([(_OWNER, self._owner)], expect=(_OWNER, before))
            self._load(self._segment)
        except (SparkFtError, SegmentFull, SegmentDamaged, SegmentTaken) as error:
            self._give_up(error)

    def index(self) -> dict[ActionId, dict[int, int]]:
        """Of each action the partitions that are kept, with the digest of what they were built from."""
        return {
            action: {partition: _RESULT_KEY.unpack(key[1:])[2] for partition, key in keys.items()}
            for action, keys in self._keys.items()
        }

    def keep(self, action: ActionId, rows: Iterable[tuple[int, int, bytes]]) -> None:
        """Keep these (partition, digest of what it was built from, payload), each in the place of one that
        was kept before.  What cannot be kept is not: that is no error."""
        if self._segment is None or action in self._refused:
            return
        keys = self._keys.get(action)
        puts, gone, grown = [], [], 0
        if keys is None:
            keys = self._keys[action] = {}
            self._sizes[action] = 0
            self._last += 1
            puts.append((_ORDER + action, _NUMBER.pack(self._last)))
        for partition, digest, payload in rows:
            key = _RESULT + _RESULT_KEY.pack(action, partition, digest, len(payload))
            before = keys.get(partition)
            if before is not None:
                grown -= _RESULT_KEY.unpack(before[1:])[3]
                if before != key:
                    gone.append(before)
            grown += len(payload)
            keys[partition] = key
            puts.append(layout.sealed(key, payload))
        self._sizes[action] += grown
        self.size_bytes += grown
        if self.size_bytes > self._budget_bytes:
            gone += self._evict(action)
        if action not in self._keys:
            puts = []
        self._write(puts, gone)

    def holds(self, action: ActionId, count: int) -> bool:
        """Whether so many partitions of it are kept."""
        return len(self._keys.get(action, ())) == count

    def replace(self, action: ActionId, partition: int, payload: bytes) -> None:
        """Keep this in place of what is kept of the partition, if anything is."""
        key = self._keys.get(action, {}).get(partition)
        if key is not None:
            self.keep(action, [(partition, _RESULT_KEY.unpack(key[1:])[2], payload)])

    def withdraw(self, action: ActionId) -> None:
        """None of its results counts any more."""
        if self._keys.pop(action, None) is not None:
            self.size_bytes -= self._sizes.pop(action)
            self._write([], [_RESULT + action, _ORDER + action])

    def read(self, action: ActionId, partition: int) -> bytes:
        """The payload.  Raises BlockMissing, BlockCorrupt."""
        key = self._keys.get(action, {}).get(partition)
        if key is None or self._segment is None:
            raise BlockMissing(f"no result of partition {partition} is kept")
        return self._segment.read(lambda get: layout.payload(get, key))

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _load(self, segment: Segment) -> None:
        order = {}
        for key in segment.keys(_ORDER):
            order[ActionId(key[1:])] = segment.get(key) or b""
        self._last = max((int.from_bytes(number, "big") for number in order.values()), default=0)
        for action in sorted(order, key=order.__getitem__):
            self._keys[action], self._sizes[action] = {}, 0
        for key in segment.keys(_RESULT):
            action, partition, _, size_bytes = _RESULT_KEY.unpack(key[1:])
            keys = self._keys.get(ActionId(action))
            if keys is not None:
                keys[partition] = key
                self._sizes[ActionId(action)] += size_bytes
                self.size_bytes += size_bytes

    def _evict(self, newest: ActionId) -> list[bytes]:
        """Prefixes of what goes, so that the rest is within the budget."""
        doomed = []
        for action in list(self._keys):
            if self.size_bytes <= self._budget_bytes:
                break
            if action == newest:
                self._refused.add(action)
            self.size_bytes -= self._sizes.pop(action)
            del self._keys[action]
            doomed.append(action)
        self._forgotten(doomed)
        return [kind + action for action in doomed for kind in (_RESULT, _ORDER)]

    def _write(self, puts: list[tuple[bytes, bytes]], delete: list[bytes]) -> None:
        if self._segment is None or not (puts or delete):
            return
        try:
            self._segment.write(puts, delete, expect=(_OWNER, self._owner))
        except SegmentTaken:
            self.close()  # the next record that we try to write will say why
        except (SparkFtError, SegmentFull, SegmentDamaged) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("results are not kept for a resume any more: %r", error)
        self._forgotten(list(self._keys))
        self._keys.clear()
        self._sizes.clear()
        self.size_bytes = 0
        self.close()


def _openable(path: Path, map_bytes: int, any_file_system: bool) -> Segment:
    """The environment at ``path``; one that is damaged gives way to an empty one."""
    try:
        return lmdb_env.open_shared(path, map_bytes, sync=False, any_file_system=any_file_system)
    except (BlockCorrupt, BlockMissing) as error:
        log.warning("kept results in %s cannot be read: %s", path, error)
        layout.remove_tree(path)
        return lmdb_env.open_shared(path, map_bytes, sync=False, any_file_system=any_file_system)


def _read(segment: Segment) -> tuple[list[tuple[int, Record]], list[bytes]]:
    """The numbered records up to the first that does not verify; and the keys of that and all behind it."""
    good: list[tuple[int, Record]] = []
    keys = segment.keys(_RECORD)
    for position, key in enumerate(keys):
        try:
            data = segment.read(lambda get, key=key: layout.payload(get, key))  # type: ignore[misc]
            good.append((_NUMBER.unpack(key[1:])[0], unpack_record(KINDS, data)))
        except (StorageError, RemoteProtocolError, struct.error):
            return good, keys[position:]
    return good, []
