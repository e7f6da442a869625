"""The only door to ZeroMQ: a handful of sockets with every option argued, and a way to wait for them.

One *net* is one ZeroMQ context and its sockets, owned by one host, block server or fetch.  Several
contexts in a process cost two idle threads each and buy two things: the end of a net is complete
(``close`` returns when its descriptors are closed and its ipc files unlinked, which sharing a context
would leave to some later moment), and control frames never queue behind data in an I/O thread.

Options:

linger 0            what must arrive is acknowledged by the link above; a socket never delays an exit
                    (a host that has nothing unacknowledged left gives its last word a blink).
ROUTER_MANDATORY    an unreachable peer is an answer, not a silent drop.
ROUTER_HANDOVER on  no identity is ever used by two processes, but one process may *reconnect* before
                    we have noticed that its old connection is dead; without handover it would be
                    ignored from then on (libzmq #778).
HWM                 control: 2048 frames a peer each way, twice the link's window, so in peace it is
                    never met; when it is met (a stopped peer, to whom everything is sent again and
                    again), the frame counts as lost and the link repairs that.  Never blocks.
                    Data: unlimited, as credit bounds what is under way.
ZMTP heartbeats     on TCP every 2 s, given up after 10 s: half-open connections end (NET-5).
MAXMSGSIZE          a peer that announces more loses its connection before we allocate anything.
No IPv6.            Without keys (keys.py) no address but loopback; with them every socket that is bound
                    lets in only who holds the same, which a thread of the net decides (ZAP).

After a fork the child forgets every net it inherited without closing it (the I/O threads do not
exist there, the sockets are the parent's): using one in the child raises ClusterError, closing it
does nothing (ST-12).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from pathlib import Path

import zmq
from zmq.utils import z85

from spark_ft.errors import ClusterError
from spark_ft.transport.keys import Keys

_IPC_PATH_MAX_BYTES = 107
_CONTROL_HWM = 2048
_RECONNECT_MS, _RECONNECT_MAX_MS = 50, 1000
_BLINK_MS = 20

# As plain integers: an enumeration's operators cost more than the calls they go into.
_DONTWAIT, _MORE, _POLLIN = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.POLLIN)

SENT, UNREACHABLE, FULL = "", "unreachable", "full"  # what became of a frame


def endpoint_in(directory: Path, name: str) -> str:
    """Where to bind: ``ipc://directory/name``, or loopback TCP when that path is too long."""
    path = str(directory / name)
    return f"ipc://{path}" if len(os.fsencode(path)) <= _IPC_PATH_MAX_BYTES else "tcp://127.0.0.1:*"


def advertised(endpoint: str, directory: str) -> str:
    """What others are told of a socket bound at ``endpoint``: the same name in ``directory``, if one is
    set.  Whoever sets it sees to it that what is there leads here: a proxy, or the same directory as
    another container sees it."""
    if not directory or not endpoint.startswith("ipc://"):
        return endpoint
    return f"ipc://{directory}/{endpoint.rpartition('/')[2]}"


def is_private(endpoint: str) -> bool:
    """Whether only processes of this machine can reach a socket that is bound there."""
    return endpoint.startswith("ipc://") or re.match(r"tcp://127\.\d+\.\d+\.\d+:", endpoint) is not None


