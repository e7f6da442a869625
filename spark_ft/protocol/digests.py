"""What a task was built from, as one number: equal numbers prove that two tasks read the same.

An output, or a result, that outlives its driver bears the number of what its task read.  A driver that finds
it compares that with what its shuffles hold now (scheduler/resume.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

from spark_ft.ids import Fingerprint, Generation

NOTHING, UNKNOWN = 0, 1  # it has read no shuffle; nobody can tell what it has read


def digest_of_outputs(fingerprint: Fingerprint, generation: Generation, checksums: Iterable[int]) -> int:
    """Of all outputs of a shuffle, whose checksums come in map order.  64 bits, none of the two above."""
    content = array("Q", checksums).tobytes()
    return xxh3_64_intdigest(fingerprint + generation.to_bytes(4, "big") + content) | 2


def digest_of_inputs(shuffles: Iterable[int]) -> int:
    """Of what a task has read: the digests of its shuffles, in any order."""
    digests = sorted(shuffles)
    if not digests:
        return NOTHING
    return UNKNOWN if UNKNOWN in digests else xxh3_64_intdigest(array("Q", digests).tobytes()) | 2
