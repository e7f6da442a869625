"""One LMDB environment as a thing that takes and gives bytes: the only ``import lmdb``.

What LMDB asks of us, and where it is kept:

- One writer per environment: a store belongs to one process, which alone opens it for writing.
- Never the same environment twice in one process (closing one would drop the other's locks): all
  opens go through a registry by inode.
- Never after fork: the child drops every handle without closing it, since closing would free its
  parent's reader slots, and may not open the same environments again.
- No transaction across user code, none held long: ``Segment`` has no method that hands one out;
  whatever is read is copied out or visited within one call.
- A transaction is never torn by a task's kill: each runs inside ``interrupts.shielded``.
- Never on a network file system, whose locks and mappings are not those of one machine.
- A file shorter than its meta page claims kills the reader by SIGBUS: it is refused before opening.  What
  kills us all the same is told by a mark around each transaction (touched.py).
- Keys have at most 511 bytes.
- ``lmdb.Error`` never leaves this module.

Durability: ``sync=False`` survives any death of processes, since the page cache is the kernel's,
and not a crash of the machine; ``sync=True`` survives both at some 300 us a commit.  ``writemap`` is
off always: it wins nothing on fresh files and lays the map open to stray writes of native code.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from spark_ft import failpoints, interrupts
from spark_ft.errors import BlockCorrupt, BlockMissing, HostExhausted, SparkFtError, StorageError, StoreFull
from spark_ft.storage import touched
from spark_ft.storage.filesystem import (
    FULL_SIGNS,
    allocate,
    can_grow,
    check_file_system,
    free_space,
    is_exhausted,
    os_error,
)
from spark_ft.storage.metapages import checked_map_bytes

T = TypeVar("T")
Inode = tuple[int, int]  # of which device
View = bytes | memoryview
Get = Callable[[bytes], memoryview | None]  # views die with the transaction they were got in

FORMAT_KEY = b"\x00format"
FORMAT = b"spark_ft store 2"
MAX_READERS = 510  # slots of the lock table; one is used per open read transaction of a process
OPEN_SEGMENTS_MAX = 256  # for reading, in one process: each takes one or two file descriptors

_LOCK_BYTES = 128 + 64 * MAX_READERS  # of the lock table: its head, and a line of the cache for each reader

_DATA, _LOCK, _CLOSED = "data.mdb", "lock.mdb", "closed"
_READERS_WAIT_S = 30.0  # for a reader slot
_SLACK_BYTES = 1 << 20  # of pages beside the values themselves


# What LMDB says of a writable environment whose pages are not what it wrote.
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError)


class SegmentFull(Exception):  # noqa: N818 - a turn in the road, not an error: the store rolls on
    """The map has no room for this transaction; nothing of it was written."""


class SegmentDamaged(Exception):  # noqa: N818 - as above
    """The tree is damaged: nothing of this transaction was written, and nothing more can be.  What it held
    may be lost; whoever reads it finds out (BL-1)."""


class SegmentTaken(Exception):  # noqa: N818 - as above
    """Somebody else has made the environment his own since: nothing of this transaction was written."""


def whole() -> contextlib.AbstractContextManager[None]:
    """Shield from a kill, which comes to the main thread alone; other threads need none."""
    if threading.current_thread() is threading.main_thread():
        return interrupts.shielded()
    return contextlib.nullcontext()


class Segment:
    """One open environment.  Any thread may call any method."""

    def __init__(
        self, path: Path, env: lmdb.Environment, inode: Inode, lock_inode: Inode | None, writable: bool
    ) -> None:
        self.path = path
        self.inode, self.lock_inode = inode, lock_inode
        self.writable = writable
        self._env: lmdb.Environment | None = env
        self._file = os.fspath(path / _DATA)
        self._mark = touched.mark_of(path)
        self._size_bytes = 0  # that it had when it was last looked at
        self._damaged = False  # a write has found it so
        self._lock = threading.RLock()

    # --- Reading ---

    def read(self, visit: Callable[[Get], T]) -> T:
        """Call ``visit(get)`` in one short read transaction; ``visit`` copies out what it keeps.

        Raises BlockCorrupt when the tree is damaged in a way that LMDB notices.
        """

        def use(txn: Any) -> T:
            failpoints.hit("store.read")
            return visit(txn.get)

        return self._reading(True, use)

    def _reading(self, views: bool, use: Callable[[Any], T]) -> T:
        """``use(transaction)``, once there is a reader slot for it."""
        waited_s = 0.0
        while True:
            with self._lock:  # a kill here is no harm: what is unwound is a reader
                self._check_size()
                table, at = touched.table, 0
                try:
                    at = table.enter(self._mark)
                    with self._begin(views) as txn:
                        return use(txn)
                except lmdb.ReadersFullError:
                    freed = self._open_env().reader_check()  # slots of killed processes
                except lmdb.MapResizedError:  # its writer has a larger map by now (ST-3): so have we
                    self._open_env().set_mapsize(0)
                    freed = 1
                except (lmdb.Error, OSError) as error:
                    raise _unreadable(error, self.path) from None
                finally:
                    table.view[at] = 0
                    if at:
                        table.free.append(at)
            if not freed:
                waited_s += _wait_for_slot(self.path, waited_s)

    def _check_size(self) -> None:
        """A file never shrinks.  One that has would kill us by SIGBUS, and a worker with all its executors
        (ST-9); what was unlinked is whole as long as we have it."""
        try:
            size_bytes = os.stat(self._file).st_size
        except OSError:
            return
        if size_bytes < self._size_bytes:
            raise BlockCorrupt(f"{self.path}: {size_bytes} of at least {self._size_bytes} bytes")
        self._size_bytes = size_bytes

    def _begin(self, views: bool) -> Any:
        environment = self._open_env()
        return environment.begin(buffers=True) if views else environment.begin(buffers=False)

    def get(self, key: bytes) -> bytes | None:
        """A copy of one value."""

        def copy(get: Get) -> bytes | None:
            value = get(key)
            return None if value is None else bytes(value)

        return self.read(copy)

    def keys(self, prefix: bytes) -> list[bytes]:
        """All keys that begin with ``prefix``, in order; touches no large value."""
        return self._reading(False, lambda txn: list(_keys(txn, prefix)))

    # --- Writing (the store's own process) ---

    def write(
        self,
        puts: Sequence[tuple[bytes, View]] = (),
        delete_prefixes: Iterable[bytes] = (),
        expect: tuple[bytes, bytes | None] | None = None,
    ) -> None:
        """One transaction: all of it or nothing.

        ``expect``: a key and what must stand there, else SegmentTaken.  Raises SegmentFull when the map
        has no room, StoreFull when the disk has none, SegmentDamaged.
        """
        with whole(), self._lock, touched.inside(self._mark):
            try:
                with self._open_env().begin(write=True, buffers=False) as txn:
                    failpoints.hit("store.write")
                    if expect is not None and txn.get(expect[0]) != expect[1]:
                        raise SegmentTaken
                    for prefix in delete_prefixes:
                        for key in list(_keys(txn, prefix)):
                            txn.delete(key)
                    for key, value in puts:
                        txn.put(key, value)
                with contextlib.suppress(OSError):
                    self._size_bytes = os.stat(self._file).st_size
            except (lmdb.MapFullError, lmdb.TxnFullError):
                raise SegmentFull from None
            except _DAMAGE as error:
                self._damaged = True
                raise SegmentDamaged(f"{self.path}: {error}") from None
            except (lmdb.Error, OSError) as error:
                needed = sum(len(value) for _, value in puts)
                raise _translated(error, self.path, needed) from None

    def sync(self) -> None:
        """Force all that was committed to the disk."""
        with whole(), self._lock:
            try:
                self._open_env().sync(True)
            except lmdb.Error as error:
                raise _translated(error, self.path, 0) from None

    # --- Housekeeping ---

    def reader_check(self) -> int:
        """Free the reader slots of dead processes, which would pin old pages (ST-5).  Returns how many."""
        with whole(), self._lock:
            try:
                return int(self._open_env().reader_check())
            except lmdb.Error as error:
                raise StorageError(f"{self.path}: {error}") from None

    def free_dead_readers(self) -> None:
        """As ``reader_check``, unless the segment is in use just now."""
        if self._lock.acquire(blocking=False):
            try:
                if self._env is not None:
                    self._env.reader_check()
            except lmdb.Error:
                return  # damaged: whoever reads from it will say so
            finally:
                self._lock.release()

    def compact_to(self, directory: Path) -> None:
        """Copy what is live into a new environment in ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        with whole(), self._lock:
            try:
                self._open_env().copy(str(directory), compact=True)
            except lmdb.Error as error:
                raise _translated(error, directory, 0) from None

    def close(self) -> None:
        """Close and forget; a second call does nothing."""
        with whole(), _registry.lock, self._lock:
            _registry.forget(self)
            if self._env is not None:
                self._env.close()
                self._env = None

    @property
    def is_open(self) -> bool:
        return self._env is not None

    @property
    def is_in_place(self) -> bool:
        """Whether others who open its path find this very file, as long as it was, and it can be written."""
        if self._damaged:
            return False
        try:
            self._check_size()
        except BlockCorrupt:
            return False
        return _inode(self.path) == self.inode

    def _open_env(self) -> lmdb.Environment:
        if self._env is None:
            raise BlockMissing(f"{self.path} is closed in this process")
        return self._env

    def _abandon(self) -> None:
        """In a forked child: the handle is the parent's, so keep it from ever being closed here."""
        _abandoned[self.inode] = self._env
        self._env = None
        self._lock = threading.RLock()


