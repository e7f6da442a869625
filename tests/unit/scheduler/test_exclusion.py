"""Executors on which tasks fail that succeed elsewhere are kept from tasks, and let in by a probe (EX-14)."""

from spark_ft.ids import Incarnation
from spark_ft.protocol.messages import HostError, Killed
from tests.builders import Launched, Lineage, Stand, in_memory


def of(stand: Stand, executor: str) -> list[Launched]:
    return [task for task in stand.running() if task.executor == executor]


def prove(stand: Stand, bad: str, count: int = 2, **settings: object) -> None:
    """So many tasks fail on ``bad`` and succeed elsewhere."""
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(12 * count))
    failed: set[int] = set()
    for _ in range(200):
        if job in stand.finished:
            break
        for task in list(stand.running()):
            if task.executor == bad and len(failed) < count and task.partition not in failed:
                failed.add(task.partition)
                stand.fail(task)
            elif task.task in stand.open:
                stand.succeed(task)
        stand.tick(0.1)
    assert stand.finished[job] is None and len(failed) == count


def is_excluded(stand: Stand, executor: str) -> bool:
    return stand.core.executors.live[executor].excluded is not None  # type: ignore[index]


def test_EX_14_two_tasks_that_failed_there_and_succeeded_elsewhere_exclude_an_executor() -> None:
    stand = Stand(executors=3, exclude_stage_tasks=9)
    prove(stand, "e0")
    (note,) = stand.noted("executor_excluded")
    assert note["executor"] == "e0" and len(note["evidence"]) == 2
    lineage = Lineage()
    stand.submit(lineage, lineage.source(6))
    assert not of(stand, "e0") and len(stand.running()) == 2


def test_EX_14_an_excluded_executor_is_let_in_by_one_probe_that_ends_well() -> None:
    stand = Stand(executors=2, prefetch_tasks=1, exclude_stage_tasks=9)
    prove(stand, "e0")
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(40))
    stand.pass_time(4.0)
    assert not of(stand, "e0")
    stand.pass_time(2.0)
    (probe,) = of(stand, "e0")
    stand.succeed(probe)
    assert not is_excluded(stand, "e0") and stand.noted("executor_readmitted")
    assert len(of(stand, "e0")) == 2, "as before"
    stand.run(job)


def test_EX_14_a_probe_that_fails_counts_against_nobodys_task_and_doubles_the_back_off() -> None:
    stand = Stand(executors=2, max_failures=1 + 1, exclude_stage_tasks=9)
    prove(stand, "e0")
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(40))
    stand.pass_time(5.5)
    for again_s in (10.0, 20.0):
        (probe,) = of(stand, "e0")
        stand.fail(probe)
        assert stand.noted("probe_failed")[-1]["again_s"] == again_s
        stand.pass_time(again_s - 1.0)
        assert not of(stand, "e0")
        stand.pass_time(1.5)
    assert job not in stand.finished
    stand.run(job)
    assert stand.finished[job] is None


def test_EX_14_a_program_that_fails_everywhere_excludes_nobody() -> None:
    lineage, stand = Lineage(), Stand(executors=3)
    job = stand.submit(lineage, lineage.source(6))
    while job not in stand.finished:
        stand.fail(stand.running()[0])
    assert stand.failure(job).condition == "TASK_FAILED" and not stand.core.exclusion.evidence


def test_EX_14_kills_full_disks_and_failed_fetches_are_no_evidence() -> None:
    stand = Stand(executors=2)
    for reason in (Killed("preempted"), HostError("STORAGE_FULL", "full", 1, 0)):
        lineage = Lineage()
        job = stand.submit(lineage, lineage.source(4))
        for task in [t for t in stand.running() if t.executor == "e0"]:
            stand.end(task, reason)
        stand.pass_time(6.0)
        stand.run(job)
    assert not stand.core.exclusion.evidence and not stand.noted("executor_excluded")


def test_EX_14_two_tasks_of_a_stage_that_failed_there_keep_the_rest_of_it_away() -> None:
    lineage, stand = Lineage(), Stand(executors=2, max_failures=9)
    stand.submit(lineage, lineage.source(40))
    for _ in range(2):
        (task,) = of(stand, "e0")
        stand.fail(task)
    assert not of(stand, "e0"), "another executor may have them"
    other = Lineage()
    stand.succeed(*stand.running())
    assert not of(stand, "e0")
    stand.submit(other, other.source(4))
    assert len(of(stand, "e0")) == 1, "other stages are not concerned"


def test_EX_14_a_host_of_two_excluded_executors_is_excluded_with_those_that_come() -> None:
    stand = Stand(executors=6, hosts=2, exclude_stage_tasks=9)
    prove(stand, "e0")
    prove(stand, "e2")
    (note,) = stand.noted("host_excluded")
    assert note["host"] == "h0" and is_excluded(stand, "e4")
    newcomer = stand.add_executor("h0")
    assert is_excluded(stand, newcomer) and not is_excluded(stand, "e1")
    lineage = Lineage()
    stand.submit(lineage, lineage.source(60))
    stand.pass_time(6.0)
    (probe,) = of(stand, newcomer)
    stand.succeed(probe)
    assert not is_excluded(stand, newcomer) and not is_excluded(stand, "e4"), "the host has proved well"
    assert is_excluded(stand, "e0"), "it has its own evidence against it"


