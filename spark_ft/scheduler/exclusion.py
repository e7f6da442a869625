"""Executors and hosts on which tasks fail that succeed elsewhere: kept from tasks, let in by a probe.

    a task fails on X                         that task goes elsewhere for a while (taskset.avoid)
    two tasks of a stage failed on X          X gets nothing of this stage while others may have it
    the task then succeeds on Y               it is *proved* that X was at fault: evidence against X
    two tasks proved so                       X is excluded
    two executors of one host excluded        the host is, while there is another one

Only errors of tasks that another executor could run are evidence: never failed fetches, refused commits,
kills, cancelled jobs or lost processes (S31).  A program that is wrong fails everywhere and proves nothing.

After a back-off, which doubles with each failure, an excluded executor gets one task, the probe: if it ends
well the executor is let in again (L12); if it fails, nothing of that counts against the task.  When all are
excluded they are probed at once; when that does not help within ten seconds, jobs end by name.

Invariants
  * whoever is excluded has recorded evidence, its own or its host's, not older than the time-out (S31).
  * an excluded executor runs at most one attempt that began after its exclusion: the probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spark_ft.ids import HostId, Incarnation
from spark_ft.protocol.effects import JobFailure
from spark_ft.scheduler.dag import Dag
from spark_ft.scheduler.executors import Excluded, Executors, ExecutorState
from spark_ft.scheduler.taskset import Attempt
from spark_ft.scheduler.turn import Turn
from spark_ft.settings import Settings

_BACKOFF_S = 5.0
_ALL_EXCLUDED_S = 10.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """A task that failed on an executor and succeeded on another one."""

    at_s: float
    stage: int
    partition: int
    text: str


class Exclusion:
    """See the module."""

    def __init__(self, settings: Settings, turn: Turn, executors: Executors, dag: Dag) -> None:
        self._settings, self._turn, self._executors, self._dag = settings, turn, executors, dag
        self.evidence: dict[Incarnation, list[Evidence]] = {}  # of live executors
        self.hosts: dict[HostId, list[str]] = {}  # excluded, and why
        self._backoff_s = min(_BACKOFF_S, settings.exclude_timeout_s)  # the first
        self._all_since_s: float | None = None

    # --- Evidence ---

    def failed(self, attempt: Attempt, text: str) -> bool:
        """Its task failed there by an error of its own; true when it was a probe: that counts for nothing."""
        if not self._settings.exclude_on_failure:
            return False
        executor = attempt.executor
        if attempt.probe and executor.excluded is not None:
            self._probe_failed(executor, executor.excluded)
            return True
        attempt.task.troubled().failed_on[executor.id] = text
        assert attempt.stage.tasks is not None
        attempt.stage.tasks.failed_on.setdefault(executor.id, set()).add(attempt.partition)
        return False

    def succeeded(self, attempt: Attempt) -> None:
        """Its task has succeeded there: wherever it failed before, the executor was at fault."""
        executor, trouble, tasks = attempt.executor, attempt.task.trouble, attempt.stage.tasks
        if tasks is not None:
            tasks.failed_on.pop(executor.id, None)
        if attempt.probe and executor.excluded is not None:
            self._let_in(executor)
        if trouble is None:
            return
        for id, text in trouble.failed_on.items():
            at_fault = self._executors.live.get(id)
            if at_fault is not None and at_fault is not executor:
                self._prove(at_fault, Evidence(self._turn.now_s, attempt.stage.id, attempt.partition, text))
        trouble.failed_on.clear()

    def _prove(self, executor: ExecutorState, evidence: Evidence) -> None:
        oldest_s = self._turn.now_s - self._settings.exclude_timeout_s
        # What an exclusion rests on stays for as long as that does (S31).
        out = executor.excluded is not None
        known = [e for e in self.evidence.get(executor.id, ()) if e.at_s >= oldest_s or out]
        self.evidence[executor.id] = [*known, evidence]
        if self._is_guilty(executor) and executor.excluded is None:
            self._exclude(executor, evidence.text)
            self._look_at_host(executor.host)

    def _look_at_host(self, host: HostId) -> None:
        there = [e for e in self._executors.live.values() if e.host == host]
        guilty = [e for e in there if e.excluded is not None and self._is_guilty(e)]
        elsewhere = any(e.host != host and e.excluded is None for e in self._executors.live.values())
        if len(guilty) >= self._settings.exclude_app_executors and elsewhere and host not in self.hosts:
            self.hosts[host] = [f"{e.id}: {self.evidence[e.id][-1].text}" for e in guilty]
            self._turn.note("host_excluded", host=host, evidence=self.hosts[host])
            for executor in self._executors.live.values():
                if executor.host == host and executor.excluded is None:
                    self._exclude(executor, "its host is excluded")

    def _exclude(self, executor: ExecutorState, why: str) -> None:
        executor.excluded = Excluded(self._turn.now_s + self._backoff_s, self._backoff_s)
        self._executors.touch(executor)
        self._turn.note(
            "executor_excluded", executor=executor.id, host=executor.host, why=why,
            evidence=[f"{e.stage}/{e.partition}" for e in self.evidence.get(executor.id, ())],
        )  # fmt: skip

    # --- In again ---

    def _probe_failed(self, executor: ExecutorState, excluded: Excluded) -> None:
        backoff_s = min(excluded.backoff_s * 2, self._settings.exclude_timeout_s)
        executor.excluded = Excluded(self._turn.now_s + backoff_s, backoff_s)
        self._executors.touch(executor)
        self._turn.note("probe_failed", executor=executor.id, again_s=backoff_s)

    def _let_in(self, executor: ExecutorState) -> None:
        """The probe has ended well; with it those who were out for their host's sake alone."""
        self.evidence.pop(executor.id, None)
        freed = [executor]
        if self.hosts.pop(executor.host, None) is not None:
            there = [e for e in self._executors.live.values() if e.host == executor.host]
            freed += [e for e in there if e.excluded and not self._is_guilty(e) and e is not executor]
        for each in freed:
            each.excluded = None
            self._executors.touch(each)
            self._turn.note("executor_readmitted", executor=each.id)

    def _is_guilty(self, executor: ExecutorState) -> bool:
        tasks = {(e.stage, e.partition) for e in self.evidence.get(executor.id, ())}
        return len(tasks) >= self._settings.exclude_app_tasks

    def came(self, executor: ExecutorState) -> None:
        """A new executor on a host that is excluded is excluded with it."""
        if executor.host in self.hosts:
            self._exclude(executor, "its host is excluded")

    def left(self, executor: ExecutorState) -> None:
        self.evidence.pop(executor.id, None)
        if executor.host not in self._executors.on_host:
            self.hosts.pop(executor.host, None)

    def sweep(self) -> None:
        """Back-offs end; and when everybody is excluded, somebody must be told."""
        live, now_s = self._executors.live.values(), self._turn.now_s
        everybody = bool(live) and all(e.excluded is not None for e in live)
        for executor in live:
            excluded = executor.excluded
            if excluded is None or excluded.on_probe or executor.running:
                continue
            first = everybody and excluded.backoff_s == self._backoff_s
            if first or now_s >= excluded.until_s:
                excluded.on_probe = True
                self._executors.touch(executor)
        if not everybody or not self._dag.jobs:
            self._all_since_s = None
        elif self._all_since_s is None:
            self._all_since_s = now_s
        elif now_s - self._all_since_s >= _ALL_EXCLUDED_S:
            self._all_since_s = None
            text = "every executor is excluded: " + "; ".join(self._reasons())
            for job in list(self._dag.jobs.values()):
                self._dag.end_job(job, JobFailure("ALL_EXECUTORS_EXCLUDED", text))

    def _reasons(self) -> Iterator[str]:
        for executor in self._executors.live.values():
            known = self.evidence.get(executor.id)
            tasks = ", ".join(f"{e.stage}/{e.partition}" for e in known or ())
            why = (
                f"tasks {tasks} failed there and not elsewhere: {known[-1].text}" if known else "its host is"
            )
            yield f"{executor.id} ({executor.host}): {why}"