def _wait_for_slot(path: Path, waited_s: float) -> float:
    """All reader slots are taken by the living, who hold none for long (ST-4): a little later, then.
    Answers how long it was; StorageError when it has been too long already."""
    if waited_s >= _READERS_WAIT_S:
        raise StorageError(f"all reader slots of {path} were taken for {waited_s:.0f} s")
    pause_s = min(0.25, 0.01 + waited_s / 4)
    threading.Event().wait(pause_s)
    return pause_s


def _keys(txn: Any, prefix: bytes) -> Iterable[bytes]:
    cursor = txn.cursor()
    if cursor.set_range(prefix):
        for key in cursor.iternext(values=False):
            if not key.startswith(prefix):
                return
            yield key


def _unreadable(error: Exception, path: Path) -> Exception:
    """Our word for what LMDB says of a read.  That we have no room to map a file, or may not open one more,
    proves nothing against the file: whoever took it for damage would have good outputs built again (MEM-6,
    WK-9)."""
    if isinstance(error, lmdb.MemoryError):
        return MemoryError(f"{path}: {error}")
    if is_exhausted(error):
        return HostExhausted(f"{path}: {error}")
    return BlockCorrupt(f"{path}: {error}")


def _translated(error: Exception, path: Path, needed_bytes: int) -> SparkFtError:
    """Our word for LMDB's: no space is the host's trouble, the rest is the store's."""
    text = str(error)
    if is_exhausted(error):
        return HostExhausted(f"{path}: {text}")
    free_bytes = free_space(path)
    # LMDB calls a short write, which is what a disk that is getting full answers first, an I/O error.
    short = "Input/output error" in text
    full = short and (free_bytes < needed_bytes + _SLACK_BYTES or not can_grow(path / _DATA))
    if full or any(sign in text for sign in FULL_SIGNS):
        return StoreFull(f"{path}: {needed_bytes} bytes needed, {free_bytes} free", needed_bytes, free_bytes)
    return StorageError(f"{path}: {text}")


