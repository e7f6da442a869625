"""Decisions: what the user and the faults do, when; each drawn beforehand, so that any can be left out.

A decision is (time, kind, draw): at its time the kind's method chooses a target among what there is then,
by a generator of its own made from ``draw``.  So leaving one out changes the others as little as can be,
and a failing history shrinks to the few that matter.  A method answers whether its fault took effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from chaos.sim.disk import FATAL
from chaos.sim.executor import Executor
from chaos.sim.network import ALIVE, DEAD, Noise, Process
from chaos.sim.options import Options
from spark_ft.ids import HostId, NodeId, ShuffleId, TaskId
from spark_ft.protocol.effects import Received
from spark_ft.protocol.messages import Success, TaskEnd, TaskUpdates

if TYPE_CHECKING:
    from chaos.sim.world import World

USER = {"submit": 0, "cancel": 2, "abandon": 1, "unpersist": 2, "release": 2}  # weights beside the faults


@dataclass(frozen=True, slots=True)
class Decision:
    """``number`` names it for shrinking: its place among all that were drawn."""

    number: int
    at_s: float
    kind: str
    draw: int

    def __str__(self) -> str:
        return f"#{self.number} at {self.at_s:.3f} s: {self.kind} ({self.draw})"


def plan(options: Options, rng: Random) -> list[Decision]:
    """All decisions of a history, in order of time."""
    found: list[tuple[float, str]] = []
    horizon_s = options.horizon_s
    for index in range(options.jobs):
        early = index == 0 or rng.random() < 0.3
        found.append((0.2 + (rng.random() * 0.5 if early else rng.random() * horizon_s * 0.8), "submit"))
    weights = {**options.weights, **{kind: weight for kind, weight in USER.items() if weight}}
    if weights:
        for kind in rng.choices(list(weights), list(weights.values()), k=options.faults):
            found.append((0.3 + rng.random() * (horizon_s - 0.3), kind))
    found.sort()
    return [Decision(i, at_s, kind, rng.getrandbits(32)) for i, (at_s, kind) in enumerate(found)]


class Nemesis:
    """Plays decisions upon a world.  ``took`` counts those that took effect, by kind."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.took: Counter[str] = Counter()
        self.idle: Counter[str] = Counter()  # those that found nothing to do
        self._noises: list[tuple[str, Noise]] = []
        self._cuts: list[tuple[str, list[int]]] = []

    def plan(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.world.clock.at(decision.at_s, self._play, decision)

    def _play(self, decision: Decision) -> None:
        self.world.steps += 1
        self.world.note(f"decision {decision}")
        act: Callable[[Random], bool | None] = getattr(self, f"_{decision.kind}")
        took = act(Random(decision.draw))
        if took is None:
            return  # counted when its effect is seen
        (self.took if took else self.idle)[decision.kind] += 1

    def heal(self) -> None:
        """The faults stop; what was broken off is whole again, what was stopped goes on."""
        world = self.world
        world.healed = True
        world.traps.clear()
        world.fates.clear()
        world.network.cuts.clear()
        world.network.noises.clear()
        world.slow.clear()
        world.sick.clear()
        world.slow_probe_until_s = -1.0
        for disk in world.disks.values():
            disk.full_until_s = -1.0
        for process in list(world.network.processes.values()):
            if process.resume():
                self._tell_parent(process, False)
        for host in list(world.workers):
            world.bad_starts_until[host] = -1.0 if host in world.bad_starts_until else -2.0
        world.bad_starts_until = {h: t for h, t in world.bad_starts_until.items() if t == -1.0}
        world.replace_manager(lambda: 0.0)
        for host in sorted(world.workers):
            world.start_worker(host)

    def settled(self) -> None:
        """Count what took effect over time."""
        for kind, noise in self._noises:
            (self.took if noise.hits else self.idle)[kind] += 1
        for kind, hits in self._cuts:
            (self.took if hits[0] else self.idle)[kind] += 1

    # --- Choosing ---

    def _executor(self, rng: Random, state: str = ALIVE) -> Executor | None:
        """A live executor, rather one that is at work."""
        found = [e for e in self.world.alive(Executor) if e.state == state]
        busy = [e for e in found if e.running]
        if busy and rng.random() < 0.7:
            found = busy
        return rng.choice(found) if found else None

    def _host(self, rng: Random) -> HostId:
        return rng.choice(sorted(self.world.workers))

    def _for_s(self, rng: Random) -> float:
        lost_s = self.world.options.settings.lost_after_s
        return rng.choice([0.1, 0.5, 2.0, lost_s * 0.9, lost_s * 1.2, lost_s * 2])

    # --- The user ---

    def _submit(self, rng: Random) -> bool:
        world = self.world
        if not world.programs:
            return False
        number = rng.randrange(len(world.programs))
        nodes = world.programs[number]
        if number in world.released_programs or world.driver.state == DEAD:
            return False
        target = NodeId(nodes[-1 - min(rng.randrange(4), len(nodes) - 1)])
        count = world.lineage.nodes[target].partition_count
        if rng.random() < world.options.scoped:
            world.actions.begin(target, number, rng)
            return True
        chosen = list(range(count))
        if rng.random() < 0.2:
            chosen = sorted(rng.sample(chosen, rng.randrange(count + 1)))
        world.driver.submit(target, tuple(chosen), number, rng.choice("ab"), rng.random() < 0.2)
        return True

    def _open(self, rng: Random) -> int | None:
        jobs = [job for job, handle in self.world.driver.handles.items() if not handle.closed]
        return rng.choice(jobs) if jobs else None

    def _cancel(self, rng: Random) -> bool:
        job = self._open(rng)
        if job is not None:
            self.world.driver.cancel(self.world.driver.handles[job])  # type: ignore[index]
        return job is not None

    def _abandon(self, rng: Random) -> bool:
        job = self._open(rng)
        if job is not None:
            self.world.driver.abandon(self.world.driver.handles[job])  # type: ignore[index]
        return job is not None

    def _unpersist(self, rng: Random) -> bool:
        kept = [id for id, node in self.world.lineage.nodes.items() if node.persisted]
        if kept:
            self.world.driver.release((), (rng.choice(kept),))
        return bool(kept)

    def _release(self, rng: Random) -> bool:
        """The program drops every reference to one of its lineages."""
        number = rng.randrange(len(self.world.programs))
        if number in self.world.released_programs or rng.random() < 0.5:
            return False
        self.release_program(number)
        return True

    def release_program(self, number: int) -> None:
        self.world.released_programs.add(number)
        lineage, nodes = self.world.lineage, self.world.programs[number]
        shuffles = tuple(ShuffleId(s) for n in nodes for s in lineage.nodes[NodeId(n)].shuffles)
        self.world.driver.release(shuffles, tuple(NodeId(n) for n in nodes))

    # --- Processes ---

    def _kill_executor(self, rng: Random) -> bool:
        executor = self._executor(rng)
        if executor is not None:
            executor.end(0, rng.choice([9, 9, 15]))
        return executor is not None

    def _kill_all(self, rng: Random) -> bool:
        found = self.world.alive(Executor)
        for executor in found:
            executor.end(0, 9)
        return bool(found)

    def _kill_at(self, rng: Random) -> None:
        """Kill an executor just when something happens: its commit, its report, a recovery, a launch."""
        mark = rng.choice(["commit", "commit", "report", "launch", "deliver", "output_lost", "rollback"])
        draw = rng.getrandbits(32)

        def strike(process: Process | None) -> None:
            if isinstance(process, Executor):
                process.end(0, 9)
                self.took["kill_at"] += 1
            else:
                self.world.clock.after(0.0, strike_any)

        def strike_any(_: None) -> None:
            executor = self._executor(Random(draw))
            if executor is not None:
                executor.end(0, 9)
                self.took["kill_at"] += 1

        self.world.traps.setdefault(mark, []).append(strike)

    def _tell_parent(self, process: Process, stopped: bool) -> None:
        if isinstance(process, Executor) and process.worker.state != DEAD:
            process.worker.child_stopped(process, stopped)

    def _pause(self, process: Process, seconds: float) -> bool:
        if not process.stop():
            return False
        self._tell_parent(process, True)
        self.world.clock.after(seconds, self._go_on, process)
        return True

    def _go_on(self, process: Process) -> None:
        if process.resume():
            self._tell_parent(process, False)

    def _stop_executor(self, rng: Random) -> bool:
        executor = self._executor(rng)
        return executor is not None and self._pause(executor, self._for_s(rng))

    def _kill_worker(self, rng: Random) -> bool:
        worker = self.world.workers[self._host(rng)]
        if worker.state == DEAD:
            return False
        self.world.worker_died(worker)
        return True

    def _stop_worker(self, rng: Random) -> bool:
        return self._pause(self.world.workers[self._host(rng)], self._for_s(rng))

    def _kill_manager(self, rng: Random) -> bool:
        """… and another one comes, sooner or later."""
        world, manager = self.world, self.world.manager
        if manager is None or not manager.die():
            return False
        world.died(manager)
        world.bounds.manager_died(manager)
        late_s = rng.choice([0.0, 0.3, 6.0])
        back_s = rng.choice([0.3, 2.0, 2.0, 15.0])
        world.clock.after(back_s, lambda _: world.replace_manager(lambda: rng.random() * late_s))
        return True

    def _stop_manager(self, rng: Random) -> bool:
        manager = self.world.manager
        return manager is not None and self._pause(manager, self._for_s(rng))

    def _stall_driver(self, rng: Random) -> bool:
        return self._pause(self.world.driver, self._for_s(rng))

    def _suspend_host(self, rng: Random) -> bool:
        """All processes of a machine stand still, as in a virtual machine that is paused: no kernel tells."""
        host, seconds = self._host(rng), self._for_s(rng)
        found = [p for p in self.world.network.processes.values() if p.machine == host and p.stop()]
        for process in found:
            process.suspended = True
            self.world.clock.after(seconds, lambda _, process=process: process.resume())
        return bool(found)

    def _reboot_host(self, rng: Random) -> bool:
        host = self._host(rng)
        ended = self.world.end_host(host)
        world = self.world
        torn = world.disk(host).lose_power(rng, world.clock.now_s, world.options.flush_s)
        if torn:
            self.took["torn_at_reboot"] += 1
        return ended

    def _lose_host(self, rng: Random) -> bool:
        return self.world.lose_host(self._host(rng))

    def _bad_starts(self, rng: Random) -> bool:
        self.world.bad_starts_until[self._host(rng)] = self.world.clock.now_s + rng.choice([1.0, 5.0, 60.0])
        return self._kill_executor(rng)

    def _late_exit(self, rng: Random) -> bool:
        """The probes of dead executors' stores take long for a while."""
        self.world.slow_probe_until_s = self.world.clock.now_s + 10.0
        return self._kill_executor(rng)

    # --- Network ---

    def _machines(self) -> list[str]:
        return sorted({process.machine for process in self.world.network.processes.values()})

    def _hold(self, kind: str, ways: list[tuple[str, str]], seconds: float) -> None:
        cuts = self.world.network.cuts
        hits = [0]
        fresh = [way for way in ways if way not in cuts]
        for way in fresh:
            cuts[way] = hits
        self._cuts.append((kind, hits))

        def mend(_: None) -> None:
            for way in fresh:
                if cuts.get(way) is hits:
                    del cuts[way]

        self.world.clock.after(seconds, mend)

    def _cut(self, rng: Random) -> None:
        """Two machines, or one and all others, cannot hear each other, or one way only."""
        machines = self._machines()
        one = rng.choice(machines)
        others = [m for m in machines if m != one]
        if rng.random() < 0.6 and others:
            others = [rng.choice(others)]
        ways = [(one, other) for other in others]
        back = [(other, one) for other in others]
        self._hold("cut", rng.choice([ways, back, ways + back, ways + back]), self._for_s(rng))

    def _cut_process(self, rng: Random) -> None:
        """One executor and the driver, while all others on its host are heard; or a worker."""
        executor = self._executor(rng)
        if executor is None:
            return
        one: Process = executor if rng.random() < 0.7 else executor.worker
        to, back = (one.me, self.world.driver.me), (self.world.driver.me, one.me)
        self._hold("cut_process", rng.choice([[to], [back], [to, back]]), self._for_s(rng))

    def _noise(self, rng: Random) -> None:
        places: frozenset[str] = frozenset()
        if rng.random() < 0.6:
            places = frozenset([rng.choice(self._machines())])
        noise = Noise(
            places,
            rng.choice([0.0, 0.05, 0.3]),
            rng.choice([0.0, 0.1, 0.5]),
            rng.choice([0.0, 0.05, 1.0, 3.0]),
        )
        self._make_noise("noise", noise, rng.choice([1.0, 4.0, 10.0]))

    def _blip(self, rng: Random) -> None:
        """Everything is lost for a moment."""
        self._make_noise("blip", Noise(frozenset(), drop=1.0), rng.choice([0.05, 0.4]))

    def _make_noise(self, kind: str, noise: Noise, seconds: float) -> None:
        noises = self.world.network.noises
        noises.append(noise)
        self._noises.append((kind, noise))

        def hush(_: None) -> None:
            if noise in noises:
                noises.remove(noise)

        self.world.clock.after(seconds, hush)

    def _echo(self, rng: Random) -> bool:
        """The driver's core hears something of a live executor twice: handlers are idempotent (S26)."""
        world = self.world
        executor = self._executor(rng)
        if executor is None or world.driver.state != ALIVE:
            return False
        mine = [
            t
            for t in world.shadow.attempts.values()
            if t.executor == executor.me and t.task in world.contents
        ]
        if not mine:
            return False
        attempt = rng.choice(mine[-4:])
        if not attempt.ended:
            return False
        self._say_again(executor, attempt.task)
        return True

    def _zombie(self, rng: Random) -> bool:
        """The core hears an incarnation that it has given up, as if the transport had forgotten that."""
        world = self.world
        gone = [e for e in world.executors.values() if e.me in world.shadow.fenced]
        if not gone or world.driver.state != ALIVE:
            return False
        executor = rng.choice(gone[-4:])
        core = executor.executor_core
        if rng.random() < 0.5:
            world.driver.post(Received(executor.me, core._hello))
        else:
            mine = [t.task for t in world.shadow.attempts.values() if t.executor == executor.me]
            if not mine:
                return False
            self._say_again(executor, rng.choice(mine[-4:]))
        return True

    def _say_again(self, executor: Executor, task: TaskId) -> None:
        world = self.world
        store = world.disk(executor.host).stores.get(executor.me)
        output = store.outputs.get(task) if store is not None else None
        end = TaskEnd(task, Success(output=output.status if output is not None else None))
        world.driver.post(Received(executor.me, TaskUpdates((task,), (end,))))

    # --- Disks ---

    def _later(self, kind: str, again: Callable[[Random], bool], rng: Random) -> None:
        """There is nothing to break yet: it is broken a moment after the next commit."""
        draw, delay_s = rng.getrandbits(32), rng.choice([0.01, 0.2, 1.0])

        def strike(_: None) -> None:
            took = not self.world.healed and again(Random(draw))
            (self.took if took else self.idle)[kind] += 1

        def wait(_: Process | None) -> None:
            self.world.clock.after(delay_s, strike)

        self.world.traps.setdefault("commit", []).append(wait)

    def _damage(self, rng: Random, how: str) -> bool:
        """An output that the driver counts on is lost, or turns bad."""
        world = self.world
        known = [
            status
            for outputs in world.driver.scheduler.outputs
            for status in outputs.statuses
            if status is not None
        ]
        if not known:
            return False
        status = rng.choice(known)
        store = world.disk(status.host).stores.get(status.store)
        output = None if store is None else store.outputs.get(status.attempt)
        if store is None or output is None:
            return False
        if how == "corrupt" and rng.random() < 0.3:  # all that is there, and the next that will be (BL-10)
            for other in store.outputs.values():
                other.damage = how
            store.to_rot = 4
        elif how:
            output.damage = how
        else:
            del store.outputs[status.attempt]
        return True

    def _damage_soon(self, rng: Random, kind: str, how: str) -> bool | None:
        if self._damage(rng, how):
            return True
        return self._later(kind, lambda again: self._damage(again, how), rng)

    def _lose_output(self, rng: Random) -> bool | None:
        return self._damage_soon(rng, "lose_output", "")

    def _rot_output(self, rng: Random) -> bool | None:
        return self._damage_soon(rng, "rot_output", "corrupt")

    def _tear_output(self, rng: Random) -> bool | None:
        return self._damage_soon(rng, "tear_output", "incomplete")

    def _rot_segment(self, rng: Random) -> bool | None:
        """A page of the segment that a store is at is gone: whoever reads what lies there dies of it."""
        world = self.world
        found = [
            store
            for host in sorted(world.disks)
            for _, store in sorted(world.disks[host].stores.items())
            if any(not item.damage for item in (*store.outputs.values(), *store.blocks.values()))
        ]
        if not found:
            return self._later("rot_segment", lambda again: bool(self._rot_segment(again)), rng)
        store = rng.choice(found)
        for item in (*store.outputs.values(), *store.blocks.values()):
            item.damage = item.damage or FATAL
        return True

    def _rot_block(self, rng: Random) -> bool:
        """A persisted partition or a stored result turns bad, or is gone."""
        blocks = [
            (store.blocks, name, block)
            for host in sorted(self.world.disks)
            for _, store in sorted(self.world.disks[host].stores.items())
            for name, block in sorted(store.blocks.items())
        ]
        if not blocks:
            return False
        kept, name, block = rng.choice(blocks)
        if rng.random() < 0.5:
            del kept[name]
        else:
            block.damage = "corrupt"
        return True

    def _lose_store(self, rng: Random) -> bool:
        host = self._host(rng)
        stores = self.world.disk(host).stores
        if not stores:
            return False
        store = stores[rng.choice(sorted(stores))]
        had = bool(store.outputs or store.blocks)
        store.outputs.clear()
        store.blocks.clear()
        return had

    def _disk_full(self, rng: Random) -> bool:
        self.world.disk(self._host(rng)).full_until_s = self.world.clock.now_s + rng.choice([0.5, 3.0, 12.0])
        return True

    # --- Tasks ---

    def _fated(self, fate: str, count: int = 1) -> bool:
        self.world.fates.extend([fate] * count)
        return True

    def _user_error(self, rng: Random) -> bool:
        return self._fated("raise", rng.choice([1, 1, 3]))

    def _host_error(self, rng: Random) -> bool:
        return self._fated("host", rng.choice([1, 2]))

    def _not_loadable(self, rng: Random) -> bool:
        return self._fated("unloadable")

    def _own_death(self, rng: Random) -> bool:
        return self._fated(rng.choice(["segv", "exit", "oom"]))

    def _deaf_task(self, rng: Random) -> bool:
        return self._fated("deaf", rng.choice([1, 4]))

    def _self_killed(self, rng: Random) -> bool:
        return self._fated("killed")

    def _hang(self, rng: Random) -> bool:
        """A task stands still, for ever or until somebody shoots its process."""
        working = [e for e in self.world.alive(Executor) if e.state == ALIVE]
        runs = [(e, run) for e in working for run in e.running.values() if run.content is None]
        if not runs:
            return False
        executor, run = rng.choice(runs)
        run.fate, run.deaf = "hang", rng.random() < 0.5
        timeout_s = self.world.options.settings.stall_timeout_s
        if run.of.launch.gang or not 0.0 < timeout_s < 10.0:
            self.world.clock.after(8.0, lambda _: executor.end(0, 9) if not run.ended else None)
        return True

    def _slow_host(self, rng: Random) -> bool:
        host = self._host(rng)
        self.world.slow[host] = rng.choice([5.0, 30.0])
        self.world.clock.after(rng.choice([2.0, 10.0, 60.0]), lambda _: self.world.slow.pop(host, None))
        return True

    def _evict(self, rng: Random) -> bool:
        """A live process lets go of a persisted partition without a word, as memory pressure makes it."""
        executor = self._executor(rng)
        if executor is None or not executor.memory:
            return False
        executor.evict(None)
        return True
