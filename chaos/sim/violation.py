"""What a history must not contain."""

from __future__ import annotations

import re

_ID = re.compile(r"\b([SL]\d+)\b")


class ViolationError(Exception):
    """``id`` is the number of an invariant of docs/fault-model.md, or ``answer``, or ``crash``."""

    def __init__(self, id: str, text: str) -> None:
        super().__init__(f"{id}: {text}")
        self.id, self.text = id, text


def named(error: BaseException) -> str:
    """The invariant that an exception of a core, or of its own checks, speaks of."""
    if isinstance(error, ViolationError):
        return error.id
    found = _ID.search(str(error)) if isinstance(error, AssertionError) else None
    return found[1] if found else "crash"
