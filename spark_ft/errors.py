"""The tree of errors.

    PySparkException                     condition name, parameters; ``[CONDITION] text``
    ├── PySparkValueError (ValueError)     ├── PySparkTypeError (TypeError)
    ├── PySparkRuntimeError (RuntimeError) ├── PySparkAssertionError (AssertionError)
    ├── PySparkPicklingError (PicklingError)
    ├── PySparkNotImplementedError (NotImplementedError)
    └── SparkFtError                     everything the engine itself has to say
        ├── JobError (RuntimeError)        a job ended without an answer; also named Py4JJavaError
        │   ├── TaskFailed                   a task used up its failures
        │   ├── StageAborted                 data could not be had again
        │   ├── JobCancelled                 somebody asked for it
        │   └── NoExecutors                  nothing to run it on
        ├── ClusterError                   processes could not be started or reached
        ├── DriverFenced                   another driver has taken this application over
        ├── JournalFailed                  what a driver's next life rests on cannot be written
        ├── ShuffleError
        │   └── FetchError                   a block could not be read: carries the evidence
        ├── StorageError
        │   ├── BlockMissing │ BlockCorrupt │ BlockIncomplete │ BlockExpired
        │   └── StoreFull
        ├── ProtocolError                  LocalProtocolError: we are wrong; RemoteProtocolError: the peer is
        ├── InputError
        │   ├── InputChanged                 not the file that was planned; trying again is pointless
        │   │   └── CheckpointLost             nor what was saved
        │   └── InputCorrupt                 bytes that cannot be read as what they should be
        ├── SerializationError
        ├── SettingsError (ValueError)     BAD_CONFIG
        └── UsageError

A job's error is never of the user's exception type: ``cause_type`` names that, and ``str(e)``
holds the worker's traceback.  Failed asserts are bugs and are not in this tree.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_ft.protocol.messages import FetchFailed

_TEXTS = {
    "ACCUMULATOR_PARAM_REQUIRED": "No default accumulator param for type <type>.",
    "APPLICATION_NAME_NOT_SET": "An application name must be set in your configuration.",
    "BROADCAST_DESTROYED": "`<variable>` was destroyed and cannot be used any more.",
    "BROADCAST_VARIABLE_NOT_LOADED": "Broadcast variable `<variable>` not loaded.",
    "CALL_BEFORE_INITIALIZE": "Not supported to call `<func_name>` before initialize <object>.",
    "CONTEXT_ONLY_VALID_ON_DRIVER": (
        "It appears that you are attempting to reference SparkContext from a broadcast variable, action, "
        "or transformation. SparkContext can only be used on the driver, not in code that it run on "
        "workers. For more information, see SPARK-5063."
    ),
    "INCORRECT_CONF_FOR_PROFILE": (
        "`spark.python.profile` configuration must be set to `true` to enable Python profile."
    ),
    "INVALID_BROADCAST_OPERATION": "Broadcast can only be <operation> in driver.",
    "KEY_VALUE_PAIR_REQUIRED": "Key-value pair or a list of pairs is required.",
    "MASTER_URL_NOT_SET": "A master URL must be set in your configuration.",
    "NOT_IN_BARRIER_STAGE": "It is not in a barrier stage.",
    "PIPE_FUNCTION_EXITED": "Pipe function `<func_name>` exited with error code <error_code>.",
    "PYTHON_HASH_SEED_NOT_SET": "Randomness of hash of string should be disabled via PYTHONHASHSEED.",
    "RDD_TRANSFORM_ONLY_VALID_ON_DRIVER": (
        "It appears that you are attempting to broadcast an RDD or reference an RDD from an action or "
        "transformation. RDD transformations and actions can only be invoked by the driver, not inside of "
        "other transformations; for example, rdd1.map(lambda x: rdd2.values.count() * x) is invalid because "
        "the values transformation and count action cannot be performed inside of the rdd1.map "
        "transformation. For more information, see SPARK-5063."
    ),
    "STOP_ITERATION_OCCURRED": "Caught StopIteration thrown from user's code; failing the task: <exc>",
    "VALUE_NOT_ACCESSIBLE": "Value `<value>` cannot be accessed inside tasks.",
    "WRONG_METHOD_ARGUMENT": "Argument `<arg_name>`: <why>.",
}


class PySparkException(Exception):
    """Base of all; ``[CONDITION] text`` with the condition's parameters filled in."""

    def __init__(
        self,
        message: str | None = None,
        errorClass: str | None = None,
        messageParameters: Mapping[str, str] | None = None,
    ) -> None:
        self._errorClass = errorClass
        self._messageParameters = dict(messageParameters or {})
        if message is None:
            text = _TEXTS.get(errorClass or "", "")
            for name, value in self._messageParameters.items():
                text = text.replace(f"<{name}>", str(value))
            message = f"[{errorClass}] {text}" if errorClass else text
        self._message = message
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        # By state and not by constructor: those of some kinds take other arguments.
        return _rebuilt, (type(self), self.args, dict(self.__dict__))

    def getCondition(self) -> str | None:
        """The condition's name, e.g. TASK_FAILED."""
        return self._errorClass

    def getErrorClass(self) -> str | None:
        """Older name of ``getCondition``."""
        return self._errorClass

    def getMessageParameters(self) -> dict[str, str]:
        return self._messageParameters

    def getMessage(self) -> str:
        return self._message

    def __str__(self) -> str:
        return self._message


