"""Disks that lie, lose and fill up: the files of live stores are changed under their readers and writers."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.nemesis import OUTPUTS, PROCESS, TASK, WORKER, Fault, Invocation, Kind, Nemesis

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster

PAGE_BYTES = 4096
_META_PAGES = 2
# A page that lies or is gone may cost what it held, and whoever maps it his life: a worker serves it.
_DAMAGE = frozenset({OUTPUTS, PROCESS, TASK, WORKER})


def segments(store: Path) -> list[Path]:
    """The data files of a store, in the order they were written."""
    return sorted(store.glob("seg-*/data.mdb"))


def flip_bits(path: Path, rng: random.Random, count: int = 1, first_page: int = _META_PAGES) -> list[int]:
    """Change single bits in data pages; at which offsets."""
    size = path.stat().st_size
    if size <= first_page * PAGE_BYTES:
        return []
    offsets = sorted(rng.randrange(first_page * PAGE_BYTES, size) for _ in range(count))
    with path.open("r+b", buffering=0) as file:
        for offset in offsets:
            byte = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes((byte[0] ^ 1 << rng.randrange(8),)), offset)
    return offsets


def zero_pages(path: Path, rng: random.Random, count: int = 1) -> list[int]:
    """Overwrite data pages with zeros; which pages."""
    pages = range(_META_PAGES, path.stat().st_size // PAGE_BYTES)
    chosen = sorted(rng.sample(pages, min(count, len(pages))))
    with path.open("r+b", buffering=0) as file:
        for page in chosen:
            os.pwrite(file.fileno(), bytes(PAGE_BYTES), page * PAGE_BYTES)
    return chosen


def cut_short(path: Path, rng: random.Random) -> int:
    """Truncate to a random whole number of pages; how many bytes are gone."""
    size = path.stat().st_size
    left = rng.randrange(0, max(1, size // PAGE_BYTES)) * PAGE_BYTES
    os.truncate(path, left)
    return size - left


class Disk(Nemesis):
    """Damage in one segment of one store.  Whoever wrote it may still be writing there."""

    name = "disk"
    kinds = (
        Kind("flip", ("BL-3", "ST-10"), _DAMAGE, weight=3.0),
        Kind("zero", ("BL-3", "ST-9"), _DAMAGE),
        Kind("truncate", ("ST-9",), _DAMAGE),
        Kind("delete", ("BL-1",), _DAMAGE),
        Kind("delete-store", ("BL-1", "ST-14"), _DAMAGE),
        Kind("stale", ("BL-3", "WK-4"), _DAMAGE, (0.5, 2.0)),
        Kind("lock", ("ST-11",), _DAMAGE),
    )

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Path, Path]] = {}

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        stores = [store for store in cluster.stores() if segments(store)]
        if not stores:
            return self.made(fault, False, why="nothing has been written")
        store = rng.choice(stores)
        path = rng.choice(segments(store))
        if fault.kind == "stale":
            return self._copy(fault, path)
        before = path.stat()
        with contextlib.suppress(FileNotFoundError):  # dropped just now: then there was nothing to damage
            done = _DAMAGES[fault.kind](path, rng)
            rows = self.kind(fault.kind).rows if done else ()
            what = f"{store.name}/{path.parent.name}"
            return self.made(fault, bool(done), *rows, done=done, segment=what, bytes=before.st_size)
        return self.made(fault, False, why="it was dropped meanwhile")

    def _copy(self, fault: Fault, path: Path) -> Invocation:
        """A copy now; put back in place of the file when the fault's time is over."""
        copy = path.with_name(f"stale-{fault.number}")
        shutil.copyfile(path, copy)
        self._copies[fault.number] = path, copy
        return self.made(fault, None, store=path.parent.parent.name, bytes=copy.stat().st_size)

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        pair = self._copies.pop(invocation.fault.number, None)
        if pair is None:
            return invocation
        path, copy = pair
        try:
            changed = path.read_bytes() != copy.read_bytes()
            os.replace(copy, path)
        except OSError:
            changed = False  # the segment is gone with its store, and the copy with it
        if not changed:
            return replace(invocation, took_effect=False, takes=frozenset())
        return replace(invocation, took_effect=True, rows=self.kind("stale").rows)


def _delete(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def _delete_store(path: Path, rng: random.Random) -> str:
    shutil.rmtree(path.parent.parent)
    return "deleted"


def _delete_lock(path: Path, rng: random.Random) -> str:
    path.with_name("lock.mdb").unlink(missing_ok=True)
    return "deleted"


_DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "flip": lambda path, rng: flip_bits(path, rng, rng.choice([1, 3, 50])),
    "zero": lambda path, rng: zero_pages(path, rng, rng.choice([1, 4])),
    "truncate": cut_short,
    "delete": _delete,
    "delete-store": _delete_store,
    "lock": _delete_lock,
}
