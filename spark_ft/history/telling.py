"""What happened to one task, in sentences and in order of time, each naming its cause."""

from __future__ import annotations

from dataclasses import dataclass

from spark_ft.history.files import Record
from spark_ft.history.model import Application, Attempt


@dataclass(frozen=True, slots=True)
class Sentence:
    t_ms: int
    text: str


def explain(app: Application, stage: int, partition: int) -> list[Sentence]:
    """Why this task was run, where, how long, and run again.

    Raises LookupError, with a text for people, when nothing of it is known.
    """
    attempts = app.places.get((stage, partition))
    if not attempts:
        raise LookupError(_unknown(app, stage, partition))
    told: list[tuple[int, int, str]] = []
    for at, attempt in enumerate(attempts):
        told.append((attempt.start_ms, attempt.task * 2, _begins(app, attempt, at)))
        if attempt.end_ms is not None:
            told.append((attempt.end_ms, attempt.task * 2 + 1, _ends(app, attempt)))
        else:
            told.append((attempt.start_ms, attempt.task * 2 + 1, _unended(app, attempt)))
    told += [(t_ms, 0, text) for t_ms, text in app.remarks.get((stage, partition), ())]
    return [Sentence(t_ms, text) for t_ms, _, text in sorted(told)]


def explain_json(app: Application, stage: int, partition: int) -> Record:
    """The same for programs."""
    sentences = explain(app, stage, partition)
    found = app.stages[stage]
    return {
        "application": app.id, "stage": stage, "partition": partition, "stage_name": found.name,
        "stage_kind": found.kind, "jobs": [job.id for job in app.jobs.values() if stage in job.stages],
        "attempts": [attempt.as_json() for attempt in app.places[(stage, partition)]],
        "story": [{"t_ms": s.t_ms, "text": s.text} for s in sentences],
        "records_missing": app.missing,
    }  # fmt: skip


def _where(attempt: Attempt) -> str:
    return f"{attempt.executor} (pid {attempt.pid}, {attempt.host})"


def _begins(app: Application, attempt: Attempt, at: int) -> str:
    begun = f"attempt {attempt.number} began in {_where(attempt)}"
    if not attempt.why:
        jobs = [f"{job.id} ({job.name})" for job in app.jobs.values() if attempt.stage in job.stages]
        job = f", for job {jobs[0]}" if jobs else ""
        what = "the first run" if at == 0 else "a run"
        return f"{begun}: {what} of partition {attempt.partition} of {app.stages[attempt.stage]}{job}."
    why = "; ".join(cause.text for cause in attempt.why)
    if attempt.speculative:
        return f"{begun}: {why}."
    return f"{begun}: run again, because {why}."


def _ends(app: Application, attempt: Attempt) -> str:
    ran = f"attempt {attempt.number} {{}} after {_seconds(attempt)}"
    said = f": {attempt.text}" if attempt.text else ""
    if attempt.adopted:
        return ran.format("had committed its output before its executor was lost: it was adopted") + "."
    match attempt.reason:
        case "Success":
            count = f" ({attempt.record_count} records)" if attempt.record_count else ""
            return ran.format("succeeded") + f"{count}."
        case "ExecutorLost":
            executor = app.executors.get(attempt.executor)
            why = f": {executor.lost_because}" if executor is not None and executor.lost_because else ""
            return ran.format("ended with its executor") + f"{why}."
        case "Killed":
            return ran.format("was broken off") + f"{said}."
        case reason:
            return ran.format(f"failed with {reason}") + f"{said}."


def _unended(app: Application, attempt: Attempt) -> str:
    if app.end_ms is not None:
        return f"attempt {attempt.number} was still running when the application ended."
    return f"attempt {attempt.number} has not ended as far as the log tells."


def _seconds(attempt: Attempt) -> str:
    assert attempt.end_ms is not None
    return f"{(attempt.end_ms - attempt.start_ms) / 1000:.3f} s"


def _unknown(app: Application, stage: int, partition: int) -> str:
    gone = f"; {app.missing} older record(s) of its log are gone" if app.missing else ""
    if stage not in app.stages:
        known = sorted(app.stages)
        stages = f"stages {known[0]} to {known[-1]}" if known else "no stage"
        return f"application {app.id} has no stage {stage}: it has {stages}{gone}"
    partitions = app.partitions_of(stage)
    if not partitions:
        return f"no task of stage {stage} of application {app.id} has begun{gone}"
    return (
        f"no task {stage}.{partition} of application {app.id} has begun: of {app.stages[stage]} there are "
        f"partitions {partitions[0]} to {partitions[-1]}{gone}"
    )
