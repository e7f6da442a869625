"""Programs that a worker runs as drivers, for somebody who submitted them.

    <work-dir>/drivers/<name>/     the program and its files: where it runs
        submitted                  what was submitted, for a worker that takes over
        log/stdout  log/stderr     what it wrote; stays
    <work-dir>/drivers/run/<name>  pid and start time of each

A driver is a process of its own, started by the warm process, in a session of its own.  It outlives its
worker as executors do, and the one that takes over adopts it.  One that is supervised and ends otherwise than
well is started again, after a second, then two … up to a minute; a run of a minute makes it one again.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spark_ft.clock import BootClock
from spark_ft.cluster import processes
from spark_ft.cluster.processes import STATUS_UNKNOWN, Children, Spec
from spark_ft.cluster.procfs import record_self, recorded
from spark_ft.cluster.worker import RUNNING
from spark_ft.errors import RemoteProtocolError
from spark_ft.log import get_logger
from spark_ft.protocol import codec
from spark_ft.protocol.effects import DriverRan
from spark_ft.protocol.messages import SubmitDriver
from spark_ft.settings import SUBMITTED, dump_pairs
from spark_ft.transport.host import Host

BACKOFF_S, BACKOFF_MAX_S = 1.0, 60.0

log = get_logger(__name__)


def enter(spec: Spec, fds: Sequence[int]) -> int:
    """In the new process: write itself down, and become the program."""
    record_self(Path(spec["run"]), "submitted")
    words, environment = [spec["main"], *spec["arguments"]], {SUBMITTED: spec["settings"]}
    processes.become_program(words, environment, spec["directory"])


@dataclass(slots=True)
class _Running:
    submitted: SubmitDriver
    began_s: float
    failures: int = 0  # in a row


class Drivers:
    """Those of one worker; everything happens in its loop's thread."""

    def __init__(self, root: Path, children: Children, host: Host) -> None:
        self._root, self._children, self._host = root / "drivers", children, host
        self._clock = BootClock()
        self._running: dict[str, _Running] = {}

    def run(self, wanted: SubmitDriver) -> None:
        directory = self._root / wanted.driver
        try:
            (directory / "log").mkdir(parents=True, exist_ok=True)
            (self._root / "run").mkdir(exist_ok=True)
            for name, content in wanted.files:
                (directory / Path(name).name).write_bytes(content)
            (directory / "submitted").write_bytes(codec.encode(wanted))
        except OSError as error:
            self._host.post(DriverRan(wanted.driver, "FAILED", f"cannot be put into {directory}: {error}"))
            return
        self._running[wanted.driver] = _Running(wanted, self._clock.now_s())
        self._start(wanted.driver)

    def adopt(self) -> None:
        """Those that outlived the worker before us."""
        for process in recorded(self._root / "run"):
            name = process.name
            with contextlib.suppress(OSError, RemoteProtocolError):
                wanted = codec.decode((self._root / name / "submitted").read_bytes())
                ended = partial(self._ended, name)
                if isinstance(wanted, SubmitDriver) and self._children.adopt(process, ended, lambda _: None):
                    self._running[name] = _Running(wanted, self._clock.now_s())
                    self._host.post(DriverRan(name, RUNNING, "", wanted))

    def _start(self, name: str) -> None:
        running, directory = self._running[name], self._root / name
        wanted = running.submitted
        running.began_s = self._clock.now_s()
        spec = {
            "run": str(self._root / "run" / name),
            "directory": str(directory),
            "main": wanted.main,
            "arguments": list(wanted.arguments),
            "settings": dump_pairs(wanted.settings),
        }
        self._children.spawn(
            "driver",
            spec,
            stderr=str(directory / "log" / "stderr"),
            stdout=str(directory / "log" / "stdout"),
            on_spawned=lambda pid: self._host.post(DriverRan(name, RUNNING, f"pid {pid}")),
            on_end=partial(self._ended, name),
        )

    def _ended(self, name: str, status: int, signal: int, why: str) -> None:
        running = self._running[name]
        if status == 0 and not signal and not why:
            self._finish(name, "FINISHED", "")
            return
        how = why or (f"was killed by signal {signal}" if signal else f"exited with status {status}")
        if status == STATUS_UNKNOWN and not signal:
            how = "ended, and nobody was there to be told how"
        last = processes.tail(self._root / name / "log" / "stderr", 2 << 10).strip()
        if not running.submitted.supervise:
            self._finish(name, "FAILED", f"it {how}; its last words:\n{last}" if last else f"it {how}")
            return
        lived_s = self._clock.now_s() - running.began_s
        running.failures = 1 if lived_s >= BACKOFF_MAX_S else running.failures + 1
        delay_s = min(BACKOFF_S * 2.0 ** min(running.failures - 1, 10), BACKOFF_MAX_S)
        log.warning("driver %s %s; it is started again in %g s", name, how, delay_s)
        self._host.post(DriverRan(name, RUNNING, f"it {how}, and is started again"))
        timer = threading.Timer(delay_s, lambda: self._host.call(lambda: self._start(name)))
        timer.daemon = True
        timer.start()

    def _finish(self, name: str, state: str, text: str) -> None:
        del self._running[name]
        (self._root / "run" / name).unlink(missing_ok=True)
        for path in (self._root / name).iterdir():  # its logs stay
            if path.name != "log":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        log.info("driver %s %s %s", name, state, text)
        self._host.post(DriverRan(name, state, text))
