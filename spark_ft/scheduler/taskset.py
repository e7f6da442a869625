"""TaskSet: the tasks of one active stage, and which of them an executor may have next.

A task's states; ``lost`` and ``failed`` lead back, ``rolled back`` too:

    WAITING ──parents there──> READY ──launched──> RUNNING ──first success──> DONE
       ^                         ^─────failed, back-off over─────┘              │
       └──parents lost───────────┴──────────────── output lost ─────────────────┘

Modes: CLOSED, no task may be launched; OPEN, all may; PARTIAL, some parents lack, and only tasks that
need none of them, thanks to cached blocks, are READY (S5).

Invariants
  * at most one normal and one speculative attempt of a task count at any time (S10).
  * RUNNING is having such an attempt; ``running`` counts them; ``unfinished`` counts tasks not DONE.
  * a ready task stands in some queue under its current ticket; other entries are stale.
  * failures of a task grow only by blame on the task (S14).
"""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Iterable
from enum import Enum, IntEnum, auto

from spark_ft.ids import Generation, HostId, Incarnation, NodeId, ShuffleId, TaskId
from spark_ft.protocol.effects import AttemptRecord
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.stage import Stage
from spark_ft.settings import Settings

_RECORDS_MAX = 100  # attempts of one task that an error tells of
_PROOF = 2  # executors (TK-2)
_AVOID_S = 5.0  # so long a failed task waits for an executor it has not failed on

Reads = tuple[tuple[ShuffleId, Generation], ...]
Entry = tuple["Task", int]  # a task and the ticket under which it was queued


class State(Enum):
    WAITING = auto()
    READY = auto()
    RUNNING = auto()
    DONE = auto()


class Mode(Enum):
    CLOSED = auto()
    PARTIAL = auto()
    OPEN = auto()


class Room(IntEnum):
    """How much room an attempt has, or wants, around it; see quarantine.py."""

    SHARED = 0
    ROOMY = 1
    ALONE = 2
    HOST = 3


class Attempt:
    """One try at one task on one executor.  ``counts`` is False once it was given up (killed)."""

    __slots__ = (
        "counts", "executor", "keeps", "keeps_anew", "launched_s", "number", "probe", "reads", "recalled",
        "room", "speculative", "stage", "stage_attempt", "started_s", "suspect", "task", "task_id",
    )  # fmt: skip

    def __init__(
        self,
        task_id: TaskId,
        stage: Stage,
        task: Task,
        number: int,
        executor: ExecutorState,
        speculative: bool,
        reads: Reads,
        now_s: float,
    ) -> None:
        self.task_id, self.stage, self.task, self.number, self.executor = (
            task_id,
            stage,
            task,
            number,
            executor,
        )
        self.stage_attempt = stage.attempt
        self.speculative = speculative
        self.reads = reads  # every shuffle under it, at the generation current when it was launched
        self.keeps: tuple[tuple[NodeId, int], ...] = ()  # persisted partitions that it computes
        self.keeps_anew = False  # or may compute, where what is known to be in memory is not there
        self.launched_s = now_s
        self.started_s: float | None = None
        self.counts = True
        self.probe = False  # of an excluded executor
        self.room = Room.SHARED
        self.suspect = False  # it does not get on: a twin may start, however few tasks have finished
        self.recalled = False  # asked back from a queue, for an idle executor

    @property
    def partition(self) -> int:
        return self.task.partition

    def __str__(self) -> str:
        return f"{self.stage.id}.{self.stage_attempt}/{self.partition}.{self.number}"


class Trouble:
    """What went wrong with one task so far; most tasks never have one."""

    __slots__ = (
        "avoid", "avoid_hosts", "avoid_until_s", "deaths", "failed_on", "failures", "fetches", "host_errors",
        "in_vain", "mark", "ooms", "records", "room", "stalls", "suspect_since_s", "tracebacks", "unloadable",
    )  # fmt: skip

    def __init__(self) -> None:
        self.failures = 0  # blamed on the task
        self.deaths = 0  # processes that ended under it by themselves
        self.in_vain = 0  # processes that were killed under it, by whomever, with no progress between
        self.mark: int | None = None  # progress of its jobs at the last of these
        self.ooms = 0  # attempts that ran out of memory
        self.room = Room.SHARED  # that its next attempt needs
        self.suspect_since_s = 0.0
        self.fetches = 0  # reads in a row that were refused or timed out
        self.unloadable = 0
        self.stalls = 0  # attempts that were killed for not getting on
        self.host_errors: dict[HostId, int] = {}
        self.failed_on: dict[Incarnation, str] = {}  # by an error of its own
        self.avoid: set[Incarnation] = set()
        self.avoid_hosts: set[HostId] = set()
        self.avoid_until_s = 0.0
        self.records: list[AttemptRecord] = []
        self.tracebacks: dict[str, None] = {}


