"""Where an application's event log lies, who still writes it, and how it is read.

    <directory>/
        <application>.jsonl          the newest part; its writer holds it locked
        <application>.jsonl.1 …      older parts, numbered in the order they were written
        <application>.jsonl.kept     what outlives dropped parts; its head names the last part dropped

* The lock is a ``flock`` on the newest part, which the kernel lets go of however its writer ends:
  whoever can have it knows that the application runs no more.
* A part that is being written may end in half a line, and a part that was written while the disk
  was full may have one anywhere: such lines are counted and passed over.
* Reading never waits, and never fails because a part went away meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SUFFIX = ".jsonl"
KEPT = ".kept"
_PART = re.compile(r"(.+)\.jsonl\.(\d+)$")
_TAIL_BYTES = 1 << 16


def default_directory() -> Path:
    """One for each user, in the system's temporary directory: found again without any configuration."""
    return Path(tempfile.gettempdir(), f"spark_ft-events-{os.getuid()}")


def file_name(app: str) -> str:
    """An application's id as it may stand in a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", app)[:64]


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files of one application's log; ``path`` is the newest part.  ``older`` holds the numbers of the
    older ones, where the directory has been listed already."""

    path: Path
    older: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def kept(self) -> Path:
        return self.path.with_name(self.path.name + KEPT)

    @property
    def next(self) -> Path:
        """The newest part to be, before it takes that name."""
        return self.path.with_name(self.path.name + ".next")

    @property
    def making(self) -> Path:
        """What will replace ``kept``."""
        return self.path.with_name(self.path.name + KEPT + ".new")

    def parts(self) -> list[tuple[int, Path]]:
        """The older parts, oldest first."""
        older = self.older
        if older is None:
            older = tuple(_listing(self.path.parent, self.path.name).get(self.path.name, ()))
        return [(number, self.part(number)) for number in sorted(older)]

    def part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def all(self) -> list[Path]:
        return [self.kept, *(path for _, path in self.parts()), self.path]

    def size_bytes(self) -> int:
        return sum(size_of(path) for path in self.all())

    def is_live(self) -> bool:
        """Whether its writer lives."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
            try:
                if not lock(fd, fcntl.LOCK_SH):  # shared: two who ask do not take each other for the writer
                    return True
                if is_at(fd, self.path):
                    return False  # else it was rolled over between the two calls: look at its successor
            finally:
                os.close(fd)

    def records(self) -> tuple[list[Record], int]:
        """Everything in the order of writing, and how many lines could not be read."""
        found: list[Record] = []
        torn = 0
        dropped = 0
        for path in self.all():
            match = _PART.match(path.name)
            if match and _same(path, self.path):
                continue  # just being rolled over
            if match and int(match[2]) <= dropped:
                continue  # its important lines are among the kept ones
            for record in _records_of(path):
                if record is None:
                    torn += 1
                elif record["event"] == "log_kept":
                    dropped = int(record.get("through", 0))
                    found.append(record)
                else:
                    found.append(record)
        return found, torn

    def ends(self) -> list[Record]:
        """The first record and those of the last few KiB: enough to say what it is and how it ended."""
        oldest = next((path for path in self.all() if path.exists()), self.path)
        head = [record for record in _records_of(oldest, limit=2) if record]
        with contextlib.suppress(OSError), self.path.open("rb") as lines:
            lines.seek(max(0, size_of(self.path) - _TAIL_BYTES))
            tail = [_parse(line) for line in lines.read().splitlines()]
            return head + [record for record in tail if record and record not in head]
        return head

    def remove(self) -> None:
        """The newest part goes last: until then all of it is found again by whoever cleans up."""
        for path in (self.next, self.making, *self.all()):
            with contextlib.suppress(OSError):
                path.unlink()


def logs_in(directory: Path) -> list[LogFiles]:
    """Every application's log, the one that was written to last first."""
    found = [LogFiles(directory / name, tuple(older)) for name, older in _listing(directory).items()]
    there = [(written_s(log.path), log) for log in found]
    return [log for s, log in sorted(there, key=lambda row: row[0], reverse=True) if s]


def orphans_in(directory: Path) -> list[LogFiles]:
    """Logs without a newest part: somebody was killed while removing them."""
    found = [LogFiles(directory / name, tuple(older)) for name, older in _listing(directory).items()]
    return [log for log in found if not log.path.exists()]


def lock(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    """Whether the file is now ours (alone), without waiting."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _listing(directory: Path, prefix: str = "") -> dict[str, list[int]]:
    """Name of a newest part -> numbers of the older ones, also where the newest is missing; of the files
    whose names begin so."""
    found: dict[str, list[int]] = {}
    try:
        names = os.listdir(directory)
    except OSError:
        return found
    for name in names:
        if not name.startswith(prefix):
            continue
        if name.endswith(SUFFIX):
            found.setdefault(name, [])
        elif name.endswith(SUFFIX + KEPT):
            found.setdefault(name.removesuffix(KEPT), [])
        elif match := _PART.match(name):
            found.setdefault(match[1] + SUFFIX, []).append(int(match[2]))
    return found


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def _records_of(path: Path, limit: int | None = None) -> Iterator[Record | None]:
    """Each line's record, None for what is none."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                if number == limit:
                    return
                if line.strip():
                    yield _parse(line)
    except OSError:
        return  # it went away, or may not be read
