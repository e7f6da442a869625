"""Recoveries: from a loss to the moment when all that it undid is done again.

    executor_lost ── attempts that ran there      ┐
    worker_lost, segment_lost, fetch_failed …     ├─> open, with the tasks that are due ──> none due: ended
      ── outputs that cannot be read any more     │
    rollback, result_lost ── what they undo       ┘

A pure state machine over the records of the event log: ``feed`` takes one and answers the records
``recovery_start`` and ``recovery_end`` that it gives rise to.

* A task is due in a recovery only while a stage that is running needs it; outputs that were lost
  and are not needed now wait (``idle``) until their stage starts again, or its jobs have ended.
* An output that a dead executor had committed and that is adopted ends its task's part at once.
* What the engine merely repeats because a task itself failed is no recovery.
* Memory: the running jobs' stages, and the partitions that they have finished.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from spark_ft.history.files import Record

Place = tuple[int, int]  # stage, partition

_SHOWN_MAX = 20  # places that a record names; all are counted


@dataclass(slots=True)
class _Loss:
    """One loss; a recovery while something is due."""

    cause: str
    text: str
    fields: Record
    from_ms: int
    number: int = -1
    due: set[Place] = field(default_factory=set)
    idle: set[Place] = field(default_factory=set)
    redone: int = 0
    adopted: int = 0
    given_up: int = 0


@dataclass(slots=True)
class _Stage:
    """One that a running job may need."""

    active: bool = False
    finished: set[int] = field(default_factory=set)
    jobs: set[int] = field(default_factory=set)


class Recoveries:
    """Fed with every record in order."""

    def __init__(self) -> None:
        self._next = 0
        self._stages: dict[int, _Stage] = {}
        self._jobs: dict[int, list[int]] = {}
        self._open_tasks: dict[int, Place] = {}
        self._ended_with: dict[int, tuple[_Loss, Place]] = {}  # by task, until what may be adopted has been
        self._fetch_ended: dict[int, Place] = {}
        self._losses: list[_Loss] = []  # those with something due or idle
        self._of_executor: _Loss | None = None
        self._of_host: _Loss | None = None
        self._of_store: _Loss | None = None
        self._of_fetch: dict[int, _Loss] = {}  # by shuffle
        self._of_rollback: dict[str, _Loss] = {}

    def feed(self, record: Record) -> list[Record]:
        handler = _HANDLERS.get(record["event"])
        out: list[Record] = []
        if handler is not None:
            handler(self, record, out)
        return out

    @property
    def open(self) -> int:
        """How many are going on."""
        return sum(loss.number >= 0 for loss in self._losses)

    def is_idle(self) -> bool:
        """Nothing of ended jobs is remembered."""
        return not (self._jobs or self._stages or self._losses or self._of_fetch or self._of_rollback)

    # --- Jobs, stages, tasks ---

    def _application_start(self, _: Record, out: list[Record]) -> None:
        """Another run under the same id: nothing of the former is known to it."""
        self.__init__()  # type: ignore[misc]  # all of it begins anew

    def _job_start(self, r: Record, out: list[Record]) -> None:
        self._jobs[r["job"]] = list(r["stages"])
        for stage in r["stages"]:
            self._stages.setdefault(stage, _Stage()).jobs.add(r["job"])

    def _job_end(self, r: Record, out: list[Record]) -> None:
        for number in self._jobs.pop(r["job"], ()):
            stage = self._stages.get(number)
            if stage is None:
                continue
            stage.jobs.discard(r["job"])
            if stage.jobs:
                continue
            del self._stages[number]
            for loss in list(self._losses):
                gone = {place for place in loss.due if place[0] == number}
                loss.due -= gone
                loss.given_up += len(gone)
                loss.idle = {place for place in loss.idle if place[0] != number}
                self._settle(loss, r, out)
        if not self._jobs:
            self._of_fetch.clear()
            self._of_rollback.clear()

    def _stage_start(self, r: Record, out: list[Record]) -> None:
        if (stage := self._stages.get(r["stage"])) is None:
            return
        stage.active = True
        for loss in list(self._losses):
            woken = {place for place in loss.idle if place[0] == r["stage"]}
            loss.idle -= woken
            self._add(loss, woken, r, out)

    def _stage_end(self, r: Record, out: list[Record]) -> None:
        if (stage := self._stages.get(r["stage"])) is not None:
            stage.active = False

    def _task_start(self, r: Record, out: list[Record]) -> None:
        self._open_tasks[r["task"]] = (r["stage"], r["partition"])

    def _task_end(self, r: Record, out: list[Record]) -> None:
        place = self._open_tasks.pop(r["task"], None)
        if place is None:
            return  # it had not begun
        match r["reason"]:
            case "Success":
                self._done(place, r, out)
            case "ExecutorLost" if (loss := self._of_executor) is not None:
                self._ended_with[r["task"]] = loss, place
                self._add(loss, {place}, r, out)
            case "FetchFailed":
                self._fetch_ended[r["task"]] = place

    def _done(self, place: Place, r: Record, out: list[Record]) -> None:
        if (stage := self._stages.get(place[0])) is not None:
            stage.finished.add(place[1])
        for loss in list(self._losses):
            if place in loss.due:
                loss.due.discard(place)
                loss.redone += 1
                self._settle(loss, r, out)

    # --- Losses ---

    def _executor_lost(self, r: Record, out: list[Record]) -> None:
        text = f"{r['executor']} (pid {r.get('pid')}, {r.get('host')}) was lost: {r.get('why')}"
        fields = {"executor": r["executor"], "pid": r.get("pid"), "host": r.get("host")}
        self._ended_with.clear()
        self._of_executor = _Loss("executor_lost", text, fields, r["t_ms"])

    def _worker_lost(self, r: Record, out: list[Record]) -> None:
        text = f"worker {r['worker']} of {r['host']} was lost: {r.get('why')}"
        self._of_host = _Loss("worker_lost", text, {"worker": r["worker"], "host": r["host"]}, r["t_ms"])

    def _store_quarantined(self, r: Record, out: list[Record]) -> None:
        text = f"the store {r['store']} on {r['host']} was given up"
        self._of_store = _Loss("store_quarantined", text, {"host": r["host"], "store": r["store"]}, r["t_ms"])

    def _segment_lost(self, r: Record, out: list[Record]) -> None:
        text = f"segment {r['segment']} of the store {r['store']} on {r['host']} was damaged"
        self._of_store = _Loss("segment_lost", text, {"host": r["host"], "store": r["store"]}, r["t_ms"])

    def _output_adopted(self, r: Record, out: list[Record]) -> None:
        loss, place = self._ended_with.pop(r["task"], (None, None))
        if place is None:
            return
        if loss is not None and place in loss.due:
            loss.due.discard(place)
            loss.adopted += 1
            self._settle(loss, r, out)
        self._done(place, r, out)

    def _fetch_failed(self, r: Record, out: list[Record]) -> None:
        place = self._fetch_ended.pop(r["task"], None)
        shuffle = r.get("shuffle", -1)
        loss = self._of_fetch.get(shuffle)
        if loss is None or loss not in self._losses:
            what = "a block" if r.get("map", -1) < 0 else f"output {r['map']} of shuffle {shuffle}"
            text = f"{what} could not be read from {r.get('host')}: {r.get('evidence')}"
            loss = _Loss("fetch_failed", text, {"shuffle": shuffle, "host": r.get("host")}, r["t_ms"])
            self._of_fetch[shuffle] = loss
        if place is not None:
            self._add(loss, {place}, r, out)

    def _output_lost(self, r: Record, out: list[Record]) -> None:
        match r.get("evidence"):
            case "host lost":
                loss = self._of_host
            case "quarantine" | "damaged":
                loss = self._of_store
            case _:
                loss = self._of_fetch.get(r["shuffle"])
        if loss is None:
            loss = _Loss("output_lost", f"an output was lost: {r.get('evidence')}", {}, r["t_ms"])
        self._undo(loss, r["stage"], [r["map"]], r, out)

    def _output_refused(self, r: Record, out: list[Record]) -> None:
        """It runs again at once, for the reason for which it ran."""
        if (stage := self._stages.get(r["stage"])) is not None:
            stage.finished.discard(r["partition"])

    def _rollback(self, r: Record, out: list[Record]) -> None:
        cause = r["what"]
        loss = self._of_rollback.get(cause)
        if loss is None or r["shuffle"] == r.get("cause") or loss not in self._losses:
            text = f"{cause} came out different when it was computed again"
            loss = self._of_rollback[cause] = _Loss("rollback", text, {"shuffle": r["shuffle"]}, r["t_ms"])
        self._undo(loss, r["stage"], range(r["tasks"]), r, out)

    def _result_lost(self, r: Record, out: list[Record]) -> None:
        stages = self._jobs.get(r["job"])
        if stages:
            text = f"the result of partition {r['partition']} of job {r['job']} was lost: {r.get('text')}"
            loss = _Loss("result_lost", text, {"job": r["job"]}, r["t_ms"])
            self._undo(loss, stages[-1], [r["partition"]], r, out)

    def _results_withdrawn(self, r: Record, out: list[Record]) -> None:
        if stages := self._jobs.get(r["job"]):
            text = f"results of job {r['job']} were withdrawn, because their input was rolled back"
            self._undo(
                _Loss("rollback", text, {"job": r["job"]}, r["t_ms"]), stages[-1], r["partitions"], r, out
            )

    # --- What is due ---

    def _undo(self, loss: _Loss, stage: int, partitions: Iterable[int], r: Record, out: list[Record]) -> None:
        found = self._stages.get(stage)
        if found is None:
            return  # no running job needs it
        places = {(stage, partition) for partition in partitions}
        found.finished.difference_update(partitions)
        if found.active:
            self._add(loss, places, r, out)
        else:
            loss.idle |= places
            if loss not in self._losses:
                self._losses.append(loss)

    def _add(self, loss: _Loss, places: set[Place], r: Record, out: list[Record]) -> None:
        places = {place for place in places if self._is_wanted(place)}
        if not places:
            return
        loss.due |= places
        if loss not in self._losses:
            self._losses.append(loss)
        if loss.number < 0:
            loss.number = self._next
            self._next += 1
            shown = sorted(places)[:_SHOWN_MAX]
            out.append(
                {"event": "recovery_start", "t_ms": r["t_ms"], "recovery": loss.number, "cause": loss.cause,
                 "text": loss.text, **loss.fields, "tasks": [list(place) for place in shown]}
            )  # fmt: skip

    def _is_wanted(self, place: Place) -> bool:
        stage = self._stages.get(place[0])
        return stage is not None and place[1] not in stage.finished

    def _settle(self, loss: _Loss, r: Record, out: list[Record]) -> None:
        """It is over when nothing is due; what is idle may make it begin anew."""
        if loss.due:
            return
        if loss.number >= 0:
            out.append(
                {"event": "recovery_end", "t_ms": r["t_ms"], "recovery": loss.number, "cause": loss.cause,
                 "text": loss.text, **loss.fields, "from_ms": loss.from_ms, "to_ms": r["t_ms"],
                 "redone": loss.redone, "adopted": loss.adopted, "given_up": loss.given_up}
            )  # fmt: skip
            loss.number, loss.redone, loss.adopted, loss.given_up = -1, 0, 0, 0
        if not loss.idle:
            self._losses.remove(loss)


_HANDLERS = {
    "application_start": Recoveries._application_start,
    "job_start": Recoveries._job_start,
    "job_end": Recoveries._job_end,
    "stage_start": Recoveries._stage_start,
    "stage_end": Recoveries._stage_end,
    "task_start": Recoveries._task_start,
    "task_end": Recoveries._task_end,
    "executor_lost": Recoveries._executor_lost,
    "worker_lost": Recoveries._worker_lost,
    "segment_lost": Recoveries._segment_lost,
    "store_quarantined": Recoveries._store_quarantined,
    "output_adopted": Recoveries._output_adopted,
    "fetch_failed": Recoveries._fetch_failed,
    "output_lost": Recoveries._output_lost,
    "output_refused": Recoveries._output_refused,
    "rollback": Recoveries._rollback,
    "result_lost": Recoveries._result_lost,
    "results_withdrawn": Recoveries._results_withdrawn,
}
