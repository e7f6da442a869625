"""Clusters of one machine, owned by the driver: ``local[n]`` and ``local-cluster[w,c,m]``.

    local[n]               driver ──starts──> worker: n executors       (the driver grants by itself)
    local-cluster[w,c,m]   driver ──starts──> manager, w workers: c executors of m/c MiB each

A worker is a "host" of its own (host-0 …) with its own stores.  Every process that is started here ends
when its stdin does, which the kernel sees to however the driver ends.  A manager that dies is replaced, and
told by the workers what the one before had granted.  A worker that dies, or was given up,
is replaced under a new incarnation on the same host, which adopts the executors that outlived it and serves
the outputs that lie there.  That never ends: one that dies young again and again only comes ever later.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from spark_ft.clock import BootClock
from spark_ft.cluster.configuration import ManagerConfig, WorkerConfig
from spark_ft.cluster.interface import cores_and_slots
from spark_ft.cluster.processes import Interpreter, StopWatching, watch_process
from spark_ft.cluster.scratch import Scratch
from spark_ft.cluster.worker import EXIT_LEFT, SIGKILL
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.ids import DRIVER_HOST, AppId, HostId, Incarnation, new_incarnation
from spark_ft.log import get_logger
from spark_ft.protocol.effects import PeerGone, Received, ResourcesGranted
from spark_ft.protocol.messages import AssignExecutors, ExecutorsUnavailable, RegisterApp
from spark_ft.settings import Settings, environment
from spark_ft.transport.addresses import Addresses
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys
from spark_ft.transport.sockets import advertised

MEMORY_MIN_BYTES = 64 << 20  # of an executor that shares what the driver was given
STOP_S = 1.0  # from asking to SIGKILL
SHORT_LIFE_S = 5.0  # a worker that dies sooner counts as a failed start …
FAILED_STARTS_MAX = 3  # … and after so many in a row jobs without any executor are ended
BACKOFF_S, BACKOFF_MAX_S = 0.1, 5.0  # before the next start after a failed one, doubling
_OF_DRIVER = ("driver", "driver-data")  # sockets

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a master URL asks for: ``workers`` hosts of ``executors`` processes with ``slots`` tasks each."""

    workers: int
    executors: int
    slots: int
    memory_bytes: int
    managed: bool
    max_failures: int


