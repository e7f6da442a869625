"""An application's scratch directory: made, held, told apart from what crashes left, removed.

    spark-ft-<app id>-<random>/
        owner.lock           flock, shared, by every process that lives off this directory
        c/                   ipc sockets
        driver/stores/       the driver's own blocks
        hosts/<host>/        stores/  tmp/  log/  run/
                             worker.lock   flock, by the one worker that serves this directory
                             serving/      that worker, written down
                             boot_id       of the kernel under which it was last served

Whoever lives off a scratch directory holds ``owner.lock`` shared; the kernel lets go of it however
the process ends.  So a directory whose lock can be had *exclusively* belongs to nobody, and the
next start removes it (ST-17).  The directory gets its final name only once its lock is held: there
is no moment at which a live one looks like a dead one.

``run/`` holds a file per executor with its pid, start time and driver, so that a worker that takes over
finds what outlived the one before it, and whoever cleans up finds what could not end by itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path

from spark_ft.cluster.processes import kill_recorded
from spark_ft.cluster.procfs import Recorded
from spark_ft.errors import ClusterError
from spark_ft.ids import DRIVER_HOST, AppId, HostId, Incarnation
from spark_ft.transport.sockets import endpoint_in

PREFIX = "spark-ft-"
FREE_LEAST_BYTES = 1 << 20  # a disk that has less is full
_MAKING = ".spark-ft-making-"  # not yet under its name
_LOCK = "owner.lock"
_POLL_S = 0.02


class Scratch:
    """One application's directory as one process holds it.  ``data``: where the roots of hosts lie, when that
    is another one, which outlives this (application.py)."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = self.data = path
        self._lock_fd = lock_fd
        self._owner_pid = os.getpid()

    @classmethod
    def create(cls, local_dir: str, app: AppId) -> Scratch:
        """A fresh directory of mode 0700 under the first of ``local_dir`` (several, with commas between
        them; the system's temporary directory if empty) that can be written and is not full.  Raises
        ClusterError where none can be made."""
        name, troubles = re.sub(r"[^A-Za-z0-9._-]", "_", app)[:64], list[str]()
        for parent in map(Path, local_dir.split(",") if local_dir else [tempfile.gettempdir()]):
            try:
                parent.mkdir(parents=True, exist_ok=True)
                if shutil.disk_usage(parent).free < FREE_LEAST_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with contextlib.suppress(FileNotFoundError):  # collected before it was locked: once more
                    return cls._make(parent, name)
                return cls._make(parent, name)
            except OSError as error:
                troubles.append(f"{parent}: {error}")
        raise ClusterError(f"cannot make a scratch directory under {'; '.join(troubles)}")

    @classmethod
    def _make(cls, parent: Path, name: str) -> Scratch:
        making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=parent))  # mode 0700
        path = parent / f"{PREFIX}{name}-{making.name.removeprefix(_MAKING)}"
        lock_fd = os.open(making / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_SH)
            (making / "c").mkdir(mode=0o700)
            making.rename(path)
        except OSError:
            os.close(lock_fd)
            raise
        return cls(path, lock_fd)

    @classmethod
    def join(cls, path: Path) -> Scratch:
        """Hold a directory that another process made.  Raises ClusterError when it is gone or going."""
        try:
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise ClusterError(f"the scratch directory {path} is gone: {error}") from error
        return cls(path, lock_fd)

    def host_root(self, host: HostId) -> Path:
        """What executors of ``host`` may open directly; the driver has one of its own."""
        return self.data / "driver" if host == DRIVER_HOST else self.data / "hosts" / host

    def endpoint(self, name: str) -> str:
        """An address to bind a socket to."""
        return endpoint_in(self.path / "c", name)

    def close(self) -> None:
        """Let go of the directory; a second call changes nothing."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def remove(self) -> None:
        """End what still lives off it, and delete it.  In a forked child of the process that made it:
        nothing."""
        if os.getpid() != self._owner_pid or self._lock_fd < 0:
            return
        _remove(self.path)
        self.close()


def hold_root(root: Path, me: Incarnation, patience_s: float = 0.0) -> bool:
    """Be the one worker of a host's directory until this process ends; the kernel lets go of it then.

    Answers whether the machine has been started anew since a worker was here: what it had not synced may
    be gone then (ST-8).  Raises ClusterError (STORE_IN_USE) while another worker lives off it (WK-5), after
    ``patience_s``.
    """
    lock_fd = os.open(root / "worker.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    if not has_lock(lock_fd, fcntl.LOCK_EX, patience_s):
        holder = os.pread(lock_fd, 200, 0).decode(errors="replace") or "another process"
        os.close(lock_fd)
        raise ClusterError(
            f"{root} is served by {holder}; give each worker a directory of its own", "STORE_IN_USE"
        ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, me.encode(), 0)
    now, boot = _boot_id(), root / "boot_id"
    before = boot.read_text() if boot.exists() else now
    boot.write_text(now)
    return before != now


def has_lock(fd: int, kind: int, patience_s: float) -> bool:
    """Whether the lock on ``fd`` could be had within ``patience_s``.  Polled: ``flock`` knows no deadline."""
    for _ in range(int(patience_s / _POLL_S) + 1):
        with contextlib.suppress(OSError):
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        if patience_s:
            threading.Event().wait(_POLL_S)
    return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # not Linux


def kill_residents(path: Path) -> list[Recorded]:
    """SIGKILL to workers and executors that are written down below ``path``; answers who that was."""
    directories = [*path.glob("hosts/*/run"), *path.glob("hosts/*/serving")]
    return [process for directory in directories for process in kill_recorded(directory)]


def _remove(path: Path) -> None:
    kill_residents(path)
    if not path.is_dir():
        return  # somebody was quicker
    # The lock goes last: while files are being deleted nobody can mistake the directory for a new one.
    for entry in path.iterdir():
        if entry.name != _LOCK:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def collect_leftovers(parent: Path) -> list[Path]:
    """Remove the scratch directories beside ours that no process holds, and answer which."""
    removed = []
    for path in [*parent.glob(f"{PREFIX}*"), *parent.glob(f"{_MAKING}*")]:
        try:
            if path.stat().st_uid != os.getuid():
                continue
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # going, being made, or not one of ours
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
            removed.append(path)
        except OSError:
            continue  # somebody holds it
        finally:
            os.close(lock_fd)
    return removed
