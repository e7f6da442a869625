"""Helpers of the fault tests: contexts that can be watched, kills that land, bounds that are judged.

The judge is the event log: one JSON line for every start and end of a task, executor and job.
A test of a fault does four things: it injects the fault, *asserts that it took effect*, compares
the answer, and compares the task starts with the bound that the fault's row promises:

    R0  nothing runs again
    R1  only attempts that were running in a lost process run again
    R2  R1, and exactly the lost outputs that are still needed

Starts flagged speculative are counted apart.  Nothing here sleeps for a fixed time: waiting is
always for a condition, with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

Event = Mapping[str, Any]
Place = tuple[int, int]  # (stage, partition)

DEADLINE_S = 30.0  # of any wait; a condition that takes longer never comes
POLL_S = 0.005

# --- Waiting ------------------------------------------------------------------------------------


def wait_until(
    condition: Callable[[], Any], deadline_s: float = DEADLINE_S, what: str = "", poll_s: float = POLL_S
) -> Any:
    """The condition's first true value.  Raises AssertionError after ``deadline_s``."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s:g} s in vain for {what or condition}")
        time.sleep(poll_s)


class Gate:
    """A door in a directory that tasks wait at until the test opens it; travels inside closures.

    ``arrive(name)`` leaves a file with the process's pid, so that the test sees who is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.makedirs(self.path, exist_ok=True)

    def arrive(self, name: object) -> int:
        """Say who is here; answers how often this name has arrived before (0 the first time)."""
        for count in range(1000):
            with contextlib.suppress(FileExistsError):
                fd = os.open(f"{self.path}/{name}@{count}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                os.write(fd, str(os.getpid()).encode())
                os.close(fd)
                return count
        raise AssertionError(f"{name} arrived a thousand times")

    def wait(self, name: object, deadline_s: float = DEADLINE_S) -> int:
        """Arrive and stay until the gate is open."""
        count = self.arrive(name)
        wait_until(lambda: os.path.exists(f"{self.path}/open"), deadline_s, f"gate {self.path}")
        return count

    def hold(self, index: int, records: Iterable[Any]) -> Iterable[Any]:
        """For mapPartitionsWithIndex: wait, then hand everything on."""
        self.wait(index)
        return records

    def share(self, processes: int) -> Callable[[int, Iterable[Any]], Iterable[Any]]:
        """For mapPartitionsWithIndex: no task ends before so many processes have begun one, and none is
        so short that one executor could run them all."""

        def pass_on(index: int, records: Iterable[Any]) -> Iterable[Any]:
            self.arrive(f"share-{os.getpid()}")
            wait_until(lambda: len([n for n in self.arrivals() if n.startswith("share-")]) >= processes)
            time.sleep(0.01)
            return records

        return pass_on

    def open(self) -> None:
        Path(self.path, "open").touch()

    def arrivals(self) -> dict[str, int]:
        """name -> how often it arrived."""
        names = Counter(entry.rsplit("@", 1)[0] for entry in os.listdir(self.path) if "@" in entry)
        return dict(names)

    def waiting(self) -> int:
        """How many partitions have come to ``hold``."""
        return sum(name.isdigit() for name in self.arrivals())

    def pid_of(self, name: object, count: int = 0) -> int:
        """The process that arrived under ``name``; 0 while nobody has (or has not signed yet)."""
        with contextlib.suppress(OSError):
            text = Path(self.path, f"{name}@{count}").read_text()
            return int(text) if text else 0
        return 0


class Action(threading.Thread):
    """An action in a thread of its own, so that the test can break things while it runs."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(name="action", daemon=True)
        self._call = call
        self._answer: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error

    def result(self, deadline_s: float = DEADLINE_S) -> Any:
        """The answer, or what the action raised.  AssertionError when it has not ended in time."""
        self.join(deadline_s)
        assert not self.is_alive(), f"the action has not ended within {deadline_s:g} s"
        if self._error is not None:
            raise self._error
        return self._answer


# --- The event log --------------------------------------------------------------------------------


