"""The door to ZeroMQ: what a forked child may do, where to bind, waiting and ringing."""

import gc
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from spark_ft.errors import ClusterError, UsageError
from spark_ft.protocol.effects import ResourcesGranted
from spark_ft.protocol.messages import BeatAck
from spark_ft.transport import sockets
from spark_ft.transport.sockets import FULL, SENT, UNREACHABLE, Bell, Net, Waiter, advertised, endpoint_in
from tests.unit.transport.hosting import Node, Recorder, echo, in_child, open_fds, pair, running, until


def test_ST_12_a_forked_child_cannot_use_the_parents_host_and_does_not_disturb_it(tmp_path: Path):
    driver, executor = pair(tmp_path, Recorder(echo))
    with running(driver, executor):
        executor.send(driver.me, BeatAck(1))
        until(executor.core.messages)

        def check() -> None:
            with pytest.raises(UsageError):
                executor.host.post(ResourcesGranted(1))
            with pytest.raises(ClusterError):
                driver.host._router.send(executor.me.encode(), b"x")
            with pytest.raises(ClusterError):
                executor.host.connect(driver.me, driver.host.endpoint)
            executor.host.stop()
            driver.host.stop()
            assert (tmp_path / "d").exists()

        assert in_child(check) == 0
        executor.send(driver.me, BeatAck(2))
        until(lambda: executor.core.messages() == [BeatAck(1), BeatAck(2)])
        assert not driver.host.dropped and not executor.host.dropped


def test_ST_12_a_forked_child_can_have_hosts_of_its_own(tmp_path: Path):
    (tmp_path / "child").mkdir()
    driver, executor = pair(tmp_path, Recorder(echo))
    with running(driver, executor):
        executor.send(driver.me, BeatAck(1))
        until(executor.core.messages)

        def check() -> None:
            own_driver, own_executor = pair(tmp_path / "child", Recorder(echo))
            with running(own_driver, own_executor):
                own_executor.send(own_driver.me, BeatAck(5))
                until(lambda: own_executor.core.messages() == [BeatAck(5)])

        assert in_child(check) == 0
        executor.send(driver.me, BeatAck(2))
        until(lambda: len(executor.core.messages()) == 2)


FORK_AND_RETURN = """
import gc, os, sys, threading
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.unit.transport.hosting import *
from spark_ft.protocol.messages import BeatAck
driver, executor = pair(Path({tmp!r}), Recorder(echo))
with running(driver, executor):
    executor.send(driver.me, BeatAck(1))
    until(executor.core.messages)
    pid = os.fork()
    if pid == 0:
        del driver, executor
        gc.collect()
        sys.exit(7)  # the whole way: finalizers, exit handlers, module teardown
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 7, status
    executor.send(driver.me, BeatAck(2))
    until(lambda: len(executor.core.messages()) == 2)
"""


def test_ST_12_a_forked_child_can_end_the_ordinary_way(tmp_path: Path):
    script = FORK_AND_RETURN.format(root=str(Path(__file__).resolve().parents[3]), tmp=str(tmp_path))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_path_too_long_for_a_socket_falls_back_to_loopback(tmp_path: Path):
    assert endpoint_in(Path("/tmp/short"), "d") == "ipc:///tmp/short/d"
    long = Path("/tmp") / ("x" * 100)
    assert endpoint_in(long, "abcdefgh") == "tcp://127.0.0.1:*"
    exact = Path("/tmp") / ("x" * (107 - len("/tmp//d")))
    assert endpoint_in(exact, "d").startswith("ipc://")
    assert endpoint_in(exact, "de").startswith("tcp://")
    net = Net()
    (tmp_path / "c").mkdir()
    assert net.router(endpoint_in(tmp_path / "c", "d"), 1000).endpoint.startswith(
        ("ipc://", "tcp://127.0.0.1:")
    )
    net.close()


def test_the_longest_ipc_path_that_is_chosen_can_be_bound():
    (short := Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))).chmod(0o700)
    endpoint = endpoint_in(short, "n" * (107 - len(str(short)) - 1))
    assert endpoint.startswith("ipc://") and len(endpoint) == 107 + len("ipc://")
    net = Net()
    assert net.router(endpoint, 1000).endpoint == endpoint
    net.close()
    short.rmdir()  # which it is only if the socket is gone


