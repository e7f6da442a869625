"""The status store answers from the scheduler's notes, and keeps only what it must."""

import pytest

from spark_ft.status import SparkJobInfo, SparkStageInfo, StatusStore, StatusTracker


@pytest.fixture
def store():
    return StatusStore(retained_jobs=3, retained_stages=3)


def job_start(store, job, group=None, stages=(0,)):
    store.note("job_start", {"job": job, "name": "", "group": group, "tags": [], "stages": list(stages)})


def stage_start(store, stage, tasks=2, attempt=0):
    store.note("stage_start", {"stage": stage, "attempt": attempt, "job": 0, "name": "n", "tasks": tasks})


def task(store, kind, task, partition, **more):
    store.note(kind, {"task": task, "stage": 0, "partition": partition, "executor": "e", **more})


def test_a_job_runs_and_then_has_succeeded_or_failed(store):
    tracker = StatusTracker(store)
    job_start(store, 0, stages=[0, 1])
    job_start(store, 1)
    assert tracker.getJobInfo(0) == SparkJobInfo(0, [0, 1], "RUNNING")
    assert tracker.getActiveJobsIds() == [0, 1]
    store.note("job_end", {"job": 0, "ok": True})
    store.note("job_end", {"job": 1, "ok": False})
    assert [tracker.getJobInfo(j).status for j in (0, 1)] == ["SUCCEEDED", "FAILED"]
    assert tracker.getActiveJobsIds() == []


def test_jobs_of_a_group_come_newest_first_and_none_means_without_a_group(store):
    tracker = StatusTracker(store)
    for job, group in enumerate(["g", None, "g"]):
        job_start(store, job, group)
    assert tracker.getJobIdsForGroup("g") == [2, 0]
    assert tracker.getJobIdsForGroup() == tracker.getJobIdsForGroup(None) == [1]
    assert tracker.getJobIdsForGroup("h") == []


def test_a_stage_counts_its_tasks(store):
    tracker = StatusTracker(store)
    store.note("executor_added", {"executor": "e", "host": "h"})
    stage_start(store, 0, tasks=3)
    for number in range(3):
        task(store, "task_start", number, number)
    assert tracker.getExecutorInfos()[0].numRunningTasks == 3
    task(store, "task_end", 0, 0, reason="Success")
    task(store, "task_end", 1, 1, reason="UserError")
    assert tracker.getStageInfo(0) == SparkStageInfo(0, 0, "n", 3, 1, 1, 1)
    assert tracker.getActiveStageIds() == [0]
    store.note("stage_end", {"stage": 0, "attempt": 0, "ok": True})
    assert tracker.getActiveStageIds() == []
    store.note("executor_lost", {"executor": "e"})
    assert tracker.getExecutorInfos() == []


def test_twins_of_one_partition_count_once(store):
    stage_start(store, 0)
    for number in range(2):
        task(store, "task_start", number, 0)
        task(store, "task_end", number, 0, reason="Success")
    assert store.stage(0).numCompletedTasks == 1


def test_a_killed_attempt_has_not_failed(store):
    stage_start(store, 0)
    task(store, "task_start", 0, 0)
    task(store, "task_end", 0, 0, reason="Killed")
    assert store.stage(0).numFailedTasks == 0


def test_another_attempt_of_a_stage_begins_anew(store):
    stage_start(store, 0)
    task(store, "task_end", 0, 0, reason="Success")
    store.note("stage_end", {"stage": 0, "attempt": 0, "ok": False})
    stage_start(store, 0, tasks=1, attempt=1)
    assert store.stage(0) == SparkStageInfo(0, 1, "n", 1, 0, 0, 0)


def test_what_is_not_known_is_none(store):
    tracker = StatusTracker(store)
    store.note("something_else", {"x": 1})
    assert tracker.getJobInfo(9) is None and tracker.getStageInfo(9) is None


def test_only_the_newest_ended_jobs_and_stages_are_kept(store):
    for number in range(10):
        job_start(store, number)
        stage_start(store, number)
        if number:
            store.note("stage_end", {"stage": number, "attempt": 0, "ok": True})
            store.note("job_end", {"job": number, "ok": True})
    assert [j for j in range(10) if store.job(j)] == [0, 8, 9]
    assert [s for s in range(10) if store.stage(s)] == [0, 8, 9]
