"""Simulated worker and manager processes: the real cores, with children that the world plays."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from chaos.sim.disk import FATAL, Block, Output
from chaos.sim.executor import Executor
from chaos.sim.network import ALIVE, DEAD, Process
from spark_ft.cluster.manager import ManagerCore
from spark_ft.cluster.worker import WorkerCore
from spark_ft.ids import HostId, Incarnation, NodeId, TaskId
from spark_ft.protocol.effects import (
    AskStacks,
    ChildExited,
    ChildrenSeen,
    ChildSpawned,
    ChildStopped,
    Connect,
    Copy,
    CopyEnded,
    DropStores,
    Effect,
    Exit,
    Forget,
    GranterMoved,
    Inherited,
    KillProcess,
    Measure,
    Remember,
    SpawnExecutor,
    StacksDumped,
    WatchProcess,
)
from spark_ft.protocol.messages import CopyMade, CopyOrder, SegmentTouched

if TYPE_CHECKING:
    from chaos.sim.world import World

_SIGHUP, _SIGKILL = 1, 9
_SPAWN_S, _SIGNAL_S, _REAP_S, _COLLECT_S, _COPY_S = 0.03, 0.001, 0.002, 1.0, 0.02


class Worker(Process):
    """One worker; it serves the blocks of its host while it is alive and not stopped."""

    role = "worker"

    def __init__(self, world: World, me: Incarnation, host: HostId, granter: Incarnation) -> None:
        options = world.options
        core = WorkerCore(
            me, host, world.peek_index() + 1, options.executors * options.slots, options.executors, granter,
            options.settings, has_manager=options.managed, data_endpoint=me, root=f"/{host}",
        )  # fmt: skip
        super().__init__(world, me, host, core)
        self.host, self.granter = host, granter
        self.worker_core = core
        self.silence_s = options.settings.silence_s
        self.children: dict[Incarnation, Executor] = {}
        self.hosts: dict[HostId, str] = {}
        self._orders: deque[tuple[Incarnation, CopyOrder]] = deque()
        self._touched: dict[Incarnation, tuple[SegmentTouched, ...]] = {}  # what the dead have died in
        self._made: dict[int, tuple[NodeId | None, bytes | TaskId]] = {}  # copies by number of the order
        self.connect(granter)

    def perform(self, effect: Effect) -> None:
        match effect:
            case SpawnExecutor():
                self.own(_SPAWN_S, self._spawned, effect)
            case KillProcess(executor, signal):
                self.world.clock.after(_SIGNAL_S, self._signalled, (executor, signal))
            case Copy(owner, orders, hosts):
                self.hosts.update(hosts)
                self._orders.extend((owner, order) for order in orders)
                self.own(_COPY_S, self._copy)
            case Forget(nodes=nodes, copies=numbers):
                self._forget(set(nodes), set(numbers))
            case AskStacks(executor):
                self.own(0.05, self._stacks, executor)
            case Measure():
                rows = tuple((c.me, c.cpu_s(), c.is_seen_stopped) for c in self.children.values())
                said = tuple((c.me, c.said) for c in self.children.values())
                self.post(ChildrenSeen(rows, 1 << 30, said))
                self._collect()
            case DropStores(app, fingerprints):
                self.own(_COLLECT_S if app is None else 0.0, self._drop, (app, set(fingerprints)))
            case Connect(to):
                self.connect(to)
            case WatchProcess(peer, pid):
                if pid > 0:
                    self.world.watch(self, peer)
            case Exit():
                self.world.worker_died(self)
            case _:
                assert_never(effect)  # type: ignore[arg-type]  # no worker asks for anything else

    def moved(self, granter: Incarnation) -> None:
        """It is told of another manager."""
        if self.granter != granter:
            self.granter = granter
            self.post(GranterMoved(granter, "manager"))

    def _spawned(self, effect: SpawnExecutor) -> None:
        world = self.world
        executor = Executor(world, effect.executor, self, effect.assignment)
        self.children[executor.me] = executor
        self.post(ChildSpawned(executor.me, executor.pid))
        world.reached("born", executor)
        if world.starts_fail(self.host):
            world.clock.after(0.05, lambda _: executor.end(1, 0))
        else:
            executor.begin()

    def die_serving(self, store: str) -> None:
        """It was to send what ends whoever reads it."""
        if self.state == ALIVE:
            self.world.died_in.setdefault(self.host, []).append(store)
            self.world.worker_died(self)

    def _examine(self, store: str) -> tuple[SegmentTouched, ...]:
        """What somebody has died in is read by a disposable child, and taken out of use if that dies, too."""
        found = self.world.disk(self.host).stores.get(store)
        if found is None:
            return ()
        told = SegmentTouched(self.host, store, found.segment, found.is_fatal)
        if told.damaged:
            found.condemn()
        return (told,)

    def take_over(self) -> Inherited:
        """What the worker before it has left: executors that live, and stores as far as they verify: every
        byte when the machine was booted since."""
        everybody = [e for e in self.world.executors.values() if e.host == self.host]
        heirlooms = [e for e in everybody if e.state != DEAD]
        for store in self.world.died_in.pop(self.host, ()):
            self._examine(store)
        for executor in heirlooms:
            executor.worker, executor.adopted = self, True
            self.children[executor.me] = executor
        disk, outputs = self.world.disk(self.host), []
        for name, store in disk.stores.items():
            if name not in self.children:
                store.sealed = True
                found = store.outputs.values()
                outputs += [o.status for o in found if not (o.damage and disk.rebooted)]
        disk.rebooted = False
        return Inherited(tuple((e.me, e.driver) for e in heirlooms), tuple(outputs), tuple(disk.stores))

    def _stacks(self, executor: Incarnation) -> None:
        child = self.children.get(executor)
        self.post(
            StacksDumped(executor, "it stands here" if child is not None and child.state == ALIVE else "")
        )

    def _signalled(self, item: tuple[Incarnation, int]) -> None:
        child = self.children.get(item[0])
        if child is not None and not (item[1] == _SIGHUP and self.world.is_deaf_to_hangup(child)):
            child.end(0, item[1])

    def reap(self, executor: Executor, status: int, signal: int) -> None:
        """The kernel tells of a child's end; its store is probed, then the core hears of it."""
        how = (-1, 0) if executor.adopted else (status, signal)  # it was not our child
        self.own(_REAP_S, self._reaped, (executor, *how))

    def _reaped(self, item: tuple[Executor, int, int]) -> None:
        executor = item[0]
        self.children.pop(executor.me, None)
        if executor.died_in:
            self._touched[executor.me] = self._examine(executor.died_in)
        store = self.world.disk(self.host).stores.get(executor.me)
        if store is not None:
            store.sealed = True
            self.own(self.world.probe_s(executor), self._probed, item)
        else:
            self._probed(item)

    def _probed(self, item: tuple[Executor, int, int]) -> None:
        executor, status, signal = item
        store = self.world.disk(self.host).stores.get(executor.me)
        outputs = () if store is None else tuple(o.status for o in store.outputs.values() if not o.damage)
        running = tuple(executor.running) if executor.welcomed else None  # its marks
        oom = executor.oom and signal == _SIGKILL
        touched = self._touched.pop(executor.me, ())
        welcomed = executor.welcomed
        self.post(
            ChildExited(executor.me, status, signal, "", outputs, welcomed, running, oom, touched=touched)
        )

    def child_stopped(self, executor: Executor, stopped: bool) -> None:
        self.own(_REAP_S, self._child_stopped, (executor, stopped))

    def _child_stopped(self, item: tuple[Executor, bool]) -> None:
        if item[0].state != DEAD:
            self.post(ChildStopped(item[0].me, item[1]))

    # --- Copies ---

    def _copy(self, _: None) -> None:
        """One order after the other, in a thread of its own."""
        if not self._orders:
            return
        owner, order = self._orders.popleft()
        self.post(CopyEnded(owner, self._carry_out(order)))
        if self._orders:
            self.own(_COPY_S, self._copy)

    def _carry_out(self, order: CopyOrder) -> CopyMade:
        world, disk, now_s = self.world, self.world.disk(self.host), self.world.clock.now_s
        block = order.cached.block if order.cached is not None else None
        source = order.output.host if order.output is not None else block.host  # type: ignore[union-attr]
        trouble = world.way_to(self.machine, source, self.hosts.get(source, ""))
        if trouble:
            return CopyMade(order.number, evidence=trouble)
        if now_s < disk.full_until_s:
            return CopyMade(order.number, evidence="STORAGE_FULL", text="disk full")
        store = disk.store(self.me)
        if order.output is not None:
            original = order.output
            found = world.disk(source).output(original.store, original.attempt, order.fingerprint)
            if found == FATAL:
                found = self._ask_in_vain(source, original.store)
            if isinstance(found, str):
                return CopyMade(order.number, evidence=found)
            status = replace(original, host=self.host, store=self.me, accums=())
            store.outputs[original.attempt] = Output(status, order.fingerprint, found.content, now_s)
            self._made[order.number] = None, original.attempt
            return CopyMade(order.number, output=status)
        assert order.cached is not None and block is not None
        held = world.disk(source).block(block.store, block.key)
        if held == FATAL:
            held = self._ask_in_vain(source, block.store)
        if isinstance(held, str):
            return CopyMade(order.number, evidence=held)
        store.blocks[block.key] = Block(held.content, now_s)
        self._made[order.number] = order.cached.node, block.key
        ref = replace(block, host=self.host, store=self.me)
        return CopyMade(order.number, cached=replace(order.cached, block=ref))

    def _ask_in_vain(self, host: HostId, store: str) -> str:
        self.world.workers[host].die_serving(store)
        return "refused"

    def _forget(self, nodes: set[NodeId], numbers: set[int]) -> None:
        store = self.world.disk(self.host).stores.get(self.me)
        for number, (node, key) in list(self._made.items()):
            if node in nodes or number in numbers:
                del self._made[number]
                if store is not None:
                    store.outputs.pop(key, None)  # type: ignore[arg-type]
                    store.blocks.pop(key, None)  # type: ignore[arg-type]

    def _drop(self, item: tuple[str | None, set[bytes]]) -> None:
        app, fingerprints = item
        disk = self.world.disk(self.host)
        if app is not None:
            disk.stores.clear()
            return
        disk.expired |= fingerprints  # type: ignore[arg-type]
        if (own := disk.stores.get(self.me)) is not None:
            own.drop(fingerprints)
        self._collect()

    def _collect(self) -> None:
        """Give back the space of what dead executors have written and nobody needs; a live one's store is its
        writer's business."""
        disk = self.world.disk(self.host)
        if not disk.expired:
            return
        writers = {self.me, *self.children}
        dead = [name for name in disk.stores if name not in writers]
        for name in dead:
            disk.stores[name].drop(disk.expired)


class Manager(Process):
    """The manager."""

    role = "manager"
    router = True

    def __init__(self, world: World, me: Incarnation) -> None:
        core = ManagerCore(me, world.options.settings, world.remembered)
        super().__init__(world, me, "manager", core)
        self.manager_core = core

    def perform(self, effect: Effect) -> None:
        match effect:
            case WatchProcess(peer, pid):
                if pid > 0 and self.world.options.watched:
                    self.world.watch(self, peer)
            case Remember(hosts):
                self.world.remembered = hosts
            case _:
                assert_never(effect)  # type: ignore[arg-type]  # no manager asks for anything else
