"""The fault proxy: a process between all sockets of one application.

    executor ── connects to ──> P/driver ══ this process ══ connects to ──> <scratch>/c/driver
                                                │ rules
                                       harness ─┘ (one JSON line in, one out)

It stands in the directory P, which the application advertises in place of its own
(``spark.ft.advertise.directory``).  As soon as a socket is bound in the scratch directory, one of the
same name listens in P.  Whoever dials it is joined with the real one, byte for byte: the handshake,
routing ids, heartbeats are those of the two ends, which are real ZeroMQ sockets and notice nothing.
Each direction is cut into messages (zmtp.py), and rules (rules.py) say what becomes of each.

Who dials is known from the kernel (SO_PEERCRED) and from the routing id: so a rule can name one
executor, all executors of one host, a role.  A worker's socket bears the end of its incarnation, by
which a host is known; an executor belongs to the host of its parent.

While a direction is held nothing of it is read, written, or noticed, not even its end: a peer that
dies behind a cut cable is not known to be dead.  What had been accepted before flows on at the heal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from chaos.nemesis import zmtp
from chaos.nemesis.rules import Judge, Rule

READ_BYTES = 1 << 18
QUEUE_ITEMS = 4096  # accepted and not delivered, a direction
REORDER_WAIT_S = 0.05  # a window that does not fill is emptied
DIAL_S = 1.0  # a socket that is bound, but not yet listened at, gets so long
PREFIX = "spark-ft-"
_IN_CREATE, _IN_MOVED_TO, _IN_DELETE = 0x100, 0x80, 0x200


class Names:
    """What processes are called."""

    def __init__(self) -> None:
        self._incarnations: dict[int, str] = {}  # pid ->
        self._hosts: dict[str, str] = {}  # end of a worker's incarnation -> host
        self._known: dict[int, tuple[str, ...]] = {}

    def learn(self, pid: int, incarnation: str) -> None:
        """A process has told its incarnation in a handshake."""
        if incarnation and self._incarnations.get(pid) != incarnation:
            self._incarnations[pid] = incarnation
            self._known.clear()

    def listener(self, socket_name: str, pid: int) -> tuple[str, ...]:
        """The process that is bound at ``socket_name``."""
        role, host = socket_name.removesuffix("-data"), ""
        if socket_name.startswith("host-"):
            host, _, end = socket_name.rpartition("-")
            role = "worker"
            if end not in self._hosts:
                self._hosts[end] = host
                self._known.clear()
        return tuple(filter(None, (role, self._incarnations.get(pid, ""), host)))

    def process(self, pid: int) -> tuple[str, ...]:
        """Role, incarnation and host of a process that has dialled, as far as they are known."""
        known = self._known.get(pid)
        if known is not None:
            return known
        incarnation = self._incarnations.get(pid, "")
        role = incarnation.partition("-")[0]
        worker = incarnation if role == "worker" else self._incarnations.get(_parent(pid), "")
        host = self._hosts.get(worker[-4:], "") if worker.startswith("worker-") else ""
        names = tuple(filter(None, (role, incarnation, host)))
        if role and (host or role in ("driver", "manager")):
            self._known[pid] = names
        return names


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", raw)[0])


class Connection:
    """One dialler joined with the socket that it wanted."""

    def __init__(self, proxy: Proxy, name: str, dialler_pid: int, listener_pid: int) -> None:
        self.proxy, self.name = proxy, name
        self.plane = "data" if name.endswith("-data") or name.startswith("host-") else "control"
        self.dialler_pid, self.listener_pid = dialler_pid, listener_pid
        self.frozen = False  # for good: half open
        self.out: Way
        self.back: Way

    @property
    def dialler(self) -> tuple[str, ...]:
        return self.proxy.names.process(self.dialler_pid)

    @property
    def listener(self) -> tuple[str, ...]:
        return self.proxy.names.listener(self.name, self.listener_pid)

    async def run(
        self,
        dialler: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        listener: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Until either end is over."""
        self.out = Way(self, dialler[0], listener[1], outward=True)
        self.back = Way(self, listener[0], dialler[1], outward=False)
        work = (self.out.read(), self.out.write(), self.back.read(), self.back.write())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in (dialler[1], listener[1]):
                writer.close()

    def abort(self) -> None:
        """Both ends see their connection reset."""
        for way in (self.out, self.back):
            way.writer.transport.abort()


