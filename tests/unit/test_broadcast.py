"""Broadcasts: small handles, one load per process, gone when destroyed."""

import io
import pickle
import threading

import pytest

from spark_ft import broadcast
from spark_ft.broadcast import Broadcast, collecting, new_broadcast
from spark_ft.errors import PySparkRuntimeError
from spark_ft.ids import HostId
from spark_ft.protocol.messages import BlockRef


class Store:
    """The owner of the blocks, and what executors read them with."""

    def __init__(self):
        self.blocks, self.forgotten, self.reads = {}, [], 0

    def put_block(self, kind, name, chunks):
        assert kind == "broadcast"
        self.blocks[name] = b"".join(chunks)
        return BlockRef(HostId("driver"), "store", 0, name, len(self.blocks[name]))

    def forget_broadcast(self, bid, block):
        self.forgotten.append((bid, block is not None))

    def read(self, block):
        self.reads += 1
        return self.blocks[block.key]


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(broadcast._Process, "values", {})
    monkeypatch.setattr(broadcast._Process, "loading", {})
    monkeypatch.setattr(broadcast._Process, "loader", None)
    return Store()


@pytest.fixture
def ship(store, monkeypatch):
    """Send a handle to an executor: it arrives in a process without driver handles."""

    def send(handle):
        payload = pickle.dumps(handle)
        monkeypatch.setattr(broadcast, "_handles", {})
        broadcast.set_loader(store.read)
        return pickle.loads(payload)

    return send


def test_the_driver_has_the_value_itself(store):
    value = [1]
    assert new_broadcast(value, store).value is value


def test_the_handle_stays_small_whatever_the_value(store):
    handle = new_broadcast(bytes(3 << 20), store)
    assert len(pickle.dumps(handle)) < 500
    assert handle._block.size_bytes > 3 << 20


def test_a_process_loads_a_value_once(store, ship):
    first = ship(new_broadcast({"a": [1]}, store))
    second = pickle.loads(pickle.dumps(first))
    assert first.value == {"a": [1]}
    assert second.value is first.value and first.value is first.value
    assert store.reads == 1


def test_threads_that_want_the_same_value_wait_for_one_load(store, ship):
    handle = ship(new_broadcast(list(range(1000)), store))
    found = []

    def load():
        found.append(pickle.loads(pickle.dumps(handle)).value)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.reads == 1 and all(value is found[0] for value in found)


def test_BL_14_forgetting_a_copy_means_loading_it_again(store, ship):
    handle = ship(new_broadcast([1], store))
    assert handle.value == [1]
    broadcast.forget(handle.id)
    assert pickle.loads(pickle.dumps(handle)).value == [1]
    assert store.reads == 2


def test_without_a_loader_it_says_so(store, ship):
    handle = ship(new_broadcast([1], store))
    broadcast.set_loader(None)
    with pytest.raises(PySparkRuntimeError) as caught:
        _ = handle.value
    assert caught.value.getCondition() == "BROADCAST_VARIABLE_NOT_LOADED"


def test_unpersist_keeps_the_block_and_destroy_drops_it(store):
    handle = new_broadcast([1], store)
    handle.unpersist()
    assert handle.value == [1]
    handle.destroy()
    handle.destroy(blocking=True)
    assert store.forgotten == [(handle.id, False), (handle.id, True)]


def test_BL_14_a_destroyed_broadcast_is_an_error_at_submit_and_on_use(store):
    handle = new_broadcast([1], store)
    handle.destroy()
    for use in (lambda: pickle.dumps(handle), lambda: handle.value):
        with pytest.raises(PySparkRuntimeError, match=r"_DESTROYED\] `Broadcast\(\d+\)` was destroyed"):
            use()


@pytest.mark.parametrize("operation", ["unpersist", "destroy"])
def test_in_a_task_it_cannot_be_dropped(store, ship, operation):
    handle = ship(new_broadcast([1], store))
    with pytest.raises(RuntimeError, match=f"Broadcast can only be {operation}ed in driver"):
        getattr(handle, operation)()


def test_what_does_not_pickle_is_a_pickling_error_and_leaves_no_block(store):
    with pytest.raises(pickle.PicklingError, match="Could not serialize broadcast: TypeError: "):
        new_broadcast(threading.Lock(), store)
    assert store.blocks == {}


def test_collecting_knows_which_broadcasts_a_closure_uses(store):
    a, b, c = (new_broadcast(i, store) for i in range(3))
    with collecting() as outer:
        pickle.dumps([a])
        with collecting() as inner:
            pickle.dumps([b, b])
        pickle.dumps(c)
    pickle.dumps(b)
    assert inner == {b.id: b} and outer == {a.id: a, c.id: c}


def test_dump_and_load(store, tmp_path):
    handle = new_broadcast(None, store)
    file = io.BytesIO()
    handle.dump({"x": 1}, file)
    file.seek(0)
    assert handle.load(file) == {"x": 1}
    (tmp_path / "f").write_bytes(file.getvalue())
    assert handle.load_from_path(str(tmp_path / "f")) == {"x": 1}


def test_generic_subscripts_exist():
    assert Broadcast[int] is not None
