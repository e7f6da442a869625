"""``spark-ft status`` and ``spark-ft explain``: event logs, read for people or, with --json, for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from spark_ft.clock import local_time
from spark_ft.conf import SparkConf
from spark_ft.history import model
from spark_ft.history.files import LogFiles, Record, default_directory, logs_in
from spark_ft.history.telling import explain as tell
from spark_ft.history.telling import explain_json

_SHOWN_MAX = 30  # applications, tasks or recoveries in a table

_FILE_WIDTH = 240

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where the event logs lie; spark.eventLog.dir of spark-defaults.conf, or the default place.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command()
@click.argument("application", required=False, metavar="[APP]")
@_directory
@_as_json
def status(application: str | None, directory: Path | None, as_json: bool) -> None:
    """Applications, running or ended; of APP its executors, running tasks and recoveries.

    APP is an application's id, the beginning of one, or the path of an event log.
    """
    if application is None:
        found = [_summary(log) for log in logs_in(_place(directory))]
        if as_json:
            _print_json({"applications": found})
        else:
            _show_all(found, _place(directory))
        return
    log = _log_of(application, directory)
    app = _read(log)
    about = _details(log, app)
    if as_json:
        _print_json(about)
    else:
        _show(app, about)


@click.command()
@click.argument("application", metavar="APP")
@click.argument("task", metavar="STAGE.PARTITION")
@_directory
@_as_json
def explain(application: str, task: str, directory: Path | None, as_json: bool) -> None:
    """Why a task was run, where, how long, and run again.

    APP is an application's id, the beginning of one, or the path of an event log.  STAGE.PARTITION is, for
    example, 0.3 for partition 3 of stage 0.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)", task)
    if match is None:
        raise click.BadParameter(
            f"{task!r} is not STAGE.PARTITION: two numbers with a point between them, such as 0.3",
            param_hint="STAGE.PARTITION",
        )
    stage, partition = int(match[1]), int(match[2])
    log = _log_of(application, directory)
    app = _read(log)
    try:
        if as_json:
            _print_json(explain_json(app, stage, partition))
            return
        sentences = tell(app, stage, partition)
    except LookupError as error:
        raise click.ClickException(str(error.args[0])) from None
    console = _console()
    console.print(f"Task {stage}.{partition} of application {app.id}: {app.stages[stage]}", markup=False)
    for sentence in sentences:
        console.print(f"  {local_time(sentence.t_ms)}  {sentence.text}", markup=False)
    _say_missing(console, app.missing)


# --- Which log ------------------------------------------------------------------------------------


def _place(directory: Path | None) -> Path:
    given = SparkConf().get("spark.eventLog.dir")
    return directory or (Path(given.removeprefix("file:")) if given else default_directory())


