"""MapOutputTracker: for every shuffle, which map outputs exist and at which generation.

Invariants
  * generation and version of a shuffle only grow (S19); each change of a status changes the version.
  * every status is of the current generation, of its own map index, and was reported committed by
    a task or by a probe; its host is not lost (S7).
  * the copies of an output are on other hosts, and are the same attempt's, so the same bytes; when the one
    that readers are told of first goes, another takes its place, and the output is not missing.
  * a status put back after a loss has the checksum recorded for this generation, or nothing that
    finished has read the old one (S18; the caller sees to it with ``differs``).
  * accumulator updates of a map partition are handed out once, whatever is rebuilt later (S20).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from spark_ft.ids import Fingerprint, Generation, ShuffleId
from spark_ft.lineage.shape import ShuffleShape
from spark_ft.protocol.digests import UNKNOWN, digest_of_inputs, digest_of_outputs
from spark_ft.protocol.messages import MapOutputs, MapStatus


class ShuffleOutputs:
    """The outputs of one shuffle at its current generation."""

    __slots__ = (
        "_digest", "_merged", "_message", "_untold", "checksums", "copies", "fingerprint", "generation",
        "map_count", "missing", "shuffle", "sources", "statuses", "version",
    )  # fmt: skip

    def __init__(self, shape: ShuffleShape) -> None:
        self.shuffle: ShuffleId = shape.shuffle
        self.fingerprint: Fingerprint = shape.fingerprint
        self.map_count = shape.map_count
        self.generation = Generation(0)
        self.version = 0
        self.statuses: list[MapStatus | None] = [None] * shape.map_count
        self.missing = shape.map_count
        self.copies: dict[int, tuple[MapStatus, ...]] = {}  # map index -> where its output is besides
        self.checksums: dict[int, int] = {}  # map index -> checksum first seen in this generation
        self.sources: set[ShuffleId] = set()  # shuffles from whose current generation an output was built
        self._merged = bytearray(shape.map_count)
        self._message: MapOutputs | None = None
        self._untold = False  # whether there are copies that no version tells of
        self._digest = UNKNOWN

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
        self.copies.pop(index, None)
        self.checksums[index] = status.checksum
        self._changed()

    def locations(self, map_index: int) -> tuple[MapStatus, ...]:
        """Everywhere that the output is, first where readers are told to look first."""
        first = self.statuses[map_index]
        return () if first is None else (first, *self.copies.get(map_index, ()))

    def add_copy(self, copy: MapStatus) -> bool:
        """The output is there too.  False when that is no copy of what counts now, or none is needed.

        Readers are not told at once: the next that is told of this shuffle for another reason hears of it.
        """
        places = self.locations(copy.map_index) if 0 <= copy.map_index < self.map_count else ()
        if not places or (copy.attempt, copy.checksum) != (places[0].attempt, places[0].checksum):
            return False  # of an older generation, or of another attempt
        if any(place.host == copy.host for place in places):
            return False
        self.copies[copy.map_index] = (*places[1:], copy)
        self._untold = True
        return True

    def tell(self) -> None:
        """Whoever is sent to read from now on hears of all copies."""
        if self._untold:
            self._changed()

    def lose(self, map_index: int, is_lost: Callable[[MapStatus], bool]) -> bool:
        """Forget the places that ``is_lost``; true when the output is gone with them.  Its checksum stays:
        what is rebuilt in its place is compared with it."""
        places = self.locations(map_index)
        left = [place for place in places if not is_lost(place)]
        if len(left) == len(places):
            return False
        self.copies.pop(map_index, None)
        if left[1:]:
            self.copies[map_index] = tuple(left[1:])
        self.statuses[map_index] = left[0] if left else None
        self.missing += not left
        self._changed()
        return not left

    def bump(self) -> None:
        """Begin a new generation with no outputs: no block of the old one is ever read again."""
        self.generation = Generation(self.generation + 1)
        self.statuses = [None] * self.map_count
        self.missing = self.map_count
        self.copies.clear()
        self.checksums.clear()
        self.sources.clear()
        self._changed()

    def begin_at(self, generation: int) -> None:
        """Go on with the generation that an earlier driver had reached; before anything is registered."""
        assert self.missing == self.map_count and generation >= self.generation
        self.generation = Generation(generation)

    def digest(self) -> int:
        """Of all outputs at the current version; UNKNOWN while some are missing.  Linear in them, once."""
        if self._digest == UNKNOWN and self.complete:
            checksums = [status.checksum for status in self.statuses if status is not None]
            self._digest = digest_of_outputs(self.fingerprint, self.generation, checksums)
        return self._digest

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
            copies = tuple(copy for _, copies in sorted(self.copies.items()) for copy in copies)
            self._message = MapOutputs(
                self.shuffle, self.generation, self.version, self.fingerprint, present, copies
            )
        return self._message

    def _changed(self) -> None:
        self.version += 1
        self._message = None
        self._untold = False
        self._digest = UNKNOWN


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
        """Forget every place that ``is_lost`` in one go, of all shuffles (WK-2); returns the outputs that
        are gone with them.  Linear in outputs."""
        found: dict[ShuffleId, list[int]] = {}
        for outputs in self._shuffles.values():
            gone = [index for index in range(outputs.map_count) if outputs.lose(index, is_lost)]
            if gone:
                found[outputs.shuffle] = gone
        return found

    def digest(self, shuffles: Iterable[ShuffleId]) -> int:
        """Of what a task reads that reads all of these."""
        return digest_of_inputs(self._shuffles[shuffle].digest() for shuffle in shuffles)

    def built_from(self, shuffle: ShuffleId) -> list[ShuffleId]:
        """Shuffles of which an output was built from the current generation of ``shuffle``."""
        return [outputs.shuffle for outputs in self._shuffles.values() if shuffle in outputs.sources]