# --- The registry ---------------------------------------------------------------------------


class _Registry:
    """Every open segment of this process, by inode and by path."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.by_inode: dict[Inode, Segment] = {}
        self.by_path: dict[str, Segment] = {}  # oldest use first, as far as opens tell
        self.opens = 0

    def add(self, segment: Segment) -> None:
        self.by_inode[segment.inode] = segment
        self.by_path[str(segment.path)] = segment

    def forget(self, segment: Segment) -> None:
        if self.by_inode.get(segment.inode) is segment:
            del self.by_inode[segment.inode]
        for path in [path for path, known in self.by_path.items() if known is segment]:
            del self.by_path[path]

    def readers(self) -> list[Segment]:
        return [segment for segment in self.by_inode.values() if not segment.writable]

    def part_with_namesakes(self, *inodes: Inode | None) -> None:
        """Before the files with these inodes are opened.  py-lmdb knows what is open by the inodes of both
        files, but of a closed segment we hold the data alone: once it is unlinked, the inode of its lock file
        may be that of any file of another one."""
        for segment in self.readers():
            if segment.lock_inode is not None and segment.lock_inode in inodes:
                segment.close()

    def make_room(self) -> None:
        """Before another open: now and then look for unlinked files, and never hold too many."""
        self.opens += 1
        if self.opens % 64 == 0:
            sweep()
        readers = self.readers()
        for segment in readers[: max(0, len(readers) - OPEN_SEGMENTS_MAX + 1)]:
            segment.close()


_registry = _Registry()
_abandoned: dict[Inode, lmdb.Environment | None] = {}  # a forked child's inheritance


def _after_fork_in_child() -> None:
    """ST-12: the parent's environments are dead here, and stay so; others may be opened."""
    global _registry
    for segment in list(_registry.by_inode.values()):
        segment._abandon()
    _registry = _Registry()


