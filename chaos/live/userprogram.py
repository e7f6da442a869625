"""A user's own program under faults: what it prints must be what it prints without them.

The program takes its settings from ``spark-defaults.conf``, as every ``SparkContext()`` does, and the harness
writes that: the master, where the event log goes, where scratch goes.  It is run once undisturbed, and
then with the faults.  If the two differ it is run undisturbed once more: a program that does not agree with
itself shows nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chaos import checkers, history
from chaos.checkers import Finding
from chaos.live.cluster import Cluster, Launch
from chaos.live.runner import Run
from chaos.nemesis import Fault
from chaos.schedule import Options, draw

LONGEST_S = 3600.0  # of a program without faults
SHORTEST_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """What one run of the program printed, and how it ended."""

    lines: list[str]
    status: int | None
    seconds: float


def run(options: Options, directory: Path, faults: Sequence[Fault] | None = None) -> list[Finding]:
    """Undisturbed, then under faults.  ``options.seconds`` 0: faults come as long as it took undisturbed."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    calm = undisturbed(options, directory / "undisturbed")
    if options.seconds <= 0:
        options = replace(options, seconds=max(SHORTEST_S, round(calm.seconds, 1)))
    writer = history.Writer(directory)
    try:
        play = _ProgramRun(options, directory, list(draw(options) if faults is None else faults), writer)
        play.calm = calm
        play.play()
    finally:
        writer.close()
    return checkers.judge(history.read(directory))


def undisturbed(options: Options, directory: Path) -> Outcome:
    """Run the program without any fault."""
    directory.mkdir(parents=True)
    cluster = Cluster(Launch(directory, options.master, dict(options.conf)), secrets.token_hex(8))
    began = time.monotonic()
    try:
        printed = launch(options, cluster)
        cluster.wait(cluster.ended, LONGEST_S, 0.02)
        return Outcome(lines_of(printed), cluster.exit_status, time.monotonic() - began)
    finally:
        cluster.close()


def launch(options: Options, cluster: Cluster) -> Path:
    """Start the program; answer where its output goes."""
    settings = cluster.directory / "conf"
    settings.mkdir()
    own = os.environ.get("SPARK_CONF_DIR", "")
    text = Path(own, "spark-defaults.conf").read_text() if own else ""
    pairs = "".join(f"{key} {value}\n" for key, value in cluster.conf().items())
    (settings / "spark-defaults.conf").write_text(text + "\n" + pairs)  # of two pairs the later one counts
    cluster.launch.env["SPARK_CONF_DIR"] = str(settings)
    printed = cluster.directory / "printed"
    cluster.start([str(Path(options.program[0]).absolute()), *options.program[1:]], Path.cwd(), printed)
    return printed


def lines_of(printed: Path) -> list[str]:
    return printed.read_text(errors="replace").splitlines() if printed.exists() else []


class _ProgramRun(Run):
    """A run whose driver is the user's program."""

    calm: Outcome

    def start(self, cluster: Cluster) -> None:
        launch(self.options, cluster)

    def patience_s(self) -> float:
        return 30.0 + 3 * self.calm.seconds

    def results(self, cluster: Cluster) -> list[dict[str, Any]]:
        printed, status = lines_of(self.directory / "printed"), cluster.exit_status
        result: dict[str, Any] = {
            "round": 0,
            "expected": self.calm.lines,
            "expected_status": self.calm.status,
            "printed": printed,
            "status": status,
        }
        if not cluster.log.of("application_start"):
            told = "the program wrote no event log: it must take its settings from spark-defaults.conf"
            self.writer.write("trouble", text=f"{told} (see {self.directory / 'words'})")
        if printed != self.calm.lines:
            result["again"] = undisturbed(self.options, self.directory / "again").lines
        return [result]
