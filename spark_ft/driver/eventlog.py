"""The event log: one JSON line for everything a core found worth noting, off the driver's hot path.

    I/O thread ── write: one append to a bounded queue ──> writer thread ── lines ──> LogWriter: parts
                                                               └─ Recoveries: their lines, too

Each line has ``event``, ``t_ms`` (wall clock, for people) and the fields of the note.

* Logging never costs a job.  The queue is bounded, and what does not fit is counted and said in the
  log; a full disk costs the lines of that time, and is said once.
* Lines come in the order of ``write``, at most a few ms later; after ``flush`` they are in the file.
* What is written but not yet on disk when the machine dies is lost: nothing here is synced, and no
  decision rests on it.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from spark_ft.clock import wall_ms
from spark_ft.driver.logfiles import LogWriter, Retention
from spark_ft.errors import SettingsError
from spark_ft.history.files import Record, default_directory
from spark_ft.history.recoveries import Recoveries
from spark_ft.log import get_logger
from spark_ft.settings import Settings

GATHER_S = 0.005  # so long the writer lets lines gather: at most 200 writes a second
_BATCH = 64  # lines that are encoded in one go: the interpreter is given up between two batches
_CLOSE_S = 1.0

log = get_logger(__name__)


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return value.hex() if isinstance(value, bytes) else str(value)


_encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode


def open_event_log(settings: Settings, app: str) -> EventLog | None:
    """As the settings ask for it; None when it is off, or when the default place cannot be used.

    Raises SettingsError for a directory that was given and cannot be used.
    """
    if not settings.event_log:
        return None
    given = settings.event_log_dir
    retention = Retention(
        part_bytes=settings.event_log_part_bytes,
        log_bytes=settings.event_log_bytes,
        rolling=settings.event_log_rolling,
        collects=settings.event_logs_clean or not given,
        total_bytes=settings.event_logs_bytes,
        age_s=settings.event_logs_age_s,
        count=settings.event_logs_count,
    )
    try:
        directory = Path(given) if given else own_directory()
        return EventLog(directory, app, retention, settings.event_log_queue)
    except OSError as error:
        if given:
            raise SettingsError(f"spark.eventLog.dir={given!r}: {error}") from None
        log.warning("there will be no event log: %s", error)
        return None


def own_directory() -> Path:
    """The default one, ours alone.  Raises OSError when it cannot be had, or belongs to somebody else."""
    directory = default_directory()
    directory.mkdir(mode=0o700, exist_ok=True)
    about = directory.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"{directory} is not a directory of this user alone; set spark.eventLog.dir")
    return directory


_Item = tuple[int, str, Mapping[str, object]] | threading.Event


class EventLog:
    """The log of one application.  ``write`` may be called from any thread and never waits.

    Raises OSError when no file can be had.
    """

    def __init__(self, directory: Path, app: str, retention: Retention, capacity: int = 100_000) -> None:
        self._files = LogWriter(directory, app, retention)
        self._recoveries = Recoveries()
        self._queue: deque[_Item] = deque()
        self._capacity = capacity
        self._dropped = 0
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spark-ft-eventlog", daemon=True)
        self._thread.start()
        _logs.add(self)

    @property
    def path(self) -> Path:
        """The part that is being written."""
        return self._files.path

    def write(self, kind: str, fields: Mapping[str, object]) -> None:
        """``fields`` must not be changed afterwards."""
        if len(self._queue) >= self._capacity:
            self._dropped += 1
            return
        self._queue.append((wall_ms(), kind, fields))
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until all that was written is in the file; False when it is not after ``timeout_s``."""
        if not self._thread.is_alive():
            return True
        done = threading.Event()
        self._queue.append(done)
        self._hurry.set()
        self._wake.set()
        return done.wait(timeout_s)

    def close(self) -> None:
        """Write what is left, for at most a second, and let go of the file.  Idempotent."""
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(_CLOSE_S)

    # --- The writer's thread ---

    def _run(self) -> None:
        try:
            self._files.collect()
            while not (self._closing and not self._queue):
                self._wake.wait()
                self._hurry.wait(GATHER_S)
                self._hurry.clear()
                self._wake.clear()  # before the queue is looked at: whoever comes after that wakes us again
                self._drain()
        except Exception:  # the log ends with whatever that was; the job must not
            log.exception("the event log %s ends here", self._files.path)
            self._capacity = 0
            self._release_waiting()
        finally:
            self._files.close()

    def _drain(self) -> None:
        lines: list[bytes] = []
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                try:
                    self._put(lines)
                finally:
                    item.set()
                continue
            t_ms, kind, fields = item
            record: Record = {"event": kind, "t_ms": t_ms, **fields}
            for each in (record, *self._recovered(record)):
                lines.append(_encode(each).encode() + b"\n")
            if len(lines) >= _BATCH:
                self._put(lines)
        if self._dropped:
            gap = {"event": "log_gap", "t_ms": wall_ms(), "records": self._dropped, "why": "queue full"}
            self._dropped = 0
            lines.append(_encode(gap).encode() + b"\n")
        self._put(lines)

    def _recovered(self, record: Record) -> list[Record]:
        try:
            return self._recoveries.feed(record)
        except (KeyError, TypeError):  # a note without the fields it is known by: it is logged all the same
            log.exception("the event log does not understand %s", record)
            return []

    def _put(self, lines: list[bytes]) -> None:
        if lines:
            self._files.put(lines)
            lines.clear()

    def _release_waiting(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                item.set()

    def _disown(self) -> None:
        """We are in a fork of the driver: the log is the parent's, and so must be its lock."""
        self._capacity = 0
        self._files.forget()


_logs: weakref.WeakSet[EventLog] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_logs):
        each._disown()


os.register_at_fork(after_in_child=_after_fork)
