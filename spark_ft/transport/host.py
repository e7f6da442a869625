"""The host of a core: one thread that gives it messages, time and a way to act.

One turn of the loop: wait; read what has come; let the core handle it, then what other threads
posted, then a Tick if its time has come; carry out the effects; send what they said, one frame a
peer.  Only the loop's thread touches the core, the links and the sockets.

What holds:

- The core sees the messages of one incarnation once and in order, until its link is closed; after
  ClosePeer nothing of that incarnation is delivered any more, for ever: identities are never used
  again, so nothing that is wanted can be lost by that.
- Silence closes no link.  The core is told of it, and of its end, and decides what it means; any frame
  that verifies breaks it, also the bare acknowledgement that an idle link sends every second.
- A fenced peer's every frame is answered by Fenced.  Of a peer that was closed without a fence,
  frames are only acknowledged as far as they had been delivered (so that it can end in peace).
- An unknown incarnation gets a link by its first frame and by no other (``seq`` 1): the rest of a
  conversation whose beginning we have not heard makes no sense.
- A frame that does not verify changes nothing but ``dropped`` (NET-4, NET-12).
- Messages are handled before time passes: after a stall of this process (SIGSTOP, a suspended
  machine, a long call that held the GIL) everything that arrived meanwhile is handled before any
  Tick, and no peer's silence counts that began before it was over (CLK-4).
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import inf
from random import Random
from types import TracebackType

from spark_ft import failpoints
from spark_ft.clock import Clock
from spark_ft.errors import RemoteProtocolError, UsageError
from spark_ft.ids import Incarnation
from spark_ft.protocol import codec
from spark_ft.protocol.effects import (
    ClosePeer,
    Core,
    Effect,
    Event,
    Note,
    PeerGone,
    PeerHeard,
    PeerSilent,
    Received,
    Send,
    Tick,
)  # fmt: skip
from spark_ft.protocol.messages import Fenced, Message
from spark_ft.transport import frames, greeting
from spark_ft.transport.keys import Keys
from spark_ft.transport.lines import Lines
from spark_ft.transport.link import Frame
from spark_ft.transport.peer import BATCH_BYTES, Peer, label
from spark_ft.transport.sockets import SENT, Bell, Net, Socket, Waiter

CLOSED_KEPT = 4096  # incarnations that we remember to have closed or fenced
STALL_S = 1.0  # a turn that took so much longer than it should is a stall
SETTLE_S = 0.05  # after a stall: when nothing has come for so long, everything has come
LONGEST_WAIT_S = 3600.0
FRAMES_A_TURN = 4096  # read at most so many before time may pass


def _raise(error: BaseException, event: Event) -> None:
    raise error


class Host:
    """Gives ``core`` its life under the name ``me``.

    ``token``: 16 bytes that every frame of the application carries.  ``perform`` carries out the
    effects that are not the host's own, in the loop's thread.  ``bind``: an endpoint to listen at.
    ``peer_silence_s``: a peer of which nothing at all came for so long is PeerSilent; None: never.
    ``on_error`` gets what the core or a callback raised; unless given, it ends the loop.
    ``greet`` answers whoever knows no more than where we are bound (greeting.py).  ``keys``: of the cluster.
    ``peer_gone_s``: a peer that could not be connected by TCP for so long is PeerGone (lines.py).

    ``dropped`` counts frames and messages that were refused or could not be sent, by reason.
    """

    def __init__(
        self,
        core: Core,
        me: Incarnation,
        *,
        token: bytes,
        clock: Clock,
        perform: Callable[[Effect], None],
        bind: str | None = None,
        max_message_bytes: int = codec.MAX_BYTES,
        peer_silence_s: float | None = None,
        on_error: Callable[[BaseException, Event], None] = _raise,
        greet: greeting.Answer | None = None,
        keys: Keys | None = None,
        peer_gone_s: float = inf,
    ) -> None:
        if len(token) != frames.TOKEN_BYTES:
            raise UsageError(f"a token has {frames.TOKEN_BYTES} bytes, not {len(token)}")
        self.core = core
        self.me = me
        self.dropped: Counter[str] = Counter()
        self.received_count = 0
        self.sent_count = 0
        self._token = token
        self._clock = clock
        self._perform = perform
        self._on_error = on_error
        self._greet = greet
        self._max_message_bytes = max_message_bytes
        self._max_frame_bytes = max_message_bytes + BATCH_BYTES + frames.OVERHEAD_BYTES + 16
        self._silence_s, self._rng = peer_silence_s, Random(me)  # others draw other lots (CLK-5)

        self._peers: dict[Incarnation, Peer] = {}
        self._dealers: dict[Socket, Incarnation] = {}
        self._lines = Lines(peer_gone_s)
        self._watches_lines = peer_gone_s != inf
        self._dirty: dict[Incarnation, Peer] = {}  # to be flushed at the end of this turn
        self._wakeups: list[tuple[float, Incarnation]] = []  # heap; stale entries are skipped
        self._closed: OrderedDict[Incarnation, tuple[int, str | None]] = OrderedDict()  # last ack, why fenced
        self._silence_check_s = inf if peer_silence_s is None else clock.now_s()
        self._watched: dict[int, Callable[[], None]] = {}

        self._posted: deque[Event | Callable[[], None]] = deque()
        self._held: list[Effect] | None = None  # effects that wait for ``release``
        self._asleep = False
        self._awake_s = inf  # when the last wait was over
        self._stop_by_s: float | None = None
        self._linger_s = 0.0
        self._ended = threading.Event()
        self._running = False
        self._closing = threading.RLock()  # a signal handler may stop us at any point
        self._thread_id: int | None = None

        self._net = Net(keys)
        self._bell = Bell()
        self._waiter = Waiter()
        self._waiter.add(self._bell.fd)
        self._router: Socket | None = None
        if bind is not None:
            try:
                self._router = self._net.router(bind, self._max_frame_bytes)
            except BaseException:  # Ctrl-C too: nobody gets this object, so nobody else can close it
                self._close()
                raise
            self._waiter.add(self._router)
        self.endpoint: str = self._router.endpoint if self._router else ""

    # --- From any thread --------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Have the core handle ``event``.  After ``stop`` it is forgotten."""
        self._post(event)

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the loop's thread."""
        self._post(function)

    def _post(self, item: Event | Callable[[], None]) -> None:
        if self._net.forked:
            raise UsageError("this process was forked from the one that this belongs to")
        self._posted.append(item)
        # The loop says that it sleeps before it looks at the queue for the last time, and we look at
        # that after we have filled the queue: so either it sees the item or we see it asleep.
        if self._asleep:
            self._asleep = False
            self._bell.ring()

    def stop(self, linger_s: float = 0.2) -> None:
        """End the loop once every message is acknowledged, or after ``linger_s``; idempotent.

        Waits until all is closed, unless it is called in the loop's own thread (then ``run``
        returns when this turn is over).  In a forked child it does nothing.
        """
        if self._net.forked:
            return
        with self._closing:
            self._linger_s = linger_s
            if self._stop_by_s is None:
                self._stop_by_s = self._clock.now_s() + linger_s
            if not self._running:
                self._close()
        self._bell.ring()
        if threading.get_ident() != self._thread_id:
            self._ended.wait(linger_s + 5.0)  # a callback that hangs must not hang its stopper too

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- In the loop's thread, or before it runs -----------------------------------------------

    def connect(self, peer: Incarnation, endpoint: str) -> None:
        """Have a link with ``peer``, which is bound at ``endpoint``, or will be.  Connecting again moves
        an existing link to the new endpoint; nothing is lost or said twice by that."""
        self._closed.pop(peer, None)
        watched = self._watches_lines and endpoint.startswith("tcp://")
        socket = self._net.dealer(self.me, endpoint, self._max_frame_bytes, monitored=watched)
        known = self._peers.get(peer)
        if known is None:
            self._add_peer(peer, socket, ())
        else:
            self._drop_dealer(known.socket)
            known.socket, known.routing = socket, ()
            self._dirty[peer] = known
        self._dealers[socket] = peer
        self._waiter.add(socket)
        if socket.monitor is not None:
            self._lines.add(socket.monitor, peer, self._clock.now_s())
            self._waiter.add(socket.monitor)

    def send(self, to: Incarnation, message: Message) -> None:
        """What the effect Send does: for a ``perform`` that completes a message of its own.

        A peer not heard of yet gets a link that waits for it to connect; for one that was closed
        the message is dropped.  Raises LocalProtocolError if it cannot travel.
        """
        peer = self._peers.get(to)
        if peer is None:
            if to in self._closed or self._router is None:
                self.dropped["no_link"] += 1
                return
            peer = self._add_peer(to, self._router, (to.encode("ascii"),))
        peer.put(codec.encode(message, self._max_message_bytes), label(message))
        self._dirty[to] = peer
        self.sent_count += 1

    def close_peer(self, peer: Incarnation, *, fence: bool = False, why: str = "") -> None:
        """What the effect ClosePeer does."""
        known = self._peers.pop(peer, None)
        received = self._closed.get(peer, (0, None))[0]
        if known is not None:
            self._dirty.pop(peer, None)
            self._flush(known)
            received = known.link.received
            self._transmit(known, Frame(0, received, b"", ()))
            self._drop_dealer(known.socket)
        self._closed[peer] = (received, why if fence else None)
        self._closed.move_to_end(peer)
        if len(self._closed) > CLOSED_KEPT:
            self._closed.popitem(last=False)

    def unacked(self, peer: Incarnation) -> int:
        """Messages' frames that ``peer`` has not confirmed."""
        known = self._peers.get(peer)
        return known.link.unacked + bool(known.outbox) if known else 0

    def peers(self) -> list[Incarnation]:
        """Whom we have a link with."""
        return list(self._peers)

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call ``on_readable`` whenever ``fd`` can be read (it must then read, or unwatch)."""
        self._watched[fd] = on_readable
        self._waiter.add(fd)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._waiter.remove(fd)

    def run(self) -> None:
        """The loop; returns after ``stop``, or raises what ``on_error`` raised.  Once only."""
        with self._closing:
            if self._running or self._ended.is_set():
                if self._stop_by_s is not None:
                    return
                raise UsageError("a host runs once")
            self._running = True
            self._thread_id = threading.get_ident()
        self._awake_s = self._clock.now_s()
        try:
            while self._stop_by_s is None:
                self._turn()
            self._say_last_words()
        finally:
            with self._closing:
                self._close()

    # --- One turn -------------------------------------------------------------------------

    def _turn(self) -> None:
        wake_s = self._wake_s()
        self._asleep = True
        timeout_s = None if wake_s == inf else min(max(0.0, wake_s - self._clock.now_s()), LONGEST_WAIT_S)
        ready = self._waiter.wait(0.0 if self._posted else timeout_s)
        self._asleep = False
        now_s = self._clock.now_s()
        stall_s = 0.0 if timeout_s is None else now_s - self._awake_s - timeout_s
        self._awake_s = now_s
        self._read(ready)
        if stall_s > STALL_S:
            self._catch_up(stall_s)
            now_s = self._clock.now_s()
        self._handle_posted()
        wakeup_s = self.core.wakeup_s()
        if wakeup_s is not None and wakeup_s <= now_s:
            self._handle(Tick())
        if now_s >= self._silence_check_s:
            self._check_silence(now_s)
        if now_s >= self._lines.wakeup_s():
            for gone, down_s in self._lines.gone(now_s):
                self._handle(PeerGone(gone, f"there has been no connection with it for {down_s:.0f} s"))
        self._flush_due(self._clock.now_s())

    def _wake_s(self) -> float:
        wakeup_s = self.core.wakeup_s()
        wake_s = min(self._silence_check_s, self._lines.wakeup_s(), inf if wakeup_s is None else wakeup_s)
        return min(wake_s, self._wakeups[0][0]) if self._wakeups else wake_s

    def _read(self, ready: list[Socket | int]) -> None:
        for source in ready:
            if source in self._lines and isinstance(source, Socket):
                self._lines.listen(source, self._awake_s)
            elif isinstance(source, Socket):
                self._drain(source)
            elif source == self._bell.fd:
                self._bell.hush()
            elif (on_readable := self._watched.get(source)) is not None:
                self._guarded(on_readable)

    def _catch_up(self, stall_s: float) -> None:
        """We stood still.  What arrived meanwhile may still be on its way through ZeroMQ's thread, which
        stood still too: read until nothing comes for a moment, a second at most.  And nobody can be
        blamed for a silence while we were deaf."""
        for peer in self._peers.values():
            peer.heard_s = self._awake_s
        self._lines.awake(self._awake_s)
        until_s = self._clock.now_s() + STALL_S
        while self._clock.now_s() < until_s and (ready := self._waiter.wait(SETTLE_S)):
            self._read(ready)
        self._guarded(lambda: self._perform(Note("host_stalled", {"seconds": round(stall_s, 3)})))

    def _handle_posted(self) -> None:
        for _ in range(len(self._posted)):  # not what these post in turn: others wait too
            item = self._posted.popleft()
            if callable(item):
                self._guarded(item)
            else:
                self._handle(item)

    def _handle(self, event: Event) -> None:
        try:
            effects = self.core.handle(event, self._clock.now_s())
        except Exception as error:  # whatever the core raised is its owner's to judge
            self._on_error(error, event)
            return
        self.carry_out(effects, event)
        failpoints.hit("host.event")

    def carry_out(self, effects: Iterable[Effect], event: Event | None = None) -> None:
        """What a core has asked for; in the loop's thread.  While effects are held back these are, too."""
        for effect in effects:
            try:
                if self._held is not None:
                    self._held.append(effect)
                elif type(effect) is Send:
                    self.send(effect.to, effect.message)
                elif type(effect) is ClosePeer:
                    self.close_peer(effect.peer, fence=effect.fence, why=effect.why)
                else:
                    self._perform(effect)
            except Exception as error:  # whatever it raised is its owner's to judge
                self._on_error(error, event or Tick())

    def hold(self) -> None:
        """From now on effects wait, in their order, for ``release``."""
        self._held = []

    def release(self, first: Iterable[Effect] = ()) -> None:
        """Carry out ``first``, and then all that has waited.  One of these may begin to hold again."""
        waited, self._held = self._held or [], None
        self.carry_out([*first, *waited])

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # as in _handle
            self._on_error(error, Tick())

    def _check_silence(self, now_s: float) -> None:
        assert self._silence_s is not None
        for peer in list(self._peers.values()):
            if not peer.silent and now_s - peer.heard_s >= self._silence_s:
                peer.silent = True
                self._handle(PeerSilent(peer.incarnation, now_s - peer.heard_s))
        self._silence_check_s = now_s + self._silence_s / 20

    # --- In -------------------------------------------------------------------------------

    def _drain(self, socket: Socket) -> None:
        expected = self._dealers.get(socket)
        for _ in range(FRAMES_A_TURN):
            parts = socket.receive()
            if parts is None:
                return
            if socket is self._router:
                if len(parts) != 2:
                    self.dropped["parts"] += 1
                elif parts[1].startswith(greeting.MAGIC):
                    self._greeted(parts[0], parts[1], socket)
                else:
                    self._frame(parts[1], parts[0], socket)
            elif len(parts) != 1 or expected is None:
                self.dropped["parts"] += 1
            else:
                self._frame(parts[0], expected.encode("ascii"), socket)
                if socket not in self._dealers:
                    return  # the core has closed this peer meanwhile

    def _greeted(self, routing_id: bytes, data: bytes, socket: Socket) -> None:
        words = greeting.unpack(data, self._token)
        if words is None or self._greet is None:
            self.dropped["greeting"] += 1
        else:
            socket.send(routing_id, greeting.pack(self._token, self._greet(words)))

    def _frame(self, data: bytes, routing_id: bytes, socket: Socket) -> None:
        header = frames.unpack(data, self._token)
        if isinstance(header, str):
            self.dropped[header] += 1
            return
        sender = header.sender
        if header.receiver != self.me:
            self.dropped["not_for_me"] += 1  # meant for an earlier process at this address (NET-9)
            return
        if sender.encode("ascii") != routing_id:
            self.dropped["sender"] += 1
            return
        peer = self._peers.get(sender)
        if header.flags & frames.UNLINKED:
            self._unlinked(header, peer)
            return
        if peer is None:
            if sender in self._closed:
                self._answer_closed(header)
                return
            if header.seq != 1:
                self.dropped["unknown_peer"] += 1
                return
            peer = self._add_peer(sender, socket, (routing_id,))
        now_s = self._clock.now_s()
        if peer.socket is not socket:
            self.dropped["socket"] += 1
            return
        peer.heard_s = now_s
        if peer.silent:
            peer.silent = False
            self._handle(PeerHeard(sender))
        if 0 < header.seq <= peer.link.received:
            self.dropped["repeated"] += 1  # the link has delivered it before (NET-2)
        bodies = peer.link.receive(header.seq, header.ack, header.body, now_s)
        self._dirty[sender] = peer
        for body in bodies:
            if self._peers.get(sender) is peer and self._stop_by_s is None:
                self._body(peer, body)

    def _body(self, peer: Peer, body: bytes | memoryview) -> None:
        try:
            raws = codec.split(body, self._max_frame_bytes)
        except RemoteProtocolError:
            self.dropped["decode"] += 1
            return
        for raw in raws:
            try:
                message = codec.build(raw)
            except RemoteProtocolError:  # of another version, or wrong: costs itself only
                self.dropped["decode"] += 1
                continue
            self.received_count += 1
            self._handle(Received(peer.incarnation, message))
            if self._peers.get(peer.incarnation) is not peer:
                return  # that message made the core close its sender

    def _unlinked(self, header: frames.Header, peer: Peer | None) -> None:
        """Outside every sequence there is one thing to say: that the receiver was given up."""
        try:
            message = codec.decode(header.body, self._max_message_bytes)
        except RemoteProtocolError:
            message = None
        if peer is None or not isinstance(message, Fenced):
            self.dropped["unlinked"] += 1
            return
        self._handle(Received(peer.incarnation, message))

    def _answer_closed(self, header: frames.Header) -> None:
        received, why_fenced = self._closed[header.sender]
        if self._router is None:
            return
        route = frames.Route(self._token, self.me, header.sender)
        if why_fenced is not None:
            answer = route.pack(0, 0, codec.encode(Fenced(why_fenced)), frames.UNLINKED)
        elif header.seq:
            answer = route.pack(0, received, b"")
        else:
            return
        self._router.send(header.sender.encode("ascii"), answer)

    # --- Out ------------------------------------------------------------------------------

    def _flush_due(self, now_s: float) -> None:
        """Send what this turn has to say and what is due by time."""
        while self._wakeups and self._wakeups[0][0] <= now_s:
            at_s, incarnation = heappop(self._wakeups)
            peer = self._peers.get(incarnation)
            if peer is not None and peer.wake_s == at_s:
                peer.wake_s = inf
                self._dirty[incarnation] = peer
        dirty, self._dirty = self._dirty, {}
        for incarnation, peer in dirty.items():
            if self._peers.get(incarnation) is peer:
                self._flush(peer, now_s)
                wake_s = peer.link.wakeup_s()
                if wake_s < peer.wake_s:
                    peer.wake_s = wake_s
                    heappush(self._wakeups, (wake_s, incarnation))

    def _flush(self, peer: Peer, now_s: float | None = None) -> None:
        peer.pack_outbox()
        for frame in peer.link.poll(self._clock.now_s() if now_s is None else now_s):
            self._transmit(peer, frame)

    def _transmit(self, peer: Peer, frame: Frame) -> None:
        action = failpoints.hit("link.send")
        for name in frame.labels:
            action = failpoints.hit(name) or action
        if action == "drop":
            self.dropped["failpoint"] += 1
            return
        data = peer.route.pack(frame.seq, frame.ack, frame.body)
        for _ in range(2 if action == "duplicate" else 1):
            outcome = peer.socket.send(*peer.routing, data)
            if outcome != SENT:
                self.dropped[outcome] += 1  # the link will send it again

    def _add_peer(self, incarnation: Incarnation, socket: Socket, routing: tuple[bytes, ...]) -> Peer:
        route = frames.Route(self._token, self.me, incarnation)
        peer = Peer(incarnation, socket, routing, route, self._clock.now_s(), self._rng)
        self._peers[incarnation] = self._dirty[incarnation] = peer
        return peer

    def _drop_dealer(self, socket: Socket) -> None:
        if self._dealers.pop(socket, None) is not None:
            self._waiter.remove(socket)
            if socket.monitor is not None:
                self._lines.remove(socket.monitor)
                self._waiter.remove(socket.monitor)
            socket.close()

    # --- The end --------------------------------------------------------------------------

    def _say_last_words(self) -> None:
        """Until all that was sent is acknowledged, or the linger is over: only links work, no core."""
        self._watched.clear()
        while True:
            now_s = self._clock.now_s()
            self._flush_due(now_s)
            assert self._stop_by_s is not None
            waiting = any(peer.link.unacked for peer in self._peers.values())
            if not waiting or now_s >= self._stop_by_s:
                return
            until_s = min(self._stop_by_s, self._wakeups[0][0] if self._wakeups else inf)
            for source in self._waiter.wait(max(0.0, until_s - now_s)):
                if source in self._lines and isinstance(source, Socket):
                    source.receive()
                elif isinstance(source, Socket):
                    self._drain_acks(source)
                elif source == self._bell.fd:
                    self._bell.hush()
                else:
                    self._waiter.remove(source)

    def _drain_acks(self, socket: Socket) -> None:
        while (parts := socket.receive()) is not None:
            header = frames.unpack(parts[-1], self._token)
            if not isinstance(header, frames.Header) or header.receiver != self.me:
                continue
            if (peer := self._peers.get(header.sender)) is not None:
                peer.link.acknowledged(header.ack, self._clock.now_s())
                self._dirty[header.sender] = peer

    def _close(self) -> None:
        """Idempotent.  With nothing unacknowledged left every peer was alive a moment ago, so our last
        acknowledgements are worth a blink; otherwise somebody is dead and nothing is."""
        if self._ended.is_set():
            return
        self._stop_by_s = self._clock.now_s() if self._stop_by_s is None else self._stop_by_s
        at_peace = bool(self._peers) and not any(peer.link.unacked for peer in self._peers.values())
        self._net.close(last_word=at_peace)
        self._bell.close()
        self._peers.clear()
        self._posted.clear()
        self._ended.set()
