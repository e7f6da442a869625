"""An executor process: ExecutorCore in its host on a second thread, tasks in the main thread.

    main thread     Slots.serve ── TaskRunner.run: user code, stores, shuffles
    I/O thread      Host ── ExecutorCore; LoadBlob, Forget, LearnHosts go to the TaskRunner from here

The process is forked from the worker's warm process (cluster/processes.py), so all imports are done
and nothing is open.  It ends by ``Exit`` of its core, by a signal, or with its driver, not with its worker:
when its lifeline, a pipe that only the worker holds, comes to its end it goes on as an orphan, and whoever
takes over the host adopts it (WK-1).  stdout is the driver's own, so that what tasks print is seen; stderr is
a log file whose tail is told at its death.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from spark_ft import closures, failpoints
from spark_ft.clock import BootClock, cpu_s
from spark_ft.errors import SettingsError
from spark_ft.executor.core import EXIT_DRIVER_GONE, ExecutorCore
from spark_ft.executor.exporter import Exporter
from spark_ft.executor.progress import Meter
from spark_ft.executor.slots import Slots, marks_path, open_marks, touched_path
from spark_ft.executor.stacks import answer_requests, stacks_path
from spark_ft.executor.task import TaskRunner
from spark_ft.executor.versions import versions
from spark_ft.ids import HostId, Incarnation
from spark_ft.protocol.effects import (
    Copy,
    Effect,
    Event,
    Exit,
    Forget,
    InterruptTask,
    LearnHosts,
    Leased,
    LeaveWanted,
    LoadBlob,
    Measure,
    Note,
    PeerGone,
    Progress,
    ReleaseBarrier,
    RunTask,
)
from spark_ft.settings import Settings, apply_environment, environment
from spark_ft.storage import touched
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys

WatchProcess = Callable[  # (pid, watch, unwatch, what to do when it has ended)
    [int, Callable[[int, Callable[[], None]], None], Callable[[int], None], Callable[[], None]], object
]
EXIT_INTERNAL = 72  # an error of ours in the I/O thread; stderr has it

_OVERHEAD_BYTES = 384 << 20  # beside what tasks and cache may have: the interpreter, libraries, threads
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def run(spec: Mapping[str, Any], fds: Sequence[int], watch_process: WatchProcess) -> int:
    """The whole life of an executor.  ``spec`` is what the worker says of it (cluster/worker_main.py)."""
    _become_plain_python()
    settings = replace(
        Settings.from_conf(spec["settings"]),
        executor_memory_bytes=spec["memory_bytes"],
        executor_cores=spec["slots"],
    )
    seed = environment("PYTHONHASHSEED")
    if seed != str(settings.hash_seed):
        raise SettingsError(
            f"spark.ft.hashSeed={settings.hash_seed}: the worker's processes hash under {seed or 'no'} seed"
        )
    apply_environment(spec["settings"])
    me = Incarnation(spec["me"])
    failpoints.arm(settings.failpoints, me)
    if settings.faulthandler:
        faulthandler.enable()
    if settings.pyspark_memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (settings.pyspark_memory_bytes,) * 2)
    if settings.enforce_memory:
        # Private writable memory: what is mapped from stores does not count (MEM-5).
        allowed_bytes = settings.executor_memory_bytes + max(
            settings.executor_memory_bytes // 10, _OVERHEAD_BYTES
        )
        resource.setrlimit(resource.RLIMIT_DATA, (allowed_bytes,) * 2)
    executor = _Executor(spec, settings, me, watch_process)
    executor.serve()
    return 0


def _become_plain_python() -> None:
    """User code finds an empty ``__main__``, no arguments, and prints that appear line by line."""
    closures.install_main()
    sys.argv = [""]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # may be replaced or closed


class _Executor:
    """The wiring of one executor: what its core asks for is done here."""

    def __init__(
        self, spec: Mapping[str, Any], settings: Settings, me: Incarnation, watch_process: WatchProcess
    ) -> None:
        host = HostId(spec["host"])
        token = bytes.fromhex(spec["token"])
        roots = {HostId(name): Path(path) for name, path in spec["roots"].items()}
        driver = Incarnation(spec["driver"])
        clock = BootClock()
        self._settings = settings
        self._ready_path = Path(spec["ready"])
        self._ready = False
        keys = Keys(*spec["keys"]) if spec["keys"] else None
        self._runner = TaskRunner(settings, me, host, roots, Path(spec["root"]), token, keys)
        core = ExecutorCore(
            me,
            Incarnation(spec["worker"]),
            host,
            driver,
            os.getpid(),
            spec["slots"],
            settings,
            versions(),
            driver_is_local=spec["driver_pid"] > 0,
        )
        self._host = Host(
            core,
            me,
            token=token,
            clock=clock,
            perform=self._perform,
            max_message_bytes=settings.max_message_bytes,
            on_error=_failed,
            keys=keys,
        )
        self._runner.barriers.post = self._host.post
        self._slot_count = spec["slots"]
        answer_requests(stacks_path(self._ready_path))
        self._marks = open_marks(marks_path(self._ready_path), spec["slots"])
        touched.publish(touched_path(self._ready_path))
        self._slots = Slots(self._runner, self._host.post, spec["slots"], self._marks, clock.now_s)
        self._exporter = Exporter(self._runner.env, self._runner.keep, self._host.post)
        self._host.connect(driver, spec["driver_endpoint"])
        self._worker, self._lifeline = Incarnation(spec["worker"]), spec["lifeline"]
        self._host.watch(self._lifeline, self._worker_gone)
        if spec["driver_pid"] > 0:
            watch_process(spec["driver_pid"], self._host.watch, self._host.unwatch, _driver_gone)
        self._actions: dict[type, Callable[[Any], None]] = {
            RunTask: self._slots.put,
            LoadBlob: self._runner.load,
            Forget: self._forget,
            Copy: self._exporter.copy,
            ReleaseBarrier: self._runner.barriers.release,
            InterruptTask: lambda effect: self._slots.interrupt(effect.task, effect.hard, effect.queued_only),
            Leased: lambda effect: self._slots.lease(effect.until_s),
            LearnHosts: self._learn,
            Measure: self._measure,
            Note: _note,
            Exit: _exit,
        }

    def serve(self) -> None:
        threading.Thread(target=self._host.run, name="executor-io", daemon=True).start()
        if self._settings.decommission:
            _on_terminate(lambda: self._host.post(LeaveWanted(self._settings.decommission_s)))
        self._meter = Meter(self._slot_count)
        if self._slot_count == 1:
            self._slots.take_interrupts()
            self._runner.tidy_up_after_each()
        self._slots.serve()

    # --- I/O thread ---

    def _perform(self, effect: Effect) -> None:
        self._actions[type(effect)](effect)

    def _learn(self, effect: LearnHosts) -> None:
        self._runner.learn(effect)
        if not self._ready:  # the first word of the driver: this start has not failed
            self._ready = True
            self._ready_path.touch()

    def _forget(self, effect: Forget) -> None:
        self._runner.forget(effect)
        self._exporter.forget(effect.copies)

    def _worker_gone(self) -> None:
        """We are an orphan: we go on under the driver's lease until somebody takes over the host, and us."""
        self._host.unwatch(self._lifeline)
        os.close(self._lifeline)
        _log(f"{self._worker} is gone")
        self._host.post(PeerGone(self._worker, "its lifeline has ended"))

    def _measure(self, effect: Measure) -> None:
        self._marks[-1] += 1  # the number of the beat that comes of it
        self._runner.tidy()
        running = self._meter.read(self._slots.running(), self._runner.records)
        self._host.post(Progress(running, cpu_s(), _anonymous_bytes()))


