"""How attempts begin and end, who is blamed, and what each end means for its task.

  Success       the output is registered, or the result delivered; a twin is killed
  UserError     blamed on the task: again, elsewhere, until ``max_failures``
  NotLoadable   blamed on the program: two executors are proof enough (TK-9)
  FetchFailed   blamed on storage or network: the output is dropped if proved unreadable; again
  HostError     blamed on the host: again on another one, until every host has said so
  Killed        again, if the attempt still counted
  process ended  health.blame_of_exit: task, executor, or the store that it was in the middle of; suspects
                 run alone (quarantine.py), and only a death in quarantine convicts
  memory         room, twice; then the end

Invariants
  * only an attempt in its executor's ``running`` can end, once, and only by that executor (S8, S9).
  * ``failures`` grows here and only by blame on the task; only a used-up budget fails a job (S14).
  * accumulator updates come from successes alone: once per delivered partition, or map partition (S20).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from spark_ft.ids import DRIVER_HOST, Incarnation, TaskId
from spark_ft.protocol.effects import JobFailure, MergeAccums
from spark_ft.protocol.messages import (
    DropBlocks,
    EndReason,
    FetchFailed,
    HostError,
    Killed,
    MapStatus,
    NotLoadable,
    SegmentTouched,
    Success,
    TaskEnd,
    UserError,
)
from spark_ft.scheduler import health
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.cached import CachedBlocks
from spark_ft.scheduler.copies import Copies
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.detours import Detours
from spark_ft.scheduler.editions import Editions
from spark_ft.scheduler.exclusion import Exclusion
from spark_ft.scheduler.executors import Executors, ExecutorState
from spark_ft.scheduler.ledger import Ledger
from spark_ft.scheduler.map_outputs import MapOutputTracker
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.taskset import Attempt, Room, Task, avoid, remember
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_STAGE_ROUNDS_MAX = 100  # stage attempts that failed fetches may end, even with progress between
_REFUSED_DELAY_S, _REFUSED_DELAY_MAX_S = 0.5, 5.0
_UNLOADABLE_MAX = 2
_OOMS_MAX = 2
_IN_VAIN_MAX = 20  # kills in a row without any progress: by whomever, it cannot go on
_PACE = 1.5  # times the median of the stage is no slower than usual
_TEXT_MAX = 500  # characters of an error in a note
_ATTEMPTS_REFUSED_MAX = 50  # of one task, before a success that cannot count ends the job (L1)
_DRIVER_BLOCK_TRIES = 4  # of one task to read what only the driver has
_NOT_FOUND_MAX = 20  # times that one task may miss what the driver believed to be there


@dataclass(frozen=True, slots=True)
class Death:
    """How an executor's process ended."""

    status: int = 0
    signal: int = 0
    rss_peak_bytes: int = 0
    oom: bool = False  # the kernel killed it for memory


