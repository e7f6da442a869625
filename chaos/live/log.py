"""Following the event log of a running application, with the time at which each line was seen.

The harness stamps events by its own monotonic clock when it first reads them, so that what is judged
about time does not rest on clocks that a nemesis may have moved.  Seen is never earlier than written;
the poll adds at most ``POLL_S`` and whatever the machine is late.

Files are told apart by inode: a log that is rotated by renaming is read on where it was left.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

POLL_S = 0.02


class Follower:
    """Reads the event log in a thread of its own.  All methods may be called from any thread."""

    def __init__(self, directory: Path, now_s: Callable[[], float]) -> None:
        self.directory, self._now_s = directory, now_s
        self._offsets: dict[int, int] = {}
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._open: dict[int, Event] = {}  # task -> its start
        self._by_executor: dict[str, dict[int, Event]] = {}
        self._executors: dict[str, Event] = {}  # those that live
        self._writers: set[str] = set()
        self._cached: dict[str, set[tuple[int, int]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="event log", daemon=True)
        self.lateness: list[tuple[float, float]] = []  # (when, how late the machine woke us)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and stop following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self.poll()

    def _follow(self) -> None:
        before = self._now_s()
        while not self._stop.wait(POLL_S):
            now = self._now_s()
            late = now - before - POLL_S
            if late > 5 * POLL_S:
                self.lateness.append((now, late))
            self.poll()
            before = self._now_s()

    def poll(self) -> None:
        """Read what has been written since."""
        with self._lock:
            now = self._now_s()
            for path in sorted(self.directory.glob("*.jsonl*"), key=_age):
                if ".jsonl.kept" in path.name:
                    continue  # copies of lines that were seen when they were written
                with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
                    inode = os.fstat(lines.fileno()).st_ino
                    offset = self._offsets.get(inode, 0)
                    lines.seek(offset)
                    whole, newline, _ = lines.read().rpartition(b"\n")
                    self._offsets[inode] = offset + len(whole) + len(newline)
                    for line in whole.splitlines():
                        self._take(line, now)

    def _take(self, line: bytes, now: float) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": "unreadable_line", "text": line[:200].decode(errors="replace")}
        event["seen_s"] = round(now, 3)
        self._events.append(event)
        match event["event"]:
            case "task_start":
                self._open[event["task"]] = event
                self._by_executor.setdefault(event["executor"], {})[event["task"]] = event
            case "task_end":
                start = self._open.pop(event["task"], None)
                if start is not None:
                    self._by_executor[start["executor"]].pop(event["task"], None)
                    if event.get("reason") == "Success" and start["kind"] == "map":
                        self._writers.add(start["executor"])
            case "executor_added":
                self._executors[event["executor"]] = event
            case "executor_lost":
                self._executors.pop(event["executor"], None)
                self._cached.pop(event["executor"], None)
                for task in self._by_executor.pop(event["executor"], {}):
                    self._open.pop(task, None)
            case "cached":
                self._cached.setdefault(event["executor"], set()).add((event["node"], event["partition"]))
            case "uncached":
                self._cached.get(event["executor"], set()).discard((event["node"], event["partition"]))

    # --- What it tells ---

    def events(self) -> list[Event]:
        with self._lock:
            return list(self._events)

    def of(self, event: str, **fields: Any) -> list[Event]:
        """The events of one kind whose fields have these values."""
        return [
            each
            for each in self.events()
            if each["event"] == event and all(each.get(name) == value for name, value in fields.items())
        ]

    def executors(self) -> list[Event]:
        """The ``executor_added`` of each that has not been lost, in the order they came."""
        with self._lock:
            return list(self._executors.values())

    def running(self, executor: str | None = None) -> list[Event]:
        """The ``task_start`` of attempts that have not ended."""
        with self._lock:
            found = self._open if executor is None else self._by_executor.get(executor, {})
            return list(found.values())

    def wrote_outputs(self, executor: str) -> bool:
        """Whether it has finished a map task."""
        with self._lock:
            return executor in self._writers

    def caches(self, executor: str) -> int:
        """How many persisted partitions it is known to hold."""
        with self._lock:
            return len(self._cached.get(executor, ()))


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
