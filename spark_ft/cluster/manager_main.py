"""A manager process: ManagerCore in its host.  It starts nothing and holds no data.

As a child of a driver it serves one application and ends with it.  As a daemon (``spark-ft manager``) it is
found by its address: whoever asks there is told who it is, under which epoch (finder.py), and whether the
two versions may work together (EX-11).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.cluster import processes
from spark_ft.cluster.configuration import ManagerConfig, read_config
from spark_ft.cluster.finder import ACTIVE
from spark_ft.cluster.manager import ManagerCore
from spark_ft.cluster.scratch import Scratch, hold_root
from spark_ft.errors import ClusterError
from spark_ft.executor.versions import mismatch, versions
from spark_ft.ids import Incarnation
from spark_ft.log import get_logger, set_level
from spark_ft.protocol.effects import Effect, Note, PeerGone, WatchProcess
from spark_ft.settings import Settings
from spark_ft.transport.greeting import Words
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys

EXIT_CANNOT_START = 78

log = get_logger(__name__)


def run() -> NoReturn:
    """The whole life of a manager."""
    config = read_config(ManagerConfig)
    if config is None:
        processes.exit_now(0)
    settings = Settings.from_conf(config.settings)
    set_level(settings.log_level)
    failpoints.arm(settings.failpoints, config.me)
    try:
        _Manager(config, settings).serve()
    except ClusterError as error:
        log.error("cannot start: %s", error)
        processes.exit_now(EXIT_CANNOT_START)


class _Manager:
    """The wiring of one manager."""

    def __init__(self, config: ManagerConfig, settings: Settings) -> None:
        self._config, self._me = config, Incarnation(config.me)
        self._is_daemon = not config.parent_pid
        self._epoch = 0
        if self._is_daemon:
            processes.no_stdin()
            self._epoch = _next_epoch(Path(config.work_dir), self._me)
        else:
            Scratch.join(Path(config.scratch))  # held until this process ends
        self._core = ManagerCore(self._me, settings)
        self._host = Host(
            self._core,
            self._me,
            token=bytes.fromhex(config.token),
            clock=BootClock(),
            perform=self._perform,
            bind=config.endpoint,
            max_message_bytes=settings.max_message_bytes,
            greet=self._greet,
            keys=Keys(*config.keys) if config.keys else None,
        )

    def serve(self) -> NoReturn:
        host, parent = self._host, self._config.parent_pid
        if self._is_daemon:
            processes.on_terminate(lambda: self._end("asked to end"), interrupt=True)
            log.info("manager %s (epoch %d) listens at %s", self._me, self._epoch, host.endpoint)
        else:
            host.watch(0, self._stdin)
            if os.getppid() != parent:
                processes.exit_now(0)
            processes.watch_process(parent, host.watch, host.unwatch, lambda: processes.exit_now(0))
            processes.on_terminate(lambda: processes.exit_now(0))
        host.run()
        processes.exit_now(0)

    def _stdin(self) -> None:
        if not os.read(0, 4096):
            processes.exit_now(0)

    def _end(self, why: str) -> NoReturn:
        """What was granted stays granted; whoever comes next is told of it by those who have it (CM-1)."""
        log.info("manager %s ends: %s", self._me, why)
        processes.exit_now(0)

    def _greet(self, words: Words) -> Words:
        refused = mismatch(words)
        if refused:
            log.warning("refused a %s: %s", words.get("role", "stranger"), refused)
        answer = {"me": self._me, "state": ACTIVE, "epoch": str(self._epoch), "refused": refused}
        return {**answer, "cores": str(self._core.cores()), **versions()}

    def _perform(self, effect: Effect) -> None:
        host = self._host
        match effect:
            case WatchProcess(peer, pid) if pid > 0:
                processes.watch_process(
                    pid, host.watch, host.unwatch, lambda: host.post(PeerGone(peer, "its process has ended"))
                )
            case WatchProcess():  # of another machine: silence will have to tell
                pass
            case Note():
                log.info("%s %s", effect.kind, dict(effect.fields))
            case _:
                raise AssertionError(f"a manager does not ask for {effect!r}")


def _next_epoch(work_dir: Path, me: Incarnation) -> int:
    """One more than any manager before us in this directory had; it is ours alone while we live.

    Raises ClusterError (STORE_IN_USE) while another manager lives off it.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        hold_root(work_dir, me)
        path = work_dir / "epoch"
        epoch = 1 + int(path.read_text() if path.exists() else "0")
        with (work_dir / "epoch.new").open("w") as file:
            file.write(str(epoch))
            file.flush()
            os.fsync(file.fileno())
        (work_dir / "epoch.new").rename(path)
    except OSError as error:
        raise ClusterError(f"cannot use the work directory {work_dir}: {error}") from error
    return epoch
