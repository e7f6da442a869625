"""What the parent of a worker or a manager tells it: one line of JSON on its stdin.

With ``parent_pid`` 0 it has no parent, and is a daemon: it ends by a signal alone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class WorkerConfig:
    """``granter`` is the manager, or the driver in ``local[n]`` (``has_manager`` False): then
    ``assignment`` holds the fields of its AssignExecutors.  ``roots``: directories of hosts whose
    stores executors may open themselves.  ``settings`` are SparkConf's pairs.  ``is_kept``: the root outlives
    the driver, and a worker of the driver before may be about to end.

    ``masters``: of a daemon, where managers are to be found; then ``granter`` is nobody, and ``root`` is
    shared by all applications that are given executors here.
    """

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
    keys: tuple[str, str] | None = None  # of the cluster: public, secret
    data_address: str = ""  # by which others find the block server; that at which it is bound when empty
    masters: tuple[str, ...] = ()
    is_kept: bool = False


@dataclass(frozen=True)
class ManagerConfig:
    """``work_dir``: of a daemon, where it keeps what has to outlive it; ``standby``: it waits there until
    another one ends.  ``hosts``: of a child, those that had a worker under the manager before it."""

    me: str
    endpoint: str
    scratch: str
    token: str  # hex
    parent_pid: int
    settings: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, str] | None = None
    work_dir: str = ""
    standby: bool = False
    hosts: tuple[str, ...] = ()


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
