"""Real processes of the cluster layer under a scheduler that only does what it is told.

Each test kills, stops, forks or abandons something and looks at what the kernel says is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from spark_ft import closures
from spark_ft.clock import BootClock
from spark_ft.cluster.local import LocalCluster
from spark_ft.cluster.processes import STATUS_UNKNOWN
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.ids import AppId, BlobId, Incarnation, NodeId, TaskId, new_incarnation
from spark_ft.lineage.sources import ParallelCollection
from spark_ft.protocol.effects import Effect, Event, PeerGone, Received, Send
from spark_ft.protocol.messages import (
    AppRegistered,
    BeatAck,
    ExecutorBeat,
    ExecutorExited,
    ExecutorHello,
    ExecutorSpawned,
    ExecutorStopped,
    ExecutorsUnavailable,
    ExecutorWelcome,
    Fenced,
    InlineResult,
    Killed,
    KillExecutor,
    KillTask,
    Launch,
    LaunchTasks,
    Message,
    StageBlob,
    StoresServed,
    Success,
    TaskEnd,
    TaskUpdates,
    WorkerBeat,
    WorkerHello,
    WorkerLost,
    WorkerWelcome,
)
from spark_ft.settings import Settings
from spark_ft.transport.host import Host

DEADLINE_S = 20.0


class Puppet:
    """A scheduler without a will: it welcomes whoever comes and writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Incarnation, Message]] = []
        self.gone: list[Incarnation] = []

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(sender, message):
                self.heard.append((sender, message))
                match message:
                    case ExecutorHello():
                        return [Send(sender, ExecutorWelcome({}))]
                    case WorkerHello():
                        return [Send(sender, WorkerWelcome())]
                    case ExecutorBeat(number):
                        return [Send(sender, BeatAck(number))]
            case PeerGone(peer):
                self.gone.append(peer)
        return []

    def wakeup_s(self) -> float | None:
        return None

    def all(self, kind: type[Any]) -> list[Any]:
        return [message for _, message in list(self.heard) if isinstance(message, kind)]


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The condition's first true value; the only sleep of this file."""
    end_s = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"waited {deadline_s:g} s in vain for {what}"
        time.sleep(0.002)
    return value


class App:
    """A driver without jobs: a host, a puppet and a cluster."""

    def __init__(self, master: str, local_dir: Path, env: dict[str, str] | None = None, **conf: str) -> None:
        conf = {key.replace("_", "."): value for key, value in conf.items()}
        settings = Settings.from_conf({"spark.master": master, "spark.local.dir": str(local_dir), **conf})
        self.started_s = time.monotonic()
        self.puppet = Puppet()
        self.cluster = LocalCluster(settings, env or {})
        self.scratch = self.cluster.make_scratch(AppId("app-test"), None)
        self.me = new_incarnation("driver")
        self.token = os.urandom(16)
        self.host = Host(
            self.puppet,
            self.me,
            token=self.token,
            clock=BootClock(),
            perform=lambda effect: None,
            bind=self.cluster.endpoint("driver"),
        )
        self.cluster.start(self.host, self.me, AppId("app-test"), self.token, self.scratch)
        self.thread = threading.Thread(target=self.host.run, daemon=True)
        self.thread.start()
        self.cluster.wait_until_up()
        self.tasks = 0

    def stop(self) -> None:
        self.cluster.stop()
        self.host.stop(0.0)  # everybody it could still wait for is dead
        self.thread.join(5)
        self.cluster.remove_scratch()

    # --- What is there ---

    def executors(self) -> dict[Incarnation, int]:
        """Live, welcomed executors and their pids."""
        ended = {message.executor for message in self.puppet.all(ExecutorExited)}
        return {m.executor: m.pid for m in self.puppet.all(ExecutorHello) if m.executor not in ended}

    def up(self, count: int) -> dict[Incarnation, int]:
        wait_for(lambda: len(self.executors()) >= count, f"{count} executors")
        return self.executors()

    def worker_pid(self, number: int = 0) -> int:
        return self.cluster._workers[number].interpreter.pid

    def exit_of(self, executor: Incarnation) -> ExecutorExited:
        found = wait_for(
            lambda: [m for m in self.puppet.all(ExecutorExited) if m.executor == executor],
            f"end of {executor}",
        )
        assert len(found) == 1
        end: ExecutorExited = found[0]
        return end

    # --- What is done ---

    def send(self, to: Incarnation, *messages: Message) -> None:
        def go() -> None:
            for message in messages:
                self.host.send(to, message)

        self.host.call(go)

    def launch(self, executor: Incarnation, function: Callable[[int, Iterator[Any]], Any]) -> TaskId:
        """Run ``function(partition, iterator of 0..9)`` there; answers the attempt."""
        self.tasks += 1
        blob, task = BlobId(self.tasks), TaskId(self.tasks)
        node = ParallelCollection(NodeId(1), [range(10)])
        stage = StageBlob(blob, closures.dump_stage(node, function, None))
        self.send(executor, stage, LaunchTasks(blob, 0, 0, (Launch(task, 0, 0),)))
        return task

    def end_of(self, task: TaskId) -> TaskEnd:
        def look() -> list[TaskEnd]:
            return [
                end for update in self.puppet.all(TaskUpdates) for end in update.ended if end.task == task
            ]

        found = wait_for(look, f"end of task {task}")
        assert len(found) == 1
        end: TaskEnd = found[0]
        return end

    def run(self, executor: Incarnation, function: Callable[[int, Iterator[Any]], Any]) -> Any:
        reason = self.end_of(self.launch(executor, function)).reason
        assert isinstance(reason, Success) and isinstance(reason.result, InlineResult), reason
        return closures.loads(reason.result.payload)

    def has_started(self, task: TaskId) -> None:
        wait_for(lambda: any(task in m.started for m in self.puppet.all(TaskUpdates)), f"start of {task}")


