"""The only place that starts, reaps and kills processes.

    driver ──start_interpreter──> worker ──fork, before all else──> warm process
                                    ▲                                  │ request: fork, twice
                                    └───────── reparented ───────── executor

The *warm process* has imported all that an executor needs and holds nothing that may not be forked:
no thread, no ZeroMQ context, no LMDB environment.  It forks twice, so the grandchild loses its
parent at once and falls to the worker, which is a child subreaper: executors are the worker's own
children, and the kernel tells it of their ends.  A new one is ready in tens of milliseconds.

What holds:
  * A child's number is not used again before its group has been killed: the group dies while the
    dead leader is still unreaped.  So are processes that user code left behind.
  * Every spawn is answered once by ``on_spawned`` and once by ``on_end``, in this order, or by
    ``on_end`` alone when there never was a process.
  * When the worker ends, however, the kernel closes its end of the warm process's socket, which ends that,
    and of the *lifeline* pipe, which tells executors that they are orphans (executor/main.py).  No pid is
    involved that could mean another process by then.
  * Executors write themselves down before they do anything else: whoever takes over the host finds all of
    them, and takes them on by pidfd and start time (WK-1).
  * Executors are leaders of a session of their own: Ctrl-C on the terminal does not reach them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from spark_ft.clock import BootClock
from spark_ft.cluster.procfs import Recorded, process_stat, recorded
from spark_ft.settings import child_environment

Spec = Mapping[str, Any]
Entry = Callable[[Spec, Sequence[int]], int]  # what a forked process runs: (spec, fds) -> exit status
Watch = Callable[[int, Callable[[], None]], None]  # call the function whenever the fd is readable
Unwatch = Callable[[int], None]
StopWatching = Callable[[], None]

STATUS_CANNOT_FORK = 75  # EX_TEMPFAIL: there never was a process
STATUS_UNCAUGHT = 1
STATUS_UNKNOWN = -1  # of a process that was not our child: nobody may ask how it ended

_PR_SET_CHILD_SUBREAPER = 36
_REQUEST_MAX = 192 << 10  # of one spawn request; a unix datagram's default limit is a little above
_WARM_TIMEOUT_S = 5.0  # it forks in milliseconds; one that has just been started needs a second
_EVENTS = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG
_ENDED = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)
_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); "
    "from spark_ft.cluster.main import main; main(sys.argv[1:])"
)


# --- Fresh interpreters -----------------------------------------------------------------------


class Interpreter:
    """A process of ours that runs ``spark_ft.cluster.main <role>``.  Its stdin is a pipe that this
    process alone holds: what is written is its configuration, and its end tells it to go."""

    def __init__(self, role: str, environment: Mapping[str, str]) -> None:
        # A fresh interpreter, never a fork of the caller and never multiprocessing: the caller may be
        # a script without a main guard, a notebook, or a thread.
        path = [str(entry) or os.getcwd() for entry in sys.path]
        self._popen = subprocess.Popen(
            [sys.executable or "python3", "-c", _BOOT, role, json.dumps(path)],
            stdin=subprocess.PIPE,
            env=child_environment(environment),
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def configure(self, config: Spec) -> None:
        """Hand the process its configuration, and later what changes: a line of JSON each.  A process that
        has died is told of by the kernel, not here."""
        assert self._popen.stdin is not None
        if self._popen.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps(config).encode() + b"\n")
            self._popen.stdin.flush()

    def release(self) -> None:
        """Close our end of its stdin: the process ends by itself, and its children with it."""
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()

    def terminate(self) -> None:
        """Ask it to go, also while it is still importing and reads no stdin."""
        self.release()
        self.signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended (and is reaped) within ``timeout_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(0.0, timeout_s))
        return self._popen.returncode is not None

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group, unless it is reaped already."""
        if self._popen.poll() is None:
            _signal_group(self.pid, number)

    @property
    def status(self) -> int | None:
        """How it exited; None while it runs."""
        return self._popen.poll()

    def disown(self) -> None:
        """In a forked child of ours: the process is the parent's.  Our copy of its stdin goes, or it
        would not notice when the parent closes its own."""
        self.release()
        self._popen.returncode = 0  # never to be waited for from here

    def describe_end(self) -> str:
        """How it ended, for people."""
        code = self._popen.poll()
        if code is None:
            return "runs"
        return f"exited with status {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- Watching and killing ----------------------------------------------------------------------


