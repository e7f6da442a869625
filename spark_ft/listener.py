"""Listeners: the program's own code is told of jobs, stages, tasks and executors as they come and go.

    I/O thread ── ListenerBus.note ──> one bounded queue and one thread for each listener ──> its callbacks

* A listener is told everything that it does not miss in the order in which it happened.
* Listeners are isolated: one that raises is told the next event all the same, one that blocks keeps
  neither the job nor another listener waiting (DR-12).  Both are said in the engine's log.
* What a listener's queue has no room for is dropped, counted and said.
* ``stop`` lets each listener have what is queued, for a bounded time.

    >>> class Failures(SparkListener):
    ...     def onTaskEnd(self, taskEnd):
    ...         if taskEnd.reason != "Success":
    ...             print(taskEnd.taskInfo.executorId, taskEnd.reason)
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spark_ft.clock import perf_s, wall_ms
from spark_ft.errors import SettingsError
from spark_ft.log import get_logger

SLOW_S = 5.0  # a callback that takes longer is said
DRAIN_S = 1.0  # at stop, for all listeners together

log = get_logger(__name__)

# --- Events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SparkListenerApplicationStart:
    appName: str
    appId: str
    time: int


@dataclass(frozen=True, slots=True)
class SparkListenerApplicationEnd:
    time: int


@dataclass(frozen=True, slots=True)
class SparkListenerJobStart:
    jobId: int
    time: int
    stageIds: list[int]
    name: str = ""
    jobGroup: str | None = None
    jobTags: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SparkListenerJobEnd:
    """``jobResult`` is ``JobSucceeded`` or the condition that it failed with."""

    jobId: int
    time: int
    jobResult: str


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Times in ms since the epoch; ``failureReason`` is None unless the attempt was broken off."""

    stageId: int
    attemptNumber: int
    name: str = ""
    numTasks: int = 0
    parentIds: list[int] = field(default_factory=list)
    submissionTime: int | None = None
    completionTime: int | None = None
    failureReason: str | None = None


@dataclass(frozen=True, slots=True)
class SparkListenerStageSubmitted:
    stageInfo: StageInfo


@dataclass(frozen=True, slots=True)
class SparkListenerStageCompleted:
    stageInfo: StageInfo


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """``index`` is the partition; times in ms since the epoch, ``finishTime`` 0 while it runs."""

    taskId: int
    index: int
    attemptNumber: int
    launchTime: int = 0
    executorId: str = ""
    host: str = ""
    speculative: bool = False
    finishTime: int = 0


@dataclass(frozen=True, slots=True)
class SparkListenerTaskStart:
    stageId: int
    stageAttemptId: int
    taskInfo: TaskInfo


@dataclass(frozen=True, slots=True)
class SparkListenerTaskEnd:
    """``reason`` is Success, UserError, NotLoadable, FetchFailed, HostError, Killed or ExecutorLost."""

    stageId: int
    stageAttemptId: int
    taskType: str
    reason: str
    taskInfo: TaskInfo
    errorMessage: str = ""


@dataclass(frozen=True, slots=True)
class SparkListenerSpeculativeTaskSubmitted:
    stageId: int
    taskIndex: int
    taskId: int


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    executorHost: str
    totalCores: int
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class SparkListenerExecutorAdded:
    time: int
    executorId: str
    executorInfo: ExecutorInfo


@dataclass(frozen=True, slots=True)
class SparkListenerExecutorRemoved:
    time: int
    executorId: str
    reason: str


@dataclass(frozen=True, slots=True)
class SparkListenerExecutorExcluded:
    time: int
    executorId: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SparkListenerExecutorUnexcluded:
    time: int
    executorId: str


@dataclass(frozen=True, slots=True)
class SparkListenerBlockUpdated:
    """A persisted partition is now held by an executor (``inMemory`` or on disk), or no more."""

    executorId: str
    blockId: str
    inMemory: bool
    size: int = 0
    stored: bool = True


