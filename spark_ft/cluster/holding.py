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

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from spark_ft.cluster.copier import Copier
from spark_ft.ids import AppId, Incarnation

_DIRECTORIES = ("stores", "tmp", "log", "run")


class Holding:
    """See the module.  ``copier`` writes into the worker's own store there."""

    def __init__(self, app: AppId, root: Path, copier: Copier, collect_at_s: float) -> None:
        self.app, self.root, self.copier = app, root, copier
        self.dropped: set[bytes] = set()  # fingerprints for the next round of garbage collection
        self.collect_at_s = collect_at_s
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
