"""What has to go on: work that could be done is, whoever waits is told in time, whoever was given up ends.

The shadow asks of each step whether it was allowed; here it is asked, at every look, whether something should
have happened by now.  Each bound counts time in which the driver was awake.

  L2      a task is ready and an executor idle that may take it: not for long
  L9      a task is ready, and those of younger jobs are launched: not many
  L5      what a stage waits for that reads it is made by exactly one other stage
  L7      jobs without any executor end by name in time, and so do those of which everybody is excluded
  L8      a job that is cancelled has ended at once, whoever else is dead
  L14     nobody whom the driver has given up lives on, and each host has one worker
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.sim.executor import Executor
from chaos.sim.network import ALIVE
from chaos.sim.violation import ViolationError
from chaos.sim.worker import Worker
from spark_ft.ids import JobId, StageId
from spark_ft.scheduler.taskset import State

if TYPE_CHECKING:
    from chaos.sim.driver import Handle
    from chaos.sim.world import World
    from spark_ft.scheduler.stage import Stage

_SLACK_S = 2.0  # sweeps of the driver, and looks of ours
_EXCLUDED_S = 10.0  # everybody may be excluded for so long
_IDLE_S = 12.0  # beside the patience with locality: back-offs after a failure, rooms that are being cleared
_FRESH_S = 5.0  # an executor is drained for a suspect after one, and its successor has to start
_PASSED_BY = 40  # launches for younger jobs while an older one has a ready task and gets none


class Lively:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting_s: dict[JobId, float] = {}  # since when jobs have been open while nobody was there
        self._excluded_since_s: float | None = None
        self._idle_since_s: float | None = None
        self._launched = self._seen_launched = 0  # tasks in all; at the last look
        self._passed_by: dict[JobId, int] = {}  # of jobs that had a ready task at the last look

    # --- Cancelling ---

    def cancelled(self, handle: Handle) -> None:
        self._world.driver.own(0.5, self._check_ended, handle)

    def _check_ended(self, handle: Handle) -> None:
        if not (handle.done or handle.closed):
            raise ViolationError("L8", f"job {handle.job} was cancelled, and has not ended")

    # --- Launches ---

    def launched(self, stage: StageId, count: int) -> None:
        self._launched += count
        active = self._world.driver.scheduler.dag.active.get(stage)
        if active is None or not self._passed_by:
            return
        for job in active.jobs:
            self._passed_by.pop(job, None)
        for job in self._passed_by:
            if active.jobs and job < min(active.jobs):
                self._passed_by[job] += count
                if self._passed_by[job] > _PASSED_BY:
                    raise ViolationError(
                        "L9", f"job {job} waits while younger ones have their tasks launched"
                    )

    # --- At every look ---

    def check(self) -> None:
        if self._world.driver.state != ALIVE:
            self._idle_since_s = self._excluded_since_s = None
            self._waiting_s.clear()
            return
        self._check_recoveries()
        self._check_told()
        self._check_work()

    def _check_recoveries(self) -> None:
        core = self._world.driver.scheduler
        making = [stage.shuffle for stage in core.dag.active.values() if stage.shuffle is not None]
        if len(making) != len(set(making)):
            raise ViolationError("L5", f"two stages make one shuffle: {sorted(making)}")
        for stage in core.dag.active.values():
            if stage.tasks is None or not stage.tasks.waiting or stage.tasks.active:
                continue  # those that run may get through
            if core.blocks.any_of(stage.tree.persisted):
                continue  # it may do without
            for shuffle in stage.tree.parents:
                if not core.outputs[shuffle].complete and shuffle not in making:
                    text = f"nobody makes what stage {stage.id} lacks of shuffle {shuffle}"
                    raise ViolationError("L5", text)

    def _check_told(self) -> None:
        shadow, settings = self._world.shadow, self._world.options.settings
        now_s, jobs = self._world.clock.now_s, shadow.answers.open_jobs
        if shadow.live:
            self._waiting_s.clear()
        else:
            since_s = self._waiting_s
            self._waiting_s = {job: since_s.get(job, now_s) for job in jobs}
            for job, begun_s in self._waiting_s.items():
                if self._world.bounds.awake_s(begun_s) > settings.no_resources_timeout_s + _SLACK_S:
                    raise ViolationError("L7", f"job {job} waits without a word, and nobody is there")
        if not (jobs and self._world.excluded.is_everybody()):
            self._excluded_since_s = None
        elif self._excluded_since_s is None:
            self._excluded_since_s = now_s
        elif self._world.bounds.awake_s(self._excluded_since_s) > _EXCLUDED_S + _SLACK_S:
            raise ViolationError("L7", f"jobs {sorted(jobs)} wait without a word, and everybody is excluded")

    def _check_work(self) -> None:
        core = self._world.driver.scheduler
        ready = [
            stage
            for stage in core.dag.active.values()
            if not stage.tree.barrier and stage.tasks is not None and stage.tasks.ready
        ]
        # Who is to write an output waits for a disk that has room, who reads one for a host that can, and
        # tasks for the end of a back-off.
        placeable = [
            s
            for s in ready
            if _has_due(s)
            and not (core.health.hosts and s.shuffle is not None)
            and not (core.links and s.tree.parents)
            and not (s.id in core.dag.suspects and _waits_for_a_fresh_process(s, core.turn.now_s))
        ]
        waiting = {job for stage in placeable for job in stage.jobs}
        if self._world.options.settings.scheduler_mode == "FAIR":
            # What a pool has running counts, also on executors that are cut off.
            jobs = core.dag.jobs
            running = [s for s in core.dag.active.values() if s.tasks is not None and s.tasks.running]
            served = {jobs[job].pool for stage in running for job in stage.jobs}
            waiting = {job for job in waiting if jobs[job].pool not in served}
        self._passed_by = {job: self._passed_by.get(job, 0) for job in waiting}
        idle = any(
            executor.accepting and not executor.running and executor.excluded is None
            for executor in core.executors.live.values()
        )
        now_s = self._world.clock.now_s
        # For a link, for room, for the one memory that holds its input, or for a time that is planned: what
        # is idle may not suit, or be kept for a gang.
        bound = any(stage.tasks is not None and any(stage.tasks._bound.values()) for stage in ready)
        gangs = any(s.tree.barrier and s.tasks and s.tasks.ready for s in core.dag.active.values())
        waits = core.links or core.dag.suspects or bound or gangs or core.placement.wakeup_s is not None
        if not (ready and idle) or waits or self._launched != self._seen_launched:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        else:
            patience_s = _IDLE_S + 4 * self._world.options.settings.locality_wait_s
            if self._world.bounds.awake_s(self._idle_since_s) > patience_s:
                raise ViolationError("L2", f"tasks of stage {ready[0].id} are ready, and executors idle")
        self._seen_launched = self._launched

    # --- At the end ---

    def check_alone(self) -> None:
        """Of each role one incarnation is left where there is to be one (L14)."""
        world = self._world
        fenced, workers = world.shadow.fenced, world.alive(Worker)
        outlived = [p.me for p in (*world.alive(Executor), *workers) if p.me in fenced]
        if outlived:
            raise ViolationError("L14", f"{outlived} live on, and were given up")
        hosts = [worker.host for worker in workers]
        if len(hosts) != len(set(hosts)):
            raise ViolationError("L14", f"two workers of one host: {[worker.me for worker in workers]}")


def _has_due(stage: Stage) -> bool:
    """Whether some ready task of it does not wait for a time that was set for it."""
    tasks = stage.tasks
    assert tasks is not None
    delayed = sum(
        tasks.tasks[partition].ticket == ticket and tasks.tasks[partition].state is State.READY
        for _, partition, ticket in tasks._delayed
    )
    return tasks.ready > delayed


def _waits_for_a_fresh_process(stage: Stage, now_s: float) -> bool:
    """Whether its suspects have waited for no longer than that takes."""
    assert stage.tasks is not None
    task = stage.tasks.first_suspect()
    return task is not None and task.trouble is not None and now_s - task.trouble.suspect_since_s < _FRESH_S
