"""What is lost, and what that means for everything that was built on it.

  lost                                    dropped at once
  one output or block proved unreadable   just that one (BL-1)
  a segment that ends who reads it        all outputs and blocks in it (ST-10)
  a store with too many corrupt blocks    all outputs and blocks in it (BL-10)
  a host                                  everything on its disks, of all live shuffles, in one turn (WK-2)
  an executor                             what it had in memory; its outputs stay: a host serves them (EX-2)

An output that comes back with other bytes than recorded is not proved the same.  Then:

  nobody has read the old one        the new one takes its place
  only running tasks may have read   they are started again
  a finished task has read it        rollback: the shuffle's generation is bumped, and every output, cached
                                       partition, running task and held result built on the old one goes
                                       with it (S17); a job whose results have left the engine fails

Invariants
  * no task that counts reads a generation that is not current (S6).
  * after a rollback no held output, cached partition or result of a live job has an older generation
    under it (S17).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping

from spark_ft.ids import HostId, Incarnation, NodeId, ShuffleId, StageId
from spark_ft.protocol.effects import JobFailure
from spark_ft.protocol.messages import BlockRef, CachedBlock, DropBlocks, MapStatus
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.cached import CachedBlocks, Key, rests_on
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.health import Health
from spark_ft.scheduler.ledger import Ledger
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.taskset import Attempt
from spark_ft.scheduler.turn import Turn

_ROLLBACKS_MAX = 50  # times that one job may begin again


class Recovery:
    """See the module."""

    def __init__(
        self,
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        health: Health,
        dag: Dag,
        ledger: Ledger,
    ) -> None:
        self._turn, self._executors, self._attempts = turn, executors, attempts
        self._outputs, self._blocks, self._health, self._dag = outputs, blocks, health, dag
        self.places_lost = False  # since this was last set to False: something may lack copies now
        self._ledger = ledger

    # --- Outputs come ---

    def register(self, attempt: Attempt, status: MapStatus) -> bool:
        """Make a committed output *the* output of its partition.  False when it cannot be: it is of an
        older generation, or where it lies is lost; then the task has to run again."""
        outputs = self._outputs[status.shuffle]
        if status.generation != outputs.generation:
            self._turn.note("stale_generation", shuffle=status.shuffle, map=status.map_index)
            return False
        if not self.is_served(status.host, status.store):
            return False
        if outputs.differs(status):
            if self._read_by_finished(status.shuffle):
                self.rollback(status.shuffle, status.map_index)
                return False
            self._turn.note("output_replaced", shuffle=status.shuffle, map=status.map_index)
            self._restart_readers_of(status.shuffle)
            self._drop_cached([status.shuffle])
            self._taint([status.shuffle])
        outputs.register(status)
        outputs.sources.update(shuffle for shuffle, _ in attempt.reads)
        self._health.host_worked(status.host)
        return True

    def is_served(self, host: HostId, store: str) -> bool:
        """Whether what lies there may count: neither the host nor the store has been given up (S7)."""
        return self._executors.host_is_live(host) and store not in self._health.quarantined

    def _read_by_finished(self, shuffle: ShuffleId) -> bool:
        """Whether something that the engine still holds was built from this generation."""
        return bool(
            self._outputs.built_from(shuffle)
            or self._blocks.any_of(self._blocks.standing_on(shuffle))
            or any(shuffle in job.sources for job in self._dag.jobs.values())
        )

    def _restart_readers_of(self, shuffle: ShuffleId) -> None:
        """Whoever may have read this shuffle reads again."""
        self._restart(lambda attempt: any(read == shuffle for read, _ in attempt.reads))

    def _restart(self, is_reader: Callable[[Attempt], bool]) -> None:
        """Attempts that may have read what is no more begin again.  Until those that are being killed have
        ended they may still put what they read into their executor's memory.  Linear in running attempts."""
        readers = [
            attempt
            for executor in self._executors.live.values()
            for attempt in executor.running.values()
            if is_reader(attempt)
        ]
        for attempt in readers:
            if attempt.stage.tree.persisted:
                attempt.executor.purging[attempt.task_id] = attempt.stage.tree.persisted
            if attempt.counts:
                self._dag.restart(attempt, "its input was replaced")

    def cached(self, executor: Incarnation, block: CachedBlock) -> set[NodeId] | None:
        """What an attempt that counts has computed and kept is held from now on.  Answers the nodes of which
        nobody may hold anything any more; None: it is another one than others hold, and may not be used.
        One that is not proved the same as one that was lost, or found no room, takes its place: whatever
        stands on the old one begins again (BL-12)."""
        if not self._blocks.differs(block):
            if (block.node, block.partition) not in self._blocks.checksums:
                self._dag.scopes.persisted_anew(block)
            self._in_use(executor, block)
            return set()
        key = block.node, block.partition
        self._blocks.indeterminate.add(block.node)
        rival = self._blocks.is_held_by_others(key, executor if self.is_held(block) else None)
        self._turn.note(
            "cached_indeterminate_recomputed", node=block.node, partition=block.partition,
            executor=executor, used=not rival,
        )  # fmt: skip
        if rival:
            return None
        gone = set(self._blocks.above(block.node))
        self._drop_nodes(gone)
        self._restart(lambda attempt: rests_on(attempt.stage.tree, attempt.partition, key))
        gone |= self._undo_what_rests_on(key)
        if block.node not in gone:
            self._in_use(executor, block)
        return gone

    def _in_use(self, executor: Incarnation, block: CachedBlock) -> None:
        if self.is_held(block):
            self._blocks.add(executor, block)
        else:
            self._blocks.in_use(block)

    def is_held(self, block: CachedBlock) -> bool:
        """Whether others may read it: it has found room, and not in a store that was given up (S7)."""
        ref = block.block
        return block.kept and (ref is None or self.is_served(ref.host, ref.store))

    def astray(self, executor: ExecutorState, keys: Iterable[Key]) -> None:
        """These partitions have been in this executor's memory, and nobody may use them: what it was given
        before it is told to drop them may have read them there, and begins again (BL-12)."""
        self._restart(
            lambda attempt: (
                attempt.executor is executor
                and any(rests_on(attempt.stage.tree, attempt.partition, key) for key in keys)
            )
        )

    def _undo_what_rests_on(self, key: Key) -> set[NodeId]:
        spoilt = []
        for outputs in self._outputs:
            tree = self._dag.map_stages[outputs.shuffle].tree
            built = [index for index in outputs.checksums if rests_on(tree, index, key)]
            here = any(outputs.statuses[index] is not None for index in built)
            if here or (built and self._read_by_finished(outputs.shuffle)):  # lost by now, but read before
                spoilt.append(outputs.shuffle)
        self._dag.scopes.changed_partition(key)
        for job in [*self._dag.jobs.values(), *self._dag.held.values()]:
            job.tainted = job.tainted or any(rests_on(job.result.tree, p, key) for p in job.delivered)
        what = f"partition {key[1]} of persisted node {key[0]}"
        return self._roll_back(spoilt, what=what, node=key[0], partition=key[1])

    def rollback(self, shuffle: ShuffleId, map_index: int) -> None:
        """The output of ``map_index`` changed under finished readers."""
        what = f"output {map_index} of shuffle {shuffle}"
        self._roll_back([shuffle], what=what, cause=shuffle, map=map_index)

    def give_up(self, shuffle: ShuffleId, what: str) -> None:
        """Outputs that an earlier driver had are not what belongs here: they are computed again."""
        self._roll_back([shuffle], what=what, cause=shuffle, map=-1)

    def gang_broken(self, shuffle: ShuffleId, stage: StageId) -> None:
        """What a gang has written goes with it: all of it is written again, under another generation."""
        self._roll_back([shuffle], what=f"the gang of barrier stage {stage}", cause=shuffle, map=-1)

    def _roll_back(self, changed: Iterable[ShuffleId], **why: object) -> set[NodeId]:
        """Begin a new generation of these, and undo all that was built on the old one, results that are
        still held included.  Linear in what is held.  Answers the nodes that were dropped everywhere."""
        spoilt: dict[ShuffleId, None] = dict.fromkeys(changed)
        work = list(spoilt)
        while work:
            for built in self._outputs.built_from(work.pop()):
                if built not in spoilt:
                    spoilt[built] = None
                    work.append(built)
        self._taint(spoilt)
        dropped = self._drop_cached(spoilt)
        for spoilt_shuffle in spoilt:
            self._restart_readers_of(spoilt_shuffle)
            self._undo(spoilt_shuffle, why)
        self._give_up_endless(spoilt, str(why["what"]))
        for job in [job for job in self._dag.jobs.values() if job.tainted]:
            text = (
                f"{why['what']} was lost and came out different when it was computed again, after tasks "
                "that had read the old one had ended"
            )
            self._dag.take_back(job, text)
        return dropped

    def _give_up_endless(self, spoilt: Mapping[ShuffleId, None], what: str) -> None:
        """A job that is rolled back again and again would never end: what it caches, say, comes out different
        each time and does not fit into memory (L1)."""
        for job in list(self._dag.jobs.values()):
            if job.tainted or not spoilt.keys().isdisjoint(job.shape.shuffles):
                job.rollbacks += 1
                if job.rollbacks >= _ROLLBACKS_MAX:
                    text = (
                        f"{what} came out different when it was computed again; that was the "
                        f"{job.rollbacks}th time that this job was rolled back. Make its functions "
                        "deterministic, or checkpoint what is not."
                    )
                    failure = JobFailure("INDETERMINATE_OUTPUT_ROLLBACK", text, job.result.id)
                    self._dag.end_job(job, failure)

    def _drop_cached(self, spoilt: Iterable[ShuffleId]) -> set[NodeId]:
        """No executor may keep what was built from these, told of or not."""
        nodes = {node for shuffle in spoilt for node in self._blocks.standing_on(shuffle)}
        self._drop_nodes(nodes)
        return nodes

    def _drop_nodes(self, found: Iterable[NodeId]) -> None:
        nodes = sorted(found)
        for node in nodes:
            self._blocks.drop_node(node, forget=False)
        if nodes:
            self._dag.mark_holders(nodes)
            for executor in self._executors.live.values():
                self._turn.send(executor.id, DropBlocks(nodes=tuple(nodes)))
            for worker in self._executors.workers.values():
                self._turn.send(worker.id, DropBlocks(nodes=tuple(nodes)))

    def _taint(self, spoilt: Collection[ShuffleId]) -> None:
        """Results that were built from these are whole, but no other can be added to them any more."""
        self._dag.scopes.changed(spoilt)
        for job in [*self._dag.jobs.values(), *self._dag.held.values()]:
            job.tainted = job.tainted or not job.sources.keys().isdisjoint(spoilt)

    def _undo(self, shuffle: ShuffleId, why: Mapping[str, object]) -> None:
        outputs = self._outputs[shuffle]
        outputs.bump()
        self._ledger.generation_begun(outputs)
        self._health.forget_output(shuffle)
        stage = self._dag.map_stages[shuffle]
        self._turn.note(
            "rollback", shuffle=shuffle, generation=outputs.generation, stage=stage.id,
            tasks=outputs.map_count, **why,
        )  # fmt: skip
        if stage.tasks is not None:
            for task in list(stage.tasks.active.values()):
                for attempt in list(task.attempts):
                    self._dag.restart(attempt, "its generation was rolled back")
            for partition in range(outputs.map_count):
                stage.tasks.add(partition)
            self._dag.mark(stage)
        self._dag.mark_readers(shuffle)

    # --- Things go ---

    def outputs_lost(
        self, shuffle: ShuffleId, map_indices: list[int], host: HostId, store: str, evidence: str
    ) -> bool:
        """These outputs cannot be read where they are said to lie; whether some can be read nowhere."""
        outputs = self._outputs[shuffle]
        gone = [
            index
            for index in map_indices
            if outputs.lose(index, lambda place: place.host == host and place.store == store)
        ]
        for index in map_indices:
            if index not in gone:
                self._turn.note("output_copy_lost", shuffle=shuffle, map=index, host=host, evidence=evidence)
        self._outputs_lost({shuffle: gone} if gone else {}, evidence)
        return bool(gone)

    def location_lost(self, status: MapStatus, evidence: str) -> None:
        """One output cannot be read at this place, if it is still said to be there."""
        outputs = self._outputs.get(status.shuffle)
        if outputs is not None and status in outputs.locations(status.map_index):
            self.outputs_lost(status.shuffle, [status.map_index], status.host, status.store, evidence)

    def segment_lost(self, host: HostId, store: str, segment: int) -> None:
        """A segment was found damaged and is out of use: nothing in it can be read any more."""
        self._turn.note("segment_lost", host=host, store=store, segment=segment)
        where = host, store, segment
        self._outputs_lost(self._outputs.lost(lambda s: (s.host, s.store, s.segment) == where), "damaged")
        self._blocks_lost(self._blocks.drop_segment(store, segment), "damaged")

    def store_lost(self, host: HostId, store: str) -> None:
        """A store is given up: nothing in it is used any more, and nothing more is written there."""
        self._turn.note("store_quarantined", host=host, store=store)
        self._outputs_lost(self._outputs.lost(lambda s: s.host == host and s.store == store), "quarantine")
        self._blocks_lost(self._blocks.drop_store(store), "quarantine")
        for executor in self._executors.live.values():
            if executor.id == store:
                self._attempts.doom(executor, "its store is in quarantine")

    def host_lost(self, host: HostId) -> None:
        """All that lay on a host's disks is gone; what still needs it is planned at once."""
        self._outputs_lost(self._outputs.lost(lambda s: s.host == host), "host lost")
        self._blocks_lost(self._blocks.drop_host(host), "host lost")
        self._health.forget_host(host)

    def host_unserved(self, host: HostId) -> None:
        """Nobody serves a host's disks, for now or for good: readers hear of what is elsewhere too (WK-2)."""
        for outputs in self._outputs:
            if any(place.host == host for index in outputs.copies for place in outputs.locations(index)):
                outputs.tell()

    def host_inherited(
        self, host: HostId, kept: Iterable[MapStatus], stores: Container[str], alive: Container[str]
    ) -> None:
        """Another worker serves this host's disks (WK-3): outputs that are in ``kept`` just as we know them
        stay, and blocks in ``stores``; of the ``alive`` everything; all else is lost."""
        whole = {(o.store, o.segment, o.attempt, o.checksum) for o in kept}
        self._outputs_lost(
            self._outputs.lost(
                lambda s: (
                    s.host == host
                    and s.store not in alive
                    and (s.store, s.segment, s.attempt, s.checksum) not in whole
                )
            ),
            "host lost",
        )
        self._blocks_lost(self._blocks.drop_but(host, stores), "host lost")

    def block_lost(self, ref: BlockRef, evidence: str) -> bool:
        """A cached partition's block cannot be read; False when no such block is known."""
        lost = self._blocks.drop_disk(ref)
        self._blocks_lost(lost, evidence)
        return bool(lost)

    def memory_lost(self, keys: Iterable[Key]) -> None:
        """The memory that partitions were in is gone: those that no other place has have to be computed again
        when they are needed."""
        self._blocks_lost(keys, "executor lost")

    def _outputs_lost(self, found: dict[ShuffleId, list[int]], evidence: str) -> None:
        self.places_lost = True
        for shuffle, indices in found.items():
            stage = self._dag.map_stages[shuffle]
            for index in indices:
                self._turn.note("output_lost", stage=stage.id, shuffle=shuffle, map=index, evidence=evidence)
                self._health.forget_output(shuffle, index)
                if stage.tasks is not None:
                    stage.tasks.add(index)
                    if stage.tree.barrier:
                        self._dag.broken[stage.id] = stage
            if stage.tasks is not None:
                self._dag.mark(stage)
            self._dag.mark_readers(shuffle)

    def _blocks_lost(self, keys: Iterable[Key], why: str) -> None:
        keys = list(keys)
        self.places_lost = True
        for node, partition in keys:
            holding = self._blocks.holding(node, partition)
            left = 0 if holding is None else len(holding.memory) + len(holding.disk)
            self._turn.note("block_lost", node=node, partition=partition, why=why, places_left=left)
        self._dag.mark_holders({node for node, _ in keys})
