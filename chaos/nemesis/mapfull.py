"""Maps that are full: every store of the application has segments so small that they fill up all the time."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.nemesis import Fault, Invocation, Kind, Nemesis
from chaos.nemesis.disk import segments
from spark_ft.storage import layout, lmdb_env

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Launch

MAPS_KIB = (64, 64, 96, 128)  # in a few seconds, by workloads that write little


def shrink_segments(launch: Launch, rng: random.Random) -> int:
    """Give stores the smallest maps that somebody asked for; answers how many KiB they have."""
    kib = rng.choice(MAPS_KIB)
    launch.conf["spark.ft.store.segmentSize"] = f"{kib}k"
    launch.conf["spark.ft.store.transactionSize"] = f"{kib // rng.choice((2, 4))}k"
    return kib


class MapFull(Nemesis):
    """LMDB says MDB_MAP_FULL all through the run, and records are larger than a segment: nothing of it shows.

    How large a map is, is settled when a store is made; so the fault is there from the beginning, and an
    invocation is a span of time in which segments have to be seen to fill up.  It may take nothing at all."""

    name = "map-full"
    kinds = (Kind("rolls", ("ST-2",), frozenset(), (2.0, 6.0), most=2),)

    def __init__(self) -> None:
        self._map_kib = 0
        self._before: dict[int, set[Path]] = {}

    def prepare(self, launch: Launch, rng: random.Random) -> None:
        self._map_kib = shrink_segments(launch, rng)
        # Workloads that write little would go on in pages of what was dropped before.
        launch.conf["spark.cleaner.referenceTracking"] = "false"

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        self._before[fault.number] = filled(cluster)
        return self.made(fault, None, map_kib=self._map_kib)

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        rolled = filled(cluster) - self._before.pop(invocation.fault.number)
        stores = {path.parent.name for path in rolled}
        evidence = {**invocation.evidence, "rolled": len(rolled), "stores": len(stores)}
        rows = self.kind("rolls").rows if rolled else ()
        return replace(invocation, took_effect=bool(rolled), rows=rows, evidence=evidence)


def filled(cluster: Cluster) -> set[Path]:
    """The segments whose writer has left them because their map was full: they are closed, and it has gone on
    in another one.  Those that were dropped since are not counted."""
    found = set[Path]()
    for store in cluster.stores():
        paths = [data.parent for data in segments(store)]
        last = max(map(layout.segment_number, paths), default=0)
        found.update(p for p in paths if layout.segment_number(p) < last and lmdb_env.is_closed(p))
    return found
