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
  4. What workers say they hold is the truth, whatever the books of an earlier manager said: it is granted to
     its application when that comes, and kept for it until then (CM-2).  A manager that follows another
     grants nothing new until every host that had a worker has said what it holds, or had time enough.
  5. A worker gives up by itself what a driver has that it can reach no more.  The driver may be there for
     others, so it loses that worker's executors alone; when none are left and it is silent here too, it
     has ended.
  6. What a lost worker had is kept for its heir as long as drivers keep it, ``worker_grace_s``: executors
     that compute on there, and outputs, are worth more than as many new executors elsewhere (WK-1).
  7. Silence is judged when time passes, never at a message, and after a stall of this process (it was
     stopped, or got no CPU) everybody is listened to anew: what workers said meanwhile may still be on
     its way to us (CLK-4).

Invariants (``check_invariants``)
  * per worker: cores and memory granted, or kept for who has not come yet, <= offered.
  * per application: executors granted <= asked for; grants name live workers only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from spark_ft.ids import AppId, HostId, Incarnation
from spark_ft.protocol.effects import (
    ClosePeer,
    Effect,
    Event,
    Note,
    PeerGone,
    PeerHeard,
    PeerSilent,
    Received,
    Remember,
    Send,
    Tick,
    WatchProcess,
)
from spark_ft.protocol.messages import (
    AppRegistered,
    AppReleased,
    AppUnregistered,
    AssignExecutors,
    DriverChanged,
    Fenced,
    Goodbye,
    Message,
    RegisterApp,
    RegisterWorker,
    ReleaseApp,
    SubmitDriver,
    UnregisterApp,
    WorkerBeat,
    WorkerLost,
    WorkerRegistered,
)
from spark_ft.settings import Settings

SHUNNED_S = 60.0  # a worker that gave an application up is asked again
LOOKS = 8  # in the time after which a silent worker is given up; two looks missed in a row are a stall


