"""``spark-ft status`` and ``explain``: what they print, for people and programs, and their errors."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from spark_ft.__main__ import main
from spark_ft.driver.logfiles import LogWriter, Retention
from tests.unit.history.story import Story


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


def write(directory, app, records):
    writer = LogWriter(directory, app, Retention())
    writer.put([json.dumps(record).encode() + b"\n" for record in records])
    return writer


@pytest.fixture
def logs(tmp_path):
    """app-lost and app-ended have run, app-live runs."""
    story = Story()
    story.application("app-ended")
    story.executor("e0", pid=200)
    story.job()
    story.stage()
    task = story.start(0)
    story.executor_lost("e0", "executor process ended with SIGKILL")
    story.end(task, "ExecutorLost")
    story.executor("e1", pid=201)
    story.note("recovery_start", recovery=0, cause="executor_lost", text="e0 was lost", tasks=[[0, 0]])
    story.end(story.start(0, attempt=1, executor="e1", pid=201))
    story.note(
        "recovery_end", recovery=0, cause="executor_lost", text="e0 was lost", from_ms=6000, to_ms=9000,
        redone=1, adopted=0, given_up=0,
    )  # fmt: skip
    lost = list(story.records)
    story.note("job_end", job=0, ok=True, condition="")
    story.note("application_end", app="app-ended")
    write(tmp_path, "app-ended", story.records).close()
    lost[0] = lost[0] | {"app": "app-lost"}
    write(tmp_path, "app-lost", lost).close()
    live = Story()
    live.application("app-live")
    live.executor("e9", pid=900)
    live.job()
    live.stage()
    live.start(2, executor="e9", pid=900)
    writer = write(tmp_path, "app-live", live.records)
    yield tmp_path
    writer.close()


def test_status_lists_applications_with_their_state(run, logs):
    shown = run("status", "--dir", logs)
    assert shown.exit_code == 0
    for app, state in (("app-ended", "ended"), ("app-lost", "lost"), ("app-live", "running")):
        assert any(app in line and state in line.split() for line in shown.output.splitlines()), app
    found = json.loads(run("status", "--dir", logs, "--json").output)["applications"]
    live = next(a for a in found if a["application"] == "app-live")
    assert (live["executors"], live["running_tasks"], live["recoveries"]) == (1, 1, 0)
    assert {a["application"]: a["state"] for a in found} == {
        "app-ended": "ended", "app-lost": "lost", "app-live": "running"
    }  # fmt: skip


def test_status_of_a_running_application_tells_what_runs_where(run, logs):
    about = json.loads(run("status", "app-live", "--dir", logs, "--json").output)
    (task,) = about["running_tasks"]
    assert (task["stage"], task["partition"], task["pid"]) == (0, 2, 900)
    (executor,) = about["executors"]
    assert executor["running"] == 1 and executor["lost_ms"] is None
    assert [job["job"] for job in about["jobs"]["running"]] == [0]
    shown = run("status", "app-live", "--dir", logs)
    assert "0.2" in shown.output and "900" in shown.output


def test_status_of_an_ended_one_tells_what_was_lost_and_recovered(run, logs):
    about = json.loads(run("status", "app-ended", "--dir", logs, "--json").output)
    assert about["started_again"] == 1 and about["running_tasks"] == []
    assert about["recoveries"][0]["redone"] == 1
    shown = run("status", "app-e", "--dir", logs).output
    assert "SIGKILL" in shown and "3.000 s" in shown and "e0 was lost" in shown


def test_explain_tells_both_attempts_and_why_there_were_two(run, logs):
    shown = run("explain", "app-ended", "0.0", "--dir", logs)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert "attempt 0 began in e0 (pid 200, h0): the first run" in lines[1]
    assert "run again, because e0 (pid 200, h0) was lost" in lines[3] and "e1 (pid 201" in lines[3]
    about = json.loads(run("explain", "app-ended", "0.0", "--dir", logs, "--json").output)
    assert [attempt["why"][0]["kind"] for attempt in about["attempts"][1:]] == ["executor_lost"]


def test_a_log_is_found_by_its_path_too(run, logs):
    assert run("explain", logs / "app-ended.jsonl", "0.0").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("explain", "nobody", "0.0"), 1, "no application 'nobody' in"),
        (("explain", "app-", "0.0"), 1, "3 applications begin with 'app-'"),
        (("explain", "app-ended", "x"), 2, "'x' is not STAGE.PARTITION"),
        (("explain", "app-ended", "0.0.1"), 2, "such as 0.3"),
        (("explain", "app-ended", "0"), 2, "STAGE.PARTITION"),
        (("explain", "app-ended", "7.0"), 1, "has no stage 7"),
        (("explain", "app-ended", "0.9"), 1, "no task 0.9"),
        (("status", "nobody"), 1, "the latest are"),
    ],
)
def test_errors_say_what_was_wrong_and_what_there_is(run, logs, arguments, code, said):
    shown = run(*arguments, "--dir", logs)
    assert shown.exit_code == code and said in shown.output
    assert "Traceback" not in shown.output


def test_where_there_is_no_log_that_is_said(run, tmp_path):
    assert "There is no event log in" in run("status", "--dir", tmp_path / "none").output
    assert json.loads(run("status", "--dir", tmp_path, "--json").output) == {"applications": []}
    assert "--dir says where else" in run("status", "x", "--dir", tmp_path).output


def test_text_of_users_is_not_taken_for_markup(run, tmp_path):
    story = Story()
    story.application("app")
    story.records[0]["name"] = "[red]program[/red]"
    write(tmp_path, "app", story.records).close()
    assert "[red]program[/red]" in run("status", "--dir", tmp_path).output
    assert "[red]program[/red]" in run("status", "app", "--dir", tmp_path).output


def test_a_program_does_not_pay_for_the_command_line():
    code = "import sys, spark_ft; print(sorted({'click', 'rich', 'spark_ft.observe'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
