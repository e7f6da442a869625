"""WorkerCore: keeps the promised number of executors alive for each application, and tells of every end.

    AssignExecutors ──> starting ──ChildSpawned──> alive ──ChildExited──> gone ──> its successor
                                                     │ KillExecutor, fewer wanted: KillProcess
    ReleaseApp, or the driver is gone ──> every child SIGHUP, then SIGKILL ──> stores dropped

Rules
  1. Every process that was announced (ExecutorSpawned) has its end told (ExecutorExited), exactly
     once and after its reaping: only then is nothing more written to its store.
  2. A death of an executor that a driver had welcomed, or that ran for a second, says nothing about
     the next start: its successor starts at once (EX-5, EX-6).  One that was killed earlier waits the
     restart delay.  One that *fails* earlier is a crash at start: delays double, and after
     ``executor_max_crashes`` rounds the driver is told and nothing is started for 30 s (EX-12).
     Executors that were started in the same round fail as one, or one bad library and 32 slots
     would look like 32 crashes in a row.
  3. SIGHUP ends an executor at once.  SIGTERM asks it, as it asks this worker itself, to leave in order:
     drivers are told, nobody is started any more, and the end comes when each driver has said that nothing
     of value is left here, or at the deadline (EX-13).
  4. Executors outlive their worker (WK-1).  Whoever takes over the host looks first at what is there,
     offers itself only then, and makes the executors of the driver that it is assigned to its own; others
     it ends.  It says what it found before anything else, so that nobody waits for what is gone.
  5. A later AssignExecutors for an application replaces the earlier one.  A new driver of the same
     application gets new executors: the old ones were leased to a driver that is no more.
  6. A new manager is told what the one before had granted, and whatever runs goes on (CM-1).
  7. Several applications may have executors here.  Names of nodes and shuffles, and what was found when the
     worker came, are one application's and mean nothing to another.

Invariants (``check_invariants``)
  * an executor belongs to one application; live ones that are not surplus <= count.
  * an application that is being released starts nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import cast

from spark_ft.ids import AppId, HostId, Incarnation
from spark_ft.protocol.effects import (
    AskStacks,
    ChildExited,
    ChildrenSeen,
    ChildSpawned,
    ChildStopped,
    ClosePeer,
    Connect,
    Copy,
    CopyEnded,
    DriverRan,
    DropStores,
    Effect,
    Event,
    Exit,
    Forget,
    GranterMoved,
    Inherited,
    KillProcess,
    LeaveWanted,
    Measure,
    Note,
    PeerGone,
    PeerHeard,
    PeerSilent,
    Received,
    RunDriver,
    Send,
    SpawnExecutor,
    StacksDumped,
    WatchProcess,
)
from spark_ft.protocol.messages import (
    AppReleased,
    AssignExecutors,
    DriverChanged,
    DropBlocks,
    DropShuffles,
    DumpStacks,
    ExecutorExited,
    ExecutorSpawned,
    ExecutorStacks,
    ExecutorStopped,
    ExecutorsUnavailable,
    Fenced,
    Goodbye,
    KillExecutor,
    Leave,
    Leaving,
    MakeCopies,
    MapStatus,
    MayLeave,
    Message,
    RegisterWorker,
    ReleaseApp,
    StoresServed,
    SubmitDriver,
    WorkerBeat,
    WorkerHello,
    WorkerRegistered,
    WorkerWelcome,
)
from spark_ft.settings import Settings

REGISTER_INTERVAL_S = 1.0
PROVEN_S = 1.0  # an executor that ran so long has started well
RESTART_MAX_S = 2.0  # between two starts, whatever the back-off says (EX-6)
PAUSE_S = 30.0  # after giving up (EX-12)
TERM_GRACE_S = 0.5  # from SIGHUP to SIGKILL when an application is released
EXIT_FENCED, EXIT_LEFT = 71, 73
RUNNING = "RUNNING"  # of a driver; see DriverChanged
DRIVERS_BYTES_MAX = 64 << 20  # of programs in one registration
ENDED_KEPT = 64  # drivers of which another manager is told how they ended

SIGHUP, SIGINT, SIGKILL, SIGTERM = 1, 2, 9, 15  # numbers: sending them is the host's affair
_BY_HAND = frozenset({SIGHUP, SIGINT, SIGKILL, SIGTERM})


@dataclass(slots=True)
class _Child:
    """One executor process, from the wish for it to its reaping."""

    round: int  # how many crashes in a row there had been when it was started
    wanted_s: float
    spawned_s: float | None = None
    surplus: bool = False  # on its way out, no successor


@dataclass(slots=True)
class _App:
    assignment: AssignExecutors
    owner: Incarnation  # who assigned it, and is told when it is released
    children: dict[Incarnation, _Child] = field(default_factory=dict)
    crashes: int = 0  # rounds of failed starts in a row
    start_at_s: float = 0.0  # nothing is started before
    stderr: str = ""
    releasing: bool = False
    kill_at_s: float | None = None  # SIGKILL for whoever ignores SIGHUP
    may_leave: bool = False  # its driver needs nothing of this host any more


class WorkerCore:
    """See the module.  ``granter`` is whom the worker registers with when that is a manager
    (``has_manager``); in ``local[n]`` the driver grants directly and nobody is registered with."""

    def __init__(
        self,
        me: Incarnation,
        host: HostId,
        pid: int,
        cores: int,
        memory_bytes: int,
        granter: Incarnation,
        settings: Settings,
        *,
        has_manager: bool = False,
        data_endpoint: str = "",
        root: str = "",
        rng: Random | None = None,
    ) -> None:
        self._me = me
        self._host = host
        self._pid = pid
        self._granter = granter
        self._has_manager = has_manager
        self._settings = settings
        self._data_endpoint = data_endpoint
        self._root = root
        self._rng = rng  # so that all workers of a manager that is back do not knock in step (CLK-5)
        self._register = RegisterWorker(me, host, pid, cores, memory_bytes)
        self._registered = not has_manager
        self._found: dict[AppId | None, Inherited] = {}  # what was here, until its driver comes for it
        self._has_looked = False  # until that is known nobody is told of us
        self._register_at_s = 0.0
        self._started = 0  # executors ever, for their names
        self._apps: dict[AppId, _App] = {}
        self._drivers: dict[str, SubmitDriver] = {}  # programs that run here for somebody
        self._ended: tuple[DriverChanged, ...] = ()  # for a manager that comes later
        self._beat = 0
        self._beat_at_s = 0.0
        self._measuring = False
        self._exiting = False
        self._leave_by_s: float | None = None  # it was asked to go, and ends then at the latest

    # --- The one way in --------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """The one way this core's state changes."""
        out: list[Effect] = []
        if self._exiting:
            return out
        match event:
            case Received(sender, message):
                self._received(sender, message, now_s, out)
            case Inherited():
                self._found[event.app] = event
                self._has_looked, self._register_at_s = not event.more, now_s
            case ChildSpawned(executor, pid):
                self._spawned(executor, pid, now_s, out)
            case ChildExited():
                self._exited(event, now_s, out)
            case ChildStopped(executor, stopped):
                self._tell_driver(executor, ExecutorStopped(executor, stopped), out)
            case StacksDumped(executor, text):
                self._tell_driver(executor, ExecutorStacks(executor, text), out)
            case ChildrenSeen():
                self._seen(event, now_s, out)
            case CopyEnded(owner, made):
                if self._serves(owner):
                    out.append(Send(owner, made))
            case LeaveWanted(within_s):
                self._leave(within_s, now_s, out)
            case DriverRan():
                self._driver_ran(event, out)
            case PeerGone() | PeerSilent() | PeerHeard():
                self._peer(event, now_s, out)
            case GranterMoved():
                self._moved(event, now_s, out)
            case _:  # Tick, and what is not for workers
                pass
        if not self._exiting:
            self._time(now_s, out)
        return out

    def wakeup_s(self) -> float | None:
        if self._exiting:
            return None
        times: list[float] = [] if self._leave_by_s is None else [self._leave_by_s]
        if not self._registered and self._has_looked:
            times.append(self._register_at_s)
        if not self._measuring and self._beating():
            times.append(self._beat_at_s)
        for app in self._apps.values():
            if app.kill_at_s is not None:
                times.append(app.kill_at_s)
            elif not app.releasing and self._leave_by_s is None and self._lacking(app):
                times.append(app.start_at_s)
        return min(times) if times else None

    # --- Messages ----------------------------------------------------------------------------

    def _received(self, sender: Incarnation, message: Message, now_s: float, out: list[Effect]) -> None:
        match message:
            case AssignExecutors():
                self._assign(sender, message, now_s, out)
            case ReleaseApp(app):
                if app in self._apps:
                    self._release(app, self._apps[app], now_s, out)
                else:
                    out.append(Send(sender, AppReleased(app, self._me)))  # long since
            case WorkerRegistered():
                if not self._registered:
                    self._registered = True
                    out.extend(Send(sender, ended) for ended in self._ended)
                    self._beat_at_s = now_s + self._settings.heartbeat_interval_s
            case WorkerWelcome():
                pass
            case SubmitDriver() if sender == self._granter and self._has_manager:
                if message.driver not in self._drivers:
                    self._drivers[message.driver] = message
                    out.append(RunDriver(message))
            case Fenced(why) if sender == self._granter and self._has_manager:
                # The manager has promised our cores to others and told the drivers that we are lost.
                self._exiting = True
                out.append(Exit(EXIT_FENCED, f"fenced: {why}"))
            case Fenced(why) | Goodbye(why):
                self._driver_gone(sender, why, now_s, out)
            case _:
                self._from_driver(sender, message, now_s, out)

    def _told_drivers(self) -> Iterator[SubmitDriver]:
        """What runs here, for a manager; with their files those that it is to start elsewhere if we are lost,
        as far as a message can hold them."""
        left_bytes = DRIVERS_BYTES_MAX
        for driver in self._drivers.values():
            size_bytes = sum(len(content) for _, content in driver.files)
            if driver.supervise and size_bytes <= left_bytes:
                left_bytes -= size_bytes
                yield driver
            else:
                yield replace(driver, files=(), supervise=False)

    def _driver_ran(self, ran: DriverRan, out: list[Effect]) -> None:
        """Of one that a worker before us has started nobody is told before we have registered."""
        if ran.submitted is not None:
            self._drivers[ran.driver] = ran.submitted
        told = DriverChanged(ran.driver, ran.state, ran.text)
        if ran.driver in self._drivers and self._registered:
            out.append(Send(self._granter, told))
        if ran.state != RUNNING and self._drivers.pop(ran.driver, None) is not None:
            self._ended = (*self._ended, told)[-ENDED_KEPT:]
            self._leave_if_free(out)

    def _from_driver(self, sender: Incarnation, message: Message, now_s: float, out: list[Effect]) -> None:
        """What a driver wants of its executors and of this host's stores."""
        match message:
            case KillExecutor(executor, why):
                found = self._app_of(executor)
                if found is not None and found.assignment.driver == sender:
                    out.append(Note("executor_killed_on_request", {"executor": executor, "why": why}))
                    out.append(KillProcess(executor, SIGKILL))
            case DumpStacks(executor):
                found = self._app_of(executor)
                if found is not None and found.assignment.driver == sender:
                    out.append(AskStacks(executor))
            case Leave(within_s):
                if self._serves(sender):
                    self._leave(within_s, now_s, out)
            case MayLeave():
                for app in self._apps.values():
                    app.may_leave = app.may_leave or app.assignment.driver == sender
                self._leave_if_free(out)
            case DropShuffles(fingerprints):
                out.append(DropStores(fingerprints=tuple(fingerprints), owner=sender))
            case MakeCopies(orders, hosts):
                if self._serves(sender):
                    out.append(Copy(sender, orders, hosts))
            case DropBlocks(nodes=nodes, copies=copies):
                out.append(Forget(nodes=nodes, copies=copies, owner=sender))
            case _:
                out.append(Note("message_not_for_worker", {"kind": type(message).__name__}))

    def _leave(self, within_s: float, now_s: float, out: list[Effect]) -> None:
        """Rule 3.  Asked twice, the first deadline stands."""
        if self._leave_by_s is None:
            self._leave_by_s = now_s + within_s
            for app in self._apps.values():
                out.append(Send(app.assignment.driver, Leaving(within_s, "it was asked to leave")))
            self._leave_if_free(out)

    def _leave_if_free(self, out: list[Effect]) -> None:
        idle = all(app.may_leave for app in self._apps.values()) and not self._drivers
        if self._leave_by_s is not None and idle:
            self._exiting = True
            out.append(Exit(EXIT_LEFT, "it has left in order"))

    def _assign(self, owner: Incarnation, wanted: AssignExecutors, now_s: float, out: list[Effect]) -> None:
        app, heirlooms = self._apps.get(wanted.app), list[Incarnation]()
        if app is not None and app.releasing:
            return  # it comes too late; whoever sent it has also sent, or will send, ReleaseApp
        if app is not None and app.assignment.driver != wanted.driver:
            for executor, child in app.children.items():
                child.surplus = True
                out.append(KillProcess(executor, SIGKILL))
        if app is None or app.assignment.driver != wanted.driver:
            out.append(WatchProcess(wanted.driver, wanted.driver_pid))
            if wanted.driver != self._granter:
                out.append(Connect(wanted.driver, wanted.driver_endpoint))
            hello = WorkerHello(self._me, self._host, self._pid, self._data_endpoint, self._root)
            out.append(Send(wanted.driver, hello))
            heirlooms = self._claim(wanted.app, wanted.driver, out)
            if self._leave_by_s is not None:
                out.append(Send(wanted.driver, Leaving(self._leave_by_s - now_s, "it was asked to leave")))
        if app is None:
            app = self._apps[wanted.app] = _App(wanted, owner)
            app.children.update((executor, _Child(0, now_s, now_s)) for executor in heirlooms)
            self._beat_at_s = now_s + self._settings.heartbeat_interval_s
        app.assignment, app.owner = wanted, owner
        live = [executor for executor, child in app.children.items() if not child.surplus]
        for executor in live[wanted.count :]:
            app.children[executor].surplus = True
            out.append(KillProcess(executor, SIGTERM))

    def _claim(self, app: AppId, driver: Incarnation, out: list[Effect]) -> list[Incarnation]:
        """What outlived the worker before us: this driver's own it keeps, the rest of the application's has
        nobody any more."""
        if not self._has_looked:
            return []
        found = self._found.pop(app, None) or self._found.pop(None, None) or Inherited()
        own = [executor for executor, theirs in found.executors if theirs == driver]
        out.append(Send(driver, StoresServed(tuple(own), found.outputs, found.stores, found.names)))
        rest = (executor for executor, _ in found.executors if executor not in own)
        out.extend(KillProcess(executor, SIGKILL) for executor in rest)
        return own

    def _unclaimed_ended(self, exited: ChildExited) -> None:
        """An heirloom has ended before its driver came for it: what it has committed is still to be had."""
        for of, found in self._found.items():
            if any(executor == exited.executor for executor, _ in found.executors):
                left = tuple(pair for pair in found.executors if pair[0] != exited.executor)
                outputs = (*found.outputs, *(cast(MapStatus, output) for output in exited.outputs))
                self._found[of] = replace(found, executors=left, outputs=outputs)

    def _peer(self, event: PeerGone | PeerSilent | PeerHeard, now_s: float, out: list[Effect]) -> None:
        """A driver's silence is no end: one that is stopped, or holds its GIL, goes on.  And running
        applications do not need the manager (CM-1)."""
        is_manager = self._has_manager and event.peer == self._granter
        match event:
            case PeerGone(peer, why) if not is_manager:
                self._driver_gone(peer, why, now_s, out)
            case PeerGone(why=why):
                out.append(Note("manager_gone", {"why": why}))
            case PeerSilent(silent_s=silent_s) if is_manager:
                out.append(Note("manager_silent", {"silent_s": round(silent_s, 3)}))
            case PeerHeard() if is_manager:
                out.append(Note("manager_heard", {}))
            case _:
                pass

    def _moved(self, moved: GranterMoved, now_s: float, out: list[Effect]) -> None:
        """Rule 6."""
        out.append(ClosePeer(self._granter, fence=False, why="another manager has come"))
        out.append(Connect(moved.granter, moved.endpoint))
        self._granter, self._registered, self._register_at_s = moved.granter, False, now_s
        for app in self._apps.values():
            app.owner = moved.granter

    def _driver_gone(self, driver: Incarnation, why: str, now_s: float, out: list[Effect]) -> None:
        """The one place that decides what an application's end without a goodbye means: nobody can
        come back for its executors and outputs, so both go at once."""
        for app_id, app in list(self._apps.items()):
            if app.assignment.driver == driver and not app.releasing:
                out.append(Note("driver_gone", {"app": app_id, "driver": driver, "why": why}))
                self._release(app_id, app, now_s, out)

    def _release(self, app_id: AppId, app: _App, now_s: float, out: list[Effect]) -> None:
        if app.releasing:
            return
        app.releasing = True
        app.kill_at_s = now_s + TERM_GRACE_S
        out.extend(KillProcess(executor, SIGHUP) for executor in app.children)
        self._released(app_id, app, out)

    def _released(self, app_id: AppId, app: _App, out: list[Effect]) -> None:
        """Forget a releasing application once its last child is reaped: nothing writes to its stores then."""
        if app.releasing and not app.children:
            del self._apps[app_id]
            driver = app.assignment.driver
            out.append(DropStores(app=app_id))
            out.append(Send(app.owner, AppReleased(app_id, self._me, driver)))
            if driver != self._granter and not self._serves(driver):
                out.append(ClosePeer(driver, fence=False, why="its application was released"))
            self._leave_if_free(out)

    # --- Children ----------------------------------------------------------------------------

    def _app_of(self, executor: Incarnation) -> _App | None:
        return next((app for app in self._apps.values() if executor in app.children), None)

    def _tell_driver(self, executor: Incarnation, message: Message, out: list[Effect]) -> None:
        app = self._app_of(executor)
        if app is not None:
            out.append(Send(app.assignment.driver, message))

    def _serves(self, driver: Incarnation) -> bool:
        return any(app.assignment.driver == driver and not app.releasing for app in self._apps.values())

    def _lacking(self, app: _App) -> int:
        return app.assignment.count - sum(not child.surplus for child in app.children.values())

    def _fill(self, app: _App, now_s: float, out: list[Effect]) -> None:
        if app.releasing or self._leave_by_s is not None or now_s < app.start_at_s:
            return
        for _ in range(self._lacking(app)):
            # The worker's name is drawn once and the count only grows: as unique as a fresh draw,
            # and the core stays deterministic.
            self._started += 1
            name = hashlib.sha256(f"{self._me}/{self._started}".encode()).hexdigest()[:16]
            executor = Incarnation(f"executor-{name}")
            app.children[executor] = _Child(app.crashes, now_s)
            out.append(SpawnExecutor(executor, app.assignment))

    def _spawned(self, executor: Incarnation, pid: int, now_s: float, out: list[Effect]) -> None:
        app = self._app_of(executor)
        if app is None:
            return
        app.children[executor].spawned_s = now_s
        out.append(Send(app.assignment.driver, ExecutorSpawned(executor, pid)))
        if app.releasing or app.children[executor].surplus:  # its signal came before there was a process
            out.append(KillProcess(executor, SIGKILL))

    def _exited(self, exited: ChildExited, now_s: float, out: list[Effect]) -> None:
        app = self._app_of(exited.executor)
        if app is None:
            self._unclaimed_ended(exited)
            return
        child = app.children.pop(exited.executor)
        outputs = tuple(cast(MapStatus, output) for output in exited.outputs)
        end = ExecutorExited(
            exited.executor, exited.status, exited.signal, exited.stderr, outputs, exited.running, exited.oom,
            exited.rss_peak_bytes, exited.touched,
        )  # fmt: skip
        out.append(Send(app.assignment.driver, end))
        if app.releasing:
            self._released(app.assignment.app, app, out)
        elif not child.surplus:
            self._succession(app, child, exited, now_s, out)

    def _succession(
        self, app: _App, child: _Child, exited: ChildExited, now_s: float, out: list[Effect]
    ) -> None:
        """When the successor may start: rule 2."""
        ran_s = now_s - (child.spawned_s if child.spawned_s is not None else now_s)
        if exited.registered or ran_s >= PROVEN_S:
            app.crashes, app.start_at_s = 0, min(app.start_at_s, now_s)
            for other in app.children.values():
                other.round = 0  # the rounds of failed starts are over, also for those of the last one
            return
        delay_s = self._settings.executor_restart_s
        if exited.signal not in _BY_HAND:
            app.stderr = exited.stderr or app.stderr
            if child.round < app.crashes:
                return  # failed together with one that has been counted
            app.crashes += 1
            delay_s *= 2 ** (app.crashes - 1)
        delay_s = min(delay_s, RESTART_MAX_S)
        if app.crashes >= self._settings.executor_max_crashes:
            delay_s = PAUSE_S
            out.append(Note("executor_crash_loop", {"app": app.assignment.app, "tries": app.crashes}))
            out.append(Send(app.assignment.driver, ExecutorsUnavailable(app.crashes, app.stderr)))
        app.start_at_s = max(app.start_at_s, now_s + delay_s)

    # --- Time --------------------------------------------------------------------------------

    def _time(self, now_s: float, out: list[Effect]) -> None:
        if self._leave_by_s is not None and now_s >= self._leave_by_s:
            self._exiting = True
            out.append(Exit(EXIT_LEFT, "its time to leave in order is over"))
            return
        if not self._registered and self._has_looked and now_s >= self._register_at_s:
            lot = 1.0 if self._rng is None else self._rng.uniform(1.0, 1.25)
            self._register_at_s = now_s + REGISTER_INTERVAL_S * lot
            live = [app.assignment for app in self._apps.values() if not app.releasing]
            held = tuple((a.app, a.driver, a.count, a.cores or a.slots, a.memory_bytes) for a in live)
            register = replace(self._register, held=held, drivers=tuple(self._told_drivers()))
            out.append(Send(self._granter, register))
        if not self._measuring and self._beating() and now_s >= self._beat_at_s:
            self._measuring = True
            out.append(Measure())
        for app in self._apps.values():
            if app.kill_at_s is not None and now_s >= app.kill_at_s:
                app.kill_at_s = None
                out.extend(KillProcess(executor, SIGKILL) for executor in app.children)
            self._fill(app, now_s, out)

    def _beating(self) -> bool:
        return bool(self._apps) or (self._has_manager and self._registered)

    def _seen(self, seen: ChildrenSeen, now_s: float, out: list[Effect]) -> None:
        """Vouch for the children: to each driver for its own, to the manager for being alive at all."""
        if not self._measuring:
            return
        self._measuring = False
        self._beat += 1
        self._beat_at_s = now_s + self._settings.heartbeat_interval_s
        for app in self._apps.values():
            own = tuple(row for row in seen.executors if row[0] in app.children)
            said = tuple(row for row in seen.said if row[0] in app.children)
            out.append(Send(app.assignment.driver, WorkerBeat(self._beat, own, seen.free_bytes, said)))
        if self._has_manager:
            out.append(Send(self._granter, WorkerBeat(self._beat, (), seen.free_bytes)))

    # --- For tests and simulation ------------------------------------------------------------

    def check_invariants(self) -> None:
        everyone = [executor for app in self._apps.values() for executor in app.children]
        assert len(everyone) == len(set(everyone))
        for app in self._apps.values():
            assert self._lacking(app) >= 0
            assert not app.releasing or app.children, "a released application is forgotten at once"
            assert app.crashes >= 0 and all(child.round <= app.crashes for child in app.children.values())
