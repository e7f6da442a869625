"""Workers and executors leave in order (row EX-13), also when what they move to goes away."""

from spark_ft.ids import Incarnation
from spark_ft.protocol.effects import Decommission
from spark_ft.protocol.messages import CopyMade, KillTask, Leave, Leaving, MayLeave
from tests.builders import Lineage, Stand, in_memory
from tests.unit.scheduler.test_copies import disk_hosts, kept, replicas, shuffled


def leave(stand: Stand, who: str, within_s: float = 60.0) -> None:
    stand.tell(who, Leaving(within_s))


def may_leave(stand: Stand, who: str) -> bool:
    return bool(stand.messages(MayLeave, who))


def test_EX_13_outputs_are_moved_their_place_is_switched_at_once_and_the_host_is_let_go() -> None:
    stand = Stand(executors=3, hosts=3)
    lineage, shuffle, target = shuffled(stand, maps=6)
    leave(stand, "worker-h0")
    assert stand.orders and not may_leave(stand, "worker-h0")
    assert {maker for maker, _ in stand.orders.values()} == {"worker-h1", "worker-h2"}
    while stand.orders:
        stand.copy(next(iter(stand.orders)))
        assert stand.core.outputs[shuffle].complete, "there is always one place, and readers know of one"
    assert all(len(places) == 1 and "h0" not in places for places in replicas(stand, shuffle))
    assert may_leave(stand, "worker-h0")
    stand.lose_host("h0")
    job = stand.submit(lineage, target)
    stand.run(job)
    assert stand.starts(shuffle) == dict.fromkeys(range(6), 1), "R0"


def test_EX_13_nothing_is_launched_where_somebody_leaves_and_what_runs_there_ends() -> None:
    stand = Stand(executors=2, hosts=2, prefetch_tasks=1)
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(6))
    stand.start(*[task for task in stand.running() if task.partition < 2])
    leave(stand, "worker-h0")
    queued = [m.task for m in stand.messages(KillTask, "e0") if m.queued_only]
    assert len(queued) == 1, "what stands in its queue is asked back"
    here = [task for task in stand.running() if task.executor == "e0"]
    stand.kill_queued()
    assert not may_leave(stand, "worker-h0"), "a task runs there"
    stand.succeed(here[0])
    assert may_leave(stand, "worker-h0") and stand.messages(MayLeave, "worker-h0") == [MayLeave()]
    stand.run(job)
    late = [t for t in stand.launched.values() if t.executor == "e0" and t not in here]
    assert not late and stand.finished[job] is None


def test_EX_13_copies_are_made_with_the_worker_that_takes_the_place_of_one_that_leaves() -> None:
    stand = Stand(executors=1, hosts=2)
    leave(stand, "worker-h1")
    _, node = kept(stand, 1, on_disk=True)
    assert not stand.orders, "there is nobody to make the second copy"
    new = stand.add_worker("h1", "worker-h1-2")
    stand.copy()
    assert disk_hosts(stand, node) == {0: {"h0", "h1"}} and stand.host_of[new] == "h1"


def test_EX_13_a_task_that_cannot_end_in_time_has_a_twin_elsewhere() -> None:
    stand = Stand(executors=2, hosts=2, speculation=True)
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(2))
    stand.start(*stand.running())
    slow = next(task for task in stand.running() if task.executor == "e0")
    stand.succeed(next(task for task in stand.running() if task.executor == "e1"))
    leave(stand, "worker-h0", within_s=20.0)
    stand.pass_time(8.0)
    assert stand.running() == [slow], "there is time yet"
    stand.pass_time(3.0)
    (twin,) = [task for task in stand.running() if task is not slow]
    assert twin.launch.speculative and twin.executor == "e1"
    stand.succeed(twin)
    assert stand.finished[job] is None
    stand.kill_answers()
    assert may_leave(stand, "worker-h0")


def test_EX_13_killed_at_the_deadline_in_mid_copy_costs_exactly_what_was_not_moved() -> None:
    stand = Stand(executors=2, hosts=2)
    lineage, shuffle, target = shuffled(stand, maps=6)
    before = replicas(stand, shuffle)
    leave(stand, "worker-h0", within_s=5.0)
    stand.copy(next(iter(stand.orders)))
    lost = {index for index, places in enumerate(replicas(stand, shuffle)) if places == {"h0"}}
    assert 0 < len(lost) < len([places for places in before if places == {"h0"}])
    stand.lose_host("h0")
    job = stand.submit(lineage, target)
    stand.run(job)
    assert stand.starts(shuffle) == {index: 1 + (index in lost) for index in range(6)}, "R2"