class Way:
    """One direction of a connection: read and judge, then write when it is time."""

    def __init__(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        outward: bool,
    ) -> None:
        self.connection, self.reader, self.writer, self.outward = connection, reader, writer, outward
        self.proxy = connection.proxy
        self.passed = Counter[str]()
        self._cutter = zmtp.Cutter()
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_ITEMS)
        self._last_due = 0.0
        self._window: list[bytes] = []
        self._flush: asyncio.TimerHandle | None = None
        self._now = asyncio.get_running_loop().time

    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """(who sends, who receives, plane)."""
        one, other = self.connection.dialler, self.connection.listener
        return (one, other, self.connection.plane) if self.outward else (other, one, self.connection.plane)

    async def _until_open(self) -> None:
        while True:
            number = self.proxy.judge.stream("hold", *self.ends())
            if number >= 0:
                self.proxy.judge.tallies[number].touched += 1
            elif not self.connection.frozen:
                return
            await self.proxy.changed()

    async def read(self) -> None:
        while True:
            await self._until_open()
            data = await self.reader.read(READ_BYTES)
            if not data:
                break
            for unit in self._cutter.feed(data):
                await self._judge(unit)
        while not self._queue.empty() or self._window:  # what was said before the end arrives before the end
            await asyncio.sleep(0.005)

    async def _judge(self, unit: zmtp.Unit) -> None:
        judge = self.proxy.judge
        if unit.command and self.outward:
            self.proxy.names.learn(self.connection.dialler_pid, zmtp.identity(unit.command))
        if unit.parts is None or not judge.rules:
            self.passed["messages"] += unit.parts is not None
            await self._put(unit.raw)
            return
        parts = unit.parts
        number = judge.message(*self.ends(), lambda: zmtp.labels(parts), len(unit.raw))
        action = judge.rules[number].action if number >= 0 else ""
        if action == "drop":
            return
        self.passed["messages"] += 1
        if action == "delay":
            await self._put(unit.raw, judge.delay_s(number))
        elif action == "reorder":
            self._hold_back(number, unit.raw)
        elif action in ("corrupt", "truncate"):
            await self._put(zmtp.encode(judge.corrupted(number, parts)))
        else:
            for _ in range(2 if action == "duplicate" else 1):
                await self._put(unit.raw)

    async def _put(self, raw: bytes, delay_s: float = 0.0) -> None:
        """To be written after ``delay_s``, and after all that was put before: a slow line keeps its order."""
        self._last_due = max(self._last_due, self._now() + delay_s)
        await self._queue.put((self._last_due, raw))

    def _hold_back(self, number: int, raw: bytes) -> None:
        """Into the window; a full one is emptied in another order, one that does not fill after a moment."""
        self._window.append(raw)
        if self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(REORDER_WAIT_S, self._empty_window, number)
        if len(self._window) >= self.proxy.judge.rules[number].window:
            self._empty_window(number)

    def _empty_window(self, number: int) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if number < len(self.proxy.judge.rules):
            self.proxy.judge.shuffle(number, self._window)
        for raw in self._window:
            with contextlib.suppress(asyncio.QueueFull):  # then it is lost, as on a line that is too full
                self._queue.put_nowait((self._now(), raw))
        self._window.clear()

    async def write(self) -> None:
        while True:
            due, raw = await self._queue.get()
            if (wait_s := due - self._now()) > 0:
                await asyncio.sleep(wait_s)
            await self._until_open()
            await self._throttled(raw)
            self.passed["bytes"] += len(raw)

    async def _throttled(self, raw: bytes) -> None:
        """Write; under a throttle in slices of a twentieth of a second."""
        judge = self.proxy.judge
        while raw:
            number = judge.stream("throttle", *self.ends())
            piece = raw
            if number >= 0:
                piece = raw[: max(1, int(judge.rules[number].bytes_per_s / 20))]
                judge.tallies[number].touched += 1
                judge.tallies[number].touched_bytes += len(piece)
                await asyncio.sleep(0.05)
                await self._until_open()
            self.writer.write(piece)
            await self.writer.drain()
            raw = raw[len(piece) :]


