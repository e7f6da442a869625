"""The safety invariants that a scheduler could break, checked at every step from events and effects alone.

The shadow keeps its own small account of what the driver has said and heard: attempts, generations, who
lives, what was delivered.  Each check costs what the step has touched; the ids are those of
docs/fault-model.md.  It looks into the core in two places only: whether an output that was told of has been
registered, and what stands in its tables when a generation was rolled back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from chaos.sim.violation import ViolationError
from spark_ft.ids import Generation, HostId, Incarnation, JobId, ShuffleId, StageId, TaskId
from spark_ft.lineage.shape import LineageShape
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
    MapStatus,
    MayLeave,
    Message,
    NotLoadable,
    StoredResult,
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
from spark_ft.scheduler.health import NETWORK_EVIDENCE

if TYPE_CHECKING:
    from chaos.sim.world import World

Updates = tuple[tuple[int, bytes], ...]

_UNREACHED_MAX = 3
_SILENCE = ("silent", "stopped for too long", "told of no exit", "not hear")


class Tried:
    """One attempt, as far as the driver has told and heard of it."""

    __slots__ = (
        "counts", "ended", "executor", "inputs", "job", "partition", "shuffle", "speculative", "stage",
        "stale", "task",
    )  # fmt: skip

    def __init__(
        self,
        task: TaskId,
        executor: Incarnation,
        stage: int,
        partition: int,
        shuffle: ShuffleId | None,
        job: JobId | None,
        inputs: tuple[tuple[ShuffleId, Generation], ...],
        speculative: bool,
    ) -> None:
        self.task, self.executor, self.stage, self.partition = task, executor, stage, partition
        self.shuffle, self.job, self.inputs, self.speculative = shuffle, job, inputs, speculative
        self.counts = True  # not told to stop
        self.ended = False
        self.stale = False  # what it has read was replaced since


class Told:
    """One job, as far as the driver's user has been told of it."""

    __slots__ = (
        "delivered", "final", "finished", "partitions", "rollbacks", "shape", "stored", "updates",
    )  # fmt: skip

    def __init__(self, shape: LineageShape, partitions: frozenset[int], final: bool) -> None:
        self.shape, self.partitions, self.final = shape, partitions, final
        self.updates: list[Updates] = []  # of accumulators: they count at its end
        self.delivered: dict[int, Tried] = {}
        self.finished = False
        self.rollbacks = 0  # generations that shuffles under it have begun
        self.stored = False  # some result was delivered that is still to be read where it is


