"""Blocks over real sockets: order, credit, retries, evidence, ends."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import zmq

from spark_ft import failpoints
from spark_ft.errors import (
    BlockCorrupt,
    BlockExpired,
    BlockIncomplete,
    BlockMissing,
    ClusterError,
    StorageError,
)
from spark_ft.transport import blockclient, blockserver, sockets
from spark_ft.transport.blocks import PIECE_BYTES, BlockClient, BlockServer, RemoteFetch
from tests.unit.transport.hosting import in_child, open_fds, until

TOKEN = b"0123456789abcdef"
Chunks = Iterator[bytes | memoryview]


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


class Shelf:
    """What a server serves: name -> chunks, or an error; counts how often each was opened and closed."""

    def __init__(self) -> None:
        self.items: dict[bytes, list[bytes] | Exception] = {}
        self.opened: list[bytes] = []
        self.closed: list[bytes] = []
        self.yielded_bytes = 0
        self.gate: threading.Event | None = None

    def open(self, request: bytes) -> Chunks:
        self.opened.append(request)
        item = self.items.get(request, BlockMissing(request.decode()))
        if isinstance(item, Exception):
            raise item
        return self._read(request, item)

    def _read(self, request: bytes, chunks: list[bytes]) -> Chunks:
        try:
            for chunk in chunks:
                if self.gate is not None:
                    self.gate.wait(20)
                self.yielded_bytes += len(chunk)
                yield memoryview(chunk)
        finally:
            self.closed.append(request)


class Place:
    """A server and its shelf."""

    def __init__(self, endpoint: str, token: bytes = TOKEN) -> None:
        self.shelf = Shelf()
        self.server = BlockServer(endpoint, token, self.shelf.open)
        self.server.start()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(name: str = "a", **options: bytes) -> Place:
        made.append(Place(f"ipc://{tmp_path}/{name}", **options))
        return made[-1]

    yield make
    for one in made:
        one.server.stop()


@pytest.fixture
def client() -> Iterator[Callable[..., BlockClient]]:
    made: list[BlockClient] = []

    def make(hosts: dict[str, str], **options: float) -> BlockClient:
        settings: dict[str, float] = {"window_bytes": 48 << 20, "timeout_s": 20.0, "retries": 3} | options
        made.append(BlockClient(TOKEN, hosts, rng=Random(1), **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_chunks_arrive_whole_and_in_the_order_of_the_requests(place, client):
    shelf_a, shelf_b = place("a"), place("b")
    sizes = [0, 1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 7]
    shelf_a.shelf.items = {b"x": [os.urandom(size) for size in sizes], b"empty": []}
    shelf_b.shelf.items = {b"y": [b"one", b"two"]}
    fetcher = client({"a": shelf_a.server.endpoint, "b": shelf_b.server.endpoint})
    got = list(fetcher.fetch([("b", b"y"), ("a", b"x"), ("a", b"empty"), ("b", b"y")]))
    y, x = shelf_b.shelf.items[b"y"], shelf_a.shelf.items[b"x"]
    assert got == [(0, c) for c in y] + [(1, c) for c in x] + [(3, c) for c in y]
    assert all(type(chunk) is bytes for _, chunk in got)
    assert list(fetcher.fetch([])) == []


def test_a_thousand_small_requests_to_several_hosts_keep_their_order(place, client):
    places = {name: place(name) for name in "abc"}
    for name, one in places.items():
        one.shelf.items = {b"%d" % n: [f"{name}{n}".encode()] for n in range(1000)}
    fetcher = client({name: one.server.endpoint for name, one in places.items()})
    order = [("abc"[n % 3], n) for n in Random(7).sample(range(1000), 1000)]
    got = list(fetcher.fetch([(host, b"%d" % n) for host, n in order]))
    assert got == [(i, f"{host}{n}".encode()) for i, (host, n) in enumerate(order)]


@pytest.mark.parametrize(
    ("error", "evidence"),
    [
        (BlockMissing("m"), "missing"),
        (BlockCorrupt("c"), "corrupt"),
        (BlockIncomplete("i"), "incomplete"),
        (BlockExpired("e"), "expired"),
        (StorageError("other"), "refused"),
        (OSError(5, "bad disk"), "refused"),
    ],
)
def test_what_the_server_raises_arrives_as_evidence_after_what_came_before_it(place, client, error, evidence):
    one = place()
    one.shelf.items = {b"good": [b"1", b"2"], b"bad": error}
    got = []
    with pytest.raises(RemoteFetch) as caught:
        for item in client({"a": one.server.endpoint}).fetch([("a", b"good"), ("a", b"bad"), ("a", b"good")]):
            got.append(item)
    assert got == [(0, b"1"), (0, b"2")]
    assert (caught.value.index, caught.value.evidence) == (1, evidence)
    assert caught.value.text


def test_an_error_in_the_middle_of_a_block_comes_after_its_whole_chunks(client, tmp_path: Path):
    def broken(request: bytes) -> Chunks:
        yield b"whole"
        raise BlockCorrupt("chunk 2 of 3")

    server = BlockServer(f"ipc://{tmp_path}/x", TOKEN, broken)
    server.start()
    stream = client({"a": server.endpoint}).fetch([("a", b"r")])
    assert next(stream) == (0, b"whole")
    with pytest.raises(RemoteFetch, match="chunk 2 of 3"):
        next(stream)
    server.stop()


def test_a_host_without_address_or_listener_is_refused_soon(place, client, tmp_path: Path):
    dead = place("dead")
    dead.server.stop()
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        port = unbound.getsockname()[1]
        hosts = {
            "gone": dead.server.endpoint,
            "never": f"ipc://{tmp_path}/no",
            "tcp": f"tcp://127.0.0.1:{port}",
        }
        fetcher = client(hosts)
        for host in ("gone", "never", "tcp", "unknown"):
            with pytest.raises(RemoteFetch) as caught:
                list(fetcher.fetch([(host, b"x")]))
            assert caught.value.evidence == "refused", host


def test_a_server_that_accepts_and_never_answers_is_a_timeout_after_the_last_try(client, tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        with pytest.raises(RemoteFetch) as caught:
            list(client({"a": f"ipc://{tmp_path}/mute"}, timeout_s=0.1).fetch([("a", b"x")]))
        assert caught.value.evidence == "timeout"


def test_NET_12_a_client_with_another_token_is_not_answered(place, client):
    one = place(token=bytes(16))
    one.shelf.items = {b"x": [b"secret"]}
    with pytest.raises(RemoteFetch) as caught:
        list(client({"a": one.server.endpoint}, timeout_s=0.1, retries=2).fetch([("a", b"x")]))
    assert caught.value.evidence == "timeout"
    assert one.server.dropped["token"] >= 2 and one.shelf.opened == []


def test_NET_4_noise_at_the_server_is_counted_and_costs_nothing(place, client):
    one = place()
    one.shelf.items = {b"x": [b"ok"]}
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(one.server.endpoint)
    stranger.send(b"short")
    stranger.send(os.urandom(200))
    stranger.send_multipart([b"a", b"b", b"c"])
    until(lambda: one.server.dropped["short"] == 2 and one.server.dropped["magic"] == 1)
    assert list(client({"a": one.server.endpoint}).fetch([("a", b"x")])) == [(0, b"ok")]
    context.destroy(0)


@pytest.mark.parametrize("nth", range(1, 8))
def test_NET_1_any_single_lost_message_is_asked_for_again(place, client, nth: int):
    one = place()
    chunks = [bytes([n]) * (PIECE_BYTES + 10) for n in range(3)]
    one.shelf.items = {b"x": chunks}
    failpoints.arm(f"blocks.send=drop@{nth}")
    fetcher = client({"a": one.server.endpoint}, timeout_s=0.2)
    assert list(fetcher.fetch([("a", b"x")])) == [(0, chunk) for chunk in chunks]
    assert one.server.dropped["failpoint"] == 1
    assert len(one.shelf.opened) == 2


def test_NET_1_a_line_that_loses_much_still_delivers_every_chunk_once(place, client):
    one = place()
    one.shelf.items = {b"%d" % n: [b"%d" % n * 100, b"second"] for n in range(20)}
    failpoints.arm("blocks.send=drop%0.05")
    fetcher = client({"a": one.server.endpoint}, timeout_s=0.2, retries=10)
    got = list(fetcher.fetch([("a", b"%d" % n) for n in range(20)]))
    assert got == [(n, c) for n in range(20) for c in one.shelf.items[b"%d" % n]]


def test_slow_is_not_lost_a_server_that_is_slower_than_the_timeout_per_block_passes(place, client):
    """Pieces keep coming, each in time, though the whole takes many times the timeout."""
    one = place()
    one.shelf.items = {b"x": [b"c%d" % n for n in range(12)]}
    turn = threading.Event()

    class Slow(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return turn.wait(0.15)  # nobody sets it: a pause of the server, as a slow disk makes

    one.shelf.gate = Slow()
    fetcher = client({"a": one.server.endpoint}, timeout_s=0.6, retries=1)
    assert len(list(fetcher.fetch([("a", b"x")]))) == 12
    assert one.shelf.opened == [b"x"]


def test_the_time_that_the_caller_takes_is_not_the_hosts(place, client):
    one = place()
    one.shelf.items = {b"x": [b"1", b"2", b"3"]}
    stream = client({"a": one.server.endpoint}, timeout_s=0.2, retries=1).fetch([("a", b"x")])
    got = [next(stream)]
    threading.Event().wait(0.5)  # the caller computes
    got += stream
    assert got == [(0, b"1"), (0, b"2"), (0, b"3")]


def test_a_retry_asks_for_smaller_pieces_and_skips_what_has_come(place, client):
    one = place()
    chunks = [bytes(PIECE_BYTES), bytes([1]) * PIECE_BYTES]
    one.shelf.items = {b"x": chunks}
    failpoints.arm("blocks.send=drop@2")
    stream = client({"a": one.server.endpoint}, timeout_s=0.2).fetch([("a", b"x")])
    assert list(stream) == [(0, chunk) for chunk in chunks]
    # The second chunk was read again, the first one passed over without being sent.
    assert one.server.dropped["failpoint"] == 1
    assert one.shelf.opened == [b"x", b"x"]


class Meddler:
    """Hands on what has come to any socket of this process shuffled, and each message twice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int, copies: int) -> None:
        self.rng, self.copies, self.handed = Random(seed), copies, 0
        self.waiting: dict[object, list[list[bytes]]] = {}
        self.plain = sockets.Socket.receive
        monkeypatch.setattr(sockets.Socket, "receive", lambda socket: self.receive(socket))

    def receive(self, socket: sockets.Socket) -> list[bytes] | None:
        if "monitor" in socket.raw.getsockopt_string(zmq.LAST_ENDPOINT):
            return self.plain(socket)
        waiting = self.waiting.setdefault(socket, [])
        while not self.handed % 3 and len(waiting) < 50 and (parts := self.plain(socket)) is not None:
            waiting += [parts] * self.copies
            self.rng.shuffle(waiting)
        self.handed += 1
        return waiting.pop() if waiting else self.plain(socket)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copies", [1, 2])