def test_EX_13_EX_1_when_the_target_of_a_migration_dies_another_host_gets_the_data() -> None:
    stand = Stand(executors=1, hosts=3)
    lineage, shuffle, target = shuffled(stand, maps=3)
    assert replicas(stand, shuffle) == [{"h0"}] * 3
    leave(stand, "worker-h0")
    first = {maker for maker, _ in stand.orders.values()}
    stand.copy(next(iter(stand.orders)))
    (dead,) = {place for places in replicas(stand, shuffle) for place in places} - {"h0"}
    stand.lose_host(dead)
    while stand.orders:
        stand.copy()
    (other,) = {"h1", "h2"} - {dead}
    lost = [index for index, places in enumerate(replicas(stand, shuffle)) if not places]
    assert len(first) == 2 and len(lost) == 1, "what had just been moved there is lost with it"
    assert [places for places in replicas(stand, shuffle) if places] == [{other}] * 2
    assert may_leave(stand, "worker-h0")
    stand.add_executor(other)
    stand.lose_host("h0")
    job = stand.submit(lineage, target)
    stand.run(job)
    assert stand.starts(shuffle) == {index: 1 + (index in lost) for index in range(3)}


def test_EX_13_partitions_in_memory_and_on_disk_are_moved_whatever_their_level_wants() -> None:
    for on_disk in (False, True):
        stand = Stand(executors=2, hosts=2)
        lineage, node = kept(stand, 4, replication=1, on_disk=on_disk)
        leave(stand, "worker-h0")
        while stand.orders:
            stand.copy()
        assert may_leave(stand, "worker-h0")
        assert all("h0" not in hosts for hosts in disk_hosts(stand, node).values()), "nobody is sent there"
        stand.lose_host("h0")
        assert set(stand.core.blocks.held[node]) == set(range(4))
        job = stand.submit(lineage, lineage.map(node))
        stand.run(job)
        assert {hosts <= {"h1"} for hosts in disk_hosts(stand, node).values()} == {True}


def test_EX_13_what_is_dropped_elsewhere_meanwhile_is_moved_too() -> None:
    """Found by the simulator: seed 9900148."""
    stand = Stand(executors=2, hosts=2)
    lineage, node = kept(stand, 1, replication=1)
    (holder,) = stand.core.blocks.held[node][0].memory
    job = stand.submit(lineage, lineage.source(2))
    here, there = sorted(stand.running(), key=lambda task: task.executor != holder)
    host = stand.host_of[here.executor]
    stand.succeed(there, cached=(in_memory(node, 0),))
    leave(stand, f"worker-{host}")
    assert not stand.orders, "another one has it"
    job = stand.submit(lineage, lineage.source(1))
    (other,) = [task for task in stand.running() if task is not here]
    stand.succeed(other, dropped=((node, 0),))
    stand.succeed(here)
    assert job in stand.finished and not may_leave(stand, f"worker-{host}")
    while stand.orders:
        stand.copy()
    assert may_leave(stand, f"worker-{host}") and host not in stand.core.blocks.held[node][0].disk


def test_EX_13_a_host_whose_worker_has_not_said_hello_yet_is_waited_for() -> None:
    """Found by the simulator: seed 4101661."""
    for told_first in (False, True):
        stand = Stand(executors=1, hosts=1)
        lineage, node = kept(stand, 1, replication=1, on_disk=True)
        _, shuffle, _ = shuffled(stand, maps=1)
        job = stand.submit(lineage, lineage.source(1))
        task = stand.one(0)
        if told_first:
            leave(stand, "worker-h0")
        stand.add_executor("h1")
        if not told_first:
            leave(stand, "worker-h0")
        stand.succeed(task)
        stand.pass_time(2.0)
        assert job in stand.finished and not stand.orders
        assert not may_leave(stand, "worker-h0"), "somebody is there who can take it"
        stand.add_worker("h1")
        stand.copy()
        assert may_leave(stand, "worker-h0")
        assert disk_hosts(stand, node) == {0: {"h1"}} and replicas(stand, shuffle) == [{"h1"}]


