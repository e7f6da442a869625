"""Directories of part files that appear whole or not at all, once, whatever dies in between (OUT-1 to OUT-6).

    attempts:  <staging>/_temporary/part-00003.<task>-<random>       one file each, never another's
    driver:    begin ── job ── decide ── carry out
                               │          parts get their names; _SUCCESS; the directory shows
                               └ the manifest: which attempt is each partition's.  Written once.

On the local file system the staging directory is hidden beside the target, parts are moved, and one rename
publishes.  In a store without renames it is ``<target>/_temporary/<token>``, parts are copied within the
store, and the directory counts from ``_SUCCESS`` on (lineage/inputs.py refuses it until then).

* A partition's result is taken by the driver once (S1, S2), and that is the commit's grant: attempts never
  move anything, so neither twins, nor zombies, nor an answer that comes twice can publish (OUT-1, OUT-4).
* Nothing of the target changes before the manifest, and nothing is decided after it: every step behind it
  may be done again, by anybody, any number of times (OUT-2, OUT-3).  ``_SUCCESS`` holds the manifest.
* ``job`` names an action across the lives of its driver.  What was published under the same name is this
  action's own answer; what was decided under it is carried out; what was begun is gone on with.
* Without such a name a staging directory goes with its driver: it is held by a lock, and whoever saves
  there next sweeps away what nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

from xxhash import xxh3_128

from spark_ft import codecs, failpoints
from spark_ft.errors import JobError
from spark_ft.filesystems import Local, Remote, at, is_remote
from spark_ft.ids import new_incarnation
from spark_ft.records import record
from spark_ft.taskcontext import TaskContext

_FORMAT = "spark_ft parts 1"
_TEMPORARY, _MANIFEST, SUCCESS = "_temporary", "_manifest", "_SUCCESS"
_AT_ONCE = 256  # copies that a store is asked for

Writer = Callable[[BinaryIO, Iterator[Any]], None]
RunJob = Callable[[Callable[[int, Iterator[Any]], "tuple[str, int, str]"]], "list[tuple[str, int, str]]"]


@record
class Manifest:
    """What an output consists of: for each partition the attempt that counts, with the bytes and the
    xxh3_128 that it wrote."""

    job: str
    token: str
    extension: str
    attempts: tuple[tuple[str, int, str], ...]

    @property
    def parts(self) -> list[str]:
        """Names of the files, in the order of partitions."""
        return [f"part-{index:05d}{self.extension}" for index in range(len(self.attempts))]

    def encode(self) -> bytes:
        named = {name: getattr(self, name) for name in ("job", "token", "extension", "attempts")}
        return json.dumps({"format": _FORMAT, **named}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest | None:
        """None for what is no manifest, such as the empty ``_SUCCESS`` of other programs."""
        try:
            said = json.loads(data)
            if said["format"] != _FORMAT:
                return None
            attempts = tuple((str(name), int(size), str(sum)) for name, size, sum in said["attempts"])
            return cls(said["job"], said["token"], said["extension"], attempts)
        except (ValueError, KeyError, TypeError):
            return None


def save(
    target: str,
    run: RunJob,
    writer: Writer,
    extension: str = "",
    *,
    job: str = "",
    durable: bool = False,
) -> Manifest:
    """Run a job that writes a directory.  ``durable``: on the disk before this returns.

    Raises JobError: TARGET_EXISTS, before the job and also when the target appeared meanwhile,
    TARGET_NOT_WRITABLE, OUTPUT_PART_LOST when a file that a task wrote cannot be seen from here.
    """
    output = (_InStore if is_remote(target) else _InDirectory)(target, job, durable)
    with contextlib.closing(output):
        decided = output.begin()
        if decided is None:
            write = partial(write_part, output.attempts, writer, extension, durable)
            decided = output.decide(run(write), extension)
        output.carry_out(decided)
        return decided


def abandon(target: str, job: str) -> None:
    """What was begun under this name and not ended is not gone on with."""
    output = (_InStore if is_remote(target) else _InDirectory)(target, job, False)
    output.files.delete_tree(output.staging)


def published(target: str) -> Manifest | None:
    """The manifest of a directory that is there whole; None when there is none.

    Raises UsageError for a URL whose library is missing.
    """
    files, path = at(target)
    return _read(files, f"{path}/{SUCCESS}")


def _read(files: Local | Remote, path: str) -> Manifest | None:
    try:
        return Manifest.decode(files.read(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Output:
    """What both kinds share."""

    attempts: str  # where tasks write, as they are told it
    staging: str

    def __init__(self, target: str, job: str, durable: bool) -> None:
        self.files, self.target = at(target)
        self.uri = self.files.uri(self.target)
        self.job, self.token = job, job or new_incarnation("save")
        self.durable = durable

    def exists(self) -> JobError:
        return JobError(f"FileAlreadyExists: Output directory {self.uri} already exists", "TARGET_EXISTS")

    def own(self) -> Manifest | None:
        """What is published, when it is this very action's."""
        found = _read(self.files, f"{self.target}/{SUCCESS}")
        return found if found is not None and self.is_own(found) else None

    def is_own(self, found: Manifest) -> bool:
        return found.token == self.token or (self.job != "" and found.job == self.job)

    def manifest(self, folder: str, attempts: Sequence[tuple[str, int, str]], extension: str) -> Manifest:
        """Raises JobError (OUTPUT_PART_LOST)."""
        lost = [name for name, size, _ in attempts if self.files.size(f"{folder}/{name}") != size]
        if lost:
            raise JobError(
                f"{len(lost)} of {len(attempts)} files that tasks have written for {self.uri} cannot be seen "
                f"by the driver, or not whole: {', '.join(lost[:5])}. Were they deleted, or is this path not "
                "on a file system that all hosts share?",
                "OUTPUT_PART_LOST",
            )
        return Manifest(self.job, self.token, extension, tuple(attempts))