def test_NET_3_messages_that_overtake_each_other_or_come_twice_cost_nothing(
    place, client, monkeypatch, seed, copies
):
    one = place()
    sizes = [0, 1, PIECE_BYTES + 1, 9 * PIECE_BYTES + 7, 3]
    one.shelf.items = {b"%d" % n: [os.urandom(size) for size in sizes] for n in range(4)}
    meddler = Meddler(monkeypatch, seed, copies)
    fetcher = client({"a": one.server.endpoint}, retries=1, timeout_s=5.0)
    got = list(fetcher.fetch([("a", b"%d" % n) for n in range(4)]))
    assert got == [(n, chunk) for n in range(4) for chunk in one.shelf.items[b"%d" % n]]
    assert meddler.handed > 50
    assert len(one.shelf.opened) <= 8  # once more where a GRANT has overtaken its GET


def test_NET_2_credit_that_is_told_twice_counts_once(place, client, monkeypatch):
    one = place()
    one.shelf.items = {b"x": [os.urandom(PIECE_BYTES)] * 40}
    Meddler(monkeypatch, 1, 2)
    fetcher = client({"a": one.server.endpoint}, window_bytes=4 * PIECE_BYTES)
    chunks = fetcher.fetch([("a", b"x")])
    for taken in range(40):
        next(chunks)
        until(lambda: not any(s.credit for s in list(one.server._streams.values())))
        assert one.shelf.yielded_bytes <= (taken + 1 + 4 + 1) * PIECE_BYTES
    assert next(chunks, None) is None


