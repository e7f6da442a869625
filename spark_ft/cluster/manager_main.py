"""A manager process: ManagerCore in its host.  It starts nothing and holds no data.

As a child of a driver it serves one application and ends with it.  As a daemon (``spark-ft manager``) it is
found by its address: whoever asks there is told who it is, under which epoch (finder.py), and whether the
two versions may work together (EX-11).  It acts once its work directory is its own (leadership.py): at once,
or, as a standby, when the one that has it ends.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NoReturn

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.cluster import processes
from spark_ft.cluster.configuration import ManagerConfig, read_config
from spark_ft.cluster.finder import ACTIVE, STANDBY
from spark_ft.cluster.leadership import BEAT_S, ENDED_S, Leadership
from spark_ft.cluster.manager import ManagerCore
from spark_ft.cluster.scratch import Scratch
from spark_ft.errors import ClusterError
from spark_ft.executor.versions import mismatch, versions
from spark_ft.ids import HostId, Incarnation
from spark_ft.log import get_logger, set_level
from spark_ft.protocol.effects import (
    ClosePeer,
    Effect,
    Event,
    Note,
    PeerGone,
    Received,
    Remember,
    WatchProcess,
)
from spark_ft.settings import Settings
from spark_ft.transport.greeting import Words
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys

EXIT_FENCED, EXIT_CANNOT_START = 71, 78

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
        self._config, self._settings, self._me = config, settings, Incarnation(config.me)
        self._is_daemon = not config.parent_pid
        self._leadership: Leadership | None = None
        self._writing = threading.Lock()  # the loop's thread and the one that beats write to one store
        self._core: ManagerCore | None = None  # of a standby: none yet
        if self._is_daemon:
            processes.no_stdin()
        else:
            Scratch.join(Path(config.scratch))  # held until this process ends
            self._core = ManagerCore(self._me, settings, [HostId(host) for host in config.hosts])
        self._host = Host(
            self._core or _Waiting(),
            self._me,
            token=bytes.fromhex(config.token),
            clock=BootClock(),
            perform=self._perform,
            bind=config.endpoint,
            max_message_bytes=settings.max_message_bytes,
            peer_silence_s=settings.silence_s if self._is_daemon else None,
            greet=self._greet,
            keys=Keys(*config.keys) if config.keys else None,
        )

    def serve(self) -> NoReturn:
        host, parent = self._host, self._config.parent_pid
        if self._is_daemon:
            self._leadership = Leadership(Path(self._config.work_dir), self._me)
            processes.on_terminate(lambda: host.call(lambda: self._end("asked to end")), interrupt=True)
            log.info("manager %s listens at %s", self._me, host.endpoint)
            threading.Thread(target=self._lead, args=(self._leadership,), daemon=True).start()
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
        if self._leadership is not None and self._core is not None:
            with self._writing:
                self._leadership.resign()
        processes.exit_now(0)

    # --- Who may act -----------------------------------------------------------------------------------

    def _lead(self, leadership: Leadership) -> None:
        """In a thread of its own: wait until it is our turn, and from then on say that we live."""
        clock, pause = BootClock(), threading.Event()
        while not leadership.owner_has_ended(clock.now_s()) or not leadership.take():
            if not self._config.standby and _is_alive(leadership, clock, pause):
                log.error(
                    "cannot start: [STORE_IN_USE] %s is served by %s; a second manager there is a --standby",
                    self._config.work_dir, leadership.owner(),
                )  # fmt: skip
                processes.exit_now(EXIT_CANNOT_START)
            pause.wait(BEAT_S)
        self._host.call(self._activate)
        while True:
            pause.wait(BEAT_S)
            with self._writing:
                if not leadership.beat():
                    break
        log.error("manager %s ends: another one has taken its place", self._me)
        processes.exit_now(EXIT_FENCED)

    def _activate(self) -> None:
        leadership = self._leadership
        assert leadership is not None
        # Of hosts that nobody can tell: wait for them as long as for any.
        awaited = leadership.awaited if leadership.knows_hosts else (HostId("unknown"),)
        self._host.core = self._core = ManagerCore(self._me, self._settings, awaited)
        log.info("manager %s is active under epoch %d", self._me, leadership.epoch)

    def _greet(self, words: Words) -> Words:
        refused = mismatch(words)
        if refused:
            log.warning("refused a %s: %s", words.get("role", "stranger"), refused)
        state = ACTIVE if self._core is not None else STANDBY
        epoch = self._leadership.epoch if self._leadership is not None else 0
        cores = self._core.cores() if self._core is not None else 0
        answer = {"me": self._me, "state": state, "epoch": str(epoch), "refused": refused}
        return {**answer, "cores": str(cores), **versions()}

    # --- Effects -----------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        host = self._host
        match effect:
            case WatchProcess(peer, pid) if pid > 0:
                processes.watch_process(
                    pid, host.watch, host.unwatch, lambda: host.post(PeerGone(peer, "its process has ended"))
                )
            case WatchProcess():  # of another machine: silence will have to tell
                pass
            case Remember(hosts):
                if self._leadership is not None:
                    with self._writing:
                        self._leadership.remember(hosts)  # the next beat tells whether we still may
            case Note():
                log.info("%s %s", effect.kind, dict(effect.fields))
            case _:
                raise AssertionError(f"a manager does not ask for {effect!r}")


class _Waiting:
    """The core of a standby: it hears nobody, so nobody is answered."""

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        if isinstance(event, Received):
            return [ClosePeer(event.sender, fence=False, why="this manager is not active")]
        return []

    def wakeup_s(self) -> float | None:
        return None


def _is_alive(leadership: Leadership, clock: BootClock, pause: threading.Event) -> bool:
    """Whether the owner's beat goes on, or could for longer than anybody who starts one waits."""
    until_s = clock.now_s() + 2 * ENDED_S
    while clock.now_s() < until_s:
        if leadership.owner_has_ended(clock.now_s()):
            return False
        pause.wait(BEAT_S / 2)
    return True
