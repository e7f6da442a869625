"""Files that a program ships with its tasks: SparkFiles, and how they get to the executors.

    driver: addFile -> <scratch>/files/<digest>/<name>, listed in the job property PROPERTY
    task:   ensure(properties, env) -> links in a directory of this executor's own, sys.path

* The property travels with each job, so an executor that was started a moment ago has all files.
* An executor on the driver's machine links to the driver's copy; elsewhere the bytes come as a block
  of the driver's store (a tar), only when the driver put one there.
* Directories on ``sys.path`` come right behind the script's own, so they shadow the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from spark_ft.errors import JobError, PySparkRuntimeError
from spark_ft.ids import HostId
from spark_ft.protocol.messages import BlockRef

__all__ = ["SparkFiles"]

PROPERTY = "spark.ft.files"
_PACKAGES = (".zip", ".egg", ".jar", ".whl")
_CHUNK_BYTES = 1 << 20

PutBlock = Callable[[str, bytes, Iterable[bytes]], BlockRef]


class FilesEnv(Protocol):
    """What a task's environment must offer."""

    def read_block(self, block: BlockRef) -> bytes: ...


class SparkFiles:
    """Where the files are that ``SparkContext.addFile`` and ``addPyFile`` have shipped."""

    _root: Path | None = None  # of this process

    def __init__(self) -> None:
        raise TypeError("Do not construct SparkFiles objects")

    @classmethod
    def get(cls, filename: str) -> str:
        """The absolute path of an added file, on the driver and in tasks."""
        return os.path.abspath(os.path.join(cls.getRootDirectory(), filename))

    @classmethod
    def getRootDirectory(cls) -> str:
        """The directory that holds the added files; each executor has its own."""
        if cls._root is None:
            raise PySparkRuntimeError(
                errorClass="CALL_BEFORE_INITIALIZE",
                messageParameters={"func_name": "SparkFiles.getRootDirectory", "object": "SparkContext"},
            )
        cls._root.mkdir(parents=True, exist_ok=True)
        return str(cls._root)


def _place_on_path(entry: str) -> None:
    """Make importable, ahead of the standard library, at once."""
    if entry not in sys.path:
        sys.path.insert(1, entry)
    importlib.invalidate_caches()


def _link(root: Path, name: str, target: str) -> None:
    """``root/name`` -> target, replacing what was there."""
    root.mkdir(parents=True, exist_ok=True)
    link = root / name
    if link.is_symlink() and os.readlink(link) == target:
        return
    fresh = root / f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    fresh.replace(link)


# --- Driver side ----------------------------------------------------------------------------