def test_NET_10_the_server_never_reads_ahead_of_credit(place, client):
    one = place()
    one.shelf.items = {b"x": [bytes(PIECE_BYTES)] * 200}
    stream = client({"a": one.server.endpoint}, window_bytes=8 << 20).fetch([("a", b"x")])
    for taken in range(1, 20):
        next(stream)
        assert one.shelf.yielded_bytes <= (taken + 9) * PIECE_BYTES
    stream.close()


def test_NET_10_what_the_client_holds_is_bounded_by_its_window_whatever_is_slow(place, client):
    slow, fast = place("slow"), place("fast")
    slow.shelf.items, fast.shelf.items = {b"x": [b"at last"]}, {b"y": [bytes(PIECE_BYTES)] * 30}
    slow.shelf.gate = threading.Event()
    hosts = {"slow": slow.server.endpoint, "fast": fast.server.endpoint}
    stream = client(hosts, window_bytes=8 << 20).fetch([("slow", b"x"), *[("fast", b"y")] * 10])
    got = []
    reader = threading.Thread(target=lambda: got.append(next(stream)))
    reader.start()
    until(lambda: fast.server._streams and not any(s.credit for s in list(fast.server._streams.values())))
    slow.shelf.gate.set()
    reader.join(20)
    assert got == [(0, b"at last")]
    assert fast.shelf.yielded_bytes <= 9 << 20
    assert sum(1 for _ in stream) == 300