def test_EX_13_an_executor_that_leaves_alone_writes_its_memory_down_and_its_host_keeps_everything() -> None:
    stand = Stand(executors=2, hosts=1)
    lineage, shuffle, _ = shuffled(stand)
    node = lineage.persist(lineage.source(4))
    kept_job = stand.submit(lineage, node)
    while kept_job not in stand.finished:
        task = stand.running()[0]
        stand.succeed(task, cached=(in_memory(node, task.partition),))
    mine = len(stand.core.blocks.of_executor[Incarnation("e0")])
    leave(stand, "e0")
    assert len(stand.orders) == mine and {maker for maker, _ in stand.orders.values()} == {"e0"}
    assert not may_leave(stand, "e0")
    stand.copy()
    assert may_leave(stand, "e0") and not may_leave(stand, "worker-h0")
    stand.exit("e0", status=73, signal=0)
    assert set(stand.core.blocks.held[node]) == set(range(4)) and stand.core.outputs[shuffle].complete
    assert stand.noted("executor_lost")[-1]["blame"] == ""


def test_EX_13_a_reader_that_was_told_of_the_old_places_is_waited_for() -> None:
    stand = Stand(executors=2, hosts=2)
    lineage, shuffle, target = shuffled(stand, maps=2)
    job = stand.submit(lineage, target)
    reader = next(task for task in stand.running() if task.executor == "e1")
    stand.succeed(next(task for task in stand.running() if task.executor == "e0"))
    leave(stand, "worker-h0")
    stand.copy()
    assert replicas(stand, shuffle) == [{"h1"}] * 2
    assert not may_leave(stand, "worker-h0"), "it may be reading there"
    stand.succeed(reader)
    assert stand.finished[job] is None and may_leave(stand, "worker-h0")


def test_EX_13_where_nobody_could_take_the_data_the_host_is_let_go_when_its_tasks_have_ended() -> None:
    stand = Stand(executors=1, hosts=1)
    _, shuffle, _ = shuffled(stand)
    leave(stand, "worker-h0")
    assert may_leave(stand, "worker-h0") and replicas(stand, shuffle) == [{"h0"}] * 4


def test_EX_13_with_migration_turned_off_nothing_is_moved() -> None:
    stand = Stand(executors=2, hosts=2, move_data=False)
    _, shuffle, _ = shuffled(stand)
    before = replicas(stand, shuffle)
    leave(stand, "worker-h0")
    assert may_leave(stand, "worker-h0") and replicas(stand, shuffle) == before


def test_EX_13_a_host_is_asked_by_name_and_told_twice_is_told_once() -> None:
    stand = Stand(executors=2, hosts=2)
    stand.do(Decommission(stand.host_of[Incarnation("e0")], 12.0))
    assert stand.messages(Leave, "worker-h0") == [Leave(12.0)] and not stand.messages(Leave, "worker-h1")
    leave(stand, "worker-h0", 12.0)
    leave(stand, "worker-h0", 99.0)
    assert stand.kinds()["worker_leaving"] == 1
    notice = stand.core.executors.workers[Incarnation("worker-h0")].leaving
    assert notice is not None and notice.until_s == notice.since_s + 12.0
    stand.tell("worker-h0", CopyMade(7, evidence="timeout"))


def test_EX_13_data_goes_to_hosts_that_stay_and_what_is_written_late_goes_too() -> None:
    stand = Stand(executors=1, hosts=3)
    lineage = Lineage()
    shuffle = lineage.shuffle(lineage.source(1), 1)
    job = stand.submit(lineage, lineage.read(shuffle))
    task = stand.one(0)
    stand.start(task)
    leave(stand, "worker-h0")
    leave(stand, "worker-h1")
    stand.add_executor("h2")
    stand.succeed(task)
    assert {maker for maker, _ in stand.orders.values()} == {"worker-h2"}
    stand.copy()
    stand.run(job)
    assert replicas(stand, shuffle) == [{"h2"}] and may_leave(stand, "worker-h0")


def test_EX_13_an_executor_whose_time_is_over_is_nobodys_fault() -> None:
    stand = Stand(executors=1, max_failures=1)
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(1))
    stand.start(stand.one(0))
    leave(stand, "e0", within_s=1.0)
    stand.exit("e0", status=73, signal=0)
    stand.add_executor("h0")
    stand.run(job)
    assert stand.finished[job] is None and stand.noted("executor_lost")[-1]["blame"] == "system"


def test_EX_13_a_task_has_no_twin_while_its_stage_lacks_an_input() -> None:
    stand, lineage = Stand(executors=3, hosts=3, speculation=True), Lineage()
    job = stand.submit(lineage, lineage.reduce(lineage.source(2), 2))
    while stand.running()[0].is_map:
        stand.succeed(stand.running()[0])
    first, second = stand.running()
    stand.start(first, second)
    stand.fetch_failed(first, 0)
    leave(stand, f"worker-{stand.host_of[second.executor]}", within_s=20.0)
    stand.pass_time(11.0)  # half of its time is over
    assert not [task for task in stand.running() if task.launch.speculative]
    stand.run(job)
