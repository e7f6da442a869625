"""SchedulerCore: what runs where, what is lost, what is done again.  It sees shapes, never functions.

    events ──> liveness   who is there                  ┐
               ends       how attempts ended, and blame │   at the end of every turn
               recovery   what that costs               ├──> dag.replan ──> placement.fill ──> effects
               dag        jobs, stages, tasks           │
               releases   what may go                   │
               copies     what lies on several hosts    │
               departures who has been asked to leave   ┘

The rules it keeps (docs/fault-model.md counts them S1 to S35; each module names its share):

  S1-S4    results are delivered at most once, completely, and never after a job's one end
  S5, S6   a launched task's inputs are complete, each of the generation that is current
  S7       what counts as available lies on a host that is not lost
  S8, S9   only a listed attempt, told of by the incarnation that runs it, changes anything
  S10-S13  one normal and one speculative attempt a task; slots add up; nothing goes to the dead
  S14-S16  only blame on the task is counted; only what is missing is computed
  S17-S20  rollback takes everything along; generations grow; accumulator updates merge once
  S22      a cancelled job launches nothing more; what it shares goes on for others
  S28-S30  indices agree; nothing of an ended job is left; loss is declared later than the lease ends

``check_invariants`` asserts them; tests and simulations call it after every event.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from spark_ft.ids import AppId, HostId, Incarnation, JobId
from spark_ft.protocol.effects import (
    CancelJobs,
    ClosePeer,
    Decommission,
    Effect,
    EndWorker,
    Event,
    JobFailure,
    JobSubmitted,
    PeerGone,
    PeerHeard,
    PeerSilent,
    Received,
    Released,
    ResourcesGranted,
    ResultLost,
    Stopping,
    Tick,
)
from spark_ft.protocol.journal import Recovered
from spark_ft.protocol.messages import (
    AppRegistered,
    BarrierSync,
    BlobWanted,
    CopyMade,
    ExecutorBeat,
    ExecutorExited,
    ExecutorHello,
    ExecutorSpawned,
    ExecutorStacks,
    ExecutorStopped,
    ExecutorsUnavailable,
    Goodbye,
    Leaving,
    Message,
    StoresServed,
    TaskUpdates,
    WorkerBeat,
    WorkerHello,
    WorkerLost,
)
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.barrier import Gangs
from spark_ft.scheduler.cached import CachedBlocks
from spark_ft.scheduler.copies import Copies
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.departures import Departures
from spark_ft.scheduler.detours import Detours
from spark_ft.scheduler.ends import Ends
from spark_ft.scheduler.exclusion import Exclusion
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.granter import Granter
from spark_ft.scheduler.health import Health
from spark_ft.scheduler.invariants import check, check_idle
from spark_ft.scheduler.ledger import Ledger
from spark_ft.scheduler.links import Links
from spark_ft.scheduler.liveness import Liveness
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.placement import Placement
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.releases import Releases
from spark_ft.scheduler.resume import Resumption
from spark_ft.scheduler.stalls import Stalls
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_SWEEP_S = 0.5  # and shorter where little lies between a lease's end and the bound of its loss
_ATTEMPT_BITS = 40  # of a TaskId; above them stands the driver's epoch, so that none is used again
_STALL_S = 2.0  # a wakeup that comes so late means that this process was not running


class SchedulerCore:
    """The scheduler of one application.  ``versions`` are what an executor's hello must match."""

    def __init__(
        self,
        settings: Settings,
        me: Incarnation,
        app: AppId,
        versions: Mapping[str, str] | None = None,
        hosts: Mapping[HostId, str] | None = None,
        recovered: Recovered | None = None,
        awaited: Iterable[HostId] = (),
    ) -> None:
        self.settings, self.me, self.app = settings, me, app
        known = recovered or Recovered(epoch=1)
        self.turn = turn = Turn()
        self.executors = Executors(settings)
        self.outputs = MapOutputTracker()
        self.blocks = CachedBlocks()
        self.health = Health()
        self.attempts = Attempts(turn, self.executors, (known.epoch - 1) << _ATTEMPT_BITS)
        self.ledger = ledger = Ledger(turn, self.outputs, recovered is not None)
        self.dag = Dag(settings, turn, self.executors, self.attempts, self.outputs, self.blocks, ledger)
        self.links = Links(self.executors, self.outputs)
        self.recovery = Recovery(
            turn, self.executors, self.attempts, self.outputs, self.blocks, self.health, self.dag, ledger
        )
        self.resume = Resumption(settings, turn, self.outputs, self.recovery, ledger, known, awaited)
        self.copies = Copies(
            settings, turn, self.executors, self.outputs, self.blocks, self.health, self.links,
            self.recovery, me,
        )  # fmt: skip
        self.exclusion = Exclusion(settings, turn, self.executors, self.dag)
        detours = Detours(turn, self.executors, self.links, self.copies)
        self.ends = Ends(
            settings, turn, self.executors, self.attempts, self.outputs, self.blocks, self.health,
            self.dag, self.recovery, self.copies, detours, self.exclusion, ledger,
        )  # fmt: skip
        self.liveness = Liveness(
            settings, versions or {}, turn, self.executors, self.attempts, self.blocks, self.dag,
            self.recovery, self.copies, self.exclusion, self.ends,
        )  # fmt: skip
        self.granter = Granter(turn)
        self.stalls = Stalls(settings, turn, self.executors, self.attempts, self.dag, self.ends)
        self.departures = Departures(settings, turn, self.executors, self.attempts, self.copies)
        self.gangs = Gangs(settings, turn, self.executors, self.attempts, self.dag, self.recovery)
        self.releases = Releases(
            turn, self.executors, self.outputs, self.blocks, self.health, self.dag, ledger
        )
        self.placement = Placement(
            settings, turn, self.executors, self.attempts, self.outputs, self.blocks, self.health,
            self.links, self.dag,
        )  # fmt: skip
        self.stopping = False
        self._every_s = min(_SWEEP_S, (settings.lost_after_s - settings.lease_s) / 4)
        self._stalled_s = 0.0  # how long the driver has been stalled in all
        self._last_s: float | None = None  # the host's clock at the last event
        self._due_s: float | None = None  # when a wakeup was asked for, on the host's clock
        self._sweep_s = 0.0  # awake time of the next sweep
        self.learn_hosts(hosts or {})

    def learn_hosts(self, hosts: Mapping[HostId, str]) -> None:
        """Tell executors where block servers are that no worker announces: the driver's own.

        Before the first event only; executors hear of it in their welcome.
        """
        self.executors.addresses.update(hosts)

    # --- The one way in --------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """The one way this core's state changes."""
        self._wake(now_s)
        match event:
            case Received(sender, message):
                self._received(sender, message)
            case JobSubmitted():
                self._submitted(event)
            case Tick():
                pass
            case CancelJobs():
                self._cancel(event)
            case Released():
                self.resume.taken(lambda held: held.blob in event.blobs)  # nobody waits for these any more
                self.releases.released(event)
            case ResultLost():
                self.dag.result_lost(event)
            case PeerGone() | PeerSilent() | PeerHeard():
                self._peer(event)
            case ResourcesGranted(expected, manager):
                self.liveness.wanted = expected
                self.granter.named(manager)
            case Decommission(host, within_s):
                self.departures.ask(host, within_s)
            case Stopping():
                self._stop()
            case _:
                self.turn.note("event_not_for_scheduler", event=type(event).__name__)
        if self.turn.now_s >= self._sweep_s:
            self._sweep()
        self._replan()
        if self.dag.unpinned:
            self.releases.settle()
        if not self.stopping:
            self.placement.fill()
            if self.copies.lacking or self.copies.look_again or self.recovery.places_lost:
                self.copies.fill()
            if self.executors.leaving:
                self.departures.settle()
        self._due_s = self._wakeup()
        return self.turn.taken()

    def _replan(self) -> None:
        if self.ledger.is_on:
            for event in self.resume.ready() if self.resume.queue else ():
                self._submit(event)
            if self.dag.completed:
                self.dag.completed = False
                self.resume.verify()
        self.dag.replan()
        while self.dag.broken or self.dag.scopes.spoilt:
            self.dag.end_spoilt()
            self.gangs.mend()
            self.dag.replan()
        if self.gangs.breaks or self.gangs.passed or self.gangs.syncs:
            self.gangs.tidy()

    def wakeup_s(self) -> float | None:
        """When a Tick is wanted if nothing else happens, on the clock of ``handle``."""
        return self._due_s

    def _wakeup(self) -> float | None:
        executors = self.executors
        people = executors.live or executors.workers or executors.orphaned
        waiting = people or self.dag.jobs or self.resume.queue
        due_s = self._sweep_s if waiting and not self.stopping else None
        if self.placement.wakeup_s is not None:
            due_s = self.placement.wakeup_s if due_s is None else min(due_s, self.placement.wakeup_s)
        return None if due_s is None else due_s + self._stalled_s

    def _wake(self, now_s: float) -> None:
        """Set the turn's time.  A wakeup that is late by seconds means the driver itself was stalled:
        that time did not pass for anyone's silence (CLK-4)."""
        last_s = now_s if self._last_s is None else self._last_s
        now_s = max(now_s, last_s)
        self._last_s = now_s
        if self._due_s is not None and now_s - max(self._due_s, last_s) > _STALL_S:
            stall_s = now_s - max(self._due_s, last_s)
            self._stalled_s += stall_s
            self.turn.note("driver_stalled", seconds=round(stall_s, 3))
        self.turn.now_s = now_s - self._stalled_s
        self._due_s = now_s + self._every_s  # should this turn raise, the next one is not at once

    def _peer(self, event: PeerGone | PeerSilent | PeerHeard) -> None:
        match event:
            case PeerGone(peer, why):
                self.granter.lost(peer, why, ended=True)
                self.liveness.peer_gone(peer, why)
            case PeerSilent(peer, silent_s):  # executors and workers have leases, which say more
                self.granter.lost(peer, f"nothing was heard of it for {silent_s:.1f} s")
            case PeerHeard(peer):
                self.granter.heard(peer)

    # --- Messages ---------------------------------------------------------------------------

    def _received(self, sender: Incarnation, message: Message) -> None:
        if sender in self.executors.fenced:
            self.turn.note("message_from_fenced", sender=sender, message=type(message).__name__)
            return
        executor = self.executors.live.get(sender)
        if executor is not None:
            executor.heard_s = self.turn.now_s
            self._from_executor(executor, message)
            return
        worker = self.executors.workers.get(sender)
        if worker is not None:
            worker.heard_s = self.turn.now_s
        match message:
            case ExecutorHello():
                self.liveness.executor_hello(sender, message)
            case TaskUpdates():
                for end in message.ended:
                    self.turn.note("stale_task_end", task=end.task, executor=sender)
            case ExecutorExited():
                self.liveness.executor_exited(message)
            case _:
                self._from_worker_or_manager(sender, message)

    def _from_executor(self, executor: ExecutorState, message: Message) -> None:
        match message:
            case TaskUpdates(started, ended):
                for task in started:
                    self.ends.started(executor, task)
                for end in ended:
                    self.ends.ended(executor, end)
            case ExecutorBeat():
                self.liveness.executor_beat(executor, message)
                self.stalls.beat(executor, message)
            case ExecutorHello():
                self.liveness.executor_hello(executor.id, message)
            case CopyMade():
                self.copies.made(executor.id, message)
            case Leaving():
                self.departures.leaves(executor, message)
            case BarrierSync():
                self.gangs.sync(executor, message)
            case BlobWanted(blob):
                executor.blobs.discard(blob)
                self.placement.send_blob(executor, blob)
            case Goodbye(why):
                self.liveness.peer_gone(executor.id, why)
            case _:
                self.turn.note(
                    "message_not_for_scheduler", sender=executor.id, message=type(message).__name__
                )

    def _from_worker_or_manager(self, sender: Incarnation, message: Message) -> None:
        match message:
            case WorkerBeat():
                self.liveness.worker_beat(message)
            case WorkerHello():
                self.liveness.worker_hello(sender, message)
            case CopyMade():
                self.copies.made(sender, message)
            case Leaving() if (leaver := self.executors.workers.get(sender)) is not None:
                self.departures.leaves(leaver, message)
            case StoresServed():
                self.liveness.succession.served(sender, message)
                self.releases.tell_again(sender)
                if (server := self.executors.workers.get(sender)) is not None:
                    self.resume.served(server.host, message)
            case ExecutorSpawned(executor, pid):
                self.turn.note("executor_spawned", executor=executor, pid=pid)
            case ExecutorStacks(executor, text):
                self.stalls.stacks(executor, text)
            case ExecutorStopped(executor, stopped):
                self.liveness.executor_stopped(executor, stopped)
            case ExecutorsUnavailable(tries, stderr):
                self.liveness.executors_unavailable(sender, tries, stderr)
            case AppRegistered(granted):
                self.granter.heard(sender)
                self.turn.note("app_registered", granted=dict(granted))
            case WorkerLost(id, why):
                worker = self.executors.workers.get(id)
                if worker is not None:
                    self.liveness.lose_worker(worker, why)
                elif id not in self.executors.fenced:
                    # Its hello may still be under way: who gave it up may not live to tell it so itself.
                    self.executors.fence(id)
                    self.turn.out += (ClosePeer(id, True, why), EndWorker(id, why))
            case Goodbye(why):
                self.granter.lost(sender, why, ended=True)
                self.liveness.peer_gone(sender, why)
            case _:
                self.turn.note("message_not_for_scheduler", sender=sender, message=type(message).__name__)

    # --- Jobs -------------------------------------------------------------------------------

    def _submitted(self, event: JobSubmitted) -> None:
        if not self.resume.holds(event):
            self._submit(event)

    def _submit(self, event: JobSubmitted) -> None:
        self.releases.wanted_again(event.shape)
        prior, adopted = self.resume.prepare(event)
        job = self.dag.submit(event, prior)
        for output in adopted:
            self.copies.output_added(output)
        self.resume.verify_persisted(event.shape)
        if job.id in self.dag.jobs and self.stopping:
            self.dag.end_job(job, JobFailure("JOB_CANCELLED", "the application was stopped"))
        self.liveness.look_for_resources()

    def _cancel(self, event: CancelJobs) -> None:
        everything = event.job is None and event.group is None and event.tag is None
        failure = JobFailure("JOB_CANCELLED", event.reason)

        def is_meant(job: JobId, group: str | None, tags: Container[str]) -> bool:
            named = job == event.job or (event.group is not None and group == event.group)
            return everything or named or event.tag in tags

        for waiting in self.resume.taken(lambda each: is_meant(each.job, each.group, each.tags)):
            self._submit(waiting)
        for job in [*self.dag.jobs.values(), *self.dag.held.values()]:
            if not is_meant(job.id, job.group, job.tags):
                continue
            if job.id in self.dag.jobs:
                self.dag.end_job(job, failure)
            else:
                job.cancelled = failure

    def _stop(self) -> None:
        self.stopping = True
        self._cancel(CancelJobs(reason="the application was stopped"))
        self.dag.held.clear()

    # --- Time -------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self.liveness.sweep()
        self.stalls.sweep()
        self.exclusion.sweep()
        self.gangs.sweep()
        self.copies.sweep()
        self.links.sweep(self.turn.now_s)
        slow_possible = False
        if self.settings.speculation:
            for stage in self.dag.active.values():
                assert stage.tasks is not None
                slow_possible |= not stage.tree.barrier and stage.tasks.find_slow(
                    self.settings, self.turn.now_s
                )
        self.departures.sweep()
        every_s = self.settings.speculation_interval_s if slow_possible else self._every_s
        self._sweep_s = self.turn.now_s + every_s

    # --- For tests and simulation -----------------------------------------------------------

    def check_invariants(self) -> None:
        """Assert everything that must hold between two events; linear in all state."""
        check(self)

    def assert_idle(self) -> None:
        """Nothing of any job is left: no job, no attempt, no active stage, no index entry (S28)."""
        check_idle(self)