def test_all_credit_comes_back_whatever_happened_on_the_way(place, client, monkeypatch):
    runs = []

    class Watched(blockclient._Fetch):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            runs.append(self)

    monkeypatch.setattr(blockclient, "_Fetch", Watched)
    one = place()
    one.shelf.items = {b"x": [bytes(PIECE_BYTES + 1)] * 5, b"y": [b"y"]}
    failpoints.arm("blocks.send=drop@4")
    fetcher = client({"a": one.server.endpoint}, timeout_s=0.2)
    assert sum(1 for _ in fetcher.fetch([("a", b"x"), ("a", b"y")] * 3)) == 18
    assert runs[0]._used_bytes == 0 and not runs[0]._open


def test_a_window_smaller_than_a_chunk_lets_it_through_all_the_same(place, client):
    one = place()
    one.shelf.items = {b"x": [bytes(3 << 20)] * 3}
    fetcher = client({"a": one.server.endpoint}, window_bytes=64 << 10)
    assert [len(chunk) for _, chunk in fetcher.fetch([("a", b"x")] * 2)] == [3 << 20] * 6


def test_an_abandoned_fetch_is_cancelled_at_the_server_and_its_connection_serves_the_next(place, client):
    one = place()
    one.shelf.items = {b"x": [bytes(PIECE_BYTES)] * 100, b"y": [b"y"]}
    fetcher = client({"a": one.server.endpoint})
    stream = fetcher.fetch([("a", b"x"), ("a", b"x")])
    next(stream)
    stream.close()
    until(lambda: not one.server._streams)
    assert sorted(one.shelf.closed) == sorted(one.shelf.opened)
    for _ in range(3):
        assert list(fetcher.fetch([("a", b"y")])) == [(0, b"y")]
    assert sum(map(len, fetcher._idle.values())) == 1


def test_two_fetches_may_be_read_in_turns_and_in_threads(place, client):
    one = place()
    one.shelf.items = {b"%d" % n: [b"%d.%d" % (n, k) for k in range(50)] for n in range(6)}
    fetcher = client({"a": one.server.endpoint})
    left, right = fetcher.fetch([("a", b"0")]), fetcher.fetch([("a", b"1")])
    assert [(a[1], b[1]) for a, b in zip(left, right, strict=True)] == list(
        zip(one.shelf.items[b"0"], one.shelf.items[b"1"], strict=True)
    )
    results = {}

    def read(n: int) -> None:
        results[n] = [chunk for _, chunk in fetcher.fetch([("a", b"%d" % n)])]

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {n: one.shelf.items[b"%d" % n] for n in range(6)}