class Shadow:
    """See the module."""

    def __init__(self, world: World, core: SchedulerCore) -> None:
        self._world, self._core = world, core
        self.attempts: dict[TaskId, Tried] = {}
        self.jobs: dict[JobId, Told] = {}
        self.open_jobs: dict[JobId, Told] = {}  # not finished
        self.generations: dict[ShuffleId, Generation] = {}
        self.live: dict[Incarnation, int] = {}  # executor -> slots
        self.fenced: set[Incarnation] = set()
        self.away: set[Incarnation] = (
            set()
        )  # stopped, doomed, or their link is gone: nothing is launched there
        self.stopped: set[Incarnation] = set()
        self.workers: dict[Incarnation, HostId] = {}
        self.awaited: set[HostId] = set()  # whose worker is gone, and which may find an heir
        self.hosts_lost: set[HostId] = set()  # ever
        self.merged: set[bytes] = set()
        self.failures: Counter[tuple[int, int, str]] = Counter()  # (stage, partition, kind of end)
        self.corrupt: Counter[str] = Counter()  # evidence by store
        self.starts: Counter[tuple[str, int, int]] = Counter()  # (kind, stage, partition) launches
        self.empty_since_s: float | None = 0.0
        self.empty_longest_s = 0.0
        self._hello: dict[Incarnation, ExecutorHello] = {}
        self._running: dict[Incarnation, dict[TaskId, Tried]] = {}
        self._counting: dict[tuple[int, int], list[Tried]] = {}
        self._registered: dict[ShuffleId, dict[int, MapStatus]] = {}
        self._versions: dict[ShuffleId, tuple[Generation, int]] = {}
        self._outputs: dict[tuple[Incarnation, ShuffleId], MapOutputs] = {}  # newest told to each executor
        self._stages: dict[StageId, tuple[int, bool]] = {}  # (newest attempt, under way)
        self._begun: set[TaskId] = set()
        self._over: set[TaskId] = set()
        self._orders: dict[int, MapStatus] = {}  # copies of outputs that were ordered
        self._last_task = self._newest_task = -1  # of earlier turns; of all
        self._touched: dict[Incarnation, None] = {}
        self._rolled_back = False
        self._at_note: dict[str, Callable[[Any], None]] = {
            "task_start": self._begins,
            "task_end": self._ends,
            "stage_start": self._stage_begins,
            "stage_end": self._stage_ends,
            "rollback": self._new_generation,
            "output_replaced": self._replaced,
            "worker_lost": self._worker_lost,
            "output_lost": self._output_lost,
            "store_quarantined": self._quarantined,
            "task_timeout": self._late,
            "executor_lost": self._executor_lost,
            "executor_cut_off": self._cut_off,
            "executor_excluded": lambda fields: self._world.excluded.excluded(fields),
            "probe_failed": lambda fields: self._world.excluded.probe_failed(fields),
            "executor_readmitted": lambda fields: self._world.excluded.readmitted(fields["executor"]),
            "executor_doomed": lambda fields: self.away.add(fields["executor"]),
            "worker_leaving": lambda fields: self._leaving.add(fields["id"]),
        }
        self.dead: set[Incarnation] = set()  # whose exit was told
        self.held: dict[JobId, Told] = {}  # ended well, with results that are still to be read where they are
        self._to_adopt: list[MapStatus] = []
        self._unreached: Counter[tuple[ShuffleId, int, TaskId]] = Counter()  # reads of an output in vain
        self._leaving: set[Incarnation] = set()  # workers
        self._gangs: dict[int, tuple[set[int], int]] = {}  # launched in this step: partitions, members
        self.short_of: set[JobId] = set()  # jobs that have ended because a gang had no slots, and so it was
        self.nobody_left = False  # a job has ended because everybody was excluded, and so it was
        self._left: list[Tried] = []  # what the executor that was given up last had been given
        self._counted: list[Tried] = []  # … of that, what counted

    # --- Before the core hears of it -----------------------------------------------------------

    def before(self, event: Event) -> None:
        """What an event says, told by whom it may be told."""
        if type(event) is Received:
            self._world.bounds.heard(event.sender, event.message)
            self._heard(event.sender, event.message)
        elif type(event) is JobSubmitted:
            told = Told(event.shape, frozenset(event.partitions), event.final)
            self.jobs[event.job] = self.open_jobs[event.job] = told
        elif type(event) is PeerGone and event.peer in self.live:
            self.away.add(event.peer)
        elif type(event) is Released:
            for blob in event.blobs:
                self.held.pop(JobId(blob), None)  # a job's blob has its number

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
                if evidence and number in self._orders:
                    self._doubt_attempt(self._orders[number])
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
        for output in served.outputs:
            if output.store not in served.executors:  # a store bears the name of its writer, which is dead
                self._world.excluded.adopted(Incarnation(output.store), output.attempt)

    def _exited(self, exited: ExecutorExited) -> None:
        self.dead.add(exited.executor)
        self._world.blame.exited(exited)
        for output in exited.outputs:
            self._world.excluded.adopted(exited.executor, output.attempt)
        for output in exited.outputs:
            attempt = self.attempts.get(output.attempt)
            if (
                attempt is not None
                and attempt.executor == exited.executor
                and attempt.counts
                and not attempt.ended
                and output.generation == self.generations.get(output.shuffle, 0)
                and not self._world.lineage.keeps_something(output.shuffle)  # it died with what it kept
            ):
                self._to_adopt.append(output)

    def _check_adopted(self) -> None:
        """What a dead executor had committed counts as reported (EX-4), unless it cannot be had."""
        for output in self._to_adopt:
            outputs = self._core.outputs.get(output.shuffle)
            if (
                outputs is not None
                and outputs.generation == output.generation
                and outputs.statuses[output.map_index] is None
                and self._core.executors.host_is_live(output.host)
                and output.store not in self._core.health.quarantined
            ):
                raise ViolationError(
                    "EX-4", f"task {output.attempt} had committed its output, which is to be made again"
                )
        self._to_adopt.clear()

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
                if reason.evidence == "corrupt":
                    self.corrupt[reason.store] += 1
                if reason.map_index >= 0:
                    self._doubt(reason)
            case Success():
                self._world.excluded.ended(attempt, end)
            case _:
                pass

    def _doubt(self, reason: FetchFailed) -> None:
        """From now on another attempt at these outputs may be justified (S16); out of reach is not lost until
        it was that a few times (NET-8)."""
        if reason.evidence in NETWORK_EVIDENCE:
            read = reason.shuffle, reason.map_index, reason.attempt
            self._unreached[read] += 1
            if self._unreached[read] < _UNREACHED_MAX:
                return
        registered = self._registered.get(reason.shuffle, {})
        for index, status in list(registered.items()):
            reported = index == reason.map_index and reason.attempt in (status.attempt, -1)
            if reported or status.attempt in reason.others:
                del registered[index]

    def _doubt_attempt(self, output: MapStatus) -> None:
        registered = self._registered.get(output.shuffle, {})
        status = registered.get(output.map_index)
        if status is not None and status.attempt == output.attempt:
            del registered[output.map_index]

    # --- After it has handled it ---------------------------------------------------------------

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
                self._delivered(effect)  # type: ignore[arg-type]
            elif kind is WithdrawResults:
                self._withdrawn(effect.job)  # type: ignore[union-attr]
            elif kind is MergeAccums:
                self._merge(effect.accums)  # type: ignore[union-attr]
            elif kind is FinishJob:
                self._finished(effect)  # type: ignore[arg-type]
            elif kind is ClosePeer:
                self._closed(effect)  # type: ignore[arg-type]
        if type(event) is Received:
            self._outputs_told(event.sender, event.message)
            if self._to_adopt:
                self._check_adopted()
        self._last_task = self._newest_task
        if self._gangs:
            self._check_gangs()
        if self._touched:
            self._check_slots()
        if self._rolled_back:
            self._rolled_back = False
            self._check_rollback()

    def _outputs_told(self, sender: Incarnation, message: Message) -> None:
        if type(message) is TaskUpdates:
            for end in message.ended:
                reason = end.reason
                if end.cached:
                    self._check_kept(sender, end)
                if type(reason) is Success and reason.output is not None:
                    self._accepted(reason.output, sender)
        elif type(message) is ExecutorExited:
            for output in message.outputs:
                self._accepted(output, message.executor)

    # --- Messages ---

    def _said(self, to: Incarnation, message: Message) -> None:
        if to in self.fenced and type(message) is not Fenced:
            raise ViolationError("S13", f"{type(message).__name__} is sent to {to}, which was given up")
        match message:
            case LaunchTasks():
                self._launched(to, message)
            case MapOutputs():
                self._told_outputs(to, message)
            case KillTask(task, _, queued_only):
                if not queued_only:
                    attempt = self.attempts[task]
                    self._world.bounds.killed(attempt)
                    attempt.counts = False
                    self._stop_counting(attempt)
            case MakeCopies(orders):
                for order in orders:
                    if order.output is not None:
                        self._orders[order.number] = order.output
            case MayLeave():
                self._may_leave(to)
            case KillExecutor(executor):
                self.away.add(executor)
            case ExecutorWelcome():
                self._welcomed(to)
            case DropShuffles(fingerprints):
                self._dropped([ShuffleId(int.from_bytes(name, "big")) for name in fingerprints])
            case DropBlocks(_, _, shuffles):
                if shuffles:
                    self._dropped(list(shuffles))
            case _:
                pass

    def _may_leave(self, to: Incarnation) -> None:
        """Nothing lies there alone, if there is somewhere else for it to be (EX-13)."""
        host = self.workers.get(to)
        staying = {h for worker, h in self.workers.items() if worker not in self._leaving}
        if host in staying or not staying:
            return
        for outputs in self._core.outputs if host is not None else ():
            for index, status in enumerate(outputs.statuses):
                if status is not None and all(p.host == host for p in outputs.locations(index)):
                    raise ViolationError(
                        "EX-13", f"{to} may leave: output {index} of shuffle {outputs.shuffle} is only there"
                    )
        executors = self._world.executors
        for node, partitions in self._core.blocks.held.items():
            for partition, holding in partitions.items():
                gone = [id for id in holding.memory if id == to or executors[id].host == host]
                if len(gone) == len(holding.memory) and all(h == host for h in holding.disk):
                    raise ViolationError(
                        "EX-13", f"{to} may leave: partition {node}/{partition} is only there"
                    )

    def _welcomed(self, to: Incarnation) -> None:
        if to in self.fenced:
            raise ViolationError("S8", f"{to} is welcomed although it was given up")
        if to in self.dead:
            raise ViolationError("S13", f"{to} is welcomed although its end was told")
        if to not in self.live:
            self.live[to] = self._hello[to].slots
            self._running[to] = {}
            self._peopled()

    def _told_outputs(self, to: Incarnation, message: MapOutputs) -> None:
        shuffle, generation = message.shuffle, message.generation
        newest = self._versions.get(shuffle, (Generation(0), -1))
        if (generation, message.version) < newest:
            raise ViolationError("S19", f"outputs of shuffle {shuffle} go back from {newest}")
        if generation != self.generations.get(shuffle, 0):
            raise ViolationError("S6", f"{to} is told of generation {generation} of shuffle {shuffle}")
        if (generation, message.version) != newest:
            self._versions[shuffle] = generation, message.version
            count = self._world.lineage.shuffles[shuffle].map_count
            if [status.map_index for status in message.statuses] != list(range(count)):
                raise ViolationError("S32", f"half of shuffle {shuffle} is told as the whole")
            hosts = self.workers.values()
            for copy in message.copies:
                first = message.statuses[copy.map_index]
                if (copy.attempt, copy.checksum) != (first.attempt, first.checksum):
                    raise ViolationError(
                        "S18", f"a copy of output {copy.map_index} of shuffle {shuffle} is another"
                    )
            for status in (*message.statuses, *message.copies):
                if status.generation != generation:
                    raise ViolationError(
                        "S6", f"shuffle {shuffle}: an output of generation {status.generation}"
                    )
                if status.host not in hosts and status.host not in self.awaited:
                    raise ViolationError(
                        "S7", f"output {status.map_index} of shuffle {shuffle} lies on a lost host"
                    )
        self._outputs[(to, shuffle)] = message

    def _launched(self, to: Incarnation, message: LaunchTasks) -> None:
        if to not in self.live or to in self.away or to in self.stopped:
            raise ViolationError("S13", f"tasks are launched on {to}, which cannot take any")
        shuffle = None if message.output is None else message.output.shuffle
        job = None
        if shuffle is None:
            job = JobId(message.blob)
            if job not in self.open_jobs:
                raise ViolationError("S22", f"a task of job {job} is launched, which has ended")
        elif not any(shuffle in told.shape.shuffles for told in self.open_jobs.values()):
            raise ViolationError("S22", f"a map task of shuffle {shuffle} is launched for nobody")
        for read in message.inputs:
            told_of = self._outputs.get((to, read.shuffle))
            if told_of is None or (told_of.generation, told_of.version) != (read.generation, read.version):
                raise ViolationError("S5", f"{to} was not told of the outputs of shuffle {read.shuffle}")
            if read.generation != self.generations.get(read.shuffle, 0):
                raise ViolationError("S6", f"a task is to read an old generation of shuffle {read.shuffle}")
        if message.output is not None and message.output.generation != self.generations.get(shuffle, 0):
            raise ViolationError("S6", f"a task is to write an old generation of shuffle {shuffle}")
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
            if shuffle is not None and not launch.speculative:
                status = self._registered.get(shuffle, {}).get(launch.partition)
                if status is not None:
                    raise ViolationError(
                        "S16", f"output {launch.partition} of shuffle {shuffle} is made again"
                    )
        self._touched[to] = None
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

    def _dropped(self, shuffles: list[ShuffleId]) -> None:
        for told in (*self.open_jobs.values(), *self.held.values()):
            for shuffle in shuffles:
                if shuffle in told.shape.shuffles:
                    raise ViolationError("S23", f"shuffle {shuffle} is dropped although a live job needs it")
        for shuffle in shuffles:
            self._registered.pop(shuffle, None)

    # --- Other effects ---

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

    def _output_lost(self, fields: Any) -> None:
        """An output is given up: because its host or store was, or because somebody has complained of it."""
        registered = self._registered.get(fields["shuffle"])
        if registered and fields["map"] in registered:
            evidence = fields["evidence"]
            if evidence not in ("host lost", "quarantine"):
                store = registered[fields["map"]].store
                raise ViolationError("S16", f"an output at {store} is given up without evidence ({evidence})")
            del registered[fields["map"]]
        self._world.reached("output_lost", None)

    def _quarantined(self, fields: Any) -> None:
        if self.corrupt[fields["store"]] < 2:
            raise ViolationError("S31", f"store {fields['store']} is in quarantine without evidence")

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

    def _new_generation(self, fields: Any) -> None:
        shuffle, generation = fields["shuffle"], fields["generation"]
        if generation != self.generations.get(shuffle, 0) + 1:
            raise ViolationError("S19", f"generation {generation} of shuffle {shuffle}")
        self.generations[shuffle] = generation
        self._registered.pop(shuffle, None)
        for told in self.open_jobs.values():
            told.rollbacks += shuffle in told.shape.shuffles
        self._rolled_back = True
        self._world.reached("rollback", None)

    def _replaced(self, fields: Any) -> None:
        for running in self._running.values():
            for attempt in running.values():
                if any(shuffle == fields["shuffle"] for shuffle, _ in attempt.inputs):
                    attempt.stale = True

    def _check_kept(self, executor: Incarnation, end: TaskEnd) -> None:
        """What a reader of replaced data has kept in memory is held by nobody (S17)."""
        attempt = self.attempts.get(end.task)
        if attempt is not None and attempt.stale:
            held = self._core.blocks.of_executor.get(executor, ())
            if any((block.node, block.partition) in held for block in end.cached if block.block is None):
                raise ViolationError("S17", f"what task {end.task} kept of replaced data is held to be good")

    def _worker_lost(self, fields: Any) -> None:
        self._world.bounds.worker_given_up(fields["worker"], fields["why"])
        host = self.workers.pop(fields["worker"], None)
        if host is None:
            return
        self.hosts_lost.add(host)
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

    def _merge(self, accums: tuple[tuple[int, bytes], ...]) -> None:
        for _, payload in accums:
            if payload in self.merged:
                raise ViolationError("S20", f"{payload.decode()} is merged twice")
            self.merged.add(payload)

    def _delivered(self, effect: DeliverResult) -> None:
        job = self.jobs[effect.job]
        if job.finished:
            raise ViolationError("S3", f"a result of job {effect.job} is delivered after its end")
        if effect.partition in job.delivered:
            raise ViolationError("S1", f"partition {effect.partition} of job {effect.job} is delivered twice")
        attempt = self.attempts[self._world.attempt_of(effect.result)]
        if (attempt.job, attempt.partition) != (effect.job, effect.partition):
            raise ViolationError(
                "S9", f"the result of {attempt.job}/{attempt.partition} goes to job {effect.job}"
            )
        self._check_counts(attempt)
        job.delivered[effect.partition] = attempt
        job.stored |= type(effect.result) is StoredResult
        if effect.accums:
            job.updates.append(effect.accums)

    def _check_counts(self, attempt: Tried) -> None:
        if attempt.executor in self.fenced:
            raise ViolationError(
                "S8", f"task {attempt.task} of {attempt.executor}, which was given up, counts"
            )
        if not attempt.counts:
            raise ViolationError("S9", f"task {attempt.task} counts although it was told to stop")
        for shuffle, generation in attempt.inputs:
            if generation != self.generations.get(shuffle, 0):
                raise ViolationError(
                    "S6", f"task {attempt.task} counts: it read an old generation of {shuffle}"
                )

    def _accepted(self, output: MapStatus, executor: Incarnation) -> None:
        """A map output was told of: if it has become the output, it may be that."""
        outputs = self._core.outputs.get(output.shuffle)
        status = None if outputs is None else outputs.statuses[output.map_index]
        if status is None or status.attempt != output.attempt:
            return
        registered = self._registered.setdefault(output.shuffle, {})
        if output.map_index in registered and registered[output.map_index].attempt == output.attempt:
            return
        attempt = self.attempts.get(output.attempt)
        if attempt is None or attempt.executor != executor or attempt.shuffle != output.shuffle:
            raise ViolationError("S9", f"an output of task {output.attempt} from {executor} counts")
        if not attempt.counts:
            raise ViolationError("S9", f"task {attempt.task} counts although it was told to stop")
        if output.generation != self.generations.get(output.shuffle, 0):
            raise ViolationError("S6", f"an output of an old generation of shuffle {output.shuffle} counts")
        for shuffle, generation in attempt.inputs:
            if generation != self.generations.get(shuffle, 0):
                raise ViolationError(
                    "S6", f"task {attempt.task} counts: it read an old generation of {shuffle}"
                )
        if met := self._world.contents[output.attempt].mixed:
            raise ViolationError("S6", f"output {output.map_index} of shuffle {output.shuffle} counts: {met}")
        registered[output.map_index] = status

    def _finished(self, effect: FinishJob) -> None:
        job = self.jobs[effect.job]
        if job.finished:
            raise ViolationError("S4", f"job {effect.job} ends twice")
        if effect.failure is not None and effect.failure.condition == "BARRIER_NO_SLOTS":
            widest = max(n.partition_count for n in job.shape.nodes.values() if n.barrier)
            excluded = self._world.excluded.until_s
            slots = {id: 1 if id in excluded else n for id, n in self.live.items() if id not in self.away}
            if sum(slots.values()) < widest:
                self.short_of.add(effect.job)
        if effect.failure is not None and effect.failure.condition == "ALL_EXECUTORS_EXCLUDED":
            self.nobody_left = self._world.excluded.is_everybody()
        if effect.failure is None and job.delivered.keys() != job.partitions:
            raise ViolationError("S2", f"job {effect.job} succeeds without all its results")
        job.finished = True
        for updates in job.updates:
            self._merge(updates)
        job.updates.clear()
        del self.open_jobs[effect.job]
        if job.stored and effect.failure is None:
            self.held[effect.job] = job

    def _withdrawn(self, id: JobId) -> None:
        """All its results are taken back: they were the engine's still."""
        job = self.jobs[id]
        if job.finished:
            raise ViolationError("S3", f"results of job {id} are taken back after its end")
        if job.final:
            raise ViolationError(
                "S17", f"results of job {id} are taken back although they have left the engine"
            )
        job.delivered.clear()
        job.updates.clear()
        job.rollbacks += 1
        job.stored = False

    def result_lost(self, job: JobId, partition: int) -> None:
        """A stored result could not be read: the job may come back to life."""
        told = self.jobs[job]
        del told.delivered[partition]
        told.finished = False
        self.held.pop(job, None)
        self.open_jobs[job] = told

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

    # --- Sums ---

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

    def _check_rollback(self) -> None:
        """Nothing that is held was built on what was rolled back (S17)."""
        current = self.generations
        for outputs in self._core.outputs:
            for status in outputs.statuses:
                if status is not None:
                    self._check_current(
                        self.attempts[status.attempt], f"an output of shuffle {outputs.shuffle}"
                    )
        for job, told in self.open_jobs.items():
            for attempt in told.delivered.values():
                self._check_current(attempt, f"a delivered result of job {job}")
        for executor, running in self._running.items():
            for attempt in running.values():
                if attempt.counts and any(current.get(s, 0) != g for s, g in attempt.inputs):
                    raise ViolationError("S17", f"task {attempt.task} on {executor} goes on after a rollback")

    def _check_current(self, attempt: Tried, what: str) -> None:
        for shuffle, generation in attempt.inputs:
            if shuffle in self._core.outputs and self.generations.get(shuffle, 0) != generation:
                raise ViolationError("S17", f"{what} was built from an old generation of shuffle {shuffle}")
