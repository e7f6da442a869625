"""A worker process: WorkerCore in its host, its children, the block server of its host's stores.

    fork the warm process ─> read the configuration ─> serve blocks ─> take over what is here ─> run the loop

What touches another process's store, which its death may have damaged, or what only cleans up, runs in
disposable children of the warm process: the probe after an executor's death, the survey of each store that
an earlier worker of this host has left, the rounds of garbage collection.  A crash there means "no outputs",
"damaged", or "later", never the end of the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.cluster import processes
from spark_ft.cluster.configuration import WorkerConfig, read_config
from spark_ft.cluster.copier import Copier
from spark_ft.cluster.oom import OomCounters
from spark_ft.cluster.processes import Children, Spec
from spark_ft.cluster.procfs import Pulse, record_self, recorded
from spark_ft.cluster.scratch import Scratch, collect_leftovers, hold_root
from spark_ft.cluster.worker import SIGKILL, WorkerCore
from spark_ft.errors import RemoteProtocolError
from spark_ft.executor import main as executor_main
from spark_ft.executor import stacks
from spark_ft.executor.slots import marks_path, read_beat, read_marks
from spark_ft.ids import Fingerprint, HostId, Incarnation
from spark_ft.log import get_logger, set_level
from spark_ft.protocol import codec
from spark_ft.protocol.effects import (
    AskStacks,
    ChildExited,
    ChildrenSeen,
    ChildSpawned,
    ChildStopped,
    Connect,
    Copy,
    DropStores,
    Effect,
    Exit,
    Forget,
    GranterMoved,
    Inherited,
    KillProcess,
    LeaveWanted,
    Measure,
    Note,
    PeerGone,
    Received,
    SpawnExecutor,
    StacksDumped,
    WatchProcess,
)
from spark_ft.protocol.messages import AssignExecutors, ExecutorExited, MapStatus, StoresServed
from spark_ft.settings import Settings
from spark_ft.storage.blocks import StoreReader, serve
from spark_ft.storage.gc import collect_garbage, seal
from spark_ft.transport.blocks import BlockServer
from spark_ft.transport.host import Host
from spark_ft.transport.sockets import advertised

PROBE_TIMEOUT_S = 10.0
SURVEY_TIMEOUT_S = 60.0  # after a reboot every byte is read

log = get_logger(__name__)


# --- Disposable children ------------------------------------------------------------------------


def _probe(spec: Spec, fds: Sequence[int]) -> int:
    """What a dead executor's store holds, written to ``fds[0]`` as an ExecutorExited; and its spill
    files removed."""
    root, name = Path(spec["root"]), spec["executor"]
    host = HostId(spec["host"])
    shutil.rmtree(root / "tmp" / name, ignore_errors=True)
    outputs: tuple[MapStatus, ...] = ()
    if (root / "stores" / name).is_dir():
        seal(root, name)
        outputs = tuple(StoreReader({host: root}).outputs(host, name))
    with os.fdopen(fds[0], "wb") as pipe:
        pipe.write(codec.encode(ExecutorExited(Incarnation(name), 0, 0, "", outputs)))
    return 0


def _survey(spec: Spec, fds: Sequence[int]) -> int:
    """What verifies in one store that was here before the worker, written to ``fds[0]`` as a StoresServed;
    ``deep``: every byte of it."""
    root, name, host = Path(spec["root"]), spec["store"], HostId(spec["host"])
    seal(root, name)
    outputs = tuple(StoreReader({host: root}).outputs(host, name, deep=spec["deep"]))
    with os.fdopen(fds[0], "wb") as pipe:
        pipe.write(codec.encode(StoresServed((), outputs, (name,))))
    return 0


def _executor(spec: Spec, fds: Sequence[int]) -> int:
    """An executor; whoever comes after its worker must find it, so it writes itself down first."""
    record_self(Path(spec["root"]) / "run" / spec["me"], spec["driver"])
    return executor_main.run(spec, fds, processes.watch_process)


def _collect(spec: Spec, fds: Sequence[int]) -> int:
    """One round of garbage collection over this host's stores."""
    root = Path(spec["root"])
    collect_garbage(root, spec["live"], [bytes.fromhex(item) for item in spec["dropped"]])
    shutil.rmtree(root / "quarantine", ignore_errors=True)
    return 0


ENTRIES: Mapping[str, processes.Entry] = {
    "executor": _executor,
    "probe": _probe,
    "survey": _survey,
    "collect": _collect,
}


def resume_warm(argument: str) -> NoReturn:
    processes.resume_warm(argument, ENTRIES)