@dataclass(frozen=True, slots=True)
class SparkListenerOther:
    """Whatever else the event log tells: ``kind`` and ``fields`` as they stand there."""

    time: int
    kind: str
    fields: Mapping[str, Any]


class SparkListener:
    """Derive from it and override what is of interest.  Callbacks run in a thread of their own, one
    after the other."""

    def onApplicationStart(self, applicationStart: SparkListenerApplicationStart) -> None:
        """Told only to listeners that ``spark.extraListeners`` names."""

    def onApplicationEnd(self, applicationEnd: SparkListenerApplicationEnd) -> None:
        """The last one, unless too much is queued by then."""

    def onJobStart(self, jobStart: SparkListenerJobStart) -> None: ...

    def onJobEnd(self, jobEnd: SparkListenerJobEnd) -> None: ...

    def onStageSubmitted(self, stageSubmitted: SparkListenerStageSubmitted) -> None: ...

    def onStageCompleted(self, stageCompleted: SparkListenerStageCompleted) -> None: ...

    def onTaskStart(self, taskStart: SparkListenerTaskStart) -> None: ...

    def onTaskEnd(self, taskEnd: SparkListenerTaskEnd) -> None: ...

    def onSpeculativeTaskSubmitted(self, speculativeTask: SparkListenerSpeculativeTaskSubmitted) -> None: ...

    def onExecutorAdded(self, executorAdded: SparkListenerExecutorAdded) -> None: ...

    def onExecutorRemoved(self, executorRemoved: SparkListenerExecutorRemoved) -> None: ...

    def onExecutorExcluded(self, executorExcluded: SparkListenerExecutorExcluded) -> None: ...

    def onExecutorUnexcluded(self, executorUnexcluded: SparkListenerExecutorUnexcluded) -> None: ...

    def onBlockUpdated(self, blockUpdated: SparkListenerBlockUpdated) -> None: ...

    def onOtherEvent(self, event: SparkListenerOther) -> None: ...


# --- From notes to events -----------------------------------------------------------------------

Fields = Mapping[str, Any]


class _Translator:
    """Notes as Spark's events.  What a note leaves out is remembered from the one that began it; where
    that one was dropped, the event says less."""

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[int, str, TaskInfo]] = {}  # stage attempt, kind
        self._stages: dict[int, StageInfo] = {}

    def translate(self, t_ms: int, kind: str, f: Fields) -> tuple[str, Any]:
        """The callback's name, and what it is called with; no name when nobody is to be told."""
        if kind == "task_end" and f["task"] not in self._tasks and not f.get("run_s"):
            return "", None  # it had not begun: it waited behind another one
        made = _EVENTS.get(kind)
        if made is None:
            return "onOtherEvent", SparkListenerOther(t_ms, kind, f)
        name, make = made
        return name, make(self, t_ms, f)

    def _job_start(self, t_ms: int, f: Fields) -> Any:
        return SparkListenerJobStart(
            f["job"], t_ms, list(f["stages"]), f["name"], f["group"], list(f["tags"])
        )

    def _job_end(self, t_ms: int, f: Fields) -> Any:
        return SparkListenerJobEnd(f["job"], t_ms, "JobSucceeded" if f["ok"] else f["condition"])

    def _stage_start(self, t_ms: int, f: Fields) -> Any:
        info = StageInfo(f["stage"], f["attempt"], f["name"], f["tasks"], list(f["parents"]), t_ms)
        self._stages[info.stageId] = info
        return SparkListenerStageSubmitted(info)

    def _stage_end(self, t_ms: int, f: Fields) -> Any:
        info = self._stages.pop(f["stage"], None) or StageInfo(f["stage"], f["attempt"])
        failure = None if f["ok"] else "this attempt of the stage was broken off"
        return SparkListenerStageCompleted(replace(info, completionTime=t_ms, failureReason=failure))

    def _task_start(self, t_ms: int, f: Fields) -> Any:
        info = TaskInfo(
            f["task"], f["partition"], f["attempt"], t_ms, f["executor"], f["host"], f["speculative"]
        )
        self._tasks[info.taskId] = f["stage_attempt"], f["kind"], info
        return SparkListenerTaskStart(f["stage"], f["stage_attempt"], info)

    def _task_end(self, t_ms: int, f: Fields) -> Any:
        unknown = -1, "", TaskInfo(f["task"], f["partition"], f["attempt"], executorId=f["executor"])
        attempt, kind, info = self._tasks.pop(f["task"], unknown)
        task_type = {"map": "ShuffleMapTask", "result": "ResultTask"}.get(kind, kind)
        ended = replace(info, finishTime=t_ms)
        return SparkListenerTaskEnd(f["stage"], attempt, task_type, f["reason"], ended, f.get("text", ""))

    def _block(self, f: Fields, stored: bool) -> SparkListenerBlockUpdated:
        name = f"rdd_{f['node']}_{f['partition']}"
        memory = stored and not f.get("disk", False)
        return SparkListenerBlockUpdated(f["executor"], name, memory, f.get("size_bytes", 0), stored)


