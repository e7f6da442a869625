"""A worker process: WorkerCore in its host, its children, the block server of its host's stores.

    fork the warm process ─> read the configuration ─> serve blocks ─> take over what is here ─> run the loop

What touches another process's store, which its death may have damaged, or what only cleans up, runs in
disposable children of the warm process (disposable.py).  A crash there means "no outputs", "damaged", or
"later", never the end of the worker.

As a child of a driver it serves one application; as a daemon (``spark-ft worker``) it offers its host to
whoever manages the cluster, for all applications there.
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
from math import inf
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from spark_ft import failpoints
from spark_ft.clock import BootClock
from spark_ft.cluster import drivers, processes
from spark_ft.cluster.configuration import WorkerConfig, read_config
from spark_ft.cluster.copier import Copier
from spark_ft.cluster.disposable import Examiner, collect, examine, probe, survey
from spark_ft.cluster.finder import Finder
from spark_ft.cluster.holding import Found, Holding, Holdings, applications_in, quarantine, service_log
from spark_ft.cluster.oom import OomCounters
from spark_ft.cluster.processes import STATUS_UNKNOWN, Children, Spec
from spark_ft.cluster.procfs import Pulse, record_self, recorded
from spark_ft.cluster.scratch import Scratch, collect_leftovers, hold_root
from spark_ft.cluster.worker import SIGKILL, WorkerCore
from spark_ft.errors import ClusterError, RemoteProtocolError
from spark_ft.executor import main as executor_main
from spark_ft.executor import stacks
from spark_ft.executor.slots import marks_path, read_beat, read_marks, touched_path
from spark_ft.ids import AppId, Fingerprint, HostId, Incarnation
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
    RunDriver,
    SpawnExecutor,
    StacksDumped,
    WatchProcess,
)
from spark_ft.protocol.messages import (
    AssignExecutors,
    ExecutorExited,
    SegmentTouched,
    StoresServed,
)
from spark_ft.settings import Settings
from spark_ft.storage import touched
from spark_ft.storage.blocks import StoreReader, serve
from spark_ft.transport.blocks import BlockServer
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys
from spark_ft.transport.sockets import advertised

EXIT_CANNOT_START = 78
PROBE_TIMEOUT_S = 10.0
PATIENCE_S = 5.0  # for the end of a worker whose driver has ended, or has been fenced
SURVEY_TIMEOUT_S = 60.0  # after a reboot every byte is read

log = get_logger(__name__)


# --- What the warm process forks ------------------------------------------------------------------------


def _executor(spec: Spec, fds: Sequence[int]) -> int:
    """An executor; whoever comes after its worker must find it, so it writes itself down first."""
    record_self(Path(spec["root"]) / "run" / spec["me"], spec["driver"])
    return executor_main.run(spec, fds, processes.watch_process)


ENTRIES: Mapping[str, processes.Entry] = {
    "executor": _executor,
    "driver": drivers.enter,
    "probe": probe,
    "survey": survey,
    "examine": examine,
    "collect": collect,
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
    try:
        worker = _Worker(config, children)
    except ClusterError as error:  # an address or a directory that is taken
        log.error("cannot start: %s", error)
        children.close(0.0)
        processes.exit_now(EXIT_CANNOT_START)
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
        self._asked_to_leave = False
        self._lines = b""  # of our stdin, the last one unfinished
        self._is_daemon = not config.parent_pid
        self._root = Path(config.root)
        self._root.mkdir(parents=True, exist_ok=True)
        if self._is_daemon:
            processes.no_stdin()
        else:
            self._scratch = Scratch.join(Path(config.scratch))
        (self._root / "serving").mkdir(exist_ok=True)
        record_self(self._root / "serving" / config.me, config.granter)
        self._rebooted = hold_root(self._root, Incarnation(config.me), PATIENCE_S if config.is_kept else 0.0)
        self._died_in = touched.read(self._root / "touched")  # the worker before us, with whom it ended
        touched.publish(self._root / "touched")
        me, granter = Incarnation(config.me), Incarnation(config.granter)
        host = self._host_id = HostId(config.host)
        self._token = token = bytes.fromhex(config.token)
        self._keys = keys = Keys(*config.keys) if config.keys else None
        self._holdings = holdings = Holdings(self._root, self._is_daemon, self._make_copier)
        self._reader = StoreReader(holdings.roots)
        self._server = BlockServer(config.data_endpoint, token, serve(self._reader, holdings.place), keys)
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
            data_endpoint=self._advertised(),
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
            keys=keys,
            peer_gone_s=settings.driver_grace_s if self._is_daemon else inf,
        )
        log_path = str(self._root / "service.stderr")
        self._examine = Examiner(children, self._host_of_root, self._probes, log_path)
        if not self._is_daemon:
            self._holdings.hold(AppId(""))
            self._host.connect(granter, config.granter_endpoint)
        self._drivers = drivers.Drivers(self._root, children, self._host)
        self._actions: dict[type, Callable[[Any], None]] = {
            RunDriver: lambda effect: self._drivers.run(effect.submitted),
            SpawnExecutor: self._spawn,
            KillProcess: self._kill,
            AskStacks: self._ask_stacks,
            DropStores: self._drop,
            Copy: self._copy,
            Forget: self._forget,
            Measure: self._measure,
            Connect: lambda effect: self._host.connect(effect.to, effect.endpoint),
            WatchProcess: self._watch_process,
            Note: lambda note: log.info("%s %s", note.kind, dict(note.fields)),
            Exit: lambda effect: self._end(effect.status, effect.why),
        }

    def _advertised(self) -> str:
        """Where others find our block server."""
        endpoint, address = self._server.endpoint, self._config.data_address
        if address:
            return f"tcp://{address}:{endpoint.rpartition(':')[2]}"
        return advertised(endpoint, self._settings.advertise_directory)

    def serve(self) -> NoReturn:
        host = self._host
        self._children.attach(host.watch, host.unwatch)
        self._take_over()
        processes.on_terminate(lambda: host.call(self._terminated), interrupt=self._is_daemon)
        if self._is_daemon:
            self._find_managers()
        else:
            self._obey_parent(self._config.parent_pid)
        host.run()
        self._end(0, "the loop has ended")

    def _obey_parent(self, parent: int) -> None:
        host = self._host

        def gone() -> NoReturn:
            self._end(0, "the parent is gone")

        host.watch(0, self._stdin)
        if os.getppid() != parent:
            gone()
        processes.watch_process(parent, host.watch, host.unwatch, gone)
        threading.Thread(target=collect_leftovers, args=(self._scratch.path.parent,), daemon=True).start()

    def _find_managers(self) -> None:
        """Register with whoever is active, now and whenever that changes."""
        host, config = self._host, self._config
        log.info(
            "worker %s (%s): %d cores, %d MiB; stores below %s, served at %s", config.me, config.host,
            config.cores, config.memory_bytes >> 20, config.root, self._advertised(),
        )  # fmt: skip

        def refused(why: str) -> None:
            host.call(lambda: self._end(EXIT_CANNOT_START, f"no manager will have us: {why}"))

        Finder(
            tuple(config.masters),
            self._token,
            "worker",
            self._keys,
            lambda found: host.post(GranterMoved(found.manager, found.endpoint)),
            refused,
        )

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
        is_at_end = not self._is_daemon and processes.is_at_end(0)
        if self._asked_to_leave or not self._settings.decommission or is_at_end:
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
        holding = self._holdings.hold(wanted.app)
        self._holdings.assign(holding, executor, wanted.driver)
        roots = self._config.roots
        if self._is_daemon:  # other applications' stores are nothing to it
            roots = {self._config.host: str(holding.root)}
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
            "root": str(holding.root),
            "roots": roots,
            "token": self._config.token,
            "keys": self._config.keys,
            "ready": str(holding.ready_path(executor)),
        }
        self._children.spawn(
            "executor",
            spec,
            stderr=str(holding.log_path(executor)),
            stdout=str(holding.log_path(executor, "stdout")) if self._is_daemon else "",
            on_spawned=partial(self._spawned, executor),
            on_end=partial(self._exited, executor),
            on_stopped=partial(self._was_stopped, executor),
        )

    def _make_copier(self, mark: str, root: Path) -> Copier:
        settings, post, writer = self._settings, self._host.post, Incarnation(f"{self._config.me}{mark}")
        return Copier(writer, self._host_id, root, self._token, settings, post, self._keys)

    def _host_of_root(self, root: Path) -> HostId | None:
        """Whose directory it is: ours, or that of the driver beside us."""
        if root in self._holdings.roots.values():
            return self._host_id
        return next((HostId(h) for h, path in self._config.roots.items() if Path(path) == root), None)

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
        holding = self._holdings.of.pop(executor)
        ready = holding.ready_path(executor)
        (holding.root / "run" / executor).unlink(missing_ok=True)
        registered = ready.exists()
        ready.unlink(missing_ok=True)
        marks = marks_path(ready)
        running = read_marks(marks)
        marks.unlink(missing_ok=True)
        stacks.stacks_path(ready).unlink(missing_ok=True)
        words = why or processes.tail(holding.log_path(executor))
        oom = self._ooms.told_of_a_kill() and signal == SIGKILL
        peak_bytes = self._children.rss_peak_bytes
        end = ChildExited(executor, status, signal, words, (), registered, running, oom, peak_bytes)
        inside = touched_path(ready)
        doubted = touched.read(inside) if signal in touched.FAULTS or status == STATUS_UNKNOWN else []
        inside.unlink(missing_ok=True)
        self._examine(doubted, lambda found: self._start_probe(holding, replace(end, touched=found)))

    def _kill(self, effect: KillProcess) -> None:
        pid = self._pids.get(effect.executor)
        if pid is not None:
            self._children.signal(pid, effect.signal)

    def _ask_stacks(self, effect: AskStacks) -> None:
        def answer(text: str) -> None:
            self._host.post(StacksDumped(effect.executor, text))

        holding = self._holdings.of.get(effect.executor)
        if holding is None:
            answer("")  # it has ended
            return
        path = stacks.stacks_path(holding.ready_path(effect.executor))
        stacks.ask(self._pids.get(effect.executor, -1), path, answer)

    # --- What was here before us ---------------------------------------------------------------------

    def _take_over(self) -> None:
        """Adopt the executors that outlived the worker before us, have what it died in examined, and every
        store that has lost its writer surveyed; only then anybody hears of us (WK-1, WK-3)."""
        for app in applications_in(self._root) if self._is_daemon else ():
            self._holdings.hold(app)
        found: dict[Holding, Found] = {}
        left: list[tuple[Holding, str]] = []
        for holding in self._holdings:
            found[holding] = Found(self._adopt(holding))
            for name in holding.stores():
                if name in self._pids:
                    found[holding].whole.append(name)
                else:
                    left.append((holding, name))

        def surveyed(item: tuple[Holding, str], told: object) -> None:
            left.remove(item)
            if isinstance(told, StoresServed):
                found[item[0]].outputs.extend(told.outputs)
                found[item[0]].names.extend(told.names)
                found[item[0]].whole.append(item[1])
            else:
                quarantine(*item)
            if not left:
                self._looked(found)

        def look(_: tuple[SegmentTouched, ...]) -> None:
            if not left:
                self._looked(found)
            for item in list(left):
                root, host = str(item[0].root), self._host_id
                spec = {"root": root, "host": host, "store": item[1], "deep": self._rebooted}
                self._ask("survey", spec, item[0], partial(surveyed, item), SURVEY_TIMEOUT_S)

        self._examine(self._left_in(), look)

    def _looked(self, found: dict[Holding, Found]) -> None:
        """All is known that was here."""
        folders = [self._root / "serving", *(holding.root / "run" for holding in found)]
        for path in (path for folder in folders for path in folder.iterdir()):
            if path.name.partition(".")[0] not in (*self._pids, self._config.me):
                path.unlink(missing_ok=True)  # of those that have not lived to see us
        for holding, here in found.items():
            self._host.post(here.told(holding.app if self._is_daemon else None, more=self._is_daemon))
        if self._is_daemon:
            self._drivers.adopt()
            self._host.post(Inherited())
        config = self._config
        if config.assignment is not None:  # local[n]: the driver's wish comes with the configuration
            self._host.post(Received(Incarnation(config.granter), AssignExecutors(**config.assignment)))

    def _left_in(self) -> list[Path]:
        """What the worker before us, and executors that have not lived to see us, were in the middle of."""
        found = list(self._died_in)
        for holding in self._holdings:
            for path in (holding.root / "run").glob("*.touched"):
                found += touched.read(path) if path.stem not in self._pids else []
        return found

    def _adopt(self, holding: Holding) -> list[tuple[Incarnation, Incarnation]]:
        """Executors of this application that live, with their drivers."""
        heirlooms = []
        for process in recorded(holding.root / "run"):
            executor, driver = Incarnation(process.name), Incarnation(process.driver)
            if self._children.adopt(
                process, partial(self._exited, executor), partial(self._was_stopped, executor)
            ):
                self._pids[executor] = process.pid
                self._pulses[executor] = Pulse(process.pid, self._clock.now_s())
                self._holdings.assign(holding, executor, driver)
                heirlooms.append((executor, driver))
        return heirlooms

    def _ask(
        self, kind: str, spec: Spec, holding: Holding, then: Callable[[object], None], timeout_s: float
    ) -> None:
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
        self._children.spawn(kind, spec, stderr=service_log(holding), fds=[theirs], on_spawned=spawned)
        os.close(theirs)

    # --- After an executor's death -----------------------------------------------------------------

    def _start_probe(self, holding: Holding, end: ChildExited) -> None:
        """Ask a disposable child for the outputs that the dead executor committed (EX-4), then tell of
        its end: its writer is reaped, so the answer is final."""
        if not any((holding.root / part / end.executor).is_dir() for part in ("stores", "tmp")):
            self._host.post(end)
            return

        def probed(told: object) -> None:
            outputs = told.outputs if isinstance(told, ExecutorExited) else ()  # a crash: nothing is adopted
            self._host.post(replace(end, outputs=outputs))

        spec = {"root": str(holding.root), "host": self._host_id, "executor": end.executor}
        self._ask("probe", spec, holding, probed, PROBE_TIMEOUT_S)

    # --- Beats, garbage ---------------------------------------------------------------------------

    def _measure(self, effect: Measure) -> None:
        now_s = self._clock.now_s()
        rows = tuple((e, pulse.busy_s(now_s), e in self._stopped) for e, pulse in self._pulses.items())
        said = tuple((e, read_beat(marks_path(self._holdings.of[e].ready_path(e)))) for e in self._pulses)
        self._host.post(ChildrenSeen(rows, shutil.disk_usage(self._root).free, said))
        self._children.check_warm()
        self._children.check_adopted()
        for pid, hangs_at_s in list(self._probes.items()):
            if now_s >= hangs_at_s:
                self._children.signal(pid, SIGKILL)
        for holding in self._holdings:
            holding.collect_at_s = min(holding.collect_at_s, now_s + self._settings.gc_interval_s)
            if now_s >= holding.collect_at_s:
                self._collect(holding, now_s)

    def _copy(self, effect: Copy) -> None:
        if (holding := self._holdings.of_driver(effect.owner)) is not None:
            holding.copier.copy(effect)

    def _forget(self, effect: Forget) -> None:
        if (holding := self._holdings.of_driver(effect.owner)) is not None:
            holding.copier.forget(effect.nodes, effect.copies)

    def _drop(self, effect: DropStores) -> None:
        if effect.app is not None:  # its executors are reaped: nobody writes there any more
            self._holdings.drop(effect.app)
        elif (holding := self._holdings.of_driver(effect.owner)) is not None:
            holding.copier.drop(Fingerprint(item) for item in effect.fingerprints)
            holding.dropped.update(effect.fingerprints)
            # Several come together.
            holding.collect_at_s = min(holding.collect_at_s, self._clock.now_s() + 1.0)

    def _collect(self, holding: Holding, now_s: float) -> None:
        holding.collect_at_s = now_s + self._settings.gc_interval_s
        self._reader.tidy()
        if holding.collecting or not holding.stores():
            return
        holding.collecting = True
        dropped, holding.dropped = holding.dropped, set()

        def ended(status: int, signal: int, why: str) -> None:
            holding.collecting = False
            if status or signal:
                holding.dropped |= dropped  # the next round tries again

        spec = {
            "root": str(holding.root),
            "live": [*self._pids, *([holding.copier.me] if holding.copier.is_writing else [])],
            "dropped": [item.hex() for item in dropped],
        }
        self._children.spawn("collect", spec, stderr=service_log(holding), on_end=ended)

    # --- The driver's process ----------------------------------------------------------------------

    def _watch_process(self, effect: WatchProcess) -> None:
        if effect.pid <= 0 or effect.pid in self._watched:
            return
        self._watched.add(effect.pid)

        def gone() -> None:
            self._watched.discard(effect.pid)
            self._host.post(PeerGone(effect.peer, "its process has ended"))

        processes.watch_process(effect.pid, self._host.watch, self._host.unwatch, gone)
