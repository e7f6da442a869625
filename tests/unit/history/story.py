"""Records as an application would have written them, one second apart unless told otherwise."""

from typing import Any

from spark_ft.history.files import Record


class Story:
    """Appends records; ids that nobody cares about are filled in."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.t_ms = 0
        self._tasks = 0
        self._place: dict[int, dict[str, Any]] = {}

    def note(self, event: str, **fields: Any) -> Record:
        self.t_ms += 1000
        record = {"event": event, "t_ms": self.t_ms, **fields}
        self.records.append(record)
        return record

    def application(self, app: str = "app-1", **more: Any) -> None:
        self.note("application_start", app=app, name="program", pid=100, master="local[2]", **more)

    def executor(self, name: str = "e0", host: str = "h0", pid: int = 200) -> None:
        self.note("executor_added", executor=name, host=host, pid=pid, slots=1)

    def job(self, job: int = 0, stages: tuple[int, ...] = (0, 1)) -> None:
        self.note("job_start", job=job, name=f"job {job}", group=None, tags=[], stages=list(stages))

    def stage(self, stage: int = 0, attempt: int = 0, tasks: int = 4, kind: str = "map") -> None:
        shuffle = stage if kind == "map" else None
        self.note(
            "stage_start", stage=stage, attempt=attempt, job=0, name="n", kind=kind, shuffle=shuffle,
            tasks=tasks, parents=[],
        )  # fmt: skip

    def start(
        self, partition: int, stage: int = 0, attempt: int = 0, executor: str = "e0", **more: Any
    ) -> int:
        task, self._tasks = self._tasks, self._tasks + 1
        more = {"stage_attempt": 0, "pid": 200, "host": "h0", "speculative": False, "kind": "map", **more}
        self._place[task] = {
            "task": task, "stage": stage, "partition": partition, "attempt": attempt, "executor": executor
        }  # fmt: skip
        self.note("task_start", **self._place[task], **more)
        return task

    def end(self, task: int, reason: str = "Success", text: str = "") -> None:
        more = {"blame": "", "run_s": 1.0, "records": 3, "text": text}
        self.note("task_end", **self._place[task], reason=reason, **more)

    def executor_lost(self, name: str = "e0", why: str = "SIGKILL", pid: int = 200) -> None:
        self.note("executor_lost", executor=name, host="h0", pid=pid, why=why, blame="", signal=9, status=0)
