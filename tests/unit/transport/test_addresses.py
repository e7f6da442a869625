"""The driver's addresses are the user's choice, or an error that names the setting, at once (row NET-11)."""

import socket
import threading
import time

import pytest

from spark_ft.errors import ClusterError
from spark_ft.settings import Settings
from spark_ft.transport import addresses
from spark_ft.transport.addresses import BIND, HOST, Addresses


def of(**pairs: str) -> Addresses:
    conf = {f"spark.driver.{key}": value for key, value in pairs.items()}
    return Addresses.of_driver(Settings.from_conf(conf))


def refused(**pairs: str) -> str:
    with pytest.raises(ClusterError) as caught:
        of(**pairs)
    assert caught.value.getCondition() == "BAD_BIND_ADDRESS"
    return str(caught.value)


def test_NET_11_nothing_is_asked_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert of() == Addresses() and not of().endpoint()
    assert of().advertised("ipc:///tmp/x") == "ipc:///tmp/x"


def test_NET_11_names_become_addresses_once():
    assert of(host="localhost") == Addresses("127.0.0.1", "127.0.0.1")
    assert of(bindAddress="127.0.0.2").endpoint() == "tcp://127.0.0.2:*"
    assert of(bindAddress="127.0.0.2", host="127.0.0.3") == Addresses("127.0.0.2", "127.0.0.3")


@pytest.mark.parametrize("address", ["0.0.0.0", "10.1.2.3", "192.0.2.1"])
def test_NET_11_an_address_that_others_reach_takes_keys(address: str):
    for pairs in ({"bindAddress": address}, {"host": address}, {"bindAddress": address, "host": "localhost"}):
        told = refused(**pairs)
        assert "CURVE" in told and "127.0.0.1" in told
        assert f"{BIND if 'bindAddress' in pairs else HOST}={address}" in told


@pytest.mark.parametrize("name", ["nobody.invalid", "::1", "x" * 70 + ".invalid"])
def test_NET_11_a_name_without_an_IPv4_address_is_refused(name: str):
    assert f"{BIND}={name}" in refused(bindAddress=name)


def test_NET_11_a_name_service_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    answers = threading.Event()
    monkeypatch.setattr(addresses, "ANSWER_S", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [answers.wait(30)][:0])
    began = time.monotonic()
    assert f"{HOST}=slow.example" in refused(host="slow.example")
    assert time.monotonic() - began < 5.0
    answers.set()


def test_NET_11_an_advertised_address_leads_to_the_socket_or_is_refused():
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        assert Addresses("127.0.0.2", "127.0.0.2").advertised(f"tcp://127.0.0.2:{port}").endswith(f".2:{port}")
        with pytest.raises(ClusterError, match=r"127\.0\.0\.3: leads nowhere") as caught:
            Addresses("127.0.0.2", "127.0.0.3").advertised(f"tcp://127.0.0.2:{port}")
        assert caught.value.getCondition() == "BAD_BIND_ADDRESS"