def watch_process(pid: int, watch: Watch, unwatch: Unwatch, on_gone: Callable[[], None]) -> StopWatching:
    """Call ``on_gone`` once, in the loop, when process ``pid`` has ended; at once if it is not there.
    Answers a function that stops watching."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        on_gone()
        return _nothing
    live = [fd]

    def stop() -> None:
        if live:
            unwatch(live[0])
            os.close(live.pop())

    def gone() -> None:
        stop()
        on_gone()

    watch(fd, gone)
    return stop


def _nothing() -> None:
    """There is nothing to stop."""


def _signal_group(pid: int, number: int) -> None:
    """To the group that ``pid`` leads and to ``pid`` itself, which may not lead one yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_recorded(directory: Path) -> list[Recorded]:
    """SIGKILL to every recorded process; answers which."""
    found = recorded(directory)
    for entry in found:
        _signal_group(entry.pid, signal.SIGKILL)
    return found


def exit_now(status: int) -> NoReturn:
    """End this process without unwinding: whatever it holds is the kernel's to take back."""
    with contextlib.suppress(Exception):  # stdout may be a pipe that nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def is_at_end(fd: int) -> bool:
    """Whether the writers of this pipe have closed it and nothing is left to read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLHUP and not events & select.POLLIN for _, events in poll.poll(0))


def on_terminate(function: Callable[[], None], interrupt: bool = False) -> None:
    """Call ``function`` in the main thread on SIGTERM; SIGINT is the terminal's and means nothing here,
    or, with ``interrupt``, the same."""
    signal.signal(signal.SIGTERM, lambda number, frame: function())
    signal.signal(signal.SIGINT, (lambda number, frame: function()) if interrupt else signal.SIG_IGN)


def become(role: str, config: Spec, environment: Mapping[str, str]) -> NoReturn:
    """Go on as a fresh interpreter that runs ``spark_ft.cluster.main <role>``, under the same pid: what
    ``Interpreter`` starts, with nobody above it.  Its stdin is one line, its configuration."""
    ours, theirs = os.pipe()
    os.write(theirs, json.dumps(config).encode() + b"\n")  # less than a pipe holds
    os.close(theirs)
    os.dup2(ours, 0)
    os.close(ours)
    path = [str(entry) or os.getcwd() for entry in sys.path]
    arguments = [sys.executable or "python3", "-c", _BOOT, role, json.dumps(path)]
    os.execve(arguments[0], arguments, child_environment(environment))


def become_program(
    arguments: Sequence[str], environment: Mapping[str, str], directory: str = "."
) -> NoReturn:
    """Go on as a fresh interpreter that runs a program there, under the same pid."""
    os.chdir(directory)
    words = [sys.executable or "python3", *arguments]
    os.execve(words[0], words, child_environment(environment))


def no_stdin() -> None:
    """Nobody speaks to this process by its stdin any more."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def kill_descendants() -> None:
    """SIGKILL to everything that descends from this process, whatever session it moved to."""
    me = os.getpid()
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = process_stat(int(name))
            if stat is not None:
                parents[int(name)] = stat.parent
    for pid in parents:
        ancestor: int | None = pid
        while ancestor is not None and ancestor != me:
            ancestor = parents.get(ancestor)
        if ancestor == me and pid != me:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def tail(path: Path, limit: int = 8 << 10) -> str:
    """The last words in a log file; '' when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""


# --- The warm process -------------------------------------------------------------------------


def serve_warm(requests: socket.socket, lifeline: int, entries: Mapping[str, Entry]) -> NoReturn:
    """Fork whatever is asked for until the worker's end of the socket is closed."""
    gc.collect()
    gc.freeze()  # what is imported stays shared with every fork
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(requests, _REQUEST_MAX, 4)
        except ConnectionError:
            os._exit(0)
        if not data:
            os._exit(0)
        request = json.loads(data)
        try:
            middle = os.fork()
        except OSError as error:
            requests.send(json.dumps([request["number"], 0, f"cannot fork: {error}"]).encode())
            middle = -1
        if middle == 0:
            _fork_again(requests, lifeline, request, fds, entries)
        for fd in fds:
            os.close(fd)
        if middle > 0:
            os.waitpid(middle, 0)


def _fork_again(
    requests: socket.socket, lifeline: int, request: Spec, fds: list[int], entries: Mapping[str, Entry]
) -> NoReturn:
    """In the middle process: fork, answer the grandchild's pid, vanish.  In the grandchild: run."""
    try:
        pid = os.fork()
    except OSError as error:
        requests.send(json.dumps([request["number"], 0, f"cannot fork: {error}"]).encode())
        os._exit(1)
    if pid:
        with contextlib.suppress(OSError):  # the worker is gone, and the grandchild will notice
            requests.send(json.dumps([request["number"], pid, ""]).encode())
        os._exit(0)
    status = STATUS_UNCAUGHT
    try:
        requests.close()
        os.setsid()
        no_stdin()
        _redirect(2, request.get("stderr", ""))
        _redirect(1, request.get("stdout", ""))  # else the driver's own, so that prints are seen
        status = entries[request["kind"]]({**request["spec"], "lifeline": lifeline}, fds)
    except BaseException:  # the last frame of this process: whatever it was, it is written down and it ends
        traceback.print_exc()
    exit_now(status)


