"""A driver that dies and goes on: what of an earlier life counts, and what does not (DR, S24, S25)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from spark_ft.ids import ActionId, BlobId, Generation, HostId, Incarnation, JobId, NodeId, ShuffleId
from spark_ft.protocol.digests import digest_of_inputs, digest_of_outputs
from spark_ft.protocol.effects import FinishJob, Journal, Keep, Released, ResultLost
from spark_ft.protocol.journal import (
    ActionCancelled,
    ActionFinished,
    Dropped,
    GenerationBegun,
    Recovered,
    replay,
)
from spark_ft.protocol.messages import DropBlocks, DropShuffles, MapStatus, StoresServed, WorkerLost
from tests.builders import Launched, Lineage, Stand

A, B = ActionId(b"a" * 16), ActionId(b"b" * 16)
ON = Recovered(epoch=1)


class Life(Stand):
    """A driver's life whose executors leave manifests; ``next`` is the life after its death."""

    def __init__(self, before: Life | None = None, hosts: int = 2, known: Recovered | None = None) -> None:
        self.disk: list[MapStatus] = [] if before is None else list(before.disk)
        self.names = {} if before is None else dict(before.names)
        recovered = known or ON
        awaited = [] if before is None else [HostId(f"h{n}") for n in range(hosts)]
        super().__init__(executors=0, hosts=0, recovered=recovered, awaited=awaited)
        self.epoch = recovered.epoch
        if before is not None:
            self.journal, self.kept = list(before.journal), {a: dict(k) for a, k in before.kept.items()}
        self.hosts = hosts
        if before is None:
            self.hosts_come()

    def hosts_come(self, lost: Iterable[str] = ()) -> None:
        """Workers say what they have found, and each host gets an executor."""
        for number in range(self.hosts):
            host = f"h{number}"
            found = [] if host in lost else [status for status in self.disk if status.host == host]
            names = {(s.store, s.shuffle, self.names[s.store, s.shuffle]) for s in found}
            stores = {status.store for status in found}
            worker = f"worker-{self.epoch}-{host}"
            inherits = StoresServed((), tuple(found), tuple(stores), tuple(names))
            self.add_worker(host, worker, inherits)
            self.add_executor(host, worker, f"e{self.epoch}-{host}")

    def status(self, task: Launched, **fields: Any) -> MapStatus:
        read = [task.outputs[read.shuffle] for read in task.message.inputs]
        digests = (
            digest_of_outputs(each.fingerprint, each.generation, [s.checksum for s in each.statuses])
            for each in read
        )
        status = super().status(task, inputs=digest_of_inputs(digests), **fields)
        self.names[status.store, status.shuffle] = self.core.outputs[status.shuffle].fingerprint
        self.disk.append(status)
        return status

    def next(self, records: int | None = None, keep: bool = True, come: bool = True, **lost: Any) -> Life:
        """The driver has died; of its journal so many records are left."""
        results = {action: {p: row[1] for p, row in rows.items()} for action, rows in self.kept.items()}
        known = replay(self.journal[:records], Recovered(epoch=self.epoch, results=results if keep else {}))
        known.epoch += 1
        life = Life(self, self.hosts, known)
        if come:
            life.hosts_come(**lost)
        return life

    def begun(self) -> set[tuple[ShuffleId | None, int]]:
        """(shuffle or None, partition) of everything that was launched in this life."""
        outputs = [(task.message.output, task.partition) for task in self.launched.values()]
        return {(output.shuffle if output else None, partition) for output, partition in outputs}


def three_stages() -> tuple[Lineage, NodeId]:
    lineage = Lineage()
    first = lineage.reduce(lineage.map(lineage.source(4)), 4)
    return lineage, lineage.reduce(lineage.map(first), 4)


S0, S1 = ShuffleId(0), ShuffleId(1)
ALL = {(stage, partition) for stage in (S0, S1, None) for partition in range(4)}


@pytest.mark.parametrize("done", range(13))
def test_DR_1_S24_after_any_number_of_tasks_only_the_rest_is_run(done: int) -> None:
    lineage, target = three_stages()
    first = Life()
    job = first.submit(lineage, target, action=A)
    for _ in range(done):
        first.succeed(first.running()[0])
    assert (job in first.finished) == (done == 12)
    committed = {(s.shuffle, s.map_index) for s in first.disk}
    committed |= {(None, partition) for partition in first.kept.get(A, {})}
    assert len(committed) == done
    second = first.next()
    again = second.submit(lineage, target, action=A)
    if again not in second.finished:
        second.run(again)
    assert second.finished[again] is None and len(second.results[again]) == 4
    assert second.begun() == ALL - committed
    assert not second.begun() & committed