class EventLog:
    """Follows the JSON lines of one application.  Every method may be called from any thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._events: list[Event] = []
        self._offset = 0
        self._lock = threading.Lock()

    @property
    def path(self) -> Path | None:
        found = sorted(self.directory.glob("*.jsonl"))
        return found[-1] if found else None

    def read(self) -> list[Event]:
        """All events so far, in order."""
        flush_own_log()
        with self._lock:
            path = self.path
            if path is not None:
                with path.open("rb") as lines:
                    lines.seek(self._offset)
                    whole, _, _ = lines.read().rpartition(b"\n")
                if whole:
                    self._offset += len(whole) + 1
                    self._events += [json.loads(line) for line in whole.splitlines()]
            return list(self._events)

    def of(self, event: str, **fields: Any) -> list[Event]:
        """The events of one kind whose fields have these values."""
        return [e for e in self.read() if e["event"] == event and matches(e, fields)]

    def wait_for(
        self, event: str, count: int = 1, deadline_s: float = DEADLINE_S, **fields: Any
    ) -> list[Event]:
        """The events of a kind, once there are ``count`` of them."""
        return wait_until(
            lambda: found if len(found := self.of(event, **fields)) >= count else None,
            deadline_s,
            f"{count} x {event} {fields}",
        )

    def pids(self) -> dict[str, int]:
        """executor -> pid of those that were added and not lost."""
        alive: dict[str, int] = {}
        for event in self.read():
            if event["event"] == "executor_added":
                alive[event["executor"]] = event["pid"]
            elif event["event"] == "executor_lost":
                alive.pop(event["executor"], None)
        return alive


def flush_own_log() -> None:
    """What this process's own context has noted is in its log afterwards; others' are seen as they come."""
    from spark_ft import SparkContext

    sc = SparkContext._active_spark_context
    driver = None if sc is None else sc._driver
    if driver is not None:
        driver.flush_events()


def matches(event: Event, fields: Mapping[str, Any]) -> bool:
    return all(
        stage_kind(event) == value if name == "kind" else event.get(name) == value
        for name, value in fields.items()
    )


def stage_kind(event: Event) -> str:
    """``map`` or ``result``, however the log spells it."""
    kind = str(event.get("kind", "")).lower()
    return "map" if "map" in kind or "shuffle" in kind else "result" if "result" in kind else kind


# --- Counting task starts ---------------------------------------------------------------------------


def starts_per_partition(events: Iterable[Event], kind: str | None = None) -> Counter[Place]:
    """(stage, partition) -> how many attempts began, those flagged speculative left out."""
    return Counter(
        (event["stage"], event["partition"])
        for event in events
        if event["event"] == "task_start"
        and not event.get("speculative")
        and (kind is None or stage_kind(event) == kind)
    )


def running_in_lost(events: Iterable[Event]) -> Counter[Place]:
    """(stage, partition) -> how many of its attempts were running in a process when that was lost."""
    open_attempts: dict[int, Event] = {}
    lost: Counter[Place] = Counter()
    gone: set[str] = set()
    ended_by_loss: set[int] = set()
    for event in events:
        match event["event"]:
            case "task_start":
                open_attempts[event["task"]] = event
            case "task_end":
                start = open_attempts.pop(event["task"], None)
                if start is not None and "lost" in reason(event).lower():
                    lost[(start["stage"], start["partition"])] += 1
                    ended_by_loss.add(event["task"])
            case "executor_lost":
                gone.add(event["executor"])
                for task, start in list(open_attempts.items()):
                    if start["executor"] in gone:
                        lost[(start["stage"], start["partition"])] += 1
                        del open_attempts[task]
    return lost


def reason(end: Event) -> str:
    """How an attempt ended, as one word (``Success``, ``UserError``, ``ExecutorLost`` …)."""
    value = end.get("reason", "")
    return value if isinstance(value, str) else str(value)


def failed_by_user_code(events: Iterable[Event]) -> Counter[Place]:
    """(stage, partition) -> attempts that ended in an error of user code."""
    starts: dict[int, Event] = {}
    failed: Counter[Place] = Counter()
    for event in events:
        if event["event"] == "task_start":
            starts[event["task"]] = event
        elif event["event"] == "task_end" and reason(event) in ("UserError", "NotLoadable"):
            start = starts.get(event["task"])
            if start is not None:
                failed[(start["stage"], start["partition"])] += 1
    return failed


def redone(events: Iterable[Event], kind: str | None = None) -> Counter[Place]:
    """(stage, partition) -> starts beyond the first."""
    starts = starts_per_partition(events, kind)
    return Counter({place: count - 1 for place, count in starts.items() if count > 1})


def assert_r0(events: list[Event], kind: str | None = None) -> None:
    """Nothing was executed again (of the stages of ``kind``)."""
    again = redone(events, kind)
    assert not again, f"executed again, though nothing had to be: {dict(again)}"


def assert_r1(events: list[Event], kind: str | None = None, but: Iterable[Place] = ()) -> None:
    """Only attempts that were running in a lost process were executed again (R1).

    ``but`` names places that may start once more for another reason (R2: lost outputs).
    """
    assert any(event["event"] == "executor_lost" for event in events), "no process was lost: nothing is shown"
    allowed = running_in_lost(events)
    for place in but:
        allowed[place] += 1
    too_many = {
        place: f"{count} again, {allowed[place]} explained"
        for place, count in redone(events, kind).items()
        if count > allowed[place]
    }
    assert not too_many, f"executed again without need: {too_many}"


def assert_r2(events: list[Event], lost_outputs: Iterable[Place], kind: str | None = None) -> None:
    """R1, and of the finished partitions only ``lost_outputs`` ran again, once each."""
    assert_r1(events, kind, but=lost_outputs)


# --- Kills --------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@dataclass
class Killer:
    """Sends a signal to the pid of the k-th task start that matches, as soon as the log shows it.

    ``landed`` holds the task_start events whose process was signalled while their attempt ran.
    """

    log: EventLog
    kind: str | None = None
    nth: int = 1
    times: int = 1
    signal_number: int = signal.SIGKILL
    landed: list[Event] = field(default_factory=list)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            hit: set[int] = set()
            while not self._stop.is_set() and len(self.landed) < self.times:
                events = self.log.read()
                ended = {event["task"] for event in events if event["event"] == "task_end"}
                starts = [
                    event
                    for event in events
                    if event["event"] == "task_start" and self.kind in (None, stage_kind(event))
                ]
                for start in starts[self.nth - 1 :]:
                    if start["task"] in ended or start["pid"] in hit or not is_alive(start["pid"]):
                        continue
                    hit.add(start["pid"])
                    os.kill(start["pid"], self.signal_number)
                    self.landed.append(start)
                    break
                self._stop.wait(POLL_S)
        except BaseException as error:  # told to the test when the block is left
            self.error = error


# --- Cuts ---------------------------------------------------------------------------------------------


class Cut:
    """The network between the driver and some peers, cut at the driver's end until ``heal``: frames ``to``
    them, or ``of`` them, or both, are lost.  ``lost`` counts them."""

    def __init__(self, running: Running, *peers: str, to: bool = True, of: bool = True) -> None:
        self._host, self._peers = running.sc._driver._host, frozenset(peers)
        self.lost = {"to": 0, "of": 0}
        transmit, frame = self._host._transmit, self._host._frame

        def out(peer: Any, data: Any) -> None:
            if to and peer.incarnation in self._peers:
                self.lost["to"] += 1
            else:
                transmit(peer, data)

        def inward(data: bytes, routing_id: bytes, socket: Any) -> None:
            if of and routing_id.decode() in self._peers:
                self.lost["of"] += 1
            else:
                frame(data, routing_id, socket)

        self._host._transmit, self._host._frame = out, inward

    def heal(self) -> None:
        for name in ("_transmit", "_frame"):
            self._host.__dict__.pop(name, None)


# --- Contexts -------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A live context with its event log and its own scratch directory."""

    sc: Any
    log: EventLog
    scratch: Path

    def events(self) -> list[Event]:
        return self.log.read()

    def executor_pids(self) -> list[int]:
        return list(self.log.pids().values())

    def starts(self, kind: str) -> Counter[int]:
        """partition -> starts in all stages of one kind, those flagged speculative left out."""
        counted: Counter[int] = Counter()
        for (_, partition), count in starts_per_partition(self.events(), kind).items():
            counted[partition] += count
        return counted

    def killer(self, **how: Any) -> Killer:
        return Killer(self.log, **how)

    def kill(self, pid: int, signal_number: int = signal.SIGKILL) -> None:
        """Signal a process of this application, and for SIGKILL see it gone."""
        assert pid in self.own_pids(), f"{pid} is no process of this application"
        os.kill(pid, signal_number)
        if signal_number == signal.SIGKILL:
            wait_until(lambda: not is_alive(pid), 5, f"the end of {pid}")

    def own_pids(self) -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)} | set(self.executor_pids())

    def stop(self) -> None:
        self.sc.stop()


