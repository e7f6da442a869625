"""A disk that is very slow, under every store of the application."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.nemesis import TIME, Fault, Invocation, Kind, Nemesis

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Launch

_POINTS = ("store.read", "store.write")


class SlowDisk(Nemesis):
    """Each transaction of each store waits in its middle, with its locks held, as on a disk that is very
    busy.  No file system can be slowed down under stores that are in use: a failpoint does it, for a time."""

    name = "slow-disk"
    kinds = (Kind("store", ("ST-14",), frozenset({TIME}), (0.5, 3.0)),)

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._lasting: set[int] = set()  # numbers of faults that are not healed

    def prepare(self, launch: Launch, rng: random.Random) -> None:
        self._directory = launch.directory / "slow-disk"
        self._directory.mkdir(parents=True, exist_ok=True)
        slow = self._directory / "on"
        points = [f"witness={self._directory}", *(f"{point}=delay~{slow}" for point in _POINTS)]
        armed = launch.conf.get("spark.ft.failpoints")
        launch.conf["spark.ft.failpoints"] = ",".join([armed, *points] if armed else points)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        assert self._directory is not None
        for name in _POINTS if not self._lasting else ():
            (self._directory / name).unlink(missing_ok=True)
        self._lasting.add(fault.number)
        (self._directory / "on").touch()
        return self.made(fault, None)

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        assert self._directory is not None
        self._lasting.discard(invocation.fault.number)
        if not self._lasting:
            (self._directory / "on").unlink(missing_ok=True)
        slowed = [name for name in _POINTS if (self._directory / name).exists()]
        rows = self.kind("store").rows if slowed else ()
        evidence = {**invocation.evidence, "slowed": slowed}
        return replace(invocation, took_effect=bool(slowed), rows=rows, evidence=evidence)
