"""Every nemesis by name."""

from __future__ import annotations

from chaos.nemesis import Kind, Nemesis
from chaos.nemesis.clock import Clock
from chaos.nemesis.disk import Disk
from chaos.nemesis.full import Full
from chaos.nemesis.kill import KillExecutor, KillHost, KillManager, KillPairs, KillWorker
from chaos.nemesis.leave import Decommission
from chaos.nemesis.mapfull import MapFull
from chaos.nemesis.network import Network
from chaos.nemesis.pause import PauseDriver, PauseExecutor, PauseHost
from chaos.nemesis.resources import Cpu, Memory, Readers
from chaos.nemesis.smalldisk import SmallDisk
from chaos.nemesis.stores import SlowDisk

_ALL: tuple[type[Nemesis], ...] = (
    KillExecutor, KillPairs, KillWorker, KillHost, KillManager, Decommission,
    PauseExecutor, PauseHost, PauseDriver, Network, Disk, Full, SmallDisk, MapFull,
    SlowDisk, Memory, Cpu, Readers, Clock,
)  # fmt: skip
NEMESES: dict[str, type[Nemesis]] = {cls.name: cls for cls in _ALL}


def kind_of(nemesis: str, kind: str) -> Kind:
    return next(each for each in NEMESES[nemesis].kinds if each.name == kind)


def rows_within_reach() -> list[str]:
    """The rows of the fault model that some nemesis can exercise, in order."""
    rows = {row for cls in NEMESES.values() for kind in cls.kinds for row in kind.rows}
    return sorted(rows, key=lambda row: (row.split("-")[0], int(row.split("-")[1])))
