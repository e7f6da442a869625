"""JobHandle: one job as its submitter sees it.  Results in partition order, cancel, the error to raise.

The I/O thread delivers; whichever thread submitted the job waits and unpickles, so that user
code in a ``__setstate__`` or an accumulator never runs where it could stop the engine.

- At most one result per partition is handed on, and none after the end; all at once, so that until then
  they can be taken back (BL-5).
- ``failure`` is set at most once; a job without one has every result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from spark_ft import closures
from spark_ft.errors import (
    FetchError,
    JobCancelled,
    JobError,
    NoExecutors,
    SparkFtError,
    StageAborted,
    StorageError,
    TaskFailed,
)
from spark_ft.ids import NO_ACTION, ActionId, JobId
from spark_ft.protocol.effects import JobFailure
from spark_ft.protocol.messages import BlockRef, InlineResult, StoredResult

_KINDS: dict[str, type[JobError]] = {
    "JOB_CANCELLED": JobCancelled,
    "RESULT_TOO_LARGE": JobError,
    "NO_RESOURCES": NoExecutors,
    "EXECUTOR_CRASH_LOOP": NoExecutors,
    "ALL_EXECUTORS_EXCLUDED": NoExecutors,
    "TASK_FAILED": TaskFailed,
    "USER_CODE_EXITED": TaskFailed,
    "CHECKPOINT_LOST": TaskFailed,
    "INPUT_CHANGED": TaskFailed,
    "INPUT_CORRUPT": TaskFailed,
    "INPUT_ERROR": TaskFailed,
    "INPUT_NOT_FOUND": TaskFailed,
    "POISON_TASK": TaskFailed,
    "TASK_OUT_OF_MEMORY": TaskFailed,
    "TASK_TIMEOUT": TaskFailed,
    "CLOSURE_NOT_LOADABLE": TaskFailed,
    "RESULT_NOT_SERIALIZABLE": TaskFailed,
}

Updates = tuple[tuple[int, bytes], ...]

_LINE_MAX = 200  # characters of an attempt's failure; the whole text stands above it


def job_error(failure: JobFailure) -> JobError:
    """The exception for a failed job: what happened, the worker's traceback, every attempt."""
    lines = [failure.text]
    if failure.attempts:
        lines.append(f"{len(failure.attempts)} attempt(s) were made:")
        lines += [
            f"  attempt {a.attempt} on {a.executor} ({a.host}): {a.outcome}, blamed on {a.blame}: "
            f"{_first_line(a.text)}"
            for a in failure.attempts
        ]
    for traceback in (failure.traceback, *failure.other_tracebacks):
        if traceback:
            lines += ["", traceback.rstrip()]
    error = _KINDS.get(failure.condition, StageAborted)("\n".join(lines), failure.condition)
    error.stage, error.partition = failure.stage, failure.partition
    error.cause_type, error.traceback = failure.cause_type, failure.traceback
    error.attempts = failure.attempts
    return error


def _first_line(text: str) -> str:
    line, *more = text.splitlines() or [""]
    return f"{line[:_LINE_MAX]} ..." if more or len(line) > _LINE_MAX else line


class _WithdrawnError(Exception):
    """The results were taken back while they were being read."""


