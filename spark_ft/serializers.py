"""The serializer names that programs pass to SparkContext.

They are accepted and change nothing: how records become bytes is the engine's own choice, batch by
batch (``rows.py``).  ``dumps`` and ``loads`` work for programs that use them by themselves.
"""

from __future__ import annotations

import marshal
from abc import ABC, abstractmethod
from typing import Any

from spark_ft import closures

__all__ = ["CPickleSerializer", "MarshalSerializer", "PickleSerializer"]


class Serializer(ABC):
    """Objects to bytes and back."""

    @abstractmethod
    def dumps(self, obj: Any) -> bytes:
        """An object as bytes."""

    @abstractmethod
    def loads(self, obj: bytes) -> Any:
        """The object again."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class CPickleSerializer(Serializer):
    """Pickle, with functions by value."""

    def dumps(self, obj: Any) -> bytes:
        return closures.dumps(obj)

    def loads(self, obj: bytes) -> Any:
        return closures.loads(obj)


PickleSerializer = CPickleSerializer
CloudPickleSerializer = CPickleSerializer


class MarshalSerializer(Serializer):
    """Marshal: fewer types, faster."""

    def dumps(self, obj: Any) -> bytes:
        return marshal.dumps(obj)

    def loads(self, obj: bytes) -> Any:
        return marshal.loads(obj)


class NoOpSerializer(Serializer):
    """Bytes as they are."""

    def dumps(self, obj: Any) -> bytes:
        return bytes(obj)

    def loads(self, obj: bytes) -> Any:
        return obj


class UTF8Deserializer(Serializer):
    """Strings in UTF-8; bytes stay bytes with ``use_unicode=False``."""

    def __init__(self, use_unicode: bool = True) -> None:
        self.use_unicode = use_unicode

    def dumps(self, obj: Any) -> bytes:
        return str(obj).encode()

    def loads(self, obj: bytes) -> Any:
        return obj.decode() if self.use_unicode else obj


class BatchedSerializer(Serializer):
    """Many objects at a time; ``batchSize`` 0 leaves the choice to the engine."""

    def __init__(self, serializer: Serializer, batchSize: int = 0) -> None:  # noqa: N803 - PySpark's name
        self.serializer = serializer
        self.batchSize = batchSize

    def dumps(self, obj: Any) -> bytes:
        return self.serializer.dumps(obj)

    def loads(self, obj: bytes) -> Any:
        return self.serializer.loads(obj)


class AutoBatchedSerializer(BatchedSerializer):
    """Batches sized by their bytes."""

    def __init__(self, serializer: Serializer, bestSize: int = 1 << 16) -> None:  # noqa: N803 - as above
        super().__init__(serializer)
        self.bestSize = bestSize
