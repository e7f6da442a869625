"""TaskContext: None on the driver, one object in a task, one task per thread."""

import threading
from decimal import Decimal

import pytest

from spark_ft.taskcontext import ResourceInformation, TaskContext


@pytest.fixture
def task():
    context = TaskContext(3, 5, 1, 42, {"key": "value"}, cpus=2)
    TaskContext._set(context)
    yield context
    TaskContext._set(None)


def test_there_is_none_on_the_driver():
    assert TaskContext.get() is None
    assert TaskContext().stageId() == 0


def test_in_a_task_there_is_one_with_all_the_facts(task):
    assert TaskContext.get() is task and TaskContext() is task
    assert (task.stageId(), task.partitionId(), task.attemptNumber(), task.taskAttemptId()) == (3, 5, 1, 42)
    assert task.getLocalProperty("key") == "value" and task.getLocalProperty("none") is None
    assert task.cpus() == 2 and task.cpuAmount() == Decimal(2)
    assert task.resources() == {}


def test_resources_have_names_and_addresses():
    context = TaskContext(resources={"gpu": ResourceInformation("gpu", ["0", "1"])})
    assert context.resources()["gpu"].addresses == ["0", "1"]


def in_thread(work):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]


def test_a_thread_that_user_code_starts_belongs_to_the_only_task(task):
    assert in_thread(TaskContext.get) is task


def test_two_slots_do_not_see_each_other_s_task(task):
    def other_slot():
        mine = TaskContext(9)
        TaskContext._set(mine)
        try:
            return TaskContext.get() is mine and in_thread(TaskContext.get) is None
        finally:
            TaskContext._set(None)

    assert in_thread(other_slot)
    assert TaskContext.get() is task
