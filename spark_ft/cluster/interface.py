"""What a driver asks of whoever gives it executors, and which of them a master URL means.

    local[n], local-cluster[w,c,m]   LocalCluster        processes of the driver's own
    spark://host:port[,host:port]    StandaloneCluster   a manager and workers that run already

A resource manager that starts workers elsewhere needs nothing but this: a way to be told whom the workers
are to work for (``start``), and to be told that it is over (``stop``).  Executors are no part of it; they
say hello to the driver by themselves, and workers tell of their ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from spark_ft.errors import SettingsError
from spark_ft.ids import AppId, HostId, Incarnation
from spark_ft.settings import Settings
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys


class ClusterManager(Protocol):
    """One application's way to its executors.

    ``hosts``: those that are its own alone, and come with it.
    ``parallelism``: tasks that can run at a time, as far as is known.  ``max_failures``: of one task.
    ``executor_memory_bytes``: what each executor has.  ``token``: 16 bytes that every frame carries; None:
    the driver draws some.  ``keys``: of every socket.
    """

    hosts: list[HostId]
    parallelism: int
    max_failures: int
    executor_memory_bytes: int
    token: bytes | None
    keys: Keys | None

    def new_app_id(self, start_ms: int) -> str:
        """A name for an application that has none."""

    def make_scratch(self, app: AppId, data: Path | None) -> Path:
        """The application's directory on the driver's machine, held until ``remove_scratch``.  ``data``: what
        outlives this driver is to lie there, as far as hosts are its own.  Raises ClusterError."""

    def endpoint(self, name: str) -> str:
        """Where the driver may bind its socket ``name`` (``driver``, ``driver-data``)."""

    def advertised(self, endpoint: str) -> str:
        """Where others find a socket of the driver's that is bound there."""

    def start(self, host: Host, me: Incarnation, app: AppId, token: bytes, scratch: Path) -> None:
        """Ask for executors.  ``host`` is the driver's and does not run yet."""

    def wait_until_up(self) -> None:
        """Raises ClusterError for what has gone wrong already; waits for nothing else."""

    def end_worker(self, worker: Incarnation) -> None:
        """It was given up: end it, if that is in our power.  In the host's loop."""

    def stop(self) -> None:
        """The application needs nothing any more.  Idempotent; at most 2 s; in a forked child: nothing."""

    def remove_scratch(self) -> None:
        """After ``stop``, and after the driver's host has stopped."""


def cores_and_slots(settings: Settings, there: int | None = None) -> tuple[int, int]:
    """Cores of one executor where so many are ``there`` (None: as many as it wants), and how many tasks
    run in it at a time (UE-8).

    Raises SettingsError when no executor can have as many cores as a task takes.
    """
    wanted = settings.executor_cores
    if "spark.executor.cores" not in settings.extra:
        wanted = max(wanted, settings.task_cpus)
    cores = wanted if there is None else min(wanted, there)
    if settings.task_cpus > cores:
        raise SettingsError(
            f"spark.task.cpus={settings.task_cpus}: no executor can run such a task, each has {cores} "
            "core(s); lower it, or give executors more (spark.executor.cores, the master URL)"
        )
    return cores, cores // settings.task_cpus
