"""Wall clocks that are wrong: each process of the application believes another time of day.

Only the wall clock lies.  Monotonic clocks go on as they are, as under NTP steps, a wrong time zone or a bad
battery.  Every interpreter of the application starts with ``chaos/nemesis/skew`` on its path; the
``sitecustomize`` there replaces ``time.time`` and its kin, before anything else is imported, and reads the
skew of its process from a file that may change while it runs.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.nemesis import Fault, Invocation, Kind, Nemesis

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Launch

HOUR_S = 3600.0
SKEW_DIRECTORY = Path(__file__).parent / "skew"
VARIABLE = "SPARK_FT_CHAOS_SKEW"


def environment(directory: Path) -> dict[str, str]:
    """What every process of an application gets so that its wall clock obeys the files in ``directory``."""
    path = os.pathsep.join(filter(None, [str(SKEW_DIRECTORY), os.environ.get("PYTHONPATH", "")]))
    return {VARIABLE: str(directory), "PYTHONPATH": path}


def skew(directory: Path, seconds: float, pid: int | None = None) -> None:
    """From now on the wall clock of one process, or of all without a skew of their own, is wrong."""
    name = "all" if pid is None else str(pid)
    draft = directory / f".{name}"
    draft.write_text(repr(seconds))
    draft.rename(directory / name)


def readers(directory: Path) -> dict[int, float]:
    """pid -> skew that it has last applied: the evidence that somebody was deceived."""
    return {int(p.name[5:]): float(p.read_text() or 0) for p in directory.glob("seen-*")}


class Clock(Nemesis):
    """Clocks jump, or stand apart."""

    name = "clock"
    kinds = (
        Kind("jump", ("CLK-1",), lasts_s=(0.5, 3.0)),
        Kind("apart", ("CLK-2",), lasts_s=(0.5, 3.0)),
    )

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="sft-clock-", dir="/tmp"))

    def prepare(self, launch: Launch, rng: random.Random) -> None:
        launch.env.update(environment(self._directory))

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        if fault.kind == "jump":
            seconds = rng.choice([-HOUR_S, HOUR_S, -30.0, 30.0])
            skew(self._directory, seconds)
            return self.made(fault, None, seconds=seconds)
        skews = {}
        driver = cluster.driver()
        for process in [*cluster.executors(), *cluster.workers(), *([driver] if driver else [])]:
            skews[process.pid] = round(rng.uniform(-600, 600), 1)
            skew(self._directory, skews[process.pid], process.pid)
        return self.made(fault, None if skews else False, skews={str(k): v for k, v in skews.items()})

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        if not invocation.fault.until_s > invocation.fault.at_s or "deceived" in invocation.evidence:
            return invocation
        deceived = sum(bool(seconds) for seconds in readers(self._directory).values())
        for path in self._directory.glob("[0-9]*"):
            skew(self._directory, 0.0, int(path.name))
        skew(self._directory, 0.0)
        evidence = {**invocation.evidence, "deceived": deceived}
        rows = self.kind(invocation.fault.kind).rows if deceived else ()
        return replace(invocation, took_effect=deceived > 0, rows=rows, evidence=evidence)

    def teardown(self, cluster: Cluster) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
