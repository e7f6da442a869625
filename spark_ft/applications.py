"""``spark-ft apps`` and ``spark-ft forget``: what applications with an id have left on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from spark_ft.clock import wall_ms
from spark_ft.cluster.application import Kept, directory_name, forget, kept_in, recovery_root
from spark_ft.conf import SparkConf
from spark_ft.settings import Settings

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where they lie; spark.ft.recovery.dir of spark-defaults.conf, or the default place.",
)


@click.command()
@_directory
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def apps(directory: Path | None, as_json: bool) -> None:
    """Applications that can be resumed, or run just now, with their age and size.

    An application can be resumed when it was given an id (spark.app.id, or submit --app-id) and its
    driver has died: started again under the same id, it goes on.
    """
    found = kept_in(_place(directory))
    if as_json:
        click.echo(json.dumps({"applications": [_plain(kept) for kept in found]}))
        return
    if not found:
        click.echo(f"There is nothing to resume in {_place(directory)}.")
        return
    table = Table("application", "state", "began", "last written", "size", "program", box=None)
    now_ms = wall_ms()
    for kept in found:
        program = " ".join(map(str, kept.about.get("program", ())))
        state = "running" if kept.is_running else "can be resumed"
        ages = [_age((now_ms - at_ms) / 1000) for at_ms in (kept.began_ms, kept.last_ms)]
        table.add_row(kept.app, state, *ages, _size(kept.size_bytes), program)
    Console().print(table)


@click.command("forget")
@click.argument("applications", nargs=-1, metavar="[APP]...")
@click.option("--older-than", "days", type=float, help="All that were last written more DAYS ago.")
@_directory
def forget_command(applications: tuple[str, ...], days: float | None, directory: Path | None) -> None:
    """Remove what an application has left: it cannot be resumed then.

    One that runs is not touched.
    """
    place = _place(directory)
    found = kept_in(place)
    chosen = [kept for kept in found if kept.app in applications]
    if days is not None:
        limit_ms = wall_ms() - days * 86_400_000
        chosen += [kept for kept in found if kept.last_ms < limit_ms and kept not in chosen]
    elif not applications:
        raise click.UsageError("say which application, or --older-than DAYS; `spark-ft apps` lists them")
    missing = [app for app in applications if app not in {kept.app for kept in found}]
    for app in missing:
        click.echo(f"there is no application {app!r} in {place}", err=True)
    refused = 0
    for kept in chosen:
        if kept.is_running or not forget(kept):
            refused += kept.app in applications
            click.echo(f"{kept.app} runs: it is left alone", err=kept.app in applications)
        else:
            click.echo(f"{kept.app} is forgotten: {_size(kept.size_bytes)} come free")
    if missing or refused:
        raise SystemExit(1)


def _place(directory: Path | None) -> Path:
    return directory or recovery_root(Settings.from_conf(dict(SparkConf().getAll())))


def _plain(kept: Kept) -> dict[str, Any]:
    return {**asdict(kept), "path": str(kept.path), "directory": directory_name(kept.app)}


def _age(seconds: float) -> str:
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]  # for people
    raise AssertionError
