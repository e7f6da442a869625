"""Connections that stay down tell of the end of a process on another machine; silence does not."""

from __future__ import annotations

import socket

from spark_ft.ids import new_incarnation
from tests.unit.transport.hosting import Node, running, until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_peer_that_cannot_be_connected_for_long_is_gone_and_that_is_told_once():
    node, peer = Node("worker", peer_gone_s=0.3), new_incarnation("driver")
    with running(node):
        node.do(lambda: node.host.connect(peer, f"tcp://127.0.0.1:{free_port()}"))
        until(lambda: node.core.gone(), "the end of a peer that never was")
        seen = node.do(lambda: len(node.core.events))
        until(lambda: node.clock.now_s() and node.do(lambda: node.host._lines.wakeup_s()) == float("inf"))
        assert node.core.gone() == [peer] and seen >= 1


def test_a_peer_that_ends_is_gone_and_one_that_is_only_deaf_is_not():
    """A stopped process: its kernel still takes connections, though nobody there ever says a word."""
    node = Node("worker", peer_gone_s=0.4)
    deaf, ends = new_incarnation("driver"), new_incarnation("driver")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        other = Node("driver", bind="tcp://127.0.0.1:*")
        with running(node):
            with running(other):
                where = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
                node.do(lambda: node.host.connect(deaf, where))
                node.do(lambda: node.host.connect(ends, other.host.endpoint))
                connection, _ = listening.accept()
            until(lambda: node.core.gone(), "the end of the one that has ended")
            assert node.core.gone() == [ends]
            connection.close()


def test_CLK_4_time_in_which_we_stood_still_does_not_count():
    node, peer = Node("worker", peer_gone_s=5.0), new_incarnation("driver")
    with running(node):
        node.do(lambda: node.host.connect(peer, f"tcp://127.0.0.1:{free_port()}"))
        node.clock.offset_s += 60.0
        node.do(lambda: None)
        until(lambda: node.notes("host_stalled"), "the stall to be noticed")
        assert node.core.gone() == []
