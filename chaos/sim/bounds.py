"""How soon something has to be known, and what must not be believed: time as the world knows it.

The shadow (shadow.py) checks what a step says; this checks what should have been said by now, or was said
too soon.  Each bound holds only where the world knows of nothing that stood in the way: a frame that was
lost or late, a process that stood still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.sim.network import ALIVE
from chaos.sim.violation import ViolationError
from spark_ft.ids import HostId, Incarnation, TaskId
from spark_ft.protocol.effects import Effect, Note
from spark_ft.protocol.messages import Message, WorkerBeat

if TYPE_CHECKING:
    from chaos.sim.account import Tried
    from chaos.sim.executor import Executor
    from chaos.sim.network import Process
    from chaos.sim.world import World

_TOLD_S = 1.0  # a death that its parent has seen is known to the driver within
_CALM_S = 6.0  # a link has recovered from what happened before
_KILL_ANSWER_S = 5.0 + 0.5 + 1.0  # patience with a task, until the next sweep, and what the way takes
_STALL_S, _EARLY_S = 2.6, 0.6  # a stall is noticed when it is so long; all of it but so much


class Bounds:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._heard: dict[Incarnation, float] = {}
        self._computed: dict[Incarnation, tuple[float, float]] = {}  # CPU seconds, and since when so many
        self._killed: dict[TaskId, tuple[Tried, float]] = {}
        self._stopped: set[Incarnation] = set()  # executors that are known to do nothing they are told
        self._cut: set[Incarnation] = set()  # … to hear nothing
        self._heirless: dict[HostId, float] = {}  # since when hosts wait for a worker's heir
        self._heeds_since: dict[Incarnation, float] = {}

    # --- What the driver hears and says ---

    def heard(self, sender: Incarnation, message: Message) -> None:
        now_s = self._heard[sender] = self._world.clock.now_s
        if type(message) is WorkerBeat:
            for executor, cpu_s, _ in message.executors:
                if cpu_s > self._computed.get(executor, (-1.0, 0.0))[0]:
                    self._computed[executor] = cpu_s, now_s

    def stopped(self, executor: Incarnation, stopped: bool) -> None:
        (self._stopped.add if stopped else self._stopped.discard)(executor)
        self._heeds_since[executor] = self._world.clock.now_s

    def cut_off(self, executor: Incarnation, cut: bool) -> None:
        (self._cut.add if cut else self._cut.discard)(executor)
        self._heeds_since[executor] = self._world.clock.now_s

    def killed(self, attempt: Tried) -> None:
        self._killed[attempt.task] = attempt, self._world.clock.now_s

    # --- What is believed too soon ---

    def awake_s(self, since_s: float) -> float:
        """How long ago that was, stalls of the driver not counted (CLK-4)."""
        awake_s = self._world.clock.now_s - since_s
        for begun_s, ended_s in reversed(self._world.driver.stalls):
            if ended_s <= since_s:
                break
            if ended_s - begun_s > _STALL_S:
                awake_s -= ended_s - begun_s - _EARLY_S
        return awake_s

    def _check_silent(self, who: Incarnation) -> None:
        limit_s, heard_s = self._world.options.settings.silence_s, self._heard.get(who)
        if heard_s is not None and self.awake_s(heard_s) < limit_s:
            raise ViolationError("CLK-4", f"{who} is given up as silent; the driver itself stood still")

    def executor_given_up(self, executor: Incarnation, why: str) -> None:
        if "was silent" in why or "told of no exit" in why:
            self._check_silent(executor)
        if "nobody has taken its place" in why:
            self._check_heir(executor)
        if "was silent and not busy" not in why or executor not in self._computed:
            return
        if self.awake_s(self._computed[executor][1]) < self._world.options.settings.silence_s:
            raise ViolationError("EX-9", f"{executor} is given up although its worker saw it compute")

    def heir_served(self, host: HostId) -> None:
        self._heirless.pop(host, None)

    def _check_heir(self, executor: Incarnation) -> None:
        """Whoever may still find an heir to its worker is not given up for want of one (WK-1)."""
        since_s = self._heirless.get(self._world.executors[executor].host)
        if since_s is not None and self.awake_s(since_s) < self._world.options.settings.worker_grace_s - 0.1:
            raise ViolationError("WK-1", f"{executor} is given up, and an heir of its worker may still come")

    def worker_given_up(self, worker: Incarnation, why: str) -> None:
        shadow = self._world.shadow
        host = shadow.workers.get(worker)
        if host is not None and worker in shadow.leaving:
            self._heirless.pop(host, None)  # who has left in order has no heir
        elif host is not None and not any(h == host and w != worker for w, h in shadow.workers.items()):
            self._heirless.setdefault(host, self._world.clock.now_s)
        if why.startswith("nothing was heard"):
            self._check_silent(worker)

    # --- What is known too late ---

    def executor_died(self, executor: Executor) -> None:
        """Its worker lives, and has said hello to the driver: that is told at once (EX-1)."""
        if self._world.probe_s(executor) < 0.1 and executor.worker.me in self._world.shadow.workers:
            self._world.clock.after(_TOLD_S, self._check_told, executor)

    def _check_told(self, executor: Executor) -> None:
        world = self._world
        if executor.me not in world.driver.scheduler.executors.live or executor.died_s is None:
            return
        if world.quiet(executor.worker, world.driver, executor.died_s - _CALM_S):
            raise ViolationError("EX-1", f"{executor.me} is dead for {_TOLD_S} s, and nobody said so")

    def manager_says(self, effects: list[Effect]) -> None:
        """A worker that the manager has given up is given up by the driver: its cores go to others (WK-2)."""
        for effect in effects:
            if type(effect) is Note and effect.kind == "worker_lost":
                lost: Incarnation = effect.fields["worker"]  # type: ignore[assignment]
                about = lost, self._world.clock.now_s, self._world.manager
                self._world.clock.after(_TOLD_S, self._check_agreed, about)

    def _check_agreed(self, item: tuple[Incarnation, float, Process]) -> None:
        world, (worker, lost_s, manager) = self._world, item
        if worker not in world.driver.scheduler.executors.workers:
            return
        if world.quiet(manager, world.driver, lost_s - _CALM_S):
            raise ViolationError("WK-2", f"the manager has given up {worker}, and the driver counts on it")

    def manager_died(self, manager: Process) -> None:
        """That is said, for whoever asks why nothing new is granted (CM-1)."""
        world = self._world
        limit_s = _TOLD_S if world.options.watched else world.options.settings.silence_s * 1.1 + _TOLD_S
        world.driver.own(limit_s, self._check_missed, (manager, limit_s))

    def _check_missed(self, item: tuple[Process, float]) -> None:
        world, granter = self._world, self._world.driver.scheduler.granter
        manager, limit_s = item
        if granter._manager != manager.me or granter._lost_s is not None:
            return
        silent_s = world.clock.now_s - max(world.driver.resumed_s, world.driver.last_heard_s(manager.me))
        if silent_s < limit_s and not world.options.watched:  # something of it was long on its way
            world.driver.own(limit_s - silent_s, self._check_missed, item)
        elif world.driver.resumed_s < (manager.died_s or 0.0):
            raise ViolationError("CM-1", f"{manager.me} is dead, and nobody says so")

    # --- At every look ---

    def check(self) -> None:
        """A task that does not answer its cancelling costs its process (EX-15)."""
        world, driver = self._world, self._world.driver
        if not self._killed or driver.state != ALIVE:
            return
        for task, (attempt, since_s) in list(self._killed.items()):
            executor = attempt.executor
            if world.executors[executor].worker.me not in world.shadow.workers:
                self._heeds_since[executor] = world.clock.now_s  # an orphan: nobody can kill it
            if attempt.ended or executor in world.shadow.away:
                del self._killed[task]
            elif executor not in self._stopped and executor not in self._cut:
                since_s = max(since_s, driver.resumed_s, self._heeds_since.get(executor, -1.0))
                if world.clock.now_s - since_s > _KILL_ANSWER_S:
                    raise ViolationError("EX-15", f"task {task} on {executor} was told to stop, and goes on")
