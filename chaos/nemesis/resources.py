"""Too little of everything: memory, processor time, reader slots of a store.

Where the machine lets us, limits are control groups, which are what kills and slows in production; else the
nearest that a process may do to another, and the evidence says which it was.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.nemesis import PROCESS, TASK, TIME, Fault, Invocation, Kind, Nemesis
from chaos.nemesis.cgroup import Cgroup
from chaos.nemesis.disk import segments

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Process

SHARE = 0.03  # of a processor, for a slow executor
ROOM_BYTES = 4096  # that an executor may still take before the kernel kills it: its next page but one
ROOT = Path(__file__).resolve().parents[2]


def helper(*arguments: str, life_s: float) -> subprocess.Popen[bytes]:
    """A helper process of chaos/nemesis/helpers.py: it ends by itself after ``life_s``, or with our pipe."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-m", "chaos.nemesis.helpers", str(life_s), *arguments]
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a helper."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class Memory(Nemesis):
    """An executor gets no more memory: the kernel kills it, or its allocations fail."""

    name = "memory"
    _errors = ("TASK_OUT_OF_MEMORY", "TASK_FAILED", "POISON_TASK")
    kinds = (
        Kind("oom-kill", ("MEM-1",), frozenset({PROCESS, TASK}), (0.5, 2.0), _errors),
        Kind("no-more", ("MEM-6",), frozenset({PROCESS, TASK}), (0.5, 2.0), _errors),
    )

    def __init__(self) -> None:
        self._groups: dict[int, Cgroup] = {}
        self._limited: dict[int, tuple[Process, tuple[int, int]]] = {}

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        victims = cluster.executors()
        if not victims:
            return self.made(fault, False, why="no executor is there")
        victim = rng.choice(victims)
        with contextlib.suppress(OSError):
            if fault.kind == "oom-kill":
                return self._limit_group(fault, victim)
            return self._limit_process(fault, victim)
        return self.made(fault, False, why="the victim has ended, or we may not")

    def _limit_group(self, fault: Fault, victim: Process) -> Invocation:
        group = Cgroup.make("memory", str(fault.number))
        if group is None:
            return self.made(fault, False, why="no control group for memory")
        self._groups[fault.number] = group
        group.limit_memory(ROOM_BYTES)
        group.take(victim.pid)
        return self.made(fault, None, victims=[victim.id], by=f"cgroup v{group.version}")

    def _limit_process(self, fault: Fault, victim: Process) -> Invocation:
        pages = int(Path(f"/proc/{victim.pid}/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + (1 << 20)
        before = resource.prlimit(victim.pid, resource.RLIMIT_AS)
        resource.prlimit(victim.pid, resource.RLIMIT_AS, (limit, before[1]))
        self._limited[fault.number] = victim, before
        return self.made(fault, True, "MEM-6", victims=[victim.id], by="RLIMIT_AS", limit_bytes=limit)

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        number = invocation.fault.number
        if (limited := self._limited.pop(number, None)) is not None:
            victim, before = limited
            with contextlib.suppress(OSError):
                if others := [n for n, (other, _) in self._limited.items() if other.pid == victim.pid]:
                    # Whichever of them is lifted last gives back what there was before the first.
                    last = others[-1]
                    self._limited[last] = victim, max(before, self._limited[last][1], key=_room)
                elif victim.is_alive():
                    resource.prlimit(victim.pid, resource.RLIMIT_AS, before)
        if (group := self._groups.pop(number, None)) is None:
            return invocation
        kills = group.oom_kills()
        group.close()
        evidence = {**invocation.evidence, "oom_kills": kills}
        takes = invocation.takes if kills else frozenset({TIME})
        rows = ("MEM-1",) if kills else ()
        return replace(invocation, took_effect=kills > 0, rows=rows, takes=takes, evidence=evidence)

    def teardown(self, cluster: Cluster) -> None:
        for group in self._groups.values():
            group.close()


class Cpu(Nemesis):
    """Processor time is scarce: for one executor, or for everybody."""

    name = "cpu"
    kinds = (
        Kind("slow-executor", ("EX-10",), frozenset({TIME, PROCESS}), (1.0, 5.0)),
        Kind("burners", ("EX-10",), frozenset({TIME}), (0.5, 3.0)),
    )

    def __init__(self) -> None:
        self._groups: dict[int, Cgroup] = {}
        self._burners: dict[int, list[subprocess.Popen[bytes]]] = {}

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        lasts_s = fault.until_s - fault.at_s
        if fault.kind == "burners":
            processors = sorted(os.sched_getaffinity(0))
            self._burners[fault.number] = [
                helper("burn", str(processor), life_s=lasts_s + 1.0) for processor in processors
            ]
            return self.made(fault, True, burners=len(processors))
        victims = cluster.executors()
        group = Cgroup.make("cpu", str(fault.number)) if victims else None
        if group is None:
            return self.made(fault, False, why="no executor, or no control group for processors")
        self._groups[fault.number] = group
        victim = rng.choice([each for each in victims if cluster.log.running(each.id)] or victims)
        with contextlib.suppress(OSError):
            group.limit_cpu(SHARE)
            group.take(victim.pid)
            return self.made(fault, None, victims=[victim.id], share=SHARE)
        return self.made(fault, False, why="the victim has ended")

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        number = invocation.fault.number
        for burner in self._burners.pop(number, ()):
            end(burner)
        if (group := self._groups.pop(number, None)) is None:
            return invocation
        throttled = group.throttled_count()
        group.close()
        evidence = {**invocation.evidence, "throttled_periods": throttled}
        rows = ("EX-10",) if throttled else ()
        return replace(invocation, took_effect=throttled > 0, rows=rows, evidence=evidence)

    def teardown(self, cluster: Cluster) -> None:
        for group in self._groups.values():
            group.close()
        for burners in self._burners.values():
            for burner in burners:
                end(burner)


class Readers(Nemesis):
    """Somebody takes every reader slot of a live store."""

    name = "readers"
    kinds = (Kind("exhausted", ("ST-4",), frozenset({TIME}), (0.3, 1.5)),)

    def __init__(self) -> None:
        self._holders: dict[int, subprocess.Popen[bytes]] = {}

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        active = [files[-1].parent for store in cluster.stores() if (files := segments(store))]
        if not active:
            return self.made(fault, False, why="nothing has been written")
        segment = rng.choice(active)
        holder = helper("hold-readers", str(segment), life_s=fault.until_s - fault.at_s + 2.0)
        self._holders[fault.number] = holder
        assert holder.stdout is not None
        taken = int(holder.stdout.readline() or b"0")  # told once no more can be had
        rows = self.kind(fault.kind).rows if taken else ()
        where = f"{segment.parent.name}/{segment.name}"
        return self.made(fault, taken > 0, *rows, segment=where, slots=taken)

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        holder = self._holders.pop(invocation.fault.number, None)
        if holder is not None:
            holder.send_signal(signal.SIGTERM)
            end(holder)
        return invocation

    def teardown(self, cluster: Cluster) -> None:
        for holder in self._holders.values():
            end(holder)


def _room(limit: tuple[int, int]) -> float:
    return float("inf") if limit[0] == resource.RLIM_INFINITY else limit[0]
