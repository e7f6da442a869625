"""Who is excluded, and why: evidence, one probe at a time, and in again once it is well (EX-14, S31, L12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaos.sim.violation import ViolationError
from spark_ft.ids import Incarnation, TaskId
from spark_ft.protocol.messages import Success, TaskEnd

if TYPE_CHECKING:
    from chaos.sim.shadow import Tried
    from chaos.sim.world import World

_BACKOFF_S = 5.0


class Excluded:
    """See the module.  ``until_s``: when each excluded executor may be probed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.until_s: dict[Incarnation, float] = {}
        self._failed: dict[Incarnation, set[tuple[int, int]]] = {}  # tasks that failed there
        self._proved: dict[Incarnation, set[tuple[int, int]]] = {}  # … and have ended well elsewhere since
        self._probes: dict[Incarnation, Tried] = {}
        self._well: set[Incarnation] = set()  # whose probe has ended well

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
        if attempt is not None and attempt.executor == executor:
            self._succeeded(attempt, (attempt.stage, attempt.partition), self._is_probe(attempt))

    def _is_probe(self, attempt: Tried) -> bool:
        return attempt.executor in self.until_s and self._probes.get(attempt.executor) is attempt

    def _succeeded(self, attempt: Tried, where: tuple[int, int], is_probe: bool) -> None:
        if is_probe:
            self._well.add(attempt.executor)
        for executor, failed in self._failed.items():
            if where in failed:
                failed.discard(where)
                if executor != attempt.executor:
                    self._proved.setdefault(executor, set()).add(where)

    # --- What the driver notes ---

    def excluded(self, fields: Any) -> None:
        executor, settings = fields["executor"], self._world.options.settings
        proved = len(self._proved.get(executor, ()))
        if fields["why"] != "its host is excluded" and proved < settings.exclude_app_tasks:
            raise ViolationError("S31", f"{executor} is excluded, and {proved} tasks speak against it")
        self.until_s[executor] = self._world.clock.now_s + min(_BACKOFF_S, settings.exclude_timeout_s)
        self._probes.pop(executor, None)
        self._well.discard(executor)

    def probe_failed(self, fields: Any) -> None:
        self.until_s[fields["executor"]] = self._world.clock.now_s + fields["again_s"]

    def readmitted(self, executor: Incarnation) -> None:
        host = self._world.executors[executor].host
        if not any(self._world.executors[other].host == host for other in self._well):
            raise ViolationError("EX-14", f"{executor} takes tasks again, and no probe has ended well")
        del self.until_s[executor]
        self._proved.pop(executor, None)
