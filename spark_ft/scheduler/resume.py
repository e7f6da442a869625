"""A driver goes on where one before it has died: what counts again, and what does not.

    Recovered (the journal)     answers of finished actions; generations; names of what was dropped
    StoresServed (the stores)   map outputs of shuffles that this program will ask for, by fingerprint

    JobSubmitted ──hosts of before have spoken──> adopt its shuffles' outputs ──> answer it, or run the rest

What was found bears a digest of what it was built from (protocol/digests.py).  It counts when that is what
its shuffles hold; while they are not complete it counts on trust, and is looked at when they are: then either
all was right, or a rollback takes it along, and all that was built on it (S17).

Invariants
  * of several outputs of one map task, or of maps that read different data, none is chosen: the shuffle is
    computed again.
  * what is kept in executors' memory has died with them.  Outputs over persisted nodes are adopted whole or
    not at all, and not into a job that computes these nodes again elsewhere (BL-12).
  * a job is held back only while a host of before may yet speak, and not longer than ``driver_grace_s``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from spark_ft.ids import Fingerprint, HostId, NodeId, ShuffleId
from spark_ft.lineage.shape import LineageShape
from spark_ft.protocol.digests import UNKNOWN
from spark_ft.protocol.effects import JobSubmitted, MergeAccums
from spark_ft.protocol.journal import ActionFinished, Recovered, Updates
from spark_ft.protocol.messages import MapStatus, StoresServed
from spark_ft.scheduler.ledger import Ledger
from spark_ft.scheduler.map_outputs import MapOutputTracker, ShuffleOutputs
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.stage import StageTree, cut
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings


@dataclass(slots=True)
class Prior:
    """What of a job is done already.  ``whole``: all, and the program has had its answer before, perhaps."""

    partitions: tuple[int, ...] = ()
    whole: bool = False
    sources: tuple[ShuffleId, ...] = ()
    map_updates: list[tuple[Fingerprint, int, Updates]] = field(default_factory=list)


class Resumption:
    """See the module.  ``hosts``: those of earlier lives that will speak."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        outputs: MapOutputTracker,
        recovery: Recovery,
        ledger: Ledger,
        recovered: Recovered,
        hosts: Iterable[HostId],
    ) -> None:
        self._turn, self._outputs, self._recovery, self._ledger = turn, outputs, recovery, ledger
        self._known = recovered
        self._patience_s = settings.driver_grace_s
        self._awaited = set(hosts)
        self._found: dict[Fingerprint, dict[tuple[str, int, int], MapStatus]] = {}
        # Adopted, at this generation: on trust that their parents have this digest; over persisted nodes.
        self._trusted: dict[ShuffleId, tuple[int, tuple[ShuffleId, ...], int]] = {}
        self._over: dict[ShuffleId, tuple[tuple[NodeId, ...], int]] = {}
        self.queue: list[JobSubmitted] = []
        self._until_s = 0.0

    # --- Until the hosts have spoken ---

    def holds(self, event: JobSubmitted) -> bool:
        """Whether this job has to wait until it is known what is there."""
        if not self._awaited:
            return False
        if not self.queue:
            self._until_s = self._turn.now_s + self._patience_s
            self._turn.note("resume_waits", hosts=sorted(self._awaited))
        self.queue.append(event)
        return True

    def ready(self) -> list[JobSubmitted]:
        """Jobs that need not wait any more."""
        if self._awaited and self._turn.now_s < self._until_s:
            return []
        self._awaited.clear()
        return self.taken(lambda event: True)

    def taken(self, wanted: Callable[[JobSubmitted], bool]) -> list[JobSubmitted]:
        """Take these out of the queue."""
        found = [event for event in self.queue if wanted(event)]
        self.queue = [event for event in self.queue if not wanted(event)]
        return found

    def served(self, host: HostId, told: StoresServed) -> None:
        """A worker says what lies on its host."""
        self._awaited.discard(host)
        if not self._ledger.is_on:
            return
        names = {(store, shuffle): fingerprint for store, shuffle, fingerprint in told.names}
        known = {outputs.fingerprint for outputs in self._outputs}
        for status in told.outputs:
            fingerprint = names.get((status.store, status.shuffle))
            if fingerprint is not None and fingerprint not in known:
                place = status.store, status.attempt, status.map_index
                self._found.setdefault(fingerprint, {})[place] = status

    # --- A job comes ---

    def prepare(self, event: JobSubmitted) -> tuple[Prior, list[MapStatus]]:
        """Before the job is planned: adopt what is there of its shuffles, and say what of it is done.
        Answers also what was adopted."""
        prior, adopted = Prior(), list[MapStatus]()
        if not self._ledger.is_on:
            return prior, adopted
        shape = event.shape
        fresh = [shuffle for shuffle in sorted(shape.shuffles) if shuffle not in self._outputs]
        for shuffle in fresh:
            self._outputs.ensure(shape.shuffles[shuffle])
        finished = self._known.finished.get(event.action) if event.action else None
        kept = self._known.results.get(event.action, {}) if event.action else {}
        answered = finished is not None and kept.keys() >= set(event.partitions)
        if finished is not None and answered:
            self._merge_again(finished, shape)
        for shuffle in fresh:
            adopted += self._adopt(shape, shuffle, prior)
        tree = cut(shape, shape.target)
        prior.sources = tree.parents
        if finished is not None and answered and self._is_unbroken(event, finished):
            prior.partitions, prior.whole = event.partitions, True
            self._turn.note("job_answered", job=event.job, name=event.name, partitions=len(event.partitions))
        elif kept:
            digest = self._ledger.digest(tree)
            if digest != UNKNOWN and not tree.barrier:
                prior.partitions = tuple(p for p in event.partitions if kept.get(p) == digest)
            self._turn.note(
                "job_resumed", job=event.job, name=event.name, done=len(prior.partitions),
                partitions=len(event.partitions),
            )  # fmt: skip
        return prior, adopted

    def _merge_again(self, finished: ActionFinished, shape: LineageShape) -> None:
        """Accumulators get what they got while the action ran, once."""
        of = {shuffle.fingerprint: id for id, shuffle in shape.shuffles.items()}
        for fingerprint, map_index, updates in finished.merged:
            outputs = self._outputs.get(of.get(fingerprint, ShuffleId(-1)))
            if outputs is None or outputs.merge_once(map_index):
                self._turn.out.append(MergeAccums(updates))

    def _is_unbroken(self, event: JobSubmitted, finished: ActionFinished) -> bool:
        """A job of an action of several sees what the others see; any other stands for itself (BL-7)."""
        if event.scope < 0 and not event.rests_on:
            return True
        now = {
            (outputs.fingerprint, outputs.generation, outputs.digest())
            for shuffle in event.shape.shuffles
            if (outputs := self._outputs[shuffle]).complete
        }
        return set(finished.sources) <= now

    def _adopt(self, shape: LineageShape, shuffle: ShuffleId, prior: Prior) -> list[MapStatus]:
        """Make outputs that were found the outputs of this shuffle; answers which."""
        outputs = self._outputs[shuffle]
        found = list(self._found.pop(outputs.fingerprint, {}).values())
        generations = [status.generation for status in found]
        outputs.begin_at(max([self._known.generations.get(outputs.fingerprint, 0), *generations]))
        tree = cut(shape, shape.shuffles[shuffle].parent)
        usable = self._usable(outputs, tree, found)
        if not usable:
            if found:
                self._turn.note("outputs_passed_over", shuffle=shuffle, found=len(found))
            return []
        inputs = usable[0][0].inputs
        if not all(self._outputs[parent].complete for parent in tree.parents):
            self._trusted[shuffle] = inputs, tree.parents, outputs.generation
        if tree.persisted:
            self._over[shuffle] = tree.persisted, outputs.generation
        outputs.sources.update(tree.parents)
        adopted = []
        for same in usable:
            status = replace(same[0], shuffle=shuffle)
            if status.accums and outputs.merge_once(status.map_index):
                self._turn.out.append(MergeAccums(status.accums))
                prior.map_updates.append((outputs.fingerprint, status.map_index, status.accums))
            outputs.register(status)
            adopted.append(status)
            for copy in same[1:]:
                outputs.add_copy(replace(copy, shuffle=shuffle, accums=()))
        self._turn.note(
            "outputs_adopted", shuffle=shuffle, generation=outputs.generation, count=len(adopted),
            of=outputs.map_count,
        )  # fmt: skip
        return adopted

    def _usable(
        self, outputs: ShuffleOutputs, tree: StageTree, found: list[MapStatus]
    ) -> list[list[MapStatus]]:
        """One list for each map that has an output which may count: its places, all of the same bytes."""
        digest = self._outputs.digest(tree.parents)
        complete = all(self._outputs[parent].complete for parent in tree.parents)
        by_index: dict[int, list[MapStatus]] = {}
        for status in sorted(found, key=lambda each: (each.attempt, each.host, each.store)):
            if status.generation != outputs.generation or not 0 <= status.map_index < outputs.map_count:
                continue
            if complete and status.inputs != digest:
                continue
            if self._recovery.is_served(status.host, status.store):
                by_index.setdefault(status.map_index, []).append(status)
        places = list(by_index.values())
        if len({status.inputs for same in places for status in same}) > 1:
            return []
        if any(len({status.checksum for status in same}) > 1 for same in places):
            return []
        if (tree.persisted or tree.barrier) and len(places) < outputs.map_count:
            return []
        return places

    # --- What was trusted is looked at ---

    def verify(self) -> None:
        """Outputs whose inputs have become complete were built from these, or are rolled back."""
        for shuffle, (digest, parents, generation) in list(self._trusted.items()):
            if not self._is_at(shuffle, generation) or any(parent not in self._outputs for parent in parents):
                del self._trusted[shuffle]
            elif all(self._outputs[parent].complete for parent in parents):
                del self._trusted[shuffle]
                if self._outputs.digest(parents) != digest:
                    self._recovery.give_up(shuffle, f"what shuffle {shuffle} was built from has changed")

    def verify_persisted(self, shape: LineageShape) -> None:
        """No job reads adopted outputs over a persisted node, and computes that node anew as well."""
        over = [shuffle for shuffle in self._over if shuffle in shape.shuffles]
        if not over:
            return
        roots = [shuffle.parent for id, shuffle in shape.shuffles.items() if not self._outputs[id].complete]
        computed = {node for root in (*roots, shape.target) for node in cut(shape, root).persisted}
        for shuffle in over:
            nodes, generation = self._over[shuffle]
            if not computed.isdisjoint(nodes):
                del self._over[shuffle]
                if self._is_at(shuffle, generation):
                    self._recovery.give_up(shuffle, f"what was kept under shuffle {shuffle} is gone")

    def _is_at(self, shuffle: ShuffleId, generation: int) -> bool:
        """Whether it is still there, as it was adopted."""
        outputs = self._outputs.get(shuffle)
        return outputs is not None and outputs.generation == generation

    def check(self) -> None:
        """Invariants."""
        for shuffle, (_, parents, generation) in self._trusted.items():
            if self._is_at(shuffle, generation) and all(parent in self._outputs for parent in parents):
                complete = all(self._outputs[parent].complete for parent in parents)
                assert not complete, "S6: what was trusted could be looked at, and was not"
        assert not self.queue or self._awaited, "a job is held back though nobody is waited for"
