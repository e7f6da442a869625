"""What runs and what ran: the store that notes of the scheduler feed, and the tracker that asks it.

* ``note`` is called by the driver's I/O thread, the questions come from any thread: one lock.
* Only counts are kept, not tasks: O(stages) memory, and of ended jobs and stages only the newest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["SparkExecutorInfo", "SparkJobInfo", "SparkStageInfo", "StatusTracker"]


class SparkJobInfo(NamedTuple):
    """``status`` is RUNNING, SUCCEEDED, FAILED or UNKNOWN."""

    jobId: int
    stageIds: list[int]
    status: str


class SparkStageInfo(NamedTuple):
    stageId: int
    currentAttemptId: int
    name: str
    numTasks: int
    numActiveTasks: int
    numCompletedTasks: int
    numFailedTasks: int


class SparkExecutorInfo(NamedTuple):
    """An executor; its ports and sizes are not told here and stand at 0."""

    host: str
    port: int
    cacheSize: int
    numRunningTasks: int
    usedOnHeapStorageMemory: int
    usedOffHeapStorageMemory: int
    totalOnHeapStorageMemory: int
    totalOffHeapStorageMemory: int


@dataclass(slots=True)
class _Job:
    job: int
    group: str | None
    stages: list[int]
    status: str = "RUNNING"


@dataclass(slots=True)
class _Stage:
    stage: int
    name: str
    tasks: int
    attempt: int = 0
    active: set[int] = field(default_factory=set)  # task ids
    completed: set[int] = field(default_factory=set)  # partitions
    failed: int = 0
    running: bool = True


@dataclass(slots=True)
class _Executor:
    host: str
    running: set[int] = field(default_factory=set)


class StatusStore:
    """Jobs, stages and executors as the notes told of them."""

    def __init__(self, retained_jobs: int = 1000, retained_stages: int = 1000) -> None:
        self._retained_jobs = retained_jobs
        self._retained_stages = retained_stages
        self._jobs: dict[int, _Job] = {}
        self._stages: dict[int, _Stage] = {}
        self._executors: dict[str, _Executor] = {}
        self._lock = threading.Lock()

    def note(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one note; kinds that tell nothing about status are ignored."""
        handler = _HANDLERS.get(kind)
        if handler is not None:
            with self._lock:
                handler(self, fields)

    # --- Notes ---

    def _job_start(self, f: Mapping[str, Any]) -> None:
        job = f["job"]
        self._jobs[job] = _Job(job, f["group"], list(f["stages"]))

    def _job_end(self, f: Mapping[str, Any]) -> None:
        job = self._jobs.get(f["job"])
        if job is not None:
            job.status = "SUCCEEDED" if f["ok"] else "FAILED"
        self._forget(self._jobs, self._retained_jobs, lambda job: job.status != "RUNNING")

    def _stage_start(self, f: Mapping[str, Any]) -> None:
        stage = self._stages.get(f["stage"])
        if stage is None:
            self._stages[f["stage"]] = _Stage(f["stage"], f["name"], f["tasks"], f["attempt"])
        else:
            stage.attempt, stage.tasks, stage.running = f["attempt"], f["tasks"], True
            stage.completed.clear()

    def _stage_end(self, f: Mapping[str, Any]) -> None:
        stage = self._stages.get(f["stage"])
        if stage is not None:
            stage.running = False
        self._forget(self._stages, self._retained_stages, lambda stage: not stage.running)

    def _task_start(self, f: Mapping[str, Any]) -> None:
        if (stage := self._stages.get(f["stage"])) is not None:
            stage.active.add(f["task"])
        if (executor := self._executors.get(f["executor"])) is not None:
            executor.running.add(f["task"])

    def _task_end(self, f: Mapping[str, Any]) -> None:
        if (stage := self._stages.get(f["stage"])) is not None:
            stage.active.discard(f["task"])
            if f["reason"] == "Success":
                stage.completed.add(f["partition"])
            elif f["reason"] != "Killed":
                stage.failed += 1
        if (executor := self._executors.get(f["executor"])) is not None:
            executor.running.discard(f["task"])

    def _executor_added(self, f: Mapping[str, Any]) -> None:
        self._executors[f["executor"]] = _Executor(f["host"])

    def _executor_lost(self, f: Mapping[str, Any]) -> None:
        self._executors.pop(f["executor"], None)

    @staticmethod
    def _forget(kept: dict[int, Any], limit: int, ended: Any) -> None:
        """Drop the oldest ended ones beyond the limit."""
        if len(kept) > limit:
            for key in [k for k, v in kept.items() if ended(v)][: len(kept) - limit]:
                del kept[key]

    # --- Questions ---

    def jobs_of_group(self, group: str | None) -> list[int]:
        with self._lock:
            return sorted((j.job for j in self._jobs.values() if j.group == group), reverse=True)

    def active_jobs(self) -> list[int]:
        with self._lock:
            return sorted(j.job for j in self._jobs.values() if j.status == "RUNNING")

    def active_stages(self) -> list[int]:
        with self._lock:
            return sorted(s.stage for s in self._stages.values() if s.running)

    def job(self, job: int) -> SparkJobInfo | None:
        with self._lock:
            found = self._jobs.get(job)
            return None if found is None else SparkJobInfo(found.job, list(found.stages), found.status)

    def stage(self, stage: int) -> SparkStageInfo | None:
        with self._lock:
            s = self._stages.get(stage)
            if s is None:
                return None
            return SparkStageInfo(
                s.stage, s.attempt, s.name, s.tasks, len(s.active), len(s.completed), s.failed
            )

    def executors(self) -> list[SparkExecutorInfo]:
        with self._lock:
            return [
                SparkExecutorInfo(e.host, 0, 0, len(e.running), 0, 0, 0, 0)
                for e in self._executors.values()
            ]


_HANDLERS = {
    "job_start": StatusStore._job_start,
    "job_end": StatusStore._job_end,
    "stage_start": StatusStore._stage_start,
    "stage_end": StatusStore._stage_end,
    "task_start": StatusStore._task_start,
    "task_end": StatusStore._task_end,
    "executor_added": StatusStore._executor_added,
    "executor_lost": StatusStore._executor_lost,
}


class StatusTracker:
    """Low-level progress of jobs and stages, from ``SparkContext.statusTracker()``.

    Only recent jobs and stages are known; the answer for all others is None.
    """

    def __init__(self, store: StatusStore) -> None:
        self._store = store

    def getJobIdsForGroup(self, jobGroup: str | None = None) -> list[int]:
        """All known jobs of a group, or those without one; the newest first."""
        return self._store.jobs_of_group(jobGroup)

    def getActiveStageIds(self) -> list[int]:
        return self._store.active_stages()

    def getActiveJobsIds(self) -> list[int]:
        return self._store.active_jobs()

    def getJobInfo(self, jobId: int) -> SparkJobInfo | None:
        return self._store.job(jobId)

    def getStageInfo(self, stageId: int) -> SparkStageInfo | None:
        return self._store.stage(stageId)

    def getExecutorInfos(self) -> list[SparkExecutorInfo]:
        return self._store.executors()
