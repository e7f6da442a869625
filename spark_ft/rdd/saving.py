"""saveAsTextFile and saveAsPickleFile: a directory of part files that appears whole or not at all.

    tasks:   <parent>/.<name>.<job token>/_temporary/part-00003.<task id>     one file per attempt
    driver:  the attempts named in the job's results -> part-00003; _temporary removed; _SUCCESS;
             then one rename of the directory to <name>

* Only attempts whose result the driver took are moved into place, so of two attempts of one
  partition exactly one shows, whatever both have written (OUT-1).
* The target appears by one rename: readers never see a part of it, a driver that dies leaves at
  most a hidden directory, and a job that fails leaves nothing (OUT-3, OUT-5).
* After the rename a zombie attempt has no directory to write to (OUT-6).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, TypeVar

from spark_ft import codecs, rows
from spark_ft.errors import JobError, UsageError
from spark_ft.lineage.inputs import is_remote, local_path
from spark_ft.rdd.base import RDDBase
from spark_ft.taskcontext import TaskContext

T = TypeVar("T")

_TEMPORARY = "_temporary"
_LINES = 8192  # joined at a time
_ROWS = 1024  # in a batch of a pickle file, unless that gets too large
_BATCH_BYTES = 128 << 10

Writer = Callable[[BinaryIO, Iterator[Any]], None]
RunJob = Callable[[Callable[[int, Iterator[Any]], str]], list[str]]


class SavingMixin(RDDBase[T]):
    """The methods that write files."""

    def saveAsTextFile(self, path: str, compressionCodecClass: str | None = None) -> None:
        """Write each record as a line of text into ``path/part-00000`` and so on.

        Bytes are written as they are, everything else as ``str(record)`` in UTF-8.  Codecs go by their
        Hadoop class names (Gzip, BZip2, Default, …).  Raises JobError (TARGET_EXISTS, the text has
        ``FileAlreadyExists``) before any task runs.
        """
        codec = codecs.by_class_name(compressionCodecClass)
        extension = "" if codec is None else codec.extension
        save(path, self._run, write_text, extension)

    def saveAsPickleFile(self, path: str, batchSize: int = 10) -> None:
        """Write the records so that ``SparkContext.pickleFile`` reads them again.

        The container is our own.  ``batchSize`` is accepted; batches are sized by their bytes.
        """
        save(path, self._run, write_batches)


def save(path: str, run: RunJob, writer: Writer, extension: str = "") -> list[str]:
    """Run a job that writes a directory; answers its part files in order.

    Raises JobError (TARGET_EXISTS), before the job and also when the target appeared meanwhile.
    """
    if is_remote(path):
        raise UsageError(f"only the local file system can be written to, not {path}")
    target = local_path(path)
    _refuse_existing(target)
    parent, name = os.path.split(target)
    os.makedirs(parent, exist_ok=True)
    staging = _make_staging(parent, name)
    try:
        attempts = run(partial(_write_part, os.path.join(staging, _TEMPORARY), writer, extension))
        parts = _move_into_place(staging, attempts, extension)
        with open(os.path.join(staging, "_SUCCESS"), "wb"):
            pass
        _publish(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return [os.path.join(target, part) for part in parts]


def _refuse_existing(target: str) -> None:
    if os.path.lexists(target):
        raise JobError(f"FileAlreadyExists: Output directory file:{target} already exists", "TARGET_EXISTS")


def _make_staging(parent: str, name: str) -> str:
    """A hidden directory of this job alone, beside the target so that a rename can publish it."""
    for number in range(1 << 20):
        staging = os.path.join(parent, f".{name}.{os.getpid()}-{threading.get_ident():x}-{number}")
        with contextlib.suppress(FileExistsError):
            os.mkdir(staging)
            os.mkdir(os.path.join(staging, _TEMPORARY))
            return staging
    raise JobError(f"{parent} is full of left over staging directories", "TARGET_EXISTS")


def _move_into_place(staging: str, attempts: list[str], extension: str) -> list[str]:
    """The files of the attempts that count get their names; all others go with ``_temporary``."""
    parts = []
    temporary = os.path.join(staging, _TEMPORARY)
    for index, attempt in enumerate(attempts):
        part = f"part-{index:05d}{extension}"
        os.rename(os.path.join(temporary, attempt), os.path.join(staging, part))
        parts.append(part)
    doomed = os.path.join(staging, ".doomed")
    os.rename(temporary, doomed)  # from now on no zombie finds the directory
    shutil.rmtree(doomed)
    return parts


def _publish(staging: str, target: str) -> None:
    _refuse_existing(target)
    try:
        os.rename(staging, target)
    except (FileExistsError, NotADirectoryError, OSError) as error:
        if os.path.lexists(target):
            _refuse_existing(target)
        raise JobError(f"cannot publish file:{target}: {error}", "TARGET_NOT_WRITABLE") from error


# --- In tasks -------------------------------------------------------------------------------


def _write_part(
    temporary: str, writer: Writer, extension: str, partition: int, records: Iterator[Any]
) -> str:
    """Write one attempt's file; answers its name.  FileNotFoundError once the job has ended."""
    context = TaskContext.get()
    attempt = context.taskAttemptId() if context is not None else os.getpid()
    name = f"part-{partition:05d}.{attempt}"
    path = os.path.join(temporary, name)
    try:
        with open(path, "wb", buffering=1 << 20) as file:
            codec = codecs.by_extension(extension) if extension else None
            if codec is None:
                writer(file, records)
            else:
                with codec.writer(file) as compressed:
                    writer(compressed, records)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return name


def write_text(file: BinaryIO, records: Iterator[Any]) -> None:
    """Lines; in blocks, because joining strings is faster than writing each."""
    while block := list(islice(records, _LINES)):
        try:
            data = "\n".join(block).encode()
        except TypeError:  # not all are strings
            data = b"\n".join(x if isinstance(x, bytes) else str(x).encode() for x in block)
        file.write(data)
        file.write(b"\n")


def write_batches(file: BinaryIO, records: Iterator[Any]) -> None:
    """Batches of about 128 KiB; their bounds depend on the records alone."""
    size = _ROWS
    while batch := list(islice(records, size)):
        data = rows.encode(batch)
        file.write(data)
        size = max(1, min(4 * size, size * _BATCH_BYTES // len(data)))