class _InDirectory(_Output):
    """Staging beside the target; ``_SUCCESS`` is its lock file before it is anything else."""

    def __init__(self, target: str, job: str, durable: bool) -> None:
        super().__init__(target, job, durable)
        self.parent, self.name = os.path.split(self.target)
        self.staging = os.path.join(self.parent, f".{self.name}.{self.token}")
        self.attempts = os.path.join(self.staging, _TEMPORARY)
        self._lock_fd = -1
        self._kept = job != ""  # what was begun outlives this process

    def begin(self) -> Manifest | None:
        if self.files.exists(self.target):
            if (own := self.own()) is not None:
                return own
            raise self.exists()
        try:
            os.makedirs(self.parent, exist_ok=True)
            self._sweep()
            self._hold()
        except OSError as error:
            raise JobError(f"cannot write to {self.uri}: {error}", "TARGET_NOT_WRITABLE") from error
        failpoints.hit("save.begun")
        return self._decided()

    def _decided(self) -> Manifest | None:
        return _read(self.files, f"{self.staging}/{_MANIFEST}") or _read(
            self.files, f"{self.staging}/{SUCCESS}"
        )

    def _hold(self) -> None:
        """Make the staging directory and lock it, unless another life of this very action holds it."""
        while True:
            os.makedirs(self.attempts, exist_ok=True)
            path = os.path.join(self.staging, SUCCESS)
            self._lock_fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | (fcntl.LOCK_NB if self.job else 0))
            except OSError:
                return  # a file system without locks, or a driver that this one has taken over from
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(self._lock_fd)):
                    return
            self.close_lock()  # swept away before it was locked: once more

    def _sweep(self) -> None:
        """Remove staging directories of this target that no living driver holds."""
        for name in self.files.names(self.parent):
            path = os.path.join(self.parent, name)
            if name.startswith(f".{self.name}.") and path != self.staging:
                with contextlib.suppress(OSError), open(os.path.join(path, SUCCESS), "r+b") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.files.delete_tree(path)

    def decide(self, attempts: Sequence[tuple[str, int, str]], extension: str) -> Manifest:
        failpoints.hit("save.before_manifest")
        try:
            wanted = self.manifest(self.attempts, attempts, extension)
            if self.files.exists(self.target) and self.own() is None:
                raise self.exists()
            if not self.files.create(f"{self.staging}/{_MANIFEST}", wanted.encode(), self.durable):
                wanted = self._decided() or wanted
        except (JobError, FileNotFoundError):
            if (own := self.own()) is not None:  # another life of this action was faster
                return own
            raise
        self._kept = True
        failpoints.hit("save.after_manifest")
        return wanted

    def carry_out(self, decided: Manifest) -> None:
        if self.own() is not None:
            return
        try:
            self._name_parts(decided)
            self._publish(decided)
        except FileNotFoundError:
            if self.own() is None:
                raise

    def _name_parts(self, decided: Manifest) -> None:
        for (attempt, _, _), part in zip(decided.attempts, decided.parts, strict=True):
            path = os.path.join(self.staging, part)
            try:
                os.rename(os.path.join(self.attempts, attempt), path)
            except FileNotFoundError:
                if not os.path.exists(path):
                    raise
            failpoints.hit("save.part")
        doomed = os.path.join(self.staging, ".doomed")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.attempts, doomed)  # from now on no zombie finds the directory (OUT-6)
        self.files.delete_tree(doomed)

    def _publish(self, decided: Manifest) -> None:
        failpoints.hit("save.before_success")
        with open(os.path.join(self.staging, SUCCESS), "r+b") as success:
            success.write(decided.encode())
            success.truncate()
            if self.durable:
                success.flush()
                os.fsync(success.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.staging, _MANIFEST))
        if self.durable:
            _sync_directory(self.staging)
        failpoints.hit("save.before_publish")
        if self.files.exists(self.target) and self.own() is None:
            self._kept = self.job != ""
            raise self.exists()
        try:
            os.rename(self.staging, self.target)
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.files.exists(self.target):
                self._kept = self.job != ""
                raise self.exists() from error
            raise JobError(f"cannot publish {self.uri}: {error}", "TARGET_NOT_WRITABLE") from error
        if self.durable:
            _sync_directory(self.parent)
        failpoints.hit("save.after_publish")

    def close_lock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def close(self) -> None:
        """What is neither published nor to be gone on with goes."""
        if not self._kept:
            self.files.delete_tree(self.staging)
        self.close_lock()


