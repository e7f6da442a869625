"""Copies on other hosts: which outputs and partitions lack some, who makes them, and where they are known.

    register, cached, a loss ──> lacking ──order──> flying ──CopyMade──> a location more, or another try
                                    ^                  └── its maker is lost ──┐
                                    └── found again when hosts come and go ────┘

An item is one map output or one persisted partition.  It wants its data on so many hosts: map outputs on
``spark.ft.shuffle.replicas``, partitions on what their storage level says.  What is in an executor's memory
alone is first written down by that executor; blocks and outputs are pulled by a worker of another host
into a store of its own.  Nobody waits for a copy: no task, no stage.

What a reader's host cannot reach is put where it can (NET-8): on a third host, or else with the driver.

What is on a host that leaves (departures.py) does not count: it is copied to one that stays, and then the
place on the leaving host is forgotten in the same turn (EX-13).

Invariants
  * what lacks a copy is in ``lacking``, ``waiting`` or ``flying``, or no host could take one.
  * at most ``_A_MAKER`` orders are with one maker; each maker is live.
  * a copy counts only if what it was made of still counts, or the same bytes do, when word of it comes:
    a rolled-back or recomputed item never gets an old copy back (S17, S18).
  * nor does it count in a store that is in quarantine (S7); its maker is asked for no more (BL-10).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spark_ft.ids import DRIVER_HOST, Fingerprint, HostId, Incarnation, NodeId, ShuffleId
from spark_ft.protocol.effects import Copy, Forget
from spark_ft.protocol.messages import (
    BlockRef,
    CachedBlock,
    CopyMade,
    CopyOrder,
    DropBlocks,
    MakeCopies,
    MapStatus,
)
from spark_ft.scheduler.cached import CachedBlocks, Holding
from spark_ft.scheduler.executors import Executors, WorkerState
from spark_ft.scheduler.health import NETWORK_EVIDENCE, Health
from spark_ft.scheduler.links import Links
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_A_MAKER = 4  # orders that one maker has at a time
_A_TURN = 32  # items looked at
_UNREADABLE = frozenset(("missing", "corrupt", "incomplete", "expired"))


@dataclass(frozen=True, slots=True)
class OutputItem:
    """One map output, whatever generation is current."""

    shuffle: ShuffleId
    map_index: int


@dataclass(frozen=True, slots=True)
class PartitionItem:
    """One partition of a persisted node."""

    node: NodeId
    partition: int


Item = OutputItem | PartitionItem


@dataclass(frozen=True, slots=True)
class Flight:
    """An order under way.  ``original`` is what is copied; None: what is in ``maker``'s memory."""

    item: Item
    maker: Incarnation
    original: MapStatus | BlockRef | None


