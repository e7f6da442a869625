"""MapOutputTracker: for every shuffle, which map outputs exist and at which generation.

Invariants
  * generation and version of a shuffle only grow (S19); each change of a status changes the version.
  * every status is of the current generation, of its own map index, and was reported committed by
    a task or by a probe; its host is not lost (S7).
  * a status put back after a loss has the checksum recorded for this generation, or nothing that
    finished has read the old one (S18; the caller sees to it with ``differs``).
  * accumulator updates of a map partition are handed out once, whatever is rebuilt later (S20).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from spark_ft.ids import Fingerprint, Generation, ShuffleId
from spark_ft.lineage.shape import ShuffleShape
from spark_ft.protocol.messages import MapOutputs, MapStatus


class ShuffleOutputs:
    """The outputs of one shuffle at its current generation."""

    __slots__ = (
        "_merged", "_message", "checksums", "fingerprint", "generation", "map_count", "missing", "shuffle",
        "sources", "statuses", "version",
    )  # fmt: skip

    def __init__(self, shape: ShuffleShape) -> None:
        self.shuffle: ShuffleId = shape.shuffle
        self.fingerprint: Fingerprint = shape.fingerprint
        self.map_count = shape.map_count
        self.generation = Generation(0)
        self.version = 0
        self.statuses: list[MapStatus | None] = [None] * shape.map_count
        self.missing = shape.map_count
        self.checksums: dict[int, int] = {}  # map index -> checksum first seen in this generation
        self.sources: set[ShuffleId] = set()  # shuffles from whose current generation an output was built
        self._merged = bytearray(shape.map_count)
        self._message: MapOutputs | None = None

    @property
    def complete(self) -> bool:
        return self.missing == 0

    def lacking(self) -> list[int]:
        """Map partitions without an output."""
        return [index for index, status in enumerate(self.statuses) if status is None]

    def differs(self, status: MapStatus) -> bool:
        """Whether an output's bytes are not proved the same as those seen before for its partition."""
        return self.checksums.get(status.map_index, status.checksum) != status.checksum

    def register(self, status: MapStatus) -> None:
        assert status.generation == self.generation  # reached by test_BL_6
        index = status.map_index
        if self.statuses[index] is None:
            self.missing -= 1
        self.statuses[index] = replace(status, accums=()) if status.accums else status
        self.checksums[index] = status.checksum
        self._changed()

    def drop(self, map_index: int) -> None:
        """The output is gone.  Its checksum stays: what is rebuilt in its place is compared with it."""
        if self.statuses[map_index] is not None:
            self.statuses[map_index] = None
            self.missing += 1
            self._changed()

    def bump(self) -> None:
        """Begin a new generation with no outputs: no block of the old one is ever read again."""
        self.generation = Generation(self.generation + 1)
        self.statuses = [None] * self.map_count
        self.missing = self.map_count
        self.checksums.clear()
        self.sources.clear()
        self._changed()

    def merge_once(self, map_index: int) -> bool:
        """Whether the accumulator updates of this partition are to be merged now: true once (DR-13)."""
        first = not self._merged[map_index]
        self._merged[map_index] = 1
        return first

    def message(self) -> MapOutputs:
        """What readers are told; built once a version."""
        if self._message is None:
            assert self.complete  # S5: no reader is told of half a shuffle
            present = tuple(status for status in self.statuses if status is not None)
            self._message = MapOutputs(self.shuffle, self.generation, self.version, self.fingerprint, present)
        return self._message

    def _changed(self) -> None:
        self.version += 1
        self._message = None


class MapOutputTracker:
    """All live shuffles."""

    def __init__(self) -> None:
        self._shuffles: dict[ShuffleId, ShuffleOutputs] = {}

    def __getitem__(self, shuffle: ShuffleId) -> ShuffleOutputs:
        return self._shuffles[shuffle]

    def __contains__(self, shuffle: ShuffleId) -> bool:
        return shuffle in self._shuffles

    def __iter__(self) -> Iterator[ShuffleOutputs]:
        return iter(self._shuffles.values())

    def get(self, shuffle: ShuffleId) -> ShuffleOutputs | None:
        return self._shuffles.get(shuffle)

    def ensure(self, shape: ShuffleShape) -> None:
        if shape.shuffle not in self._shuffles:
            self._shuffles[shape.shuffle] = ShuffleOutputs(shape)

    def forget(self, shuffle: ShuffleId) -> Fingerprint | None:
        """Nobody can ask for this shuffle again; returns the name of its data on disk."""
        outputs = self._shuffles.pop(shuffle, None)
        return outputs.fingerprint if outputs else None

    def lost(self, is_lost: Callable[[MapStatus], bool]) -> dict[ShuffleId, list[int]]:
        """Drop every output that ``is_lost`` in one go, of all shuffles (WK-2).  Linear in outputs."""
        found: dict[ShuffleId, list[int]] = {}
        for outputs in self._shuffles.values():
            gone = [s.map_index for s in outputs.statuses if s is not None and is_lost(s)]
            for index in gone:
                outputs.drop(index)
            if gone:
                found[outputs.shuffle] = gone
        return found

    def built_from(self, shuffle: ShuffleId) -> list[ShuffleId]:
        """Shuffles of which an output was built from the current generation of ``shuffle``."""
        return [outputs.shuffle for outputs in self._shuffles.values() if shuffle in outputs.sources]
