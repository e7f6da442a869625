"""The one door to file systems by URL.  Plain paths and ``file:`` stay with the operating system; any other
scheme (``s3:``, ``gs:``, ``hdfs:`` …) goes through fsspec, an extra.

    at(path) ──> Local | Remote, and the path as that one writes it

* What is remote is asked anew: listings that fsspec caches are dropped first, for the driver lives long.
* ``write`` and ``create`` show a file whole or not at all; a file that ``new_file`` opened for a remote
  store shows when it is closed, and never when its block was left by an exception.
* fsspec takes longer to load than all of this package: it is imported when the first URL asks for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from spark_ft.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=/|//)")
_WRITE_BYTES = 1 << 20


def scheme_of(path: str) -> str:
    """``file`` for plain paths, too."""
    match = _SCHEME.match(path)
    return "file" if match is None else match[1]


def is_remote(path: str) -> bool:
    """Does the path name a file system other than the local one?"""
    return scheme_of(path) != "file"


def local_path(path: str) -> str:
    """A ``file:`` URI or plain path as an absolute path."""
    if path.startswith("file:"):
        path = re.sub(r"^file:(//[^/]*)?", "", path)
    return os.path.abspath(path)


def at(path: str) -> tuple[Local | Remote, str]:
    """The file system of a path or URL, and the path within it, without a slash at its end.

    Raises UsageError that names the extra when a library is missing or the scheme is unknown.
    """
    if not is_remote(path):
        return Local(), local_path(path)
    found, inside = remote(path)
    return Remote(found), inside.rstrip("/")


def remote(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, with no listing cached, and the path within it."""
    try:
        import fsspec
    except ImportError:
        raise UsageError(
            f"{url} needs fsspec, which is not installed here: pip install 'spark-ft[files]' on the driver "
            "and wherever executors run ('spark-ft[s3]' for s3: URLs)",
            "FILE_SYSTEM_NOT_INSTALLED",
        ) from None
    try:
        found, inside = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = "'spark-ft[s3]'" if scheme_of(url) in ("s3", "s3a") else "what it names"
        raise UsageError(
            f"{url} needs a library that is not installed here ({error}): pip install {extra} on the driver "
            "and wherever executors run",
            "FILE_SYSTEM_NOT_INSTALLED",
        ) from None
    except ValueError as error:
        raise UsageError(f"{url}: {error}", "FILE_SYSTEM_UNKNOWN") from None
    found.invalidate_cache()
    return found, inside


class Local:
    """The operating system's files."""

    remote = False

    def uri(self, path: str) -> str:
        return f"file:{path}"

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def names(self, path: str) -> list[str]:
        """What a directory holds; nothing when it is none."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        """In bytes; -1 when there is no such file."""
        try:
            return os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            return -1

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        with open(path, "rb") as file:
            return file.read()

    def open(self, path: str) -> BinaryIO:
        """To read, unbuffered.  Raises FileNotFoundError."""
        return open(path, "rb", buffering=0)

    @contextlib.contextmanager
    def new_file(self, path: str, durable: bool = False) -> Iterator[BinaryIO]:
        """To write; taken away when the block is left by an exception.  ``durable``: on the disk before the
        block ends.  Raises FileNotFoundError when its directory is not there."""
        try:
            with open(path, "wb", buffering=_WRITE_BYTES) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:  # a cancelled task's too: half a file is nobody's
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise

    def write(self, path: str, data: bytes) -> None:
        """Replaces what was there."""
        fresh = f"{path}.{os.getpid()}.new"
        with self.new_file(fresh, durable=True) as file:
            file.write(data)
        os.replace(fresh, path)

    def create(self, path: str, data: bytes, durable: bool = True) -> bool:
        """False, and nothing changed, when a file of that name is there."""
        fresh = f"{path}.{os.getpid()}.new"
        with self.new_file(fresh, durable) as file:
            file.write(data)
        try:
            os.link(fresh, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(fresh)
        return True

    def move(self, source: str, target: str) -> None:
        """Replaces what was there.  Raises FileNotFoundError."""
        os.replace(source, target)

    def make_directory(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def delete_tree(self, path: str) -> None:
        """Nothing happens when it is not there."""
        shutil.rmtree(path, ignore_errors=True)


class Remote:
    """A store behind fsspec: no rename, no directories of its own, objects that appear whole."""

    remote = True

    def __init__(self, found: Any) -> None:
        self._fs = found

    def uri(self, path: str) -> str:
        return str(self._fs.unstrip_protocol(path))

    def exists(self, path: str) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(path))

    def names(self, path: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        inside = {each.rstrip("/").rpartition("/")[2] for each in found if each.rstrip("/") != path}
        return sorted(inside)

    def size(self, path: str) -> int:
        self._fs.invalidate_cache()
        try:
            return int(self._fs.size(path) or 0)
        except FileNotFoundError:
            return -1

    def read(self, path: str) -> bytes:
        self._fs.invalidate_cache()
        return bytes(self._fs.cat_file(path))

    def open(self, path: str) -> BinaryIO:
        opened: BinaryIO = self._fs.open(path, "rb")
        return opened

    @contextlib.contextmanager
    def new_file(self, path: str, durable: bool = False) -> Iterator[BinaryIO]:
        """As ``Local.new_file``; what a store has acknowledged is durable."""
        file = self._fs.open(path, "wb")
        try:
            yield file
        except BaseException:  # as there
            with contextlib.suppress(Exception):  # the first error is what counts
                file.discard()
            with contextlib.suppress(AttributeError):
                file.closed = True  # or its finalizer would send what there is
            with contextlib.suppress(Exception):  # as above; some stores show a file when it is opened
                self._fs.rm_file(path)
            raise
        file.close()

    def write(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(path, data)

    def create(self, path: str, data: bytes, durable: bool = True) -> bool:
        """As ``Local.create``; on a store without conditional writes two at once may both succeed."""
        if self.exists(path):
            return False
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError):
            self._fs.pipe_file(path, data)
        return True

    def copy(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Within the store, without the bytes passing through here.  Raises FileNotFoundError."""
        if sources:
            self._fs.copy(list(sources), list(targets), on_error="raise")

    def move(self, source: str, target: str) -> None:
        self.copy([source], [target])
        self._fs.rm_file(source)

    def make_directory(self, path: str) -> None:
        """A store has none of its own."""

    def delete_tree(self, path: str) -> None:
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)
        self._fs.invalidate_cache()