class Net:
    """A ZeroMQ context and its sockets; to be used by one thread at a time."""

    def __init__(self, keys: Keys | None = None) -> None:
        self.forked = False
        self._context = zmq.Context()
        self._keys = keys
        self._door: _Door | None = None  # who may come in; needed where something is bound
        self._sockets: set[Socket] = set()
        self._files: list[tuple[str, int]] = []  # paths of ipc sockets bound here, with their inodes
        _nets.add(self)

    def router(self, endpoint: str, max_bytes: int, *, hwm: int = _CONTROL_HWM) -> Socket:
        """Bind at ``endpoint`` (tcp ports may be ``*``).  ClusterError (BAD_BIND_ADDRESS) if that fails."""
        if self._keys is None and not is_private(endpoint):
            raise ClusterError(
                f"{endpoint}: other machines can reach it, which takes keys: `spark-ft keys DIRECTORY` makes "
                "them, and spark.ft.keys says where they are",
                "BAD_BIND_ADDRESS",
            )
        socket = self._socket(zmq.ROUTER, endpoint, max_bytes, hwm)
        if self._keys is not None:
            self._door = self._door or _Door(self._context, self._keys)
            socket.raw.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            socket.raw.setsockopt(zmq.CURVE_SERVER, 1)
        socket.raw.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.raw.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            socket.raw.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise ClusterError(f"cannot bind {endpoint}: {error}", "BAD_BIND_ADDRESS") from error
        socket.endpoint = socket.raw.getsockopt_string(zmq.LAST_ENDPOINT)
        if endpoint.startswith("ipc://"):
            self._files.append(_file(endpoint))
        return socket

    def dealer(
        self,
        identity: str,
        endpoint: str,
        max_bytes: int,
        *,
        hwm: int = _CONTROL_HWM,
        monitored: bool = False,
    ) -> Socket:
        """Connect to ``endpoint``, now or whenever somebody listens there.  No ``identity``: the router
        draws one for each connection."""
        socket = self._socket(zmq.DEALER, endpoint, max_bytes, hwm)
        try:
            if self._keys is not None:
                public = self._keys.public.encode()
                socket.raw.setsockopt(zmq.CURVE_SERVERKEY, public)
                socket.raw.setsockopt(zmq.CURVE_PUBLICKEY, public)
                socket.raw.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            if identity:
                socket.raw.setsockopt(zmq.ROUTING_ID, identity.encode("ascii"))
            if monitored:
                events = zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED
                monitor = socket.raw.get_monitor_socket(events)
                monitor.setsockopt(zmq.LINGER, 0)
                socket.monitor = Socket(self, monitor, endpoint)
            socket.raw.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise ClusterError(f"cannot connect to {endpoint}: {error}") from error
        return socket

    def _socket(self, kind: int, endpoint: str, max_bytes: int, hwm: int) -> Socket:
        if self.forked:
            raise ClusterError("this process was forked from the owner of the socket")
        try:
            raw: zmq.Socket[bytes] = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise ClusterError(f"no more sockets: {error}", "TOO_MANY_FILES") from error
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        raw.setsockopt(zmq.SNDHWM, hwm)
        raw.setsockopt(zmq.RCVHWM, hwm)
        raw.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        raw.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        if endpoint.startswith("tcp://"):
            raw.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
            raw.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
            raw.setsockopt(zmq.HEARTBEAT_TTL, 10_000)
        socket = Socket(self, raw, endpoint)
        self._sockets.add(socket)
        return socket

    def forget(self, socket: Socket) -> None:
        self._sockets.discard(socket)

    def close(self, *, last_word: bool = False) -> None:
        """Close everything; returns when it is closed.  ``last_word``: what was just sent may still go."""
        if self.forked:
            return
        for path, inode in self._files:  # ZeroMQ leaves them; a successor's at the same path is not ours
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._files.clear()
        for socket in list(self._sockets):
            if last_word:
                socket.raw.setsockopt(zmq.LINGER, _BLINK_MS)
            socket.close()
        self._context.term()
        _nets.discard(self)

    def _disown(self) -> None:
        self.forked = True
        # Kept for ever: their destructors would close what belongs to the parent.
        _inherited.append((self._context, self._door, [socket.raw for socket in self._sockets]))


