"""Who is excluded, and why: evidence, one probe at a time, and in again once it is well (EX-14, S31, L12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaos.sim.violation import ViolationError
from spark_ft.ids import Incarnation, TaskId
from spark_ft.protocol.messages import Success, TaskEnd

if TYPE_CHECKING:
    from chaos.sim.account import Tried
    from chaos.sim.world import World

_BACKOFF_S = 5.0


class Excluded:
    """See the module.  ``until_s``: when each excluded executor may be probed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.until_s: dict[Incarnation, float] = {}
        self._failed: dict[Incarnation, set[tuple[int, int]]] = {}  # tasks that failed there
        # … and have ended well elsewhere since, and when
        self._proved: dict[Incarnation, dict[tuple[int, int], float]] = {}
        self._probes: dict[Incarnation, Tried] = {}
        self._told: set[TaskId] = set()  # whose success is known; surveys tell of it again
        self._well: dict[Incarnation, float] = {}  # whose probe has ended well, and when

    def is_everybody(self) -> bool:
        live = self._world.shadow.live
        return bool(live) and all(executor in self.until_s for executor in live)

    def launched(self, attempt: Tried, to: Incarnation) -> None:
        if to in self.until_s:
            before = self._probes.get(to)
            if before is not None and not before.ended:
                raise ViolationError("S31", f"task {attempt.task} is launched on {to} beside its probe")
            self._probes[to] = attempt

    def ended(self, attempt: Tried, end: TaskEnd) -> bool:
        """Whether this was a probe that failed: that counts against no task."""
        executor, where = attempt.executor, (attempt.stage, attempt.partition)
        if not attempt.counts:
            return False
        is_probe = self._is_probe(attempt)
        if isinstance(end.reason, Success):
            self._succeeded(attempt, where, is_probe)
            return False
        if not is_probe:
            self._failed.setdefault(executor, set()).add(where)
        return is_probe

    def adopted(self, executor: Incarnation, task: TaskId) -> None:
        """It had committed its output before its process died."""
        attempt = self._world.shadow.attempts.get(task)
        if attempt is not None and attempt.executor == executor and task not in self._told:
            self._succeeded(attempt, (attempt.stage, attempt.partition), self._is_probe(attempt))

    def _is_probe(self, attempt: Tried) -> bool:
        return attempt.executor in self.until_s and self._probes.get(attempt.executor) is attempt

    def _succeeded(self, attempt: Tried, where: tuple[int, int], is_probe: bool) -> None:
        self._told.add(attempt.task)
        if is_probe:
            self._well[attempt.executor] = self._world.clock.now_s
        for executor, failed in self._failed.items():
            if where in failed:
                failed.discard(where)
                if executor != attempt.executor:
                    self._proved.setdefault(executor, {})[where] = self._world.clock.now_s

    # --- What the driver notes ---

    def excluded(self, fields: Any) -> None:
        executor, settings = fields["executor"], self._world.options.settings
        now_s = self._world.clock.now_s
        proofs = self._proved.get(executor, {}).values()
        # Time in which the driver stood still has not passed for it (CLK-4).
        oldest_s = now_s - settings.exclude_timeout_s - self._world.driver.scheduler._stalled_s
        proved = sum(at_s >= oldest_s for at_s in proofs)
        if fields["why"] != "its host is excluded" and proved < settings.exclude_app_tasks:
            raise ViolationError("S31", f"{executor} is excluded, and {proved} tasks speak against it")
        self.until_s[executor] = now_s + min(_BACKOFF_S, settings.exclude_timeout_s)
        self._probes.pop(executor, None)
        self._well.pop(executor, None)

    def probe_failed(self, fields: Any) -> None:
        self.until_s[fields["executor"]] = self._world.clock.now_s + fields["again_s"]

    def readmitted(self, executor: Incarnation) -> None:
        """Its probe has just ended well, or one of its host has: that clears the host, and not this executor
        of what speaks against itself."""
        host, now_s = self._world.executors[executor].host, self._world.clock.now_s
        well = [other for other, at_s in self._well.items() if at_s == now_s]
        if not any(self._world.executors[other].host == host for other in well):
            raise ViolationError("EX-14", f"{executor} takes tasks again, and no probe has ended well")
        del self.until_s[executor]
        if executor in well:
            self._proved.pop(executor, None)