def _log_of(application: str, directory: Path | None) -> LogFiles:
    """Raises a ClickException that names what is known instead."""
    if application.endswith(".jsonl") and Path(application).is_file():
        return LogFiles(Path(application))
    place = _place(directory)
    logs = logs_in(place)
    exact = [log for log in logs if log.name == application]
    found = exact or [log for log in logs if log.name.startswith(application)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(log.name for log in found[:5])
        raise click.ClickException(
            f"{len(found)} applications begin with {application!r}: {some}; say more of it"
        )
    if not logs:
        raise click.ClickException(f"there is no event log in {place}; --dir says where else to look")
    some = ", ".join(log.name for log in logs[:5])
    raise click.ClickException(f"no application {application!r} in {place}; the latest are {some}")


def _read(log: LogFiles) -> model.Application:
    records, torn = log.records()
    app = model.of(records, torn)
    app.id = app.id or log.name
    return app


# --- What is said -----------------------------------------------------------------------------------


def _state(log: LogFiles, end_ms: int | None) -> str:
    """``lost`` is one whose driver ended without a word."""
    return "running" if log.is_live() else "ended" if end_ms is not None else "lost"


def _summary(log: LogFiles) -> Record:
    """Of one that runs, what it does; of others the first and the last lines of the log are enough, for a
    directory may hold many."""
    live = log.is_live()
    app = _read(log) if live else model.of(log.ends())
    summary = {
        "application": app.id or log.name, "name": app.name, "state": _state(log, app.end_ms), "pid": app.pid,
        "master": app.master, "start_ms": app.start_ms, "end_ms": app.end_ms or app.last_ms,
        "log": str(log.path),
    }  # fmt: skip
    if live:
        summary |= {
            "executors": len(app.live_executors()), "running_tasks": len(app.running()),
            "recoveries": len(app.recoveries),
        }  # fmt: skip
    return summary


def _details(log: LogFiles, app: model.Application) -> Record:
    state = _state(log, app.end_ms)
    running = app.running() if state == "running" else []
    by_executor: dict[str, int] = {}
    for attempt in running:
        by_executor[attempt.executor] = by_executor.get(attempt.executor, 0) + 1
    return {
        "application": app.id, "name": app.name, "state": state, "pid": app.pid, "master": app.master,
        "start_ms": app.start_ms, "end_ms": app.end_ms or app.last_ms, "log": str(log.path),
        "jobs": {
            "running": [job.as_json() for job in app.jobs.values() if job.end_ms is None and running],
            "succeeded": sum(job.ok is True for job in app.jobs.values()),
            "failed": [job.as_json() for job in app.jobs.values() if job.ok is False],
        },
        "task_starts": len(app.attempts),
        "started_again": sum(len(at) - 1 for at in app.places.values()),
        "executors": [e.as_json(by_executor.get(e.id, 0)) for e in app.executors.values()],
        "running_tasks": [attempt.as_json() for attempt in running],
        "recoveries": [recovery.as_json() for recovery in app.recoveries.values()],
        "records_missing": app.missing,
    }  # fmt: skip


def _console() -> Console:
    """As wide as the terminal; what goes to a file or a pipe is not cut to a terminal's width."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


# --- Tables -----------------------------------------------------------------------------------------


def _show_all(found: list[Record], place: Path) -> None:
    console = _console()
    if not found:
        console.print(f"There is no event log in {place}.", markup=False)
        return
    columns: dict[str, Callable[[Record], object]] = {
        "application": lambda a: a["application"],
        "name": lambda a: a["name"],
        "state": lambda a: a["state"],
        "pid": lambda a: a["pid"] if a["state"] == "running" else "",
        "executors": lambda a: a.get("executors"),
        "running tasks": lambda a: a.get("running_tasks"),
        "recoveries": lambda a: a.get("recoveries"),
        "began": lambda a: local_time(a["start_ms"]),
        "ran": lambda a: "" if a["state"] == "running" else _span(a["start_ms"], a["end_ms"]),
    }
    _table(console, "", columns, found)


def _show(app: model.Application, about: Record) -> None:
    console = _console()
    name = f"{app.id} {app.name}".rstrip()
    console.print(f"{name}: {about['state']}, since {local_time(app.start_ms)}", markup=False)
    jobs = about["jobs"]
    console.print(
        f"jobs: {len(jobs['running'])} running, {jobs['succeeded']} succeeded, {len(jobs['failed'])} failed; "
        f"tasks: {about['task_starts']} started, {about['started_again']} of them again"
    )
    executors: dict[str, Callable[[Record], object]] = {
        "executor": lambda e: e["executor"],
        "host": lambda e: e["host"],
        "pid": lambda e: e["pid"],
        "starts": lambda e: e["starts"],
        "runs": lambda e: e["running"],
        "": lambda e: _fate(e),
    }
    _table(console, "executors", executors, about["executors"])
    now_ms = app.last_ms
    tasks: dict[str, Callable[[Record], object]] = {
        "task": lambda t: f"{t['stage']}.{t['partition']}",
        "attempt": lambda t: t["attempt"],
        "executor": lambda t: t["executor"],
        "pid": lambda t: t["pid"],
        "runs since": lambda t: local_time(t["start_ms"]),
        "because": lambda t: "; ".join(cause["text"] for cause in t["why"]),
    }
    _table(console, "running tasks", tasks, about["running_tasks"])
    recoveries: dict[str, Callable[[Record], object]] = {
        "from": lambda r: local_time(r["from_ms"]),
        "took": lambda r: _span(r["from_ms"], r["to_ms"] or now_ms) + ("" if r["to_ms"] else ", goes on"),
        "redone": lambda r: r["redone"],
        "adopted": lambda r: r["adopted"],
        "because": lambda r: r["text"],
    }
    _table(console, "recoveries", recoveries, about["recoveries"])
    for job in jobs["failed"]:
        console.print(f"job {job['job']} ({job['name']}) failed: {job['condition']}", markup=False)
    _say_missing(console, app.missing)


def _fate(executor: Record) -> str:
    parts = list(executor["remarks"])
    if executor["lost_ms"] is not None:
        parts.append(f"lost at {local_time(executor['lost_ms'])}: {executor['lost_because']}")
    elif executor["stopped"]:
        parts.append("stopped")
    return "; ".join(parts)


def _table(
    console: Console, title: str, columns: dict[str, Callable[[Record], object]], rows: list[Record]
) -> None:
    if not rows:
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows[-_SHOWN_MAX:] if title else rows[:_SHOWN_MAX]:
        table.add_row(*(_cell(of(row)) for of in columns.values()))
    console.print(table)
    if len(rows) > _SHOWN_MAX:
        console.print(f"… and {len(rows) - _SHOWN_MAX} more; --json has all")


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("[", r"\[")


def _span(from_ms: int | None, to_ms: int | None) -> str:
    return "" if from_ms is None or to_ms is None else f"{(to_ms - from_ms) / 1000:.3f} s"


def _say_missing(console: Console, missing: int) -> None:
    if missing:
        console.print(f"{missing} record(s) of this log are gone: with its older parts, or never written.")
