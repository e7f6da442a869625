"""What the program no longer refers to, and when it may really go.

Who takes over a host is told again what was dropped: the worker before it may not have heard of it (L11).

Invariant: nothing is dropped while a live job, a held result or an active stage may need it (S23).
A recovery needs no more than the lineage of a live job, which names every shuffle under it.
"""

from __future__ import annotations

from spark_ft.ids import DRIVER_HOST, BlobId, Fingerprint, Incarnation, NodeId, ShuffleId
from spark_ft.lineage.shape import LineageShape
from spark_ft.protocol.effects import DropStores, JobFailure, Released
from spark_ft.protocol.messages import DropBlocks, DropShuffles
from spark_ft.scheduler.cached import CachedBlocks
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.executors import Executors
from spark_ft.scheduler.health import Health
from spark_ft.scheduler.ledger import Ledger
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.turn import Turn

_DROPPED_MAX = 4096  # the oldest are forgotten first; what they name then goes with the application


class Releases:
    """Names that were released and are still needed wait here for the end of the jobs that need them."""

    def __init__(
        self,
        turn: Turn,
        executors: Executors,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        health: Health,
        dag: Dag,
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self._turn, self._executors = turn, executors
        self._outputs, self._blocks, self._health, self._dag = outputs, blocks, health, dag
        self.shuffles: set[ShuffleId] = set()
        self.nodes: set[NodeId] = set()
        self.blobs: set[BlobId] = set()
        self._dropped: dict[Fingerprint, None] = {}  # the latest

    def released(self, event: Released) -> None:
        """Take the names in; those that nothing needs go at the end of this turn."""
        self.shuffles.update(shuffle for shuffle in event.shuffles if shuffle in self._outputs)
        self.nodes.update(node for node in event.nodes if self._blocks.tracks(node))
        self.blobs.update(event.blobs)
        # A result stage's functions are released when the results have been read, or nobody wants them.
        for job in [job for job in self._dag.held.values() if job.blob in self.blobs]:
            del self._dag.held[job.id]
        for job in [job for job in self._dag.jobs.values() if job.blob in self.blobs]:
            self._dag.end_job(job, JobFailure("JOB_CANCELLED", "nobody waits for its results any more"))
        self._dag.scopes.close(event.scopes)
        if event.broadcasts:
            for executor in self._executors.live.values():
                self._turn.send(executor.id, DropBlocks(broadcasts=event.broadcasts))
        self.settle()

    def wanted_again(self, shape: LineageShape) -> None:
        """A new job persists these nodes: an older release of them is void."""
        for node in [node for node in self.nodes if node in shape.nodes and shape.nodes[node].persisted]:
            self.nodes.discard(node)

    def settle(self) -> None:
        """Let go of all that nothing needs any more."""
        self._dag.unpinned = False
        if not (self.shuffles or self.nodes or self.blobs):
            return
        shuffles = [shuffle for shuffle in sorted(self.shuffles) if not self._dag.needs_shuffle(shuffle)]
        nodes = [node for node in sorted(self.nodes) if not self._dag.needs_node(node)]
        blobs = [blob for blob in sorted(self.blobs) if not self._dag.needs_blob(blob)]
        self.shuffles.difference_update(shuffles)
        self.nodes.difference_update(nodes)
        self.blobs.difference_update(blobs)
        if nodes:
            known = self._blocks.checksums.items()
            self._dag.scopes.forgotten({key: checksum for key, checksum in known if key[0] in nodes})
        for node in nodes:
            self._blocks.drop_node(node, forget=True)
        said = len(self._turn.out)
        fingerprints = self._drop_shuffles(shuffles)
        if self._blocks.outlived and (nodes or shuffles):
            stages = self._dag.map_stages.values()
            self._blocks.forget_editions({node for stage in stages for node in stage.tree.persisted})
        for worker in self._executors.workers.values() if nodes else ():
            self._turn.send(worker.id, DropBlocks(nodes=tuple(nodes)))  # it may have copies
        for executor in self._executors.live.values():
            known_blobs = tuple(blob for blob in blobs if blob in executor.blobs)
            executor.blobs.difference_update(known_blobs)
            for shuffle in shuffles:  # those too that it knows nothing of: it may have written some of it
                executor.outputs.pop(shuffle, None)
            if nodes or known_blobs or shuffles:
                self._turn.send(executor.id, DropBlocks(tuple(nodes), known_blobs, tuple(shuffles)))
        if fingerprints:
            words = self._turn.out[said:]
            del self._turn.out[said:]
            self._ledger.dropped(fingerprints, words)

    def tell_again(self, worker: Incarnation) -> None:
        """This worker serves what another one has left."""
        current = {outputs.fingerprint for outputs in self._outputs}
        dropped = tuple(name for name in self._dropped if name not in current)
        if dropped:
            self._turn.send(worker, DropShuffles(dropped))

    def _drop_shuffles(self, shuffles: list[ShuffleId]) -> list[Fingerprint]:
        fingerprints: list[Fingerprint] = []
        for shuffle in shuffles:
            fingerprint = self._outputs.forget(shuffle)
            if fingerprint is not None:
                fingerprints.append(fingerprint)
            del self._dag.map_stages[shuffle]
            self._health.forget_output(shuffle)
        if fingerprints:
            self._dropped.update(dict.fromkeys(fingerprints))
            while len(self._dropped) > _DROPPED_MAX:
                del self._dropped[next(iter(self._dropped))]
            for outputs in self._outputs:
                outputs.sources.difference_update(shuffles)
            if DRIVER_HOST in self._executors.addresses:  # it may have relayed some
                self._turn.out.append(DropStores(fingerprints=tuple(fingerprints)))
            for worker in self._executors.workers.values():
                self._turn.send(worker.id, DropShuffles(tuple(fingerprints)))
        return fingerprints
