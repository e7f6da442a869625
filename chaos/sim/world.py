"""The world of one history: cluster, disks, network and user around the cores, and what is true of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, get_args

from chaos.sim import size
from chaos.sim.actions import Actions
from chaos.sim.again import Heard
from chaos.sim.blame import Blame
from chaos.sim.bounds import Bounds
from chaos.sim.clock import Clock
from chaos.sim.disk import Disk
from chaos.sim.driver import Driver, Handle, make_driver
from chaos.sim.excluded import Excluded
from chaos.sim.executor import Executor, Run
from chaos.sim.judge import judge
from chaos.sim.lively import Lively
from chaos.sim.network import ALIVE, DEAD, Network, Process
from chaos.sim.options import Options
from chaos.sim.program import Content, Lineage, grow
from chaos.sim.shadow import Shadow
from chaos.sim.violation import ViolationError
from chaos.sim.worker import Manager, Worker
from spark_ft.ids import HostId, Incarnation, NodeId, TaskId
from spark_ft.protocol import messages
from spark_ft.protocol.effects import (
    Effect,
    Event,
    PeerGone,
    Received,
    ResourcesGranted,
)
from spark_ft.protocol.messages import AssignExecutors, InlineResult, LaunchTasks, StoredResult

_KINDS: dict[type, int] = {kind: i for i, kind in enumerate([*get_args(Event), *get_args(messages.Message)])}
CHECK_EVERY = 50  # steps between two looks at all invariants of all cores
AGAIN_EVERY = 16  # histories, of which one is heard by other cores in the end


class World:
    """``step`` is the one way in which a core handles anything."""

    def __init__(self, seed: int, options: Options, *, log: list[str] | None = None) -> None:
        self.seed, self.options = seed, options
        self.clock = Clock()
        self.network = Network(self, Random(f"{seed}/network"), options.latency_s)
        self.steps = 0
        self.kinds: Counter[str] = Counter()
        self.marks: Counter[str] = Counter()
        self.hash = seed
        self._log = log
        self._count = 0
        self._offsets: dict[str, float] = {}
        rng = Random(f"{seed}/program")
        self.lineage = Lineage()
        self.programs = [grow(self.lineage, options, rng) for _ in range(options.programs)]
        self.disks: dict[HostId, Disk] = {}
        self.contents: dict[TaskId, Content] = {}  # what each attempt has computed
        self.traps: dict[str, list[Callable[[Process | None], None]]] = {}
        self.gate: Callable[[Run], bool] | None = None  # whether an attempt has to wait before it reads
        self.fates: list[str] = []  # of the tasks that begin next
        self.struck: Counter[str] = Counter()  # fates that have met their task
        self.died_in: dict[HostId, list[str]] = {}  # stores that ended somebody while no worker was there
        self.deaths: Counter[tuple[int, int]] = Counter()  # (stage, partition): processes that ended under it
        self.own_deaths: Counter[tuple[int, int]] = Counter()  # … by its own doing
        self.slow: dict[str, float] = {}  # machine or executor -> factor
        self.sick: set[str] = set()  # machines and executors on which tasks fail
        self.bad_starts_until: dict[str, float] = {}
        self.slow_probe_until_s = -1.0
        self.ended: Counter[str] = Counter()  # jobs by how they ended
        self.finished_jobs = 0
        self.healed = False
        self.driver: Driver = make_driver(self)
        self.bounds = Bounds(self)
        self.blame = Blame(self)
        self.excluded = Excluded(self)
        self.shadow = Shadow(self, self.driver.scheduler)
        self.lively = Lively(self)
        self.heard: list[Heard] | None = [] if seed % AGAIN_EVERY == 3 else None  # by the driver's core
        self.actions = Actions(self)
        self.released_programs: set[int] = set()  # the user has let go of them
        self.manager: Manager | None = None
        self.remembered: tuple[HostId, ...] = ()  # by managers, of hosts with a worker
        self.workers: dict[HostId, Worker] = {}  # the newest of each host
        self.executors: dict[Incarnation, Executor] = {}
        self._worker_count = 0
        self._build()

    # --- The cluster ---

    def _build(self) -> None:
        options = self.options
        if options.managed:
            self._start_manager()
        for index in range(options.hosts):
            self.start_worker(HostId(f"h{index}"))
        if self.manager is None:
            self.driver.post(ResourcesGranted(options.hosts * options.executors))
        self.driver.begin()

    def _start_manager(self) -> None:
        """A manager begins, and the driver asks it for executors."""
        before, count = self.manager, self.options.hosts * self.options.executors
        number = 0 if before is None else int(before.me.rpartition("-")[2]) + 1
        self.manager = Manager(self, Incarnation(f"manager-{number}"))
        self.driver.register(self.manager.me)
        if self.options.watched:
            self.watch(self.driver, self.manager.me)
        self.driver.post(ResourcesGranted(count, self.manager.me))

    def replace_manager(self, told_s: Callable[[], float]) -> None:
        """Another manager takes the place of a dead one; workers are told in any order (CM-2)."""
        if self.manager is None or self.manager.state != DEAD or self.driver.state == DEAD:
            return
        self._start_manager()
        for host in sorted(self.workers):
            worker = self.workers[host]
            if worker.state != DEAD and worker.granter != self.manager.me:
                self.clock.after(told_s(), self._move, worker)

    def _move(self, worker: Worker) -> None:
        if self.manager is not None and worker.state != DEAD:
            worker.moved(self.manager.me)

    def start_worker(self, host: HostId) -> None:
        """A worker of this host begins, as whoever keeps the cluster up sees to."""
        known = self.workers.get(host)
        if known is not None and known.state != DEAD:
            return
        self._worker_count += 1
        me = Incarnation(f"worker-{host}-{self._worker_count}")
        granter = self.manager.me if self.manager is not None else self.driver.me
        worker = self.workers[host] = Worker(self, me, host, granter)
        if self.options.watched:
            self.watch(self.driver, me)
        worker.post(worker.take_over())
        if self.manager is None:
            options = self.options
            each = options.executors, options.slots, options.slots
            wish = AssignExecutors(self.driver.app, self.driver.me, "driver", self.driver.pid, *each)
            worker.post(Received(self.driver.me, wish))
        worker.begin()

    def disk(self, host: HostId) -> Disk:
        disk = self.disks.get(host)
        if disk is None:
            disk = self.disks[host] = Disk()
        return disk

    def next_index(self) -> int:
        self._count += 1
        return self._count - 1

    def peek_index(self) -> int:
        return self._count

    def offset_of(self, machine: str) -> float:
        """How far ahead this machine's clock is: no two agree."""
        if machine not in self._offsets:
            self._offsets[machine] = 100.0 + 37.0 * len(self._offsets)
        return self._offsets[machine]

    def watch(self, watcher: Process, peer: Incarnation) -> None:
        """The kernel tells ``watcher`` of the end of this process."""
        process = self.network.processes.get(peer)
        if process is None:
            watcher.own(0.001, watcher.post, PeerGone(peer, "its process has ended"))
        elif watcher not in process.watchers:
            process.watchers.append(watcher)

    def died(self, process: Process) -> None:
        """It is dead: the kernel tells those who watch it."""
        for watcher in process.watchers:
            watcher.own(0.002, watcher.post, PeerGone(process.me, "its process has ended"))

    def executor_died(self, executor: Executor, status: int, signal: int) -> None:
        for run in executor.running.values():
            self.deaths[(run.of.launch.stage, run.launch.partition)] += 1
        worker = executor.worker
        self.died(executor)
        if worker.state != DEAD:
            worker.reap(executor, status, signal)
            self.bounds.executor_died(executor)
        elif executor.died_in:
            self.died_in.setdefault(executor.host, []).append(executor.died_in)

    def worker_died(self, worker: Worker) -> None:
        """Its executors are orphans: the pipe that only it holds comes to its end, and they go on (WK-1)."""
        if not worker.die():
            return
        self.died(worker)
        for executor in list(worker.children.values()):
            executor.own(0.001, executor.post, PeerGone(worker.me, "its lifeline has ended"))
        delay_s = 0.5 if self.options.watched else 3.0
        self.clock.after(delay_s, self._replace_worker, worker.host)

    def end_host(self, host: HostId) -> bool:
        """All its processes end at once; whether there were any."""
        found = [process for process in self.network.processes.values() if process.machine == host]
        self.worker_died(self.workers[host])
        for process in found:
            if isinstance(process, Executor):
                process.end(0, 9)
        return bool(found)

    def lose_host(self, host: HostId) -> bool:
        """… and its disks are gone."""
        ended = self.end_host(host)
        self.disk(host).stores.clear()
        return ended

    def end_worker(self, me: Incarnation) -> None:
        """The driver has given a worker up: whoever keeps the cluster up ends what is left of it."""
        for worker in self.workers.values():
            if worker.me == me:
                self.worker_died(worker)

    def _replace_worker(self, host: HostId) -> None:
        if self.driver.state != DEAD:
            self.start_worker(host)

    def alive(self, kind: type[Process]) -> list[Any]:
        """Live processes of a kind, oldest first."""
        return [p for p in self.network.processes.values() if isinstance(p, kind)]

    # --- Steps ---

    def step(self, process: Process, event: Event) -> list[Effect]:
        """One event is handled by one core, and what it did is checked."""
        self.steps += 1
        now_s = self.clock.now_s
        kind = type(event.message) if type(event) is Received else type(event)
        if process is self.driver:
            if self.heard is not None:
                self.heard.append((now_s + process.offset_s, event))
            self.shadow.before(event)
            effects = process.core.handle(event, now_s + process.offset_s)
            self.shadow.after(event, effects)
        else:
            effects = process.core.handle(event, now_s + process.offset_s)
            if process is self.manager:
                self.bounds.manager_says(effects)
        self.hash = hash((self.hash, now_s, process.index, _KINDS[kind], len(effects)))
        if self._log is not None:
            self._log.append(f"{self.steps} {now_s:.6f} {process.me} {event!r} -> {effects!r}")
        if self.steps % CHECK_EVERY == 0:
            self.check()
            if self.steps % (20 * CHECK_EVERY) == 0:
                self.check_size()
        return effects

    def note(self, text: str) -> None:
        """Something that the world did, for the history."""
        if self._log is not None:
            self._log.append(f"{self.steps} {self.clock.now_s:.6f} world {text}")

    def check(self) -> None:
        """All invariants of all cores."""
        self.driver.scheduler.check_invariants()
        for process in self.network.processes.values():
            if isinstance(process, Executor):
                process.executor_core.check_invariants(self.clock.now_s + process.offset_s)
            elif isinstance(process, Worker):
                process.worker_core.check_invariants()
        if self.manager is not None:
            self.manager.manager_core.check_invariants()
        self.bounds.check()
        self.lively.check()
        self._check_detection()

    def check_size(self) -> None:
        """The driver keeps in mind what is there, and not what was (S29)."""
        answers = self.shadow.answers
        told = (*answers.open_jobs.values(), *answers.held.values())
        tasks = sum(len(t.partitions) + sum(s.map_count for s in t.shape.shuffles.values()) for t in told)
        size.check(self.driver.scheduler, tasks)

    def _check_detection(self) -> None:
        """A dead process is not believed to live for long (L4): not longer than silence is borne, in time in
        which the driver was awake."""
        scheduler = self.driver.scheduler
        if self.driver.state != ALIVE:
            return
        bound_s = 2 * self.options.settings.lost_after_s + 2.0
        awake_s = scheduler.turn.now_s
        for executor in scheduler.executors.live.values():
            process = self.executors.get(executor.id)
            if process is None or process.died_s is None:
                continue
            if awake_s - executor.heard_s > bound_s and self.clock.now_s - process.died_s > bound_s:
                raise ViolationError(
                    "L4", f"{executor.id} is dead for {self.clock.now_s - process.died_s:.1f} s"
                )

    def quiet(self, one: Process, other: Process, since_s: float) -> bool:
        """Whether nothing has kept these two from hearing each other since then."""
        if any(process.state != ALIVE or process.resumed_s >= since_s for process in (one, other)):
            return False
        ways = (one.machine, other.machine), (other.machine, one.machine)
        return all(self.network.trouble_s.get(way, -1.0) < since_s for way in ways)

    def violated(self, id: str, text: str) -> None:
        raise ViolationError(id, text)

    # --- Chance, from the seed alone ---

    def draw(self, what: int, id: int) -> int:
        """A number for a thing: the same whatever else happens."""
        return (hash((self.seed, what, id, 7919)) >> 7) & 0xFFFFFFFF

    def chance(self, what: int, id: int) -> float:
        return self.draw(what, id) / 4294967296.0

    # --- What is true ---

    def root_of(self, launch: LaunchTasks) -> NodeId:
        """The node that a stage computes."""
        if launch.output is not None:
            return self.lineage.shuffles[launch.output.shuffle].parent
        return self.driver.handles[launch.blob].target  # type: ignore[index]  # a job's blob has its number

    def attempt_of(self, result: InlineResult | StoredResult) -> TaskId:
        if isinstance(result, StoredResult):
            return TaskId(result.block.size_bytes)
        return TaskId(int(result.payload))

    def lease_of(self, executor: Incarnation) -> float:
        """For how long this executor still believes that it holds a lease; 0 when it is dead."""
        process = self.executors.get(executor)
        if process is None or process.state == DEAD:
            return 0.0
        return process.executor_core._lease_end_s - self.clock.now_s - process.offset_s

    def way_to(self, machine: str, host: HostId, endpoint: str) -> str:
        """Why the blocks of a host cannot be reached from a machine; empty when they can."""
        if machine == host:
            return ""
        worker = self.workers.get(host)
        if worker is None or worker.state == DEAD or worker.me != endpoint:
            return "refused"
        if worker.state != ALIVE:
            return "timeout"
        cut = self.network.is_cut
        return "timeout" if cut(machine, host) or cut(host, machine) else ""

    def duration_of(self, executor: Executor, run: Run) -> float:
        spread = self.chance(1, run.launch.task)
        whole_s = self.options.task_s * (0.3 + spread + (20.0 if spread > 0.99 else 0.0))
        factor = max(self.slow.get(executor.machine, 1.0), self.slow.get(executor.me, 1.0))
        return min(whole_s * factor, 20.0)

    def rounds_of(self, run: Run) -> int:
        """How often the tasks of its stage meet."""
        return self.draw(10, run.of.launch.stage) % 3 if run.of.launch.gang else 0

    def fate_of(self, executor: Executor, run: Run) -> tuple[str, bool]:
        """How an attempt that begins now is to fail, and whether it is deaf to interrupts."""
        root = self.root_of(run.of.launch)
        if (fate := self.lineage.poison.get((root, run.launch.partition))) is not None:
            return fate, False
        if executor.me in self.sick or executor.machine in self.sick:
            self.struck["sick"] += 1
            return "raise", False
        if not self.fates:
            return "", False
        fate = self.fates.pop(0)
        self.struck[fate] += 1
        return ("hang", True) if fate == "hang" else ("", True) if fate == "deaf" else (fate, False)

    def died_by_task(self, executor: Executor) -> None:
        """It ends its process; whoever shares that, in another slot, shares the blame."""
        for run in executor.running.values():
            self.own_deaths[(run.of.launch.stage, run.launch.partition)] += 1

    def is_deaf_to_hangup(self, executor: Executor) -> bool:
        """Some code that runs there has seen to that."""
        return self.chance(9, executor.index) < 0.3

    def starts_fail(self, host: HostId) -> bool:
        return self.clock.now_s < self.bad_starts_until.get(host, -1.0)

    def probe_s(self, executor: Executor) -> float:
        late = 3.0 if self.clock.now_s < self.slow_probe_until_s else 0.02
        return late * (0.5 + self.chance(6, executor.index))

    def reached(self, mark: str, process: Process | None) -> None:
        """Something has happened that a trap may wait for."""
        if self.traps and (waiting := self.traps.get(mark)):
            waiting.pop(0)(process)
            if not waiting:
                del self.traps[mark]

    def judge(self, handle: Handle) -> None:
        """A job has ended and its results have been read."""
        self.finished_jobs += 1
        self.ended[handle.failure.condition if handle.failure else "ok"] += 1
        judge(self, handle)
        if handle.failure is None:
            self.actions.answered(handle)
