"""Which files a path means, and how they are cut into splits: planning, on the driver.

A path is a comma list of plain paths, ``file:`` URIs or URLs of a file system that fsspec knows;
each may hold the wildcards ``* ? [ab] [^ab] {a,b}``.  A directory means the files in it.  Files
whose name begins with ``_`` or ``.`` are left out, unless they are named outright.

Sizes and times are taken here and compared when a task reads (UE-1): a file that is not the one
that was planned gives an error, never other records.  (Rules of splitting: Hadoop's
FileInputFormat.)
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from spark_ft import codecs
from spark_ft.errors import InputChanged, JobError
from spark_ft.filesystems import is_remote, local_path, remote

MAX_SPLIT_BYTES = 32 << 20
_REMOTE_READ_BYTES = 4 << 20
_SLOP = 1.1  # the last split may be a tenth larger than the others
_MAGIC = re.compile(r"[*?\[]")
_REMEDY = "make the RDD anew to read what is there"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file as it was when the job was planned.  ``path`` is absolute, or a URL when ``remote``;
    then ``mtime_ns`` is -1 and ``version`` is what the store calls the content: an entity tag, a time; empty
    where it says nothing."""

    path: str
    size: int
    mtime_ns: int = -1
    remote: bool = False
    version: str = ""

    @property
    def uri(self) -> str:
        return self.path if self.remote else f"file:{self.path}"

    def open(self) -> BinaryIO:
        """The file, unbuffered; InputChanged when it is not the planned one any more."""
        if self.remote:
            return self._open_remote()
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:
            raise InputChanged(f"{self.uri} has vanished since the job was planned; {_REMEDY}") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            text = f"{self.uri} can no longer be read as when the job was planned: {error}; {_REMEDY}"
            raise InputChanged(text) from None
        try:
            self.check(file)
        except InputChanged:
            file.close()
            raise
        return file

    def _open_remote(self) -> BinaryIO:
        store, path = remote(self.path)
        try:
            found = store.info(path)
            if int(found["size"] or 0) != self.size or _tag(found) not in self.version:
                raise InputChanged(f"{self.uri} has changed since the job was planned; {_REMEDY}")
            opened: BinaryIO = store.open(path, "rb", block_size=_REMOTE_READ_BYTES)
        except FileNotFoundError:
            raise InputChanged(f"{self.uri} has vanished since the job was planned; {_REMEDY}") from None
        return opened

    def check(self, file: BinaryIO) -> None:
        """Compare an open local file with what was planned; also after reading, so that a change
        meanwhile cannot pass unseen.  A store names the version that it is asked for by itself."""
        if self.remote:
            return
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
            raise InputChanged(
                f"{self.uri} has changed since the job was planned: {self.size} bytes then, "
                f"{found.st_size} bytes now; {_REMEDY}"
            )


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes [start, end) of a file; ``end`` is -1 for an unsplittable file: all of it."""

    file: InputFile
    start: int
    end: int


def find(paths: str) -> list[InputFile]:
    """The files that ``paths`` means, in the order given, sorted by name within each item.

    Raises JobError (INPUT_NOT_FOUND) when a path or pattern matches nothing, TypeError for what is no path.
    """
    files: list[InputFile] = []
    for item in _split_commas(os.fspath(paths)):
        if is_remote(item):
            files.extend(_find_remote(item))
        else:
            files.extend(_find_local(item))
    return files


def cut(files: Sequence[InputFile], minimum: int) -> list[Split]:
    """Splits of about total/minimum bytes, at most 32 MiB; one for a compressed or empty file."""
    goal = sum(file.size for file in files) // max(minimum, 1)
    size = max(1, min(goal, MAX_SPLIT_BYTES))
    splits: list[Split] = []
    for file in files:
        if codecs.by_extension(file.path) is not None:
            splits.append(Split(file, 0, -1))
            continue
        start = 0
        while (file.size - start) / size > _SLOP:
            splits.append(Split(file, start, start + size))
            start += size
        if start < file.size or file.size == 0:
            splits.append(Split(file, start, file.size))
    return splits


def group(files: Sequence[InputFile], limit_bytes: int) -> list[tuple[InputFile, ...]]:
    """Whole files, in order, packed until a group has reached ``limit_bytes``."""
    groups: list[tuple[InputFile, ...]] = []
    current: list[InputFile] = []
    total = 0
    for file in files:
        current.append(file)
        total += file.size
        if total >= limit_bytes > 0:
            groups.append(tuple(current))
            current, total = [], 0
    if current:
        groups.append(tuple(current))
    return groups


def _split_commas(paths: str) -> Iterator[str]:
    """Cut at commas, but not inside braces."""
    depth = start = 0
    for i, c in enumerate(paths):
        depth += (c == "{") - (c == "}")
        if c == "," and depth <= 0:
            yield paths[start:i].strip()
            start = i + 1
    yield paths[start:].strip()


def _expand_braces(pattern: str) -> list[str]:
    """``a{b,c}d`` -> ``abd``, ``acd``; nested ones too."""
    begin = pattern.find("{")
    if begin < 0:
        return [pattern]
    depth, parts, start = 0, [], begin + 1
    for i in range(begin, len(pattern)):
        c = pattern[i]
        depth += (c == "{") - (c == "}")
        if (c == "," and depth == 1) or depth == 0:
            parts.append(pattern[start:i])
            start = i + 1
        if depth == 0:
            return [e for part in parts for e in _expand_braces(pattern[:begin] + part + pattern[i + 1 :])]
    return [pattern]


def _hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _find_local(item: str) -> list[InputFile]:
    path = local_path(item) if item else ""
    if not item:
        raise JobError("Can not create a Path from an empty string", "INPUT_NOT_FOUND")
    if _MAGIC.search(path) or "{" in path:
        names = sorted(
            {
                name
                for pattern in _expand_braces(path)
                for name in glob.glob(pattern.replace("[^", "[!"))
                if not _hidden(os.path.basename(name))
            }
        )
        if not names:
            raise JobError(f"Input Pattern file:{path} matches 0 files", "INPUT_NOT_FOUND")
    else:
        names = [path]
    files: list[InputFile] = []
    for name in names:
        try:
            found = os.stat(name)
            if stat.S_ISDIR(found.st_mode):
                files.extend(_in_directory(name))
            else:
                files.append(_readable(name, found))
        except FileNotFoundError:
            raise JobError(f"Input path does not exist: file:{name}", "INPUT_NOT_FOUND") from None
        except OSError as error:
            raise JobError(f"Input path cannot be read: file:{name}: {error}", "INPUT_NOT_FOUND") from None
    return files


def _in_directory(folder: str) -> list[InputFile]:
    with os.scandir(folder) as entries:
        wanted = sorted((e for e in entries if not _hidden(e.name)), key=lambda e: e.name)
    for entry in wanted:
        if entry.is_dir():
            raise JobError(f"Not a file: file:{entry.path}", "INPUT_NOT_A_FILE")
    return [_readable(entry.path, entry.stat()) for entry in wanted]


def as_it_is(path: str) -> InputFile:
    """A local file with its present size and time."""
    found = os.stat(path)
    return InputFile(path, found.st_size, found.st_mtime_ns)


def _readable(path: str, found: os.stat_result) -> InputFile:
    if not os.access(path, os.R_OK):
        raise JobError(f"Input path cannot be read: file:{path}: permission denied", "INPUT_NOT_FOUND")
    return InputFile(path, found.st_size, found.st_mtime_ns)


_VERSIONS = (
    "etag", "md5", "digest", "checksum", "generation", "version", "modified", "mtime", "updated", "created",
)  # fmt: skip


def _version(about: Mapping[str, Any]) -> str:
    """What fsspec's file systems tell of the state of a file, under their many names for it."""
    told = sorted((key, value) for key, value in about.items() if value and _says_version(key))
    return "; ".join(f"{key}={value}" for key, value in told)