def test_a_router_says_that_it_does_not_know_a_peer_and_a_dealer_that_it_is_full(tmp_path: Path):
    net = Net()
    router = net.router(f"ipc://{tmp_path}/r", 1000)
    assert router.send(b"nobody", b"x") == UNREACHABLE
    dealer = net.dealer("executor-1", f"ipc://{tmp_path}/absent", 1000, hwm=3)
    assert [dealer.send(b"x") for _ in range(5)] == [SENT] * 3 + [FULL] * 2
    net.close()


def test_the_reconnection_of_a_living_process_takes_over_from_its_dead_connection(tmp_path: Path):
    net, client = Net(), Net()
    router = net.router(f"ipc://{tmp_path}/r", 1000)
    first = client.dealer("executor-1", router.endpoint, 1000)
    first.send(b"one")
    assert until(router.receive) == [b"executor-1", b"one"]
    second = client.dealer("executor-1", router.endpoint, 1000)  # the first one is still open
    second.send(b"two")
    assert until(router.receive) == [b"executor-1", b"two"]
    assert router.send(b"executor-1", b"back") == SENT
    assert until(second.receive) == [b"back"]
    client.close()
    net.close()


def test_a_peer_that_announces_too_much_is_cut_off_and_others_are_not(tmp_path: Path):
    net, client = Net(), Net()
    router = net.router(f"ipc://{tmp_path}/r", 1000)
    large, small = (client.dealer(name, router.endpoint, 1000) for name in ("large", "small"))
    large.send(bytes(1001))
    small.send(b"ok")
    assert until(router.receive) == [b"small", b"ok"]
    client.close()
    net.close()


def test_closing_a_net_removes_its_ipc_files_but_not_a_successors(tmp_path: Path):
    old, new = Net(), Net()
    old.router(f"ipc://{tmp_path}/a", 1000)
    old.router(f"ipc://{tmp_path}/b", 1000)
    new.router(f"ipc://{tmp_path}/a", 1000)  # binding again takes the path over
    old.close()
    assert sorted(os.listdir(tmp_path)) == ["a"]
    new.close()
    assert os.listdir(tmp_path) == []


def test_a_waiter_tells_which_of_its_sources_can_be_read(tmp_path: Path):
    net, bell, waiter = Net(), Bell(), Waiter()
    router = net.router(f"ipc://{tmp_path}/r", 1000)
    waiter.add(router)
    waiter.add(bell.fd)
    assert waiter.wait(0.0) == []
    threading.Thread(target=bell.ring).start()
    assert waiter.wait(20.0) == [bell.fd]
    bell.ring()
    bell.hush()
    bell.hush()
    assert waiter.wait(0.0) == []
    net.dealer("executor-1", router.endpoint, 1000).send(b"x")
    assert waiter.wait(20.0) == [router]
    waiter.remove(router)
    waiter.remove(router)
    assert waiter.wait(0.0) == []
    fds = open_fds()
    bell.close()
    bell.close()
    bell.ring()
    net.close()
    assert len(open_fds()) < len(fds)


def test_a_net_that_nobody_closed_is_kept_rather_than_closed_by_the_collector(tmp_path: Path):
    def lose() -> str:
        node = Node("driver", bind=f"ipc://{tmp_path}/lost")
        return node.host.endpoint

    endpoint = lose()
    gc.collect()
    client = Net()
    assert client.dealer("executor-1", endpoint, 1000).send(b"x") == SENT
    client.close()
    for net in [net for net in sockets._nets if any(s.endpoint == endpoint for s in net._sockets)]:
        net.close()
    assert os.listdir(tmp_path) == []


def test_others_are_told_of_a_socket_by_its_name_in_the_advertised_directory() -> None:
    bound = "ipc:///tmp/spark-ft-app/c/driver"
    assert advertised(bound, "/proxy") == "ipc:///proxy/driver"
    assert advertised(bound, "") == bound
    assert advertised("tcp://127.0.0.1:4040", "/proxy") == "tcp://127.0.0.1:4040"
