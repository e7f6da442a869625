"""Whether a job has ended as it may: with the right answer, or a named error that what happened explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.sim.driver import Handle
from chaos.sim.program import Provenance, joined
from chaos.sim.violation import ViolationError
from spark_ft.protocol.effects import JobFailure
from spark_ft.scheduler.stage import why_no_gang

if TYPE_CHECKING:
    from chaos.sim.world import World


def judge(world: World, handle: Handle) -> None:
    """Raise unless it may."""
    if handle.failure is None:
        _answer(world, handle)
    elif not _explained(world, handle, handle.failure):
        raise ViolationError(
            "S14", f"job {handle.job} ends with {handle.failure.condition}: {handle.failure.text}"
        )


def _answer(world: World, handle: Handle) -> None:
    if handle.results.keys() != set(handle.partitions):
        raise ViolationError("S2", f"job {handle.job} has results of {sorted(handle.results)}")
    whole: Provenance = {}
    rows = 0
    for partition in handle.partitions:
        content = world.contents[handle.results[partition]]
        if content.mixed:
            raise ViolationError("S6", f"job {handle.job}, partition {partition}: {content.mixed}")
        whole = joined(whole, content.provenance)
        rows += content.rows
    for partition in handle.partitions:
        world.lineage.checked(handle.target, partition, world.contents[handle.results[partition]])
        if b"r%d.%d" % (handle.job, partition) not in world.shadow.answers.merged:
            raise ViolationError(
                "S20", f"updates of partition {partition} of job {handle.job} were not merged"
            )
    if len(handle.partitions) == world.lineage.nodes[handle.target].partition_count:
        expected = world.lineage.rows_of(handle.target)
        if rows != expected:
            raise ViolationError("answer", f"job {handle.job} counts {rows} rows of {expected}")


def _explained(world: World, handle: Handle, failure: JobFailure) -> bool:
    settings, shadow, lineage = world.options.settings, world.shadow, world.lineage
    where = (int(failure.stage or 0), int(failure.partition if failure.partition is not None else -1))
    failures = shadow.failures
    own = failures[(*where, "user")] + world.own_deaths[where] + failures[(*where, "late")]
    blamed = own + failures[(*where, "fetch")] + world.deaths[where]
    match failure.condition:
        case "JOB_CANCELLED":
            return handle.cancelled
        case "TASK_FAILED":
            return failures[(*where, "final")] > 0 or own >= settings.max_failures
        case "INPUT_CHANGED":
            return failures[(*where, "final")] > 0
        case "POISON_TASK":
            return own >= settings.max_failures or failures[(*where, "lost")] > settings.max_kills
        case "TASK_OUT_OF_MEMORY":
            return failures[(*where, "memory")] > 2
        case "TASK_TIMEOUT":
            return failures[(*where, "late")] > 0 and own >= settings.max_failures
        case "CLOSURE_NOT_LOADABLE":
            return failures[(where[0], -1, "unloadable")] >= 2
        case "STORAGE_FULL" | "TOO_MANY_FILES":
            return failures[(*where, "host")] >= 2
        case "SHUFFLE_DATA_LOST":
            died = world.deaths[where] >= 20  # in segments that are damaged
            return died or failures[(where[0], -1, "fetch")] >= settings.stage_max_attempts
        case "STAGE_ABORTED":
            return failures[(where[0], -1, "fetch")] >= 100 or world.marks["gang_broken"] >= 100
        case "BLOCK_LOST":
            return blamed >= min(20, settings.max_failures)
        case "INDETERMINATE_OUTPUT_ROLLBACK":
            shuffles, nodes = handle.shape.shuffles.keys(), handle.shape.nodes.keys()
            fickle = shuffles & (lineage.random | lineage.chatty) or nodes & lineage.fickle
            endless = shadow.answers.jobs[handle.job].rollbacks >= 49 or "again and again" in failure.text
            gang = any(node.barrier for node in handle.shape.nodes.values())
            return bool(fickle or gang) and (handle.final or endless or handle.scoped)
        case _:
            return _unpeopled(world, handle, failure)


def _unpeopled(world: World, handle: Handle, failure: JobFailure) -> bool:
    """Nobody was there who could have run it."""
    shadow = world.shadow
    match failure.condition:
        case "NO_RESOURCES":
            empty_s = shadow.empty_longest_s
            if shadow.empty_since_s is not None:
                empty_s = max(empty_s, world.clock.now_s - shadow.empty_since_s)
            return empty_s >= world.options.settings.no_resources_timeout_s - 1.0
        case "BARRIER_NO_SLOTS":
            return handle.job in shadow.answers.short_of
        case "BARRIER_CHAIN_NOT_ALLOWED":
            return bool(why_no_gang(handle.shape, handle.partitions))
        case "EXECUTOR_CRASH_LOOP":
            return bool(world.bad_starts_until)
        case "ALL_EXECUTORS_EXCLUDED":
            return shadow.answers.nobody_left
        case _:
            return False
