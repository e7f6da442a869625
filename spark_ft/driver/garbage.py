"""What the driver alone holds for jobs, let go of when no job can ask for it any more.

A shuffle's functions and the slices of a collection are given up by finalizers, while jobs may be running
that were submitted with them; later jobs cannot reach them.  So each waits for the end of the jobs that were
live then (BL-15), and an application that lives long holds what its live objects and jobs need, no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from spark_ft.ids import BlobId, JobId
from spark_ft.protocol.messages import BlockRef


class Garbage:
    """``live``: the driver's jobs until their results have been read.  ``add`` may be called anywhere, from
    finalizers too; ``collect`` where the store may be written."""

    def __init__(
        self,
        live: Mapping[JobId, object],
        drop_blob: Callable[[BlobId], None],
        drop_block: Callable[[BlockRef], None],
    ) -> None:
        self._live, self._drop_blob, self._drop_block = live, drop_blob, drop_block
        self._waiting: deque[tuple[tuple[BlobId, ...], tuple[BlockRef, ...], frozenset[JobId]]] = deque()

    def add(self, blobs: Iterable[BlobId] = (), blocks: Iterable[BlockRef] = ()) -> None:
        self._waiting.append((tuple(blobs), tuple(blocks), frozenset(self._live)))

    def collect(self) -> None:
        """Drop what no live job was submitted with."""
        for _ in range(len(self._waiting)):
            try:
                blobs, blocks, jobs = self._waiting.popleft()
            except IndexError:  # another thread has been here
                return
            if any(job in self._live for job in jobs):
                self._waiting.append((blobs, blocks, jobs))
                continue
            for blob in blobs:
                self._drop_blob(blob)
            for block in blocks:
                self._drop_block(block)
