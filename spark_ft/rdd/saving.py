"""saveAsTextFile and saveAsPickleFile: records as files, in a directory that appears whole or not at all.

The directory itself is the business of storage/outputs.py; here is what a part file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, TypeVar

from spark_ft import codecs, rows
from spark_ft.rdd.base import RDDBase
from spark_ft.storage.outputs import Writer, save

T = TypeVar("T")

_LINES = 8192  # joined at a time


class SavingMixin(RDDBase[T]):
    """The methods that write files."""

    def saveAsTextFile(self, path: str, compressionCodecClass: str | None = None) -> None:
        """Write each record as a line of text into ``path/part-00000`` and so on.

        ``path``: on a file system that all hosts share, or a URL (``s3://bucket/key``).  Bytes are written as
        they are, everything else as ``str(record)`` in UTF-8.  Codecs go by their Hadoop class names (Gzip,
        BZip2, Default, …).  Raises JobError (TARGET_EXISTS, the text has ``FileAlreadyExists``) before any
        task runs.
        """
        codec = codecs.by_class_name(compressionCodecClass)
        self._save(path, write_text, "" if codec is None else codec.extension)

    def saveAsPickleFile(self, path: str, batchSize: int = 10) -> None:
        """Write the records so that ``SparkContext.pickleFile`` reads them again.

        The container is our own.  ``batchSize`` is accepted; batches are sized by their bytes.
        """
        self._save(path, rows.write)

    def _save(self, path: str, writer: Writer, extension: str = "") -> None:
        job = self.ctx.name_action(self._node, partial(save, path, writer=writer, extension=extension))
        save(path, self._run, writer, extension, job=job)


def write_text(file: BinaryIO, records: Iterator[Any]) -> None:
    """Lines; in blocks, because joining strings is faster than writing each."""
    while block := list(islice(records, _LINES)):
        try:
            data = "\n".join(block).encode()
        except TypeError:  # not all are strings
            data = b"\n".join(x if isinstance(x, bytes) else str(x).encode() for x in block)
        file.write(data)
        file.write(b"\n")