class JobHandle:
    """A job under way.  ``result()`` belongs to the submitting thread."""

    def __init__(
        self,
        job_id: JobId,
        partitions: Sequence[int],
        *,
        read_block: Callable[[BlockRef], bytes],
        cancel: Callable[[JobId, str], None],
        result_lost: Callable[[JobId, int, str], None],
        settle: Callable[[], None],
        close: Callable[[JobId], None],
        max_result_bytes: int,
        action: ActionId = NO_ACTION,
        keep: Callable[[ActionId, int, bytes], None] | None = None,
    ) -> None:
        self.job_id, self.action = job_id, action
        self._keep = keep
        self._partitions = partitions
        self._read_block, self._cancel = read_block, cancel
        self._result_lost, self._settle, self._close = result_lost, settle, close
        self._max_result_bytes = max_result_bytes
        self._results: dict[int, InlineResult | StoredResult] = {}
        self._updates: list[Updates] = []  # of accumulators, until the job has ended
        self._withdrawals = 0  # how often all results were taken back
        self._bytes: dict[int, int] = {}  # of each result, also of those that have been handed on
        self._total_bytes = 0
        self._failure: JobFailure | None = None
        self._done = False
        self._changed = threading.Condition()

    # --- I/O thread ---

    def deliver(self, partition: int, result: InlineResult | StoredResult, updates: Updates = ()) -> None:
        size = len(result.payload) if isinstance(result, InlineResult) else result.block.size_bytes
        with self._changed:
            if self._failure is not None:
                return
            self._results[partition] = result
            if updates:
                self._updates.append(updates)
            self._total_bytes += size - self._bytes.get(partition, 0)  # one that was lost comes again
            self._bytes[partition] = size
            if 0 < self._max_result_bytes < self._total_bytes:
                self._failure = JobFailure(
                    "RESULT_TOO_LARGE",
                    f"The results of job {self.job_id} are larger than spark.driver.maxResultSize "
                    f"({self._max_result_bytes} bytes) after {len(self._results)} of "
                    f"{len(self._partitions)} partitions. Collect less, or raise the limit.",
                )
                self._results.clear()
                self._cancel(self.job_id, "its results are larger than spark.driver.maxResultSize")
            self._changed.notify_all()

    def withdraw(self) -> None:
        """All results so far were built from data that has been rolled back (BL-5): they come again."""
        with self._changed:
            self._withdrawals += 1
            self._results.clear()
            self._updates.clear()
            self._bytes.clear()
            self._total_bytes = 0
            self._changed.notify_all()

    def take_updates(self) -> list[Updates]:
        """Accumulator updates of the results that count, once."""
        with self._changed:
            updates, self._updates = self._updates, []
            return updates

    def finish(self, failure: JobFailure | None) -> None:
        with self._changed:
            self._done = True
            self._failure = self._failure or failure
            self._changed.notify_all()

    # --- Submitting thread ---

    def cancel(self, reason: str = "cancelled") -> None:
        """End the job; ``result()`` will raise JobCancelled."""
        self._cancel(self.job_id, reason)

    def result(self) -> list[Any]:
        """All answers in the order of the partitions asked for.

        Raises TaskFailed, StageAborted, JobCancelled or NoExecutors.  KeyboardInterrupt cancels the
        job and is raised again.
        """
        try:
            with self._changed:
                while not self._done:
                    self._changed.wait()
            self._settle()
            while True:
                with contextlib.suppress(_WithdrawnError):
                    withdrawals = self._withdrawals
                    return [self._take(partition, withdrawals) for partition in self._partitions]
        except KeyboardInterrupt:
            self.cancel("interrupted by the user")
            raise
        finally:
            self._close(self.job_id)

    def answered(self) -> dict[int, Any]:
        """What a job that failed had answered until then, by partition; results that stand in stores are left
        out.  A later job of the same scope may go on from there (scheduler/scopes.py)."""
        with self._changed:
            found = {p: r.payload for p, r in self._results.items() if isinstance(r, InlineResult)}
        return {partition: _unpickle(payload) for partition, payload in found.items()}

    def _take(self, partition: int, withdrawals: int) -> Any:
        """One partition's answer; a stored one that cannot be read is computed again.

        Raises _WithdrawnError when what has been taken till now is to be taken anew: answers of before
        and after a withdrawal never meet."""
        while True:
            with self._changed:
                while (
                    partition not in self._results
                    and withdrawals == self._withdrawals
                    and not (self._done and self._failure)
                ):
                    self._changed.wait()
                if self._failure is not None:
                    raise job_error(self._failure)
                if withdrawals != self._withdrawals:
                    raise _WithdrawnError
                result = self._results.pop(partition)
            if isinstance(result, InlineResult):
                return _unpickle(result.payload)
            try:
                payload = self._read_block(result.block)
            except (FetchError, StorageError) as error:
                self._done = False
                self._result_lost(self.job_id, partition, str(error))
                continue
            if self._keep is not None:
                self._keep(self.action, partition, payload)
            return _unpickle(payload)


def _unpickle(payload: bytes) -> Any:
    try:
        return closures.loads(payload)
    except Exception as error:  # the user's own __setstate__ may raise anything
        raise SparkFtError(
            f"A task's result could not be unpickled in the driver: {type(error).__name__}: {error}",
            "RESULT_NOT_LOADABLE",
        ) from error