@pytest.fixture
def local_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sft-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(local_dir: Path) -> Iterator[Callable[..., App]]:
    """``start(master, **conf)``; afterwards nothing may be left: no process, no directory."""
    apps: list[App] = []
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    def make(master: str = "local[2]", **kwargs: Any) -> App:
        apps.append(App(master, local_dir, **kwargs))
        return apps[-1]

    yield make
    for app in apps:
        app.stop()
    assert [p for p in psutil.Process().children(recursive=True) if p.pid not in before] == []
    assert list(local_dir.iterdir()) == []


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def dead(*pids: int, deadline_s: float = 5.0) -> None:
    wait_for(lambda: not any(alive(pid) for pid in pids), f"end of processes {pids}", deadline_s)


# --- Up, work, down --------------------------------------------------------------------------------


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,512]"])
def test_executors_come_up_run_tasks_and_leave_nothing(start: Callable[..., App], master: str) -> None:
    app = start(master)
    executors = app.up(2)
    for executor in executors:
        assert app.run(executor, lambda index, rows: sum(rows)) == 45
    spawned = {m.executor: m.pid for m in app.puppet.all(ExecutorSpawned)}
    assert spawned == executors
    if "cluster" in master:
        granted = app.puppet.all(AppRegistered)[-1].granted
        assert sorted(granted.values()) == [1, 1]
        assert len({m.host for m in app.puppet.all(ExecutorHello)}) == 2


def test_executors_are_children_of_the_worker_and_leaders_of_their_own_sessions(
    start: Callable[..., App],
) -> None:
    app = start()
    for pid in app.up(2).values():
        wait_for(lambda pid=pid: psutil.Process(pid).ppid() == app.worker_pid(), "its first parent to vanish")
        assert os.getsid(pid) == pid


def test_executors_share_one_hash_seed_and_see_the_environment_and_path_of_the_driver(
    start: Callable[..., App],
) -> None:
    app = start(env={"SPARK_FT_TEST": "seen"})
    seeds = set()
    for executor in app.up(2):
        seen, seed, path, main = app.run(
            executor,
            lambda i, rows: (
                os.environ.get("SPARK_FT_TEST"),
                hash("text"),
                sys.path,
                dir(sys.modules["__main__"]),
            ),
        )
        assert seen == "seen"
        assert path == [str(entry) or os.getcwd() for entry in sys.path]
        assert "json" not in main  # nothing of ours is mistaken for the user's
        seeds.add(seed)
    assert len(seeds) == 1


def test_a_context_stops_within_two_seconds_even_with_stopped_processes(start: Callable[..., App]) -> None:
    app = start()
    pids = list(app.up(2).values())
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(app.worker_pid(), signal.SIGSTOP)
    begin_s = time.monotonic()
    app.stop()
    assert time.monotonic() - begin_s < 2.0
    dead(*pids)


