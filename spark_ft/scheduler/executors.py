"""Executors: who is alive, who has a free slot, who has been given up.

An executor is lost only when its worker says that it exited, its worker is lost, it stayed stopped,
its link is gone and no exit was told, the way between us is cut (leases.py), or when its own beats are
missing *and* the CPU time that its worker vouches for stands still.  Missing beats with growing CPU time
mean busy: a task that holds the GIL for half a minute silences every Python thread of the healthiest process.

Invariants
  * an incarnation is at most one of: live, fenced; once fenced it is never live again (S8).
  * no attempt is on an executor that is not live; slots in use never exceed slots (S12).
  * an executor is given up strictly later than the last lease it can have been granted ends (S30).
  * ``slow`` holds exactly the live ones that were slow repeatedly.  They come last and are given no queue;
    a gray failure (EX-10) is no reason to kill anybody.
  * ``idle`` and ``roomy`` hold exactly the executors with a free slot, and with room in the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from spark_ft.ids import DRIVER_HOST, BlobId, Generation, HostId, Incarnation, NodeId, ShuffleId, TaskId
from spark_ft.scheduler.leases import Lease
from spark_ft.settings import Settings

if TYPE_CHECKING:
    from spark_ft.scheduler.stalls import Seen
    from spark_ft.scheduler.taskset import Attempt

_EXIT_REPORT_S = 2.0  # a process whose link is gone has ended, or is ended, within
_FENCED_MAX = 10_000
_KILLS_S = 30.0  # whoever kills executors at random has met another one within
_SLOW_FROM, _SLOWNESS_MAX = 2.0, 4.0
LOOKAHEAD_S = 0.004  # of work that may stand in an executor's queue
DEPTH_MAX = 16


@dataclass(slots=True)
class Notice:
    """A process has been asked to leave."""

    since_s: float
    until_s: float
    moved_s: float = 0.0  # when readers were last told of other places for something that was there
    released: bool = False  # it has been told that it may go


class WorkerState:
    """One worker, as far as the driver has heard of it."""

    __slots__ = (
        "came_s", "executors", "has_inherited", "has_spoken", "heard_s", "host", "id", "leaving",
        "unavailable", "until_s",
    )  # fmt: skip

    def __init__(self, id: Incarnation, host: HostId, now_s: float) -> None:
        self.id, self.host, self.heard_s, self.came_s = id, host, now_s, now_s
        self.executors: dict[Incarnation, ExecutorState] = {}
        self.has_spoken = False  # until its WorkerHello nobody knows where its host's outputs can be read
        self.has_inherited = False  # it has said what of its host's stores it serves
        self.until_s = inf  # gone, and its executors are orphans: until then they may find an heir
        self.unavailable: tuple[int, str] | None = None  # (tries, stderr): it has given up starting executors
        self.leaving: Notice | None = None


@dataclass(slots=True)
class Excluded:
    """An executor is given no tasks, by recorded evidence (exclusion.py), until a probe ends well."""

    until_s: float
    backoff_s: float
    on_probe: bool = False  # it may have one task


class ExecutorState:
    """One live executor.  ``running`` holds every attempt it was sent and has not ended, in order."""

    __slots__ = (
        "beat_s", "blobs", "cpu_grew_s", "cpu_s", "cut", "depth", "doomed", "draining", "excluded", "gone_s",
        "heard_s", "host", "id", "lease", "leaving", "mean_s", "outputs", "pid", "progress", "purging",
        "reserved", "running", "slots", "slowness", "stopped_s", "used", "worker",
    )  # fmt: skip

    def __init__(
        self,
        id: Incarnation,
        worker: WorkerState,
        host: HostId,
        pid: int,
        slots: int,
        depth: int,
        now_s: float,
    ) -> None:
        self.id, self.worker, self.host, self.pid, self.slots = id, worker, host, pid, slots
        self.running: dict[TaskId, Attempt] = {}
        self.blobs: set[BlobId] = set()  # sent to it and not dropped
        self.outputs: dict[ShuffleId, tuple[Generation, int]] = {}  # newest MapOutputs sent
        self.mean_s = LOOKAHEAD_S  # how long its attempts take, the latest counting most
        self.depth = depth  # attempts that may stand in its queue behind the running ones
        self.heard_s = self.beat_s = now_s
        self.lease = Lease(now_s)
        self.leaving: Notice | None = None  # its own; it leaves with its worker, too
        self.cut = ""  # how the way to it, or back, is cut: until that heals it gets nothing
        self.progress: dict[TaskId, Seen] = {}  # of the attempts that its last beat told of
        self.slowness = 0.0  # how often a twin elsewhere was faster, less what it did at the usual pace since
        self.cpu_s = -1.0
        self.cpu_grew_s = now_s
        self.stopped_s: float | None = None
        self.gone_s: float | None = None  # its link is gone; the worker's word is awaited
        self.used = False  # it was given an attempt
        self.reserved: TaskId | None = None  # for an attempt that must be alone there
        self.excluded: Excluded | None = None
        self.draining = False  # it is given nothing more, so that its process can be replaced
        self.doomed = ""  # why it was asked to be killed: its end is nobody's fault
        self.purging: dict[TaskId, tuple[NodeId, ...]] = {}  # killed readers that may still cache old data

    @property
    def accepting(self) -> bool:
        return (
            self.heeds
            and self.worker.has_spoken
            and self.gone_s is None
            and not self.doomed
            and self.reserved is None
            and not self.draining
            and (self.excluded is None or self.excluded.on_probe)
            and not self.is_leaving
        )

    @property
    def usable_slots(self) -> int:
        """How many attempts may run there at once: of one that is excluded, the probe."""
        return self.slots if self.excluded is None else 1

    @property
    def is_leaving(self) -> bool:
        return self.leaving is not None or self.worker.leaving is not None

    @property
    def heeds(self) -> bool:
        """Whether it can do what it is told, as far as is known."""
        return self.stopped_s is None and not self.cut

    def silent_s(self, now_s: float) -> float:
        return now_s - self.heard_s


class Executors:
    """All live executors and workers, and the fenced incarnations."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.live: dict[Incarnation, ExecutorState] = {}
        self.workers: dict[Incarnation, WorkerState] = {}
        self.orphaned: dict[HostId, WorkerState] = {}  # whose worker is gone and has no heir yet
        self.fenced: dict[Incarnation, None] = {}  # bounded: the oldest are forgotten first
        self.idle: dict[Incarnation, ExecutorState] = {}
        self.roomy: dict[Incarnation, ExecutorState] = {}
        self.leaving: dict[Incarnation, WorkerState | ExecutorState] = {}  # those with a notice of their own
        # When a process was ended by a signal that anybody may have sent, and the tasks that ran there.
        self.kills: deque[tuple[float, frozenset[tuple[int, int]]]] = deque(maxlen=64)
        self.slow: dict[Incarnation, ExecutorState] = {}  # repeatedly: they come last
        self.addresses: dict[HostId, str] = {}
        self.on_host: dict[HostId, int] = {}  # live executors of each host
        self._hosts: dict[HostId, int] = {}  # live workers of each host

    # --- Who there is ---

    def worker(self, id: Incarnation, host: HostId, now_s: float) -> WorkerState:
        """The worker of this incarnation; heard of for the first time, it is live from now on."""
        known = self.workers.get(id)
        if known is None:
            known = self.workers[id] = WorkerState(id, host, now_s)
            self._hosts[host] = self._hosts.get(host, 0) + 1
        return known

    def add(self, executor: ExecutorState) -> None:
        assert executor.id not in self.live and executor.id not in self.fenced
        self.live[executor.id] = executor
        executor.worker.executors[executor.id] = executor
        executor.worker.unavailable = None
        self.on_host[executor.host] = self.on_host.get(executor.host, 0) + 1
        self.touch(executor)

    def remove(self, executor: ExecutorState) -> None:
        """It is given up: from here on nothing that it says counts."""
        del self.live[executor.id]
        del executor.worker.executors[executor.id]
        self.idle.pop(executor.id, None)
        self.roomy.pop(executor.id, None)
        self.slow.pop(executor.id, None)
        self.leaving.pop(executor.id, None)
        self.on_host[executor.host] -= 1
        if not self.on_host[executor.host]:
            del self.on_host[executor.host]
        self.fence(executor.id)

    def orphan(self, worker: WorkerState, until_s: float) -> None:
        """A worker is gone: its executors and its host's data wait for an heir (succession.py)."""
        del self.workers[worker.id]
        self.leaving.pop(worker.id, None)
        self.fence(worker.id)
        self._hosts[worker.host] -= 1
        if not self._hosts[worker.host]:
            del self._hosts[worker.host]
        worker.has_spoken = False
        left = self.orphaned.setdefault(worker.host, worker)
        left.until_s = min(left.until_s, until_s)
        for executor in list(worker.executors.values()):
            executor.worker = left
            left.executors[executor.id] = executor
            self.touch(executor)

    def adopt(self, executor: ExecutorState, worker: WorkerState, now_s: float) -> None:
        """From now on ``worker`` vouches for it; its word of busy seconds begins afresh."""
        del executor.worker.executors[executor.id]
        executor.worker, worker.executors[executor.id] = worker, executor
        executor.cpu_s, executor.cpu_grew_s = -1.0, now_s
        self.touch(executor)

    def workers_on(self, host: HostId) -> list[WorkerState]:
        return [worker for worker in self.workers.values() if worker.host == host]

    def has_worker(self, executor: ExecutorState) -> bool:
        """Whether somebody is there who could be told to do something to its process."""
        return executor.worker.id in self.workers

    def fence(self, id: Incarnation) -> None:
        self.fenced[id] = None
        if len(self.fenced) > _FENCED_MAX:
            del self.fenced[next(iter(self.fenced))]

    def slots(self) -> int:
        """All slots there are, free or not."""
        return sum(executor.usable_slots for executor in self.live.values() if not executor.doomed)

    def address(self, executor: ExecutorState) -> str:
        """Its host's address, and a number that tells executors of one host apart (nothing listens there)."""
        scheme, _, rest = self.addresses.get(executor.host, "").partition("://")
        host = rest.rpartition(":")[0] if scheme == "tcp" else "127.0.0.1"
        return f"{host}:{executor.pid}"

    def host_is_live(self, host: HostId) -> bool:
        """Whether a live worker serves this host's stores, or one may soon; the driver serves its own."""
        return host in self._hosts or host in self.orphaned or host == DRIVER_HOST

    def changed_worker(self, host: HostId, since_s: float) -> bool:
        """Whether at some time since then nobody served this host's stores: what was refused is not lost, and
        what its next worker says is there, or its grace, decides (WK-6)."""
        return host in self.orphaned or any(w.came_s > since_s for w in self.workers_on(host))

    def staying(self) -> set[HostId]:
        """Hosts of which some worker has not been asked to leave."""
        return {worker.host for worker in self.workers.values() if worker.leaving is None}

    def hosts(self) -> Iterator[HostId]:
        return iter(self._hosts)

    # --- Who has room ---

    def touch(self, executor: ExecutorState) -> None:
        """Keep ``idle`` and ``roomy`` right after any change of this executor."""
        count = len(executor.running)
        if not executor.accepting or executor.id not in self.live:
            self.idle.pop(executor.id, None)
            self.roomy.pop(executor.id, None)
            return
        if count < executor.slots:
            self.idle[executor.id] = executor
        else:
            self.idle.pop(executor.id, None)
        # Filled up when half of its queue is gone, so that short tasks travel several at a time.
        if count <= executor.slots + executor.depth // 2 and executor.depth:
            self.roomy[executor.id] = executor
        elif count >= executor.slots + executor.depth:
            self.roomy.pop(executor.id, None)

    def took(self, executor: ExecutorState, run_s: float) -> None:
        """An attempt there took so long: the shorter they are, the more may stand in its queue.

        A queue bridges the way to the driver and back, ``LOOKAHEAD_S``; what stands in it for long
        while other slots are free is asked back (placement.py).
        """
        executor.mean_s += (run_s - executor.mean_s) / 4
        wanted = int(LOOKAHEAD_S / max(executor.mean_s, 1e-6))
        executor.depth = max(self._settings.prefetch_tasks, min(DEPTH_MAX, wanted))

    def was_slow(self, executor: ExecutorState) -> None:
        """A twin that began later has ended before the attempt there."""
        executor.slowness = min(executor.slowness + 1.0, _SLOWNESS_MAX)
        if executor.slowness >= _SLOW_FROM and executor.id in self.live:
            self.slow[executor.id] = executor

    def kept_pace(self, executor: ExecutorState) -> None:
        """An attempt there took no longer than usual."""
        executor.slowness = max(0.0, executor.slowness - 0.5)
        if executor.slowness < _SLOW_FROM:
            self.slow.pop(executor.id, None)

    def was_killed(self, running: Iterable[Attempt], now_s: float) -> None:
        """See ``kills``."""
        self.kills.append((now_s, frozenset((a.stage.id, a.partition) for a in running)))

    def others_were_killed(self, task: tuple[int, int], now_s: float) -> bool:
        """Whether somebody kills executors just now that this task (stage, partition) has no part in."""
        return any(now_s - at_s <= _KILLS_S and task not in tasks for at_s, tasks in self.kills)

    def others(self, executors: set[Incarnation], hosts: set[HostId], idle: bool = False) -> bool:
        """Whether some executor takes tasks (``idle``: this very moment) that is neither among these nor
        on these hosts."""
        those = self.idle if idle else self.live
        return any(e.accepting and e.id not in executors and e.host not in hosts for e in those.values())

    # --- Who is silent ---

    def vouched(self, executor: ExecutorState, cpu_s: float, stopped: bool, now_s: float) -> None:
        """What its worker says of it."""
        if cpu_s > executor.cpu_s:
            executor.cpu_s, executor.cpu_grew_s = cpu_s, now_s
        self.stopped(executor, stopped, now_s)

    def stopped(self, executor: ExecutorState, stopped: bool, now_s: float) -> None:
        if stopped != (executor.stopped_s is not None):
            executor.stopped_s = now_s if stopped else None
            for attempt in executor.running.values():
                attempt.suspect = False
            self.touch(executor)

    def cuts(self, now_s: float) -> Iterator[tuple[ExecutorState, str]]:
        """Executors to or from which the way is cut, or is not any more."""
        for executor in list(self.live.values()):
            cut = executor.lease.cut(self._settings, now_s)
            if cut != executor.cut:
                executor.cut = cut
                self.touch(executor)
                yield executor, cut

    def silent(self, now_s: float) -> Iterator[tuple[ExecutorState, str]]:
        """Executors to be given up now, and why."""
        limit_s = self._settings.silence_s
        for executor in list(self.live.values()):
            if not executor.lease.is_over(self._settings, now_s):
                continue
            if executor.gone_s is not None and executor.silent_s(now_s) > limit_s:
                yield executor, "its link is gone and its worker told of no exit"
            elif executor.stopped_s is not None and now_s - executor.stopped_s > limit_s:
                yield executor, "it was stopped for too long"
            elif executor.cut:
                yield executor, executor.cut
            elif executor.silent_s(now_s) > limit_s and now_s - executor.cpu_grew_s > limit_s:
                yield executor, "it was silent and not busy"

    def unreported(self, now_s: float) -> list[ExecutorState]:
        """Executors whose link is gone although no exit was told in time: to be killed."""
        return [
            executor
            for executor in self.live.values()
            if executor.gone_s is not None
            and not executor.doomed
            and now_s - executor.gone_s > _EXIT_REPORT_S
        ]

    def silent_workers(self, now_s: float) -> list[WorkerState]:
        limit_s = self._settings.silence_s
        return [worker for worker in self.workers.values() if now_s - worker.heard_s > limit_s]
