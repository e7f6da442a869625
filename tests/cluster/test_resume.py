"""Applications with an id: what outlives their driver, and who may go on with it (DR)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from spark_ft.__main__ import main
from tests.cluster import faultlib, resume_table
from tests.cluster.faultlib import Gate, wait_until

_HEAD = """
import os, sys, time
from pathlib import Path
from spark_ft import SparkConf, SparkContext

scratch, events, gate = map(Path, sys.argv[1:4])
conf = SparkConf(loadDefaults=False).setMaster(sys.argv[4]).set("spark.app.id", "one")
conf.set("spark.local.dir", str(scratch)).set("spark.eventLog.dir", str(events))

def hold(index, records, gate=str(gate)):
    open(f"{gate}/{index}@{os.getpid()}", "w").close()
    while not os.path.exists(f"{gate}/open"):
        time.sleep(0.005)
    return records
"""


class Programs:
    """Lives of one application; each is a process of its own."""

    def __init__(self, scratch: Path, tmp_path: Path) -> None:
        self.scratch, self.events = scratch, tmp_path / "events"
        self.gate = Gate(tmp_path / "gate")
        self.events.mkdir()
        self._lives: list[subprocess.Popen[str]] = []

    def start(self, body: str, master: str = "local[2]") -> subprocess.Popen[str]:
        places = str(self.scratch), str(self.events), self.gate.path
        command = faultlib.python("-c", _HEAD + body, *places, master)
        life = subprocess.Popen(
            **command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._lives.append(life)
        return life

    def run(self, body: str, master: str = "local[2]") -> tuple[str, str]:
        """To its good end: what it wrote."""
        life = self.start(body, master)
        out, err = life.communicate(timeout=60)
        assert life.returncode == 0, err
        return out, err

    def kept(self) -> list[str]:
        return sorted(path.parent.name for path in self.scratch.glob("spark_ft-apps-*/*/about.json"))

    def end(self) -> None:
        for life in self._lives:
            if life.poll() is None:
                life.kill()
            life.communicate()


@pytest.fixture
def programs(scratch: Path, tmp_path: Path) -> Iterator[Programs]:
    made = Programs(scratch, tmp_path)
    yield made
    made.end()
    wait_until(lambda: not faultlib.processes_that_mention(scratch), 10, "all processes to be gone")
    for path in scratch.iterdir():
        shutil.rmtree(path)


_SUM = "print(sc.parallelize(range(10), 2).map(lambda x: (x % 3, x)).reduceByKey(max, 2).count())\n"


@pytest.mark.parametrize(
    ("end", "stays"),
    [
        ("sc.stop()", False),
        ("raise KeyError(1)", True),  # the interpreter's exit ends it
        ("try:\n    raise KeyError(1)\nfinally:\n    sc.stop()", True),
        ("os.kill(os.getpid(), 9)", True),
    ],
)
def test_a_good_end_leaves_nothing_and_any_other_all(programs: Programs, end: str, stays: bool) -> None:
    life = programs.start(f"sc = SparkContext(conf=conf)\n{_SUM}{end}\n")
    out, err = life.communicate(timeout=60)
    assert out == "3\n" and (life.returncode != 0) == stays, err
    assert programs.kept() == (["one"] if stays else [])
    if stays:
        stores = programs.scratch.glob("spark_ft-apps-*/one/hosts/host-0/stores/executor-*/seg-*")
        assert list(stores), "what it has finished is gone"


def test_without_an_id_nothing_outlives_a_driver(programs: Programs) -> None:
    body = f"conf._conf.pop('spark.app.id')\nsc = SparkContext(conf=conf)\n{_SUM}os.kill(os.getpid(), 9)\n"
    programs.start(body).communicate(timeout=60)
    assert not list(programs.scratch.glob("spark_ft-apps-*"))


_LONG = """
with SparkContext(conf=conf) as sc:
    held = sc.parallelize(range(4), 2).mapPartitionsWithIndex(hold)
    print(held.map(lambda x: (x, x)).reduceByKey(max).count())
"""
_OTHER = """
with SparkContext(conf=conf) as sc:
    print(sc.parallelize(range(4), 2).map(lambda x: (x, x)).reduceByKey(max).count())
