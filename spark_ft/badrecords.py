"""Records of files that cannot be read as what they should be, counted where a program would rather go on.

``spark.ft.input.mode`` PERMISSIVE (UE-2).  Counts travel as an accumulator does, so attempts that failed
count nothing, and are kept for each place that a task reads: what is bad in a file that is read twice
counts once.
"""

from __future__ import annotations

from collections import Counter

from spark_ft.accumulators import AccumulatorParam, new_accumulator

Counts = dict[tuple[str, int], int]  # (URI, first byte of the split) -> bad records


class _Most(AccumulatorParam[Counts]):
    def zero(self, value: Counts) -> Counts:
        return {}

    def addInPlace(self, value1: Counts, value2: Counts) -> Counts:  # noqa: N802 - PySpark's name
        most = dict(value1)  # a new one: the driver may be looking at the other
        for place, count in value2.items():
            most[place] = max(most.get(place, 0), count)  # ``take`` reads a part
        return most


class BadRecords:
    """Tasks tell it, the driver asks it."""

    def __init__(self) -> None:
        self._counts = new_accumulator({}, _Most(), -1)  # none that a program has declared

    def __call__(self, uri: str, start: int, count: int) -> None:
        """So many records of the split that begins there were bad, so far."""
        self._counts.add({(uri, start): count})

    def by_file(self) -> dict[str, int]:
        """URI -> bad records in all that was read of it."""
        found: Counter[str] = Counter()
        for (uri, _), count in self._counts.value.items():
            found[uri] += count
        return dict(found)