_EVENTS: dict[str, tuple[str, Callable[[_Translator, int, Fields], Any]]] = {
    "application_start": (
        "onApplicationStart",
        lambda _, t, f: SparkListenerApplicationStart(f["name"], f["app"], t),
    ),
    "application_end": ("onApplicationEnd", lambda _, t, f: SparkListenerApplicationEnd(t)),
    "job_start": ("onJobStart", _Translator._job_start),
    "job_end": ("onJobEnd", _Translator._job_end),
    "stage_start": ("onStageSubmitted", _Translator._stage_start),
    "stage_end": ("onStageCompleted", _Translator._stage_end),
    "task_start": ("onTaskStart", _Translator._task_start),
    "task_end": ("onTaskEnd", _Translator._task_end),
    "speculation": (
        "onSpeculativeTaskSubmitted",
        lambda _, t, f: SparkListenerSpeculativeTaskSubmitted(f["stage"], f["partition"], f["task"]),
    ),
    "executor_added": (
        "onExecutorAdded",
        lambda _, t, f: SparkListenerExecutorAdded(
            t, f["executor"], ExecutorInfo(f["host"], f["slots"], f["pid"])
        ),
    ),
    "executor_lost": (
        "onExecutorRemoved",
        lambda _, t, f: SparkListenerExecutorRemoved(t, f["executor"], f["why"]),
    ),
    "executor_excluded": (
        "onExecutorExcluded",
        lambda _, t, f: SparkListenerExecutorExcluded(t, f["executor"], f.get("why", "")),
    ),
    "executor_readmitted": (
        "onExecutorUnexcluded",
        lambda _, t, f: SparkListenerExecutorUnexcluded(t, f["executor"]),
    ),
    "cached": ("onBlockUpdated", lambda self, t, f: self._block(f, True)),
    "uncached": ("onBlockUpdated", lambda self, t, f: self._block(f, False)),
}

# --- The bus ------------------------------------------------------------------------------------


