"""Histories made by hand, to see that a checker says false of a bad one."""

from __future__ import annotations

from typing import Any

from chaos.history import History
from chaos.nemesis import OUTPUTS, PROCESS, WORKER, Fault, Invocation, Notice
from chaos.schedule import Options

OPTIONS = Options(1, "bank", ("kill-executor",), "local-cluster[2,1,512]", 6.0)


def fault(number: int = 0, at_s: float = 1.0, until_s: float | None = None) -> Fault:
    return Fault(number, "kill-executor", "one", at_s, until_s or at_s, 0)


def invocation(at_s: float = 1.0, **fields: Any) -> Invocation:
    """A kill of executor-1 that took effect, unless said otherwise."""
    told: dict[str, Any] = {
        "took_effect": True,
        "takes": frozenset({PROCESS}),
        "victims": ("executor-1",),
        "notices": (Notice(("executor_lost",), {"executor": "executor-1"}, 1.0),),
        "rows": ("EX-1",),
    }
    return Invocation(fault(at_s=at_s), at_s=at_s, **{**told, **fields})


def took_outputs(at_s: float = 1.0, **fields: Any) -> Invocation:
    return invocation(at_s, takes=frozenset({OUTPUTS, WORKER, PROCESS}), victims=(), notices=(), **fields)


def start(task: int, at_s: float, stage: int = 0, partition: int = 0, **fields: Any) -> dict[str, Any]:
    told = {"task": task, "stage": stage, "partition": partition, "seen_s": at_s, "executor": "executor-1"}
    return {"event": "task_start", "kind": "map", "attempt": 0, "speculative": False, **told, **fields}


def end(task: int, at_s: float, reason: str = "Success") -> dict[str, Any]:
    return {"event": "task_end", "task": task, "reason": reason, "seen_s": at_s, "executor": "executor-1"}


def lost(at_s: float, executor: str = "executor-1") -> dict[str, Any]:
    return {"event": "executor_lost", "executor": executor, "host": "host-0", "seen_s": at_s, "pid": 1}


def history(*events: dict[str, Any], **fields: Any) -> History:
    """A run in which all went well, with these events."""
    told: dict[str, Any] = {
        "schedule": [fault()],
        "up_s": 0.5,
        "faults": [invocation()],
        "end": {"at_s": 9.0, "status": 0, "hang": False, "waited_s": 1.0},
        "left": {"processes": {}, "files": [], "shared": []},
    }
    return History(OPTIONS, events=list(events), **{**told, **fields})
