"""An application as its records tell it: jobs, stages, attempts with their causes, executors, recoveries.

``of(records)`` reads what there is and leaves out what is missing: a log that was rotated, torn or
written by an older version gives a smaller model, never an error.  Nothing here asks a clock or a
file; that an application's driver has died without a word is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from spark_ft.history.causes import Cause, Causes, Place
from spark_ft.history.files import Record


@dataclass(slots=True)
class Attempt:
    """One attempt that began; ``why`` is empty for the first run of its partition."""

    task: int
    stage: int
    partition: int
    number: int
    executor: str
    pid: int | None
    host: str
    speculative: bool
    start_ms: int
    why: list[Cause]
    end_ms: int | None = None
    reason: str = ""
    text: str = ""
    run_s: float = 0.0
    record_count: int = 0
    adopted: bool = False

    def as_json(self) -> Record:
        return {
            "task": self.task, "stage": self.stage, "partition": self.partition, "attempt": self.number,
            "executor": self.executor, "pid": self.pid, "host": self.host,
            "speculative": self.speculative, "start_ms": self.start_ms, "end_ms": self.end_ms,
            "reason": self.reason, "text": self.text, "run_s": self.run_s, "records": self.record_count,
            "adopted": self.adopted, "why": [cause.as_json() for cause in self.why],
        }  # fmt: skip


@dataclass(slots=True)
class Executor:
    id: str
    host: str
    pid: int | None
    added_ms: int
    lost_ms: int | None = None
    lost_because: str = ""
    starts: int = 0
    stopped: bool = False
    remarks: list[str] = field(default_factory=list)  # of exclusion, fencing and the like

    def as_json(self, running: int) -> Record:
        return {
            "executor": self.id, "host": self.host, "pid": self.pid, "added_ms": self.added_ms,
            "lost_ms": self.lost_ms, "lost_because": self.lost_because, "starts": self.starts,
            "stopped": self.stopped, "running": running, "remarks": self.remarks,
        }  # fmt: skip


@dataclass(slots=True)
class Stage:
    id: int
    name: str = ""
    kind: str = ""
    attempt: int = 0
    task_count: int = 0
    shuffle: int | None = None
    running: bool = False

    def __str__(self) -> str:
        kind = f"{self.kind} " if self.kind else ""
        return f"{kind}stage {self.id}{f' ({self.name})' if self.name else ''}"


@dataclass(slots=True)
class Job:
    id: int
    name: str
    stages: list[int]
    start_ms: int
    end_ms: int | None = None
    ok: bool | None = None
    condition: str = ""

    def as_json(self) -> Record:
        return {
            "job": self.id, "name": self.name, "stages": self.stages, "start_ms": self.start_ms,
            "end_ms": self.end_ms, "ok": self.ok, "condition": self.condition,
        }  # fmt: skip


@dataclass(slots=True)
class Recovery:
    id: int
    cause: str
    text: str
    from_ms: int
    to_ms: int | None = None
    redone: int = 0
    adopted: int = 0
    given_up: int = 0
    task_count: int = 0  # known to be due when it began

    def as_json(self) -> Record:
        return {
            "recovery": self.id, "cause": self.cause, "text": self.text, "from_ms": self.from_ms,
            "to_ms": self.to_ms, "redone": self.redone, "adopted": self.adopted,
            "given_up": self.given_up,
        }  # fmt: skip


# Kinds that tell of an executor or a task and are told otherwise, or too often, to be a remark on it.
_QUIET = frozenset({
    "cached", "not_cached", "uncached", "executor_spawned", "stale_task_end", "ended_after_kill",
    "fetch_failed", "speculation", "task_killed", "output_refused", "output_lost", "rollback",
    "message_from_fenced", "message_not_for_scheduler", "recovery_start", "recovery_end",
})  # fmt: skip
_REMARKS_MAX = 20  # of one executor or place


@dataclass(slots=True)
class Application:
    """Everything in the order it happened; the newest run where one id was used again."""

    id: str = ""
    name: str = ""
    pid: int | None = None
    master: str = ""
    start_ms: int | None = None
    end_ms: int | None = None
    last_ms: int | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    stages: dict[int, Stage] = field(default_factory=dict)
    executors: dict[str, Executor] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)  # worker -> host, of those that live
    attempts: dict[int, Attempt] = field(default_factory=dict)  # by task id
    places: dict[Place, list[Attempt]] = field(default_factory=dict)
    remarks: dict[Place, list[tuple[int, str]]] = field(default_factory=dict)
    recoveries: dict[int, Recovery] = field(default_factory=dict)
    missing: int = 0  # records that are gone: rotated away, not written, or torn

    def running(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.end_ms is None]

    def live_executors(self) -> list[Executor]:
        return [executor for executor in self.executors.values() if executor.lost_ms is None]

    def partitions_of(self, stage: int) -> list[int]:
        return sorted(partition for of, partition in self.places if of == stage)


def of(records: Iterable[Record], torn: int = 0) -> Application:
    """The application that these records tell of."""
    reader = _Reader()
    for record in records:
        try:
            reader.take(record)
        except (KeyError, TypeError, ValueError, AttributeError):
            reader.app.missing += 1  # of another version, or half of one: the rest may still be read
    reader.app.missing += torn
    return reader.app


class _Reader:
    def __init__(self) -> None:
        self.app = Application()
        self._causes = Causes()

    def take(self, record: Record) -> None:
        why = self._causes.feed(record)
        t_ms = record.get("t_ms")
        if isinstance(t_ms, int):
            self.app.last_ms = t_ms
        if record["event"] == "task_start":
            self._task_start(record, why)
        elif (handler := _HANDLERS.get(record["event"])) is not None:
            handler(self, record)
        elif record["event"] not in _QUIET:
            self._remark(record)

    def _remark(self, r: Record) -> None:
        """A kind that is not known here: it is shown with whom it names."""
        text = f"{r['event'].replace('_', ' ')}"
        why = r.get("why") or r.get("text") or ""
        text += f": {why}" if why else ""
        if "stage" in r and "partition" in r:
            remarks = self.app.remarks.setdefault((r["stage"], r["partition"]), [])
            if len(remarks) < _REMARKS_MAX:
                remarks.append((r["t_ms"], text))
        executor = self.app.executors.get(r.get("executor", ""))
        if executor is not None and len(executor.remarks) < _REMARKS_MAX:
            executor.remarks.append(text)

    def _application_start(self, r: Record) -> None:
        before = self.app
        self.app = Application(
            str(r.get("app", "")), str(r.get("name", "")), r.get("pid"), str(r.get("master", "")), r["t_ms"],
            last_ms=r["t_ms"], missing=before.missing,
        )  # fmt: skip

    def _application_end(self, r: Record) -> None:
        self.app.end_ms = r["t_ms"]

    def _job_start(self, r: Record) -> None:
        self.app.jobs[r["job"]] = Job(r["job"], str(r.get("name", "")), list(r["stages"]), r["t_ms"])

    def _job_end(self, r: Record) -> None:
        if (job := self.app.jobs.get(r["job"])) is not None:
            job.end_ms, job.ok, job.condition = r["t_ms"], bool(r.get("ok")), str(r.get("condition", ""))

    def _stage_start(self, r: Record) -> None:
        stage = self.app.stages.setdefault(r["stage"], Stage(r["stage"]))
        stage.name, stage.kind = str(r.get("name", "")), str(r.get("kind", ""))
        stage.attempt, stage.shuffle, stage.running = r.get("attempt", 0), r.get("shuffle"), True
        stage.task_count = max(stage.task_count, r.get("tasks", 0))

    def _stage_end(self, r: Record) -> None:
        if (stage := self.app.stages.get(r["stage"])) is not None:
            stage.running = False

    def _task_start(self, r: Record, why: list[Cause]) -> None:
        attempt = Attempt(
            r["task"], r["stage"], r["partition"], r["attempt"], r["executor"], r.get("pid"),
            str(r.get("host", "")), bool(r.get("speculative")), r["t_ms"], why,
        )  # fmt: skip
        self.app.attempts[attempt.task] = attempt
        self.app.places.setdefault((attempt.stage, attempt.partition), []).append(attempt)
        self.app.stages.setdefault(attempt.stage, Stage(attempt.stage, kind=str(r.get("kind", ""))))
        if (executor := self.app.executors.get(attempt.executor)) is not None:
            executor.starts += 1

    def _task_end(self, r: Record) -> None:
        if (attempt := self.app.attempts.get(r["task"])) is not None:
            attempt.end_ms, attempt.reason = r["t_ms"], str(r["reason"])
            attempt.text, attempt.run_s = str(r.get("text", "")), float(r.get("run_s", 0.0))
            attempt.record_count = int(r.get("records", 0))

    def _output_adopted(self, r: Record) -> None:
        if (attempt := self.app.attempts.get(r["task"])) is not None:
            attempt.adopted = True

    def _executor_added(self, r: Record) -> None:
        self.app.executors[r["executor"]] = Executor(
            r["executor"], str(r.get("host", "")), r.get("pid"), r["t_ms"]
        )

    def _executor_lost(self, r: Record) -> None:
        executor = self.app.executors.setdefault(
            r["executor"], Executor(r["executor"], str(r.get("host", "")), r.get("pid"), r["t_ms"])
        )
        executor.lost_ms, executor.lost_because = r["t_ms"], str(r.get("why", ""))

    def _executor_stopped(self, r: Record) -> None:
        if (executor := self.app.executors.get(r["executor"])) is not None:
            executor.stopped = bool(r["stopped"])

    def _worker_added(self, r: Record) -> None:
        self.app.hosts[r["worker"]] = str(r.get("host", ""))

    def _worker_lost(self, r: Record) -> None:
        self.app.hosts.pop(r["worker"], None)

    def _recovery_start(self, r: Record) -> None:
        self.app.recoveries[r["recovery"]] = Recovery(
            r["recovery"], r["cause"], r["text"], r["t_ms"], task_count=len(r.get("tasks", ()))
        )

    def _recovery_end(self, r: Record) -> None:
        recovery = self.app.recoveries.setdefault(
            r["recovery"], Recovery(r["recovery"], r["cause"], r["text"], r["from_ms"])
        )
        recovery.from_ms, recovery.to_ms = r["from_ms"], r["to_ms"]
        recovery.redone, recovery.adopted, recovery.given_up = r["redone"], r["adopted"], r["given_up"]

    def _log_kept(self, r: Record) -> None:
        self.app.missing += sum(r.get("dropped", {}).values())

    def _log_gap(self, r: Record) -> None:
        self.app.missing += int(r["records"])


_HANDLERS = {
    "application_start": _Reader._application_start,
    "application_end": _Reader._application_end,
    "job_start": _Reader._job_start,
    "job_end": _Reader._job_end,
    "stage_start": _Reader._stage_start,
    "stage_end": _Reader._stage_end,
    "task_end": _Reader._task_end,
    "output_adopted": _Reader._output_adopted,
    "executor_added": _Reader._executor_added,
    "executor_lost": _Reader._executor_lost,
    "executor_stopped": _Reader._executor_stopped,
    "worker_added": _Reader._worker_added,
    "worker_lost": _Reader._worker_lost,
    "recovery_start": _Reader._recovery_start,
    "recovery_end": _Reader._recovery_end,
    "log_kept": _Reader._log_kept,
    "log_gap": _Reader._log_gap,
}
