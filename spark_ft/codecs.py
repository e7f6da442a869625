"""Compression of text files, by file name ending on reading and by Hadoop class name on writing.

No format is split: a compressed file is one partition.  A file whose ending names a format that
cannot be read here is refused, never read as if it were plain text.
"""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from spark_ft.errors import JobError

CORRUPT = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what readers raise for bad data


@dataclass(frozen=True, slots=True)
class Codec:
    """One format: ``reader`` and ``writer`` wrap a binary file; closing them leaves it open."""

    extension: str
    reader: Callable[[BinaryIO], BinaryIO]
    writer: Callable[[BinaryIO], BinaryIO]


class _ZlibReader(io.RawIOBase):
    """A zlib stream (Hadoop's ``.deflate``); EOFError when it ends too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(1 << 16)
            if not data:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if piece := self._inflate.decompress(data, len(view)):
                view[: len(piece)] = piece
                return len(piece)
        return 0


class _ZlibWriter(io.RawIOBase):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._deflate = zlib.compressobj()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(self._deflate.compress(data))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.write(self._deflate.flush())
        super().close()


def _deflate_reader(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_ZlibReader(file), 1 << 20))


def _deflate_writer(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedWriter(_ZlibWriter(file), 1 << 20))


def _gzip_reader(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))


def _gzip_writer(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile("", "wb", 6, file, mtime=0))


def _bzip2_reader(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(file, "rb"))


def _bzip2_writer(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(file, "wb"))


def _lzma_reader(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(file, "rb"))


def _xz_writer(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(file, "wb"))


def _lzma_writer(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(file, "wb", format=lzma.FORMAT_ALONE))


def _zstd_reader(file: BinaryIO) -> BinaryIO:
    import zstandard

    return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


def _zstd_writer(file: BinaryIO) -> BinaryIO:
    import zstandard

    return cast(BinaryIO, zstandard.ZstdCompressor().stream_writer(file, closefd=False))


_CODECS = {
    codec.extension: codec
    for codec in (
        Codec(".gz", _gzip_reader, _gzip_writer),
        Codec(".bz2", _bzip2_reader, _bzip2_writer),
        Codec(".deflate", _deflate_reader, _deflate_writer),
        Codec(".xz", _lzma_reader, _xz_writer),
        Codec(".lzma", _lzma_reader, _lzma_writer),
        Codec(".zst", _zstd_reader, _zstd_writer),
    )
}
_CLASS_NAMES = {
    "gzipcodec": ".gz",
    "bzip2codec": ".bz2",
    "defaultcodec": ".deflate",
    "deflatecodec": ".deflate",
    "zstandardcodec": ".zst",
    "xzcodec": ".xz",
    "lzmacodec": ".lzma",
}
_UNREADABLE = (".snappy", ".lz4", ".lzo", ".lzo_deflate")


def _usable(extension: str) -> bool:
    return extension != ".zst" or importlib.util.find_spec("zstandard") is not None


def by_extension(path: str) -> Codec | None:
    """The codec for a file name, None for a plain file.

    Raises JobError (CODEC_NOT_AVAILABLE) for a known format without a reader.
    """
    dot = path.rfind(".")
    extension = path[dot:].lower() if dot > path.rfind("/") else ""
    if extension in _UNREADABLE or (extension in _CODECS and not _usable(extension)):
        raise JobError(f"no reader for {extension} files is installed: {path}", "CODEC_NOT_AVAILABLE")
    return _CODECS.get(extension)


def by_class_name(name: str | None) -> Codec | None:
    """The codec for a Hadoop class name such as ``org.apache.hadoop.io.compress.GzipCodec``.

    Raises JobError (CODEC_NOT_AVAILABLE) for any other name.
    """
    if name is None:
        return None
    extension = _CLASS_NAMES.get(name.rpartition(".")[2].lower(), "")
    if not extension or not _usable(extension):
        raise JobError(f"no such compression codec (class not found): {name}", "CODEC_NOT_AVAILABLE")
    return _CODECS[extension]