def _rebuilt(cls: type[PySparkException], args: tuple[Any, ...], state: dict[str, Any]) -> PySparkException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class PySparkValueError(PySparkException, ValueError): ...


class PySparkTypeError(PySparkException, TypeError): ...


class PySparkRuntimeError(PySparkException, RuntimeError): ...


class PySparkAssertionError(PySparkException, AssertionError): ...


class PySparkNotImplementedError(PySparkException, NotImplementedError): ...


class PySparkPicklingError(PySparkException, pickle.PicklingError): ...


class ContextInTaskError(PySparkRuntimeError, PySparkPicklingError):
    """A SparkContext or an RDD was about to be pickled: programs know it by either name."""


class SparkFtError(PySparkException):
    """What the engine itself has to say.  ``condition`` is given as a name, ``message`` whole."""

    default_condition = "INTERNAL_ERROR"

    def __init__(
        self,
        message: str | None = None,
        errorClass: str | None = None,
        messageParameters: Mapping[str, str] | None = None,
    ) -> None:
        condition = errorClass or self.default_condition
        if message is not None and not message.startswith("["):
            message = f"[{condition}] {message}"
        super().__init__(message, condition, messageParameters)


class JobError(SparkFtError, RuntimeError):
    """A job ended without an answer.

    ``stage``, ``partition``: where; ``cause_type``: name of the user's exception type, if it was
    one; ``attempts``: every attempt of the task with executor, host, outcome and blame.
    """

    default_condition = "JOB_FAILED"
    stage: int | None = None
    partition: int | None = None
    cause_type: str = ""
    traceback: str = ""
    attempts: Sequence[Any] = ()


Py4JJavaError = JobError  # the name under which PySpark programs catch it


class TaskFailed(JobError):
    default_condition = "TASK_FAILED"


class StageAborted(JobError):
    default_condition = "STAGE_ABORTED"


class JobCancelled(JobError):
    default_condition = "JOB_CANCELLED"


class NoExecutors(JobError):
    default_condition = "NO_RESOURCES"


class ClusterError(SparkFtError, RuntimeError):
    default_condition = "CLUSTER_ERROR"


class DriverFenced(SparkFtError, RuntimeError):
    default_condition = "DRIVER_FENCED"


class JournalFailed(SparkFtError, RuntimeError):
    default_condition = "JOURNAL_WRITE_FAILED"


class ShuffleError(SparkFtError):
    default_condition = "SHUFFLE_ERROR"


class FetchError(ShuffleError):
    """A block could not be read; ``failed`` says which, from where, and with what evidence."""

    default_condition = "FETCH_FAILED"

    def __init__(self, failed: FetchFailed) -> None:
        super().__init__(f"{failed.evidence}: {failed.text}")
        self.failed = failed


class StorageError(SparkFtError):
    default_condition = "STORAGE_ERROR"


class HostExhausted(SparkFtError):
    """The host has no more of something that every process needs (files, processes, threads).  No
    StorageError: it proves nothing against what was to be read."""

    default_condition = "HOST_EXHAUSTED"


class BlockMissing(StorageError):
    """Nothing is known under this key."""

    default_condition = "BLOCK_MISSING"


class BlockCorrupt(StorageError):
    """Bytes are there, but not the ones that were written."""

    default_condition = "BLOCK_CORRUPT"


class BlockIncomplete(StorageError):
    """Checksums hold, but rows are missing."""

    default_condition = "BLOCK_INCOMPLETE"


class BlockExpired(StorageError):
    """It was there and has been dropped on purpose."""

    default_condition = "BLOCK_EXPIRED"


class StoreFull(StorageError):
    """No space left for a store: blamed on the host."""

    default_condition = "STORAGE_FULL"

    def __init__(self, message: str, needed_bytes: int = 0, free_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ProtocolError(SparkFtError):
    default_condition = "PROTOCOL_ERROR"


class LocalProtocolError(ProtocolError):
    """We tried to send what must not be sent."""


class RemoteProtocolError(ProtocolError):
    """A peer sent what it must not: costs that peer its message, never us our process."""


class InputError(SparkFtError):
    """A file that a task reads; the text names the file and the offset."""

    default_condition = "INPUT_ERROR"


class InputChanged(InputError):
    """The file is not the one that was planned (gone, other size, other time): never retried."""

    default_condition = "INPUT_CHANGED"


class CheckpointLost(InputChanged):
    """A part of a checkpoint is gone or damaged."""

    default_condition = "CHECKPOINT_LOST"


class InputCorrupt(InputError):
    """Truncated, badly encoded or badly compressed."""

    default_condition = "INPUT_CORRUPT"


class SerializationError(SparkFtError):
    default_condition = "SERIALIZATION_ERROR"


class SettingsError(SparkFtError, ValueError):
    default_condition = "BAD_CONFIG"


class UsageError(SparkFtError, RuntimeError):
    default_condition = "WRONG_USE"
