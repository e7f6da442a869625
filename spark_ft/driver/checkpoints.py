"""Checkpoints of one application: written before the first job that needs them, read from then on, mended.

    <checkpoint directory>/<one for each application>/rdd-<id>/
        part-00000 …   batches of records (rows.py), synced
        _lineage       what it was computed from, pickled: the way back when a part is lost
        _SUCCESS       the manifest: size and checksum of each part.  Without it there is no checkpoint

* The directory is an output like any other (storage/outputs.py): there whole or not at all, written by one
  job, so its parts are of one content also where computing it again would give another (BL-5, BL-19).
* What a failed try had finished is not written again: the next one is a job of the same scope, so either it
  sees what the first saw, or it begins anew (scheduler/scopes.py).
* In memory the lineage is cut: a chain of checkpoints keeps one level each.  A lost part is computed again
  from ``_lineage`` and put in its place only when it has the checksum that was written down; everything else
  is CHECKPOINT_LOST, at once: other jobs have read what cannot be had again (BL-18).
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from xxhash import xxh3_128_hexdigest

from spark_ft import broadcast, closures, rows
from spark_ft.errors import FetchError, JobError, SparkFtError
from spark_ft.filesystems import Remote, at, is_remote, local_path
from spark_ft.ids import Fingerprint, NodeId, ShuffleId, new_incarnation
from spark_ft.lineage.narrow import CheckpointPoint
from spark_ft.lineage.node import Node
from spark_ft.lineage.saved import Saved
from spark_ft.lineage.sources import stored_slices
from spark_ft.log import get_logger
from spark_ft.storage.outputs import SUCCESS, Manifest, abandon, published, save, write_part

_LINEAGE = "_lineage"
_SUM_BYTES = 32
_STALE = ("INDETERMINATE_OUTPUT_ROLLBACK", "OUTPUT_PART_LOST")  # answers that cannot be gone on from
_ROUNDS = 3  # of a job that finds damage again and again

Answer = tuple[str, int, str]

log = get_logger(__name__)


class Session(Protocol):
    """What checkpoints need of their application."""

    def run(
        self,
        node: Node,
        function: Callable[[int, Iterator[Any]], Any],
        partitions: Sequence[int] | None = None,
        scope: int = -1,
        *,
        answered: dict[int, Any] | None = None,
    ) -> list[Any]: ...

    def new_scope(self) -> int: ...

    def close_scope(self, scope: int) -> None: ...

    def new_node_id(self) -> NodeId: ...

    def new_shuffle(self) -> tuple[ShuffleId, Fingerprint]: ...

    def name_action(self, node: Node, action: Callable[..., Any]) -> str: ...


class _Begun:
    """A checkpoint that is being written, and what a failed try has left of it."""

    def __init__(self, job: str, scope: int) -> None:
        self.job, self.scope = job, scope
        self.answered: dict[int, Answer] = {}


class Checkpoints:
    """See the module.  ``keep_lineage``: write it down; ``clean``: delete what nothing reads any more."""

    def __init__(self, session: Session, keep_lineage: bool = True, clean: bool = False) -> None:
        self._session = session
        self._keep_lineage, self._clean = keep_lineage, clean
        self.root: str | None = None  # a URI
        self._lives_on = False
        self._begun: weakref.WeakKeyDictionary[CheckpointPoint, _Begun] = weakref.WeakKeyDictionary()
        self._parents: weakref.WeakKeyDictionary[CheckpointPoint, Callable[[], Node | None]]
        self._parents = weakref.WeakKeyDictionary()  # what was saved, while the program has it
        # What a lineage refers to: broadcasts, and the checkpoints below.  One level is kept, not a chain.
        self._needs: weakref.WeakKeyDictionary[CheckpointPoint, list[object]] = weakref.WeakKeyDictionary()
        self._life = new_incarnation("life").encode()  # lineages of others refer to blocks that are gone
        self.any = False  # whether there is one at all
        self._garbage: deque[str] = deque()  # folders that nothing reads any more

    def set_root(self, directory: str, name: str, lives_on: bool = False) -> None:
        """Checkpoints go below ``directory/name``, this application's alone, in all its lives if it
        ``lives_on``.  Raises what the file system raises when the directory cannot be made."""
        files, path = at(directory)
        files.make_directory(f"{path}/{name}")
        self.root, self._lives_on = files.uri(f"{path}/{name}"), lives_on

    # --- Writing ---

    def write(self, point: CheckpointPoint) -> None:
        """Save every partition of a marked point, by a job of its own; then it stands for what was saved."""
        assert self.root is not None
        self.sweep()
        folder = f"{self.root}/rdd-{point.rdd_id}"
        begun = self._begun.get(point)
        if begun is None:
            job = self._session.name_action(point, partial(save, folder, writer=rows.write))
            begun = _Begun(job or new_incarnation("checkpoint"), self._session.new_scope())
            self._begun[point] = begun
        manifest = self._save(folder, point, begun)
        self._begun.pop(point, None)
        self._session.close_scope(begun.scope)
        self._write_lineage(folder, point)
        point.settle(folder, self._reader(folder, manifest))
        self.any = True

    def _save(self, folder: str, point: CheckpointPoint, begun: _Begun) -> Manifest:
        while True:
            goes_on = bool(begun.answered)
            run = partial(self._run_on, point, begun)
            try:
                return save(folder, run, rows.write, job=begun.job, durable=True)
            except JobError as error:
                stale = error.getCondition() in _STALE
                if stale:
                    begun.answered.clear()
                    self._session.close_scope(begun.scope)
                    begun.scope = self._session.new_scope()
                if error.getCondition() == "TARGET_EXISTS" and self._lives_on:
                    self._delete(folder)  # of another life, of what cannot be known again or was changed
                elif not (stale and goes_on):
                    raise

    def _run_on(
        self, point: CheckpointPoint, begun: _Begun, function: Callable[[int, Iterator[Any]], Answer]
    ) -> list[Answer]:
        """The job, without what an earlier try has answered."""
        missing = [p for p in range(point.partition_count) if p not in begun.answered]
        if missing:
            self._session.run(point, function, missing, begun.scope, answered=begun.answered)
        return [begun.answered[p] for p in range(point.partition_count)]

    def _write_lineage(self, folder: str, point: CheckpointPoint) -> None:
        """Beside the parts, so that memory can let go of it; and what has to live as long as it is of use."""
        (parent,) = (each.parent for each in point.dependencies)
        assert parent is not None
        self._parents[point] = weakref.ref(parent)
        if not self._keep_lineage:
            return
        with broadcast.collecting() as used:
            data = closures.dump_lineage(parent)
        self._needs[point] = [*used.values(), *_holders(parent)]
        files, path = at(folder)
        files.write(f"{path}/{_LINEAGE}", self._life + xxh3_128_hexdigest(data).encode() + data)

    def _reader(self, folder: str, manifest: Manifest) -> Saved:
        attempts = zip(manifest.parts, manifest.attempts, strict=True)
        parts = [(part, size, checksum) for part, (_, size, checksum) in attempts]
        reader = Saved(self._session.new_node_id(), folder, parts)
        if self._clean:
            weakref.finalize(reader, self._garbage.append, folder).atexit = False
        return reader

    # --- Reading ---

    def restore(self, name: str) -> Saved:
        """What an application has saved: by the URI or path of its directory, or by its name below ours.

        Raises JobError (CHECKPOINT_NOT_FOUND) when there is no whole checkpoint.
        """
        folder = name
        if not is_remote(name):
            below_root = self.root is not None and not name.startswith(("/", "file:"))
            folder = f"{self.root}/{name}" if below_root else f"file:{local_path(name)}"
        manifest = published(folder)
        if manifest is None:
            raise JobError(
                f"There is no whole checkpoint at {folder}: no manifest in its {SUCCESS}",
                "CHECKPOINT_NOT_FOUND",
            )
        self.any = True
        attempts = zip(manifest.parts, manifest.attempts, strict=True)
        return Saved(
            self._session.new_node_id(), folder, [(part, size, sum) for part, (_, size, sum) in attempts]
        )

    # --- Mending ---

    def look_after(self, node: Node, run: Callable[[], list[Any]]) -> list[Any]:
        """Run a job on ``node``; checkpoints in its lineage that prove damaged are mended first.

        Raises JobError (CHECKPOINT_LOST) that names the parts when they cannot be.
        """
        self.sweep()
        for saved, point in _saved_above(node):
            if missing := _missing(saved):
                self._mend(saved, point, missing)
        for last in (*[False] * (_ROUNDS - 1), True):
            try:
                return run()
            except JobError as error:
                if last or error.getCondition() != "CHECKPOINT_LOST":
                    raise
            for saved, point in _saved_above(node):
                answers = self._session.run(saved, partial(_is_whole, saved))
                if damaged := [p for p, whole in enumerate(answers) if not whole]:
                    self._mend(saved, point, damaged)
        raise AssertionError("the last round returns or raises")

    def _mend(self, saved: Saved, point: CheckpointPoint | None, damaged: list[int]) -> None:
        """Write damaged parts again, from their lineage.  Raises JobError (CHECKPOINT_LOST)."""
        log.warning("checkpoint %s: %d of %d parts are lost", saved.folder, len(damaged), len(saved.parts))
        parent = self._parent(saved, point)
        if parent is None:
            raise _lost(saved, damaged, "and there is no lineage that they could be computed from")
        files, path = at(saved.folder)
        staging = f"{path}/_temporary"
        files.make_directory(staging)
        write = partial(write_part, files.uri(staging), rows.write, "", True)
        try:
            answers = self._session.run(parent, write, damaged)
            for index, (name, size, checksum) in zip(damaged, answers, strict=True):
                if (size, checksum) != saved.parts[index][1:]:
                    raise _lost(saved, damaged, "and computing them again gives other records")
                files.move(f"{staging}/{name}", f"{path}/{saved.parts[index][0]}")
        except (FetchError, JobError) as error:
            if error.getCondition() == "CHECKPOINT_LOST":
                raise
            raise _lost(saved, damaged, f"and computing them again fails: {error}") from error
        finally:
            files.delete_tree(staging)

    def _parent(self, saved: Saved, point: CheckpointPoint | None) -> Node | None:
        """What the checkpoint was computed from: as the program still has it, or as it was written down."""
        known = self._parents.get(point) if point is not None else None
        if known is not None and (parent := known()) is not None:
            return parent
        files, path = at(saved.folder)
        try:
            written = files.read(f"{path}/{_LINEAGE}")
        except FileNotFoundError:
            return None
        head = len(self._life)
        life, sum, data = written[:head], written[head : head + _SUM_BYTES], written[head + _SUM_BYTES :]
        if life != self._life or sum != xxh3_128_hexdigest(data).encode():
            return None
        return closures.load_lineage(data, self._session.new_node_id, self._session.new_shuffle)

    # --- Cleaning ---

    def sweep(self) -> None:
        """Delete checkpoints that nothing reads any more, where the settings say so."""
        while self._garbage:
            self._delete(self._garbage.popleft())

    def close(self, keep: bool) -> None:
        """At the application's end: what was never finished goes, unless a next life may go on with it."""
        self.sweep()
        for point, begun in self._begun.items():
            if not keep:
                abandon(f"{self.root}/rdd-{point.rdd_id}", begun.job)

    def _delete(self, folder: str) -> None:
        with contextlib.suppress(SparkFtError, OSError):
            files, path = at(folder)
            files.delete_tree(path)


