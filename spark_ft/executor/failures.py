"""How a task failed, in words that can travel: never a user's exception object, always its text.

An exception of user code may not pickle, and its ``__str__`` may raise, hang or return a gigabyte
(TK-10).  So everything about it is turned into bounded text here, in the process that it can hurt:
type name, its own words, and the traceback from the first frame that is the user's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading
import traceback as tracebacks
import types
from collections.abc import Callable
from typing import TypeVar

from spark_ft.errors import FetchError, HostExhausted, InputChanged, InputError, StorageError, StoreFull
from spark_ft.lineage.narrow import user_stop_iteration
from spark_ft.protocol.messages import EndReason, HostError, UserError

T = TypeVar("T")

TEXT_MAX = 16 << 10  # characters of an error's own words
_TRACE_MAX = 64 << 10
_PATIENCE_S, _AGAIN_S = 2.0, 0.25  # with user code that makes the words
_HOSTS_OWN = {"STORAGE_ERROR", "STORE_NOT_WRITABLE", "STORE_UNSUPPORTED_FS"}  # troubles of its disk
_READ_ONLY = (
    "Arrays of a persisted RDD cannot be written into, because later tasks read the same memory: change a "
    "copy (array.copy())"
)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep  # Python's own


class UnpicklableResultError(Exception):
    """A task's answer cannot be pickled: another attempt would fare no better."""


class _TooLong(BaseException):  # noqa: N818 - user code must not swallow it as an Exception
    """User code was asked for words and has taken too long."""


def reason_of(error: BaseException) -> EndReason:
    """What a task end says of the exception that ended it."""
    error = _told_apart(error)
    match error:
        case FetchError():
            return error.failed
        case StoreFull():
            return HostError("STORAGE_FULL", str(error), error.needed_bytes, error.free_bytes)
        case StorageError() if error.getCondition() in _HOSTS_OWN:
            return HostError(error.getCondition() or "", str(error), 0, 0)
        case HostExhausted():
            return HostError("HOST_EXHAUSTED", str(error), 0, 0)
        case OSError() | RuntimeError() if _is_exhaustion(error):
            return HostError("HOST_EXHAUSTED", "\n".join(words_and_trace(error)), 0, 0)
    name, (words, trace) = type(error).__name__, words_and_trace(error)
    if isinstance(error, MemoryError):
        text = f"MemoryError: {words}" if words else "MemoryError"
        return UserError(name, text, trace, "TASK_OUT_OF_MEMORY", rss_peak_bytes=rss_peak_bytes())
    match error:
        case InputError():
            again = not isinstance(error, InputChanged)
            return UserError(name, words, trace, error.getCondition() or "", again)
        case UnpicklableResultError():
            text = f"the task's result cannot be pickled: {words}"
            return UserError("PicklingError", text, trace, "RESULT_NOT_SERIALIZABLE", False)
        case SystemExit() | KeyboardInterrupt() | GeneratorExit():
            code = (words or "0") if isinstance(error, SystemExit) else ""
            return UserError(name, f"USER_CODE_EXITED({code})", trace, "USER_CODE_EXITED")
        case ValueError() if "read-only" in words:
            return UserError(name, f"{words}. {_READ_ONLY}", trace)
    return UserError(name, words, trace)


def _is_exhaustion(error: OSError | RuntimeError) -> bool:
    """Whether the host would not give one more file, process or thread (WK-9).  EAGAIN says so of a fork
    alone; of a socket it says that there is nothing to read."""
    if isinstance(error, RuntimeError):
        return str(error) == "can't start new thread"
    if error.errno != errno.EAGAIN:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and any("fork" in name for name in trace.tb_frame.f_code.co_names)


def rss_peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def words_and_trace(error: BaseException) -> tuple[str, str]:
    """``str(error)``, asked for once, and the traceback with its chain of causes, without the engine's
    frames that lead to the user's.  Both of bounded length, whatever user code does meanwhile."""

    def render() -> tuple[str, str]:
        whole = tracebacks.TracebackException.from_exception(error)
        _trim(whole)
        text = "".join(_shortened(part).rstrip("\n") + "\n" for part in whole.format())
        if len(text) > _TRACE_MAX:
            half = _TRACE_MAX // 2
            left_out = len(text) - 2 * half
            text = f"{text[:half]}\n  ... {left_out} characters left out ...\n{text[-half:]}"
        return _clean(_shortened(str(whole))), _clean(text)

    name = type(error).__name__
    nothing = f"<{name} whose text cannot be had>", f"{name} (its traceback cannot be rendered)"
    return _guarded(render, nothing)


def _shortened(text: str) -> str:
    left_out = len(text) - TEXT_MAX
    return text if left_out <= 0 else f"{text[:TEXT_MAX]} ... and {left_out} characters more"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _told_apart(error: BaseException) -> BaseException:
    """A StopIteration of user code told as what it is (api.md, rule 0.11), also where a generator of ours
    has made a RuntimeError of it; all else as it came."""
    cause = error.__cause__ if isinstance(error, RuntimeError) else error
    if not isinstance(cause, StopIteration):
        return error
    if cause is not error and not _is_ours(cause.__traceback__):
        return error  # the user's own generator
    told = user_stop_iteration(cause).with_traceback(error.__traceback__)
    told.__cause__ = cause if cause is not error else None
    return told


def _is_ours(trace: types.TracebackType | None) -> bool:
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _trim(trace: tracebacks.TracebackException) -> None:
    """Leave out the frames that lead to the user's, in the whole chain; all stay where there is none."""
    work: list[tracebacks.TracebackException | None] = [trace]
    while work:
        part = work.pop()
        if part is not None:
            users = (i for i, frame in enumerate(part.stack) if _is_users(frame.filename))
            del part.stack[: next(users, 0)]
            work += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]


def _is_users(filename: str) -> bool:
    if filename.startswith((_PACKAGE, "<frozen ")):
        return False
    return not filename.startswith(_LIBRARY) or "site-packages" in filename


def _guarded(render: Callable[[], T], fallback: T) -> T:
    """What user code is asked for while words are made may raise or hang: two seconds, then the fallback."""
    if threading.current_thread() is not threading.main_thread():
        return _guarded_elsewhere(render, fallback)

    def expired(*_: object) -> None:
        raise _TooLong

    previous = signal.signal(signal.SIGALRM, expired)
    try:
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S, _AGAIN_S)
        return render()
    except BaseException:  # whatever the user's own code raised
        return fallback
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(ValueError, TypeError):
            signal.signal(signal.SIGALRM, previous)


def _guarded_elsewhere(render: Callable[[], T], fallback: T) -> T:
    """Signals reach the main thread alone; a slot that is another one leaves a thread that hangs behind."""
    answer: list[T] = []

    def work() -> None:
        with contextlib.suppress(BaseException):  # whatever the user's own code raised
            answer.append(render())

    thread = threading.Thread(target=work, name="words", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return answer[0] if answer else fallback
