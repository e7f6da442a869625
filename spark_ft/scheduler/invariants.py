"""What must hold between any two events: the list at the head of core.py, as assertions.

Linear in all state, so it is for tests and simulations.  The numbers are those of docs/fault-model.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_ft.scheduler.executors import DEPTH_MAX
from spark_ft.scheduler.taskset import Attempt, Mode, State

if TYPE_CHECKING:
    from spark_ft.protocol.messages import MapStatus
    from spark_ft.scheduler.core import SchedulerCore
    from spark_ft.scheduler.stage import Stage


def check(core: SchedulerCore) -> None:
    """Assert every invariant."""
    _check_jobs(core)
    for stage in core.dag.active.values():
        _check_stage(core, stage)
    _check_inactive(core)
    _check_executors(core)
    _check_outputs(core)
    _check_blocks(core)
    core.copies.check()
    core.resume.check()
    leaving = {executor.id for executor in core.executors.live.values() if executor.leaving is not None}
    leaving |= {worker.id for worker in core.executors.workers.values() if worker.leaving is not None}
    assert core.executors.leaving.keys() == leaving, "S28"
    for leaver in core.executors.leaving.values():
        notice = leaver.leaving
        assert notice is not None
        kept = notice.released or core.departures.is_needed(leaver, notice)
        assert kept or core.stopping, "EX-13: who has nothing left to lose may leave"
    releases, dag = core.releases, core.dag
    assert all(map(dag.needs_shuffle, releases.shuffles)), "L11: a shuffle that nothing needs is kept"
    assert all(map(dag.needs_node, releases.nodes)), "L11: a persisted node that nothing needs is kept"
    assert all(map(dag.needs_blob, releases.blobs)), "L11: functions that nothing needs are kept"


def _check_jobs(core: SchedulerCore) -> None:
    dag = core.dag
    assert not dag.jobs.keys() & dag.held.keys()
    for job in dag.jobs.values():
        assert job.delivered < job.partitions, "S2: a job with every result delivered has not ended"
        assert job.result.tasks is not None, "L3: a live job's result stage is not active"
        for id, stage in job.active.items():
            assert dag.active.get(id) is stage and stage.jobs.get(job.id) is job, "S28"
        pending = {p for p, task in job.result.tasks.tasks.items() if task.state is not State.DONE}
        assert pending == job.partitions - job.delivered, "S2: what is missing is what is being computed"
        assert not job.tainted, "S17: results built on what was rolled back are held as if they counted"
        assert dag.scopes.refusal(job) is None, "S6: a job sees other data than an earlier one of its action"
        for shuffle, generation in job.sources.items():
            assert core.outputs[shuffle].generation == generation, (
                "S17: a result of a generation that is gone"
            )
    for job in dag.held.values():
        assert job.delivered == job.partitions and not job.active, "S3"


def _check_stage(core: SchedulerCore, stage: Stage) -> None:
    tasks = stage.tasks
    assert tasks is not None and stage.jobs, "S11, S22: an active stage has tasks and somebody who wants it"
    for id, job in stage.jobs.items():
        assert core.dag.jobs.get(id) is job and job.active.get(stage.id) is stage, "S28"
    lacking = [shuffle for shuffle in stage.tree.parents if not core.outputs[shuffle].complete]
    assert tasks.mode is not Mode.OPEN or not lacking, "S5: tasks may be launched although parents lack"
    if stage.shuffle is not None:
        missing = set(core.outputs[stage.shuffle].lacking())
        undone = {p for p, task in tasks.tasks.items() if task.state is not State.DONE}
        assert missing == undone, "S16: exactly what is missing is computed"
    states = [task.state for task in tasks.tasks.values()]
    assert tasks.unfinished == sum(state is not State.DONE for state in states) > 0
    assert tasks.ready == states.count(State.READY)
    assert set(tasks.waiting) == {p for p, t in tasks.tasks.items() if t.state is State.WAITING}
    assert set(tasks.active) == {p for p, t in tasks.tasks.items() if t.state is State.RUNNING}
    assert tasks.running == sum(len(task.attempts) for task in tasks.tasks.values())
    if stage.tree.barrier and tasks.active:
        launched = {attempt.launched_s for task in tasks.active.values() for attempt in task.attempts}
        assert not tasks.waiting and not tasks.ready and len(launched) == 1, "S33: half a gang runs"
    for task in tasks.tasks.values():
        normal = sum(not attempt.speculative for attempt in task.attempts)
        assert normal <= 1 and len(task.attempts) - normal <= 1, "S10"
        assert (task.state is State.RUNNING) == bool(task.attempts), "S4, S10"
        for attempt in task.attempts:
            assert attempt.counts and attempt.executor.running.get(attempt.task_id) is attempt, "S9, S28"
        if task.trouble is not None:
            assert task.trouble.deaths <= core.settings.max_kills, "S15: the next one convicts"
            assert task.trouble.failures < core.settings.max_failures, "S14: a used-up budget ends the job"
    if tasks.mode is Mode.CLOSED:
        assert not tasks.ready
        stuck = tasks.waiting and not tasks.active and not stage.awaits
        assert not stuck, "L3: nobody works for a stage that waits"
    if tasks.mode is Mode.OPEN:
        assert not tasks.waiting, "L2: a task that could run is not offered to anyone"
    for shuffle, parent in stage.awaits.items():
        assert core.dag.map_stages[shuffle] is parent
        assert parent.tasks is not None and stage.jobs.keys() <= parent.jobs.keys(), "S22, L3"


def _check_inactive(core: SchedulerCore) -> None:
    dag = core.dag
    for shuffle, stage in dag.map_stages.items():
        assert stage.shuffle == shuffle and shuffle in core.outputs, "S28"
        if stage.id not in dag.active:
            assert stage.tasks is None and not stage.jobs and not stage.under_way and not stage.awaits, "S11"
    assert {outputs.shuffle for outputs in core.outputs} == set(dag.map_stages), "S28"
    readers = {(shuffle, stage.id) for stage in dag.active.values() for shuffle in stage.tree.parents}
    assert readers == {(shuffle, id) for shuffle, found in dag.readers.items() for id in found}, "S28"
    assert dag.delayed.keys() <= dag.active.keys()


def _check_executors(core: SchedulerCore) -> None:
    executors = core.executors
    assert not executors.live.keys() & executors.fenced.keys(), "S8"
    assert not executors.workers.keys() & executors.fenced.keys(), "S8"
    on: dict[str, int] = {}
    everywhere: dict[int, Attempt] = {}
    for executor in executors.live.values():
        on[executor.host] = on.get(executor.host, 0) + 1
        worker = executor.worker
        assert worker is executors.workers.get(worker.id) or (
            worker is executors.orphaned.get(executor.host) and not executor.accepting
        ), "S13: whose is it?"
        assert executor.worker.executors[executor.id] is executor, "S28"
        room = executor.slots - len(executor.running)
        assert room >= -max(DEPTH_MAX, core.settings.prefetch_tasks), "S12"
        assert (executor.id in executors.idle) == (executor.accepting and room > 0), "S12"
        if executor.id in executors.roomy:
            assert executor.accepting and room + executor.depth > 0, "S12"
        else:
            assert not executor.accepting or not executor.depth or room + executor.depth // 2 < 0, "S12"
        notice = executor.leaving or executor.worker.leaving
        if executor.excluded is not None:
            assert executor.host in core.exclusion.hosts or (
                len(core.exclusion.evidence.get(executor.id, ())) >= core.settings.exclude_app_tasks
            ), "S31: excluded without evidence"
        if executor.reserved is not None:
            assert list(executor.running) == [executor.reserved], "S15: a suspect has neighbours"
        for task_id, attempt in executor.running.items():
            assert notice is None or attempt.launched_s <= notice.since_s, "S13: launched where one leaves"
            assert attempt.executor is executor and attempt.task_id == task_id, "S28"
            assert attempt.counts == (attempt in attempt.task.attempts), "S9"
            assert attempt.counts or task_id in core.attempts.killing or executor.doomed, "L8: nobody ends it"
            _check_reads(core, attempt)
            everywhere[task_id] = attempt
    assert on == executors.on_host
    assert core.exclusion.evidence.keys() <= executors.live.keys(), "S29"
    assert executors.slow == {id: e for id, e in executors.live.items() if e.slowness >= 2.0}, "S28"
    assert core.attempts.queued.keys() <= everywhere.keys(), "S13"
    assert core.attempts.killing.keys() <= everywhere.keys(), "S13"
    for worker in executors.workers.values():
        assert all(executors.live.get(id) is executor for id, executor in worker.executors.items()), "S28"


def _check_reads(core: SchedulerCore, attempt: Attempt) -> None:
    if attempt.counts:
        for shuffle, generation in attempt.reads:
            assert core.outputs[shuffle].generation == generation, "S6: what it reads was rolled back"


def _check_outputs(core: SchedulerCore) -> None:
    for outputs in core.outputs:
        assert outputs.missing == sum(status is None for status in outputs.statuses)
        for index, status in enumerate(outputs.statuses):
            if status is None:
                continue
            assert status.map_index == index and status.generation == outputs.generation, "S6"
            assert core.executors.host_is_live(status.host), "S7"
            assert status.store not in core.health.quarantined, "S7"
            assert outputs.checksums[index] == status.checksum, "S18"
            _check_places(core, outputs.locations(index))
        assert all(outputs.statuses[index] is not None for index in outputs.copies), "S28"
        assert all(source in core.outputs for source in outputs.sources), "S28"


def _check_places(core: SchedulerCore, places: tuple[MapStatus, ...]) -> None:
    first = places[0]
    assert len({place.host for place in places}) == len(places), "two copies on one host are one"
    for place in places:
        assert core.executors.host_is_live(place.host) and place.store not in core.health.quarantined, "S7"
        same = place.generation, place.map_index, place.attempt, place.checksum
        assert same == (first.generation, first.map_index, first.attempt, first.checksum), "S6, S18"


def _check_blocks(core: SchedulerCore) -> None:
    held = {
        (executor, (node, partition))
        for node, partitions in core.blocks.held.items()
        for partition, holding in partitions.items()
        for executor in holding.memory
    }
    assert held == {(executor, key) for executor, keys in core.blocks.of_executor.items() for key in keys}, (
        "S28"
    )
    assert all(executor in core.executors.live for executor, _ in held), "S7"
    disk = 0
    for partitions in core.blocks.held.values():
        for holding in partitions.values():
            assert holding.memory or holding.disk
            disk += len(holding.disk)
            assert all(core.executors.host_is_live(host) for host in holding.disk), "S7"
            stores = {block.block.store for block in holding.disk.values() if block.block is not None}
            assert stores.isdisjoint(core.health.quarantined), "S7: read from a store that was given up"
    assert disk == core.blocks.disk_count
    known = core.blocks.held.keys() | core.blocks.outlived
    assert all(node in known for node, _ in core.blocks.checksums), "S28"
    assert core.blocks.replication.keys() <= core.blocks.held.keys(), "S28"


def check_idle(core: SchedulerCore) -> None:
    """Assert that nothing of any job is left (S28, S29)."""
    dag = core.dag
    assert not dag.jobs and not dag.active and not dag.readers and not dag.delayed
    assert dag.scopes.is_idle(), "a scope that nobody has closed"
    assert not dag.held, "a job's stored results were never read, nor its functions released"
    assert not core.gangs.syncs and not core.gangs.passed and not core.gangs.breaks and not dag.broken
    assert not core.attempts.queued and not core.attempts.killing
    for executor in core.executors.live.values():
        assert not executor.running and not executor.purging
