"""Submitting a driver to run within a cluster, and waiting for its end.

    spark-ft submit ── SubmitDriver ──> manager ──> a worker with room ── starts it, and starts it again
                    <── DriverChanged ──        <──                       when it is supervised

The files of a program travel with it, so that any worker can run it.  A manager that comes later is told
again whom we wait for, and by the worker what became of it: nothing is run twice by that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spark_ft.clock import BootClock
from spark_ft.cluster.finder import Finder, Found, cluster_token, parse_masters
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.ids import new_incarnation
from spark_ft.protocol.effects import Effect, Event, Received
from spark_ft.protocol.messages import DriverChanged, SubmitDriver
from spark_ft.settings import Settings, size_bytes
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys

FINAL = ("FINISHED", "FAILED", "LOST")
FILES_BYTES_MAX = 16 << 20

_SHIPPED = ("spark.submit.pyFiles", "spark.files", "spark.archives")


@dataclass(frozen=True, slots=True)
class Submission:
    """A program that is to run within a cluster, and what it was called."""

    driver: str
    message: SubmitDriver

    @classmethod
    def of(
        cls,
        settings: Settings,
        pairs: Mapping[str, str],
        program: Path,
        arguments: Sequence[str],
        cores: int,
        memory: str,
        supervise: bool,
    ) -> Submission:
        """Raises SettingsError for a master that is no cluster, an unreadable file, too many bytes."""
        parse_masters(settings.master)
        files = {program.name: _read(program)}
        given = {"spark.master": settings.master, **pairs}
        for key in _SHIPPED:
            paths = [Path(item.removeprefix("file:")) for item in given.get(key, "").split(",") if item]
            files.update((path.name, _read(path)) for path in paths)
            if paths:  # they lie beside the program there
                given[key] = ",".join(path.name for path in paths)
        total = sum(map(len, files.values()))
        if total > FILES_BYTES_MAX:
            raise SettingsError(
                f"the program and its files have {total >> 20} MiB, more than {FILES_BYTES_MAX >> 20}; put "
                "what is large where workers can read it"
            )
        name = new_incarnation("submitted")
        memory_bytes = size_bytes(memory, "m")
        words = tuple(arguments)
        message = SubmitDriver(
            name, program.name, tuple(files.items()), words, given, cores, memory_bytes, supervise
        )
        return cls(name, message)


def submit_and_wait(
    settings: Settings, submission: Submission, tell: Callable[[str], None]
) -> tuple[str, str]:
    """How it ended, and why.  ``tell`` gets a line whenever something has changed.  Raises ClusterError when
    no manager answers."""
    ended = threading.Event()
    last: list[tuple[str, str]] = [("", "")]

    def changed(told: DriverChanged) -> None:
        if told.driver == submission.driver and (told.state, told.text) != last[0]:
            last[0] = told.state, told.text
            if told.state in FINAL:
                ended.set()
            else:
                tell(f"{told.driver} {told.state.lower()}{': ' + told.text if told.text else ''}")

    keys, token = Keys.load(settings.keys), cluster_token(settings)
    finder = Finder(parse_masters(settings.master), token, "submission", keys)
    me = new_incarnation("submit")
    host = Host(_Client(changed), me, token=token, clock=BootClock(), perform=_nothing, keys=keys)
    try:
        first = finder.first(settings.submit_timeout_s)
        host.call(lambda: _speak(host, first, submission.message))
        again = replace(submission.message, has_run=True)
        finder.on_found = lambda found: host.call(lambda: _speak(host, found, again))
        if finder.found is not None and finder.found != first:  # it came in between
            finder.on_found(finder.found)
        thread = threading.Thread(target=host.run, name="spark-ft-submit", daemon=True)
        thread.start()
        while not ended.wait(0.2):
            if not thread.is_alive():
                raise ClusterError("the connection with the manager has failed")
        return last[0]
    finally:
        finder.stop()
        host.stop(0.2)


def _speak(host: Host, found: Found, message: SubmitDriver) -> None:
    host.connect(found.manager, found.endpoint)
    host.send(found.manager, message)


def _nothing(effect: Effect) -> None:
    """A client asks for nothing."""


class _Client:
    """The core of somebody who only listens."""

    def __init__(self, changed: Callable[[DriverChanged], None]) -> None:
        self._changed = changed

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        if isinstance(event, Received) and isinstance(event.message, DriverChanged):
            self._changed(event.message)
        return []

    def wakeup_s(self) -> float | None:
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