class RandomKiller(threading.Thread):
    """SIGKILLs an executor after each pause drawn from ``pause_s``, at most ``most`` in all."""

    def __init__(
        self, running: Running, seed: int, most: int, pause_s: tuple[float, float] = (0.2, 0.8)
    ) -> None:
        super().__init__(name="random killer", daemon=True)
        self.running, self.rng, self.most, self.pause_s = running, random.Random(seed), most, pause_s
        self.killed: list[int] = []
        self.done = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.most and not self.done.wait(self.rng.uniform(*self.pause_s)):
            pids = sorted(set(self.running.executor_pids()) - set(self.killed))
            if pids:
                pid = self.rng.choice(pids)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(pid)


def start_context(
    directory: Path, scratch: Path, master: str = "local-cluster[3,1,512]", **settings: object
) -> Running:
    """A context whose event log lies under ``directory`` and whose scratch under ``scratch``.

    Settings are given with underscores for dots: ``spark_task_maxFailures=2``.
    """
    from spark_ft import SparkConf, SparkContext

    log_dir = directory / "events"
    conf = SparkConf(loadDefaults=False).setMaster(master).setAppName("fault test")
    conf.set("spark.eventLog.dir", str(log_dir)).set("spark.local.dir", str(scratch))
    for name, value in settings.items():
        conf.set(name.replace("_", "."), str(value).lower() if isinstance(value, bool) else str(value))
    return Running(SparkContext(conf=conf), EventLog(log_dir), scratch)