def _on_terminate(leave: Callable[[], None]) -> None:
    """SIGTERM lets this process leave in order; SIGHUP ends it at once, also below a nohup.

    A fork by user code has SIGTERM as anybody has it, from its first instruction on: Python forgets
    signals that come before a fork is complete, so the handler is away while one is made.
    """
    me = os.getpid()

    def asked(number: int, frame: object) -> None:
        if os.getpid() == me:
            leave()
        else:  # forked by another thread than the main one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def handle(action: Any) -> None:
        with contextlib.suppress(ValueError):  # only the main thread may say so
            if os.getpid() == me:
                signal.signal(signal.SIGTERM, action)

    handle(asked)
    os.register_at_fork(before=lambda: handle(signal.SIG_DFL), after_in_parent=lambda: handle(asked))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _anonymous_bytes() -> int:
    """Resident memory that is this process's alone."""
    try:
        with open("/proc/self/statm", "rb") as file:
            row = file.read().split()
    except OSError:
        return 0
    return (int(row[1]) - int(row[2])) * _PAGE_BYTES


def _log(line: str) -> None:
    """Into this executor's log file, which is what its stderr is."""
    sys.stderr.write(line + "\n")


def _note(note: Note) -> None:
    _log(f"{note.kind} {dict(note.fields)}")


def _exit(effect: Exit) -> NoReturn:
    _log(f"executor ends: {effect.why}")
    with contextlib.suppress(Exception):  # stdout may be a pipe that nobody reads any more
        sys.stdout.flush()
    os._exit(effect.status)


def _driver_gone() -> NoReturn:
    """The kernel says that the driver's process has ended: nobody wants anything of us any more."""
    _log("executor ends: the driver's process has ended")
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(0, signal.SIGKILL)
    os._exit(EXIT_DRIVER_GONE)


def _failed(error: BaseException, event: Event) -> NoReturn:
    """Our own code failed in the I/O thread: an executor that cannot speak is worse than none."""
    traceback.print_exception(error)
    _log(f"internal error at {event!r}")
    os._exit(EXIT_INTERNAL)
