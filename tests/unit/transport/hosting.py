"""What the tests of hosts share: a core that records, hosts that run, waiting with a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spark_ft.clock import BootClock
from spark_ft.ids import Incarnation, new_incarnation
from spark_ft.protocol.effects import (
    Effect,
    Event,
    Note,
    PeerGone,
    PeerHeard,
    PeerSilent,
    Received,
    Send,
    Tick,
)
from spark_ft.protocol.messages import KillTask, Message
from spark_ft.transport.host import Host

TOKEN = b"0123456789abcdef"
DEADLINE_S = 30.0


def until(holds: Callable[[], Any], what: str = "") -> Any:
    """Wait for ``holds`` (in this thread, which nothing can wake better)."""
    end_s = time.monotonic() + DEADLINE_S
    turn = threading.Event()
    while not (value := holds()):
        assert time.monotonic() < end_s, f"never came to hold: {what or holds}"
        turn.wait(0.002)
    return value


class JumpClock:
    """The real clock, and jumps."""

    def __init__(self) -> None:
        self._clock = BootClock()
        self.offset_s = 0.0

    def now_s(self) -> float:
        return self._clock.now_s() + self.offset_s


class Recorder:
    """Keeps every event; ``answer`` says what to do about it."""

    def __init__(self, answer: Callable[[Event], list[Effect]] = lambda event: []) -> None:
        self.events: list[Event] = []
        self.answer = answer
        self.tick_at_s: float | None = None

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        self.events.append(event)
        if isinstance(event, Tick):
            self.tick_at_s = None
        return self.answer(event)

    def wakeup_s(self) -> float | None:
        return self.tick_at_s

    def messages(self, sender: Incarnation | None = None) -> list[Message]:
        return [e.message for e in self.events if isinstance(e, Received) and sender in (None, e.sender)]

    def gone(self) -> list[Incarnation]:
        return [event.peer for event in self.events if isinstance(event, PeerGone)]

    def silent(self) -> list[Incarnation]:
        return [event.peer for event in self.events if isinstance(event, PeerSilent)]

    def heard(self) -> list[Incarnation]:
        return [event.peer for event in self.events if isinstance(event, PeerHeard)]


class Node:
    """A host, its core and what it performed, running in a thread of its own."""

    def __init__(self, role: str, core: Recorder | None = None, **options: Any) -> None:
        self.me = new_incarnation(role)
        self.core = core or Recorder()
        self.performed: list[Effect] = []
        self.clock = JumpClock()
        self.host = Host(
            self.core,
            self.me,
            token=options.pop("token", TOKEN),
            clock=self.clock,
            perform=self.performed.append,
            **options,
        )
        self.thread = threading.Thread(target=self.host.run, daemon=True)

    def send(self, to: Incarnation, *messages: Message) -> None:
        def send_all() -> None:
            for message in messages:
                self.host.send(to, message)

        self.host.call(send_all)

    def do(self, function: Callable[[], Any]) -> Any:
        """Run in the loop's thread and wait for the result."""
        done, result = threading.Event(), []

        def work() -> None:
            result.append(function())
            done.set()

        self.host.call(work)
        assert done.wait(DEADLINE_S)
        return result[0]

    def notes(self, kind: str) -> list[Note]:
        return [effect for effect in self.performed if isinstance(effect, Note) and effect.kind == kind]


@contextlib.contextmanager
def running(*nodes: Node) -> Iterator[None]:
    for node in nodes:
        node.thread.start()
    try:
        yield
    finally:
        for node in nodes:
            node.host.stop(0.0)
        for node in nodes:
            node.thread.join(DEADLINE_S)
            assert not node.thread.is_alive()


def bound(tmp_path: Path, core: Recorder | None = None, **options: Any) -> Node:
    return Node("driver", core, bind=f"ipc://{tmp_path}/d", **options)


def pair(tmp_path: Path, core: Recorder | None = None, **options: Any) -> tuple[Node, Node]:
    """A node that is bound (and has ``core``), and one that is connected to it; neither runs yet."""
    driver, executor = bound(tmp_path, core, **options), Node("executor", **options)
    executor.host.connect(driver.me, driver.host.endpoint)
    return driver, executor


def echo(event: Event) -> list[Effect]:
    return [Send(event.sender, event.message)] if isinstance(event, Received) else []


def numbered(count: int, why: str = "n") -> list[Message]:
    return [KillTask(number, why) for number in range(count)]  # type: ignore[arg-type]


def open_fds() -> set[str]:
    """What this process has open, as (number, target)."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {entry for entry in found if "/proc/" not in entry}


def in_child(check: Callable[[], object]) -> int:
    """Run ``check`` in a fork; its exit status is 0 if nothing was raised.  A child that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        status = 1
        try:
            check()
            status = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