def test_DR_2_a_finished_action_is_answered_once_more_and_nothing_is_run() -> None:
    lineage, target = three_stages()
    first = Life()
    first.run(first.submit(lineage, target, action=A))
    second = first.next()
    job = second.submit(lineage, target, action=A)
    assert second.finished == {job: None} and not second.launched
    assert second.results[job] == first.results[JobId(0)]
    assert not second.journal[len(first.journal) :], "what is written needs not be written again"
    third = second.next()
    assert third.submit(lineage, target, action=A) in third.finished


def test_S24_an_answer_leaves_only_with_its_record_and_its_results_come_first() -> None:
    lineage = Lineage()
    stand = Life()
    job = stand.submit(lineage, lineage.source(1), action=A)
    stand.succeed(stand.running()[0])
    assert not [effect for effect in stand.effects if isinstance(effect, FinishJob)]
    kinds = [type(effect) for effect in stand.effects if isinstance(effect, (Keep, Journal))]
    assert kinds == [Keep, Journal]
    (journal,) = [effect for effect in stand.effects if isinstance(effect, Journal)]
    assert [type(record) for record in journal.records] == [ActionFinished]
    assert journal.guarded == (FinishJob(job, None),)


def test_without_a_journal_nothing_is_written() -> None:
    lineage, target = three_stages()
    stand = Stand(executors=2)
    stand.run(stand.submit(lineage, target))
    assert not stand.journal and not stand.kept


def test_a_lost_record_costs_a_recomputation_of_what_was_not_kept() -> None:
    lineage, target = three_stages()
    first = Life()
    first.run(first.submit(lineage, target, action=A))
    second = first.next(records=0)
    job = second.submit(lineage, target, action=A)
    assert job in second.finished and not second.begun(), "every single result was kept all the same"
    third = first.next(records=0, keep=False)
    job = third.submit(lineage, target, action=A)
    third.run(job)
    assert third.begun() == {(None, partition) for partition in range(4)}


def test_S25_outputs_that_a_lost_host_had_are_computed_again_and_what_is_equal_stays() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(9):
        first.succeed(first.running()[0])
    second = first.next(lost=["h0"])
    job = second.submit(lineage, target, action=A)
    second.run(job)
    lost = {(s.shuffle, s.map_index) for s in first.disk if s.host == "h0"}
    assert lost and lost <= second.begun()
    kept = {(s.shuffle, s.map_index) for s in first.disk if s.host == "h1"}
    assert not second.begun() & kept
    assert second.kinds()["rollback"] == 0


def test_BL_5_what_was_built_from_lost_outputs_that_come_out_different_is_rolled_back() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(6):  # all of the first shuffle, half of the second
        first.succeed(first.running()[0])
    second = first.next(lost=["h0"])
    for index in range(4):
        second.checksums[S0, index] = 77 + index  # its functions are not deterministic
    job = second.submit(lineage, target, action=A)
    adopted = second.noted("outputs_adopted")
    assert [note["shuffle"] for note in adopted] == [S0, S1]
    second.run(job)
    assert second.kinds()["rollback"] == 1
    assert second.core.outputs[S1].generation == 1 and second.core.outputs[S0].generation == 0
    assert {(S1, index) for index in range(4)} <= second.begun()
    assert [r for r in second.journal if isinstance(r, GenerationBegun)] == [
        GenerationBegun(second.core.outputs[S1].fingerprint, Generation(1))
    ]
    third = second.next()  # outputs of both generations lie there: those of the older one are void
    job = third.submit(lineage, target, action=A)
    assert job in third.finished and third.core.outputs[S1].generation == 1


def test_BL_5_a_kept_result_of_other_data_is_not_used() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(10):  # two results are kept
        first.succeed(first.running()[0])
    second = first.next()
    second.kept[A] = {p: (row[0], row[1] ^ 2, *row[2:]) for p, row in second.kept[A].items()}
    third = second.next()
    job = third.submit(lineage, target, action=A)
    third.run(job)
    assert third.begun() == {(None, partition) for partition in range(4)}


def test_two_outputs_of_one_map_that_differ_are_both_passed_over() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(3):
        first.succeed(first.running()[0])
    rival = replace(first.disk[0], host=HostId("h1"), store="e1-h1", checksum=5)
    first.disk.append(rival)
    first.names["e1-h1", S0] = first.names["e1-h0", S0]
    second = first.next()
    job = second.submit(lineage, target, action=A)
    second.run(job)
    assert second.begun() == ALL and second.kinds()["outputs_passed_over"] == 1