class Registry:
    """The files of one application; ``folder`` lies in its scratch.

    ``put_block`` is given when executors may run on other machines.
    """

    def __init__(self, folder: Path, put_block: PutBlock | None = None) -> None:
        self._folder = folder
        self._put_block = put_block
        self._entries: dict[str, dict[str, Any]] = {}  # by name
        self._uris: dict[str, str] = {}
        self._on_path: list[str] = []
        self._lock = threading.Lock()
        self._property = ""
        self.root = folder / "driver"
        SparkFiles._root = self.root

    @property
    def text(self) -> str:
        """The job property; empty when nothing was added."""
        return self._property

    def uris(self, archives: bool) -> list[str]:
        """Where the files, or the archives, were added from."""
        with self._lock:
            return [u for n, u in self._uris.items() if (self._entries[n]["kind"] == "archive") is archives]

    def add(self, path: str, *, kind: str = "file", recursive: bool = False, overwrite: bool = False) -> None:
        """Copy a file or directory and list it.  ``kind`` is file, py or archive (``x.zip#name``).

        Raises JobError: INPUT_NOT_FOUND, or WRONG_FILE for a directory without ``recursive`` and for a
        known name with other content without ``overwrite``.
        """
        source, alias = path, ""
        if kind == "archive" and "#" in path:
            source, _, alias = path.rpartition("#")
        if source.startswith("file:"):
            source = source.removeprefix("file:").removeprefix("//")
        source = os.path.abspath(source)
        if not os.path.exists(source):
            raise JobError(f"File file:{source} does not exist", "INPUT_NOT_FOUND")
        if os.path.isdir(source) and not recursive:
            raise JobError(
                f"Added file file:{source} is a directory and recursive is not turned on.", "WRONG_FILE"
            )
        name = alias or os.path.basename(source)
        digest = _digest(source)
        with self._lock:
            known = self._entries.get(name)
            if known is not None and known["digest"] == digest:
                return
            if known is not None and not overwrite:
                raise JobError(
                    f"File {name} was already registered with a different path or content "
                    f"({self._uris[name]}); set spark.files.overwrite to replace it",
                    "WRONG_FILE",
                )
            copied = self._copy(source, name, digest, unpack=kind == "archive")
            entry: dict[str, Any] = {"name": name, "kind": kind, "digest": digest, "path": str(copied)}
            if self._put_block is not None:
                ref = self._put_block("blob", f"file:{digest}:{name}".encode(), _tar(copied))
                where = [ref.host, ref.store, ref.segment, ref.key.hex(), ref.size_bytes, ref.checksum]
                entry["block"] = where
            self._entries[name] = entry
            self._uris[name] = f"file:{source}" + (f"#{alias}" if alias else "")
            self._property = json.dumps({"folder": str(self._folder), "files": list(self._entries.values())})
        _link(self.root, name, str(copied))
        for place in _places(self.root, entry):
            self._on_path.append(place)
            _place_on_path(place)

    def _copy(self, source: str, name: str, digest: str, unpack: bool) -> Path:
        target = self._folder / digest / name
        if not target.exists():
            fresh = target.parent / f".{name}"  # whole or not at all
            shutil.rmtree(fresh, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            if unpack:
                _unpack(source, fresh)
            elif os.path.isdir(source):
                shutil.copytree(source, fresh)
            else:
                shutil.copy2(source, fresh)
            fresh.rename(target)
        return target

    def close(self) -> None:
        """Take back what was put on ``sys.path``; the copies go with the scratch."""
        for place in self._on_path:
            with contextlib.suppress(ValueError):
                sys.path.remove(place)
        if SparkFiles._root == self.root:
            SparkFiles._root = None


def _unpack(archive: str, target: Path) -> None:
    """A zip or tar, with nothing in it landing outside of ``target``."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    else:
        shutil.unpack_archive(archive, target)


def _digest(path: str) -> str:
    """Of the content of a file, or of names and contents below a directory."""
    total = hashlib.blake2b(digest_size=12)
    names = [path]
    if os.path.isdir(path):
        names = sorted(os.path.join(top, name) for top, _, found in os.walk(path) for name in found)
    for name in names:
        total.update(os.path.relpath(name, path).encode() + b"\0")
        with open(name, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()


def _tar(path: Path) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(path, arcname=path.name)
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _places(root: Path, entry: Mapping[str, Any]) -> list[str]:
    """What an entry puts on ``sys.path``: a package file itself, and the directory of a ``.py``."""
    if entry["kind"] == "py" and entry["name"].lower().endswith(_PACKAGES):
        return [str(root / entry["name"])]
    return [str(root)] if entry["name"].endswith(".py") else []


# --- Task side ------------------------------------------------------------------------------


class _Process:
    lock = threading.Lock()
    seen = ""  # the property that was last carried out
    root: Path | None = None


def ensure(properties: Mapping[str, str], env: FilesEnv) -> None:
    """Have all files of the job in place, and its packages importable; before its functions are loaded.

    Costs a dictionary lookup and a comparison when nothing is new.
    """
    text = properties.get(PROPERTY, "")
    if not text or text == _Process.seen:
        return
    with _Process.lock:
        if text == _Process.seen:
            return
        wanted = json.loads(text)
        root = _Process.root
        if root is None:
            root = _Process.root = SparkFiles._root = _own_root(Path(wanted["folder"]))
        for entry in wanted["files"]:
            _link(root, entry["name"], _source(root, entry, env))
            for place in _places(root, entry):
                _place_on_path(place)
        _Process.seen = text


def _own_root(folder: Path) -> Path:
    """A directory of this process: in the application's scratch, or where temporary files go."""
    if folder.is_dir():
        root = folder / f"executor-{os.getpid()}"
        root.mkdir(exist_ok=True)
        return root
    root = Path(tempfile.mkdtemp(prefix="spark-ft-files-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _source(root: Path, entry: Mapping[str, Any], env: FilesEnv) -> str:
    """The driver's copy where it can be seen, else one unpacked from its block."""
    path = str(entry["path"])
    if os.path.exists(path) or "block" not in entry:
        return path
    target = root / ".fetched" / entry["digest"]
    if not target.exists():
        host, store, segment, key, size, checksum = entry["block"]
        data = env.read_block(BlockRef(HostId(host), store, segment, bytes.fromhex(key), size, checksum))
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(fresh, filter="data")
        fresh.replace(target)
    return str(target / entry["name"])
