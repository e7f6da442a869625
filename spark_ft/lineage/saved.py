"""The records of a checkpoint: what was written once and is believed only while it is that, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from xxhash import xxh3_128

from spark_ft import rows
from spark_ft.errors import CheckpointLost, StorageError
from spark_ft.filesystems import at
from spark_ft.ids import NodeId
from spark_ft.lineage.node import Node, TaskEnv

_READ_BYTES = 256 << 10


class Saved(Node):
    """Part files of batches (rows.py): ``parts`` has the name, size and xxh3_128 of each partition's.

    ``folder``: a URI.  A part that is gone or other than it was gives CheckpointLost, never other records.
    """

    __slots__ = ("folder", "parts")

    def __init__(self, node_id: NodeId, folder: str, parts: Sequence[tuple[str, int, str]]) -> None:
        super().__init__(node_id)
        self.folder = folder
        self.parts = tuple(parts)

    @property
    def partition_count(self) -> int:
        return len(self.parts)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return chain.from_iterable(self.batches(partition))

    def batches(self, partition: int) -> Iterator[rows.Batch]:
        """Each one verified when it is handed out, all together at the end.  Raises CheckpointLost."""
        torn = b""
        try:
            for data in self._pieces(partition):
                data = torn + data if torn else data
                whole, _, _ = rows.whole_batches(data)
                yield from rows.iter_batches(memoryview(data)[:whole])
                torn = data[whole:]
        except StorageError as error:
            raise self._lost(partition, str(error)) from error

    def is_whole(self, partition: int) -> bool:
        """Read it and compare, without unpickling a record."""
        try:
            for _ in self._pieces(partition):
                pass
        except CheckpointLost:
            return False
        return True

    def _pieces(self, partition: int) -> Iterator[bytes]:
        name, size, checksum = self.parts[partition]
        files, path = at(self.folder)
        found = files.size(f"{path}/{name}")
        if found != size:
            raise self._lost(partition, "it is gone" if found < 0 else f"{found} bytes in place of {size}")
        sum = xxh3_128()
        try:
            with files.open(f"{path}/{name}") as file:
                while data := file.read(_READ_BYTES):
                    sum.update(data)
                    yield data
        except OSError as error:
            raise self._lost(partition, str(error)) from error
        if sum.hexdigest() != checksum:
            raise self._lost(partition, "its checksum does not hold")

    def _lost(self, partition: int, why: str) -> CheckpointLost:
        return CheckpointLost(f"{self.folder}/{self.parts[partition][0]}: {why}")
