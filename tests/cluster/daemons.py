"""A standalone cluster of real daemons on loopback addresses: each worker is a host of its own, and all that
passes between two of them passes over TCP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from spark_ft.cluster.finder import cluster_token
from spark_ft.executor.versions import versions
from spark_ft.settings import Settings
from spark_ft.transport.greeting import Greeter
from spark_ft.transport.keys import Keys
from tests.cluster.faultlib import is_alive, wait_until
from tests.cluster.namespaces import Namespaces


class Daemon:
    """One of them; ``log`` is what it has written."""

    def __init__(
        self, directory: Path, name: str, *arguments: str, within: Sequence[str] = (), **environment: str
    ) -> None:
        self.name = name
        self.log_path = directory / f"{name}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "spark_ft", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def says(self, pattern: str, deadline_s: float = 15.0) -> re.Match[str]:
        """Waits until its log has it."""
        what = f"{pattern!r} in the log of {self.name}"
        return wait_until(lambda: re.search(pattern, self.log), deadline_s, what)

    def kill(self) -> None:
        """SIGKILL to the daemon alone, and see it gone."""
        self.process.kill()
        self.process.wait(5)

    def terminate(self, deadline_s: float = 10.0) -> int:
        """SIGTERM; how it exited."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline_s)


class Standalone:
    """A manager, and workers at 127.0.0.2, 127.0.0.3 …; whatever it started is gone after ``close``.

    ``options`` go to every daemon.  With ``hosts`` the manager is at the bridge, and worker 2 in the first.
    """

    def __init__(self, directory: Path, *options: str, hosts: Namespaces | None = None) -> None:
        self.directory, self.options, self.hosts = directory, options, hosts
        self.address = hosts.address if hosts else "127.0.0.1"
        given = [option.partition("=")[2] for option in options if option.startswith("spark.ft.keys=")]
        self.keys = Keys.load(given[0]) if given else None
        self.daemons: list[Daemon] = []
        self.seen: set[int] = set()  # processes of theirs
        self.port = 0
        self.manager = self.start_manager()

    @property
    def url(self) -> str:
        return f"spark://{self.address}:{self.port}"

    def start_manager(self, name: str = "manager") -> Daemon:
        """Another one takes the port of the one before."""
        work = str(self.directory / name)
        port = str(self.port)
        daemon = self._start(name, "manager", "--host", self.address, "--port", port, "--work-dir", work)
        begun = daemon.log.count("listens at")
        found = wait_until(
            lambda: re.findall(r"listens at tcp://[\d.]+:(\d+)", daemon.log)[begun:], 15, daemon.log
        )
        self.port = int(found[-1])
        return daemon

    def start_rival(self, *options: str, port: int = 0) -> Daemon:
        """Another manager in the directory of the first."""
        work = str(self.directory / "manager")
        return self._start("rival", "manager", "--port", str(port), "--work-dir", work, *options)

    def start_worker(self, number: int, cores: int = 1, memory: str = "4g", **environment: str) -> Daemon:
        """The worker of host ``127.0.0.<number>``, once the manager has heard of it; again after a death."""
        name = f"worker-{number}"
        work = ["--cores", str(cores), "--memory", memory, "--work-dir", str(self.root(number))]
        address, within = f"127.0.0.{number}", list[str]()
        if self.hosts is not None:
            address, within = self.hosts.address_of(number - 2), self.hosts.within(number - 2)
        where = [self.url, "--host", address]
        return self._start(name, "worker", *where, *work, within=within, **environment)

    def wait_for_cores(self, count: int) -> None:
        """Until the manager knows workers with so many."""
        where = [f"tcp://{self.address}:{self.port}"]
        greeter = Greeter(where, cluster_token(Settings()), versions(), self.keys)

        def cores() -> list[int]:
            greeter.ask()
            return [int(words["cores"]) for _, words in greeter.answers(0.05)]

        try:
            wait_until(lambda: count in cores(), what=f"{count} cores")
        finally:
            greeter.close()

    def root(self, number: int) -> Path:
        return self.directory / f"w{number}"

    def host(self, number: int) -> str:
        """What the worker's host is called."""
        return wait_until(lambda: _read(self.root(number) / "host_id"), what="a host's name")

    def _start(
        self, name: str, *arguments: str, within: Sequence[str] = (), **environment: str
    ) -> Daemon:
        daemon = Daemon(self.directory, name, *arguments, *self.options, within=within, **environment)
        self.daemons.append(daemon)
        return daemon

    def close(self) -> None:
        """Workers leave in order.  Asserts that no process is left that the daemons had begun."""
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                self.seen |= {child.pid for child in psutil.Process(daemon.pid).children(recursive=True)}
                daemon.process.kill() if daemon is self.manager else daemon.process.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.process.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
        wait_until(lambda: not any(map(is_alive, self.seen)), 5, "the end of the daemons' processes")


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
