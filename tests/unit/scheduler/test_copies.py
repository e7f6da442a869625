"""Copies on other hosts: who makes them, what they save, and what never counts (rows BL-11, WK-2, ST-1)."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from spark_ft.ids import HostId, Incarnation, JobId, NodeId, ShuffleId
from spark_ft.protocol.effects import Released
from spark_ft.protocol.messages import (
    CopyMade,
    DropBlocks,
    FetchFailed,
    MakeCopies,
    StoresServed,
    WorkerLost,
)
from tests.builders import Lineage, Stand, block, in_memory, source_of


def kept(
    stand: Stand, count: int = 4, replication: int = 2, on_disk: bool = False, checksum: int = 0
) -> tuple[Lineage, NodeId]:
    """A persisted source, every partition held by whoever computed it."""
    lineage = Lineage()
    node = lineage.persist(lineage.source(count), replication)
    job = stand.submit(lineage, node)
    while job not in stand.finished:
        task = stand.running()[0]
        host = stand.host_of[task.executor]
        written = block(node, task.partition, host, task.executor)
        held = in_memory(node, task.partition, checksum)
        stand.succeed(task, cached=(written if on_disk else held,))
    return lineage, node


def shuffled(stand: Stand, maps: int = 4) -> tuple[Lineage, ShuffleId, NodeId]:
    """A shuffle whose outputs have been read by one job."""
    lineage = Lineage()
    shuffle = lineage.shuffle(lineage.source(maps), 2)
    target = lineage.read(shuffle)
    stand.run(stand.submit(lineage, target))
    return lineage, shuffle, target


def disk_hosts(stand: Stand, node: NodeId) -> dict[int, set[str]]:
    return {p: set(holding.disk) for p, holding in stand.core.blocks.held[node].items()}


def replicas(stand: Stand, shuffle: ShuffleId) -> list[set[str]]:
    outputs = stand.core.outputs[shuffle]
    return [{place.host for place in outputs.locations(index)} for index in range(outputs.map_count)]


# --- Cached partitions ---


def test_BL_11_a_partition_in_memory_is_written_down_and_copied_to_a_second_host() -> None:
    stand = Stand(executors=2, hosts=2)
    _, node = kept(stand)
    makers = {maker for maker, _ in stand.orders.values()}
    assert makers == {"e0", "e1"}, "whoever has it in memory writes it down first"
    stand.copy()
    assert {maker for maker, _ in stand.orders.values()} == {"worker-h0", "worker-h1"}
    stand.copy()
    assert disk_hosts(stand, node) == {p: {"h0", "h1"} for p in range(4)}
    assert not stand.orders and not stand.core.copies.lacking


def test_BL_11_a_lost_host_costs_nothing_of_what_has_copies_and_they_are_made_again() -> None:
    stand = Stand(executors=3, hosts=3)
    lineage, node = kept(stand, 6, on_disk=True)
    while stand.orders:
        stand.copy()
    assert all(len(hosts) == 2 for hosts in disk_hosts(stand, node).values())
    stand.lose_host("h0")
    before = stand.starts()
    while stand.orders:
        stand.copy()
    assert all(hosts == {"h1", "h2"} for hosts in disk_hosts(stand, node).values())
    job = stand.submit(lineage, lineage.map(node))
    assert all(task.launch.cached for task in stand.running())
    stand.run(job)
    assert stand.finished[job] is None and stand.starts() - before == dict.fromkeys(range(6), 1)


def test_BL_11_lost_copies_are_not_made_again_when_that_is_turned_off() -> None:
    stand = Stand(executors=3, hosts=3, replicate_again=False)
    kept(stand, 6, on_disk=True)
    while stand.orders:
        stand.copy()
    stand.lose_host("h0")
    stand.pass_time(2.0)
    assert not stand.orders


def test_BL_11_three_copies_are_on_three_hosts() -> None:
    stand = Stand(executors=3, hosts=3)
    _, node = kept(stand, 2, replication=3, on_disk=True)
    while stand.orders:
        stand.copy()
    assert disk_hosts(stand, node) == {0: {"h0", "h1", "h2"}, 1: {"h0", "h1", "h2"}}


def test_BL_11_a_task_is_sent_to_a_copy_and_reads_the_one_on_its_own_host() -> None:
    stand = Stand(executors=2, hosts=2, locality_wait_s=3.0)
    lineage, node = kept(stand, 4, on_disk=True)
    while stand.orders:
        stand.copy()
    stand.submit(lineage, lineage.map(node))
    first = stand.running()
    assert {task.executor for task in first} == {"e0", "e1"}
    stand.exit("e0")
    for _ in range(4):
        task = stand.running()[0]
        (offered,) = task.launch.cached
        assert offered.block is not None and offered.block.host == stand.host_of[task.executor]
        stand.succeed(task)


def test_BL_11_on_one_host_there_is_one_copy_on_disk_and_that_is_said_once() -> None:
    stand = Stand(executors=2, hosts=1)
    _, node = kept(stand)
    while stand.orders:
        stand.copy()
    assert disk_hosts(stand, node) == {p: {"h0"} for p in range(4)}
    assert stand.kinds()["copies_lack_hosts"] == 1
    stand.exit("e0")
    assert set(stand.core.blocks.held[node]) == set(range(4)), "what it had in memory is on the disk"
    stand.add_worker("h1")
    assert {maker for maker, _ in stand.orders.values()} == {"worker-h1"}, "a host has come"


def test_BL_11_orders_with_one_maker_are_few_at_a_time() -> None:
    stand = Stand(executors=2, hosts=2)
    kept(stand, 40, on_disk=True)
    load = dict.fromkeys(("worker-h0", "worker-h1"), 0)
    for maker, _ in stand.orders.values():
        load[maker] += 1
    assert load == {"worker-h0": 4, "worker-h1": 4}
    while stand.orders:
        stand.copy(next(iter(stand.orders)))
    assert stand.kinds()["block_copied"] == 40


def test_BL_11_a_copy_that_comes_after_the_partition_was_computed_anew_is_refused() -> None:
    stand = Stand(executors=2, hosts=2)
    lineage, node = kept(stand, 1, on_disk=True)
    ((number, (maker, order)),) = stand.orders.items()
    late = stand.copied(maker, order)
    original = order.cached.block if order.cached is not None else None
    assert original is not None
    stand.core.recovery.block_lost(original, "missing")
    job = stand.submit(lineage, node)
    task = stand.one(0)
    fresh = block(node, 0, stand.host_of[task.executor], "another")
    assert fresh.block is not None
    stand.succeed(task, cached=(replace(fresh, block=replace(fresh.block, checksum=99)),))
    assert stand.finished[job] is None
    stand.orders.clear()
    stand.tell(maker, late)
    (holding,) = stand.core.blocks.held[node].values()
    assert [held.block.checksum for held in holding.disk.values() if held.block] == [99]
    assert stand.messages(DropBlocks, maker) == [DropBlocks(copies=(number,))], "it is given back"


def test_BL_11_a_copy_of_a_node_that_was_unpersisted_meanwhile_is_refused() -> None:
    stand = Stand(executors=2, hosts=2)
    _, node = kept(stand, 1, on_disk=True)
    ((number, (maker, _)),) = stand.orders.items()
    stand.do(Released(nodes=(node,)))
    assert stand.messages(DropBlocks, "worker-h0") == stand.messages(DropBlocks, "worker-h1")
    stand.copy()
    assert DropBlocks(copies=(number,)) in stand.messages(DropBlocks, maker)
    assert not stand.core.blocks.held and not stand.core.copies.lacking


def test_BL_11_what_was_evicted_before_it_could_be_written_down_is_known_to_be_gone() -> None:
    stand = Stand(executors=2, hosts=2)
    _, node = kept(stand, 1)
    stand.copy_fails("gone")
    assert not stand.core.blocks.held[node]


def test_BL_11_what_was_written_down_of_data_that_was_rolled_back_since_is_refused() -> None:
    stand = Stand(executors=2, hosts=2)
    _, node = kept(stand, 1)
    ((number, (maker, _)),) = stand.orders.items()
    other = Incarnation("e1" if maker == "e0" else "e0")
    stand.core.blocks.drop_node(node, forget=False)
    stand.core.blocks.add(other, in_memory(node, 0))
    stand.copy(number)
    assert stand.noted("copy_refused") and not stand.core.blocks.held[node][0].disk


def test_BL_12_another_edition_that_was_written_down_is_refused() -> None:
    stand = Stand(executors=2, hosts=2)
    _, node = kept(stand, 1, checksum=10)
    ((number, (maker, order)),) = stand.orders.items()
    made = stand.copied(maker, order)
    assert made.cached is not None
    del stand.orders[number]
    stand.tell(maker, replace(made, cached=replace(made.cached, checksum=99)))
    assert stand.noted("copy_refused") and not stand.core.blocks.held[node], (
        "nor is it in that memory any more"
    )


# --- Map outputs ---


def test_WK_2_with_two_replicas_a_lost_host_costs_no_map_task() -> None:
    stand = Stand(executors=2, hosts=2, shuffle_replicas=2)
    lineage, shuffle, target = shuffled(stand)
    while stand.orders:
        stand.copy()
    assert replicas(stand, shuffle) == [{"h0", "h1"}] * 4
    stand.lose_host("h0")
    assert stand.core.outputs[shuffle].complete
    job = stand.submit(lineage, target)
    (reducer, *_) = stand.running()
    assert {status.host for status in reducer.outputs[shuffle].statuses} == {"h1"}
    stand.run(job)
    assert stand.starts(shuffle) == dict.fromkeys(range(4), 1), "R0"


def test_WK_2_a_map_stage_does_not_wait_for_its_replicas_and_until_then_a_loss_costs_what_it_did() -> None:
    stand = Stand(executors=2, hosts=2, shuffle_replicas=2)
    lineage, shuffle, target = shuffled(stand)
    on_h0 = {s.map_index for s in stand.core.outputs[shuffle].statuses if s is not None and s.host == "h0"}
    copied = next(n for n, (_, order) in stand.orders.items() if order.output and source_of(order) == "h0")
    order = stand.orders[copied][1]
    assert order.output is not None
    stand.copy(copied)
    stand.lose_host("h0")
    job = stand.submit(lineage, target)
    stand.run(job)
    again = on_h0 - {order.output.map_index}
    assert again and stand.starts(shuffle) == {index: 1 + (index in again) for index in range(4)}


def test_WK_2_a_replica_found_unreadable_is_dropped_alone_and_made_again() -> None:
    stand = Stand(executors=2, hosts=2, shuffle_replicas=2)
    lineage, shuffle, target = shuffled(stand)
    while stand.orders:
        stand.copy()
    job = stand.submit(lineage, target)
    stand.fetch_failed(stand.running()[0], 0, "corrupt")
    assert len(replicas(stand, shuffle)[0]) == 1 and stand.core.outputs[shuffle].complete
    assert stand.orders, "another is made"
    stand.copy()
    stand.run(job)
    assert stand.finished[job] is None and replicas(stand, shuffle)[0] == {"h0", "h1"}
    assert stand.starts(shuffle) == dict.fromkeys(range(4), 1), "R0"


def test_WK_2_an_original_that_cannot_be_copied_because_it_is_damaged_is_lost_when_it_is_found() -> None:
    stand = Stand(executors=2, hosts=2, shuffle_replicas=2)
    _, shuffle, _ = shuffled(stand, maps=2)
    number, (_, order) = next(iter(stand.orders.items()))
    stand.copy_fails("corrupt", number)
    assert order.output is not None
    assert stand.core.outputs[shuffle].lacking() == [order.output.map_index]


def test_BL_10_a_copy_into_a_store_given_up_meanwhile_is_refused_and_no_more_are_made_there() -> None:
    stand = Stand(executors=1, hosts=2, shuffle_replicas=2)
    lineage, shuffle, target = shuffled(stand, maps=3)
    stand.copy(*list(stand.orders)[:2])
    copies = [copy for held in stand.core.outputs[shuffle].copies.values() for copy in held]
    job = stand.submit(lineage, target)
    for copy in copies:
        where = copy.map_index, copy.host, copy.store, "corrupt"
        stand.end(stand.running()[0], FetchFailed(shuffle, copy.generation, *where, attempt=copy.attempt))
    assert stand.kinds()["store_quarantined"] == 1
    late = tuple(stand.orders)
    assert late, "some are on their way"
    stand.copy()
    assert replicas(stand, shuffle) == [{"h0"}] * 3
    assert [drop.copies for drop in stand.messages(DropBlocks, "worker-h1")] == [(n,) for n in late]
    stand.pass_time(5.0)
    assert not stand.orders, "what it would copy would not count either"
    stand.add_worker("h2")
    while stand.orders:
        stand.copy()
    assert replicas(stand, shuffle) == [{"h0", "h2"}] * 3
    stand.run(job)
    assert stand.starts(shuffle) == dict.fromkeys(range(3), 1), "R0"


def test_WK_2_a_replica_of_a_generation_that_was_rolled_back_is_refused() -> None:
    stand = Stand(executors=2, hosts=2, shuffle_replicas=2)
    _, shuffle, _ = shuffled(stand, maps=1)
    ((number, (maker, _)),) = stand.orders.items()
    stand.core.recovery.rollback(shuffle, 0)
    stand.copy(number)
    assert stand.core.outputs[shuffle].lacking() == [0] and not stand.core.outputs[shuffle].copies
    assert DropBlocks(copies=(number,)) in stand.messages(DropBlocks, maker)


def test_WK_2_an_order_goes_to_another_worker_when_its_maker_is_lost() -> None:
    stand = Stand(executors=1, hosts=3, shuffle_replicas=2, replicate_again=False)
    _, shuffle, _ = shuffled(stand, maps=1)
    ((_, (maker, _)),) = stand.orders.items()
    stand.lose_host(stand.host_of[maker])
    ((_, (second, _)),) = stand.orders.items()
    assert second != maker
    stand.copy()
    assert replicas(stand, shuffle) == [{"h0", stand.host_of[second]}]


def test_WK_2_ST_1_a_target_without_space_is_passed_over_for_another_or_tried_again_later() -> None:
    stand = Stand(executors=1, hosts=3, shuffle_replicas=2)
    _, shuffle, _ = shuffled(stand, maps=1)
    ((_, (full, _)),) = stand.orders.items()
    stand.copy_fails("STORAGE_FULL")
    stand.pass_time(1.0)
    ((_, (second, _)),) = stand.orders.items()
    assert second != full
    stand.copy_fails("STORAGE_FULL")
    stand.pass_time(2.0)
    assert not stand.orders, "both back off"
    stand.pass_time(5.0)
    assert stand.orders, "and are asked again"
    stand.copy()
    assert len(replicas(stand, shuffle)[0]) == 2


def test_WK_2_a_copy_that_its_link_keeps_from_being_made_is_made_by_another_host() -> None:
    stand = Stand(executors=1, hosts=3, shuffle_replicas=2)
    _, shuffle, _ = shuffled(stand, maps=1)
    ((_, (cut, _)),) = stand.orders.items()
    stand.copy_fails("timeout")
    stand.pass_time(1.0)
    ((_, (second, _)),) = stand.orders.items()
    assert second != cut and stand.core.outputs[shuffle].complete
    stand.copy_fails("refused")
    stand.pass_time(5.0)
    assert not stand.orders, "neither link is tried again so soon"
    stand.pass_time(16.0)
    assert stand.orders


def test_an_answer_that_was_not_asked_for_changes_nothing_and_a_dropped_shuffle_wants_no_copies() -> None:
    stand = Stand(executors=2, hosts=2, shuffle_replicas=2)
    _, shuffle, _ = shuffled(stand, maps=2)
    number, (maker, order) = next(iter(stand.orders.items()))
    other = Incarnation("worker-h1" if maker == "worker-h0" else "worker-h0")
    stand.tell(other, stand.copied(other, order))
    assert stand.noted("stale_copy")[-1]["number"] == number
    stand.tell(maker, CopyMade(999, evidence="timeout"))
    stand.do(Released(shuffles=(shuffle,)))
    stand.copy()
    asked = len(stand.messages(MakeCopies))
    stand.pass_time(2.0)
    assert len(stand.messages(MakeCopies)) == asked and not stand.core.copies.flying
    assert HostId("h0") in set(stand.core.executors.hosts())


def readers_of_replicas() -> tuple[Stand, ShuffleId, int, Callable[[], JobId]]:
    """Two readers run that were not told of replicas, on h0 and h2; an output on h1, with a replica."""
    stand = Stand(executors=3, hosts=3, shuffle_replicas=2)
    lineage, shuffle, target = shuffled(stand, maps=6)
    stand.submit(lineage, target)
    readers = stand.running()
    assert {stand.host_of[task.executor] for task in readers} == {"h0", "h2"}
    assert not any(task.outputs[shuffle].copies for task in readers)
    while stand.orders:
        stand.copy()
    assert all(len(hosts) == 2 for hosts in replicas(stand, shuffle))
    told = readers[0].outputs[shuffle].statuses
    there = next(status.map_index for status in told if status.host == "h1")
    return stand, shuffle, there, lambda: stand.submit(lineage, target)


@pytest.mark.parametrize("heir_first", [False, True])
def test_WK_2_a_reader_that_nobody_answers_between_two_workers_is_told_of_the_replicas(
    heir_first: bool,
) -> None:
    stand, shuffle, there, _ = readers_of_replicas()
    outputs = tuple(o for o in stand.core.outputs[shuffle].statuses if o is not None and o.host == "h1")
    reader, other = stand.running()
    stand.pass_time(0.1)
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h1"), "killed"))
    if heir_first:
        stand.add_worker("h1", "worker-2", StoresServed((Incarnation("e1"),), outputs, ("e1",)))
    version = stand.core.outputs[shuffle].version
    for task in (reader, other):
        stand.fetch_failed(task, there, "refused")
        (again,) = [t for t in stand.running() if t.partition == task.partition]
        places = {copy.host for copy in again.outputs[shuffle].copies if copy.map_index == there}
        assert places - {"h1"}, "at once, and not of the same place alone"
    assert stand.core.outputs[shuffle].version == version, "told once is enough"
    assert not stand.noted("output_lost")


def test_WK_2_who_is_sent_to_read_after_a_worker_is_lost_hears_of_the_replicas() -> None:
    stand, shuffle, _, submit = readers_of_replicas()
    stand.tell("manager-1", WorkerLost(Incarnation("worker-h1"), "killed"))
    stand.succeed(*stand.running())
    submit()
    assert [len(task.outputs[shuffle].copies) for task in stand.running()] == [6, 6]
