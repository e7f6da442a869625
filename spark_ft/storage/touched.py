"""Which segments a process is in the middle of, told by a file that outlives it.

A page that is gone or damaged ends whoever maps it by SIGBUS or SIGSEGV, and the dead cannot say where they
were.  So each transaction is written down in a shared mapping while it lasts, which costs a fraction of a
microsecond, and whoever reaps the process reads it there and has the segment examined (ST-10).  A segment is
named by its path; the first entry is nobody's: it takes what finds all others in use, and what is not
published at all.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_ENTRY_BYTES = 1024
_ENTRIES = 33  # more transactions at a time than a process has threads
_HEAD = struct.Struct("<?H")  # in use; bytes of the path
FAULTS = frozenset((4, 6, 7, 8, 11))  # SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: deaths that damage may cause


class _Table:
    """``enter`` before a transaction; after it, ``view[at] = 0`` and, unless ``at`` is 0, ``at`` back to
    ``free``: in place and not by a call, which a task's kill could keep from ever beginning.  Whoever is
    shielded from kills uses ``inside``."""

    __slots__ = ("free", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.free = list(range(_ENTRY_BYTES, len(view), _ENTRY_BYTES))

    def enter(self, mark: bytes) -> int:
        try:
            at = self.free.pop() if self.free else 0
        except IndexError:  # another thread was quicker
            at = 0
        self.view[at : at + len(mark)] = mark
        return at


def _private() -> _Table:
    return _Table(memoryview(bytearray(_ENTRY_BYTES)))


table = _private()


def mark_of(segment: Path) -> bytes:
    """What a transaction in ``segment`` writes down; of a path that is too long, nothing."""
    name = os.fsencode(segment)
    return _HEAD.pack(True, len(name)) + name if len(name) <= _ENTRY_BYTES - _HEAD.size else bytes(_HEAD.size)


@contextlib.contextmanager
def inside(mark: bytes) -> Iterator[None]:
    """The span of one transaction, or of an open."""
    here = table
    at = here.enter(mark)
    try:
        yield
    finally:
        here.view[at] = 0
        if at:
            here.free.append(at)


def publish(path: Path) -> None:
    """From now on this process writes down in a new file at ``path`` what it is in the middle of."""
    global table
    path.write_bytes(bytes(_ENTRIES * _ENTRY_BYTES))
    with path.open("r+b") as file:
        table = _Table(memoryview(mmap.mmap(file.fileno(), _ENTRIES * _ENTRY_BYTES)))


def read(path: Path) -> list[Path]:
    """The segments that the process that published ``path``, dead by now, was in the middle of."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    found = []
    for at in range(_ENTRY_BYTES, len(data), _ENTRY_BYTES):
        in_use, size = _HEAD.unpack_from(data, at)
        if in_use:
            found.append(Path(os.fsdecode(data[at + _HEAD.size : at + _HEAD.size + size])))
    return sorted(set(found))


def _after_fork_in_child() -> None:
    """The file is the parent's, which alone is reaped by whoever reads it."""
    global table
    table = _private()


os.register_at_fork(after_in_child=_after_fork_in_child)
