"""Executors and workers come and go: hellos, beats, exits, silence; and jobs that have nowhere to run.

  ExecutorExited            the process is gone; committed outputs are adopted (EX-4), its outputs stay (EX-2)
  WorkerLost, PeerGone …    its executors live on and its host's data waits, until an heir says what is left:
                            the rest is lost in one turn (WK-1, WK-2, WK-3; succession.py)
  silence                   given up strictly later than the lease (S30), fenced, and killed by its worker
  stopped, or deaf to us    gets nothing more, and what waits in its queue is given to others at once
  a stall of the driver     is nobody's silence: all clocks here count awake time (CLK-4)

Invariants: those of executors.py; besides, every executor that leaves is fenced in the same turn (S8).
"""

from __future__ import annotations

from collections.abc import Mapping

from spark_ft.ids import HostId, Incarnation, TaskId
from spark_ft.protocol.effects import ClosePeer, JobFailure, LearnHosts
from spark_ft.protocol.messages import (
    BeatAck,
    ExecutorBeat,
    ExecutorExited,
    ExecutorHello,
    ExecutorWelcome,
    Fenced,
    Hosts,
    KillExecutor,
    MapStatus,
    WorkerBeat,
    WorkerHello,
    WorkerWelcome,
)
from spark_ft.scheduler.attempts import Attempts
from spark_ft.scheduler.cached import CachedBlocks
from spark_ft.scheduler.copies import Copies
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.ends import Death, Ends
from spark_ft.scheduler.exclusion import Exclusion
from spark_ft.scheduler.executors import Executors, ExecutorState, WorkerState
from spark_ft.scheduler.health import blame_of_exit, exit_text
from spark_ft.scheduler.leases import DEAF
from spark_ft.scheduler.recovery import Recovery
from spark_ft.scheduler.succession import Succession
from spark_ft.scheduler.taskset import Attempt
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_WARN_AFTER_S = 15.0  # without executors, people are told