class Task:
    """One partition of an active stage."""

    __slots__ = ("attempts", "partition", "state", "ticket", "trouble")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.state = State.WAITING
        self.attempts: list[Attempt] = []  # those that count
        self.ticket = 0
        self.trouble: Trouble | None = None

    def troubled(self) -> Trouble:
        if self.trouble is None:
            self.trouble = Trouble()
        return self.trouble


class TaskSet:
    """All tasks of one stage while it is active."""

    def __init__(self, stage: Stage, partitions: Iterable[int]) -> None:
        self.stage = stage
        self.mode = Mode.CLOSED
        self.tasks = {partition: Task(partition) for partition in partitions}
        self.waiting: dict[int, Task] = dict(self.tasks)
        self.active: dict[int, Task] = {}  # RUNNING
        self.unfinished = len(self.tasks)
        self.running = 0  # attempts that count
        self.ready = 0
        self._anywhere: deque[Entry] = deque()
        self._at_executor: dict[Incarnation, deque[Entry]] = {}
        self._bound: dict[Incarnation, deque[Entry]] = {}  # that nobody else may have
        self._at_host: dict[HostId, deque[Entry]] = {}
        self._patient: deque[tuple[float, Task, int]] = deque()  # (until when it waits for its place, …)
        self._suspects: deque[Entry] = deque()  # that need room: placed one by one (quarantine.py)
        self._choosy: list[Entry] = []  # tasks with trouble: not just any executor will do
        self._delayed: list[tuple[float, int, int]] = []  # heap of (due, partition, ticket)
        self._durations: list[float] = []
        self._slow: deque[Task] = deque()
        self.failed_on: dict[Incarnation, set[int]] = {}  # tasks since the last that succeeded there
        self._judged = -1  # finished tasks when the median was last computed
        self._limit_s = 0.0
        self.usual_s = 0.0  # that median; 0 before enough have finished

    # --- Tasks change state ---

    def add(self, partition: int) -> None:
        """This partition is to be computed (again); it already is unless it was done."""
        task = self.tasks.get(partition)
        if task is None:
            task = self.tasks[partition] = Task(partition)
            self.unfinished += 1
            self.waiting[partition] = task
        elif task.state is State.DONE:
            self.unfinished += 1
            self.wait(task)

    def wait(self, task: Task) -> None:
        """Not to be launched until somebody enqueues it."""
        self._leave(task)
        task.state = State.WAITING
        task.ticket += 1
        self.waiting[task.partition] = task

    def close(self) -> None:
        """Nothing more may be launched for now."""
        self.mode = Mode.CLOSED
        self.clear_queues()

    def clear_queues(self) -> None:
        if self.ready or self._delayed:
            for task in self.tasks.values():
                if task.state is State.READY:
                    self.wait(task)
        assert not self.ready
        self._anywhere.clear()
        self._at_executor.clear()
        self._bound.clear()
        self._at_host.clear()
        self._patient.clear()
        self._choosy.clear()
        self._suspects.clear()
        self._delayed.clear()
        self._slow.clear()

    def enqueue(
        self,
        task: Task,
        executors: Iterable[Incarnation] = (),
        hosts: Iterable[HostId] = (),
        until_s: float | None = None,
    ) -> None:
        """Ready: for ``executors`` and ``hosts`` at once; for any other from ``until_s`` on.

        With no places named anybody may have it; places named and no ``until_s`` binds it to them.
        """
        if task.state is not State.READY:
            self._leave(task)
            task.state = State.READY
            self.ready += 1
        task.ticket += 1
        entry = (task, task.ticket)
        placed = False
        at_executor = self._bound if until_s is None else self._at_executor
        for executor in executors:
            at_executor.setdefault(executor, deque()).append(entry)
            placed = True
        for host in hosts:
            self._at_host.setdefault(host, deque()).append(entry)
            placed = True
        if placed:
            if until_s is not None:
                self._patient.append((until_s, *entry))
        elif task.trouble is not None and task.trouble.room is not Room.SHARED:
            self._suspects.append(entry)
        elif task.trouble is not None:
            self._choosy.append(entry)
        else:
            self._anywhere.append(entry)

    def delay(self, task: Task, due_s: float) -> None:
        """Ready at ``due_s``; counts as ready from now on."""
        if task.state is not State.READY:
            self._leave(task)
            task.state = State.READY
            self.ready += 1
        task.ticket += 1
        heapq.heappush(self._delayed, (due_s, task.partition, task.ticket))

    def launched(self, attempt: Attempt) -> None:
        task = attempt.task
        if task.state is not State.RUNNING:
            self._leave(task)
            task.state = State.RUNNING
            self.active[task.partition] = task
        task.attempts.append(attempt)
        self.running += 1

    def ended(self, attempt: Attempt) -> None:
        """The attempt does not count any more; the caller says what becomes of its task."""
        attempt.counts = False
        attempt.task.attempts.remove(attempt)
        self.running -= 1

    def done(self, task: Task, run_s: float) -> None:
        self._leave(task)
        task.state = State.DONE
        self.unfinished -= 1
        self._durations.append(run_s)

    def _leave(self, task: Task) -> None:
        match task.state:
            case State.WAITING:
                self.waiting.pop(task.partition, None)
            case State.READY:
                self.ready -= 1
            case State.RUNNING:
                self.active.pop(task.partition, None)
            case State.DONE:
                pass

    # --- Who gets what ---

    def take(self, executor: ExecutorState, executors: Executors, now_s: float) -> Task | None:
        """The next task that this executor may run: one it holds data for, else any, else None."""
        if self._choosy and (task := self._take_choosy(executor, executors, now_s)):
            return task
        if self._bound and (task := self.take_bound(executor)):
            return task
        for queue in (self._at_executor.get(executor.id), self._at_host.get(executor.host), self._anywhere):
            if queue and (task := _first(queue)):
                return task
        while self._patient:
            until_s, task, ticket = self._patient[0]
            if task.ticket == ticket and task.state is State.READY:
                if until_s > now_s:
                    return None
                self._patient.popleft()
                return task
            self._patient.popleft()
        return None

    def take_bound(self, executor: ExecutorState) -> Task | None:
        """The next task that only this executor may run, however others have fared there."""
        queue = self._bound.get(executor.id)
        return _first(queue) if queue else None

    def _take_choosy(self, executor: ExecutorState, executors: Executors, now_s: float) -> Task | None:
        index = 0
        while index < len(self._choosy):
            task, ticket = self._choosy[index]
            if task.ticket != ticket or task.state is not State.READY:
                del self._choosy[index]
                continue
            trouble = task.trouble
            assert trouble is not None
            refused = executor.id in trouble.avoid or executor.host in trouble.avoid_hosts
            # Two that it has failed on are proof enough: a third is not waited for while it is busy.
            proved = len(trouble.avoid) >= _PROOF and not trouble.avoid_hosts
            if (
                refused
                and now_s < trouble.avoid_until_s
                and executors.others(trouble.avoid, trouble.avoid_hosts, idle=proved)
            ):
                index += 1
                continue
            del self._choosy[index]
            return task
        return None

    def first_suspect(self) -> Task | None:
        """The ready task that has waited longest for room."""
        while self._suspects:
            task, ticket = self._suspects[0]
            if task.ticket == ticket and task.state is State.READY:
                return task
            self._suspects.popleft()
        return None

    def take_suspect(self) -> None:
        self._suspects.popleft()

    def due(self, now_s: float) -> list[Task]:
        """Tasks whose back-off is over; the caller enqueues them."""
        found: list[Task] = []
        while self._delayed and self._delayed[0][0] <= now_s:
            _, partition, ticket = heapq.heappop(self._delayed)
            task = self.tasks[partition]
            if task.ticket == ticket and task.state is State.READY:
                found.append(task)
        return found

    def left_by(self, executor: Incarnation) -> list[Task]:
        """Ready tasks that waited for an executor which is gone."""
        queue = [*self._bound.pop(executor, ()), *self._at_executor.pop(executor, ())]
        return [task for task, ticket in queue if task.ticket == ticket and task.state is State.READY]

    def left_by_host(self, host: HostId) -> list[Task]:
        queue = self._at_host.pop(host, ())
        return [task for task, ticket in queue if task.ticket == ticket and task.state is State.READY]

    def wakeup_s(self, now_s: float) -> float | None:
        """When a ready task may be had by somebody who may not have it now."""
        times = [self._delayed[0][0]] if self._delayed else []
        if self._patient:
            times.append(self._patient[0][0])
        times.extend(task.trouble.avoid_until_s for task, _ in self._choosy if task.trouble)
        later = [time for time in times if time > now_s]
        return min(later) if later else None

    # --- Speculation ---

    def may_be_slow(self, settings: Settings) -> bool:
        """Whether enough tasks have finished to know what is usual, and some still run."""
        finished = len(self._durations)
        return (
            bool(self.active)
            and self.mode is Mode.OPEN
            and finished >= settings.speculation_min_finished
            and finished >= settings.speculation_quantile * len(self.tasks)
        )

    def find_slow(self, settings: Settings, now_s: float) -> bool:
        """Mark running tasks that do not get on, and, once enough have finished, those that take much longer
        than these did.  Answers whether there may be more of the latter soon."""
        enough = self.may_be_slow(settings)
        finished = len(self._durations)
        if enough and finished != self._judged:
            self._judged = finished
            self.usual_s = statistics.median(self._durations)
            self._limit_s = max(settings.speculation_multiplier * self.usual_s, settings.speculation_min_s)
        self._slow.clear()
        for task in self.active.values() if self.mode is Mode.OPEN else ():
            if _may_have_second(task):
                attempt = task.attempts[0]
                long = attempt.started_s is not None and now_s - attempt.started_s > self._limit_s
                if attempt.suspect or (enough and long):
                    self._slow.append(task)
        return enough

    def hurry(self, task: Task) -> None:
        """Its attempt may not end in time: a second one elsewhere, as if slow, while no parent lacks."""
        if self.mode is Mode.OPEN and _may_have_second(task) and task not in self._slow:
            self._slow.append(task)

    def take_slow(self, executor: ExecutorState) -> Task | None:
        """A slow task for a second attempt on another executor."""
        for _ in range(len(self._slow)):
            task = self._slow.popleft()
            if task.state is not State.RUNNING or not _may_have_second(task):
                continue
            if task.attempts[0].executor is executor:
                self._slow.append(task)
                continue
            return task
        return None

    @property
    def has_slow(self) -> bool:
        return bool(self._slow)

    @property
    def has_delayed(self) -> bool:
        return bool(self._delayed)


def _may_have_second(task: Task) -> bool:
    """Whether a second attempt may begin beside the one that runs: not of a task that is to have room."""
    room = task.trouble.room if task.trouble is not None else Room.SHARED
    return len(task.attempts) == 1 and task.attempts[0].room is Room.SHARED and room is Room.SHARED


def _first(queue: deque[Entry]) -> Task | None:
    while queue:
        task, ticket = queue.popleft()
        if task.ticket == ticket and task.state is State.READY:
            return task
    return None


def remember(task: Task, attempt: Attempt, outcome: str, blame: str, text: str) -> None:
    """Keep an attempt for the error that a user may see."""
    records = task.troubled().records
    if len(records) < _RECORDS_MAX:
        executor = attempt.executor
        records.append(AttemptRecord(attempt.number, executor.id, executor.host, outcome, blame, text))


def avoid(
    task: Task, executor: ExecutorState, now_s: float, host: bool = False, for_s: float = _AVOID_S
) -> None:
    """For a while this task prefers any other executor, or any other host."""
    trouble = task.troubled()
    trouble.avoid.add(executor.id)
    if host:
        trouble.avoid_hosts.add(executor.host)
    trouble.avoid_until_s = max(trouble.avoid_until_s, now_s + for_s)
