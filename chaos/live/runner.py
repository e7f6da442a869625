"""One live run: launch, play the schedule, heal, wait for the end, look for what was left, judge.

Two phases.  While the schedule lasts anything may happen to the application but a wrong answer.  Then
every fault is healed, the workload is told that this round is its last, and it has to end within a bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chaos import checkers, history
from chaos.checkers import Finding
from chaos.live.cluster import Cluster, Launch
from chaos.nemesis import Fault, Invocation, Nemesis
from chaos.nemesis.registry import NEMESES
from chaos.schedule import Options, draw
from chaos.workloads.registry import WORKLOADS

LEFT_S = 5.0  # how long after its end processes may still be going


def run(options: Options, directory: Path, faults: Sequence[Fault] | None = None) -> list[Finding]:
    """Do one run and judge it.  ``directory`` is made anew; all that is known of the run stays in it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    writer = history.Writer(directory)
    try:
        Run(options, directory, list(draw(options) if faults is None else faults), writer).play()
    finally:
        writer.close()
    return checkers.judge(history.read(directory))


class Run:
    """The state of one run."""

    def __init__(
        self, options: Options, directory: Path, faults: list[Fault], writer: history.Writer
    ) -> None:
        self.options, self.directory, self.faults, self.writer = options, directory, faults, writer
        names = dict.fromkeys([*options.nemeses, *(fault.nemesis for fault in faults)])
        self.nemeses: dict[str, Nemesis] = {name: NEMESES[name]() for name in names}
        self.open: dict[int, Invocation] = {}  # made, not healed
        writer.write("options", **asdict(options))
        for fault in faults:
            writer.write("schedule", **asdict(fault))

    def play(self) -> None:
        """From the launch to the last look round."""
        options = self.options
        launch = Launch(self.directory, options.master, dict(options.conf))
        for name, nemesis in self.nemeses.items():
            nemesis.prepare(launch, options.rng(f"prepare {name}"))
        cluster = Cluster(launch, secrets.token_hex(8))
        shared_before = set(os.listdir("/dev/shm"))
        try:
            self.start(cluster)
            if cluster.wait_until_up():
                self.writer.write("up", at_s=cluster.now_s())
                self.break_things(cluster)
            (self.directory / "last").touch()
            self.heal_all(cluster)
            self.await_end(cluster)
        finally:
            for name, nemesis in self.nemeses.items():
                with self.trouble(f"teardown of {name}"):
                    nemesis.teardown(cluster)
            self.look_round(cluster, shared_before)
            cluster.close()
            self.write_down(cluster)

    def start(self, cluster: Cluster) -> None:
        """Launch a driver that does rounds of the workload."""
        told = {"options": asdict(self.options), "conf": cluster.conf(), "directory": str(self.directory)}
        path = self.directory / "program.json"
        path.write_text(json.dumps(told, indent=1))
        cluster.start(["-m", "chaos.live.program", str(path)], self.directory)

    def patience_s(self) -> float:
        """How long the workload may take to end once nothing is broken any more."""
        return WORKLOADS[self.options.workload].deadline_s * max(1.0, self.options.scale)

    def results(self, cluster: Cluster) -> list[dict[str, Any]]:
        """What was observed."""
        path = self.directory / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trouble(self, what: str) -> contextlib.AbstractContextManager[None]:
        return _Trouble(self.writer, what)

    # --- Breaking and healing ---

    def break_things(self, cluster: Cluster) -> None:
        """Play the schedule; faults end when their time is over."""
        zero_s = cluster.now_s()
        for nemesis in self.nemeses.values():
            nemesis.setup(cluster)
        to_come = sorted(self.faults, key=lambda fault: fault.at_s, reverse=True)
        over_s = max([self.options.seconds, *(fault.until_s for fault in self.faults)])
        while not cluster.ended():
            now_s = cluster.now_s() - zero_s
            due = [each for each in self.open.values() if each.fault.until_s <= now_s and lasts(each.fault)]
            for invocation in due:
                self.heal(invocation, cluster)
            if to_come and to_come[-1].at_s <= now_s:
                self.invoke(to_come.pop(), cluster)
            elif now_s >= over_s:
                break
            else:
                times = [fault.at_s for fault in to_come[-1:]] + [
                    each.fault.until_s for each in self.open.values() if lasts(each.fault)
                ]
                next_s = min([*times, over_s])
                cluster.wait(cluster.ended, max(0.0, min(0.2, next_s - now_s)), 0.01)

    def invoke(self, fault: Fault, cluster: Cluster) -> None:
        nemesis, at_s = self.nemeses[fault.nemesis], cluster.now_s()
        with self.trouble(f"{fault}"):
            made = nemesis.invoke(fault, cluster, random.Random(fault.seed))
            made = replace(made, at_s=round(at_s, 3))
            self.open[fault.number] = made
            self.writer.write("fault", **history.record_of(made))

    def heal(self, invocation: Invocation, cluster: Cluster) -> None:
        self.open.pop(invocation.fault.number, None)
        with self.trouble(f"healing of {invocation.fault}"):
            healed = self.nemeses[invocation.fault.nemesis].heal(invocation, cluster)
            at_s = round(cluster.now_s(), 3) if lasts(invocation.fault) else None
            self.writer.write("fault", **history.record_of(replace(healed, healed_s=at_s)))

    def heal_all(self, cluster: Cluster) -> None:
        """What lasts ends now; what was done at once gets its last evidence when the run has ended."""
        for invocation in list(self.open.values()):
            if lasts(invocation.fault):
                self.heal(invocation, cluster)

    # --- The end ---

    def await_end(self, cluster: Cluster) -> None:
        patience_s = self.patience_s() + 2 * cluster.lost_after_s + 10.0
        began_s = cluster.now_s()
        ended = cluster.wait(cluster.ended, patience_s, 0.02)
        for invocation in list(self.open.values()):
            self.heal(invocation, cluster)
        if not ended:
            self.dump_stacks(cluster)
        waited_s = round(cluster.now_s() - began_s, 3)
        status = cluster.exit_status
        self.writer.write("end", at_s=cluster.now_s(), status=status, hang=not ended, waited_s=waited_s)

    def dump_stacks(self, cluster: Cluster) -> None:
        """What everybody is doing in a run that hangs: the driver by itself, others if py-spy is there."""
        driver = cluster.driver()
        if driver is not None:
            cluster.signal(driver, signal.SIGUSR1)
        spy = shutil.which("py-spy")
        with (self.directory / "stacks-of-all").open("w") as stacks:
            for pid, command in cluster.marked().items():
                stacks.write(f"--- {pid} {command}\n")
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    stacks.write(Path(f"/proc/{pid}/status").read_text().split("\nTgid")[0] + "\n")
                    if spy is not None:
                        told = subprocess.run(
                            [spy, "dump", "--nonblocking", "--pid", str(pid)],
                            capture_output=True,
                            text=True,
                            timeout=10,
                        )
                        stacks.write(told.stdout)

    def look_round(self, cluster: Cluster, shared_before: set[str]) -> None:
        """What is still there after the end."""
        cluster.wait(lambda: not cluster.marked() and not self.files_left(cluster), LEFT_S, 0.05)
        shared = [name for name in os.listdir("/dev/shm") if name not in shared_before and unused(name)]
        processes = {str(pid): command for pid, command in cluster.marked().items()}
        self.writer.write("left", processes=processes, files=self.files_left(cluster), shared=shared)

    def files_left(self, cluster: Cluster) -> list[str]:
        return sorted(path.name for path in cluster.local_dir.iterdir()) if cluster.local_dir.exists() else []

    def write_down(self, cluster: Cluster) -> None:
        """The application's own account of it, and how late the machine was."""
        for event in cluster.log.events():
            self.writer.write("event", **event)
        for at_s, late_s in cluster.log.lateness:
            self.writer.write("late", at_s=round(at_s, 3), late_s=round(late_s, 3))
        for result in self.results(cluster):
            self.writer.write("result", **result)


def lasts(fault: Fault) -> bool:
    return fault.until_s > fault.at_s


def unused(name: str) -> bool:
    """Whether no process has this file of /dev/shm open: it was forgotten."""
    return not any(
        os.path.samefile(fd, f"/dev/shm/{name}")
        for fd in Path("/proc").glob("[0-9]*/fd/*")
        if os.path.exists(f"/dev/shm/{name}") and os.path.exists(fd)
    )


class _Trouble(contextlib.AbstractContextManager[None]):
    """An error of a nemesis is the harness's trouble: it is written down, and the run goes on."""

    def __init__(self, writer: history.Writer, what: str) -> None:
        self._writer, self._what = writer, what

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._writer.write("trouble", text=f"{self._what}: {error!r}")
        return True
