"""What one application has on a worker's host: a directory, the copies that are made for it, its garbage.

    <root>/                   of a worker that serves one application alone
    <root>/apps/<app>-<hash>/ of a worker that several share
        stores/  tmp/         map outputs and cached partitions; spill files
        log/                  what executors wrote; stays when the application has ended
        run/                  a file for each executor, and those by which it is told and asked things
        app_id                whose it is
        worker.lock           see hold_root

Nothing of one application is ever looked at for another: names of nodes and of shuffles mean something
within one of them only.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from spark_ft.cluster.copier import Copier
from spark_ft.errors import BlockMissing
from spark_ft.ids import AppId, Fingerprint, HostId, Incarnation, ShuffleId
from spark_ft.log import get_logger
from spark_ft.protocol.effects import Inherited
from spark_ft.protocol.messages import MapStatus

log = get_logger(__name__)

_DIRECTORIES = ("stores", "tmp", "log", "run")


class Holding:
    """See the module.  ``copier`` writes into the worker's own store there."""

    def __init__(self, app: AppId, root: Path, copier: Copier) -> None:
        self.app, self.root, self.copier = app, root, copier
        self.dropped: set[bytes] = set()  # fingerprints for the next round of garbage collection
        self.collect_at_s = inf
        self.collecting = False
        for name in _DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True)

    def ready_path(self, executor: Incarnation) -> Path:
        return self.root / "run" / f"{executor}.ready"

    def log_path(self, executor: Incarnation, stream: str = "stderr") -> Path:
        return self.root / "log" / f"{executor}.{stream}"

    def stores(self) -> list[str]:
        return sorted(path.name for path in (self.root / "stores").iterdir())

    def clear(self) -> None:
        """All its data; nobody writes here any more."""
        for name in ("stores", "tmp"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(exist_ok=True)


class Holdings:
    """All of a worker's, by application; one that is not ``shared`` has its own root for whoever it serves.

    ``roots`` is for the reader that serves them: it knows each as a host of its own.
    """

    def __init__(self, root: Path, shared: bool, make_copier: Callable[[str, Path], Copier]) -> None:
        self._root, self._shared, self._make_copier = root, shared, make_copier
        self.of: dict[Incarnation, Holding] = {}  # of live executors, and of drivers
        self.roots: dict[HostId, Path] = {}
        self._all: dict[AppId, Holding] = {}
        self._places: dict[str, HostId] = {}  # of stores, whether they are still there or not

    def __iter__(self) -> Iterator[Holding]:
        return iter(list(self._all.values()))

    def hold(self, app: AppId) -> Holding:
        """What this application has here, from now on if not before."""
        key = app if self._shared else AppId("")
        holding = self._all.get(key)
        if holding is None:
            root = directory_of(self._root, app) if self._shared else self._root
            # The copies that we make lie in a store of ours, and of the application where there are several.
            copier = self._make_copier(f"-{root.name[-8:]}" if self._shared else "", root)
            holding = self._all[key] = Holding(key, root, copier)
            self.roots[HostId(key)] = root
            self._places.update((name, HostId(key)) for name in [copier.me, *holding.stores()])
        return holding

    def assign(self, holding: Holding, executor: Incarnation, driver: Incarnation) -> None:
        """This executor, and the store that it may come to have, are that application's."""
        self.of[executor] = self.of[driver] = holding
        self._places[executor] = HostId(holding.app)

    def of_driver(self, driver: Incarnation | None) -> Holding | None:
        """What a driver's orders are about; None when nothing of its application is here."""
        return self.of.get(driver) if self._shared and driver else self._all.get(AppId(""))

    def place(self, store: str) -> HostId:
        """Under which of the reader's hosts a store lies, or lay: one that is gone lacks all its outputs, and
        is not one of which nobody has heard.  Raises BlockMissing.  From any thread."""
        try:
            return self._places[store]
        except KeyError:
            raise BlockMissing(f"there is no store {store!r} here") from None

    def drop(self, app: AppId) -> None:
        """The data of an application that has ended."""
        holding = self._all.get(app if self._shared else AppId(""))
        if holding is None:
            return
        if self._shared:
            del self._all[app], self.roots[HostId(app)]
            self.of = {name: held for name, held in self.of.items() if held is not holding}
            self._places = {name: place for name, place in self._places.items() if place != HostId(app)}
            holding.copier.close()
        holding.clear()


def directory_of(root: Path, app: AppId) -> Path:
    """Of an application on a shared worker; made, and marked as its."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", app)[:48]
    path = root / "apps" / f"{name}-{hashlib.blake2b(app.encode(), digest_size=4).hexdigest()}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "app_id").write_text(app)
    return path


def applications_in(root: Path) -> Iterable[AppId]:
    """Whose directories lie there."""
    for path in sorted((root / "apps").glob("*/app_id")):
        yield AppId(path.read_text())


@dataclass(slots=True)
class Found:
    """What was here of one application."""

    executors: list[tuple[Incarnation, Incarnation]]
    outputs: list[MapStatus] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    names: list[tuple[str, ShuffleId, Fingerprint]] = field(default_factory=list)

    def told(self, app: AppId | None, more: bool) -> Inherited:
        outputs, names = tuple(self.outputs), tuple(self.names)
        return Inherited(tuple(self.executors), outputs, tuple(self.whole), names, app, more)


def quarantine(holding: Holding, store: str) -> None:
    """A store that kills whoever looks at it (ST-9), or is none: out of everybody's sight, and away with
    the next round of garbage collection."""
    log.warning("store %s cannot be read and is taken out of use", store)
    with contextlib.suppress(OSError):
        (holding.root / "quarantine").mkdir(exist_ok=True)
        (holding.root / "stores" / store).rename(holding.root / "quarantine" / store)


def service_log(holding: Holding) -> str:
    return str(holding.root / "log" / "service.stderr")
