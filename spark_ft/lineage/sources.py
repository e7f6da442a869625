"""The nodes without parents: collections of the driver, and files.

* What a source node holds when it is shipped is small: ranges, splits, block references.
* The same partition gives the same records whenever and wherever it is computed, or an error: files
  are compared with what was planned, collections are pickled when they are given.
* Files are looked for when partitions are asked for, on the driver, not when the RDD is made.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from spark_ft import codecs, rows
from spark_ft.errors import InputCorrupt, JobError, PySparkException, StorageError
from spark_ft.ids import NodeId, drawn_fingerprint
from spark_ft.lineage import inputs as files
from spark_ft.lineage.dependency import Fingerprinted
from spark_ft.lineage.inputs import InputFile, Split
from spark_ft.lineage.node import Node, TaskEnv
from spark_ft.protocol.messages import BlockRef

_READ_BYTES = 64 << 10  # of text: lines and what they are made into then stay in the cache
_INLINE_BYTES = 64 << 10  # a collection smaller than this travels inside its node
_BATCH_ROWS = 1024
_BATCH_BYTES = 128 << 10  # larger ones pickle more slowly: the table of what was met outgrows the cache
_BOM = b"\xef\xbb\xbf"

# Told of bad records instead of InputCorrupt: (URI, first byte of the split, how many of it so far).
Tally = Callable[[str, int, int], None]
PutBlock = Callable[[str, bytes, Iterable[bytes]], BlockRef]


class Empty(Node):
    """No partitions at all."""

    __slots__ = ()

    @property
    def partition_count(self) -> int:
        return 0

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        return iter(())


# --- Collections ------------------------------------------------------------------------------


class ParallelCollection(Node):
    """Slices of a collection: each is a ``range``, encoded batches, or a block that holds such."""

    __slots__ = ("content", "slices")

    def __init__(
        self,
        node_id: NodeId,
        slices: Sequence[range | bytes | BlockRef],
        content: Fingerprinted | None = None,
    ) -> None:
        super().__init__(node_id)
        self.slices = slices
        self.content = content

    @property
    def partition_count(self) -> int:
        return len(self.slices)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        part = self.slices[partition]
        if isinstance(part, range):
            return iter(part)
        data = part if isinstance(part, bytes) else env.read_block(part)
        return chain.from_iterable(rows.iter_batches(data))

    def counts_as(self) -> Mapping[str, object]:
        """Pickles say nothing sure of what they hold: the records do, as they were when they were given."""
        return {"slices": None} if self.content is not None else {"slices": self._records()}

    def _records(self) -> object:
        ranges = [(part.start, part.stop, part.step) for part in self.slices if isinstance(part, range)]
        if len(ranges) == len(self.slices):
            return ranges
        inline = [part for part in self.slices if isinstance(part, bytes)]
        if len(inline) == len(self.slices):
            return [list(chain.from_iterable(rows.iter_batches(part))) for part in inline]
        why = "records in blocks, which are looked at when they are given and spark.app.id is set"
        return Fingerprinted(drawn_fingerprint(), (why,))


def stored_slices(node: Node) -> list[BlockRef]:
    """The blocks that a collection's node refers to."""
    slices = node.slices if isinstance(node, ParallelCollection) else ()
    return [each for each in slices if isinstance(each, BlockRef)]


class NoSuchSlices(Empty):
    """What a negative number of slices makes: an error when it is used."""

    __slots__ = ("count",)

    def __init__(self, node_id: NodeId, count: int) -> None:
        super().__init__(node_id)
        self.count = count

    @property
    def partition_count(self) -> int:
        raise JobError(f"Positive number of partitions required, not {self.count}", "WRONG_PARTITION_COUNT")


def parallel_collection(
    node_id: NodeId,
    data: Iterable[Any],
    count: int,
    put_block: PutBlock,
    fingerprint: Callable[[Any], Fingerprinted] | None = None,
) -> Node:
    """A node with ``data`` in ``count`` slices, by PySpark's rules of slicing.

    ``fingerprint`` looks at the records where an application can be resumed.  They are pickled here and
    now, so what the program does to them later is not seen.
    Raises ZeroDivisionError when ``count`` is 0, pickle.PicklingError for what does not pickle.
    """
    if count < 1:
        if count == 0:
            raise ZeroDivisionError("number of slices must not be zero")
        return NoSuchSlices(node_id, count)
    if isinstance(data, range):
        return ParallelCollection(node_id, slice_range(data, count))
    records = data if isinstance(data, (list, tuple)) else list(data)
    content = None if fingerprint is None else fingerprint(list(records))
    room = _INLINE_BYTES
    slices: list[bytes | BlockRef] = []
    for start, end in slice_bounds(len(records), count):
        batches = _batches(records, start, end)
        first = list(_until(batches, room))
        room -= sum(map(len, first))
        if room >= 0:
            slices.append(b"".join(first))
        else:
            slices.append(put_block("slice", b"%d-%d" % (node_id, len(slices)), chain(first, batches)))
    return ParallelCollection(node_id, slices, content)