@pytest.mark.slow
def test_many_starts_and_stops_leave_no_process_and_no_descriptor(local_dir: Path) -> None:
    me = psutil.Process()

    def cycle() -> None:
        app = App("local[1]", local_dir)
        app.stop()

    cycle()
    before = me.num_fds()
    threads = threading.active_count()
    for _ in range(20):
        cycle()
    assert me.num_fds() == before
    assert threading.active_count() == threads
    assert me.children() == []
    assert list(local_dir.iterdir()) == []


# --- Deaths of executors -----------------------------------------------------------------------------


def test_EX_1_the_death_of_an_executor_is_told_within_a_second(start: Callable[..., App]) -> None:
    app = start()
    executor, pid = next(iter(app.up(2).items()))
    os.kill(pid, signal.SIGKILL)
    begin_s = time.monotonic()
    end = app.exit_of(executor)
    assert time.monotonic() - begin_s < 1.0
    assert (end.status, end.signal) == (0, signal.SIGKILL)


def test_EX_6_when_all_executors_are_killed_all_are_back_within_two_seconds(
    start: Callable[..., App],
) -> None:
    app = start("local[4]")
    old = app.up(4)
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)
    begin_s = time.monotonic()
    wait_for(lambda: len(set(app.executors()) - set(old)) == 4, "four new executors")
    assert time.monotonic() - begin_s < 2.0
    assert app.run(next(iter(set(app.executors()) - set(old))), lambda i, rows: sum(rows)) == 45


def test_the_last_words_and_the_status_of_an_executor_are_told(start: Callable[..., App]) -> None:
    app = start("local[1]")
    (executor,) = app.up(1)

    def leave(index: int, rows: Iterator[Any]) -> None:
        os.write(2, b"these are my last words\n")
        os._exit(17)

    app.launch(executor, leave)
    end = app.exit_of(executor)
    assert (end.status, end.signal) == (17, 0)
    assert "these are my last words" in end.stderr


def test_TK_5_a_segfault_ends_one_executor_and_its_stack_is_told(start: Callable[..., App]) -> None:
    app = start("local[2]")
    victim, other = app.up(2)

    def crash(index: int, rows: Iterator[Any]) -> None:
        import ctypes

        ctypes.string_at(0)

    app.launch(victim, crash)
    end = app.exit_of(victim)
    assert end.signal == signal.SIGSEGV
    assert "Segmentation fault" in end.stderr and "crash" in end.stderr
    assert app.run(other, lambda i, rows: sum(rows)) == 45


def test_TK_7_processes_that_user_code_has_started_go_with_their_executor(
    start: Callable[..., App], tmp_path: Path
) -> None:
    app = start("local[1]")
    ((executor, pid),) = app.up(1).items()

    def work(index: int, rows: Iterator[Any]) -> None:
        child = subprocess.Popen(["sleep", "600"])
        (tmp_path / "new").write_text(str(child.pid))
        (tmp_path / "new").rename(tmp_path / "child")
        child.wait()

    app.launch(executor, work)
    wait_for((tmp_path / "child").exists, "the child")
    child = int((tmp_path / "child").read_text())
    assert alive(child)
    os.kill(pid, signal.SIGKILL)
    app.exit_of(executor)
    dead(child)


def test_processes_that_moved_to_another_session_go_with_the_cluster(start: Callable[..., App]) -> None:
    app = start("local[1]")
    (executor,) = app.up(1)
    quiet = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    code = f"import subprocess as s; print(s.Popen(['sleep', '600'], start_new_session=True, {quiet}).pid)"
    code = code.replace("subprocess.D", "s.D")
    words = [sys.executable, "-c", code]  # it ends at once: the worker is the sleeper's parent then
    child = app.run(executor, lambda i, rows: int(subprocess.run(words, capture_output=True).stdout))
    assert alive(child)
    app.stop()
    dead(child)


def test_a_stopped_executor_is_told_of_and_again_when_it_goes_on(start: Callable[..., App]) -> None:
    app = start("local[1]")
    ((executor, pid),) = app.up(1).items()
    for number, expected in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
        os.kill(pid, number)
        told = ExecutorStopped(executor, expected)
        wait_for(lambda told=told: told in app.puppet.all(ExecutorStopped), f"{told}")  # type: ignore[misc]