class Liveness:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        versions: Mapping[str, str],
        turn: Turn,
        executors: Executors,
        attempts: Attempts,
        blocks: CachedBlocks,
        dag: Dag,
        recovery: Recovery,
        copies: Copies,
        exclusion: Exclusion,
        ends: Ends,
    ) -> None:
        self._settings, self._versions, self._turn = settings, dict(versions), turn
        self._executors, self._attempts, self._blocks = executors, attempts, blocks
        self._dag, self._recovery, self._copies, self._ends = dag, recovery, copies, ends
        self._exclusion = exclusion
        self.succession = Succession(settings, turn, executors, recovery, self._lose_orphan)
        self.wanted = settings.executor_instances  # executors that were asked for; 0: all there are
        self._empty_since_s: float | None = None  # jobs wait and no executor is there
        self._warned = False
        self._refusal = ""  # why the last executor was refused
        self._no_workers: tuple[int, str] | None = None  # (tries, stderr): none could be started at all

    # --- They come ---

    def learn_hosts(self, hosts: Mapping[HostId, str]) -> None:
        """Addresses of block servers, for every executor."""
        new = {
            host: address for host, address in hosts.items() if self._executors.addresses.get(host) != address
        }
        if not new:
            return
        self._executors.addresses.update(new)
        for executor in self._executors.live.values():
            self._turn.send(executor.id, Hosts(new))

    def worker_hello(self, sender: Incarnation, hello: WorkerHello) -> None:
        worker = self._executors.worker(sender, hello.host, self._turn.now_s)
        worker.heard_s = self._turn.now_s
        if not worker.has_spoken:
            worker.came_s = self._turn.now_s
        self._no_workers = None
        self._turn.send(sender, WorkerWelcome())
        if self._executors.addresses.get(hello.host) != hello.data_endpoint:
            self._turn.note("worker_added", worker=sender, host=hello.host, pid=hello.pid)
            self._turn.out.append(LearnHosts({str(hello.host): hello.data_endpoint}))
            self.learn_hosts({hello.host: hello.data_endpoint})
            self._copies.server_came(hello.host)
        elif not worker.has_spoken:  # and is reached where one before it was, which leaves
            self._copies.look_again = True
        worker.has_spoken = True  # and every executor is told the address before it is sent a reader
        for executor in worker.executors.values():
            self._executors.touch(executor)

    def executor_hello(self, sender: Incarnation, hello: ExecutorHello) -> None:
        now_s = self._turn.now_s
        known = self._executors.live.get(sender)
        if known is None:
            refusal = self._why_refused(hello)
            if refusal:
                self._refusal = refusal
                self._turn.note("executor_refused", executor=sender, why=refusal)
                self._turn.send(sender, Fenced(refusal))
                self._turn.out.append(ClosePeer(sender, True, refusal))
                self._executors.fence(sender)
                return
            if hello.worker not in self._executors.workers:
                self._copies.worker_came()
            worker = self._executors.worker(hello.worker, hello.host, now_s)
            executor = ExecutorState(
                sender, worker, hello.host, hello.pid, hello.slots, self._settings.prefetch_tasks, now_s
            )
            self._executors.add(executor)
            self._turn.note(
                "executor_added", executor=sender, host=hello.host, pid=hello.pid, slots=hello.slots
            )
            self._exclusion.came(executor)
        self._turn.send(sender, ExecutorWelcome(dict(self._executors.addresses)))

    def executors_unavailable(self, sender: Incarnation, tries: int, stderr: str) -> None:
        """A worker has given up starting executors; or, when that is nobody we know as a worker, the
        cluster has given up starting workers."""
        worker = self._executors.workers.get(sender)
        if worker is not None:
            worker.unavailable = tries, stderr
        else:
            self._no_workers = tries, stderr
        self._turn.note("executors_unavailable", worker=sender, tries=tries, stderr=stderr)
        self.look_for_resources()

    def _why_refused(self, hello: ExecutorHello) -> str:
        if hello.worker in self._executors.fenced:
            return "its worker has been given up"
        for part, version in self._versions.items():
            theirs = hello.versions.get(part, version)
            if theirs != version:
                return f"EXECUTOR_VERSION_MISMATCH: {part} is {theirs} there and {version} here"
        return ""

    # --- They live ---

    def executor_beat(self, executor: ExecutorState, beat: ExecutorBeat) -> None:
        granted = executor.lease.heard(beat.number, beat.acked, self._turn.now_s)
        self._turn.send(executor.id, BeatAck(granted))

    def worker_beat(self, beat: WorkerBeat) -> None:
        for id, cpu_s, stopped in beat.executors:
            executor = self._executors.live.get(id)
            if executor is not None:
                self._executors.vouched(executor, cpu_s, stopped, self._turn.now_s)
                if stopped:
                    self._give_back(executor, "it is stopped")
        for id, number in beat.said:
            executor = self._executors.live.get(id)
            if executor is not None:
                executor.lease.vouched(number, self._turn.now_s)

    def executor_stopped(self, id: Incarnation, stopped: bool) -> None:
        executor = self._executors.live.get(id)
        if executor is not None:
            self._turn.note("executor_stopped", executor=id, stopped=stopped)
            self._executors.stopped(executor, stopped, self._turn.now_s)
            if stopped:
                self._give_back(executor, "it is stopped")

    def _give_back(self, executor: ExecutorState, why: str) -> None:
        """What waits in the queue of an executor that can begin nothing is for others.  Safe though it may
        have begun unheard, or begin when it wakes: the attempt counts no more."""
        for attempt in list(executor.running.values()):
            if attempt.started_s is None and attempt.counts:
                self._dag.restart(attempt, why)

    def peer_gone(self, peer: Incarnation, why: str) -> None:
        """A link is gone.  An executor's worker will say how it ended; nobody speaks for a worker."""
        executor, worker = self._executors.live.get(peer), self._executors.workers.get(peer)
        if executor is not None and executor.gone_s is None:
            executor.gone_s = self._turn.now_s
            self._executors.touch(executor)
        elif worker is not None:
            self.lose_worker(worker, why)

    # --- They go ---

    def executor_exited(self, exited: ExecutorExited) -> None:
        executor = self._executors.live.get(exited.executor)
        self._ends.segments_damaged(exited.touched)
        if executor is None:
            # Its hello may still be under way on its own link: it must find the door closed.
            self._turn.note("exit_of_unlisted_executor", executor=exited.executor, status=exited.status)
            self._executors.fence(exited.executor)
            return
        blame = "system" if executor.doomed else blame_of_exit(exited.status, exited.signal, exited.touched)
        why = exit_text(exited.status, exited.signal)
        for each in exited.touched:
            state = "which is damaged" if each.damaged else "which verifies"
            why += f", in segment {each.segment} of store {each.store} on {each.host}, {state}"
        if exited.oom:
            why += " (by the kernel, for want of memory)"
        if exited.stderr:
            why += f"; its last words:\n{exited.stderr}"
        death = Death(exited.status, exited.signal, exited.rss_peak_bytes, exited.oom and not executor.doomed)
        self._lose(executor, why, blame, death, exited.outputs, exited.running)

    def _lose(
        self,
        executor: ExecutorState,
        why: str,
        blame: str,
        death: Death | None = None,
        outputs: tuple[MapStatus, ...] = (),
        running: tuple[TaskId, ...] | None = None,
    ) -> None:
        """Give an executor up.  Its committed outputs count, the attempts that it was running may be
        blamed, others may not, and exactly what it had in memory is lost (R2)."""
        self._turn.out.append(ClosePeer(executor.id, True, why))
        attempts = list(executor.running.values())
        if running is None:
            begun = [attempt for attempt in attempts if attempt.started_s is not None]
            if not begun:
                # Word of the first one's start may have died with the process: it alone can have run.
                begun = attempts[:1]
        else:
            begun = [attempt for attempt in attempts if attempt.task_id in running]
            # Those before the last one that ran have run too, though word of it died with the process.
            last = max((i for i, attempt in enumerate(attempts) if attempt in begun), default=-1)
            for attempt in attempts[: last + 1]:
                self._attempts.started(attempt)
        self._turn.note(
            "executor_lost", executor=executor.id, host=executor.host, pid=executor.pid, why=why,
            blame=blame if begun else "", signal=death.signal if death else 0,
            status=death.status if death else 0,
            silent_s=round(executor.silent_s(self._turn.now_s), 3),
        )  # fmt: skip
        self._executors.remove(executor)
        if blame == "executor" and not (death and death.oom):
            self._executors.was_killed(begun, self._turn.now_s)
        lost = self._blocks.drop_executor(executor.id)
        committed = {output.attempt: output for output in outputs}
        for attempt in attempts:
            if attempt in begun or attempt.task_id in committed:
                self._attempts.started(attempt)
            self._attempts.free(attempt, "ExecutorLost", blame if attempt in begun else "system")
        rest = [
            a for a in attempts if a.task_id not in committed or not self._ends.adopt(a, committed[a.task_id])
        ]
        for attempt in rest:
            if attempt.counts:
                self._end_with_process(attempt, attempt in begun, len(begun) == 1, blame, death, why)
        self._recovery.memory_lost(lost)
        self._copies.maker_lost(executor.id)
        self._exclusion.left(executor)
        self._dag.executor_left(executor)

    def _end_with_process(
        self, attempt: Attempt, begun: bool, alone: bool, blame: str, death: Death | None, why: str
    ) -> None:
        if begun:
            self._ends.process_ended(attempt, blame, death or Death(), alone, why)
        else:
            assert attempt.stage.tasks is not None
            attempt.stage.tasks.ended(attempt)
            self._dag.requeue(attempt)

    def lose_worker(self, worker: WorkerState, why: str) -> None:
        """A worker is gone; what it leaves behind waits for its heir."""
        self.succession.worker_lost(worker, why)
        self._copies.maker_lost(worker.id)

    def _lose_orphan(self, executor: ExecutorState, why: str, outputs: tuple[MapStatus, ...]) -> None:
        self._lose(executor, why, "host", outputs=outputs)

    # --- Time passes ---

    def sweep(self) -> None:
        """Give up who was silent for too long; end jobs that have waited for executors for too long."""
        now_s = self._turn.now_s
        for worker in self._executors.silent_workers(now_s):
            self.lose_worker(worker, f"nothing was heard of it for {now_s - worker.heard_s:.1f} s")
        for executor in self._executors.unreported(now_s):
            self._attempts.doom(executor, "its link is gone")
        for executor, cut in self._executors.cuts(now_s):
            self._turn.note("executor_cut_off", executor=executor.id, why=cut)
            if cut == DEAF:
                self._give_back(executor, cut)
        for executor, why in self._executors.silent(now_s):
            if self._executors.has_worker(executor):
                self._turn.send(executor.worker.id, KillExecutor(executor.id, why))
            self._lose(executor, why, "system" if executor.doomed else "executor")
        self.succession.sweep()
        self._attempts.enforce()
        self.look_for_resources()

    def look_for_resources(self) -> None:
        """Jobs without a single executor: wait, say so, and in the end fail them by name (CM-8, EX-6)."""
        if self._executors.live or not self._dag.jobs:
            self._empty_since_s, self._warned = None, False
            return
        now_s = self._turn.now_s
        if self._empty_since_s is None:
            self._empty_since_s = now_s
        crash = self._crash_loop()
        waited_s = now_s - self._empty_since_s
        if crash is not None:
            self._fail_all(crash)
        elif waited_s >= self._settings.no_resources_timeout_s:
            self._fail_all(JobFailure("NO_RESOURCES", self._no_resources(waited_s)))
        elif waited_s >= _WARN_AFTER_S and not self._warned:
            self._warned = True
            self._turn.note("no_executors", text=self._no_resources(waited_s))

    def _no_resources(self, waited_s: float) -> str:
        wanted = f"{self.wanted} executor(s)" if self.wanted else "all executors there are"
        hosts = ", ".join(sorted(self._executors.hosts())) or "none"
        workers = len(self._executors.workers)
        text = (
            f"no executor for {waited_s:.0f} s; asked for {wanted} of {self._settings.executor_cores} "
            f"slot(s) and {self._settings.executor_memory_bytes >> 20} MiB; workers: {workers} "
            f"(hosts: {hosts}); executors: 0"
        )
        return f"{text}; last refused: {self._refusal}" if self._refusal else text

    def _crash_loop(self) -> JobFailure | None:
        """Every worker has given up starting executors (EX-12)."""
        words = [worker.unavailable for worker in self._executors.workers.values()] or [self._no_workers]
        if None in words:
            return None
        tries, stderr = next(word for word in words if word is not None)
        return JobFailure("EXECUTOR_CRASH_LOOP", f"executors crashed at {tries} starts in a row:\n{stderr}")

    def _fail_all(self, failure: JobFailure) -> None:
        for job in list(self._dag.jobs.values()):
            self._dag.end_job(job, failure)
