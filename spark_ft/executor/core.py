"""ExecutorCore: what one executor has been told to do, what it does, and whether it still may.

An attempt's life here; nothing goes back, and each has one end:

    LaunchTasks ──> held ──────────> given ──SlotStarted──> running ──SlotEnded──> reported
                     │ blob, outputs   │                      │
                     │ or lease lack   └── KillTask: InterruptTask, after ``kill_grace_s`` hard
                     └── KillTask: reported as Killed at once

Rules
  1. An attempt is *given* (RunTask) only when its stage's functions and every input at the named
     version, or a later one of the same generation, are here, and while the lease holds.
  2. The lease counts from the moment the acknowledged beat was *sent*; an answer that took long
     cannot lengthen it.  Without one an executor finishes what it runs and begins nothing new: a slot
     looks again before it begins what stands in its queue, for the process may have stood still (CLK-3).
     Whose worker is gone ends with its lease: nobody else would see to that (WK-1).
  3. Whoever is told Fenced ends at once: the driver has given its attempts to others.
  4. A slot alone knows whether an attempt still waits or runs, so it decides what an interrupt
     means; this core only sees to it that an end comes.  An interrupt is repeated: Python can
     miss a signal that falls between its last look and a blocking call (executor/slots.py).

Invariants (``check_invariants``)
  * held and given are disjoint; running is part of given; killed is part of given.
  * an attempt that ended is in none of them.
  * nothing is held that could run, while the lease holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from spark_ft.ids import BlobId, Generation, HostId, Incarnation, ShuffleId, TaskId
from spark_ft.protocol.effects import (
    BarrierReached,
    Copy,
    CopyEnded,
    Effect,
    Event,
    Exit,
    Forget,
    InterruptTask,
    LearnHosts,
    Leased,
    LeaveWanted,
    LoadBlob,
    Measure,
    Note,
    PeerGone,
    Progress,
    Received,
    ReleaseBarrier,
    RunTask,
    Send,
    SlotEnded,
    SlotStarted,
)
from spark_ft.protocol.messages import (
    BarrierReleased,
    BarrierSync,
    BeatAck,
    BlobWanted,
    DropBlocks,
    ExecutorBeat,
    ExecutorHello,
    ExecutorWelcome,
    Fenced,
    Goodbye,
    Hosts,
    Killed,
    KillTask,
    LaunchTasks,
    Leave,
    Leaving,
    MakeCopies,
    MapOutputs,
    MayLeave,
    Message,
    StageBlob,
    TaskEnd,
    TaskUpdates,
)
from spark_ft.settings import Settings

HELLO_INTERVAL_S = 1.0
INTERRUPT_INTERVAL_S = 0.1
EXIT_DRIVER_GONE = 70  # exit statuses, for whoever reads the worker's log
EXIT_FENCED = 71
EXIT_LEFT = 73


@dataclass(slots=True)
class _Held:
    """One attempt that waits for its functions, its inputs or the lease."""

    launch: LaunchTasks
    index: int

    @property
    def task(self) -> TaskId:
        return self.launch.tasks[self.index].task


@dataclass(slots=True)
class _Kill:
    reason: str
    hard_at_s: float
    again_at_s: float  # of the soft interrupt
    hard: bool = False


class ExecutorCore:
    """See the module.  ``driver_is_local``: the driver is a process of this machine, so the kernel tells
    of its end and silence alone (a driver deep in one C call) is no reason to exit."""

    def __init__(
        self,
        me: Incarnation,
        worker: Incarnation,
        host: HostId,
        driver: Incarnation,
        pid: int,
        slots: int,
        settings: Settings,
        versions: Mapping[str, str],
        driver_is_local: bool = False,
    ) -> None:
        self._driver, self._worker = driver, worker
        self._is_orphan = False
        self._settings = settings
        self._driver_is_local = driver_is_local
        self._hello = ExecutorHello(me, worker, host, pid, slots, dict(versions))
        self._hello_sent_s = 0.0  # the first one: the first lease counts from it
        self._hello_at_s = 0.0
        self._welcomed = False
        self._heard_s: float | None = None  # last word of the driver
        self._lease_end_s = 0.0
        self._beat = 0
        self._beat_at_s = 0.0
        self._beats: deque[tuple[int, float]] = deque()  # (number, sent) not acknowledged yet
        self._acked = 0  # the last one whose answer has come
        self._measuring = False
        self._blobs: set[BlobId] = set()
        self._wanted: set[BlobId] = set()  # asked for
        self._outputs: dict[ShuffleId, dict[Generation, MapOutputs]] = {}
        self._held: dict[TaskId, _Held] = {}  # in the order they came
        self._given: set[TaskId] = set()
        self._running: set[TaskId] = set()
        self._kills: dict[TaskId, _Kill] = {}
        self._leave_by_s: float | None = None  # it was asked to go, and ends then at the latest
        self._exiting = False

    # --- The one way in --------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """The one way this core's state changes."""
        out: list[Effect] = []
        if self._exiting:
            return out
        match event:
            case Received(sender, message) if sender == self._driver:
                self._heard_s = now_s
                self._received(message, now_s, out)
            case Received(sender, message):
                out.append(Note("message_from_stranger", {"sender": sender, "kind": type(message).__name__}))
            case PeerGone(peer) if peer == self._driver:
                self._lease_end_s = min(self._lease_end_s, now_s)
                out.append(Leased(self._lease_end_s))
            case PeerGone(peer) if peer == self._worker:
                self._is_orphan = True
            case SlotStarted(task):
                self._started(task, out)
            case SlotEnded(end, started):
                self._ended(end, started, out)
            case LeaveWanted(within_s):
                self._leave(within_s, now_s, out)
            case CopyEnded(owner, made):
                out.append(Send(owner, made))
            case BarrierReached(task, number, kind, text):
                out.append(Send(self._driver, BarrierSync(task, number, kind, text)))
            case Progress():
                self._progress(event, now_s, out)
            case _:  # Tick, and what is not for executors
                pass
        self._time(now_s, out)
        return out

    def wakeup_s(self) -> float | None:
        if self._exiting:
            return None
        times = [kill.again_at_s for kill in self._kills.values() if not kill.hard]
        if self._leave_by_s is not None:
            times.append(self._leave_by_s)
        if not self._welcomed:
            times.append(self._hello_at_s)
        elif not self._measuring:
            times.append(self._beat_at_s)
        if self._heard_s is not None and not self._driver_is_local:
            times.append(self._heard_s + self._patience_s())
        return min(times) if times else None

    # --- From the driver ---------------------------------------------------------------------

    def _received(self, message: Message, now_s: float, out: list[Effect]) -> None:
        match message:
            case LaunchTasks():
                self._launched(message, now_s, out)
            case StageBlob(blob, payload, block):
                self._blobs.add(blob)
                self._wanted.discard(blob)
                out.append(LoadBlob(blob, payload, block))
                self._give(now_s, out)
            case MapOutputs(shuffle, generation, version):
                known = self._outputs.setdefault(shuffle, {})
                if generation not in known or known[generation].version < version:
                    known[generation] = message
                    self._give(now_s, out)
            case BarrierReleased(task, number, texts, error):
                out.append(ReleaseBarrier(task, number, texts, error))
            case KillTask(task, reason, queued_only):
                self._kill(task, reason, queued_only, now_s, out)
            case BeatAck(number):
                self._acknowledged(number, now_s, out)
            case ExecutorWelcome(hosts):
                if not self._welcomed:
                    self._welcomed = True
                    self._extend(self._hello_sent_s, out)
                    lapsed = now_s >= self._lease_end_s  # the driver was late: beat at once
                    self._beat_at_s = now_s if lapsed else now_s + self._settings.heartbeat_interval_s
                out.append(LearnHosts({str(host): endpoint for host, endpoint in hosts.items()}))
                self._give(now_s, out)
            case Hosts(hosts):
                out.append(LearnHosts({str(host): endpoint for host, endpoint in hosts.items()}))
            case MakeCopies(orders, hosts):
                out.append(Copy(self._driver, orders, hosts))
            case DropBlocks():
                self._drop(message, out)
            case Leave() | MayLeave() | Fenced() | Goodbye():
                self._told_to_go(message, now_s, out)
            case _:
                out.append(Note("message_not_for_executor", {"kind": type(message).__name__}))

    def _told_to_go(
        self, message: Leave | MayLeave | Fenced | Goodbye, now_s: float, out: list[Effect]
    ) -> None:
        match message:
            case Leave(within_s):
                self._leave(within_s, now_s, out)
            case MayLeave():
                self._exit(EXIT_LEFT, "it has left in order", out)
            case Fenced(why):
                self._exit(EXIT_FENCED, f"fenced: {why}", out)
            case Goodbye(why):
                self._exit(0, f"the driver said goodbye: {why}", out)

    def _leave(self, within_s: float, now_s: float, out: list[Effect]) -> None:
        """Go on with what it has; the driver gives it nothing more and says when it may go (EX-13)."""
        if not self._welcomed:
            self._exit(EXIT_LEFT, "it was asked to leave before it had anything to do", out)
        elif self._leave_by_s is None:
            self._leave_by_s = now_s + within_s
            out.append(Send(self._driver, Leaving(within_s, "it was asked to leave")))

    def _launched(self, message: LaunchTasks, now_s: float, out: list[Effect]) -> None:
        for index, launch in enumerate(message.tasks):
            if launch.task not in self._held and launch.task not in self._given:
                self._held[launch.task] = _Held(message, index)
        self._want_blob(message.blob, out)
        self._give(now_s, out)

    def _drop(self, gone: DropBlocks, out: list[Effect]) -> None:
        self._blobs.difference_update(gone.blobs)
        for shuffle in gone.shuffles:
            self._outputs.pop(shuffle, None)
        out.append(Forget(gone.nodes, gone.blobs, gone.shuffles, gone.broadcasts, gone.copies))

    def _want_blob(self, blob: BlobId, out: list[Effect]) -> None:
        if blob not in self._blobs and blob not in self._wanted:
            self._wanted.add(blob)
            out.append(Send(self._driver, BlobWanted(blob)))

    def _give(self, now_s: float, out: list[Effect]) -> None:
        """Give slots whatever is ready: rule 1."""
        if not self._held or now_s >= self._lease_end_s:
            return
        for held in list(self._held.values()):
            outputs = self._ready(held.launch)
            if outputs is not None:
                del self._held[held.task]
                self._given.add(held.task)
                out.append(RunTask(held.launch, held.index, outputs))

    def _ready(self, launch: LaunchTasks) -> tuple[MapOutputs, ...] | None:
        """The inputs of a launch, or None while something lacks."""
        if launch.blob not in self._blobs:
            return None
        found: list[MapOutputs] = []
        for wanted in launch.inputs:
            outputs = self._outputs.get(wanted.shuffle, {}).get(wanted.generation)
            if outputs is None or outputs.version < wanted.version:
                return None
            found.append(outputs)
        return tuple(found)

    def _kill(self, task: TaskId, reason: str, queued_only: bool, now_s: float, out: list[Effect]) -> None:
        if self._held.pop(task, None) is not None:
            out.append(Send(self._driver, TaskUpdates(ended=(TaskEnd(task, Killed(reason)),))))
        elif queued_only:
            if task in self._given and task not in self._running and task not in self._kills:
                out.append(InterruptTask(task, queued_only=True))  # the slot may have begun it by now: rule 4
        elif task in self._given and task not in self._kills:
            hard_at_s = now_s + self._settings.kill_grace_s
            self._kills[task] = _Kill(reason, hard_at_s, min(hard_at_s, now_s + INTERRUPT_INTERVAL_S))
            out.append(InterruptTask(task))

    def _acknowledged(self, number: int, now_s: float, out: list[Effect]) -> None:
        while self._beats and self._beats[0][0] <= number:
            acknowledged, sent_s = self._beats.popleft()
            if acknowledged == number:
                self._acked = number
                self._extend(sent_s, out)
        if now_s >= self._lease_end_s:  # the driver was late: the next beat will prove that we hear it
            self._beat_at_s = now_s
        self._give(now_s, out)

    def _extend(self, sent_s: float, out: list[Effect]) -> None:
        self._lease_end_s = max(self._lease_end_s, sent_s + self._settings.lease_s)
        out.append(Leased(self._lease_end_s))

    # --- From the slots ----------------------------------------------------------------------

    def _started(self, task: TaskId, out: list[Effect]) -> None:
        if task in self._given:
            self._running.add(task)
            out.append(Send(self._driver, TaskUpdates(started=(task,))))

    def _ended(self, end: TaskEnd, started: TaskId | None, out: list[Effect]) -> None:
        task = end.task
        if task not in self._given:
            out.append(Note("end_of_unknown_attempt", {"task": task}))
            return
        self._given.discard(task)
        self._running.discard(task)
        kill = self._kills.pop(task, None)
        if isinstance(end.reason, Killed) and kill is not None:
            end = replace(end, reason=Killed(kill.reason))
        begun: tuple[TaskId, ...] = ()
        if started is not None and started in self._given:
            self._running.add(started)
            begun = (started,)
        out.append(Send(self._driver, TaskUpdates(begun, (end,))))

    def _progress(self, seen: Progress, now_s: float, out: list[Effect]) -> None:
        if not self._measuring:
            return
        self._measuring = False
        self._beat += 1
        self._beats.append((self._beat, now_s))
        self._beat_at_s = now_s + self._settings.heartbeat_interval_s
        running = tuple(progress for progress in seen.running if progress.task in self._running)
        beat = ExecutorBeat(self._beat, running, seen.cpu_s, seen.rss_anon_bytes, self._acked)
        out.append(Send(self._driver, beat))

    # --- Time --------------------------------------------------------------------------------

    def _time(self, now_s: float, out: list[Effect]) -> None:
        if self._exiting:
            return
        if self._leave_by_s is not None and now_s >= self._leave_by_s:
            self._exit(EXIT_LEFT, "its time to leave in order is over", out)
            return
        if not self._welcomed and now_s >= self._hello_at_s:
            self._hello_at_s = now_s + HELLO_INTERVAL_S
            if self._heard_s is None:
                self._heard_s = self._hello_sent_s = now_s  # grace and lease count from the first word
            out.append(Send(self._driver, self._hello))
        elif self._welcomed and not self._measuring and now_s >= self._beat_at_s:
            self._measuring = True
            out.append(Measure())
        for task, kill in self._kills.items():
            if not kill.hard and now_s >= kill.hard_at_s:
                kill.hard = True
                out.append(Note("task_deaf_to_interrupt", {"task": task, "reason": kill.reason}))
                out.append(InterruptTask(task, hard=True))
            elif not kill.hard and now_s >= kill.again_at_s:
                kill.again_at_s = min(kill.hard_at_s, now_s + INTERRUPT_INTERVAL_S)
                out.append(InterruptTask(task))
        silent = self._heard_s is not None and now_s >= self._heard_s + self._patience_s()
        if silent and not self._driver_is_local:
            self._exit(EXIT_DRIVER_GONE, f"driver silent for {self._patience_s():g} s", out)

    def _patience_s(self) -> float:
        return self._settings.lease_s if self._is_orphan else self._settings.driver_grace_s

    def _exit(self, status: int, why: str, out: list[Effect]) -> None:
        self._exiting = True
        out.append(Exit(status, why))

    # --- For tests and simulation ------------------------------------------------------------

    def check_invariants(self, now_s: float) -> None:
        assert not self._held.keys() & self._given
        assert self._running <= self._given
        assert self._kills.keys() <= self._given
        if now_s < self._lease_end_s and not self._exiting:
            assert all(self._ready(held.launch) is None for held in self._held.values())

    def assert_idle(self) -> None:
        """Nothing of a finished job is left."""
        assert not (self._held or self._given or self._running or self._kills)
