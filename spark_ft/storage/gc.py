"""Space given back by the worker, which owns the directories of stores whose writers have died.

A live store is its writer's own business, save for one thing: reader slots of processes killed in mid
transaction, which would pin its pages.  In a dead store a segment goes when nothing live has
a part in it, and a segment that is mostly garbage (chunks whose manifest never came, outputs dropped
since) is copied once without it.  Both are safe under readers: an unlinked or replaced file stays
whole for whoever has it mapped, and what is read is verified anyhow.

Touching a damaged environment may kill the process: call this in a disposable child (ST-9).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from spark_ft.errors import StorageError
from spark_ft.storage import filesystem, layout, lmdb_env

COMPACT_FROM_BYTES = 16 << 20  # of garbage, and more than half of a segment


@dataclass(slots=True)
class Collected:
    """What one round did: for the log and for tests."""

    readers_freed: int = 0
    segments_unlinked: int = 0
    segments_compacted: int = 0
    stores_removed: int = 0


def seal(host_root: Path, store: str) -> None:
    """From now on the store's writer may commit nothing: what ``outputs`` lists afterwards is all there
    will ever be."""
    path = host_root / "stores" / store
    with contextlib.suppress(FileNotFoundError):
        (path / "sealed").touch()


def collect_garbage(host_root: Path, live_stores: Collection[str], dropped: Collection[bytes]) -> Collected:
    """One round over the stores of a host.

    ``live_stores``: names (writers' incarnations) of those whose writer may still live.  ``dropped``:
    fingerprints of shuffles, and keys of other blocks, that nobody will ever read again; readers are
    told BlockExpired from here on.
    """
    done = Collected()
    fresh = set(dropped) - layout.read_expired(host_root)
    layout.mark_expired(host_root, sorted(fresh))
    expired = layout.read_expired(host_root)
    for store in sorted((host_root / "stores").glob("*")):
        if store.name in live_stores:
            done.readers_freed += _check_readers(store)
        else:
            _collect_store(store, expired, done)
    lmdb_env.sweep()
    return done


def _check_readers(store: Path) -> int:
    numbers = layout.segment_numbers(store)
    path = layout.segment_path(store, numbers[-1]) if numbers else store
    if not numbers or lmdb_env.is_closed(path):
        return 0
    try:
        return lmdb_env.open_segment(path).reader_check()
    except StorageError:
        return 0  # being created or removed just now; there is a next round


def _collect_store(store: Path, expired: Collection[bytes], done: Collected) -> None:
    """Unlink what a dead writer left and nobody needs; a store that cannot be read is left to its readers."""
    numbers = layout.segment_numbers(store)
    needed: set[int] = set()
    live: set[bytes] = set()
    readable = True
    for number in numbers:
        try:
            segment = lmdb_env.open_segment(layout.segment_path(store, number))
            for item in layout.items_in(segment):
                if layout.item_name(item) not in expired:
                    needed.update({number}, layout.item_segments(segment, item))
                    live.add(item)
        except StorageError:
            readable = False
            needed.add(number)
    for number in numbers:
        path = layout.segment_path(store, number)
        if number not in needed:
            layout.remove_tree(path)
            done.segments_unlinked += 1
        else:
            lmdb_env.mark_closed(path)
            with contextlib.suppress(StorageError):
                if readable:
                    done.segments_compacted += _compact(path, live)
    if not needed:
        layout.remove_tree(store)
        done.stores_removed += 1


def _compact(path: Path, live: Collection[bytes]) -> bool:
    """Copy a dead writer's segment without its garbage, when that is worth it."""
    segment = lmdb_env.open_segment(path)
    garbage = layout.garbage_in(segment, live)
    if not garbage:
        return False
    garbage_bytes = segment.read(lambda get: sum(len(get(key) or b"") for key in garbage))
    size_bytes = (path / "data.mdb").stat().st_size
    if garbage_bytes < COMPACT_FROM_BYTES or garbage_bytes * 2 < size_bytes:
        return False
    segment = lmdb_env.take_over(path)
    fresh = path.with_name(path.name + ".fresh")
    try:
        segment.write(delete_prefixes=garbage)
        segment.compact_to(fresh)
        os.replace(fresh / "data.mdb", path / "data.mdb")
    except OSError as error:
        raise filesystem.os_error(error, path) from None
    finally:
        segment.close()
        layout.remove_tree(fresh)
    return True