def _saved_above(target: Node) -> list[tuple[Saved, CheckpointPoint | None]]:
    """The checkpoints that a lineage rests on, each with the point that stands for it."""
    found: dict[NodeId, tuple[Saved, CheckpointPoint | None]] = {}
    seen = {target.id}
    stack = [target]
    if isinstance(target, Saved):
        found[target.id] = target, None
    while stack:
        node = stack.pop()
        for dependency in node.dependencies:
            parent = dependency.parent
            if parent is None:
                continue
            if isinstance(parent, Saved):
                point = node if isinstance(node, CheckpointPoint) else None
                if point is not None or parent.id not in found:
                    found[parent.id] = parent, point
            if parent.id not in seen:
                seen.add(parent.id)
                stack.append(parent)
    return list(found.values())


def _holders(target: Node) -> list[Node]:
    """The nodes of a lineage with whom data goes: checkpoints, and collections in blocks.  None of them has
    parents, so no more than that is kept."""
    found, seen, stack = [], {target.id}, [target]
    while stack:
        node = stack.pop()
        if isinstance(node, Saved) or stored_slices(node):
            found.append(node)
        for dependency in node.dependencies:
            if dependency.parent is not None and dependency.parent.id not in seen:
                seen.add(dependency.parent.id)
                stack.append(dependency.parent)
    return found


def _missing(saved: Saved) -> list[int]:
    """Parts that are not even there; asked for before a job only where that is cheap."""
    files, path = at(saved.folder)
    if isinstance(files, Remote):
        return []
    names = set(files.names(path))
    return [index for index, (name, _, _) in enumerate(saved.parts) if name not in names]


def _is_whole(saved: Saved, partition: int, _: Iterator[Any]) -> bool:
    return saved.is_whole(partition)


def _lost(saved: Saved, partitions: list[int], why: str) -> JobError:
    some = ", ".join(map(str, partitions[:20])) + (" …" if len(partitions) > 20 else "")
    return JobError(
        f"Checkpoint {saved.folder} has lost {len(partitions)} of its {len(saved.parts)} partitions ({some})"
        f", {why}. Compute the RDD anew and checkpoint it again.",
        "CHECKPOINT_LOST",
    )


