"""The parts of an event log on disk: written, rolled over, bounded, and collected when they are old.

    put ──> <app>.jsonl ── full ──> <app>.jsonl.N ── the log takes too much ──> dropped, and its lines
                                                                   of lasting interest ──> <app>.jsonl.kept

* A part ends with a whole line and is at most ``part_bytes`` long (a single longer line excepted).
* The log as a whole takes at most ``log_bytes``: parts are dropped oldest first.  What must outlast them
  goes into ``kept``, which is bounded too: there the oldest lines about jobs and executors go first, the
  oldest recoveries after them, and the application's start never.  How many lines are gone, is said.
* ``kept`` is replaced by a rename before the part it was taken from is dropped, and names that part: a
  writer that is killed between the two loses nothing and doubles nothing.
* A roll-over replaces the newest part by a rename, and locks the new one before: there is always a file
  of that name, and it is locked while the writer lives.
* A full disk costs the lines of that time.  It is said once; a few seconds later it is tried again, and
  the gap is noted in the log.
* Logs of applications that have ended go by age, by number and by their total, the oldest first.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_ft.clock import perf_s, wall_ms
from spark_ft.history.files import (
    SUFFIX,
    LogFiles,
    file_name,
    is_at,
    lock,
    logs_in,
    orphans_in,
    size_of,
    written_s,
)
from spark_ft.log import get_logger

_RETRY_MS = 5_000  # after a write that failed
_LOCK_TRIES = 20
_LOCK_WAIT_S = 0.005  # somebody may be looking whether it is locked
_NAMES_MAX = 100  # of logs of one application id that are being written at once
_KEPT_SHARE = 8  # ``kept`` takes this part of the log at most, twice while it is replaced …
_KEPT_MAX_BYTES = 8 << 20  # … and no more than this
_ORPHAN_S = 60.0
_COLLECT_S = 60.0
_next_s: dict[Path, float] = {}  # directory -> when this process collects there again

_START = frozenset({b"application_start", b"application_end"})
_LAST_TO_GO = frozenset({b"recovery_start", b"recovery_end", b"log_gap"})
# One or more lines for each task: what a log that is too long does without.  All other kinds are kept.
_PASSING = frozenset({
    b"task_start", b"task_end", b"task_killed", b"speculation", b"cached", b"not_cached", b"uncached",
    b"block_lost", b"fetch_failed", b"output_lost", b"output_adopted", b"output_replaced", b"output_refused",
    b"stale_task_end", b"stale_generation", b"ended_after_kill", b"message_from_fenced",
    b"message_not_for_scheduler", b"executor_spawned", b"output_copied", b"output_copy_lost",
    b"output_moved", b"block_copied", b"block_moved", b"copy_failed", b"copy_refused", b"stale_copy",
    b"cached_indeterminate_recomputed", b"log_kept",
})  # fmt: skip

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of event logs stays: of the log that is being written, and of others when ``collects``."""

    part_bytes: int = 16 << 20
    log_bytes: int = 64 << 20
    rolling: bool = True
    collects: bool = False
    total_bytes: int = 256 << 20
    age_s: float = 7 * 86400.0
    count: int = 1000

    @property
    def kept_bytes(self) -> int:
        return min(self.log_bytes // _KEPT_SHARE, _KEPT_MAX_BYTES)

    @property
    def part_limit(self) -> int:
        """A part is never more than a quarter of the log, or dropping one would drop most of it."""
        return min(self.part_bytes, self.log_bytes // 4) if self.rolling else self.log_bytes


class LogWriter:
    """The files of one log that is being written; used from one thread.

    Raises OSError when no file can be had.
    """

    def __init__(self, directory: Path, app: str, retention: Retention) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._retention = retention
        self._fd = -1
        self._files = self._open(directory, file_name(app))
        self._older = [(number, size_of(path)) for number, path in self._undo_link()]
        self._number = 1 + max((number for number, _ in self._older), default=_dropped_of(self._files.kept))
        self._size = os.fstat(self._fd).st_size
        self._torn = self._size > 0 and not _ends_a_line(self._files.path)
        self._missed = 0  # lines that could not be written since
        self._retry_ms = 0
        self._said = False

    @property
    def path(self) -> Path:
        return self._files.path

    def _open(self, directory: Path, name: str) -> LogFiles:
        """The log of that name; where another process writes it, the next free one."""
        for number in range(1, _NAMES_MAX):
            files = LogFiles(directory / ((name if number == 1 else f"{name}_{number}") + SUFFIX))
            for _ in range(_LOCK_TRIES):
                fd = os.open(files.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                if lock(fd) and is_at(fd, files.path):
                    self._fd = fd
                    return files
                os.close(fd)
                threading.Event().wait(_LOCK_WAIT_S)
        raise OSError(f"{_NAMES_MAX} applications write event logs named {name} in {directory}")

    def _undo_link(self) -> list[tuple[int, Path]]:
        """The older parts.  Where a writer was killed between the two steps of a roll-over, the newest part
        has two names."""
        older = []
        for number, path in self._files.parts():
            if is_at(self._fd, path):
                path.unlink()
            else:
                older.append((number, path))
        return older

    # --- Writing ---

    def put(self, lines: Sequence[bytes]) -> None:
        """Write these lines; nothing is raised."""
        if self._fd < 0:
            return
        if self._missed and wall_ms() < self._retry_ms:
            self._missed += len(lines)
            return
        waiting: list[bytes] = []
        size = 0
        for at, line in enumerate(lines):
            if self._size + size + len(line) > self._retention.part_limit and self._size + size > 0:
                if not self._write(waiting) or not self._roll_over():
                    self._missed += len(lines) - at
                    return
                waiting, size = [], 0
            waiting.append(line)
            size += len(line)
        self._write(waiting)

    def _write(self, lines: Sequence[bytes]) -> bool:
        """Append to the newest part.  Counts what could not be written."""
        if not lines:
            return True
        data = b"".join(lines)
        if self._missed:
            gap = {"event": "log_gap", "t_ms": wall_ms(), "records": self._missed, "why": "write failed"}
            data = json.dumps(gap, separators=(",", ":")).encode() + b"\n" + data
        if self._torn:
            data = b"\n" + data
        missed, view = self._missed, memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                self._torn = written < len(view) or data[-1:] != b"\n"
                view = view[written:]
                self._missed = 0
        except OSError as error:
            self._missed = missed + len(lines) if len(view) == len(data) else bytes(view).count(b"\n")
            self._failed(error)
            return False
        return True

    def _failed(self, error: OSError) -> None:
        self._retry_ms = wall_ms() + _RETRY_MS
        if not self._said:
            self._said = True
            log.warning(
                "the event log %s cannot be written (%s): it will have gaps; the job goes on",
                self._files.path, error,
            )  # fmt: skip

    def close(self) -> None:
        """Let go of the file; a second call changes nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    forget = close  # in a fork: a copy of the descriptor would keep the log locked

    # --- Rolling over ---

    def _roll_over(self) -> bool:
        """Begin a new part, and drop old ones.  False when this log goes on no more, or not now."""
        if not self._retention.rolling:
            self._end()
            return False
        files = self._files
        try:
            fd = os.open(
                files.next, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                lock(fd)
                os.link(files.path, files.part(self._number))
                files.next.rename(files.path)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            self._failed(error)
            return False
        os.close(self._fd)
        self._older.append((self._number, self._size))
        self._fd, self._number, self._size, self._torn = fd, self._number + 1, 0, False
        self._drop_old()
        return True

    def _end(self) -> None:
        end = {"event": "log_full", "t_ms": wall_ms(), "bytes": self._size}
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(end, separators=(",", ":")).encode() + b"\n")
        log.warning("the event log %s is full (%d bytes) and ends here", self._files.path, self._size)
        self._retry_ms, self._missed = 1 << 62, 1

    def _drop_old(self) -> None:
        limit = self._retention
        room = limit.log_bytes - 2 * limit.kept_bytes - limit.part_limit
        while self._older and sum(size for _, size in self._older) > room:
            number, _ = self._older[0]
            try:
                _keep(self._files, number, limit.kept_bytes)
                self._files.part(number).unlink(missing_ok=True)
            except OSError as error:
                self._failed(error)
                self._files.part(number).unlink(missing_ok=True)  # the bound holds all the same
            del self._older[0]

    # --- Others ---

    def collect(self) -> None:
        """Remove logs of ended applications beyond what is to be retained; nothing is raised.  Whoever makes
        one context after another looks at all those files once in a while only."""
        directory, now_s = self._files.path.parent, perf_s()
        if self._retention.collects and now_s >= _next_s.get(directory, 0.0):
            _next_s[directory] = now_s + _COLLECT_S
            with contextlib.suppress(OSError):
                collect(directory, self._retention)


def collect(directory: Path, retention: Retention) -> list[str]:
    """Remove old logs that nobody writes, and answer whose."""
    removed = []
    total = 0
    now_s = wall_ms() / 1000
    for count, files in enumerate(logs_in(directory), 1):
        total += files.size_bytes()
        old = now_s - written_s(files.path) > retention.age_s
        if (old or count > retention.count or total > retention.total_bytes) and _remove(files):
            removed.append(files.name)
    for files in orphans_in(directory):
        last_s = max((written_s(path) for path in files.all()), default=0.0)
        if now_s - last_s > _ORPHAN_S:
            files.remove()
    return removed


def _remove(files: LogFiles) -> bool:
    try:
        fd = os.open(files.path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not lock(fd) or not is_at(fd, files.path):
            return False  # its application runs
        files.remove()
        return True
    finally:
        os.close(fd)


# --- What outlasts a part ---


def _kind(line: bytes) -> bytes:
    """Of a line as this log writes them: the event comes first."""
    return line[10 : line.find(b'"', 10)] if line.startswith(b'{"event":"') else b""


def _lines(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        yield from (line for line in lines if line.endswith(b"\n"))


def _dropped_of(kept: Path) -> int:
    """The number of the last part that was dropped."""
    return int(_head_of(kept).get("through", 0))


def _head_of(kept: Path) -> dict[str, Any]:
    for line in _lines(kept):
        with contextlib.suppress(ValueError):
            return dict(json.loads(line))
    return {}


def _keep(files: LogFiles, number: int, limit_bytes: int) -> None:
    """Take over into ``kept`` what must outlast part ``number``."""
    head = _head_of(files.kept)
    dropped: Counter[str] = Counter(head.get("dropped", {}))
    lines: list[bytes] = []
    for path in (files.kept, files.part(number)):
        for line in _lines(path):
            kind = _kind(line)
            if kind == b"log_kept":
                continue
            if kind in _PASSING or not kind:
                dropped[kind.decode()] += 1
            else:
                lines.append(line)
    for line in _too_many(lines, limit_bytes):
        dropped[_kind(line).decode()] += 1
    with files.making.open("wb") as made:
        head = {"event": "log_kept", "t_ms": wall_ms(), "through": number, "dropped": dict(dropped)}
        made.write(json.dumps(head, separators=(",", ":")).encode() + b"\n")
        made.writelines(lines)
    files.making.rename(files.kept)


def _too_many(lines: list[bytes], limit_bytes: int) -> list[bytes]:
    """Take the least important lines off ``lines`` until they fit, with some room to spare."""
    size = sum(map(len, lines))
    if size <= limit_bytes:
        return []
    room = limit_bytes * 3 // 4
    gone: set[int] = set()
    for last_to_go in (False, True):
        for at, line in enumerate(lines):
            if size <= room:
                break
            kind = _kind(line)
            if kind not in _START and (kind in _LAST_TO_GO) == last_to_go:
                gone.add(at)
                size -= len(line)
    off = [lines[at] for at in sorted(gone)]
    lines[:] = [line for at, line in enumerate(lines) if at not in gone]
    return off


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as end:
        end.seek(-1, os.SEEK_END)
        return end.read(1) == b"\n"