"""


@pytest.mark.parametrize(("stopped", "master"), [(True, "local-cluster[2,1,256]"), (False, "local[2]")])
def test_DR_4_the_older_of_two_drivers_is_fenced(programs: Programs, stopped: bool, master: str) -> None:
    older = programs.start(_LONG, master)
    wait_until(lambda: programs.gate.waiting() == 2, 30, "its tasks to run")
    if stopped:
        os.kill(older.pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(older.pid).status() == psutil.STATUS_STOPPED, 10, "its stop")
    out, _ = programs.run(_OTHER, master)
    assert out == "4\n"
    programs.gate.open()
    if stopped:
        os.kill(older.pid, signal.SIGCONT)
    out, err = older.communicate(timeout=30)
    assert older.returncode == 1 and "[DRIVER_FENCED]" in err and not out, err
    assert programs.kept() == []


def test_apps_lists_what_can_be_resumed_and_forget_removes_it(programs: Programs) -> None:
    life = programs.start(_LONG)
    wait_until(lambda: programs.gate.waiting() == 2, 30, "its tasks to run")
    (root,) = programs.scratch.glob("spark_ft-apps-*")
    (running,) = _apps(root)
    assert (running["app"], running["is_running"]) == ("one", True)
    refused = CliRunner().invoke(main, ["forget", "one", "--dir", str(root)])
    assert refused.exit_code == 1 and "left alone" in refused.output
    life.kill()
    life.wait()
    wait_until(lambda: not _apps(root)[0]["is_running"], 10, "its lock to be free")
    said = CliRunner().invoke(main, ["apps", "--dir", str(root)])
    assert "can be resumed" in said.output and "one" in said.output
    unknown = CliRunner().invoke(main, ["forget", "two", "--dir", str(root)])
    assert unknown.exit_code == 1 and "no application 'two'" in unknown.output
    done = CliRunner().invoke(main, ["forget", "one", "--dir", str(root)])
    assert done.exit_code == 0 and "is forgotten" in done.output
    assert not root.exists()


def _apps(root: Path) -> list[dict[str, Any]]:
    said = CliRunner().invoke(main, ["apps", "--json", "--dir", str(root)])
    found: list[dict[str, Any]] = json.loads(said.output)["applications"]
    return found


# --- What is done again, and what is not -------------------------------------------------------------

_TWO_ACTIONS = """
with SparkContext(conf=conf) as sc:
    seen = sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x % 3, x

    sums = sc.parallelize(range(40), 4).map(count).reduceByKey(lambda a, b: a + b, 4)
    print(sorted(sums.collect()), seen.value, flush=True)
    print(sums.map(lambda kv: kv[1] * FACTOR).sum(), seen.value, flush=True)
    large = sc.parallelize([0], 1).map(lambda x: "x" * 3_000_000).collect()
    print(len(large[0]), flush=True)
    END
"""


def _body(factor: int, end: str = "pass") -> str:
    return _TWO_ACTIONS.replace("FACTOR", str(factor)).replace("END", end)


def _events(programs: Programs) -> list[faultlib.Event]:
    lines = [line for path in programs.events.glob("*.jsonl*") for line in path.read_bytes().splitlines()]
    events = [json.loads(line) for line in lines]
    last = max(at for at, event in enumerate(events) if event["event"] == "application_start")
    return events[last:]


def test_DR_2_DR_13_finished_actions_are_answered_without_a_task(programs: Programs) -> None:
    first = programs.start(_body(2, "os.kill(os.getpid(), 9)"))
    out, err = first.communicate(timeout=60)
    assert first.returncode == -9 and len(out.splitlines()) == 3, err
    again, _ = programs.run(_body(2))
    assert again == out
    assert not faultlib.starts_per_partition(_events(programs))
    assert programs.kept() == []


def test_DR_5_a_changed_program_is_computed_from_where_it_differs_and_is_told_so(programs: Programs) -> None:
    first = programs.start(_body(2, "os.kill(os.getpid(), 9)"))
    out, _ = first.communicate(timeout=60)
    assert first.returncode == -9
    again, err = programs.run(_body(3))
    before, after = out.splitlines(), again.splitlines()
    assert after[0] == before[0] and after[2] == before[2]
    assert after[1] == "2340 40" and before[1] == "1560 40"
    events = _events(programs)
    assert {event["kind"] for event in events if event["event"] == "task_start"} == {"result"}
    assert sum(faultlib.starts_per_partition(events).values()) == 4
    assert "sum at " in err and "is not what an earlier life of this application ran" in err


_FAILING = """
from spark_ft import failpoints
from spark_ft.errors import SparkFtError

conf.set("spark.ft.recovery.failOnJournalError", sys.argv[4] == "local[1]")
sc = SparkContext(conf=conf)
print(sc.parallelize(range(4), 1).count(), flush=True)
failpoints.arm(f"witness={events},store.write=io@2")  # the first keeps the result, the second is the record's
for _ in range(2):
    try:
        print(sc.parallelize(range(5), 1).count(), flush=True)
    except SparkFtError as error:
        print(error.getCondition(), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("master", "said"), [("local[1]", "JOURNAL_WRITE_FAILED"), ("local[2]", "5")])
def test_DR_8_a_journal_that_cannot_be_written_ends_jobs_or_is_done_without(
    programs: Programs, master: str, said: str
) -> None:
    first = programs.start(_FAILING, master)
    out, err = first.communicate(timeout=60)
    assert out.split() == ["4", said, said], err
    assert (programs.events / "store.write").exists(), "the fault did not take effect"
    assert "[JOURNAL_WRITE_FAILED]" in err
    body = "with SparkContext(conf=conf) as sc:\n    print(sc.parallelize(range(4), 1).count())\n"
    out, _ = programs.run(body, master)  # what was written before is true
    assert out == "4\n" and not faultlib.starts_per_partition(_events(programs))


# --- Killed at any moment -----------------------------------------------------------------------------


@pytest.mark.parametrize("after", sorted(random.Random(20).sample(range(1, 60), 20)))
def test_DR_1_killed_after_any_event_the_driver_goes_on_and_only_the_rest_is_run(
    scratch: Path, after: int
) -> None:
    row = resume_table.try_event(scratch, after, "local[2]")
    assert row.killed and row.is_right, row
    for path in scratch.iterdir():
        shutil.rmtree(path)
