"""What touches another process's store runs in disposable children: damage there may end them.

The probe after an executor's death, the survey of each store that an earlier worker of this host has left,
the rounds of garbage collection; and the examination of a segment that somebody has died in (ST-10).  That
death proves nothing: it may have come by user code, while another thread was reading.  But what does not
verify, or ends the child too, would end the next one as well, and is taken out of use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from spark_ft.clock import BootClock
from spark_ft.cluster.processes import Children, Spec
from spark_ft.errors import BlockMissing, StorageError
from spark_ft.ids import Fingerprint, HostId, Incarnation, ShuffleId
from spark_ft.log import get_logger
from spark_ft.protocol import codec
from spark_ft.protocol.messages import ExecutorExited, MapStatus, SegmentTouched, StoresServed
from spark_ft.storage import layout, lmdb_env, touched
from spark_ft.storage.blocks import StoreReader
from spark_ft.storage.gc import collect_garbage, seal

TIMEOUT_S = 10.0
DAMAGED = 3  # exit status of a child that has found a segment so

log = get_logger(__name__)


def probe(spec: Spec, fds: Sequence[int]) -> int:
    """What a dead executor's store holds, written to ``fds[0]`` as an ExecutorExited; and its spill
    files removed."""
    root, name = Path(spec["root"]), spec["executor"]
    host = HostId(spec["host"])
    shutil.rmtree(root / "tmp" / name, ignore_errors=True)
    outputs: tuple[MapStatus, ...] = ()
    if (root / "stores" / name).is_dir():
        seal(root, name)
        outputs = tuple(StoreReader({host: root}).outputs(host, name))
    with os.fdopen(fds[0], "wb") as pipe:
        pipe.write(codec.encode(ExecutorExited(Incarnation(name), 0, 0, "", outputs)))
    return 0


def survey(spec: Spec, fds: Sequence[int]) -> int:
    """What verifies in one store that was here before the worker, written to ``fds[0]`` as a StoresServed;
    ``deep``: every byte of it."""
    root, name, host = Path(spec["root"]), spec["store"], HostId(spec["host"])
    seal(root, name)
    names: dict[ShuffleId, Fingerprint] = {}
    outputs = tuple(StoreReader({host: root}).outputs(host, name, spec["deep"], names))
    named = tuple((name, shuffle, fingerprint) for shuffle, fingerprint in names.items())
    with os.fdopen(fds[0], "wb") as pipe:
        pipe.write(codec.encode(StoresServed((), outputs, (name,), named)))
    return 0


def collect(spec: Spec, fds: Sequence[int]) -> int:
    """One round of garbage collection over this host's stores."""
    root = Path(spec["root"])
    collect_garbage(root, spec["live"], [bytes.fromhex(item) for item in spec["dropped"]])
    shutil.rmtree(root / "quarantine", ignore_errors=True)
    return 0


def examine(spec: Spec, fds: Sequence[int]) -> int:
    """Read every byte of one segment; how this process ends is the answer."""
    try:
        return 0 if layout.is_whole(Path(spec["segment"])) else DAMAGED
    except BlockMissing:
        return 0  # nobody will die in it again


class Examiner:
    """``host_of`` answers whose root a directory is, None for nobody's; ``deadlines`` are those of children
    by pid, which the worker keeps."""

    def __init__(
        self,
        children: Children,
        host_of: Callable[[Path], HostId | None],
        deadlines: dict[int, float],
        stderr: str,
    ) -> None:
        self._children, self._host_of, self._deadlines, self._stderr = children, host_of, deadlines, stderr
        self._clock = BootClock()

    def __call__(
        self,
        segments: Iterable[Path],
        then: Callable[[tuple[SegmentTouched, ...]], None],
        found: tuple[SegmentTouched, ...] = (),
    ) -> None:
        """Examine these, one after the other, and tell what was ``found``; at once when there are none."""
        for path in (rest := iter(segments)):
            host = self._host_of(path.parents[2])
            if host is not None:
                self._one(path, host, lambda each: self(rest, then, (*found, each)))
                return
        then(found)

    def _one(self, path: Path, host: HostId, then: Callable[[SegmentTouched], None]) -> None:
        child: list[int] = []

        def spawned(pid: int) -> None:
            child.append(pid)
            self._deadlines[pid] = self._clock.now_s() + TIMEOUT_S

        def ended(status: int, signal: int, why: str) -> None:
            for pid in child:
                self._deadlines.pop(pid, None)
            damaged = status == DAMAGED or signal in touched.FAULTS
            if damaged:
                log.warning("segment %s is damaged and is taken out of use", path)
                with contextlib.suppress(StorageError):
                    lmdb_env.condemn(path)
            then(SegmentTouched(host, path.parent.name, layout.segment_number(path), damaged))

        spec = {"segment": str(path)}
        self._children.spawn("examine", spec, stderr=self._stderr, on_spawned=spawned, on_end=ended)
