"""A link is cut between two hosts that both live: blame it, and neither of them (row NET-8)."""

from spark_ft.ids import DRIVER_HOST, Generation, HostId, ShuffleId, StageId
from spark_ft.protocol.effects import Copy, DropStores, Released
from spark_ft.protocol.messages import CopyMade, FetchFailed
from tests.builders import Launched, Lineage, Stand, block, source_of
from tests.unit.scheduler.test_copies import replicas

CUT = {frozenset(("h0", "h1"))}


def at_the_readers(stand: Stand, maps: int = 4, reduces: int = 2) -> tuple[Lineage, ShuffleId, int]:
    """A shuffle with outputs on the hosts of all executors, and its readers launched."""
    lineage = Lineage()
    shuffle = lineage.shuffle(lineage.source(maps), reduces)
    job = stand.submit(lineage, lineage.read(shuffle))
    while stand.running()[0].is_map:
        stand.succeed(stand.running()[0])
    return lineage, shuffle, job


def run_with_cuts(stand: Stand, job: int, cuts: set[frozenset[str]], rounds: int = 200) -> list[Launched]:
    """Play on: a reader that meets a cut link says so.  Returns those that did."""
    failed: list[Launched] = []
    for _ in range(rounds):
        if job in stand.finished:
            return failed
        for number, (maker, order) in list(stand.orders.items()):
            assert order.output is not None
            if frozenset((stand.host_of[maker], order.output.host)) in cuts:
                stand.copy_fails("timeout", number)
            else:
                stand.copy(number)
        for task in stand.running():
            bad = cannot_read(stand, task, cuts)
            if bad is None:
                stand.succeed(task)
            else:
                failed.append(task)
                stand.fetch_failed(task, bad, "timeout")
        stand.pass_time(0.5)
    raise AssertionError("the job does not end")


def cannot_read(stand: Stand, task: Launched, cuts: set[frozenset[str]]) -> int | None:
    host = stand.host_of[task.executor]
    for outputs in task.outputs.values():
        for status in outputs.statuses:
            places = [status, *(copy for copy in outputs.copies if copy.map_index == status.map_index)]
            if all(frozenset((host, str(place.host))) in cuts for place in places):
                return status.map_index
    return None


def test_NET_8_readers_go_to_a_host_that_reaches_both_and_no_map_task_runs_again() -> None:
    stand = Stand(executors=3, hosts=3)
    _, shuffle, job = at_the_readers(stand, maps=6, reduces=6)
    failed = run_with_cuts(stand, job, CUT)
    assert failed and {stand.host_of[task.executor] for task in failed} <= {"h0", "h1"}
    assert stand.finished[job] is None and stand.starts(shuffle) == dict.fromkeys(range(6), 1), "R0"
    late = [t for t in stand.launched.values() if not t.is_map and t.task > failed[-1].task]
    assert {stand.host_of[task.executor] for task in late} == {"h2"}
    assert len(failed) <= 4, "the link is known: others of the stage do not run into it, too"
    assert not stand.noted("output_lost")


def test_NET_8_with_nobody_to_run_elsewhere_a_third_worker_relays() -> None:
    stand = Stand(executors=2, hosts=2)
    _, shuffle, job = at_the_readers(stand)
    stand.add_worker("h2")
    failed = run_with_cuts(stand, job, CUT)
    assert failed and stand.finished[job] is None
    assert stand.starts(shuffle) == dict.fromkeys(range(4), 1), "R0"
    assert stand.noted("output_relayed") and {"h2"} <= set().union(*replicas(stand, shuffle))


def relays_of_the_driver(stand: Stand) -> list[Copy]:
    return [effect for effect in stand.effects if isinstance(effect, Copy)]


def test_NET_8_between_two_hosts_the_driver_relays_and_lets_go_of_it_with_the_shuffle() -> None:
    stand = Stand(executors=2, hosts=2)
    stand.core.learn_hosts({DRIVER_HOST: "ipc://driver"})
    _, shuffle, job = at_the_readers(stand)
    me = stand.core.me
    orders = []
    for task in stand.running():
        bad = cannot_read(stand, task, CUT)
        assert bad is not None
        stand.fetch_failed(task, bad, "timeout")
        orders += [order for effect in relays_of_the_driver(stand) for order in effect.orders]
    assert orders and {source_of(order) for order in orders} == {"h0"}, "one host is helped, and runs all"
    stand.host_of[me] = DRIVER_HOST
    for order in orders:
        stand.tell(me, stand.copied(me, order))
    assert replicas(stand, shuffle).count({"h0", DRIVER_HOST}) == len(orders) == 2
    assert len(run_with_cuts(stand, job, CUT)) <= 1, "one was launched before all was relayed"
    assert stand.starts(shuffle) == dict.fromkeys(range(4), 1), "R0"
    stand.do(Released(shuffles=(shuffle,)))
    assert [effect for effect in stand.effects if isinstance(effect, DropStores)]


