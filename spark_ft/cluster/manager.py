"""ManagerCore: which application may have how many executors on which worker.

    worker ──RegisterWorker──> ┌─────────┐ ──AssignExecutors──> worker ──starts them──┐
    driver ──RegisterApp─────> │ manager │ ──AppRegistered────> driver <──they connect─┘
                               └─────────┘ ──WorkerLost───────> driver

A grant is a number, not a process: workers keep that many alive, drivers hear of the processes from
the workers themselves.  So nothing that runs depends on the manager (CM-1).

Rules
  1. Registration is idempotent by incarnation: a repeated one is answered again and grants nothing
     twice (CM-7).
  2. What was granted stays until the worker is lost or the application ends: no healthy executor is
     taken away because somebody else came.
  3. A worker that is lost stays lost: its later words are answered with Fenced, for its cores may
     have been granted and its executors replaced.
  4. Silence is judged when time passes, never at a message, and after a stall of this process (it was
     stopped, or got no CPU) everybody is listened to anew: what workers said meanwhile may still be on
     its way to us (CLK-4).

Invariants (``check_invariants``)
  * per worker: cores and memory granted <= offered.
  * per application: executors granted <= asked for; grants name live workers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spark_ft.ids import AppId, Incarnation
from spark_ft.protocol.effects import (
    ClosePeer,
    Effect,
    Event,
    Note,
    PeerGone,
    Received,
    Send,
    Tick,
    WatchProcess,
)
from spark_ft.protocol.messages import (
    AppRegistered,
    AppReleased,
    AppUnregistered,
    AssignExecutors,
    Fenced,
    Goodbye,
    Message,
    RegisterApp,
    RegisterWorker,
    ReleaseApp,
    UnregisterApp,
    WorkerBeat,
    WorkerLost,
    WorkerRegistered,
)
from spark_ft.settings import Settings

LOOKS = 8  # in the time after which a silent worker is given up; two looks missed in a row are a stall


@dataclass(slots=True)
class _Worker:
    offer: RegisterWorker
    heard_s: float
    free_cores: int
    free_bytes: int


@dataclass(slots=True)
class _App:
    wish: RegisterApp
    granted: dict[Incarnation, int] = field(default_factory=dict)
    releasing: set[Incarnation] | None = None  # workers that have not answered ReleaseApp yet
    told: bool = True  # False when its driver is gone and nobody waits for an answer
    successor: RegisterApp | None = None  # asked for under the same id while this one was being released


class ManagerCore:
    """See the module."""

    def __init__(self, me: Incarnation, settings: Settings) -> None:
        self._me = me
        self._settings = settings
        self._workers: dict[Incarnation, _Worker] = {}
        self._apps: dict[AppId, _App] = {}
        self._every_s = settings.silence_s / LOOKS
        self._last_s = 0.0  # the clock at the last event
        self._look_s: float | None = None  # when it was to look for silent ones again

    # --- The one way in --------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """The one way this core's state changes."""
        out: list[Effect] = []
        if self._look_s is not None and now_s - max(self._look_s, self._last_s) > 2 * self._every_s:
            for entry in self._workers.values():
                entry.heard_s = now_s
        self._last_s = now_s
        match event:
            case Received(sender, message):
                if sender in self._workers:
                    self._workers[sender].heard_s = now_s
                self._received(sender, message, now_s, out)
            case PeerGone(peer, why):
                self._worker_lost(peer, why, out)
                self._driver_gone(peer, out)
            case Tick():
                for worker, entry in list(self._workers.items()):
                    if now_s >= entry.heard_s + self._settings.silence_s:
                        self._worker_lost(worker, f"silent for {now_s - entry.heard_s:.1f} s", out)
                self._look_s = now_s + self._every_s
            case _:  # what is not for managers, and silences: of a driver they are no end
                pass
        if not self._workers:
            self._look_s = None
        elif self._look_s is None:
            self._look_s = now_s + self._every_s
        return out

    def wakeup_s(self) -> float | None:
        if self._look_s is None or not self._workers:
            return None
        heard_s = min(worker.heard_s for worker in self._workers.values())
        return min(self._look_s, heard_s + self._settings.silence_s)

    def cores(self) -> int:
        """Of all workers, granted or not."""
        return sum(worker.offer.cores for worker in self._workers.values())

    # --- Messages ----------------------------------------------------------------------------

    def _received(self, sender: Incarnation, message: Message, now_s: float, out: list[Effect]) -> None:
        match message:
            case RegisterWorker():
                if sender not in self._workers:
                    self._workers[sender] = _Worker(message, now_s, message.cores, message.memory_bytes)
                    out.append(WatchProcess(sender, message.pid))
                    for known in self._apps.values():
                        if self._take_over(known, sender):
                            self._answer(known, out)
                out.append(Send(sender, WorkerRegistered()))
                self._grant_all(out)
            case RegisterApp():
                self._register_app(message, out)
            case UnregisterApp(app_id):
                app = self._apps.get(app_id)
                if app is None:
                    out.append(Send(sender, AppUnregistered(app_id)))
                elif app.wish.driver == sender:
                    self._release(app_id, app, out)
            case AppReleased(app_id, worker):
                app = self._apps.get(app_id)
                if app is not None and app.releasing is not None:
                    app.releasing.discard(worker)
                    self._released(app_id, app, out)
            case WorkerBeat():
                pass  # it lives: noted by whoever called us
            case Goodbye(why):
                self._worker_lost(sender, why or "said goodbye", out)
                self._driver_gone(sender, out)
            case _:
                out.append(Note("message_not_for_manager", {"kind": type(message).__name__}))

    def _register_app(self, wish: RegisterApp, out: list[Effect]) -> None:
        app = self._apps.get(wish.app)
        if app is not None and app.releasing is not None:
            if app.wish.driver != wish.driver:
                app.successor = wish
            return
        if app is None:
            self._apps[wish.app] = app = _App(wish)
            out.append(WatchProcess(wish.driver, wish.driver_pid))
            for worker in self._workers:
                self._take_over(app, worker)
        elif app.wish.driver != wish.driver:
            # A later start of the same application: the earlier driver is fenced, workers are told
            # of the new one and replace the executors.
            out.append(Send(app.wish.driver, Fenced("another driver registered under this application id")))
            out.append(WatchProcess(wish.driver, wish.driver_pid))
            before, app.granted = app.granted, {}
            self._give_back(before, app.wish)
            app.wish = wish
            changed = self._grant(app, out)
            out.extend(self._assignment(app, worker) for worker in before if worker not in app.granted)
            if changed:
                return
        if not self._grant(app, out):
            self._answer(app, out)

    # --- Grants ------------------------------------------------------------------------------

    def _grant_all(self, out: list[Effect]) -> None:
        for app in self._apps.values():  # first come, first served
            if app.releasing is None:
                self._grant(app, out)

    def _grant(self, app: _App, out: list[Effect]) -> bool:
        """Give what is free, one executor a worker in turn, up to what was asked for (0: all there is)."""
        wish, changed = app.wish, set()
        left = (wish.executors or 1 << 30) - sum(app.granted.values())
        progress = True
        while left > 0 and progress:
            progress = False
            for name, worker in self._workers.items():
                if left > 0 and worker.free_cores >= wish.slots and worker.free_bytes >= wish.memory_bytes:
                    worker.free_cores -= wish.slots
                    worker.free_bytes -= wish.memory_bytes
                    app.granted[name] = app.granted.get(name, 0) + 1
                    left -= 1
                    changed.add(name)
                    progress = True
        out.extend(self._assignment(app, worker) for worker in app.granted if worker in changed)
        if changed:
            self._answer(app, out)
        return bool(changed)

    def _take_over(self, app: _App, name: Incarnation) -> bool:
        """What a manager before us has granted to ``app`` on this worker is granted (CM-1).  What is more
        than was asked for, because some was given elsewhere before we heard of it, is not in our books."""
        worker, wish = self._workers[name], app.wish
        own = (wish.app, wish.driver)
        held = sum(count for id, driver, count in worker.offer.held if (id, driver) == own)
        if app.releasing is not None or name in app.granted:
            return False
        left = (wish.executors or 1 << 30) - sum(app.granted.values())
        room = min(worker.free_cores // wish.slots, worker.free_bytes // wish.memory_bytes)
        if (taken := min(held, left, room)) > 0:
            worker.free_cores -= taken * wish.slots
            worker.free_bytes -= taken * wish.memory_bytes
            app.granted[name] = taken
        return taken > 0

    def _assignment(self, app: _App, worker: Incarnation) -> Send:
        wish = app.wish
        return Send(
            worker,
            AssignExecutors(
                wish.app,
                wish.driver,
                wish.driver_endpoint,
                wish.driver_pid,
                app.granted.get(worker, 0),
                wish.slots,
                wish.memory_bytes,
                wish.settings,
            ),
        )

    def _answer(self, app: _App, out: list[Effect]) -> None:
        hosts = {worker: self._workers[worker].offer.host for worker in app.granted}
        out.append(Send(app.wish.driver, AppRegistered(dict(app.granted), hosts)))

    def _give_back(self, granted: Mapping[Incarnation, int], wish: RegisterApp) -> None:
        for name, count in granted.items():
            worker = self._workers[name]
            worker.free_cores += count * wish.slots
            worker.free_bytes += count * wish.memory_bytes

    # --- Ends --------------------------------------------------------------------------------

    def _worker_lost(self, worker: Incarnation, why: str, out: list[Effect]) -> None:
        if self._workers.pop(worker, None) is None:
            return
        out.append(Note("worker_lost", {"worker": worker, "why": why}))
        out.append(ClosePeer(worker, fence=True, why=why))
        for app_id, app in list(self._apps.items()):
            had = app.granted.pop(worker, None)
            if app.releasing is not None:
                app.releasing.discard(worker)
                self._released(app_id, app, out)
            elif had is not None:
                out.append(Send(app.wish.driver, WorkerLost(worker, why)))
                if not self._grant(app, out):
                    self._answer(app, out)

    def _driver_gone(self, driver: Incarnation, out: list[Effect]) -> None:
        for app_id, app in list(self._apps.items()):
            if app.wish.driver == driver:
                app.told = False
                self._release(app_id, app, out)

    def _release(self, app_id: AppId, app: _App, out: list[Effect]) -> None:
        if app.releasing is None:
            app.releasing = set(app.granted)
            out.extend(Send(worker, ReleaseApp(app_id)) for worker in app.granted)
        self._released(app_id, app, out)

    def _released(self, app_id: AppId, app: _App, out: list[Effect]) -> None:
        """All its workers have answered or are lost: its cores are free for others."""
        if app.releasing:
            return
        del self._apps[app_id]
        self._give_back(app.granted, app.wish)
        if app.told:
            out.append(Send(app.wish.driver, AppUnregistered(app_id)))
        if app.successor is not None:
            self._register_app(app.successor, out)
        self._grant_all(out)

    # --- For tests and simulation ------------------------------------------------------------

    def check_invariants(self) -> None:
        for name, worker in self._workers.items():
            cores = sum(app.granted.get(name, 0) * app.wish.slots for app in self._apps.values())
            size = sum(app.granted.get(name, 0) * app.wish.memory_bytes for app in self._apps.values())
            assert worker.free_cores == worker.offer.cores - cores >= 0
            assert worker.free_bytes == worker.offer.memory_bytes - size >= 0
        for app in self._apps.values():
            assert app.granted.keys() <= self._workers.keys()
            assert not app.wish.executors or sum(app.granted.values()) <= app.wish.executors
            assert app.releasing is None or app.releasing, "a released application is forgotten at once"
