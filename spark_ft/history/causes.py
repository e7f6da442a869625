"""Why a task was run, and run again: what happened to its partition since it last began.

Fed with every record in order, ``Causes`` keeps for each partition what has undone its last run.  A
start takes these causes with it; a first one has none.  The scheduler notes a loss before it acts
on it, so what stands in the log before a start is what led to it.

    task_end with a reason    the attempt itself failed, was killed, or its executor was lost
    output_lost, output_refused, rollback, result_lost     a finished partition counts no more
    speculation               a twin of an attempt that is slow
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from spark_ft.history.files import Record

Place = tuple[int, int]  # stage, partition


@dataclass(slots=True)
class Cause:
    """One reason: ``kind`` for programs, ``text`` for people, and the ids it rests on."""

    kind: str
    text: str
    t_ms: int
    fields: Record = field(default_factory=dict)

    def as_json(self) -> Record:
        return {key: value for key, value in asdict(self).items() if key != "fields"} | self.fields


@dataclass(slots=True)
class _Run:
    place: Place
    executor: str
    number: int
    killed_because: str = ""


class Causes:
    """``feed`` every record; for a ``task_start`` it answers why that attempt was begun."""

    def __init__(self) -> None:
        self._pending: dict[Place, list[Cause]] = {}
        self._begun: dict[Place, int] = {}  # the stage attempt of the last start
        self._finished: set[Place] = set()
        self._partial = False  # older records are gone
        self._open: dict[int, _Run] = {}  # by task
        self._ended: dict[int, _Run] = {}  # whose end says less than what follows it
        self._killed: dict[int, str] = {}  # before word of their start came
        self._speculative: dict[int, Cause] = {}
        self._executors: dict[str, str] = {}
        self._lost: dict[str, str] = {}
        self._of_host: str = ""
        self._of_store: str = ""
        self._of_fetch: dict[tuple[int, int], str] = {}
        self._results: dict[int, int] = {}  # job -> its result stage

    def feed(self, record: Record) -> list[Cause]:
        handler = _HANDLERS.get(record["event"])
        return [] if handler is None else handler(self, record) or []

    # --- Who is who ---

    def _application_start(self, _: Record) -> None:
        partial = self._partial
        self.__init__()  # type: ignore[misc]  # another run under the same id knows nothing of this one
        self._partial = partial

    def _log_kept(self, _: Record) -> None:
        self._partial = True

    def _executor_added(self, r: Record) -> None:
        self._executors[r["executor"]] = f"{r['executor']} (pid {r.get('pid')}, {r.get('host')})"

    def _executor_lost(self, r: Record) -> None:
        name = f"{r['executor']} (pid {r.get('pid')}, {r.get('host')})"
        self._lost[r["executor"]] = f"{name} was lost: {r.get('why')}"

    def _worker_lost(self, r: Record) -> None:
        self._of_host = f"worker {r['worker']} of {r['host']} was lost: {r.get('why')}"

    def _store_quarantined(self, r: Record) -> None:
        self._of_store = f"the store {r['store']} on {r['host']} was given up"

    def _segment_lost(self, r: Record) -> None:
        self._of_store = f"segment {r['segment']} of the store {r['store']} on {r['host']} was damaged"

    def _job_start(self, r: Record) -> None:
        if r["stages"]:
            self._results[r["job"]] = r["stages"][-1]

    # --- Attempts ---

    def _task_start(self, r: Record) -> list[Cause]:
        self._open[r["task"]] = run = _Run((r["stage"], r["partition"]), r["executor"], r["attempt"])
        if (killed := self._killed.pop(r["task"], None)) is None:
            return self._why(r)
        self._kill(run, killed, r["t_ms"])
        text = f"it was given out before; word of its start came after it was told to stop ({killed})"
        return [Cause("late_start", text, r["t_ms"])]

    def _why(self, r: Record) -> list[Cause]:
        place = r["stage"], r["partition"]
        if r.get("speculative"):
            twin = self._speculative.pop(r["task"], None)
            return [twin or Cause("speculation", "a twin of an attempt that was slow", r["t_ms"])]
        causes = self._pending.pop(place, [])
        before = self._begun.get(place)
        self._begun[place] = r.get("stage_attempt", 0)
        if causes or (before is None and not self._partial):
            return causes
        if before is not None and before != self._begun[place]:
            text = f"stage {place[0]} was started again, as its attempt {self._begun[place]}"
            return [Cause("stage_attempt", text, r["t_ms"])]
        return [Cause("unknown", "the log does not say why (its older part may be gone)", r["t_ms"])]

    def _speculation(self, r: Record) -> None:
        slow = [run for run in self._open.values() if run.place == (r["stage"], r["partition"])]
        of = f"attempt {slow[-1].number} in {self._named(slow[-1].executor)}" if slow else "one"
        text = f"a twin of {of}, which was slow; whichever ends first counts"
        self._speculative[r["task"]] = Cause("speculation", text, r["t_ms"])

    def _task_killed(self, r: Record) -> None:
        why = str(r.get("why", ""))
        if (run := self._open.get(r["task"])) is not None:
            self._kill(run, why, r["t_ms"])
        else:
            self._killed[r["task"]] = why  # word of its start is still to come

    def _kill(self, run: _Run, why: str, t_ms: int) -> None:
        run.killed_because = why
        if run.place not in self._finished:
            text = f"attempt {run.number} was broken off: {why}"
            self._add(run.place, Cause("killed", text, t_ms, {"attempt": run.number}))

    def _task_end(self, r: Record) -> None:
        run = self._open.pop(r["task"], None)
        self._killed.pop(r["task"], None)
        if run is not None and r["reason"] == "Success":
            self._finish(run)
        if run is None or r["reason"] == "Success" or (r["reason"] == "Killed" and run.killed_because):
            return
        fields: Record = {"executor": run.executor, "attempt": run.number, "blame": r.get("blame", "")}
        match r["reason"]:
            case "ExecutorLost":
                why = self._lost.get(run.executor, f"{run.executor} was lost")
                cause = Cause("executor_lost", f"{why}, while it ran attempt {run.number}", r["t_ms"], fields)
            case "FetchFailed":
                text = f"attempt {run.number} could not read its input"
                cause = Cause("fetch_failed", text, r["t_ms"], fields)
            case reason:
                said = f": {r['text']}" if r.get("text") else ""
                text = f"attempt {run.number} failed in {self._named(run.executor)} with {reason}{said}"
                cause = Cause("failed", text, r["t_ms"], fields | {"reason": reason})
        self._ended[r["task"]] = run
        self._add(run.place, cause)

    def _output_adopted(self, r: Record) -> None:
        """Its executor is lost, its output is not: nothing is run again for it."""
        if (run := self._ended.pop(r["task"], None)) is not None:
            self._finish(run)

    def _fetch_failed(self, r: Record) -> None:
        what = "a block" if r.get("map", -1) < 0 else f"output {r['map']} of shuffle {r['shuffle']}"
        text = f"{what} could not be read from {r.get('host')} (store {r.get('store')}): {r.get('evidence')}"
        if r.get("text"):
            text += f", {r['text']}"
        self._of_fetch[(r.get("shuffle", -1), r.get("map", -1))] = text
        run = self._ended.get(r["task"])
        if run is None:
            return
        for cause in self._pending.get(run.place, []):
            if cause.kind == "fetch_failed" and cause.fields.get("attempt") == run.number:
                cause.text = f"attempt {run.number} could not read its input: {text}"
                cause.fields |= {k: r.get(k) for k in ("shuffle", "map", "host", "store", "evidence")}

    # --- What was finished and counts no more ---

    def _output_lost(self, r: Record) -> None:
        evidence = r.get("evidence")
        why = {"host lost": self._of_host, "quarantine": self._of_store, "damaged": self._of_store}.get(
            str(evidence), self._of_fetch.get((r["shuffle"], r["map"]), "")
        )
        text = f"its output (number {r['map']} of shuffle {r['shuffle']}) was lost: {why or evidence}"
        fields = {"shuffle": r["shuffle"], "evidence": evidence}
        self._undo((r["stage"], r["map"]), Cause("output_lost", text, r["t_ms"], fields))

    def _output_refused(self, r: Record) -> None:
        text = f"its output was not taken: {r.get('why')}"
        self._undo((r["stage"], r["partition"]), Cause("output_refused", text, r["t_ms"]))

    def _rollback(self, r: Record) -> None:
        text = (
            f"shuffle {r['shuffle']} was rolled back to generation {r['generation']}, because {r['what']} "
            "came out different when it was computed again"
        )
        for partition in range(r["tasks"]):
            if (r["stage"], partition) in self._begun:
                cause = Cause("rollback", text, r["t_ms"], {"generation": r["generation"]})
                self._undo((r["stage"], partition), cause)

    def _result_lost(self, r: Record) -> None:
        stage = self._results.get(r["job"])
        if stage is not None:
            text = f"its result could not be read: {r.get('text')}"
            self._undo((stage, r["partition"]), Cause("result_lost", text, r["t_ms"]))

    def _results_withdrawn(self, r: Record) -> None:
        stage = self._results.get(r["job"])
        if stage is None:
            return
        for partition in r["partitions"]:
            text = "the results so far were withdrawn, because their input was rolled back"
            self._undo((stage, partition), Cause("results_withdrawn", text, r["t_ms"]))

    # --- Help ---

    def _finish(self, run: _Run) -> None:
        if not run.killed_because:
            self._finished.add(run.place)
            self._pending.pop(run.place, None)

    def _undo(self, place: Place, cause: Cause) -> None:
        self._finished.discard(place)
        self._add(place, cause)

    def _add(self, place: Place, cause: Cause) -> None:
        self._pending.setdefault(place, []).append(cause)

    def _named(self, executor: str) -> str:
        return self._executors.get(executor, executor)


_HANDLERS = {
    "application_start": Causes._application_start,
    "log_kept": Causes._log_kept,
    "log_gap": Causes._log_kept,
    "executor_added": Causes._executor_added,
    "executor_lost": Causes._executor_lost,
    "worker_lost": Causes._worker_lost,
    "segment_lost": Causes._segment_lost,
    "store_quarantined": Causes._store_quarantined,
    "job_start": Causes._job_start,
    "task_start": Causes._task_start,
    "task_killed": Causes._task_killed,
    "task_end": Causes._task_end,
    "speculation": Causes._speculation,
    "output_adopted": Causes._output_adopted,
    "fetch_failed": Causes._fetch_failed,
    "output_lost": Causes._output_lost,
    "output_refused": Causes._output_refused,
    "rollback": Causes._rollback,
    "result_lost": Causes._result_lost,
    "results_withdrawn": Causes._results_withdrawn,
}
