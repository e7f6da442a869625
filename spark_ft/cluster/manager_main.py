"""A manager process: ManagerCore in its host.  It starts nothing and holds no data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.cluster import processes
from spark_ft.cluster.configuration import ManagerConfig, read_config
from spark_ft.cluster.manager import ManagerCore
from spark_ft.cluster.scratch import Scratch
from spark_ft.ids import Incarnation
from spark_ft.log import get_logger, set_level
from spark_ft.protocol.effects import Effect, Note, PeerGone, WatchProcess
from spark_ft.settings import Settings
from spark_ft.transport.host import Host

log = get_logger(__name__)


def run() -> NoReturn:
    """The whole life of a manager."""
    config = read_config(ManagerConfig)
    if config is None:
        processes.exit_now(0)
    settings = Settings.from_conf(config.settings)
    set_level(settings.log_level)
    failpoints.arm(settings.failpoints, config.me)
    Scratch.join(Path(config.scratch))  # held until this process ends
    me = Incarnation(config.me)
    host = Host(
        ManagerCore(me, settings),
        me,
        token=bytes.fromhex(config.token),
        clock=BootClock(),
        perform=lambda effect: perform(effect),
        bind=config.endpoint,
        max_message_bytes=settings.max_message_bytes,
    )

    def perform(effect: Effect) -> None:
        match effect:
            case WatchProcess(peer, pid):
                processes.watch_process(
                    pid, host.watch, host.unwatch, lambda: host.post(PeerGone(peer, "its process has ended"))
                )
            case Note():
                log.info("%s %s", effect.kind, dict(effect.fields))
            case _:
                raise AssertionError(f"a manager does not ask for {effect!r}")

    def stdin() -> None:
        if not os.read(0, 4096):
            processes.exit_now(0)

    host.watch(0, stdin)
    if os.getppid() != config.parent_pid:
        processes.exit_now(0)
    processes.watch_process(config.parent_pid, host.watch, host.unwatch, lambda: processes.exit_now(0))
    processes.on_terminate(lambda: processes.exit_now(0))
    host.run()
    processes.exit_now(0)
