"""What users are told: ``status`` and ``explain`` from another process, listeners, and where logs lie."""

import json
import os
import shutil
import signal
import subprocess
import textwrap
import threading
from collections import Counter
from operator import add
from pathlib import Path

import pytest

from spark_ft.listener import SparkListener
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, is_alive, wait_until


def spark_ft(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a user would call it."""
    how = faultlib.python("-m", "spark_ft", *map(str, arguments))
    how["env"] |= environment
    return subprocess.run(**how, capture_output=True, text=True, timeout=60)


def told(*arguments: object, **environment: str) -> dict:
    done = spark_ft(*arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def script(tmp_path: Path, text: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A program of the user's own, in a process of its own."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text))
    how = faultlib.python(str(path), *map(str, arguments))
    how["env"] |= environment
    pipe = subprocess.PIPE
    return subprocess.Popen(**how, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_another_process_sees_what_runs_and_why_a_task_was_run_again(start, tmp_path) -> None:
    running, gate = start(), Gate(tmp_path / "gate")
    app, place = running.sc.applicationId, ("--dir", running.log.directory)
    pairs = running.sc.parallelize(range(60), 3).mapPartitionsWithIndex(gate.hold).map(lambda x: (x % 5, x))
    action = Action(lambda: sorted(pairs.reduceByKey(add, 2).collect()))
    wait_until(lambda: gate.waiting() == 3)

    about = told("status", app, *place)
    assert about["state"] == "running" and about["pid"] == os.getpid()
    assert {(task["stage"], task["partition"]) for task in about["running_tasks"]} == {(0, 0), (0, 1), (0, 2)}
    assert {task["pid"] for task in about["running_tasks"]} == {gate.pid_of(index) for index in range(3)}
    assert sum(executor["running"] for executor in about["executors"]) == 3

    victim = next(task for task in about["running_tasks"] if task["partition"] == 1)
    running.kill(victim["pid"])
    running.log.wait_for("executor_lost", executor=victim["executor"])
    wait_until(lambda: gate.arrivals().get("1") == 2)
    about = told("status", app, *place)
    (recovery,) = about["recoveries"]
    assert recovery["cause"] == "executor_lost" and recovery["to_ms"] is None, "it goes on"

    gate.open()
    assert action.result() == [(key, sum(range(key, 60, 5))) for key in range(5)]
    story = told("explain", app, "0.1", *place)
    first, second = story["attempts"]
    assert (first["pid"], first["reason"]) == (victim["pid"], "ExecutorLost")
    (cause,) = second["why"]
    assert cause["kind"] == "executor_lost" and cause["executor"] == victim["executor"]
    assert second["pid"] == gate.pid_of(1, 1) and second["reason"] == "Success"
    assert len(told("explain", app, "0.0", *place)["attempts"]) == 1

    running.stop()
    shown = spark_ft("explain", app, "0.1", *place).stdout
    again = next(line for line in shown.splitlines() if "run again" in line)
    assert f"{victim['executor']} (pid {victim['pid']}, {victim['host']}) was lost" in again
    assert "SIGKILL" in again and second["executor"] in again
    about = told("status", app, *place)
    assert about["state"] == "ended" and about["running_tasks"] == []
    (recovery,) = about["recoveries"]
    assert recovery["redone"] == 1 and recovery["to_ms"] >= recovery["from_ms"]


def test_explain_names_the_evidence_that_an_output_was_lost_and_who_missed_it(start, tmp_path) -> None:
    running, gate = start("local-cluster[2,1,512]"), Gate(tmp_path / "gate")
    app, place = running.sc.applicationId, ("--dir", running.log.directory)
    numbers = running.sc.parallelize(range(60), 6).mapPartitionsWithIndex(gate.share(2))
    sums = numbers.map(lambda x: (x % 5, x)).reduceByKey(add, 2).mapPartitionsWithIndex(gate.hold)
    action = Action(lambda: sorted(sums.collect()))
    wait_until(lambda: gate.waiting() == 2)
    done = next(e for e in running.log.of("task_start", kind="map") if e["partition"] == 3)
    (store,) = (running.sc._driver.scratch / "hosts").glob(f"*/stores/{done['executor']}")
    shutil.rmtree(store)
    gate.open()
    assert action.result() == [(key, sum(range(key, 60, 5))) for key in range(5)]
    story = told("explain", app, "0.3", *place)
    first, second = story["attempts"]
    assert first["reason"] == second["reason"] == "Success"
    (cause,) = second["why"]
    assert cause["kind"] == "output_lost" and cause["evidence"] == "missing"
    missed = running.log.of("fetch_failed", evidence="missing")
    readers = {event["partition"] for event in missed}
    assert readers, "nobody missed it"
    for reader in readers:
        again = told("explain", app, f"1.{reader}", *place)["attempts"][1]
        assert again["why"][0]["kind"] == "fetch_failed" and again["why"][0]["evidence"] == "missing"
    recoveries = told("status", app, *place)["recoveries"]
    assert [r["cause"] for r in recoveries] == ["fetch_failed"] and recoveries[0]["to_ms"] is not None


SHORT = """
    import os, sys, tempfile
    from spark_ft import SparkContext
    sc = SparkContext("local[2]", "short")
    assert sc.parallelize(range(10), 4).sum() == 45
    print(sc.applicationId, flush=True)
    sys.stdin.readline()
    sc.stop()
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_ST_17_the_log_of_an_ended_application_is_found_in_its_default_place(end, tmp_path, scratch) -> None:
    temp = {"TMPDIR": str(scratch)}
    program = script(tmp_path, SHORT, **temp)
    assert program.stdin is not None and program.stdout is not None
    app = program.stdout.readline().strip()
    assert told("status", app, **temp)["state"] == "running"
    if end == "kill":
        program.kill()
    else:
        program.stdin.write("\n")
    program.communicate(timeout=30)
    wait_until(lambda: not faultlib.processes_that_mention(scratch))
    about = told("status", app, **temp)
    assert about["state"] == {"stop": "ended", "kill": "lost"}[end]
    assert about["task_starts"] == 4 and about["jobs"]["succeeded"] == 1
    assert told("explain", app[:-1], "0.3", **temp)["attempts"][0]["reason"] == "Success"
    (directory,) = [path for path in scratch.iterdir() if "events" in path.name]
    assert [path.name for path in directory.iterdir()] == [f"{app}.jsonl"]
    for path in scratch.iterdir():  # also what a killed driver left: it is not this test's subject
        shutil.rmtree(path)


FULL = """
    import os, resource
    from spark_ft import SparkConf, SparkContext
    import sys
    conf = SparkConf().set("spark.eventLog.dir", sys.argv[1]).setMaster("local[2]")
    sc = SparkContext(conf=conf)
    sc.parallelize(range(10), 2).count()
    sc._driver.flush_events()
    size = os.path.getsize(sc._driver._events.path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    for _ in range(20):
        assert sc.parallelize(range(100), 4).map(lambda x: (x % 3, x)).groupByKey().count() == 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("done", flush=True)
    sc.stop()
"""


def test_a_log_that_cannot_be_written_costs_lines_and_never_the_job(tmp_path, scratch) -> None:
    program = script(tmp_path, FULL, tmp_path / "events", TMPDIR=str(scratch))
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0 and out.strip() == "done", err
    assert err.count("will have gaps; the job goes on") == 1
    (path,) = (tmp_path / "events").iterdir()
    app = told("status", path.name.removesuffix(".jsonl"), "--dir", tmp_path / "events")
    assert app["jobs"]["succeeded"] < 21, "the fault took effect: lines are missing"


class Heard(SparkListener):
    """What ``spark.extraListeners`` makes; the test asks the class."""

    made: "list[Heard]" = []

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        Heard.made.append(self)

    def onApplicationStart(self, applicationStart: object) -> None:
        self.events.append(("start", applicationStart))

    def onTaskStart(self, taskStart: object) -> None:
        self.events.append(("task", taskStart))

    def onTaskEnd(self, taskEnd: object) -> None:
        self.events.append(("end", taskEnd))

    def onExecutorRemoved(self, executorRemoved: object) -> None:
        self.events.append(("lost", executorRemoved))

    def onJobEnd(self, jobEnd: object) -> None:
        self.events.append(("job", jobEnd))

    def onApplicationEnd(self, applicationEnd: object) -> None:
        self.events.append(("stop", applicationEnd))


def test_a_listener_hears_of_a_lost_executor_and_of_the_task_that_runs_again(start, tmp_path) -> None:
    Heard.made.clear()
    running = start(spark_extraListeners=f"{__name__}.Heard")
    gate, listener = Gate(tmp_path / "gate"), Heard.made[0]
    action = Action(lambda: running.sc.parallelize(range(30), 3).mapPartitionsWithIndex(gate.hold).sum())
    wait_until(lambda: gate.waiting() == 3)
    running.kill(gate.pid_of(2))
    wait_until(lambda: gate.arrivals().get("2") == 2)
    gate.open()
    assert action.result() == sum(range(30))
    running.stop()
    kinds = [kind for kind, _ in listener.events]
    assert kinds[0] == "start" and kinds[-1] == "stop" and kinds.count("lost") == 1
    ends = Counter((e.taskInfo.index, e.reason) for kind, e in listener.events if kind == "end")
    assert ends == {(0, "Success"): 1, (1, "Success"): 1, (2, "Success"): 1, (2, "ExecutorLost"): 1}
    assert "task" in kinds[kinds.index("lost") :], "it is started again after the loss"
    (job,) = [e for kind, e in listener.events if kind == "job"]
    assert job.jobResult == "JobSucceeded"


def test_DR_12_a_listener_that_blocks_for_ever_delays_no_job_and_the_end_only_so_long(start) -> None:
    entered = threading.Event()

    class Stuck(SparkListener):
        def onTaskStart(self, taskStart: object) -> None:
            entered.set()
            threading.Event().wait()

    class Raises(SparkListener):
        def onTaskStart(self, taskStart: object) -> None:
            raise ValueError("boom")

    running = start("local[2]")
    running.sc.addSparkListener(Stuck())
    running.sc.addSparkListener(Raises())
    for _ in range(5):
        assert running.sc.parallelize(range(10), 4).sum() == 45
    assert entered.is_set()
    stopping = Action(running.sc.stop)
    stopping.result(5.0)


def test_status_tells_that_an_executor_is_stopped(start) -> None:
    running = start("local[2]")
    assert running.sc.parallelize(range(10), 2).sum() == 45
    (pid, *_) = running.executor_pids()
    running.kill(pid, signal.SIGSTOP)
    try:
        running.log.wait_for("executor_stopped", stopped=True)
        about = told("status", running.sc.applicationId, "--dir", running.log.directory)
        assert [e["pid"] for e in about["executors"] if e["stopped"]] == [pid]
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)
