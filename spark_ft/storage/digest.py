"""What a persisted partition holds, in 64 bits, so that one that was lost and computed again can be compared.

Records that marshal takes are digested whole (about 25 ns each), others at fixed places: pickling all of them
would cost more than many of them cost to compute.  Equal records give equal digests however they are
batched; different digests prove nothing (sets), and count as *not proved the same*.
"""

from __future__ import annotations

import io
import marshal
import pickle
from collections.abc import Sequence
from typing import Any

from xxhash import xxh3_64

_LIST_HEAD_BYTES = 5  # a type code and a length
_EVERY = 64  # of records that marshal does not take, one in so many is looked at
_VALUES_ONLY = 2  # the last version of marshal's format in which shared objects leave no trace
UNKNOWN = -1  # equal to nothing


class Digest:
    """Of one partition, batch by batch."""

    def __init__(self) -> None:
        self._hash = xxh3_64()
        self._count = 0
        self._plain = True
        self._known = True

    def add(self, batch: Sequence[Any]) -> None:
        """The next records.  Never raises."""
        if self._plain:
            try:
                whole = marshal.dumps(batch if type(batch) is list else list(batch), _VALUES_ONLY)
                self._hash.update(memoryview(whole)[_LIST_HEAD_BYTES:])
                self._count += len(batch)
                return
            except ValueError:
                self._plain = False
        first = -self._count % _EVERY
        self._count += len(batch)
        if self._known:
            self._known = all(self._look_at(record) for record in batch[first::_EVERY])

    def value(self) -> int:
        """Above zero, or UNKNOWN."""
        if not self._known:
            return UNKNOWN
        self._hash.update(b"%d" % self._count)
        return (self._hash.intdigest() >> 1) | 1

    def _look_at(self, record: Any) -> bool:
        out = io.BytesIO()
        pickler = pickle.Pickler(out, 5)
        pickler.fast = True  # without a memo: what is shared leaves no trace
        try:
            pickler.dump(record)
        except Exception:  # the user's own __reduce__ may raise anything
            return False
        self._hash.update(out.getbuffer())
        return True