def test_the_worker_vouches_for_an_executor_that_holds_the_GIL(start: Callable[..., App]) -> None:
    app = start("local[1]", spark_executor_heartbeatInterval="100ms")
    (executor,) = app.up(1)
    task = app.launch(executor, lambda i, rows: sum(range(300_000_000)))
    app.has_started(task)

    def cpu_s() -> list[float]:
        beats = app.puppet.all(WorkerBeat)
        return [cpu for beat in beats for name, cpu, stopped in beat.executors if name == executor]

    base = max(cpu_s(), default=0.0)
    wait_for(lambda: max(cpu_s(), default=0.0) > base + 0.5, "growing CPU time in the worker's beats")


def test_EX_12_executors_that_crash_at_start_are_given_up_with_their_words(start: Callable[..., App]) -> None:
    app = start("local[2]", spark_ft_hashSeed="0", spark_executor_pyspark_memory="1m")
    (told,) = wait_for(lambda: app.puppet.all(ExecutorsUnavailable), "the worker to give up")
    assert told.tries == 5
    assert told.stderr != ""


# --- Killing tasks -----------------------------------------------------------------------------------


def test_EX_15_a_task_is_broken_off_and_its_executor_goes_on(start: Callable[..., App]) -> None:
    app = start("local[1]")
    ((executor, pid),) = app.up(1).items()
    task = app.launch(executor, lambda i, rows: time.sleep(600))
    app.has_started(task)
    app.send(executor, KillTask(task, "twin won"))
    assert app.end_of(task).reason == Killed("twin won")
    assert app.run(executor, lambda i, rows: os.getpid()) == pid


def test_EX_15_a_task_that_swallows_the_interrupt_costs_its_process(
    start: Callable[..., App], tmp_path: Path
) -> None:
    app = start("local[1]", spark_ft_task_killGrace="300ms")
    (executor,) = app.up(1)

    def stubborn(index: int, rows: Iterator[Any]) -> None:
        while True:
            with contextlib.suppress(BaseException):
                (tmp_path / "deaf").touch()
                time.sleep(600)

    task = app.launch(executor, stubborn)
    wait_for((tmp_path / "deaf").exists, "the task to be deaf")
    begin_s = time.monotonic()
    app.send(executor, KillTask(task, "twin won"))
    assert app.exit_of(executor).signal == signal.SIGKILL
    assert time.monotonic() - begin_s < 5.0
    app.up(1)


def test_EX_7_a_fenced_executor_ends_and_is_replaced(start: Callable[..., App]) -> None:
    app = start("local[1]")
    (executor,) = app.up(1)
    app.send(executor, Fenced("given up"))
    end = app.exit_of(executor)
    assert end.status == 71 and "fenced: given up" in end.stderr
    app.up(1)


# --- Deaths of others --------------------------------------------------------------------------------


def test_the_warm_process_is_replaced_when_it_dies(start: Callable[..., App]) -> None:
    app = start("local[1]")
    ((executor, pid),) = app.up(1).items()
    (warm,) = {child.pid for child in psutil.Process(app.worker_pid()).children()} - {pid}
    os.kill(warm, signal.SIGKILL)
    dead(warm)
    os.kill(pid, signal.SIGKILL)
    app.exit_of(executor)
    (successor,) = app.up(1)
    assert app.run(successor, lambda i, rows: sum(rows)) == 45


