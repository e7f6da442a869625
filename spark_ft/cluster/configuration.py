"""What the parent of a worker or a manager tells it: one line of JSON on its stdin."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class WorkerConfig:
    """``granter`` is the manager, or the driver in ``local[n]`` (``has_manager`` False): then
    ``assignment`` holds the fields of its AssignExecutors.  ``roots``: directories of hosts whose
    stores executors may open themselves.  ``settings`` are SparkConf's pairs."""

    me: str
    host: str
    root: str
    roots: dict[str, str]
    scratch: str
    token: str  # hex
    granter: str
    granter_endpoint: str
    has_manager: bool
    data_endpoint: str
    cores: int
    memory_bytes: int
    parent_pid: int
    settings: dict[str, str] = field(default_factory=dict)
    assignment: dict[str, Any] | None = None


@dataclass(frozen=True)
class ManagerConfig:
    me: str
    endpoint: str
    scratch: str
    token: str  # hex
    parent_pid: int
    settings: dict[str, str] = field(default_factory=dict)


Config = TypeVar("Config", WorkerConfig, ManagerConfig)


def read_config(kind: type[Config]) -> Config | None:
    """Read the one line; None when stdin ends before it.  Unbuffered: what comes after is the loop's."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1 << 16)
        if not data:
            return None
        line += data
    return kind(**json.loads(line))
