"""Which file systems can hold a store: locks and shared mappings have to be those of one machine; and whether
there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from spark_ft.errors import HostExhausted, SparkFtError, StorageError, StoreFull

_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "gpfs",
    "lustre", "nfs", "nfs4", "ocfs2", "smb3",
}  # fmt: skip

FULL_SIGNS = ("No space left", "quota exceeded", "File too large")  # what errors say of a full disk
_EXHAUSTED = {code: os.strerror(code) for code in (errno.EMFILE, errno.ENFILE, errno.EAGAIN)}


def check_file_system(path: Path, mounts: str | None = None) -> None:
    """Raises StorageError (STORE_UNSUPPORTED_FS) when ``path`` would lie on a network file system (ST-16).

    ``mounts``: what to believe in place of the kernel's list, one mount a line: device, directory, type.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return  # no such list on this platform
    best, kind = "", ""
    for line in mounts.splitlines():
        _, directory, found, *_ = line.split(" ")
        prefix = directory.replace("\\040", " ").rstrip("/") + "/"
        if f"{path.absolute()}/".startswith(prefix) and len(prefix) >= len(best):
            best, kind = prefix, found
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StorageError(
            f"{path} is on {kind}, whose locks and mappings are not those of one machine; set "
            "spark.local.dir to a local disk, or spark.ft.store.anyFileSystem=true if you know better",
            "STORE_UNSUPPORTED_FS",
        )


def can_grow(path: Path) -> bool:
    """Ask the kernel for one more byte at the file's end: it says what stands behind a short write, be it
    the disk, a quota or a limit.  LMDB takes no notice of what lies behind its last page."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return True  # another trouble
    try:
        size_bytes = os.fstat(fd).st_size
        os.pwrite(fd, b"\0", size_bytes)
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        return not any(sign in str(error) for sign in FULL_SIGNS)
    finally:
        os.close(fd)
    return True


def free_space(path: Path) -> int:
    """Bytes that an ordinary user may still write where ``path`` is; 0 when it cannot be asked."""
    try:
        status = os.statvfs(path)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def allocate(path: Path, size_bytes: int) -> None:
    """Have so many bytes at ``path`` on the disk, whatever is in them already: who maps a hole and writes to
    it dies of SIGBUS on a full disk (ST-1).  Raises as ``os_error`` says, and then may have some of them."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, size_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise os_error(error, path, size_bytes) from None


def is_exhausted(error: Exception) -> bool:
    """Whether it is the process or the host that has run out of something other than room on the disk."""
    return getattr(error, "errno", None) in _EXHAUSTED or str(error).endswith(tuple(_EXHAUSTED.values()))


def os_error(error: OSError, path: Path, needed_bytes: int = 0) -> SparkFtError:
    """Our word for what the file system says."""
    if is_exhausted(error):
        return HostExhausted(f"{path}: {error}")
    if any(sign in str(error) for sign in FULL_SIGNS):
        free_bytes = free_space(path.parent)
        return StoreFull(f"{path}: {needed_bytes} bytes needed, {free_bytes} free", needed_bytes, free_bytes)
    return StorageError(f"{path}: {error}", "STORE_NOT_WRITABLE")
