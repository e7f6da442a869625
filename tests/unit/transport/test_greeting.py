"""Greetings: words between processes that know an address only."""

from __future__ import annotations

import threading

import pytest

from spark_ft.clock import BootClock
from spark_ft.ids import new_incarnation
from spark_ft.transport.greeting import Greeter, pack, unpack
from spark_ft.transport.host import Host
from spark_ft.transport.sockets import is_private
from tests.unit.transport.hosting import TOKEN, Recorder, until

WORDS = {"role": "worker", "python": "3.11"}


def test_words_survive_the_way_and_noise_is_nothing():
    assert unpack(pack(TOKEN, WORDS), TOKEN) == WORDS
    assert unpack(pack(bytes(16), WORDS), TOKEN) is None
    begun = b"SpHi" + TOKEN
    for noise in (b"", b"SpHi", begun, pack(TOKEN, WORDS)[:-1], begun + b"[1]", begun + b"{" * 9000):
        assert unpack(noise, TOKEN) is None


def test_NET_12_a_host_answers_its_own_cluster_and_nobody_else():
    core = Recorder()
    greeted: list[dict[str, str]] = []

    def greet(words):
        greeted.append(dict(words))
        return {"me": "manager-1"}

    host = Host(
        core, new_incarnation("manager"), token=TOKEN, clock=BootClock(), perform=lambda effect: None,
        bind="tcp://127.0.0.1:*", greet=greet,
    )  # fmt: skip
    thread = threading.Thread(target=host.run)
    thread.start()
    ours, theirs = (Greeter([host.endpoint], token, WORDS) for token in (TOKEN, bytes(16)))
    try:
        theirs.ask()
        until(lambda: host.dropped["greeting"], "a stranger's greeting")
        ours.ask()
        (endpoint, answer), *_ = until(lambda: ours.answers(0.1))
        assert (endpoint, answer) == (host.endpoint, {"me": "manager-1"})
        assert theirs.answers(0.0) == []
        assert greeted == [WORDS]
        assert not [event for event in core.events if "greeting" in repr(event)], "it changes nothing"
    finally:
        ours.close()
        theirs.close()
        host.stop()
        thread.join(5)


@pytest.mark.parametrize(
    ("endpoint", "private"),
    [
        ("ipc:///tmp/x", True),
        ("tcp://127.0.0.1:*", True),
        ("tcp://127.0.0.2:7077", True),
        ("tcp://0.0.0.0:7077", False),
        ("tcp://10.0.0.1:7077", False),
        ("tcp://127.0.0.1.example.org:7077", False),
        ("tcp://*:7077", False),
    ],
)
def test_only_the_machine_itself_is_private(endpoint, private):
    assert is_private(endpoint) is private
