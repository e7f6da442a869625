"""Which manager of a work directory may act: the owner of its store, under an epoch that only grows.

    <work-dir>/state/    LMDB, synced: owner, epoch, beat, hosts that have a worker
    <work-dir>/epoch     the epoch once more, for when the store is damaged

    start ── nobody, or an owner that has ended ──> take: owner := us, epoch + 1, in one transaction that
                                                     expects the owner to be who it was
    standby ── the owner's beat stands still ──────> the same (CM-4)
    owner ── its beat finds another owner ─────────> fenced: it ends

Every write of an owner expects the owner to be itself, so of two that believe they are it one is told that
it is not by its next beat.  What it has said until then does no harm: workers and drivers follow the later
epoch, and each worker obeys one manager only.  A store that is damaged is put aside, and what it told is
told again by the workers (CM-5).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from spark_ft.clock import wall_ms
from spark_ft.cluster.procfs import process_stat
from spark_ft.errors import ClusterError, SparkFtError, StorageError
from spark_ft.ids import HostId, Incarnation
from spark_ft.log import get_logger
from spark_ft.storage import lmdb_env
from spark_ft.storage.lmdb_env import Segment, SegmentDamaged, SegmentFull, SegmentTaken

BEAT_S = 0.25
ENDED_S = 1.0  # a beat stands still so long, and there is no such process
LEASE_S = 5.0  # … or be that as it may

_OWNER, _EPOCH, _BEAT, _HOSTS = b"owner", b"epoch", b"beat", b"hosts"
_MAP_BYTES = 8 << 20
_TROUBLE = (SegmentDamaged, SegmentFull, SparkFtError)

log = get_logger(__name__)


class Leadership:
    """One manager's view of its work directory; to be used by one thread at a time.

    ``awaited``: hosts that had a worker under the owner before us, once we have taken its place.
    ``knows_hosts`` is False when that could not be told.  Raises ClusterError where there is no such place.
    """

    def __init__(self, work_dir: Path, me: Incarnation) -> None:
        self._path, self._me = work_dir, me
        stat = process_stat(os.getpid())
        self._owner = f"{me} {os.getpid()} {stat.start if stat else 0}".encode()
        self._seen: tuple[bytes | None, bytes | None] = None, None  # owner and beat, when they last changed
        self._seen_s = 0.0
        self._beat = 0
        self.epoch = 0
        self.awaited: tuple[HostId, ...] = ()
        self.knows_hosts = True
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            self._segment = self._open()
        except (OSError, SparkFtError) as error:
            raise ClusterError(f"cannot use the work directory {work_dir}: {error}") from error

    def _open(self) -> Segment:
        state = self._path / "state"
        try:
            segment = lmdb_env.open_shared(state, _MAP_BYTES, sync=True)
            segment.get(_OWNER)
            return segment
        except (SegmentDamaged, StorageError) as error:
            if isinstance(error, StorageError) and error.getCondition() in ("STORE_IN_USE", "STORE_FORMAT"):
                raise
            log.error("the state in %s is damaged; it is put aside and learnt anew: %s", state, error)
            self.knows_hosts = False
            state.rename(self._path / f"state.damaged-{wall_ms()}")
            return lmdb_env.open_shared(state, _MAP_BYTES, sync=True)

    def owner_has_ended(self, now_s: float) -> bool:
        """Whether there is none, or the one there is may be taken to have ended.  To be asked every
        ``BEAT_S`` or so; never at once of an owner that has gone without a word."""
        owner = self._segment.get(_OWNER)
        seen = owner, self._segment.get(_BEAT)
        if seen != self._seen:
            self._seen, self._seen_s = seen, now_s
        if not owner:
            return True
        still_s = now_s - self._seen_s
        return still_s >= LEASE_S or (still_s >= ENDED_S and not _is_process(owner))

    def owner(self) -> str:
        """Who it is, for people."""
        return (self._segment.get(_OWNER) or b"nobody").decode().partition(" ")[0]

    def take(self) -> bool:
        """Become the owner, whose end ``owner_has_ended`` told; False when somebody else was quicker."""
        owner = self._seen[0]
        stored = int(self._segment.get(_EPOCH) or b"0")
        self.epoch = max(stored, self._written_epoch()) + 1
        hosts = self._segment.get(_HOSTS)
        self.knows_hosts = self.knows_hosts and (hosts is not None or self.epoch == 1)
        hosts = hosts or b"[]"
        rows = [(_OWNER, self._owner), (_EPOCH, b"%d" % self.epoch), (_BEAT, b"0"), (_HOSTS, hosts)]
        try:
            self._write_epoch()
            self._segment.write(rows, expect=(_OWNER, owner))
        except SegmentTaken:
            return False
        self.awaited = tuple(HostId(host) for host in json.loads(hosts))
        return True

    def beat(self) -> bool:
        """Say that we live; False when we are not the owner any more."""
        self._beat += 1
        return self._put([(_BEAT, b"%s %d" % (self._me.encode(), self._beat))])

    def remember(self, hosts: Sequence[HostId]) -> bool:
        """Write down which hosts have a worker; False as in ``beat``."""
        return self._put([(_HOSTS, json.dumps(hosts).encode())])

    def resign(self) -> None:
        """We end in order: nobody need wait until we are taken to have ended."""
        self._put([(_OWNER, b"")])
        self._segment.close()

    def _put(self, rows: list[tuple[bytes, bytes]]) -> bool:
        """A disk that is full, or damaged meanwhile, costs what is written there and nothing else: workers
        know what they hold."""
        try:
            self._segment.write(rows, expect=(_OWNER, self._owner))
        except SegmentTaken:
            return False
        except _TROUBLE as error:
            log.warning("the state in %s cannot be written: %s", self._path, error)
        return True

    def _written_epoch(self) -> int:
        path = self._path / "epoch"
        try:
            return int(path.read_text())
        except FileNotFoundError:
            # With the store gone too: more than any manager can have counted to.
            return 0 if self.knows_hosts else wall_ms() // 1000
        except (OSError, ValueError):
            return wall_ms() // 1000

    def _write_epoch(self) -> None:
        try:
            with (self._path / "epoch.new").open("w") as file:
                file.write(str(self.epoch))
                file.flush()
                os.fsync(file.fileno())
            (self._path / "epoch.new").rename(self._path / "epoch")
        except OSError as error:
            log.warning("the epoch cannot be written to %s: %s", self._path, error)


def _is_process(owner: bytes) -> bool:
    """Whether the process that wrote this lives, as far as can be told from here."""
    try:
        _, pid, start = owner.decode().split()
        stat = process_stat(int(pid))
    except ValueError:
        return True
    return stat is not None and stat.start == int(start) and not stat.ended
