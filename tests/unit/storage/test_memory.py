"""Persisted partitions in memory: least recently used goes first, never for its own node's sake."""

from spark_ft.ids import NodeId
from spark_ft.storage.memory import MemoryStore

A, B, C = NodeId(1), NodeId(2), NodeId(3)


def names(held) -> list[tuple[NodeId, int]]:
    return [(entry.node, entry.partition) for entry in held]


def test_the_very_list_comes_back() -> None:
    store, records = MemoryStore(100), [1, 2]
    assert store.put(A, 0, records, 10) == []
    assert store.get(A, 0) is records and store.get(A, 1) is None


def test_the_least_recently_used_of_other_nodes_goes_first() -> None:
    store = MemoryStore(100)
    store.put(A, 0, [], 40, True)
    store.put(B, 0, [], 40)
    store.get(A, 0)
    evicted = store.put(C, 0, [], 30)
    assert names(evicted) == [(B, 0)] and not evicted[0].use_disk
    assert store.used_bytes == 70


def test_a_partition_never_drives_out_its_own_node() -> None:
    store = MemoryStore(100)
    store.put(A, 0, [0], 60)
    newcomer = [1]
    (entry,) = store.put(A, 1, newcomer, 60, True)
    assert entry.records is newcomer and entry.use_disk and (entry.node, entry.partition) == (A, 1)
    assert store.get(A, 0) == [0] and store.used_bytes == 60


def test_nothing_is_evicted_for_what_fits_nowhere() -> None:
    store = MemoryStore(100)
    store.put(A, 0, [], 60)
    assert names(store.put(B, 0, [], 101)) == [(B, 0)]
    assert store.sizes() == {(A, 0): 60}


def test_a_partition_put_again_counts_once() -> None:
    store = MemoryStore(100)
    for _ in range(5):
        assert store.put(A, 0, [], 60) == []
    assert store.used_bytes == 60


def test_a_dropped_node_leaves_room() -> None:
    store = MemoryStore(100)
    store.put(A, 0, [], 50)
    store.put(A, 1, [], 50)
    store.drop(A)
    assert store.used_bytes == 0 and store.put(B, 0, [], 100) == []


def test_room_is_made_at_the_expense_of_other_nodes_alone() -> None:
    store = MemoryStore(100)
    for partition in range(2):
        store.put(A, partition, [], 25)
    store.put(B, 0, [], 25)
    assert store.make_room(B, 20) == []
    assert names(store.make_room(B, 50) or []) == [(A, 0)]
    assert store.make_room(B, 80) is None, "its own partitions stay"
    assert store.used_bytes == 50
    assert store.put(B, 1, [], 50) == []


def test_what_is_evicted_still_has_its_checksum() -> None:
    store = MemoryStore(100)
    store.put(A, 0, [], 60, True, checksum=7)
    held = store.held(A, 0)
    (evicted,) = store.put(B, 0, [], 60)
    assert held is evicted and evicted.checksum == 7 and store.held(A, 0) is None