@pytest.mark.slow
def test_a_stopped_warm_process_is_replaced(start: Callable[..., App]) -> None:
    app = start("local[1]")
    ((executor, pid),) = app.up(1).items()
    (warm,) = {child.pid for child in psutil.Process(app.worker_pid()).children()} - {pid}
    os.kill(warm, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    app.exit_of(executor)
    wait_for(lambda: app.executors(), "an executor from the next warm process")


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[1,2,512]"])
def test_WK_1_executors_outlive_their_worker_and_the_next_one_adopts_them(
    start: Callable[..., App], master: str
) -> None:
    app = start(master)
    old = app.up(2)
    worker = app.puppet.all(WorkerHello)[0].worker
    os.kill(app.worker_pid(), signal.SIGKILL)
    wait_for(lambda: worker in app.puppet.gone, "the scheduler to hear of it", 1.0)
    if "cluster" in master:
        wait_for(lambda: app.puppet.all(WorkerLost), "the manager to say so", 1.0)
    wait_for(lambda: len(app.puppet.all(StoresServed)) == 2, "its heir")
    assert set(app.puppet.all(StoresServed)[1].executors) == set(old)
    hello = app.puppet.all(WorkerHello)
    assert [m.host for m in hello] == ["host-0", "host-0"]
    assert hello[0].worker != hello[1].worker
    for executor, pid in old.items():
        assert alive(pid) and app.run(executor, lambda _, records: sum(records)) == 45
    stopped, killed = old
    os.kill(old[stopped], signal.SIGSTOP)  # nobody's child: the heir has to look
    wait_for(lambda: ExecutorStopped(stopped, True) in app.puppet.all(ExecutorStopped), "its stop", 3.0)
    os.kill(old[stopped], signal.SIGCONT)
    os.kill(old[killed], signal.SIGKILL)
    assert app.exit_of(killed).status == STATUS_UNKNOWN
    wait_for(lambda: len(set(app.executors()) - set(old)) == 1, "one in its place")
    app.send(hello[1].worker, KillExecutor(stopped, "the test says so"))
    app.exit_of(stopped)
    dead(*old.values())


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[1,2,512]"])
def test_WK_1_orphans_end_when_the_application_stops(
    start: Callable[..., App], master: str
) -> None:
    app = start(master)
    old = app.up(2)
    worker = app.cluster._workers[0].interpreter
    app.cluster._stopping = True  # nobody takes over
    worker.signal(signal.SIGKILL)
    wait_for(lambda: app.cluster._workers[0].interpreter.wait(0.0), "the end of the worker")
    assert all(alive(pid) for pid in old.values())
    app.cluster._stopping = False
    app.stop()
    dead(*old.values(), deadline_s=1.0)


def test_a_driver_that_is_killed_takes_everything_with_it(local_dir: Path) -> None:
    script = local_dir / "driver.py"
    script.write_text(
        "import sys, time, json\n"
        "from pathlib import Path\n"
        "from tests.cluster.test_processes import App\n"
        "app = App('local-cluster[2,1,512]', Path(sys.argv[1]))\n"
        "pids = list(app.up(2).values()) + [p.interpreter.pid for p in app.cluster._processes()]\n"
        "print(json.dumps(pids), flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    driver = subprocess.Popen(
        [sys.executable, str(script), str(local_dir)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert driver.stdout is not None
    pids = json.loads(driver.stdout.readline())
    assert len(pids) == 5 and all(alive(pid) for pid in pids)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    dead(*pids)
    left = [path for path in local_dir.iterdir() if path.name.startswith("spark-ft-")]
    assert len(left) == 1
    app = App("local[1]", local_dir)  # ST-17: the next start clears it away
    wait_for(lambda: not left[0].exists(), "the dead application's directory to go")
    app.stop()


# --- Odd callers -------------------------------------------------------------------------------------


def test_ST_12_a_fork_of_the_driver_does_not_disturb_its_cluster(start: Callable[..., App]) -> None:
    app = start("local[1]")
    (executor,) = app.up(1)
    child = os.fork()
    if child == 0:
        app.cluster.stop()
        app.cluster.remove_scratch()
        os._exit(0)
    os.waitpid(child, 0)
    assert app.run(executor, lambda i, rows: sum(rows)) == 45
    holder = os.fork()  # this one stays, with its copies of our pipes
    if holder == 0:
        time.sleep(600)
        os._exit(0)
    begin_s = time.monotonic()
    app.stop()
    took_s = time.monotonic() - begin_s
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert took_s < 0.9, "the worker did not notice that its stdin was closed"


def test_a_cluster_can_be_started_from_any_thread(start: Callable[..., App]) -> None:
    apps: list[App] = []
    thread = threading.Thread(target=lambda: apps.append(start("local[1]")))
    thread.start()
    thread.join(20)
    (executor,) = apps[0].up(1)
    assert apps[0].run(executor, lambda i, rows: sum(rows)) == 45


def test_a_bad_master_starts_nothing(local_dir: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(SettingsError, match="Could not parse Master URL: 'lokal'"):
        App("lokal", local_dir)
    assert psutil.Process().children() == before


def test_no_place_for_a_scratch_directory_leaves_nothing_running(local_dir: Path) -> None:
    (local_dir / "file").touch()
    with pytest.raises(ClusterError):
        App("local[1]", local_dir / "file")
    wait_for(lambda: psutil.Process().children() == [], "the interpreters to be gone")