class Ends:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        outputs: MapOutputTracker,
        blocks: CachedBlocks,
        board: health.Health,
        dag: Dag,
        recovery: Recovery,
        copies: Copies,
        detours: Detours,
        exclusion: Exclusion,
        ledger: Ledger,
    ) -> None:
        self._settings, self._turn, self._executors, self._attempts = settings, turn, executors, attempts
        self._ledger = ledger
        self._outputs, self._blocks, self._health = outputs, blocks, board
        self._dag, self._recovery, self._copies, self._exclusion = dag, recovery, copies, exclusion
        self._detours = detours
        self._editions = Editions(turn, outputs, blocks, dag, recovery, copies)

    # --- From executors ---

    def started(self, executor: ExecutorState, task: TaskId) -> None:
        attempt = executor.running.get(task)
        if attempt is not None:
            self._attempts.started(attempt)

    def ended(self, executor: ExecutorState, end: TaskEnd) -> None:
        """An executor tells how one of its attempts ended."""
        attempt = executor.running.get(end.task)
        if attempt is None:
            self._turn.note("stale_task_end", task=end.task, executor=executor.id)
            return
        reason = end.reason
        if not isinstance(reason, Killed):
            self._attempts.started(attempt)
        self._attempts.free(
            attempt, type(reason).__name__, _blame(reason), end.run_s, end.record_count, _text(reason)
        )
        usable = self._editions.learn(attempt, end) and self._editions.is_current(attempt)
        if end.dirty:
            self._attempts.doom(executor, f"attempt {attempt} left behind {end.dirty}")
        if not attempt.counts:
            self._turn.note("ended_after_kill", task=end.task, reason=type(reason).__name__)
            written = reason.output if isinstance(reason, Success) else None
            if written is not None and written.shuffle not in self._outputs:
                # Its shuffle was dropped while it still wrote: that store is told again (L11).
                self._turn.send(executor.id, DropBlocks(shuffles=(written.shuffle,)))
            return
        tasks = attempt.stage.tasks
        assert tasks is not None
        if usable and isinstance(reason, Success):
            self._succeeded(attempt, reason, end.accums)
            return
        tasks.ended(attempt)
        match reason:
            case UserError(condition="TASK_OUT_OF_MEMORY"):
                remember(attempt.task, attempt, "OutOfMemory", "task", reason.text)
                self._out_of_memory(attempt, reason.text, reason.rss_peak_bytes, reason.traceback)
            case UserError():
                text = f"{reason.type_name}: {reason.text}"
                probe = self._exclusion.failed(attempt, text)
                remember(attempt.task, attempt, "UserError", "executor" if probe else "task", text)
                if probe:
                    avoid(attempt.task, attempt.executor, self._turn.now_s)
                    self._dag.requeue(attempt)
                    return
                condition = reason.condition or "TASK_FAILED"
                self._blame_task(
                    attempt, condition, text, reason.type_name, reason.traceback, reason.retryable
                )
            case NotLoadable():
                self._not_loadable(attempt, reason)
            case FetchFailed():
                self._fetch_failed(attempt, reason)
            case HostError():
                self._host_failed(attempt, reason)
            case Killed():
                self._dag.requeue(attempt)
            case Success():  # what it has put into the cache is not what its inputs were built from (BL-12)
                why = "a persisted partition that it kept is not what its other inputs were built from"
                where = {"stage": attempt.stage.id, "partition": attempt.partition}
                self._turn.note("output_refused", **where, why=why)
                self._exclusion.succeeded(attempt)  # the task has run well there all the same
                if attempt.number < _ATTEMPTS_REFUSED_MAX:
                    self._dag.requeue(attempt, _REFUSED_DELAY_S)
                else:
                    self._fail(attempt, "INDETERMINATE_OUTPUT_ROLLBACK", f"{why}, again and again")
            case _:
                assert_never(reason)

    # --- Success ---

    def _succeeded(self, attempt: Attempt, reason: Success, accums: tuple[tuple[int, bytes], ...]) -> None:
        stage, task = attempt.stage, attempt.task
        assert stage.tasks is not None
        stage.tasks.ended(attempt)
        if task.attempts or attempt.executor.slowness:
            self._compare_pace(attempt)
        if task.trouble is not None or stage.tasks.failed_on or attempt.executor.excluded is not None:
            self._exclusion.succeeded(attempt)
        if stage.shuffle is not None:
            if reason.output is None or not self._is_output_of(attempt, reason.output):
                text = "the executor told of a success without the task's output"
                remember(task, attempt, "Success", "task", text)
                self._blame_task(attempt, "TASK_FAILED", text)
                return
            self._map_succeeded(attempt, reason.output, accums)
        elif reason.result is None:
            text = "the executor told of a success without a result"
            remember(task, attempt, "Success", "task", text)
            self._blame_task(attempt, "TASK_FAILED", text)
        else:
            job = stage.lead()
            self._dag.deliver(job, task.partition, reason.result, accums, attempt.reads)
            self._dag.succeeded(stage, task, self._ran_s(attempt))

    def _compare_pace(self, attempt: Attempt) -> None:
        """It has outrun its twin, or its executor was slow before and may be so no more."""
        for twin in attempt.task.attempts:
            if attempt.speculative and not twin.suspect and twin.started_s is not None:
                self._executors.was_slow(twin.executor)
        usual_s = attempt.stage.tasks.usual_s if attempt.stage.tasks else 0.0
        if self._ran_s(attempt) <= _PACE * usual_s:
            self._executors.kept_pace(attempt.executor)

    def _map_succeeded(
        self, attempt: Attempt, output: MapStatus, accums: tuple[tuple[int, bytes], ...]
    ) -> None:
        stage, task = attempt.stage, attempt.task
        if not self._recovery.register(attempt, output):
            if stage.tasks is not None and not task.attempts and task.partition in stage.tasks.active:
                why = "it is of an older generation, or what it lies on is lost"
                self._turn.note("output_refused", stage=stage.id, partition=task.partition, why=why)
                self._dag.requeue(attempt)
            return
        self._copies.output_added(output)
        accums = accums or output.accums
        if accums and (outputs := self._outputs[output.shuffle]).merge_once(task.partition):
            self._turn.out.append(MergeAccums(accums))
            self._ledger.merged(stage.lead(), outputs, task.partition, accums)
        self._dag.succeeded(stage, task, self._ran_s(attempt))

    def _is_output_of(self, attempt: Attempt, output: MapStatus) -> bool:
        return (
            output.shuffle == attempt.stage.shuffle
            and output.map_index == attempt.partition
            and output.attempt == attempt.task_id
        )

    def _ran_s(self, attempt: Attempt) -> float:
        started_s = attempt.launched_s if attempt.started_s is None else attempt.started_s
        return self._turn.now_s - started_s

    # --- The task is to blame ---

    def _blame_task(
        self,
        attempt: Attempt,
        condition: str,
        text: str,
        cause_type: str = "",
        traceback: str = "",
        retryable: bool = True,
    ) -> None:
        """One failure more; the attempt has been taken off its task."""
        trouble = attempt.task.troubled()
        trouble.failures += 1
        if traceback:
            trouble.tracebacks[traceback] = None
        if retryable and trouble.failures < self._settings.max_failures:
            avoid(attempt.task, attempt.executor, self._turn.now_s)
            self._dag.requeue(attempt)
            return
        self._fail(attempt, condition, text, cause_type, traceback)

    def _fail(
        self, attempt: Attempt, condition: str, text: str, cause_type: str = "", traceback: str = ""
    ) -> None:
        """The stage ends, and every job that needs it, with all that is known of this task."""
        stage, trouble = attempt.stage, attempt.task.troubled()
        count = max(trouble.failures + trouble.ooms, 1)
        head = f"Task {attempt.partition} in stage {stage.id} failed {count} times"
        what = f"{head}, most recent failure: {text}"
        others = tuple(t for t in trouble.tracebacks if t != traceback)
        where = stage.id, attempt.partition
        history = tuple(trouble.records)
        self._dag.fail_stage(
            stage, JobFailure(condition, what, *where, cause_type, traceback, others, history)
        )

    def _not_loadable(self, attempt: Attempt, reason: NotLoadable) -> None:
        stage, trouble = attempt.stage, attempt.task.troubled()
        text = f"{reason.type_name}: {reason.text}"
        remember(attempt.task, attempt, "NotLoadable", "task", text)
        trouble.unloadable += 1
        stage.unloadable.add(attempt.executor.id)
        if max(trouble.unloadable, len(stage.unloadable)) >= _UNLOADABLE_MAX:
            what = f"the functions of stage {stage.id} cannot be loaded by executors: {text}"
            self._fail(attempt, "CLOSURE_NOT_LOADABLE", what, reason.type_name, reason.traceback)
        else:
            avoid(attempt.task, attempt.executor, self._turn.now_s)
            self._dag.requeue(attempt)

    def timed_out(self, attempt: Attempt, stack: str) -> None:
        """It has run for longer than a task may, and was killed for it; ``stack`` is where it stood.  While
        a twin runs, whose time comes too, it is not counted."""
        text = f"it ran for longer than spark.ft.task.timeout ({self._settings.task_timeout_s:g} s)"
        stood = stack or "(no stack could be had)"
        remember(attempt.task, attempt, "TimedOut", "task", f"{text}; it stood at:\n{stood}")
        if not attempt.task.attempts:
            trace = f"The stack of the attempt that was killed:\n{stood}"
            self._blame_task(attempt, "TASK_TIMEOUT", f"TASK_TIMEOUT: {text}", "TimeoutError", trace)

    # --- The executor's process ended ---

    def process_ended(self, attempt: Attempt, blame: str, death: Death, alone: bool, why: str) -> None:
        """Its process is gone with an attempt that had begun, ``alone`` or not; ``why`` is for people.

        A death by the process's own doing (exit, SIGSEGV) speaks against the one task that ran there, once
        it ran alone.  A SIGKILL may have been meant for anybody: it counts only when nothing was completed
        since the one before (EX-5), and convicts only in quarantine, while nobody kills executors that have
        nothing to do with this task (docs/decisions/0013).
        """
        task, stage = attempt.task, attempt.stage
        assert stage.tasks is not None
        stage.tasks.ended(attempt)
        remember(task, attempt, "ExecutorLost", blame, why)
        if death.oom:
            self._out_of_memory(attempt, why, death.rss_peak_bytes, "")
            return
        if blame == "storage":
            self._died_reading(attempt, why)
            return
        if blame not in ("task", "executor"):
            self._dag.requeue(attempt)
            return
        trouble, limit = task.troubled(), self._settings.max_kills
        certain = blame == "task"
        suspected = max(trouble.deaths, trouble.in_vain) >= limit  # and not alone for want of memory only
        trouble.deaths += certain
        progress = sum(job.progress for job in stage.jobs.values())
        trouble.in_vain = trouble.in_vain + 1 if trouble.mark == progress else 1
        trouble.mark = progress
        convicted = attempt.room >= Room.ALONE and self._convicts(attempt, certain and suspected)
        if stage.tree.barrier:  # in a gang it cannot be tried alone
            convicted = trouble.deaths > limit or trouble.in_vain >= _IN_VAIN_MAX
        if convicted:
            self._fail(attempt, "POISON_TASK", f"{_poison(attempt, death)}: {why}")
            return
        if trouble.deaths >= limit or trouble.in_vain >= limit:
            self._suspect(task, Room.ALONE)
        if certain and alone:
            self._blame_task(attempt, "POISON_TASK" if death.signal else "TASK_FAILED", why)
        else:
            self._dag.requeue(attempt)

    def _convicts(self, attempt: Attempt, certain: bool) -> bool:
        """Whether a death in quarantine proves that the task is to blame."""
        in_vain = attempt.task.troubled().in_vain
        if certain or in_vain >= _IN_VAIN_MAX:
            return True
        task = attempt.stage.id, attempt.partition
        others = self._executors.others_were_killed(task, self._turn.now_s)
        return in_vain > self._settings.max_kills and not others

    def _suspect(self, task: Task, room: Room) -> None:
        """From now on it runs with room around it, and once at a time."""
        trouble = task.troubled()
        trouble.room = max(trouble.room, room)
        for twin in list(task.attempts):
            self._attempts.kill(twin, "its task is suspected of ending processes")

    def _out_of_memory(self, attempt: Attempt, text: str, rss_peak_bytes: int, traceback: str) -> None:
        """Again with fewer neighbours, then alone on its host; then it is too large for any (MEM-1)."""
        trouble = attempt.task.troubled()
        trouble.ooms += 1
        self._turn.note(
            "task_out_of_memory", task=attempt.task_id, stage=attempt.stage.id, partition=attempt.partition,
            executor=attempt.executor.id, rss_peak_bytes=rss_peak_bytes,
        )  # fmt: skip
        if trouble.ooms > _OOMS_MAX:
            limit = self._settings.executor_memory_bytes >> 20
            sizes = f"rss peak {rss_peak_bytes >> 20} MiB, limit {limit} MiB"
            advice = "give executors more memory, or cut the data into more partitions"
            what = f"TASK_OUT_OF_MEMORY({attempt.partition}, {sizes}): {text}; {advice}"
            self._fail(attempt, "TASK_OUT_OF_MEMORY", what, "MemoryError", traceback)
            return
        self._suspect(attempt.task, Room.ROOMY if trouble.ooms == 1 else Room.HOST)
        self._dag.requeue(attempt)

    def adopt(self, attempt: Attempt, output: MapStatus) -> bool:
        """A dead executor had committed this attempt's output: it counts as reported (EX-4)."""
        if not attempt.counts or not self._is_output_of(attempt, output):
            return False
        if attempt.keeps_anew:
            return False  # which edition of a persisted partition it has computed died with it (BL-12)
        self._turn.note("output_adopted", shuffle=output.shuffle, map=output.map_index, task=attempt.task_id)
        self._succeeded(attempt, Success(output), output.accums)
        return True

    # --- A block could not be read ---

    def segments_damaged(self, touched: Iterable[SegmentTouched]) -> None:
        """A process has died in these, and those that are damaged were taken out of use (ST-10).  Told again:
        nothing."""
        for each in touched:
            if each.damaged and self._health.damaged(each.host, each.store, each.segment):
                self._recovery.segment_lost(each.host, each.store, each.segment)
                if self._health.corrupt(each.host, each.store):
                    self._recovery.store_lost(each.host, each.store)

    def _died_reading(self, attempt: Attempt, why: str) -> None:
        """What it read has ended its process.  That is remade, and it tries again, within bounds."""
        trouble = attempt.task.troubled()
        trouble.fetches += 1
        if trouble.fetches < _NOT_FOUND_MAX:
            self._dag.requeue(attempt)
        else:
            self._fail(attempt, "SHUFFLE_DATA_LOST", why)

    def _fetch_failed(self, attempt: Attempt, reason: FetchFailed) -> None:
        blame = _blame(reason)
        self._turn.note(
            "fetch_failed", task=attempt.task_id, stage=attempt.stage.id, partition=attempt.partition,
            shuffle=reason.shuffle, map=reason.map_index, host=reason.host, store=reason.store,
            evidence=reason.evidence, text=reason.text,
        )  # fmt: skip
        remember(attempt.task, attempt, "FetchFailed", blame, f"{reason.evidence}: {reason.text}")
        launched_s = attempt.launched_s
        if reason.evidence == "refused" and self._executors.changed_worker(reason.host, launched_s):
            self._dag.requeue(attempt, 0.0 if self._is_elsewhere(reason) else _REFUSED_DELAY_S)
            return
        if reason.map_index < 0:
            self._block_failed(attempt, reason)
            return
        output = self._registered(reason)
        if output is None:  # dropped or replaced since: one recovery serves all (BL-9)
            self._dag.requeue(attempt)
        elif (
            reason.evidence in health.NETWORK_EVIDENCE
            and (after_s := self._detours.for_output(attempt, output)) is not None
        ):
            self._dag.requeue(attempt, after_s)
        elif self._is_lost(attempt, reason, output):
            self._dag.requeue(attempt)
            self._recover(attempt, reason)
        else:
            trouble = attempt.task.troubled()
            trouble.fetches += 1
            avoid(attempt.task, attempt.executor, self._turn.now_s)
            delay_s = min(_REFUSED_DELAY_S * 2 ** (trouble.fetches - 1), _REFUSED_DELAY_MAX_S)
            self._dag.requeue(attempt, delay_s)

    def _registered(self, reason: FetchFailed) -> MapStatus | None:
        """The output that the report is about, if it is still *the* output."""
        outputs = self._outputs.get(reason.shuffle)
        if (
            outputs is None
            or outputs.generation != reason.generation
            or not 0 <= reason.map_index < outputs.map_count
        ):
            return None
        for place in outputs.locations(reason.map_index):
            if (place.host, place.store) == (reason.host, reason.store):
                return place if reason.attempt in (place.attempt, -1) else None
        return None

    def _is_elsewhere(self, reason: FetchFailed) -> bool:
        """Whether another host serves this output: from now on readers hear of that one, too (WK-2)."""
        outputs = self._outputs.get(reason.shuffle)
        if outputs is None or not 0 <= reason.map_index < outputs.map_count:
            return False
        outputs.tell()
        return any(
            place.host != reason.host and place.host not in self._executors.orphaned
            for place in outputs.locations(reason.map_index)
        )

    def _is_lost(self, attempt: Attempt, reason: FetchFailed, output: MapStatus) -> bool:
        """Slow or out of reach is not lost, until it has been so again and again (BL-2, NET-8)."""
        if reason.evidence not in health.NETWORK_EVIDENCE:
            return True
        key = (output.shuffle, output.generation, output.map_index, output.store)
        return self._health.unreachable(key, attempt.launched_s, self._turn.now_s)

    def _recover(self, attempt: Attempt, reason: FetchFailed) -> None:
        """Drop what was proved unreadable; the stage attempt that met it is over, unless there are copies."""
        stage = attempt.stage
        others = set(reason.others)
        lost = [reason.map_index]
        lost += [
            s.map_index
            for s in self._outputs[reason.shuffle].statuses
            if s is not None and s.attempt in others
        ]
        where = reason.host, reason.store
        gone = self._recovery.outputs_lost(reason.shuffle, lost, *where, reason.evidence)
        if reason.evidence == "corrupt" and self._health.corrupt(reason.host, reason.store):
            self._recovery.store_lost(reason.host, reason.store)
        if not gone or not stage.under_way or attempt.task.attempts:
            return  # it is elsewhere too, or the end of this stage attempt has been counted, or a twin runs
        stage.fruitless = 1 if stage.progressed else stage.fruitless + 1
        stage.progressed = False
        stage.failed_rounds += 1
        what = f"output {reason.map_index} of shuffle {reason.shuffle} on {reason.host}"
        if stage.fruitless >= self._settings.stage_max_attempts:
            text = (
                f"stage {stage.id} was attempted {stage.fruitless} times without completing a task; last, "
                f"{where} could not be read ({reason.evidence}): {reason.text}"
            )
            self._dag.fail_stage(stage, JobFailure("SHUFFLE_DATA_LOST", text, stage.id))
        elif stage.failed_rounds >= _STAGE_ROUNDS_MAX:
            text = f"stage {stage.id} was ended {stage.failed_rounds} times by failed reads; last, {what}"
            self._dag.fail_stage(stage, JobFailure("STAGE_ABORTED", text, stage.id))
        else:
            self._dag.interrupt(stage)

    def _block_failed(self, attempt: Attempt, reason: FetchFailed) -> None:
        """Not a map output: a cached partition's block is dropped; for others the task tries again."""
        if reason.block is None:
            # The task was sent where its cached block was, and did not find it there.
            self._forget_memory(attempt)
            self._not_found(attempt, reason)
        elif reason.evidence in health.NETWORK_EVIDENCE and self._detours.for_block(attempt, reason.host):
            avoid(attempt.task, attempt.executor, self._turn.now_s, host=True)
            self._dag.requeue(attempt)
        elif self._recovery.block_lost(reason.block, reason.evidence):
            self._dag.requeue(attempt)
        else:  # dropped since the task was sent; or the driver's own: of a broadcast is no other (BL-13)
            only = reason.host == DRIVER_HOST
            self._not_found(attempt, reason, _DRIVER_BLOCK_TRIES if only else _NOT_FOUND_MAX)

    def _not_found(self, attempt: Attempt, reason: FetchFailed, most: int = _NOT_FOUND_MAX) -> None:
        """A cached partition was not where the driver had said: nobody's fault, within bounds."""
        trouble = attempt.task.troubled()
        trouble.fetches += 1
        if trouble.fetches < most:
            self._dag.requeue(attempt)
        else:
            self._fail(attempt, "BLOCK_LOST", f"{reason.evidence}: {reason.text}")

    def _forget_memory(self, attempt: Attempt) -> None:
        executor: Incarnation = attempt.executor.id
        nodes = set(attempt.stage.tree.persisted)
        keys = [key for key in self._blocks.of_executor.get(executor, ()) if key[0] in nodes]
        for key in keys:
            self._blocks.drop_memory(executor, key)
        self._dag.mark_holders(nodes)

    # --- The host is to blame ---

    def _host_failed(self, attempt: Attempt, reason: HostError) -> None:
        """Again on another host; the end when this task was told so twice, and each host that lives has told
        it so, or told others so again after a back-off: of tasks that meet full hosts in turns none might
        ever see them all."""
        host, trouble, now_s = attempt.executor.host, attempt.task.troubled(), self._turn.now_s
        remember(attempt.task, attempt, "HostError", _blame(reason), f"{reason.condition}: {reason.text}")
        self._turn.note("host_error", host=host, condition=reason.condition, text=reason.text)
        self._health.host_failed(
            host, reason.condition, reason.text, reason.needed_bytes, reason.free_bytes, now_s
        )
        trouble.host_errors[host] = trouble.host_errors.get(host, 0) + 1
        everywhere = all(
            live in trouble.host_errors or self._health.is_full_still(live, now_s)
            for live in self._executors.on_host
        )
        if everywhere and sum(trouble.host_errors.values()) >= 2:
            numbers = f", {reason.needed_bytes} bytes needed, {reason.free_bytes} free"
            told = f"{reason.condition}({host}{numbers if reason.needed_bytes else ''})"
            text = f"{told} on every host: {reason.text}"
            self._fail(attempt, reason.condition, text)
            return
        until_s = self._health.hosts[host].until_s
        avoid(attempt.task, attempt.executor, now_s, host=True, for_s=until_s - now_s)
        self._dag.requeue(attempt, 0.0 if self._executors.others(set(), {host}) else until_s - now_s)


def _text(reason: EndReason) -> str:
    """What the log says of an end, for people."""
    match reason:
        case Success():
            return ""
        case UserError() | NotLoadable():
            text = f"{reason.type_name}: {reason.text}"
        case FetchFailed():
            text = f"{reason.evidence}: {reason.text}"
        case HostError():
            text = f"{reason.condition}: {reason.text}"
        case Killed():
            text = reason.reason
        case _:
            assert_never(reason)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]} …"


def _poison(attempt: Attempt, death: Death) -> str:
    how = health.signal_name(death.signal) if death.signal else f"exit code {death.status}"
    return f"POISON_TASK({attempt.partition}, {how}, rss peak {death.rss_peak_bytes >> 20} MiB)"


def _blame(reason: object) -> str:
    match reason:
        case UserError() | NotLoadable():
            return "task"
        case HostError():
            return "storage" if reason.condition == "STORAGE_ERROR" else "host"
        case FetchFailed():
            return "network" if reason.evidence in health.NETWORK_EVIDENCE else "storage"
    return ""