def test_an_output_of_an_attempt_that_had_read_other_data_is_passed_over() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(6):
        first.succeed(first.running()[0])
    assert first.disk[5].shuffle == S1
    first.disk[5] = replace(first.disk[5], inputs=first.disk[5].inputs ^ 2)
    second = first.next()
    job = second.submit(lineage, target, action=A)
    second.run(job)
    assert (S1, first.disk[5].map_index) in second.begun()
    assert (S1, first.disk[4].map_index) not in second.begun()
    first.disk = [status for status in first.disk if status.shuffle == S1]
    unsure = first.next()  # what they should have read is not there to compare with
    job = unsure.submit(lineage, target, action=A)
    assert unsure.kinds()["outputs_adopted"] == 0
    unsure.run(job)
    assert {(S1, index) for index in range(4)} <= unsure.begun()


def test_S7_what_lies_on_a_host_that_is_lost_since_is_not_adopted() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(4):
        first.succeed(first.running()[0])
    second = first.next()
    second.tell("manager-1", WorkerLost(Incarnation("worker-2-h0"), "gone"))
    second.pass_time(second.settings.worker_grace_s + 0.5)
    job = second.submit(lineage, target, action=A)
    second.run(job)
    lost = {(s.shuffle, s.map_index) for s in first.disk if s.host == "h0"}
    assert second.begun() == lost | {(stage, index) for stage in (S1, None) for index in range(4)}


def test_jobs_wait_until_every_host_of_before_has_spoken_but_not_for_ever() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(4):
        first.succeed(first.running()[0])
    second = first.next(come=False)
    job = second.submit(lineage, target, action=A)
    assert second.kinds()["job_start"] == 0
    second.hosts = 1
    second.hosts_come()
    second.pass_time(second.settings.driver_grace_s - 1)
    assert second.kinds()["job_start"] == 0 and not second.launched
    second.pass_time(2)
    assert second.kinds()["job_start"] == 1
    second.run(job)
    there = {(s.shuffle, s.map_index) for s in first.disk if s.host == "h0"}
    assert there and not second.begun() & there


def test_TK_16_a_job_that_waits_can_be_cancelled_or_given_up() -> None:
    lineage, target = three_stages()
    second = Life().next(come=False)
    first, other = (second.submit(lineage, target, action=action) for action in (A, B))
    second.cancel(first)
    assert second.failure(first).condition == "JOB_CANCELLED"
    assert second.journal == [ActionCancelled(A, second.failure(first).text)]
    second.do(Released(blobs=(BlobId(other),)))
    second.hosts_come()
    assert not second.launched and second.core.resume.queue == []


def test_DR_15_a_cancelled_action_goes_on_from_what_is_finished() -> None:
    lineage, target = three_stages()
    first = Life()
    job = first.submit(lineage, target, action=A)
    for _ in range(9):
        first.succeed(first.running()[0])
    first.cancel(job)
    second = first.next()
    job = second.submit(lineage, target, action=A)
    second.run(job)
    assert second.begun() == {(None, partition) for partition in range(1, 4)}


def test_DR_13_accumulators_get_the_same_in_every_life() -> None:
    lineage, target = three_stages()
    updates = {partition: ((7, b"%d" % partition),) for partition in range(4)}

    def go(life: Life, tasks: int) -> None:
        for _ in range(tasks):
            task = life.running()[0]
            accums = updates[task.partition] if not task.is_map or task.message.output.shuffle == S0 else ()
            if task.is_map:
                life.end(task, replace(life.success(task), output=life.status(task, accums=accums)))
            else:
                life.end(task, life.success(task), accums=accums)

    whole = sorted([*updates.values(), *updates.values()])
    for done in range(13):
        first = Life()
        first.submit(lineage, target, action=A)
        go(first, done)
        second = first.next()
        job = second.submit(lineage, target, action=A)
        go(second, 12 - done if done < 12 else 0)
        assert second.finished == {job: None}
        assert sorted(second.accums) == whole
        third = second.next()
        job = third.submit(lineage, target, action=A)
        assert third.finished == {job: None} and sorted(third.accums) == whole
        later = third.submit(lineage, target, action=B)  # over the same shuffles: nothing is merged again
        third.run(later)
        assert sorted(third.accums) == whole


def test_a_kept_result_that_cannot_be_read_is_computed_again_with_its_updates() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(11):
        first.succeed(first.running()[0])
    second = first.next()
    job = second.submit(lineage, target, action=A)
    second.results[job].pop(0)
    second.do(ResultLost(job, 0, "damaged", unheard=True))
    while job not in second.finished:
        second.succeed(second.running()[0], accums=((1, b"x"),))
    assert second.begun() == {(None, 0), (None, 3)}
    assert second.accums == [((1, b"x"),)] * 2


