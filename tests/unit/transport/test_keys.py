"""Keys: who holds the cluster's pair takes part, whoever does not is heard by nobody."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from random import Random

import pytest
import zmq

from spark_ft.errors import ClusterError
from spark_ft.ids import HostId
from spark_ft.transport.blocks import BlockClient, BlockServer, RemoteFetch
from spark_ft.transport.keys import PUBLIC, SECRET, Keys
from spark_ft.transport.sockets import Net, Waiter

TOKEN = b"0123456789abcdef"


def talk(server: Net, client: Net, endpoint: str, wait_s: float) -> list[bytes] | None:
    """What arrives of a word of the client's."""
    router = server.router(endpoint, 1 << 10)
    dealer = client.dealer("someone", router.endpoint, 1 << 10)
    waiter = Waiter()
    waiter.add(router)
    dealer.send(b"a word")
    waiter.wait(wait_s)
    return router.receive()


@pytest.fixture
def nets():
    made: list[Net] = []

    def make(keys: Keys | None) -> Net:
        made.append(Net(keys))
        return made[-1]

    yield make
    for net in made:
        net.close()


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_holders_of_one_pair_hear_each_other(nets, tmp_path, kind):
    keys = Keys.draw()
    endpoint = "tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{tmp_path}/x"
    assert talk(nets(keys), nets(keys), endpoint, 5.0) == [b"someone", b"a word"]


def test_NET_12_who_has_no_keys_or_others_is_not_heard(nets):
    keys = Keys.draw()
    assert talk(nets(keys), nets(None), "tcp://127.0.0.1:*", 0.3) is None
    assert talk(nets(keys), nets(Keys.draw()), "tcp://127.0.0.1:*", 0.3) is None


def test_NET_12_who_knows_the_public_key_alone_is_not_heard(nets):
    """What a server shows everybody lets nobody in: the door asks for the client's own secret."""
    keys, other = Keys.draw(), Keys.draw()
    server = nets(keys)
    router = server.router("tcp://127.0.0.1:*", 1 << 10)
    context = zmq.Context()
    try:
        raw = context.socket(zmq.DEALER)
        raw.setsockopt(zmq.LINGER, 0)
        raw.curve_serverkey = keys.public.encode()
        raw.curve_publickey, raw.curve_secretkey = other.public.encode(), other.secret.encode()
        monitor = raw.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        raw.connect(router.endpoint)
        raw.send(b"a word")
        assert monitor.poll(5000), "the handshake was refused"
        assert router.receive() is None
        raw.disable_monitor()
        monitor.close()
        raw.close()
    finally:
        context.term()


def test_blocks_travel_under_keys_and_to_nobody_else(tmp_path):
    keys = Keys.draw()
    server = BlockServer("tcp://127.0.0.1:*", TOKEN, lambda request: iter([b"secret rows", request]), keys)
    server.start()

    def client(own: Keys | None) -> BlockClient:
        hosts = {HostId("h"): server.endpoint}
        rng = Random(1)
        return BlockClient(TOKEN, hosts, window_bytes=1 << 20, timeout_s=0.2, retries=2, rng=rng, keys=own)

    ours, stranger = client(keys), client(None)
    try:
        assert [piece for _, piece in ours.fetch([(HostId("h"), b"ask")])] == [b"secret rows", b"ask"]
        with pytest.raises(RemoteFetch):
            list(stranger.fetch([(HostId("h"), b"ask")]))
    finally:
        ours.close()
        stranger.close()
        server.stop()


def test_a_net_with_a_door_ends_at_once_and_leaves_no_thread():
    net = Net(Keys.draw())
    net.router("tcp://127.0.0.1:*", 1 << 10)
    assert "spark-ft-door" in {thread.name for thread in threading.enumerate()}
    net.close()
    for thread in threading.enumerate():
        if thread.name == "spark-ft-door":
            thread.join(5)
            assert not thread.is_alive()


def test_NET_11_a_public_address_takes_keys(nets):
    with pytest.raises(ClusterError, match=r"BAD_BIND_ADDRESS.*takes keys.*spark-ft keys"):
        nets(None).router("tcp://0.0.0.0:*", 1 << 10)
    nets(Keys.draw()).router("tcp://0.0.0.0:*", 1 << 10)


# --- On disk -------------------------------------------------------------------------------------


def test_keys_are_written_for_their_owner_alone_and_read_back(tmp_path: Path):
    keys, place = Keys.draw(), tmp_path / "keys"
    keys.write(place)
    assert Keys.load(str(place)) == keys
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / SECRET).stat().st_mode & 0o777 == 0o600
    assert keys.secret not in repr(keys)
    with pytest.raises(ClusterError, match=r"BAD_KEYS.*there are keys"):
        Keys.draw().write(place)
    assert Keys.load(str(place)) == keys
    assert Keys.load("") is None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda place: (place / SECRET).unlink(), "spark-ft keys"),
        (lambda place: os.chmod(place / SECRET, 0o640), "others than its owner may read it"),
        (lambda place: (place / PUBLIC).write_text("short"), "this is no key"),
        (lambda place: (place / PUBLIC).write_text(Keys.draw().public), "are not a pair"),
        (lambda place: (place / SECRET).write_text("é" * 40, encoding="utf-8"), "spark-ft keys"),
        (lambda place: (place / SECRET).write_text("~" * 40), "are not a pair"),
    ],
)
def test_keys_that_are_not_right_are_refused_by_name(tmp_path: Path, damage, says):
    place = tmp_path / "keys"
    Keys.draw().write(place)
    damage(place)
    with pytest.raises(ClusterError, match=rf"BAD_KEYS.*{says}"):
        Keys.load(str(place))