class _Door:
    """Answers for one context who may come in: whoever proved that it holds the cluster's secret key.

    ZeroMQ asks through a socket inside the process (ZAP, RFC 27), from its own thread, and lets nobody in
    who is not answered for; so there is one from before the first bind until the context ends.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> None:
        self._own = z85.decode(keys.public)
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        threading.Thread(target=self._run, name="spark-ft-door", daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                version, request, _domain, _address, _identity, mechanism, *proof = (
                    self._socket.recv_multipart()
                )
                known = mechanism == b"CURVE" and proof == [self._own]
                verdict = (b"200", b"OK") if known else (b"400", b"not of this cluster")
                self._socket.send_multipart([version, request, *verdict, b"", b""])
        except zmq.ContextTerminated:
            self._socket.close()  # which the end of the context waits for


def _file(endpoint: str) -> tuple[str, int]:
    path = endpoint.removeprefix("ipc://")
    return path, os.stat(path).st_ino


class Socket:
    """A ROUTER or a DEALER that never blocks.  ``endpoint`` is where it is bound, or connected to."""

    def __init__(self, net: Net, raw: zmq.Socket[bytes], endpoint: str) -> None:
        self._net = net
        self.raw = raw
        self.endpoint = endpoint
        self.monitor: Socket | None = None  # tells what becomes of the connection: ``connection_event``

    def send(self, *parts: bytes | memoryview) -> str:
        """SENT, or why it was not: UNREACHABLE (a ROUTER knows no such peer) or FULL."""
        if self._net.forked:
            raise ClusterError("this process was forked from the owner of the socket")
        try:
            for part in parts[:-1]:
                self.raw.send(part, _MORE)
            self.raw.send(parts[-1], _DONTWAIT)
        except zmq.Again:
            return FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return UNREACHABLE
            raise ClusterError(f"sending through {self.endpoint}: {error}") from error
        return SENT

    def receive(self) -> list[bytes] | None:
        """The parts of the next message, or None when there is none."""
        if self._net.forked:
            raise ClusterError("this process was forked from the owner of the socket")
        try:
            if not int(self.raw.get(zmq.EVENTS)) & _POLLIN:
                return None  # asking first is cheaper than the exception
            return self.raw.recv_multipart(_DONTWAIT)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            raise ClusterError(f"receiving from {self.endpoint}: {error}") from error

    def close(self) -> None:
        if not self._net.forked:
            self._net.forget(self)
            if self.monitor is not None:
                self.raw.disable_monitor()
                self.monitor.close()
            self.raw.close()


def connection_event(parts: list[bytes]) -> str:
    """What a monitor's message says: ``up``, ``refused`` (nobody listens; tried again) or ``down``."""
    number = int.from_bytes(parts[0][:2], sys.byteorder)
    if number == zmq.EVENT_CONNECTED:
        return "up"
    return "refused" if number == zmq.EVENT_CONNECT_RETRIED else "down"


class Waiter:
    """Waits for any of several sockets and file descriptors to have something to read."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._sockets: dict[zmq.Socket[bytes], Socket] = {}

    def add(self, source: Socket | int) -> None:
        if isinstance(source, Socket):
            self._sockets[source.raw] = source
            self._poller.register(source.raw, zmq.POLLIN)
        else:
            self._poller.register(source, zmq.POLLIN)

    def remove(self, source: Socket | int) -> None:
        raw = source.raw if isinstance(source, Socket) else source
        if isinstance(source, Socket):
            self._sockets.pop(source.raw, None)
        try:
            self._poller.unregister(raw)
        except KeyError:
            return  # was never added, or is removed already

    def wait(self, timeout_s: float | None) -> list[Socket | int]:
        """The sources that can be read, after at most ``timeout_s``; rounded up to milliseconds."""
        timeout_ms = None if timeout_s is None else int(timeout_s * 1000 + 0.999)
        try:
            ready = self._poller.poll(timeout_ms)
        except zmq.ZMQError as error:
            raise ClusterError(f"waiting for sockets: {error}") from error
        return [self._sockets[raw] if isinstance(raw, zmq.Socket) else raw for raw, _ in ready]


class Bell:
    """Wakes a waiting thread from any other; ringing twice before it is heard is ringing once."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.fd = self._in = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # not Linux
            self.fd, self._in = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._in, False)

        self._lock = threading.Lock()  # a descriptor that is being closed must not be written to

    def ring(self) -> None:
        with self._lock:
            try:
                if self._in >= 0:
                    os.write(self._in, (1).to_bytes(8, sys.byteorder))
            except BlockingIOError:
                return  # full: it rings already

    def hush(self) -> None:
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        with self._lock:
            for fd in {self.fd, self._in} - {-1}:
                os.close(fd)
            self.fd = self._in = -1


_nets: set[Net] = set()  # a net lives until it is closed: the collector must never wait for ZeroMQ
_inherited: list[object] = []


def _after_fork() -> None:
    for net in _nets:
        net._disown()
    _nets.clear()


os.register_at_fork(after_in_child=_after_fork)