os.register_at_fork(after_in_child=_after_fork_in_child)


def sweep() -> None:
    """Close what was opened for reading and has been unlinked or replaced since: its space comes free.
    In what we write, free the slots of dead readers: whoever finds all taken cannot even open it (ST-4)."""
    with _registry.lock:
        for segment in list(_registry.by_inode.values()):
            if segment.writable:
                segment.free_dead_readers()
            elif _inode(segment.path) != segment.inode:
                segment.close()


def create_segment(path: Path, map_bytes: int, sync: bool, any_file_system: bool = False) -> Segment:
    """A new, empty environment in the new directory ``path``, open for writing.  Raises StoreFull, or
    StorageError (STORE_NOT_WRITABLE) when the directory cannot be had."""
    if not any_file_system:
        check_file_system(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise os_error(error, path) from None
    with whole():
        try:
            with _registry.lock:
                segment = _created(path, map_bytes, sync)
            segment.write([(FORMAT_KEY, FORMAT)])
        except SparkFtError:  # no room: then let what is half made take none
            with _registry.lock:
                if (known := _registry.by_path.get(str(path))) is not None:
                    known.close()
            shutil.rmtree(path, ignore_errors=True)
            raise
    return segment


def _created(path: Path, map_bytes: int, sync: bool) -> Segment:
    _registry.make_room()
    allocate(path / _LOCK, _LOCK_BYTES)
    try:
        env = lmdb.open(
            str(path),
            map_size=map_bytes,
            sync=sync,
            metasync=sync,
            writemap=False,
            meminit=False,
            max_readers=MAX_READERS,
            max_spare_txns=2,
        )
    except lmdb.Error as error:
        raise _translated(error, path, 0) from None
    inode = _inode(path)
    assert inode is not None, "the file was created just now"
    segment = Segment(path, env, inode, _inode(path, _LOCK), writable=True)
    _registry.add(segment)
    return segment


def open_segment(path: Path) -> Segment:
    """The environment at ``path``, for reading; the one already open in this process if there is one.

    A closed segment never changes and is opened without the lock table; so is one whose lock file is gone:
    what is read is verified.  Raises BlockMissing when there is no such
    segment, BlockCorrupt when its file is damaged, StorageError (STORE_FORMAT) when it is another version's.
    """
    waited_s = 0.0
    while True:
        try:
            return _open_segment(path)
        except lmdb.ReadersFullError:  # opening takes a slot for a moment; its writer frees those of the dead
            waited_s += _wait_for_slot(path, waited_s)


def _open_segment(path: Path) -> Segment:
    with whole(), _registry.lock:
        known = _registry.by_path.get(str(path))
        if known is not None and known.is_open:
            return known
        inode = _inode(path)
        if inode is None:
            raise BlockMissing(f"there is no segment {path}")
        known = _registry.by_inode.get(inode)
        if known is not None and known.is_open:
            _registry.by_path[str(path)] = known
            return known
        if inode in _abandoned:
            raise StorageError(f"{path} was opened by the process this one was forked from", "STORE_IN_USE")
        map_bytes = _checked_map_bytes(path)
        _registry.make_room()
        lock_inode = _inode(path, _LOCK)  # asked now: it may be unlinked by the time it is open
        _registry.part_with_namesakes(inode, lock_inode)
        segment = Segment(path, _open_readonly(path, map_bytes), inode, lock_inode, writable=False)
        _registry.add(segment)
        try:
            _check_format(segment)
        except BaseException:  # a kill too: it is in the registry, and nobody gets it to close it
            segment.close()
            raise
        return segment


def _open_readonly(path: Path, map_bytes: int) -> lmdb.Environment:
    active = not (path / _CLOSED).exists() and os.access(path / _LOCK, os.R_OK | os.W_OK)
    try:
        with touched.inside(touched.mark_of(path)):
            return lmdb.open(
                str(path),
                map_size=map_bytes,
                readonly=True,
                create=False,
                lock=active,
                max_readers=MAX_READERS,
                max_spare_txns=2,
            )
    except lmdb.ReadersFullError:
        raise
    except lmdb.Error as error:
        raise _unreadable(error, path) from None


def take_over(path: Path) -> Segment:
    """Open a dead writer's segment for writing, to clean it.  Raises as ``open_segment``."""
    with whole(), _registry.lock:
        inode = _inode(path)
        if inode is None:
            raise BlockMissing(f"there is no segment {path}")
        known = _registry.by_inode.get(inode)
        if known is not None:
            known.close()
        return _open_writable(path, inode, 0, sync=False)


def open_shared(path: Path, map_bytes: int, sync: bool, any_file_system: bool = False) -> Segment:
    """The environment at ``path`` for writing, made when there is none.  Other processes may do the same:
    LMDB lets one write at a time, and ``expect`` tells them apart.

    Raises BlockCorrupt when its file is damaged, StorageError (STORE_FORMAT) when it is another version's,
    and as ``create_segment``.
    """
    with whole(), _registry.lock:
        inode = _inode(path)
        if inode is None:
            with contextlib.suppress(OSError):
                path.rmdir()  # whoever was here before us has not come further
            return create_segment(path, map_bytes, sync, any_file_system)
        if inode in _registry.by_inode:
            raise StorageError(f"{path} is open in this process already", "STORE_IN_USE")
        segment = _open_writable(path, inode, map_bytes, sync)
        try:
            _check_format(segment)
        except BaseException:  # as in open_segment: a kill too, or its map stays
            segment.close()
            raise
        return segment


def _open_writable(path: Path, inode: Inode, map_bytes: int, sync: bool) -> Segment:
    map_bytes = max(map_bytes, _checked_map_bytes(path))
    allocate(path / _LOCK, _LOCK_BYTES)
    lock_inode = _inode(path, _LOCK)
    _registry.part_with_namesakes(inode, lock_inode)
    try:
        env = lmdb.open(str(path), map_size=map_bytes, sync=sync, metasync=sync, max_readers=MAX_READERS)
    except lmdb.Error as error:
        raise _unreadable(error, path) from None
    segment = Segment(path, env, inode, lock_inode, writable=True)
    _registry.add(segment)
    return segment


def mark_closed(path: Path) -> None:
    """From now on nobody writes to the segment at ``path``."""
    try:
        (path / _CLOSED).touch()
    except OSError as error:
        raise os_error(error, path) from None


def condemn(path: Path) -> None:
    """Take a damaged segment out of use for everybody: the empty file in its place is refused by whoever
    comes or has it open, its writer too; who is in the middle of it keeps what is mapped."""
    try:
        (empty := path / "condemned").touch()
        os.replace(empty, path / _DATA)
    except OSError as error:
        raise os_error(error, path) from None


def is_closed(path: Path) -> bool:
    return (path / _CLOSED).exists()


def _inode(path: Path, name: str = _DATA) -> Inode | None:
    try:
        status = os.stat(path / name)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_format(segment: Segment) -> None:
    found = segment.get(FORMAT_KEY)
    if found is None:
        raise BlockCorrupt(f"{segment.path} has no format version")
    if found != FORMAT:
        raise StorageError(f"{segment.path} is of format {found!r}, this is {FORMAT!r}", "STORE_FORMAT")


def _checked_map_bytes(path: Path) -> int:
    """Raises BlockCorrupt, BlockMissing, HostExhausted."""
    try:
        return checked_map_bytes(path / _DATA)
    except OSError as error:
        if is_exhausted(error):
            raise HostExhausted(f"{path}: {error}") from None
        raise BlockMissing(f"{path}: {error}") from None