class Copies:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        executors: Executors,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        health: Health,
        links: Links,
        recovery: Recovery,
        me: Incarnation,
    ) -> None:
        self._settings, self._turn, self._executors = settings, turn, executors
        self._outputs, self._blocks, self._health, self._recovery = outputs, blocks, health, recovery
        self._links, self._me = links, me
        self._relays: dict[OutputItem, HostId] = {}  # for whom a place within reach is wanted besides
        self.lacking: dict[Item, None] = {}  # in order
        self.waiting: dict[Item, None] = {}  # for a host that could take one after a while
        self.flying: dict[int, Flight] = {}
        self._items_flying: dict[Item, int] = {}
        self._orders: dict[Incarnation, list[CopyOrder]] = {}  # of this turn
        self._load: dict[Incarnation, int] = {}  # orders with each maker
        self._given: dict[Incarnation, int] = {}  # ever, so that copies spread
        self._next = 0
        self._barred: set[Incarnation] = set()  # makers whose store has been given up
        self._told_short = False
        self._staying: set[HostId] = set()  # of this turn
        self.look_again = False  # hosts have come or gone, or something was lost: look at everything

    # --- What happens ---

    def output_added(self, status: MapStatus) -> None:
        """A map output was registered."""
        if self._settings.shuffle_replicas > 1 or self.moving:
            self._want(OutputItem(status.shuffle, status.map_index))

    def cached(self, block: CachedBlock) -> None:
        """A partition is held somewhere more."""
        if self._blocks.replication.get(block.node, 1) > 1 or self.moving:
            self._want(PartitionItem(block.node, block.partition))

    def server_came(self, host: HostId) -> None:
        """A host has a new block server: it may take copies, and what is known of its links is void."""
        self._links.forget_host(host)
        self.look_again = True

    def worker_came(self) -> None:
        """A worker is known by an executor of its own, before its hello: who leaves waits for it (EX-13)."""
        if self.moving:
            self.look_again = True

    def maker_lost(self, maker: Incarnation) -> None:
        """A worker or an executor is gone with its orders."""
        for number in [n for n, flight in self.flying.items() if flight.maker == maker]:
            flight = self._landed(number)
            self._want(flight.item)
        self._given.pop(maker, None)
        self._barred.discard(maker)

    def made(self, sender: Incarnation, told: CopyMade) -> None:
        """An order's end."""
        flight = self.flying.get(told.number)
        if flight is None or flight.maker != sender:
            self._turn.note("stale_copy", number=told.number, sender=sender)
            self._refuse(sender, told)
            return
        self._landed(told.number)
        if told.evidence:
            self._failed(flight, told)
        elif not self._accept(flight, told):
            self._turn.note("copy_refused", number=told.number, maker=sender)
            self._refuse(sender, told)
        self._want(flight.item)
        if told.evidence:
            self._put_off(flight.item, told.evidence != "failed")

    @property
    def moving(self) -> bool:
        """Whether somebody leaves: what is there has to be looked at, however few copies it wants."""
        return bool(self._executors.leaving) and self._settings.move_data

    def _want(self, item: Item) -> None:
        self.waiting.pop(item, None)
        self.lacking[item] = None

    def _put_off(self, item: Item, again: bool = True) -> None:
        """Nothing can be done for it now: look again after a while, or when hosts come and go."""
        del self.lacking[item]
        if again:
            self.waiting[item] = None

    def _landed(self, number: int) -> Flight:
        flight = self.flying.pop(number)
        del self._items_flying[flight.item]
        left = self._load[flight.maker] = self._load[flight.maker] - 1
        if not left:
            del self._load[flight.maker]
        return flight

    def _refuse(self, sender: Incarnation, told: CopyMade) -> None:
        if told.evidence:
            return
        if sender == self._me:
            self._turn.out.append(Forget(copies=(told.number,)))
        else:
            self._turn.send(sender, DropBlocks(copies=(told.number,)))

    def _accept(self, flight: Flight, told: CopyMade) -> bool:
        """Whether the copy is one of what counts now; then it is a location more."""
        item = flight.item
        if isinstance(item, OutputItem):
            outputs, copy = self._outputs.get(item.shuffle), told.output
            if outputs is None or copy is None or not self._may_count(flight, copy):
                return False
            if not outputs.add_copy(copy):
                return False
            if self._relays.pop(item, None) is not None:
                outputs.tell()
            self._turn.note("output_copied", shuffle=item.shuffle, map=item.map_index, host=copy.host)
            return True
        holding, block = self._blocks.holding(item.node, item.partition), told.cached
        if holding is None or block is None or block.block is None:
            return False
        ref = block.block
        if flight.original is None:
            known = flight.maker in holding.memory
            if known and self._blocks.differs(block, moved=True):
                # Another edition has taken its place in that memory (BL-12).
                key = item.node, item.partition
                self._blocks.drop_memory(flight.maker, key)
                self._recovery.memory_lost([key])
                return False
        else:
            known = any(_same_bytes(held, ref) for held in holding.disk.values())
        if not known or not self._may_count(flight, ref):
            return False
        self._blocks.add(flight.maker, block)
        self._turn.note(
            "block_copied", node=item.node, partition=item.partition, host=ref.host,
            written_down=flight.original is None,
        )  # fmt: skip
        return True

    def _may_count(self, flight: Flight, copy: MapStatus | BlockRef) -> bool:
        if copy.store in self._health.quarantined:
            self._barred.add(flight.maker)
        return self._recovery.is_served(copy.host, copy.store)

    def _failed(self, flight: Flight, told: CopyMade) -> None:
        """Why there is no copy, and who learns from it."""
        item, original = flight.item, flight.original
        worker = self._executors.workers.get(flight.maker)
        self._turn.note(
            "copy_failed", number=told.number, maker=flight.maker, evidence=told.evidence, text=told.text
        )
        if told.evidence == "gone" and isinstance(item, PartitionItem):
            if self._blocks.drop_memory(flight.maker, (item.node, item.partition)):
                self._recovery.memory_lost([(item.node, item.partition)])
        elif told.evidence in _UNREADABLE and isinstance(original, MapStatus):
            self._recovery.location_lost(original, told.evidence)
        elif told.evidence in _UNREADABLE and isinstance(original, BlockRef):
            self._recovery.block_lost(original, told.evidence)
        elif told.evidence in NETWORK_EVIDENCE and worker is not None and original is not None:
            self._links.failed(worker.host, original.host, self._turn.now_s)
        elif told.evidence in NETWORK_EVIDENCE and original is not None:
            self._links.failed(DRIVER_HOST, original.host, self._turn.now_s)
        elif told.evidence != "failed":
            maker = worker or self._executors.live.get(flight.maker)
            host = maker.host if maker is not None else DRIVER_HOST
            sizes = told.needed_bytes, told.free_bytes
            self._health.host_failed(host, told.evidence, told.text, *sizes, self._turn.now_s)

    # --- What follows ---

    def sweep(self) -> None:
        """Those that waited are looked at again."""
        self.lacking.update(self.waiting)
        self.waiting.clear()

    def fill(self) -> None:
        """Order copies of what lacks some, as far as makers have room."""
        if self._recovery.places_lost:
            self._recovery.places_lost = False
            self.look_again = (
                self.look_again or self._settings.replicate_again or bool(self._executors.leaving)
            )
        if self.look_again:
            self.look_again = False
            self._find_lacking()
        if self.lacking:
            self._staying = self._executors.staying() if self.moving else set(self._executors.hosts())
            self._staying.add(DRIVER_HOST)
        for item in list(itertools.islice(self.lacking, _A_TURN)) if self.lacking else ():
            if not self._has_room():
                break
            if item in self._items_flying:
                del self.lacking[item]  # looked at again when its order ends
            else:
                self._look_at(item)
        self._tell()

    def _has_room(self) -> bool:
        makers = (*self._executors.workers, self._me)
        return any(self._load.get(id, 0) < _A_MAKER for id in makers)

    def _find_lacking(self) -> None:
        """Everything that may want copies.  Linear in all that is held; only when hosts come or go."""
        if self._settings.shuffle_replicas > 1 or (self.moving and self._settings.move_outputs):
            for outputs in self._outputs:
                for status in outputs.statuses:
                    if status is not None:
                        self._want(OutputItem(status.shuffle, status.map_index))
        everything = self.moving and self._settings.move_partitions
        for node in self._blocks.held if everything else self._blocks.replication:
            for partition in self._blocks.held[node]:
                self._want(PartitionItem(node, partition))

    def _look_at(self, item: Item) -> None:
        """Order a copy, or see that none is lacking, or that none can be had now."""
        if isinstance(item, OutputItem):
            self._look_at_output(item)
        else:
            self._look_at_partition(item)

    def relay(self, outputs: Iterable[tuple[ShuffleId, int]], reader: HostId) -> bool:
        """This host reaches none of the places of these outputs: they are wanted on one that it reaches.
        False when there is none (NET-8)."""
        possible = False
        for shuffle, index in outputs:
            places = self._outputs[shuffle].locations(index)
            if self._relay(places, reader) is not None:
                possible = True
                item = OutputItem(shuffle, index)
                if item not in self._relays:
                    self._turn.note("output_relayed", shuffle=shuffle, map=index, reader=reader)
                self._relays[item] = reader
                self._want(item)
        return possible

    def _relay(
        self, places: Sequence[MapStatus], reader: HostId
    ) -> tuple[Incarnation, HostId, MapStatus] | None:
        """Who is to pull one of these for this reader, on which host: a third worker, or else the driver."""
        now_s, cut = self._turn.now_s, self._links.is_cut
        makers = [
            (self._load.get(worker.id, 0), worker.id, worker.host)
            for worker in self._executors.workers.values()
            if worker.has_spoken and self._takes_copies(worker) and worker.host != reader
            if not self._health.backing_off(worker.host, now_s)
        ]
        relays = [(id, host) for _, id, host in sorted(makers)]
        if DRIVER_HOST in self._executors.addresses and self._me not in self._barred:
            relays.append((self._me, DRIVER_HOST))
        for maker, host in relays:
            for place in places:
                if place.host != host and not cut(host, place.host, now_s) and not cut(reader, host, now_s):
                    return maker, host, place
        return None

    def _relay_one(self, item: OutputItem, fingerprint: Fingerprint, places: Sequence[MapStatus]) -> None:
        found = self._relay(places, self._relays[item])
        if found is None:
            del self._relays[item]
        elif self._load.get(found[0], 0) >= _A_MAKER:
            self._want(self._last(item))
        else:
            order = CopyOrder(self._next, output=found[2], fingerprint=fingerprint)
            self._order(item, found[0], order, found[2])

    def _look_at_output(self, item: OutputItem) -> None:
        outputs = self._outputs.get(item.shuffle)
        places = outputs.locations(item.map_index) if outputs is not None else ()
        if item in self._relays:
            if outputs is not None and places:
                self._relay_one(item, outputs.fingerprint, places)
            else:
                del self._relays[item]
            return
        staying = [place for place in places if place.host in self._staying]
        if outputs is None or not places or len(staying) >= self._settings.shuffle_replicas:
            if outputs is not None and len(staying) < len(places):
                self._left(place.host for place in places if place.host not in self._staying)
                outputs.lose(item.map_index, lambda place: place.host not in self._staying)
                self._turn.note("output_moved", shuffle=item.shuffle, map=item.map_index)
            del self.lacking[item]
            return
        originals = {status.host: status for status in places}
        chosen = self._choose(item, set(originals), list(originals))
        if chosen is not None:
            worker, host = chosen
            order = CopyOrder(self._next, output=originals[host], fingerprint=outputs.fingerprint)
            self._order(item, worker.id, order, originals[host])

    def _look_at_partition(self, item: PartitionItem) -> None:
        holding = self._blocks.holding(item.node, item.partition)
        if holding is None:
            del self.lacking[item]
            return
        holders = [self._executors.live[id] for id in holding.memory]
        hosts = {host for host in holding.disk if host in self._staying}
        hosts.update(executor.host for executor in holders if not executor.is_leaving)
        if len(hosts) >= self._blocks.replication.get(item.node, 1):
            del self.lacking[item]
            self._forget_left(item, holding)
            return
        if not holding.disk:
            self._write_down(item, holding)
            return
        hosts.update(holding.disk)
        chosen = self._choose(item, hosts, list(holding.disk))
        if chosen is not None:
            worker, host = chosen
            block = holding.disk[host]
            self._order(item, worker.id, CopyOrder(self._next, cached=block), block.block)

    def _forget_left(self, item: PartitionItem, holding: Holding) -> None:
        """There are enough copies where nobody leaves: those on leaving hosts are not read any more."""
        left = [host for host in holding.disk if host not in self._staying]
        self._left(left)
        for host in left:
            self._blocks.drop_place((item.node, item.partition), host)
            self._turn.note("block_moved", node=item.node, partition=item.partition, host=host)

    def _left(self, hosts: Iterable[HostId]) -> None:
        """Readers that run may still read what they were told of there; later ones will not."""
        gone = set(hosts)
        for worker in self._executors.workers.values() if gone else ():
            if worker.host in gone and worker.leaving is not None:
                worker.leaving.moved_s = self._turn.now_s

    def dropped(self) -> None:
        """A partition in memory is gone: the others of it may be with somebody who leaves (EX-13)."""
        if self._executors.leaving:
            self.look_again = True

    def is_busy_with(self, host: HostId, executor: Incarnation | None = None) -> bool:
        """Whether something on this host, or in this executor's memory, is still to be moved."""
        return any(
            self._is_at(item, host, executor)
            for items in (self.lacking, self.waiting, self._items_flying)
            for item in items
        )

    def _is_at(self, item: Item, host: HostId, executor: Incarnation | None) -> bool:
        if isinstance(item, OutputItem):
            outputs = self._outputs.get(item.shuffle)
            places = outputs.locations(item.map_index) if outputs is not None and executor is None else ()
            return any(place.host == host for place in places)
        holding = self._blocks.holding(item.node, item.partition)
        if holding is None:
            return False
        if executor is not None:
            return executor in holding.memory and not holding.disk
        return host in holding.disk or any(self._executors.live[id].host == host for id in holding.memory)

    def _write_down(self, item: PartitionItem, holding: Holding) -> None:
        """It is in memory alone: whoever holds it writes it to its host's disk, where others can read it."""
        makers = [
            id for id in holding.memory if self._load.get(id, 0) < _A_MAKER and id not in self._barred
        ]
        if not makers:
            self._want(self._last(item))
        else:
            held = CachedBlock(item.node, item.partition, holding.memory[makers[0]])
            self._order(item, makers[0], CopyOrder(self._next, cached=held), None)

    def _choose(
        self, item: Item, holders: set[HostId], sources: list[HostId]
    ) -> tuple[WorkerState, HostId] | None:
        """Who is to make the copy, and from which host it reads.  With nobody now, or nobody who has said
        hello, it waits, and with nobody at all it is looked at when a host comes."""
        now_s = self._turn.now_s
        others = [
            w for w in self._executors.workers.values() if self._takes_copies(w) and w.host not in holders
        ]
        if not others:
            del self.lacking[item]
            if not self._told_short:
                self._told_short = True
                hosts = ", ".join(sorted(self._executors.hosts()))
                self._turn.note("copies_lack_hosts", text=f"no further host for a copy; hosts: {hosts}")
            return None
        pairs = [
            (self._load.get(worker.id, 0), self._given.get(worker.id, 0), worker.id, worker, source)
            for worker in others
            if worker.has_spoken and not self._health.backing_off(worker.host, now_s)
            for source in sources
            if self._executors.host_is_live(source) and not self._links.is_cut(worker.host, source, now_s)
        ]
        if not pairs:
            self._put_off(item)
            return None
        load, _, _, worker, source = min(pairs, key=lambda pair: pair[:3])
        if load < _A_MAKER:
            return worker, source
        self._want(self._last(item))
        return None

    def _takes_copies(self, worker: WorkerState) -> bool:
        return worker.leaving is None and worker.id not in self._barred

    def _last(self, item: Item) -> Item:
        """The item, to be put at the end: who could make its copy is busy."""
        del self.lacking[item]
        return item

    def _order(
        self, item: Item, maker: Incarnation, order: CopyOrder, original: MapStatus | BlockRef | None
    ) -> None:
        self._next += 1
        self.flying[order.number] = Flight(item, maker, original)
        self._items_flying[item] = order.number
        self._load[maker] = self._load.get(maker, 0) + 1
        self._given[maker] = self._given.get(maker, 0) + 1
        self._orders.setdefault(maker, []).append(order)
        del self.lacking[item]

    def _tell(self) -> None:
        for maker, orders in self._orders.items():
            hosts = {
                host: self._executors.addresses[host]
                for order in orders
                if (host := _source(order)) is not None and host in self._executors.addresses
            }
            if maker == self._me:
                self._turn.out.append(Copy(maker, tuple(orders), hosts))
            else:
                self._turn.send(maker, MakeCopies(tuple(orders), hosts))
        self._orders.clear()

    # --- For tests and simulation ---

    def check(self) -> None:
        """Linear in what is under way."""
        load: dict[Incarnation, int] = {}
        for number, flight in self.flying.items():
            assert number < self._next and self._items_flying[flight.item] == number, "S28"
            live = self._executors.live if flight.original is None else self._executors.workers
            assert flight.maker in live or flight.maker == self._me, "S13, S28: its maker is gone"
            load[flight.maker] = load.get(flight.maker, 0) + 1
        assert load == self._load and all(count <= _A_MAKER for count in load.values()), "S12, S29"
        assert len(self._items_flying) == len(self.flying), "S28"
        assert not self._orders and not self.lacking.keys() & self.waiting.keys()


def _same_bytes(one: CachedBlock, other: BlockRef) -> bool:
    ref = one.block
    return ref is not None and (ref.size_bytes, ref.checksum) == (other.size_bytes, other.checksum)


def _source(order: CopyOrder) -> HostId | None:
    if order.output is not None:
        return order.output.host
    assert order.cached is not None
    return order.cached.block.host if order.cached.block is not None else None
