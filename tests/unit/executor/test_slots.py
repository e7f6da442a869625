"""Slots with real threads and signals, but no process; they wait for events, never for time."""

import threading
from collections.abc import Iterator
from queue import Empty, Queue

import pytest

from spark_ft import interrupts
from spark_ft.executor.slots import Slots, marks_path, open_marks, read_marks
from spark_ft.ids import BlobId, TaskId
from spark_ft.protocol.effects import RunTask, SlotEnded, SlotStarted
from spark_ft.protocol.messages import Killed, Launch, LaunchTasks, Success, TaskEnd, UserError

Posted = Queue[SlotStarted | SlotEnded]


def attempt(task: int) -> RunTask:
    return RunTask(LaunchTasks(BlobId(1), 0, 0, (Launch(TaskId(task), task, 0),)), 0, ())


class Runner:
    """Task 0 runs until it is interrupted, task 1 raises, others succeed."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, run: RunTask) -> TaskEnd:
        task = run.launch.tasks[run.index].task
        self.ran.append(task)
        if task == 0:
            threading.Event().wait(60)
        if task == 1:
            raise MemoryError("no room to say so")
        return TaskEnd(task, Success())


@pytest.fixture
def posted() -> Iterator[Posted]:
    import signal

    before = signal.getsignal(signal.SIGINT)
    yield Queue()
    signal.signal(signal.SIGINT, before)


def interrupted_end(slots: Slots, posted: Posted, task: int) -> SlotEnded:
    """Interrupt until it is felt, as the core does; answers the end."""
    while True:
        slots.interrupt(TaskId(task), hard=False)
        try:
            event = posted.get(timeout=0.05)
        except Empty:
            continue
        if isinstance(event, SlotEnded):
            return event


def drive(slots: Slots, script: "threading.Thread") -> None:
    """The slot is the main thread, as in an executor; ``script`` plays the I/O thread."""
    script.start()
    slots.serve()
    script.join()


def test_each_attempt_starts_and_ends_and_the_next_start_comes_with_the_end(posted: Posted) -> None:
    runner = Runner()
    slots = Slots(runner, posted.put)
    for task in (2, 3, 4):
        slots.put(attempt(task))
    seen: list[SlotStarted | SlotEnded] = []

    def script() -> None:
        seen.extend(posted.get(timeout=10) for _ in range(4))
        slots.close()

    drive(slots, threading.Thread(target=script))
    ends = [TaskEnd(TaskId(task), Success()) for task in (2, 3, 4)]
    assert seen == [
        SlotStarted(TaskId(2)),
        SlotEnded(ends[0], TaskId(3)),
        SlotEnded(ends[1], TaskId(4)),
        SlotEnded(ends[2], None),
    ]


def test_an_interrupt_breaks_off_the_task_it_is_meant_for_and_no_other(posted: Posted) -> None:
    runner = Runner()
    slots = Slots(runner, posted.put)
    slots.put(attempt(0))
    slots.put(attempt(2))
    ends: list[TaskEnd] = []

    def script() -> None:
        assert posted.get(timeout=10) == SlotStarted(TaskId(0))
        ends.append(interrupted_end(slots, posted, 0).end)
        while len(ends) < 2:
            event = posted.get(timeout=10)
            if isinstance(event, SlotEnded):
                ends.append(event.end)
        slots.interrupt(TaskId(2), hard=True)  # it has ended: nobody is killed
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert ends == [TaskEnd(TaskId(0), Killed("interrupted")), TaskEnd(TaskId(2), Success())]


def test_an_interrupt_takes_a_waiting_attempt_out_of_the_queue(posted: Posted) -> None:
    runner = Runner()
    slots = Slots(runner, posted.put)
    slots.put(attempt(0))
    slots.put(attempt(2))

    def script() -> None:
        assert posted.get(timeout=10) == SlotStarted(TaskId(0))
        slots.interrupt(TaskId(0), queued_only=True)  # it has begun: it goes on
        slots.interrupt(TaskId(2), queued_only=True)
        killed = posted.get(timeout=10)
        assert (
            isinstance(killed, SlotEnded) and killed.end.task == 2 and isinstance(killed.end.reason, Killed)
        )
        assert interrupted_end(slots, posted, 0) == SlotEnded(TaskEnd(TaskId(0), Killed("interrupted")), None)
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert runner.ran == [0]


def test_a_stray_signal_between_tasks_breaks_nothing(posted: Posted) -> None:
    runner = Runner()
    slots = Slots(runner, posted.put)
    interrupts_seen: list[int] = []

    def script() -> None:
        import signal

        slots.put(attempt(2))
        for _ in range(2):
            interrupts_seen.append(1)
            posted.get(timeout=10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        slots.put(attempt(3))
        assert posted.get(timeout=10) == SlotStarted(TaskId(3))
        assert posted.get(timeout=10) == SlotEnded(TaskEnd(TaskId(3), Success()), None)
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert runner.ran == [2, 3]


def test_a_shield_is_left_before_the_interrupt_is_felt(posted: Posted) -> None:
    inside, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    class Shielded(Runner):
        def run(self, run: RunTask) -> TaskEnd:
            with interrupts.shielded():
                inside.set()
                go_on.wait(10)
                told.append("whole")
            told.append("never")
            return TaskEnd(TaskId(0), Success())

    slots = Slots(Shielded(), posted.put)
    slots.put(attempt(0))

    def script() -> None:
        inside.wait(10)
        slots.interrupt(TaskId(0), hard=False)
        go_on.set()
        assert interrupted_end(slots, posted, 0) == SlotEnded(TaskEnd(TaskId(0), Killed("interrupted")), None)
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert told == ["whole"]


def test_cleaning_up_after_an_interrupt_is_not_broken_off_by_the_next(posted: Posted) -> None:
    cleaning, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    class Tidy(Runner):
        def run(self, run: RunTask) -> TaskEnd:
            try:
                return super().run(run)
            finally:
                cleaning.set()
                go_on.wait(10)
                told.append("clean")

    slots = Slots(Tidy(), posted.put)
    slots.put(attempt(0))

    def script() -> None:
        while not cleaning.wait(0.02):
            slots.interrupt(TaskId(0), hard=False)
        for _ in range(5):
            slots.interrupt(TaskId(0), hard=False)
        go_on.set()
        assert posted.get(timeout=10) == SlotStarted(TaskId(0))
        assert posted.get(timeout=10) == SlotEnded(TaskEnd(TaskId(0), Killed("interrupted")), None)
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert told == ["clean"]


def test_what_escapes_the_runner_ends_the_attempt_and_not_the_slot(posted: Posted) -> None:
    runner = Runner()
    slots = Slots(runner, posted.put)
    slots.put(attempt(1))
    slots.put(attempt(2))
    ends: list[TaskEnd] = []

    def script() -> None:
        while len(ends) < 2:
            event = posted.get(timeout=10)
            if isinstance(event, SlotEnded):
                ends.append(event.end)
        slots.close()

    drive(slots, threading.Thread(target=script))
    reason = ends[0].reason
    assert isinstance(reason, UserError) and reason.type_name == "MemoryError"
    assert "no room to say so" in reason.traceback
    assert ends[1] == TaskEnd(TaskId(2), Success())


def test_several_slots_share_one_queue(posted: Posted) -> None:
    barrier = threading.Barrier(3)

    class Together(Runner):
        def run(self, run: RunTask) -> TaskEnd:
            barrier.wait(10)  # only passes when all three run at once
            return TaskEnd(run.launch.tasks[run.index].task, Success())

    slots = Slots(Together(), posted.put, count=3)
    for task in (2, 3, 4):
        slots.put(attempt(task))

    def script() -> None:
        ended = 0
        while ended < 3:
            ended += isinstance(posted.get(timeout=10), SlotEnded)
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert slots.running() == {}


def test_TK_4_the_marks_always_say_what_a_slot_runs(tmp_path, posted: Posted) -> None:
    path = marks_path(tmp_path / "executor-1")
    assert read_marks(path) is None  # it never got so far
    marks = open_marks(path, 1)
    assert read_marks(path) == ()
    seen: list[tuple[TaskId, ...] | None] = []

    class Looks:
        def run(self, run: RunTask) -> TaskEnd:
            seen.append(read_marks(path))
            return TaskEnd(run.launch.tasks[run.index].task, Success())

    slots = Slots(Looks(), posted.put, 1, marks)
    slots.put(attempt(7))
    slots.put(attempt(8))

    def script() -> None:
        for _ in range(3):
            posted.get(timeout=10)
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert seen == [(7,), (8,)]
    assert read_marks(path) == ()


def test_CLK_3_what_waits_in_the_queue_begins_only_while_the_lease_holds(posted: Posted) -> None:
    """The process stands still while it runs an attempt; when it goes on the lease is over."""
    now_s = [0.0]

    class Stalls(Runner):
        def run(self, run: RunTask) -> TaskEnd:
            now_s[0] += 9.0
            return super().run(run)

    runner = Stalls()
    slots = Slots(runner, posted.put, now_s=lambda: now_s[0])
    slots.lease(8.0)
    slots.put(attempt(2))
    slots.put(attempt(4))
    seen: list[SlotStarted | SlotEnded] = []

    def script() -> None:
        seen.extend(posted.get(timeout=10) for _ in range(2))
        slots.lease(8.5)  # an answer that came too late grants nothing
        seen.append(SlotEnded(TaskEnd(TaskId(-1), Success())) if posted.empty() else posted.get())
        slots.lease(17.0)
        seen.extend(posted.get(timeout=10) for _ in range(2))
        slots.close()

    drive(slots, threading.Thread(target=script))
    assert seen[:3] == [
        SlotStarted(TaskId(2)),
        SlotEnded(TaskEnd(TaskId(2), Success()), None),
        SlotEnded(TaskEnd(TaskId(-1), Success())),
    ]
    assert seen[3] == SlotStarted(TaskId(4)) and runner.ran == [2, 4]
