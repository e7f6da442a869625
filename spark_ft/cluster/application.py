"""The directory of an application that was given an id: what outlives its driver.

    <spark.ft.recovery.dir>/<id>/
        app.lock          flock, shared, by drivers: whoever can have it alone knows that none lives
        begin.lock        flock, by whoever begins or ends here, for as long as that takes
        about.json        name, program, when it began
        seed              drawn once: what is named or drawn by chance is the same in every life of it
        journal/          driver/journal.py
        driver/stores/    the driver's own blocks
        hosts/<host>/     stores and all else of a host, as in scratch.py

A clean end removes it; a driver that dies leaves it to the next one of the same id (docs/resume.md).  Sockets
and shipped files are of one life and lie in that life's scratch directory.

* Whoever begins ends what is left of the processes of the life before, also where its driver is only stopped:
  nobody but the youngest driver's executors writes below here.  The journal tells the older one that it is
  fenced.
* The directory belongs to this user alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_ft.cluster.procfs import process_stat
from spark_ft.cluster.scratch import has_lock, kill_residents
from spark_ft.errors import ClusterError
from spark_ft.ids import AppId, HostId, drawn_fingerprint
from spark_ft.settings import Settings

LOCK_S = 5.0  # whoever begins or ends is soon done
SEED_BYTES = 16
ENDED_S = 5.0  # from SIGKILL to the end of a process
_LOCK, _BEGIN, _ABOUT, _SEED = "app.lock", "begin.lock", "about.json", "seed"


def recovery_root(settings: Settings) -> Path:
    """Below which applications are kept: spark.ft.recovery.dir, or a directory of this user's beside the
    scratch directories."""
    if settings.recovery_dir:
        return Path(settings.recovery_dir)
    return Path(settings.local_dir or tempfile.gettempdir(), f"spark_ft-apps-{os.getuid()}")


class Application:
    """One application's directory, held by a driver.  ``resumed``: there was one before us; ``seed``: 16
    bytes, this application's alone, for all its lives."""

    def __init__(self, path: Path, lock_fd: int, resumed: bool, seed: bytes) -> None:
        self.path, self.resumed, self.seed = path, resumed, seed
        self._lock_fd = lock_fd
        self._owner_pid = os.getpid()

    @classmethod
    @contextlib.contextmanager
    def beginning(cls, root: Path, app: AppId, about: dict[str, Any]) -> Iterator[Application]:
        """The directory of this id, made if there is none; ``about`` it is written down for people.  Within
        the block nobody else begins or ends here: the journal is to be taken over there.

        Raises ClusterError when the directory cannot be had.
        """
        path = root / directory_name(app)
        try:
            begin_fd = _first_lock(root, path)
        except OSError as error:
            raise ClusterError(f"cannot use {path} for application {app!r}: {error}") from error
        if begin_fd < 0:
            raise ClusterError(f"{path}: another driver of application {app!r} begins or ends; try again")
        try:
            resumed = (path / "journal").is_dir()
            lock_fd = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock_fd, fcntl.LOCK_SH)  # exclusive it is held for moments only
            _write(path / _ABOUT, {"app": app, **about})
            yield cls(path, lock_fd, resumed, _seed(path / _SEED))
        finally:
            os.close(begin_fd)

    def hosts(self) -> list[HostId]:
        """Hosts of earlier lives, with stores that somebody has to look at."""
        found = self.path.glob("hosts/*/stores")
        return sorted(HostId(stores.parent.name) for stores in found if any(stores.iterdir()))

    def end_residents(self) -> None:
        """End processes of an earlier life, and wait until they are gone.  Raises ClusterError."""
        left = kill_residents(self.path)
        for _ in range(int(ENDED_S / 0.01)):
            left = [each for each in left if _lives(each.pid, each.start)]
            if not left:
                break
            threading.Event().wait(0.01)
        else:
            names = ", ".join(f"{each.name} (pid {each.pid})" for each in left)
            raise ClusterError(f"processes of an earlier life of this application do not end: {names}")
        shutil.rmtree(self.path / "driver", ignore_errors=True)  # only its own jobs have read there

    def close(self, is_over: Callable[[], bool]) -> None:
        """Let go of it; nothing of it is left if ``is_over`` says so while nobody begins here.  In a forked
        child this does nothing."""
        if os.getpid() != self._owner_pid or self._lock_fd < 0:
            return
        with contextlib.suppress(OSError):  # somebody has removed it by hand
            begin_fd = os.open(self.path / _BEGIN, os.O_RDWR | os.O_CLOEXEC)
            try:
                if has_lock(begin_fd, fcntl.LOCK_EX, LOCK_S) and is_over():
                    _remove(self.path)
            finally:
                os.close(begin_fd)
        os.close(self._lock_fd)
        self._lock_fd = -1


