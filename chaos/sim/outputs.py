"""Map outputs as the driver counts on them: generations, copies, evidence, what is told to readers.

A part of the shadow (shadow.py): S5 to S7, S16 to S19, S23, S31 of stores, S32; EX-4, EX-13.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from chaos.sim.account import Tried
from chaos.sim.violation import ViolationError
from spark_ft.ids import Generation, HostId, Incarnation, ShuffleId, TaskId
from spark_ft.protocol.messages import (
    CopyOrder,
    ExecutorExited,
    FetchFailed,
    LaunchTasks,
    MapOutputs,
    MapStatus,
    Message,
    SegmentTouched,
    Success,
    TaskEnd,
    TaskUpdates,
)
from spark_ft.scheduler.core import SchedulerCore
from spark_ft.scheduler.health import NETWORK_EVIDENCE

if TYPE_CHECKING:
    from chaos.sim.shadow import Shadow
    from chaos.sim.world import World

_UNREACHED_MAX = 3


class KnownOutputs:
    """See the module."""

    def __init__(self, world: World, core: SchedulerCore, shadow: Shadow) -> None:
        self._world, self._core, self._shadow = world, core, shadow
        self.generations: dict[ShuffleId, Generation] = {}
        self._corrupt: Counter[str] = Counter()  # evidence by store
        self._condemned: set[tuple[HostId, str, int]] = set()  # segments
        self._registered: dict[ShuffleId, dict[int, MapStatus]] = {}
        self._versions: dict[ShuffleId, tuple[Generation, int]] = {}
        self._newest: dict[tuple[Incarnation, ShuffleId], MapOutputs] = {}  # told to each executor
        self._orders: dict[int, MapStatus] = {}  # copies that were ordered
        self._rolled_back = False
        self._to_adopt: list[MapStatus] = []
        self._unreached: Counter[tuple[ShuffleId, int, TaskId]] = Counter()  # reads of an output in vain

    # --- Told to readers ---

    def told(self, to: Incarnation, message: MapOutputs) -> None:
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
            hosts = self._shadow.workers.values()
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
                if status.host not in hosts and status.host not in self._shadow.awaited:
                    raise ViolationError(
                        "S7", f"output {status.map_index} of shuffle {shuffle} lies on a lost host"
                    )
        self._newest[(to, shuffle)] = message

    def launched(self, to: Incarnation, message: LaunchTasks) -> None:
        """What these tasks are to read and to write is of now, and they are told all of it."""
        for read in message.inputs:
            told_of = self._newest.get((to, read.shuffle))
            if told_of is None or (told_of.generation, told_of.version) != (read.generation, read.version):
                raise ViolationError("S5", f"{to} was not told of the outputs of shuffle {read.shuffle}")
            if read.generation != self.generations.get(read.shuffle, 0):
                raise ViolationError("S6", f"a task is to read an old generation of shuffle {read.shuffle}")
        if message.output is None:
            return
        shuffle = message.output.shuffle
        if message.output.generation != self.generations.get(shuffle, 0):
            raise ViolationError("S6", f"a task is to write an old generation of shuffle {shuffle}")
        registered = self._registered.get(shuffle, {})
        for launch in message.tasks:
            if not launch.speculative and launch.partition in registered:
                raise ViolationError("S16", f"output {launch.partition} of shuffle {shuffle} is made again")

    # --- Registered ---

    def heard(self, sender: Incarnation, message: Message) -> None:
        """The core has taken in what was told of outputs."""
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
        if self._to_adopt:
            self._check_adopted()

    def _accepted(self, output: MapStatus, executor: Incarnation) -> None:
        """A map output was told of: if it has become the output, it may be that."""
        outputs = self._core.outputs.get(output.shuffle)
        status = None if outputs is None else outputs.statuses[output.map_index]
        if status is None or status.attempt != output.attempt:
            return
        registered = self._registered.setdefault(output.shuffle, {})
        if output.map_index in registered and registered[output.map_index].attempt == output.attempt:
            return
        attempt = self._shadow.attempts.get(output.attempt)
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

    def exited(self, exited: ExecutorExited) -> None:
        for output in exited.outputs:
            attempt = self._shadow.attempts.get(output.attempt)
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

    def _check_kept(self, executor: Incarnation, end: TaskEnd) -> None:
        """What a reader of replaced data has kept in memory is held by nobody (S17)."""
        attempt = self._shadow.attempts.get(end.task)
        if attempt is not None and attempt.stale:
            held = self._core.blocks.of_executor.get(executor, ())
            if any((block.node, block.partition) in held for block in end.cached if block.block is None):
                raise ViolationError("S17", f"what task {end.task} kept of replaced data is held to be good")

    # --- In doubt ---

    def doubt(self, reason: FetchFailed) -> None:
        """From now on another attempt at these outputs may be justified (S16); out of reach is not lost until
        it was that a few times (NET-8)."""
        if reason.evidence == "corrupt":
            self._corrupt[reason.store] += 1
        if reason.map_index < 0:
            return
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

    def damaged(self, touched: tuple[SegmentTouched, ...]) -> None:
        """A process has died in these segments: what lies there is given up, once, and nothing else is."""
        for each in touched:
            where = each.host, each.store, each.segment
            if not each.damaged or where in self._condemned:
                continue
            self._condemned.add(where)
            self._corrupt[each.store] += 1
            self._condemn(where)

    def _condemn(self, where: tuple[HostId, str, int]) -> None:
        for shuffle, registered in self._registered.items():
            outputs = self._core.outputs.get(shuffle)
            for index, status in list(registered.items()):
                # What the shadow knows may have been lost before: a copy elsewhere has taken its place.
                held = outputs is not None and outputs.statuses[index] is not None
                places = outputs.locations(index) if outputs is not None and held else ()
                condemned = [(place.host, place.store, place.segment) in self._condemned for place in places]
                if (status.host, status.store, status.segment) == where or (condemned and all(condemned)):
                    del registered[index]

    def ordered(self, orders: tuple[CopyOrder, ...]) -> None:
        self._orders.update((order.number, order.output) for order in orders if order.output is not None)

    def doubt_copy(self, number: int) -> None:
        """What was to be copied could not be read."""
        output = self._orders.get(number)
        if output is None:
            return
        registered = self._registered.get(output.shuffle, {})
        status = registered.get(output.map_index)
        if status is not None and status.attempt == output.attempt:
            del registered[output.map_index]

    def output_lost(self, fields: Any) -> None:
        """An output is given up: because its host or store was, or because somebody has complained of it."""
        registered = self._registered.get(fields["shuffle"])
        if registered and fields["map"] in registered:
            evidence = fields["evidence"]
            if evidence not in ("host lost", "quarantine"):
                store = registered[fields["map"]].store
                raise ViolationError("S16", f"an output at {store} is given up without evidence ({evidence})")
            del registered[fields["map"]]
        self._world.reached("output_lost", None)

    def quarantined(self, fields: Any) -> None:
        if self._corrupt[fields["store"]] < 2:
            raise ViolationError("S31", f"store {fields['store']} is in quarantine without evidence")

    # --- Rolled back, dropped, left ---

    def new_generation(self, fields: Any) -> None:
        shuffle, generation = fields["shuffle"], fields["generation"]
        if generation != self.generations.get(shuffle, 0) + 1:
            raise ViolationError("S19", f"generation {generation} of shuffle {shuffle}")
        self.generations[shuffle] = generation
        self._registered.pop(shuffle, None)
        for told in self._shadow.answers.open_jobs.values():
            told.rollbacks += shuffle in told.shape.shuffles
        self._rolled_back = True
        self._world.reached("rollback", None)

    def replaced(self, fields: Any) -> None:
        for _, running in self._shadow.given():
            for attempt in running.values():
                if any(shuffle == fields["shuffle"] for shuffle, _ in attempt.inputs):
                    attempt.stale = True

    def settled(self) -> None:
        """The turn is over: nothing that is held was built on what it has rolled back (S17)."""
        if not self._rolled_back:
            return
        self._rolled_back = False
        current = self.generations
        for outputs in self._core.outputs:
            for status in outputs.statuses:
                if status is not None:
                    self._check_current(
                        self._shadow.attempts[status.attempt], f"an output of shuffle {outputs.shuffle}"
                    )
        for job, told in self._shadow.answers.open_jobs.items():
            for attempt in told.delivered.values():
                self._check_current(attempt, f"a delivered result of job {job}")
        for executor, running in self._shadow.given():
            for attempt in running.values():
                if attempt.counts and any(current.get(s, 0) != g for s, g in attempt.inputs):
                    raise ViolationError("S17", f"task {attempt.task} on {executor} goes on after a rollback")

    def _check_current(self, attempt: Tried, what: str) -> None:
        for shuffle, generation in attempt.inputs:
            if shuffle in self._core.outputs and self.generations.get(shuffle, 0) != generation:
                raise ViolationError("S17", f"{what} was built from an old generation of shuffle {shuffle}")

    def dropped(self, shuffles: list[ShuffleId]) -> None:
        for told in (*self._shadow.answers.open_jobs.values(), *self._shadow.answers.held.values()):
            for shuffle in shuffles:
                if shuffle in told.shape.shuffles:
                    raise ViolationError("S23", f"shuffle {shuffle} is dropped although a live job needs it")
        for shuffle in shuffles:
            self._registered.pop(shuffle, None)

    def may_leave(self, to: Incarnation) -> None:
        """Nothing lies there alone, if there is somewhere else for it to be (EX-13)."""
        host = self._shadow.workers.get(to)
        staying = {h for worker, h in self._shadow.workers.items() if worker not in self._shadow.leaving}
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
