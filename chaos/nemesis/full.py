"""A disk that takes no more: no file that the executors of one host write may grow.

The kernel refuses the same writes as on a full disk, by RLIMIT_FSIZE: nothing has to be mounted under stores
that are in use, nobody else's disk gets full, and reads go on.
"""

from __future__ import annotations

import contextlib
import random
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

from chaos.nemesis import TASK, TIME, Fault, Invocation, Kind, Nemesis

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Process

Limit = tuple[int, int]
SMALLEST_BYTES = 64 << 10  # what small files, of marks and logs, may have
CONDITION = "STORAGE_FULL"


class Full(Nemesis):
    """See the module."""

    name = "full"
    kinds = (Kind("disk", ("ST-1",), frozenset({TASK, TIME}), (0.5, 3.0), (CONDITION,)),)

    def __init__(self) -> None:
        self._limited: dict[int, list[Process]] = {}  # by each fault; two may overlap
        self._before: dict[int, Limit] = {}  # what a process had before the first of them

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        hosts = sorted({executor.host for executor in cluster.executors()})
        if not hosts:
            return self.made(fault, False, why="no executor is there")
        host = rng.choice(hosts)
        limited = self._limited[fault.number] = []
        for executor in cluster.executors():
            if executor.host == host:
                with contextlib.suppress(OSError):
                    before = resource.prlimit(executor.pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(executor.pid, resource.RLIMIT_FSIZE, (SMALLEST_BYTES, before[1]))
                    self._before.setdefault(executor.pid, before)
                    limited.append(executor)
        refused = len(_refusals(cluster, limited))
        return self.made(fault, None if limited else False, host=host, refused_before=refused)

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        limited = self._limited.pop(invocation.fault.number, [])
        still = {executor.pid for others in self._limited.values() for executor in others}
        for executor in limited:
            if executor.pid not in still:
                before = self._before.pop(executor.pid)
                with contextlib.suppress(OSError):
                    if executor.is_alive():
                        resource.prlimit(executor.pid, resource.RLIMIT_FSIZE, before)
        if invocation.took_effect is False:
            return invocation
        before_count = invocation.evidence["refused_before"]
        refused = len(_refusals(cluster, limited)) - before_count
        evidence = {**invocation.evidence, "refused": refused}
        rows = self.kind("disk").rows if refused else ()
        return replace(invocation, took_effect=refused > 0, rows=rows, evidence=evidence)


def _refusals(cluster: Cluster, executors: list[Process]) -> list[object]:
    """The ends of tasks of these executors that found no room."""
    names = {executor.id for executor in executors}
    ends = cluster.log.of("task_end")
    return [end for end in ends if end.get("executor") in names and CONDITION in str(end)]
