"""The life of a context: where it can be made, how it ends, and what is left of it afterwards (nothing)."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from operator import add
from pathlib import Path

import psutil
import pytest

from spark_ft import SparkConf, SparkContext
from spark_ft.errors import JobCancelled, UsageError
from tests.cluster import faultlib
from tests.cluster.faultlib import Action, Gate, wait_until

ROOT = str(Path(__file__).resolve().parents[2])
MASTERS = ["local[2]", "local-cluster[2,1,512]"]


def held() -> tuple[dict[str, str], set[str], set[int]]:
    """What this process holds: file descriptors, threads, children."""
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    threads = {thread.name for thread in threading.enumerate()}
    return fds, threads, {child.pid for child in psutil.Process().children(recursive=True)}


def conf(scratch: Path, master: str = "local[2]") -> SparkConf:
    return SparkConf(loadDefaults=False).setMaster(master).set("spark.local.dir", str(scratch))


def sums(sc: SparkContext) -> list[tuple[int, int]]:
    return sorted(sc.parallelize(range(60), 4).map(lambda x: (x % 5, x)).reduceByKey(add, 2).collect())


SUMS = [(k, sum(range(k, 60, 5))) for k in range(5)]

# --- It ends, and nothing is left --------------------------------------------------------------------


@pytest.mark.parametrize("master", MASTERS)
@pytest.mark.parametrize("when", ["fresh", "used", "busy"])
def test_a_context_stops_within_two_seconds_and_leaves_nothing(scratch, tmp_path, master, when) -> None:
    before = held()
    sc = SparkContext(conf=conf(scratch, master))
    action = None
    if when == "used":
        assert sums(sc) == SUMS and sc.parallelize([1]).cache().count() == 1
    if when == "busy":
        gate = Gate(tmp_path / "gate")
        action = Action(sc.parallelize([1, 2], 2).map(lambda x: (gate.arrive(x), time.sleep(60))).collect)
        wait_until(lambda: len(gate.arrivals()) == 2, what="two sleeping tasks")
    began_s = time.monotonic()
    sc.stop()
    assert time.monotonic() - began_s < 2
    if action is not None:
        with pytest.raises(JobCancelled, match="stopped"):
            action.result()
    assert held() == before
    assert os.listdir(scratch) == [] and not faultlib.processes_that_mention(scratch)


def test_a_hundred_contexts_in_one_process_leave_nothing(scratch) -> None:
    SparkContext(conf=conf(scratch, "local[1]")).stop()  # what is made once for all
    before = held()
    for number in range(100):  # one descriptor or thread that each of them leaves is a hundred
        sc = SparkContext(conf=conf(scratch, "local[1]"))
        if number % 10 == 0:
            assert sums(sc) == SUMS
        sc.stop()
    assert held() == before
    assert os.listdir(scratch) == [] and not faultlib.processes_that_mention(scratch)


def test_a_context_that_cannot_be_made_leaves_nothing(scratch, monkeypatch) -> None:
    before = held()
    for key, value in (("spark.local.dir", "/proc/none"), ("spark.eventLog.dir", "/proc/none")):
        with pytest.raises(Exception, match="/proc/none"):
            SparkContext(conf=conf(scratch).set(key, value))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Exception, match="cannot start a process"):
        SparkContext(conf=conf(scratch))
    assert SparkContext._active_spark_context is None
    assert held() == before and os.listdir(scratch) == []


# --- Where it can be made ----------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """As a user's: no hash seed, nothing of pytest's."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED" and not k.startswith("PYTEST")}
    return {**variables, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"}


def run(arguments: list[str], tmp_path: Path, typed: str = "", timeout_s: float = 30) -> str:
    """The output of a Python process that ends well."""
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment(), input=typed,
        capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def program(tmp_path: Path, scratch: Path, body: str, master: str = "local[2]") -> str:
    """A script without a main guard that makes ``sc`` and goes on with ``body``."""
    path = tmp_path / "program.py"
    head = (
        "from spark_ft import SparkConf, SparkContext\n"
        f"conf = SparkConf().setMaster({master!r}).set('spark.local.dir', {str(scratch)!r})\n"
        "sc = SparkContext(conf=conf)\n"
    )
    path.write_text(head + body)
    return str(path)


CLASSES = '''
import collections, dataclasses, enum, typing

@dataclasses.dataclass(frozen=True, order=True)
class Point:
    x: int
    y: int = 0
    def moved(self, by):
        return Point(self.x + by, self.y)

Pair = collections.namedtuple("Pair", "left right")

class Typed(typing.NamedTuple):
    name: str
    size: int = 3

class Color(enum.Enum):
    RED = 1
    BLUE = 2

class Plain:
    made = []
    def __init__(self, value):
        self.value = value
    def __eq__(self, other):
        return type(other) is Plain and other.value == self.value
    def __hash__(self):
        return hash(self.value)

class Derived(Plain):
    def __eq__(self, other):
        return type(other) is Derived and super().value == other.value
    __hash__ = Plain.__hash__

class Outer:
    class Inner:
        def __init__(self, v): self.v = v
'''

USES = '''
points = sc.parallelize([Point(i % 3, i) for i in range(30)], 4)
assert all(type(p) is Point for p in points.collect())
assert all(type(p) is Point for p in points.map(lambda p: p.moved(1)).collect())
assert points.map(lambda p: p.moved(1)).first() == Point(1, 0)
assert all(isinstance(p, Point) for p in points.sortBy(lambda p: p, numPartitions=2).collect())
assert points.map(lambda p: type(p) is Point).reduce(lambda a, b: a and b)

by_class = points.map(lambda p: (Point(p.x), 1)).reduceByKey(lambda a, b: a + b, 3).collect()
assert sorted(by_class) == [(Point(0), 10), (Point(1), 10), (Point(2), 10)]
assert all(type(k) is Point for k, _ in by_class)
kinds = [
    lambda x: Pair(x % 2, "a"), lambda x: Typed(str(x % 2)),
    lambda x: Color(x % 2 + 1), lambda x: Plain(x % 2),
]
for key in kinds:
    grouped = sc.parallelize(range(20), 4).keyBy(key).groupByKey(3).mapValues(len).collect()
    assert len(grouped) == 2 and all(n == 10 for _, n in grouped), grouped
    assert {type(k) for k, _ in grouped} == {type(key(0))}, grouped
assert sc.parallelize([Color.RED, Color.BLUE, Color.RED]).countByValue() == {Color.RED: 2, Color.BLUE: 1}
assert sc.parallelize([1]).map(lambda x: Color.RED).first() is Color.RED
assert sc.parallelize([1]).map(lambda x: Color.RED is Color(1)).first()
assert type(sc.parallelize([1]).map(lambda x: Derived(x)).first()) is Derived
assert type(sc.parallelize([1]).map(lambda x: Outer.Inner(x)).first()) is Outer.Inner
joined = points.keyBy(lambda p: p.x).join(sc.parallelize([(1, Pair(1, 2))]), 2).values().collect()
assert len(joined) == 10 and all(type(p) is Point and type(q) is Pair for p, q in joined)

shared = sc.broadcast({Point(1): Plain(5)})
assert shared.value[Point(1)] == Plain(5)
assert points.map(lambda p: shared.value.get(Point(p.x))).filter(bool).map(lambda v: v.value).sum() == 50
assert type(points.map(lambda p: shared.value.get(Point(1))).first()) is Plain
total = sc.accumulator(0)
points.foreach(lambda p: total.add(p.x))
assert total.value == 30
assert points.persist().count() == 30 and type(points.first()) is Point
print("all is well")
'''


@pytest.mark.parametrize("master", MASTERS)
def test_classes_of_a_script_are_the_drivers_own_when_they_come_back(tmp_path, scratch, master) -> None:
    path = program(tmp_path, scratch, CLASSES + USES + "sc.stop()\n", master)
    assert run([path], tmp_path) == "all is well\n"


def test_a_script_that_is_run_as_a_module_or_from_stdin_works_too(tmp_path, scratch) -> None:
    program(tmp_path, scratch, CLASSES + USES)
    assert run(["-m", "program"], tmp_path) == "all is well\n"
    text = Path(tmp_path, "program.py").read_text()
    assert run(["-"], tmp_path, typed=text) == "all is well\n"


def test_an_interactive_session_works_line_by_line(tmp_path, scratch) -> None:
    typed = f"""\
from spark_ft import SparkConf, SparkContext
sc = SparkContext(conf=SparkConf().setMaster("local[2]").set("spark.local.dir", {str(scratch)!r}))
class Point:
    def __init__(self, x):
        self.x = x

def double(p):
    return Point(2 * p.x)

back = sc.parallelize([Point(1), Point(2)], 2).map(double).collect()
print(sorted(p.x for p in back), all(type(p) is Point for p in back))
class Point:
    y = 5

print(sc.parallelize([1]).map(lambda x: (Point(), Point.y)).first()[0].y)
1 / 0
sc.parallelize([1]).map(lambda x: 1 / 0).count()
print(sc.parallelize(range(10)).sum())
"""
    ended = subprocess.run(
        [sys.executable, "-i"], cwd=tmp_path, env=environment(), input=typed,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert ended.stdout.splitlines() == ["[2, 4] True", "5", "45"], ended.stdout + ended.stderr
    assert "1 attempt(s) were made" in ended.stderr and "ZeroDivisionError" in ended.stderr


KERNEL = '''
import asyncio, io, sys, threading
cells = [
    {made!r},
    {classes!r},
    {uses!r},
    "print(sorted(sc.parallelize(range(4), 2).map(lambda x: x + len(Point.__name__)).collect()))",
    "sc.stop()",
]

class Stream(io.StringIO):
    """As a kernel's: without a file descriptor."""
    def fileno(self):
        raise io.UnsupportedOperation("fileno")

def run_cell(number, cell):
    exec(compile(cell, f"<ipython-input-{{number}}>", "exec"), sys.modules["__main__"].__dict__)

async def serve(in_thread):
    loop = asyncio.get_running_loop()
    for number, cell in enumerate(cells):
        if in_thread:
            await loop.run_in_executor(None, run_cell, number, cell)
        else:
            run_cell(number, cell)
        await asyncio.sleep(0)

real, sys.stdout, sys.stderr = sys.stdout, Stream(), Stream()
kernel = threading.Thread(target=lambda: asyncio.run(serve(in_thread=True)))
kernel.start()
kernel.join()
asyncio.run(serve(in_thread=False))
print(sys.stdout.getvalue(), end="", file=real)
print(sys.stderr.getvalue(), end="", file=real)
'''


def test_a_notebook_kernel_works_beside_its_loop_in_any_thread(tmp_path, scratch) -> None:
    made = (
        "from spark_ft import SparkConf, SparkContext\n"
        f"sc = SparkContext(conf=SparkConf().setMaster('local[2]').set('spark.local.dir', {str(scratch)!r}))"
    )
    path = tmp_path / "kernel.py"
    path.write_text(KERNEL.format(made=made, classes=CLASSES, uses=USES))
    assert run([str(path)], tmp_path) == "all is well\n[5, 6, 7, 8]\n" * 2


def test_a_context_is_made_used_and_stopped_in_threads_other_than_the_main_one(scratch) -> None:
    before = held()
    made = Action(lambda: SparkContext(conf=conf(scratch))).result()
    others = [Action(lambda: sums(made)) for _ in range(4)]
    assert [other.result() for other in others] == [SUMS] * 4
    Action(made.stop).result()
    assert held() == before


def in_child(function) -> int:
    """The exit status of a fork that runs ``function``."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("master", MASTERS)
def test_after_a_fork_the_child_makes_its_own_and_the_parents_is_unharmed(scratch, master) -> None:
    sc = SparkContext(conf=conf(scratch, master))
    kept = sc.parallelize(range(100), 4).map(lambda x: (x % 5, x)).reduceByKey(add, 2).cache()
    assert kept.count() == 5

    def child() -> None:
        with pytest.raises(UsageError, match="forked"):
            sc.parallelize([1]).count()
        with SparkContext(conf=conf(scratch, master)) as own:
            assert sums(own) == SUMS
        sc.stop()  # the parent's is not the child's to stop

    for _ in range(2):
        assert in_child(child) == 0
        assert sums(sc) == SUMS and kept.count() == 5
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, range(-4, 0)) == [4, 3, 2, 1]
    assert sums(sc) == SUMS
    assert in_child(lambda: None) == 0
    sc.stop()
    assert os.listdir(scratch) == []


def test_a_child_that_ends_as_a_program_does_takes_nothing_with_it(tmp_path, scratch) -> None:
    body = """
import multiprocessing, os, sys
def work(x):
    return x + 1
assert sc.parallelize(range(4), 2).sum() == 6
pid = os.fork()
if pid == 0:
    sys.exit(7)  # atexit and all
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
process = multiprocessing.get_context("fork").Process(target=work, args=(1,))
process.start(); process.join()
assert process.exitcode == 0
print(sc.parallelize(range(4), 2).sum())
"""
    assert run([program(tmp_path, scratch, body)], tmp_path) == "6\n"


# --- The driver ends -----------------------------------------------------------------------------------

ENDINGS = {
    "the last line": ("", 0),
    "sys.exit": ("import sys; sys.exit(3)", 3),
    "an exception": ("1 / 0", 1),
    "a running job": (
        "import contextlib, threading, time\n"
        "def forever():\n"
        "    with contextlib.suppress(Exception):\n"
        "        sc.parallelize([1]).map(lambda x: time.sleep(60)).count()\n"
        "threading.Thread(target=forever, daemon=True).start()\n"
        "while not sc.statusTracker().getActiveStageIds(): time.sleep(0.01)\n",
        0,
    ),
    "SIGTERM": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "os._exit": ("import os; os._exit(5)", 5),
    "a live iterator": ("it = sc.parallelize(range(10), 5).toLocalIterator(True); next(it)", 0),
}


@pytest.mark.parametrize(
    ("master", "ending"),
    [("local[2]", ending) for ending in ENDINGS]
    + [("local-cluster[2,1,512]", ending) for ending in ("the last line", "a running job", "SIGTERM")],
)
def test_DR_16_a_driver_that_ends_right_after_an_action_is_gone_in_two_seconds_with_all_it_had(
    tmp_path, scratch, master, ending
) -> None:
    text, status = ENDINGS[ending]
    body = f"assert sc.parallelize(range(10), 4).sum() == 45\nprint('done', flush=True)\ninput()\n{text}\n"
    path = program(tmp_path, scratch, body, master)
    driver = subprocess.Popen(
        [sys.executable, path], cwd=tmp_path, env=environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "done\n"
        children = psutil.Process(driver.pid).children(recursive=True)
        began_s = time.monotonic()
        _, errors = driver.communicate("\n", timeout=10)
        assert time.monotonic() - began_s < 2
    finally:
        driver.kill()
    assert driver.returncode == status, errors
    assert ending == "an exception" or not errors, errors
    assert len(children) >= 3
    wait_until(lambda: not any(map(alive, children)), 3, "the end of the executors")
    if status >= 0 and ending != "os._exit":
        assert os.listdir(scratch) == []
    left = os.listdir(scratch)
    with SparkContext(conf=conf(scratch)):
        wait_until(lambda: not set(left) & set(os.listdir(scratch)), 3, "the leftovers to go")


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("master", MASTERS)
def test_a_killed_driver_takes_everything_with_it_and_the_next_start_removes_its_files(
    tmp_path, scratch, master
) -> None:
    gate = Gate(tmp_path / "gate")
    body = f"""
import os, signal, subprocess, time
def busy(x):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen(["sleep", "300"], start_new_session=True)
    open(f"{gate.path}/{{x}}@0", "w").write(str(os.getpid()))
    open(f"{gate.path}/helper-{{x}}@0", "w").write(str(helper.pid))
    time.sleep(300)
sc.parallelize(range(100), 2).map(lambda x: (x, x)).partitionBy(2).count()
sc.parallelize([0, 1], 2).foreach(busy)
"""
    path = program(tmp_path, scratch, body, master)
    driver = subprocess.Popen([sys.executable, path], cwd=tmp_path, env=environment())
    try:
        wait_until(lambda: len(gate.arrivals()) == 4, what="two busy tasks")
        helpers = [wait_until(lambda name=name: gate.pid_of(name)) for name in ("helper-0", "helper-1")]
        everything = psutil.Process(driver.pid).children(recursive=True)
        assert len(everything) >= 4 and {p.pid for p in everything} >= set(helpers)
        assert os.listdir(scratch)
    finally:
        driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(alive, everything)), 3, "the end of all that the driver had started")
    (left,) = os.listdir(scratch)
    with SparkContext(conf=conf(scratch)) as sc:
        wait_until(lambda: left not in os.listdir(scratch), 3, "the leftovers to go")
        assert sums(sc) == SUMS
    assert os.listdir(scratch) == []


# --- Ctrl-C ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master", MASTERS)
def test_ctrl_c_in_an_action_cancels_its_job_and_keeps_the_session(start, tmp_path, master) -> None:
    running, gate = start(master), Gate(tmp_path / "gate")
    running.log.wait_for("executor_added", 2)
    pids = sorted(running.executor_pids())

    def press() -> None:
        wait_until(lambda: len(gate.arrivals()) == 2, what="two sleeping tasks")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    presser = Action(press)
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        running.sc.parallelize([1, 2], 2).map(lambda x: (gate.arrive(x), time.sleep(60))).collect()
    presser.result()
    assert time.monotonic() - began_s < 5
    running.log.wait_for("job_end", condition="JOB_CANCELLED")
    running.log.wait_for("task_end", 2, reason="Killed", deadline_s=5)
    assert sums(running.sc) == SUMS
    assert sorted(running.executor_pids()) == pids, "a task that can be interrupted costs no process"


def test_ctrl_c_on_the_terminal_reaches_the_driver_alone(tmp_path, scratch) -> None:
    gate = Gate(tmp_path / "gate")
    body = f"""
import time
def sleepy(x):
    open(f"{gate.path}/{{x}}@0", "w").close()
    time.sleep(60)
try:
    sc.parallelize([0, 1], 2).foreach(sleepy)
except KeyboardInterrupt:
    print("interrupted", sc.parallelize(range(10), 2).sum(), flush=True)
"""
    path = program(tmp_path, scratch, body)
    driver = subprocess.Popen(
        [sys.executable, path], cwd=tmp_path, env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: len(gate.arrivals()) == 2, what="two sleeping tasks")
        os.killpg(driver.pid, signal.SIGINT)  # what a terminal does
        out, err = driver.communicate(timeout=15)
    finally:
        driver.kill()
    assert (out, err, driver.returncode) == ("interrupted 45\n", "", 0)


# --- The GIL ---------------------------------------------------------------------------------------------

# Thirty seconds under the default settings, all of it ten times faster.
SCALED = {
    "spark_executor_heartbeatInterval": "100ms",
    "spark_ft_lease": "800ms",
    "spark_network_timeout": "1s",
}
HOLD_S = 3.0


def compute(for_s: float) -> float:
    """Hold the GIL in one C call that computes: no bytecode is run until the time has come."""
    end_s = time.monotonic() + for_s
    assert any(map(end_s.__le__, iter(time.monotonic, None)))
    return for_s


def sleep(for_s: float) -> float:
    """Hold the GIL in one C call that waits for something."""
    assert ctypes.PyDLL(None).usleep(int(for_s * 1e6)) == 0
    return for_s


def assert_nothing_was_lost(running: faultlib.Running) -> None:
    assert not running.log.of("executor_lost") and not running.log.of("worker_lost")
    faultlib.assert_r0(running.events())


def hold_in_tasks(running: faultlib.Running, holds, for_s: float, timeout_s: float) -> None:
    """Task i holds the GIL as ``holds[i]`` does, each in an executor of its own."""
    running.log.wait_for("executor_added", 2)  # else both may stand in the queue of the first

    def work(index, records):
        took_s = holds[index](for_s) if index < len(holds) else timeout_s + 1
        for x in records:
            yield x % 5, (x, took_s)

    pairs = running.sc.parallelize(range(60), 4).mapPartitionsWithIndex(work)
    both = pairs.reduceByKey(lambda a, b: (a[0] + b[0], min(a[1], b[1])), 2).collect()
    assert sorted((key, value) for key, (value, _) in both) == SUMS
    assert min(took_s for _, (_, took_s) in both) > timeout_s
    assert_nothing_was_lost(running)
    assert sums(running.sc) == SUMS


@pytest.mark.parametrize("hold", [compute, sleep])
@pytest.mark.parametrize("master", MASTERS)
def test_a_task_that_holds_the_gil_loses_nothing(start, master, hold) -> None:
    hold_in_tasks(start(master, spark_speculation=False, **SCALED), [hold], HOLD_S, 1.0)


@pytest.mark.slow
def test_tasks_that_hold_the_gil_for_longer_than_the_default_timeout_lose_nothing(start) -> None:
    hold_in_tasks(start("local-cluster[2,1,512]"), [compute, sleep], 12.0, 10.0)


@pytest.mark.parametrize("master", MASTERS)
def test_a_driver_that_holds_the_gil_loses_nothing(start, tmp_path, master) -> None:
    running = start(master, spark_speculation=False, **SCALED)
    gate = Gate(tmp_path / "gate")

    def work(index, records):
        gate.arrive(index)
        time.sleep(0.1)
        return records

    pairs = running.sc.parallelize(range(60), 8).mapPartitionsWithIndex(work).map(lambda x: (x % 5, x))
    action = Action(lambda: sorted(pairs.reduceByKey(add, 2).collect()))
    wait_until(lambda: len(gate.arrivals()) >= 2, what="tasks in mid-run")
    assert ctypes.PyDLL(None).usleep(int(HOLD_S * 1e6)) == 0  # the whole process stands still
    assert action.result() == SUMS
    assert_nothing_was_lost(running)
    assert Counter(gate.arrivals().values()) == {1: 8}
    assert sums(running.sc) == SUMS