def _redirect(fd: int, path: str) -> None:
    """What is written there goes to the end of a log file."""
    if path:
        log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(log, fd)
        os.close(log)


# --- The worker's children ---------------------------------------------------------------------


@dataclass(slots=True)
class _Pending:
    """A spawn that the warm process has not answered yet."""

    on_spawned: Callable[[int], None]
    on_end: Callable[[int, int, str], None]
    on_stopped: Callable[[bool], None]
    asked_s: float


class Children:
    """Every process that a worker has, from the request for it to its reaping.

    Made first of all in the worker, while there is no thread: it forks the warm process.  After
    ``attach`` all callbacks come in the loop's thread, which must be the main one (signals).
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._watch: Watch | None = None
        self._unwatch: Unwatch | None = None
        self._pending: dict[int, _Pending] = {}
        self._live: dict[int, _Pending] = {}
        self._adopted: dict[int, tuple[int, bool]] = {}  # pid -> its pidfd, and whether it is stopped
        self._unclaimed: dict[int, tuple[int, int]] = {}  # ended before the warm process told their pid
        self.rss_peak_bytes = 0  # of the child that was reaped last: of the one whose ``on_end`` is called
        self._number = 0
        self._clock = BootClock()
        _become_subreaper()
        self._lifeline, self._lifeline_end = os.pipe()
        self._warm, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._warm.settimeout(_WARM_TIMEOUT_S)
        self._warm_pid = os.fork()
        if self._warm_pid == 0:
            os.setsid()
            os.close(self._lifeline_end)
            self._warm.close()
            serve_warm(theirs, self._lifeline, entries)
        theirs.close()
        # A handler has to be there for the wakeup fd to be written to; it does nothing itself.
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def attach(self, watch: Watch, unwatch: Unwatch) -> None:
        """Let a loop tell of signals and of the warm process's answers."""
        self._watch, self._unwatch = watch, unwatch
        watch(self._wakeup.fileno(), self._on_signal)
        watch(self._warm.fileno(), self._on_answer)
        self._reap()

    def spawn(
        self,
        kind: str,
        spec: Spec,
        *,
        stderr: str = "",
        stdout: str = "",
        fds: Sequence[int] = (),
        on_spawned: Callable[[int], None] = lambda pid: None,
        on_end: Callable[[int, int, str], None] = lambda status, signal, why: None,
        on_stopped: Callable[[bool], None] = lambda stopped: None,
    ) -> None:
        """Ask for a process that runs entry ``kind``.  ``on_end`` gets (status, signal, why): ``why``
        is set when there never was a process."""
        self._number += 1
        self._pending[self._number] = _Pending(on_spawned, on_end, on_stopped, self._clock.now_s())
        request = json.dumps(
            {"number": self._number, "kind": kind, "spec": dict(spec), "stderr": stderr, "stdout": stdout}
        )
        try:
            socket.send_fds(self._warm, [request.encode()], list(fds))
        except OSError as error:
            self._pending.pop(self._number).on_end(STATUS_CANNOT_FORK, 0, f"no warm process: {error}")

    def adopt(
        self,
        process: Recorded,
        on_end: Callable[[int, int, str], None],
        on_stopped: Callable[[bool], None],
    ) -> bool:
        """Take on a process that another worker has started.  It is nobody's child any more, so the kernel
        tells of its end alone, not how it ended, and whether it is stopped must be asked (``check_adopted``).
        False when it is gone."""
        assert self._watch is not None and self._unwatch is not None
        unwatch = self._unwatch
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:
            return False
        stat = process_stat(process.pid)
        if stat is None or stat.start != process.start:  # the number is another's by now
            os.close(fd)
            return False

        def gone() -> None:
            unwatch(fd)
            os.close(fd)
            del self._adopted[process.pid], self._live[process.pid]
            _signal_group_of_dead(process.pid)
            on_end(STATUS_UNKNOWN, 0, "")

        self._adopted[process.pid] = fd, False
        self._live[process.pid] = _Pending(lambda pid: None, on_end, on_stopped, self._clock.now_s())
        self._watch(fd, gone)
        return True

    def check_adopted(self) -> None:
        """Tell of adopted processes that were stopped, or go on.  To be called now and then."""
        for pid, (fd, was_stopped) in list(self._adopted.items()):
            stat = process_stat(pid)
            if stat is not None and stat.stopped != was_stopped:
                self._adopted[pid] = fd, stat.stopped
                self._live[pid].on_stopped(stat.stopped)

    def signal(self, pid: int, number: int) -> None:
        """To a child that is not reaped yet, and its group; nothing otherwise."""
        if pid in self._adopted:
            try:
                signal.pidfd_send_signal(self._adopted[pid][0], 0)
            except ProcessLookupError:
                return  # its number may be another's
        if pid in self._live:
            _signal_group(pid, number)

    def check_warm(self) -> None:
        """Kill a warm process that leaves a request unanswered: it is stopped, or stuck.  To be called
        now and then; its end is noticed, and its successor started, like that of any other."""
        oldest_s = min((pending.asked_s for pending in self._pending.values()), default=self._clock.now_s())
        if self._clock.now_s() - oldest_s > _WARM_TIMEOUT_S:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._warm_pid, signal.SIGKILL)

    def close(self, grace_s: float = 0.2) -> None:
        """End everything: SIGHUP, then SIGKILL to whatever descends from us; waits at most
        ``grace_s`` and a second."""
        for pid in list(self._live):
            self.signal(pid, signal.SIGHUP)
        self._warm.close()
        self._wait_all(grace_s)
        for pid in self._adopted:
            self.signal(pid, signal.SIGKILL)
        kill_descendants()
        self._wait_all(1.0)

    def _wait_all(self, timeout_s: float) -> None:
        deadline_s = self._clock.now_s() + timeout_s
        while True:
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
            self._reap()
            left_s = deadline_s - self._clock.now_s()
            if left_s <= 0 or not (_has_children() or self._any_adopted()):
                return
            select.select([self._wakeup], [], [], min(left_s, 0.05) if self._adopted else left_s)

    def _any_adopted(self) -> bool:
        fds = [fd for fd, _ in self._adopted.values()]
        return len(select.select(fds, [], [], 0)[0]) < len(fds)

    # --- In the loop ---

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
        self._reap()

    def _on_answer(self) -> None:
        data = self._warm.recv(64 << 10)
        if not data:
            self._replace_warm()
            return
        number, pid, why = json.loads(data)
        pending = self._pending.pop(number)
        if not pid:
            pending.on_end(STATUS_CANNOT_FORK, 0, why)
            return
        pending.on_spawned(pid)
        ended = self._unclaimed.pop(pid, None)
        if not self._pending:
            self._unclaimed.clear()  # nobody asks for these any more: orphans of user code
        if ended is not None:
            _signal_group_of_dead(pid)
            pending.on_end(*ended, "")
        else:
            self._live[pid] = pending

    def _reap(self) -> None:
        """Take every event that the kernel holds about our children."""
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, _EVENTS | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            pid = seen.si_pid
            if seen.si_code in _ENDED and pid in self._live:
                _signal_group(pid, signal.SIGKILL)  # now, while the number is still the dead leader's
            if seen.si_code in _ENDED:
                _, _, used = os.wait4(pid, 0)
                self.rss_peak_bytes = used.ru_maxrss << 10
                normal = seen.si_code == os.CLD_EXITED
                self._ended(pid, seen.si_status if normal else 0, 0 if normal else seen.si_status)
                continue
            taken = os.waitid(os.P_PID, pid, _EVENTS & ~os.WEXITED)
            if taken is not None and pid in self._live:
                self._live[pid].on_stopped(taken.si_code != os.CLD_CONTINUED)

    def _ended(self, pid: int, status: int, number: int) -> None:
        child = self._live.pop(pid, None)
        if child is not None:
            child.on_end(status, number, "")
        elif self._pending and pid != self._warm_pid:
            self._unclaimed[pid] = (status, number)

    def _replace_warm(self) -> None:
        """The warm process has died.  We hold sockets and threads by now, so its successor is a fresh
        interpreter, which costs what a start costs."""
        if self._unwatch is not None:
            self._unwatch(self._warm.fileno())
        self._warm.close()
        self._warm, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._warm.settimeout(_WARM_TIMEOUT_S)
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, f"warm:{theirs.fileno()}:{self._lifeline}", json.dumps(sys.path)],
            pass_fds=(theirs.fileno(), self._lifeline),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # reaped by _reap, like every child; Popen is not to wait for it
        self._warm_pid = process.pid
        theirs.close()
        if self._watch is not None:
            self._watch(self._warm.fileno(), self._on_answer)
        lost, self._pending = self._pending, {}
        for pending in lost.values():
            pending.on_end(STATUS_CANNOT_FORK, 0, "the warm process died")


def _signal_group_of_dead(pid: int) -> None:
    """The group of a leader that was reaped before we knew it: its number may be another's only if
    nothing of the group is left, and then a new leader would need the whole pid range to wrap."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _become_subreaper() -> None:
    """Orphans among our descendants become our children (Linux; elsewhere they fall to init)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def resume_warm(argument: str, entries: Mapping[str, Entry]) -> NoReturn:
    """The fresh interpreter that replaces a warm process: ``warm:<socket fd>:<lifeline fd>``."""
    _, requests_fd, lifeline_fd = argument.split(":")
    serve_warm(socket.socket(fileno=int(requests_fd)), int(lifeline_fd), entries)