def directory_name(app: str) -> str:
    """An id as it may stand in a path; two ids never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", app)[:64]
    if plain == app and not plain.startswith("."):
        return plain
    return f"{plain.lstrip('.')}-{hashlib.sha256(app.encode()).hexdigest()[:12]}"


def _seed(path: Path) -> bytes:
    """What was drawn when the directory was made; drawn again should it be lost, for then nothing matches."""
    with contextlib.suppress(FileNotFoundError):
        if len(seed := path.read_bytes()) == SEED_BYTES:
            return seed
    seed = drawn_fingerprint()
    path.write_bytes(seed)
    return seed


def _first_lock(root: Path, path: Path) -> int:
    """begin.lock of ``path``, held; -1 when it cannot be had.  Raises OSError."""
    for _ in range(3):  # what is made here may be removed before it is locked
        with contextlib.suppress(FileNotFoundError):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(root)
            path.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path / _BEGIN, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                locked = has_lock(fd, fcntl.LOCK_EX, LOCK_S)
                here, held = os.stat(path / _BEGIN), os.fstat(fd)
                if locked and (here.st_dev, here.st_ino) == (held.st_dev, held.st_ino):
                    fd, ours = -1, fd
                    return ours
            finally:
                if fd >= 0:
                    os.close(fd)
    return -1


def _remove(path: Path) -> None:
    """With begin.lock held, which goes last: nobody takes half a directory for a whole one."""
    kill_residents(path)
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.name != _BEGIN:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # that was the last one


@dataclass(frozen=True, slots=True)
class Kept:
    """An application that has a directory."""

    app: str
    path: Path
    is_running: bool
    size_bytes: int
    began_ms: int
    last_ms: int  # when it was last written to
    about: dict[str, Any]


def kept_in(root: Path) -> list[Kept]:
    """All applications below ``root``, the youngest first."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        try:
            about = json.loads((path / _ABOUT).read_text())
            is_running = not _is_free(path)
        except (OSError, ValueError):
            continue  # being made or removed, or none
        size_bytes, last_s = _measure(path)
        times = int(about.get("began_ms", 0)), int(last_s * 1000)
        found.append(Kept(str(about["app"]), path, is_running, size_bytes, *times, about))
    return sorted(found, key=lambda kept: -kept.last_ms)


def forget(kept: Kept) -> bool:
    """Remove what an application has left; False while its driver runs, or begins."""
    fds = [os.open(kept.path / name, os.O_RDWR | os.O_CLOEXEC) for name in (_BEGIN, _LOCK)]
    try:
        if not all(has_lock(fd, fcntl.LOCK_EX, 0.0) for fd in fds):
            return False
        _remove(kept.path)
        return True
    finally:
        for fd in fds:
            os.close(fd)


def _is_free(path: Path) -> bool:
    fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        return has_lock(fd, fcntl.LOCK_EX, 0.0)
    finally:
        os.close(fd)


def _measure(path: Path) -> tuple[int, float]:
    """Bytes on the disk, and when it was last written to."""
    size_bytes, last_s = 0, 0.0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(folder, name))
                size_bytes += status.st_blocks * 512
                last_s = max(last_s, status.st_mtime)
    return size_bytes, last_s


def _lives(pid: int, start: int) -> bool:
    found = process_stat(pid)
    return found is not None and found.start == start and not found.ended


def _check_owner(root: Path) -> None:
    about = root.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"{root} is not a directory of this user alone; set spark.ft.recovery.dir")


def _write(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content))
    fresh.rename(path)