def slice_bounds(size: int, count: int) -> list[tuple[int, int]]:
    """Where ``size`` records of a list are cut into ``count`` slices: whole batches, as PySpark does.

    >>> slice_bounds(10, 4)
    [(0, 2), (2, 4), (4, 6), (6, 10)]
    """
    batch = max(1, min(size // count, 1024))
    batches = -(-size // batch)
    edges = [min(size, i * batches // count * batch) for i in range(count + 1)]
    return list(pairwise(edges))


def slice_range(data: range, count: int) -> list[range]:
    """A range in ``count`` ranges: slice i is [i*size//n, (i+1)*size//n)."""
    size = (data.stop - data.start + data.step - (1 if data.step > 0 else -1)) // data.step
    size = max(size, 0)
    edges = [i * size // count for i in range(count + 1)]
    at = [data.start + edge * data.step for edge in edges]
    return [range(a, b, data.step) for a, b in pairwise(at)]


def _batches(records: Sequence[Any], start: int, end: int) -> Iterator[bytes]:
    """Encode records[start:end] in batches of about 128 KiB."""
    size = _BATCH_ROWS
    while start < end:
        try:
            data = rows.encode(list(records[start : min(end, start + size)]))
        except (pickle.PicklingError, PySparkException):
            raise
        except Exception as error:  # user objects may raise anything while they are pickled
            text = f"Could not serialize object: {type(error).__name__}: {error}"
            raise pickle.PicklingError(text) from error
        yield data
        start += size
        size = max(1, min(4 * size, size * _BATCH_BYTES // len(data)))


def _until(batches: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """Take batches until they exceed ``limit`` bytes together; the one that does so is taken too."""
    for batch in batches:
        yield batch
        limit -= len(batch)
        if limit < 0:
            return


# --- What names the content of files ----------------------------------------------------------


def _identity(found: Iterable[InputFile]) -> list[tuple[str, int, int, str] | Fingerprinted]:
    """Path, size in bytes, time of change in ns, and what a remote file system calls this version."""
    return [
        Fingerprinted(drawn_fingerprint(), (f"{file.uri}: its file system tells neither time nor version",))
        if file.remote and not file.version
        else (file.path, file.size, file.mtime_ns, file.version)
        for file in found
    ]


def _cuts(splits: Iterable[Split]) -> tuple[list[Any], list[tuple[int, int, int]]]:
    """The identity of the files, and for each split (index of its file, start, end)."""
    index: dict[InputFile, int] = {}
    places = [(index.setdefault(split.file, len(index)), split.start, split.end) for split in splits]
    return _identity(index), places


# --- Text -------------------------------------------------------------------------------------


class TextFile(Node):
    """The lines of files.  A line belongs to the split where it starts; it ends with ``\\n`` or
    ``\\r\\n``, which are cut off."""

    __slots__ = ("bad", "minimum", "paths", "splits", "unicode")

    def __init__(
        self, node_id: NodeId, paths: str, minimum: int, unicode: bool = True, bad: Tally | None = None
    ) -> None:
        super().__init__(node_id)
        self.bad = bad
        self.paths = paths
        self.minimum = minimum
        self.unicode = unicode
        self.splits: list[Split] | None = None

    def counts_as(self) -> Mapping[str, object]:
        return {"splits": _cuts(self.splits or ()), "paths": None, "minimum": None}

    @property
    def partition_count(self) -> int:
        """Looks for the files at the first call; JobError (INPUT_NOT_FOUND) when there are none."""
        if self.splits is None:
            self.splits = files.cut(files.find(self.paths), self.minimum)
        return len(self.splits)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        assert self.splits is not None
        return chain.from_iterable(read_lines(self.splits[partition], partition, self.unicode, self.bad))


def read_lines(
    split: Split, partition: int, unicode: bool = True, bad: Tally | None = None
) -> Iterator[list[Any]]:
    """The lines of a split, a list for each block that was read.

    Raises InputChanged, and InputCorrupt with the file and the offset (in the decompressed data, if
    compressed) for truncated or badly encoded input.  With ``bad`` a line that is not UTF-8 counts and has
    U+FFFD in place of what is none; the line in which a compressed file breaks off counts and is left out.
    """
    file = split.file
    with file.open() as raw:
        codec = codecs.by_extension(file.path)
        source = raw if codec is None else codec.reader(raw)
        end = sys.maxsize if split.end < 0 else split.end
        if split.start:
            source.seek(split.start - 1)
        offset, count = split.start, 0
        try:
            for offset, chunk in _whole_lines(source.read, split.start, end):  # noqa: B007 - for the error
                returns = b"\r" in chunk
                if unicode:
                    try:
                        text = chunk.decode()
                    except UnicodeDecodeError:
                        if bad is None:
                            raise
                        text = chunk.decode(errors="replace")
                        count += sum(not _is_utf_8(line) for line in chunk.split(b"\n"))
                        bad(file.uri, split.start, count)
                    lines: list[Any] = (text.replace("\r\n", "\n") if returns else text).split("\n")
                else:
                    lines = (chunk.replace(b"\r\n", b"\n") if returns else chunk).split(b"\n")
                if not lines[-1]:
                    lines.pop()  # what follows the last newline
                yield lines
        except UnicodeDecodeError as error:
            raise InputCorrupt(
                f"{file.uri}: byte {offset + error.start} is not UTF-8 "
                f"(0x{error.object[error.start]:02x}, {error.reason}); partition {partition}"
            ) from None
        except codecs.CORRUPT as error:
            if bad is None:
                raise _corrupt(file, offset, partition, error) from error
            bad(file.uri, split.start, count + 1)
        file.check(raw)


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whole_lines(read: Callable[[int], bytes], start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, with the offset of each block: the lines that start in [start, end).

    ``read`` goes on from byte ``max(start - 1, 0)``: a line starts at ``start`` if the byte before is
    a newline.
    """
    position = max(start - 1, 0)  # of data[0]
    skipping = start > 0
    pending: list[bytes] = []  # a line that has begun
    begin = position  # of pending[0]
    while start < end and (data := read(_READ_BYTES)):
        if skipping:
            first = data.find(b"\n") + 1
            if position + (first or len(data)) >= end:
                return
            if first == 0:
                position += len(data)
                continue
            skipping = False
            position = begin = position + first
            data = data[first:]
        elif position == 0 and data.startswith(_BOM):
            position = begin = len(_BOM)
            data = data[len(_BOM) :]
        if position + len(data) >= end:
            last = data.find(b"\n", max(end - 1 - position, 0)) + 1
            if last:
                pending.append(data[:last])
                break
        whole = data.rfind(b"\n") + 1
        if whole:
            pending.append(data[:whole])
            yield begin, b"".join(pending)
            pending.clear()
            begin = position + whole
        pending.append(data[whole:])
        position += len(data)
    if rest := b"".join(pending):
        yield begin, rest


def _corrupt(file: InputFile, offset: int, partition: int, error: BaseException) -> InputCorrupt:
    return InputCorrupt(
        f"{file.uri}: unreadable after byte {offset} ({type(error).__name__}: {error}); partition {partition}"
    )


# --- Whole files ------------------------------------------------------------------------------


class WholeFiles(Node):
    """(URI, content) pairs; small files share a partition.  ``unicode`` decodes keys and values,
    False leaves both bytes, None leaves the content bytes (``binaryFiles``)."""

    __slots__ = ("bad", "groups", "minimum", "parallelism", "paths", "unicode")

    _OPEN_COST_BYTES = 4 << 20
    _MAX_BYTES = 128 << 20

    def __init__(
        self, node_id: NodeId, paths: str, minimum: int, unicode: bool | None, parallelism: int,
        bad: Tally | None = None,
    ) -> None:  # fmt: skip
        super().__init__(node_id)
        self.bad = bad
        self.paths = paths
        self.minimum = minimum
        self.unicode = unicode
        self.parallelism = parallelism
        self.groups: list[tuple[InputFile, ...]] | None = None

    def counts_as(self) -> Mapping[str, object]:
        groups = [_identity(group) for group in self.groups or ()]
        return {"groups": groups, "paths": None, "minimum": None, "parallelism": None}

    @property
    def partition_count(self) -> int:
        if self.groups is None:
            found = files.find(self.paths)
            self.groups = files.group(found, self._limit_bytes(found))
        return len(self.groups)

    def _limit_bytes(self, found: Sequence[InputFile]) -> int:
        """How much a partition takes: Spark's WholeTextFileInputFormat and StreamFileInputFormat."""
        total = sum(file.size for file in found)
        if self.unicode is not None:
            return -(-total // max(self.minimum, 1))
        total += len(found) * self._OPEN_COST_BYTES
        share = total // max(self.parallelism, self.minimum, 1)
        return min(self._MAX_BYTES, max(self._OPEN_COST_BYTES, share))

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        assert self.groups is not None
        return self._read(self.groups[partition], partition)

    def _read(self, group: Sequence[InputFile], partition: int) -> Iterator[tuple[Any, Any]]:
        for file in group:
            try:
                content = read_whole(file, partition, decompress=self.unicode is not None)
            except InputCorrupt:
                if self.bad is None:
                    raise
                self.bad(file.uri, 0, 1)
                continue
            if self.unicode:
                try:
                    text = content.decode()
                except UnicodeDecodeError as error:
                    if self.bad is None:
                        raise InputCorrupt(
                            f"{file.uri}: byte {error.start} is not UTF-8 ({error.reason}); "
                            f"partition {partition}"
                        ) from None
                    self.bad(file.uri, 0, 1)
                    text = content.decode(errors="replace")
                yield file.uri, text
            else:
                yield file.uri if self.unicode is None else file.uri.encode(), content


def read_whole(file: InputFile, partition: int, decompress: bool) -> bytes:
    """All bytes of a file.  Raises as ``read_lines``."""
    with file.open() as raw:
        codec = codecs.by_extension(file.path) if decompress else None
        try:
            content = raw.read() if codec is None else codec.reader(raw).read()
        except codecs.CORRUPT as error:
            raise _corrupt(file, 0, partition, error) from error
        file.check(raw)
    return content


class FixedRecords(Node):
    """Records of ``length`` bytes each; splits lie on their boundaries."""

    __slots__ = ("bad", "length", "minimum", "paths", "splits")

    def __init__(
        self, node_id: NodeId, paths: str, length: int, minimum: int, bad: Tally | None = None
    ) -> None:
        super().__init__(node_id)
        self.bad = bad
        self.paths = paths
        self.length = length
        self.minimum = minimum
        self.splits: list[Split] | None = None

    def counts_as(self) -> Mapping[str, object]:
        return {"splits": _cuts(self.splits or ()), "paths": None, "minimum": None}

    @property
    def partition_count(self) -> int:
        if self.splits is None:
            whole: list[Split] = []
            for split in files.cut(files.find(self.paths), self.minimum):
                start = -(-split.start // self.length) * self.length
                end = split.file.size if split.end in (-1, split.file.size) else split.end
                if end < split.file.size:
                    end = -(-end // self.length) * self.length
                whole.append(Split(split.file, start, min(end, split.file.size)))
            self.splits = whole
        return len(self.splits)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        assert self.splits is not None
        return self._read(self.splits[partition], partition)

    def _read(self, split: Split, partition: int) -> Iterator[bytes]:
        length, end = self.length, split.end
        rest = split.file.size % length
        if rest and self.bad is None:
            raise InputCorrupt(
                f"{split.file.uri}: {split.file.size} bytes are not a multiple of the record length "
                f"{length}; partition {partition}"
            )
        if rest and self.bad is not None and end == split.file.size:  # the last record is cut short
            self.bad(split.file.uri, split.start, 1)
            end -= rest
        with split.file.open() as raw:
            raw.seek(split.start)
            buffered = io.BufferedReader(raw, _READ_BYTES)  # type: ignore[type-var]  # a raw file
            for _ in range(split.start, end, length):
                yield buffered.read(length)
            split.file.check(raw)


class PickleFile(Node):
    """What ``saveAsPickleFile`` wrote: files of concatenated batches, one partition each."""

    __slots__ = ("files", "paths")

    def __init__(self, node_id: NodeId, paths: str) -> None:
        super().__init__(node_id)
        self.paths = paths
        self.files: list[InputFile] | None = None

    def counts_as(self) -> Mapping[str, object]:
        from spark_ft.lineage.anatomy import classes_of_main  # which few programs need

        return {"files": (_identity(self.files or ()), classes_of_main()), "paths": None}

    @classmethod
    def of(cls, node_id: NodeId, parts: Sequence[str]) -> PickleFile:
        """A reader of the given files, in this order."""
        node = cls(node_id, ",".join(parts))
        node.files = [files.as_it_is(part) for part in parts]
        return node

    @property
    def partition_count(self) -> int:
        if self.files is None:
            self.files = files.find(self.paths)
        return len(self.files)

    def compute(self, partition: int, inputs: Sequence[Iterator[Any]], env: TaskEnv) -> Iterator[Any]:
        assert self.files is not None
        return chain.from_iterable(read_batches(self.files[partition], partition))


def read_batches(file: InputFile, partition: int) -> Iterator[rows.Batch]:
    """The batches of a file, read piece by piece: a mapped file that somebody cuts short would kill
    the process, not the task."""
    with file.open() as raw:
        offset, torn, wanted = 0, b"", _READ_BYTES
        try:
            while data := raw.read(wanted):
                data = torn + data if torn else data
                whole, _, missing = rows.whole_batches(data)
                yield from rows.iter_batches(memoryview(data)[:whole])
                offset, torn = offset + whole, data[whole:]
                wanted = max(_READ_BYTES, missing)
        except StorageError as error:
            raise InputCorrupt(
                f"{file.uri}: not a file of saveAsPickleFile, or damaged after byte {offset} ({error}); "
                f"partition {partition}"
            ) from error
        file.check(raw)
        if torn:
            raise InputCorrupt(f"{file.uri}: truncated after byte {offset}; partition {partition}")