def parse_master(settings: Settings) -> Layout:
    """``local``, ``local[n]``, ``local[*]``, ``local[n,F]``, ``local-cluster[w,c,m]``.

    Raises SettingsError (a ValueError) that names what could not be read.
    """
    master = settings.master.strip()
    local = re.fullmatch(r"local(?:\[\s*(\d+|\*)\s*(?:,\s*(\d+)\s*)?\])?", master)
    if local:
        count = len(os.sched_getaffinity(0)) if local[1] == "*" else int(local[1] or 1)
        failures = int(local[2] or 1)  # as in Spark: local[n] retries nothing that is blamed on the task
        if count and failures:
            cores, slots = cores_and_slots(settings, count)
            executors = max(1, count // cores)
            memory = settings.executor_memory_bytes
            if settings.driver_memory_bytes and "spark.executor.memory" not in settings.extra:
                memory = max(MEMORY_MIN_BYTES, settings.driver_memory_bytes // executors)
            return Layout(1, executors, slots, memory, False, failures)
    cluster = re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]", master)
    if cluster:
        workers, cores, memory_mib = map(int, cluster.groups())
        if workers and cores and memory_mib:
            each, slots = cores_and_slots(settings, cores)
            executors = max(1, cores // each)
            memory = (memory_mib << 20) // executors
            return Layout(workers, executors, slots, memory, True, settings.max_failures)
    raise SettingsError(
        f"Could not parse Master URL: '{settings.master}'; known are local, local[n], local[*], "
        "local[n,failures], local-cluster[workers,cores,memory in MiB] and spark://host:port"
    )


@dataclass(slots=True)
class _Process:
    """One process that this cluster keeps alive; ``host`` is '' for the manager."""

    host: str
    me: Incarnation
    interpreter: Interpreter
    started_s: float
    failed_starts: int = 0  # in a row, on this host
    is_heir: bool = False  # there was one before it
    has_left: bool = False  # it was asked to go, and nobody is put in its place
    unwatch: StopWatching | None = None


class LocalCluster:
    """The processes of one application.  Starts interpreters at once, so that they come up while the
    driver makes its own things; ``start`` tells them whom they work for.

    Raises SettingsError for a bad master, ClusterError when processes cannot be started, and
    (BAD_BIND_ADDRESS) for an address that the driver cannot have.
    """

    def __init__(self, settings: Settings, executor_env: Mapping[str, str]) -> None:
        self.layout = parse_master(settings)
        self._addresses = Addresses.of_driver(settings)
        self.parallelism = self.layout.workers * self.layout.executors * self.layout.slots
        if self.layout.managed:
            self.parallelism = max(2, self.parallelism)
        self.max_failures = self.layout.max_failures
        self.hosts = [HostId(f"host-{number}") for number in range(self.layout.workers)]
        self.executor_memory_bytes = self.layout.memory_bytes
        self.token: bytes | None = None
        self.keys = Keys.load(settings.keys)
        wanted = settings.executor_instances if self.layout.managed else 0
        total = self.layout.workers * self.layout.executors
        self.expected_executors = min(wanted or total, total)
        self._settings = settings
        self._key_pair = (self.keys.public, self.keys.secret) if self.keys else None
        self._environments = {
            "manager": {},  # it starts no executor: what the program says of their environment is not for it
            "worker": {
                "OMP_NUM_THREADS": environment("OMP_NUM_THREADS", str(self.layout.slots)),
                **allocator(self.layout.memory_bytes),
                **executor_env,
                "PYTHONHASHSEED": str(settings.hash_seed),
            },
        }
        self._clock = BootClock()
        self._lock = threading.Lock()
        self._stopping = False
        self._scratch: Scratch | None = None
        self._host: Host | None = None
        self._manager: _Process | None = None
        self._workers: list[_Process] = []
        _clusters.add(self)
        try:
            if self.layout.managed:
                self._manager = self._launch("manager", "")
            for host in self.hosts:
                self._workers.append(self._launch("worker", host))
        except OSError as error:
            self.stop()
            raise ClusterError(f"cannot start a process: {error}") from error

    def _launch(self, role: str, host: str) -> _Process:
        interpreter = Interpreter(role, self._environments[role])
        return _Process(host, new_incarnation(role), interpreter, self._clock.now_s())

    # --- Before the start ----------------------------------------------------------------------

    def new_app_id(self, start_ms: int) -> str:
        return f"app-{start_ms}" if self.layout.managed else f"local-{start_ms}"

    def make_scratch(self, app: AppId, data: Path | None) -> Path:
        """The application's directory, held until ``remove_scratch``; ``data``: where the roots of hosts lie
        instead.  Raises ClusterError."""
        try:
            self._scratch = Scratch.create(self._settings.local_dir, app)
        except ClusterError:
            self.stop()
            raise
        self._scratch.data = data or self._scratch.path
        return self._scratch.path

    def endpoint(self, name: str) -> str:
        """Where a socket of this application may be bound; the driver's where the user wants it."""
        assert self._scratch is not None, "make_scratch comes first"
        wanted = self._addresses.endpoint() if name in _OF_DRIVER else ""
        return wanted or self._scratch.endpoint(name)

    def advertised(self, endpoint: str) -> str:
        """Where others find a socket of this process that is bound there.  ClusterError (BAD_BIND_ADDRESS)
        when they do not."""
        return advertised(self._addresses.advertised(endpoint), self._settings.advertise_directory)

    # --- The start -----------------------------------------------------------------------------

    def start(self, host: Host, me: Incarnation, app: AppId, token: bytes, scratch: Path) -> None:
        """Tell the processes whom they work for.  ``host`` is the driver's and does not run yet."""
        self._host, self._me, self._app, self._token = host, me, app, token
        layout = self.layout
        self._pairs = {key: str(value) for key, value in self._settings.extra.items()}
        self._pairs["spark.app.id"] = app
        self._driver_endpoint = self.advertised(host.endpoint)
        wish = (app, me, self._driver_endpoint, os.getpid())
        each = (layout.slots, layout.memory_bytes, self._pairs)
        self._assignment = AssignExecutors(*wish, self.expected_executors, *each)
        self._wish = RegisterApp(*wish, self.expected_executors, *each)
        if self._manager is not None:
            self._manager_endpoint = self._register_with(self._manager)
            self._watch(self._manager)
        for worker in self._workers:
            self._configure(worker)
            self._watch(worker)
        manager_me = self._manager.me if self._manager is not None else None
        host.post(ResourcesGranted(self.expected_executors, manager_me))

    def _register_with(self, manager: _Process) -> str:
        """Tell a manager who it is, and ask it for executors; where others find it."""
        assert self._host is not None and self._scratch is not None
        bound = _fixed(self.endpoint("manager"))
        hosts = tuple(worker.host for worker in self._workers) if manager.is_heir else ()
        endpoint = self.advertised(bound)
        config = ManagerConfig(
            manager.me, bound, str(self._scratch.path), self._token.hex(), os.getpid(), self._pairs,
            self._key_pair, hosts=hosts,
        )  # fmt: skip
        manager.interpreter.configure(asdict(config))
        self._host.connect(manager.me, endpoint)
        self._host.send(manager.me, self._wish)
        return endpoint

    def _configure(self, worker: _Process) -> None:
        assert self._scratch is not None
        layout, managed = self.layout, self._manager
        root = self._scratch.host_root(HostId(worker.host))
        roots = {worker.host: str(root)}
        if managed is None:
            roots[DRIVER_HOST] = str(self._scratch.host_root(DRIVER_HOST))
        config = WorkerConfig(
            me=worker.me,
            host=worker.host,
            root=str(root),
            roots=roots,
            scratch=str(self._scratch.path),
            is_kept=self._scratch.data != self._scratch.path,
            token=self._token.hex(),
            granter=self._me if managed is None else managed.me,
            granter_endpoint=self._driver_endpoint if managed is None else self._manager_endpoint,
            has_manager=managed is not None,
            data_endpoint=self.endpoint(f"{worker.host}-{worker.me[-4:]}"),
            cores=layout.executors * layout.slots,
            memory_bytes=layout.executors * layout.memory_bytes,
            parent_pid=os.getpid(),
            settings=self._pairs,
            assignment=asdict(self._assignment) if managed is None else None,
            keys=self._key_pair,
        )
        worker.interpreter.configure(asdict(config))

    def wait_until_up(self) -> None:
        """Nothing to wait for: jobs wait for executors by themselves.  A process that has died already
        is told of here, because its user still stands at the very line that asked for it."""
        for process in self._processes():
            if process.interpreter.wait(0.0):
                raise ClusterError(f"{process.me} {process.interpreter.describe_end()} at its start")

    # --- Deaths, in the loop of the driver's host ------------------------------------------------

    def _watch(self, process: _Process) -> None:
        host = self._host
        assert host is not None
        pid = process.interpreter.pid
        process.unwatch = watch_process(pid, host.watch, host.unwatch, lambda: self._died(process))

    def _died(self, process: _Process) -> None:
        """A worker, or the manager, has ended unasked: tell the scheduler, and put another in its place."""
        with self._lock:
            if self._stopping:
                return
            assert self._host is not None
            process.interpreter.release()
            process.interpreter.wait(1.0)
            why = process.interpreter.describe_end()
            log.warning("%s %s", process.me, why)
            self._host.post(PeerGone(process.me, f"its process {why}"))
            if process.interpreter.status == EXIT_LEFT:
                process.has_left = True
                if not all(worker.has_left for worker in self._workers):
                    return  # it was asked to go; the last one is replaced all the same
            short = self._clock.now_s() - process.started_s < SHORT_LIFE_S
            process.failed_starts = process.failed_starts + 1 if short else 0
            if process.host and all(worker.failed_starts >= FAILED_STARTS_MAX for worker in self._workers):
                text = f"worker {why}; its words are on this process's stderr"
                self._host.post(Received(self._me, ExecutorsUnavailable(process.failed_starts, text)))
        self._replace(process)

    def _replace(self, process: _Process) -> None:
        """Start its successor: at once after one that had lived, later the more starts failed."""
        if process.failed_starts < FAILED_STARTS_MAX:
            self._succeed(process)
        else:
            self._later(process)

    def _later(self, process: _Process) -> None:
        assert self._host is not None
        call = self._host.call
        delay_s = min(BACKOFF_S * 2.0 ** min(process.failed_starts, 10), BACKOFF_MAX_S)
        timer = threading.Timer(delay_s, lambda: call(lambda: self._succeed(process)))
        timer.daemon = True
        timer.start()

    def _succeed(self, process: _Process) -> None:
        with self._lock:
            if self._stopping:
                return
            try:
                successor = self._launch("worker" if process.host else "manager", process.host)
            except OSError as error:  # no process, no descriptor to be had: later
                log.warning("cannot start a successor of %s: %s", process.me, error)
                process.failed_starts += 1
                self._later(process)
                return
            successor.failed_starts, successor.is_heir = process.failed_starts, True
            if process.host:
                self._workers[self._workers.index(process)] = successor
                self._configure(successor)
            else:
                self._succeed_manager(process, successor)
            self._watch(successor)

    def _succeed_manager(self, before: _Process, manager: _Process) -> None:
        """What runs does not need a manager; but without one workers that come later have no work."""
        assert self._host is not None
        self._manager = manager
        self._host.close_peer(before.me)
        self._manager_endpoint = self._register_with(manager)
        self._host.post(ResourcesGranted(self.expected_executors, manager.me))
        moved = {"granter": manager.me, "endpoint": self._manager_endpoint}
        for worker in self._workers:
            worker.interpreter.configure(moved)

    def end_worker(self, worker: Incarnation) -> None:
        """It was given up: end it, if it has not ended, which brings its successor.  In the host's loop."""
        for process in self._workers:
            if process.me == worker:
                process.interpreter.signal(SIGKILL)

    # --- The end -------------------------------------------------------------------------------

    def _processes(self) -> list[_Process]:
        return self._workers + ([self._manager] if self._manager is not None else [])

    def stop(self) -> None:
        """End every process: they are asked, and killed after a second.  Idempotent; in a forked child
        of the driver it does nothing."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        processes = self._processes()
        for process in processes:
            process.interpreter.terminate()
        deadline_s = self._clock.now_s() + STOP_S
        for process in processes:
            if not process.interpreter.wait(deadline_s - self._clock.now_s()):
                process.interpreter.signal(SIGKILL)
                process.interpreter.wait(STOP_S)

    def remove_scratch(self) -> None:
        """Remove the directory, and end whoever still lives off it.  After ``stop``, and after the
        driver's host has stopped."""
        for process in self._processes():
            if process.unwatch is not None:
                process.unwatch()
                process.unwatch = None
        if self._scratch is not None:
            self._scratch.remove()

    def _disown(self) -> None:
        """We are a fork of the driver's process: the cluster is the parent's.  Our copies of its pipes
        must go, or the processes would not notice their end."""
        self._lock = threading.Lock()  # another thread may have held it
        self._stopping = True
        for process in self._processes():
            process.interpreter.disown()


def allocator(memory_bytes: int) -> dict[str, str]:
    """How malloc behaves in executors: it keeps what was freed, up to a sixteenth of their memory.

    By default every batch of a megabyte is given back to the kernel and faulted in anew, which costs
    more than all checksums.  What is kept is counted against the executor's memory, so it stays small.
    """
    kept = max(1 << 20, min(64 << 20, memory_bytes // 16))
    names = {"MALLOC_TRIM_THRESHOLD_": kept, "MALLOC_MMAP_THRESHOLD_": min(32 << 20, kept)}
    return {name: environment(name, str(value)) for name, value in names.items()}


def _fixed(endpoint: str) -> str:
    """A manager's address is told to others before it is bound, so a TCP port has to be chosen for it."""
    if not endpoint.endswith(":*"):
        return endpoint
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


_clusters: weakref.WeakSet[LocalCluster] = weakref.WeakSet()


def _after_fork() -> None:
    for cluster in list(_clusters):
        cluster._disown()


os.register_at_fork(after_in_child=_after_fork)