def _says_version(key: str) -> bool:
    return any(word in key.lower().replace("-", "").replace("_", "") for word in _VERSIONS)


def _find_remote(item: str) -> list[InputFile]:
    store, path = remote(item)
    if _MAGIC.search(path) or "{" in path:
        found = {p: i for each in _expand_braces(path) for p, i in store.glob(each, detail=True).items()}
        names = sorted(name for name in found if not _hidden(_base(name)))
        if not names:
            raise JobError(f"Input Pattern {item} matches 0 files", "INPUT_NOT_FOUND")
    else:
        names = [path]
    files: list[InputFile] = []
    for name in names:
        try:
            info = store.info(name)
            inside = _in_remote_directory(store, name) if info["type"] == "directory" else [info]
        except FileNotFoundError:
            raise JobError(f"Input path does not exist: {item}", "INPUT_NOT_FOUND") from None
        except PermissionError as error:
            raise JobError(f"Input path cannot be read: {item}: {error}", "INPUT_NOT_FOUND") from None
        for each in inside:
            url = str(store.unstrip_protocol(each["name"]))
            files.append(InputFile(url, int(each["size"] or 0), remote=True, version=_version(each)))
    return files


def _in_remote_directory(store: Any, folder: str) -> list[dict[str, Any]]:
    """Raises JobError (INPUT_INCOMPLETE) for one that is being written: there a directory does not appear
    at once as it does on a local file system, and counts from ``_SUCCESS`` on (storage/outputs.py)."""
    found = {_base(each["name"]): each for each in store.ls(folder, detail=True)}
    if "_temporary" in found and "_SUCCESS" not in found:
        raise JobError(
            f"{store.unstrip_protocol(folder)} is being written, or whoever wrote it has died: there is no "
            "_SUCCESS in it. Wait for its program to end, or run that one again",
            "INPUT_INCOMPLETE",
        )
    wanted = [found[name] for name in sorted(found) if name and not _hidden(name)]
    for each in wanted:
        if each["type"] == "directory":
            raise JobError(f"Not a file: {store.unstrip_protocol(each['name'])}", "INPUT_NOT_A_FILE")
    return wanted


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _tag(about: Mapping[str, Any]) -> str:
    """The entity tag; empty where there is none.  The rest of a version some stores tell otherwise in a
    listing than for the file itself."""
    return str(about.get("ETag") or about.get("etag") or "")
