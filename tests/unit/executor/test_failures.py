"""What a task end says of an exception: bounded words, the user's frames, and never a hang."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from spark_ft.errors import BlockCorrupt, StorageError, StoreFull
from spark_ft.executor import failures
from spark_ft.executor.failures import reason_of
from spark_ft.lineage.narrow import MAP, fuse
from spark_ft.protocol.messages import HostError, UserError
from spark_ft.rdd import tasks
from spark_ft.shuffle.table import combined
from spark_ft.storage.kept import Kept


def failed(call) -> UserError:
    """The reason that an executor gives for what ``call`` raises."""
    try:
        call()
    except BaseException as error:  # as in an executor
        reason = reason_of(error)
        assert isinstance(reason, UserError)
        return reason
    raise AssertionError("nothing was raised")


def divide(x):
    return 1 // x


def trimmed(error: BaseException) -> list[str]:
    return [line for line in failures.words_and_trace(error)[1].splitlines() if line.startswith("  File")]


def test_the_traceback_begins_with_the_users_first_frame():
    records = fuse([(MAP, divide)], [1, 0])
    with pytest.raises(ZeroDivisionError) as caught:
        tasks.as_list(0, records)
    (frame,) = trimmed(caught.value.with_traceback(caught.tb.tb_next))  # without this test's own frame
    assert frame.endswith("in divide")


def test_the_engines_frames_are_left_out_of_causes_too():
    namespace = {"fuse": fuse, "MAP": MAP, "divide": divide}
    code = compile(
        "def run():\n"
        "    try:\n"
        "        list(fuse([(MAP, divide)], [0]))\n"
        "    except ZeroDivisionError as error:\n"
        "        raise ValueError('told') from error\n",
        failures._PACKAGE + "engine.py",
        "exec",
    )
    exec(code, namespace)
    with pytest.raises(ValueError, match="told") as caught:
        namespace["run"]()
    error = caught.value.with_traceback(caught.tb.tb_next)  # without this test's own frame
    first, *rest = trimmed(error)
    assert first.endswith("in divide"), "the cause has lost the frame that leads to the user's"
    assert rest and "engine.py" in rest[0], "where nothing of the user's follows all frames stay"


def test_frames_of_pythons_own_library_do_not_hide_the_engines():
    try:
        list(fuse([(MAP, json.loads)], ["{"]))
    except ValueError as error:
        frames = trimmed(error.with_traceback(error.__traceback__.tb_next))
    assert len(frames) > 1


class HangsError(Exception):
    def __str__(self):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)  # for ever: the engine's patience ends it, long before


class RaisesError(Exception):
    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


class RequiredError(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self):
        raise RuntimeError("never pickled")


@pytest.mark.parametrize(
    "error, text",
    [
        (RequiredError(code=5), "code 5"),
        (RaisesError(), "<exception str() failed>"),
        (ValueError("grün \ud800"), "grün \\ud800"),
    ],
    ids=["required keywords", "raising words", "surrogates"],
)
def test_TK_10_odd_exceptions_are_told_by_type_words_and_traceback(error, text):
    def fail():
        raise error

    reason = failed(fail)
    assert (reason.type_name, reason.text) == (type(error).__name__, text)
    assert "in fail" in reason.traceback


@pytest.mark.slow
def test_TK_10_words_that_never_come_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(failures, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(failures, "_AGAIN_S", 0.02)

    def fail():
        raise HangsError

    reason = failed(fail)
    assert reason.text == "<exception str() failed>" and "in fail" in reason.traceback


def test_TK_10_nor_in_a_slot_that_is_no_main_thread(monkeypatch):
    monkeypatch.setattr(failures, "_PATIENCE_S", 0.05)
    freed = threading.Event()

    class WaitsError(Exception):
        def __str__(self):
            freed.wait(60)
            return "at last"

    def fail(error):
        raise error

    reasons = []
    for error in (WaitsError(), RaisesError(), ValueError("plain")):
        thread = threading.Thread(target=lambda error=error: reasons.append(failed(lambda: fail(error))))
        thread.start()
        thread.join(10)
    freed.set()
    texts = [reason.text for reason in reasons]
    assert texts == ["<WaitsError whose text cannot be had>", "<exception str() failed>", "plain"]


def test_TK_10_a_huge_text_is_cut_and_the_traceback_is_not_lost():
    def fail():
        raise ValueError("x" * 10_000_000)

    reason = failed(fail)
    assert len(reason.text) < 2 * failures.TEXT_MAX and "characters more" in reason.text
    assert "in fail" in reason.traceback and len(reason.traceback) < 8 * failures.TEXT_MAX


def test_a_long_chain_of_causes_keeps_both_ends():
    def fail(depth=300):
        try:
            raise ValueError("y" * 1000) if not depth else fail(depth - 1)
        except Exception as error:
            raise KeyError(depth) from error

    trace = failed(fail).traceback
    assert "left out" in trace and trace.startswith("Traceback") and trace.endswith("KeyError: 300\n")


def stop(*_):
    raise StopIteration


def test_StopIteration_of_user_code_is_told_where_a_generator_of_ours_has_wrapped_it(tmp_path):
    pairs = [[(1, 1), (1, 2)]]
    reason = failed(lambda: list(combined(pairs, None, stop, stop, 1 << 20, tmp_path)))
    assert "Caught StopIteration thrown from user's code; failing the task" in reason.text
    assert "in stop" in reason.traceback


def test_StopIteration_that_comes_as_it_is_is_told_too():
    reason = failed(lambda: tasks.Largest(2, stop)(0, iter([1, 2, 3])))
    assert "Caught StopIteration" in reason.text and "in stop" in reason.traceback


def test_a_users_generator_that_stops_is_pythons_own_error():
    numbers = (next(iter(())) for _ in [1])
    reason = failed(lambda: next(numbers))
    assert reason.text == "generator raised StopIteration"


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("x"), KeyboardInterrupt()])
def test_TK_3_an_exit_is_a_failure_of_the_task(error):
    def leave():
        raise error

    reason = failed(leave)
    assert reason.condition == "USER_CODE_EXITED" and reason.text.startswith("USER_CODE_EXITED(")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreFull("no room", 10, 1), HostError("STORAGE_FULL", "[STORAGE_FULL] no room", 10, 1)),
        (StorageError("I/O error"), HostError("STORAGE_ERROR", "[STORAGE_ERROR] I/O error", 0, 0)),
        (
            StorageError("read only", "STORE_NOT_WRITABLE"),
            HostError("STORE_NOT_WRITABLE", "[STORE_NOT_WRITABLE] read only", 0, 0),
        ),
    ],
)
def test_ST_15_a_store_that_cannot_be_written_is_its_hosts_trouble(error, reason):
    assert reason_of(error) == reason


def test_a_spill_file_that_lies_is_not_blamed_on_the_host():
    assert isinstance(reason_of(BlockCorrupt("bits")), UserError)


WITHOUT = """
import os, resource, subprocess, sys, threading
from spark_ft.executor.failures import reason_of

