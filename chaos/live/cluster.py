"""A handle on one running application: how it is launched, and where its processes and files are.

The application's driver is a child of the harness (``program.py``), so a nemesis may stop or kill it like
any other process.  Every process of the application inherits the environment variable ``MARK``,
which nothing else carries: that is how a process is known to be its own, even one that has
lost its parent.  No signal is sent to a process without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from chaos.live.log import Follower
from spark_ft.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MARK = "SPARK_FT_CHAOS_RUN"
UP_WITHIN_S = 30.0


@dataclass
class Launch:
    """How an application is started; a nemesis may change it in ``prepare``."""

    directory: Path  # of this run: options, history, event log, words of processes
    master: str
    conf: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)  # of the driver, and so of every process
    wrapper: list[str] = field(default_factory=list)  # goes before the driver's command line
    local_dir: Path | None = None  # of scratch directories; a fresh short one when None

    @property
    def managed(self) -> bool:
        return self.master.startswith("local-cluster")


@dataclass(frozen=True)
class Process:
    """A process of the application, told from a later one with its pid by when it began."""

    role: str  # driver, manager, worker, executor
    pid: int
    created: float
    id: str = ""  # of an executor or worker: its incarnation, once it is known
    host: str = ""

    def is_alive(self) -> bool:
        """Whether it exists and is no zombie."""
        return self.status() not in ("", psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)

    def is_stopped(self) -> bool:
        return self.status() == "stopped"

    def status(self) -> str:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 0.05:
                return str(process.status())
        return ""


class Cluster:
    """One application from its launch to its end."""

    def __init__(self, launch: Launch, mark: str) -> None:
        self.launch, self.mark = launch, mark
        self.directory = launch.directory
        self._made = launch.local_dir is None
        # Short, because the names of sockets in it may be 107 bytes long at most.
        self.local_dir = launch.local_dir or Path(tempfile.mkdtemp(prefix="sft-", dir="/tmp"))
        self._zero = time.monotonic()
        self.log = Follower(self.directory / "events", self.now_s)
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def lost_after_s(self) -> float:
        """After how much silence a peer is given up, by the application's settings."""
        return Settings.from_conf(self.launch.conf).lost_after_s

    @property
    def lease_s(self) -> float:
        """For how long an executor that hears nothing may begin something new."""
        return Settings.from_conf(self.launch.conf).lease_s

    @property
    def given_up_after_s(self) -> float:
        """… and when at the latest it is, because silence is looked for twice a second."""
        return self.lost_after_s + 0.5

    def now_s(self) -> float:
        """The harness's clock: monotonic seconds since the launch."""
        return time.monotonic() - self._zero

    # --- Life ---

    def conf(self) -> dict[str, str]:
        """The settings that the application gets."""
        launch = self.launch
        return {
            "spark.app.name": "chaos",
            **launch.conf,
            "spark.master": launch.master,
            "spark.local.dir": str(self.local_dir),
            "spark.eventLog.enabled": "true",
            "spark.eventLog.dir": str(self.directory / "events"),
        }

    def start(self, command: Sequence[str], cwd: Path, printed: Path | None = None) -> None:
        """Launch the driver: this Python with these arguments.  Its words go to ``words``, what it prints to
        ``printed`` if that is named."""
        (self.directory / "events").mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **self.launch.env, MARK: self.mark}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
        with contextlib.ExitStack() as files:
            words = files.enter_context((self.directory / "words").open("ab"))
            self._popen = subprocess.Popen(
                [*self.launch.wrapper, sys.executable, *command],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=words if printed is None else files.enter_context(printed.open("wb")),
                stderr=words,
                start_new_session=True,
            )
        self.log.start()

    def wait_until_up(self) -> bool:
        """Whether the first executor has come, or the driver has ended before that."""
        return self.wait(lambda: self.log.executors() or self.ended(), UP_WITHIN_S) and not self.ended()

    def ended(self) -> bool:
        """Whether the driver's process has ended."""
        return self._popen is None or self._popen.poll() is not None

    @property
    def exit_status(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def wait(self, condition: Callable[[], Any], timeout_s: float, poll_s: float = 0.005) -> bool:
        """Whether the condition has come true within ``timeout_s``."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(poll_s)
        return True

    def kill_everything(self) -> None:
        """SIGKILL to all that carries our mark; until nothing does."""
        for _ in range(20):
            left = self.marked()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if self._popen is not None:
                self._popen.poll()
            time.sleep(0.05)

    def close(self) -> None:
        """After the end: nothing of it stays but the run's directory."""
        self.kill_everything()
        if self._popen is not None:
            self._popen.wait(5)
        self.log.stop()
        if self._made:
            shutil.rmtree(self.local_dir, ignore_errors=True)

    # --- Processes ---

    def driver(self) -> Process | None:
        """The driver's process, below whatever wraps it."""
        for event in self.log.of("application_start"):
            return self._process("driver", event["pid"])
        return None

    def manager(self) -> Process | None:
        return next(iter(self._interpreters("manager")), None)

    def workers(self) -> list[Process]:
        """Those whose processes live and of which the driver has heard."""
        hosts = {event["pid"]: event for event in self.log.of("worker_added")}
        return [
            replace(process, id=hosts[process.pid]["worker"], host=hosts[process.pid]["host"])
            for process in self._interpreters("worker")
            if process.pid in hosts
        ]

    def executors(self) -> list[Process]:
        """Those that have been added, not been lost, and whose processes live."""
        found = []
        for event in self.log.executors():
            process = self._process("executor", event["pid"], event["executor"], event["host"])
            if process is not None and process.is_alive():
                found.append(process)
        return found

    def _process(self, role: str, pid: int, id: str = "", host: str = "") -> Process | None:
        with contextlib.suppress(psutil.Error):
            return Process(role, pid, psutil.Process(pid).create_time(), id, host)
        return None

    def _interpreters(self, role: str) -> list[Process]:
        """Children of the driver that run ``spark_ft.cluster.main <role>``."""
        driver = self.driver()
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(driver.pid).children() if driver is not None else ():
                with contextlib.suppress(psutil.Error):
                    if role in child.cmdline()[1:5] and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(Process(role, child.pid, child.create_time()))
        return found

    def marked(self) -> dict[int, str]:
        """pid -> command line of every living process that carries this run's mark."""
        needle = f"{MARK}={self.mark}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with contextlib.suppress(OSError, psutil.Error):
                with open(f"/proc/{entry}/environ", "rb") as environ:
                    if needle not in environ.read().split(b"\0"):
                        continue
                process = psutil.Process(int(entry))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[int(entry)] = " ".join(process.cmdline()[:4])[:200]
        return found

    def signal(self, process: Process, number: int) -> bool:
        """Send a signal, unless the process is gone.  Raises ValueError for a process of others."""
        if not process.is_alive():
            return False
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            if f"{MARK}={self.mark}".encode() not in environ.split(b"\0"):
                raise ValueError(f"process {process.pid} is not of this application")
            os.kill(process.pid, number)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    # --- Files ---

    def scratch(self) -> Path | None:
        """The application's scratch directory; see spark_ft/cluster/scratch.py for what is in it."""
        return next(iter(sorted(self.local_dir.glob("spark-ft-*"))), None)

    def host_root(self, host: str) -> Path | None:
        """``stores``, ``tmp``, ``log`` and ``run`` of one host."""
        scratch = self.scratch()
        return None if scratch is None else scratch / "hosts" / host

    def stores(self, host: str | None = None) -> list[Path]:
        """The directories of all stores, or those of one host: one for each process that has written."""
        scratch = self.scratch()
        if scratch is None:
            return []
        return sorted(path for path in scratch.glob(f"hosts/{host or '*'}/stores/*") if path.is_dir())

    def sockets(self) -> list[Path]:
        """The ipc sockets that its processes have bound, by role in their names."""
        scratch = self.scratch()
        return [] if scratch is None else sorted((scratch / "c").glob("*"))