def run() -> NoReturn:
    """The whole life of a worker."""
    children = Children(ENTRIES)  # forks: nothing may be open, no thread may run before this
    config = read_config(WorkerConfig)
    if config is None:
        children.close(0.0)
        processes.exit_now(0)
    worker = _Worker(config, children)
    worker.serve()


class _Worker:
    """The wiring of one worker: what its core asks for is done here, in the loop's thread."""

    def __init__(self, config: WorkerConfig, children: Children) -> None:
        self._config = config
        self._children = children
        self._settings = settings = Settings.from_conf(config.settings)
        set_level(settings.log_level)
        failpoints.arm(settings.failpoints, config.me)
        self._clock = BootClock()
        self._pids: dict[Incarnation, int] = {}
        self._pulses: dict[Incarnation, Pulse] = {}
        self._stopped: set[Incarnation] = set()
        self._ooms = OomCounters()
        self._probes: dict[int, float] = {}  # pid -> when it is taken to hang
        self._watched: set[int] = set()
        self._dropped: set[bytes] = set()
        self._collect_at_s = self._clock.now_s() + settings.gc_interval_s
        self._collecting = False
        self._asked_to_leave = False
        self._lines = b""  # of our stdin, the last one unfinished
        self._root = Path(config.root)
        for name in ("stores", "tmp", "log", "run"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        self._scratch = Scratch.join(Path(config.scratch))
        self._rebooted = hold_root(self._root, Incarnation(config.me))
        me, host, granter = Incarnation(config.me), HostId(config.host), Incarnation(config.granter)
        token = bytes.fromhex(config.token)
        self._reader = StoreReader({host: self._root})
        self._server = BlockServer(config.data_endpoint, token, serve(self._reader, host))
        self._server.start()
        core = WorkerCore(
            me,
            host,
            os.getpid(),
            config.cores,
            config.memory_bytes,
            granter,
            settings,
            has_manager=config.has_manager,
            data_endpoint=advertised(self._server.endpoint, settings.advertise_directory),
            root=config.root,
            rng=Random(me),
        )
        self._host = Host(
            core,
            me,
            token=token,
            clock=self._clock,
            perform=self._perform,
            max_message_bytes=settings.max_message_bytes,
            peer_silence_s=settings.silence_s,
        )
        self._copier = Copier(me, host, self._root, token, settings, self._host.post)
        self._host.connect(granter, config.granter_endpoint)
        self._actions: dict[type, Callable[[Any], None]] = {
            SpawnExecutor: self._spawn,
            KillProcess: self._kill,
            AskStacks: self._ask_stacks,
            DropStores: self._drop,
            Copy: self._copier.copy,
            Forget: lambda effect: self._copier.forget(effect.nodes, effect.copies),
            Measure: self._measure,
            Connect: lambda effect: self._host.connect(effect.to, effect.endpoint),
            WatchProcess: self._watch_process,
            Note: lambda note: log.info("%s %s", note.kind, dict(note.fields)),
            Exit: lambda effect: self._end(effect.status, effect.why),
        }

    def serve(self) -> NoReturn:
        host = self._host
        self._children.attach(host.watch, host.unwatch)
        self._take_over()
        host.watch(0, self._stdin)
        parent = self._config.parent_pid
        if os.getppid() != parent:
            self._end(0, "the parent is gone")
        processes.watch_process(parent, host.watch, host.unwatch, lambda: self._end(0, "the parent is gone"))
        processes.on_terminate(lambda: host.call(self._terminated))
        threading.Thread(target=collect_leftovers, args=(self._scratch.path.parent,), daemon=True).start()
        host.run()
        self._end(0, "the loop has ended")

    def _stdin(self) -> None:
        """The parent says that another manager has come; or it has ended."""
        data = os.read(0, 4096)
        if not data:
            self._end(0, "the parent has closed our stdin")
        self._lines += data
        *lines, self._lines = self._lines.split(b"\n")
        for line in lines:
            self._host.post(GranterMoved(**json.loads(line)))

    def _terminated(self) -> None:
        """SIGTERM.  A parent that ends us has closed our stdin before; anybody else lets us leave in order,
        and who asks twice cannot wait."""
        if self._asked_to_leave or not self._settings.decommission or processes.is_at_end(0):
            self._end(0, "terminated")
        self._asked_to_leave = True
        self._host.post(LeaveWanted(self._settings.decommission_s))

    def _end(self, status: int, why: str) -> NoReturn:
        """End every child, then this process; whatever else it holds is the kernel's to take back."""
        log.info("worker %s ends: %s", self._config.me, why)
        self._children.close()
        processes.exit_now(status)

    def _perform(self, effect: Effect) -> None:
        self._actions[type(effect)](effect)

    # --- Executors -----------------------------------------------------------------------------

    def _spawn(self, effect: SpawnExecutor) -> None:
        executor, wanted = effect.executor, effect.assignment
        spec = {
            "me": executor,
            "worker": self._config.me,
            "host": self._config.host,
            "driver": wanted.driver,
            "driver_endpoint": wanted.driver_endpoint,
            "driver_pid": wanted.driver_pid,
            "settings": wanted.settings,
            "slots": wanted.slots,
            "memory_bytes": wanted.memory_bytes,
            "root": self._config.root,
            "roots": self._config.roots,
            "token": self._config.token,
            "ready": str(self._ready_path(executor)),
        }
        self._children.spawn(
            "executor",
            spec,
            stderr=str(self._log_path(executor)),
            on_spawned=partial(self._spawned, executor),
            on_end=partial(self._exited, executor),
            on_stopped=partial(self._was_stopped, executor),
        )

    def _ready_path(self, executor: Incarnation) -> Path:
        return self._root / "run" / f"{executor}.ready"

    def _log_path(self, executor: Incarnation) -> Path:
        return self._root / "log" / f"{executor}.stderr"

    def _spawned(self, executor: Incarnation, pid: int) -> None:
        self._pids[executor] = pid
        self._pulses[executor] = Pulse(pid, self._clock.now_s())
        self._host.post(ChildSpawned(executor, pid))

    def _was_stopped(self, executor: Incarnation, stopped: bool) -> None:
        (self._stopped.add if stopped else self._stopped.discard)(executor)
        self._host.post(ChildStopped(executor, stopped))

    def _exited(self, executor: Incarnation, status: int, signal: int, why: str) -> None:
        self._pids.pop(executor, None)
        self._pulses.pop(executor, None)
        self._stopped.discard(executor)
        (self._root / "run" / executor).unlink(missing_ok=True)
        registered = self._ready_path(executor).exists()
        self._ready_path(executor).unlink(missing_ok=True)
        marks = marks_path(self._ready_path(executor))
        running = read_marks(marks)
        marks.unlink(missing_ok=True)
        stacks.stacks_path(self._ready_path(executor)).unlink(missing_ok=True)
        words = why or processes.tail(self._log_path(executor))
        oom = self._ooms.told_of_a_kill() and signal == SIGKILL
        peak_bytes = self._children.rss_peak_bytes
        end = ChildExited(executor, status, signal, words, (), registered, running, oom, peak_bytes)
        if any((self._root / part / executor).is_dir() for part in ("stores", "tmp")):
            self._start_probe(end)
        else:
            self._host.post(end)

    def _kill(self, effect: KillProcess) -> None:
        pid = self._pids.get(effect.executor)
        if pid is not None:
            self._children.signal(pid, effect.signal)

    def _ask_stacks(self, effect: AskStacks) -> None:
        def answer(text: str) -> None:
            self._host.post(StacksDumped(effect.executor, text))

        path = stacks.stacks_path(self._ready_path(effect.executor))
        stacks.ask(self._pids.get(effect.executor, -1), path, answer)

    # --- What was here before us ---------------------------------------------------------------------

    def _take_over(self) -> None:
        """Adopt the executors that outlived the worker before us, and have every store that has lost its
        writer surveyed; only then anybody hears of us (WK-1, WK-3)."""
        run = self._root / "run"
        heirlooms = []
        for process in recorded(run):
            executor = Incarnation(process.name)
            if self._children.adopt(
                process, partial(self._exited, executor), partial(self._was_stopped, executor)
            ):
                self._pids[executor] = process.pid
                self._pulses[executor] = Pulse(process.pid, self._clock.now_s())
                heirlooms.append((executor, Incarnation(process.driver)))
        names = sorted(path.name for path in (self._root / "stores").iterdir())
        left = [name for name in names if name not in self._pids]
        outputs: list[MapStatus] = []
        whole = [name for name in names if name in self._pids]

        def surveyed(store: str, told: object) -> None:
            left.remove(store)
            if isinstance(told, StoresServed):
                outputs.extend(told.outputs)
                whole.append(store)
            else:
                self._quarantine(store)
            if not left:
                done()

        def done() -> None:
            for path in run.iterdir():  # of those that have not lived to see us
                if path.name.partition(".")[0] not in self._pids:
                    path.unlink(missing_ok=True)
            self._host.post(Inherited(tuple(heirlooms), tuple(outputs), tuple(whole)))
            config = self._config
            if config.assignment is not None:  # local[n]: the driver's wish comes with the configuration
                wish = AssignExecutors(**config.assignment)
                self._host.post(Received(Incarnation(config.granter), wish))

        if not left:
            done()
        for store in list(left):
            spec = {
                "root": self._config.root, "host": self._config.host, "store": store, "deep": self._rebooted,
            }  # fmt: skip
            self._ask("survey", spec, partial(surveyed, store), SURVEY_TIMEOUT_S)

    def _quarantine(self, store: str) -> None:
        """A store that kills whoever looks at it (ST-9), or is none: out of everybody's sight, and away with
        the next round of garbage collection."""
        log.warning("store %s cannot be read and is taken out of use", store)
        with contextlib.suppress(OSError):
            (self._root / "quarantine").mkdir(exist_ok=True)
            (self._root / "stores" / store).rename(self._root / "quarantine" / store)

    def _ask(self, kind: str, spec: Spec, then: Callable[[object], None], timeout_s: float) -> None:
        """Have a disposable child look at a store: ``then`` gets the message that it wrote, or None when it
        has crashed, or hung."""
        ours, theirs = os.pipe()
        answer = bytearray()
        child: list[int] = []

        def readable() -> None:
            data = os.read(ours, 1 << 16)
            if data:
                answer.extend(data)
                return
            self._host.unwatch(ours)
            os.close(ours)
            for pid in child:
                self._probes.pop(pid, None)
            told: object = None
            with contextlib.suppress(RemoteProtocolError):  # it has crashed
                told = codec.decode(bytes(answer))
            then(told)

        def spawned(pid: int) -> None:
            child.append(pid)
            self._probes[pid] = self._clock.now_s() + timeout_s

        self._host.watch(ours, readable)
        self._children.spawn(kind, spec, stderr=self._service_log(), fds=[theirs], on_spawned=spawned)
        os.close(theirs)

    # --- After an executor's death -----------------------------------------------------------------

    def _start_probe(self, end: ChildExited) -> None:
        """Ask a disposable child for the outputs that the dead executor committed (EX-4), then tell of
        its end: its writer is reaped, so the answer is final."""

        def probed(told: object) -> None:
            outputs = told.outputs if isinstance(told, ExecutorExited) else ()  # a crash: nothing is adopted
            self._host.post(replace(end, outputs=outputs))

        spec = {"root": self._config.root, "host": self._config.host, "executor": end.executor}
        self._ask("probe", spec, probed, PROBE_TIMEOUT_S)

    def _service_log(self) -> str:
        return str(self._root / "log" / "service.stderr")

    # --- Beats, garbage ---------------------------------------------------------------------------

    def _measure(self, effect: Measure) -> None:
        now_s = self._clock.now_s()
        rows = tuple((e, pulse.busy_s(now_s), e in self._stopped) for e, pulse in self._pulses.items())
        said = tuple((e, read_beat(marks_path(self._ready_path(e)))) for e in self._pulses)
        self._host.post(ChildrenSeen(rows, shutil.disk_usage(self._root).free, said))
        self._children.check_warm()
        self._children.check_adopted()
        for pid, hangs_at_s in list(self._probes.items()):
            if now_s >= hangs_at_s:
                self._children.signal(pid, SIGKILL)
        if now_s >= self._collect_at_s:
            self._collect(now_s)

    def _drop(self, effect: DropStores) -> None:
        if effect.app is not None:  # its executors are reaped: nobody writes here any more
            for name in ("stores", "tmp"):
                shutil.rmtree(self._root / name, ignore_errors=True)
                (self._root / name).mkdir(exist_ok=True)
            return
        self._copier.drop(Fingerprint(item) for item in effect.fingerprints)
        self._dropped.update(effect.fingerprints)
        self._collect_at_s = min(self._collect_at_s, self._clock.now_s() + 1.0)  # several come together

    def _collect(self, now_s: float) -> None:
        self._collect_at_s = now_s + self._settings.gc_interval_s
        self._reader.tidy()
        if self._collecting or not any((self._root / "stores").iterdir()):
            return
        self._collecting = True
        dropped, self._dropped = self._dropped, set()

        def ended(status: int, signal: int, why: str) -> None:
            self._collecting = False
            if status or signal:
                self._dropped |= dropped  # the next round tries again

        spec = {
            "root": self._config.root,
            "live": [*self._pids, *([self._config.me] if self._copier.is_writing else [])],
            "dropped": [item.hex() for item in dropped],
        }
        self._children.spawn("collect", spec, stderr=self._service_log(), on_end=ended)

    # --- The driver's process ----------------------------------------------------------------------

    def _watch_process(self, effect: WatchProcess) -> None:
        if effect.pid <= 0 or effect.pid in self._watched:
            return
        self._watched.add(effect.pid)

        def gone() -> None:
            self._watched.discard(effect.pid)
            self._host.post(PeerGone(effect.peer, "its process has ended"))

        processes.watch_process(effect.pid, self._host.watch, self._host.unwatch, gone)