class _InStore(_Output):
    """Staging within the target; the manifest lies where every driver that saves there finds it."""

    def __init__(self, target: str, job: str, durable: bool) -> None:
        super().__init__(target, job, durable)
        self.root = f"{self.target}/{_TEMPORARY}"
        self.staging = f"{self.root}/{self.token}"
        self.attempts = self.files.uri(self.staging)
        self._begun = self._kept = False

    @property
    def store(self) -> Remote:
        assert isinstance(self.files, Remote)
        return self.files

    def begin(self) -> Manifest | None:
        names = self.files.names(self.target)
        if SUCCESS in names:
            self._clean(names)
            if (own := self.own()) is not None:
                return own
            raise self.exists()
        decided = _read(self.files, f"{self.root}/{_MANIFEST}")
        if decided is not None and not self.is_own(decided):
            self.carry_out(decided)  # begun by a driver that is dead or slow: either way right
            raise self.exists()
        if decided is None and (set(names) - {_TEMPORARY} or (not names and self.files.exists(self.target))):
            raise self.exists()
        self._begun = True
        failpoints.hit("save.begun")
        return decided

    def decide(self, attempts: Sequence[tuple[str, int, str]], extension: str) -> Manifest:
        failpoints.hit("save.before_manifest")
        try:
            wanted = self.manifest(self.staging, attempts, extension)
        except JobError:
            if (own := self.own()) is not None:  # another life of this action was faster
                return own
            raise
        path = f"{self.root}/{_MANIFEST}"
        if not self.files.create(path, wanted.encode()):
            found = _read(self.files, path)
            if found is None or not self.is_own(found):
                raise self.exists()
            wanted = found
        elif SUCCESS in self.files.names(self.target) and self.own() is None:
            self.files.delete_tree(path)  # whoever published had cleaned up before this one was written
            raise self.exists()
        self._kept = True
        failpoints.hit("save.after_manifest")
        return wanted

    def carry_out(self, decided: Manifest) -> None:
        names = set(self.files.names(self.target))
        if SUCCESS in names:
            return self._clean(names)
        staging = f"{self.root}/{decided.token}"
        wanted = [
            (f"{staging}/{attempt}", f"{self.target}/{part}")
            for (attempt, _, _), part in zip(decided.attempts, decided.parts, strict=True)
            if part not in names
        ]
        try:
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                self.store.copy([source for source, _ in some], [part for _, part in some])
                failpoints.hit("save.part")
            failpoints.hit("save.before_success")
            self.files.write(f"{self.target}/{SUCCESS}", decided.encode())
        except FileNotFoundError:
            if SUCCESS not in self.files.names(self.target):  # nobody else has carried it out either
                raise
        failpoints.hit("save.after_publish")
        self.files.delete_tree(self.root)

    def _clean(self, names: Container[str]) -> None:
        """Whoever else writes there yet comes too late."""
        if _TEMPORARY in names:
            self.files.delete_tree(self.root)

    def close(self) -> None:
        if self._begun and not self._kept and not self.job:
            self.files.delete_tree(self.staging)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- In tasks -------------------------------------------------------------------------------


class _Summed:
    """A file that is written, with the count and the checksum of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sum, self.size = file, xxh3_128(), 0

    def write(self, data: Any) -> int:
        self.sum.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        pass


def write_part(
    folder: str, writer: Writer, extension: str, durable: bool, partition: int, records: Iterator[Any]
) -> tuple[str, int, str]:
    """Write one attempt's file; answers its name, bytes and checksum.

    Raises FileNotFoundError once the job has ended (local files), UsageError for a URL whose library is
    missing on this host.
    """
    context = TaskContext.get()
    task = context.taskAttemptId() if context is not None else os.getpid()
    files, path = at(folder)
    name = f"part-{partition:05d}.{new_incarnation(str(task))}"  # task ids begin again with each driver
    with files.new_file(f"{path}/{name}", durable) as file:
        summed = _Summed(file)
        sink: Any = summed
        codec = codecs.by_extension(extension) if extension else None
        if codec is None:
            writer(sink, records)
        else:
            with codec.writer(sink) as compressed:
                writer(compressed, records)
    failpoints.hit("save.written")  # and nobody knows yet
    return name, summed.size, summed.sum.hexdigest()