os.setuid(65534)
what = sys.argv[1]
if what == "files":
    os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), 4096))
else:
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
calls = {
    "files": lambda: open("/dev/null"),
    "fork": os.fork,
    "process": lambda: subprocess.Popen(["true"]),
    "thread": lambda: threading.Thread(target=print).start(),
}
try:
    calls[what]()
except Exception as error:
    print(reason_of(error).condition, type(reason_of(error)).__name__)
"""


@pytest.mark.parametrize("what", ["files", "fork", "process", "thread"])
def test_WK_9_no_more_files_processes_or_threads_is_the_hosts_trouble(what):
    ran = subprocess.run([sys.executable, "-c", WITHOUT, what], capture_output=True, text=True, timeout=30)
    assert ran.stdout.split() == ["HOST_EXHAUSTED", "HostError"], ran.stdout + ran.stderr


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOENT, errno.EIO])
def test_WK_9_other_errors_of_user_code_stay_its_own(number):
    def read():
        raise OSError(number, os.strerror(number))

    assert failed(read).condition == "TASK_FAILED"


def test_TK_13_who_writes_into_a_cached_array_is_told_what_to_do() -> None:
    held = Kept()
    held.add([np.arange(3)])

    def write() -> None:
        next(iter(held))[0] = 1

    reason = failed(write)
    assert reason.type_name == "ValueError" and "array.copy()" in reason.text
