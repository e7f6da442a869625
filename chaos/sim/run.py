"""One history from its seed: faults first, then none, then the end; and what became of it.

simulate(7)                        the whole history of seed 7
simulate(7, keep={0, 3, 17})       only these of its decisions
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random

from chaos.sim import again
from chaos.sim.executor import Executor
from chaos.sim.faults import USER, Decision, plan
from chaos.sim.network import DEAD
from chaos.sim.options import Options, draw
from chaos.sim.plots import Plots
from chaos.sim.violation import ViolationError, named
from chaos.sim.world import World

STEPS_MAX = 200_000
# From the end of a back-off until a probe has ended, if there is work: a slow task takes 20 s, and the job
# before the one that has a task to spare may have one too.
PROBED_S = 45.0
SETTLE_S = 16.0  # after the last job: until everybody has been told, and garbage is collected


@dataclass(frozen=True, slots=True)
class Violation:
    """What was broken: ``id`` of docs/fault-model.md, ``answer`` or ``crash``; where in the history."""

    id: str
    text: str
    step: int
    at_s: float
    trace: str = ""


@dataclass(slots=True)
class Outcome:
    """What became of one history.  ``digest`` is equal for equal histories."""

    seed: int
    violations: list[Violation]
    steps: int
    faults: Counter[str]  # that took effect, by kind
    idle_faults: Counter[str]
    jobs: Counter[str]  # by how they ended
    marks: Counter[str]  # notes of all cores
    virtual_s: float
    healing_s: float  # from the end of the faults to the end of the last job
    digest: str
    decisions: list[Decision]
    starts: int
    log: list[str] = field(default_factory=list)

    @property
    def fault_count(self) -> int:
        """Faults that took effect; what the user decides is none."""
        return sum(count for kind, count in self.faults.items() if kind not in USER)


def simulate(
    seed: int,
    *,
    keep: Collection[int] | None = None,
    options: Options | None = None,
    decisions: list[Decision] | None = None,
    steps_max: int = STEPS_MAX,
    log: bool = False,
    prepare: Callable[[World], None] | None = None,
) -> Outcome:
    """Play the history of a seed, or only the decisions whose numbers are in ``keep``.

    ``options`` and ``decisions`` take the place of those that the seed would draw; ``prepare`` may set the
    world up further before anything happens.  Never raises: what goes wrong is a violation.
    """
    rng = Random(f"{seed}/options")
    options = options or draw(rng)
    planned = plan(options, Random(f"{seed}/decisions")) if decisions is None else decisions
    if keep is not None:
        planned = [decision for decision in planned if decision.number in keep]
    lines: list[str] | None = [] if log else None
    violations: list[Violation] = []
    healing_s = 0.0
    world = World(seed, options, log=lines)
    nemesis = Plots(world)
    try:
        nemesis.plan(planned)
        if prepare is not None:
            prepare(world)
        _run_until(world, options.horizon_s, steps_max)
        nemesis.heal()
        healing_s = _end(world, nemesis, steps_max)
    except Exception as error:  # whatever a core raises is what we are looking for
        trace = "" if isinstance(error, ViolationError) else traceback.format_exc()
        text = str(error) or type(error).__name__
        violations.append(Violation(named(error), text, world.steps, world.clock.now_s, trace))
    nemesis.settled()
    return Outcome(
        seed,
        violations,
        world.steps,
        nemesis.took,
        nemesis.idle,
        world.ended,
        world.marks,
        world.clock.now_s,
        healing_s,
        f"{world.hash & 0xFFFFFFFFFFFFFFFF:016x}",
        planned,
        sum(world.shadow.starts.values()),
        lines or [],
    )


def _run_until(world: World, until_s: float, steps_max: int) -> None:
    while world.clock.run(until_s):
        if world.steps > steps_max:
            raise ViolationError("L1", f"{world.steps} steps and no end")


def _end(world: World, nemesis: Plots, steps_max: int) -> float:
    """The second phase: nothing is broken any more, and all must come to an end."""
    clock, settings = world.clock, world.options.settings
    healed_s = clock.now_s
    handles = world.driver.handles.values()
    tasks = sum(
        len(handle.partitions) + sum(s.map_count for s in handle.shape.shuffles.values())
        for handle in handles
    )
    bound_s = (
        settings.no_resources_timeout_s + 8 * settings.lost_after_s + 60.0 + 30 * world.options.task_s * tasks
    )
    while any(not handle.closed for handle in handles):
        if clock.now_s > healed_s + bound_s:
            waiting = [handle.job for handle in handles if not handle.closed]
            raise ViolationError(
                "L1", f"jobs {waiting} have not ended {bound_s:.0f} s after the faults stopped"
            )
        _run_until(world, clock.now_s + 0.5, steps_max)
    healing_s = clock.now_s - healed_s
    _check_probes(world, steps_max)
    for number in range(len(world.programs)):
        nemesis.release_program(number)
    _run_until(world, clock.now_s + SETTLE_S, steps_max)
    world.check()
    world.driver.scheduler.assert_idle()
    world.lively.check_alone()
    world.check_size()
    for executor in world.alive(Executor):
        executor.executor_core.assert_idle()
        if executor.memory:
            raise ViolationError("L11", f"{executor.me} still holds {sorted(executor.memory)}")
    _check_garbage(world)
    if world.seed % 4 == 0:
        _check_orphans(world, steps_max)
    if world.heard is not None:
        again.check(world.heard, world.driver.another_core, Random(f"{world.seed}/again"), 0.1)
    return healing_s


def _check_probes(world: World, steps_max: int) -> None:
    """Whoever is excluded is well by now: once its back-off is over it is let in, if there is work (L12)."""
    excluded, live = world.excluded.until_s, world.driver.scheduler.executors.live
    waiting = [e for e in excluded if e in live and not live[e].is_leaving]
    if not waiting:
        return
    target = world.lineage.add(3 * sum(executor.slots for executor in live.values()))
    program = len(world.programs)
    world.programs.append(range(target, target + 1))
    bound_s = max(max(excluded[e] for e in waiting), world.clock.now_s) + PROBED_S
    handle = None
    while any(e in excluded for e in waiting if e in live and not live[e].is_leaving):
        if world.clock.now_s > bound_s:
            raise ViolationError("L12", f"{waiting} are well, there is work, and they get none")
        if handle is None or handle.closed:
            partitions = tuple(range(world.lineage.nodes[target].partition_count))
            handle = world.driver.submit(target, partitions, program)
        _run_until(world, world.clock.now_s + 0.5, steps_max)
        world.marks["probe_awaited"] += 1
    while handle is not None and not handle.closed:
        if world.clock.now_s > bound_s + PROBED_S:
            raise ViolationError("L1", f"job {handle.job} does not end")
        _run_until(world, world.clock.now_s + 0.5, steps_max)


def _check_garbage(world: World) -> None:
    """Nothing is needed any more, so nothing of a shuffle is left on any disk that a worker serves (L11)."""
    for host, disk in world.disks.items():
        if world.workers[host].me not in world.shadow.workers:
            continue
        for name, store in disk.stores.items():
            if store.outputs:
                left = [output.status for output in store.outputs.values()]
                raise ViolationError("L11", f"store {name} on {host} still holds {left[0]}")


def _check_orphans(world: World, steps_max: int) -> None:
    """The driver dies: nobody outlives it for long (L10)."""
    world.driver.die()
    world.died(world.driver)
    wait_s = 2.0 if world.options.watched else world.options.settings.driver_grace_s + 2.0
    _run_until(world, world.clock.now_s + wait_s, steps_max)
    left = [executor.me for executor in world.alive(Executor) if executor.state != DEAD]
    if left and world.options.watched:
        raise ViolationError("L10", f"{left} outlive their driver")
