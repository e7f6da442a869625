"""``spark://host:port``: one application's part in a cluster that runs already.

    driver ──who manages you?──> manager        (finder.py; asked again for ever, so a new one is noticed)
           ──RegisterApp──────>          ──AssignExecutors──> workers ──they start executors──┐
           <────────────────────────── hellos over TCP ────────────────────────────────────────┘

Only executors and workers are needed for jobs to go on.  A manager that dies is missed when a worker is
lost or one comes; its successor is told what this driver wants as the one before was, and by the workers
what of it is there.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from spark_ft.clock import BootClock
from spark_ft.cluster.finder import Finder, Found, cluster_token, parse_masters
from spark_ft.cluster.interface import cores_and_slots
from spark_ft.cluster.scratch import Scratch
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.ids import AppId, HostId, Incarnation
from spark_ft.protocol.effects import ResourcesGranted
from spark_ft.protocol.messages import Goodbye, RegisterApp, UnregisterApp
from spark_ft.settings import Settings
from spark_ft.transport.addresses import HOST, Addresses, refusal
from spark_ft.transport.host import Host
from spark_ft.transport.keys import Keys
from spark_ft.transport.sockets import is_private

STOP_S = 1.0  # for manager and workers to hear that it is over
POLL_S = 0.01

_PRIVATE = ("spark.authenticate.secret", "spark.ft.keys")  # not for executors


class StandaloneCluster:
    """See the module.  Raises SettingsError for a bad master or setting; ClusterError when no manager
    answers in ``spark.ft.submitTimeout``, or one of another version does (EX-11, CM-6)."""

    def __init__(self, settings: Settings, executor_env: Mapping[str, str]) -> None:
        self._settings = settings
        self._cores, self._slots = cores_and_slots(settings)
        if 0 < settings.cores_max < self._cores:
            raise SettingsError(
                f"spark.cores.max={settings.cores_max}: an executor takes {self._cores} core(s); "
                "raise it, or lower spark.executor.cores"
            )
        self.token: bytes | None = cluster_token(settings)
        self.keys = Keys.load(settings.keys)
        self.max_failures = settings.max_failures
        self.hosts: list[HostId] = []  # they are others', too
        self.executor_memory_bytes = settings.executor_memory_bytes
        self._host: Host | None = None
        self._scratch: Scratch | None = None
        self._lock = threading.Lock()
        self._stopped = False
        self._pid = os.getpid()
        self._clock = BootClock()
        self._finder = Finder(parse_masters(settings.master), cluster_token(settings), "driver", self.keys)
        try:
            self._found = self._finder.first(settings.submit_timeout_s)
            towards = _address_towards(self._found.endpoint)
            self._addresses = Addresses.of_driver(settings, towards, has_keys=self.keys is not None)
        except ClusterError:
            self._finder.stop()
            raise
        cores = min(self._found.cores, settings.cores_max or self._found.cores)
        self.expected_executors = settings.executor_instances or settings.cores_max // self._cores
        self.parallelism = max(2, cores // self._cores * self._slots)

    # --- Before the start ------------------------------------------------------------------------

    def new_app_id(self, start_ms: int) -> str:
        return f"app-{start_ms}-{os.getpid()}"  # several drivers may start in one millisecond

    def make_scratch(self, app: AppId, data: Path | None) -> Path:
        try:
            self._scratch = Scratch.create(self._settings.local_dir, app)
        except ClusterError:
            self.stop()
            raise
        return self._scratch.path

    def endpoint(self, name: str) -> str:
        port = self._settings.driver_port if name == "driver" else self._settings.driver_data_port
        return self._addresses.endpoint(port)

    def advertised(self, endpoint: str) -> str:
        return self._addresses.advertised(endpoint)

    # --- The start -------------------------------------------------------------------------------

    def start(self, host: Host, me: Incarnation, app: AppId, token: bytes, scratch: Path) -> None:
        self._host, self._app = host, app
        pairs = {key: str(value) for key, value in self._settings.extra.items() if key not in _PRIVATE}
        pairs["spark.app.id"] = app
        # A pid means something only to processes of the same machine: to those who can reach us at all.
        pid = os.getpid() if is_private(host.endpoint) else 0
        self._wish = RegisterApp(
            app, me, self.advertised(host.endpoint), pid, self.expected_executors, self._slots,
            self.executor_memory_bytes, pairs, self._cores,
        )  # fmt: skip
        self._register(self._found)
        self._finder.on_found = self._moved
        latest = self._finder.found
        if latest is not None and latest.epoch > self._found.epoch:  # it came while we were starting
            self._moved(latest)

    def _register(self, found: Found) -> None:
        assert self._host is not None
        self._found = found
        self._host.connect(found.manager, found.endpoint)
        self._host.send(found.manager, self._wish)
        self._host.post(ResourcesGranted(self.expected_executors, found.manager))

    def _moved(self, found: Found) -> None:
        """Another manager is active.  In the finder's thread."""
        host = self._host
        assert host is not None

        def register() -> None:
            assert host is not None
            if not self._stopped and found.epoch > self._found.epoch:
                host.close_peer(self._found.manager)
                self._register(found)

        host.call(register)

    def wait_until_up(self) -> None:
        """Nothing to wait for: jobs wait for executors by themselves."""

    def end_worker(self, worker: Incarnation) -> None:
        """Nothing: whoever keeps that worker running sees to its end, and it fences itself."""

    # --- The end ---------------------------------------------------------------------------------

    def stop(self) -> None:
        with self._lock:
            if self._stopped or os.getpid() != self._pid:
                return
            self._stopped = True
        self._finder.stop()
        host = self._host
        if host is None:
            return
        farewell: list[Incarnation] = []

        def say_goodbye() -> None:
            """To workers too: the manager may be down, and their executors are not to wait for it."""
            manager = self._found.manager
            workers = [peer for peer in host.peers() if peer.startswith("worker-")]
            for peer in workers:
                host.send(peer, Goodbye("the application has ended"))
            host.send(manager, UnregisterApp(self._app))
            farewell.extend([manager, *workers])

        host.call(say_goodbye)
        pause, until_s = threading.Event(), self._clock.now_s() + STOP_S
        while self._clock.now_s() < until_s and (not farewell or any(map(host.unacked, farewell))):
            pause.wait(POLL_S)

    def remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.remove()


def _address_towards(endpoint: str) -> str:
    """The address of this machine from which that one is reached.  Raises ClusterError (BAD_BIND_ADDRESS)."""
    name, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((name, int(port)))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        why = f"cannot tell by which address {endpoint} would find this machine: {error}; say it"
        raise refusal(HOST, "", why) from error
