"""Every nemesis by name."""

from __future__ import annotations

from chaos.nemesis import Kind, Nemesis
from chaos.nemesis.kill import KillExecutor, KillWorker
from chaos.nemesis.pause import PauseExecutor

NEMESES: dict[str, type[Nemesis]] = {cls.name: cls for cls in (KillExecutor, KillWorker, PauseExecutor)}


def kind_of(nemesis: str, kind: str) -> Kind:
    return next(each for each in NEMESES[nemesis].kinds if each.name == kind)


def rows_within_reach() -> list[str]:
    """The rows of the fault model that some nemesis can exercise, in order."""
    rows = {row for cls in NEMESES.values() for kind in cls.kinds for row in kind.rows}
    return sorted(rows, key=lambda row: (row.split("-")[0], int(row.split("-")[1])))