def test_an_answer_that_cannot_be_read_any_more_is_computed_anew_as_a_whole() -> None:
    lineage, target = three_stages()
    first = Life()
    first.run(first.submit(lineage, target, action=A))
    second = first.next()
    job = second.submit(lineage, target, action=A)
    del second.finished[job]
    second.do(ResultLost(job, 2, "damaged", unheard=True))
    assert second.withdrawn[job] == 1
    second.run(job)
    assert second.begun() == {(None, partition) for partition in range(4)}
    assert [type(record) for record in second.journal] == [ActionFinished, ActionFinished]


def test_BL_15_data_is_dropped_only_after_its_record() -> None:
    lineage, target = three_stages()
    stand = Life()
    job = stand.submit(lineage, target, action=A)
    stand.run(job)
    stand.do(Released(blobs=(BlobId(job),)))
    stand.do(Released(shuffles=(S0, S1)))
    (journal,) = [effect for effect in stand.effects if isinstance(effect, Journal)]
    assert journal.records == (Dropped(tuple(stand.core.app and [bytes(15) + b"\0", bytes(15) + b"\1"])),)
    words = {type(effect.message) for effect in journal.guarded}
    assert words == {DropShuffles, DropBlocks}
    outside = [e for e in stand.effects if getattr(e, "message", None) and type(e.message) in words]
    assert not outside


@pytest.mark.parametrize("tasks", (4, 2))
def test_BL_12_outputs_over_a_persisted_node_are_adopted_whole_or_not_at_all(tasks: int) -> None:
    lineage = Lineage()
    kept = lineage.persist(lineage.source(4))
    target = lineage.reduce(lineage.map(kept), 2)
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(tasks):
        first.succeed(first.running()[0])
    second = first.next()
    second.run(second.submit(lineage, target, action=A))
    maps = {place for place in second.begun() if place[0] is not None}
    assert maps == (set() if tasks == 4 else {(S0, index) for index in range(4)})
    assert not second.noted("rollback")


def test_BL_12_results_over_a_persisted_node_are_kept_for_a_whole_answer_only() -> None:
    lineage = Lineage()
    target = lineage.map(lineage.persist(lineage.source(4)))
    first = Life()
    first.submit(lineage, target, action=A)
    for _ in range(3):
        first.succeed(first.running()[0])
    second = first.next()
    job = second.submit(lineage, target, action=A)
    second.run(job)
    assert second.begun() == {(None, partition) for partition in range(4)}
    third = second.next()
    assert third.submit(lineage, target, action=A) in third.finished


def test_BR_1_of_a_gang_nothing_is_adopted_but_all() -> None:
    lineage = Lineage()
    target = lineage.reduce(lineage.barrier(lineage.source(2)), 2)
    first = Life()
    first.submit(lineage, target, action=A)
    first.succeed(first.running()[0])
    second = first.next()
    job = second.submit(lineage, target, action=A)
    second.run(job)
    assert {(S0, 0), (S0, 1)} <= second.begun() and second.core.outputs[S0].generation == 0


def test_BL_12_not_into_a_job_that_computes_the_persisted_node_again_itself() -> None:
    lineage = Lineage()
    kept = lineage.persist(lineage.source(2))
    reduced = lineage.reduce(lineage.map(kept), 2)
    first = Life()
    first.run(first.submit(lineage, reduced, action=A))
    second = first.next()
    both = lineage.zip(reduced, kept)
    job = second.submit(lineage, both, action=B)
    second.run(job)
    assert {(S0, 0), (S0, 1)} <= second.begun() and second.core.outputs[S0].generation == 1


def test_attempts_of_two_lives_never_share_a_number() -> None:
    lineage, target = three_stages()
    first = Life()
    first.submit(lineage, target, action=A)
    second = first.next()
    second.submit(lineage, target, action=A)
    assert min(second.launched) > 1 << 39 > max(first.launched)


def test_S6_a_job_of_an_action_of_several_is_answered_only_over_the_same_data() -> None:
    lineage, target = three_stages()
    first = Life()
    job = first.submit(lineage, target, [0, 1], action=A, scope=3)
    first.run(job)
    same = first.next()
    assert same.submit(lineage, target, [0, 1], action=A, scope=3) in same.finished
    other = first.next(lost=["h0"])
    for index in range(4):
        other.checksums[S1, index] = 50 + index
    job = other.submit(lineage, target, [0, 1], action=A, scope=3)
    assert job not in other.finished
    other.run(job)
    assert {(None, 0), (None, 1)} <= other.begun()
