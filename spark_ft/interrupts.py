"""Stopping a task from outside without tearing what must stay whole.

A task is cancelled by SIGINT, whose handler raises ``TaskKilled`` in the main thread
wherever it happens to be.  User code may be broken off anywhere; a store transaction
may not.  Code that must run to its end wraps itself in ``shielded()``: a kill that
arrives meanwhile is remembered and raised at the end of the outermost shield.
"""

import contextlib
from collections.abc import Iterator


class TaskKilled(BaseException):  # noqa: N818 - like KeyboardInterrupt: user code must not swallow it as an Exception
    """The running task is to end now."""


class _State:
    depth = 0  # of shields; 0 means the task may be broken off here
    armed = False  # a task is running, so a kill means something
    pending = False  # a kill came inside a shield


_state = _State()


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Run a block whole: a kill that comes meanwhile is raised when it is left."""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
        if _state.pending and _state.depth == 0 and _state.armed:
            _state.pending = False
            raise TaskKilled


@contextlib.contextmanager
def armed() -> Iterator[None]:
    """The span of one task: kills count from here to the end of the block only."""
    _state.pending, _state.armed = False, True
    try:
        yield
    finally:
        _state.armed = _state.pending = False


def deliver() -> None:
    """Called by the signal handler, in the main thread: break off now or when the shield ends."""
    if not _state.armed:
        return
    if _state.depth:
        _state.pending = True
        return
    raise TaskKilled
