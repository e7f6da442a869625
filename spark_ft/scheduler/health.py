"""Blame, and what follows from it: back-off of hosts, quarantine of stores, outputs out of reach.

Blame is one of ``task``, ``executor``, ``host``, ``network``, ``storage``, ``system``, ``user-cancel``;
only ``task`` counts to ``max_failures`` (S14).

  exit status, or a signal that a process brings on itself (SEGV …)   task
  SIGKILL, SIGTERM and the like: who sent it cannot be known           executor (counted apart: kills)
  a fault (SIGSEGV, SIGBUS …) inside a store that does not verify      storage
  … inside one that does; SIGBUS elsewhere, of whatever was mapped      executor
  HostError: disk full, no more files or processes …                    host
             the disk fails (STORAGE_ERROR)                             storage
  FetchFailed: refused, timeout                                         network
               missing, corrupt, incomplete, expired                    storage
  a process that outlived its worker and has ended: how is not known     host
  an end that the engine itself brought about                           system

Invariant
  * a host backs off, and a store is in quarantine, only by recorded evidence (S31).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_ft.ids import Generation, HostId, ShuffleId
from spark_ft.protocol.messages import SegmentTouched

_OWN_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 8: "SIGFPE", 11: "SIGSEGV"}
_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 7: "SIGBUS", 9: "SIGKILL", 15: "SIGTERM", **_OWN_SIGNALS}
_ENGINE_EXITS = frozenset((70, 71, 73))  # an executor lost its driver, was told that it is fenced, or left
_BACKOFF_S, _BACKOFF_MAX_S = 5.0, 60.0
_CORRUPT_MAX = 2  # corruptions from one host before the store is given up
_UNREACHABLE_MAX = 3  # bursts of refused or timed-out reads of one output before it is given up

NETWORK_EVIDENCE = frozenset(("refused", "timeout"))


def signal_name(signal: int) -> str:
    return _SIGNALS.get(signal, f"signal {signal}")


def blame_of_exit(status: int, signal: int, touched: Sequence[SegmentTouched] = ()) -> str:
    """Who is to blame when an executor's process ends under a task, in the middle of what it ``touched``:
    no user code runs there."""
    if any(segment.damaged for segment in touched):
        return "storage"
    if status < 0:
        return "host"
    if signal and touched:
        return "executor"
    if signal:
        return "task" if signal in _OWN_SIGNALS else "executor"
    return "system" if status in _ENGINE_EXITS else "task"


def exit_text(status: int, signal: int) -> str:
    """How an executor's process ended, for people."""
    if status < 0:
        return "executor process ended; its worker had not started it, so how cannot be known"
    ended = signal_name(signal) if signal else f"exit code {status}"
    return f"executor process ended with {ended}"


@dataclass(slots=True)
class HostTrouble:
    """The last HostError of a host; ``until_s`` ends its back-off."""

    condition: str
    text: str
    needed_bytes: int
    free_bytes: int
    until_s: float
    backoff_s: float = _BACKOFF_S


class Health:
    """What is known against hosts, stores and links."""

    def __init__(self) -> None:
        self.hosts: dict[HostId, HostTrouble] = {}
        self.quarantined: set[str] = set()  # stores
        self._corrupt: dict[tuple[HostId, str], int] = {}
        self._damaged: dict[tuple[HostId, str], set[int]] = {}  # segments that have ended a process
        self._unreachable: dict[tuple[ShuffleId, Generation, int, str], tuple[int, float]] = {}

    def host_failed(
        self, host: HostId, condition: str, text: str, needed_bytes: int, free_bytes: int, now_s: float
    ) -> None:
        """No new map tasks there for a while; twice as long each time."""
        backoff_s = _BACKOFF_S
        known = self.hosts.get(host)
        if known is not None:
            # Reports of one burst count once.
            again = now_s >= known.until_s
            backoff_s = min(known.backoff_s * 2, _BACKOFF_MAX_S) if again else known.backoff_s
        self.hosts[host] = HostTrouble(
            condition, text, needed_bytes, free_bytes, now_s + backoff_s, backoff_s
        )

    def host_worked(self, host: HostId) -> None:
        """A map task has written its output there."""
        self.hosts.pop(host, None)

    def is_full_still(self, host: HostId, now_s: float) -> bool:
        """It backs off, and not for the first time: its trouble has outlasted a back-off."""
        return self.backing_off(host, now_s) and self.hosts[host].backoff_s > _BACKOFF_S

    def backing_off(self, host: HostId, now_s: float) -> bool:
        trouble = self.hosts.get(host)
        return trouble is not None and now_s < trouble.until_s

    def damaged(self, host: HostId, store: str, segment: int) -> bool:
        """A process has died in this damaged segment; true when nobody has before."""
        known = self._damaged.setdefault((host, store), set())
        is_news = segment not in known
        known.add(segment)
        return is_news

    def corrupt(self, host: HostId, store: str) -> bool:
        """A corrupt block came from this store; true when it has now done so too often (BL-10)."""
        count = self._corrupt[(host, store)] = self._corrupt.get((host, store), 0) + 1
        if count >= _CORRUPT_MAX and store not in self.quarantined:
            self.quarantined.add(store)
            return True
        return False

    def unreachable(
        self, output: tuple[ShuffleId, Generation, int, str], launched_s: float, now_s: float
    ) -> bool:
        """A read of this output was refused or timed out; true when that happened too often.

        Readers that were launched before the last counted report belong to the same burst: a hundred
        reducers that meet one pause of a host are one report, not a hundred (BL-2, WK-6).
        """
        count, counted_s = self._unreachable.get(output, (0, -1.0))
        if launched_s > counted_s:
            count, counted_s = count + 1, now_s
        self._unreachable[output] = count, counted_s
        return count >= _UNREACHABLE_MAX

    def forget_output(self, shuffle: ShuffleId, map_index: int | None = None) -> None:
        """The counters of one output, or of a whole shuffle, mean nothing any more."""
        for key in [k for k in self._unreachable if k[0] == shuffle and map_index in (None, k[2])]:
            del self._unreachable[key]

    def forget_store(self, host: HostId, store: str) -> None:
        self._corrupt.pop((host, store), None)
        self._damaged.pop((host, store), None)
        self.quarantined.discard(store)

    def forget_host(self, host: HostId) -> None:
        self.hosts.pop(host, None)
        for known in (self._corrupt, self._damaged):
            for key in [k for k in known if k[0] == host]:
                del known[key]