def test_EX_14_when_all_are_excluded_they_are_probed_at_once_and_then_the_job_ends_by_name() -> None:
    stand = Stand(executors=2, max_failures=99, exclude_stage_tasks=9)
    prove(stand, "e0")
    stand.exit("e1")  # the only one that was well
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(4))
    stand.pass_time(0.5)
    (probe,) = of(stand, "e0")
    stand.fail(probe)
    stand.pass_time(11.0)
    failure = stand.failure(job)
    assert (
        failure.condition == "ALL_EXECUTORS_EXCLUDED"
        and "failed there and not elsewhere: ValueError" in failure.text
    )


def test_EX_14_BR_3_a_gang_puts_one_member_on_an_excluded_executor_the_probe() -> None:
    """Found by the simulator: seed 9800019."""
    stand = Stand(executors=2, slots=2, exclude_stage_tasks=9)
    prove(stand, "e0")
    stand.pass_time(6.0)
    lineage = Lineage()
    job = stand.submit(lineage, lineage.barrier(lineage.source(3)))
    assert sorted(task.executor for task in stand.running()) == ["e0", "e1", "e1"]
    stand.succeed(*of(stand, "e0"))
    assert not is_excluded(stand, "e0")
    stand.run(job)


def test_EX_14_BR_3_a_gang_that_would_need_more_of_it_than_a_probe_lacks_slots() -> None:
    stand = Stand(executors=2, slots=2, exclude_stage_tasks=9)
    prove(stand, "e0")
    stand.pass_time(6.0)
    lineage = Lineage()
    job = stand.submit(lineage, lineage.barrier(lineage.source(4)))
    assert not stand.running()
    stand.pass_time(12.0)
    assert stand.failure(job).condition == "BARRIER_NO_SLOTS"


def test_EX_14_switched_off_nobody_is_excluded() -> None:
    stand = Stand(executors=2, exclude_on_failure=False)
    prove(stand, "e0", 3)
    assert not stand.noted("executor_excluded")


def test_S31_evidence_stays_for_as_long_as_the_exclusion_that_rests_on_it() -> None:
    stand = Stand(
        executors=2, prefetch_tasks=2, exclude_stage_tasks=9, exclude_timeout_s=3.0, speculation=False,
        max_failures=4,
    )  # fmt: skip
    lineage = Lineage()
    job = stand.submit(lineage, lineage.source(6))
    first, second, third = of(stand, "e0")
    stand.fail(first)
    stand.fail(second)
    while not is_excluded(stand, "e0"):
        stand.succeed(next(task for task in of(stand, "e1")))
    stand.pass_time(3.5)
    stand.fail(third)  # it had begun before
    while job not in stand.finished:
        stand.succeed(next(task for task in stand.running() if task.executor == "e1"))
        stand.core.check_invariants()
    assert is_excluded(stand, "e0")


def test_EX_14_a_success_whose_output_is_refused_is_proof_as_good_as_any() -> None:
    """What the task kept in the cache is not what its other input was built from; it ran well though."""
    stand = Stand(executors=2)
    lineage = Lineage()
    below = lineage.persist(lineage.source(1))
    above = lineage.persist(lineage.map(below))
    stand.submit(lineage, above)
    stand.succeed(stand.one(0), cached=(in_memory(below, 0, checksum=10), in_memory(above, 0, checksum=20)))
    stand.submit(lineage, lineage.source(1))
    stand.succeed(stand.one(0), dropped=((below, 0),))
    stand.submit(lineage, lineage.reduce(lineage.zip(above, below), 1))
    bad = stand.one(0)
    stand.fail(bad)
    good = stand.one(0)
    assert good.executor != bad.executor
    stand.succeed(good, cached=(in_memory(below, 0, checksum=99), in_memory(above, 0, checksum=98)))
    assert stand.kinds()["output_refused"] == 1
    assert len(stand.core.exclusion.evidence[bad.executor]) == 1


def test_EX_14_what_only_one_executor_may_have_runs_there_though_others_have_failed_on_it() -> None:
    """Its input is indeterminate and lies in that memory alone (BL-12): nobody else could ever have it."""
    stand = Stand(executors=2, prefetch_tasks=0, exclude_stage_tasks=2)
    lineage = Lineage()
    node = lineage.persist(lineage.source(4))
    stand.run(stand.submit(lineage, node))
    for partition in range(4):
        stand.core.blocks.add(Incarnation("e0"), in_memory(node, partition, checksum=10 + partition))
    stand.core.blocks.indeterminate.add(node)
    job = stand.submit(lineage, lineage.map(node))
    for _ in range(2):
        (task,) = of(stand, "e0")
        stand.fail(task)
    assert stand.core.dag.active[task.message.stage].tasks.failed_on == {"e0": {0, 1}}  # type: ignore[union-attr]
    assert [task.partition for task in of(stand, "e0")] == [2]
    stand.run(job)
    assert stand.finished[job] is None
