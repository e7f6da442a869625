"""A disk that fills up: the stores of one host lie on a tmpfs, and a ballast file takes what is left of it.

It is a disk of its own in the kernel's eyes: it refuses with ENOSPC, has short writes before that and no page
for what is mapped, and every process of the host meets it.  Else there is ``full.disk``.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.nemesis import TASK, TIME, Fault, Invocation, Kind, Nemesis
from chaos.nemesis.mapfull import shrink_segments

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Launch
    from chaos.live.log import Event

SIZE_BYTES = 64 << 20  # while there is no ballast: nobody fills that
SHARES = (0.0, 0.1, 0.3)  # of what the host has written by then: so much more it may write
CONDITION = "STORAGE_FULL"
UNMOUNT_S = 5.0  # after the end, for the last processes to let go of the disk


class SmallDisk(Nemesis):
    """The disk under one host's stores has room for part of what it is going to write, until somebody
    else's file is removed.

    Segments are small, as ``map-full`` makes them: else stores write to pages that they have freed."""

    name = "small-disk"
    kinds = (Kind("tmpfs", ("ST-1",), frozenset({TASK, TIME}), (1.5, 4.0), (CONDITION,)),)

    def __init__(self) -> None:
        self._host = self._why_not = ""
        self._disk: Path | None = None  # where the tmpfs is mounted, ballast and all
        self._stores: Path | None = None  # where the application sees it
        self._open = set[int]()  # numbers of faults that last

    def prepare(self, launch: Launch, rng: random.Random) -> None:
        shrink_segments(launch, rng)

    def setup(self, cluster: Cluster) -> None:
        disk = Path(tempfile.mkdtemp(prefix="sft-disk-", dir="/tmp"))
        if why := _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(disk)):
            disk.rmdir()
            self._why_not = f"nothing may be mounted here: {why}"
            return
        self._disk = disk
        (disk / "stores").mkdir()
        scratch = cluster.scratch()
        for stores in sorted(scratch.glob("hosts/*/stores")) if scratch is not None else ():
            if self._lay_under(stores, cluster):
                self._stores, self._host = stores, stores.parent.name
                return
        self._why_not = "every host has written already"

    def _lay_under(self, stores: Path, cluster: Cluster) -> bool:
        """Mount the disk over a directory that nobody has written to."""
        below = os.open(stores, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.listdir(below) or _run("mount", "--bind", f"{self._disk}/stores", str(stores)):
                return False
            if os.listdir(below):  # meanwhile: it must not be hidden
                _run("umount", "--lazy", str(stores))
                return False
            return True
        finally:
            os.close(below)

    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        if self._stores is None or self._disk is None:
            return self.made(fault, False, why=self._why_not)
        share, refused = rng.choice(SHARES), len(self._refusals(cluster))
        self._open.add(fault.number)
        ballast = self._ballast()
        ballast.unlink(missing_ok=True)
        usage = shutil.disk_usage(self._disk)
        room = int(usage.used * share)
        _fill(ballast, room)
        return self.made(
            fault, None, host=self._host, refused_before=refused, written=usage.used, room=room,
            left=shutil.disk_usage(self._disk).free,
        )  # fmt: skip

    def _ballast(self) -> Path:
        assert self._disk is not None
        return self._disk / "ballast"

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        if invocation.took_effect is False:
            return invocation
        self._open.discard(invocation.fault.number)
        if not self._open:
            self._ballast().unlink()
        told = self._refusals(cluster)[invocation.evidence["refused_before"] :]
        says = [str(each["text"]) for each in told[:1]]
        evidence = {**invocation.evidence, "refused": len(told), "says": says}
        rows = self.kind("tmpfs").rows if told else ()
        return replace(invocation, took_effect=bool(told), rows=rows, evidence=evidence)

    def _refusals(self, cluster: Cluster) -> list[Event]:
        return cluster.log.of("host_error", host=self._host, condition=CONDITION)

    def teardown(self, cluster: Cluster) -> None:
        """Unmount both, and take away what could not be removed while something was mounted on it.  Raises
        RuntimeError when somebody holds on to the disk or has left something there."""
        if self._disk is None:
            return
        self._ballast().unlink(missing_ok=True)
        cluster.wait(lambda: not any((self._disk or Path()).glob("stores/*")), UNMOUNT_S, 0.05)
        left = sorted(path.name for path in self._disk.glob("stores/*"))
        mounted = [place for place in (self._stores, self._disk) if place is not None]
        held = [why for place in mounted if (why := _unmount(place, cluster))]
        with contextlib.suppress(OSError):
            self._disk.rmdir()
        if self._stores is not None:
            with contextlib.suppress(OSError):  # the first that holds something else is none of ours
                for place in (self._stores, *self._stores.parents[:4]):
                    if place == cluster.local_dir:
                        break
                    place.rmdir()
        if left or held:
            raise RuntimeError(f"left on the small disk: {left}; held: {held}")


def _unmount(place: Path, cluster: Cluster) -> str:
    """What kept us from unmounting; then it goes as soon as whoever holds it lets go."""
    if not place.is_mount():
        return ""
    why = ""

    def done() -> bool:
        nonlocal why
        why = _run("umount", str(place))
        return not why

    if not cluster.wait(done, UNMOUNT_S, 0.1):
        _run("umount", "--lazy", str(place))
    return why


def _fill(path: Path, room_bytes: int) -> None:
    """A file that takes all of its disk but so much."""
    with path.open("wb", buffering=0) as file:
        while (size := shutil.disk_usage(path).free - room_bytes) > 0:
            with contextlib.suppress(OSError):  # somebody has taken some of it meanwhile: what is left, then
                os.posix_fallocate(file.fileno(), 0, size)
                return


def _run(*command: str) -> str:
    """What a command says when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