def test_a_server_that_comes_back_elsewhere_is_found_by_the_retry(place, client):
    first = place("first")
    chunks = [bytes([n]) * PIECE_BYTES for n in range(40)]
    first.shelf.items = {b"x": chunks}
    hosts = {"a": first.server.endpoint}
    stream = client(hosts, timeout_s=0.5).fetch([("a", b"x")])
    got = [next(stream)]
    second = place("second")
    second.shelf.items = {b"x": chunks}
    hosts["a"] = second.server.endpoint
    first.server.stop()
    got += stream
    assert got == [(0, chunk) for chunk in chunks]
    assert second.shelf.opened == [b"x"]


def test_a_server_that_dies_under_a_fetch_is_refused_and_pooled_connections_are_not_trusted(place, client):
    one = place("x")
    one.shelf.items = {b"x": [bytes(PIECE_BYTES)] * 50}
    fetcher = client({"a": one.server.endpoint}, retries=1)
    stream, other = fetcher.fetch([("a", b"x")]), fetcher.fetch([("a", b"x")])
    assert next(stream) == next(other)
    other.close()  # leaves its connection in the pool
    one.server.stop()
    with pytest.raises(RemoteFetch) as caught:
        list(stream)
    assert caught.value.evidence == "refused"
    again = place("x")
    again.shelf.items = {b"x": [b"new"]}
    assert list(fetcher.fetch([("a", b"x")])) == [(0, b"new")]


def test_a_request_that_waited_too_long_for_credit_is_opened_again(place, client, monkeypatch):
    one = place()
    chunks = [bytes([n]) * PIECE_BYTES for n in range(20)]
    one.shelf.items = {b"x": chunks}
    monkeypatch.setattr(blockserver, "IDLE_S", 0.05)
    stream = client({"a": one.server.endpoint}, retries=1).fetch([("a", b"x")])
    got = [next(stream)]
    until(lambda: one.shelf.closed == [b"x"])  # forgotten while the caller was busy
    got += stream
    assert got == [(0, chunk) for chunk in chunks]


def test_ST_12_a_forked_child_fetches_by_connections_of_its_own(place, client):
    one = place()
    one.shelf.items = {b"x": [b"1", b"2", b"3"]}
    fetcher = client({"a": one.server.endpoint})
    open_here = fetcher.fetch([("a", b"x")])
    assert next(open_here) == (0, b"1")

    def check() -> None:
        assert list(fetcher.fetch([("a", b"x")])) == [(0, b"1"), (0, b"2"), (0, b"3")]
        fetcher.close()
        one.server.stop()

    assert in_child(check) == 0
    assert list(open_here) == [(0, b"2"), (0, b"3")]
    assert list(fetcher.fetch([("a", b"x")])) == [(0, b"1"), (0, b"2"), (0, b"3")]


def test_servers_and_clients_leave_no_descriptor_thread_or_file(tmp_path: Path):
    def live_and_end() -> None:
        one = Place(f"ipc://{tmp_path}/s")
        one.shelf.items = {b"x": [bytes(100_000)] * 10}
        fetcher = BlockClient(
            TOKEN, {"a": one.server.endpoint}, window_bytes=1 << 20, timeout_s=20, retries=3, rng=Random(1)
        )
        assert sum(1 for _ in fetcher.fetch([("a", b"x")] * 3)) == 30
        next(fetcher.fetch([("a", b"x")]))
        fetcher.close()
        fetcher.close()
        one.server.stop()
        one.server.stop()

    live_and_end()
    fds, tasks = open_fds(), len(os.listdir("/proc/self/task"))
    for _ in range(30):
        live_and_end()
    assert open_fds() <= fds
    until(lambda: len(os.listdir("/proc/self/task")) <= tasks)  # a joined thread may still be ending
    assert os.listdir(tmp_path) == []


def test_a_server_that_cannot_bind_says_so(tmp_path: Path):
    server = BlockServer(f"ipc://{tmp_path}/no/such", TOKEN, lambda request: iter(()))
    with pytest.raises(ClusterError):
        server.start()
    server.stop()