def test_NET_8_what_nobody_can_reach_is_given_up_in_the_end() -> None:
    stand = Stand(executors=2, hosts=2)
    stand.core.learn_hosts({DRIVER_HOST: "ipc://driver"})
    _, _, job = at_the_readers(stand, reduces=1)
    for _ in range(120):
        task = next((t for t in stand.running() if not t.is_map), None)
        if task is not None and (bad := cannot_read(stand, task, CUT)) is not None:
            stand.fetch_failed(task, bad, "timeout")
        for order in [order for effect in relays_of_the_driver(stand) for order in effect.orders]:
            stand.tell(stand.core.me, CopyMade(order.number, evidence="refused"))
        if stand.noted("output_lost"):
            break
        stand.pass_time(1.0)
    assert stand.noted("output_lost"), "the driver cannot reach it either"
    assert len(stand.noted("copy_failed")) <= 8, "its link is known to be cut, too"
    assert job not in stand.finished


def test_NET_8_a_link_that_has_healed_is_used_again() -> None:
    stand = Stand(executors=2, hosts=2)
    links = stand.core.links
    h0, h1 = HostId("h0"), HostId("h1")
    links.failed(h0, h1, stand.now_s)
    links.failed(h0, h0, stand.now_s)
    assert links.is_cut(h0, h1, stand.now_s + 19.0) and not links.is_cut(h1, h0, stand.now_s)
    assert not links.is_cut(h0, h0, stand.now_s), "nobody is cut off from itself"
    stand.pass_time(21.0)
    assert not links
    links.failed(h0, h1, stand.now_s)
    stand.add_worker("h1", "worker-h1-2")
    assert links, "the address is the same"
    links.forget_host(h1)
    assert not links


def test_NET_8_a_cached_block_out_of_one_hosts_reach_is_read_on_another_and_not_dropped() -> None:
    stand = Stand(executors=1, hosts=2)
    lineage = Lineage()
    node = lineage.persist(lineage.source(1))
    first = stand.submit(lineage, node)
    stand.succeed(stand.one(0), cached=(block(node, 0, "h0", "e0"),))
    assert stand.finished[first] is None
    stand.exit("e0")
    stand.add_executor("h1", name="far")
    job = stand.submit(lineage, lineage.map(node))
    stand.pass_time(4.0)
    reader = stand.one(0)
    ref = reader.launch.cached[0].block
    assert reader.executor == "far" and ref is not None
    stand.add_executor("h0", name="near")
    where = ShuffleId(-1), Generation(0), -1, ref.host, ref.store
    stand.end(reader, FetchFailed(*where, "timeout", "", ref))
    assert stand.core.blocks.holding(node, 0) is not None, "nothing is dropped"
    assert stand.one(0).executor == "near"
    stand.run(job)
    assert stand.finished[job] is None
    assert not stand.noted("block_lost")


def test_NET_8_a_cached_block_that_nobody_can_read_is_computed_again() -> None:
    stand = Stand(executors=1, hosts=2)
    lineage = Lineage()
    node = lineage.persist(lineage.source(1))
    stand.submit(lineage, node)
    stand.succeed(stand.one(0), cached=(block(node, 0, "h0", "e0"),))
    stand.exit("e0")
    stand.add_executor("h1", name="far")
    job = stand.submit(lineage, lineage.map(node))
    stand.pass_time(4.0)
    tries = 0
    while (cached := stand.one(0).launch.cached) and (ref := cached[0].block) is not None:
        where = ShuffleId(-1), Generation(0), -1, ref.host, ref.store
        stand.end(stand.one(0), FetchFailed(*where, "refused", "", ref))
        stand.pass_time(6.0)
        tries += 1
        assert tries <= 3
    assert tries == 3
    stand.run(job)
    assert stand.finished[job] is None


def test_S29_answers_about_links_do_not_outlive_the_second_that_they_hold_for() -> None:
    """A link that stays cut for as long as jobs come and go keeps none of them in mind."""
    stand = Stand(executors=2)
    at_the_readers(stand)
    links = stand.core.links
    for second in range(20):
        now_s = 1000.0 + second
        links.failed(HostId("h0"), HostId("h1"), now_s)
        for stage in stand.core.dag.active.values():
            over = StageId(100 + second), HostId("h1")
            links._known[over] = ((), (), int(now_s)), True
            links.can_read(stage, HostId("h0"), now_s)
        links.sweep(now_s)
        assert links and len(links._known) <= 2 * len(stand.core.dag.active)