@dataclass(slots=True)
class _Worker:
    offer: RegisterWorker
    heard_s: float
    free_cores: int
    free_bytes: int
    kept: dict[tuple[AppId, Incarnation], tuple[int, int, int]] = field(default_factory=dict)
    # (application, driver) that have not come yet -> executors, and cores and memory of each

    def take(self, count: int, cores: int, size_bytes: int) -> None:
        """``count`` may be negative: that gives back."""
        self.free_cores -= count * cores
        self.free_bytes -= count * size_bytes

    def room(self, cores: int, size_bytes: int) -> int:
        return max(0, min(self.free_cores // cores, self.free_bytes // size_bytes))


@dataclass(slots=True)
class _App:
    wish: RegisterApp
    away: dict[HostId, tuple[int, float]] = field(default_factory=dict)
    # hosts whose worker was lost -> executors that were granted there, and until when an heir may have them
    is_silent: bool = False  # nothing comes from its driver: nothing new is given to it
    shunned: dict[Incarnation, float] = field(default_factory=dict)  # workers that gave it up, until when
    granted: dict[Incarnation, int] = field(default_factory=dict)
    releasing: set[Incarnation] | None = None  # workers that have not answered ReleaseApp yet
    told: bool = True  # False when its driver is gone and nobody waits for an answer
    successor: RegisterApp | None = None  # asked for under the same id while this one was being released

    @property
    def size(self) -> tuple[int, int]:
        """Cores and memory of one executor."""
        return self.wish.cores or self.wish.slots, self.wish.memory_bytes

    @property
    def lacking(self) -> int:
        """Executors that it asks for and has not got."""
        had = sum(self.granted.values()) + sum(count for count, _ in self.away.values())
        return (self.wish.executors or 1 << 30) - had


@dataclass(slots=True)
class _Driver:
    """A program that was submitted, and ``client``, who is told of it."""

    wish: SubmitDriver
    client: Incarnation | None = None
    worker: Incarnation | None = None  # where it runs; None: it waits for room, or for its host's heir
    away: tuple[HostId, float] | None = None  # that host, and until when it is waited for

    @property
    def size(self) -> tuple[int, int]:
        return self.wish.cores, self.wish.memory_bytes


class ManagerCore:
    """See the module.  ``awaited``: hosts that had a worker under the manager before this one."""

    def __init__(self, me: Incarnation, settings: Settings, awaited: Collection[HostId] = ()) -> None:
        self._me = me
        self._settings = settings
        self._workers: dict[Incarnation, _Worker] = {}
        self._apps: dict[AppId, _App] = {}
        self._drivers: dict[str, _Driver] = {}
        self._every_s = settings.silence_s / LOOKS
        self._last_s = 0.0  # the clock at the last event
        self._look_s: float | None = None  # when it was to look for silent ones again
        self._awaited = set(awaited)
        self._grants_from_s: float | None = None  # nobody is awaited any longer then

    # --- The one way in --------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """The one way this core's state changes."""
        out: list[Effect] = []
        if self._look_s is not None and now_s - max(self._look_s, self._last_s) > 2 * self._every_s:
            for entry in self._workers.values():
                entry.heard_s = now_s
        self._last_s = now_s
        if self._awaited and self._grants_from_s is None:
            self._grants_from_s = now_s + self._settings.silence_s
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
                self._time(now_s, out)
            case PeerSilent(peer) | PeerHeard(peer):  # of a driver it is no end
                self._heard(peer, isinstance(event, PeerHeard), out)
            case _:  # what is not for managers
                pass
        if not self._workers:
            self._look_s = None
        elif self._look_s is None:
            self._look_s = now_s + self._every_s
        return out

    def wakeup_s(self) -> float | None:
        times = [] if self._grants_from_s is None else [self._grants_from_s]
        times += [driver.away[1] for driver in self._drivers.values() if driver.away]
        for app in self._apps.values():
            times += [*app.shunned.values(), *(until_s for _, until_s in app.away.values())]
        if self._look_s is not None and self._workers:
            heard_s = min(worker.heard_s for worker in self._workers.values())
            times += [self._look_s, heard_s + self._settings.silence_s]
        return min(times, default=None)

    def cores(self) -> int:
        """Of all workers, granted or not."""
        return sum(worker.offer.cores for worker in self._workers.values())

    # --- Messages ----------------------------------------------------------------------------

    def _received(self, sender: Incarnation, message: Message, now_s: float, out: list[Effect]) -> None:
        match message:
            case RegisterWorker():
                self._register_worker(sender, message, now_s, out)
            case RegisterApp():
                self._register_app(message, out)
            case UnregisterApp(app_id):
                app = self._apps.get(app_id)
                if app is None:
                    out.append(Send(sender, AppUnregistered(app_id)))
                elif app.wish.driver == sender:
                    self._release(app_id, app, out)
            case SubmitDriver():
                self._submitted(sender, message, out)
            case DriverChanged():
                self._driver_changed(sender, message, out)
            case AppReleased():
                self._app_released(message, now_s, out)
            case WorkerBeat():
                pass  # it lives: noted by whoever called us
            case Goodbye(why):
                self._worker_lost(sender, why or "said goodbye", out)
                self._driver_gone(sender, out)
            case _:
                out.append(Note("message_not_for_manager", {"kind": type(message).__name__}))

    def _register_worker(
        self, sender: Incarnation, offer: RegisterWorker, now_s: float, out: list[Effect]
    ) -> None:
        if sender not in self._workers:
            for other, entry in list(self._workers.items()):
                if entry.offer.host == offer.host:  # its directory has one worker: the one before is gone
                    self._worker_lost(other, "its successor has come", out)
            self._workers[sender] = worker = _Worker(offer, now_s, offer.cores, offer.memory_bytes)
            for app, driver, count, cores, size_bytes in offer.held:
                if (app, driver) not in worker.kept and count > 0:
                    worker.take(count, cores, size_bytes)
                    worker.kept[app, driver] = count, cores, size_bytes
            for wish in offer.drivers:
                self._drivers.setdefault(wish.driver, _Driver(wish))
                self._runs_at(self._drivers[wish.driver], sender)
            out.append(WatchProcess(sender, offer.pid))
            self._remember(out)
            for known in self._apps.values():
                inherits = self._inherit(known, sender, out)
                if self._take_over(known, sender, out) or inherits:
                    self._answer(known, out)
            self._awaited.discard(offer.host)
        out.append(Send(sender, WorkerRegistered()))
        if not self._awaited:
            self._grants_from_s = None
        self._grant_all(out)

    def _remember(self, out: list[Effect]) -> None:
        out.append(Remember(tuple(sorted({worker.offer.host for worker in self._workers.values()}))))

    def _app_released(self, told: AppReleased, now_s: float, out: list[Effect]) -> None:
        """Because it was told to, or by itself: rule 5."""
        worker, app = self._workers.get(told.worker), self._apps.get(told.app)
        if worker is not None and (kept := worker.kept.pop((told.app, told.driver), None)) is not None:
            worker.take(-kept[0], *kept[1:])
            self._grant_all(out)
        if app is None:
            return
        if app.releasing is not None:
            app.releasing.discard(told.worker)
            self._released(told.app, app, out)
        elif worker is not None and app.wish.driver == told.driver and told.worker in app.granted:
            out.append(Note("application_given_up", {"app": told.app, "worker": told.worker}))
            worker.take(-app.granted.pop(told.worker), *app.size)
            app.shunned[told.worker] = now_s + SHUNNED_S
            self._answer(app, out)
            self._is_over(app, out)
            self._grant_all(out)

    # --- Drivers that run within the cluster ---

    def _submitted(self, client: Incarnation, wish: SubmitDriver, out: list[Effect]) -> None:
        if wish.driver not in self._drivers:
            self._drivers[wish.driver] = _Driver(wish)
            if wish.has_run:
                self._drivers[wish.driver].away = HostId(""), self._last_s + self._settings.silence_s
        driver = self._drivers[wish.driver]
        driver.client = client
        self._tell(driver, "RUNNING" if driver.worker else "WAITING", "", out)
        self._place_drivers(out)

    def _place_drivers(self, out: list[Effect]) -> None:
        """Where most is free: they are few, and stay."""
        waiting = (driver for driver in self._drivers.values() if driver.worker is None and not driver.away)
        for driver in waiting if self._grants_from_s is None else ():
            able = [(w.free_cores, name) for name, w in self._workers.items() if w.room(*driver.size)]
            if able:
                name = max(able)[1]
                self._runs_at(driver, name)
                out.append(Send(name, driver.wish))

    def _runs_at(self, driver: _Driver, worker: Incarnation) -> None:
        if driver.worker is None:
            driver.worker, driver.away = worker, None
            self._workers[worker].take(1, *driver.size)

    def _driver_changed(self, sender: Incarnation, told: DriverChanged, out: list[Effect]) -> None:
        driver = self._drivers.get(told.driver)
        if driver is None or driver.worker not in (None, sender):
            return
        self._tell(driver, told.state, told.text, out)
        if told.state != "RUNNING":
            del self._drivers[told.driver]
            if driver.worker is not None:
                self._workers[sender].take(-1, *driver.size)
            self._grant_all(out)

    def _tell(self, driver: _Driver, state: str, text: str, out: list[Effect]) -> None:
        if driver.client is not None:
            out.append(Send(driver.client, DriverChanged(driver.wish.driver, state, text)))

    def _drivers_time(self, now_s: float, out: list[Effect]) -> None:
        """Hosts of drivers that nobody has taken over: such a driver has ended with its host."""
        for name, driver in list(self._drivers.items()):
            if driver.away is not None and now_s >= driver.away[1]:
                driver.away = None
                if not driver.wish.supervise:
                    del self._drivers[name]
                self._tell(driver, "WAITING" if driver.wish.supervise else "LOST", "its host is lost", out)
                self._place_drivers(out)

    def _heard(self, driver: Incarnation, heard: bool, out: list[Effect]) -> None:
        for app in list(self._apps.values()):
            if app.wish.driver == driver and app.is_silent == heard:
                app.is_silent = not heard
                self._is_over(app, out)
                if heard and app.releasing is None:
                    self._grant(app, out)

    def _is_over(self, app: _App, out: list[Effect]) -> None:
        """Nobody has anything of it any more, and nothing is heard of it."""
        if app.is_silent and app.shunned and not app.granted:
            self._driver_gone(app.wish.driver, out)

    def _time(self, now_s: float, out: list[Effect]) -> None:
        waited = self._grants_from_s is not None and now_s >= self._grants_from_s
        if waited:
            out.append(Note("hosts_have_not_come_back", {"hosts": sorted(self._awaited)}))
            self._awaited.clear()
            self._grants_from_s = None
        apps = self._apps.values()
        forgiven = [(app, name) for app in apps for name, until_s in app.shunned.items() if now_s >= until_s]
        for app, name in forgiven:
            del app.shunned[name]
        late = [(app, host) for app in apps for host, (_, until_s) in app.away.items() if now_s >= until_s]
        for app, host in late:
            del app.away[host]
        if waited or forgiven or late:
            self._grant_all(out)
        self._drivers_time(now_s, out)

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
                self._take_over(app, worker, out)
        elif app.wish.driver != wish.driver:
            # A later start of the same application: the earlier driver is fenced, workers are told
            # of the new one and replace the executors.
            out.append(Send(app.wish.driver, Fenced("another driver registered under this application id")))
            out.append(WatchProcess(wish.driver, wish.driver_pid))
            before, app.granted, app.away = app.granted, {}, {}
            self._give_back(before, app)
            app.wish = wish
            changed = self._grant(app, out)
            out.extend(self._assignment(app, worker) for worker in before if worker not in app.granted)
            if changed:
                return
        if not self._grant(app, out):
            self._answer(app, out)

    # --- Grants ------------------------------------------------------------------------------

    def _grant_all(self, out: list[Effect]) -> None:
        self._place_drivers(out)
        for app in self._apps.values():  # first come, first served
            if app.releasing is None:
                self._grant(app, out)

    def _grant(self, app: _App, out: list[Effect]) -> bool:
        """Give what is free, one executor a worker in turn, up to what was asked for (0: all there is)."""
        if self._grants_from_s is not None or app.is_silent:
            return False
        left, changed = app.lacking, set()
        progress = True
        while left > 0 and progress:
            progress = False
            for name, worker in self._workers.items():
                if left > 0 and name not in app.shunned and worker.room(*app.size):
                    worker.take(1, *app.size)
                    app.granted[name] = app.granted.get(name, 0) + 1
                    left -= 1
                    changed.add(name)
                    progress = True
        out.extend(self._assignment(app, worker) for worker in app.granted if worker in changed)
        if changed:
            self._answer(app, out)
        return bool(changed)

    def _take_over(self, app: _App, name: Incarnation, out: list[Effect]) -> bool:
        """What a manager before us has granted to ``app`` on this worker is granted (CM-1), save for what is
        more than it asks for.  What an earlier driver of it had there makes room for this one's."""
        worker, wish = self._workers[name], app.wish
        kept = {driver: worker.kept.pop((id, driver)) for id, driver in list(worker.kept) if id == wish.app}
        if not kept:
            return False
        for row in kept.values():
            worker.take(-row[0], *row[1:])
        if app.releasing is not None or name in app.granted:
            return False
        count = sum(row[0] for row in kept.values())
        taken = max(0, min(count, app.lacking, worker.room(*app.size)))
        if taken:
            worker.take(taken, *app.size)
            app.granted[name] = taken
        if taken < count or kept.keys() != {wish.driver}:
            out.append(self._assignment(app, name))
        return taken > 0

    def _inherit(self, app: _App, name: Incarnation, out: list[Effect]) -> bool:
        """What the worker before this one had on its host is this one's (rule 6)."""
        worker = self._workers[name]
        count, _ = app.away.pop(worker.offer.host, (0, 0.0))
        taken = min(count, worker.room(*app.size))
        if app.releasing is None and taken > 0:
            worker.take(taken, *app.size)
            app.granted[name] = taken
            out.append(self._assignment(app, name))
            return True
        return False

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
                wish.cores,
            ),
        )

    def _answer(self, app: _App, out: list[Effect]) -> None:
        hosts = {worker: self._workers[worker].offer.host for worker in app.granted}
        out.append(Send(app.wish.driver, AppRegistered(dict(app.granted), hosts)))

    def _give_back(self, granted: Mapping[Incarnation, int], app: _App) -> None:
        for name, count in granted.items():
            self._workers[name].take(-count, *app.size)

    # --- Ends --------------------------------------------------------------------------------

    def _worker_lost(self, worker: Incarnation, why: str, out: list[Effect]) -> None:
        entry = self._workers.pop(worker, None)
        if entry is None:
            return
        until_s = self._last_s + self._settings.worker_grace_s
        out.append(Note("worker_lost", {"worker": worker, "why": why}))
        out.append(ClosePeer(worker, fence=True, why=why))
        self._remember(out)
        for driver in self._drivers.values():
            if driver.worker == worker:
                driver.worker, driver.away = None, (entry.offer.host, until_s)
        for app_id, app in list(self._apps.items()):
            had = app.granted.pop(worker, None)
            app.shunned.pop(worker, None)
            if app.releasing is not None:
                app.releasing.discard(worker)
                self._released(app_id, app, out)
            elif had is not None:
                if self._settings.worker_grace_s:
                    app.away[entry.offer.host] = had, until_s
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
        self._give_back(app.granted, app)
        if app.told:
            out.append(Send(app.wish.driver, AppUnregistered(app_id)))
        if not any(other.wish.driver == app.wish.driver for other in self._apps.values()):
            out.append(ClosePeer(app.wish.driver, fence=False, why="its application has ended"))
        if app.successor is not None:
            self._register_app(app.successor, out)
        self._grant_all(out)

    # --- For tests and simulation ------------------------------------------------------------

    def check_invariants(self) -> None:
        for name, worker in self._workers.items():
            shares = [(app.granted.get(name, 0), *app.size) for app in self._apps.values()]
            shares += worker.kept.values()
            shares += [(1, *driver.size) for driver in self._drivers.values() if driver.worker == name]
            cores = sum(count * each for count, each, _ in shares)
            size_bytes = sum(count * each for count, _, each in shares)
            assert worker.free_cores == worker.offer.cores - cores
            assert worker.free_bytes == worker.offer.memory_bytes - size_bytes
            assert worker.kept or worker.offer.drivers or (worker.free_cores >= 0 and worker.free_bytes >= 0)
        assert len({worker.offer.host for worker in self._workers.values()}) == len(self._workers)
        assert self._grants_from_s is None or self._awaited
        for app in self._apps.values():
            assert app.granted.keys() <= self._workers.keys() and app.shunned.keys() <= self._workers.keys()
            assert not app.wish.executors or app.lacking >= 0
            assert app.releasing is None or app.releasing, "a released application is forgotten at once"