class Proxy:
    """All connections of one application, under one set of rules."""

    def __init__(self, watched: Path, own: Path) -> None:
        self.names = Names()
        self.judge = Judge()
        self._watched, self._own = watched, own
        self._listeners: dict[str, tuple[asyncio.Server, Path]] = {}
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()
        self._inotify = _Inotify()

    async def serve(self, control: Path) -> None:
        """Until stdin ends."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        following = asyncio.create_task(self._follow_sockets())
        following.add_done_callback(_died)
        await asyncio.start_unix_server(self._command, str(control))
        await ended.wait()
        os._exit(0)  # whatever still hangs on us ends with us

    async def changed(self) -> None:
        """Until the rules are others."""
        await self._changed.wait()

    # --- Sockets that come and go ---

    async def _follow_sockets(self) -> None:
        loop = asyncio.get_running_loop()
        bell = asyncio.Event()
        self._inotify.watch(self._watched)
        loop.add_reader(self._inotify.fd, bell.set)
        while True:
            bell.clear()
            self._inotify.drain()
            await self._look()
            await bell.wait()

    async def _look(self) -> None:
        there: dict[str, Path] = {}
        for scratch in sorted(self._watched.glob(f"{PREFIX}*"), key=_age):
            sockets = scratch / "c"
            self._inotify.watch(sockets)
            with contextlib.suppress(OSError):
                there |= {path.name: path for path in sockets.iterdir() if path.is_socket()}
        for name, (server, path) in list(self._listeners.items()):
            if there.get(name) != path:
                self._unlisten(name, server)
        for name, path in there.items():
            if name not in self._listeners:
                self._listeners[name] = (await self._listen(name, path), path)

    async def _listen(self, name: str, path: Path) -> asyncio.Server:
        self.names.listener(name, 0)
        own = self._own / name
        own.unlink(missing_ok=True)

        async def dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._join(name, path, reader, writer)

        return await asyncio.start_unix_server(dialled, str(own), backlog=1024)

    def _unlisten(self, name: str, server: asyncio.Server) -> None:
        self._listeners.pop(name, None)
        server.close()
        (self._own / name).unlink(missing_ok=True)

    async def _join(
        self, name: str, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        until = asyncio.get_running_loop().time() + DIAL_S
        while True:
            try:
                listener = await asyncio.open_unix_connection(str(path))
                break
            except OSError:
                if not path.is_socket() or asyncio.get_running_loop().time() > until:
                    writer.transport.abort()
                    self._forget_dead(name, path)
                    return
                await asyncio.sleep(0.02)
        connection = Connection(self, name, _peer_pid(writer), _peer_pid(listener[1]))
        self._connections.add(connection)
        try:
            await connection.run((reader, writer), listener)
        finally:
            self._connections.discard(connection)

    def _forget_dead(self, name: str, path: Path) -> None:
        """Its process is gone: whoever dials from now on is refused at once, as without us."""
        known = self._listeners.get(name)
        if known is not None and known[1] == path:
            known[0].close()
            (self._own / name).unlink(missing_ok=True)

    # --- The harness ---

    async def _command(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    answer = self._obey(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _obey(self, said: dict[str, Any]) -> dict[str, Any]:
        match said["do"]:
            case "rules":
                before = self._tallies()
                self.judge = Judge([Rule.from_json(row) for row in said["rules"]])
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
                return {"before": before}
            case "tallies":
                return {"tallies": self._tallies()}
            case "reset":
                hit = [c for c in self._connections if self._concerns(c, said["source"], said["target"])]
                for connection in hit:
                    connection.abort()
                return {"reset": len(hit)}
            case "freeze":
                hit = [c for c in self._connections if self._concerns(c, said["source"], said["target"])]
                for connection in hit:
                    connection.frozen = True
                return {"frozen": len(hit)}
            case "half-close":
                ways = [
                    way
                    for c in self._connections
                    for way in (c.out, c.back)
                    if Rule("hold", said["source"], said["target"]).concerns(*way.ends())
                ]
                for way in ways:
                    with contextlib.suppress(OSError, RuntimeError):
                        way.writer.write_eof()
                return {"half_closed": len(ways)}
            case "connections":
                return {"connections": [self._describe(each) for each in self._connections]}
        raise ValueError(f"unknown command {said['do']!r}")

    def _tallies(self) -> list[dict[str, Any]]:
        return [tally.as_json() for tally in self.judge.tallies]

    def _concerns(self, connection: Connection, source: str, target: str) -> bool:
        rules = Rule("hold", source, target), Rule("hold", target, source)
        return any(rule.concerns(*connection.out.ends()) for rule in rules)

    def _describe(self, connection: Connection) -> dict[str, Any]:
        return {
            "socket": connection.name,
            "plane": connection.plane,
            "dialler": connection.dialler,
            "dialler_pid": connection.dialler_pid,
            "listener": connection.listener,
            "out": dict(connection.out.passed),
            "back": dict(connection.back.passed),
        }


def _died(task: asyncio.Task[None]) -> None:
    """Without eyes for new sockets we are no network: end loudly."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_ctime
    return 0.0


class _Inotify:
    """Tells when names appear in, or leave, directories."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def watch(self, directory: Path) -> None:
        """Again and again for the same one changes nothing; one that is gone is no error."""
        mask = _IN_CREATE | _IN_MOVED_TO | _IN_DELETE
        self._libc.inotify_add_watch(self.fd, os.fsencode(directory), mask)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 1 << 16):
                pass


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="a faulty network between the sockets of one application")
    parser.add_argument("watched", type=Path, help="spark.local.dir of the application")
    parser.add_argument("own", type=Path, help="its spark.ft.advertise.directory")
    parser.add_argument("control", type=Path, help="socket at which commands are taken")
    given = parser.parse_args(arguments)

    async def run() -> None:
        await Proxy(given.watched, given.own).serve(given.control)

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1:])
