"""What one history is like: cluster, settings, program, faults; all drawn from its seed (swarm).

Each history leaves out most kinds of faults, so that the others go deeper, and pushes some settings to odd
values, because defaults are what everybody tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from spark_ft.settings import Settings

# Kinds of fault decisions and how often each is drawn in relation to the others (faults.py plays them).
FAULTS = {
    "kill_executor": 10, "kill_at": 10, "kill_all": 1, "stop_executor": 4, "kill_worker": 3, "stop_worker": 2,
    "kill_manager": 3, "stop_manager": 1,
    "stall_driver": 3, "reboot_host": 3, "lose_host": 3, "suspend_host": 2,
    "bad_starts": 1, "late_exit": 1,
    "cut": 4, "cut_process": 4, "noise": 8, "blip": 3,
    "lose_output": 5, "rot_output": 5, "tear_output": 2, "rot_segment": 4, "rot_block": 3, "lose_store": 2,
    "disk_full": 2,
    "user_error": 5, "host_error": 2, "not_loadable": 1, "own_death": 3, "deaf_task": 2, "hang": 3,
    "slow_host": 2, "self_killed": 1, "evict": 2, "echo": 4, "zombie": 3,
    "long_call": 3, "stillborn": 2, "late_answer": 3, "lose_read": 8, "leave": 2, "gray": 3,
    "memory": 3, "dirty": 3, "sick": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """One draw.  Times in virtual seconds."""

    settings: Settings
    managed: bool = True  # a manager grants; else the driver assigns its one worker, as in local[n]
    watched: bool = True  # the kernel tells of the deaths of workers and driver; else only silence does
    hosts: int = 2
    executors: int = 2  # of one host
    slots: int = 1
    latency_s: float = 0.001
    task_s: float = 0.1  # a usual task takes so long
    horizon_s: float = 20.0  # when the faults stop
    programs: int = 2
    nodes: int = 6  # of one program
    width: int = 4  # partitions at most
    jobs: int = 4
    indeterminate: float = 0.3  # share of shuffles whose outputs come out different each time
    chatty: float = 0.1  # share of shuffles whose equal rows have other bytes each time
    persisted: float = 0.25  # share of nodes
    fickle: float = 0.0  # share of persisted nodes that come out different each time
    replicated: float = 0.0  # share of persisted nodes that are to be on two hosts
    barrier: float = 0.0  # share of nodes whose tasks are a gang
    poison: float = 0.0  # chance that a program has a partition that always fails
    scoped: float = 0.0  # share of actions that have several jobs
    chain: float = 0.0  # share of nodes that are a shuffle of the one before
    reading_s: float = 0.001  # until the user's thread reads the results of a job that has ended
    stored: float = 0.2  # share of results that are too large for a message
    memory: int = 8  # persisted partitions that fit into one executor
    flush_s: float = 5.0  # until the kernel has written what was committed
    faults: int = 24
    weights: dict[str, int] = field(default_factory=dict)  # fault kind -> weight


def draw(rng: Random) -> Options:
    """The options of a history."""
    beat_s = rng.choice([0.5, 1.0, 1.0, 2.0])
    lost_s = rng.choice([4.0, 10.0, 10.0])
    settings = Settings(
        max_failures=rng.choice([1, 2, 4, 4, 4]),
        max_kills=rng.choice([1, 2, 2]),
        scheduler_mode=rng.choice(["FIFO", "FIFO", "FAIR"]),
        locality_wait_s=rng.choice([0.0, 0.5, 3.0]),
        prefetch_tasks=rng.choice([0, 1, 1, 3]),
        speculation=rng.random() < 0.7,
        speculation_min_finished=rng.choice([1, 1, 3]),
        speculation_quantile=rng.choice([0.25, 0.5, 0.9]),
        speculation_min_s=rng.choice([0.01, 0.1]),
        speculation_multiplier=rng.choice([1.5, 3.0]),
        heartbeat_interval_s=beat_s,
        lost_after_s=lost_s,
        lease_s=lost_s * 0.8,
        driver_grace_s=rng.choice([15.0, 30.0]),
        no_resources_timeout_s=rng.choice([30.0, 60.0]),
        kill_grace_s=rng.choice([0.2, 2.0]),
        executor_restart_s=rng.choice([0.05, 0.1, 0.5]),
        fetch_timeout_s=rng.choice([1.0, 5.0]),
        fetch_retries=rng.choice([1, 3]),
        gc_interval_s=2.0,
        shuffle_replicas=rng.choice([1, 1, 1, 2]),
        launch_ack_s=rng.choice([2.0, 5.0]),
        stall_timeout_s=rng.choice([0.0, 3.0, 60.0]),
        task_timeout_s=rng.choice([0.0, 0.0, 0.0, 8.0]),
        barrier_check_interval_s=rng.choice([1.0, 10.0]),
        barrier_sync_timeout_s=rng.choice([5.0, 1000.0]),
        exclude_timeout_s=rng.choice([3600.0, 3600.0, 8.0]),
    )
    managed = rng.random() < 0.8
    kinds = list(FAULTS)
    left_out = set(rng.sample(kinds, rng.randrange(len(kinds) * 3 // 4)))
    weights = {kind: weight for kind, weight in FAULTS.items() if kind not in left_out}
    drawn = Options(
        settings,
        managed=managed,
        watched=rng.random() < 0.6 or not managed,
        hosts=rng.choice([1, 2, 2, 3, 3]) if managed else 1,
        executors=rng.choice([1, 2, 2, 3]),
        slots=rng.choice([1, 1, 1, 2]),
        latency_s=rng.choice([0.0002, 0.001, 0.02, 0.15]),
        task_s=rng.choice([0.01, 0.05, 0.2, 0.2, 1.0]),
        horizon_s=rng.choice([6.0, 12.0, 25.0]),
        programs=rng.choice([1, 2, 3]),
        nodes=rng.randrange(2, 10),
        width=rng.choice([2, 4, 6]),
        jobs=rng.randrange(2, 9),
        indeterminate=rng.choice([0.0, 0.0, 0.4, 0.8]),
        chatty=rng.choice([0.0, 0.0, 0.3]),
        persisted=rng.choice([0.0, 0.3, 0.5]),
        fickle=rng.choice([0.0, 0.0, 0.5]),
        replicated=rng.choice([0.0, 0.0, 0.5]),
        poison=rng.choice([0.0, 0.0, 0.0, 0.5]),
        barrier=rng.choice([0.0, 0.0, 0.3]),
        scoped=rng.choice([0.0, 0.0, 0.3, 0.8]),
        chain=rng.choice([0.0, 0.0, 0.8]),
        reading_s=rng.choice([0.001, 0.001, 2.0]),
        stored=rng.choice([0.0, 0.3]),
        memory=rng.choice([2, 8]),
        flush_s=rng.choice([0.5, 5.0]),
        faults=rng.randrange(10, 45),
        weights=weights,
    )
    if rng.random() < 0.1:  # it is about executors on which tasks fail
        settings = replace(settings, max_failures=4, speculation=False)
        weights = {**weights, "sick": 30}
        return replace(drawn, settings=settings, weights=weights, executors=3, width=6, jobs=8)
    if rng.random() < 0.2:  # it is about data that comes out different when it is built again
        weights = {**weights, "lose_read": 30}
        return replace(drawn, indeterminate=0.8, persisted=0.5, executors=3, weights=weights)
    return drawn