class _Queue:
    """One listener with its queue and its thread."""

    def __init__(self, listener: Any, capacity: int) -> None:
        self.listener = listener
        self._capacity = capacity
        self._waiting: deque[tuple[int, str, Fields]] = deque()
        self._translator = _Translator()
        self._wake = threading.Event()
        self._closing = False
        self._busy_since_s: float | None = None
        self._in = ""
        self._slow_said = False
        self.dropped = 0
        self.raised = 0
        self._thread = threading.Thread(target=self._run, name=f"spark-ft-listener-{self}", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return type(self.listener).__name__

    def put(self, item: tuple[int, str, Fields]) -> None:
        """Never waits."""
        if len(self._waiting) >= self._capacity:
            self.dropped += 1
            if self.dropped == 1:
                log.warning(
                    "listener %s lags behind: events beyond the %d that wait are dropped",
                    self, self._capacity,
                )  # fmt: skip
        else:
            self._waiting.append(item)
            if not self._wake.is_set():
                self._wake.set()
        since_s = self._busy_since_s
        if since_s is not None and not self._slow_said and perf_s() - since_s > SLOW_S:
            self._say_slow(f"has been in {self._in} for more than {SLOW_S:g} s")

    def close(self) -> None:
        """What is queued is delivered; then the thread ends."""
        self._closing = True
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning(
                    "listener %s is in %s and ends with %d event(s) not told",
                    self, self._in or "no callback", len(self._waiting),
                )  # fmt: skip
                self._waiting.clear()
        if self.dropped or self.raised:
            log.warning(
                "listener %s: %d event(s) dropped, %d callback(s) raised", self, self.dropped, self.raised
            )

    def _run(self) -> None:
        while not (self._closing and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                self._deliver(*self._waiting.popleft())

    def _deliver(self, t_ms: int, kind: str, fields: Fields) -> None:
        start_s = self._busy_since_s = perf_s()
        try:
            name, event = self._translator.translate(t_ms, kind, fields)
            self._in = name
            callback = getattr(self.listener, name, None) if name else None
            if callback is not None:
                callback(event)
        except BaseException:  # user code: whatever it raises, SystemExit too, concerns this call alone
            self.raised += 1
            if self.raised == 1:
                log.warning("listener %s raised; it is told the next event", self, exc_info=True)
        self._busy_since_s = None
        took_s = perf_s() - start_s
        if took_s > SLOW_S and not self._slow_said:
            self._say_slow(f"took {took_s:.1f} s in {self._in}")

    def _say_slow(self, what: str) -> None:
        self._slow_said = True
        log.warning("listener %s %s; %d event(s) wait for it", self, what, len(self._waiting))


class ListenerBus:
    """All listeners of an application.  ``note`` is called by the driver's I/O thread."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._queues: tuple[_Queue, ...] = ()
        self._lock = threading.Lock()

    def add(self, listener: Any) -> None:
        """From now on it is told.  Raises TypeError for what has none of a SparkListener's callbacks."""
        told = any(callable(getattr(listener, name, None)) for name in _CALLBACKS)
        if not told or isinstance(listener, type):
            raise TypeError(
                f"{listener!r} is no listener: derive its class from spark_ft.listener.SparkListener and "
                "give an instance"
            )
        with self._lock:
            self._queues += (_Queue(listener, self._capacity),)

    def remove(self, listener: Any) -> None:
        """It is told what is queued, and no more.  Unknown ones are ignored."""
        with self._lock:
            gone = [queue for queue in self._queues if queue.listener is listener]
            self._queues = tuple(queue for queue in self._queues if queue not in gone)
        for queue in gone:
            queue.close()

    def note(self, kind: str, fields: Fields) -> None:
        """Never waits and never raises."""
        if self._queues:
            item = wall_ms(), kind, fields
            for queue in self._queues:
                queue.put(item)

    def stop(self, timeout_s: float = DRAIN_S) -> None:
        """Let every listener have what is queued, all of them within ``timeout_s``.  Idempotent."""
        with self._lock:
            queues, self._queues = self._queues, ()
        for queue in queues:
            queue.close()
        end_s = perf_s() + timeout_s
        for queue in queues:
            queue.join(max(0.0, end_s - perf_s()))


_CALLBACKS = tuple(name for name in vars(SparkListener) if name.startswith("on"))


def load_listeners(names: str, conf: Any) -> Sequence[Any]:
    """Instances of the classes that ``spark.extraListeners`` names, made with ``conf`` where they take it.

    Raises SettingsError that says which, and why not.
    """
    made = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            module, _, cls_name = name.rpartition(".")
            if not module:
                raise ValueError("expected a class with its module: package.module.Class")
            cls = getattr(importlib.import_module(module), cls_name)
            made.append(cls(conf) if _takes_one(cls) else cls())
        except Exception as error:  # the user's module and class may raise anything
            raise SettingsError(f"spark.extraListeners={names!r}: {name}: {error}") from error
    return made


def _takes_one(cls: Any) -> bool:
    try:
        inspect.signature(cls).bind(None)
    except (TypeError, ValueError):
        return False
    return True
