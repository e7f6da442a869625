"""What the records tell: why a task was started again, what was recovered, what an application is."""

import pytest

from spark_ft.history import model
from spark_ft.history.recoveries import Recoveries
from spark_ft.history.telling import explain, explain_json
from tests.unit.history.story import Story


@pytest.fixture
def story():
    story = Story()
    story.application()
    story.executor("e0", pid=200)
    story.executor("e1", pid=201)
    story.job()
    story.stage()
    return story


def why(story, partition=0, stage=0):
    """kind of cause and text, of the last start of a place."""
    (cause,) = model.of(story.records).places[(stage, partition)][-1].why
    return cause.kind, cause.text


def recovered(story):
    """(cause, redone, adopted, given up, from, to) of each recovery, in the order of their ends."""
    recoveries = Recoveries()
    found = [out for record in story.records for out in recoveries.feed(record)]
    starts = {r["recovery"] for r in found if r["event"] == "recovery_start"}
    ends = [r for r in found if r["event"] == "recovery_end"]
    assert {r["recovery"] for r in ends} <= starts and len(starts) == len(ends) + recoveries.open
    return [
        (r["cause"], r["redone"], r["adopted"], r["given_up"], r["from_ms"], r["to_ms"]) for r in ends
    ]  # fmt: skip


# --- Why again ------------------------------------------------------------------------------------


def test_a_first_run_has_no_cause(story):
    story.start(0)
    assert model.of(story.records).places[(0, 0)][0].why == []


def test_a_lost_executor_is_named_with_its_pid_and_how_it_ended(story):
    task = story.start(0)
    story.executor_lost(why="executor process ended with SIGKILL")
    story.end(task, "ExecutorLost")
    story.start(0, attempt=1, executor="e1")
    kind, text = why(story)
    assert kind == "executor_lost"
    assert text == "e0 (pid 200, h0) was lost: executor process ended with SIGKILL, while it ran attempt 0"


def test_an_error_of_user_code_is_told(story):
    story.end(story.start(0), "UserError", "ZeroDivisionError: division by zero")
    story.start(0, attempt=1)
    kind, text = why(story)
    assert kind == "failed" and "UserError: ZeroDivisionError: division by zero" in text
    assert "e0 (pid 200, h0)" in text


def test_a_fetch_that_failed_is_told_with_its_evidence(story):
    task = story.start(0, stage=1)
    story.end(task, "FetchFailed")
    story.note(
        "fetch_failed", task=task, stage=1, partition=0, shuffle=0, map=3, host="h7", store="s",
        evidence="corrupt", text="checksum",
    )  # fmt: skip
    story.start(0, stage=1, attempt=1)
    kind, text = why(story, stage=1)
    assert kind == "fetch_failed" and "output 3 of shuffle 0 could not be read from h7" in text
    assert "corrupt" in text and "checksum" in text


def test_an_output_that_was_lost_is_told_with_what_showed_it(story):
    story.end(story.start(3))
    story.note(
        "fetch_failed", task=99, stage=1, partition=0, shuffle=0, map=3, host="h7", store="s",
        evidence="missing", text="",
    )  # fmt: skip
    story.note("output_lost", stage=0, shuffle=0, map=3, evidence="missing")
    story.start(3, attempt=1)
    kind, text = why(story, 3)
    assert kind == "output_lost" and "could not be read from h7" in text and "missing" in text


def test_an_output_that_went_with_its_host_names_the_worker(story):
    story.end(story.start(3))
    story.note("worker_lost", worker="w0", host="h0", why="its process ended with SIGKILL")
    story.note("output_lost", stage=0, shuffle=0, map=3, evidence="host lost")
    story.start(3, attempt=1)
    assert why(story, 3)[0] == "output_lost" and "worker w0 of h0 was lost: its process" in why(story, 3)[1]


def test_a_rollback_is_the_cause_of_every_partition_that_had_begun(story):
    for partition in (0, 1):
        story.end(story.start(partition))
    story.note(
        "rollback", shuffle=0, generation=1, what="output 1 of shuffle 0", cause=0, map=1, stage=0, tasks=4
    )
    story.start(0, attempt=1)
    story.start(2)
    assert why(story, 0)[0] == "rollback" and "generation 1" in why(story, 0)[1]
    assert model.of(story.records).places[(0, 2)][-1].why == [], "it is its first run"


