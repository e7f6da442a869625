"""The safety invariants that a scheduler could break, checked at every step from events and effects alone.

The shadow keeps its own small account of what the driver has said and heard: attempts and who lives here,
map outputs and generations in outputs.py, what was delivered in answers.py.  Each check costs what the step
has touched; the ids are those of docs/fault-model.md.  It looks into the core in few places only: whether an
output that was told of has been registered, and what stands in its tables when a generation was rolled back
or somebody may leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from chaos.sim.account import Tried
from chaos.sim.answers import Answers
from chaos.sim.outputs import KnownOutputs
from chaos.sim.violation import ViolationError
from spark_ft.ids import HostId, Incarnation, JobId, ShuffleId, StageId, TaskId
from spark_ft.protocol.effects import (
    ClosePeer,
    DeliverResult,
    Effect,
    Event,
    FinishJob,
    JobSubmitted,
    MergeAccums,
    Note,
    PeerGone,
    Received,
    Released,
    Send,
    WithdrawResults,
)
from spark_ft.protocol.messages import (
    CopyMade,
    DropBlocks,
    DropShuffles,
    ExecutorExited,
    ExecutorHello,
    ExecutorStopped,
    ExecutorWelcome,
    Fenced,
    FetchFailed,
    HostError,
    KillExecutor,
    KillTask,
    LaunchTasks,
    MakeCopies,
    MapOutputs,
    MayLeave,
    Message,
    NotLoadable,
    StoresServed,
    Success,
    TaskEnd,
    TaskUpdates,
    UserError,
    WorkerBeat,
    WorkerHello,
)
from spark_ft.scheduler.core import SchedulerCore
from spark_ft.scheduler.executors import DEPTH_MAX

if TYPE_CHECKING:
    from chaos.sim.world import World


_SILENCE = ("silent", "stopped for too long", "told of no exit", "not hear")


class Shadow:
    """See the module."""

    def __init__(self, world: World, core: SchedulerCore) -> None:
        self._world, self._core = world, core
        self.outputs, self.answers = KnownOutputs(world, core, self), Answers(world, self)
        self.attempts: dict[TaskId, Tried] = {}
        self.live: dict[Incarnation, int] = {}  # executor -> slots
        self.fenced: set[Incarnation] = set()
        self.away: set[Incarnation] = set()  # doomed, or their link is gone: nothing is launched there
        self.stopped: set[Incarnation] = set()
        self.workers: dict[Incarnation, HostId] = {}
        self.awaited: set[HostId] = set()  # whose worker is gone, and which may find an heir
        self.failures: Counter[tuple[int, int, str]] = Counter()  # (stage, partition, kind of end)
        self.starts: Counter[tuple[str, int, int]] = Counter()  # (kind, stage, partition) launches
        self.empty_since_s: float | None = 0.0
        self.empty_longest_s = 0.0
        self._hello: dict[Incarnation, ExecutorHello] = {}
        self._running: dict[Incarnation, dict[TaskId, Tried]] = {}
        self._counting: dict[tuple[int, int], list[Tried]] = {}
        self._stages: dict[StageId, tuple[int, bool]] = {}  # (newest attempt, under way)
        self._begun: set[TaskId] = set()
        self._over: set[TaskId] = set()
        self._last_task = self._newest_task = -1  # of earlier turns; of all
        self._touched: dict[Incarnation, None] = {}
        self._at_note: dict[str, Callable[[Any], None]] = {
            "task_start": self._begins,
            "task_end": self._ends,
            "stage_start": self._stage_begins,
            "stage_end": self._stage_ends,
            "rollback": self.outputs.new_generation,
            "output_replaced": self.outputs.replaced,
            "worker_lost": self._worker_lost,
            "output_lost": self.outputs.output_lost,
            "store_quarantined": self.outputs.quarantined,
            "task_timeout": self._late,
            "executor_lost": self._executor_lost,
            "executor_cut_off": self._cut_off,
            "executor_excluded": lambda fields: self._world.excluded.excluded(fields),
            "probe_failed": lambda fields: self._world.excluded.probe_failed(fields),
            "executor_readmitted": lambda fields: self._world.excluded.readmitted(fields["executor"]),
            "executor_doomed": lambda fields: self.away.add(fields["executor"]),
            "worker_leaving": lambda fields: self.leaving.add(fields["id"]),
        }
        self.dead: set[Incarnation] = set()  # whose exit was told
        self.leaving: set[Incarnation] = set()  # workers
        self._gangs: dict[int, tuple[set[int], int]] = {}  # launched in this step: partitions, members
        self._left: list[Tried] = []  # what the executor that was given up last had been given
        self._counted: list[Tried] = []  # … of that, what counted

    def before(self, event: Event) -> None:
        """What an event says, told by whom it may be told."""
        if type(event) is Received:
            self._world.bounds.heard(event.sender, event.message)
            self._heard(event.sender, event.message)
        elif type(event) is JobSubmitted:
            self.answers.submitted(event)
        elif type(event) is PeerGone and event.peer in self.live:
            self.away.add(event.peer)
        elif type(event) is Released:
            self.answers.released(event)

    def _heard(self, sender: Incarnation, message: Message) -> None:
        match message:
            case TaskUpdates(_, ended):
                if sender in self.live:
                    for end in ended:
                        attempt = self.attempts.get(end.task)
                        if attempt is not None and attempt.executor == sender and not attempt.ended:
                            self._why(attempt, end)
                            self._end(attempt)
            case ExecutorExited():
                self._exited(message)
            case CopyMade(number, evidence=evidence):
                if evidence:
                    self.outputs.doubt_copy(number)
            case WorkerBeat(_, executors):
                for executor, _, stopped in executors:
                    self._stopped(executor, stopped)
            case ExecutorStopped(executor, stopped):
                self._stopped(executor, stopped)
            case ExecutorHello():
                self._hello[sender] = message
                if message.worker not in self.fenced:
                    self.workers.setdefault(message.worker, message.host)
            case WorkerHello(worker, host):
                if worker not in self.fenced:
                    self.workers.setdefault(worker, host)
            case StoresServed() if sender in self.workers:
                self._served(self.workers[sender], message)
            case _:
                pass

    def _served(self, host: HostId, served: StoresServed) -> None:
        self.awaited.discard(host)
        self._world.bounds.heir_served(host)
        for output in served.outputs:
            if output.store not in served.executors:  # a store bears the name of its writer, which is dead
                self._world.excluded.adopted(Incarnation(output.store), output.attempt)

    def _exited(self, exited: ExecutorExited) -> None:
        self.dead.add(exited.executor)
        self._world.blame.exited(exited)
        self.outputs.damaged(exited.touched)
        for output in exited.outputs:
            attempt = self.attempts.get(output.attempt)
            if attempt is not None and not attempt.ended:  # else its end was told, and judged then
                self._world.excluded.adopted(exited.executor, output.attempt)
        self.outputs.exited(exited)

    def _stopped(self, executor: Incarnation, stopped: bool) -> None:
        if executor in self.live:  # of one that has not said hello nobody keeps that in mind
            if stopped != (executor in self.stopped):
                self._world.bounds.stopped(executor, stopped)
            (self.stopped.add if stopped else self.stopped.discard)(executor)

    def _end(self, attempt: Tried) -> None:
        attempt.ended = True
        running = self._running.get(attempt.executor)
        if running is not None:
            running.pop(attempt.task, None)
        self._touched[attempt.executor] = None
        self._stop_counting(attempt)

    def _stop_counting(self, attempt: Tried) -> None:
        counting = self._counting.get((attempt.stage, attempt.partition))
        if counting and attempt in counting:
            counting.remove(attempt)

    def _why(self, attempt: Tried, end: TaskEnd) -> None:
        reason = end.reason
        where = attempt.stage, attempt.partition
        self._world.blame.ended(attempt, end)
        match reason:
            case UserError(condition="TASK_OUT_OF_MEMORY"):
                self.failures[(*where, "memory")] += 1
            case UserError() if not self._world.excluded.ended(attempt, end):
                self.failures[(*where, "final" if not reason.retryable else "user")] += 1
            case NotLoadable():
                self.failures[(attempt.stage, -1, "unloadable")] += 1
            case HostError():
                self.failures[(*where, "host")] += 1
            case FetchFailed():
                self.failures[(*where, "fetch")] += 1
                self.failures[(attempt.stage, -1, "fetch")] += 1
                self.outputs.doubt(reason)
            case Success():
                self._world.excluded.ended(attempt, end)
            case _:
                pass

    def after(self, event: Event, effects: list[Effect]) -> None:
        """What the core did about it."""
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                self._said(effect.to, effect.message)  # type: ignore[union-attr]
            elif kind is Note:
                if (look := self._at_note.get(effect.kind)) is not None:  # type: ignore[union-attr]
                    look(effect.fields)  # type: ignore[union-attr]
            elif kind is DeliverResult:
                self.answers.delivered(effect)  # type: ignore[arg-type]
            elif kind is WithdrawResults:
                self.answers.withdrawn(effect.job)  # type: ignore[union-attr]
            elif kind is MergeAccums:
                self.answers.merge(effect.accums)  # type: ignore[union-attr]
            elif kind is FinishJob:
                self.answers.finished(effect)  # type: ignore[arg-type]
            elif kind is ClosePeer:
                self._closed(effect)  # type: ignore[arg-type]
        if type(event) is Received:
            self.outputs.heard(event.sender, event.message)
        self._last_task = self._newest_task
        if self._gangs:
            self._check_gangs()
        if self._touched:
            self._check_slots()
        self.outputs.settled()

    def _said(self, to: Incarnation, message: Message) -> None:
        if to in self.fenced and type(message) is not Fenced:
            raise ViolationError("S13", f"{type(message).__name__} is sent to {to}, which was given up")
        match message:
            case LaunchTasks():
                self._launched(to, message)
            case MapOutputs():
                self.outputs.told(to, message)
            case KillTask(task, _, queued_only):
                if not queued_only:
                    attempt = self.attempts[task]
                    self._world.bounds.killed(attempt)
                    attempt.counts = False
                    self._stop_counting(attempt)
            case MakeCopies(orders):
                self.outputs.ordered(orders)
            case MayLeave():
                self.outputs.may_leave(to)
            case KillExecutor(executor):
                self.away.add(executor)
            case ExecutorWelcome():
                self._welcomed(to)
            case DropShuffles(fingerprints):
                self.outputs.dropped([ShuffleId(int.from_bytes(name, "big")) for name in fingerprints])
            case DropBlocks(_, _, shuffles):
                if shuffles:
                    self.outputs.dropped(list(shuffles))
            case _:
                pass

    def _welcomed(self, to: Incarnation) -> None:
        if to in self.fenced:
            raise ViolationError("S8", f"{to} is welcomed although it was given up")
        if to in self.dead:
            raise ViolationError("S13", f"{to} is welcomed although its end was told")
        if to not in self.live:
            self.live[to] = self._hello[to].slots
            self._running[to] = {}
            self._peopled()

    def _launched(self, to: Incarnation, message: LaunchTasks) -> None:
        if to not in self.live or to in self.away or to in self.stopped:
            raise ViolationError("S13", f"tasks are launched on {to}, which cannot take any")
        shuffle = None if message.output is None else message.output.shuffle
        job = None
        if shuffle is None:
            job = JobId(message.blob)
            if job not in self.answers.open_jobs:
                raise ViolationError("S22", f"a task of job {job} is launched, which has ended")
        elif not any(shuffle in told.shape.shuffles for told in self.answers.open_jobs.values()):
            raise ViolationError("S22", f"a map task of shuffle {shuffle} is launched for nobody")
        self.outputs.launched(to, message)
        inputs = tuple((read.shuffle, read.generation) for read in message.inputs)
        running = self._running[to]
        if message.gang:
            known, _ = self._gangs.setdefault(message.stage, (set(), len(message.gang)))
            known.update(launch.partition for launch in message.tasks)
        for launch in message.tasks:
            if launch.task in self.attempts or launch.task <= self._last_task:
                raise ViolationError("S19", f"task id {launch.task} is used again")
            self._newest_task = max(self._newest_task, launch.task)
            attempt = Tried(
                launch.task, to, message.stage, launch.partition, shuffle, job, inputs, launch.speculative
            )
            self.attempts[launch.task] = running[launch.task] = attempt
            self._count(attempt)
            self._world.blame.launched(attempt, to, running, bool(message.gang))
            self._world.excluded.launched(attempt, to)
        self._touched[to] = None
        self._world.lively.launched(message.stage, len(message.tasks))
        self._world.reached("launch", None)

    def _count(self, attempt: Tried) -> None:
        where = attempt.stage, attempt.partition
        counting = self._counting.setdefault(where, [])
        counting.append(attempt)
        kind = "twin" if attempt.speculative else "normal"
        self.starts[(kind, *where)] += 1
        if len(counting) > 1 and (len(counting) > 2 or counting[0].speculative == counting[1].speculative):
            raise ViolationError(
                "S10", f"{len(counting)} attempts count at partition {where[1]} of stage {where[0]}"
            )

    def _begins(self, fields: Any) -> None:
        self._once(self._begun, fields)

    def _ends(self, fields: Any) -> None:
        self._once(self._over, fields)

    def _stage_begins(self, fields: Any) -> None:
        newest, under_way = self._stages.get(fields["stage"], (-1, False))
        if under_way or fields["attempt"] <= newest:
            raise ViolationError("S11", f"stage {fields['stage']} begins while it is under way")
        self._stages[fields["stage"]] = fields["attempt"], True
        self._world.blame.stage_begins(fields["stage"])

    def _stage_ends(self, fields: Any) -> None:
        newest, under_way = self._stages[fields["stage"]]
        if not under_way or newest != fields["attempt"]:
            raise ViolationError("S4", f"stage {fields['stage']} ends twice")
        self._stages[fields["stage"]] = newest, False

    def _late(self, fields: Any) -> None:
        self.failures[(fields["stage"], fields["partition"], "late")] += 1

    def _executor_lost(self, fields: Any) -> None:
        if fields["blame"] in ("task", "executor"):
            for attempt in self._left:
                self.failures[(attempt.stage, attempt.partition, "lost")] += 1
        self._world.blame.lost(fields["executor"], fields["blame"], self._counted)
        self._check_lease(fields["executor"], fields["why"])
        self._world.bounds.executor_given_up(fields["executor"], fields["why"])

    def _cut_off(self, fields: Any) -> None:
        self._world.bounds.cut_off(fields["executor"], bool(fields["why"]))

    def _once(self, seen: set[TaskId], fields: Any) -> None:
        if fields["task"] in seen:
            raise ViolationError("S4", f"task {fields['task']} begins or ends twice")
        seen.add(fields["task"])

    def _worker_lost(self, fields: Any) -> None:
        self._world.bounds.worker_given_up(fields["worker"], fields["why"])
        host = self.workers.pop(fields["worker"], None)
        if host is None:
            return
        if host not in self.workers.values():
            self.awaited.add(host)

    def _check_lease(self, executor: Incarnation, why: str) -> None:
        """One that is given up for its silence holds no lease any more (S30)."""
        if why.startswith("its worker is lost") or not any(words in why for words in _SILENCE):
            return  # a lost worker's executors are lost with it, whatever they believe
        ahead_s = self._world.lease_of(executor)
        if ahead_s > 0:
            raise ViolationError(
                "S30", f"{executor} is given up ({why}) with a lease for {ahead_s:.2f} s more"
            )

    def _closed(self, effect: ClosePeer) -> None:
        peer = effect.peer
        if effect.fence:
            self.fenced.add(peer)
        if peer in self.live:
            del self.live[peer]
            self._left = list(self._running.pop(peer).values())
            self._counted = [attempt for attempt in self._left if attempt.counts]
            for attempt in self._left:
                attempt.ended = True
                self._stop_counting(attempt)
            self._touched.pop(peer, None)
            self.away.discard(peer)
            self.stopped.discard(peer)
            self._peopled()

    def given(self) -> Iterable[tuple[Incarnation, dict[TaskId, Tried]]]:
        """What live executors have been given and have not ended."""
        return self._running.items()

    def _peopled(self) -> None:
        now_s = self._world.clock.now_s
        if self.live:
            if self.empty_since_s is not None:
                self.empty_longest_s = max(self.empty_longest_s, now_s - self.empty_since_s)
            self.empty_since_s = None
        elif self.empty_since_s is None:
            self.empty_since_s = now_s

    def _check_gangs(self) -> None:
        """All members of a gang are launched in one turn, and count, or none is (S33)."""
        for stage, (launched, members) in self._gangs.items():
            if len(launched) != members:
                raise ViolationError("S33", f"{len(launched)} of {members} tasks of barrier stage {stage}")
        self._gangs.clear()

    def _check_slots(self) -> None:
        live = self._core.executors.live
        for executor in self._touched:
            running = self._running.get(executor)
            if running is None:
                continue
            state = live.get(executor)
            if state is None or state.running.keys() != running.keys():
                raise ViolationError("S12", f"{executor} holds other attempts than it was given")
            if len(running) > self.live[executor] + max(
                DEPTH_MAX, self._world.options.settings.prefetch_tasks
            ):
                raise ViolationError("S12", f"{executor} was given {len(running)} attempts")
        self._touched.clear()
