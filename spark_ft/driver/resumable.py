"""What makes an application resumable: its directory, its journal, the names of its jobs (docs/resume.md).

    Driver ── identify(node, function) ──> the name of a job in every life; its shuffles are named as well
    SchedulerCore ── Keep, Journal, Redeliver ──> perform ──> Journal, and what it guards back to the host

Only an application with an id has one.  All but ``identify`` and ``keep`` belongs to the driver's I/O thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from spark_ft.cluster.application import Application, recovery_root
from spark_ft.driver.handle import JobHandle
from spark_ft.driver.journal import Journal as JournalFile
from spark_ft.errors import DriverFenced, RemoteProtocolError, SparkFtError, StorageError
from spark_ft.ids import ActionId, AppId, Fingerprint, HostId, Incarnation, JobId, NodeId
from spark_ft.lineage.dependency import ShuffleDependency
from spark_ft.lineage.fingerprint import Fingerprints, JobIdentity, numbered
from spark_ft.lineage.node import Node
from spark_ft.log import get_logger
from spark_ft.protocol.codec import pack_record, unpack_record
from spark_ft.protocol.effects import Journal, Keep, KeptRow, Redeliver, ResultLost
from spark_ft.protocol.journal import ActionFinished, KeptResult, Recovered
from spark_ft.protocol.parts import InlineResult
from spark_ft.settings import Settings
from spark_ft.transport.host import Host

_KEPT = {KeptResult.__name__: KeptResult}

log = get_logger(__name__)


class Resumable:
    """From here on every older driver of this id is fenced, and its processes have ended.

    ``refusal`` is why nothing may be run any more.  Raises ClusterError, StorageError; nothing is held then.
    """

    def __init__(
        self,
        settings: Settings,
        app: AppId,
        me: Incarnation,
        about: Mapping[str, Any],
        surroundings: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self.refusal: SparkFtError | None = None
        self._lock = threading.Lock()
        self._is_written = True
        self._unkept: dict[ActionId, list[KeptRow]] = {}
        self._host: Host | None = None
        self._ended: Callable[[SparkFtError], None] | None = None
        self._told: set[str] = set()
        with contextlib.ExitStack() as failed:
            with Application.beginning(recovery_root(settings), app, dict(about)) as application:
                failed.callback(application.close, lambda: not application.resumed)
                self._journal = JournalFile(
                    application.path / "journal", me, int(about["began_ms"]), settings.recovery_results_bytes,
                    self._journal_ended, settings.any_file_system,
                )  # fmt: skip
                failed.callback(self._journal.close)
                application.end_residents()
            self.application = application
            self._unclaimed, self._has_parted = set(self.recovered.finished), False
            self.fingerprints = Fingerprints({"application": application.seed.hex(), **surroundings})
            failed.pop_all()

    @property
    def recovered(self) -> Recovered:
        return self._journal.recovered

    def hosts_of_before(self, present: Sequence[HostId]) -> list[HostId]:
        """Whose stores will be told of by workers that are coming: jobs wait for that."""
        if not self.application.resumed:
            return []
        return [host for host in self.application.hosts() if host in present]

    def attach(
        self, host: Host, handles: Mapping[JobId, JobHandle], ended: Callable[[SparkFtError], None]
    ) -> None:
        """``ended`` is told in the loop's thread that no more can be written, or by whom we are fenced."""
        self._handles, self._ended = handles, ended
        self._host = host

    # --- User threads ---

    def identify(
        self,
        node: Node,
        function: Callable[..., Any],
        partitions: Sequence[int] | None,
        properties: Mapping[str, str],
    ) -> JobIdentity:
        """What this job is called in every life of the program; its shuffles are named as well."""
        identity = self.fingerprints.job(node, function, partitions, properties)
        if dropped := self.recovered.dropped:
            with self._lock:
                _rename(node, dropped)
        return identity

    def parts_here(self, action: ActionId, name: str) -> bool:
        """Whether this is the first job that no earlier life has finished although answers of others are
        left: so a program looks that was changed, and it is told where (DR-5)."""
        if action in self.recovered.finished:
            self._unclaimed.discard(action)
            return False
        if self._has_parted or not self._unclaimed or action in self.recovered.results:
            return False
        self._has_parted = True
        log.warning(
            "%s is not what an earlier life of this application ran, or its results were dropped for want of "
            "room: it is computed, and so is what rests on it. Answers of earlier jobs not used so far: %d",
            name, len(self._unclaimed),
        )  # fmt: skip
        return True

    def keep(self, action: ActionId, partition: int, payload: bytes) -> None:
        """A large result has been read from its store, which will soon let go of it."""
        results = self._journal.results

        def replace() -> None:
            with contextlib.suppress(StorageError, RemoteProtocolError):  # it was not kept: nor is this
                before = unpack_record(_KEPT, results.read(action, partition))
                whole = KeptResult(InlineResult(payload), before.updates)
                results.replace(action, partition, pack_record(whole))

        assert self._host is not None
        self._host.call(replace)

    # --- I/O thread ---

    def perform(self, effect: Keep | Journal | Redeliver) -> None:
        match effect:
            case Keep(action, rows):
                if not self._unkept:
                    assert self._host is not None
                    self._host.call(self._flush)  # once for all that this turn of the loop brings
                self._unkept.setdefault(action, []).extend(rows)
            case Journal():
                self._write(effect)
            case Redeliver():
                self._redeliver(effect)

    def _flush(self) -> None:
        """What is to be kept is written."""
        unkept, self._unkept = self._unkept, {}
        for action, rows in unkept.items():
            self._journal.results.keep(action, map(_packed, rows))

    def withdraw(self, action: ActionId) -> None:
        """Results that were kept do not count any more."""
        if action:
            self._unkept.pop(action, None)
            self._journal.results.withdraw(action)

    def _write(self, effect: Journal) -> None:
        """What it guards waits.  That an action has finished is not worth a word when its results, for want
        of room, cannot be given again."""
        assert self._host is not None
        self._flush()
        host, results = self._host, self._journal.results
        records = [
            each
            for each in effect.records
            if not isinstance(each, ActionFinished) or results.holds(each.action, each.partition_count)
        ]
        if not records or not self._is_written:
            host.carry_out(effect.guarded)
            return
        if effect.hold:
            host.hold()
        self._journal.write(records, lambda error: host.call(lambda: self._written(effect, error)))

    def _written(self, effect: Journal, error: SparkFtError | None) -> None:
        """Let go of what had to wait; of a driver that may not go on nothing leaves any more."""
        assert self._host is not None
        guarded = () if error is not None and self.refusal is not None else effect.guarded
        if effect.hold:
            self._host.release(guarded)
        else:
            self._host.carry_out(guarded)

    def _redeliver(self, effect: Redeliver) -> None:
        handle = self._handles.get(effect.job)
        if handle is None:
            return
        try:
            kept = unpack_record(_KEPT, self._journal.results.read(effect.action, effect.partition))
        except (StorageError, RemoteProtocolError) as error:
            assert self._host is not None
            self._host.post(ResultLost(effect.job, effect.partition, str(error), unheard=True))
            return
        handle.deliver(effect.partition, kept.result, kept.updates)

    # --- The end ---

    def _journal_ended(self, error: SparkFtError) -> None:
        """In the journal's thread: nothing more can be written (DR-4, DR-8)."""
        if isinstance(error, DriverFenced) or self._settings.recovery_fails:
            self.refusal = error
        self._is_written = False
        log.error("%s", error)
        if self.refusal is None:
            log.error("the application goes on; should its driver die, it is resumed from what was written")
        if self._host is not None and self._ended is not None:
            ended = self._ended
            self._host.call(lambda: ended(error))

    def close(self, keep: bool) -> None:
        """Let go of all of it; what is there is removed, unless it is to be kept or belongs to another."""
        self._flush()
        self._journal.close()
        self.application.close(lambda: not keep and self.refusal is None and self._journal.is_ours())


def _packed(row: KeptRow) -> tuple[int, int, bytes]:
    partition, inputs, result, updates = row
    return partition, inputs, pack_record(KeptResult(result, updates))


def about_program(settings: Settings, pid: int, began_ms: int) -> dict[str, Any]:
    """What ``spark-ft apps`` tells of an application."""
    program = {"name": settings.app_name, "program": sys.argv[:1], "master": settings.master}
    return {**program, "pid": pid, "began_ms": began_ms}


def _rename(target: Node, dropped: Set[Fingerprint]) -> None:
    """What an earlier life has dropped is computed again under another name: workers delete what bears the
    old one, whenever they find it."""
    for dependency in _shuffles_under(target):
        while dependency.fingerprint in dropped:
            dependency.fingerprint = numbered(dependency.fingerprint, 0)


def _shuffles_under(target: Node) -> Iterator[ShuffleDependency]:
    seen: set[NodeId] = {target.id}
    stack = [target]
    while stack:
        for dependency in stack.pop().dependencies:
            if isinstance(dependency, ShuffleDependency):
                yield dependency
            parent = dependency.parent
            if parent is not None and parent.id not in seen:
                seen.add(parent.id)
                stack.append(parent)
