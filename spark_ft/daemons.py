"""``spark-ft manager`` and ``spark-ft worker``: the standing processes of a cluster, for an operator.

Each becomes a fresh interpreter under the pid that it was started with (so whoever supervises it watches
the right process), stays in the foreground, logs to stderr, and leaves in order on SIGTERM or Ctrl-C.
docs/cluster.md tells how a cluster is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import psutil

from spark_ft.cluster import processes
from spark_ft.cluster.configuration import ManagerConfig, WorkerConfig
from spark_ft.cluster.finder import cluster_token, parse_masters
from spark_ft.cluster.local import allocator
from spark_ft.conf import SparkConf, read_properties
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.ids import new_incarnation
from spark_ft.settings import Settings, environment, size_bytes
from spark_ft.transport.addresses import address_of
from spark_ft.transport.keys import Keys

DEFAULT_PORT = 7077
_LEFT_TO_OTHERS_BYTES = 1 << 30  # of a machine's memory, when nobody says how much a worker may give away

F = TypeVar("F", bound=Callable[..., Any])


def _common(command: F) -> F:
    """Options of both."""
    for option in (
        click.option("--conf", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting; repeatable."),
        click.option(
            "--properties-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file of settings, as spark-defaults.conf; --conf goes before it.",
        ),
        click.option("--bind", default=None, help="The address to listen at, if another."),
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Name or address by which others find it."
        ),
    ):
        command = option(command)
    return command


@click.command()
@_common
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="The port to listen at; 0: any.")
@click.option(
    "--work-dir",
    default="spark-ft-manager",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it keeps what has to outlive it.",
)
@click.option("--standby", is_flag=True, help="Wait in the work directory of another, until that ends.")
def manager(
    host: str,
    bind: str | None,
    port: int,
    work_dir: Path,
    standby: bool,
    properties_file: Path | None,
    pairs: tuple[str, ...],
) -> None:
    """Manage a cluster: share the cores and the memory of its workers out to applications."""
    settings = _settings(properties_file, pairs)
    config = ManagerConfig(
        me=new_incarnation("manager"),
        endpoint=f"tcp://{_address('--bind' if bind else '--host', bind or host)}:{port or '*'}",
        scratch="",
        token=cluster_token(settings).hex(),
        parent_pid=0,
        settings={key: str(value) for key, value in settings.extra.items()},
        keys=_keys(settings),
        work_dir=str(work_dir.absolute()),
        standby=standby,
    )
    processes.become("manager", asdict(config), {})


@click.command()
@click.argument("master")
@_common
@click.option("--port", default=0, help="The port of its block server; any unless given.")
@click.option("--cores", default=None, type=click.IntRange(1), help="Cores to give away; all unless given.")
@click.option("--memory", default=None, help="Memory to give away, as 512m or 8g; all but 1g unless given.")
@click.option(
    "--work-dir",
    default="spark-ft-worker",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where stores and logs of applications lie; one worker each.",
)
def worker(
    master: str,
    host: str,
    bind: str | None,
    port: int,
    cores: int | None,
    memory: str | None,
    work_dir: Path,
    properties_file: Path | None,
    pairs: tuple[str, ...],
) -> None:
    """Give the cores and the memory of this machine to the cluster of MASTER (spark://host:port).

    A worker that is started again in the same work directory takes over what the one before it left.
    """
    settings = _settings(properties_file, pairs)
    try:
        masters = parse_masters(master)
        memory_bytes = size_bytes(memory, "m") if memory else _spare_memory_bytes()
    except (SettingsError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    root, address = work_dir.absolute(), _address("--host", host)
    config = WorkerConfig(
        me=new_incarnation("worker"),
        host=_host_id(root, host),
        root=str(root),
        roots={},
        scratch="",
        token=cluster_token(settings).hex(),
        granter="manager-unknown",
        granter_endpoint="",
        has_manager=True,
        data_endpoint=f"tcp://{_address('--bind', bind) if bind else address}:{port or '*'}",
        data_address=address,
        cores=cores or len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes,
        parent_pid=0,
        settings={key: str(value) for key, value in settings.extra.items()},
        keys=_keys(settings),
        masters=masters,
    )
    processes.become(
        "worker",
        asdict(config),
        {
            "OMP_NUM_THREADS": environment("OMP_NUM_THREADS", "1"),
            **allocator(settings.executor_memory_bytes),
            "PYTHONHASHSEED": str(settings.hash_seed),  # of every executor, and fixed when they are forked
        },
    )


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def keys(directory: Path) -> None:
    """Make the key pair of a cluster in DIRECTORY.

    Every machine of the cluster, and whoever runs programs on it, needs a copy that nobody else can read;
    spark.ft.keys says where it is.
    """
    try:
        pair = Keys.draw()
        pair.write(directory)
    except ClusterError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"The keys of a cluster are in {directory}; its public key is {pair.public}.")
    click.echo(f"Copy the directory to each machine, and set spark.ft.keys={directory.absolute()} there.")


def _keys(settings: Settings) -> tuple[str, str] | None:
    try:
        pair = Keys.load(settings.keys)
    except ClusterError as error:
        raise click.ClickException(str(error)) from None
    return (pair.public, pair.secret) if pair is not None else None


def _address(option: str, name: str) -> str:
    """Asked for once: no name is looked up by anybody afterwards."""
    try:
        return address_of(option, name)
    except ClusterError as error:
        raise click.ClickException(str(error)) from None


def _settings(properties_file: Path | None, pairs: tuple[str, ...]) -> Settings:
    """What is set for a daemon, by a file and by options, over the defaults; its log tells of its life."""
    conf = SparkConf().setIfMissing("spark.log.level", "INFO")
    try:
        conf.setAll((read_properties(properties_file) if properties_file else {}).items())
        conf.setAll(pair(item) for item in pairs)
        return Settings.from_conf(conf.asdict())
    except (SettingsError, OSError) as error:
        raise click.ClickException(str(error)) from None


def pair(item: str) -> tuple[str, str]:
    """``KEY=VALUE`` of a ``--conf``."""
    key, equals, value = item.partition("=")
    if not equals:
        raise click.BadParameter(f"expected KEY=VALUE, not {item!r}", param_hint="--conf")
    return key, value


def _spare_memory_bytes() -> int:
    total: int = psutil.virtual_memory().total
    return max(total - _LEFT_TO_OTHERS_BYTES, total // 2)


def _host_id(root: Path, address: str) -> str:
    """What this worker's host is called: the address, and a mark that stays with the work directory, so
    that whoever is started there again is known to have what lies there."""
    path = root / "host_id"
    try:
        if not path.exists():
            root.mkdir(parents=True, exist_ok=True)
            fresh = root / f"host_id.{os.getpid()}"
            mark = new_incarnation("host")[-4:]
            fresh.write_text(f"{re.sub(r'[^A-Za-z0-9.]', '_', address)}-{mark}")
            fresh.rename(path)
        return path.read_text()
    except OSError as error:
        raise click.ClickException(f"cannot use the work directory {root}: {error}") from None