def test_a_twin_names_the_attempt_that_is_slow(story):
    story.start(0)
    story.note("speculation", task=1, stage=0, partition=0)
    story.start(0, attempt=1, executor="e1", speculative=True)
    kind, text = why(story)
    assert kind == "speculation" and "attempt 0 in e0 (pid 200, h0)" in text


def test_a_twin_that_is_broken_off_after_the_other_has_won_is_no_cause_of_anything(story):
    first = story.start(0)
    second = story.start(0, attempt=1, executor="e1", speculative=True)
    story.end(first)
    story.note("task_killed", task=second, why="another attempt succeeded")
    story.end(second, "Killed")
    story.note("output_lost", stage=0, shuffle=0, map=0, evidence="missing")
    story.start(0, attempt=2)
    assert why(story)[0] == "output_lost"


def test_an_attempt_that_was_broken_off_says_why(story):
    task = story.start(0)
    story.note("task_killed", task=task, why="its input was replaced")
    story.end(task, "Killed")
    story.start(0, attempt=1)
    assert why(story) == ("killed", "attempt 0 was broken off: its input was replaced")


def test_a_lost_result_and_withdrawn_ones_are_causes(story):
    for event, more in (("result_lost", {"partition": 1}), ("results_withdrawn", {"partitions": [1]})):
        story.end(story.start(1, stage=1))
        story.note(event, job=0, text="gone", **more)
        story.start(1, stage=1, attempt=1)
        assert why(story, 1, stage=1)[0] == event
        story.end(1, "Success")


def test_where_older_records_are_gone_the_cause_is_said_to_be_unknown(story):
    story.records[:0] = [{"event": "log_kept", "t_ms": 0, "through": 3, "dropped": {"task_start": 7}}]
    story.start(0, attempt=2)
    assert why(story)[0] == "unknown"
    assert model.of(story.records).missing == 7


# --- Recoveries ---------------------------------------------------------------------------------------


def test_a_recovery_lasts_from_the_loss_to_the_end_of_the_last_task_that_it_undid(story):
    tasks = [story.start(0), story.start(1)]
    story.executor_lost()
    lost_ms = story.t_ms
    for task in tasks:
        story.end(task, "ExecutorLost")
    story.end(story.start(0, attempt=1, executor="e1"))
    assert recovered(story) == []
    story.end(story.start(1, attempt=1, executor="e1"))
    assert recovered(story) == [("executor_lost", 2, 0, 0, lost_ms, story.t_ms)]


def test_an_adopted_output_ends_its_part_of_the_recovery_without_a_task(story):
    task = story.start(0)
    story.executor_lost()
    lost_ms = story.t_ms
    story.end(task, "ExecutorLost")
    story.note("output_adopted", shuffle=0, map=0, task=task)
    assert recovered(story) == [("executor_lost", 0, 1, 0, lost_ms, story.t_ms)]


def test_an_executor_that_ran_nothing_costs_no_recovery(story):
    story.end(story.start(0))
    story.executor_lost()
    assert recovered(story) == []


def test_outputs_that_nobody_needs_now_wait_until_their_stage_starts_again(story):
    for partition in range(4):
        story.end(story.start(partition))
    story.note("stage_end", stage=0, attempt=0, ok=True)
    story.stage(1, kind="result")
    story.note("worker_lost", worker="w0", host="h0", why="gone")
    lost_ms = story.t_ms
    for partition in (1, 2):
        story.note("output_lost", stage=0, shuffle=0, map=partition, evidence="host lost")
    recoveries = Recoveries()
    assert [out for record in story.records for out in recoveries.feed(record)] == [], "none has begun"
    story.stage(0, attempt=1, tasks=2)
    for partition in (1, 2):
        story.end(story.start(partition, attempt=1, stage_attempt=1))
    assert recovered(story) == [("worker_lost", 2, 0, 0, lost_ms, story.t_ms)]


def test_a_job_that_ends_gives_up_what_was_due_for_it_alone(story):
    task = story.start(0)
    story.executor_lost()
    lost_ms = story.t_ms
    story.end(task, "ExecutorLost")
    story.note("job_end", job=0, ok=False, condition="JOB_CANCELLED")
    assert recovered(story) == [("executor_lost", 0, 0, 1, lost_ms, story.t_ms)]