def short_directory() -> Path:
    """A directory whose path leaves room for socket names (107 bytes in all)."""
    return Path(tempfile.mkdtemp(prefix="sft-", dir="/tmp"))


def python(*arguments: str) -> dict[str, Any]:
    """What ``subprocess`` needs to run this very Python on this very source."""
    path = os.pathsep.join(filter(None, sys.path))
    return {"args": [sys.executable, *arguments], "env": {**os.environ, "PYTHONPATH": path}}


def outputs_in(root: Path, host: str, store: str) -> list[Any]:
    """The map outputs that a store holds whole.  An environment must not be opened twice in a process, so
    it is a copy that is looked at."""
    from spark_ft.ids import HostId
    from spark_ft.storage.blocks import StoreReader

    with tempfile.TemporaryDirectory(prefix="sft-") as copy:
        if not (root / "stores" / store).is_dir():
            return []
        shutil.copytree(root / "stores" / store, Path(copy, "stores", store))
        return StoreReader({HostId(host): Path(copy)}).outputs(HostId(host), store, deep=True)


# --- Leaks ------------------------------------------------------------------------------------------------


def processes_that_mention(path: Path) -> dict[int, str]:
    """pid -> where: other processes with ``path`` in command line, environment, open files or maps."""
    needle = os.fsencode(str(path))
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        base = f"/proc/{entry}"
        with contextlib.suppress(OSError):
            for name in ("cmdline", "environ", "maps"):
                with open(f"{base}/{name}", "rb") as text:
                    if needle in text.read():
                        found[int(entry)] = name
            for fd in os.listdir(f"{base}/fd"):
                with contextlib.suppress(OSError):
                    if needle in os.fsencode(os.readlink(f"{base}/fd/{fd}")):
                        found[int(entry)] = f"fd {fd}"
    return {pid: place for pid, place in found.items() if is_alive(pid)}


def assert_nothing_left(scratch: Path, children_before: Iterable[int] = (), deadline_s: float = 5.0) -> None:
    """No process of the application lives, no directory of it stands under ``scratch``."""
    before = set(children_before)

    def left() -> str:
        processes = processes_that_mention(scratch)
        children = {
            child.pid
            for child in psutil.Process().children(recursive=True)
            if child.pid not in before and is_alive(child.pid)
        }
        entries = sorted(entry.name for entry in scratch.iterdir()) if scratch.exists() else []
        parts = [
            f"processes {processes}" if processes else "",
            f"children {sorted(children)}" if children else "",
            f"files {entries}" if entries else "",
        ]
        return "; ".join(filter(None, parts))

    end = time.monotonic() + deadline_s
    while (what := left()) and time.monotonic() < end:
        time.sleep(0.02)
    if what:
        for pid in processes_that_mention(scratch):  # ours: they must not spoil the next test
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)
        raise AssertionError(f"left behind by the context: {what}")


def rss_anon_bytes(pid: int) -> int:
    """Resident memory of a process without mapped store files; 0 when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


class MemoryWatch:
    """Samples RssAnon of all executors: ``peak`` is the greatest of any, ``baseline`` of an idle one."""

    def __init__(self, log: EventLog, interval_s: float = 0.02) -> None:
        self.log, self.interval_s = log, interval_s
        self.baseline = self.peak = 0
        self.peaks: dict[int, int] = defaultdict(int)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        pids = list(self.log.pids().values())
        assert pids, "no executor to watch"
        self.baseline = max(rss_anon_bytes(pid) for pid in pids)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            for pid in self.log.pids().values():
                self.peaks[pid] = max(self.peaks[pid], rss_anon_bytes(pid))
            self.peak = max(self.peaks.values(), default=0)
