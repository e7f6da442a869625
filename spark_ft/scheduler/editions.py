"""Which edition of a persisted partition is in use: what attempts have kept, judged when they tell of it.

  computed first          it is in use from now on
  computed again, same    one more that holds it
  computed again, other   in the place of one that was lost: what stands on that begins again; beside one
                          that is held: refused, and whoever may have read it in that memory begins again
  evicted to disk         used only if it is the edition in use
  computed, no room       as if it had been kept and lost at once: nobody holds it, and the next one that
                          is computed is compared with it

Invariant: no attempt counts that has worked with another edition than all others do (BL-12).
"""

from __future__ import annotations

from dataclasses import replace

from spark_ft.protocol.messages import DropBlocks, Success, TaskEnd
from spark_ft.scheduler.cached import CachedBlocks, Key
from spark_ft.scheduler.copies import Copies
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.taskset import Attempt
from spark_ft.scheduler.turn import Turn


class Editions:
    """See the module."""

    def __init__(
        self,
        turn: Turn,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        dag: Dag,
        recovery: Recovery,
        copies: Copies,
    ) -> None:
        self._turn, self._outputs, self._blocks = turn, outputs, blocks
        self._dag, self._recovery, self._copies = dag, recovery, copies

    def learn(self, attempt: Attempt, end: TaskEnd) -> bool:
        """What this executor's memory holds now, whatever became of the attempt itself.  False when it has
        worked with another edition of a partition than all others do."""
        executor, usable = attempt.executor, True
        if not (end.cached or end.dropped or executor.purging):
            return True
        current = self.is_current(attempt)
        refused = dict.fromkeys(executor.purging.pop(end.task, ()))
        evicted = set(end.dropped)
        astray: list[Key] = []
        met: dict[Key, int] = {}  # editions
        for node, partition in end.dropped:
            if self._blocks.drop_memory(executor.id, (node, partition)):
                self._turn.note("uncached", node=node, partition=partition, executor=executor.id)
                self._dag.mark_holders([node])
                self._copies.dropped()
        for block in end.cached:
            key = block.node, block.partition
            if not (block.kept or (attempt.counts and isinstance(end.reason, Success))):
                continue  # nobody has used it
            spilled = block.block is not None and key in evicted  # an attempt before this one had computed it
            if not spilled and met.setdefault(key, block.checksum) != block.checksum:
                usable = False  # it has computed it twice, for want of room
            differs = self._blocks.differs(block, moved=spilled)
            welcome = (
                current
                and (usable or spilled)
                and block.node not in refused
                and self._blocks.tracks(block.node)
                and (not differs or (attempt.counts and not spilled))
            )
            if spilled:
                block = replace(block, checksum=0)
            gone = self._recovery.cached(executor.id, block) if welcome else None
            if gone is None:
                usable = usable and not (welcome or differs)
                if not block.kept:
                    continue
                refused[block.node] = None
                if self._blocks.tracks(block.node) and (spilled or block.block is None):
                    astray.append(key)
                continue
            refused.update(dict.fromkeys(gone))
            # What stood on the old one is dropped, and what this attempt has made of the new one with it: it
            # has read the former, or is the only one that has the latter.
            usable = usable and gone.isdisjoint(attempt.stage.tree.persisted)
            held = self._recovery.is_held(block)
            if held and block.node not in gone:
                self._copies.cached(block)
            self._turn.note(
                "cached" if held else "not_cached", node=block.node, partition=block.partition,
                executor=executor.id, size_bytes=block.size_bytes, disk=block.block is not None,
            )  # fmt: skip
        if astray:
            self._recovery.astray(executor, astray)
        if refused:
            self._turn.send(executor.id, DropBlocks(nodes=tuple(refused)))
            for node in refused:
                for key in [k for k in self._blocks.of_executor.get(executor.id, ()) if k[0] == node]:
                    self._blocks.drop_memory(executor.id, key)
            self._dag.mark_holders(refused)
        return usable

    def is_current(self, attempt: Attempt) -> bool:
        """Whether nothing that it has read was rolled back."""
        return all(
            shuffle in self._outputs and self._outputs[shuffle].generation == generation
            for shuffle, generation in attempt.reads
        )
