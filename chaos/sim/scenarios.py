"""Histories that are told to go a certain way; all else about them is drawn from the seed as ever.

spark-23207   an indeterminate repartition above a shuffle; when half of its reducers have delivered, a host
              that holds some of its outputs is lost with its files.  What is rebuilt comes out different,
              and the count must be exactly 1,000,000.  (Spark lost and doubled records without a word.)
kill-storm    an executor is killed every so often, with what it does, from the first task to the end of the
              job; some tasks get through between two kills, so the job must end, and well (L6, EX-5)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from random import Random

from chaos.sim.executor import Executor, Run
from chaos.sim.faults import Decision, plan
from chaos.sim.network import DEAD, Process
from chaos.sim.options import draw
from chaos.sim.program import one_to_one
from chaos.sim.run import STEPS_MAX, Outcome, Violation, simulate
from chaos.sim.world import World
from spark_ft.ids import HostId, JobId, ShuffleId, TaskId

ROWS = 1_000_000
_BESIDE = (
    "kill_executor",
    "noise",
    "blip",
    "stall_driver",
    "cut_process",
    "late_exit",
)  # other faults meanwhile


def spark_23207(
    seed: int, *, keep: Collection[int] | None = None, log: bool = False, steps_max: int = STEPS_MAX
) -> Outcome:
    """See the module.  A violation unless the answer is exact, and the host was lost in time."""
    rng = Random(f"{seed}/spark-23207")
    options = draw(rng)
    settings = replace(
        options.settings, max_failures=4, max_kills=2, shuffle_replicas=1, no_resources_timeout_s=60.0
    )
    options = replace(
        options, settings=settings, managed=True, hosts=3, executors=rng.choice([1, 2]), slots=1, programs=0,
        task_s=rng.choice([0.05, 0.2]), jobs=0, stored=0.0, horizon_s=8.0, faults=rng.choice([0, 0, 2, 5]),
        weights=dict.fromkeys(_BESIDE, 1),
    )  # fmt: skip
    beside: list[Decision] = [d for d in plan(options, rng) if d.kind in _BESIDE]
    options = replace(options, horizon_s=30.0)  # the loss comes before the end of all faults
    lost: list[HostId] = []
    outcome = simulate(
        seed, keep=keep, options=options, decisions=beside, steps_max=steps_max, log=log,
        prepare=lambda world: _prepare(world, rng, lost),
    )  # fmt: skip
    if not outcome.violations:
        if outcome.jobs != {"ok": 1}:
            text = f"the job ended with {dict(outcome.jobs)}, not with {ROWS}"
            outcome.violations.append(Violation("answer", text, outcome.steps, outcome.virtual_s))
        elif not lost:
            text = "no host was lost: the history shows nothing"
            outcome.violations.append(Violation("unknown", text, outcome.steps, outcome.virtual_s))
    outcome.faults["lose_host"] += len(lost)
    return outcome


def _prepare(world: World, rng: Random, lost: list[HostId]) -> None:
    """The program, its one job, and the loss in the middle of it."""
    lineage = world.lineage
    maps, reducers = rng.choice([4, 5, 8]), rng.choice([6, 8])
    source = lineage.add(maps)
    lineage.sizes[source] = ROWS // maps
    keyed = lineage.add(maps, shuffles=(lineage.shuffle(source, maps),))
    mapped = lineage.add(maps, (one_to_one(keyed),))
    dealt = lineage.shuffle(mapped, reducers)
    lineage.random.add(dealt)
    target = lineage.add(reducers, shuffles=(dealt,))
    assert lineage.rows_of(target) == ROWS
    world.programs.append(range(len(lineage.nodes)))
    draw_ = rng.getrandbits(32)

    def nothing(_: Process | None) -> None:
        pass

    def strike(_: Process | None) -> None:
        world.clock.after(0.0, lose)

    def lose(_: None) -> None:
        host = _holder(world, dealt, Random(draw_))
        if host is not None:
            world.lose_host(host)
            lost.append(host)

    begun: set[TaskId] = set()

    def waits(run: Run) -> bool:
        """Half of the reducers may read; the others come to it when the host is lost."""
        task = run.launch.task
        if lost or run.of.launch.output is not None or task in begun:
            return False
        reading = {t for executor in world.alive(Executor) for t in executor.running if t in begun}
        done = {world.shadow.attempts[t].partition for t in world.driver.handles[JobId(0)].results.values()}
        done.update(world.shadow.attempts[t].partition for t in reading)
        if len(done) < reducers // 2:
            begun.add(task)
        return task not in begun

    world.gate = waits
    half: list[Callable[[Process | None], None]] = [nothing] * (reducers // 2 - 1)
    world.traps["deliver"] = [*half, strike]
    world.clock.at(0.5, lambda _: world.driver.submit(target, tuple(range(reducers)), 0))


def kill_storm(
    seed: int, *, keep: Collection[int] | None = None, log: bool = False, steps_max: int = STEPS_MAX
) -> Outcome:
    """See the module.  A violation unless the job ends well while the kills go on."""
    rng = Random(f"{seed}/kill-storm")
    options = draw(rng)
    settings = replace(options.settings, max_failures=4, no_resources_timeout_s=60.0, executor_restart_s=0.1)
    options = replace(
        options, settings=settings, managed=True, hosts=rng.choice([2, 3]), executors=2, slots=1, programs=0,
        task_s=rng.choice([0.2, 0.5]), jobs=0, latency_s=0.001, horizon_s=90.0, weights={}, fickle=0.0,
    )  # fmt: skip
    kills: list[float] = []

    def prepare(world: World) -> None:
        lineage = world.lineage
        node = lineage.add(rng.choice([8, 16]))
        for width in rng.choice([(12,), (12, 6), (8, 12, 8)]):
            node = lineage.add(width, shuffles=(lineage.shuffle(node, width),))
        world.programs.append(range(len(lineage.nodes)))
        world.clock.at(0.5, lambda _: world.driver.submit(node, tuple(range(width)), 0) and None)
        world.clock.at(0.6, strike, world)

    def strike(world: World) -> None:
        if world.driver.handles[JobId(0)].closed:
            return
        executors = world.alive(Executor)
        if executors:
            rng.choice([e for e in executors if e.running] or executors).end(0, 9)
            kills.append(world.clock.now_s)
        world.clock.after(rng.uniform(0.4, 1.2), strike, world)

    outcome = simulate(
        seed, keep=keep, options=options, decisions=[], steps_max=steps_max, log=log, prepare=prepare
    )
    outcome.faults["kill_executor"] += len(kills)
    if not outcome.violations and (outcome.jobs != {"ok": 1} or outcome.healing_s):
        text = f"{len(kills)} kills in {outcome.virtual_s:.0f} s, and the job ended with {dict(outcome.jobs)}"
        outcome.violations.append(Violation("L6", text, outcome.steps, outcome.virtual_s))
    return outcome


def _holder(world: World, shuffle: ShuffleId, rng: Random) -> HostId | None:
    """A live host that holds outputs of the shuffle."""
    statuses = world.driver.scheduler.outputs[shuffle].statuses
    hosts = sorted({status.host for status in statuses if status is not None})
    alive = [host for host in hosts if world.workers[host].state != DEAD]
    return rng.choice(alive) if alive else None


SCENARIOS: dict[str, Callable[..., Outcome]] = {
    "": simulate,
    "spark-23207": spark_23207,
    "kill-storm": kill_storm,
}
