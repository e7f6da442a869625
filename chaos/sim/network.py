"""The simulated network, and the part of a process that speaks over it.

``Process`` does what transport/host.py does, turn for turn, with the shipped ``Link`` below it: reliable
links over frames that may be dropped, delayed, doubled, reordered or cut off.  A frame's body is the
tuple of the messages of one turn; nothing is encoded, for the codec decides nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from spark_ft.ids import Incarnation
from spark_ft.protocol.effects import (
    ClosePeer,
    Core,
    Effect,
    Event,
    Note,
    PeerHeard,
    PeerSilent,
    Received,
    Send,
    Tick,
)
from spark_ft.protocol.messages import Fenced, Message
from spark_ft.transport.link import Frame, Link

if TYPE_CHECKING:
    from chaos.sim.world import World

UNLINKED = -1  # sequence number of the one word outside every sequence: Fenced
ALIVE, STOPPED, DEAD = "alive", "stopped", "dead"
_TICK = Tick()


@dataclass(slots=True)
class Noise:
    """For a while frames between these places (empty: all) are treated badly."""

    places: frozenset[str]
    drop: float = 0.0
    double: float = 0.0
    delay_s: float = 0.0  # at most, drawn for each frame: so they overtake each other
    hits: int = 0


class Network:
    """Frames on their way.  A *place* is a machine or an incarnation; ``cuts`` maps (from, to) to the
    frames it has swallowed."""

    def __init__(self, world: World, rng: Random, latency_s: float) -> None:
        self._world, self._rng, self._latency_s = world, rng, latency_s
        self.processes: dict[Incarnation, Process] = {}
        self.cuts: dict[tuple[str, str], list[int]] = {}
        self.noises: list[Noise] = []
        self.trouble_s: dict[tuple[str, str], float] = {}  # (from, to) -> when a frame was last treated badly
        self.frames = 0
        self.dropped = 0
        self.doubled = 0
        self.delayed = 0

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self.cuts

    def transmit(self, source: Process, to: Incarnation, frame: Frame) -> None:
        self.frames += 1
        target = self.processes.get(to)
        if target is None:
            return
        if self.cuts:
            for way in ((source.machine, target.machine), (source.me, to)):
                hits = self.cuts.get(way)
                if hits is not None:
                    hits[0] += 1
                    self.dropped += 1
                    self.trouble_s[source.machine, target.machine] = self._world.clock.now_s
                    return
        delay_s = self._latency_s
        if self.noises:
            delay_s = self._through_noise(source, target, frame)
            if delay_s < 0:
                return
        self._world.clock.after(delay_s, target.arrive, (source.me, frame))

    def _through_noise(self, source: Process, target: Process, frame: Frame) -> float:
        """How long the frame takes; negative when it never comes."""
        delay_s, rng = self._latency_s, self._rng
        for noise in self.noises:
            if noise.places and not noise.places & {source.machine, target.machine, source.me, target.me}:
                continue
            self.trouble_s[source.machine, target.machine] = self._world.clock.now_s
            if rng.random() < noise.drop:
                noise.hits += 1
                self.dropped += 1
                return -1.0
            if noise.delay_s:
                noise.hits += 1
                self.delayed += 1
                delay_s += rng.random() * noise.delay_s
            if rng.random() < noise.double:
                noise.hits += 1
                self.doubled += 1
                late_s = delay_s + rng.random() * max(noise.delay_s, 4 * self._latency_s)
                self._world.clock.after(late_s, target.arrive, (source.me, frame))
        return delay_s


class _Peer:
    __slots__ = ("heard_s", "incarnation", "link", "outbox", "silent", "wake_s")

    def __init__(self, incarnation: Incarnation, now_s: float) -> None:
        self.incarnation = incarnation
        self.link = Link(now_s)
        self.outbox: list[Message] = []
        self.wake_s = inf
        self.heard_s = now_s
        self.silent = False


class Process(ABC):
    """One life of one process: a core, its links, and whether it lives, is stopped or is dead.

    ``router``: it is bound, so strangers may connect to it.  ``offset_s``: its machine's clock is that much
    ahead of virtual time.
    """

    router = False
    role = ""
    silence_s: float | None = None  # a peer of which nothing at all came for so long is PeerSilent

    def __init__(self, world: World, me: Incarnation, machine: str, core: Core) -> None:
        self.world, self.me, self.machine, self.core = world, me, machine, core
        self.state = ALIVE
        self.index = world.next_index()
        self.pid = self.index + 1
        self.offset_s = world.offset_of(machine)
        self.born_s = world.clock.now_s
        self.died_s: float | None = None
        self.stopped_s = 0.0
        self.resumed_s = -1.0
        self.stalls: list[tuple[float, float]] = []  # from, to
        self.in_call = False  # it stands still for all but the kernel: a long C call holds the GIL
        self.suspended = False  # with its whole machine: no kernel tells of it
        self.watchers: list[Process] = []  # who is told by the kernel when it ends
        self._peers: dict[Incarnation, _Peer] = {}
        self._closed: dict[Incarnation, tuple[int, str | None]] = {}
        self._dirty: dict[Incarnation, _Peer] = {}
        self._wakeups: list[tuple[float, int, _Peer]] = []
        self._wakeup_count = 0
        self._posted: deque[Event] = deque()
        self._inbox: list[tuple[Incarnation, Frame]] = []  # while it is stopped
        self._deferred: list[tuple[float, Any, Any]] = []  # its own doings, while it is stopped
        self._wake_s = inf
        self._silence_check_s = 0.0
        self._in_turn = False
        world.network.processes[me] = self

    # --- Life ---

    def begin(self) -> None:
        """The first turn of its loop."""
        self._turn()

    def post(self, event: Event) -> None:
        """From another thread of this process, or from its kernel: handled in its next turn."""
        if self.state != DEAD:
            self._posted.append(event)
            if self.state == ALIVE and not self._in_turn:
                self._turn()

    def own(self, delay_s: float, what: Any, about: Any = None) -> None:
        """Something that it does later by itself: not while it is stopped, never once it is dead."""
        self.world.clock.after(delay_s, self._own, (what, about))

    def _own(self, item: tuple[Any, Any]) -> None:
        if self.state == ALIVE:
            item[0](item[1])
        elif self.state == STOPPED:
            self._deferred.append((self.world.clock.now_s - self.stopped_s, *item))

    @property
    def is_seen_stopped(self) -> bool:
        """Whether the kernel would say so of this process."""
        return self.state == STOPPED and not (self.suspended or self.in_call)

    def stop(self) -> bool:
        if self.state != ALIVE:
            return False
        self.state, self.stopped_s = STOPPED, self.world.clock.now_s
        return True

    def last_heard_s(self, peer: Incarnation) -> float:
        """When the last frame of a peer has come."""
        known = self._peers.get(peer)
        return -1.0 if known is None else known.heard_s - self.offset_s

    def resume(self) -> bool:
        if self.state != STOPPED:
            return False
        self.state, self.suspended, self.in_call = ALIVE, False, False
        self.resumed_s = self.world.clock.now_s
        self.stalls.append((self.stopped_s, self.resumed_s))
        deferred, self._deferred = self._deferred, []
        for delay_s, what, about in deferred:  # it had that much left to do when it was stopped
            self.own(delay_s, what, about)
        for peer in self._peers.values():
            peer.heard_s = (
                self.resumed_s + self.offset_s
            )  # nobody can be blamed for a silence while we were deaf
        inbox, self._inbox = self._inbox, []
        self._in_turn = True  # all that has arrived is handled before any Tick (CLK-4)
        for sender, frame in inbox:
            if self.state == ALIVE:
                self._frame(sender, frame)
        self._in_turn = False
        if self.state == ALIVE:
            self._turn()
        return True

    def die(self) -> bool:
        """SIGKILL, or its own end: nothing of it happens any more."""
        if self.state == DEAD:
            return False
        self.state, self.died_s = DEAD, self.world.clock.now_s
        del self.world.network.processes[self.me]
        self._inbox.clear()
        self._posted.clear()
        self._peers.clear()
        return True

    # --- Turns ---

    def arrive(self, item: tuple[Incarnation, Frame]) -> None:
        """A frame is here."""
        if self.state == ALIVE:
            self._frame(*item)
            if not self._in_turn:
                self._turn()
        elif self.state == STOPPED:
            self._inbox.append(item)

    def _wake(self, planned_s: float) -> None:
        if planned_s != self._wake_s:
            return  # another one was planned since
        self._wake_s = inf
        if self.state == ALIVE:
            self._turn()
        # one that is stopped looks at the time when it goes on

    def _turn(self) -> None:
        """What other threads posted, then a Tick if its time has come; then everything is sent."""
        self._in_turn = True
        clock = self.world.clock
        while self._posted:
            self.handle(self._posted.popleft())
        now_s = clock.now_s + self.offset_s
        due_s = self.core.wakeup_s()
        if due_s is not None and due_s <= now_s and self.state == ALIVE:
            self.handle(_TICK)
            while self._posted:
                self.handle(self._posted.popleft())
        if self.silence_s is not None and now_s >= self._silence_check_s and self.state == ALIVE:
            self._check_silence(now_s, self.silence_s)
        self._in_turn = False
        if self.state != ALIVE:
            return
        wakeups = self._wakeups
        while wakeups and wakeups[0][0] <= now_s:
            at_s, _, peer = heappop(wakeups)
            if peer.wake_s == at_s:
                peer.wake_s = inf
                if self._peers.get(peer.incarnation) is peer:
                    self._dirty[peer.incarnation] = peer
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for peer in dirty.values():
                self._flush(peer, now_s)
                wake_s = peer.link.wakeup_s()
                if wake_s < peer.wake_s:
                    peer.wake_s = wake_s
                    self._wakeup_count += 1
                    heappush(wakeups, (wake_s, self._wakeup_count, peer))
        due_s = self.core.wakeup_s()
        wake_s = self._silence_check_s if self.silence_s is not None and self._peers else inf
        if due_s is not None and due_s < wake_s:
            wake_s = due_s
        if wakeups and wakeups[0][0] < wake_s:
            wake_s = wakeups[0][0]
        if wake_s != inf:
            wake_s = max(wake_s - self.offset_s, clock.now_s + 1e-6)
            if wake_s < self._wake_s:
                self._wake_s = wake_s
                clock.at(wake_s, self._wake, wake_s)

    def _check_silence(self, now_s: float, limit_s: float) -> None:
        """Tell of peers of which nothing comes; look again when the next one may be silent."""
        next_s = now_s + limit_s
        for peer in list(self._peers.values()):
            if peer.silent:
                continue
            if now_s - peer.heard_s >= limit_s:
                peer.silent = True
                self.handle(PeerSilent(peer.incarnation, now_s - peer.heard_s))
            else:
                next_s = min(next_s, peer.heard_s + limit_s)
        self._silence_check_s = max(next_s, now_s + limit_s / 20)

    def handle(self, event: Event) -> None:
        """One step: the core handles an event, the world carries out what it asks for."""
        effects = self.world.step(self, event)
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                self.send(effect.to, effect.message)
            elif kind is ClosePeer:
                self.close_peer(effect.peer, effect.fence, effect.why)
            elif kind is Note:
                self.world.marks[effect.kind] += 1
            else:
                self.perform(effect)
            if self.state == DEAD:
                return

    @abstractmethod
    def perform(self, effect: Effect) -> None:
        """Carry out what only processes of this role ask for."""

    # --- In ---

    def _frame(self, sender: Incarnation, frame: Frame) -> None:
        peer = self._peers.get(sender)
        seq = frame.seq
        if seq == UNLINKED:
            if peer is not None:
                self.handle(Received(sender, frame.body[0]))  # type: ignore[arg-type]
            return
        if peer is None:
            if sender in self._closed:
                self._answer_closed(sender, seq)
                return
            if seq != 1 or not self.router:
                return
            peer = self._peers[sender] = _Peer(sender, self.world.clock.now_s + self.offset_s)
        peer.heard_s = self.world.clock.now_s + self.offset_s
        if peer.silent:
            peer.silent = False
            self.handle(PeerHeard(sender))
        self._dirty[sender] = peer
        for body in peer.link.receive(seq, frame.ack, frame.body, self.world.clock.now_s + self.offset_s):
            for message in body:
                self.handle(Received(sender, message))  # type: ignore[arg-type]
                if self._peers.get(sender) is not peer:
                    return  # that message made the core close its sender, or ended this process

    def _answer_closed(self, sender: Incarnation, seq: int) -> None:
        received, why = self._closed[sender]
        if not self.router:
            return
        if why is not None:
            answer = Frame(UNLINKED, 0, (Fenced(why),), ())  # type: ignore[arg-type]
        elif seq:
            answer = Frame(0, received, (), ())  # type: ignore[arg-type]
        else:
            return
        self.world.network.transmit(self, sender, answer)

    # --- Out ---

    def connect(self, to: Incarnation) -> None:
        self._closed.pop(to, None)
        if to not in self._peers:
            self._peers[to] = self._dirty[to] = _Peer(to, self.world.clock.now_s + self.offset_s)

    def send(self, to: Incarnation, message: Message) -> None:
        peer = self._peers.get(to)
        if peer is None:
            if to in self._closed or not self.router:
                return
            peer = self._peers[to] = _Peer(to, self.world.clock.now_s + self.offset_s)
        peer.outbox.append(message)
        self._dirty[to] = peer

    def close_peer(self, to: Incarnation, fence: bool, why: str) -> None:
        peer = self._peers.pop(to, None)
        received = self._closed.get(to, (0, None))[0]
        if peer is not None:
            self._dirty.pop(to, None)
            self._flush(peer, self.world.clock.now_s + self.offset_s)
            received = peer.link.received
            self.world.network.transmit(self, to, Frame(0, received, (), ()))  # type: ignore[arg-type]
        self._closed[to] = (received, why if fence else None)

    def _flush(self, peer: _Peer, now_s: float) -> None:
        if peer.outbox:
            peer.link.send(tuple(peer.outbox))  # type: ignore[arg-type]
            peer.outbox.clear()
        for frame in peer.link.poll(now_s):
            self.world.network.transmit(self, peer.incarnation, frame)