def test_a_second_loss_of_the_same_task_belongs_to_both(story):
    task = story.start(0)
    story.executor_lost("e0")
    story.end(task, "ExecutorLost")
    task = story.start(0, attempt=1, executor="e1")
    story.executor_lost("e1")
    story.end(task, "ExecutorLost")
    story.end(story.start(0, attempt=2, executor="e2"))
    assert [(cause, redone) for cause, redone, *_ in recovered(story)] == [("executor_lost", 1)] * 2


# --- The model ------------------------------------------------------------------------------------------


def test_an_application_has_jobs_stages_attempts_executors_and_recoveries(story):
    story.end(story.start(0))
    story.start(1)
    story.note("recovery_end", recovery=0, cause="c", text="t", from_ms=1, to_ms=2, redone=3, adopted=0,
               given_up=0)  # fmt: skip
    app = model.of(story.records)
    assert (app.id, app.name, app.pid) == ("app-1", "program", 100)
    assert [job.stages for job in app.jobs.values()] == [[0, 1]]
    assert [attempt.partition for attempt in app.running()] == [1]
    assert app.executors["e0"].starts == 2 and len(app.live_executors()) == 2
    assert app.recoveries[0].redone == 3


def test_records_of_a_kind_that_is_not_known_are_remarks_on_whom_they_name(story):
    story.start(0)
    story.note("executor_excluded", executor="e1", why="three errors")
    story.note("task_stalled", stage=0, partition=0, executor="e0", text="no progress for 60 s")
    app = model.of(story.records)
    assert app.executors["e1"].remarks == ["executor excluded: three errors"]
    assert any("task stalled: no progress" in s.text for s in explain(app, 0, 0))


@pytest.mark.parametrize(
    "record",
    [
        {"event": "task_start"},
        {"event": "task_end"},
        {"event": "job_start", "t_ms": "x", "job": 0},
        {"event": "executor_lost", "t_ms": None},
        {"event": "log_gap", "t_ms": 1, "records": "many"},
        {"event": "rollback", "t_ms": 1, "tasks": None, "stage": 0},
    ],
    ids=lambda record: record["event"],
)
def test_a_record_of_another_version_is_counted_and_left_out(story, record):
    story.records.append(record)
    story.start(0)
    app = model.of(story.records)
    assert app.missing == 1 and (0, 0) in app.places


def test_the_second_run_under_one_id_is_the_one_that_is_told(story):
    story.end(story.start(0))
    story.application()
    story.job(5, (7,))
    app = model.of(story.records)
    assert list(app.jobs) == [5] and app.places == {}


# --- Sentences --------------------------------------------------------------------------------------------


def test_a_task_is_told_in_order_of_time_with_the_cause_of_each_start(story):
    task = story.start(0)
    story.executor_lost(why="executor process ended with SIGKILL")
    story.end(task, "ExecutorLost")
    story.end(story.start(0, attempt=1, executor="e1", pid=201))
    sentences = explain(model.of(story.records), 0, 0)
    assert [s.t_ms for s in sentences] == sorted(s.t_ms for s in sentences)
    first, lost, again, done = (s.text for s in sentences)
    assert first.startswith("attempt 0 began in e0 (pid 200, h0): the first run of partition 0 of map stage")
    assert "for job 0 (job 0)" in first
    assert lost == "attempt 0 ended with its executor after 2.000 s: executor process ended with SIGKILL."
    assert again.startswith("attempt 1 began in e1 (pid 201, h0): run again, because e0 (pid 200, h0)")
    assert done == "attempt 1 succeeded after 1.000 s (3 records)."


def test_the_same_for_programs(story):
    story.start(0)
    about = explain_json(model.of(story.records), 0, 0)
    assert about["application"] == "app-1" and about["jobs"] == [0]
    assert about["attempts"][0]["executor"] == "e0" and about["attempts"][0]["end_ms"] is None
    assert about["story"][-1]["text"].startswith("attempt 0 has not ended")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((7, 0), "has no stage 7: it has stages 0 to 0"),
        ((0, 9), "there are partitions 0 to 1"),
    ],
)
def test_what_is_not_known_is_told_with_what_is(story, place, said):
    for partition in (0, 1):
        story.start(partition)
    with pytest.raises(LookupError, match=said):
        explain(model.of(story.records), *place)
