"""``spark-ft submit``: run a program on a cluster, from here or within it.

    client     this process becomes the program
    cluster    a worker runs it: program and files travel there, and this command waits for its end

What is said here is a default of the program's SparkConf: what the program sets itself goes before it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from spark_ft.cluster import processes
from spark_ft.cluster.submission import Submission, submit_and_wait
from spark_ft.conf import SparkConf, read_properties
from spark_ft.daemons import pair
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.settings import SUBMITTED, Settings, dump_pairs


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--master", default=None, help="spark://HOST:PORT, local[N] … .")
@click.option("--deploy-mode", type=click.Choice(["client", "cluster"]), default="client", show_default=True)
@click.option("--name", default=None, help="Name of the application.")
@click.option("--conf", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting; may be repeated.")
@click.option(
    "--properties-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of settings, as spark-defaults.conf; --conf goes before it.",
)
@click.option("--py-files", default=None, metavar="A,B", help="Modules that tasks import; archives of them.")
@click.option("--files", default=None, metavar="A,B", help="Files that SparkFiles.get finds in tasks.")
@click.option("--archives", default=None, metavar="A,B", help="Archives that are unpacked for tasks.")
@click.option("--app-id", default=None, help="Under which a program goes on where its last run has died.")
@click.option("--driver-cores", default=1, type=click.IntRange(1), show_default=True, help="In cluster mode.")
@click.option("--driver-memory", default="1g", show_default=True, help="In cluster mode.")
@click.option("--supervise", is_flag=True, help="In cluster mode: a driver that dies is started again.")
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    master: str | None,
    deploy_mode: str,
    name: str | None,
    pairs: tuple[str, ...],
    properties_file: Path | None,
    py_files: str | None,
    files: str | None,
    archives: str | None,
    app_id: str | None,
    driver_cores: int,
    driver_memory: str,
    supervise: bool,
    program: Path,
    arguments: tuple[str, ...],
) -> None:
    """Run PROGRAM with ARGUMENTS on a cluster."""
    given = read_properties(properties_file) if properties_file else {}
    given.update(pair(item) for item in pairs)
    said = {"spark.master": master, "spark.app.name": name or program.stem, "spark.app.id": app_id}
    said |= {"spark.submit.pyFiles": py_files, "spark.files": files, "spark.archives": archives}
    given.update({key: value for key, value in said.items() if value})
    try:
        settings = Settings.from_conf({**SparkConf().asdict(), **given})
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if deploy_mode == "client":
        if supervise:
            raise click.UsageError("--supervise is for --deploy-mode cluster, where a worker restarts it")
        processes.become_program([str(program), *arguments], {SUBMITTED: dump_pairs(given)})
    _in_cluster(settings, given, program, arguments, driver_cores, driver_memory, supervise)


def _in_cluster(
    settings: Settings,
    given: dict[str, str],
    program: Path,
    arguments: Sequence[str],
    cores: int,
    memory: str,
    supervise: bool,
) -> None:
    try:
        submission = Submission.of(settings, given, program, arguments, cores, memory, supervise)
        state, text = submit_and_wait(settings, submission, click.echo)
    except (ClusterError, SettingsError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{submission.driver} {state.lower()}{': ' + text if text else ''}")
    sys.exit(0 if state == "FINISHED" else 1)
