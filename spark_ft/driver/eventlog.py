"""The event log: one JSON line for everything a core found worth noting.

Each line has ``event``, ``t_ms`` (wall clock, for people) and the fields of the note.  A line is
written whole by one ``write``, so that a reader who follows the file never sees half of one
except at its very end.  Logging never costs a job: a full disk ends the log, not the work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from spark_ft.clock import wall_ms


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return value.hex() if isinstance(value, bytes) else str(value)


_encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode


class EventLog:
    """Append-only JSON lines at ``path``; used from one thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, kind: str, fields: Mapping[str, object]) -> None:
        if self._fd < 0:
            return
        line = _encode({"event": kind, "t_ms": wall_ms(), **fields}) + "\n"
        try:
            os.write(self._fd, line.encode())
        except OSError:  # no space: the log ends here, the job goes on
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
